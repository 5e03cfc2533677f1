"""The recipe from a language model of each family to its saved folder: both stages, the adapter, and the audit."""

import json
import math

import pytest
import torch
from peft import PeftModel

import elm
from helpers import families
from helpers.runs import example_of

# Not in all of tests/elm/test_families.py, where each step is tested alone: those unlike each other in what they save.
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("gemma2", "gemma3-multimodal", "gpt2", "gpt-neox")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "opt", *OTHERS])
def test_a_run_from_a_language_model_of_each_family(name, train, tmp_path):
    kind = families.KINDS[name]
    folder = families.saved(name, tmp_path / "language", positions=1024)
    audited = name in ("gemma2", "gpt2")
    train(
        tmp_path / "model", model_name_or_path=str(folder), max_steps=2, align_steps=1, turns=2, questions_per_row=2,
        save_steps=1, gradient_checkpointing=True, ablation=audited,
    )  # fmt: skip
    told = json.loads((tmp_path / "model" / "training.json").read_text())
    assert len(told["losses"]) == 2 and all(math.isfinite(loss) for loss in told["losses"])
    merged, processor = elm.load(tmp_path / "model")
    assert processor.ecg_token == kind.ecg
    base, _ = elm.load(
        tmp_path / "model" / "checkpoints" / "align" / "checkpoint-1", adapter=tmp_path / "model" / "adapter"
    )
    assert isinstance(base, PeftModel)
    _, inputs = example_of(tmp_path / "model", processor)
    with torch.no_grad():
        ours, theirs = merged(**inputs).logits, base(**inputs).logits
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    assert (tmp_path / "model" / "ablation" / "report.json").exists() is audited
