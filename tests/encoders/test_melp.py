"""MELP against upstream's own outputs (seeded random weights), its pipelines, and training from scratch."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.ecg import LEADS, Ecg
from encoders import load_encoder
from encoders.melp import MelpConfig, MelpFeatureExtractor, MelpModel
from encoders.melp.upstream import read_published
from helpers.golden import script

TINY_HEADS = {"num_attention_heads": 4, "pooler_heads": 4}
OUTPUTS = {
    "features": "features",
    "beats": "ecg_beat_emb",
    "tokens": "ecg_token_emb",
    "rhythm": "proj_ecg_emb",
    "probe": "probe_emb",
}


def load(path) -> torch.Tensor:
    return torch.from_numpy(np.load(path))


def run(model: MelpModel, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Outputs and inner stages under upstream's names."""
    stages: dict[str, torch.Tensor] = {}
    modules = {
        "conv": model.ecg_encoder.feature_extractor,
        "conv_ln": model.ecg_encoder.layer_norm,
        "proj": model.ecg_encoder.post_extract_proj,
        "pos": model.ecg_encoder.conv_pos,
        "layer0": model.ecg_encoder.encoder.layers[0],
        "pool_contrast_raw": model.attn_pool_contrast,
    }
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: stages.__setitem__(name, out))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        out = model(x)
    for hook in hooks:
        hook.remove()
    return stages | {theirs: out[ours] for ours, theirs in OUTPUTS.items()}


def test_tiny_outputs_are_upstreams(golden, tiny):
    ours = run(tiny, load(golden / "in_model.npy")[:2])
    for name in ("conv", "layer0", "pool_contrast_raw", *OUTPUTS.values()):
        torch.testing.assert_close(ours[name], load(golden / f"tiny_{name}.npy"), atol=2e-5, rtol=1e-5, msg=name)


def test_rounding_error_is_small(golden, tiny):
    # Upstream's own is 2e-5 on these inputs: its first norm amplifies what the constant part of a lead rounds away.
    x = load(golden / "in_model.npy")[:2]
    single = run(tiny, x)
    double = MelpModel(tiny.config).double().eval()
    double.load_state_dict(tiny.state_dict())
    exact = run(double, x.double())
    assert (single["features"] - exact["features"]).abs().max() < 8e-6
    assert (exact["features"] - load(golden / "tiny_features.npy")).abs().max() < 2e-5


@pytest.mark.parametrize("samples", [2500, 4096, 1250])
def test_other_lengths_are_upstreams(golden, tiny, samples):
    expected = json.loads((golden / "tiny_lengths.json").read_text())[str(samples)]
    ours = run(tiny, load(golden / "in_model.npy")[:2, :, :samples])
    assert tiny.config.num_frames(samples) == ours["features"].shape[1] == {2500: 156, 4096: 256, 1250: 78}[samples]
    for name, value in ours.items():
        want = expected[name]
        assert list(value.shape) == want["shape"], name
        ends = torch.cat([value.flatten()[:8], value.flatten()[-8:]])
        torch.testing.assert_close(ends, torch.tensor(want["first8"] + want["last8"]), atol=2e-5, rtol=1e-5, msg=name)
        assert value.double().norm().item() == pytest.approx(want["l2"], rel=1e-5), name
        assert value.double().abs().sum().item() == pytest.approx(want["abssum"], rel=1e-5), name


