"""A chat page for an ECG-language model: the ECG on paper, its measurements, answers, and what they are worth.

    python -m serve.app --model out/sft-llava
    python -m serve.app --server http://127.0.0.1:8000

opens a page on http://127.0.0.1:7860. With --model the model answers in this process, on the GPU if there is one; with
--server one that `python -m serve.server` serves. The page asks every question again without the ECG, or with another
patient's, and shows the answers side by side.

Uploads stay in memory until the page is closed; nothing is logged, and nothing leaves this machine but what is asked of
the server. Needs Gradio: pip install "ecg-elm[app]". Research use only; not a medical device.
"""

import atexit
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from data.support.commands import add_options, command_line, settings_from
from data.support.status import command
from serve.page.settings import Settings
from serve.serving.port import require_free


@command()
def main(argv: Sequence[str] | None = None) -> None:
    """Show the page until Ctrl-C."""
    parser = command_line("serve.app", __doc__)
    add_options(parser, Settings)
    parser.set_defaults(api_key=os.environ.get("ECG_API_KEY"), password=os.environ.get("ECG_APP_PASSWORD"))
    folder: Path | None = None
    settings = settings_from(Settings, parser.parse_args(argv))
    if find_spec("gradio") is None:
        raise ModuleNotFoundError('the chat page needs Gradio: pip install "ecg-elm[app]"')
    require_free(settings.host, settings.port)
    # Uploads go to a folder of this user alone, which ends with the page.
    uploads = tempfile.TemporaryDirectory(prefix="ecg-chat-")
    atexit.register(uploads.cleanup)
    os.environ["GRADIO_TEMP_DIR"] = uploads.name
    if settings.server is not None:
        from serve.serving.client import EcgChat
        from serve.serving.engine import Engine, RemoteEngine

        engine: Engine = RemoteEngine(EcgChat(settings.server, settings.api_key))
    else:
        from elm.saved.folder import resolve
        from serve.serving.local import LocalEngine

        folder = resolve(settings.model)
        engine = LocalEngine(settings.model, settings.max_new_tokens)

    from serve.page.build import build, launch
    from serve.page.desk import Desk
    from serve.page.recordings import Shelf

    desk = Desk(engine, Shelf(folder))
    page = build(desk, folder)
    launch(page, settings.host, settings.port, settings.password)
    threading.Thread(target=desk.shelf.warm, daemon=True, name="measure the examples").start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uploads that nobody read are deleted then, too
    print(f"The chat page is on http://{settings.host}:{settings.port} (Ctrl+C ends it)", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        page.close(verbose=False)


if __name__ == "__main__":
    main()
