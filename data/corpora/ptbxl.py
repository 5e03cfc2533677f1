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

import ast
import copy
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from data.corpora import register
from data.corpora.folder import CorpusFolder, table_rows, whole_number
from data.corpora.words import language_of, mended, without_voltage
from data.corpus import Traits
from data.ecg import Ecg

LABEL_COLUMNS = ("super_class", "sub_class", "form", "rhythm")
TRAIN_FOLDS = tuple(range(1, 9))  # what the makers recommend for training, and encoders are commonly pretrained on
VOLTAGE_CODES = frozenset({"LVOLT", "HVOLT", "VCLVH"})  # statements that need true millivolts

_NO_REPORT = "trace only requested"  # 70 of the reports say just that
_WHERE = "download PTB-XL from https://physionet.org/content/ptb-xl/ and pass the folder that holds this file"
_REQUIRED = ("ecg_id", "patient_id", "strat_fold", "filename_lr", "filename_hr", "age", "sex", "scp_codes")

# Sub-classes gather statements; these have no statement of their own name to describe them.
_SUB_CLASSES = {
    "STTC": "ST-T changes",
    "ISCA": "ischemic ST-T changes in anterior leads",
    "ISCI": "ischemic ST-T changes in inferior leads",
    "AVB": "AV block",
    "LAFB/LPFB": "left anterior or posterior fascicular block",
}


