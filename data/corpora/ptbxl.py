"""PTB-XL: 21,799 clinical 12-lead ECGs of 10 s with cardiologists' statements (Wagner et al., Scientific Data 2020).

Source: https://physionet.org/content/ptb-xl/ (CC BY 4.0). Expected layout:

    root/ptbxl_database.csv          one row per ECG
    root/scp_statements.csv          what the statements' codes mean
    root/records100/00000/00001_lr.hea, .dat ...    100 Hz
    root/records500/00000/00001_hr.hea, .dat ...    500 Hz

Only records whose files are there are listed, so a part of the corpus is a corpus. The ten folds (`strat_fold`) do not
share patients; the makers recommend 1-8 for training, 9 for validation and 10 for testing. Releases before 1.0.3 hold
38 recordings twice, under two ids each: `data.experiment.leaks` finds them where they lie on both sides of a split.
"""

from __future__ import annotations

import ast
import csv
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.ecg import Ecg
from data.readers import read_ecg

LABEL_COLUMNS = ("super_class", "sub_class", "form", "rhythm")
TRAIN_FOLDS = tuple(range(1, 9))  # what the makers recommend for training, and encoders are commonly pretrained on
VOLTAGE_CODES = frozenset({"LVOLT", "HVOLT", "VCLVH"})  # statements that need true millivolts

_WHERE = "download PTB-XL from https://physionet.org/content/ptb-xl/ and pass the folder that holds this file"
_REQUIRED = ("ecg_id", "patient_id", "strat_fold", "filename_lr", "filename_hr", "age", "sex", "scp_codes")

# Words that reports in one language have and those in the others do not. PTB-XL's are lower-case machine text in
# English or German, a few in Swedish. On all 8,982 reports of release 1.0.3's public labels this leaves ten undecided.
_MARKERS = {
    "en": r"rhythm|ecg|waves?|leads?|are|is|the|this|these|of|with|and|may|be|branch|bundle|contraction|pathology|"
    r"tachycardia|bradycardia|fibrillation|flutter|complexes|prolonged|deviation|rotation",
    "de": r"sinus(rhythmus|tachykardie|bradykardie)|rhythmus|arrhythmie|vorhofflimmern|(lage|links|rechts|steil)typ|"
    r"ekg|bericht|nicht|oder|mit|und|wahrscheinlich|infarkt|myokardschaden|(rechts|links)?schenkelblock|schrittmacher|"
    r"ableitungen|unspezifisches|pathologisches|verdacht",
    "sv": r"sinusrytm|rytm|och|ej|ingen|inga|inget|för|vänster|höger|normalt|patologiskt|extraslag",
}
VOLTAGE_WORDS = re.compile(r"voltage|sokolow|\blvh\b", re.IGNORECASE)
# German reports come without full stops: a phrase is cut out, and what cannot be is known by its words.
_GERMAN_VOLTAGE = re.compile(
    r"\b((periphere|zentrale|allgemeine)\s+)?(niederspannung(s-ekg)?|low\s?voltage|niedervoltage)\b"
    r"|\b((mässige|deutliche)\s+)?amplitudenkriterien\s+für\s+(links|rechts)hypertrophie\b"
)
_GERMAN_VOLTAGE_WORDS = re.compile(r"volt|spannung|amplitud|sokolow")
# The ECG cart's program version, and its "unconfirmed report", cut off where the table's field ended.
_GERMAN_FOOTER = re.compile(r"\s*\b(4\.\d\d(\s+unbest\w*(\s+b\w*)?)?|unbestätigter?\s+b\w*)$")
_NO_REPORT = "trace only requested"  # 70 of the reports say just that

# Sub-classes gather statements; these have no statement of their own name to describe them.
_SUB_CLASSES = {
    "STTC": "ST-T changes",
    "ISCA": "ischemic ST-T changes in anterior leads",
    "ISCI": "ischemic ST-T changes in inferior leads",
    "AVB": "AV block",
    "LAFB/LPFB": "left anterior or posterior fascicular block",
}


