"""Another process beside this one, on CPUs: it ends when this one does, however that is."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """Have this process end when the one that started it has ended, killed or not. Called at its beginning.

    Else it would train on, and a run that is started again would train beside it.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


@contextmanager
def beside(function: Callable[..., object], *args: object) -> Iterator[None]:
    """Call a function in another process while the block runs; leaving the block waits for it.

    Where the block fails, the other process is ended.

    Args:
        function: Of a module's top level.
        args: Its arguments; they are pickled.

    Raises:
        RuntimeError: The function failed. Its traceback went to standard error.
    """
    process = multiprocessing.get_context("spawn").Process(target=_call, args=(function, args))
    process.start()
    try:
        yield
    except BaseException:
        process.terminate()
        raise
    finally:
        process.join()
    if process.exitcode:
        raise RuntimeError(
            f"{function.__name__} failed in another process, with exit status {process.exitcode}; its error is above"
        )


def _call(function: Callable[..., object], args: tuple[object, ...]) -> None:
    end_with_parent()
    function(*args)
