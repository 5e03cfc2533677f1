"""A question set for ecg-elm: WFDB records, and a table that says what each of them shows.

`root/labels.csv` has the columns record, patient and split (train or test), and one for each finding: yes, no or empty.
"""

import csv
from pathlib import Path

from data.conversations.rows import QuestionSet, question_row
from data.readers.wfdb import WfdbFolder


def load(root):
    with (Path(root) / "labels.csv").open(newline="", encoding="utf-8") as file:
        labels = list(csv.DictReader(file))
    rows = {"train": [], "test": []}
    for label in labels:
        findings = label.keys() - {"record", "patient", "split"}
        for number, finding in enumerate(sorted(findings)):
            if label[finding]:
                row = question_row(
                    id=f"{label['record']}/{finding}",
                    ecgs=[label["record"]],
                    patient_ids=[label["patient"]],
                    question_type="single-verify",
                    template_id=number,
                    attribute=finding,
                    question=f"Does this ECG show {finding}?",
                    answer=[label[finding]],
                )
                rows[label["split"]].append(row)
    return QuestionSet(
        name=f"table of {len(labels)} records",
        source=WfdbFolder(root),
        source_key=f"table {Path(root).resolve()}",
        train=rows["train"],
        test=rows["test"],
        reports=[],
        patient_of={label["record"]: label["patient"] for label in labels},
    )
