"""Other processes beside this one, which end when it does, however that is."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from data.support.sentences import Refused, sentence_of

Result = TypeVar("Result")


def end_with_parent() -> None:
    """Have this process end when the one that started it has ended, killed or not. Called at its beginning.

    Else it would train on, and a run that is started again would train beside it.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


@contextmanager
def beside(function: Callable[..., object], *args: object) -> Iterator[None]:
    """Call a function of a module in another process while the block runs; leaving the block waits for it.

    Where the block fails, the other process is ended. The arguments are pickled.

    Raises:
        Refused: The function failed for a reason that a user can do something about, as the message says.
        RuntimeError: It failed otherwise. Its traceback went to standard error.
    """
    context = multiprocessing.get_context("spawn")
    reason, send = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(send, function, args))
    process.start()
    send.close()
    try:
        yield
    except BaseException:
        process.terminate()
        raise
    finally:
        process.join()
    if process.exitcode:
        with suppress(EOFError):  # it could not say why
            raise Refused(reason.recv())
        raise RuntimeError(
            f"{function.__name__} failed in another process, with exit status {process.exitcode}; its error is above"
        )


def _call(send: Connection, function: Callable[..., object], args: tuple[object, ...]) -> None:
    end_with_parent()
    try:
        function(*args)
    except Exception as error:
        if (sentence := sentence_of(error)) is None:
            raise
        send.send(sentence)
        raise SystemExit(2) from error


def in_processes(
    work: Callable[..., Result], chunks: Sequence[object], *inputs: object, jobs: int, start: str | None = None
) -> Iterator[Result]:
    """Results of `work(chunk, *inputs)` for every chunk, in order. Each process is sent work and inputs once.

    With one job this process works alone. `start` is how processes are started: `"spawn"` where torch's threads would
    not survive a fork.
    """
    if jobs <= 1:
        yield from (work(chunk, *inputs) for chunk in chunks)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context(start), _begin, (work, inputs)) as pool:
        yield from pool.map(_do, chunks)


_work: list[Callable[[object], Any]] = []  # in a process of a pool, the one thing it does


def _begin(work: Callable[..., object], inputs: Sequence[object]) -> None:
    end_with_parent()
    _work[:] = [lambda chunk: work(chunk, *inputs)]


def _do(chunk: object) -> Any:
    return _work[0](chunk)
