"""Stages an uploaded WFDB record: checks its header, and writes one of ours with nothing but its numbers."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.ecg import canonical_lead, split_unit
from data.readers.budget import (
    NO_LEAD,
    Budget,
    UploadError,
    Words,
    WordsNeeded,
    expected_rate,
    listed,
    require_duration,
)
from data.readers.common import is_lead, is_other
from data.readers.wfdb_header import FORMATS, Header, Signal, read_header, sample_bytes
from data.units import millivolts

File = tuple[str, bytes]  # name and content

# Format 8 stores differences from a sample in the header, and the header that the child reads is made anew.
_ALLOWED = FORMATS.keys() - {"8"}


@dataclass(frozen=True)
class Staged:
    """Files in the folder, under names of ours."""

    file: str  # the one to read
    words: Words  # what is still to be said of it
    needs_wfdb: bool = False  # whether its format needs the package


def stage_wfdb(header: File, others: Sequence[File], words: Words, folder: Path, budget: Budget) -> Staged:
    """Check a header and the sample files it names, and write them into the folder.

    Args:
        header: The header.
        others: The files that were sent with it, in any order. Those that it does not name are left out.
        words: What the sender says of the recording: as many leads as there are signals name the signals, and the
            rate stands for one that the header does not state.
        folder: Where they are staged.
        budget: The limits.

    Raises:
        WordsNeeded: No signal has the name of a lead, or the header states no rate.
        UploadError: The files are not one record, or too much of one.
        ValueError: The header cannot be read.
    """
    name, content = header
    if len(content) > budget.header_bytes:
        raise UploadError(f"header: {len(content)} bytes, {budget.header_bytes} are read: remove comments")
    lines = [line for line in content.splitlines() if line.strip() and not line.startswith(b"#")]
    if len(lines) > budget.header_lines:
        raise UploadError(f"header: {len(lines)} lines, {budget.header_lines} are read: upload a record of one segment")
    path = folder / "header.hea"
    path.write_bytes(content)
    parsed = read_header(path)
    if parsed.fs is None:
        parsed = replace(parsed, fs=_stated_rate(words))
    _require_bounded(parsed, budget)
    leads = _leads(parsed.signals, words["leads"])
    named = (lead if lead != NO_LEAD else f"signal{number}" for number, lead in enumerate(leads, start=1))
    parsed = replace(parsed, signals=tuple(replace(line, name=name) for line, name in zip(parsed.signals, named)))
    _require_bounded(parsed, budget)  # signals that are leads only now
    staged: dict[str, str] = {}  # our names of the sample files, by the header's
    for number, (file, samples) in enumerate(_sample_files(parsed, name, others).items(), start=1):
        _require_length([line for line in parsed.signals if line.file == file], parsed.length, file, len(samples))
        staged[file] = f"samples{number}.dat"
        (folder / staged[file]).write_bytes(samples)
    path.write_text(_rewritten(parsed, staged), encoding="utf-8")
    return Staged(path.name, {**words, "leads": leads}, any(line.code != "16" for line in parsed.signals))


def _stated_rate(words: Words) -> float:
    if not isinstance(fs := words["fs"], float):
        raise WordsNeeded("header: sampling rate: the header does not say it: give it with the files")
    return fs


def _leads(signals: Sequence[Signal], stated: object) -> list[str]:
    """The lead of each signal, or `NO_LEAD`, by its own name or that which its sender gives it.

    The rules are those of `data.readers.common.known_leads`, without a name that the file gives: it may be a patient's.
    """
    by_file = [_lead(line.name) for line in signals]
    chosen = _chosen(by_file, stated) if isinstance(stated, list) else by_file
    count = f"{len(signals)} signal{'s' if len(signals) > 1 else ''}"
    each = "it" if len(signals) == 1 else f"each of the {count}"
    how = f"say which lead {each} is, in their order, and {NO_LEAD} for one that is none"
    if isinstance(stated, list) and chosen is None:
        if in_file := [lead for lead in by_file if lead not in (None, NO_LEAD)]:
            words = f"the file says {', '.join(map(str, in_file))}, you say {', '.join(stated)}"
            raise UploadError(f"leads: {words}: one is wrong, so decide")
        raise WordsNeeded(f"leads: {len(stated)} names for {count}: {how}")
    leads = chosen or by_file
    if all(lead in (None, NO_LEAD) for lead in leads):
        named = any(line.name for line in signals)
        names = "none named like an ECG lead (I, II, ..., V6)" if named else "none with a name"
        raise WordsNeeded(f"leads: the header has {count}, {names}: {how}")
    if unknown := [str(number) for number, lead in enumerate(leads, start=1) if lead is None]:
        one = len(unknown) == 1
        which = f"signal {unknown[0]} has a name" if one else f"signals {', '.join(unknown)} have names"
        raise WordsNeeded(f"leads: {which} that may be of {'a lead' if one else 'leads'}, but not known here: {how}")
    return [str(lead) for lead in leads]


def _chosen(by_file: Sequence[str | None], stated: Sequence[str]) -> list[str | None] | None:
    """The lead of each signal as its sender says it where the file does not; None where the two do not fit."""
    every = list(range(len(by_file)))
    rows = every if len(stated) == len(every) else [row for row in every if by_file[row] != NO_LEAD]
    if len(rows) != len(stated):
        return None
    chosen = list(by_file)
    for row, name in zip(rows, stated):
        if name != NO_LEAD and by_file[row] not in (None, NO_LEAD, name):
            return None
        chosen[row] = name
    return chosen


def _sample_files(header: Header, name: str, others: Sequence[File]) -> dict[str, bytes]:
    """Contents of the sample files by the names that the header has for them."""
    sent: dict[str, list[File]] = {}
    for file in others:
        sent.setdefault(_comparable(file[0]), []).append(file)
    samples, missing = {}, []
    for needed in dict.fromkeys(line.file for line in header.signals):
        candidates = sent.get(_comparable(needed), [])
        candidates = [file for file in candidates if file[0] == needed] or candidates
        if len({content for _, content in candidates}) > 1:
            raise UploadError(f"files: {listed([needed])} was sent more than once, not alike: upload one of them")
        if candidates:
            samples[needed] = candidates[0][1]
        else:
            missing.append(needed)
    if missing:
        unused = [file for file, _ in others if _comparable(file) not in map(_comparable, samples)]
        also = f"; not named in it: {listed(unused)}" if unused else ""
        raise UploadError(
            f"header: file name: it names {listed(missing)}, which was not sent (taken: {listed([name, *samples])}"
            f"{also}): upload the files of one record, under the names that its header has for them"
        )
    return samples


def _comparable(name: str) -> str:
    """A file's name without what may change on its way: capitals, how accents are written, odd characters, blanks."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return "".join(character for character in plain if character.isalnum() or character in "._-")


