"""What tests of several rooms share."""

import importlib.util
import os
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import tqdm.auto
import tqdm.std


def own_progress_bars():
    """tqdm locks its bars with a semaphore that forked processes share: one killed while drawing stops all."""
    for bar in (tqdm.std.tqdm, tqdm.auto.tqdm):
        bar.set_lock(threading.RLock())


os.register_at_fork(after_in_child=own_progress_bars)


@pytest.fixture(scope="session")
def hub_server():
    """The module `tests/hub_server.py`."""
    spec = importlib.util.spec_from_file_location("hub_server", Path(__file__).with_name("hub_server.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["hub_server"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hub(hub_server):
    """A Hugging Face hub on 127.0.0.1, empty."""
    server = hub_server.Hub()
    yield server
    server.close()


@pytest.fixture
def logged_in(hub, hub_server, monkeypatch, tmp_path):
    """This process talks to `hub` with an empty cache, as one who may write below owner/; returns `hub`.

    For what a whole process does, `hub.environment` sets the same from outside.
    """
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", hub_server.WRITER)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    return hub


@pytest.fixture(scope="session")
def listening():
    """`with listening(server):`, a server of `http.server` that answers in the background until the block ends."""

    @contextmanager
    def run(server):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    return run
