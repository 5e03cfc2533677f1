"""The numbers of a report, from scored answers: the headline over ordinary questions, each group, controls apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.score import is_empty
from eval.statistics import Interval, cluster_intervals

if TYPE_CHECKING:
    from data.conversations.rows import Row

Line = Mapping[str, Any]  # of predictions.jsonl


def summarise(
    rows: Sequence[Row], lines: Mapping[str, Sequence[Line]], blind: np.ndarray[Any, Any], draws: int, seed: int
) -> dict[str, Any]:
    """All numbers of the report: the headline over ordinary questions, the same by group, the controls apart.

    Args:
        rows: The questions.
        lines: Under every condition, the scored answers to these questions.
        blind: Per question, whether its majority answer is right.
        draws: Resamples for the intervals.
        seed: Of the resamples.
    """

    def block(members: Sequence[int]) -> dict[str, Any]:
        return _block(
            [rows[i] for i in members],
            {c: [all_[i] for i in members] for c, all_ in lines.items()},
            blind[members],
            draws,
            seed,
        )

    def grouped(members: Sequence[int], key: Callable[[Row], Any]) -> dict[str, Any]:
        groups: dict[Any, list[int]] = defaultdict(list)
        for i in members:
            groups[key(rows[i])].append(i)
        return {str(name): block(groups[name]) for name in sorted(groups) if name != ""}

    ordinary = [i for i, row in enumerate(rows) if not row["control"]]
    controls = grouped(range(len(rows)), lambda row: row["control"])
    return {
        **block(ordinary),
        "excluded_controls": list(controls),
        "by_type": grouped(ordinary, lambda row: row["question_type"]),
        "by_attribute": grouped(ordinary, lambda row: row["attribute"]),
        "by_template": grouped(ordinary, lambda row: row["template_id"]),
        "controls": controls,
    }


def _block(
    rows: Sequence[Row], lines: Mapping[str, Sequence[Line]], blind: np.ndarray[Any, Any], draws: int, seed: int
) -> dict[str, Any]:
    """The numbers of one group of questions."""
    right = {name: np.array([line["correct"] for line in told], dtype=float) for name, told in lines.items()}
    right["majority_by_question"] = blind.astype(float)
    gaps = {name: right["real"] - values for name, values in right.items() if name != "real"} if "real" in right else {}
    # One call for all: accuracies and differences see the same resampled patients.
    intervals = cluster_intervals(
        np.column_stack([*right.values(), *gaps.values()]), [row["patient_ids"] for row in rows], draws, seed
    )
    of = dict(zip([*right, *(("gap", name) for name in gaps)], intervals))
    return {
        "n": len(rows),
        "patients": len({patient for row in rows for patient in row["patient_ids"]}),
        "conditions": {
            name: {
                "accuracy": _rounded(right[name].mean()),
                "interval": _limits(of[name]),
                "n": len(told),
                "unparsed": sum(line["parsed"] is None for line in told),
                "empty": sum(is_empty(line["prediction"]) for line in told),
            }
            for name, told in lines.items()
        },
        "majority_by_question": _rounded(blind.mean()),
        "majority_interval": _limits(of["majority_by_question"]),
        "real_minus": {
            name: {"difference": _rounded(values.mean()), "interval": _limits(of["gap", name])}
            for name, values in gaps.items()
        },
    }


def _rounded(value: float) -> float:
    return round(float(value), 6)  # the last digits of a sum depend on the number of threads


def _limits(interval: Interval) -> list[float | None]:
    return [None if np.isnan(limit) else _rounded(limit) for limit in interval]
