"""Clusters of answers by patient: the one place where answers meet patients, and the resamples of patients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Clusters = Sequence[str | Sequence[str]]  # per answer, its patient or its patients
Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

AT_ONCE = 1_000_000  # draws x patients in memory, 8 MB: larger blocks leave the cache and are slower


@dataclass(frozen=True)
class Partition:
    """Groups of answers. Answers about the same patient, or the same set of patients, form a group.

    Patients and groups are numbered in the order of their names: nothing depends on the order of the answers.
    """

    patients: int
    groups: int
    group_of: Indices  # of every answer [n]
    by_size: list[tuple[Indices, Indices]]  # groups of as many patients: their numbers [m], their patients [m, size]

    def sums(self, values: Floats) -> Floats:
        """Sums by group `[groups]` of one value per answer."""
        return np.asarray(np.bincount(self.group_of, values, self.groups), dtype=np.float64)

    def group_weights(self, weights: Floats) -> Iterator[tuple[Indices, Floats]]:
        """Weights of groups from those of patients `[b, patients]`: numbers `[m]` and weights `[b, m]`, by size."""
        for groups, members in self.by_size:
            together = weights[:, members[:, 0]]
            for column in members.T[1:]:
                together *= weights[:, column]
            yield groups, together

    def variance(self, sums: Floats) -> float:
        """The sandwich: the sum of `sums[g] * sums[h]` over groups that share a patient, at least that over g = h.

        Groups that share two patients are met twice when going by patient, so what shares two is taken off again, what
        shares three is added again, and so on: inclusion and exclusion.
        """
        total = 0.0
        for size in range(1, 1 + max(members.shape[1] for _, members in self.by_size)):
            shared, added = [], []
            for groups, members in self.by_size:
                for columns in combinations(range(members.shape[1]), size):
                    shared.append(members[:, columns])
                    added.append(sums[groups])
            _, which = np.unique(np.concatenate(shared), axis=0, return_inverse=True)
            of_shared = np.bincount(which.ravel(), np.concatenate(added))
            total -= (-1) ** size * float(of_shared @ of_shared)
        return max(total, float(sums @ sums))


def partition_of(clusters: Clusters, answers: int) -> Partition:
    """The groups of so many answers.

    Raises:
        ValueError: There are more or fewer clusters than answers, or a cluster without a patient.
    """
    if answers != len(clusters):
        raise ValueError(f"{answers} values but {len(clusters)} clusters")
    sets = [_patients_in(cluster) for cluster in clusters]
    if () in sets:
        raise ValueError(f"value {sets.index(())} belongs to no cluster")
    groups = sorted(set(sets))
    number = {group: i for i, group in enumerate(groups)}
    patients = {name: i for i, name in enumerate(sorted({name for group in groups for name in group}))}
    by_size = []
    for size in sorted({len(group) for group in groups}):
        numbers = [i for i, group in enumerate(groups) if len(group) == size]
        by_size.append((np.array(numbers), np.array([[patients[name] for name in groups[i]] for i in numbers])))
    return Partition(len(patients), len(groups), np.array([number[group] for group in sets]), by_size)


def units_of(clusters: Clusters) -> list[tuple[str, ...]]:
    """Clusters with one name for patients who only ever occur together: they are one, and count as one."""
    sets = [_patients_in(cluster) for cluster in clusters]
    answers_of: dict[str, list[int]] = {}
    for i, names in enumerate(sets):
        for name in names:
            answers_of.setdefault(name, []).append(i)
    first: dict[tuple[int, ...], str] = {}
    unit = {name: first.setdefault(tuple(answers), name) for name, answers in sorted(answers_of.items())}
    return [tuple({unit[name] for name in names}) for names in sets]


def patients_of(clusters: Clusters) -> set[str]:
    """All patients the answers are about."""
    return {name for cluster in clusters for name in _patients_in(cluster)}


def _patients_in(cluster: str | Sequence[str]) -> tuple[str, ...]:
    return (cluster,) if isinstance(cluster, str) else tuple(sorted(set(cluster)))


def resamples(partition: Partition, draws: int, seed: int, width: int) -> Iterator[tuple[slice, Floats]]:
    """Weights of the patients `[b, patients]` in draws `slice`, in blocks that leave room for `[b, width]`."""
    rng, patients = np.random.default_rng(seed), partition.patients
    block = max(1, AT_ONCE // max(patients, width))
    for start in range(0, draws, block):
        count = min(block, draws - start)
        # Counting where as many throws as there are patients fall is a multinomial draw, ten times as fast as numpy's.
        thrown = rng.integers(patients, size=(count, patients)) + patients * np.arange(count)[:, None]
        weights = np.bincount(thrown.ravel(), minlength=count * patients).reshape(count, patients)
        yield slice(start, start + count), weights.astype(np.float64)


def one_each(values: ArrayLike) -> Floats:
    """Values as an array `[n]`.

    Raises:
        ValueError: They are not one finite number per answer.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"values must be one number per answer, got shape {values.shape}")
    if len(values) == 0:
        raise ValueError("there are no values to take a mean of")
    refuse_unless(np.isfinite(values), "finite")
    return values


def refuse_unless(valid: ArrayLike, what: str) -> None:
    """Refuse the first value that is not valid, by its place."""
    if not np.all(valid):
        raise ValueError(f"value {int(np.argmin(valid))} is not {what}")


def check_draws(draws: int) -> None:
    """Refuse a number of resamples below 1."""
    if draws < 1:
        raise ValueError(f"draws must be positive, got {draws}")
