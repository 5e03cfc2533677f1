"""Folds of a split in words."""

from collections.abc import Iterable


def fold_order(fold: int | str) -> tuple[int, str]:
    """A key to sort folds by: numbers first, in their order."""
    name = str(fold)
    return (int(name), "") if name.isdecimal() else (1 << 30, name)


def fold_ranges(folds: Iterable[int | str]) -> str:
    """`1-8, 10` for the folds 1, 2, ..., 8 and 10."""
    runs: list[list[str]] = []
    for fold in map(str, sorted(folds, key=fold_order)):
        if runs and fold.isdecimal() and runs[-1][-1].isdecimal() and int(fold) == int(runs[-1][-1]) + 1:
            runs[-1].append(fold)
        else:
            runs.append([fold])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def folds_in_words(folds: Iterable[int | str]) -> str:
    """`folds 1-8, 10`, or `fold 9`."""
    folds = list(folds)
    return f"{'fold' if len(folds) == 1 else 'folds'} {fold_ranges(folds)}"
