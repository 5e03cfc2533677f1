"""Waveforms of simulated recordings: beats, their waves as dipoles, and the noise of electrodes.

A beat is a sum of cosine bumps with compact support, each a 3-D dipole in mV (x to the left, y to the feet, z to the
back). Leads are a lead field times that dipole: Einthoven's equilateral triangle in the frontal plane, so that
I + III = II and the electrical axis hold exactly, and Dower's rows for V1-V6 (Dower, Machado, Osborne, Clin Cardiol
1980).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.ecg import LEADS
from data.synthetic.parameters import Array, Parameters

_SQRT3_2 = np.sqrt(3) / 2
# Frontal leads of the equilateral triangle, then Dower's V1-V6. Columns x, y, z.
LEAD_FIELD = np.array(
    [
        [1.0, 0.0, 0.0],
        [0.5, _SQRT3_2, 0.0],
        [-0.5, _SQRT3_2, 0.0],
        [-0.75, -_SQRT3_2 / 2, 0.0],
        [0.75, -_SQRT3_2 / 2, 0.0],
        [0.0, _SQRT3_2, 0.0],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)
# Electrodes RA, LA, LL, C1-C6 to leads: noise arises at electrodes, so that it too keeps Einthoven's law.
_LIMB = np.array(
    [[-1, 1, 0], [-1, 0, 1], [0, -1, 1], [1, -0.5, -0.5], [-0.5, 1, -0.5], [-0.5, -0.5, 1]]  # I II III aVR aVL aVF
)
ELECTRODES = np.block([[_LIMB, np.zeros((6, 6))], [np.full((6, 3), -1 / 3), np.eye(6)]])

ST_LEAD = (None, "V3", "aVF")  # where the level of an anterior and an inferior elevation is stated
_ST_DIRECTION = np.array([[0, 0, 0], [0.06, 0.0, -0.26], [-0.10, 0.28, 0.03]])
MAX_BEATS = 96  # drawn per recording whatever its rate, so that moving the rate moves nothing else


@dataclass(frozen=True)
class Beats:
    """The beats of some recordings."""

    onset: Array  # of QRS, in s `[n, beats]`, starting before 0
    is_pvc: Array  # which beats are ectopic, bool `[n, beats]`

    def around(self, t: Array) -> tuple[list[Array], list[Array]]:
        """Seconds since the last beat begun at each time, the one before, the one after; whether each is ectopic."""
        begun = np.stack([np.searchsorted(onset, t, side="right") - 1 for onset in self.onset])  # [n, T]
        row = np.arange(len(begun))[:, None]
        since = [(t - self.onset[row, begun + step]).astype(np.float32) for step in (0, -1, 1)]
        return since, [self.is_pvc[row, begun + step] for step in (0, -1, 1)]


def draw_anatomy(draws: Sequence[np.random.Generator]) -> dict[str, Array]:
    """What a patient keeps over all recordings: lead gains, and the size and duration of the waves."""
    rows = [
        {
            "lead_gain": np.r_[np.ones(6), rng.normal(1, 0.08, 6)],  # precordial electrodes lie a little off
            "size": rng.normal(1, 0.12, (6, 3)),  # of P, Q, R, S, T and ectopic dipoles, per axis
            "p_ms": rng.uniform(85, 105),
            "qt": rng.uniform(0.385, 0.415),  # Bazett's constant, s
            "ectopic": rng.integers(2),
        }
        for rng in draws
    ]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def draw_beats(p: Parameters, draws: Sequence[np.random.Generator]) -> Beats:
    """Beats whose mean RR interval is exactly 60 / heart_rate.

    An ectopic beat comes early and is followed by a full compensatory pause.
    """
    jitter = np.stack([rng.standard_normal(MAX_BEATS) for rng in draws])
    phase, breath, every, first = _columns(
        (rng.random(), rng.uniform(0.2, 0.35), rng.integers(3, 6), rng.integers(3)) for rng in draws
    )
    k = np.arange(MAX_BEATS)[None]
    sinus = 1 + 0.02 * np.sin(2 * np.pi * breath * k) + 0.008 * jitter
    fibrillating = np.clip(np.exp(0.24 * jitter), 0.6, 1.7)
    rr = np.where(p.atrial_fibrillation[:, None], fibrillating, sinus)
    rr *= 60 / p.heart_rate[:, None] / rr.mean(axis=1, keepdims=True)
    is_pvc = p.pvc[:, None] & ((k + first) % every == 0) & (k > 0)
    pause = np.zeros(is_pvc.shape, bool)
    pause[:, 1:] = is_pvc[:, :-1]
    rr = rr * np.where(is_pvc, 0.62, np.where(pause, 1.38, 1.0))
    onset = np.cumsum(rr, axis=1) - rr[:, :1] - (1 + phase) * 60 / p.heart_rate[:, None]
    return Beats(onset, is_pvc)


def draw_waves(
    p: Parameters, anatomy: dict[str, Array], t: Array, beats: Beats, draws: Sequence[np.random.Generator]
) -> tuple[Array, Array]:
    """Time courses float32 `[n, waves, T]` and dipoles in mV `[n, waves, 3]` of all waves, at unit gain."""
    (dt, dt_last, dt_next), (ectopic, ectopic_last, ectopic_next) = beats.around(t)
    qrs, pr = (x[:, None].astype(np.float32) / 1000 for x in (p.qrs_ms, p.pr_ms))
    rr = (60 / p.heart_rate)[:, None].astype(np.float32)
    # Bazett; a block adds its delay.
    qt = anatomy["qt"][:, None].astype(np.float32) * np.sqrt(rr) + np.maximum(qrs - 0.09, 0)
    t_start = qrs + np.maximum(0.065, 0.3 * (qt - qrs))
    p_length = anatomy["p_ms"][:, None].astype(np.float32) / 1000
    size = anatomy["size"]  # [n, 6, 3]

    has_p = ~p.atrial_fibrillation[:, None]
    waves = [(_bump(dt_next, -pr, p_length - pr) * ~ectopic_next * has_p, size[:, 0] * [0.05, 0.13, -0.015])]

    spans, vectors = _qrs(p, size)
    for k in range(3):
        waves.append((_bump(dt, spans[:, k, :1] * qrs, spans[:, k, 1:] * qrs) * ~ectopic, vectors[:, k]))

    # ST: level from 20 ms after the J point, fading into the T wave.
    rise, fall = np.clip((dt - qrs) / 0.02, 0, 1), np.clip((dt - t_start - 0.02) / (qt - t_start), 0, 1)
    waves.append((rise * (0.5 + 0.5 * np.cos(np.pi * fall)) * ~ectopic, _st_dipole(p, anatomy["lead_gain"])))

    repolarisation = np.array([[0.3, 0.22, -0.1], [-0.3, -0.1, -0.4], [0.28, 0.15, 0.2]])[p.conduction] * size[:, 4]
    t_wave = _bump(dt, t_start, qt) * ~ectopic + _bump(dt_last, t_start, qt) * ~ectopic_last
    waves.append((t_wave, repolarisation))

    # Ectopic beats: wide, from one focus, with a T wave of the other sign.
    focus = np.array([[-0.6, 0.3, -0.9], [0.7, -0.9, 0.9]])[anatomy["ectopic"]] * size[:, 5]
    second = np.array([[0.1, 0.5, -0.6], [0.5, -0.4, 0.8]])[anatomy["ectopic"]] * size[:, 5]
    waves.append((_fixed_bump(dt, 0.0, 0.11) * ectopic, 1.4 * focus))
    waves.append((_fixed_bump(dt, 0.06, 0.16) * ectopic, 1.1 * second))
    ectopic_t = _fixed_bump(dt, 0.2, 0.42) * ectopic + _fixed_bump(dt_last, 0.2, 0.42) * ectopic_last
    waves.append((ectopic_t, -0.45 * focus))

    waves.append(_fibrillation(p, t, draws))
    shape = (len(draws), 3)
    courses, dipoles = zip(*((course.astype(np.float32), np.broadcast_to(d, shape)) for course, d in waves))
    return np.stack(courses, axis=1), np.stack(dipoles, axis=1)


def _qrs(p: Parameters, size: Array) -> tuple[Array, Array]:
    """Start and end of the three parts of QRS as fractions of its duration `[n, 3, 2]`, and their dipoles."""
    # For normal conduction, left and right bundle branch block.
    spans = np.array(
        [[[0, 0.35], [0.15, 0.75], [0.55, 1]], [[0, 0.55], [0.35, 1], [0.3, 0.8]], [[0, 0.2], [0.08, 0.45], [0.4, 1]]]
    )[p.conduction].astype(np.float32)
    loops = np.array(
        [
            [[-0.10, -0.10, -0.25], [1.0, 0.8, 0.2], [-0.2, -0.2, 0.45]],
            [[0.8, 0.5, 0.9], [0.8, 0.4, 0.9], [0.3, 0.1, 0.4]],
            [[-0.10, -0.10, -0.25], [1.0, 0.9, 0.3], [-0.5, -0.1, -0.75]],
        ]
    )
    vectors = loops[p.conduction] * size[:, 1:4]
    # The electrical axis is the direction of the net area: turn the loop in the frontal plane until it is axis_deg.
    net = ((spans[..., 1] - spans[..., 0])[..., None] * vectors).sum(axis=1)
    turn = np.deg2rad(p.axis_deg) - np.arctan2(net[:, 1], net[:, 0])
    cos, sin = np.cos(turn)[:, None], np.sin(turn)[:, None]
    x, y = vectors[..., 0], vectors[..., 1]
    return spans, np.stack([cos * x - sin * y, sin * x + cos * y, vectors[..., 2]], axis=-1)


def _st_dipole(p: Parameters, lead_gain: Array) -> Array:
    """The dipole `[n, 3]` that gives the stated lead the stated level."""
    direction = _ST_DIRECTION[p.st_site]
    lead = np.array([0, LEADS.index("V3"), LEADS.index("aVF")])[p.st_site]
    n = len(lead)
    level = (direction * LEAD_FIELD[lead]).sum(axis=1) * lead_gain[np.arange(n), lead]
    shift = np.divide(p.st_mv / p.gain, level, out=np.zeros(n), where=p.st_site > 0)
    return np.asarray(direction * shift[:, None])


def _fibrillation(p: Parameters, t: Array, draws: Sequence[np.random.Generator]) -> tuple[Array, Array]:
    """Fibrillatory waves: 4.5-7 Hz, wandering, largest in V1."""
    f, a, b, amplitude = _columns(
        (rng.uniform(4.5, 7), *rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.07, 0.11)) for rng in draws
    )
    wave = np.sin(2 * np.pi * f * t + a + 0.8 * np.sin(2 * np.pi * 0.7 * t + b), dtype=np.float32)
    return wave * p.atrial_fibrillation[:, None], amplitude * [0.3, 0.6, -0.9]


def _columns(rows: Iterable[tuple[np.floating | np.integer | float, ...]]) -> Iterator[Array]:
    """Each number of the rows as a column `[n, 1]`."""
    return (np.array(column)[:, None] for column in zip(*rows, strict=True))


def _bump(dt: Array, start: Array, end: Array) -> Array:
    """A raised cosine, zero outside `[start, end]`; area (end - start) / 2. Shapes `[n, T]`, `[n, 1]`, `[n, 1]`."""
    x = np.clip((2 * dt - (start + end)) / (end - start), -1, 1)
    return np.asarray(0.5 + 0.5 * np.cos(np.pi * x, dtype=np.float32))


def _fixed_bump(dt: Array, start: float, end: float) -> Array:
    """A bump that starts and ends alike in every recording, s after the onset."""
    return _bump(dt, np.full((len(dt), 1), start, np.float32), np.full((len(dt), 1), end, np.float32))


def draw_noise(p: Parameters, t: Array, fs: float, draws: Sequence[np.random.Generator]) -> Array:
    """Electrode noise float32 `[n, 9, T]` at unit gain, of equal power density at every sampling rate."""
    density = np.sqrt(fs / 100).astype(np.float32)
    out = np.stack([rng.standard_normal((9, len(t)), dtype=np.float32) for rng in draws])
    out *= density * np.where(p.noise == 2, 0.07, 0.008).astype(np.float32)[:, None, None]
    for i in np.flatnonzero(p.noise == 1):
        rng = draws[int(i)]
        f, phase = rng.uniform(0.15, 0.4, (9, 1)), rng.uniform(0, 2 * np.pi, (9, 1))
        out[i] += rng.uniform(0.2, 0.4, (9, 1)) * np.sin(2 * np.pi * f * t + phase)
    return out
