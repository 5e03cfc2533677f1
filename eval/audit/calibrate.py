"""How often is the audit's verdict wrong? Judges answerers whose reading is known, in many simulated audits.

    python -m eval.calibrate
    python -m eval.calibrate --audits 1000 --sizes 2000x200

Each audit draws yes/no questions in groups of attributes, patients (with several questions each), right answers, and
flip pairs; then every answerer below answers, and `eval.scoring.verdict` judges. The questions are unbalanced: of some,
90 % have one answer, so that a guesser is right as often as a middling reader.

Prints the share of audits that end in each verdict. docs/audit.md shows the table and states the rule.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from data.support.commands import command_line
from eval.report.parts import markdown_table

if TYPE_CHECKING:  # scipy takes a second to import, which `--help` need not wait for
    from eval.scoring.verdict import Answers

GROUPS, QUESTIONS = 8, 40  # of attributes; of texts, divided among the groups
MISREAD = 0.1  # share of recordings a reader gets wrong, on average over patients
SIZES = ((500, 50), (1000, 100), (2000, 200))

Array = NDArray[Any]
NOTHING = -1  # not an answer


@dataclass(frozen=True)
class Audit:
    """One simulated audit: arrays `[questions asked]`, answers coded 0 and 1.

    Attributes:
        question: Which text.
        patient: Whose ECG.
        answer: The right one.
        prior: The most common answer to this text.
        p_prior: How common it is.
        misread: Whether the ECG misleads a reader.
        donor: Index of the row whose ECG makes a flip pair with this one; -1 for none.
    """

    question: Array
    patient: Array
    answer: Array
    prior: Array
    p_prior: Array
    misread: Array
    donor: Array

    @property
    def group(self) -> Array:
        """Group of attributes of each row."""
        return np.asarray(self.question % GROUPS)


def draw(asked: int, patients: int, rng: np.random.Generator) -> Audit:
    """A simulated audit. Patients' ECGs are unequally hard to read (beta-distributed, mean `MISREAD`)."""
    question, patient = rng.integers(QUESTIONS, size=asked), rng.integers(patients, size=asked)
    p_yes = rng.uniform(0.1, 0.9, QUESTIONS)
    answer = (rng.random(asked) < p_yes[question]).astype(int)
    misread = rng.random(asked) < rng.beta(1, (1 - MISREAD) / MISREAD, patients)[patient]
    donor = np.full(asked, -1)
    for text in range(QUESTIONS):
        yes, no = (rng.permutation(np.flatnonzero((question == text) & (answer == a))) for a in (1, 0))
        count = min(len(yes), len(no))
        for a, b in zip(yes[:count], no[:count]):
            if patient[a] != patient[b]:
                donor[a], donor[b] = b, a
    prior = (p_yes > 0.5).astype(int)[question]
    return Audit(question, patient, answer, prior, np.maximum(p_yes, 1 - p_yes)[question], misread, donor)


# Who answers: what is said about the real ECG, about the other one of a flip pair (read where there is one), and
# without any ECG. Someone who reads answers about another patient's ECG as he answers that patient's own question.
Said = tuple[Array, Array, Array]


def oracle(audit: Audit, rng: np.random.Generator) -> Said:
    """Reads every ECG, and misreads one in ten. Guesses without."""
    said = np.where(audit.misread, 1 - audit.answer, audit.answer)
    return said, said[audit.donor], audit.prior


def third(audit: Audit, rng: np.random.Generator) -> Said:
    """Reads three ECGs in ten, as well as the oracle; guesses about the others."""
    said = np.where(rng.random(len(audit.answer)) < 0.3, oracle(audit, rng)[0], audit.prior)
    return said, said[audit.donor], audit.prior


def one_group(audit: Audit, rng: np.random.Generator) -> Said:
    """Reads one group of attributes out of eight; guesses about the others."""
    said = np.where(audit.group == 0, oracle(audit, rng)[0], audit.prior)
    return said, said[audit.donor], audit.prior


def blind(audit: Audit, rng: np.random.Generator) -> Said:
    """Always gives the most common answer to the question."""
    return audit.prior, audit.prior, audit.prior


def dice(audit: Audit, rng: np.random.Generator) -> Said:
    """Throws dice for each answer, loaded as answers are distributed: a blind model that samples."""

    def throw() -> Array:
        return np.where(rng.random(len(audit.prior)) < audit.p_prior, audit.prior, 1 - audit.prior)

    return throw(), throw(), throw()


def distracted(audit: Audit, rng: np.random.Generator) -> Said:
    """Answers change with the ECG, and not with what is asked: every recording tips the guess its own way."""
    said = np.where(rng.random(len(audit.prior)) < 0.3, 1 - audit.prior, audit.prior)
    return said, said[audit.donor], audit.prior


