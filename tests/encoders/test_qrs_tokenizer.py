"""HeartLang's tokenizer: upstream's sentences bit by bit, and what safe mode makes of what upstream stumbles over."""

import json
import multiprocessing
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import wfdb.processing
from hypothesis import given, settings
from hypothesis import strategies as st

from data.ecg import LEADS, Ecg
from data.readers import read_ecg
from data.signal import bandpass
from data.synthetic import ELECTRODES, SyntheticCohort
from encoders.heartlang import HeartLangConfig
from encoders.heartlang.feature_extraction import QrsTokenizer
from encoders.heartlang.xqrs import find_beats
from eval.speed import heartlang as speed

SHARED = Path(__file__).parents[2].parent / "shared"
GOLDEN = SHARED / "golden" / "heartlang" / "tokenizer"
NAMES = ("words", "in_chan", "in_time")
RAW = {"filter": None}  # what these tests make is at 100 Hz and clean
quick = settings(deadline=None, max_examples=150)


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.is_dir():
        pytest.skip(f"upstream's sentences are not at {GOLDEN}")
    return [Ecg(raw, 100, LEADS, record_id=f"g{i}") for i, raw in enumerate(np.load(GOLDEN / "raw_ecg.npy"))]


@pytest.fixture(scope="module")
def real():
    folder = SHARED / "data" / "wfdb"
    if not folder.is_dir():
        pytest.skip(f"no recordings at {folder}")
    ecgs = [read_ecg(file) for file in sorted(folder.glob("*/*.hea"))[::6] if file.parent.name != "formats"]
    return [ecg.resample(100) for ecg in ecgs if set(LEADS) <= set(ecg.leads) and np.isfinite(ecg.signal).all()]


def beating(times, seconds=10.0, seed=0, noise=0.01, leads=LEADS, record_id="r"):
    """P, QRS and T waves around the times of QRS complexes, another dipole in each; QRS is 0.08 s wide."""
    rng, t = np.random.default_rng(seed), np.arange(round(seconds * 100)) / 100
    signal = noise * rng.normal(size=(len(leads), len(t)))
    for shift, width, size in ((-0.16, 0.03, 0.12), (0.0, 0.02, 1.0), (0.26, 0.05, 0.25)):
        gains = size * rng.choice((-1, 1), size=(len(leads), 1)) * rng.uniform(0.5, 1.5, size=(len(leads), 1))
        signal += gains * sum(np.exp(-(((t - at - shift) / width) ** 2)) for at in times)
    return Ecg(signal, 100, leads, record_id=record_id)


def every(rr, seconds=10.0):
    return np.arange(0.5, seconds - 0.3, rr)


def matched(found, times, within=0.03):
    return len(found) == len(times) and np.abs(np.asarray(found) - times).max() <= within


# --- parity -----------------------------------------------------------------------------------------------------------


def test_sentences_are_upstreams(golden):
    got = QrsTokenizer(mode="parity", **RAW)(golden, return_tensors="np")
    for name in NAMES:
        want = np.load(GOLDEN / f"{name}_12lead.npy")
        assert got[name].dtype == want.dtype and np.array_equal(got[name], want), name


def test_three_leads_keep_their_numbers(golden):
    got = QrsTokenizer(mode="parity", leads=("I", "II", "V2"), **RAW)(golden[:4], return_tensors="np")
    assert set(np.unique(got["in_chan"])) == {0, 1, 2, 8}
    for name in NAMES:
        assert np.array_equal(got[name], np.load(GOLDEN / f"{name}_3lead.npy")), name


def test_the_older_tokenizer_finds_beats_in_each_lead(golden):
    got = QrsTokenizer(mode="parity", detection="per_lead", **RAW)(golden, return_tensors="np")
    for name in NAMES:
        want = np.load(GOLDEN / f"legacy_perlead_{name}.npy")
        rows = [0, 5, 6] if name == "words" else slice(None)
        assert np.array_equal(got[name][rows], want), name


