"""The simulated cohort: what is planted is measured back, by means of its own, and nothing else tells of it."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.signal import butter, find_peaks, savgol_filter, sosfiltfilt
from scipy.stats import chi2_contingency

from data.ecg import LEADS
from data.synthetic import (
    AXES,
    CONDUCTIONS,
    NOISES,
    RATES,
    ST_LEAD,
    ST_SITES,
    VOLTAGES,
    Parameters,
    SyntheticCohort,
    waves,
)
from data.synthetic import cohort as cohort_module
from encoders.melp import MelpFeatureExtractor

FS = 500
QUIET = {"noise": 0, "pvc": False, "atrial_fibrillation": False}  # a little noise stays: it is averaged away
PLAIN = {**QUIET, "st_mv": 0.0, "st_site": 0, "heart_rate": 70}
ROW = {name: row for row, name in enumerate(LEADS)}


@pytest.fixture(scope="module")
def long():
    """Half a minute each, so that some thirty beats can be averaged."""
    return SyntheticCohort(20, fs=FS, seconds=30, seed=11)


@pytest.fixture(scope="module")
def many():
    return SyntheticCohort(2000)


# --- measuring, without a look at how the waveforms are made ----------------------------------------------------------


def speed(signal, window=9):
    """Spatial velocity: the root of the summed squared slopes of all leads, mV/s `[samples]`."""
    return np.sqrt((savgol_filter(signal, window, 2, deriv=1, delta=1 / FS, axis=-1) ** 2).sum(axis=0))


def find_beats(signal, least=0.25):
    """Samples in the middle of each whole QRS complex with at least this part of the energy of the largest ones."""
    energy = np.convolve(speed(signal, 15) ** 2, np.ones(50), "same")
    beats = find_peaks(energy, height=least * np.percentile(energy, 99.5), distance=100)[0]
    return beats[(beats > 75) & (beats < len(energy) - 75)]


def average(signal, before=250, after=225):
    """The average beat `[12, before + after]`, after moving each beat onto the others."""
    beats = find_beats(signal)
    beats = beats[(beats >= before + 10) & (beats < signal.shape[1] - after - 10)]
    for _ in range(2):
        model = np.mean([signal[:, b - 50 : b + 50] for b in beats], axis=0)
        model -= model.mean(axis=1, keepdims=True)
        beats = [
            b + max(range(-10, 11), key=lambda d: (signal[:, b + d - 50 : b + d + 50] * model).sum()) for b in beats
        ]
    return np.mean([signal[:, b - before : b + after] for b in beats], axis=0)


def qrs_of(beat, middle=250):
    """First and last sample of the QRS complex of an average beat: where it leaves rest and comes back to it."""
    quiet = speed(beat)
    quiet = quiet < 0.05 * quiet[middle - 50 : middle + 75].max()
    onset = next(i for i in range(middle, 0, -1) if quiet[i - 4 : i].all())
    # A block's complex can stand still for a moment: rest is 24 ms of it.
    return onset, next(i for i in range(middle, len(quiet)) if quiet[i : i + 12].all())


def measure(ecg):
    """PR and QRS in ms, frontal axis in degrees, of a sinus rhythm at about 70 per minute without ST elevation."""
    beat = average(ecg.signal)
    onset, offset = qrs_of(beat)
    beat = beat - beat[:, onset - 8 : onset].mean(axis=1, keepdims=True)  # to the PR segment
    area = beat[:, onset : offset + 1].sum(axis=1)
    before = speed(beat, 15)[onset - 165 : onset - 10]  # from the end of the T wave to the PR segment: a P wave
    start = np.flatnonzero(before > 0.5 * before.max())[0]
    start = max(i for i in range(start) if before[i] < 0.2 * before.max())
    return SimpleNamespace(
        pr_ms=(165 - start) * 1000 / FS,
        qrs_ms=(offset - onset) * 1000 / FS,
        # aVF of an equilateral triangle is sqrt(3) / 2 of the component towards the feet.
        axis_deg=np.degrees(np.arctan2(area[ROW["aVF"]] * 2 / np.sqrt(3), area[ROW["I"]])),
        beat=beat,
        onset=onset,
        offset=offset,
    )


def apart(a, b):
    """Between two directions, in degrees."""
    return abs((a - b + 180) % 360 - 180)


def rate_of(beats):
    return 60 * FS * (len(beats) - 1) / (beats[-1] - beats[0])


@pytest.fixture(scope="module")
def measured(long):
    ecgs = [long.render(record, **PLAIN) for record in long.records]
    return [(ecg.meta, measure(ecg)) for ecg in ecgs]


def test_heart_rate():
    cohort = SyntheticCohort(20, fs=FS, seed=3)
    assert all((cohort.categories["rate"] == i).sum() > 5 for i in range(3))
    for record in cohort.records:
        ecg = cohort.render(record, **QUIET)
        assert rate_of(find_beats(ecg.signal)) == pytest.approx(ecg.meta["heart_rate"], rel=0.01), record


def test_pr_interval(measured):
    planted = np.array([meta["pr_ms"] for meta, _ in measured])
    assert (planted > 240).sum() > 5 and (planted < 175).sum() > 5
    np.testing.assert_allclose([found.pr_ms for _, found in measured], planted, atol=10)


def test_qrs_duration(measured):
    planted = np.array([meta["qrs_ms"] for meta, _ in measured])
    assert {meta["conduction"] for meta, _ in measured} == {0, 1, 2}
    np.testing.assert_allclose([found.qrs_ms for _, found in measured], planted, atol=10)


@pytest.mark.parametrize("conduction", range(3))
def test_frontal_axis(long, conduction):
    for record, axis in zip(long.records, range(-75, 156, 23)):
        found = measure(long.render(record, **PLAIN, axis_deg=axis, conduction=conduction, qrs_ms=140))
        assert apart(found.axis_deg, axis) < 2, (record, axis)


@pytest.mark.parametrize("site", [1, 2])
def test_st_level_60_ms_after_the_j_point(long, site):
    sites = np.flatnonzero(long.parameters.st_site == site)
    assert len(sites) > 4
    for record in (long.records[i] for i in sites):
        duration = measure(long.render(record, **PLAIN)).qrs_ms  # the J point is no corner where ST is elevated
        ecg = long.render(record, **QUIET, heart_rate=70)
        beat = average(ecg.signal)
        onset = qrs_of(beat)[0]
        at = onset + round((duration + 60) / 1000 * FS)
        lead = beat[ROW[ST_LEAD[site]]]
        level = lead[at - 3 : at + 4].mean() - lead[onset - 8 : onset].mean()
        assert level == pytest.approx(ecg.meta["st_mv"], abs=0.02), record
        assert ecg.meta["st_mv"] > 0.07


def test_bundle_branch_blocks_have_their_morphology(long):
    for record, axis in itertools.product(long.records[:6], (-60, 20, 60, 140)):
        left, right = (
            measure(long.render(record, **PLAIN, conduction=side, qrs_ms=150, axis_deg=axis)) for side in (1, 2)
        )
        v1 = left.beat[ROW["V1"], left.onset : left.offset]
        assert v1.sum() < 0 and -v1.min() > 5 * v1.max(), (record, axis)  # a broad S wave, hardly an R
        v1, v6, i = (right.beat[lead, right.onset : right.offset] for lead in (ROW["V1"], ROW["V6"], ROW["I"]))
        last = slice(len(v1) * 6 // 10, None)
        assert v1[last].sum() > 0 and v1[last].max() > 0.3 * np.abs(v1).max(), (record, axis)  # a terminal R wave
        if 0 < axis < 90:
            assert (
                left.beat[ROW["V6"], left.onset : left.offset].min() > -0.1 * left.beat[ROW["V6"]].max()
            )  # no septal Q, no S
            assert v6[last].min() < 0 and i[last].min() < 0  # a terminal S wave


def test_limb_leads_obey_einthoven_and_goldberger():
    signals = SyntheticCohort(40, seed=5).signals().astype(float)  # all kinds of noise and rhythm
    i, ii = signals[:, ROW["I"]], signals[:, ROW["II"]]
    for lead, expected in (
        (ROW["III"], ii - i),
        (ROW["aVR"], -(i + ii) / 2),
        (ROW["aVL"], i - ii / 2),
        (ROW["aVF"], ii - i / 2),
    ):
        np.testing.assert_allclose(signals[:, lead], expected, atol=1e-5)


def test_atrial_fibrillation_is_irregular_and_has_no_p_wave(long):
    for record in long.records[:12]:
        quiet = {"noise": 0, "pvc": False, "st_mv": 0.0, "st_site": 0, "heart_rate": 70, "pr_ms": 150}
        spread, p_wave = {}, {}
        for fibrillating in (False, True):
            signal = long.render(record, **quiet, atrial_fibrillation=fibrillating).signal
            rr = np.diff(find_beats(signal))
            spread[fibrillating] = rr.std() / rr.mean()
            beat = average(signal)
            onset = qrs_of(beat)[0]
            p_wave[fibrillating] = np.ptp(beat[ROW["II"], onset - 75 : onset - 5]) / np.ptp(beat)
        assert spread[False] < 0.03 and spread[True] > 0.12, record
        assert p_wave[True] < 0.5 * p_wave[False], record


def test_premature_complexes_come_early_broad_and_before_a_full_pause(long):
    for record in long.records[:12]:
        without = long.render(record, **PLAIN, qrs_ms=90, conduction=0)
        ecg = long.render(record, **{**PLAIN, "pvc": True}, qrs_ms=90, conduction=0)
        beats, sinus = find_beats(ecg.signal, least=0.08), find_beats(without.signal)
        assert rate_of(beats) == pytest.approx(rate_of(sinus), rel=0.02)
        rr = np.diff(beats) / np.median(np.diff(sinus))
        early = np.flatnonzero(rr[:-1] < 0.8) + 1
        assert len(early) > 5 and np.diff(early).min() >= 3, record
        for k in early:
            assert rr[k - 1] + rr[k] == pytest.approx(2, abs=0.12), record
            assert rr[k] > 1.2
            around = speed(ecg.signal[:, beats[k] - 75 : beats[k] + 75])
            moving = np.flatnonzero(around > 0.15 * around.max())
            assert np.ptp(moving) * 1000 / FS > 120, record


def test_every_recording_with_premature_complexes_shows_one(many):
    for i in np.flatnonzero(many.parameters.pvc)[:100]:
        signals = [many.render(many.records[i], noise=0, gain=1, pvc=pvc).signal for pvc in (True, False)]
        # A broad complex of some millivolts where there was none, and not just the end of one at an end.
        other = (np.abs(signals[0] - signals[1]).max(axis=0) > 0.7)[20:-20]
        assert other.sum() > 8, many.records[i]


# --- moving one thing -------------------------------------------------------------------------------------------------


def test_gain_scales_the_whole_recording(long):
    for record in long.records[:8]:
        ecg = long.render(record)
        twice = long.render(record, gain=2 * ecg.meta["gain"])
        np.testing.assert_array_equal(twice.signal, 2 * ecg.signal)
        assert twice.meta["st_mv"] == pytest.approx(2 * ecg.meta["st_mv"])
        third = long.render(record, gain=ecg.meta["gain"] / 3)
        np.testing.assert_allclose(third.signal, ecg.signal / 3, rtol=1e-6, atol=1e-6)


def test_moving_the_rate_moves_nothing_else(long):
    for record in long.records[:8]:
        slow, fast = (long.render(record, **{**PLAIN, "heart_rate": rate}) for rate in (56, 74))
        assert {k for k in slow.meta if slow.meta[k] != fast.meta[k]} == {"heart_rate"}
        a, b = measure(slow), measure(fast)
        assert a.pr_ms == pytest.approx(b.pr_ms, abs=8) and a.qrs_ms == pytest.approx(b.qrs_ms, abs=6), record
        assert apart(a.axis_deg, b.axis_deg) < 2, record
        height = np.ptp(a.beat[:, a.onset : a.offset], axis=1)
        np.testing.assert_allclose(np.ptp(b.beat[:, b.onset : b.offset], axis=1), height, rtol=0.1, atol=0.03)


def test_noise_stays_when_other_parameters_move(long):
    def noise(record, kind, **moved):
        with_it, without = (long.render(record, noise=n, **moved).signal.astype(float) for n in (kind, 0))
        return with_it - without

    for record, kind in itertools.product(long.records[:3], (1, 2)):
        usual = noise(record, kind, gain=1)
        assert usual.std() > 0.05
        for moved in (
            {"heart_rate": 130},
            {"atrial_fibrillation": True, "pvc": True},
            {"conduction": 1, "axis_deg": 0},
        ):
            np.testing.assert_allclose(noise(record, kind, gain=1, **moved), usual, atol=1e-5)


def test_noise_is_as_strong_at_every_rate(many):
    def strength(kind, fs):
        band = butter(4, [5, 35], "bandpass", fs=fs, output="sos")
        ecgs = [[many.render(r, fs, noise=n, gain=1).signal for n in (kind, 0)] for r in many.records[:8]]
        return np.std([sosfiltfilt(band, a.astype(float) - b) for a, b in ecgs])

    assert strength(2, 500) == pytest.approx(strength(2, 100), rel=0.05)
    assert strength(1, 500) < 0.05 * strength(2, 500)


def test_another_sampling_rate_gives_the_same_waveform(many):
    for record in many.records[:12]:
        coarse, fine = (many.render(record, fs, noise=0, gain=1) for fs in (100, 500))
        assert fine.fs == 500 and fine.signal.shape == (12, 5000)
        again = fine.resample(100).signal
        # The noise is another one, of 0.008 mV at each electrode, and 100 Hz is too slow for the edges of the QRS.
        assert np.corrcoef(coarse.signal.ravel(), again.ravel())[0, 1] > 0.99, record
        assert np.sqrt(((coarse.signal - again) ** 2).mean(axis=1)).max() < 0.03, record


def test_st_elevation_is_anterior_unless_a_site_is_named(many):
    i = np.flatnonzero((many.parameters.st_site == 0) & (many.parameters.conduction == 0))[0]
    assert many.render(many.records[i], st_mv=0.3).meta["st_site"] == 1
    assert many.render(many.records[i], st_mv=0.3, st_site=2).meta["st_site"] == 2
    assert many.render(many.records[i]).meta["st_site"] == 0


def test_wrong_use_is_named(many):
    with pytest.raises(ValueError, match=r"unknown parameter \['pulse', 'rate'\]: one of \['heart_rate', 'atrial_fib"):
        many.render(many.records[0], rate=80, pulse=1)
    for use in (many.__getitem__, many.render, many.index):
        with pytest.raises(KeyError, match="no record 's9-1' in a cohort of s00000-1 to s01999-2"):
            use("s9-1")
    with pytest.raises(ValueError, match="10 s at 900 beats per minute exceed 96 beats"):
        many.render(many.records[0], heart_rate=900)


# --- the same again ---------------------------------------------------------------------------------------------------


def test_everything_follows_from_the_seed():
    a, b, other = (SyntheticCohort(6, seed=seed) for seed in (7, 7, 8))
    np.testing.assert_array_equal(a.signals(), b.signals())
    assert a.records == b.records == other.records
    assert all(np.abs(x - y).max() > 0.1 for x, y in zip(a.signals(), other.signals()))


@pytest.mark.parametrize("visits", [1, 3])
def test_a_smaller_cohort_is_part_of_a_larger_one(visits):
    small, large = (SyntheticCohort(n, records_per_patient=visits, seed=1) for n in (20, 150))
    assert small.records == large.records[: len(small)]
    assert small.patient_of.items() <= large.patient_of.items()
    for field in dataclasses.fields(Parameters):
        np.testing.assert_array_equal(
            getattr(small.parameters, field.name), getattr(large.parameters, field.name)[: len(small)]
        )
    # More than one batch of recordings on one side, one recording at a time on the other.
    np.testing.assert_allclose(large.signals()[: len(small)], small.signals(), atol=1e-6)
    for i in (0, len(small) - 1):
        np.testing.assert_allclose(large[large.records[i]].signal, small.signals()[i], atol=1e-6)


def test_a_recording_names_its_patient_and_what_is_planted(many):
    assert len(set(many.records)) == len(many) == 4000
    assert many.records[:3] == ("s00000-1", "s00000-2", "s00001-1") and many.patient_of["s00001-1"] == "s00001"
    i = 77
    ecg = many[many.records[i]]
    assert (ecg.record_id, ecg.patient_id, ecg.fs, ecg.leads) == ("s00038-2", "s00038", 100, LEADS)
    assert ecg.meta["simulated"] is True
    planted = {f.name: getattr(many.parameters, f.name)[i] for f in dataclasses.fields(Parameters)}
    assert {k: v for k, v in ecg.meta.items() if k != "simulated"} == planted


def test_a_patient_keeps_his_anatomy(long):
    same = {**PLAIN, "gain": 1, "pr_ms": 150, "qrs_ms": 90, "conduction": 0, "axis_deg": 40}
    beats = np.stack([average(long.render(record, **same).signal) for record in long.records])
    distance = np.sqrt(((beats[:, None] - beats[None]) ** 2).mean(axis=(2, 3)))
    np.fill_diagonal(distance, np.inf)
    nearest = distance.argmin(axis=1)
    assert [i // 2 for i in nearest] == [i // 2 for i in range(len(beats))]


def test_a_cached_cohort_gives_what_is_rendered(tmp_path):
    plain, first, second = (SyntheticCohort(5, seed=2, cache=cache) for cache in (None, tmp_path / "a", tmp_path / "a"))
    assert not (tmp_path / "a").exists()  # written at first use
    for cohort in (first, second):
        for record in cohort.records:
            np.testing.assert_allclose(cohort[record].signal, plain[record].signal, atol=1e-6)
            assert cohort[record].meta == plain[record].meta
    (file,) = (tmp_path / "a").iterdir()
    assert np.load(file).shape == (10, 12, 1000)
    written = file.stat().st_mtime_ns
    SyntheticCohort(5, seed=2, cache=tmp_path / "a").signals()
    assert file.stat().st_mtime_ns == written
    for setting in ({"patients": 6}, {"seed": 3}, {"fs": 50}, {"seconds": 5}, {"records_per_patient": 1}):
        cohort = SyntheticCohort(**{"patients": 5, "seed": 2, "cache": tmp_path / "a", **setting})
        assert cohort.signals().shape == (len(cohort), 12, cohort.fs * cohort.seconds)
    assert len(list((tmp_path / "a").iterdir())) == 6  # none took another's place


def test_a_cache_is_not_used_after_the_version_was_raised(tmp_path, monkeypatch):
    before = SyntheticCohort(3, cache=tmp_path / "cache").signals()
    monkeypatch.setattr(cohort_module, "VERSION", cohort_module.VERSION + 1)
    monkeypatch.setattr(waves, "LEAD_FIELD", 2 * waves.LEAD_FIELD)
    after = SyntheticCohort(3, cache=tmp_path / "cache").signals()
    assert np.abs(before - after).max() > 0.1


def test_an_interrupted_cache_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(file, array):
        file.write(array.tobytes()[:1000])
        raise OSError("no space left on device")

    cohort = SyntheticCohort(3, cache=tmp_path)
    with monkeypatch.context() as disk:
        disk.setattr(np, "save", full)
        with pytest.raises(OSError, match="no space"):
            cohort.signals()
    assert list(tmp_path.iterdir()) == []
    assert cohort.signals().shape == (6, 12, 1000)


# --- nothing else tells of a finding ----------------------------------------------------------------------------------


def test_a_normalised_input_does_not_tell_the_voltage(many):
    extractor = MelpFeatureExtractor()
    for record in many.records[:10]:
        low, normal, high = (
            extractor([many.render(record, gain=gain)], return_tensors="np") for gain in (0.35, 1.0, 2.2)
        )
        # A normalised input is built from millivolts rounded to a nanovolt.
        for other in (low, high):
            np.testing.assert_allclose(other["ecg_values"], normal["ecg_values"], atol=4e-6)
            np.testing.assert_array_equal(other["token_mask"], normal["token_mask"])


def cramers_v(a, b):
    """Association of two categorical variables, and the probability of one as large by chance."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    table = table[table.any(axis=1)][:, table.any(axis=0)]
    if min(table.shape) < 2:  # one excludes the other
        return 0.0, 1.0
    chi2, p = chi2_contingency(table, correction=False)[:2]
    return np.sqrt(chi2 / len(a) / (min(table.shape) - 1)), p


