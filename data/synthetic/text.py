"""Reports of simulated recordings in a cardiologist's words."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from data.synthetic.parameters import AXES, CONDUCTIONS, NOISES, ST_SITES, VOLTAGES

_BLOCK, _PVC = "first degree AV block", "premature ventricular complexes"


def report_sentences(values: Mapping[str, int], present: Callable[[str], bool], rng: np.random.Generator) -> list[str]:
    """All that is planted in a recording, each in one of several phrasings.

    Args:
        values: Each attribute as an index into its tuple of values.
        present: Whether a finding is planted.
        rng: Draws the phrasings.
    """

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
