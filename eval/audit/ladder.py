"""Where is a finding lost on its way through the model? One number for each of four places, on the same questions.

The questions are held-out yes/no questions about one ECG. Each rung says how well "yes" can be told from "no" there:

    encoder     the encoder's features                              linear probe
    projected   the tokens that enter the language model            linear probe
    state       the language model's state where the answer begins  linear probe
    answer      log p(yes) - log p(no), what the model says         as it is

A rung that is lower than the one before tells where signal is lost. What is told at `encoder` but not at `answer` is in
the recording and is not said: `fraction_read` is the answer's share of the encoder's AUROC above chance.

The number is the AUROC within one question, averaged over questions: it does not see how often a question is answered
with yes. Probes are fitted to training patients, and all three to the same questions.

Two things to know when reading it. A probe sees at most `max_train` recordings of a question, and a linear map of them;
the model was trained on all, and is not linear: the fraction may exceed 1. And the language model has been tuned to the
questions its state is probed on, so that its states lie further apart there than on held-out patients: `state` may be
a little lower than what could be told from it.
"""

import dataclasses
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.conversations.rows import QuestionSet, Row, same_question
from eval.answerers.model import ModelResponder
from eval.audit.rungs import Features, states, tokens
from eval.scoring.results import NOISE, RUNGS, Ladder, LadderFinding, Rung
from eval.statistics import Interval, auroc, percentile_interval, resampled_means
from eval.statistics.linear import fit_probe

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

LEAST = 10  # patients with "yes" and with "no", in training and held out


@dataclasses.dataclass(frozen=True)
class LadderSettings:
    """Settings of a ladder.

    Raises:
        ValueError: `max_train` is too small.
    """

    draws: int = 2000  # resamples of patients for the intervals
    seed: int = 0  # seed of the training questions, of the probes' choices and of the resamples
    # Training questions a probe is fitted to, of each finding; of both answers the same number where there are as many.
    max_train: int = 400

    def __post_init__(self) -> None:
        if self.max_train < 2 * LEAST:
            raise ValueError(f"max_train must be at least {2 * LEAST}, got {self.max_train}")


class Finding(NamedTuple):
    """Questions that ask the same thing, sorted by id."""

    name: str
    group: str
    train: list[Row]
    test: list[Row]


def verify_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows that ask a yes/no question about one ECG and are no control, sorted by id."""
    fit = (row for row in rows if len(row["ecgs"]) == 1 and not row["control"] and row["answer"] in (["yes"], ["no"]))
    return sorted(fit, key=lambda row: row["id"])


def ladder(
    responder: ModelResponder,
    questions: QuestionSet,
    answers: Mapping[str, float],
    rows: Sequence[Row],
    settings: LadderSettings,
) -> Ladder | None:
    """How well findings can be recognised at each rung, on the same held-out questions.

    An ECG is represented at `encoder` and `projected` by its tokens one after the other where both take at most
    `eval.audit.rungs.WIDEST` numbers, else, at both, by the mean and standard deviation of its tokens: a step between
    them is then not one between representations.

    Probes are fitted to the training rows of `questions`. `answers` are log p(yes) - log p(no) by id of the row, for
    each yes/no question of `rows` (held out; those that `verify_rows` does not keep are not looked at). None, with a
    warning, where no finding has `LEAST` patients with each answer, in training and held out.

    Raises:
        ValueError: A question has no answer or one that is not finite, or a patient is in training and held out; names
            the row or the patient. Or no outputs of the encoder are stored.
    """
    if (features := responder.features) is None:
        raise ValueError("a ladder needs the encoder's outputs: give ModelResponder features")
    findings, notes = _findings(questions, rows, answers, settings)
    if all(finding.group == NOISE for finding in findings):
        logger.warning("no ladder: no finding has %d patients with each answer, in training and held out", LEAST)
        return None
    probed = [row for finding in findings for row in (*finding.train, *finding.test)]
    records = sorted({row["ecgs"][0] for row in probed})
    features.fill(records)
    encoder, projected, representation = tokens(responder, records)
    state = states(responder, probed)
    record = {id: i for i, id in enumerate(records)}
    ecg_of = {row["id"]: record[row["ecgs"][0]] for row in probed}
    place = {row["id"]: i for i, row in enumerate(probed)}
    tables = ((encoder, ecg_of), (projected, ecg_of), (state, place))
    scores = []
    for finding in tqdm(findings, desc="fitting probes", unit="finding"):
        probes = [_probed(finding, table, line_of, settings.seed) for table, line_of in tables]
        scores.append(np.column_stack([*probes, [answers[row["id"]] for row in finding.test]]))
    numbers = _numbers(findings, scores, settings)
    if numbers.fraction_read is None:
        notes.append("The encoder's features do not tell the findings better than chance: there is nothing to be read.")
    return dataclasses.replace(numbers, representation=representation, notes=notes)


def _findings(
    questions: QuestionSet, rows: Sequence[Row], answers: Mapping[str, float], settings: LadderSettings
) -> tuple[list[Finding], list[str]]:
    """Findings that can be probed, sorted by name, and notes on those that cannot."""
    test, train = verify_rows(rows), verify_rows(questions.train)
    for row in test:
        if not np.isfinite(answers.get(row["id"], np.nan)):
            raise ValueError(
                f"row {row['id']}: log p(yes) - log p(no) is {answers.get(row['id'], 'not given')}: score the answers "
                "to all yes/no questions about one ECG first"
            )
    if shared := {row["patient_ids"][0] for row in train} & {row["patient_ids"][0] for row in test}:
        leak = "in training and held out: a probe would know whom it is asked about"
        raise ValueError(f"patient {min(shared)} is {leak}")
    by_question: dict[tuple[object, ...], tuple[list[Row], list[Row]]] = defaultdict(lambda: ([], []))
    for part, some in enumerate((train, test)):
        for row in some:
            by_question[same_question(row)][part].append(row)
    texts = [(learned, held_out, (held_out or learned)[0]) for learned, held_out in by_question.values()]
    several = Counter(row["attribute"] for _, _, row in texts)  # in which lead, above or below normal
    findings, few = [], defaultdict(list)
    for learned, held_out, row in texts:
        name = row["attribute"] if several[row["attribute"]] == 1 else f"{row['attribute']}: {row['question']}"
        for where, some in (("in training", learned), ("held out", held_out)):
            if min(len({row["patient_ids"][0] for row in some if row["answer"] == [a]}) for a in ("yes", "no")) < LEAST:
                few[where].append(name)
                break
        else:
            drawn = _drawn(learned, settings.max_train, settings.seed)
            findings.append(Finding(name, row["group"], drawn, held_out))
    notes = [
        f"Left out, {where} fewer than {LEAST} patients with one of the answers: {_listed(sorted(names))}."
        for where, names in sorted(few.items())
    ]
    return sorted(findings, key=lambda finding: finding.name), notes


def _yes(rows: Sequence[Row]) -> list[bool]:
    return [row["answer"] == ["yes"] for row in rows]


def _listed(names: Sequence[str], most: int = 10) -> str:
    return ", ".join([*names[:most], *([f"and {len(names) - most} more"] if len(names) > most else [])])


def _drawn(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """Pick at most so many rows, as many of one answer as of the other where there are enough."""
    mixed = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    yes = np.array(_yes(mixed), dtype=bool)
    rank = np.where(yes, np.cumsum(yes), np.cumsum(~yes))  # of each row among those with its answer
    return [mixed[i] for i in sorted(np.argsort(rank, kind="stable")[:count])]


def _probed(finding: Finding, table: Features, place: Mapping[str, int], seed: int) -> Array:
    """Scores of the held-out questions by a probe fitted to the training ones; `place` is a row's line in `table`."""
    train, test = (table[[place[row["id"]] for row in part]] for part in (finding.train, finding.test))
    labels = np.array(_yes(finding.train), dtype=np.float64)[:, None]
    return fit_probe(train, labels, [row["patient_ids"][0] for row in finding.train], seed=seed)(test)[:, 0]


