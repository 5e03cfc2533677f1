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

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # torch and transformers take seconds to import
    from data.conversations.rows import QuestionSet, Row
    from eval.answerers.model import FeatureSource, MeasuredSource

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
Features = NDArray[np.float32]

RUNGS: Mapping[str, str] = {
    "encoder": "the encoder's features",
    "projected": "the tokens that enter the language model",
    "state": "the language model's state where the answer begins",
    "answer": "the answer",
}
NOISE = "noise"  # a group of findings about the recording, not the patient: shown, and kept out of the headline
LEAST = 10  # patients with "yes" and with "no", in training and held out
WIDEST = 4096  # numbers per ECG up to which its tokens are taken one after the other


class Finding(NamedTuple):
    """Questions that ask the same thing, sorted by id."""

    name: str
    group: str
    train: list[Row]
    test: list[Row]


def verify_rows(rows: Sequence[Row]) -> list[Row]:
    """Those of some rows that ask a yes/no question about one ECG and are no control, sorted by id."""
    fit = (row for row in rows if len(row["ecgs"]) == 1 and not row["control"] and row["answer"] in (["yes"], ["no"]))
    return sorted(fit, key=lambda row: row["id"])


def ladder(
    model: Any,
    processor: Any,
    questions: QuestionSet,
    features: FeatureSource,
    *,
    answers: Mapping[str, float],
    rows: Sequence[Row],
    measured: MeasuredSource | None = None,
    max_train: int = 400,
    batch_size: int = 64,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Any] | None:
    """How well findings can be told at each rung, on the same held-out questions.

    An ECG is represented at `encoder` and `projected` by its tokens one after the other where both take at most
    `WIDEST` numbers, else, at both, by the mean and standard deviation of its tokens: a step between them is then not
    one between representations.

    Args:
        model: An `ElmForConditionalGeneration`, adapters merged.
        processor: Its `ElmProcessor`.
        questions: Their training rows are what probes are fitted to.
        features: Outputs of the model's encoder.
        answers: log p(yes) - log p(no) by id of the row, for each yes/no question of `rows` about its own ECG.
        rows: Held-out questions. Those that `verify_rows` does not keep are not looked at.
        measured: What is measured in the recordings, for a processor that puts it into the prompt.
        max_train: Training questions a probe is fitted to, of each finding; of both answers the same number where
            there are as many. For each, the language model reads one question.
        batch_size: Questions the model reads at once.
        draws: Resamples of patients for the intervals of 95 %.
        seed: Of the training questions, of the probes' choices and of the resamples.

    Returns:
        What JSON can hold:

        * `rungs`: by name of the rung (`RUNGS`), its `auroc`, the mean over findings of the headline, with `interval`,
          and `change`, the difference to the rung before, with `change_interval` (both null for the first);
        * `fraction_read` with `fraction_interval`: (AUROC of the answer - 0.5) / (AUROC at the encoder - 0.5); null
          where the encoder's interval reaches chance;
        * `findings`: by name, `group`, `headline` (false for noise), `auroc` by rung, and the numbers of `train`ing
          and held-out questions `n`, of these `positives`, and of held-out `patients`;
        * `n`, `patients` and `findings_in_headline` of the headline, `representation`, `max_train`, and `notes` on
          what was left out and why.

        An interval is [low, high], null where there is none. None, with a warning, where no finding has
        `LEAST` patients with each answer, in training and held out.

    Raises:
        ValueError: A question has no answer or one that is not finite, or a patient is in training and held out; names
            the row or the patient. Or `max_train` is too small.
    """
    from tqdm import tqdm

    if max_train < 2 * LEAST:
        raise ValueError(f"max_train must be at least {2 * LEAST}, got {max_train}")
    found, notes = _findings(questions, rows, answers, max_train, seed)
    if all(finding.group == NOISE for finding in found):
        logger.warning("no ladder: no finding has %d patients with each answer, in training and held out", LEAST)
        return None
    asked = [row for finding in found for row in (*finding.train, *finding.test)]
    records = sorted({row["ecgs"][0] for row in asked})
    features.fill(records)
    encoder, projected, representation = _tokens(model, features, records, batch_size)
    state = _states(model, processor, features, asked, batch_size, measured)
    record = {id: i for i, id in enumerate(records)}
    ecg_of = {row["id"]: record[row["ecgs"][0]] for row in asked}
    place = {row["id"]: i for i, row in enumerate(asked)}
    scores = [
        np.column_stack(
            [
                _probed(finding, encoder, ecg_of, seed),
                _probed(finding, projected, ecg_of, seed),
                _probed(finding, state, place, seed),
                [answers[row["id"]] for row in finding.test],
            ]
        )
        for finding in tqdm(found, desc="fitting probes", unit="finding")
    ]
    numbers = _numbers(found, scores, draws, seed)
    if numbers["fraction_read"] is None:
        notes.append("The encoder's features do not tell the findings better than chance: there is nothing to be read.")
    return {**numbers, "representation": representation, "max_train": max_train, "notes": notes}


