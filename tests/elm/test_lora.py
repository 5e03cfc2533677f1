"""TRL's LoRA settings reach the adapter: each is passed on, or refused by name."""

import pytest
import torch
from trl import ModelConfig, SFTConfig, get_peft_config

import elm
from data.conversations.rows import question_row
from elm import EcgCollator
from elm.inputs.features import weights_hash
from elm.saved.folder import save, save_adapter
from elm.training.build import lora
from elm.training.stages import stage_args, train_stage

TRAINING = {"language_model": "x", "dataset_name": "x", "notes": [], "train_condition": "real"}


@pytest.fixture
def tune(make_pair, make_ecg, tmp_path):
    """Train two steps with LoRA settings: the tuned model, its processor, a batch, and the hash of the base."""

    def tune(**settings):
        model, processor = make_pair(pool=2)
        model.requires_grad_(False)
        model.model.projector.requires_grad_(True)
        base = weights_hash(model)
        save(model, processor, tmp_path / "base", training=TRAINING)
        rows = [
            question_row(id=f"q{i}", ecgs=[f"r{i}"], patient_ids=["p"], question_type="t", question="Is it?",
                         answer=[answer])
            for i, answer in enumerate(["yes", "no"])
        ]  # fmt: skip
        collator = EcgCollator(processor, {f"r{i}": make_ecg(i) for i in range(2)})
        args = SFTConfig(
            str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=2, learning_rate=0.05, bf16=False,
            use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", gradient_checkpointing=False,
        )  # fmt: skip
        config = lora(ModelConfig(lora_dropout=0.0, **settings), model, train_encoder=False)
        trainer = train_stage(
            model, processor, rows, collator, stage_args(args, "sft"), resume=False, peft_config=config
        )
        inputs = {name: value for name, value in collator(rows).items() if name != "labels"}
        return trainer.accelerator.unwrap_model(trainer.model).eval(), processor, inputs, base

    return tune


@torch.no_grad()
def saved_and_loaded(model, processor, inputs, base, folder):
    """Logits of the tuned model, and of what is loaded: merged, and the adapter on its base."""
    wanted = model(**inputs).logits
    save_adapter(model, folder / "model" / "adapter", base)
    save(model.merge_and_unload(), processor, folder / "model", training=TRAINING)
    for name, adapter in (("model", None), ("base", folder / "model" / "adapter")):
        loaded, _ = elm.load(folder / name, adapter=adapter)
        torch.testing.assert_close(loaded(**inputs).logits, wanted, atol=2e-4, rtol=1e-3)
    return wanted


@pytest.mark.slow
def test_dora_is_trained_merged_and_loaded_again(tune, tmp_path):
    model, processor, inputs, base = tune(use_dora=True, lora_r=4)
    assert model.peft_config["default"].use_dora
    magnitudes = [weight for name, weight in model.named_parameters() if "magnitude" in name]
    assert magnitudes and all(weight.requires_grad for weight in magnitudes)
    with torch.no_grad():
        base_logits = elm.load(tmp_path / "base")[0](**inputs).logits
    wanted = saved_and_loaded(model, processor, inputs, base, tmp_path)
    assert (wanted - base_logits).abs().max() > 1e-2


@pytest.mark.slow
def test_more_modules_are_trained_beside_the_projector(tune, make_pair, tmp_path):
    model, processor, inputs, base = tune(lora_modules_to_save=["input_layernorm", "projector"], lora_r=4)
    config = model.peft_config["default"]
    assert set(config.modules_to_save) == {"projector", "input_layernorm"}
    saved_and_loaded(model, processor, inputs, base, tmp_path)
    name = "model.language_model.layers.0.input_layernorm.weight"
    before, after = (elm.load(tmp_path / folder)[0].get_parameter(name) for folder in ("base", "model"))
    assert not torch.equal(before, after)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_layer", "the model has no module 'no_such_layer'"),
        ("embed_tokens", "'embed_tokens' stands for model.language_model.embed_tokens, which holds the vocabulary"),
        ("lm_head", "'lm_head' stands for lm_head, which holds the vocabulary"),
        ("encoder", "'encoder' stands for model.encoder, which is not in the language model: .* by --train_encoder"),
        ("norm", "'norm' stands for .*, which is not in the language model"),
        ("mlp", "'mlp' stands for .*, which holds layers that LoRA is put on"),
    ],
)
def test_modules_that_cannot_be_trained_in_full_are_named(pair, name, message):
    settings = ModelConfig(lora_modules_to_save=[name], lora_target_modules=["up_proj"])
    with pytest.raises(ValueError, match=f"lora_modules_to_save: {message}"):
        lora(settings, pair.model, train_encoder=False)


def test_all_else_is_as_trl_says(pair):
    settings = ModelConfig(use_peft=True, lora_r=5, lora_alpha=7, lora_dropout=0.25, use_rslora=True, use_dora=True)
    ours, stock = lora(settings, pair.model, train_encoder=True).to_dict(), get_peft_config(settings).to_dict()
    assert {name for name in stock if ours[name] != stock[name]} == {"target_modules", "modules_to_save"}
    assert ours["modules_to_save"] == ["projector", "encoder"]
