"""Simulated ECGs in which one quantity is moved and nothing else: does the answer follow the dose?

Each of `DOSES` moves one parameter of a simulated patient over some values, on both sides of the threshold beyond which
the right answer to its question is yes. Who reads the ECG says yes more readily with every step; who guesses does not
move. All else is that of a normal ECG (`NORMAL`), whatever findings the patient has, so that none of them interferes;
anatomy, shape of the waves and the noise of the electrodes stay the patient's own.

What moves with a dose although only its parameter is set:

* QT shortens with the rate (Bazett). The PR interval is short enough for P waves to stay clear of the T wave.
* The T wave follows the J point as QRS widens. The shape of the complex is that of the bundle branch block at every
  dose: what is asked is whether the block is complete, from 120 ms on (Surawicz et al., AHA/ACCF/HRS 2009). The
  cohort has this shape with 136-164 ms only, so a model trained on it may go by the shape and say yes throughout.
* The ST level of V3 is moved, that of its neighbours with it. From 0.2 mV on it is an elevation (fourth universal
  definition of myocardial infarction: V2 and V3 of men over 40); the cohort has 0 or, at unit gain, 0.25-0.45 mV.
* The gain scales the whole recording. An encoder that is blind to gain cannot follow it: there the curve is expected
  to be flat, as a control.

The thresholds of rate, PR interval, axis and gain are those by which the cohort names its findings.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from types import MappingProxyType
from typing import Literal

import numpy as np

from data.conversations.rows import Row, question_row
from data.ecg import Ecg, EcgSource
from data.experiment.conditions import altered_id
from data.synthetic import SyntheticCohort


class PlantedRow(Row):
    """A question about a recording with one parameter moved."""

    parameter: str  # a field of `data.synthetic.Parameters`
    dose: float  # its value
    sign: int  # 1 where yes becomes likelier as it rises, -1 where it does as it falls


NORMAL: Mapping[str, float] = MappingProxyType(
    {
        "heart_rate": 72, "atrial_fibrillation": 0, "pr_ms": 150, "qrs_ms": 92, "conduction": 0, "pvc": 0,
        "st_site": 0, "st_mv": 0, "axis_deg": 45, "gain": 1, "noise": 0,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Doses:
    """One quantity and the question it decides."""

    parameter: str  # what is moved: a field of `data.synthetic.Parameters`
    values: tuple[float, ...]  # over which it is moved, in ascending order
    finding: str  # what is asked about
    group: str  # family of the finding, as in `Row["group"]`
    threshold: float  # beyond which value the finding is there
    sign: Literal[1, -1] = 1  # 1 where it is there above the threshold, -1 where below
    fixed: Mapping[str, float] = field(default_factory=dict)  # other parameters that differ from `NORMAL`

    def present(self, dose: float) -> bool:
        """Whether the finding is there at that dose."""
        return (dose - self.threshold) * self.sign > 0


_GAINS = (0.3, 0.45, 0.7, 0.9, 1.1, 1.3, 1.7, 2.1, 2.5)
_ST = (0, 0.05, 0.1, 0.15, 0.25, 0.3, 0.35, 0.45)
_QRS = (80, 92, 104, 114, 126, 136, 148, 160)
DOSES = (
    Doses("heart_rate", (60, 70, 80, 90, 97, 105, 115, 127, 140), "tachycardia", "rate", 100),
    Doses("heart_rate", (40, 45, 50, 55, 65, 72, 80, 90), "bradycardia", "rate", 60, sign=-1),
    Doses("pr_ms", (120, 140, 160, 180, 192, 210, 230, 260, 300), "first degree AV block", "AV conduction", 200),
    Doses("qrs_ms", _QRS, "left bundle branch block", "conduction", 120, fixed={"conduction": 1}),
    Doses("qrs_ms", _QRS, "right bundle branch block", "conduction", 120, fixed={"conduction": 2}),
    Doses("st_mv", _ST, "anterior ST elevation", "ST", 0.2, fixed={"st_site": 1}),
    Doses("axis_deg", (-75, -60, -45, -20, 0, 20, 40, 60), "left axis deviation", "axis", -30, sign=-1),
    Doses("axis_deg", (30, 45, 60, 75, 100, 115, 135, 155), "right axis deviation", "axis", 90),
    Doses("gain", _GAINS, "high QRS voltage", "voltage", 1.5),
    Doses("gain", _GAINS, "low QRS voltage", "voltage", 0.6, sign=-1),
)  # fmt: skip


class Beside:
    """A corpus with simulated patients beside it, so that its models can be asked about doses; an `EcgSource`.

    A recording of the corpus whose id a simulated one has, too, is not found any more.
    """

    def __init__(self, corpus: EcgSource, cohort: SyntheticCohort) -> None:
        self.corpus, self.cohort = corpus, cohort

    def __getitem__(self, record_id: str) -> Ecg:
        return (self.cohort if record_id in self.cohort.patient_of else self.corpus)[record_id]

    def render(self, record_id: str, **moved: float) -> Ecg:
        """A simulated recording with parameters moved (`SyntheticCohort.render`)."""
        return self.cohort.render(record_id, **moved)


def simulated(source: EcgSource) -> SyntheticCohort | None:
    """The simulated patients of a source; None where it has none."""
    if isinstance(source, Beside):
        return source.cohort
    return source if isinstance(source, SyntheticCohort) else None


def planted_rows(
    cohort: SyntheticCohort,
    records: Iterable[str],
    patients: int = 25,
    seed: int = 0,
    question: str = "Does this ECG show {finding}?",
    doses: Iterable[Doses] = DOSES,
) -> list[PlantedRow]:
    """Verify questions about recordings with one parameter moved, to be asked of `Altered(cohort)`.

    Every patient is asked about at every dose, under one recording, so that each has a curve of their own.

    Args:
        cohort: The simulated patients.
        records: Recordings of those that may be asked about: held-out ones, if the model was trained on this cohort.
        patients: How many of them are asked about; fewer where there are fewer.
        seed: Which patients, and which of their recordings.
        question: Words of the question, with `{finding}` where the finding stands: those the model was trained on.
        doses: What to plant.

    Raises:
        ValueError: There is no recording, or the question has no place for the finding.
        KeyError: A recording is not of the cohort.
    """
    if "{finding}" not in question:
        raise ValueError(f"question {question!r} has no {{finding}} in it, so it asks the same of all")
    records_of: dict[str, list[str]] = {}
    for record in sorted(set(records)):
        cohort.index(record)  # raises for a record of another cohort
        records_of.setdefault(cohort.patient_of[record], []).append(record)
    if not records_of:
        raise ValueError("no recordings to plant findings in: give those of the held-out patients")
    rng = np.random.default_rng([seed, 6])
    chosen = [sorted(records_of)[i] for i in rng.permutation(len(records_of))[:patients]]
    visits = [(patient, records_of[patient][rng.integers(len(records_of[patient]))]) for patient in sorted(chosen)]
    rows: list[PlantedRow] = []
    for each, (patient, record) in product(doses, visits):
        for dose in each.values:
            moved = {**NORMAL, **each.fixed, each.parameter: dose}
            settings = ",".join(f"{name}={value:g}" for name, value in moved.items())
            row = question_row(
                id=f"planted/{each.finding}/{record}/{each.parameter}={dose:g}",
                ecgs=[altered_id(record, f"set:{settings}")],
                patient_ids=[patient],
                question_type="single-verify",
                question=question.format(finding=each.finding),
                answer=["yes" if each.present(dose) else "no"],
                attribute=each.finding,
                group=each.group,
                control="planted",
            )
            rows.append({**row, "parameter": each.parameter, "dose": float(dose), "sign": each.sign})
    return rows