def test_beat_times_are_upstreams_beats(golden):
    want = json.loads((GOLDEN / "qrs_indices.json").read_text())
    for ecg, beats, count in zip(golden, want["qrs_indices_lead_I"], want["n_words_before_cut_or_pad"]):
        sentence = QrsTokenizer(mode="parity", **RAW).sentence(ecg)
        np.testing.assert_allclose(sentence.beats, np.array(beats) / 100)
        assert ("dropped_leads" in sentence.flags) == (count > 256)
        assert ("no_beats" in sentence.flags) == (not beats) and sentence.lead == "I"


@quick
@given(st.integers(0, 2**32), st.integers(60, 1000), st.integers(1, 12))
def test_words_are_those_cut_one_by_one(seed, samples, leads):
    rng = np.random.default_rng(seed)
    beats = np.sort(rng.choice(samples, size=rng.integers(0, min(samples, 45)), replace=False))
    signal = rng.normal(size=(leads, samples))
    tokenizer = QrsTokenizer(mode="parity", leads=LEADS[:leads], **RAW)
    want = speed.looped_words(signal, beats.tolist(), range(1, leads + 1))
    for name, ours, theirs in zip(NAMES, tokenizer.cut(signal, beats), want):
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs), name


def test_a_short_recording_is_read_as_upstream_reads_it_and_a_long_one_to_its_tenth_second(golden):
    tokenizer = QrsTokenizer(mode="parity", **RAW)
    for samples in (20, 61, 250, 733, 999):
        part = golden[2].signal[:, :samples].astype(np.float64)
        beats = find_beats(part[0], 100)
        got = tokenizer.sentence(Ecg(part, 100, LEADS))
        for name, want in zip(NAMES, speed.looped_words(part, beats.tolist(), range(1, 13))):
            assert np.array_equal(vars(got)[name], want)
    longer = replace(golden[1], signal=np.concatenate([golden[1].signal, golden[2].signal], axis=1))
    for settings_ in ({"mode": "parity"}, {}):
        ours, whole = (QrsTokenizer(**settings_, **RAW).sentence(ecg) for ecg in (golden[1], longer))
        assert all(np.array_equal(vars(ours)[name], vars(whole)[name]) for name in NAMES)


# --- XQRS -------------------------------------------------------------------------------------------------------------


def same_beats(signal, fs=100):
    return np.array_equal(find_beats(signal, fs), wfdb.processing.xqrs_detect(signal, fs=fs, verbose=False))


