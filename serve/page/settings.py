"""Settings of the chat page: the options of `python -m serve.app`. Imports neither Gradio nor torch."""

import ipaddress
import os
from dataclasses import dataclass

from data.support.commands import option
from serve.serving.port import require_port


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the chat page.

    Raises:
        ValueError: Not exactly one of model and server, no port, or others can reach the page without a password.
    """

    model: str | None = option("folder of a trained model, or its hub id", default=None, parse=os.path.expanduser)
    server: str | None = option("a server to ask instead", default=None, metavar="URL")
    api_key: str | None = option("key of the server (default: $ECG_API_KEY)", default=None)
    host: str = option("address to listen on", default="127.0.0.1")
    port: int = option("port to listen on", default=7860)
    password: str | None = option("visitors need it, with the name ecg (default: $ECG_APP_PASSWORD)", default=None)
    max_new_tokens: int = option("where --model cuts an answer", default=256)

    def __post_init__(self) -> None:
        if (self.model is None) == (self.server is None):
            raise ValueError("one of --model and --server is required, and not both")
        require_port(self.port)
        if not is_local(self.host) and not self.password:
            raise ValueError(
                f"--host {self.host} lets others reach the page: give a --password as well, or leave --host out (the "
                "page is then for this machine alone)"
            )


def is_local(host: str) -> bool:
    """Whether nobody but this machine reaches a page that listens there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