class PtbXl:
    """PTB-XL as an `EcgSource`: `source["1"]` is the recording of `ecg_id` 1.

    Attributes:
        root: The folder described above.
        rate: Which of the two published sampling rates is read, Hz.
        records: Ids whose files are there, in ascending order.
        listed: How many records the table lists, there or not.
        patient_of: Patient of each record.
        fold_of: `strat_fold` (1-10) of each record.
        age: Age in years of each record's patient; 90 for "over 89", which the table codes as 300; None when unknown.
        sex: `"female"` or `"male"` of each record's patient; empty when unknown.

    Raises:
        ValueError: The rate is not published, a table is missing or lacks a column, or no record is there.
    """

    def __init__(self, root: Path | str, rate: int = 100) -> None:
        if rate not in (100, 500):
            raise ValueError(f"PTB-XL is published at 100 and 500 Hz, not at {rate}: resample after reading")
        self.root, self.rate = Path(root), rate
        filename = "filename_lr" if rate == 100 else "filename_hr"
        table = self.root / "ptbxl_database.csv"
        listed = _read_table(table, _REQUIRED)
        self.listed = len(listed)
        rows = [row for row in listed if (self.root / f"{row[filename]}.hea").is_file()]
        if not rows:
            raise ValueError(f"{self.root}: none of the records of ptbxl_database.csv is in records{rate}/: {_WHERE}")
        self._statements = {row[""]: row for row in _read_table(self.root / "scp_statements.csv", ("", "description"))}
        self._rows = {str(int(self._number(row, "ecg_id"))): row for row in rows}
        if len(self._rows) < len(rows):
            raise ValueError(f"{table}: an ecg_id is there twice: download the table again")
        self._rows = dict(sorted(self._rows.items(), key=lambda item: int(item[0])))
        self._files = {record: self.root / f"{row[filename]}.hea" for record, row in self._rows.items()}
        self.records = tuple(self._rows)
        # The table writes ids as decimals: 15709.0.
        self.patient_of = {record: str(int(self._number(row, "patient_id"))) for record, row in self._rows.items()}
        self.fold_of = {record: int(self._number(row, "strat_fold")) for record, row in self._rows.items()}
        ages = {record: self._number(row, "age") if row["age"] else None for record, row in self._rows.items()}
        self.age = {record: 90.0 if age is not None and age > 89 else age for record, age in ages.items()}
        sexes = {"0": "male", "1": "female", "male": "male", "female": "female"}
        self.sex = {record: sexes.get(row["sex"].removesuffix(".0"), "") for record, row in self._rows.items()}

    @property
    def key(self) -> str:
        """A name for these recordings, for caches of what is made of them."""
        return f"ptbxl {self.root.resolve()} {self.rate} Hz"

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, record_id: str) -> Ecg:
        """The recording, with `patient_id`, and age and sex in `meta`; `KeyError` when its files are not there."""
        ecg = read_ecg(self._files[self._known(record_id)], fs=self.rate)
        meta = {**ecg.meta, "age": self.age[record_id], "sex": self.sex[record_id]}
        return replace(ecg, record_id=record_id, patient_id=self.patient_of[record_id], meta=meta)

    def labels(self, column: str) -> dict[str, tuple[str, ...] | None]:
        """Labels of every record, by name.

        Args:
            column: `super_class` (5 classes), `sub_class` (23), `form` (19) or `rhythm` (12).

        Returns:
            Sorted labels of each record: `()` when it is known to have none of this kind, None when nothing is known.
            Labels come from the table's column of that name, as benchmarks ship it, else from `scp_codes`; statements
            of every likelihood count, as in the makers' own benchmark, and names lose their outer underscores.

        Raises:
            ValueError: There is no such kind of label.
        """
        if column not in LABEL_COLUMNS:
            raise ValueError(f"no labels {column!r}: expected one of {', '.join(LABEL_COLUMNS)}")
        return {record: self._labels(record, column) for record in self.records}

    def codes(self) -> dict[str, tuple[str, ...] | None]:
        """SCP-ECG statements of every record, of any likelihood, without outer underscores; None when unknown."""
        found = {record: self._codes(record) for record in self.records}
        return {record: tuple(sorted({c.strip("_") for c in codes})) or None for record, codes in found.items()}

    @property
    def code_names(self) -> tuple[str, ...]:
        """All statements of scp_statements.csv, sorted, without outer underscores."""
        return tuple(sorted(code.strip("_") for code in self._statements))

    def reports(self, records: Iterable[str], language: str = "en", *, voltage: bool = True) -> dict[str, str]:
        """Reports in one language, of those of `records` that have one.

        A report's language is `"en"`, `"de"`, `"sv"` or `"unknown"`: that of the most marker words, `"unknown"` without
        a winner. Column `report_en`, where it is filled in, is preferred to an English `report`. What an editor noted
        after `Edit:` is cut (it lists label codes), and so is the ECG cart's note that a report is unconfirmed.

        Args:
            records: Record ids.
            language: Which language.
            voltage: Whether to keep what is said of voltage, which only true millivolts can show.
        """
        found = {record: self._report(record, language, voltage) for record in records}
        return {record: text for record, text in found.items() if text}

    def _report(self, record_id: str, language: str, voltage: bool) -> str:
        row = self._rows[self._known(record_id)]
        for column in ("report_en", "report"):
            text = " ".join(re.split(r"\bEdit:", row.get(column) or "", flags=re.IGNORECASE)[0].split())
            if not text or text.lower().startswith(_NO_REPORT):
                continue
            if ("en" if column == "report_en" else _language(text)) != language:
                continue
            text = _mended(text) if language == "de" else text
            if text := text if voltage else _without_voltage(text, language):
                return text
        return ""

    def statements(self, record_id: str, *, voltage: bool = True) -> str | None:
        """What is known of a record in English sentences: `Sinus rhythm. Normal ECG.` for example.

        Rhythm first, then diagnoses, then form. Made from `scp_codes` where they are known, with `possible` before a
        diagnosis of at most 50 % likelihood; otherwise from the labels.

        Args:
            record_id: The record.
            voltage: Whether to say what only true millivolts can show (low or high voltage, hypertrophy by voltage).

        Returns:
            The sentences; None when nothing is known.
        """
        codes = self._codes(self._known(record_id))
        if codes:
            ranked = sorted(codes, key=lambda code: (self._rank(code), -codes[code]))
            # Likelihoods are given for diagnoses only: 0 means "not stated".
            said = [("possible " if 0 < codes[code] <= 50 else "", code) for code in ranked]
        else:
            kinds = (self._labels(record_id, column) or () for column in ("rhythm", "sub_class", "form"))
            said = [("", code) for labels in kinds for code in labels]
        texts = [doubt + self._describe(code) for doubt, code in said if voltage or code not in VOLTAGE_CODES]
        sentences = [f"{text[0].upper()}{text[1:]}." for text in dict.fromkeys(texts)]
        return " ".join(sentences) or None

    def _number(self, row: Mapping[str, str], column: str) -> float:
        try:
            number = float(row[column])
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(
                f"{self.root / 'ptbxl_database.csv'}: ecg_id {row['ecg_id']}, {column}: {row[column]!r} is not a "
                "number: download the table again"
            )
        return number

    def _known(self, record_id: str) -> str:
        if record_id not in self._rows:
            raise KeyError(f"no record {record_id!r} of {self.rate} Hz in {self.root}")
        return record_id

    def _labels(self, record: str, column: str) -> tuple[str, ...] | None:
        row, codes = self._rows[record], self._codes(record)
        given = self._parsed(record, column) if row.get(column) else None
        if given is not None:
            return tuple(sorted({name.strip("_") for name in given}))
        if codes:
            names = (self._label(self._statements[code], code, column) for code in codes)
            return tuple(sorted({name.strip("_") for name in names if name}))
        # The label columns cover all records: an empty one says "none of this kind". Empty codes say nothing.
        return () if column in row else None

    @staticmethod
    def _label(statement: Mapping[str, str], code: str, column: str) -> str:
        if column in ("form", "rhythm"):
            return code if statement[column] else ""
        return statement["diagnostic_class" if column == "super_class" else "diagnostic_subclass"]

    def _codes(self, record: str) -> dict[str, float]:
        """Code to likelihood (percent); empty when unknown: every ECG of the corpus has a statement."""
        codes = {code: float(likelihood) for code, likelihood in dict(self._parsed(record, "scp_codes")).items()}
        if unknown := sorted(set(codes) - set(self._statements)):
            raise ValueError(
                f"{self.root / 'ptbxl_database.csv'}: ecg_id {record}, scp_codes: {', '.join(unknown)} not in "
                "scp_statements.csv: take both tables from the same release"
            )
        return codes

    def _parsed(self, record: str, column: str) -> Any:
        text = self._rows[record][column]
        try:
            return ast.literal_eval(text) if text else ()
        except (ValueError, SyntaxError) as error:
            table = self.root / "ptbxl_database.csv"
            raise ValueError(f"{table}: ecg_id {record}, {column}: {text[:80]!r} is not a Python literal") from error

    def _rank(self, code: str) -> int:
        statement = self._statements[code]
        return 0 if statement["rhythm"] else 1 if statement["diagnostic"] else 2

    def _describe(self, code: str) -> str:
        """A code or a label in words."""
        statement = self._statements.get(code) or self._statements.get(f"{code}_")
        if statement is None:
            return _SUB_CLASSES.get(code, code)
        # "ischemic in lateral leads" and "non-specific ischemic" lack their noun.
        return re.sub(r"\bischemic\b", "ischemic ST-T changes", statement["description"])