@torch.no_grad()
@pytest.mark.parametrize("samples", [16, 17, 100])
def test_the_shortest_recordings(tiny, samples):
    x = torch.rand(2, 12, samples, generator=torch.Generator().manual_seed(0))
    out = tiny(x)
    assert out.features.shape == (2, samples // 16, 96) and all(value.isfinite().all() for value in out.values())
    torch.testing.assert_close(tiny(x[1:]).features, out.features[1:], atol=2e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="recordings of 15 samples are shorter than one frame of 16"):
        tiny(x[..., :15])


@torch.no_grad()
def test_what_a_missing_lead_is_filled_with_makes_no_difference(golden, tiny):
    x = load(golden / "in_model.npy")[:2].clone()
    x[:, 6:] = 0
    zero = tiny(x)
    x[:, 6:] = torch.tensor([0.5, 1.0, 3.0, -2.0, 0.1, 0.7])[:, None]
    other = tiny(x)
    for name in OUTPUTS:
        torch.testing.assert_close(other[name], zero[name], atol=2e-5, rtol=0, msg=name)


@torch.no_grad()
def test_attention_of_the_queries_says_where_their_values_come_from(golden, tiny):
    x = load(golden / "in_model.npy")[:2]
    plain, told = tiny(x), tiny(x, output_attentions=True)
    assert plain.beat_attention is None and plain.token_attention is None
    for name in (*OUTPUTS, "last_hidden_state", "mask"):
        assert torch.equal(told[name], plain[name]), name
    assert told.beat_attention.shape == (2, 4, 5, 312) and told.token_attention.shape == (2, 4, 16, 312)
    for pooler, weights, want in (
        (tiny.attn_pool_contrast, told.beat_attention, tiny.attn_pool_contrast(plain.features)),
        (tiny.attn_pool_caption, told.token_attention, tiny.attn_pool_caption(plain.features)),
    ):
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:3]))
        frames, attn = pooler.ln_k(plain.features), pooler.attn
        value = attn.v_proj_weight if attn.in_proj_weight is None else attn.in_proj_weight[-attn.embed_dim :]
        values = frames @ value.T + attn.in_proj_bias[-attn.embed_dim :]
        values = values.unflatten(-1, (4, -1)).transpose(1, 2)  # [B, H, T, D / H]
        torch.testing.assert_close(attn.out_proj((weights @ values).transpose(1, 2).flatten(2)), want)


@torch.no_grad()
def test_a_frame_knows_when_it_was(tiny):
    config = tiny.config
    assert config.frame_seconds(0) == (0.0, 0.032) and config.frame_seconds(311) == (9.952, 9.984)
    frontend = tiny.ecg_encoder.feature_extractor.conv_layers
    x = torch.zeros(1, 12, 5000)
    begin, end = (round(second * 500) for second in config.frame_seconds(100))
    x[..., begin:end] = torch.rand(12, end - begin)
    for layer in frontend:
        x = layer[0](x)  # the convolutions alone: the norm sees the whole recording
    assert x.abs().sum(dim=1)[0].nonzero().flatten().tolist() == [100]
    wide = MelpConfig(conv_kernel=(3, 2, 2, 2), num_attention_heads=12)  # 16 samples apart, 17 wide
    assert wide.frame_seconds(1) == (16 / 500, 33 / 500)


