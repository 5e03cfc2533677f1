"""A tiny language model and a tiny ECG encoder, made on the spot: the default job needs no download.

The language model is a Llama trained on text alone: it is given a training patient's report in words, where a recording
would stand, and answers questions about it or repeats it. It learns the language, and to answer from what it is given;
it has seen no ECG.

The encoder learns to predict from a training patient's ECG which words and word pairs the report of it holds; it never
sees a question or an answer. There are three: MELP's architecture at 100 Hz, HeartLang's, and a plain convolutional
network, which learns more from a few thousand real recordings.

Both are written to a cache folder under the hash of what made them, and are then loaded like any other model.
"""

from __future__ import annotations

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
    """A folder with a tiny Llama and its tokenizer, trained on the text of the training split."""
    return _cached(cache, "tiny-llama", questions, (seed, steps), partial(tiny_llama.train, questions, seed, steps))


def encoder(questions: QuestionSet, cache: Path, seed: int = 0, kind: str = "tiny", steps: int | None = None) -> Path:
    """A folder with a tiny encoder, trained on the reports of the training split.

    Args:
        questions: Whose reports and recordings.
        cache: Folder of what is computed once.
        seed: Of weights and batches.
        kind: A name in `ENCODERS`: `"tiny"` has MELP's architecture, `"tiny-heartlang"` HeartLang's, `"tiny-cnn"` is a
            plain convolutional network.
        steps: How long it learns, if not as long as its kind should.
    """
    reader = tiny_encoder.ENCODERS[kind]
    steps = reader.steps if steps is None else steps
    return _cached(
        cache, f"{kind}-encoder", questions, (seed, steps), partial(tiny_encoder.train, questions, reader, seed, steps)
    )


def _cached(cache: Path, name: str, questions: QuestionSet, key: object, build: Callable[[Path], None]) -> Path:
    """`cache/name-hash`, built once. A build that is cut short leaves nothing under that name."""
    reports = [[row["ecgs"], tiny_llama.report_of(row)] for row in questions.reports]
    parts = [VERSION, questions.source_key, key, reports, [row["id"] for row in questions.train]]
    return built_once(cache / f"{name}-{cache_key(*parts)}", build)
