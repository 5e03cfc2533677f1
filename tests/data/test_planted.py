"""Dose and answer: what is planted is what is asked, and nothing else moves."""

import dataclasses
from collections import defaultdict

import numpy as np
import pytest
from scipy.signal import find_peaks

from data.conversations import synthetic_words as words
from data.conversations.rows import user
from data.experiment.conditions import Altered, apply
from data.experiment.planted import DOSES, NORMAL, planted_rows
from data.synthetic import Parameters, SyntheticCohort, categories, findings


@pytest.fixture(scope="module")
def cohort():
    return SyntheticCohort(12, seed=4)


@pytest.fixture(scope="module")
def rows(cohort):
    return planted_rows(cohort, cohort.records, patients=3)


@pytest.fixture(scope="module")
def curves(cohort, rows):
    """Of each series and patient, the doses in order with the row and the recording."""
    source, found = Altered(cohort), defaultdict(list)
    for row in rows:
        found[row["parameter"], row["attribute"], row["patient_ids"][0]].append(
            (row["dose"], row, source[row["ecgs"][0]])
        )
    return {key: sorted(curve, key=lambda point: point[0]) for key, curve in found.items()}


def of(curves, parameter, finding=""):
    return [curve for (moved, asked, _), curve in curves.items() if moved == parameter and finding in asked]


def test_each_patient_is_asked_at_every_dose_on_both_sides_of_the_threshold(curves):
    assert len(curves) == 3 * len(DOSES)
    by_series = {(each.parameter, each.finding): each for each in DOSES}
    for (parameter, finding, _), curve in curves.items():
        each = by_series[parameter, finding]
        assert [dose for dose, _, _ in curve] == list(each.values) and 7 <= len(curve) <= 9
        answers = [row["answer"] == ["yes"] for _, row, _ in curve]
        assert 2 <= sum(answers) <= len(answers) - 2
        assert answers == sorted(answers, reverse=each.sign < 0)
        assert len({ecg.patient_id for _, _, ecg in curve}) == 1


def test_only_the_dose_differs_from_a_normal_ecg(curves):
    fixed = {(each.parameter, each.finding): {**NORMAL, **each.fixed} for each in DOSES}
    for (parameter, finding, _), curve in curves.items():
        for dose, _, ecg in curve:
            planted = {name: ecg.meta[name] for name in NORMAL}
            assert planted == {**fixed[parameter, finding], parameter: dose}


def test_answers_are_those_of_the_cohort(curves):
    """But where the cohort names a finding by shape or site alone, which `data.experiment.planted` says."""
    for (parameter, finding, _), curve in curves.items():
        if parameter in ("qrs_ms", "st_mv"):
            continue
        fields = {f.name: np.array([ecg.meta[f.name] for _, _, ecg in curve]) for f in dataclasses.fields(Parameters)}
        present, askable = findings(Parameters(**fields))[finding]
        assert askable.all() and [["yes"] if there else ["no"] for there in present] == [
            row["answer"] for _, row, _ in curve
        ]


def test_a_normal_ecg_is_normal(cohort):
    planted = Parameters(**{name: np.array([value]) for name, value in NORMAL.items()})
    assert findings(planted)["normal ECG"][0].all() and not any(index.any() for index in categories(planted).values())


def test_groups_are_those_of_the_questions(rows):
    assert all(row["group"] == words.GROUPS[row["attribute"]] for row in rows)


def test_the_rate_is_the_dose(curves):
    for curve in of(curves, "heart_rate"):
        for dose, _, ecg in curve:
            lead = np.abs(np.diff(ecg.signal, axis=1)).sum(axis=0)
            beats = find_peaks(lead, height=0.4 * lead.max(), distance=30)[0]
            assert 60 * ecg.fs / np.diff(beats).mean() == pytest.approx(dose, rel=0.04)


def test_the_gain_scales_everything_and_nothing_else(curves):
    for curve in of(curves, "gain"):
        (least, _, first), *more = curve
        for dose, _, ecg in more:
            np.testing.assert_allclose(ecg.signal * least, first.signal * dose, atol=1e-5)


