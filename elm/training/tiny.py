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

import dataclasses
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from data.conversations.rows import QuestionSet
from data.ecg import Ecg
from data.support.files import built_whole
from elm.training import tiny_encoder, tiny_llama

VERSION = 2  # in cache keys: tests/test_versions.py says when to raise it


def both(questions: QuestionSet, cache: Path, seed: int = 0, kind: str = "tiny") -> tuple[Path, Path]:
    """Folders of a tiny language model and a tiny encoder, each made on a core of its own."""
    text = dataclasses.replace(questions, source=_NoRecordings())  # another process gets the rows alone
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        llama = other.submit(language_model, text, cache, seed)
        ecg = encoder(questions, cache, seed, kind)
        return llama.result(), ecg


class _NoRecordings:
    """The source of a question set whose recordings nobody may ask for."""

    def __getitem__(self, record_id: str) -> Ecg:
        raise KeyError(f"a language model asked for the recording {record_id!r}")


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
    made_from = [VERSION, questions.source_key, key, reports, len(questions.train)]
    folder = cache / f"{name}-{hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:12]}"
    return folder if folder.exists() else built_whole(folder, build)
