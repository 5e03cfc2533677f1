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

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from filelock import FileLock

from data.conversations.rows import QuestionSet
from data.support.files import built_whole
from elm.training import tiny_encoder, tiny_llama

VERSION = 2  # in cache keys: tests/test_versions.py says when to raise it


def parts(
    text: str, ecg: str, questions: QuestionSet, cache: Path, seed: int = 0, text_first: bool = False
) -> tuple[str, str]:
    """Language model and encoder of a run, with folders of tiny ones for the names of such.

    Two processes that make the same two, one of them with the text first, work at the same time: each finds the one
    that the other is making locked, and waits for it.
    """
    made = {False: text, True: ecg}
    for is_ecg in (False, True) if text_first else (True, False):
        if is_ecg and ecg in tiny_encoder.ENCODERS:
            made[is_ecg] = str(encoder(questions, cache, seed, ecg))
        elif not is_ecg and text == "tiny":
            made[is_ecg] = str(language_model(questions, cache, seed))
    return made[False], made[True]


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
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{folder.name}.lock"):
        return folder if folder.exists() else built_whole(folder, build)
