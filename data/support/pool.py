"""Work shared by processes, to each of which the inputs that all chunks need are sent once."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, ClassVar, TypeVar

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")


class _Process:
    """What a process of the pool works with."""

    work: ClassVar[Callable[..., Any]]
    inputs: ClassVar[Sequence[object]]


def in_processes(
    work: Callable[..., Result], chunks: Sequence[Chunk], *inputs: object, jobs: int, start: str | None = None
) -> Iterator[Result]:
    """`work(chunk, *inputs)` of every chunk, in order, as they are done; with one of the `jobs`, this process works.

    `work` is a function of a module; `start` is `"spawn"` where torch's threads would not survive a fork.
    """
    if jobs <= 1:
        yield from (work(chunk, *inputs) for chunk in chunks)
        return
    with ProcessPoolExecutor(jobs, get_context(start), _begin, (work, inputs)) as pool:
        yield from pool.map(_do, chunks)


def _begin(work: Callable[..., Result], inputs: Sequence[object]) -> None:
    _Process.work, _Process.inputs = work, inputs


def _do(chunk: object) -> Any:
    return _Process.work(chunk, *_Process.inputs)