@pytest.fixture(scope="module")
def attributes(many):
    """Each attribute of each recording as a category, and where it is not excluded; from the parameters alone."""
    p = many.parameters
    every = np.ones(len(many), bool)
    rate = np.digitize(p.heart_rate, [60, 100])
    return {
        "rhythm": (p.atrial_fibrillation.astype(int), every),
        "rate": (rate, every),
        "conduction": (p.conduction, every),
        "block": ((p.pr_ms > 200).astype(int), ~p.atrial_fibrillation & (rate != 2)),
        "pvc": (p.pvc.astype(int), every),
        "st": (p.st_site, p.conduction != 1),
        "axis": (np.digitize(p.axis_deg, [-30, 90]), every),
        "voltage": (np.digitize(p.gain, [0.6, 1.5]), every),
        "noise": (p.noise, every),
    }


def test_findings_are_independent(attributes):
    for (name, (a, may_a)), (other, (b, may_b)) in itertools.combinations(attributes.items(), 2):
        may = may_a & may_b
        v, p = cramers_v(a[may], b[may])
        assert v < 0.07 and p > 1e-3, (name, other)


def test_visits_of_a_patient_are_independent(attributes):
    for name, (a, may) in attributes.items():
        both = may[::2] & may[1::2]
        assert cramers_v(a[::2][both], a[1::2][both])[1] > 1e-3, name


