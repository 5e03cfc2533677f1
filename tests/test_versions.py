"""Whoever changes what is kept in a cache raises the `VERSION` beside the code, or old entries pass for new ones.

Each case makes a small output of its code and compares a few projections of it with those of the version that stands
there. Where this fails on purpose: raise `VERSION`, and write the new numbers down.
"""

from zlib import crc32

import numpy as np
import pytest

from data import measure, synthetic
from data.conversations import load_questions
from data.corpora import verdicts
from data.ecg import Ecg
from data.experiment import conditions
from data.experiment import duplicates as copies
from elm.training import tiny, tiny_llama
from encoders.heartlang import QrsTokenizer, feature_extraction


@pytest.fixture(scope="module")
def cohort():
    return synthetic.SyntheticCohort(4, seed=3, fs=100)


def projections(values, seed=0):
    values = np.nan_to_num(np.asarray(values, dtype=np.float64).ravel())
    directions = np.random.default_rng(seed).standard_normal((3, len(values))) / np.sqrt(max(1, len(values)))
    return [round(float(number), 5) for number in directions @ values]


def simulated(cohort):
    return cohort[cohort.records[1]].signal


def altered(cohort):
    source = conditions.Altered(cohort)
    return [source[f"{cohort.records[0]}~{name}"].signal for name in ("flat", "noise", "phase", "reverse")]


def duplicates(cohort):
    ecgs = [cohort[record] for record in cohort.records]
    source = {f"{n}": ecg for n, ecg in enumerate(ecgs)}
    source |= {f"copy {n}": Ecg(0.5 * ecg.signal[:, 100:700], ecg.fs, ecg.leads) for n, ecg in enumerate(ecgs[:3])}
    train, test = list(map(str, range(len(ecgs)))), [f"copy {n}" for n in range(3)]
    pairs = copies.find_duplicates(source, train, test)
    return [[int(name.split()[-1]) for name in (pair.train, pair.test)] for pair in pairs]


def judged(cohort):
    ecg = cohort[cohort.records[0]]
    flat = np.where(np.arange(12)[:, None] == 7, 0, ecg.signal)
    source = {"sound": ecg, "flat": Ecg(flat, ecg.fs, ecg.leads), "short": ecg.crop(0, 0.5)}
    source["dead"] = Ecg(0 * ecg.signal, ecg.fs, ecg.leads)
    found = verdicts.read_recordings(source, "ours", list(source)).values()
    return [[len(verdict.notes), bool(verdict.reason), len(verdict.leads)] for verdict in found]


def measurements(cohort):
    pytest.importorskip("neurokit2")
    one = measure.measure(cohort[cohort.records[0]])
    return [one.rate or 0, one.pr or 0, one.qrs or 0, one.qt or 0, one.axis or 0]


def words(cohort):
    return QrsTokenizer()([cohort[cohort.records[0]]])["words"]


def tiny_texts(_):
    questions = load_questions("synthetic", patients=8, held_out_patients=4)
    curriculum = tiny_llama.Curriculum(questions, np.random.default_rng(0))
    return [crc32(curriculum.text(0.3).encode()) % 1000 for _ in range(20)]


CASES = {
    (simulated, synthetic): (1, [0.72503, 0.00222, 0.64269]),
    (altered, conditions): (1, [0.10421, -0.24348, -0.03375]),
    (duplicates, copies): (1, [0.16215, -1.27906, -1.51023]),
    (judged, verdicts): (1, [3.59485, -5.51412, -2.07727]),
    (measurements, measure): (2, [6.75131, 28.94752, -247.52632]),
    (words, feature_extraction): (1, [0.03348, 0.15465, 0.23317]),
    (tiny_texts, tiny): (2, [-764.09392, 44.44256, 726.17159]),
}


@pytest.mark.parametrize(("output", "module"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_the_version_is_that_of_what_is_kept(cohort, output, module):
    version, expected = CASES[output, module]
    assert version == module.VERSION, f"write down what version {module.VERSION} makes"
    assert projections(output(cohort)) == pytest.approx(expected, rel=1e-3, abs=2e-4), (
        f"raise {module.__name__}.VERSION"
    )
