"""What is said of a signal: what no model should be asked about, what may mislead, and what is odd but right."""

from pathlib import Path

import numpy as np
import pytest

from data.ecg import LEADS, Ecg
from data.quality import SignalQuality, require_readable, signal_quality
from data.readers import read_ecg
from data.synthetic import SyntheticCohort

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"
FS = 500
ALL = ", ".join(LEADS)


@pytest.fixture(scope="module")
def ecg() -> Ecg:
    cohort = SyntheticCohort(60, records_per_patient=1, seed=11, fs=FS)
    return cohort[cohort.records[0]]


def judged(signal: np.ndarray, fs: float = FS, leads=LEADS, **meta) -> SignalQuality:
    return signal_quality(Ecg(signal, fs, tuple(leads), record_id="r", meta=meta))


def seconds(count: float = 10, fs: float = FS) -> np.ndarray:
    return np.arange(round(count * fs)) / fs


def noise(seed: int = 0, shape=(12, 10 * FS)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def waves(row: np.ndarray) -> np.ndarray:
    """Twelve leads of one body from one wave: the limb leads keep the laws."""
    one, two = 0.6 * row, row
    limbs = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    return np.stack([*limbs, *(size * row for size in (-0.8, -0.3, 0.5, 1.0, 1.2, 0.9))])


def test_a_good_signal_is_good(ecg):
    assert signal_quality(ecg) == SignalQuality("good", (), LEADS)
    assert str(signal_quality(ecg)) == "Nothing is wrong with the signal."
    assert require_readable(ecg).grade == "good"


@pytest.mark.parametrize("fs", [50, 100, 128, 250, 360, 1000])
def test_the_sampling_rate_is_no_fault(ecg, fs):
    assert signal_quality(ecg.resample(fs)) == SignalQuality("good", (), LEADS)
    assert judged(noise(shape=(12, 10 * fs)), fs) == SignalQuality("unreadable", (f"Noise alone: {ALL}.",))


UNREADABLE = {
    "zeros": (lambda s: 0 * s, f"Flat: {ALL}."),
    "constant": (lambda s: 0 * s + np.arange(12)[:, None], f"Flat: {ALL}."),
    "a few microvolts": (lambda s: np.clip(s, -0.004, 0.004), f"Flat: {ALL}."),
    "white noise": (lambda s: 0.5 * noise(), f"Noise alone: {ALL}."),
    "little noise": (lambda s: 0.02 * noise(3), f"Noise alone: {ALL}."),
    "noise on an offset": (lambda s: 5 + 0.1 * noise(4), f"Noise alone: {ALL}."),
    "uniform noise": (lambda s: np.random.default_rng(5).uniform(-1, 1, s.shape), f"Noise alone: {ALL}."),
    "hum": (lambda s: waves(np.sin(2 * np.pi * 50 * seconds())), f"Only drift or hum: {ALL}."),
    "hum of 60 Hz": (lambda s: waves(0.3 * np.sin(2 * np.pi * 60 * seconds() + 1)), f"Only drift or hum: {ALL}."),
    "hum and noise": (lambda s: waves(np.sin(2 * np.pi * 50 * seconds())) + 0.05 * noise(), f"Noise alone: {ALL}."),
    "drift": (lambda s: waves(2 * np.sin(2 * np.pi * 0.2 * seconds())), f"Only drift or hum: {ALL}."),
    "a slope": (lambda s: waves(np.linspace(0, 3, s.shape[1])), f"Only drift or hum: {ALL}."),
    "saturated": (lambda s: np.sign(s - np.median(s)) * 5, f"Saturated: {ALL}."),
    "too short": (lambda s: s[:, :499], "Only 0.998 s long: it takes 1 s to read one."),
    "microvolts": (
        lambda s: s * 1000,
        "mV, an ECG less than 20 mV: check units, gain and byte order (microvolts called",
    ),
    "one gain": (lambda s: s * np.array([1] * 8 + [1000] + [1] * 3)[:, None], "Lead V3 spans"),
    "byte order": (lambda s: (s * 1000).astype("<i2").byteswap().astype(float) / 1000, "mV, an ECG less than 20 mV"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_no_model_should_be_asked_about(ecg, kind):
    make, sentence = UNREADABLE[kind]
    quality = judged(make(ecg.signal.astype(float)))
    assert quality.grade == "unreadable" and quality.readable == () and sentence in str(quality)
    with pytest.raises(ValueError, match="record 'r': no model can read this recording: ") as caught:
        require_readable(Ecg(make(ecg.signal.astype(float)), FS, LEADS, record_id="r"))
    assert sentence in str(caught.value)


def exchanged(one: str, other: str):
    order = list(range(12))
    order[LEADS.index(one)], order[LEADS.index(other)] = LEADS.index(other), LEADS.index(one)
    return lambda s: s[order]


def scaled(lead: str, factor: float):
    return lambda s: s * np.array([factor if name == lead else 1.0 for name in LEADS])[:, None]


def put(lead: str, change):
    def changed(s: np.ndarray) -> np.ndarray:
        s = s.copy()
        s[LEADS.index(lead)] = change(s[LEADS.index(lead)])
        return s

    return changed


POOR = {
    "one flat lead": (put("V1", lambda row: 0 * row), ["Flat: V1."], 11),
    "a gain off by 1000": (scaled("V2", 0.001), ["Flat: V2."], 11),
    "one lead of noise": (put("V6", lambda row: 0.3 * noise(1)[0]), ["Noise alone: V6."], 11),
    "one lead of hum": (put("V4", lambda row: np.sin(2 * np.pi * 50 * seconds())), ["Only drift or hum: V4."], 11),
    "one stuck lead": (put("V2", lambda row: np.clip(row, -9, np.median(row))), ["Saturated: V2."], 11),
    "cut off": (
        put("V5", lambda row: np.clip(row, None, 0.25 * row.max())),
        ["Cut off at the top or the bottom: V5. Amplitudes are too small there."],
        12,
    ),
    "a spike": (
        put("V3", lambda row: np.where(np.arange(row.size) == 999, 80.0, row)),
        ["Spikes that no heart makes: V3 (80"],
        12,
    ),
    "II and III": (
        exchanged("II", "III"),
        ["The limb leads contradict each other: II is", "II and III look interchanged."],
        12,
    ),
    "aVL and aVF": (exchanged("aVL", "aVF"), ["aVL is not I - II / 2", "aVL and aVF look interchanged."], 12),
    "I upside down": (scaled("I", -1), ["The limb leads contradict each other: ", "I looks upside down."], 12),
    "aVR upside down": (scaled("aVR", -1), ["aVR is not -(I + II) / 2. aVR looks upside down."], 12),
    "one gain": (scaled("I", 5), ["II is not I + III", "A name, the order or a gain is wrong."], 12),
}


@pytest.mark.parametrize("kind", POOR)
def test_what_may_mislead_is_said(ecg, kind):
    make, sentences, readable = POOR[kind]
    quality = judged(make(ecg.signal.astype(float)))
    assert quality.grade == "poor" and len(quality.readable) == readable and len(quality.notes) == 1
    assert all(sentence in str(quality) for sentence in sentences), str(quality)


def ventricular_fibrillation() -> np.ndarray:
    t = seconds()
    parts = [
        np.sin(2 * np.pi * f * t + p) * (1 + 0.4 * np.sin(2 * np.pi * g * t))
        for f, p, g in ((5, 0, 0.3), (6.2, 1, 0.2))
    ]
    return waves(0.3 * parts[0] + 0.15 * parts[1])


GOOD = {
    "fibrillating ventricles": lambda s: ventricular_fibrillation(),
    "flutter of 4 Hz": lambda s: waves(0.2 * np.sin(2 * np.pi * 4 * seconds())),
    "asystole but for a second": lambda s: np.where(np.arange(s.shape[1]) // FS == 4, s, np.median(s, axis=1)[:, None]),
    "a low voltage": lambda s: 0.15 * s,
    "an offset": lambda s: s + 3 * np.arange(12)[:, None],
    "drift": lambda s: s + waves(1.5 * np.sin(2 * np.pi * 0.15 * seconds())),
    "hum": lambda s: s + waves(0.1 * np.sin(2 * np.pi * 50 * seconds())),
    "noise, other in each lead": lambda s: s + 0.02 * noise(),
    "whole microvolts": lambda s: np.rint(s * 200) / 200,
    "a pacemaker": lambda s: s + waves(4.0 * (np.arange(s.shape[1]) % 400 < 2)),
    "tall": lambda s: 4 * s,
}


@pytest.mark.parametrize("kind", GOOD)
def test_what_is_odd_but_right(ecg, kind):
    assert judged(GOOD[kind](ecg.signal.astype(float))) == SignalQuality("good", (), LEADS)


def test_the_length_and_what_was_computed_are_said_and_harmless(ecg):
    assert signal_quality(ecg.crop(1, 7)) == SignalQuality("good", ("Only 7 s long.",), LEADS)
    assert signal_quality(ecg.crop(1, 1)).grade == "good"
    quality = judged(ecg.signal, derived_leads=("III", "aVR"), repaired_samples={"V1": 50})
    assert quality.grade == "good" and quality.notes == (
        "Computed from the other limb leads: III, aVR.",
        "Missing samples, bridged by a straight line: V1 (0.1 s).",
    )


def test_long_gaps_and_missing_leads_are_said(ecg):
    quality = judged(ecg.signal, repaired_samples={"V1": 50, "V2": 1000})
    assert quality.grade == "poor" and quality.notes == (
        "Missing samples, bridged by a straight line: V2 (2 s).",
        "Missing samples, bridged by a straight line: V1 (0.1 s).",
    )
    limbs = ecg.select(LEADS[:6])
    assert signal_quality(limbs) == SignalQuality("poor", ("Not recorded: V1, V2, V3, V4, V5, V6.",), LEADS[:6])
    assert signal_quality(ecg.select(["V2"])).readable == ("V2",)
    left = judged(ecg.signal[1:], leads=LEADS[1:], absent_leads=("I",))
    assert left == SignalQuality("poor", ("Mostly missing, and left out: I.",), LEADS[1:])


def test_leads_in_cabreras_order_and_sense_are_right(ecg):
    cabrera = ("aVL", "I", "-aVR", "II", "aVF", "III", *LEADS[6:])
    assert signal_quality(ecg.select(cabrera)) == SignalQuality("good", (), cabrera)
    wrong = Ecg(ecg.select(cabrera).signal, FS, tuple(lead.removeprefix("-") for lead in cabrera))
    assert "aVR looks upside down." in str(signal_quality(wrong))


def test_a_recording_is_judged_as_it_is_read(ecg, tmp_path):
    signal = ecg.signal.copy()
    signal[7], signal[8, 100:140], signal[9, :3000] = 0.2, np.nan, np.nan
    np.save(tmp_path / "a.npy", signal)
    quality = read_ecg(tmp_path / "a.npy", fs=FS, units="mV", leads=LEADS, nan="interpolate").meta["quality"]
    assert quality == SignalQuality(
        "poor",
        ("Mostly missing, and left out: V4.", "Flat: V2.", "Missing samples, bridged by a straight line: V3 (0.08 s)."),
        tuple(lead for lead in LEADS if lead not in ("V2", "V4")),
    )


def test_real_recordings_are_readable_and_their_limb_leads_agree():
    paths = [path for path in REAL.glob("wfdb/*/*.hea") if path.parent.name != "formats"]
    if not paths:
        pytest.skip(f"no real records: {REAL / 'wfdb'} is absent")
    notes = {path.stem: read_ecg(path).meta["quality"] for path in paths}
    assert {record for record, quality in notes.items() if quality.grade != "good"} == {"JS20008"}
    assert notes["JS20008"].notes[0].startswith("Flat: ")


def test_a_lead_that_shows_little_is_not_noise_alone(ecg):
    """Across the heart's axis: all leads have the same noise, and this one no more than that."""
    same = noise(1, ecg.signal.shape) * 0.03 / noise(1, ecg.signal.shape).std()
    signal = ecg.signal + same
    signal[8] = same[8]
    assert not any("Noise" in note for note in judged(signal, ecg.fs).notes)
    signal[8] *= 5
    assert "Noise alone: V3." in judged(signal, ecg.fs).notes
