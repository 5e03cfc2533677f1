"""How long things take: one part per file, `python -m eval.speed --help` lists them; and the settings of the parts."""

from dataclasses import dataclass
from pathlib import Path

from data.support.commands import Settings, option


@dataclass(frozen=True, kw_only=True)
class EcgByte:
    """Settings of `ecg_byte`."""

    table: Path | None = option("a published table (default: one that is learned here)", default=None)
    merges: int = option("merges of the table learned here", default=5000)
    recordings: int = option("recordings to learn from", default=300)
    repeats: int = option("repeats of encoding", default=21)


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Settings of `melp`."""

    batch: int = option("ECGs the encoder is given at once", default=8)
    repeats: int = option("times all is timed", default=5)


@dataclass(frozen=True, kw_only=True)
class HeartLang(Encoder):
    """Settings of `heartlang`."""

    records: int = option("ECGs of the tokenizer", default=50)


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of `sft`."""

    records: int = option("ECGs", default=8)
    questions: int = option("questions about each", default=25)
    repeats: int = option("times all is timed", default=3)
    threads: int = option("CPU threads", default=2)


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Settings of `statistics`."""

    items: int = option("answers", default=10_000)
    patients: int = option("patients they are about", default=2000)
    draws: int = option("resamples of an interval", default=2000)
    flips: int = option("random flips of the test", default=10_000)


SETTINGS: dict[str, type[Settings]] = {"ecg_byte": EcgByte, "heartlang": HeartLang, "melp": Encoder}
SETTINGS.update(sft=Training, statistics=Statistics)
