"""The same recording as files of each format, for tests of the readers."""

from pathlib import Path

import numpy as np

from data.ecg import LEADS

FS, SAMPLES = 250, 501
WORDS = {"fs": FS, "units": "mV", "leads": LEADS}


def waves() -> np.ndarray:
    """12 leads that are multiples of 1 uV, all different."""
    return np.rint(np.random.default_rng(0).uniform(-1500, 1500, (12, SAMPLES))) / 1000


def header(
    folder: Path, record="r {n} 250 501", line="r.dat 16 1000/mV 16 0 0 {sum} 0 {lead}", leads=LEADS, more=""
) -> Path:
    """A record whose header is made of these lines."""
    stored = np.rint(waves()[: len(leads)] * 1000).astype("<i2")
    (folder / "r.dat").write_bytes(stored.T.tobytes())
    lines = [line.format(lead=lead, sum=int(row.sum(dtype=int)) % 65536) for lead, row in zip(leads, stored)]
    path = folder / "r.hea"
    path.write_text("\n".join([record.format(n=len(leads)), *lines]) + "\n" + more)
    return path


def npy(folder: Path, array: np.ndarray | None = None, **kwargs) -> Path:
    path = folder / "r.npy"
    np.save(path, waves() if array is None else array, **kwargs)
    return path


def table(folder: Path, header_row: bool = True, array: np.ndarray | None = None) -> Path:
    rows = [",".join(LEADS)] * header_row + [",".join(map(str, row)) for row in (waves() if array is None else array).T]
    path = folder / "r.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def signal_line(**changed) -> str:
    words = {
        "file": "r.dat",
        "format": "16",
        "gain": "1000/mV",
        "zero": "0",
        "sum": "{sum}",
        "lead": "{lead}",
    } | changed
    return "{file} {format} {gain} 16 {zero} 0 {sum} 0 {lead}".format(**words)
