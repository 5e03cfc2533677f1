"""A cohort of simulated 12-lead ECGs with planted findings: the embedded default and the positive control.

A beat is a sum of cosine bumps with compact support, each a 3-D dipole in mV (x to the left, y to the feet, z to the
back). Leads are a lead field times that dipole: Einthoven's equilateral triangle in the frontal plane, so that
I + III = II and the electrical axis hold exactly, and Dower's rows for V1-V6 (Dower, Machado, Osborne, Clin Cardiol
1980).
Onsets and offsets are therefore exact: heart rate, PR interval, QRS duration, frontal axis and ST level can be measured
back from the waveform.

Findings are drawn independently of each other, but for these exclusions, which are physiology:

* no first-degree AV block in atrial fibrillation (there is no P wave) or in tachycardia (P would lie in the T wave);
* no ST elevation in left bundle branch block (ST is not interpretable there).

A finding is not asked about where it is excluded (`SyntheticCohort.askable`).

Voltage is a gain on the **whole** recording, noise and ST shift included: a wave or a noise floor that kept its size
would betray the voltage in proportions, and then an encoder blind to gain could seem to read millivolts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.ecg import LEADS, Ecg
from data.support.files import written_whole

Array = NDArray[Any]

VERSION = 1  # in cache keys: tests/test_versions.py says when to raise it

RATES = ("normal rate", "bradycardia", "tachycardia")
CONDUCTIONS = ("normal conduction", "left bundle branch block", "right bundle branch block")
ST_SITES = ("no ST elevation", "anterior ST elevation", "inferior ST elevation")
AXES = ("normal axis", "left axis deviation", "right axis deviation")
VOLTAGES = ("normal QRS voltage", "high QRS voltage", "low QRS voltage")
NOISES = ("no noise", "baseline drift", "muscle noise")

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
_MAX_BEATS = 96  # drawn per recording whatever its rate, so that moving the rate moves nothing else
_NUMBERS = 15  # that the findings of one recording are made of
_CHUNK = 128


@dataclass(frozen=True)
class Parameters:
    """What is planted in each recording: arrays `[records]`. Times in ms, levels in mV, angles in degrees."""

    heart_rate: Array  # mean ventricular rate, per minute
    atrial_fibrillation: Array  # bool
    pr_ms: Array  # P onset to QRS onset; without meaning in atrial fibrillation
    qrs_ms: Array  # of the conducted beats
    conduction: Array  # index into CONDUCTIONS
    pvc: Array  # bool: premature ventricular complexes
    st_site: Array  # index into ST_SITES
    st_mv: Array  # level 60 ms after the J point in ST_LEAD of the site
    axis_deg: Array  # direction of the net QRS area in the frontal plane
    gain: Array  # of the whole recording: the voltage
    noise: Array  # index into NOISES

    def take(self, index: Array | slice | list[int]) -> Parameters:
        """The parameters of some recordings."""
        return Parameters(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def draw_parameters(numbers: Array) -> Parameters:
    """Findings, independent but for the exclusions of the module's docstring.

    Categories are separated by margins (bradycardia < 54, normal 62-92, tachycardia > 108 per minute, ...), so that
    every answer has one right value.

    Args:
        numbers: Random numbers between 0 and 1, `[_NUMBERS, records]`.
    """
    left = iter(numbers)

    def pick(*p: float) -> Array:
        below = np.cumsum(p)
        return np.asarray(np.searchsorted(below / below[-1], next(left), side="right"))

    def uniform(*ranges: tuple[float, float], of: Array | None = None) -> Array:
        low, high = np.array(ranges)[0 if of is None else of].T
        return np.asarray(low + (high - low) * next(left))

    rate, af = pick(0.5, 0.25, 0.25), next(left) < 0.25
    block = (next(left) < 0.3) & ~af & (rate != 2)
    conduction = pick(0.56, 0.22, 0.22)
    st_site = np.where(conduction == 1, 0, pick(0.5, 0.25, 0.25))
    gain = uniform((0.85, 1.15), (1.9, 2.5), (0.3, 0.42), of=pick(0.4, 0.3, 0.3))
    return Parameters(
        heart_rate=uniform((62, 92), (40, 54), (108, 140), of=rate),
        atrial_fibrillation=af,
        pr_ms=uniform((125, 175), (240, 300), of=block.astype(int)),
        qrs_ms=uniform((80, 104), (136, 164), of=(conduction > 0).astype(int)),
        conduction=conduction,
        pvc=next(left) < 0.3,
        st_site=st_site,
        st_mv=np.where(st_site > 0, gain * uniform((0.25, 0.45)), 0.0),
        axis_deg=uniform((10, 75), (-75, -45), (115, 155), of=pick(0.5, 0.25, 0.25)),
        gain=gain,
        noise=pick(0.5, 0.25, 0.25),
    )


def categories(p: Parameters) -> dict[str, Array]:
    """Each attribute as an index into its tuple of values (`RATES`, `CONDUCTIONS`, ...)."""
    return {
        "rhythm": p.atrial_fibrillation.astype(int),
        "rate": np.select([p.heart_rate < 60, p.heart_rate > 100], [1, 2], 0),
        "conduction": p.conduction,
        "st": p.st_site,
        "axis": np.select([p.axis_deg < -30, p.axis_deg > 90], [1, 2], 0),
        "voltage": np.select([p.gain > 1.5, p.gain < 0.6], [1, 2], 0),
        "noise": p.noise,
    }


def findings(p: Parameters) -> dict[str, tuple[Array, Array]]:
    """Every finding: whether it is present, and whether it may be asked about. Bool arrays `[records]`."""
    of, every = categories(p), np.ones(len(p.heart_rate), bool)
    block_askable = ~p.atrial_fibrillation & (of["rate"] != 2)
    st_askable = p.conduction != 1
    block = block_askable & (p.pr_ms > 200)
    abnormal = p.atrial_fibrillation | block | p.pvc
    for name in ("rate", "conduction", "st", "axis"):
        abnormal = abnormal | (of[name] != 0)
    return {
        "normal ECG": (~abnormal, every),  # voltage and noise aside
        "atrial fibrillation": (p.atrial_fibrillation, every),
        "first degree AV block": (block, block_askable),
        "premature ventricular complexes": (p.pvc, every),
        **{
            name: (of[attribute] == i, st_askable if attribute == "st" else every)
            for attribute, names in (
                ("rate", RATES), ("conduction", CONDUCTIONS), ("st", ST_SITES),
                ("axis", AXES), ("noise", NOISES), ("voltage", VOLTAGES),
            )
            for i, name in enumerate(names) if i > 0
        },
    }  # fmt: skip


class SyntheticCohort:
    """Simulated patients with `records_per_patient` recordings each; an `EcgSource`.

    A patient keeps anatomy (lead positions, shape and size of the waves) over his recordings; findings are drawn for
    each recording. Everything follows from `seed`.

    Args:
        patients: Number of patients.
        records_per_patient: Recordings of each.
        seed: Of all draws.
        fs: Sampling rate of `cohort[record_id]`, Hz.
        seconds: Length of a recording.
        cache: Folder in which all recordings are kept as one memory-mapped array, written at first use. Without it
            each recording is rendered when asked for.

    Attributes:
        records: Ids, `s<patient>-<visit>`.
        patient_of: Patient id of each record id.
        parameters: What is planted.
        categories: Each attribute of each recording as an index into its tuple of values.
    """

    def __init__(
        self,
        patients: int = 2000,
        *,
        records_per_patient: int = 2,
        seed: int = 0,
        fs: float = 100,
        seconds: float = 10,
        cache: Path | str | None = None,
    ) -> None:
        self.seed, self.fs, self.seconds = seed, float(fs), float(seconds)
        self.records_per_patient = records_per_patient
        n = patients * records_per_patient
        self.records = tuple(f"s{i // records_per_patient:05d}-{i % records_per_patient + 1}" for i in range(n))
        self.patient_of = {record: record.partition("-")[0] for record in self.records}
        self._index = {record: i for i, record in enumerate(self.records)}
        # One stream per patient: a cohort of fewer patients is a part of the larger one.
        shape = (_NUMBERS, records_per_patient)
        self.parameters = draw_parameters(
            np.concatenate([np.random.default_rng([seed, 0, i]).random(shape) for i in range(patients)], axis=1)
        )
        self.categories = categories(self.parameters)
        self._present = findings(self.parameters)
        self._signals: Array | None = None
        self._cache = Path(cache) if cache is not None else None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, record_id: str) -> Ecg:
        """The recording at the cohort's sampling rate; `KeyError` when there is none of that id."""
        i = self.index(record_id)
        if self._cache is not None:
            return self._ecg(i, self.signals()[i], self.fs)
        return self.render(record_id)

    def index(self, record_id: str) -> int:
        """Position of a record in `parameters`; `KeyError` when there is none of that id."""
        if record_id not in self._index:
            raise KeyError(f"no record {record_id!r} in a cohort of {self.records[0]} to {self.records[-1]}")
        return self._index[record_id]

    def present(self, finding: str) -> Array:
        """Bool `[records]`: where the finding is planted."""
        return self._present[finding][0]

    def askable(self, finding: str) -> Array:
        """Bool `[records]`: where the finding is not excluded by another one."""
        return self._present[finding][1]

    def render(self, record_id: str, fs: float | None = None, **moved: float) -> Ecg:
        """The recording, at another sampling rate or with parameters moved; all else stays as it is.

        Noise is drawn anew for each sampling rate, of the same power density.

        Args:
            record_id: Which recording.
            fs: Sampling rate in Hz; the cohort's when not given.
            **moved: New values of fields of `Parameters`, for example `heart_rate=120` or `st_mv=0.3` (anterior unless
                `st_site` says otherwise). A new `gain` scales the whole recording, so it scales `st_mv` too.

        Raises:
            KeyError: There is no such record.
            ValueError: A name is not a parameter, or the heart rate is too fast for the length of a recording.
        """
        i = self.index(record_id)
        p = self.parameters.take([i])
        unknown = moved.keys() - {f.name for f in fields(Parameters)}
        if unknown:
            raise ValueError(f"unknown parameter {sorted(unknown)}: one of {[f.name for f in fields(Parameters)]}")
        if "gain" in moved and "st_mv" not in moved:
            moved["st_mv"] = float(p.st_mv[0] * moved["gain"] / p.gain[0])
        if moved.get("st_mv") and "st_site" not in moved and p.st_site[0] == 0:
            moved["st_site"] = 1
        p = replace(p, **{name: np.array([value], getattr(p, name).dtype) for name, value in moved.items()})
        rate = float(fs or self.fs)
        return self._ecg(i, self._simulate([i], p, rate)[0], rate, p)

    @property
    def key(self) -> str:
        """A name for these recordings, for caches of what is made of them; another one for another `VERSION`."""
        name = f"cohort-{len(self)}x{self.records_per_patient}-seed{self.seed}-{self.fs:g}Hz-{self.seconds:g}s"
        return f"{name}-v{VERSION}"

    def signals(self) -> Array:
        """All recordings, float32 `[records, 12, samples]` in mV at the cohort's rate."""
        if self._signals is None:
            if self._cache is None:
                self._signals = self._simulate_all()
            else:
                path = self._cache / f"{self.key}.npy"
                if not path.exists():
                    with written_whole(path) as file:
                        np.save(file, self._simulate_all())
                self._signals = np.load(path, mmap_mode="r")
        return self._signals

    def _simulate_all(self) -> Array:
        out = np.empty((len(self), len(LEADS), round(self.fs * self.seconds)), np.float32)
        for start in range(0, len(self), _CHUNK):
            index = range(start, min(start + _CHUNK, len(self)))
            out[index.start : index.stop] = self._simulate(index, self.parameters.take(list(index)), self.fs)
        return out

    def _ecg(self, i: int, signal: Array, fs: float, p: Parameters | None = None) -> Ecg:
        p = p or self.parameters.take([i])
        meta = {"simulated": True, **{f.name: getattr(p, f.name)[0].item() for f in fields(p)}}
        return Ecg(signal, fs, LEADS, self.records[i], self.patient_of[self.records[i]], meta)

    def _simulate(self, index: Sequence[int], p: Parameters, fs: float) -> Array:
        """Waveforms float32 `[n, 12, samples]` of the recordings `index` with parameters `p`."""
        draws = [np.random.default_rng([self.seed, 1, i]) for i in index]
        anatomy = _anatomy([np.random.default_rng([self.seed, 2, i // self.records_per_patient]) for i in index])
        samples = round(fs * self.seconds)
        t = np.arange(samples) / fs
        onset, is_pvc = _beats(p, draws)
        if (onset[:, -1] <= t[-1]).any():
            raise ValueError(f"{self.seconds:g} s at {p.heart_rate.max():g} beats per minute exceed {_MAX_BEATS} beats")
        shapes, dipoles = _waves(p, anatomy, t, onset, is_pvc, draws)
        to_leads = (dipoles @ LEAD_FIELD.T) * anatomy["lead_gain"][:, None]  # [n, waves, 12]
        leads = np.matmul(to_leads.transpose(0, 2, 1).astype(np.float32), shapes)
        leads += np.matmul(ELECTRODES.astype(np.float32), _noise(p, t, fs, draws))
        return np.asarray(leads * p.gain[:, None, None].astype(np.float32))


def _anatomy(draws: Sequence[np.random.Generator]) -> dict[str, Array]:
    """What a patient keeps over his recordings: lead gains, and the size and duration of his waves."""
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


def _beats(p: Parameters, draws: Sequence[np.random.Generator]) -> tuple[Array, Array]:
    """QRS onsets in s `[n, beats]`, starting before 0, and which beats are ectopic.

    The mean RR interval is exactly 60 / heart_rate: an ectopic beat comes early and is followed by a full compensatory
    pause.
    """
    n = len(draws)
    jitter = np.stack([rng.standard_normal(_MAX_BEATS) for rng in draws])
    phase, breath, every, first = (np.array(x)[:, None] for x in zip(
        *((rng.random(), rng.uniform(0.2, 0.35), rng.integers(3, 6), rng.integers(3)) for rng in draws), strict=True
    ))  # fmt: skip
    k = np.arange(_MAX_BEATS)[None]
    sinus = 1 + 0.02 * np.sin(2 * np.pi * breath * k) + 0.008 * jitter
    fibrillating = np.clip(np.exp(0.24 * jitter), 0.6, 1.7)
    rr = np.where(p.atrial_fibrillation[:, None], fibrillating, sinus)
    rr *= 60 / p.heart_rate[:, None] / rr.mean(axis=1, keepdims=True)
    is_pvc = p.pvc[:, None] & ((k + first) % every == 0) & (k > 0)
    pause = np.zeros((n, _MAX_BEATS), bool)
    pause[:, 1:] = is_pvc[:, :-1]
    rr = rr * np.where(is_pvc, 0.62, np.where(pause, 1.38, 1.0))
    onset = np.cumsum(rr, axis=1) - rr[:, :1] - (1 + phase) * 60 / p.heart_rate[:, None]
    return onset, is_pvc


def _bump(dt: Array, start: Array, end: Array) -> Array:
    """A raised cosine, zero outside `[start, end]`; area (end - start) / 2. Shapes `[n, T]`, `[n, 1]`, `[n, 1]`."""
    x = np.clip((2 * dt - (start + end)) / (end - start), -1, 1)
    return np.asarray(0.5 + 0.5 * np.cos(np.pi * x, dtype=np.float32))


def _waves(
    p: Parameters,
    anatomy: dict[str, Array],
    t: Array,
    onset: Array,
    is_pvc: Array,
    draws: Sequence[np.random.Generator],
) -> tuple[Array, Array]:
    """Time courses float32 `[n, waves, T]` and dipoles in mV `[n, waves, 3]` of all waves, at unit gain."""
    n = len(draws)
    col = np.float32
    beat = np.stack([np.searchsorted(on, t, side="right") - 1 for on in onset])  # the last beat begun, [n, T]
    row = np.arange(n)[:, None]
    dt, dt_last, dt_next = ((t - onset[row, beat + d]).astype(col) for d in (0, -1, 1))
    ectopic, ectopic_last, ectopic_next = (is_pvc[row, beat + d] for d in (0, -1, 1))

    qrs, pr = (x[:, None].astype(col) / 1000 for x in (p.qrs_ms, p.pr_ms))
    rr = (60 / p.heart_rate)[:, None].astype(col)
    qt = anatomy["qt"][:, None].astype(col) * np.sqrt(rr) + np.maximum(qrs - 0.09, 0)  # Bazett; a block adds its delay
    t_start = qrs + np.maximum(0.065, 0.3 * (qt - qrs))
    p_length = anatomy["p_ms"][:, None].astype(col) / 1000

    shapes: list[Array] = []
    dipoles: list[Array] = []

    def add(course: Array, dipole: Array) -> None:
        shapes.append(course.astype(col))
        dipoles.append(np.broadcast_to(dipole, (n, 3)))

    size = anatomy["size"]  # [n, 6, 3]
    has_p = ~p.atrial_fibrillation[:, None]
    add(_bump(dt_next, -pr, p_length - pr) * ~ectopic_next * has_p, size[:, 0] * [0.05, 0.13, -0.015])

    # QRS: start and end as fractions of its duration, and dipoles for normal conduction, left and right block.
    spans = np.array(
        [[[0, 0.35], [0.15, 0.75], [0.55, 1]], [[0, 0.55], [0.35, 1], [0.3, 0.8]], [[0, 0.2], [0.08, 0.45], [0.4, 1]]]
    )[p.conduction].astype(col)
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
    vectors = np.stack([cos * x - sin * y, sin * x + cos * y, vectors[..., 2]], axis=-1)
    for k in range(3):
        add(_bump(dt, spans[:, k, :1] * qrs, spans[:, k, 1:] * qrs) * ~ectopic, vectors[:, k])

    # ST: level from 20 ms after the J point, fading into the T wave; its dipole gives the stated lead the stated level.
    rise, fall = np.clip((dt - qrs) / 0.02, 0, 1), np.clip((dt - t_start - 0.02) / (qt - t_start), 0, 1)
    direction = _ST_DIRECTION[p.st_site]
    lead = np.array([0, LEADS.index("V3"), LEADS.index("aVF")])[p.st_site]
    level = (direction * LEAD_FIELD[lead]).sum(axis=1) * anatomy["lead_gain"][np.arange(n), lead]
    shift = np.divide(p.st_mv / p.gain, level, out=np.zeros(n), where=p.st_site > 0)
    add(rise * (0.5 + 0.5 * np.cos(np.pi * fall)) * ~ectopic, direction * shift[:, None])

    repolarisation = np.array([[0.3, 0.22, -0.1], [-0.3, -0.1, -0.4], [0.28, 0.15, 0.2]])[p.conduction] * size[:, 4]
    t_wave = _bump(dt, t_start, qt) * ~ectopic + _bump(dt_last, t_start, qt) * ~ectopic_last
    add(t_wave, repolarisation)

    # Ectopic beats: wide, from one focus, with a T wave of the other sign.
    focus = np.array([[-0.6, 0.3, -0.9], [0.7, -0.9, 0.9]])[anatomy["ectopic"]] * size[:, 5]
    second = np.array([[0.1, 0.5, -0.6], [0.5, -0.4, 0.8]])[anatomy["ectopic"]] * size[:, 5]
    add(_bump(dt, np.full((n, 1), 0.0, col), np.full((n, 1), 0.11, col)) * ectopic, 1.4 * focus)
    add(_bump(dt, np.full((n, 1), 0.06, col), np.full((n, 1), 0.16, col)) * ectopic, 1.1 * second)
    ectopic_t = [_bump(d, np.full((n, 1), 0.2, col), np.full((n, 1), 0.42, col)) for d in (dt, dt_last)]
    add(ectopic_t[0] * ectopic + ectopic_t[1] * ectopic_last, -0.45 * focus)

    # Fibrillatory waves: 4.5-7 Hz, wandering, largest in V1.
    f, a, b, amplitude = (np.array(x)[:, None] for x in zip(
        *((rng.uniform(4.5, 7), *rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.07, 0.11)) for rng in draws), strict=True
    ))  # fmt: skip
    wave = np.sin(2 * np.pi * f * t + a + 0.8 * np.sin(2 * np.pi * 0.7 * t + b), dtype=col)
    add(wave * p.atrial_fibrillation[:, None], amplitude * [0.3, 0.6, -0.9])
    return np.stack(shapes, axis=1), np.stack(dipoles, axis=1)


def _noise(p: Parameters, t: Array, fs: float, draws: Sequence[np.random.Generator]) -> Array:
    """Electrode noise float32 `[n, 9, T]` at unit gain, of equal power density at every sampling rate."""
    density = np.sqrt(fs / 100).astype(np.float32)
    out = np.stack([rng.standard_normal((9, len(t)), dtype=np.float32) for rng in draws])
    out *= density * np.where(p.noise == 2, 0.07, 0.008).astype(np.float32)[:, None, None]
    for i in np.flatnonzero(p.noise == 1):
        rng = draws[int(i)]
        f, phase = rng.uniform(0.15, 0.4, (9, 1)), rng.uniform(0, 2 * np.pi, (9, 1))
        out[i] += rng.uniform(0.2, 0.4, (9, 1)) * np.sin(2 * np.pi * f * t + phase)
    return out
