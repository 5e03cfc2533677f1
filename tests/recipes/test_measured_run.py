"""The recipe with measured features in the prompt and questions that share a row: trained, saved, loaded, audited."""

import json

import pytest

from elm.saved.run import SavedRun
from eval.answerers.model import load_responder

pytest.importorskip("neurokit2", reason='measuring needs pip install "ecg-elm[measure]"')


@pytest.mark.slow
def test_a_model_is_trained_and_audited_with_measured_features(train, tmp_path):
    folder = tmp_path / "measured"
    train(folder, measured=True, questions_per_row=3, turns=1, max_steps=2, ablation=True)
    assert json.loads((folder / "processor_config.json").read_text())["measured"] is True
    told = json.loads((folder / "training.json").read_text())
    assert told["arguments"]["measured"] is True and told["arguments"]["questions_per_row"] == 3
    assert len(told["losses"]) == 2
    report = json.loads((folder / "ablation" / "report.json").read_text())
    assert "real" in json.dumps(report["conditions"])
    saved = SavedRun(folder)
    questions = saved.questions
    responder = load_responder(saved, questions, 8)
    rows = [row for row in questions.test if len(row["ecgs"]) == 1][:3]
    prompts = responder.processor.tokenizer.batch_decode(responder._inputs(rows, "real")["input_ids"])
    assert all("Measured: rate " in prompt and " mV (I " in prompt and ").\n" in prompt for prompt in prompts)
