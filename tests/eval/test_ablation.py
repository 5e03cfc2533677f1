import dataclasses
import json
import random
import subprocess
import sys

import pytest

from data.conversations.rows import answer_text
from eval import ablation
from eval import report as reporting
from eval.ablation import run, sample
from eval.answers import ScriptedResponder
from eval.score import answer_set, majority_by_question


@pytest.fixture
def picture():
    """For tests that look at the picture."""


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """Drawing takes half a second, which most tests need not wait for."""
    if "picture" not in request.fixturenames:
        monkeypatch.setattr(reporting, "draw", lambda report, path: path.write_bytes(b"picture"))


@pytest.fixture
def oracle(cohort):
    """Reads whatever ECG it is shown; says nothing without one."""
    return ScriptedResponder(
        lambda row, condition: answer_text(cohort.answer(row)) if row["ecgs"] and condition != "zero" else ""
    )


@pytest.fixture
def blind(cohort):
    """Knows the training questions by heart, looks at no ECG."""
    majority = majority_by_question(cohort.questions.train)
    return ScriptedResponder(lambda row, condition: answer_text(majority(row)).upper() + ".")


def test_a_reader_of_ecgs_is_right_only_with_the_right_ecg(cohort, oracle, tmp_path):
    report = run("models/oracle", responder=oracle, questions=cohort.questions, out=tmp_path)
    told = report["conditions"]
    assert told["real"]["accuracy"] == 1 and told["real"]["interval"] == [1, 1]
    assert told["zero"] == told["none"] and told["zero"]["accuracy"] == 0 and told["zero"]["empty"] == report["n"]
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    swapped = [line for line in lines if line["condition"] == "swap" and not line["control"]]
    by_hand = [
        set(cohort.answer({**line, "ecgs": line["donors"]})) == set(line["answer"])  # chance agreement with the donor
        for line in swapped
    ]
    assert told["swap"]["accuracy"] == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-6)
    assert 0.2 < told["swap"]["accuracy"] < 0.7
    gap = report["real_minus"]["swap"]
    assert gap["difference"] == pytest.approx(1 - told["swap"]["accuracy"], abs=1e-5)
    assert 0 < gap["interval"][0] < gap["difference"] < gap["interval"][1]
    assert "more often right" in reporting.finding(report)


def test_a_guesser_is_as_good_as_the_majority_under_every_condition(cohort, blind, tmp_path):
    report = run("models/blind", responder=blind, questions=cohort.questions, out=tmp_path)
    for block in (report, *report["by_type"].values(), *report["controls"].values()):
        for told in block["conditions"].values():
            assert told["accuracy"] == block["majority_by_question"] and told["interval"] == block["majority_interval"]
            assert told["unparsed"] == told["empty"] == 0
        assert all(gap == {"difference": 0, "interval": [0, 0]} for gap in block["real_minus"].values())
    assert "No difference" in reporting.finding(report)


@pytest.mark.parametrize(("words", "empty"), [(" . ", True), ("yes, I think", False)])
def test_no_answer_is_a_wrong_answer(cohort, tmp_path, words, empty):
    report = run("m", responder=ScriptedResponder(lambda *_: words), questions=cohort.questions, out=tmp_path)
    for told in report["conditions"].values():
        assert (told["accuracy"], told["n"], told["unparsed"]) == (0, report["n"], report["n"])
        assert told["empty"] == (report["n"] if empty else 0)


def test_controls_are_kept_out_of_the_headline(cohort, tmp_path):
    def fails_controls(row, condition):
        return "" if row["control"] else answer_text(row["answer"])

    report = run("m", responder=ScriptedResponder(fails_controls), questions=cohort.questions, out=tmp_path)
    ordinary = [row for row in cohort.questions.test if not row["control"]]
    assert report["n"] == len(ordinary) and report["conditions"]["real"]["accuracy"] == 1
    assert report["conditions"]["real"]["empty"] == 0
    assert report["excluded_controls"] == ["voltage"] == list(report["controls"])
    assert report["controls"]["voltage"]["conditions"]["real"]["accuracy"] == 0
    assert report["controls"]["voltage"]["n"] == len(cohort.questions.test) - len(ordinary)
    assert "voltage" not in report["by_attribute"] and "4" not in report["by_template"]
    text = (tmp_path / "report.md").read_text()
    assert "kept out of every number above" in text and "voltage" in text


