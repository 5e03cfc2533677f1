"""Sentences about the recordings of a request, on their way from the renderer, which reads them, to the gate.

Both run in the process that serves HTTP, with vLLM between them, which knows nothing of such sentences. Each request is
a task of its own there, so a context variable tells them apart.
"""

from collections.abc import Sequence
from contextvars import ContextVar

FIELD = "ecg_notes"  # of a reply: for each recording of the conversation, what is wrong with it
Notes = list[list[str]]  # sentences about each recording, in order; empty where there are none at all

_NOTES: ContextVar[Notes] = ContextVar(FIELD)


def collect() -> Notes:
    """A list that `note` fills from here on, in this task and in those that it starts."""
    notes: Notes = []
    _NOTES.set(notes)
    return notes


def note(sentences: Sequence[Sequence[str]]) -> None:
    """State what is wrong with each recording of this task's request, where somebody collects it."""
    if (notes := _NOTES.get(None)) is not None and any(sentences):
        notes[:] = map(list, sentences)
