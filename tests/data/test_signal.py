"""Resampling: what must survive it and what must not."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import butter, filtfilt, resample_poly

from data.signal import bandpass, resample

RATES = st.sampled_from([97, 100, 125, 128, 200, 240, 250, 257, 300, 360, 400, 500, 512, 1000])
quick = settings(deadline=None, max_examples=40)


def sine(freq: float, fs: int, seconds: int, phase: float = 0.0) -> np.ndarray:
    return np.sin(2 * np.pi * freq * np.arange(seconds * fs) / fs + phase).astype(np.float32)


@quick
@given(RATES, RATES, st.integers(1, 3000))
def test_keeps_duration_to_one_sample(fs_in, fs_out, samples):
    out = resample(np.ones((2, samples), np.float32), fs_in, fs_out)
    assert out.dtype == np.float32
    assert out.shape == (2, max(1, round(samples * fs_out / fs_in)))


@quick
@given(RATES, RATES, st.floats(0.05, 0.8), st.floats(0, 6.28))
def test_sine_in_band_keeps_amplitude_and_phase(fs_in, fs_out, part, phase):
    freq = part * min(fs_in, fs_out) / 2
    seconds = max(4, round(20 / freq))
    out = resample(sine(freq, fs_in, seconds, phase), fs_in, fs_out)
    middle = slice(out.size // 4, -out.size // 4)  # the ends see what lies outside the recording
    np.testing.assert_allclose(out[middle], sine(freq, fs_out, seconds, phase)[middle], atol=5e-3)


@pytest.mark.parametrize(("fs_in", "fs_out"), [(500, 100), (1000, 250), (500, 257), (400, 100)])
def test_tone_above_the_new_nyquist_is_gone(fs_in, fs_out):
    for freq in np.linspace(1.25 * fs_out / 2, 0.95 * fs_in / 2, 7):
        out = resample(sine(freq, fs_in, 10), fs_in, fs_out)
        assert np.abs(out[out.size // 10 : -out.size // 10]).max() < 0.01


@quick
@given(RATES, RATES, st.floats(-300, 300), st.floats(-20, 20))
def test_offset_and_drift_pass_unchanged_to_the_very_ends(fs_in, fs_out, offset, drift):
    t_in, t_out = np.arange(2 * fs_in) / fs_in, np.arange(2 * fs_out) / fs_out
    out = resample((offset + drift * t_in).astype(np.float32), fs_in, fs_out)
    np.testing.assert_allclose(out, offset + drift * t_out, atol=1e-4)


@quick
@given(RATES, RATES)
def test_offset_does_not_change_what_happens_to_the_rest(fs_in, fs_out):
    signal = np.random.default_rng(0).standard_normal((3, 2 * fs_in)).astype(np.float32)
    lifted = resample(signal + np.float32(50), fs_in, fs_out) - 50
    np.testing.assert_allclose(lifted, resample(signal, fs_in, fs_out), atol=1e-4)


def test_same_rate_is_identity_and_integers_are_taken():
    signal = np.arange(24, dtype=np.int16).reshape(2, 12)
    np.testing.assert_array_equal(resample(signal, 250, 250), signal)
    np.testing.assert_allclose(resample(signal, 100, 200)[:, ::2], signal, atol=1e-3)


@pytest.mark.parametrize(("fs_in", "fs_out"), [(0, 100), (500, -1), (500, float("nan")), (float("inf"), 100)])
def test_impossible_rates_are_refused(fs_in, fs_out):
    with pytest.raises(ValueError, match="must be positive"):
        resample(np.ones(10, np.float32), fs_in, fs_out)


@pytest.mark.parametrize("fs_in", [499.99, 499.999, 500.01, 250.003, 399.98, 360.0007, 1024.5902, 128.37])
@pytest.mark.parametrize("fs_out", [100, 500])
@pytest.mark.parametrize("seconds", [2, 10, 120])
def test_a_measured_rate_keeps_every_wave_within_half_a_sample(fs_in, fs_out, seconds):
    times = np.arange(round(seconds * fs_in)) / fs_in
    out = resample(np.sin(2 * np.pi * 2 * times).astype(np.float32), fs_in, fs_out)
    assert abs(out.size / fs_out - seconds) <= 2 / min(fs_in, fs_out)
    middle = slice(fs_out // 2, -fs_out // 2)
    late = 2 * np.pi * 2 * 0.51 / fs_out  # what half a sample changes, at most
    np.testing.assert_allclose(
        out[middle], np.sin(2 * np.pi * 2 * np.arange(out.size) / fs_out)[middle], atol=late + 5e-3
    )


@pytest.mark.slow
@quick
@given(st.floats(30, 2000), st.floats(30, 2000), st.integers(1, 500))
def test_no_pair_of_rates_is_refused(fs_in, fs_out, samples):
    out = resample(np.ones((2, samples), np.float32), fs_in, fs_out)
    assert out.shape[0] == 2 and abs(out.shape[1] - samples * fs_out / fs_in) <= 1
    np.testing.assert_allclose(out, 1, atol=1e-6)


def test_at_least_one_sample_comes_out():
    assert resample(np.ones(10, np.float32), 1.0, 1e-7).tolist() == [1]


def test_rates_of_simple_ratios_are_resampled_as_they_always_were():
    signal = np.random.default_rng(0).normal(size=(3, 1000)).astype(np.float32)
    for fs_in, fs_out in ((500, 100), (360, 100), (128, 100), (257, 250), (62.4725, 100), (249.89, 250)):
        ratio = Fraction(fs_out / fs_in).limit_denominator(10_000)
        line = signal[:, :1] + (signal[:, -1:].astype(float) - signal[:, :1]) / 999 * np.arange(1000)
        level = resample_poly(signal - line, ratio.numerator, ratio.denominator, axis=-1)
        out = resample(signal, fs_in, fs_out)
        places = np.arange(out.shape[1]) * fs_in / fs_out
        line = signal[:, :1] + (signal[:, -1:].astype(float) - signal[:, :1]) / 999 * places
        np.testing.assert_allclose(out, level[:, : out.shape[1]] + line, atol=1e-6)


def test_bandpass_keeps_the_band_without_delay_and_takes_away_what_is_outside():
    for freq, size in ((0.1, 0.0), (0.67, 0.5), (5.0, 1.0), (20.0, 1.0), (40.0, 0.5), (49.0, 0.0)):
        wave = sine(freq, 100, 40)
        middle = slice(1500, -1500)
        np.testing.assert_allclose(bandpass(wave, 100, 0.67, 40)[middle], size * wave[middle], atol=0.01)


def test_bandpass_is_that_of_upstreams_pipelines():
    signal = np.cumsum(np.random.default_rng(0).normal(size=(12, 1000)), axis=1)
    want = filtfilt(*butter(5, [0.67, 40], "bandpass", fs=100), signal)
    np.testing.assert_allclose(bandpass(signal, 100, 0.67, 40), want, atol=1e-7)


@pytest.mark.parametrize("samples", [1, 2, 30])
def test_bandpass_takes_a_recording_shorter_than_its_edges(samples):
    out = bandpass(np.ones((3, samples), np.float32), 100, 0.67, 40)
    assert out.shape == (3, samples) and out.dtype == np.float64 and np.abs(out).max() < 1e-6


@pytest.mark.parametrize(("low", "high"), [(40, 0.67), (0, 40), (1, 50), (1, float("nan"))])
def test_a_band_that_is_none_is_refused(low, high):
    with pytest.raises(ValueError, match="at 100 Hz needs 0 < low < high < 50 Hz"):
        bandpass(np.ones(100), 100, low, high)