def test_weights_stored_in_bfloat16(golden):
    encoder, _ = load_encoder(golden / "encoder_tiny_bf16.safetensors", **TINY_HEADS)
    ours = run(encoder, load(golden / "in_model.npy")[:2])
    assert encoder.dtype == torch.float32
    want = load(golden / "tiny_bf16w_features.npy")
    torch.testing.assert_close(ours["features"][:, ::8], want, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(ours["proj_ecg_emb"], load(golden / "tiny_bf16w_proj_ecg_emb.npy"), atol=2e-5, rtol=1e-5)


@pytest.mark.slow
def test_full_size_is_upstreams(golden, golden_ecgs, tmp_path):
    recipe = script(golden / "seed_recipe.py")
    keys = json.loads((golden / "encoder_full.keys.json").read_text())
    weights = {name: torch.from_numpy(recipe.fill(name, key["shape"], recipe.SEED)) for name, key in keys.items()}
    save_file(weights, tmp_path / "model.safetensors")
    encoder, extractor = load_encoder(tmp_path, output="features")
    published = MelpConfig(output="features")
    for field in MelpConfig.__annotations__.keys() - {"pretrained_on"}:
        ours, theirs = vars(encoder.config)[field], vars(published)[field]
        assert ours == (list(theirs) if isinstance(theirs, tuple) else theirs), field
    with torch.no_grad():
        out = encoder(**extractor(golden_ecgs[:2]))
    for ours, name in (
        (out.features[:, ::16], "features_every16"),
        (out.beats, "ecg_beat_emb"),
        (out.rhythm, "proj_ecg_emb"),
        (out.probe, "probe_emb"),
    ):
        torch.testing.assert_close(ours, load(golden / f"full_{name}.npy"), atol=5e-5, rtol=0, msg=name)


def test_last_hidden_state_is_the_chosen_output(golden, tiny):
    x = load(golden / "in_model.npy")[:2]
    for output in ("features", "beats", "tokens", "rhythm"):
        encoder, extractor = load_encoder(golden / "encoder_tiny.safetensors", output=output, **TINY_HEADS)
        with torch.no_grad():
            out = encoder(x)
        chosen = out.rhythm[:, None] if output == "rhythm" else out[output]
        assert torch.equal(out.last_hidden_state, chosen)
        assert chosen.shape[1:] == (encoder.config.max_tokens, encoder.config.output_dim)
        assert extractor.output == output and extractor.num_tokens == encoder.config.max_tokens


# Checkpoints. What every encoder's folder and every fault have in common is in test_hub.py.


def test_a_reproduction_with_another_number_of_queries(golden, tmp_path):
    """What counts is the file, whatever the config.json beside it says (upstream has 10, 12, 13 and 14)."""
    weights = load_file(golden / "encoder_tiny.safetensors")
    weights["ecg_encoder.attn_pool_contrast.query"] = weights["ecg_encoder.attn_pool_contrast.query"][:3].clone()
    save_file(weights, tmp_path / "model.safetensors")
    config = {"model_type": "melp", "n_queries_contrast": 14, "n_queries_caption": 128, "attn_pooler_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder, extractor = load_encoder(tmp_path, output="beats", num_attention_heads=4)
    assert (encoder.config.n_queries_contrast, encoder.config.n_queries_caption) == (3, 16)
    assert extractor.num_tokens == 3
    with torch.no_grad():
        beats = encoder(load(golden / "in_model.npy")[:2]).beats
    torch.testing.assert_close(beats, load(golden / "tiny_ecg_beat_emb.npy")[:, :3], atol=2e-5, rtol=1e-5)


def test_dead_weights_may_be_there_or_not(golden, tiny, tmp_path):
    weights = load_file(golden / "encoder_tiny.safetensors")
    dead = read_published(golden / "encoder_tiny.safetensors", **TINY_HEADS).ignored
    assert len(dead) == 12 and "ecg_encoder.ecg_encoder.quantizer.vars" in dead and "ecg_encoder.logit_scale" in dead
    save_file({name: tensor for name, tensor in weights.items() if name not in dead}, tmp_path / "bare.safetensors")
    assert read_published(tmp_path / "bare.safetensors", **TINY_HEADS).ignored == []
    encoder, _ = load_encoder(tmp_path / "bare.safetensors", **TINY_HEADS)
    assert all(torch.equal(value, tiny.state_dict()[key]) for key, value in encoder.state_dict().items())


# What goes in.


def test_record_layout_is_upstreams_to_the_bit(golden, golden_ecgs):
    ours = MelpFeatureExtractor()(golden_ecgs)["ecg_values"].numpy()
    assert np.array_equal(ours, np.load(golden / "in_model.npy"))


def test_cpsc_layout_is_upstreams_to_the_bit(golden):
    ecg = Ecg(np.load(golden / "in_adc_icbeb_int16.npy") / 1000, 500, LEADS)
    features = MelpFeatureExtractor(layout="cpsc", output="features", num_tokens=312)(ecg)
    assert np.array_equal(features["ecg_values"][0].numpy(), np.load(golden / "in_model_icbeb.npy"))
    assert features["token_mask"].sum() == 157  # 2500 of 5000 samples, the 157th frame in part


def test_a_short_record_is_scaled_first_and_padded_at_0_millivolts(make_ecg):
    short, extractor = make_ecg(seconds=6.0), MelpFeatureExtractor()
    values = extractor(short)["ecg_values"][0].numpy()
    low, high = short.signal.min(), short.signal.max()
    np.testing.assert_allclose(values[0, :3000], (short.signal[0] - low) / (high - low), atol=1e-6)
    np.testing.assert_allclose(values[:, 3000:], -low / (high - low), atol=1e-6)
    offset = extractor(Ecg(short.signal + 20.0, 500, LEADS))["ecg_values"]
    assert offset.min() == 0 and offset.max() <= 1, "a record far from 0 mV is not dwarfed by its padding"


def test_missing_leads_can_be_constant(make_ecg):
    limb = make_ecg().select(LEADS[:6])
    extractor = MelpFeatureExtractor(missing_leads="constant")
    values = extractor(limb)["ecg_values"][0]
    assert (values[6:] == 0).all() and values[:6].max() == 1
    with pytest.raises(ValueError, match="has no lead I"):
        extractor(Ecg(np.zeros((1, 100)), 500, ("V7",)))
    with pytest.raises(ValueError, match="missing_leads must be"):
        MelpFeatureExtractor(missing_leads="zero")
    with pytest.raises(ValueError, match="layout must be"):
        MelpFeatureExtractor(layout="icbeb")


def test_amplitude_is_lost_and_order_matters(golden_ecgs, tiny):
    """Two facts about MELP that its users must know."""
    extractor = MelpFeatureExtractor.from_config(tiny.config)
    ecg = golden_ecgs[0]
    swapped = Ecg(ecg.signal, 500, (*LEADS[:4], "aVF", "aVL", *LEADS[6:]))
    louder = Ecg(3 * ecg.signal, 500, LEADS)
    with torch.no_grad():
        base, loud, wrong = tiny(**extractor([ecg, louder, swapped])).rhythm
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(base, loud, dim=0) > 0.9999
    assert cosine(base, wrong, dim=0) < 0.999


# How it is configured and trained.


def test_sizes_that_do_not_fit_are_refused():
    for settings, message in (
        ({"output": "global"}, "output must be one of features, beats, tokens, rhythm"),
        ({"hidden_size": 100}, "hidden_size 100 is not divisible by num_attention_heads 12"),
        ({"conv_dim": (256, 256)}, "one entry per convolution"),
        ({"seconds": 0.01}, "shorter than one frame"),
    ):
        with pytest.raises(ValueError, match=message):
            MelpConfig(**settings)


def test_published_sizes():
    config = MelpConfig()
    assert (config.output_dim, config.max_tokens, config.hop) == (768, 128, 16)
    assert (MelpConfig(output="features").max_tokens, MelpConfig(output="beats").output_dim) == (312, 256)
    assert MelpConfig(output="rhythm").max_tokens == 1


def test_new_weights_have_the_spread_they_are_meant_to():
    torch.manual_seed(0)
    weights = MelpModel(MelpConfig(num_hidden_layers=1)).state_dict()
    for name, std in (
        ("ecg_encoder.feature_extractor.conv_layers.0.0.weight", (2 / 24) ** 0.5),  # kaiming: twelve leads, kernel 2
        ("ecg_encoder.feature_extractor.conv_layers.3.0.weight", (2 / 512) ** 0.5),
        ("ecg_encoder.conv_pos.pos_conv.0.weight", (4 / (128 * 768)) ** 0.5),
        ("ecg_encoder.encoder.layers.0.fc1.weight", 0.02),
        ("attn_pool_caption.query", 1.0),
        ("proj_contrast", 256**-0.5),
    ):
        assert weights[name].std().item() == pytest.approx(std, rel=0.03), name


@pytest.mark.slow
def test_learns_from_scratch():
    """A tiny one tells fast from slow within seconds of AdamW."""
    rng = np.random.default_rng(0)
    rates = np.where(np.arange(16) % 2, rng.uniform(1.7, 2.2, 16), rng.uniform(0.8, 1.3, 16))
    time = np.arange(1000) / 100 + rng.uniform(size=(16, 1))
    pulses = np.exp(-(((time * rates[:, None] % 1.0) / rates[:, None] / 0.05) ** 2))
    signals = pulses[:, None] * rng.normal(size=(12, 1)) + 0.05 * rng.normal(size=(16, 12, 1000))
    torch.manual_seed(0)
    config = MelpConfig(
        sampling_rate=100,
        conv_dim=(32,) * 4,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        conv_pos_kernel=16,
        shared_dim=24,
        caption_dim=48,
        pooler_heads=4,
        n_queries_contrast=4,
        n_queries_caption=4,
    )
    model, head = MelpModel(config), torch.nn.Linear(48, 1)
    x = MelpFeatureExtractor.from_config(config)([Ecg(signal, 100, LEADS) for signal in signals])
    y = torch.tensor(rates > 1.5).float()
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-3)
    for _ in range(40):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(model(**x).tokens.mean(1))[:, 0], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.15


@torch.no_grad()
@pytest.mark.parametrize("file", ["encoder_tiny.safetensors", "melp_tiny.ckpt"])
def test_upstreams_checkpoints_by_a_configuration(golden, file):
    """Heads are all that it says; everything else follows from the weights."""
    model = MelpModel.from_upstream(golden / file, MelpConfig(num_attention_heads=4, pooler_heads=4, output="beats"))
    assert not model.training and model.config.hidden_size == 96 and model.config.n_queries_contrast == 5
    values = torch.from_numpy(np.load(golden / "in_model.npy"))[:2]
    want = torch.from_numpy(np.load(golden / "tiny_ecg_beat_emb.npy"))
    torch.testing.assert_close(model(values).last_hidden_state, want, atol=2e-5, rtol=0)
    with pytest.raises(ValueError, match="give num_attention_heads"):
        MelpModel.from_upstream(golden / file)
