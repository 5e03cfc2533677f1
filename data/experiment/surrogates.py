"""What can be put in the place of a recording's signal, in mV: functions from `Ecg` to `Ecg`."""

from collections.abc import Iterable
from dataclasses import replace
from zlib import crc32

import numpy as np

from data.ecg import Ecg, canonical_lead


def rng_of(record_id: str) -> np.random.Generator:
    """A generator that draws the same for a recording on every machine and in every run."""
    return np.random.default_rng(crc32(record_id.encode()))


def flat(ecg: Ecg) -> Ecg:
    """0 mV everywhere."""
    return replace(ecg, signal=np.zeros_like(ecg.signal))


def noise(ecg: Ecg) -> Ecg:
    """White Gaussian noise with the mean and the variance of each lead, drawn for this `record_id`."""
    white = rng_of(ecg.record_id).standard_normal(ecg.signal.shape)
    mean = ecg.signal.mean(axis=1, keepdims=True, dtype=np.float64)
    deviation = ecg.signal.std(axis=1, keepdims=True, dtype=np.float64)
    return replace(ecg, signal=(mean + deviation * white).astype(np.float32))


def phase(ecg: Ecg) -> Ecg:
    """A phase-randomised surrogate (Theiler et al. 1992), drawn for this `record_id`.

    Each lead keeps its amplitude spectrum and mean. At each frequency all leads are turned by the same phase (Prichard
    and Theiler 1994), so that linear relations between leads survive: I + III is still II.
    """
    samples = ecg.signal.shape[1]
    spectrum = np.fft.rfft(ecg.signal.astype(np.float64), axis=1)
    turn = 2 * np.pi * rng_of(ecg.record_id).random(spectrum.shape[1:])
    turn[0] = 0  # the mean
    if samples % 2 == 0:
        turn[-1] = 0  # the highest frequency has a sign, not a phase
    surrogate = np.fft.irfft(spectrum * np.exp(1j * turn), samples, axis=1)
    return replace(ecg, signal=surrogate.astype(np.float32))


def reverse(ecg: Ecg) -> Ecg:
    """The recording backwards."""
    return replace(ecg, signal=ecg.signal[:, ::-1])


def drop(ecg: Ecg, leads: Iterable[str]) -> Ecg:
    """0 mV in these leads, in any spelling; those the recording does not have are absent anyway.

    Raises:
        ValueError: A name is not a lead.
    """
    dropped = {canonical_lead(lead) for lead in leads}
    shown = np.array([lead.removeprefix("-") not in dropped for lead in ecg.leads])
    return replace(ecg, signal=np.where(shown[:, None], ecg.signal, 0))
