"""Serve a saved model over HTTP, as OpenAI's chat API, with vLLM.

    python -m serve.server --model out/sft-llava
    python -m serve.server --model out/sft-llava --tensor_parallel 4 --lora reports=out/reports/adapter
    python -m serve.server --model out/sft-llava -- --nnodes 2 --node-rank 0 --master-addr 10.0.0.1

It listens on this machine alone. Other machines are let in with --host and a key (--api_key, or ECG_API_KEY in the
environment), which then every path but /health asks for; put a proxy with TLS in front. There are four paths: POST
/v1/chat/completions, GET /v1/models, /health and /metrics. Every reply says which training and weights are served
(X-Ecg-Model). Neither questions nor ECGs nor answers are logged. SIGTERM lets answers that have begun end first.

Everything behind -- goes to vLLM as it is. docs/serving.md says how to ask.
Research use only; not a medical device.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from data.support.commands import add_options, command_line, settings_from
from data.support.sentences import Refused
from data.support.status import command
from serve.serving.port import require_free
from serve.serving.settings import Settings


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = command_line("serve.server", __doc__)
    add_options(out, Settings)
    out.set_defaults(api_key=os.environ.get("ECG_API_KEY") or None)
    return out


@command()
def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    settings = settings_from(Settings, parser().parse_args(argv))
    require_free(settings.host, settings.port)

    from serve.serving.launch import run, runs_on_cpu

    on_cpu = runs_on_cpu()

    from serve.serving.options import options

    words, environment = options(settings, on_cpu)
    os.environ.update(environment)
    print(f"Serving {environment['ECG_SERVED_MODELS']} on http://{settings.host}:{settings.port}", flush=True)
    sys.argv[1:] = words  # which vLLM looks at here and there; the key is not among it
    run(words)

    from serve.serving.gate import Gate

    if Gate.engine_died:
        raise Refused("the engine died, see above: the server has ended")


if __name__ == "__main__":
    main()
