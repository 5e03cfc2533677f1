import dataclasses
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from data.conversations.rows import answer_text
from data.conversations.synthetic import load
from data.experiment.conditions import CONDITIONS, Altered
from data.experiment.planted import DOSES
from elm.saved import card
from elm.saved.run import SavedRun
from eval import ablation as door
from eval.answerers.scripted import ScriptedResponder
from eval.audit import run as ablation
from eval.audit.plan import sample
from eval.audit.settings import AuditSettings
from eval.report import write as reporting
from eval.report.headline import finding
from eval.scoring.answers import answer_set, majority_by_question
from eval.scoring.results import Report


def run(model, *, responder, questions, **settings):
    """What report.json holds."""
    settings = AuditSettings(model=Path(model), **settings)
    return ablation.run(settings, responder=responder, questions=questions).to_json()


def finding_of(report):
    return finding(Report.from_json(report))


@pytest.fixture
def picture():
    """For tests that look at the pictures."""


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """Drawing takes half a second, which most tests need not wait for."""
    if "picture" not in request.fixturenames:
        monkeypatch.setattr(reporting, "draw", lambda report: {})


@pytest.fixture
def oracle(cohort):
    """Reads whatever ECG it is shown; says nothing without one."""
    return ScriptedResponder(
        lambda row, condition: answer_text(cohort.answer(row)) if row["ecgs"] and condition != "zero" else "",
        name="oracle",
    )


@pytest.fixture
def blind(cohort):
    """Knows the training questions by heart, looks at no ECG."""
    majority = majority_by_question(cohort.questions.train)
    return ScriptedResponder(lambda row, condition: answer_text(majority(row)).upper() + ".", name="blind")


@pytest.fixture
def sure(cohort):
    """Reads whatever ECG it is shown, and says how sure it is: nine to one, or evenly without an ECG."""

    def score(row, condition, options):
        if condition in ("zero", "mean") or not row["ecgs"] or any("~" in record for record in row["ecgs"]):
            return [-1.0] * len(options)
        right = answer_text(cohort.answer(row))
        return [-0.1 if option == right else -2.3 for option in options]

    def say(row, condition):
        return answer_text(cohort.answer(row)) if row["ecgs"] and "~" not in row["ecgs"][0] else "no"

    return ScriptedResponder(say, score, name="sure")


def lines_of(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_a_reader_of_ecgs_is_right_only_with_the_right_ecg(cohort, oracle, tmp_path):
    report = run("models/oracle", responder=oracle, questions=cohort.questions, out=tmp_path)
    told = report["conditions"]
    assert told["real"]["accuracy"] == 1 and told["real"]["interval"] == [1, 1]
    assert told["zero"] == told["none"] and told["zero"]["accuracy"] == 0 and told["zero"]["empty"] == report["n"]
    lines = lines_of(tmp_path)
    swapped = [line for line in lines if line["condition"] == "swap" and not line["control"]]
    by_hand = [
        set(cohort.answer({**line, "ecgs": line["donors"]})) == set(line["answer"])  # chance agreement with the donor
        for line in swapped
    ]
    assert told["swap"]["accuracy"] == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-6)
    gap = report["real_minus"]["swap"]
    assert 0 < gap["interval"][0] < gap["difference"] < gap["interval"][1]
    flipped = [line for line in lines if line["condition"] == "swap-flip" and not line["control"]]
    assert flipped and all(cohort.answer({**line, "ecgs": line["donors"]}) == line["shown_answer"] for line in flipped)
    assert all(line["shown_answer"] != line["answer"] and not line["correct"] for line in flipped)
    assert report["flips"]["gap"] == report["flips"]["paired_flip"] == 1 and report["flips"]["n"] == len(flipped)
    assert report["verdict"]["verdict"] == "reads" and "The model reads the ECG." in finding_of(report)


def test_a_guesser_is_as_good_as_the_majority_under_every_condition(cohort, blind, tmp_path):
    report = run("models/blind", responder=blind, questions=cohort.questions, out=tmp_path)
    for block in (report, *report["by_type"].values(), *report["controls"].values()):
        for name, told in block["conditions"].items():
            assert told["unparsed"] == told["empty"] == 0
            if name != "swap-flip":  # asked of some questions only
                assert told["accuracy"] == block["majority_by_question"]
                assert told["interval"] == block["majority_interval"]
            assert block["real_minus"].get(name, {"difference": 0})["difference"] == 0
    assert report["verdict"]["verdict"] == "ignores" and "The model ignores the ECG." in finding_of(report)


