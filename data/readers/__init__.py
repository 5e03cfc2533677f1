"""Reads one ECG from a file of any known format: one dispatcher, one file per format.

To add a format, write its reader (`accepts`, `read`) and add an entry to `READERS`; `tests/data/test_readers.py` holds
the contract that every reader must pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.ecg import Ecg
from data.readers.arrays import is_csv, is_npy, read_csv, read_npy
from data.readers.common import Nan, Stated, first_bytes
from data.readers.wfdb import WfdbFolder, is_wfdb, read_wfdb, write_wfdb

__all__ = ["READERS", "Reader", "WfdbFolder", "read_ecg", "write_wfdb"]


@dataclass(frozen=True)
class Reader:
    """A format."""

    name: str  # what the user calls it
    accepts: Callable[[Path, bytes], bool]  # by its path and first bytes, of which there are none without a file
    read: Callable[[Path, Stated], Ecg]  # reads a file, as the caller of `read_ecg` states what it is


# In order of how surely the content tells: magic bytes, then a grammar, then mere columns of numbers.
READERS = (
    Reader("NumPy array (.npy)", is_npy, read_npy),
    Reader("WFDB record (.hea with .dat or .mat)", is_wfdb, read_wfdb),
    Reader("table (.csv, .tsv, .txt)", is_csv, read_csv),
)


def read_ecg(
    path: Path | str,
    *,
    fs: float | None = None,
    units: str | None = None,
    leads: Sequence[str] | None = None,
    nan: Nan = "raise",
) -> Ecg:
    """Read one recording, in millivolts.

    Args:
        path: The file; a WFDB record also by the name its files share.
        fs: Sampling rate, Hz. Needed where the file does not say; must agree where it does. So are the next two.
        units: Units of the samples: V, mV, uV, µV or nV, in any case.
        leads: Names of the signals, in order: one for each, or one for each that is not evidently something else
            (breathing, time). They rename signals (`["II", "V5"]` for MLII and V5), but no lead that the file names; an
            empty name or `"-"` says that a signal is not a lead.
        nan: What to do about missing samples: `"raise"`, or `"interpolate"`: between neighbours of the same lead, and
            leads of which more than half is missing are left out.

    Returns:
        The recording. Limb leads that it lacks are computed where two of I, II and III give them. Its `meta` tells what
        was done: `file`, `other_signals`, `repaired_samples`, `absent_leads`, `derived_leads` (see
        `data.readers.common.to_ecg`), and `quality`, what is wrong with the signal (`data.quality.SignalQuality`).

    Raises:
        ValueError: The file is missing, damaged, contradicts itself or the caller, or does not say what its numbers
            mean. Names the file, the field and what to do.
    """
    if isinstance(leads, str):
        raise ValueError(f"leads must be a list of names, got {leads!r}: split it")
    try:
        path = Path(path).expanduser()
        return _read(path, Stated(fs, units, leads, nan))
    except (OSError, RuntimeError) as error:  # no permission, a name that is too long, the home of nobody
        reason = str(error).rstrip(".")
        raise ValueError(f"{path}: cannot be opened: {reason}: check the path") from error


def _read(path: Path, stated: Stated) -> Ecg:
    head = first_bytes(path)
    reader = next((reader for reader in READERS if reader.accepts(path, head)), None)
    # Nothing but a WFDB record may be named without its suffix, so for the others the file itself must be there.
    if not head and not (reader and reader.read is read_wfdb):
        missing = f"missing, or not a regular file, and there is no record {path.name}.hea"
        raise ValueError(f"{path}: {'empty' if path.is_file() else missing}: check the path")
    if reader is None:
        raise ValueError(f"{path}: not a known format: expected a {', '.join(reader.name for reader in READERS)}")
    return reader.read(path, stated)