def _require_bounded(header: Header, budget: Budget) -> None:
    if len(header.signals) > budget.signals:
        raise UploadError(f"header: number of signals: {len(header.signals)}, {budget.signals} are read: remove some")
    if header.fs is None or not budget.fs[0] <= header.fs <= budget.fs[1]:
        raise UploadError(f"header: sampling rate: {expected_rate(budget)}: resample the recording")
    require_duration(header.length / header.fs, budget)
    for number, line in enumerate(header.signals, start=1):
        if line.code not in _ALLOWED:
            raise UploadError(f"header: signal {number}: format {line.code}: save the record in format 16")
        if abs(line.baseline) > 1 << 31:
            raise UploadError(f"header: signal {number}: baseline: beyond what a sample can store: correct it")
        if line.name and not is_lead(line.name):
            continue
        unit, stated = millivolts(line.units, f"header: signal {number}"), split_unit(line.name)[1]
        if stated is not None and millivolts(stated, f"header: signal {number}") != unit:
            raise UploadError(f"header: signal {number}: its name says {stated}, its gain {line.units}: correct one")
        scale = line.gain / unit
        if not budget.gain[0] <= scale <= budget.gain[1]:
            raise UploadError(
                f"header: signal {number}: gain: expected {budget.gain[0]:g} to {budget.gain[1]:.0f} stored units per "
                "mV: correct the header"
            )


def _require_length(signals: Sequence[Signal], length: int, file: str, size: int) -> None:
    """Refuse a sample file that has not as many bytes as `length` samples of its signals are."""
    first = signals[0]
    if any((line.code, line.offset) != (first.code, first.offset) for line in signals):
        raise UploadError("header: format: the signals differ in format or offset: save the record in format 16")
    if first.offset >= size:
        raise UploadError(f"header: offset: {first.offset} bytes, the sample file has {size}: correct the header")
    need, most = sample_bytes(signals, length)
    if not need <= size <= most:
        raise UploadError(
            f"sample file {listed([file])}: {size} bytes, but the header promises {need} ({length} samples of "
            f"{len(signals)} signals): the file is cut off or the header belongs to another one"
        )


def _lead(name: str) -> str | None:
    """Canonical name of a lead, `NO_LEAD` for another signal, None for a name of which nobody knows what it is."""
    if is_lead(name):
        return canonical_lead(name)
    return NO_LEAD if is_other(name) else None


def _rewritten(header: Header, staged: Mapping[str, str]) -> str:
    """The header, made anew of its numbers: no comment and no word of the sender is read after this.

    Names of its signals are leads, or `signal13`; those of the sample files are `staged`.
    """
    rewritten = [f"header {len(header.signals)} {header.fs!r} {header.length}"]
    for line in header.signals:
        # Units of a lead are some that `millivolts` knew.
        gain = f"{line.gain!r}({line.baseline})/{line.units}" if is_lead(line.name) else "1.0(0)/mV"
        checksum = line.checksum or 0  # 0: not known
        rewritten.append(f"{staged[line.file]} {line.code}+{line.offset} {gain} 0 0 0 {checksum} 0 {line.name}")
    return "\n".join(rewritten) + "\n"
