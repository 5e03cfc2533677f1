"""Tiny language models and tiny ECG encoders, trained on the spot: the default job needs no download.

The language model (`tiny_llama`) learns from text alone to answer from reports; it has seen no ECG. The encoder
(`tiny_encoder`) learns to predict from an ECG which words its report holds; it never sees a question or an answer.

Both are written to a cache folder under the hash of their inputs, and are then loaded like any other model.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from data.conversations.rows import QuestionSet
from data.support.cache import built_once, cache_key
from elm.training import tiny_encoder, tiny_llama

VERSION = 2  # in cache keys: tests/test_versions.py says when to raise it


def parts(
    text: str, ecg: str, questions: QuestionSet, cache: Path, seed: int = 0, text_first: bool = False
) -> tuple[str, str]:
    """Language model and encoder of a run, with folders of tiny ones for the names of such.

    Two processes that make the same two, one of them with the text first, work at the same time: each finds the one
    that the other is making locked, and waits for it.
    """
    paths = {"text": text, "ecg": ecg}
    for part in ("text", "ecg") if text_first else ("ecg", "text"):
        if part == "ecg" and ecg in tiny_encoder.ENCODERS:
            paths[part] = str(encoder(questions, cache, seed, ecg))
        elif part == "text" and text == "tiny":
            paths[part] = str(language_model(questions, cache, seed))
    return paths["text"], paths["ecg"]


def language_model(questions: QuestionSet, cache: Path, seed: int = 0, steps: int = tiny_llama.STEPS) -> Path:
    """Folder of a tiny Llama and its tokenizer, trained on the text of the training split."""
    return _cached(cache, "tiny-llama", questions, (seed, steps), partial(tiny_llama.train, questions, seed, steps))


def encoder(questions: QuestionSet, cache: Path, seed: int = 0, kind: str = "tiny", steps: int | None = None) -> Path:
    """Folder of a tiny encoder, one of `tiny_encoder.ENCODERS`, trained on the reports of the training split."""
    reader = tiny_encoder.ENCODERS[kind]
    steps = reader.steps if steps is None else steps
    train = partial(tiny_encoder.train, questions, reader, seed, steps)
    return _cached(cache, f"{kind}-encoder", questions, (seed, steps), train)


def _cached(cache: Path, name: str, questions: QuestionSet, key: object, build: Callable[[Path], None]) -> Path:
    """`cache/name-hash`, built once. A build that is cut short leaves nothing under that name."""
    reports = [[row["ecgs"], tiny_llama.report_of(row)] for row in questions.reports]
    parts = [VERSION, questions.source_key, key, reports, [row["id"] for row in questions.train]]
    return built_once(cache / f"{name}-{cache_key(*parts)}", build)
