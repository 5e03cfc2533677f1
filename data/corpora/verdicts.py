"""Whether a model may be asked about recordings: their files looked at, or all their samples read.

A recording is unreadable where its files are missing, cut off or damaged, and where nothing can be read in its signal
(`data.quality`). There are two looks at it. `damaged_files` compares what a header promises with the sizes of the files
(tenths of a millisecond for each recording). `read_recordings` reads every sample (some milliseconds), in several
processes, and remembers which recordings are sound, by the sizes and times of their files. Simulated ones cannot fail.
"""

import json
import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from tqdm.auto import tqdm

from data.ecg import Ecg, EcgSource
from data.quality import require_readable
from data.readers.wfdb import sample_files
from data.readers.wfdb_header import read_header
from data.support.cache import cache_key, locked
from data.support.files import written_whole
from data.support.parallel import in_processes
from data.synthetic import SyntheticCohort

VERSION = 1  # of verdicts, in cache keys: tests/test_versions.py says when to raise it
NAMED = 10  # recordings in a refusal or a note
_CHUNK = 128  # recordings that a process reads at once
_FEW = 1000  # recordings for which other processes are not worth their start
_SUFFIXES = (".hea", ".dat", ".mat")  # of the files of a record

_log = logging.getLogger(__name__)


@runtime_checkable
class HasFiles(Protocol):
    """A source that says which file a recording is in: of a WFDB record its header, there or not."""

    def __getitem__(self, record_id: str) -> Ecg:
        """The recording."""

    def file_of(self, record_id: str) -> Path:
        """The file; `KeyError` when there is no such record."""


@dataclass(frozen=True)
class Verdict:
    """What reading a recording has shown."""

    reason: str = ""  # why no model can be asked about it; empty where one can
    notes: tuple[str, ...] = ()  # what else is wrong with its signal, as `data.quality` says it
    leads: tuple[str, ...] = ()


def damaged_files(source: EcgSource, records: Iterable[str]) -> dict[str, str]:
    """Why recordings cannot be read, by record, as far as their files' sizes tell. No sample is read.

    It knows the files of sources that name them (`HasFiles`), and finds nothing in others.
    """
    damaged: dict[str, str] = {}
    if not isinstance(source, HasFiles):
        return damaged
    for record in tqdm(records, desc="Looking for files", unit="ECG", delay=2):
        try:
            file = source.file_of(record)
            if file.suffix == ".hea":
                sample_files(read_header(file))
            elif not file.is_file():
                raise ValueError(f"{file}: missing")
        except NotImplementedError:  # a corpus that reads otherwise
            return {}
        except (ValueError, KeyError, OSError) as error:
            damaged[record] = _words(error, record)
    return damaged


def read_recordings(
    source: EcgSource, key: str, records: Collection[str], cache: Path | str | None = None, jobs: int | None = None
) -> dict[str, Verdict]:
    """What reading each of these recordings shows; nothing for simulated ones.

    Args:
        source: Where they come from.
        key: Tells sources apart that use the same record ids (`QuestionSet.source_key`).
        records: Their ids.
        cache: Folder that remembers which were sound, of a source that names their files (`HasFiles`).
        jobs: Processes that read; as many as there are cores, if not given, and one for few recordings.
    """
    if isinstance(source, SyntheticCohort):
        return {}
    memory = _Memory(source, key, cache)
    verdicts = {record: verdict for record in records if (verdict := memory.get(record)) is not None}
    pending = [record for record in records if record not in verdicts]
    chunks = [pending[i : i + _CHUNK] for i in range(0, len(pending), _CHUNK)]
    jobs = (jobs or os.cpu_count() or 1) if len(pending) > _FEW else 1
    with tqdm(total=len(pending), desc="Reading ECGs", unit="ECG", delay=2) as progress:
        for chunk, results in zip(chunks, in_processes(_verdicts, chunks, source, jobs=jobs)):
            verdicts |= dict(zip(chunk, results))
            progress.update(len(chunk))
    memory.add({record: verdicts[record] for record in pending})
    return verdicts


def refusal(reasons: Mapping[str, str], total: int) -> str:
    """Why recordings that cannot be read are in the way, and what to do; `total` is the number of all."""
    lines = "".join(f"\n  {record}: {reason}" for record, reason in list(reasons.items())[:NAMED])
    more = f"\n  and {len(reasons) - NAMED:,} more" if len(reasons) > NAMED else ""
    return (
        f"{counted(reasons)} of {total:,} cannot be read:{lines}{more}\n"
        "Download or repair them, or leave out the questions about them with --unreadable leave_out "
        '(unreadable="leave_out" in Python).'
    )


