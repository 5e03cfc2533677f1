"""ECG-QA about simulated recordings in PTB-XL's layout, as small as a test needs it."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from data.readers import write_wfdb
from data.synthetic import SyntheticCohort

COLUMNS = ("ecg_id", "patient_id", "strat_fold", "filename_lr", "filename_hr", "age", "sex", "scp_codes", "report")
STATEMENTS = ",description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass\nSR,sinus rhythm,,,1.0,,\n"


def sample_file(root: Path, record: int) -> Path:
    """Where the samples of a record are."""
    return root / f"ptbxl/records100/00000/{record:05d}_lr.dat"


def ask(number: int, ecg_id: object, **changes: object) -> dict[str, object]:
    """A question in ECG-QA's schema."""
    return {
        "template_id": 1, "question_id": 1, "sample_id": number, "question_type": "single-verify",
        "attribute_type": "scp_code", "question": "Is there sinus rhythm?", "answer": ["yes"], "ecg_id": [ecg_id],
        "attribute": ["sinus rhythm"],
    } | changes  # fmt: skip


def write_ecg_qa(root: Path, folds: Mapping[int, int], asked: Mapping[str, Sequence[object]]) -> Path:
    """Records of 100 Hz by their folds, each of another patient, and questions about one ECG each, or whole ones."""
    ptbxl = root / "ptbxl"
    cohort = SyntheticCohort(12, records_per_patient=1, seed=4)
    ptbxl.mkdir(parents=True)
    with (ptbxl / "ptbxl_database.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for place, (record, fold) in enumerate(folds.items()):
            name = f"records100/00000/{record:05d}_lr"
            ecg = replace(cohort[cohort.records[place]], record_id=Path(name).name, meta={})
            write_wfdb(ecg, sample_file(root, record).parent)
            table.writerow(
                [record, f"{500 + record}.0", fold, name, "", 60, 1, "{'SR': 0.0}", "sinus rhythm. normal ecg."]
            )
    (ptbxl / "scp_statements.csv").write_text(STATEMENTS)
    for split, questions in asked.items():
        folder = root / "ecgqa/ptbxl/template" / split
        folder.mkdir(parents=True)
        rows = [each if isinstance(each, dict) else ask(number, each) for number, each in enumerate(questions)]
        (folder / "00000.json").write_text(json.dumps(rows))
    return root


def cut(path: Path, length: int) -> None:
    """Leave the first bytes of a file, as an interrupted download does."""
    path.write_bytes(path.read_bytes()[:length])
