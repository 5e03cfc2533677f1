"""Fine-tuning: rates that fall layer by layer in every encoder, and a training that learns, repeats and restores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from data.ecg import LEADS, Ecg
from elm.inputs.features import weights_hash
from encoders import new_encoder
from eval.probing.finetune import Group, Inputs, finetune, layer_groups, optimizer_for, stack_of
from eval.probing.settings import Finetuning
from eval.probing.vectors import vector_of
from eval.statistics import auroc

MELP = {
    "sampling_rate": 100, "conv_dim": [8] * 4, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 48, "conv_pos_kernel": 7, "conv_pos_groups": 2, "shared_dim": 16, "caption_dim": 16,
    "pooler_heads": 2, "n_queries_contrast": 3, "n_queries_caption": 4,
}  # fmt: skip

HEARTLANG = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


def recordings(count, seed=0):
    """Recordings in which one of two classes is a wave of 8 Hz in V1 and V2."""
    rng = np.random.default_rng(seed)
    time = np.arange(1000) / 100
    labels = np.arange(count) % 2 == 0
    source = {}
    for i, there in enumerate(labels):
        signal = 0.3 * rng.standard_normal((12, 1000))
        signal[6:8] += there * np.sin(2 * np.pi * 8 * time + rng.uniform(0, 6))
        source[f"r{i}"] = Ecg(signal, 100, LEADS, f"r{i}")
    return source, np.column_stack([labels, ~labels])


def make(kind, **settings):
    torch.manual_seed(0)
    return new_encoder(kind, **settings)


@pytest.fixture
def melp():
    return make("ecg_melp", **MELP)


def groups_of(pair, kind="paper", decay=0.5):
    encoder, extractor = pair
    source, _ = recordings(2)
    return layer_groups(encoder, extractor(list(source.values())), kind, decay)


def test_rates_fall_from_the_head_to_the_embedding(melp):
    groups = groups_of(melp)
    assert [(group.name, group.scale) for group in groups] == [
        ("before", 0.0625), ("layer 0", 0.125), ("layer 1", 0.25), ("layer 2", 0.5), ("after", 1.0),
    ]  # fmt: skip
    before, *layers, after = (set(group.parameters) for group in groups)
    assert {"ecg_encoder.feature_extractor.conv_layers.0.0.weight", "ecg_encoder.post_extract_proj.weight"} < before
    assert "ecg_encoder.conv_pos.pos_conv.0.weight" in before and "ecg_encoder.encoder.layer_norm.bias" in before
    for i, layer in enumerate(layers):
        assert layer == {name for name, _ in melp[0].named_parameters() if f".encoder.layers.{i}." in name}
    assert {"attn_pool_contrast.query", "ln_contrast.weight"} < after
    # What the vector does not depend on is not trained, nor pulled to zero by weight decay.
    assert not any("caption" in name or name == "proj_contrast" for group in groups for name in group.parameters)
    other = groups_of(melp, "rhythm")[-1].parameters
    assert "proj_contrast" in other and not any("caption" in name for name in other)


@pytest.mark.parametrize(
    ("pair", "stack", "names"),
    [
        (("ecg_cnn", {}), "layers", ["layer 0", "layer 1", "layer 2", "layer 3"]),
        (("ecg_patch", {"hidden_size": 8}), "", ["after"]),
        (("ecg_melp", MELP), "ecg_encoder.encoder.layers", ["before", "layer 0", "layer 1", "layer 2", "after"]),
        (
            ("ecg_heartlang", HEARTLANG),
            "backbone.transformer.layers",
            ["before", "layer 0", "layer 1", "layer 2", "after"],
        ),
    ],
)
def test_the_layers_of_every_encoder_are_found(pair, stack, names):
    encoder, extractor = made = make(pair[0], **pair[1])
    encoder.train()
    assert stack_of(encoder)[0] == stack
    groups = groups_of(made, "mean")
    assert [group.name for group in groups] == names
    assert all(module.training for module in encoder.modules())
    trained = [id(p) for group in groups for p in group.parameters.values()]
    assert len(trained) == len(set(trained))


class TwoParts(nn.Module):
    """A layer that is a list and never called itself, between an embedding and a norm, as published encoders have."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))  # used last, registered first
        self.embed = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]) for _ in range(2))
        self.unused = nn.Linear(4, 4)
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, values):
        from encoders.base import EcgEncoderOutput

        x = self.embed(values)
        for first, second in self.blocks:
            x = x + second(first(x))
        return EcgEncoderOutput(
            last_hidden_state=x * self.scale * self.frozen, mask=torch.ones(x.shape[:2], dtype=torch.bool)
        )


def test_what_comes_before_the_layers_is_told_by_gradients_not_by_names():
    groups = layer_groups(TwoParts(), {"values": torch.randn(2, 3, 4)}, "mean", 0.5)
    assert {group.name: set(group.parameters) for group in groups} == {
        "before": {"embed.weight", "embed.bias"},
        **{f"layer {i}": {f"blocks.{i}.{k}.{w}" for k in (0, 1) for w in ("weight", "bias")} for i in (0, 1)},
        "after": {"scale"},
    }