def test_values_within_a_category_are_independent(many, attributes):
    p = many.parameters
    values = {
        "heart_rate": (p.heart_rate, attributes["rate"][0]),
        "pr_ms": (p.pr_ms, p.pr_ms > 200),
        "qrs_ms": (p.qrs_ms, p.conduction > 0),
        "st": (p.st_mv / p.gain, p.st_site > 0),  # in proportion to the recording: only millivolts tell the voltage
        "axis_deg": (p.axis_deg, attributes["axis"][0]),
        "gain": (p.gain, attributes["voltage"][0]),
    }
    rest = {}
    for name, (value, of) in values.items():
        rest[name] = (
            value - np.array([value[of == k].mean() for k in np.unique(of)])[np.unique(of, return_inverse=True)[1]]
        )
    for a, b in itertools.combinations(rest, 2):
        assert abs(np.corrcoef(rest[a], rest[b])[0, 1]) < 4 / np.sqrt(len(many)), (a, b)


def test_excluded_findings_do_not_occur(many):
    p, present = many.parameters, many.present
    tachycardia, left = p.heart_rate > 100, p.conduction == 1
    assert not (p.pr_ms > 200)[p.atrial_fibrillation | tachycardia].any()
    assert not p.st_site[left].any() and not p.st_mv[left].any()
    assert ((p.st_mv > 0) == (p.st_site > 0)).all()
    np.testing.assert_array_equal(many.askable("first degree AV block"), ~(p.atrial_fibrillation | tachycardia))
    for site in ST_SITES[1:]:
        np.testing.assert_array_equal(many.askable(site), ~left)
    names = [*RATES[1:], *CONDUCTIONS[1:], *ST_SITES[1:], *AXES[1:], *NOISES[1:], *VOLTAGES[1:]]
    rhythms = ["atrial fibrillation", "first degree AV block", "premature ventricular complexes"]
    for name in [*names, *rhythms]:
        assert not (present(name) & ~many.askable(name)).any(), name
        assert 0.05 < present(name).mean() < 0.5, name
    abnormal = np.any([present(name) for name in [*names, *rhythms] if name not in (*NOISES, *VOLTAGES)], axis=0)
    np.testing.assert_array_equal(present("normal ECG"), ~abnormal)


