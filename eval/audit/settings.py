"""Settings of the commands of this room. Nothing heavy is imported here: `--help` answers at once."""

import dataclasses
from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.experiment.conditions import CONDITIONS, FAST
from data.support.commands import command_of, option

GATES = {"reads": ("reads",), "partly": ("reads", "partly")}  # verdicts that pass
SIZES = ((500, 50), (1000, 100), (2000, 200))  # of simulated audits: questions, patients


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """Settings of `python -m eval.ablation`; `draws` is the number of resamples of the intervals."""

    model: Path = option("folder of a trained model, or its hub id", metavar="DIR")
    seed: int = option("seed of donors, sample and resamples", default=0, repeated="always")
    conditions: Sequence[str] | None = option(
        f"what to do to the ECG: {', '.join(CONDITIONS)} (default: {', '.join(FAST)})",
        default=None,
        metavar="NAME",
        choices=tuple(CONDITIONS),
    )
    full: bool = option("all conditions, the dose-response and the ladder", default=False)
    limit: int | None = option("ask only N questions, evenly over templates", default=None, metavar="N")
    batch_size: int = option("questions at once", default=64, metavar="N")
    text_only: Path | None = option(
        "a model trained without ECGs, for reference (default: MODEL/text-only if it is there)",
        default=None,
        metavar="DIR",
    )
    server: str | None = option(
        "ask this OpenAI-compatible server what --model was trained for", default=None, metavar="URL"
    )
    served_name: str | None = option("what the server calls the model", default=None, metavar="NAME")
    prefix_caching_off: bool = option("the server caches no prefixes: it can score by likelihood", default=False)
    rescore: bool = option("score the answers of the last audit again, ask nothing", default=False, repeated="never")
    gate: Literal["reads", "partly"] | None = option(
        "exit status 1 unless the verdict is this, or better", default=None, repeated="never"
    )
    out: Path | None = option("where to write (default: MODEL/ablation, or out/)", default=None, metavar="DIR")
    cache_dir: Path | None = option(
        "what is computed once (default: the training's if it is there and can be written, else OUT/cache)",
        default=None,
        metavar="DIR",
    )
    draws: int = 2000

    def __post_init__(self) -> None:
        if (self.server is None) != (self.served_name is None):
            raise ValueError("--server and --served_name go together")

    @property
    def default_folder(self) -> Path:
        """The model's folder, or one below out/ where it comes from the hub."""
        model = self.model
        return model / "ablation" if model.is_dir() or model.is_absolute() else Path("out") / model.name / "ablation"

    @property
    def folder(self) -> Path:
        """Where the report is written."""
        return self.out or self.default_folder

    @property
    def command(self) -> str:
        """The command that gives the same report."""
        text_only = None if self.text_only == self.model / "text-only" else self.text_only
        out = None if self.folder == self.default_folder else self.out
        return command_of("eval.ablation", dataclasses.replace(self, text_only=text_only, out=out))


@dataclass(frozen=True, kw_only=True)
class SuperClassSettings:
    """Settings of `python -m eval.super_classes`."""

    model: Path = option("folder of a trained model", metavar="DIR")
    ptbxl: Path | None = option("other recordings, in PTB-XL's layout", default=None, metavar="DIR")
    folds: tuple[int, ...] = option("which of them (default: held out)", default=(), metavar="N")
    seed: int = option("seed of donors, resamples and the CNN", default=0)
    out: Path | None = option("default: MODEL/ablation/super-classes.json", default=None, metavar="FILE")
    cache_dir: Path | None = option(
        "what is computed once (default: the training's if it is there and can be written, else beside OUT)",
        default=None,
        metavar="DIR",
    )

    @property
    def file(self) -> Path:
        """Where the numbers are written."""
        return self.out or self.model / "ablation" / "super-classes.json"


def _size(text: str) -> tuple[int, int]:
    questions, _, patients = text.partition("x")
    if not (questions.isdigit() and patients.isdigit() and int(questions) and int(patients)):
        raise ArgumentTypeError(f"expected QUESTIONSxPATIENTS such as 2000x200, got {text!r}")
    return int(questions), int(patients)


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings:
    """Settings of `python -m eval.calibrate`."""

    audits: int = option("simulated audits of each size", default=200, metavar="N")
    sizes: Sequence[tuple[int, int]] = option(
        "default: " + " ".join(f"{questions}x{patients}" for questions, patients in SIZES),
        default=SIZES,
        metavar="QUESTIONSxPATIENTS",
        parse=_size,
    )
    draws: int = option("resamples of intervals", default=2000, metavar="N")