def _language(text: str) -> str:
    counts = {language: len(re.findall(rf"\b({words})\b", text.lower())) for language, words in _MARKERS.items()}
    best = max(counts.values())
    winners = [language for language, count in counts.items() if count == best]
    return winners[0] if best and len(winners) == 1 else "unknown"


def _mended(text: str) -> str:
    """A German report with its umlauts, which the table holds as capitals in lower-case text or as `#`."""
    text = text.translate(str.maketrans("ÄÖÜ", "äöü")).replace("#", "ü")
    return _GERMAN_FOOTER.sub("", text)


def _without_voltage(text: str, language: str) -> str:
    words = VOLTAGE_WORDS
    if language == "de":
        text, words = " ".join(_GERMAN_VOLTAGE.sub(" ", text).split()), _GERMAN_VOLTAGE_WORDS
    return " ".join(sentence for sentence in re.split(r"(?<=\.)\s", text) if not words.search(sentence.lower()))


def _read_table(path: Path, required: tuple[str, ...]) -> list[dict[str, str]]:
    if not path.is_file():
        raise ValueError(f"{path}: missing: {_WHERE}")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if lacking := [column for column in required if column not in (reader.fieldnames or ())]:
            raise ValueError(f"{path}: no column {', '.join(map(repr, lacking))}: not the table of PTB-XL; {_WHERE}")
        return list(reader)
