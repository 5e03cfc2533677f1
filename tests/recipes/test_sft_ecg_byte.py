"""ECG-Byte by the recipe: tokens learned, rows and LoRA trained, resumed, in 4 bits, saved as a plain model."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import elm
from elm.inputs.features import weights_hash
from helpers.runs import losses

TOKENS = {"max_tokens": 300, "merges": 60, "sampling_rate": 50, "seconds": 3.0, "leads": ["I", "II"], "low": -2.5}
SETTINGS = {
    "encoder": "ecg_byte", "encoder_args": json.dumps(TOKENS), "projector_type": "vocabulary", "projector_pool": 1,
    "turns": 1, "align_steps": 2, "max_steps": 4, "save_steps": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ecg-byte") / "model"


@pytest.fixture
def trained(folder, train):
    if not folder.exists():
        train(folder, **SETTINGS)
    return folder


def words_and_rows(folder, parts):
    """The base's words, what they are in the trained model, and the trained rows of tokens."""
    told = json.loads((folder / "config.json").read_text())["ecg_vocabulary"]
    start, count = told["vocabulary_start"], told["encoder_config"]["vocabulary"]
    base = AutoModelForCausalLM.from_pretrained(parts["model_name_or_path"]).get_input_embeddings().weight
    plain = AutoModelForCausalLM.from_pretrained(folder)
    table = plain.get_input_embeddings().weight
    assert plain.get_output_embeddings().weight is table and start == len(base)
    return base, table[:start], table[start : start + count]


@pytest.mark.slow
def test_the_recipe_leaves_a_plain_language_model(trained, parts):
    before, after, rows = words_and_rows(trained, parts)
    assert torch.equal(before, after)
    assert len(rows.unique(dim=0)) == len(rows)
    model, processor = elm.load(trained)
    assert model.config.encoder_config.pretrained_on.endswith("(ECG-Byte merges)")
    assert processor.feature_extractor.byte.settings.leads == ("I", "II")
    assert weights_hash(model) != json.loads((trained / "adapter" / "base.json").read_text())["weights"]


@pytest.mark.slow
def test_resumed_between_the_stages_it_has_the_same_losses_and_base(trained, train, tmp_path):
    """The align stage is not trained again, so that only its checkpoint says what the rows became."""
    again = tmp_path / "again"
    shutil.copytree(trained / "checkpoints" / "align", again / "checkpoints" / "align")
    train(again, **SETTINGS)
    assert losses(again) == losses(trained)
    assert (again / "adapter" / "base.json").read_text() == (trained / "adapter" / "base.json").read_text()
    ours, theirs = load_file(again / "model.safetensors"), load_file(trained / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["zero", "none"])
def test_it_is_trained_under_conditions(train, trained, parts, tmp_path, condition):
    train(tmp_path / condition, **SETTINGS | {"train_condition": condition, "align_steps": 0, "max_steps": 2})
    _, _, real = words_and_rows(trained, parts)
    _, _, rows = words_and_rows(tmp_path / condition, parts)
    moved = (rows != real).any(1).sum()  # all that the real one trained, at least
    assert moved > 10 and losses(tmp_path / condition) != losses(trained)


@pytest.mark.slow
def test_on_a_language_model_in_4_bits(train, parts, tmp_path):
    """Its table keeps its precision, so that rows are trained as ever; what is saved is no longer quantised."""
    pytest.importorskip("bitsandbytes", reason='needs bitsandbytes: pip install "ecg-elm[quant]"')
    quantized = {"quantization": "nf4", "bf16": True, "dtype": "bfloat16", "lr_scheduler_type": "constant"}
    train(tmp_path / "4-bit", **SETTINGS | quantized)
    before, after, rows = words_and_rows(tmp_path / "4-bit", parts)
    assert after.dtype == torch.bfloat16 and torch.equal(before.bfloat16(), after)
    assert "quantization_config" not in (tmp_path / "4-bit" / "config.json").read_text()
    held = load_file(tmp_path / "4-bit" / "checkpoints" / "align" / "checkpoint-2" / "model.safetensors")
    assert held and all(name.startswith("model.projector.") for name in held)
    trained = load_file(tmp_path / "4-bit" / "adapter" / "adapter_model.safetensors")
    (saved,) = (value for name, value in trained.items() if "projector" in name)
    assert torch.equal(saved.bfloat16(), rows)
    model, processor = elm.load(tmp_path / "4-bit")
    assert model.generation_config.suppress_tokens[0] == processor.ecg_token_id
