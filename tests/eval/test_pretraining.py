"""Ratios over held-out recordings: their intervals resample patients."""

import numpy as np
import pytest

from eval.probing.numbers import Measure, as_lines, ratio_interval, with_intervals
from eval.statistics import cluster_interval


def test_a_ratio_to_one_each_is_a_mean():
    rng = np.random.default_rng(0)
    values, patients = rng.normal(size=60), [str(i // 3) for i in range(60)]
    assert ratio_interval(values, np.ones(60), patients) == pytest.approx(cluster_interval(values, patients))


def test_recordings_weigh_by_what_is_below_the_line():
    above, below = {"accuracy": [3, 0, 40]}, {"accuracy": [10, 10, 80]}
    found = with_intervals(above, below, ["a", "b", "c"])["accuracy"]
    assert found["value"] == 0.43 and found["low"] == 0.0 and found["high"] == 0.5


def test_one_patient_says_nothing_about_others():
    found = with_intervals({"x": [1.0, 2.0]}, {"x": [2.0, 2.0]}, ["a", "a"])
    assert found == {"x": {"value": 0.75, "low": None, "high": None}}
    assert as_lines(found)[0].split() == ["x", "0.7500", "(none", "to", "none)"]


def test_a_measure_keeps_what_it_found():
    class Sums:
        above, below, numbers = {"x": [1.0, 3.0]}, {"x": [4.0, 4.0]}, {"codes": 7}

    measure = Measure(lambda model: Sums(), ["a", "b"])
    assert measure(None) == {"x": 0.5, "codes": 7}
    assert measure.numbers["x"]["low"] == 0.25 and as_lines(measure.numbers)[1].split() == ["codes", "7"]
