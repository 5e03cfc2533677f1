"""A question set's rows on the hub: they come back as they were, under their licence, and without recordings."""

import dataclasses
import os
import subprocess
import sys

import pytest
from huggingface_hub import DatasetCard

from data.card import dataset_card, licence_of, push_questions, sources_of
from data.conversations import load_questions
from data.conversations.rows import QuestionSet, question_row

READ = """
import json, sys
from datasets import load_dataset
found = {}
for name in ("questions", "reports"):
    for split, rows in load_dataset("owner/questions", name).items():
        found[f"{name} {split}"] = list(rows)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def questions():
    return load_questions("synthetic", patients=12, held_out_patients=6, questions=4, held_out_questions=3)


def rows_of(name, n=2, split="train", **settings):
    rows = [
        question_row(id=f"{split}{i}", ecgs=[f"{split}-{i}"], patient_ids=[f"p{split}{i}"], question_type="verify",
                     question="Is it?", answer=["yes"])
        for i in range(n)
    ]  # fmt: skip
    return QuestionSet(name, {}, "key", rows, [], [], {}, **settings)


@pytest.mark.slow
def test_rows_come_back_as_they_were(logged_in, questions, tmp_path):
    """By `load_dataset` in a process of its own, which reads HF_ENDPOINT when it starts."""
    import json

    push_questions(questions, "owner/questions", leaks=["No recording is there twice."])
    repo = logged_in.repos["dataset", "owner/questions"]
    assert repo.files.keys() == {
        ".gitattributes", "README.md", "data/questions-train.parquet", "data/questions-test.parquet",
        "data/reports-train.parquet", "data/reports-test.parquet",
    }  # fmt: skip
    assert len(repo.messages) == 2  # the first one made the repository
    environment = {**os.environ, **logged_in.environment(tmp_path / "home"), "HF_DATASETS_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    want = {"questions train": questions.train, "questions test": questions.test,
            "reports train": questions.reports, "reports test": questions.test_reports}  # fmt: skip
    assert found == want


def test_the_card_counts_what_is_there(questions):
    card = dataset_card(questions, "owner/questions", leaks=["No recording is there twice."])
    data = DatasetCard(card).data
    assert data.license == "mit" and data.task_categories == ["question-answering"]
    assert [config["config_name"] for config in data.to_dict()["configs"]] == ["questions", "reports"]
    patients = {patient for row in questions.test for patient in row["patient_ids"]}
    records = {record for row in questions.test for record in row["ecgs"]}
    kind = questions.test[0]["question_type"]
    counts = [sum(row["question_type"] == kind for row in rows) for rows in (questions.train, questions.test)]
    for words in (
        "Research use only.",
        "there are no recordings here",
        f"| questions, test | {len(questions.test)} | {len(patients)} | {len(records)} |",
        f"| {kind} | {counts[0]} | {counts[1]} |",
        "- Patients in both splits: 0; recordings in both: 0.",
        "- No recording is there twice.",
        "- simulated ECGs of this project: MIT.",
        *questions.notes,
        'load_dataset("owner/questions", "questions", split="test")',
    ):
        assert words in card, words
    assert "not ECG-QA" not in card
    leaking = dataclasses.replace(questions, test=questions.train[:1])
    assert "Patients in both splits: 1;" in dataset_card(leaking)


def test_derived_questions_are_not_called_ecg_qa():
    card = dataset_card(rows_of("ecgqa+ecgqa-derived", traits={"train-0": {"corpus": "ptb-xl"}}))
    assert "**Questions derived from labels are not ECG-QA.**" in card
    assert "- ECG-QA: CC BY 4.0" in card and "- PTB-XL: CC BY 4.0" in card
    assert DatasetCard(card).data.license == "cc-by-4.0"
    assert "- ECG-QA:" not in dataset_card(rows_of("ecgqa-derived"))


@pytest.mark.parametrize(
    ("words", "licence"),
    [
        (["simulated cohort"], "mit"),
        (["ecgqa", "ptb-xl"], "cc-by-4.0"),
        (["ecgqa", "mimic-iv-ecg"], "other"),
        (["MIMIC-IV-ECG"], "odbl"),
        (["our hospital"], "other"),
    ],
)
def test_licences_follow_from_sources(words, licence):
    assert licence_of(sources_of(words)) == licence


@pytest.mark.parametrize(
    "questions",
    [
        rows_of("ecgqa (mimic-iv-ecg)"),
        rows_of("ecgqa", traits={"train-0": {"corpus": "mimic-iv-ecg"}}),
        dataclasses.replace(rows_of("ecgqa"), source_key="mimic-iv-ecg /data 500 Hz"),
    ],
)
def test_text_about_patients_of_mimic_stays_private(logged_in, questions):
    with pytest.raises(ValueError, match="patients of MIMIC-IV.*: push to a private repository \\(--private\\)"):
        push_questions(questions, "owner/questions", licence="mit")
    assert not logged_in.repos
    push_questions(questions, "owner/questions", private=True)
    assert logged_in.repos["dataset", "owner/questions"].private


def test_rows_of_unknown_licence_need_one(logged_in):
    with pytest.raises(
        ValueError, match="rows of our hospital may be published is not known: state it \\(--license\\)"
    ):
        push_questions(rows_of("our hospital"), "owner/questions")
    push_questions(rows_of("our hospital"), "owner/questions", licence="cc0-1.0")
    card = logged_in.repos["dataset", "owner/questions"].files["README.md"].decode()
    assert "license: cc0-1.0" in card and "- Not stated: ask whoever made these questions." in card
