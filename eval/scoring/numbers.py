"""The numbers of a report, from scored answers (the lines of predictions.jsonl): no model is needed to repeat them.

Numbers are given for all ordinary questions, for each kind, group of attributes, attribute and template, and for the
controls apart from all of these.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from eval.scoring import flips, instruments
from eval.scoring.flips import clusters_of, flags, interval_of, right_answers
from eval.scoring.instruments import REPORT
from eval.scoring.likelihood import likeliest_is_right
from eval.scoring.lines import Line, Lines
from eval.scoring.results import About, Block, ConditionResult, Difference, Likelihood, Report, SwapTest
from eval.statistics import (
    Clusters,
    Floats,
    Interval,
    cluster_intervals,
    holm,
    mcnemar_p,
    patients_of,
    sign_flip_p,
    smallest_detectable_difference,
)

# Asked for one measure alone: as conditions like the others they would say nothing.
APART = ("planted", "question-swap", "both-swap")


def measure(lines: Lines, about: About) -> Report:
    """All numbers of a report; the `draws` and `seed` of `about` are those of resamples and sign flips.

    Raises:
        ValueError: No ordinary question was asked.
    """
    draws, seed = about.draws, about.seed
    compared = {
        condition: {id: line for id, line in by_id.items() if line.question_type != REPORT}
        for condition, by_id in lines.items()
        if condition not in APART
    }
    questions = {id: line for by_id in compared.values() for id, line in by_id.items()}
    ordinary = [id for id, line in questions.items() if not line.control]
    if not ordinary:
        raise ValueError(f"of {len(questions)} questions none is other than a control: there is no headline")

    def grouped(ids: Collection[str], key: Callable[[Line], str | int]) -> dict[str, Block]:
        groups: dict[str | int, list[str]] = defaultdict(list)
        for id in ids:
            groups[key(questions[id])].append(id)
        # Names are all text or all numbers, and each sorts among its like.
        return {str(name): block(compared, groups[name], draws, seed) for name in sorted(groups) if name != ""}

    controls = grouped(questions, lambda line: line.control)
    return Report(
        about=about,
        verdict=flips.judge(compared, ordinary, draws, seed),
        overall=block(compared, ordinary, draws, seed),
        excluded_controls=list(controls),
        by_type=_corrected(grouped(ordinary, lambda line: line.question_type)),
        by_group=grouped(ordinary, lambda line: line.group),
        by_attribute=grouped(ordinary, lambda line: line.attribute),
        by_template=grouped(ordinary, lambda line: line.template_id),
        controls=controls,
        findings=instruments.findings(compared, draws, seed),
        shapley=instruments.shapley(lines, ordinary),
        dose_response=instruments.dose_response(lines.get("planted", {}), draws, seed),
        reports=instruments.reports(lines, draws, seed),
    ).rounded()


def block(lines: Lines, ids: Sequence[str], draws: int, seed: int) -> Block:
    """The numbers of one group of questions."""
    present = {condition: [by_id[id] for id in ids if id in by_id] for condition, by_id in lines.items()}
    present = {condition: some for condition, some in present.items() if some}
    first = [next(by_id[id] for by_id in lines.values() if id in by_id) for id in ids]
    clusters = clusters_of(first)
    whole = {c: right_answers(some) for c, some in present.items() if len(some) == len(ids) and c != "swap-flip"}
    columns = {
        "majority": flags([line.majority_right for line in first]),
        "majority_by_question": flags([line.majority_by_question_right for line in first]),
        **whole,
    }
    gaps = {name: whole["real"] - right for name, right in columns.items() if name != "real"} if "real" in whole else {}
    # One call for all: accuracies and differences see the same resampled patients.
    intervals = cluster_intervals(np.column_stack([*columns.values(), *gaps.values()]), clusters, draws, seed)
    limits = dict(zip(columns, intervals))
    differences = {
        name: Difference(float(gap.mean()), interval, len(ids))
        for (name, gap), interval in zip(gaps.items(), intervals[len(columns) :])
    }
    for condition, some in present.items():
        if condition in whole:
            continue
        columns[condition] = right_answers(some)
        limits[condition] = interval_of(columns[condition], some, draws, seed)
        if "real" in lines and all(line.id in lines["real"] for line in some):
            gap = right_answers([lines["real"][line.id] for line in some]) - columns[condition]
            differences[condition] = Difference(float(gap.mean()), interval_of(gap, some, draws, seed), len(some))
    shares = {name: float(right.mean()) for name, right in columns.items()}
    return Block(
        n=len(ids),
        patients=len(patients_of(clusters)),
        conditions={c: _condition(some, shares[c], limits[c]) for c, some in present.items()},
        majority=shares["majority"],
        majority_by_question=shares["majority_by_question"],
        majority_interval=limits["majority_by_question"],
        real_minus={name: differences[name] for name in (*columns, *differences) if name in differences},
        flips=flips.flips(lines, ids, seed),
        changed=flips.changed(lines, ids),
        lift=flips.lift(lines, ids, draws, seed),
        verify=instruments.verify(present.get("real", [])),
        swap_test=_swap_test(gaps["swap"], clusters, seed) if "swap" in gaps else None,
    )


def _condition(lines: Sequence[Line], accuracy: float, interval: Interval) -> ConditionResult:
    """How the answers fall: right, wrong, or no valid answer at all, which counts as wrong."""
    counts = {name: sum(line.outcome == name for line in lines) for name in ("abstained", "empty", "unparsed")}
    valid = 1 - sum(counts.values()) / len(lines)
    right = [right for line in lines if (right := likeliest_is_right(line)) is not None]
    likeliest = Likelihood(float(np.mean(right)), len(right)) if right else None
    return ConditionResult(accuracy, interval, len(lines), valid, **counts, by_likelihood=likeliest)


def _swap_test(gap: Floats, clusters: Clusters, seed: int) -> SwapTest:
    one_answer_each = len(patients_of(clusters)) == len(gap) == sum(map(len, clusters))
    return SwapTest(
        smallest_detectable_difference(gap, clusters),
        sign_flip_p(gap, clusters, seed=seed, alternative="two-sided"),
        mcnemar_p(int((gap > 0).sum()), int((gap < 0).sum())) if one_answer_each else None,  # an exact test
    )


def _corrected(blocks: Mapping[str, Block]) -> dict[str, Block]:
    """Blocks with Holm's correction of the p-values of real against swap, over kinds of question."""
    tests = {name: block.swap_test for name, block in blocks.items() if block.swap_test is not None}
    corrected = dict(blocks)
    for (name, test), p in zip(tests.items(), holm([test.swap_p for test in tests.values()])):
        corrected[name] = dataclasses.replace(blocks[name], swap_test=dataclasses.replace(test, swap_p_corrected=p))
    return corrected