def common_notes(verdicts: Mapping[str, Verdict]) -> dict[str, list[str]]:
    """Records by what is wrong with their signals, without its leads and numbers; most frequent first."""
    by_note: dict[str, list[str]] = {}
    for record, verdict in verdicts.items():
        for note in verdict.notes if not verdict.reason else ():
            kind = re.sub(r"\d[\d.,]*", "…", note.partition(":")[0].rstrip("."))
            by_note.setdefault(kind, []).append(record)
    return dict(sorted(by_note.items(), key=lambda item: -len(item[1])))


def counted(records: Collection[str]) -> str:
    """`3 recordings`."""
    return f"{len(records):,} recording{'s' * (len(records) != 1)}"


def first_of(records: Collection[str], separator: str = ", ") -> str:
    """The first of some records, and how many more there are."""
    more = [f"and {len(records) - NAMED:,} more"] if len(records) > NAMED else []
    return separator.join([*list(records)[:NAMED], *more])


def _words(error: Exception, record: str) -> str:
    """An error's own words, without the record, which is named before them."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    text = str(error)
    for who in (f"record {record}: ", f"record {record!r}: "):
        text = text.removeprefix(who)
    return text if text and isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"


def _verdicts(records: Sequence[str], source: EcgSource) -> list[Verdict]:
    """Verdicts on recordings, each after reading it."""
    verdicts = []
    for record in records:
        try:
            ecg = source[record]
            quality = require_readable(ecg)
        except MemoryError:
            raise
        except Exception as error:  # a source is other people's code, and must not end a run in its middle
            verdicts.append(Verdict(_words(error, record)))
        else:
            verdicts.append(Verdict("", quality.notes, ecg.leads))
    return verdicts


class _Memory:
    """Which recordings were sound, in a file of a cache folder. Those that were not are always read again."""

    def __init__(self, source: EcgSource, key: str, cache: Path | str | None) -> None:
        self.source = source if isinstance(source, HasFiles) else None
        self.path = Path(cache or "") / f"recordings-{cache_key(VERSION, key)}.json"
        self.is_on = cache is not None and self.source is not None
        self._read: dict[str, tuple[str, Verdict]] = self._load() if self.is_on else {}

    def get(self, record: str) -> Verdict | None:
        """The verdict on a recording whose files are as they were then; None where there is none."""
        stamp, verdict = self._read.get(record, ("", None))
        return verdict if stamp and stamp == self._stamp(record) else None

    def add(self, verdicts: Mapping[str, Verdict]) -> None:
        """Remember sound recordings beside those that other processes have read meanwhile."""
        sound = {
            record: (stamp, verdict)
            for record, verdict in (verdicts.items() if self.is_on else ())
            if not verdict.reason and (stamp := self._stamp(record))
        }
        if not sound:
            return
        try:
            with locked(self.path), written_whole(self.path, "w") as file:
                self._read = {**self._load(), **sound}
                # Most of 800,000 recordings have the same leads and nothing wrong: what they share stands once.
                signals = {verdict: place for place, verdict in enumerate({v: None for _, v in self._read.values()})}
                json.dump(
                    {
                        "signals": [[signal.notes, signal.leads] for signal in signals],
                        "records": {record: [stamp, signals[signal]] for record, (stamp, signal) in self._read.items()},
                    },
                    file,
                )
        except OSError as error:
            _log.warning("which recordings can be read is not remembered: %s", error)

    def _load(self) -> dict[str, tuple[str, Verdict]]:
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            signals = [Verdict("", tuple(notes), tuple(leads)) for notes, leads in stored["signals"]]
            return {record: (stamp, signals[place]) for record, (stamp, place) in stored["records"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            _log.warning("%s is damaged, %s: the recordings are read anew", self.path, error)
            return {}

    def _stamp(self, record: str) -> str:
        """What changes when a recording's files do; empty where they are not known or not there."""
        if self.source is None:
            return ""
        sizes = []
        with suppress(KeyError, NotImplementedError):
            file = self.source.file_of(record)
            for path in dict.fromkeys([file, *(file.with_suffix(suffix) for suffix in _SUFFIXES)]):
                with suppress(OSError):
                    stat = path.stat()
                    sizes.append((path.suffix, stat.st_size, stat.st_mtime_ns))
        return cache_key(sizes) if sizes else ""