def test_report_holds_what_readers_rely_on(cohort, oracle, tmp_path, picture):
    report = run("models/x", responder=oracle, questions=cohort.questions, out=tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert report["dataset"] == "tiny" and report["model"] == "models/x" and report["notes"] == cohort.questions.notes
    assert report["patients"] == 30
    assert list(report["by_type"]) == ["comparison_irrelevant-query", "single-query", "single-verify"]
    assert list(report["by_template"]) == ["1", "2", "3"]
    for groups in (report["by_type"], report["by_template"]):
        assert sum(block["n"] for block in groups.values()) == report["n"]
    assert set(report["by_attribute"]) == {"atrial fibrillation", "rhythm"}  # templates without attribute have none
    for block in (report, *report["by_type"].values(), *report["controls"].values()):
        assert list(block["conditions"]) == ["real", "zero", "none", "swap"]
        for told in block["conditions"].values():
            assert set(told) == {"accuracy", "interval", "n", "unparsed", "empty"}
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 4 * len(cohort.questions.test)
    rows = {row["id"]: row for row in cohort.questions.test}
    for line in lines:
        row = rows[line["id"]]
        assert list(line) == [
            "id", "condition", "prediction", "answer", "question", "question_type", "template_id", "attribute",
            "patient_ids", "ecgs", "donors", "control", "correct", "parsed",
        ]  # fmt: skip
        assert line["ecgs"] == row["ecgs"] and line["patient_ids"] == row["patient_ids"]
        assert len(line["donors"]) == (len(row["ecgs"]) if line["condition"] == "swap" else 0)
        assert line["correct"] == (line["parsed"] is not None and set(line["parsed"]) == answer_set(line["answer"]))
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "report.md").read_text()
    for needed in ("another patient's ECG", "Not a medical device", report["command"], "Two questions were dropped."):
        assert needed in text


def test_the_same_run_writes_the_same_bytes(cohort, oracle, tmp_path, picture):
    for _ in range(2):
        run("models/x", responder=oracle, questions=cohort.questions, out=tmp_path / "out")
        (tmp_path / "out").rename(tmp_path / f"run{len(list(tmp_path.glob('run*')))}")
    written = sorted(path.name for path in (tmp_path / "run0").iterdir())
    assert written == ["ablation.png", "predictions.jsonl", "report.json", "report.md"]  # and nothing temporary
    for name in written:
        assert (tmp_path / "run0" / name).read_bytes() == (tmp_path / "run1" / name).read_bytes(), name


def test_numbers_do_not_depend_on_the_order_of_questions(cohort, oracle, tmp_path):
    mixed = list(cohort.questions.test)
    random.Random(0).shuffle(mixed)
    first, second = (
        run(
            "m", responder=oracle, questions=dataclasses.replace(cohort.questions, test=rows), out=tmp_path, limit=limit
        )
        for rows, limit in ((cohort.questions.test, 50), (mixed, 50))
    )
    assert first == second