def test_the_axis_turns_the_qrs_complex_only(curves):
    for curve in of(curves, "axis_deg"):
        angles = []
        for dose, _, ecg in curve:
            moved = ecg.signal - curve[0][2].signal
            assert dose == curve[0][0] or np.mean(np.abs(moved) < 1e-6) > 0.7  # most of a recording is no QRS complex
            # What was added to x and y by turning them, in the frontal plane, has the length of the way turned.
            angles.append(np.hypot(moved[0], moved[5] * 2 / np.sqrt(3)).max())
        assert angles == sorted(angles) and angles[-1] > 1


def test_st_moves_the_anterior_leads_and_not_between_beats(curves):
    for curve in of(curves, "st_mv"):
        (_, _, flat), *more = curve
        for dose, _, ecg in more:
            moved = ecg.signal - flat.signal
            v3 = moved[ecg.leads.index("V3")]
            assert v3.max() == pytest.approx(dose, abs=0.01) and v3.min() > -1e-6
            assert np.mean(np.abs(v3) < 1e-6) > 0.4
            assert np.abs(moved[ecg.leads.index("aVF")]).max() < 0.02


def test_pr_moves_p_waves_and_nothing_else(curves):
    for curve in of(curves, "pr_ms"):
        (_, _, first), *more = curve
        for _, _, ecg in more:
            moved = np.abs(ecg.signal - first.signal)
            assert moved.max() < 0.3 and np.mean(moved < 1e-6) > 0.5  # no wave larger than a P wave has moved


def test_qrs_widens_from_a_fixed_onset(curves):
    for curve in of(curves, "qrs_ms"):
        first = curve[0][2]
        for _, _, ecg in curve[1:]:
            assert np.mean(np.abs(ecg.signal - first.signal).max(axis=0) < 1e-5) > 0.25
        widths = [np.mean(np.abs(np.diff(ecg.signal[6])) > 0.02) for _, _, ecg in curve]
        assert np.corrcoef(widths, [dose for dose, _, _ in curve])[0, 1] > 0.7


def test_rows_are_questions_to_be_asked(rows):
    assert len({row["id"] for row in rows}) == len(rows) == 3 * sum(len(each.values) for each in DOSES)
    assert apply("planted", rows) == rows
    for row in rows:
        assert row["control"] == "planted" and row["question_type"] == "single-verify"
        assert row["question"] == words.VERIFY[0].format(row["attribute"])
        assert row["messages"][0] == user(1, row["question"])
        (record,) = row["ecgs"]
        assert f"{row['parameter']}={row['dose']:g}" in record and row["patient_ids"] == [record.partition("-")[0]]


def test_patients_are_drawn_from_the_records_given(cohort):
    some = cohort.records[4:10]
    drawn = [planted_rows(cohort, some, 2, seed, doses=DOSES[:1]) for seed in range(8)]
    records = {row["ecgs"][0].partition("~")[0] for rows in drawn for row in rows}
    assert records <= set(some) and len(records) > 3
    assert all(len({row["patient_ids"][0] for row in rows}) == 2 for rows in drawn)
    assert drawn[0] == planted_rows(cohort, some[::-1], 2, 0, doses=DOSES[:1])
    everyone = planted_rows(cohort, some, doses=DOSES[:1])
    assert len({row["patient_ids"][0] for row in everyone}) == 3  # fewer than asked for


def test_the_wording_is_the_callers(cohort):
    asked = planted_rows(cohort, cohort.records[:2], doses=DOSES[:1], question="Does this show symptoms of {finding}?")
    assert {row["question"] for row in asked} == {"Does this show symptoms of tachycardia?"}


def test_wrong_use_is_named(cohort):
    with pytest.raises(ValueError, match="question 'Is it\\?' has no {finding} in it"):
        planted_rows(cohort, cohort.records, question="Is it?")
    with pytest.raises(ValueError, match="no recordings to plant findings in"):
        planted_rows(cohort, [])
    with pytest.raises(KeyError, match="no record 's09999-1' in a cohort"):
        planted_rows(cohort, ["s09999-1"])