# --- questions --------------------------------------------------------------------------------------------------------


def _findings(
    questions: QuestionSet, rows: Sequence[Row], answers: Mapping[str, float], max_train: int, seed: int
) -> tuple[list[Finding], list[str]]:
    """What can be probed, sorted by name, and notes on what cannot."""
    from data.conversations.rows import same_question

    test, train = verify_rows(rows), verify_rows(questions.train)
    for row in test:
        if not np.isfinite(answers.get(row["id"], np.nan)):
            raise ValueError(
                f"row {row['id']}: log p(yes) - log p(no) is {answers.get(row['id'], 'not given')}: score the answers "
                "to all yes/no questions about one ECG first"
            )
    if shared := {row["patient_ids"][0] for row in train} & {row["patient_ids"][0] for row in test}:
        raise ValueError(
            f"patient {min(shared)} is in training and held out: a probe would know whom it is asked about"
        )
    of: dict[tuple[Any, ...], tuple[list[Row], list[Row]]] = defaultdict(lambda: ([], []))
    for part, some in enumerate((train, test)):
        for row in some:
            of[same_question(row)][part].append(row)
    asked = [(before, here, (here or before)[0]) for before, here in of.values()]
    several = Counter(row["attribute"] for _, _, row in asked)  # in which lead, above or below normal
    found, few = [], defaultdict(list)
    for before, here, row in asked:
        name = row["attribute"] if several[row["attribute"]] == 1 else f"{row['attribute']}: {row['question']}"
        for where, some in (("in training", before), ("held out", here)):
            if min(len({row["patient_ids"][0] for row in some if row["answer"] == [a]}) for a in ("yes", "no")) < LEAST:
                few[where].append(name)
                break
        else:
            found.append(Finding(name, row["group"], _drawn(before, max_train, seed), here))
    notes = [
        f"Left out, {where} fewer than {LEAST} patients with one of the answers: {_listed(sorted(names))}."
        for where, names in sorted(few.items())
    ]
    return sorted(found, key=lambda finding: finding.name), notes


def _yes(rows: Sequence[Row]) -> list[bool]:
    return [row["answer"] == ["yes"] for row in rows]


def _listed(names: Sequence[str], most: int = 10) -> str:
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


def _drawn(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """At most so many rows, of both answers the same number where there are as many."""
    mixed = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    before: Counter[bool] = Counter()
    rank = []
    for yes in _yes(mixed):
        rank.append(before[yes])
        before[yes] += 1
    return [mixed[i] for i in sorted(np.argsort(rank, kind="stable")[:count])]


# --- rungs ------------------------------------------------------------------------------------------------------------


def _tokens(
    model: Any, features: FeatureSource, records: Sequence[str], batch_size: int
) -> tuple[Features, Features, str]:
    """Each ECG at `encoder` and at `projected` `[records, ...]`, and how an ECG's tokens became one row, in words."""
    import torch
    from tqdm import tqdm

    from eval.answerers.model import placed

    parts = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(records), batch_size), desc="projecting ECGs", unit="batch"):
            cached = dict(features.get(records[start : start + batch_size]))
            there = placed(model, cached)
            both = [
                (cached["ecg_features"], cached["ecg_mask"]),
                model.model.projector(there["ecg_features"], there["ecg_mask"]),
            ]
            flat = all(tokens[0].numel() <= WIDEST for tokens, _ in both)
            parts.append([_row_of(tokens.float(), kept, flat).cpu().numpy() for tokens, kept in both])
    encoder, projected = (np.concatenate(part) for part in zip(*parts))
    how = "one after the other" if flat else "their mean and standard deviation"
    return encoder, projected, f"tokens: {how} ({encoder.shape[1]} and {projected.shape[1]} numbers)"


def _row_of(tokens: Any, mask: Any, flat: bool) -> Any:
    """Tokens `[B, T, D]` as one row per ECG, of those that carry signal; where flat, zeros for the others."""
    import torch

    mask = mask.bool()[..., None]
    tokens = tokens.masked_fill(~mask, 0)  # what an encoder says of padding need not be finite
    if flat:
        return tokens.flatten(1)
    count = mask.sum(dim=1).clamp(min=1)
    mean = tokens.sum(dim=1) / count
    variance = ((tokens - mean[:, None]).masked_fill(~mask, 0) ** 2).sum(dim=1) / count
    return torch.cat([mean, variance.sqrt()], dim=1)