def _numbers(findings: Sequence[Finding], scores: Sequence[Array], settings: LadderSettings) -> Ladder:
    """AUROCs by finding, their means over the headline, and intervals, from scores `[questions, rungs]`."""
    single = [np.array([auroc(column, _yes(f.test)) for column in columns.T]) for f, columns in zip(findings, scores)]
    headline = [i for i, finding in enumerate(findings) if finding.group != NOISE]
    patients = [row["patient_ids"][0] for i in headline for row in findings[i].test]
    macro = np.mean([single[i] for i in headline], axis=0)
    # A patient is asked about several findings, so all must see the same resamples of patients.
    parts = np.concatenate([_parts(scores[i], np.array(_yes(findings[i].test)), single[i]) for i in headline])
    moved = resampled_means(parts * len(parts) / len(headline), patients, settings.draws, settings.seed)
    resampled = np.clip(macro + moved, 0, 1)
    rungs = {
        rung: Rung(
            label=RUNGS[rung],
            auroc=float(macro[k]),
            interval=_limits(resampled[:, k]),
            change=float(macro[k] - macro[k - 1]) if k else None,
            change_interval=_limits(resampled[:, k] - resampled[:, k - 1]) if k else None,
        )
        for k, rung in enumerate(RUNGS)
    }
    at_encoder = rungs["encoder"].interval
    readable = at_encoder is not None and round(at_encoder.low, 6) > 0.5
    share, shares = macro - 0.5, resampled - 0.5
    return Ladder(
        rungs=rungs,
        fraction_read=float(share[-1] / share[0]) if readable else None,
        fraction_interval=_limits(shares[:, -1] / shares[:, 0]) if readable else None,
        n=len(patients),
        patients=len(set(patients)),
        findings_in_headline=len(headline),
        findings={
            finding.name: LadderFinding(
                group=finding.group,
                headline=i in headline,
                auroc={rung: float(value) for rung, value in zip(RUNGS, single[i])},
                train=len(finding.train),
                n=len(finding.test),
                positives=sum(_yes(finding.test)),
                patients=len({row["patient_ids"][0] for row in finding.test}),
            )
            for i, finding in enumerate(findings)
        },
        max_train=settings.max_train,
    ).rounded()


def _limits(resampled: Array) -> Interval | None:
    interval = percentile_interval(resampled)
    return None if np.isnan(interval.low) else interval


def _parts(scores: Array, positive: NDArray[np.bool_], areas: Array) -> Array:
    """Influence of each question on an AUROC when it counts once more, to first order: `[questions, rungs]`.

    An AUROC is the mean, over one answer's questions, of the share of the other answer's that each is on the right side
    of, ties counting half (DeLong, DeLong, Clarke-Pearson, Biometrics 1988).
    """
    parts = np.empty_like(scores)
    for of_answer, sign in ((positive, 1), (~positive, -1)):
        for k, column in enumerate((sign * scores).T):
            others = np.sort(column[~of_answer])
            ranks = sum(np.searchsorted(others, column[of_answer], side) for side in ("left", "right")) / 2
            parts[of_answer, k] = (ranks / len(others) - areas[k]) / of_answer.sum()
    return parts
