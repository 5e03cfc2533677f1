"""Probabilities of a closed question's options: the likeliest one, the margin of yes over no, calibration."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from eval.scoring.answers import is_correct, normalise
from eval.scoring.lines import Line
from eval.statistics import Floats


def likeliest_is_right(line: Line) -> bool | None:
    """Whether the likeliest of a closed question's options is right; None where none was scored."""
    if line.options is None or line.logp is None:
        return None
    return is_correct(choice(line.options, line.logp), line.answer)


def margin_of(line: Line) -> float | None:
    """`yes_margin` of a line; None where its options were not scored."""
    return None if line.options is None or line.logp is None else yes_margin(line.options, line.logp)


def p_yes(line: Line) -> float:
    """Probability of yes against no, whatever other options there are, such as "not sure"."""
    margin = margin_of(line)
    if margin is None:
        raise ValueError(f"question {line.id!r} has no probabilities of yes and no")
    return float(1 / (1 + np.exp(-np.clip(margin, -50, 50))))


def choice(options: Sequence[str], logp: ArrayLike) -> str:
    """The option with the highest natural log of its probability `[options]`; of equal ones the first.

    Raises:
        ValueError: There is no option, or not one finite number or -inf for each; names the option.
    """
    return options[int(np.argmax(_checked(options, logp)))]


def probabilities(logp: ArrayLike) -> Floats:
    """Probabilities `[options]` that sum to 1, given that the answer is one of the options (softmax of `logp`).

    Raises:
        ValueError: There is no option, or none that is possible.
    """
    logp = _checked(None, logp)
    if np.isneginf(logp).all():
        raise ValueError(f"all {len(logp)} options have probability zero: there is nothing to compare")
    weights = np.exp(logp - logp.max())
    return np.asarray(weights / weights.sum())


def yes_margin(options: Sequence[str], logp: ArrayLike) -> float | None:
    """`log p(yes) - log p(no)`: the score of a verify question, for its AUROC. None unless both are options.

    Errors as `choice`; also where both are impossible.
    """
    by_option = dict(zip(map(normalise, options), _checked(options, logp)))
    if not {"yes", "no"} <= by_option.keys():
        return None
    yes, no = by_option["yes"], by_option["no"]
    if np.isneginf(yes) and np.isneginf(no):
        raise ValueError("yes and no both have probability zero: there is nothing to compare")
    return float(yes - no)


def _checked(options: Sequence[str] | None, logp: ArrayLike) -> Floats:
    logp = np.asarray(logp, dtype=np.float64)
    if logp.ndim != 1 or not len(logp) or (options is not None and len(options) != len(logp)):
        wanted = "" if options is None else f" for {len(options)} options"
        raise ValueError(f"log probabilities must be one number per option, got shape {logp.shape}{wanted}")
    if (wrong := np.isnan(logp) | np.isposinf(logp)).any():
        i = int(np.argmax(wrong))
        raise ValueError(f"the log probability of option {i if options is None else repr(options[i])} is {logp[i]}")
    return logp


def brier(p_yes: ArrayLike, is_yes: ArrayLike) -> float:
    """Mean squared difference of the probability of "yes" `[n]` and the truth `[n]` (Brier, Mon. Weather Rev. 1950).

    0 is perfect; 0.25 is what 0.5 for every question gets.

    Raises:
        ValueError: No questions, shapes that do not match, or probabilities outside 0 to 1.
    """
    p, truth = _paired("p_yes", p_yes, "is_yes", is_yes)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_yes must lie between 0 and 1, got {p[~((p >= 0) & (p <= 1))][0]}")
    return float(np.mean((p - truth) ** 2))


def selective_accuracy(confidence: ArrayLike, right: ArrayLike, coverages: Sequence[float]) -> list[float]:
    """Accuracy among the most confident share of the answers, by share (El-Yaniv and Wiener, JMLR 2010).

    Answers of equal confidence each count with the mean of their group, which is what choosing among them at random
    gives on average: the result does not depend on their order. A share that ends within an answer counts it in part.

    Raises:
        ValueError: No answers, shapes that do not match, a confidence that is NaN, or a share outside that range.
    """
    sureness, hits = _paired("confidence", confidence, "right", right)
    if np.isnan(sureness).any():
        raise ValueError(f"the confidence of answer {int(np.argmax(np.isnan(sureness)))} is not a number")
    if bad := [share for share in coverages if not 0 < share <= 1]:
        raise ValueError(f"a coverage is a share above 0 and up to 1, got {bad[0]}")
    _, group, size = np.unique(-sureness, return_inverse=True, return_counts=True)  # the surest group first
    answers = np.concatenate([[0], np.cumsum(size)])
    hit = np.concatenate([[0.0], np.cumsum(np.bincount(group, hits))])
    wanted = np.asarray(coverages, dtype=np.float64) * len(hits)
    return [float(accuracy) for accuracy in np.interp(wanted, answers, hit) / wanted]


def _paired(name: str, values: ArrayLike, other_name: str, others: ArrayLike) -> tuple[Floats, Floats]:
    first, second = np.asarray(values, dtype=np.float64), np.asarray(others, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        shapes = f"{first.shape} and {second.shape}"
        raise ValueError(f"{name} and {other_name} must be one number per answer, got shapes {shapes}")
    return first, second
