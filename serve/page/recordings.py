"""Recordings on the page: what is measured in them, what is wrong with them, and the ones the page brings along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.ecg import LEADS, Ecg
from data.measure import Measurements, measure
from data.paper import SECONDS
from data.readers import read_ecg
from data.synthetic import SyntheticCohort, categories, findings

EXAMPLES = 3
_FLAT = 0.01  # mV between the highest and the lowest sample of a lead
_PLATEAU = 0.02  # s at the very same extreme value


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


def remarks(ecg: Ecg) -> list[str]:
    """Sentences about what is wrong with the signal; none where nothing is.

    They name leads that are missing, flat (less than 0.01 mV from top to bottom), or cut off: 20 ms or more at the very
    same extreme value.
    """
    rows = {lead.removeprefix("-"): row for lead, row in zip(ecg.leads, ecg.signal, strict=True)}
    flat = [lead for lead, row in rows.items() if np.ptp(row) < _FLAT]
    cut = [lead for lead, row in rows.items() if lead not in flat and _is_cut(row, max(5, round(_PLATEAU * ecg.fs)))]
    sentences = []
    if missing := [lead for lead in LEADS if lead not in rows]:
        sentences.append(f"Not recorded: {', '.join(missing)}.")
    if flat:
        sentences.append(f"Flat: {', '.join(flat)}.")
    if cut:
        sentences.append(f"Cut off at the top or the bottom: {', '.join(cut)}. Amplitudes are too small there.")
    if ecg.duration < SECONDS - 0.05:
        sentences.append(f"Only {ecg.duration:.3g} s long.")
    return sentences


def _is_cut(row: np.ndarray, least: int) -> bool:
    """Whether a lead `[samples]` stays at its highest or lowest value for at least so many samples."""
    for extreme in (row.max(), row.min()):
        ends = np.flatnonzero(np.diff(row == extreme, prepend=False, append=False)).reshape(-1, 2)
        if (ends[:, 1] - ends[:, 0]).max() >= least:
            return True
    return False


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
        paths = sorted((folder / "examples").glob("*.hea")) if folder is not None else []
        saved = [Recording(read_ecg(path), f"record {path.stem}") for path in paths]
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