@quick
@given(st.integers(0, 2**32), st.integers(31, 1500), st.sampled_from(["noise", "steps", "walk", "zeros", "beats"]))
def test_xqrs_finds_the_beats_that_wfdbs_own_finds(seed, samples, kind):
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=samples)
    if kind == "steps":
        signal = np.round(signal)
    elif kind == "walk":
        signal = np.cumsum(signal)
    elif kind == "zeros":
        signal[samples // 3 :] = 0
    elif kind == "beats":
        signal = signal * 0.05 + (np.arange(samples) % rng.integers(25, 160) < 3) * rng.choice((-1, 1))
    assert same_beats(signal)


def test_xqrs_agrees_on_real_recordings_and_at_other_rates(golden, real):
    for ecg in golden + real:
        assert all(same_beats(row.astype(np.float64)) for row in ecg.signal[[0, 1, 9]])
    for fs in (250, 360, 500):
        assert same_beats(real[0].resample(fs).signal[1].astype(np.float64), fs)


def test_xqrs_says_nothing_and_takes_what_is_too_short(capsys, recwarn):
    for signal in (np.zeros(1000), np.ones(5), np.r_[np.zeros(500), np.sin(np.arange(40)), np.zeros(460)]):
        find_beats(signal, 100)
    assert not find_beats(np.random.default_rng(0).normal(size=30), 100).size
    assert not capsys.readouterr().out and not recwarn.list


# --- safe mode: beats -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [45, 72, 110, 165])
@pytest.mark.parametrize("seed", range(4))
def test_beats_are_found_where_they_are(rate, seed):
    times = every(60 / rate) + np.random.default_rng(seed).uniform(-0.02, 0.02, len(every(60 / rate)))
    sentence = QrsTokenizer(**RAW).sentence(beating(times, seed=seed))
    assert matched(sentence.beats, times)
    assert sentence.good


def test_beats_of_the_cohort_are_found_and_upstreams_are_worse():
    """By the rate that was planted: of the recordings without ectopic beats, whose beats are evenly spaced."""
    cohort = SyntheticCohort(60, records_per_patient=1, seed=5)
    planted = cohort.parameters
    regular = np.flatnonzero(~planted.pvc & ~planted.atrial_fibrillation)
    errors = {}
    for mode in ("safe", "parity"):
        tokenizer = QrsTokenizer(mode=mode)
        sentences = [tokenizer.sentence(cohort[cohort.records[i]]) for i in regular]
        rates = [60 / np.median(np.diff(sentence.beats)) for sentence in sentences]
        errors[mode] = np.abs(np.array(rates) / planted.heart_rate[regular] - 1) > 0.05
    assert errors["safe"].sum() <= 1 and errors["parity"].sum() > 5, errors


def test_where_xqrs_is_right_words_are_upstreams(golden):
    tokenizer, upstream = QrsTokenizer(**RAW), QrsTokenizer(mode="parity", **RAW)
    ecgs = [*golden, *(beating(every(0.7), seed=seed) for seed in range(8))]
    alike = 0
    for ecg in ecgs:
        ours = tokenizer.sentence(ecg)
        if ours.lead == "I" and not {"corrected", "pauses", "thinned", "no_beats"} & set(ours.flags):
            alike += 1
            want = upstream.sentence(ecg)
            assert all(np.array_equal(vars(ours)[name], vars(want)[name]) for name in NAMES)
    assert alike >= 3


def test_t_waves_are_no_beats():
    t = np.arange(1000) / 100
    times = every(0.9)
    tall = 0.6 * sum(np.exp(-(((t - at - 0.28) / 0.05) ** 2)) for at in times)
    ecg = beating(times)
    ecg = replace(ecg, signal=ecg.signal + np.where(np.arange(12)[:, None] == 0, tall, 0))
    assert len(find_beats(ecg.signal[0].astype(np.float64), 100)) > 1.5 * len(times)
    sentence = QrsTokenizer(**RAW).sentence(ecg)
    assert matched(sentence.beats, times) and "corrected" in sentence.flags


def test_lead_one_off_is_no_matter(golden):
    upstream = QrsTokenizer(mode="parity", **RAW).sentence(golden[6])
    assert upstream.flags == ("flat_leads", "no_beats", "uncovered") and not upstream.in_chan.any()
    sentence = QrsTokenizer().sentence(golden[6])
    assert sentence.lead not in ("", "I") and "flat_leads" in sentence.flags and not sentence.good
    assert (
        len(sentence.beats) == 13 and (np.diff(sentence.beats) > 0.8).all() and (np.diff(sentence.beats) < 0.87).all()
    )
    assert not sentence.words[sentence.in_chan == 1].any(), "the filter makes no signal of a lead that is off"
    assert (np.abs(sentence.words[sentence.in_chan > 1]).max(axis=1) > 0).all()


@pytest.mark.parametrize("noisy", [[0], [0, 1, 2], range(8)])
def test_noise_in_some_leads_is_no_matter(noisy):
    times = every(0.8)
    for seed in range(3):
        ecg = beating(times, seed=seed)
        signal = ecg.signal.copy()
        signal[list(noisy)] = 5 * np.random.default_rng(seed).normal(size=(len(noisy), 1000))
        sentence = QrsTokenizer().sentence(replace(ecg, signal=signal))
        assert sentence.lead not in [LEADS[row] for row in noisy]
        assert matched(sentence.beats, times) and "noisy" not in sentence.flags


def test_a_very_noisy_recording_still_has_its_beats(golden):
    """At -3.5 dB upstream finds 20 beats at 80 per minute, which last 0.75 s each."""
    assert len(QrsTokenizer(mode="parity", **RAW).sentence(golden[5]).beats) == 20
    intervals = np.diff(QrsTokenizer().sentence(golden[5]).beats)
    assert len(intervals) == 13 and np.abs(intervals - 0.75).max() < 0.06


def test_noise_is_said_to_be_noise():
    rng = np.random.default_rng(0)
    for _ in range(10):
        for noise in (rng.normal(size=(12, 1000)), ELECTRODES @ rng.normal(size=(9, 1000))):
            sentence = QrsTokenizer().sentence(Ecg(noise, 100, LEADS))
            assert "noisy" in sentence.flags and not sentence.good
    assert "noisy" in QrsTokenizer(leads=("II",)).sentence(Ecg(rng.normal(size=(1, 1000)), 100, ("II",))).flags


@pytest.mark.parametrize("leads", [3, 12])
def test_leads_that_each_beat_for_themselves_do_not_agree(leads):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        signal = [beating(np.sort(rng.uniform(0, 10, 5)), leads=(lead,)).signal[0] for lead in LEADS[:leads]]
        sentence = QrsTokenizer(leads=LEADS[:leads]).sentence(Ecg(signal, 100, LEADS[:leads]))
        assert "noisy" in sentence.flags


def test_a_constant_lead_has_words_of_zeros_and_no_say():
    ecg = beating(every(0.8))
    signal = ecg.signal.copy()
    signal[[0, 5]] = [[1.5], [-0.3]]
    sentence = QrsTokenizer().sentence(replace(ecg, signal=signal))
    assert matched(sentence.beats, every(0.8)) and "flat_leads" in sentence.flags
    assert not sentence.words[np.isin(sentence.in_chan, (1, 6))].any()


def test_one_lead_is_enough():
    times = every(0.8)
    sentence = QrsTokenizer(leads=("II",)).sentence(beating(times, leads=("II",)))
    assert matched(sentence.beats, times) and sentence.lead == "II" and sentence.good
    assert set(sentence.in_chan.tolist()) == {0, 2}


def test_the_scale_and_an_offset_do_not_matter():
    ecg, tokenizer = beating(every(0.77)), QrsTokenizer()
    beats = tokenizer.sentence(ecg).beats
    for scale, offset in ((1e-3, 0), (1e3, 0), (1, 80)):
        other = tokenizer.sentence(replace(ecg, signal=ecg.signal * scale + offset))
        np.testing.assert_array_equal(other.beats, beats)


# --- safe mode: words -------------------------------------------------------------------------------------------------


def positions(sentence, leads=12):
    """The words of each lead, `[leads, words, 96]`, after a look at their order."""
    count = int((sentence.in_chan > 0).sum())
    assert count == leads * len(sentence.beat_of_word)
    assert not sentence.words[count:].any() and not sentence.in_time[count:].any()
    np.testing.assert_array_equal(
        sentence.in_chan[:count].reshape(leads, -1).T, np.tile(range(1, leads + 1), (count // leads, 1))
    )
    seconds = sentence.in_time[:count].reshape(leads, -1)
    assert (seconds == seconds[0]).all() and (np.diff(seconds[0]) >= 0).all() and seconds.min() >= 1
    return sentence.words[:count].reshape(leads, -1, sentence.words.shape[1])


def test_a_fast_rhythm_is_thinned_evenly_and_keeps_every_lead(golden):
    sentence = QrsTokenizer(**RAW).sentence(golden[3])
    assert len(sentence.beats) == 28 and "thinned" in sentence.flags
    assert positions(sentence).shape[1] == 21
    kept = sentence.beat_of_word
    assert kept[0] == 0 and kept[-1] == 27 and set(np.diff(kept)) == {1, 2}
    gone = np.setdiff1d(np.arange(28), kept)
    assert len(gone) == 7 and np.ptp(np.diff(gone)) <= 1, "evenly"
    full = QrsTokenizer(max_words=336, **RAW).sentence(golden[3])
    assert "thinned" not in full.flags
    np.testing.assert_array_equal(positions(full)[:, kept], positions(sentence))


def test_each_word_is_the_signal_around_its_beat():
    ecg = beating(every(0.7), noise=0.05)
    sentence = QrsTokenizer(**RAW).sentence(ecg)
    words = positions(sentence)
    for k, beat in enumerate(sentence.beat_of_word):
        second = int(sentence.in_time[k]) - 1
        assert abs(sentence.beats[beat] - second - 0.5) <= 0.65
        piece = words[:, k][:, words[:, k].any(axis=0)]
        starts = [
            s for s in range(1000 - piece.shape[1] + 1) if np.array_equal(ecg.signal[:, s : s + piece.shape[1]], piece)
        ]
        assert len(starts) == 1 and starts[0] <= sentence.beats[beat] * 100 <= starts[0] + piece.shape[1]


@pytest.mark.parametrize("ecg", ["flat", "too short for XQRS"])
def test_without_beats_there_are_windows_side_by_side(ecg, golden):
    signal = np.zeros((12, 1000)) if ecg == "flat" else golden[1].signal[:, 200:230]
    sentence = QrsTokenizer(**RAW).sentence(Ecg(signal, 100, LEADS))
    assert "no_beats" in sentence.flags and not sentence.good and not len(sentence.beats)
    assert (sentence.beat_of_word == -1).all() and positions(sentence).shape[1] == (10 if ecg == "flat" else 1)
    if ecg != "flat":
        np.testing.assert_array_equal(positions(sentence)[:, 0, 33:63], signal)
        assert sentence.lead and "flat_leads" not in sentence.flags
    else:
        assert sentence.lead == "" and sentence.in_time[:10].tolist() == list(range(1, 11))


def test_a_pause_has_words_of_its_own_with_what_is_in_it():
    times = np.r_[0.5, 1.3, 2.1, 6.0, 6.8, 7.6, 8.4, 9.2]
    ecg = beating(times)
    signal = ecg.signal.copy()
    signal[:, 250:560] += 0.15 * np.sin(np.arange(310) / 100 * 2 * np.pi * 5)  # flutter
    sentence = QrsTokenizer(**RAW).sentence(replace(ecg, signal=signal))
    assert matched(sentence.beats, times) and "pauses" in sentence.flags and "uncovered" not in sentence.flags
    assert sentence.beat_of_word.tolist() == [0, 1, 2, -1, -1, -1, 3, 4, 5, 6, 7]
    pause = positions(sentence)[:, 3:6]
    stretch = np.concatenate([pause[:, 0], pause[:, 1]], axis=1)
    starts = [s for s in range(700) if np.array_equal(signal[:, s : s + 192], stretch)]
    assert len(starts) == 1 and 210 + 48 - 10 <= starts[0] <= 210 + 48 + 10, "side by side, from the word before on"
    parity = QrsTokenizer(mode="parity", **RAW).sentence(replace(ecg, signal=signal))
    assert (parity.beat_of_word >= 0).all() and "pauses" not in parity.flags


def test_a_slow_rhythm_says_how_much_is_in_no_word(golden):
    assert "uncovered" in QrsTokenizer(**RAW).sentence(golden[0]).flags  # 45 per minute: 28 %
    assert "uncovered" not in QrsTokenizer(**RAW).sentence(golden[1]).flags


def test_an_irregular_rhythm_says_that_a_beat_is_off_the_middle_column():
    off = QrsTokenizer(**RAW).sentence(beating([0.6, 1.4, 2.7, 3.15, 4.0, 4.8, 5.6, 6.4, 7.2, 8.0, 8.8]))
    assert "off_centre" in off.flags
    assert "off_centre" not in QrsTokenizer(**RAW).sentence(beating(every(0.8))).flags


@pytest.mark.parametrize("fs", [100, 500])
def test_a_recording_filled_up_with_zeros_has_no_words_about_them(fs):
    """As in upstream's CPSC2018: five seconds, and zeros for the other half."""
    ecg = beating(every(0.8, 5.0), seconds=5.0).resample(fs).pad(10.0)
    for chosen in (None, (0.67, 40.0)):
        sentence = QrsTokenizer(filter=chosen).sentence(ecg)
        words = positions(sentence)
        assert sentence.in_time.max() <= 6 and "uncovered" in sentence.flags
        assert len(sentence.beats) - len(every(0.8, 5.0)) in (0, 1), "the end of the signal may look like a beat"
        assert (np.abs(words).max(axis=(0, 2)) > 0.05).all()


# --- input ------------------------------------------------------------------------------------------------------------


def test_nan_is_refused_by_record_and_lead_or_repaired_and_said(golden):
    signal = golden[2].signal.copy()
    signal[0, 300] = np.nan  # upstream: a sentence without words
    signal[4, 500:520] = np.inf
    ecg = replace(golden[2], signal=signal)
    for mode in ("safe", "parity"):
        with pytest.raises(ValueError, match=r"record 'g2' .* not finite .* in I, aVL: nan='repair'"):
            QrsTokenizer(mode=mode).sentence(ecg)
    repaired = QrsTokenizer(nan="repair", **RAW).sentence(ecg)
    assert repaired.flags[0] == "repaired" and not repaired.good
    want = golden[2].signal.copy()
    want[0, 300] = (want[0, 299] + want[0, 301]) / 2
    want[4, 500:520] = np.interp(np.arange(500, 520), [499, 520], want[4, [499, 520]])
    np.testing.assert_array_equal(repaired.words, QrsTokenizer(**RAW).sentence(replace(ecg, signal=want)).words)


def test_a_lead_of_nan_is_zeros_after_repair(golden):
    signal = golden[2].signal.copy()
    signal[7] = np.nan
    sentence = QrsTokenizer(nan="repair").sentence(replace(golden[2], signal=signal))
    assert {"repaired", "flat_leads"} <= set(sentence.flags) and len(sentence.beats) == 19
    assert not sentence.words[sentence.in_chan == 8].any() and np.isfinite(sentence.words).all()


def test_a_missing_lead_is_refused():
    with pytest.raises(ValueError, match="record 'r' has no lead V6"):
        QrsTokenizer().sentence(beating(every(0.8), leads=LEADS[:11]))


def test_the_filter_is_upstreams_and_other_rates_are_resampled():
    ecg = beating(every(0.8), noise=0.05)
    drift = replace(ecg, signal=ecg.signal + 3 * np.sin(np.arange(1000) / 500))
    filtered = replace(drift, signal=bandpass(drift.signal, 100, 0.67, 40))
    ours, want = QrsTokenizer().sentence(drift), QrsTokenizer(**RAW).sentence(filtered)
    np.testing.assert_allclose(ours.words, want.words, atol=1e-6)
    assert np.abs(QrsTokenizer(**RAW).sentence(drift).words - want.words).max() > 1
    for fs in (250, 500):
        other = QrsTokenizer().sentence(drift.resample(fs))
        np.testing.assert_array_equal(other.in_chan, ours.in_chan)
        np.testing.assert_allclose(other.beats, ours.beats, atol=0.011)


def test_no_record_depends_on_another_nor_on_chance(golden):
    state = np.random.get_state()[1].copy()
    for tokenizer in (QrsTokenizer(mode="parity", **RAW), QrsTokenizer()):
        batch = tokenizer(golden, return_tensors="np")
        for row, ecg in enumerate(golden):  # upstream cannot take fewer than five
            alone = tokenizer(ecg, return_tensors="np")
            assert all(np.array_equal(batch[name][row], alone[name][0]) for name in batch)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_sentences_come_in_order_whatever_the_number_of_processes():
    ecgs = [beating(every(0.5 + i / 100), record_id=str(i)) for i in range(70)]
    tokenizer = QrsTokenizer()
    one = list(tokenizer.tokenize(iter(ecgs)))
    two = list(tokenizer.tokenize(iter(ecgs), processes=2))
    assert len(one) == len(two) == 70
    for a, b in zip(one, two):
        assert np.array_equal(a.words, b.words) and np.array_equal(a.beats, b.beats) and a.flags == b.flags


@quick
@given(st.integers(0, 2**32), st.integers(1, 1300), st.integers(1, 12), st.sampled_from(["safe", "parity"]))
def test_whatever_is_recorded_becomes_a_sentence(seed, samples, leads, mode):
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(leads, samples)) * 10.0 ** rng.integers(-3, 3)
    for change in rng.permutation(4)[:2]:
        if change == 0:
            signal[:, rng.integers(samples) :] = 0
        elif change == 1:
            signal[rng.integers(leads)] = rng.choice((0.0, 3.0, np.nan))
        elif change == 2:
            signal = np.cumsum(signal, axis=1)
    ecg = Ecg(signal, 100, LEADS[:leads])
    sentence = QrsTokenizer(mode=mode, leads=LEADS[:leads], nan="repair").sentence(ecg)
    assert np.isfinite(sentence.words).all() and (np.diff(sentence.beats) > 0).all()
    if mode == "safe":
        about = sentence.beat_of_word[sentence.beat_of_word >= 0]
        assert positions(sentence, leads).shape[1] > 0 and (np.diff(about) > 0).all()
        assert ("no_beats" in sentence.flags) == (not len(sentence.beats)) and len(about) <= len(sentence.beats)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_bad_record_among_many_is_named(processes):
    bad = beating(every(0.8), record_id="bad")
    ecgs = [beating(every(0.8), record_id="fine"), replace(bad, signal=np.full_like(bad.signal, np.nan))]
    with pytest.raises(ValueError, match="record 'bad'"):
        list(QrsTokenizer().tokenize(ecgs, processes=processes))
    assert not multiprocessing.active_children()


def test_a_tokenizer_and_its_sentences_travel_between_processes():
    ecg = beating(every(0.8))
    tokenizer = QrsTokenizer(leads=LEADS[:6], nan="repair")
    copied = pickle.loads(pickle.dumps(tokenizer))
    sentence = pickle.loads(pickle.dumps(copied.sentence(ecg)))
    np.testing.assert_array_equal(sentence.words, tokenizer.sentence(ecg).words)


# --- layouts and settings ---------------------------------------------------------------------------------------------


def config(output="words", **changed):
    sizes = {"sampling_rate": 100, "seconds": 10.0, "max_words": 256, "word_length": 96, "num_leads": 12}
    return SimpleNamespace(output=output, **(sizes | changed))


@pytest.mark.parametrize(
    ("output", "tokens", "filled"),
    [("words", 257, 229), ("codes", 256, 228), ("beats", 21, 19), ("leads", 12, 12), ("compact", 34, 32)],
)
def test_token_mask_counts_what_the_layout_has(output, tokens, filled, golden):
    features = QrsTokenizer.from_config(config(output), **RAW)(golden[2], return_tensors="np")
    assert set(features) == {*NAMES, "token_mask"}
    mask = features["token_mask"][0]
    assert mask.dtype == bool and mask.shape == (tokens,) and mask.sum() == filled and mask[:filled].all()


@pytest.mark.parametrize(("output", "tokens"), [("words", 257), ("beats", 85), ("leads", 3), ("compact", 89)])
def test_fewer_leads_have_room_for_more_beats(golden, output, tokens):
    leads = ("I", "II", "V2")
    tokenizer = QrsTokenizer.from_config(config(output, num_leads=3), leads=leads, **RAW)
    sentence = tokenizer.sentence(golden[3])
    assert "thinned" not in sentence.flags and len(sentence.beat_of_word) == 28
    assert tokenizer(golden[3])["token_mask"].shape == (1, tokens)
    with pytest.raises(ValueError, match="the encoder takes 12 leads, not I, II, V2: set its num_leads"):
        QrsTokenizer.from_config(config(output), leads=leads)


@pytest.mark.parametrize("output", ["words", "codes", "beats", "leads", "compact"])
@pytest.mark.parametrize("leads", [LEADS, ("I", "II", "V2")])
def test_every_token_says_what_it_is_about(golden, output, leads):
    tokenizer = QrsTokenizer.from_config(config(output, num_leads=len(leads)), leads=leads, **RAW)
    for ecg in (golden[0], golden[3], golden[4]):  # slow, fast, flat
        sentence, spans = tokenizer.sentence(ecg), tokenizer.token_spans(ecg)
        assert len(spans) == tokenizer(ecg)["token_mask"].sum()
        assert all(0 <= span.start < span.end <= 10 for span in spans)
        about = [span for span in spans if (span.start, span.end) != (0, 10)]
        times = [tuple(span) for span in sentence.spans.tolist()]
        assert [(span.start, span.end) for span in about] == {
            "words": times * len(leads), "codes": times * len(leads), "beats": times, "leads": [], "compact": times,
        }[output]  # fmt: skip
        if output in ("words", "codes"):
            assert [span.lead for span in about] == [lead for lead in leads for _ in times]
        for beat, (start, end) in zip(sentence.beat_of_word, times):
            assert beat < 0 or start - 0.07 <= sentence.beats[beat] <= end + 0.07
            assert end - start <= 0.9601


def test_spans_of_leads_with_beats_of_their_own_are_not_kept(golden):
    with pytest.raises(ValueError, match="'per_lead' gives each lead words of its own"):
        QrsTokenizer(mode="parity", detection="per_lead", filter=None).token_spans(golden[0])


@pytest.mark.parametrize("output", ["beats", "leads", "compact"])
def test_parity_mode_is_refused_where_words_are_pooled(output):
    with pytest.raises(ValueError, match=f"output '{output}' needs mode='safe': upstream drops words"):
        QrsTokenizer.from_config(config(output), mode="parity")


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"mode": "exact"}, "mode must be one of safe, parity, got 'exact'"),
        ({"detection": "all"}, "detection must be one of one_lead, per_lead"),
        ({"nan": "drop"}, "nan must be one of refuse, repair"),
        ({"output": "frames"}, "output must be one of words, beats"),
        ({"detection": "per_lead"}, "needs mode='parity'"),
        ({"filter": (40, 0.67)}, "two frequencies below 50 Hz, low and high"),
        ({"filter": (1, 60)}, "two frequencies below 50 Hz"),
        ({"leads": ("I", "i")}, "leads must be 1 to 12 different ones of I, II, .* got I, I"),
        ({"leads": ("-aVR",)}, "leads must be 1 to 12 different ones"),
        ({"leads": ()}, "got none"),
        ({"word_length": 95}, "word_length must be an even number of samples, got 95"),
    ],
)
def test_bad_settings_are_refused(settings_, message):
    with pytest.raises(ValueError, match=message):
        QrsTokenizer(**settings_)


