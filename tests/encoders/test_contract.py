"""What every encoder and its feature extractor keep to."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

from data.ecg import LEADS, Ecg
from encoders import load_encoder, save_encoder


def encode(pair, ecgs):
    encoder, extractor = pair
    with torch.no_grad():
        return encoder(**extractor(ecgs))


def test_shapes_follow_from_the_configuration(pair, make_ecg):
    encoder, extractor = pair
    out = encode(pair, [make_ecg(seed=1), make_ecg(seed=2), make_ecg(seed=3)])
    assert out.last_hidden_state.shape == (3, encoder.config.max_tokens, encoder.config.output_dim)
    assert out.last_hidden_state.dtype == torch.float32
    assert out.mask.shape == (3, encoder.config.max_tokens) and out.mask.dtype == torch.bool and out.mask.all()
    features = extractor(make_ecg())
    assert set(features) == {*encoder.ecg_inputs, "token_mask"} == set(extractor.model_input_names)
    assert not torch.allclose(out.last_hidden_state[0], out.last_hidden_state[1], atol=1e-3), "blind to its input"


@pytest.mark.parametrize("seconds", [0.004, 3.3, 7.0, 25.0])
def test_mask_tells_signal_from_padding(pair, make_ecg, seconds):
    encoder, extractor = pair
    out = encode(pair, make_ecg(seconds))
    assert out.last_hidden_state.shape[1] == encoder.config.max_tokens and out.last_hidden_state.isfinite().all()
    assert torch.equal(out.mask, extractor(make_ecg(seconds))["token_mask"])
    count = int(out.mask.sum())
    assert out.mask[0, :count].all(), "padding comes last"
    share = count / encoder.config.max_tokens
    if encoder.config.max_tokens > 20:  # tokens that lie in time, not queries over all of it
        assert share == pytest.approx(min(1.0, seconds / 10), abs=1.5 / encoder.config.max_tokens)
    else:
        assert share == 1
    assert count > 0


def test_without_a_mask_every_token_counts_and_a_wrong_one_is_refused(pair, make_ecg):
    encoder, extractor = pair
    values = extractor(make_ecg(5.0))["ecg_values"]
    assert encoder(values).mask.all()
    with pytest.raises(ValueError, match="token_mask is \\(1, 999\\)"):
        encoder(values, token_mask=torch.ones(1, 999, dtype=torch.bool))


def test_a_record_does_not_depend_on_its_batch(pair, make_ecg):
    ecgs = [make_ecg(seed=seed, seconds=seconds) for seed, seconds in ((1, 10.0), (2, 4.0), (3, 30.0))]
    encoder, extractor = pair
    together, alone = extractor(ecgs), [extractor(ecg) for ecg in ecgs]
    for row, one in enumerate(alone):
        for name in one:
            assert torch.equal(together[name][row], one[name][0])
    out = encode(pair, ecgs)
    for row, ecg in enumerate(ecgs):
        torch.testing.assert_close(
            encode(pair, ecg).last_hidden_state[0], out.last_hidden_state[row], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("fs", [250, 360, 400, 1000])
def test_sampling_rate_is_met_by_time(pair, make_ecg, fs):
    same = encode(pair, make_ecg(fs=500)).last_hidden_state
    other = encode(pair, make_ecg(fs=fs)).last_hidden_state
    assert other.shape == same.shape
    assert torch.nn.functional.cosine_similarity(same, other, dim=-1).min() > 0.99


def test_leads_go_by_name(pair, make_ecg):
    ecg, shuffled = make_ecg(), list(np.random.default_rng(0).permutation(LEADS))
    assert torch.equal(pair[1](ecg)["ecg_values"], pair[1](ecg.select(shuffled))["ecg_values"])
    inverted = ecg.select([*LEADS[:3], "-aVR", *LEADS[4:]])  # Cabrera's
    assert torch.equal(pair[1](ecg)["ecg_values"], pair[1](inverted)["ecg_values"])


def test_unusable_recordings_are_refused_by_name(pair, make_ecg):
    extractor = pair[1]
    with pytest.raises(ValueError, match="'r7' has no lead V3"):
        extractor(make_ecg(record_id="r7").select([name for name in LEADS if name != "V3"]))
    signal = make_ecg().signal.copy()
    signal[4, 100] = np.nan
    with pytest.raises(ValueError, match="'r8'.*not finite.* aVL"):
        extractor([make_ecg(), Ecg(signal, 500, LEADS, record_id="r8")])
    with pytest.raises(TypeError, match="ndarray"):
        extractor([signal])
    with pytest.raises(ValueError, match="no recording"):
        extractor([])


@pytest.mark.parametrize("level", [0.0, 2.5, -2.5])
def test_a_flat_recording_is_finite(pair, level):
    assert encode(pair, Ecg(np.full((12, 3000), level), 500, LEADS)).last_hidden_state.isfinite().all()


def test_save_and_load_are_bitwise(pair, make_ecg, tmp_path):
    encoder, extractor = pair
    save_encoder(encoder, extractor, tmp_path)
    ecgs = [make_ecg(), make_ecg(6.0)]
    auto = AutoModel.from_pretrained(tmp_path).eval(), AutoFeatureExtractor.from_pretrained(tmp_path)
    for loaded in (load_encoder(tmp_path), auto):
        assert type(loaded[0]) is type(encoder) and type(loaded[1]) is type(extractor)
        assert loaded[1].to_dict() == extractor.to_dict()
        assert all(torch.equal(value, loaded[0].state_dict()[name]) for name, value in encoder.state_dict().items())
        assert not loaded[0].training and loaded[0].config.pretrained_on == encoder.config.pretrained_on
        ours, theirs = encode(pair, ecgs), encode(loaded, ecgs)
        assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state) and torch.equal(ours.mask, theirs.mask)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == load_encoder(tmp_path)[0].config.to_dict()


def test_half_precision(pair, make_ecg):
    encoder, extractor = pair
    want = encode(pair, make_ecg()).last_hidden_state
    got = encode((encoder.to(torch.bfloat16), extractor), make_ecg()).last_hidden_state
    assert got.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(want, got.float(), dim=-1).min() > 0.99


def test_every_weight_can_learn(pair, make_ecg):
    encoder, extractor = pair
    outputs = encoder.train()(**extractor([make_ecg(seed=1), make_ecg(seed=2)]))
    sum(value.pow(2).sum() for name, value in outputs.items() if name != "mask").backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in encoder.parameters())


def test_any_attention_may_be_chosen_around_an_encoder(pair):
    for name in ("sdpa", "eager", "flex_attention"):
        assert pair[0].get_correct_attn_implementation(name) == name
    assert pair[0].get_input_embeddings() is not None


def test_misspelt_settings_are_refused(pair):
    with pytest.raises(TypeError, match="sampling_frequency"):
        type(pair[1])(sampling_frequency=250)
    with pytest.raises(ValueError, match="takes 12 leads, not I, II"):
        type(pair[1]).from_config(pair[0].config, leads=("I", "II"))
