"""What tests of several rooms share."""

import os

# Before torch and OpenMP load: pytest-xdist runs a process per core, and a second thread in each would only wait.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import tqdm.auto
import tqdm.std
from filelock import FileLock

from helpers import hub_server


def unshared_progress_bars():
    """tqdm locks its bars with a semaphore that forked processes share: one killed while drawing stops all."""
    for bar in (tqdm.std.tqdm, tqdm.auto.tqdm):
        bar.set_lock(threading.RLock())


os.register_at_fork(after_in_child=unshared_progress_bars)


@pytest.fixture(scope="session")
def built_once(tmp_path_factory):
    """`built_once(name, build)`: the folder that `build(folder)` filled, once for all processes that run tests."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder_of(name: str, build) -> Path:
        folder = base / f"once-{name}"
        with FileLock(f"{folder}.lock"):
            if not Path(f"{folder}.built").exists():
                build(folder)
                Path(f"{folder}.built").touch()
        return folder

    return folder_of


def pytest_collection_modifyitems(items):
    """Files that train come first, so that none of them is begun when the other processes are at their end."""
    items.sort(key=lambda item: "recipes" not in item.path.parts)


@pytest.fixture
def hub():
    """A Hugging Face hub on 127.0.0.1, empty."""
    server = hub_server.Hub()
    yield server
    server.close()


@pytest.fixture
def logged_in(hub, monkeypatch, tmp_path):
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
