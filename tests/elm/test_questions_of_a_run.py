"""The questions of a run: what is refused before anything is trained, and what is left out with a word."""

import dataclasses
import json
from dataclasses import replace

import pytest

from data.conversations import load_questions
from data.conversations.readable import readable_questions
from data.conversations.rows import QuestionSet, question_row
from data.synthetic import SyntheticCohort
from elm.saved.arguments import ElmArguments
from elm.saved.folder import save
from elm.saved.run import SavedRun, fitting, questions_for
from elm.training.run import for_training
from encoders import new_encoder
from helpers.ecg_qa import ask, cut, sample_file, write_ecg_qa

FOLDS = {1: 1, 2: 2, 3: 8, 9: 9}
LIMBS = ("I", "II", "III", "aVR", "aVL", "aVF")
COHORT = SyntheticCohort(4, records_per_patient=1, seed=5)


@pytest.fixture
def root(tmp_path):
    return write_ecg_qa(tmp_path / "qa", FOLDS, {"train": [1, 2, 3], "valid": [9], "test": []})


@pytest.fixture
def arguments(tmp_path):
    def make(root, dataset=None, **changes):
        settings = {"root": str(root), "sets": ["ecgqa"]} | (dataset or {})
        cache = str(tmp_path / "cache")
        return ElmArguments(dataset="ecg_qa", dataset_args=settings, cache_dir=cache, **changes)

    return make


def some_leads(train, test):
    """Questions about recordings with these leads, read."""
    leads, rows = dict(enumerate([*train, *test])), []
    source = {f"r{i}": COHORT[COHORT.records[i]].select(names) for i, names in leads.items()}
    for record in source:
        rows.append(
            question_row(
                id=record, ecgs=[record], patient_ids=[record], question_type="single-verify", question="Is it?",
                answer=["yes"],
            )
        )  # fmt: skip
    made = QuestionSet("ours", source, "ours", rows[: len(train)], rows[len(train) :], [], {r: r for r in source})
    return readable_questions(made, "refuse")


def test_all_samples_are_read_and_the_policy_is_that_of_the_run(root, arguments):
    sample_file(root, 2).write_bytes(bytes(24000))
    header = sample_file(root, 2).with_suffix(".hea")
    lines = [line.split() for line in header.read_text().splitlines()]
    header.write_text(
        "\n".join(" ".join([*words[:6], "0", *words[7:]] if len(words) > 5 else words) for words in lines)
    )
    assert len(load_questions("ecg_qa", root=root, sets=["ecgqa"]).train) == 3, "all files are whole"
    with pytest.raises(
        ValueError, match="1 recording of 4 cannot be read:\n  2: no model can read this recording: Flat"
    ):
        questions_for(arguments(root))
    left = questions_for(arguments(root, unreadable="leave_out"))
    assert [row["ecgs"] for row in left.train] == [["1"], ["3"]] and "1 recording that cannot be read" in left.notes[-1]
    assert len(questions_for(arguments(root), read=False).train) == 3
    with pytest.raises(ValueError, match="unreadable must be one of refuse, leave_out, got 'skip'"):
        arguments(root, unreadable="skip")
    with pytest.raises(ValueError, match="dataset_args: unreadable is no setting of a question set: give --unreadable"):
        questions_for(arguments(root, {"unreadable": "leave_out"}))


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"train": [9], "valid": [9]}, "1 training questions dropped: their ECGs are in a test fold"),
        ({"train": [44, 45], "valid": [9]}, "2 training questions dropped: their ECGs are not on disk"),
        ({"train": [], "valid": [9]}, "0 training and 1 test questions"),
    ],
)
def test_nothing_to_train_on_is_told_with_the_counts(tmp_path, arguments, asked, why):
    root = write_ecg_qa(tmp_path / "qa", FOLDS, asked)
    left = "ecgqa: there is nothing to train on: no training question is left, and 1 of the test"
    with pytest.raises(ValueError, match=f"{left}.*{why}"):
        questions_for(arguments(root, question_types=["single-verify"]))


def test_nothing_may_be_left_once_recordings_are_left_out(root, arguments):
    for record in (1, 2, 3):
        cut(sample_file(root, record), 10)
    with pytest.raises(ValueError, match="nothing to train on.* 3 recordings that cannot be read were left out"):
        questions_for(arguments(root, unreadable="leave_out"))


def test_a_run_needs_questions_for_its_audit_and_reports_for_its_stages(tmp_path, arguments):
    noise = ask(0, 9, attribute_type="noise", attribute=["static noise"])
    root = write_ecg_qa(tmp_path / "qa", FOLDS, {"train": [1], "valid": [noise]})
    settings = arguments(root, encoder="ecg_patch")
    questions = questions_for(settings)
    with pytest.raises(ValueError, match="ecgqa has no held-out question for the audit: give --ablation false"):
        for_training(settings, questions)
    without = dataclasses.replace(settings, ablation=False)
    assert for_training(without, questions) is questions
    align = dataclasses.replace(without, align_steps=3)
    with pytest.raises(ValueError, match="ecgqa has no reports for the align stage: give --align_steps 0"):
        for_training(align, replace(questions, reports=[]))
    assert for_training(dataclasses.replace(align, train_condition="none"), replace(questions, reports=[])).train


def test_leads_that_the_encoder_needs_are_looked_for():
    _, twelve = new_encoder("ecg_patch")
    _, limbs = new_encoder("ecg_patch", in_channels=6, leads=LIMBS)
    questions = some_leads([COHORT[COHORT.records[0]].leads, LIMBS], [LIMBS, ("I", "II")])
    lacking = "3 recordings of 4 cannot be read:\n  r1: the encoder cannot take it: has no lead V1, V2, V3"
    with pytest.raises(ValueError, match=lacking):
        fitting(questions, twelve, "refuse")
    left = fitting(questions, twelve, "leave_out")
    assert [row["id"] for row in (*left.train, *left.test)] == ["r0"] and left.notes[-1].startswith("3 recordings that")
    assert [row["id"] for row in fitting(questions, limbs, "leave_out").test] == ["r2"]
    assert fitting(left, twelve, "refuse") is left


def test_where_no_recording_has_the_leads_nothing_is_left():
    with pytest.raises(ValueError, match="ours: there is nothing to train on"):
        fitting(some_leads([LIMBS], [LIMBS]), new_encoder("ecg_patch")[1], "leave_out")


def test_a_tiny_encoder_is_not_trained_before_the_leads_are_known():
    questions = some_leads([COHORT[COHORT.records[0]].leads], [LIMBS])
    with pytest.raises(ValueError, match="r1: the encoder cannot take it"):
        for_training(ElmArguments(encoder="tiny"), questions)


def test_an_audit_treats_recordings_as_the_training_did(make_pair, tmp_path, root, arguments):
    cut(sample_file(root, 2), 10)
    settings = arguments(root, unreadable="leave_out")
    training = {
        "dataset_name": "x", "notes": [], "language_model": "tiny", "train_condition": "real",
        "arguments": dataclasses.asdict(settings),
    }  # fmt: skip
    saved = SavedRun(save(*make_pair("beats", pool=2), tmp_path / "model", training=training))
    assert json.loads((saved.folder / "training.json").read_text())["arguments"]["unreadable"] == "leave_out"
    assert [row["ecgs"] for row in saved.questions.train] == [["1"], ["3"]]
    assert saved.fitting(saved.questions) is saved.questions
    few = some_leads([COHORT[COHORT.records[0]].leads], [("I", "II")])
    assert saved.fitting(few).test == [] and "has no lead" in saved.fitting(few).notes[-1]