def test_the_first_step_is_as_long_as_the_rate(melp):
    encoder, extractor = melp
    head = nn.Linear(16, 2)
    groups = [*groups_of(melp), Group("head", 1.0, dict(head.named_parameters()))]
    optimizer = optimizer_for(groups, 1e-3)
    for options in optimizer.param_groups:
        options["weight_decay"] = 0.0
    source, labels = recordings(8)
    start = {id(p): p.detach().clone() for group in groups for p in group.parameters.values()}
    loss = nn.functional.binary_cross_entropy_with_logits(
        head(vector_of(encoder(**extractor(list(source.values()))), "paper")), torch.tensor(labels, dtype=torch.float32)
    )
    loss.backward()
    optimizer.step()
    # Adam's first step is the rate itself, whatever the gradient: so the rates are read off the weights.
    moved = {
        group.name: max(float((p.detach() - start[id(p)]).abs().max()) for p in group.parameters.values())
        for group in groups
    }
    assert moved == pytest.approx(
        {"before": 6.25e-5, "layer 0": 1.25e-4, "layer 1": 2.5e-4, "layer 2": 5e-4, "after": 1e-3, "head": 1e-3},
        rel=0.02,
    )


def test_biases_and_norms_do_not_decay(melp):
    for options in optimizer_for(groups_of(melp), 1e-3).param_groups:
        assert all((parameter.ndim > 1) == (options["weight_decay"] > 0) for parameter in options["params"])


def tuned(pair, tmp_path, *, count=60, seed=0, **settings):
    source, labels = recordings(count)
    names = list(source)
    train, valid, test = names[: count // 2], names[count // 2 : 3 * count // 4], names[3 * count // 4 :]
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir(exist_ok=True)
    inputs = (
        Inputs(pair[1], source, [*train, *valid], here),
        Inputs(pair[1], source, test, there),
    )
    truth = dict(zip(names, labels))
    of = [np.array([truth[name] for name in part]) for part in (train, valid, test)]
    settings = Finetuning(**{"epochs": 4, "learning_rate": 5e-3, **settings})
    return finetune(pair[0], inputs, (train, valid, test), (of[0], of[1]), settings, seed=seed), of[2]


def test_a_planted_class_is_learned_and_the_encoder_stays_as_it_is(tmp_path):
    pair = make("ecg_cnn", conv_dim=[8, 8], conv_stride=[5, 4])
    before = weights_hash(pair[0])
    found, truth = tuned(pair, tmp_path, epochs=8)
    assert weights_hash(pair[0]) == before and not pair[0].training
    assert [auroc(found.scores[:, k], truth[:, k]) for k in (0, 1)] > [0.95, 0.95]
    assert found.validation > 0.95 and 1 <= found.epoch <= 8
    assert found.rates == pytest.approx({"layer 0": 5e-3 * 0.75**2, "layer 1": 5e-3 * 0.75, "head": 5e-3})


@pytest.mark.slow
def test_the_same_seed_gives_the_same_scores_and_dropout_is_active_in_training(tmp_path):
    state = torch.random.get_rng_state()
    pair = make("ecg_melp", **MELP, dropout=0.0, dropout_input=0.0, attention_dropout=0.0)
    first, _ = tuned(pair, tmp_path, epochs=2, count=24)
    again, _ = tuned(pair, tmp_path, epochs=2, count=24)
    other, _ = tuned(pair, tmp_path, epochs=2, count=24, seed=1)
    assert (first.scores == again.scores).all() and (first.scores != other.scores).any()
    dropping = make("ecg_melp", **MELP, dropout=0.4, dropout_input=0.0, attention_dropout=0.0)
    assert weights_hash(dropping[0]) == weights_hash(pair[0])
    dropped, _ = tuned(dropping, tmp_path, epochs=2, count=24)
    assert (dropped.scores != first.scores).any()
    torch.random.set_rng_state(state)


def test_training_leaves_the_callers_generator_alone(tmp_path):
    pair = make("ecg_patch", hidden_size=4)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tuned(pair, tmp_path, epochs=1, count=16)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"epochs": 0}, "epochs and batch_size must be at least 1, got 0 and 64"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"layer_decay": 1.5}, "layer_decay must be above 0 and at most 1, got 1.5"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        Finetuning(**settings)


def test_a_validation_of_one_class_and_a_loss_that_blows_up_are_refused(tmp_path):
    encoder, extractor = make("ecg_patch", hidden_size=4)
    source, labels = recordings(8)
    names = list(source)
    inputs = Inputs(extractor, source, names, tmp_path)
    split = (names[:4], names[4:6], names[6:])
    with pytest.raises(ValueError, match="no class has records with and without it in the validation"):
        finetune(encoder, (inputs, inputs), split, (labels[:4], np.ones((2, 2), bool)), Finetuning(epochs=1))
    with torch.no_grad():
        encoder.patch.weight.fill_(float("inf"))
    with pytest.raises(ValueError, match="epoch 1: the loss is nan: lower learning_rate"):
        finetune(encoder, (inputs, inputs), split, (labels[:4], labels[4:6]), Finetuning(epochs=1))
