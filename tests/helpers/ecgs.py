"""Recordings to feed to encoders and models."""

import numpy as np

from data.ecg import LEADS, Ecg


def make_ecg(seed: int = 0, seconds: float = 10.0, fs: float = 100, record_id: str = "") -> Ecg:
    """Pulses at 72 per minute, the same in time whatever the rate and length; `seed` chooses their sizes."""
    gains = np.random.default_rng(seed).normal(size=(12, 1))
    phase = (np.arange(round(seconds * fs)) / fs * 1.2) % 1.0
    pulses = np.exp(-(((phase - 0.3) / 0.03) ** 2)) + 0.3 * np.exp(-(((phase - 0.6) / 0.08) ** 2))
    return Ecg(gains * pulses, fs, LEADS, record_id=record_id or f"r{seed}")