def test_settings_are_saved(tmp_path):
    tokenizer = QrsTokenizer(filter=(1, 30), leads=("v1", "ii"), nan="repair", seconds=5.0, max_words=64)
    tokenizer.save_pretrained(tmp_path)
    again = QrsTokenizer.from_pretrained(tmp_path)
    assert again.to_dict() == tokenizer.to_dict() and again.leads == ["V1", "II"] and again.filter == [1.0, 30.0]
    ecg = beating(every(0.6))
    np.testing.assert_array_equal(again.sentence(ecg).words, tokenizer.sentence(ecg).words)
    QrsTokenizer(**RAW).save_pretrained(tmp_path)
    assert QrsTokenizer.from_pretrained(tmp_path).filter is None
    assert set(QrsTokenizer.own_settings) == {"mode", "filter", "leads", "detection", "nan"}


# --- how long it takes ------------------------------------------------------------------------------------------------


def test_times_stand_beside_upstreams(capsys):
    speed.time_tokenizer(2, 1)
    about, _, *rows = capsys.readouterr().out.splitlines()
    assert about == "tokenizer: 2 ECGs, one thread; medians of 1 repeats"
    times = {row[:28].strip(): row[28:].split() for row in rows}
    for name in ("parity, all", "parity, XQRS", "parity, cutting", "safe, all"):
        here, ratio = float(times[name][0]), float(times[name][2].rstrip("x"))
        baseline = float(times[" ".join(times[name][times[name].index("of") + 1 :])][0])
        assert ratio == pytest.approx(baseline / here, rel=0.03)


