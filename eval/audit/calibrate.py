"""Simulated audits of answerers whose reading is known: how often is the verdict wrong?"""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product, repeat
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from eval.audit.settings import CalibrateSettings
from eval.report.parts import markdown_table
from eval.scoring.verdict import Answers, Verdict, verdict

GROUPS, QUESTIONS = 8, 40  # of attributes; of texts, divided among the groups
MISREAD = 0.1  # share of recordings a reader gets wrong, on average over patients

Array = NDArray[np.int64]
NOTHING = -1  # not an answer


@dataclass(frozen=True)
class Audit:
    """One simulated audit: arrays `[questions asked]`, answers coded 0 and 1."""

    question: Array  # which text
    patient: Array  # whose ECG
    answer: Array  # the right one
    prior: Array  # the most common answer to this text
    p_prior: NDArray[np.float64]  # how common it is
    misread: NDArray[np.bool_]  # whether the ECG misleads a reader
    donor: Array  # index of the row whose ECG makes a flip pair with this one; -1 for none

    @property
    def group(self) -> Array:
        """Group of attributes of each row."""
        return np.asarray(self.question % GROUPS)


def draw(questions: int, patients: int, rng: np.random.Generator) -> Audit:
    """A simulated audit. Patients' ECGs are unequally hard to read (beta-distributed, mean `MISREAD`)."""
    question, patient = rng.integers(QUESTIONS, size=questions), rng.integers(patients, size=questions)
    p_yes = rng.uniform(0.1, 0.9, QUESTIONS)
    answer = (rng.random(questions) < p_yes[question]).astype(int)
    misread = rng.random(questions) < rng.beta(1, (1 - MISREAD) / MISREAD, patients)[patient]
    donor = np.full(questions, -1)
    for text in range(QUESTIONS):
        yes, no = (rng.permutation(np.flatnonzero((question == text) & (answer == a))) for a in (1, 0))
        count = min(len(yes), len(no))
        for a, b in zip(yes[:count], no[:count]):
            if patient[a] != patient[b]:
                donor[a], donor[b] = b, a
    prior = (p_yes > 0.5).astype(int)[question]
    return Audit(question, patient, answer, prior, np.maximum(p_yes, 1 - p_yes)[question], misread, donor)


# Answers of an answerer about the real ECG, about the other one of a flip pair (read where there is one), and without
# any ECG. Someone who reads answers about another patient's ECG as he answers that patient's own question.
Replies = tuple[Array, Array, Array]


def oracle(audit: Audit, rng: np.random.Generator) -> Replies:
    """Reads every ECG, and misreads one in ten. Guesses without."""
    read = np.where(audit.misread, 1 - audit.answer, audit.answer)
    return read, read[audit.donor], audit.prior


def third(audit: Audit, rng: np.random.Generator) -> Replies:
    """Reads three ECGs in ten, as well as the oracle; guesses about the others."""
    real = np.where(rng.random(len(audit.answer)) < 0.3, oracle(audit, rng)[0], audit.prior)
    return real, real[audit.donor], audit.prior


def one_group(audit: Audit, rng: np.random.Generator) -> Replies:
    """Reads one group of attributes out of eight; guesses about the others."""
    real = np.where(audit.group == 0, oracle(audit, rng)[0], audit.prior)
    return real, real[audit.donor], audit.prior


def blind(audit: Audit, rng: np.random.Generator) -> Replies:
    """Always gives the most common answer to the question."""
    return audit.prior, audit.prior, audit.prior


def dice(audit: Audit, rng: np.random.Generator) -> Replies:
    """Throws dice for each answer, loaded as answers are distributed: a blind model that samples."""
    real, flip, without = np.where(rng.random((3, len(audit.prior))) < audit.p_prior, audit.prior, 1 - audit.prior)
    return real, flip, without


def distracted(audit: Audit, rng: np.random.Generator) -> Replies:
    """Answers change with the ECG, and not with what is asked: every recording tips the guess its own way."""
    real = np.where(rng.random(len(audit.prior)) < 0.3, 1 - audit.prior, audit.prior)
    return real, real[audit.donor], audit.prior


def brittle(audit: Audit, rng: np.random.Generator) -> Replies:
    """Guesses, and says nothing sensible when there is no ECG."""
    return audit.prior, audit.prior, np.full(len(audit.prior), NOTHING)


def abstaining(audit: Audit, rng: np.random.Generator) -> Replies:
    """Says that it cannot tell, four times in five; guesses otherwise."""
    real, flip, without = np.where(rng.random((3, len(audit.prior))) < 0.8, NOTHING, audit.prior)
    return real, flip, without


def leaking(audit: Audit, rng: np.random.Generator) -> Replies:
    """Knows the right answer from somewhere other than the ECG it is shown."""
    return audit.answer, audit.answer, audit.answer


ANSWERERS: Mapping[str, Callable[[Audit, np.random.Generator], Replies]] = {
    "oracle": oracle,
    "30 % reader": third,
    "reads one group of eight": one_group,
    "blind": blind,
    "blind, samples": dice,
    "distracted": distracted,
    "blind, brittle": brittle,
    "abstaining": abstaining,
    "leaking": leaking,
}


def answers(audit: Audit, replies: Replies) -> Answers:
    """The columns `eval.scoring.verdict` looks at."""
    real, flip, without = replies
    other = 1 - audit.answer
    return Answers(
        clusters=[f"{patient}" for patient in audit.patient],
        pair_clusters=[(f"{one}", f"{other}") for one, other in zip(audit.patient, audit.patient[audit.donor])],
        real=real == audit.answer,
        answered=real != NOTHING,
        majority=audit.prior == audit.answer,
        paired=audit.donor >= 0,
        flip_still=flip == audit.answer,
        flip_follows=flip == other,
        real_as_flip=real == other,
        without={"none": without == audit.answer},
    )


def one(size: tuple[int, int], seed: int, draws: int) -> dict[str, str]:
    """The verdict on every answerer in one simulated audit."""
    rng = np.random.default_rng([*size, seed])
    audit = draw(*size, rng)
    groups = [f"group {i}" for i in audit.group]
    return {
        name: verdict(answers(audit, answerer(audit, rng)), groups, draws=draws, seed=seed).verdict
        for name, answerer in ANSWERERS.items()
    }


Counts = dict[tuple[int, int], dict[str, Counter[str]]]  # verdicts by size of the audit and answerer


def calibrate(settings: CalibrateSettings) -> Counts:
    """Verdicts in simulated audits, several at a time. Shows a progress bar."""
    tasks = list(product(settings.sizes, range(settings.audits)))
    counts: Counts = {size: {name: Counter() for name in ANSWERERS} for size in settings.sizes}
    with (
        ProcessPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(tasks), desc="simulated audits", unit="audit") as progress,
    ):
        verdicts = pool.map(one, *zip(*tasks), repeat(settings.draws), chunksize=5)
        for (size, _), by_answerer in zip(tasks, verdicts):
            for name, result in by_answerer.items():
                counts[size][name][result] += 1
            progress.update()
    return counts


def table(counts: Counts) -> str:
    """Shares of verdicts in per cent, in Markdown."""
    verdicts = get_args(Verdict)
    lines = [["questions, patients", "answerer", *verdicts]]
    for (questions, patients), by_answerer in counts.items():
        for name, count in by_answerer.items():
            shares = [100 * count[v] / count.total() for v in verdicts]
            lines.append([f"{questions:,}, {patients}", name, *(f"{share:.1f}" if share else "" for share in shares)])
    return markdown_table(lines, words=2)