def _states(
    model: Any,
    processor: Any,
    features: FeatureSource,
    rows: Sequence[Row],
    batch_size: int,
    measured: MeasuredSource | None = None,
) -> Features:
    """The last layer's state `[rows, H]`, of which the head makes the first token of the answer."""
    import torch
    from tqdm import tqdm

    from eval.answerers.model import placed, question_messages

    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["question"]))  # of like length together
    states = np.empty((len(rows), model.config.embedding_width), np.float32)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), tqdm(total=len(rows), desc="reading questions", unit="question") as progress:
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                records = [rows[i]["ecgs"][0] for i in batch]
                cached = features.get(records)
                prompts = processor(
                    [question_messages(rows[i]) for i in batch],
                    ecg_mask=cached["ecg_mask"],
                    measured=processor.lines(measured.get(records)) if measured is not None else None,
                    add_generation_prompt=True,
                    padding_side="left",
                )
                inputs = placed(model, {**prompts, **cached})
                # As `generate` numbers them: padding has no place.
                inputs["position_ids"] = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
                last = model.model(**inputs, use_cache=False).last_hidden_state[:, -1]
                states[batch] = last.float().cpu().numpy()
                progress.update(len(batch))
    finally:
        model.train(was_training)
    return states


def _probed(finding: Finding, table: Features, place: Mapping[str, int], seed: int) -> Array:
    """Scores of the held-out questions by a probe fitted to the training ones; `place` is a row's line in `table`."""
    from eval.statistics.linear import fit_probe

    train, test = (table[[place[row["id"]] for row in part]] for part in (finding.train, finding.test))
    labels = np.array(_yes(finding.train), dtype=np.float64)[:, None]
    return fit_probe(train, labels, [row["patient_ids"][0] for row in finding.train], seed=seed)(test)[:, 0]


# --- numbers ----------------------------------------------------------------------------------------------------------


def _numbers(found: Sequence[Finding], scores: Sequence[Array], draws: int, seed: int) -> dict[str, Any]:
    """AUROCs by finding, their means over the headline, and intervals, from scores `[questions, rungs]`."""
    from eval.statistics import auroc, percentile_interval, resampled_means, rounded

    single = [np.array([auroc(column, _yes(finding.test)) for column in of.T]) for finding, of in zip(found, scores)]
    headline = [i for i, finding in enumerate(found) if finding.group != NOISE]
    patients = [row["patient_ids"][0] for i in headline for row in found[i].test]
    macro = np.mean([single[i] for i in headline], axis=0)
    # A patient is asked about several findings, so all must see the same resamples of patients.
    parts = np.concatenate([_parts(scores[i], np.array(_yes(found[i].test)), single[i]) for i in headline])
    moved = resampled_means(parts * len(parts) / len(headline), patients, draws, seed)
    resampled = np.full((1, len(RUNGS)), np.nan) if moved is None else np.clip(macro + moved, 0, 1)

    def limits(values: Array) -> list[float] | None:
        interval = percentile_interval(values)
        return None if np.isnan(interval.low) else [rounded(limit) for limit in interval]

    rungs: dict[str, dict[str, Any]] = {}
    for k, rung in enumerate(RUNGS):
        rungs[rung] = {
            "label": RUNGS[rung],
            "auroc": rounded(macro[k]),
            "interval": limits(resampled[:, k]),
            "change": rounded(macro[k] - macro[k - 1]) if k else None,
            "change_interval": limits(resampled[:, k] - resampled[:, k - 1]) if k else None,
        }
    told = rungs["encoder"]["interval"]
    readable = told is not None and told[0] > 0.5
    fraction, of_encoder = macro - 0.5, resampled - 0.5
    return {
        "rungs": rungs,
        "fraction_read": rounded(fraction[-1] / fraction[0]) if readable else None,
        "fraction_interval": limits(of_encoder[:, -1] / of_encoder[:, 0]) if readable else None,
        "n": len(patients),
        "patients": len(set(patients)),
        "findings_in_headline": len(headline),
        "findings": {
            finding.name: {
                "group": finding.group,
                "headline": i in headline,
                "auroc": {rung: rounded(value) for rung, value in zip(RUNGS, single[i])},
                "train": len(finding.train),
                "n": len(finding.test),
                "positives": sum(_yes(finding.test)),
                "patients": len({row["patient_ids"][0] for row in finding.test}),
            }
            for i, finding in enumerate(found)
        },
    }


def _parts(scores: Array, positive: NDArray[np.bool_], areas: Array) -> Array:
    """What each question adds to an AUROC when it counts once more, to first order: `[questions, rungs]`.

    An AUROC is the mean, over one answer's questions, of the share of the other answer's that each is on the right side
    of, ties counting half (DeLong, DeLong, Clarke-Pearson, Biometrics 1988).
    """
    parts = np.empty_like(scores)
    for here, sign in ((positive, 1), (~positive, -1)):
        for k, column in enumerate((sign * scores).T):
            others = np.sort(column[~here])
            passed = sum(np.searchsorted(others, column[here], side) for side in ("left", "right")) / 2 / len(others)
            parts[here, k] = (passed - areas[k]) / here.sum()
    return parts
