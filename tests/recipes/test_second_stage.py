"""A second stage: training that goes on from the model of a first one, with the recipe."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trl import ModelConfig

import elm
import recipes
from elm.training.base import base_of
from helpers.runs import example_of
from recipes import sft_llava

DEFAULT = str(Path(recipes.__file__).parent / "configs" / "tiny_cpu.yaml")
OTHER_QUESTIONS = {"patients": 12, "held_out_patients": 6, "questions": 3, "held_out_questions": 2}


def weights(folder):
    return load_file(folder / "model.safetensors")


def record(folder):
    return json.loads((folder / "training.json").read_text())


def test_without_a_step_it_is_the_same_model(trained, train, no_steps, tmp_path, capsys):
    """Nothing is drawn anew, with another seed, an align stage, other questions, and a model without ECGs beside."""
    second = tmp_path / "second"
    train(second, model_name_or_path=trained, max_steps=2, seed=7, lora_r=4, text_only=True,
          dataset_args=json.dumps(OTHER_QUESTIONS))  # fmt: skip
    before = weights(trained)
    for folder in (second, second / "text-only"):
        after = weights(folder)
        assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    said = capsys.readouterr().out
    assert f"Going on from {trained}: training begins with its language model, projector and encoder (" in said
    base, arguments = record(second)["base"], record(second)["arguments"]
    assert base["name_or_path"] == str(trained) and base["dataset_name"] == record(trained)["dataset_name"]
    assert base["training"] == base_of(ModelConfig(model_name_or_path=str(trained))).digest
    assert record(second)["language_model"] == record(trained)["language_model"]
    assert arguments["encoder"] == record(trained)["arguments"]["encoder"]
    assert arguments["dataset_args"]["questions"] == 3
    assert f"- It went on from {trained} (training {base['training']})" in (second / "README.md").read_text()
    assert any(f"in the training of {trained}" in sentence for sentence in record(second)["leaks"])


def test_the_default_configs_parts_are_not_meant_and_those_of_a_user_are(trained, parts, tmp_path):
    """`accelerate launch recipes/sft_llava.py --model_name_or_path out/sft-llava ...` takes the model's own encoder."""
    words = ["--model_name_or_path", str(trained), "--use_cpu", "true"]
    arguments, _, _, _ = sft_llava.parse(words)
    assert arguments.encoder == parts["encoder"] and arguments.questions_per_row == 8
    assert sft_llava.parse([*words, "--encoder", parts["encoder"], "--encoder_args", "{}"])[0] == arguments
    for more in (
        ["--encoder", "tiny"],
        ["--config", DEFAULT],
        ["--projector_pool", "2"],
        ["--measured", "true"],
        ["--no_projector_norm"],
        ["--projector-type", "linear"],
    ):
        with pytest.raises(ValueError, match=f"is that of {re.escape(str(trained))}: leave [a-z_]+ out"):
            sft_llava.parse([*words, *more])


def test_the_first_model_is_not_written_over(trained, train):
    with pytest.raises(ValueError, match=f"output_dir {trained} holds {trained}, which the run goes on from"):
        train(trained, model_name_or_path=trained)
    with pytest.raises(ValueError, match="checkpoint-6 is no saved model: it is a checkpoint of the run in"):
        train(trained.parent / "x", model_name_or_path=trained / "checkpoints" / "sft" / "checkpoint-6")


@pytest.mark.slow
def test_in_4_bits_it_is_saved_as_an_ordinary_model(trained, train, tmp_path):
    pytest.importorskip("bitsandbytes", reason='needs bitsandbytes: pip install "ecg-elm[quant]"')
    folder = tmp_path / "second"
    train(folder, model_name_or_path=trained, quantization="nf4", max_steps=2, align_steps=0, learning_rate=1e-9)
    before, after = weights(trained), weights(folder)
    assert before.keys() == after.keys() and "quantization_config" not in (folder / "config.json").read_text()
    assert all(torch.equal(before[name], after[name]) for name in before if ".encoder." in name)
    name = "model.language_model.layers.0.mlp.down_proj.weight"
    error = (before[name] - after[name]).abs().mean() / before[name].abs().mean()
    assert 0.05 < error < 0.15, "what 4 bits stand for is near the weights, and is not they"
    merged, processor = elm.load(folder)
    assert torch.isfinite(merged(**example_of(folder, processor)[1]).logits).all()


@pytest.mark.slow
def test_a_second_stage_trains_what_the_first_one_trained_and_resumes(trained, train, tmp_path):
    """Projector and LoRA move, the encoder stays; interrupted, it begins with the same model again."""
    settings = {"model_name_or_path": trained, "max_steps": 4, "save_steps": 2, "align_steps": 2}
    train(tmp_path / "second", **settings)
    before, after = weights(trained), weights(tmp_path / "second")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[1] for name in moved} == {"projector", "language_model"}
    scale = max(float((after[name] - before[name]).abs().max()) for name in moved if ".projector." in name)
    assert scale < 0.05, "the projector was drawn anew"

    again = tmp_path / "again"
    (tmp_path / "second").rename(again)
    (again / "config.json").unlink()
    (again / "checkpoints" / "sft" / "checkpoint-4" / "trainer_state.json").unlink()
    train(again, **settings)
    assert all(torch.equal(value, after[name]) for name, value in weights(again).items())