def test_the_ways_that_are_timed_make_the_same_sentences():
    ecgs, rows = speed.tokenizer_rows(6)
    for ecg in ecgs:
        want, ours = rows["upstream, all"][0](ecg), rows["parity, all"][0](ecg)
        assert all(np.array_equal(a, vars(ours)[name]) for name, a in zip(NAMES, want))
        assert all(
            np.array_equal(*pair) for pair in zip(rows["upstream, cutting"][0](ecg), rows["parity, cutting"][0](ecg))
        )


def test_the_encoder_that_is_timed_is_compared_with_its_restatement(capsys, monkeypatch):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 4}
    speed.time_encoder(2, 1, HeartLangConfig(**sizes))
    _, likeness, about, _, *rows = capsys.readouterr().out.splitlines()
    assert float(likeness.split()[2]) > 0.99 and about.startswith("encoder: batch 2, one thread")
    assert [row[:28].strip() for row in rows] == ["plain, float32", "ours, float32", "ours, bfloat16"]
    plain = speed.plain_encoder
    monkeypatch.setattr(speed, "plain_encoder", lambda *given: plain(*given) + 0.01)
    with pytest.raises(RuntimeError, match="words differ from those of its restatement by 0.01"):
        speed.time_encoder(2, 1, HeartLangConfig(**sizes))
