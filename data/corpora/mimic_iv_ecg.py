"""MIMIC-IV-ECG: some 800,000 diagnostic 12-lead ECGs of 10 s at 500 Hz with a machine's reports (Gow et al. 2023).

Source: https://physionet.org/content/mimic-iv-ecg/ (ODbL 1.0). Expected layout:

    root/record_list.csv             subject_id, study_id, file_name, ecg_time, path: one row per ECG
    root/machine_measurements.csv    subject_id, study_id, ..., report_0, ..., report_17, ...
    root/files/p1000/p10000032/s40689238/40689238.hea, .dat ...

A record is named by its `study_id`. At this size the files are not looked for at start-up: what record_list.csv lists
is taken to be there, and a record that is not says so when it is read. Beside a part of the corpus put a
record_list.csv of that part. Two numbers per record are held in memory, 13 MB for the whole corpus; reports are read
when asked for.

Age and sex are in the clinical database alone (MIMIC-IV, credentialed access). The corpus has no published split.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from data.corpora import register
from data.corpora.folder import CorpusFolder, table_columns, whole_number
from data.corpora.words import VOLTAGE_WORDS

_WHERE = "download MIMIC-IV-ECG from https://physionet.org/content/mimic-iv-ecg/ and pass the folder that holds it"
_MIN_WORDS = 4  # shorter reports are left out, as MELP leaves them out
_IDS = ("subject_id", "study_id")


@register
class MimicIvEcg(CorpusFolder):
    """MIMIC-IV-ECG: `source["40689238"]` is the recording of that `study_id`.

    Missing samples, of which the corpus is full, are interpolated; `meta["repaired_samples"]` counts them by lead.

    Attributes:
        patient_of: `subject_id` of each record, in ascending order of records.

    Raises:
        ValueError: record_list.csv is missing, lacks a column, breaks a row, or lists no record or one twice.
    """

    name = "mimic-iv-ecg"
    title = "MIMIC-IV-ECG"
    rates = (500,)
    languages = ("en",)

    def __init__(self, root: Path | str, rate: int = 500) -> None:
        super().__init__(root, rate)
        table = self.root / "record_list.csv"
        studies, subjects = array("q"), array("q")
        # The path follows from the ids; where it does not, it is kept.
        self._paths: dict[int, str] = {}
        for subject, study, row in _rows(table, ("path",)):
            subjects.append(subject)
            studies.append(study)
            if row[0] != _path(subject, study):
                if PurePosixPath(row[0]).is_absolute() or ".." in PurePosixPath(row[0]).parts:
                    raise ValueError(f"{table}: study_id {study}: path {row[0]!r} leads out of the corpus: correct it")
                self._paths[study] = row[0]
        if not studies:
            raise ValueError(f"{table}: lists no record: {_WHERE}")
        order = np.argsort(studies, kind="stable")
        patients = _Patients(np.array(studies)[order], np.array(subjects)[order])
        twice = np.flatnonzero(np.diff(patients.studies) == 0)
        if len(twice):
            raise ValueError(f"{table}: study_id {patients.studies[twice[0]]} is there twice: remove one row")
        self.records = self.patient_of = patients

    def file_of(self, record_id: str) -> Path:
        """Header of a recording, there or not; `KeyError` when record_list.csv does not list it."""
        if record_id not in self.patient_of:
            raise KeyError(f"no record {record_id!r} in {self.root / 'record_list.csv'}")
        path = self._paths.get(int(record_id)) or _path(int(self.patient_of[record_id]), int(record_id))
        return self.root / f"{path}.hea"

    def reports(self, records: Iterable[str], language: str = "en", *, voltage: bool = True) -> dict[str, str]:
        """The machine's English reports of those of `records` that have one.

        The up to 18 lines of a report are joined by full stops and put in lower case, without the asterisks and dashes
        around warnings; reports of fewer than four words are left out (as MELP does, Wang et al. 2025). Reads the table
        once from top to bottom.

        Raises:
            ValueError: machine_measurements.csv is missing, lacks a column, or breaks a row.
        """
        wanted = {int(record) for record in records if language == "en" and record in self.patient_of}
        reports = {}
        table = self.root / "machine_measurements.csv"
        for _, study, lines in _rows(table, tuple(f"report_{i}" for i in range(18))) if wanted else ():
            if study in wanted:
                sentences = [text for line in lines if (text := " ".join(line.lower().split()).strip("*-. "))]
                text = ". ".join(line for line in sentences if voltage or not VOLTAGE_WORDS.search(line))
                if len(text.split()) >= _MIN_WORDS:
                    reports[str(study)] = f"{text}."
        return reports


class _Patients(Mapping[str, str]):
    """Patient by record, over two sorted arrays: a dict of the whole corpus would take 200 MB."""

    def __init__(self, studies: NDArray[np.int64], subjects: NDArray[np.int64]) -> None:
        self.studies, self.subjects = studies, subjects

    def __getitem__(self, record: str) -> str:
        # "040689238" is the number of a record, not its name.
        study = int(record) if record.isascii() and record.isdecimal() and record[0] != "0" else -1
        place = int(np.searchsorted(self.studies, study))
        if place == len(self.studies) or self.studies[place] != study:
            raise KeyError(record)
        return str(self.subjects[place])

    def __iter__(self) -> Iterator[str]:
        return map(str, self.studies.tolist())

    def __len__(self) -> int:
        return len(self.studies)


def _path(subject: int, study: int) -> str:
    return f"files/p{str(subject)[:4]}/p{subject}/s{study}/{study}"


def _rows(table: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, int, list[str]]]:
    """Subject, study and the named columns of each row."""
    if not table.is_file():
        raise ValueError(f"{table}: missing: {_WHERE}")
    what = f"the table of MIMIC-IV-ECG; {_WHERE}"
    for line, (subject, study, *values) in table_columns(table, (*_IDS, *columns), what):
        try:
            yield whole_number(subject), whole_number(study), values
        except ValueError:
            raise ValueError(
                f"{table}: line {line}: {','.join((subject, study, *values))[:80]!r} is no row with a subject_id and a "
                "study_id: download the table again"
            ) from None