def test_a_failure_leaves_the_last_report(cohort, oracle, tmp_path):
    report = run("m", responder=oracle, questions=cohort.questions, out=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def lines():
        yield {"id": "new"}
        raise RuntimeError("full disk")

    with pytest.raises(RuntimeError, match="full disk"):
        reporting.write(tmp_path, {**report, "model": "new"}, lines())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_limited_run_asks_every_template_equally(cohort, oracle, tmp_path):
    rows = sample(cohort.questions.test, 42, seed=0)
    counts = [sum(row["template_id"] == template for row in rows) for template in (1, 2, 3, 4)]
    assert len(rows) == 42 and max(counts) - min(counts) <= 1
    assert [row["id"] for row in rows] == [row["id"] for row in cohort.questions.test if row in rows]
    assert rows == sample(cohort.questions.test, 42, seed=0) != sample(cohort.questions.test, 42, seed=1)
    assert sample(cohort.questions.test, 10_000, seed=0) == cohort.questions.test

    def donors(limit):
        run("m", responder=oracle, questions=cohort.questions, out=tmp_path / str(limit), limit=limit)
        lines = map(json.loads, (tmp_path / str(limit) / "predictions.jsonl").read_text().splitlines())
        return {line["id"]: line["donors"] for line in lines if line["condition"] == "swap"}

    few, all_ = donors(42), donors(None)
    assert len(few) == 42 and all(all_[id] == records for id, records in few.items())
    assert "a sample of 42 of 240" in (tmp_path / "42" / "report.md").read_text()


def test_some_conditions_only(cohort, oracle, tmp_path):
    report = run("m", responder=oracle, questions=cohort.questions, out=tmp_path, conditions=["none", "real", "none"])
    assert list(report["conditions"]) == ["none", "real"] and set(report["real_minus"]) == {
        "none",
        "majority_by_question",
    }
    assert "--conditions none real" in report["command"] and "cannot say" in (tmp_path / "report.md").read_text()
    report = run("m", responder=oracle, questions=cohort.questions, out=tmp_path, conditions=["swap"])
    assert report["real_minus"] == {}


def test_one_patient_gives_no_interval(cohort, oracle, tmp_path, picture):
    mine = [row for row in cohort.questions.test if set(row["patient_ids"]) == {"p40"}]
    questions = dataclasses.replace(cohort.questions, test=mine)
    report = run("m", responder=oracle, questions=questions, out=tmp_path, conditions=["real", "none"])
    assert report["conditions"]["real"]["interval"] == [None, None]
    assert "unknown" in (tmp_path / "report.md").read_text()
    with pytest.raises(ValueError, match=r"row 'p40-0/1' has no donors.*p40"):
        run("m", responder=oracle, questions=questions, out=tmp_path)


def test_questions_that_would_be_miscounted_are_refused(cohort, oracle, tmp_path):
    test = cohort.questions.test

    def refused(rows, match, **settings):
        questions = dataclasses.replace(cohort.questions, test=rows)
        with pytest.raises(ValueError, match=match):
            run("m", **{"responder": oracle, "questions": questions, "out": tmp_path, **settings})

    refused([*test, test[5]], f"two questions have the id '{test[5]['id']}'")
    refused([*test, {**test[0], "id": "orphan", "patient_ids": []}], "'orphan' names no patient")
    refused([row for row in test if row["control"]], "tiny: of 60 held-out questions none is other than a control")
    refused([], "of 0 held-out questions")
    refused(test, "unknown condition 'flip'", conditions=["flip"])
    refused(test, "limit must be positive", limit=0)

    class Lazy:
        def ask(self, rows, condition):
            return ["yes"]

    refused(test, r"condition 'real': 240 questions asked but 1 answers given", responder=Lazy())


def test_a_folder_without_a_model_says_what_to_do(tmp_path, capsys):
    for present, missing in (([], "config.json"), (["config.json"], "training.json")):
        for name in present:
            (tmp_path / name).write_text("{}")
        with pytest.raises(SystemExit) as stop:
            ablation.main(["--model", str(tmp_path)])
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert str(tmp_path) in error and missing in error and "recipes/sft_llava.py" in error
    assert not (tmp_path / "ablation").exists()


def test_command_line_prints_the_table_and_where_it_lies(cohort, oracle, tmp_path, capsys, monkeypatch):
    for name in ("config.json", "training.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(ablation, "load_questions", lambda folder: cohort.questions)
    monkeypatch.setattr(ablation, "load_responder", lambda folder, source, batch_size: oracle)
    ablation.main(["--model", str(tmp_path), "--limit", "100", "--conditions", "real", "swap"])
    printed = capsys.readouterr().out
    assert "another patient's ECG" in printed and str(tmp_path / "ablation") in printed
    assert (tmp_path / "ablation" / "report.json").exists()


def test_help_does_not_wait_for_torch():
    heavy = "{'torch', 'transformers', 'scipy', 'matplotlib'}"
    code = f"import sys, eval.ablation as a\ntry: a.main(['--help'])\nfinally: print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "--conditions" in done.stdout and done.stdout.endswith("set()\n")
