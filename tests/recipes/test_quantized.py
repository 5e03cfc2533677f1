"""LoRA on a language model held in 4 bits: it learns, resumes, and is saved as an ordinary model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import elm
from elm.model.quantization import dequantize, is_quantized
from elm.saved.run import questions_for
from elm.training.build import build
from helpers.runs import example_of, losses
from recipes.sft_llava import parse

pytest.importorskip("bitsandbytes", reason='needs bitsandbytes: pip install "ecg-elm[quant]"')
SETTINGS = {"quantization": "nf4", "bf16": True, "dtype": "bfloat16", "max_steps": 12, "save_steps": 4}
SETTINGS |= {"learning_rate": 5e-3, "lr_scheduler_type": "constant", "warmup_steps": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("qlora") / "model"


@pytest.fixture
def trained(folder, train):
    if not folder.exists():
        train(folder, **SETTINGS)
    return folder


@pytest.mark.slow
def test_the_loss_falls(trained):
    first, last = losses(trained)[:3], losses(trained)[-3:]
    assert sum(last) < 0.8 * sum(first)


@pytest.mark.slow
def test_it_resumes_from_its_checkpoints(trained, train, tmp_path):
    """Of the align stage, and of the middle of the sft stage."""
    folder = tmp_path / "again"
    shutil.copytree(trained, folder)
    (folder / "config.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "sft" / "checkpoint-12")
    train(folder, **SETTINGS)
    assert losses(folder) == losses(trained)
    ours, theirs = load_file(folder / "model.safetensors"), load_file(trained / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_an_align_checkpoint_holds_the_projector_alone(trained):
    held = load_file(trained / "checkpoints" / "align" / "checkpoint-2" / "model.safetensors")
    assert held and all(name.startswith("model.projector.") for name in held)


def test_the_saved_folder_is_the_adapter_on_what_the_4_bits_stand_for(trained, flags):
    """Built again from the parts; float32, where only the order of additions differs, and as saved."""
    arguments, training_args, model_args, _ = parse(flags(trained, **SETTINGS))
    questions = questions_for(arguments)
    base, _ = build(arguments, model_args, questions, training_args.seed)
    assert is_quantized(base)
    quantized = base.model.language_model.layers[0].mlp.up_proj.weight.numel()
    dequantize(base, torch.bfloat16)
    plain = base.model.language_model.layers[0].mlp.up_proj.weight
    assert not is_quantized(base) and plain.dtype == torch.bfloat16 and plain.numel() == 2 * quantized
    tuned = PeftModel.from_pretrained(base, str(trained / "adapter")).eval().float()

    merged, processor = elm.load(trained)
    assert {weight.dtype for weight in merged.parameters()} == {torch.bfloat16}
    assert "quantization_config" not in (trained / "config.json").read_text()
    _, inputs = example_of(trained, processor)
    with torch.no_grad():
        wanted, saved = tuned(**inputs).logits, merged.float()(**inputs).logits
        assert (wanted - saved).abs().max() < 0.02 * wanted.std()  # weights rounded to bfloat16 once more
        untrained = base.unload() if isinstance(base, PeftModel) else tuned.unload()
        assert (untrained(**inputs).logits - saved).abs().max() > 0.5 * wanted.std()


def test_the_folder_says_which_weights_it_holds(trained):
    told = json.loads((trained / "training.json").read_text())["quantization"]
    assert told.startswith("nf4: ") and "LoRA merged in" in told
    assert Path(trained / "README.md").exists()
