"""Settings of the server: the options of `python -m serve.server`. Imports neither torch nor vLLM."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from data.support.commands import option
from serve.serving.port import require_port

LOCAL = ("127.0.0.1", "localhost", "::1")
LENGTH = 8192  # tokens of a conversation, where a model can read more
CPU_CACHE_GB = 2.0


@dataclass(frozen=True)
class Settings:
    """Settings of the server.

    Raises:
        ValueError: Other machines are let in without a key, there is no such port, or a number is not positive.
    """

    model: str = option("folder of a trained model, or its hub id", parse=os.path.expanduser)
    name: str | None = option("name of the model in requests (default: the folder's)", default=None)
    host: str = option("address to listen on", default="127.0.0.1")
    port: int = option("port to listen on", default=8000)
    api_key: str | None = option("what clients must show (default: $ECG_API_KEY, else nothing)", default=None)
    max_ecgs: int = option("ECGs of one conversation", default=2)
    max_length: int | None = option(f"tokens of a conversation (default: {LENGTH}, or the model's limit)", default=None)
    max_tokens: int = option("tokens of an answer", default=1024)
    dtype: str = option("dtype of the language model; auto takes bfloat16 for float32", default="auto")
    tensor_parallel: int = option("GPUs to split the model over", default=1)
    kv_cache_gb: float | None = option(
        f"memory for conversations (default: what is free; {CPU_CACHE_GB:g} on a CPU)", default=None
    )
    shutdown_timeout: int = option("seconds for answers to end after SIGTERM", default=30)
    vllm: Sequence[str] = option("handed to vLLM", default=(), metavar="-- VLLM_OPTION", positional=True)
    lora: Sequence[str] = option("adapter to serve as NAME; repeatable", default=(), metavar="NAME=DIR", append=True)

    def __post_init__(self) -> None:
        if self.host not in LOCAL and not self.api_key:
            raise ValueError(
                f"--host {self.host} lets other machines in: give a key that they must show (--api_key, or ECG_API_KEY "
                "in the environment)"
            )
        require_port(self.port)
        for name in ("max_ecgs", "max_tokens", "tensor_parallel"):
            if vars(self)[name] < 1:
                raise ValueError(f"--{name} must be positive, got {vars(self)[name]}")