@pytest.mark.parametrize(("words", "empty"), [(" . ", True), ("yes, I think", False)])
def test_no_answer_is_a_wrong_answer(cohort, tmp_path, words, empty):
    responder = ScriptedResponder(lambda *_: words, name=words)
    report = run("m", responder=responder, questions=cohort.questions, out=tmp_path)
    for told in report["conditions"].values():
        assert (told["accuracy"], told["valid"]) == (0, 0)
        assert (told["empty"], told["unparsed"]) == ((told["n"], 0) if empty else (0, told["n"]))
    assert report["verdict"]["verdict"] == "inconclusive"


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


def test_report_holds_what_readers_rely_on(cohort, oracle, tmp_path):
    report = run("models/x", responder=oracle, questions=cohort.questions, out=tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert report["dataset"] == "tiny" and report["model"] == "models/x" and report["notes"] == cohort.questions.notes
    assert report["patients"] == 30
    assert list(report["by_type"]) == ["comparison_irrelevant-query", "single-query", "single-verify"]
    assert list(report["by_template"]) == ["1", "2", "3"] and list(report["by_group"]) == ["rhythm"]
    for groups in (report["by_type"], report["by_template"]):
        assert sum(block["n"] for block in groups.values()) == report["n"]
    assert set(report["by_attribute"]) == {"atrial fibrillation", "rhythm"}  # templates without attribute have none
    for block in (report, *report["by_type"].values()):
        assert list(block["conditions"]) == ["real", "swap", "swap-flip", "zero", "none"]
    rows = {row["id"]: row for row in cohort.questions.test}
    for line in lines_of(tmp_path):
        row = rows[line["id"]]
        assert list(line) == [
            "condition", "id", "question", "question_type", "template_id", "attribute", "group", "control",
            "patient_ids", "ecgs", "donors", "donor_patients", "answer", "shown_answer", "prediction", "options",
            "logp", "gold_logp", "majority_right", "majority_by_question_right", "parsed", "outcome", "correct",
        ]  # fmt: skip
        assert line["ecgs"] == row["ecgs"] and line["patient_ids"] == row["patient_ids"]
        assert len(line["donors"]) == (len(row["ecgs"]) if line["condition"].startswith("swap") else 0)
        assert line["correct"] == (line["parsed"] is not None and set(line["parsed"]) == answer_set(line["answer"]))


@pytest.mark.slow
def test_interrupted_anywhere_it_ends_with_the_same_bytes(cohort, oracle, tmp_path, picture):
    out = tmp_path / "out"

    def audit(responder):
        return run("models/x", responder=responder, questions=cohort.questions, out=out, batch_size=50)

    class Interrupted(ScriptedResponder):
        """Fails at its n-th batch."""

        def __init__(self, left):
            super().__init__(oracle.fn, name=oracle.name)
            self.left = left

        def ask(self, rows, condition):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().ask(rows, condition)

    audit(oracle)
    out.rename(tmp_path / "whole")
    for left in (0, 1, 7, 3):
        with pytest.raises(KeyboardInterrupt):
            audit(Interrupted(left))
    (journal,) = out.glob("[!.]*")  # nothing else but its lock: no report of half of the answers
    with open(journal, "ab") as file:  # and a line that was being written
        file.write(b'{"condition": "zero", "bat')
    audit(oracle)
    audit(Interrupted(0))  # all is there: nothing is asked
    written = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert {"report.json", "report.md", "report.html", "predictions.jsonl", "examples.json"} <= set(written)
    assert sorted(path.name for path in out.iterdir()) == written
    for name in written:
        assert (tmp_path / "whole" / name).read_bytes() == (out / name).read_bytes(), name


@pytest.mark.slow
def test_scored_again_without_a_model(cohort, sure, tmp_path, monkeypatch):
    report = run("models/x", responder=sure, questions=cohort.questions, out=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "report.md").unlink()
    monkeypatch.setattr(ablation, "load_responder", None)
    assert ablation.rescore(tmp_path).to_json() == report
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    earlier = {name: value for name, value in report.items() if name not in ("training", "lift", "reports", "verify")}
    (tmp_path / "report.json").write_text(json.dumps({**earlier, "gone": 1}))  # by code that knew other numbers
    assert ablation.rescore(tmp_path).to_json() == report
    text = (tmp_path / "predictions.jsonl").read_text().splitlines()
    line = json.loads(text[0])
    odd = json.dumps({**line, "prediction": "?\x85\u2028?"}, ensure_ascii=False)  # in text these two end a line
    (tmp_path / "predictions.jsonl").write_text("\n".join([odd, *text[1:]]))
    assert ablation.rescore(tmp_path).overall.conditions["real"].unparsed == 1
    (tmp_path / "predictions.jsonl").write_text("\n".join([*text[:3], text[3][:40]]))
    with pytest.raises(ValueError, match=r"predictions\.jsonl, line 4: not a JSON object"):
        ablation.rescore(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no predictions\.jsonl: run the audit itself first"):
        ablation.rescore(tmp_path / "elsewhere")


def test_the_whole_audit_of_a_simulated_cohort(tmp_path):
    questions = load(patients=40, held_out_patients=25, questions=10, held_out_questions=6)
    source = Altered(questions.source)
    rates = {}

    def rate(record):
        if record not in rates:
            rates[record] = source[record].meta["heart_rate"]
        return rates[record]

    def reads_rate(row, condition, options):
        """Log-odds of tachycardia by the rate, whatever else is asked."""
        if not row["ecgs"] or condition in ("zero", "mean"):
            return [math.log(1 / len(options))] * len(options)
        p = 1 / (1 + math.exp((100 - rate(row["ecgs"][0])) / 10))
        return [math.log({"yes": p, "no": 1 - p}.get(option, 0.1)) for option in options]

    def say(row, condition):
        return "yes" if reads_rate(row, condition, ["yes"])[0] > math.log(0.5) else "no"

    responder = ScriptedResponder(say, reads_rate, name="rate")
    report = run("m", responder=responder, questions=questions, out=tmp_path, full=True)
    assert set(report["conditions"]) == set(CONDITIONS) - {"planted", "question-swap", "both-swap"}
    dose = report["dose_response"]
    assert dose["heart_rate: tachycardia"]["correlation"] == 1 and dose["heart_rate: bradycardia"]["correlation"] == -1
    assert dose["pr_ms: first degree AV block"]["correlation"] == 0 == dose["gain: high QRS voltage"]["correlation"]
    assert [point["dose"] for point in dose["heart_rate: tachycardia"]["curve"]] == sorted(DOSES[0].values)
    assert report["findings"]["tachycardia"]["auroc"] > 0.99 > 0.8 > report["findings"]["tachycardia"]["auroc_swap"]
    assert report["shapley"]["n"] > 200 and report["shapley"]["ecg"] > 0
    assert set(report["reports"]) == {"real", "swap", "none"} and report["reports"]["real"]["f1"]["value"] < 0.1
    changed = report["changed"]
    assert changed["reverse"]["rate"] == changed["noise"]["rate"] == 0  # it goes by what the recording says of itself
    planted = [line for line in lines_of(tmp_path) if line["condition"] == "planted"]
    assert len(planted) == 25 * sum(len(doses.values) for doses in DOSES)


@pytest.mark.slow
def test_the_text_only_model_stands_beside_every_number(cohort, oracle, blind, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    monkeypatch.setattr(ablation, "load_responder", lambda *_: blind)
    out = tmp_path / "out"
    report = run("m", responder=oracle, questions=cohort.questions, out=out, text_only=tmp_path / "other")
    for block in (report, *report["by_type"].values(), *report["by_group"].values()):
        assert block["conditions"]["text-only"]["accuracy"] == block["majority_by_question"]
        assert "text-only" in block["real_minus"]
    assert "text-only" not in report["changed"] and f"--text_only {tmp_path / 'other'}" in report["command"]
    with pytest.raises(FileNotFoundError, match="nowhere has no config.json"):
        run("m", responder=oracle, questions=cohort.questions, out=out, text_only=tmp_path / "nowhere")


def test_a_server_is_asked_what_it_can_be_asked(cohort, oracle, tmp_path):
    class Served(ScriptedResponder):
        levels = frozenset({"row", "recording"})

    served = Served(oracle.fn, name="served")
    report = run("m", responder=served, questions=cohort.questions, out=tmp_path)
    assert list(report["conditions"]) == ["real", "swap", "swap-flip", "none"]
    assert "Not asked: condition 'zero' is done to the model's inputs" in report["notes"][-1]
    with pytest.raises(ValueError, match="condition 'mean' is done to the model's embeddings, which a server keeps to"):
        run("m", responder=served, questions=cohort.questions, out=tmp_path, conditions=["real", "mean"])
    with pytest.raises(ValueError, match="'question-swap' is read from log-probabilities, which this responder does"):
        run("m", responder=served, questions=cohort.questions, out=tmp_path, conditions=["question-swap"])
    with pytest.raises(ValueError, match="'planted' asks about findings of simulated recordings; no training question"):
        run("m", responder=ScriptedResponder(oracle.fn, lambda *_: [0.0]), questions=cohort.questions, out=tmp_path,
            conditions=["planted"])  # fmt: skip


def test_examples_are_flip_pairs_with_their_ecgs(cohort, sure, tmp_path):
    run("m", responder=sure, questions=cohort.questions, out=tmp_path)
    (example,) = json.loads((tmp_path / "examples.json").read_text())  # one of each group
    first, second = example["ecgs"]
    assert first["right"] != second["right"] and first["record"] != second["record"]
    assert first["correct"] and second["correct"] and first["said"] == answer_text(first["right"])
    assert set(first["leads"]) == {"II", "V1", "V5"}
    assert first["leads"]["II"] == [cohort.questions.source[first["record"]].signal[0, 0]] * 4
    assert sum(first["p"].values()) == pytest.approx(1, abs=0.01)


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
    assert list(report["conditions"]) == ["none", "real"]
    assert set(report["real_minus"]) == {"none", "majority", "majority_by_question"}
    assert "--conditions none real" in report["command"] and report["verdict"]["verdict"] == "inconclusive"
    report = run("m", responder=oracle, questions=cohort.questions, out=tmp_path, conditions=["swap"])
    assert report["real_minus"] == {} and report["verdict"] is None


def test_one_patient_gives_no_interval_and_no_verdict(cohort, oracle, tmp_path):
    mine = [row for row in cohort.questions.test if set(row["patient_ids"]) == {"p40"}]
    questions = dataclasses.replace(cohort.questions, test=mine)
    report = run("m", responder=oracle, questions=questions, out=tmp_path, conditions=["real", "none"])
    assert report["conditions"]["real"]["interval"] == [None, None]
    assert report["verdict"]["verdict"] == "inconclusive" and report["flips"] is None
    report = run("m", responder=oracle, questions=questions, out=tmp_path)
    assert list(report["conditions"]) == ["real", "zero", "none"]  # nobody else's ECG is there


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

    class Lazy(ScriptedResponder):
        def ask(self, rows, condition):
            return ["yes"]

    refused(test, r"condition 'real': 64 questions asked but 1 answers given", responder=Lazy(None))


def test_a_folder_without_a_model_says_what_to_do(tmp_path, capsys):
    for present, missing in (([], "config.json"), (["config.json"], "training.json")):
        for name in present:
            (tmp_path / name).write_text("{}")
        with pytest.raises(SystemExit) as stop:
            door.main(["--model", str(tmp_path)])
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert str(tmp_path) in error and missing in error and "recipes/sft_llava.py" in error
    assert not (tmp_path / "ablation").exists()


@pytest.fixture
def saved(cohort, tmp_path, monkeypatch):
    """A folder that looks like a saved model; `saved.responder` answers for it."""
    for name in ("config.json", "training.json"):
        (tmp_path / name).write_text("{}")
    folder = SimpleNamespace(path=tmp_path, responder=None)
    monkeypatch.setattr(SavedRun, "questions", cohort.questions)
    monkeypatch.setattr(ablation, "load_responder", lambda *_: folder.responder)
    monkeypatch.setattr(card, "write_card", lambda folder: (folder / "README.md").write_text("card"))
    return folder


def test_command_line_prints_the_table_and_where_it_lies(saved, oracle, capsys):
    saved.responder = oracle
    door.main(["--model", str(saved.path), "--limit", "100", "--conditions", "real", "swap"])
    printed = capsys.readouterr().out
    assert "another patient's ECG" in printed and str(saved.path / "ablation" / "report.html") in printed
    assert (saved.path / "README.md").read_text() == "card"
    door.main(["--model", str(saved.path), "--rescore"])
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("who", "gate", "passes"),
    [("oracle", "reads", True), ("oracle", "partly", True), ("blind", "reads", False), ("blind", "partly", False)],
)
def test_the_gate(saved, request, capsys, who, gate, passes):
    saved.responder = request.getfixturevalue(who)
    if passes:
        door.main(["--model", str(saved.path), "--gate", gate])
    else:
        with pytest.raises(SystemExit) as stop:
            door.main(["--model", str(saved.path), "--gate", gate])
        assert stop.value.code == 1 and f"the verdict is not '{gate}'" in capsys.readouterr().err
    assert (saved.path / "ablation" / "report.json").exists()


@pytest.mark.slow
def test_help_does_not_wait_for_torch():
    heavy = "{'torch', 'transformers', 'scipy', 'matplotlib'}"
    code = f"import sys, eval.ablation as a\ntry: a.main(['--help'])\nfinally: print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "--conditions" in done.stdout and done.stdout.endswith("set()\n")