@register
class PtbXl(CorpusFolder):
    """PTB-XL: `source["1"]` is the recording of `ecg_id` 1.

    Records are those whose files are there, in ascending order; `listed` counts all that the table lists. `age` is in
    years (90 for "over 89", which the table codes as 300), None when unknown; `sex` is then empty.

    Raises:
        ValueError: The rate is not published, a table is missing or lacks a column, or no record is there.
    """

    name = "ptbxl"
    title = "PTB-XL"
    rates = (100, 500)
    train_folds = TRAIN_FOLDS
    languages = ("en", "de")

    def __init__(self, root: Path | str, rate: int = 100) -> None:
        super().__init__(root, rate)
        filename = "filename_lr" if rate == 100 else "filename_hr"
        self._database = self.root / "ptbxl_database.csv"
        listed = self._table("ptbxl_database.csv", _REQUIRED)
        self.listed = len(listed)
        rows = [row for row in listed if self._is_there(row[filename])]
        if not rows:
            raise ValueError(
                f"{self.root}: none of the records of ptbxl_database.csv is in records{rate}/{self._instead(listed)}"
            )
        self._statements = {row[""]: row for row in self._table("scp_statements.csv", ("", "description"))}
        self._rows = {str(self._whole(row, "ecg_id")): row for row in rows}
        if len(self._rows) < len(rows):
            raise ValueError(f"{self._database}: an ecg_id is there twice: download the table again")
        self._rows = dict(sorted(self._rows.items(), key=lambda item: int(item[0])))
        self._files = {record: self.root / f"{row[filename]}.hea" for record, row in self._rows.items()}
        self.records = tuple(self._rows)
        self.patient_of = {record: str(self._whole(row, "patient_id")) for record, row in self._rows.items()}
        self.fold_of = {record: self._whole(row, "strat_fold") for record, row in self._rows.items()}
        ages = {record: self._number(row, "age") if row["age"] else None for record, row in self._rows.items()}
        self.age = {record: 90.0 if age is not None and age > 89 else age for record, age in ages.items()}
        sexes = {"0": "male", "1": "female", "male": "male", "female": "female"}
        self.sex = {record: sexes.get(row["sex"].removesuffix(".0"), "") for record, row in self._rows.items()}

    def file_of(self, record_id: str) -> Path:
        """Header of a recording; `KeyError` when it was not there at the start."""
        return self._files[self._checked(record_id)]

    def __getitem__(self, record_id: str) -> Ecg:
        """The recording, with `patient_id`, and age and sex in `meta`; `KeyError` when its files are not there."""
        ecg = super().__getitem__(record_id)
        return replace(ecg, meta={**ecg.meta, "age": self.age[record_id], "sex": self.sex[record_id]})

    def without(self, records: Collection[str]) -> Self:
        """The corpus without some of its records."""
        part = copy.copy(self)
        part.records = tuple(record for record in self.records if record not in records)
        return part

    def traits(self, record_id: str) -> Traits:
        """Corpus, and sex and age where they are known."""
        traits = super().traits(record_id)
        if sex := self.sex[record_id]:
            traits["sex"] = sex
        if (age := self.age[record_id]) is not None:
            traits["age"] = age
        return traits

    def labels(self, kind: str) -> dict[str, tuple[str, ...] | None]:
        """Labels of every record: `super_class` (5 classes), `sub_class` (23), `form` (19) or `rhythm` (12).

        Sorted; `()` when a record is known to have none of this kind, None when nothing is known. They come from the
        table's column of that name, as benchmarks ship it, else from `scp_codes`; statements of every likelihood
        count, as in the makers' own benchmark, and names lose their outer underscores.

        Raises:
            ValueError: There is no such kind of label.
        """
        if kind not in LABEL_COLUMNS:
            raise ValueError(f"no labels {kind!r}: expected one of {', '.join(LABEL_COLUMNS)}")
        return {record: self._labels(record, kind) for record in self.records}

    def codes(self) -> dict[str, tuple[str, ...] | None]:
        """SCP-ECG statements of every record, of any likelihood, without outer underscores; None when unknown."""
        return {record: tuple(sorted({c.strip("_") for c in self._codes(record)})) or None for record in self.records}

    @property
    def code_names(self) -> tuple[str, ...]:
        """All statements of scp_statements.csv, sorted, without outer underscores."""
        return tuple(sorted(code.strip("_") for code in self._statements))

    def reports(self, records: Iterable[str], language: str = "en", *, voltage: bool = True) -> dict[str, str]:
        """Reports in one language, of those of `records` that have one.

        A report's language is `"en"`, `"de"`, `"sv"` or `"unknown"`: that of the most marker words, `"unknown"` without
        a winner. Column `report_en`, where it is filled in, is preferred to an English `report`. What an editor noted
        after `Edit:` is cut (it lists label codes), and so is the ECG cart's note that a report is unconfirmed.
        """
        return {record: text for record in records if (text := self._report(record, language, voltage))}

    def _report(self, record_id: str, language: str, voltage: bool) -> str:
        row = self._rows[self._checked(record_id)]
        for column in ("report_en", "report"):
            text = " ".join(re.split(r"\bEdit:", row.get(column) or "", flags=re.IGNORECASE)[0].split())
            if not text or text.lower().startswith(_NO_REPORT):
                continue
            if ("en" if column == "report_en" else language_of(text)) != language:
                continue
            text = mended(text) if language == "de" else text
            if text := text if voltage else without_voltage(text, language):
                return text
        return ""

    def statements(self, record_id: str, *, voltage: bool = True) -> str | None:
        """What is known of a record in English sentences: `Sinus rhythm. Normal ECG.` for example.

        Rhythm first, then diagnoses, then form. Made from `scp_codes` where they are known, with `possible` before a
        diagnosis of at most 50 % likelihood; otherwise from the labels.

        Without `voltage` it leaves out what only true millivolts can show: low or high voltage, hypertrophy by voltage.
        """
        codes = self._codes(self._checked(record_id))
        if codes:
            ranked = sorted(codes, key=lambda code: (self._rank(code), -codes[code]))
            # Likelihoods are given for diagnoses only: 0 means "not stated".
            doubted = [("possible " if 0 < codes[code] <= 50 else "", code) for code in ranked]
        else:
            kinds = (self._labels(record_id, column) or () for column in ("rhythm", "sub_class", "form"))
            doubted = [("", code) for labels in kinds for code in labels]
        texts = [doubt + self._describe(code) for doubt, code in doubted if voltage or code not in VOLTAGE_CODES]
        sentences = [f"{text[0].upper()}{text[1:]}." for text in dict.fromkeys(texts)]
        return " ".join(sentences) or None

    def _table(self, name: str, required: tuple[str, ...]) -> list[dict[str, str]]:
        if not (table := self.root / name).is_file():
            raise ValueError(f"{table}: missing: {_WHERE}")
        return list(table_rows(table, required, f"the table of PTB-XL; {_WHERE}"))

    def _is_there(self, filename: str) -> bool:
        return bool(filename) and (self.root / f"{filename}.hea").is_file()

    def _instead(self, listed: Iterable[Mapping[str, str]]) -> str:
        """What to do where no record of the rate is there."""
        other, column = (500, "filename_hr") if self.rate == 100 else (100, "filename_lr")
        if any(self._is_there(row[column]) for row in listed):
            return f", but records{other}/ is there: set rate: {other}"
        return f": {_WHERE}"

    def _whole(self, row: Mapping[str, str], column: str) -> int:
        self._number(row, column)
        try:
            return whole_number(row[column])
        except ValueError:
            raise self._wrong(row, column, "a whole number") from None

    def _number(self, row: Mapping[str, str], column: str) -> float:
        try:
            number = float(row[column])
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise self._wrong(row, column, "a number")
        return number

    def _wrong(self, row: Mapping[str, str], column: str, what: str) -> ValueError:
        where = f"{self._database}: ecg_id {row['ecg_id']}, {column}"
        return ValueError(f"{where}: {row[column]!r} is not {what}: download the table again")

    def _checked(self, record_id: str) -> str:
        if record_id not in self._rows:
            raise KeyError(f"no record {record_id!r} of {self.rate} Hz in {self.root}")
        return record_id

    def _labels(self, record: str, column: str) -> tuple[str, ...] | None:
        row, codes = self._rows[record], self._codes(record)
        if row.get(column):
            return tuple(sorted({name.strip("_") for name in self._parsed(record, column)}))
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
            where = f"{self._database}: ecg_id {record}, scp_codes: {', '.join(unknown)}"
            raise ValueError(f"{where} not in scp_statements.csv: take both tables from the same release")
        return codes

    def _parsed(self, record: str, column: str) -> Any:
        text = self._rows[record][column]
        try:
            return ast.literal_eval(text) if text else ()
        except (ValueError, SyntaxError) as error:
            where = f"{self._database}: ecg_id {record}, {column}"
            raise ValueError(f"{where}: {text[:80]!r} is not a Python literal") from error

    def _rank(self, code: str) -> tuple[bool, bool]:
        statement = self._statements[code]
        return not statement["rhythm"], not statement["diagnostic"]

    def _describe(self, code: str) -> str:
        """A code or a label in words."""
        statement = self._statements.get(code) or self._statements.get(f"{code}_")
        if statement is None:
            return _SUB_CLASSES.get(code, code)
        # "ischemic in lateral leads" and "non-specific ischemic" lack their noun.
        return re.sub(r"\bischemic\b", "ischemic ST-T changes", statement["description"])
