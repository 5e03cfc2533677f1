"""What is planted in simulated recordings: parameters, the findings that follow from them, and their names.

Findings are drawn independently of each other, but for these exclusions, which are physiology:

* no first-degree AV block in atrial fibrillation (there is no P wave) or in tachycardia (P would lie in the T wave);
* no ST elevation in left bundle branch block (ST is not interpretable there).

A finding is not asked about where it is excluded (`SyntheticCohort.askable`).

Voltage is a gain on the **whole** recording, noise and ST shift included: a wave or a noise floor that kept its size
would betray the voltage in proportions, and then an encoder blind to gain could seem to read millivolts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

RATES = ("normal rate", "bradycardia", "tachycardia")
CONDUCTIONS = ("normal conduction", "left bundle branch block", "right bundle branch block")
ST_SITES = ("no ST elevation", "anterior ST elevation", "inferior ST elevation")
AXES = ("normal axis", "left axis deviation", "right axis deviation")
VOLTAGES = ("normal QRS voltage", "high QRS voltage", "low QRS voltage")
NOISES = ("no noise", "baseline drift", "muscle noise")

VALUES = {
    "rhythm": ("sinus rhythm", "atrial fibrillation"),
    "rate": RATES,
    "conduction": CONDUCTIONS,
    "st": ST_SITES,
    "axis": AXES,
    "voltage": VOLTAGES,
    "noise": NOISES,
}  # of each attribute
_BLOCK, _PVC = "first degree AV block", "premature ventricular complexes"
NUMBERS = 15  # that the findings of one recording are made of


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

    def take(self, index: Array | slice | list[int]) -> Self:
        """The parameters of some recordings."""
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})


def draw_parameters(numbers: Array) -> Parameters:
    """Findings, independent but for the exclusions of the module's docstring.

    Categories are separated by margins (bradycardia < 54, normal 62-92, tachycardia > 108 per minute, ...), so that
    every answer has one right value. `numbers` are random, between 0 and 1, `[NUMBERS, records]`.
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
    values, every = categories(p), np.ones(len(p.heart_rate), bool)
    block_askable = ~p.atrial_fibrillation & (values["rate"] != 2)
    st_askable = p.conduction != 1
    block = block_askable & (p.pr_ms > 200)
    abnormal = p.atrial_fibrillation | block | p.pvc
    for name in ("rate", "conduction", "st", "axis"):
        abnormal = abnormal | (values[name] != 0)
    return {
        "normal ECG": (~abnormal, every),  # whatever its voltage and noise
        "atrial fibrillation": (p.atrial_fibrillation, every),
        _BLOCK: (block, block_askable),
        _PVC: (p.pvc, every),
        **{
            name: (values[attribute] == i, st_askable if attribute == "st" else every)
            for attribute in ("rate", "conduction", "st", "axis", "noise", "voltage")
            for i, name in enumerate(VALUES[attribute])
            if i > 0
        },
    }


def report_sentences(values: Mapping[str, int], present: Callable[[str], bool], rng: np.random.Generator) -> list[str]:
    """All that is planted in a recording, each in one of several phrasings; `values` are indices as of `categories`."""

    def say(*phrasings: str) -> str:
        return phrasings[rng.integers(len(phrasings))]

    # In the order in which an ECG is read: rhythm, rate, conduction, axis, ectopic beats, ST segment, voltage, quality.
    return [
        (say("sinus rhythm", "the rhythm is sinus rhythm"),
         say("atrial fibrillation", "the rhythm is atrial fibrillation"))[values["rhythm"]],
        (say("normal rate", "normal heart rate"), say("bradycardia", "slow heart rate, bradycardia"),
         say("tachycardia", "fast heart rate, tachycardia"))[values["rate"]],
        *([say(_BLOCK, f"long PR interval, {_BLOCK}")] if present(_BLOCK) else []),
        (say("normal conduction", "no bundle branch block"), CONDUCTIONS[1], CONDUCTIONS[2])[values["conduction"]],
        AXES[values["axis"]],
        *([_PVC] if present(_PVC) else []),
        ("no ST elevation", say(ST_SITES[1], f"anterior leads with {ST_SITES[1]}"),
         say(ST_SITES[2], f"inferior leads with {ST_SITES[2]}"))[values["st"]],
        VOLTAGES[values["voltage"]],
        *([NOISES[values["noise"]]] if values["noise"] else []),
        *(["normal ECG"] if present("normal ECG") else []),
    ]  # fmt: skip
