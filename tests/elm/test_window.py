"""The seconds of a recording that a model reads: how many each extractor reads, which are cut out, and what is said."""

from dataclasses import replace

import numpy as np
import pytest

from data.ecg import LEADS, Ecg
from data.quality import signal_quality
from data.synthetic import SyntheticCohort
from elm.inputs.recordings import as_read
from elm.inputs.window import read_window, seconds_read
from encoders.cnn import CnnConfig
from encoders.contract import simulated
from encoders.ecg_byte import EcgByteFeatureExtractor, EcgByteTokenizer
from encoders.heartlang import HeartLangConfig, QrsTokenizer
from encoders.melp import MelpFeatureExtractor
from encoders.patch import PatchConfig, PatchFeatureExtractor


@pytest.fixture(scope="module")
def ecg():
    """A good recording of 10 s."""
    cohort = SyntheticCohort(4, records_per_patient=1, seed=11, fs=100)
    return next(ecg for ecg in map(cohort.__getitem__, cohort.records) if signal_quality(ecg).grade == "good")


def longer(ecg, seconds, record_id="long"):
    """The recording over and over, another size in every second, so that no two windows are alike."""
    samples = round(seconds * ecg.fs)
    signal = np.resize(ecg.signal.T, (samples, len(ecg.leads))).T
    return replace(ecg, signal=signal * np.linspace(1, 1.5, samples), record_id=record_id, meta={})


def byte(seconds):
    from encoders.ecg_byte.quantizing import EcgByteSettings

    settings = EcgByteSettings(sampling_rate=50, seconds=seconds, max_tokens=20_000)
    tokenizer = EcgByteTokenizer.train([simulated(10, 50, seed) for seed in (1, 2)], 20, settings, progress=False)
    return EcgByteFeatureExtractor(tokenizer.to_dict())


EXTRACTORS = {
    "patches": (lambda: PatchFeatureExtractor.from_config(PatchConfig(seconds=8.0, patch_size=100)), 8.0),
    "cnn": (lambda: PatchFeatureExtractor.from_config(CnnConfig()), 10.0),
    "MELP": (lambda: MelpFeatureExtractor(sampling_rate=100), 10.0),
    "MELP as for CPSC2018": (lambda: MelpFeatureExtractor(sampling_rate=100, layout="cpsc"), 5.0),
    "HeartLang": (lambda: QrsTokenizer.from_config(HeartLangConfig()), 10.0),
    "ECG-Byte": (lambda: byte(6.0), 6.0),
    "ECG-Byte without an end": (lambda: byte(None), np.inf),
}


@pytest.mark.parametrize("name", EXTRACTORS)
def test_an_extractor_reads_as_many_seconds_as_it_says(name):
    make, seconds = EXTRACTORS[name]
    extractor = make()
    assert seconds_read(extractor) == seconds
    whole, read = simulated(14.0, 100, seed=3), min(seconds, 14.0)
    other = simulated(14.0, 100, seed=4).signal
    behind = np.arange(whole.signal.shape[1]) >= round(read * whole.fs)
    changed = replace(whole, signal=np.where(behind, other, whole.signal))
    features = [extractor([e], return_tensors="np") for e in (whole, changed, read_window(changed, seconds)[0])]
    for again in features[1:]:
        for key, values in features[0].items():
            np.testing.assert_allclose(again[key], values, rtol=1e-5, atol=1e-5)
    within = np.arange(whole.signal.shape[1]) < round((read - 1) * whole.fs)
    before = extractor([replace(whole, signal=np.where(within, whole.signal, 1.5 * whole.signal))], return_tensors="np")
    assert any(not np.array_equal(before[key], values) for key, values in features[0].items())


def test_a_corpus_of_longer_recordings_is_mentioned_once(caplog):
    extractor = PatchFeatureExtractor(seconds=7.0)
    for ecg in (simulated(7), simulated(7.02), simulated(3)):
        extractor([ecg])
    assert not caplog.messages
    for seconds in (8, 30, 60):
        extractor([simulated(7), simulated(seconds)])
    assert caplog.messages == ["PatchFeatureExtractor reads the first 7 s of longer recordings"]


def test_a_processor_reads_what_its_extractor_reads(pair):
    assert seconds_read(pair.processor) == seconds_read(pair.processor.feature_extractor) == 10


