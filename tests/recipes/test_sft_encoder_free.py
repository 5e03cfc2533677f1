"""Encoder-free by the recipe: a layer over patches that begins at random is trained with the language model."""

import json

import pytest
import torch

import elm
from encoders import new_encoder
from recipes import sft_ecg_byte, sft_encoder_free
from recipes.sft_llava import DEFAULT_CONFIG, parse


@pytest.mark.slow
def test_the_layer_over_patches_is_trained_and_saved(train, tmp_path):
    settings = {"encoder": "ecg_patch", "encoder_args": json.dumps({"patch_size": 100, "hidden_size": 16})}
    train(tmp_path / "model", **settings, train_encoder=True, projector_type="linear", reports_in_sft=True)
    model, processor = elm.load(tmp_path / "model")
    torch.manual_seed(0)  # the recipe's seed: what it began with
    begun, extractor = new_encoder("ecg_patch", patch_size=100, hidden_size=16)
    trained, fresh = (encoder.state_dict() for encoder in (model.model.encoder, begun))
    assert trained.keys() == fresh.keys() and not any(torch.equal(trained[name], fresh[name]) for name in fresh)
    assert processor.feature_extractor.to_dict() == extractor.to_dict()
    assert model.config.encoder_config.pretrained_on == ""


@pytest.mark.parametrize(
    ("recipe", "encoder", "projector"),
    [(sft_encoder_free, "ecg_patch", "mlp"), (sft_ecg_byte, "ecg_byte", "vocabulary")],
)
def test_a_recipe_without_a_config_takes_its_own(recipe, encoder, projector):
    arguments, training_args, _, _ = parse(["--max_steps", "3"], recipe.DEFAULT_CONFIG)
    assert (arguments.encoder, arguments.projector_type, training_args.max_steps) == (encoder, projector, 3)
    named, *_ = parse(["--config", str(DEFAULT_CONFIG)], recipe.DEFAULT_CONFIG)
    assert named.encoder == "tiny"
