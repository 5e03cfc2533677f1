"""How many tokens an ECG takes, what the projector makes of them, and which settings are refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elm import ElmConfig
from elm.model.configuration import pooled_mask, tokens_per_ecg
from elm.model.projectors import Projector

masks = st.integers(0, 12).flatmap(
    lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=4)
)


def groups(row, pool):
    return [row[start : start + pool] for start in range(0, len(row), pool)]


@given(masks, st.integers(1, 7))
def test_a_pooled_token_is_kept_if_any_of_its_tokens_carries_signal(rows, pool):
    mask = torch.tensor(rows, dtype=torch.bool)
    want = [[any(group) for group in groups(row, pool)] for row in rows]
    assert pooled_mask(mask, pool).tolist() == want
    assert pooled_mask(mask.int(), pool).tolist() == want
    assert tokens_per_ecg(mask, pool) == [sum(row) for row in want]
    assert tokens_per_ecg(np.array(rows, dtype=bool), pool) == [sum(row) for row in want]


def test_no_ecg_takes_no_tokens():
    assert tokens_per_ecg(torch.zeros(0, 5, dtype=torch.bool), 2) == []


@pytest.mark.parametrize("pool", [1, 2, 3, 5, 7])
def test_the_config_counts_alike_and_knows_the_most(encoder_config, text_config, pool):
    config = ElmConfig(text_config=text_config(), encoder_config=encoder_config(), projector_pool=pool)
    assert config.encoder_config.max_tokens == 5
    assert config.tokens_per_ecg(torch.ones(2, 5, dtype=torch.bool)) == [-(-5 // pool)] * 2
    assert config.max_tokens_per_ecg == -(-5 // pool)
    assert config.tokens_per_ecg(np.array([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], bool)) == [1, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"projector_type": "qformer"}, "projector_type must be 'linear', 'mlp' or 'vocabulary', got 'qformer'"),
        ({"projector_pool_mode": "max"}, "projector_pool_mode must be 'stack' or 'mean', got 'max'"),
        ({"projector_pool": 0}, "projector_pool must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(encoder_config, text_config, settings, message):
    with pytest.raises(ValueError, match=message):
        ElmConfig(text_config=text_config(), encoder_config=encoder_config(), **settings)


@pytest.mark.parametrize("tied", [True, False])
def test_the_language_model_decides_about_tied_embeddings(encoder_config, text_config, tied):
    config = ElmConfig(text_config=text_config(tie_word_embeddings=tied), encoder_config=encoder_config())
    assert config.tie_word_embeddings is tied
    from_dicts = ElmConfig(text_config=config.text_config.to_dict(), encoder_config=config.encoder_config.to_dict())
    assert from_dicts.to_dict() == config.to_dict()


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("mode", ["stack", "mean"])
@pytest.mark.parametrize("pool", [1, 2, 3, 7])
def test_projector_equals_a_slow_restatement(encoder_config, text_config, kind, mode, pool):
    torch.manual_seed(0)
    config = ElmConfig(
        text_config=text_config(),
        encoder_config=encoder_config(),
        projector_type=kind,
        projector_pool=pool,
        projector_pool_mode=mode,
    )
    projector = Projector(config)
    for weight in projector.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    assert sum(isinstance(layer, torch.nn.Linear) for layer in projector.layers) == {"linear": 1, "mlp": 2}[kind]
    features = torch.randn(4, 5, 12)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    features[~mask] = float("nan")  # nothing is promised about padding, not even that it is a number

    projected, kept = projector(features, mask)
    assert projected.shape == (4, -(-5 // pool), 32)
    assert kept.tolist() == [[any(group) for group in groups(row, pool)] for row in mask.tolist()]
    for ecg in range(4):
        for at, members in enumerate(groups(list(range(5)), pool)):
            alive = [features[ecg, i] for i in members if mask[ecg, i]]
            if not alive:
                continue
            if mode == "mean":
                x = sum(alive) / len(alive)
            else:  # in order, zeros where there is padding or nothing
                slots = [features[ecg, i] if mask[ecg, i] else torch.zeros(12) for i in members]
                x = torch.cat([*slots, *[torch.zeros(12)] * (pool - len(slots))])
            x = (x - x.mean()) / (x.var(unbiased=False) + projector.norm.eps).sqrt()
            x = x * projector.norm.weight + projector.norm.bias
            x = projector.layers[0].weight @ x + projector.layers[0].bias
            if kind == "mlp":
                x = projector.layers[2].weight @ torch.nn.functional.gelu(x) + projector.layers[2].bias
            torch.testing.assert_close(projected[ecg, at], x, atol=1e-4, rtol=1e-4)
