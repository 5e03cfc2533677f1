"""A chat page for an ECG-language model: the ECG on paper, its measurements, answers, and what they are worth.

    python -m serve.app --model out/sft-llava
    python -m serve.app --server http://127.0.0.1:8000

opens a page on http://127.0.0.1:7860. With --model the model answers in this process, on the GPU if there is one; with
--server one that `python -m serve.server` serves. The page asks every question again without the ECG, or with another
patient's, and shows the answers side by side.

What is uploaded stays in memory until the page is closed; nothing is logged, and nothing leaves this machine but what
is asked of the server. Needs Gradio: pip install "ecg-elm[app]". Research use only; not a medical device.
"""

from __future__ import annotations

import atexit
import ipaddress
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from data.support.commands import command_line


def is_local(host: str) -> bool:
    """Whether nobody but this machine reaches what listens there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line("serve.app", __doc__)
    answers = parser.add_mutually_exclusive_group(required=True)
    answers.add_argument("--model", help="folder of a trained model, or its hub id")
    answers.add_argument("--server", metavar="URL", help="a server to ask instead")
    parser.add_argument(
        "--api_key", default=os.environ.get("ECG_API_KEY"), help="of the server (default: $ECG_API_KEY)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: 7860)")
    parser.add_argument(
        "--password",
        default=os.environ.get("ECG_APP_PASSWORD"),
        help="ask visitors for it, with the user name ecg (default: $ECG_APP_PASSWORD)",
    )
    parser.add_argument("--max_new_tokens", type=int, default=256, help="where --model cuts an answer (default: 256)")
    args = parser.parse_args(argv)
    if not is_local(args.host) and not args.password:
        parser.error(
            f"--host {args.host} lets others reach the page: give a --password as well, or leave --host out "
            "(the page is then for this machine alone)"
        )
    if find_spec("gradio") is None:
        parser.exit(2, 'error: the chat page needs Gradio: pip install "ecg-elm[app]"\n')

    # Uploads go to a folder of this user alone, which ends with the page.
    uploads = tempfile.TemporaryDirectory(prefix="ecg-chat-")
    atexit.register(uploads.cleanup)
    os.environ["GRADIO_TEMP_DIR"] = uploads.name
    try:
        from serve.page.desk import Desk
        from serve.page.recordings import Shelf
        from serve.serving.engine import RemoteEngine
        from serve.serving.local import LocalEngine

        folder: Path | None = None
        if args.server:
            from serve.serving.client import EcgChat

            engine: LocalEngine | RemoteEngine = RemoteEngine(EcgChat(args.server, args.api_key))
        else:
            from elm.saved.folder import resolve

            folder = resolve(args.model)
            engine = LocalEngine(args.model, args.max_new_tokens)
        desk = Desk(engine, Shelf(folder))

        from serve.page import build
        from serve.page.build import launch

        page = build(desk, folder)
        launch(page, args.host, args.port, args.password)
    except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
        parser.exit(2, f"error: {error}\n")
    desk.warm()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uploads that nobody read are deleted then, too
    print(f"The chat page is on http://{args.host}:{args.port} (Ctrl+C ends it)", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        page.close(verbose=False)


if __name__ == "__main__":
    main()