def brittle(audit: Audit, rng: np.random.Generator) -> Said:
    """Guesses, and says nothing sensible when there is no ECG."""
    return audit.prior, audit.prior, np.full(len(audit.prior), NOTHING)


def abstaining(audit: Audit, rng: np.random.Generator) -> Said:
    """Says that it cannot tell, four times in five; guesses otherwise."""

    def say() -> Array:
        return np.where(rng.random(len(audit.prior)) < 0.8, NOTHING, audit.prior)

    return say(), say(), say()


def leaking(audit: Audit, rng: np.random.Generator) -> Said:
    """Knows the right answer from somewhere other than the ECG it is shown."""
    return audit.answer, audit.answer, audit.answer


ANSWERERS: Mapping[str, Callable[[Audit, np.random.Generator], Said]] = {
    "oracle": oracle, "30 % reader": third, "reads one group of eight": one_group, "blind": blind,
    "blind, samples": dice,
    "distracted": distracted, "blind, brittle": brittle, "abstaining": abstaining, "leaking": leaking,
}  # fmt: skip


def answers(audit: Audit, said: Said) -> Answers:
    """What `eval.scoring.verdict` looks at."""
    from eval.scoring.verdict import Answers

    real, flip, without = said
    other = 1 - audit.answer
    right = without == audit.answer
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
        without={"none": right},
    )


def one(size: tuple[int, int], seed: int, draws: int) -> dict[str, str]:
    """The verdict on every answerer in one simulated audit."""
    from eval.scoring.verdict import verdict

    rng = np.random.default_rng([*size, seed])
    audit = draw(*size, rng)
    groups = [f"group {i}" for i in audit.group]
    return {
        name: verdict(answers(audit, answerer(audit, rng)), groups, draws=draws, seed=seed).verdict
        for name, answerer in ANSWERERS.items()
    }


def calibrate(
    audits: int, sizes: Sequence[tuple[int, int]] = SIZES, draws: int = 2000, processes: int | None = None
) -> dict[tuple[int, int], dict[str, Counter[str]]]:
    """Verdicts by size of the audit (questions, patients) and answerer. Shows a progress bar."""
    from tqdm import tqdm

    tasks = list(product(sizes, range(audits)))
    found: dict[tuple[int, int], dict[str, Counter[str]]] = {size: {a: Counter() for a in ANSWERERS} for size in sizes}
    with (
        ProcessPoolExecutor(processes or os.cpu_count()) as pool,
        tqdm(total=len(tasks), desc="simulated audits", unit="audit") as progress,
    ):
        for (size, _), told in zip(tasks, pool.map(partial(_one, draws=draws), tasks, chunksize=5)):
            for name, said in told.items():
                found[size][name][said] += 1
            progress.update()
    return found


def _one(task: tuple[tuple[int, int], int], draws: int) -> dict[str, str]:
    return one(*task, draws)


def table(found: Mapping[tuple[int, int], Mapping[str, Counter[str]]]) -> str:
    """Shares of verdicts in per cent, in Markdown."""
    from eval.scoring.verdict import Verdict

    verdicts = get_args(Verdict)
    lines = [["questions, patients", "answerer", *verdicts]]
    for (asked, patients), by_answerer in found.items():
        for name, counts in by_answerer.items():
            shares = [100 * counts[v] / counts.total() for v in verdicts]
            lines.append([f"{asked:,}, {patients}", name, *(f"{share:.1f}" if share else "" for share in shares)])
    return markdown_table(lines, words=2)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line("eval.calibrate", __doc__)
    parser.add_argument("--audits", type=int, default=200, metavar="N", help="of each size (default: 200)")
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=_size,
        default=SIZES,
        metavar="QUESTIONSxPATIENTS",
        help="default: " + " ".join(f"{asked}x{patients}" for asked, patients in SIZES),
    )
    parser.add_argument("--draws", type=int, default=2000, metavar="N", help="resamples of intervals (default: 2000)")
    args = parser.parse_args(argv)
    print(table(calibrate(args.audits, args.sizes, args.draws)))
    print(f"\nPer cent of {args.audits} simulated audits of each size.")


def _size(text: str) -> tuple[int, int]:
    asked, _, patients = text.partition("x")
    if not (asked.isdigit() and patients.isdigit() and int(asked) and int(patients)):
        raise argparse.ArgumentTypeError(f"expected QUESTIONSxPATIENTS such as 2000x200, got {text!r}")
    return int(asked), int(patients)


if __name__ == "__main__":
    main()
