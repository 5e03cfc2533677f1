"""Settings of the commands that look into representations: each is the command line, the call and its repetition.

Nothing heavy is imported here: `--help` need not wait for torch.
"""

from dataclasses import asdict, dataclass, fields
from os.path import expanduser
from pathlib import Path
from typing import Literal

from data.readers.options import ReadOptions
from data.support.commands import option

PUBLISHED_FOLDS = "1-8/9/10"
CLIP = 1.0  # norm of the gradients
WARM_UP = 0.1  # share of the steps
WEIGHT_DECAY = 0.05  # of weights; biases and norms have none


@dataclass(frozen=True, kw_only=True)
class Recordings:
    """Where recordings and split tables are, and which of them are used."""

    ptbxl: Path | None = option("recordings of PTB-XL, as published", default=None, metavar="DIR")
    cpsc2018: Path | None = option("recordings of CPSC2018, as published", default=None, metavar="DIR")
    csn: Path | None = option("recordings of CSN, as published", default=None, metavar="DIR")
    splits: Path | None = option("split tables of CPSC2018 and CSN", default=None, metavar="DIR")
    folds: str = option("folds of PTB-XL and simulated patients", default=PUBLISHED_FOLDS, metavar="TRAIN/VALID/TEST")
    rate: int = option("which records of PTB-XL: those of 100 or of 500 Hz", default=500)
    leave_out_missing: bool = option("leave out records of the split tables that are not on disk", default=False)


@dataclass(frozen=True)
class Finetuning:
    """How an encoder is fine-tuned; `learning_rate` is the head's, `layer_decay` a layer's share of the rate above.

    Raises:
        ValueError: A value that cannot be.
    """

    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 5e-4
    layer_decay: float = 0.75

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs and batch_size must be at least 1, got {self.epochs} and {self.batch_size}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be above 0 and at most 1, got {self.layer_decay}")

    def to_json(self) -> dict[str, float]:
        """Settings, the fixed ones included, as a report has them."""
        return {**asdict(self), "weight_decay": WEIGHT_DECAY, "warm_up": WARM_UP, "clip": CLIP}


@dataclass(frozen=True)
class Protocol:
    """What is done with every encoder: the linear probe, or with `finetune` the training of all of it.

    Each draw of `percents` of the training patients is the same for every encoder, and part of the next. `random_seeds`
    encoders with random weights stand beside each; `draws` are resamples of test patients.

    Raises:
        ValueError: A number is too small.
    """

    percents: tuple[float, ...] = (1.0, 10.0, 100.0)
    features: str = "paper"
    finetune: Finetuning | None = None
    random_seeds: int = 3
    draws: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.percents:
            raise ValueError("percents: give at least one")
        if self.random_seeds < 1 or self.draws < 1:
            raise ValueError(
                f"random_seeds and draws must be at least 1, got {self.random_seeds} and {self.draws}: what an encoder "
                "has learned is the difference to its architecture with random weights"
            )


