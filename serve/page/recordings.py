"""Recordings on the page: what is measured in them, which seconds are asked about, and the ones it brings along."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.ecg import Ecg
from data.measure import Measurements, measure
from data.quality import require_readable
from data.readers import read_ecg
from data.synthetic import SyntheticCohort, categories, findings
from elm.inputs.window import read_window

logger = logging.getLogger(__name__)

EXAMPLES = 3


@dataclass
class Recording:
    """A recording on the desk."""

    ecg: Ecg
    name: str  # on the page
    measured: Measurements | None = None  # None before they are taken, and where that is not possible
    unmeasured: str = ""  # why that is not possible

    def measure(self) -> Recording:
        """Take the measurements, once."""
        if self.measured is None and not self.unmeasured:
            try:
                self.measured = measure(self.ecg)
            except (ModuleNotFoundError, RuntimeError) as error:
                self.unmeasured = str(error)
        return self


def window(ecg: Ecg, seconds: float, start: float) -> tuple[Ecg, str]:
    """The seconds a model reads that begin at `start`, or the last ones; and a sentence where there are others."""
    last = max(0.0, ecg.duration - seconds)
    return read_window(ecg, seconds, min(start, last), "the slider chooses others")


def _kinds(measured: Measurements | None) -> dict[str, str]:
    """Classes of the measurements, by which one recording differs from another at a glance."""
    if measured is None or measured.quality == "failed":
        return {}
    m = measured
    kinds = {"P waves": "none" if m.pr is None else "long PR" if m.pr > 200 else "present"}
    if m.rate is not None:
        kinds["rate"] = "slow" if m.rate < 60 else "fast" if m.rate > 100 else "normal"
    if m.qrs is not None:
        kinds["QRS"] = "wide" if m.qrs >= 120 else "narrow"
    if m.axis is not None:
        kinds["axis"] = "left" if m.axis < -30 else "right" if m.axis > 90 else "normal"
    return kinds


def unlike(one: Measurements | None, other: Measurements | None) -> int:
    """Number of classes of measurements in which two recordings differ."""
    a, b = _kinds(one), _kinds(other)
    return sum(a[name] != b[name] for name in a.keys() & b.keys())


class Shelf:
    """Recordings the page brings along: examples to click on, and other patients' ECGs to ask with.

    Args:
        folder: Folder of a saved model, whose `examples/` are shown; without them, simulated recordings are.
    """

    def __init__(self, folder: Path | None = None) -> None:
        cohort = SyntheticCohort(60, records_per_patient=1, seed=11, fs=500)
        simulated = [
            Recording(cohort[record], f"simulated patient {int(cohort.patient_of[record][1:])}: {finding}")
            for finding, record in _one_of_each(cohort).items()
        ]
        saved = [] if folder is None else list(_saved(folder / "examples"))
        self.examples = (saved or simulated)[:EXAMPLES]
        self.donors = [*saved, *simulated]

    def warm(self) -> None:
        """Measure all of them, so that the first visitor need not wait."""
        for recording in self.donors:
            recording.measure()

    def donor(self, instead_of: Recording, taken: Sequence[Recording] = ()) -> Recording:
        """Another patient's recording, as unlike as can be in what was measured; an example where one differs."""
        barred = [*taken, instead_of]
        candidates = [donor for donor in self.donors if not any(_same(donor.ecg, other.ecg) for other in barred)]
        return max(candidates, key=lambda donor: unlike(instead_of.measure().measured, donor.measure().measured))


def _saved(folder: Path) -> Iterator[Recording]:
    """The recordings in a folder, without those that cannot be read: they only decorate the page."""
    for path in sorted(folder.glob("*.[hH][eE][aA]")):
        try:
            if path.name.startswith("."):
                raise ValueError("a hidden file is no recording")
            ecg = read_ecg(path, nan="interpolate")
            require_readable(ecg)
        except (ValueError, OSError) as error:
            logger.warning("the example %s is left out: %s", path, error)
        else:
            yield Recording(ecg, f"record {path.stem}")


def _same(one: Ecg, other: Ecg) -> bool:
    """Whether two recordings are one, as an example may have been uploaded, too, or one patient's."""
    if one.patient_id and one.patient_id == other.patient_id:
        return True
    return one.signal.shape == other.signal.shape and bool(np.allclose(one.signal, other.signal, atol=1e-3))


def _one_of_each(cohort: SyntheticCohort) -> dict[str, str]:
    """Records of a cohort with one finding each, by the finding."""
    present = {name: flags for name, (flags, _) in findings(cohort.parameters).items()}
    quiet = categories(cohort.parameters)["noise"] == 0
    chosen: dict[str, str] = {}
    for name in ("normal ECG", "atrial fibrillation", "left bundle branch block", "tachycardia", "bradycardia"):
        others = sum(present[other] for other in present if other != name and "voltage" not in other)
        score = np.where(present[name] & quiet, -others.astype(float), -np.inf)
        record = cohort.records[int(score.argmax())]
        if record not in chosen.values():
            chosen[name] = record
    return chosen


def described(recording: Recording) -> str:
    """Name of a recording, and its measurements in brackets."""
    m = recording.measured
    if m is None or m.quality == "failed":
        return recording.name
    values = [f"rate {m.rate:.0f}/min"] if m.rate is not None else []
    values += [f"PR {m.pr:.0f} ms" if m.pr is not None else "no P waves found"]
    values += [f"QRS {m.qrs:.0f} ms"] if m.qrs is not None else []
    values += [f"axis {m.axis:.0f}\N{DEGREE SIGN}"] if m.axis is not None else []
    return f"{recording.name} ({', '.join(values)})"