@pytest.mark.parametrize(
    ("name", "attribute", "ranges"),
    [
        ("heart_rate", "rate", [(40, 54), (62, 92), (108, 140)]),
        ("pr_ms", "block", [(125, 175), (240, 300)]),
        ("axis_deg", "axis", [(-75, -45), (10, 75), (115, 155)]),
        ("gain", "voltage", [(0.3, 0.42), (0.85, 1.15), (1.9, 2.5)]),
    ],
)
def test_categories_are_separated(many, attributes, name, attribute, ranges):
    value, (category, may) = getattr(many.parameters, name), attributes[attribute]
    for k, (low, high) in enumerate(ranges):
        of = value[may & (category == k)]
        assert low <= of.min() and of.max() <= high
        assert np.ptp(of) > 0.95 * (high - low)  # the whole range occurs


def test_wide_complexes_are_those_of_a_block(many):
    p = many.parameters
    assert p.qrs_ms[p.conduction == 0].max() < 110 < 130 < p.qrs_ms[p.conduction > 0].min()
    st = (p.st_mv / p.gain)[p.st_site > 0]
    assert st.min() >= 0.25 and st.max() <= 0.45


def test_categories_are_what_the_parameters_say(many, attributes):
    order = {"rate": [1, 0, 2], "axis": [1, 0, 2], "voltage": [2, 0, 1]}  # ascending values to RATES, AXES, VOLTAGES
    for name, index in many.categories.items():
        np.testing.assert_array_equal(index, np.array(order.get(name, range(3)))[attributes[name][0]], err_msg=name)
    assert many.parameters.take([3, 5]).gain.tolist() == many.parameters.gain[[3, 5]].tolist()
