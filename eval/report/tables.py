"""The tables that several sections, figures and the model card share."""

from collections.abc import Mapping, Sequence

from data.experiment.conditions import CONDITIONS, FAST
from eval.report.parts import Table, auroc_span, p_value, percent, percent_span, points_span, signed_span, words
from eval.scoring.results import TEXT_ONLY, Block, ClassResult, SuperClasses

BY_QUESTION = "most common answer to each question"
WITHOUT_ECGS = "(a model trained without ECGs)"


def conditions_of(block: Block) -> list[str]:
    """The conditions asked, in the order of `CONDITIONS`: what is to be compared first stands together."""
    return [name for name in CONDITIONS if name in block.conditions]


def labels_of(block: Block) -> dict[str, str]:
    """Labels of the conditions in tables and pictures, a model of reference last."""
    labels = {name: CONDITIONS[name].label for name in conditions_of(block)}
    return labels | ({TEXT_ONLY: WITHOUT_ECGS} if TEXT_ONLY in block.conditions else {})


def main_table(block: Block) -> Table:
    """Right answers under each condition, of a report or of one of its groups, and what needs no ECG for reference."""
    rows = []
    for name, label in labels_of(block).items():
        result, change = block.conditions[name], block.changed.get(name)
        right, changed = percent_span(result.accuracy, result.interval), percent(change.rate) if change else ""
        rows.append([label, f"{result.n:,}", right, gap(block, name), percent(result.valid), changed])
    right, n = percent_span(block.majority_by_question, block.majority_interval), f"{block.n:,}"
    rows.append([f"({BY_QUESTION})", n, right, gap(block, "majority_by_question"), "", ""])
    label = "(most common answer to each kind of question)"
    rows.append([label, n, percent(block.majority), gap(block, "majority"), "", ""])
    head = ["the model is given", "questions", "right answers", "real ECG minus this", "valid answers"]
    return Table([*head, "answer changed"], rows)


def without_text_only(block: Block) -> str | None:
    """How to get the row of reference that is missing, if it is."""
    return None if TEXT_ONLY in block.conditions else words("text-only missing")


def comparison(overall: Block, blocks: Mapping[str, Block], heading: str) -> Table:
    """One row per group of questions: right answers under the conditions that matter most."""
    names = [name for name in FAST if name in overall.conditions]
    swapped = "swap" in overall.real_minus
    tested = any(corrected_p(block) is not None for block in blocks.values())
    head = [heading, "questions (patients)", *(CONDITIONS[name].label for name in names)]
    head += ["real minus another patient's"] * swapped + ["p"] * tested + [BY_QUESTION]
    rows = []
    for name, block in blocks.items():
        row = [name, f"{block.n:,} ({block.patients:,})"]
        row += [percent(block.conditions[c].accuracy) if c in block.conditions else "–" for c in names]
        row += [gap(block, "swap") or "–"] * swapped + [p_value(corrected_p(block))] * tested
        rows.append([*row, percent(block.majority_by_question)])
    return Table(head, rows)


def gap(block: Block, name: str) -> str:
    """Right answers about the real ECG minus those under another name, with the interval; empty where not compared."""
    difference = block.real_minus.get(name)
    return "" if difference is None else points_span(difference.difference, difference.interval)


def corrected_p(block: Block) -> float | None:
    """p-value of real against swap, corrected among kinds of question."""
    return None if block.swap_test is None else block.swap_test.swap_p_corrected


def super_class_table(numbers: SuperClasses) -> Table:
    """One line per class, and their means."""

    def line(name: str, result: ClassResult) -> list[str]:
        model, cnn, difference = result.model, result.cnn, result.auroc_difference
        areas = [auroc_span(scores.auroc.value, scores.auroc.interval) for scores in (model, cnn)]
        accuracies = [percent(scores.balanced_accuracy.value) for scores in (model, cnn)]
        change = signed_span(difference.value, difference.interval, 3)
        positives = "" if result.positives is None else f"{result.positives}"
        return [name, positives, *areas, change, *accuracies, f"{result.swap.auroc.value:.3f}"]

    head = ["class", "positives", "AUROC", "AUROC, CNN", "difference"]
    head += ["balanced accuracy", "the same, CNN", "AUROC, another's ECG"]
    return Table(head, [*(line(name, r) for name, r in numbers.classes.items()), line("mean", numbers.macro)])


def super_class_sentences(numbers: SuperClasses) -> list[str]:
    """Sentences on the table's questions, and the numbers that do not fit into it."""
    flips, model = numbers.flips, numbers.macro.model.balanced_accuracy
    difference = numbers.macro.balanced_accuracy_difference
    beside_cnn = points_span(difference.value, difference.interval)
    folds, trained_on = _folds(numbers.folds), _folds(numbers.trained_on.folds)
    return [
        words("super-classes", numbers=numbers, folds=folds, trained_on=trained_on),
        words("super-classes accuracy", accuracy=percent(model.value), difference=beside_cnn),
        words("super-classes flips", gap=points_span(flips.gap, flips.interval), flips=flips),
    ]


def _folds(folds: Sequence[int]) -> str:
    return f"fold {folds[0]}" if len(folds) == 1 else f"folds {', '.join(map(str, folds))}"