@dataclass(frozen=True, kw_only=True)
class _ProbeTask:
    """The first flags of `eval.probe`."""

    task: str | None = option("what is learned and tested", default=None)
    train_task: str | None = option("with --test_task: learn on one corpus ...", default=None, metavar="TASK")
    test_task: str | None = option("... and test on another, findings matched by name", default=None, metavar="TASK")
    encoder: tuple[str, ...] = option(
        "folder, checkpoint, hub id, or type of a new one (ecg_cnn); repeat it to compare",
        metavar="NAME",
        parse=expanduser,
        append=True,
    )


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(Recordings, _ProbeTask):
    """Settings of `eval.probe`."""

    percent: tuple[float, ...] = option("% of training patients (1 10 100)", default=(1.0, 10.0, 100.0), metavar="P")
    features: str = option(
        "paper (its paper's, else mean), mean, max, or a vector of its output", default="paper", metavar="KIND"
    )
    finetune: bool = option("train the whole encoder", default=False)
    epochs: int | None = option("with --finetune (default: 30)", default=None, metavar="N")
    batch_size: int | None = option("with --finetune (default: 64)", default=None, metavar="N")
    learning_rate: float | None = option("with --finetune (default: 5e-4)", default=None, metavar="N")
    layer_decay: float | None = option("with --finetune (default: 0.75)", default=None, metavar="N")
    random_seeds: int = option("random weights beside each encoder", default=3, metavar="N")
    seed: int = option("seed of all that is drawn", default=0)
    cache: Path | None = option("folder of vectors (default: out/cache, or OUTPUT/cache)", default=None, metavar="DIR")
    output: Path = option("where to write (default: out/probe)", default=Path("out/probe"), metavar="DIR")

    def __post_init__(self) -> None:
        two = self.train_task is not None and self.test_task is not None
        if (self.task is None) != two or (self.task is not None and (self.train_task or self.test_task)):
            raise ValueError("give --task, or --train_task and --test_task")
        if len(set(self.encoder)) < len(self.encoder):
            raise ValueError(f"an encoder is given twice: {', '.join(self.encoder)}")
        if self._finetuning and not self.finetune:
            raise ValueError(f"--{next(iter(self._finetuning))} is of --finetune")
        self.protocol()

    @property
    def cache_folder(self) -> Path:
        """Where vectors are kept: not in the folder this is started in, where the results go elsewhere."""
        return _cache_of(self)

    @property
    def tasks(self) -> tuple[str, str]:
        """What is learned, and what is tested."""
        return self.task or self.train_task or "", self.task or self.test_task or ""

    @property
    def _finetuning(self) -> dict[str, float]:
        values = {field.name: getattr(self, field.name) for field in fields(Finetuning)}
        return {name: value for name, value in values.items() if value is not None}

    def protocol(self) -> Protocol:
        """What is done with every encoder."""
        finetune = Finetuning(**self._finetuning) if self.finetune else None  # type: ignore[arg-type]
        return Protocol(self.percent, self.features, finetune, self.random_seeds, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class _ZeroShotModel:
    """The first flags of `eval.zero_shot`."""

    model: str = option(
        "what recipes/pretrain_melp.py wrote, its hub id, or a whole training checkpoint of MELP",
        metavar="NAME",
        parse=expanduser,
    )
    tokenizer: str | None = option(
        "folder or hub id of a checkpoint's text model", default=None, metavar="NAME", parse=expanduser
    )
    task: str | None = option("whose test records are classified; with --prompt, scored", default=None)


@dataclass(frozen=True, kw_only=True)
class ZeroShotSettings(ReadOptions, Recordings, _ZeroShotModel):
    """Settings of `eval.zero_shot`."""

    patients: int = option("patients of the task synthetic, in all folds", default=2000, metavar="N")
    prompts: Path | None = option("JSON of prompts by class (default: plain words)", default=None, metavar="FILE")
    prompt: tuple[str, ...] = option(
        "score records by a prompt of your own; repeat it to compare", default=(), metavar="TEXT", append=True
    )
    ecg: tuple[str, ...] = option(
        "with --prompt: recordings in any format that is read", default=(), metavar="PATH", parse=expanduser
    )
    random_seeds: int = option("models of random weights beside it; 0 for none", default=3, metavar="N")
    seed: int = option("seed of the resamples and of random weights", default=0)
    cache: Path | None = option("folder of vectors (default: out/cache, or OUTPUT/cache)", default=None, metavar="DIR")
    output: Path = option("where to write (default: out/zero_shot)", default=Path("out/zero_shot"), metavar="DIR")

    def __post_init__(self) -> None:
        if (self.task is None) == (not self.ecg):
            raise ValueError("give --task, or --ecg with the recordings to be scored")
        if self.ecg and not self.prompt:
            raise ValueError("--ecg needs --prompt: what the recordings are compared with")
        if self.prompt and self.prompts:
            raise ValueError("--prompts is of a task's classes and --prompt of your own: give one of them")

    @property
    def cache_folder(self) -> Path:
        """Where vectors are kept: not in the folder this is started in, where the results go elsewhere."""
        return _cache_of(self)


def _cache_of(settings: ProbeSettings | ZeroShotSettings) -> Path:
    default = next(field.default for field in fields(settings) if field.name == "output")
    return settings.cache or (Path("out/cache") if settings.output == default else settings.output / "cache")


@dataclass(frozen=True, kw_only=True)
class VocabularySettings:
    """Settings of `eval.vocabulary`."""

    model: str | None = option(
        "a language model's folder or hub id, of words alone or trained here", default=None, parse=expanduser
    )
    tokenizer: Path | None = option("what EcgByteTokenizer.save wrote, or a published table", default=None)
    dtype: Literal["float32", "bfloat16"] = option("precision of the language model", default="float32")
    tokens: int = option("tokens of a recording that are read", default=256)
    exchanges: int = option("how often a recording is exchanged", default=8)

    def __post_init__(self) -> None:
        for name in ("tokens", "exchanges"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be 1 or more")
