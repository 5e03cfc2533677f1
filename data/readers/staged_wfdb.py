"""Stages an uploaded WFDB record: checks its header, and writes one of ours with nothing but its numbers."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.ecg import canonical_lead
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
    signals, leads = _named(parsed.signals, words["leads"])
    parsed = replace(parsed, signals=signals)
    _require_bounded(parsed, budget)  # signals that are leads only now
    staged: dict[str, str] = {}  # our names of the sample files, by the header's
    for number, (file, samples) in enumerate(_sample_files(parsed, name, others).items(), start=1):
        _require_length([line for line in signals if line.file == file], parsed.length, file, len(samples))
        staged[file] = f"samples{number}.dat"
        (folder / staged[file]).write_bytes(samples)
    path.write_text(_rewritten(parsed, staged), encoding="utf-8")
    return Staged(path.name, {**words, "leads": leads}, any(line.code != "16" for line in signals))


def _stated_rate(words: Words) -> float:
    if not isinstance(fs := words["fs"], float):
        raise WordsNeeded("header: sampling rate: the header does not say it: give it with the files")
    return fs


def _named(signals: tuple[Signal, ...], stated: object) -> tuple[tuple[Signal, ...], list[str] | None]:
    """The signals under the names that their sender gives them, or their own; and the leads he has named."""
    leads = [_lead(line) for line in signals]
    count = f"{len(signals)} signal{'s' if len(signals) > 1 else ''}"
    how = f"say which lead each of them is, in their order, and {NO_LEAD} for one that is none"
    if not isinstance(stated, list):
        if any(leads):
            return signals, None
        named = any(line.name for line in signals)
        names = "none named like an ECG lead (I, II, ..., V6)" if named else "none with a name"
        raise WordsNeeded(f"leads: the header has {count}, {names}: {how}")
    if len(stated) != len(signals):
        if any(leads):
            return signals, stated  # the leads alone
        raise WordsNeeded(f"leads: {len(stated)} names for {count}: {how}")
    for number, (lead, name) in enumerate(zip(leads, stated), start=1):
        if lead and name not in (lead, NO_LEAD):
            raise UploadError(f"leads: signal {number}: the file says {lead}, you say {name}: one is wrong, so decide")
    named = [name for name in stated if name != NO_LEAD]
    if not named:
        raise WordsNeeded(f"leads: none is left: {how}")
    return tuple(replace(line, name=name) for line, name in zip(signals, stated)), named


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
        if _lead(line) is None:
            continue
        scale = line.gain / millivolts(line.units, f"header: signal {number}")
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


def _lead(line: Signal) -> str | None:
    """Canonical name of a signal, empty where it has none (the caller may name it); None where it is not a lead."""
    try:
        return canonical_lead(line.name) if line.name else ""
    except ValueError:
        return None


def _rewritten(header: Header, staged: Mapping[str, str]) -> str:
    """The header, made anew of its numbers: no comment and no word of the sender is read after this."""
    rewritten = [f"header {len(header.signals)} {header.fs!r} {header.length}"]
    for number, line in enumerate(header.signals, start=1):
        lead = _lead(line)
        # Units of a lead are some that `millivolts` knew.
        gain = "1.0(0)/mV" if lead is None else f"{line.gain!r}({line.baseline})/{line.units}"
        name = f"signal{number}" if lead is None else lead
        checksum = line.checksum or 0  # 0: not known
        rewritten.append(f"{staged[line.file]} {line.code}+{line.offset} {gain} 0 0 0 {checksum} 0 {name}")
    return "\n".join(rewritten) + "\n"
