"""Settings of the server as options of vLLM and variables of its environment."""

import json
import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from data.support.files import read_json
from elm.model.configuration import ElmConfig
from elm.saved.check import require_model
from elm.saved.folder import resolve
from elm.saved.run import SavedRun
from serve.serving.gate import API_KEY, MAX_BYTES, MODELS
from serve.serving.settings import CPU_CACHE_GB, LENGTH, Settings
from serve.vllm_plugin import WORDS
from serve.vllm_plugin.messages import MAX_BYTES as MAX_ECG_BYTES

MOST_ANSWERS = 8  # of one request (`n`)
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of LoRA, that vLLM has room for
CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # widths that attention has in vLLM's build for CPUs
_OFF = ("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_DEBUG_LOG_API_SERVER_RESPONSE")
_HASHED = ("*.json", "*.jinja", "*.model", "*.txt", "*.safetensors")


def options(settings: Settings, on_cpu: bool) -> tuple[list[str], dict[str, str]]:
    """Options of vLLM, and variables that must stand in the environment before it is imported.

    Raises:
        FileNotFoundError: The model is no saved one, and no hub id of one that can be reached.
        ValueError: The model knows no ECGs, one of its files is damaged, its name is unfit, or an adapter cannot be
            served.
    """
    folder = resolve(settings.model).resolve()
    config = require_model(folder, settings.model)
    if on_cpu:
        _require_attention(config, settings.model)
    adapters = _adapters(settings.lora)
    name = settings.name or Path(settings.model).resolve().name
    if set(",= ") & set(name) or name in adapters:
        raise ValueError(f"the model's name {name!r} must have no comma, = or space, and be no adapter's: give --name")
    hashes = {name: model_hash(folder)}
    hashes |= {adapter: f"{hashes[name]}-{_digest(path)}" for adapter, path in adapters.items()}
    values = {"--model": str(folder), "--served-model-name": name, **_values(settings, config)}
    if cache := settings.kv_cache_gb or (CPU_CACHE_GB if on_cpu else None):
        values["--kv-cache-memory-bytes"] = str(round(cache * 2**30))
    flags = ["--disable-uvicorn-access-log", "--disable-fastapi-docs", "--no-enable-log-requests"]
    if adapters:
        ranks = [int(read_json(path / "adapter_config.json")["r"]) for path in adapters.values()]
        values["--max-lora-rank"] = str(next((rank for rank in RANKS if rank >= max(ranks)), max(ranks)))
        flags += ["--enable-lora", "--lora-modules", *(f"{name}={path}" for name, path in adapters.items())]
    words = [word for pair in values.items() for word in pair]
    return [*words, *flags, *settings.vllm], _environment(settings, hashes, on_cpu)


def model_hash(folder: Path | str) -> str:
    """Hash of the model in a saved folder: `TRAINING-FILES`, 16 hexadecimal digits each.

    The first part is that by which an audit's report names the training (`elm.saved.run.SavedRun.digest`); the
    second is of the bytes of weights, tokenizer, processor and configurations.
    """
    if not (digest := SavedRun(folder).digest):
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


def _require_attention(config: ElmConfig, model: str) -> None:
    """Refuse a model that vLLM's build for CPUs cannot run: its engine would die of the first question."""
    text = config.text_config
    width = vars(text).get("head_dim") or text.hidden_size // text.num_attention_heads
    if width not in CPU_HEADS:
        raise ValueError(
            f"{model}: vLLM's build for CPUs knows no attention heads of width {width}, only "
            f"{', '.join(map(str, CPU_HEADS))}: serve it on a GPU, or ask it in-process (python -m serve.app --model)"
        )


def _adapters(lora: Sequence[str]) -> dict[str, Path]:
    """Folders of LoRA weights by the names they are served under.

    Raises:
        ValueError: One is not written as NAME=DIR, is no adapter, or holds a projector of its own.
    """
    adapters: dict[str, Path] = {}
    for pair in lora:
        name, _, folder = pair.partition("=")
        config = Path(folder) / "adapter_config.json"
        if not name or not folder or name in adapters or set(",= ") & set(name):
            raise ValueError(f"--lora must be NAME=DIR, each name once, got {pair!r}")
        if not config.exists():
            raise ValueError(f"--lora {pair}: {folder} is no adapter: it has no adapter_config.json")
        if modules := read_json(config).get("modules_to_save"):
            raise ValueError(
                f"--lora {pair}: the adapter was trained together with {', '.join(modules)}, which vLLM cannot "
                "exchange beside a base: serve the merged model it was saved in (--model)"
            )
        adapters[name] = Path(folder)
    return adapters


def _values(settings: Settings, config: ElmConfig) -> dict[str, str]:
    """Options that have a value, by name: of the server, and of how a model of this kind is served."""
    values = {
        "--host": settings.host,
        "--port": str(settings.port),
        "--dtype": settings.dtype,
        "--max-model-len": str(settings.max_length or min(LENGTH, int(config.text_config.max_position_embeddings))),
        "--tensor-parallel-size": str(settings.tensor_parallel),
        "--shutdown-timeout": str(settings.shutdown_timeout),
        # Answers are greedy where a request does not say otherwise, as everywhere; the tokens are a limit.
        "--override-generation-config": json.dumps({"temperature": 0.0, "max_new_tokens": settings.max_tokens}),
        "--middleware": "serve.serving.gate.Gate",
    }
    if config.vocabulary_start is None:
        return {**values, "--limit-mm-per-prompt": json.dumps({"ecg": settings.max_ecgs})}
    words = {"--tokenizer-mode": WORDS, "--additional-config": json.dumps({"max_ecgs": settings.max_ecgs})}
    return {**values, **words, "--logits-processors": "serve.vllm_plugin.words:NoEcgTokens"}


def _environment(settings: Settings, hashes: Mapping[str, str], on_cpu: bool) -> dict[str, str]:
    environment = {
        **dict.fromkeys(("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "HF_HUB_OFFLINE"), "1"),  # nothing is asked of anybody
        **dict.fromkeys(_OFF, "0"),
        "VLLM_MAX_N_SEQUENCES": str(MOST_ANSWERS),
        "VLLM_CACHE_ROOT": str(_private_cache()),
        MODELS: ", ".join(f"{name}={digest}" for name, digest in hashes.items()),
        MAX_BYTES: str(settings.max_ecgs * MAX_ECG_BYTES + 2**20),
    }
    if settings.api_key:
        environment[API_KEY] = settings.api_key
    if on_cpu:
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # else it takes the first core, whoever else is on it
    return environment


def _private_cache() -> Path:
    """A folder that nobody else can write to: vLLM reads pickles from its cache."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ecg-elm" / "vllm"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    return folder