@pytest.mark.parametrize(
    ("duration", "start", "span"),
    [(30, 0, "10 s of these 30 s: 0 to 10 s"), (30, 20, "10 s of these 30 s: 20 to 30 s"),
     (12.5, 1.25, "10 s of these 12.5 s: 1.25 to 11.25 s"), (86400, 43200, "10 s of these 86400 s: 43200 to 43210 s")],
)  # fmt: skip
def test_the_seconds_are_cut_out_and_named(duration, start, span):
    signal = np.random.default_rng(0).normal(size=(1, round(20 * duration))).astype(np.float32)
    ecg = Ecg(signal, 20, ("II",), "holter")
    part, sentence = read_window(ecg, 10, start)
    assert sentence == f"The model reads {span}."
    np.testing.assert_array_equal(part.signal, signal[:, round(20 * start) : round(20 * start) + 200])
    assert read_window(ecg, 10, start, "the slider chooses others")[1] == (
        f"The model reads {span} (the slider chooses others)."
    )


@pytest.mark.parametrize("duration", [3, 10, 10.02])
def test_a_recording_that_is_read_whole_stays_as_it_is(duration):
    ecg = simulated(duration, 500)
    assert read_window(ecg, 10) == (ecg, "")
    assert read_window(ecg, float("inf")) == (ecg, "")


@pytest.mark.parametrize(
    ("duration", "start", "message"),
    [
        (30, 25, "record 'r' lasts 30 s, which do not hold 10 s from 25 s on: choose a start from 0 to 20 s"),
        (30, -1, "record 'r' lasts 30 s, which do not hold 10 s from -1 s on: choose a start from 0 to 20 s"),
        (30, float("nan"), "from nan s on: choose a start from 0 to 20 s"),
        (7, 2, "record 'r' lasts 7 s, which do not hold 7 s from 2 s on: all of it is read, from 0 s"),
    ],
)
def test_seconds_that_a_recording_does_not_have_are_refused(duration, start, message):
    with pytest.raises(ValueError) as refused:
        read_window(simulated(duration, 100, record_id="r"), 10, start)
    assert message in str(refused.value)


def test_the_quality_is_that_of_the_seconds_that_are_read(ecg):
    """A lead that comes off after 10 s is good to somebody who reads the first ten."""
    long = longer(ecg, 30)
    off = np.where((np.arange(12) == 7)[:, None] & (np.arange(3000) >= 1000), 0.0, long.signal)
    off = replace(long, signal=off, meta={"quality": signal_quality(replace(long, signal=off)), "age": 60.0})
    first, later = (read_window(off, 10, start)[0] for start in (0, 15))
    assert first.meta["quality"].grade == "good" and first.meta["age"] == 60.0
    assert "Flat: V2." in later.meta["quality"].notes
    (line,) = as_read([off], PatchFeatureExtractor())[1]
    assert line == "long: The model reads 10 s of these 30 s: 0 to 10 s."
    (line,) = as_read([off], PatchFeatureExtractor(), [15.0], "--start chooses others")[1]
    assert line == "long: The model reads 10 s of these 30 s: 15 to 25 s (--start chooses others). Flat: V2."


def test_nothing_is_said_of_a_good_recording(ecg):
    assert as_read([ecg], PatchFeatureExtractor()) == ([ecg], [])


def test_what_cannot_be_read_is_refused(ecg):
    long = longer(ecg, 30)
    off = replace(long, signal=np.where(np.arange(3000) < 1500, 0.0, long.signal))
    for starts in ([], [0.0], [5.0]):
        with pytest.raises(ValueError, match="record 'long': no model can read this recording: Flat: I, II, III"):
            as_read([ecg, off], PatchFeatureExtractor(), starts and [0.0, *starts])
    parts, _ = as_read([ecg, off], PatchFeatureExtractor(), [0.0, 15.0])
    assert [part.duration for part in parts] == [10.0, 10.0]
    with pytest.raises(ValueError, match="3 starts for 2 recordings: give one for all, or one for each"):
        as_read([ecg, off], PatchFeatureExtractor(), [0.0, 1.0, 2.0])


def test_two_recordings_that_are_one_are_named(ecg):
    long = longer(ecg, 30)
    stored, copy = replace(long, meta={"file": "a/x.hea"}), replace(long, meta={"file": "b/y.hea"})
    again = replace(stored, meta={"file": "a/../a/x.hea"})
    cabrera = copy.select(["aVL", "I", "-aVR", *(lead for lead in LEADS if lead not in ("aVL", "I", "aVR"))])
    same = {
        (stored, again): "The first and the second recording are the same file.",
        (stored, copy): "The first and the second recording are the same signal.",
        (long, cabrera): "The first and the second recording are the same signal.",
    }
    for pair, sentence in same.items():
        assert as_read(pair, PatchFeatureExtractor())[1][2:] == [sentence]
    assert len(as_read([stored, again], PatchFeatureExtractor(), [0.0, 12.0])[1]) == 2  # a comparison within one
    third = as_read([stored, replace(long, signal=2 * long.signal), copy], PatchFeatureExtractor())[1][3:]
    assert third == ["The first and the third recording are the same signal."]
