"""A folder saved by an earlier version of this code loads, answers as it did, is audited, shown and served."""

import json
import shutil
from pathlib import Path

import pytest

import elm
from data.conversations.rows import user
from data.readers import read_ecg
from data.wire import chat_messages
from elm.ask import ask
from eval import ablation
from helpers import vllm_engine
from helpers.golden import SMALL
from helpers.read_only import read_only, state_of

SAVED = SMALL / "saved_run"
ANSWERS = json.loads((SAVED / "answers.json").read_text())
vllm_here, engine = vllm_engine.vllm_here, vllm_engine.engine


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy, in a working directory of its own: its settings name a cache by a relative path."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(SAVED, tmp_path / "saved")


def example(folder):
    (path,) = (folder / "examples").glob("*.hea")
    ecg = read_ecg(path)
    return ecg, [(pair["question"], pair["answer"]) for pair in ANSWERS if pair["record"] == path.stem]


def report_of(folder):
    return json.loads((folder / "ablation" / "report.json").read_text())


def test_it_loads_and_answers_as_it_did(folder):
    state = state_of(folder)
    with read_only(folder):
        model, processor = elm.load(folder)
        ecg, pairs = example(folder)
        assert len(pairs) == 5 and len({answer for _, answer in pairs}) == 3
        assert [ask(model, processor, [ecg], question) for question, _ in pairs] == [answer for _, answer in pairs]
    assert state_of(folder) == state


def test_its_answers_are_scored_as_they_were(folder, capsys):
    before = report_of(folder)
    ablation.main(["--model", str(folder), "--rescore"])
    after = report_of(folder)
    assert {name: after[name] for name in before} == before
    assert before["verdict"]["sentence"] in capsys.readouterr().out
    page = (folder / "ablation" / "report.html").read_text()
    assert before["verdict"]["sentence"] in page and "s00607-1" in page


def test_it_is_audited_again(folder):
    """Its questions are made again from its settings, its answers are as they were, and no file of it is touched."""
    before = {
        (line["id"], line["condition"]): line["prediction"]
        for line in map(json.loads, (folder / "ablation" / "predictions.jsonl").read_text().splitlines())
    }
    state = state_of(folder)
    with read_only(folder):
        ablation.main(["--model", str(folder), "--limit", "24", "--conditions", "real", "none", "--out", "again"])
    assert state_of(folder) == state
    # Its cache is named by a path that was relative to where it was trained.
    assert {path.name for path in Path().iterdir()} == {"saved", "again"} and any(Path("again/cache").iterdir())
    lines = [json.loads(line) for line in Path("again/predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 48
    assert {(line["id"], line["condition"]): line["prediction"] for line in lines}.items() <= before.items()


def test_the_chat_page_is_built(folder):
    pytest.importorskip("gradio", reason='the page needs pip install "ecg-elm[app]"')
    from serve.page.build import build
    from serve.page.desk import Desk
    from serve.page.recordings import Shelf
    from serve.serving.local import LocalEngine

    local = LocalEngine(folder)
    ecg, pairs = example(folder)
    assert "".join(local.stream([ecg], pairs[0][0])).strip() == pairs[0][1]
    shelf = Shelf(folder)
    assert [recording.name for recording in shelf.examples] == [f"record {ecg.record_id}"]
    page = json.dumps(build(Desk(local, shelf), folder).get_config_file(), default=str)
    assert report_of(folder)["verdict"]["sentence"] in page


@pytest.mark.serve
def test_it_is_served(folder, engine):
    from vllm import SamplingParams

    llm = engine(folder, max_model_len=512)
    ecg, pairs = example(folder)
    chats = [chat_messages([user(1, question)], [ecg]) for question, _ in pairs]
    replies = llm.chat(chats, SamplingParams(temperature=0, max_tokens=32), use_tqdm=False)
    assert [reply.outputs[0].text.strip() for reply in replies] == [answer for _, answer in pairs]
