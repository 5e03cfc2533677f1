"""The patch encoder: what its tokens are about, that they are linear, and ECG-Bench's token and scaling."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from data.ecg import LEADS, Ecg
from encoders import load_encoder, new_encoder, save_encoder
from encoders.patch import PatchConfig, PatchEncoder, PatchFeatureExtractor

WHOLE = {"sampling_rate": 250, "seconds": 5, "patch_size": 1250, "normalize": "minmax"}  # ECG-Bench's one token


def upstream_minmax(signal):
    """ECG-Bench's formula, in its precision."""
    low, high = signal.min(), signal.max()
    return np.clip((signal - low) / (high - low + np.float32(1e-6)), 0, 1)


# How ECG-Bench orders the leads of MIMIC-IV-ECG and CODE-15%.
ECG_BENCH_LEADS = ("I", "II", "III", "aVL", "aVR", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
LINEAR = {
    "time": {"patch_size": 25, "hidden_size": 16},
    "leads": {"patches": "leads", "patch_size": 50, "hidden_size": 16},
    "whole": {"patch_size": 1000, "hidden_size": 16},
    "samples": {"hidden_size": None},
    "samples of leads": {"patches": "leads", "hidden_size": None},
}
CONV = {
    "conv": {"patches": "conv", "hidden_size": 16, "conv_dim": (8, 8)},
    "one convolution": {"patches": "conv", "patch_size": 25, "hidden_size": 16, "conv_dim": (8,), "conv_stride": (5,)},
    "frames": {
        "patches": "conv",
        "patch_size": 8,
        "hidden_size": None,
        "conv_dim": (4, 8, 6),
        "conv_stride": (2, 1, 4),
    },
}


@pytest.fixture(params=LINEAR | CONV)
def any_pair(request):
    torch.manual_seed(0)
    return new_encoder("ecg_patch", **(LINEAR | CONV)[request.param])


def test_a_whole_recording_is_ecg_benchs_one_linear_layer(make_ecg):
    torch.manual_seed(0)
    encoder, extractor = new_encoder("ecg_patch", **WHOLE, hidden_size=16, leads=ECG_BENCH_LEADS)
    nn.init.zeros_(encoder.position)
    upstream = nn.Linear(12 * 1250, 16)
    upstream.load_state_dict(encoder.patch.state_dict())
    ecgs = [make_ecg(fs=250, seed=seed) for seed in range(3)]
    flat = [upstream_minmax(ecg.select(ECG_BENCH_LEADS).signal[:, :1250]).flatten() for ecg in ecgs]
    with torch.no_grad():
        tokens = encoder(**extractor(ecgs)).last_hidden_state
        want = upstream(torch.tensor(np.stack(flat)))
    assert tokens.shape == (3, 1, 16)
    torch.testing.assert_close(tokens[:, 0], want, atol=1e-5, rtol=1e-5)


def test_without_a_layer_the_token_is_the_flattened_recording(make_ecg):
    encoder, extractor = new_encoder("ecg_patch", **WHOLE, hidden_size=None)
    assert (encoder.config.output_dim, encoder.config.max_tokens) == (15000, 1)
    features = extractor([make_ecg(fs=100, seed=seed) for seed in range(2)])  # resampled
    with torch.no_grad():
        tokens = encoder(**features).last_hidden_state
    assert torch.equal(tokens[:, 0], features["ecg_values"].flatten(1))
    zeros = encoder(torch.zeros(1, 12, 1250)).last_hidden_state
    assert not zeros.any(), "zeros after the normalisation must reach the projector as zeros"


def test_minmax_is_upstreams(golden):
    for file in sorted((golden.parent / "ecg_byte" / "signals").glob("*1250.npy")):
        signal = np.load(file)
        if np.abs(signal).max() > 1e6:
            continue  # no millivolts
        ours = PatchFeatureExtractor(**WHOLE)(Ecg(signal, 250, LEADS))["ecg_values"][0].numpy()
        np.testing.assert_allclose(ours, upstream_minmax(signal), atol=2e-6, err_msg=file.name)


def test_minmax_is_over_all_leads_together_and_forgets_gain(make_ecg):
    extractor = PatchFeatureExtractor(**WHOLE)
    ecg = make_ecg(fs=250)
    values = extractor(ecg)["ecg_values"][0].numpy()
    assert values.min() == 0 and values.max() == pytest.approx(1, abs=1e-5)
    spread = [np.ptp(lead) for lead in ecg.signal[:, :1250]]
    np.testing.assert_allclose(np.ptp(values, axis=1), spread / np.ptp(ecg.signal[:, :1250]), atol=1e-5)
    louder = extractor(Ecg(4 * ecg.signal, 250, LEADS))["ecg_values"][0].numpy()
    np.testing.assert_allclose(louder, values, atol=1e-5)


def test_tokens_are_as_many_and_as_wide_as_the_configuration_says(any_pair, make_ecg):
    encoder, extractor = any_pair
    config, out = encoder.config, encoder(**extractor(make_ecg()))
    rows = 12 if config.patches == "leads" else 1
    assert config.max_tokens == rows * 1000 // config.patch_size
    assert out.last_hidden_state.shape == (1, config.max_tokens, config.output_dim)
    shorter = encoder(torch.zeros(2, 12, 3 * config.patch_size)) if config.num_patches > 3 else None
    assert shorter is None or shorter.last_hidden_state.shape == (2, 3 * rows, config.output_dim)


def test_a_token_is_about_its_span_and_nothing_else(any_pair, make_ecg):
    """Convolutions look a stride beyond it, each of them; so far, and as far on either side."""
    encoder, extractor = any_pair
    strides = encoder.config.conv_stride if encoder.config.patches == "conv" else ()
    reach = sum(math.prod(strides[: i + 1]) for i in range(len(strides)))
    ecg = make_ecg(fs=100)
    values = torch.randn(1, 12, 1000, requires_grad=True)  # a gradient that is 0 nowhere by accident
    tokens, spans = encoder(values).last_hidden_state[0], extractor.token_spans(ecg)
    assert len(spans) == len(tokens)
    for k in {0, 1 % len(tokens), len(tokens) // 2, len(tokens) - 1}:
        (gradient,) = torch.autograd.grad(tokens[k].pow(2).sum(), values, retain_graph=True)
        want = np.zeros((12, 1000), bool)
        rows = slice(None) if spans[k].lead is None else LEADS.index(spans[k].lead)
        want[rows, max(0, round(spans[k].start * 100) - reach) : round(spans[k].end * 100) + reach] = True
        got = gradient[0].numpy() != 0
        assert not (got & ~want).any()
        assert got.any(axis=0).nonzero()[0][[0, -1]].tolist() == want.any(axis=0).nonzero()[0][[0, -1]].tolist()
        assert (got.any(axis=1) == want.any(axis=1)).all()


def test_patches_of_leads_go_lead_after_lead_through_one_layer(make_ecg):
    torch.manual_seed(0)
    encoder, extractor = new_encoder("ecg_patch", **LINEAR["leads"])
    ecg = make_ecg()
    features = extractor(ecg)
    with torch.no_grad():
        tokens = encoder(**features).last_hidden_state[0]
        spans = extractor.token_spans(ecg)
        for k in range(0, 240, 7):
            lead, patch = divmod(k, 20)
            assert (spans[k].lead, spans[k].start, spans[k].end) == (LEADS[lead], patch / 2, patch / 2 + 0.5)
            of_patch = encoder.patch(features["ecg_values"][0, lead, 50 * patch : 50 * patch + 50])
            want = of_patch + encoder.lead_position[lead] + encoder.position[patch]
            torch.testing.assert_close(tokens[k], want, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("seconds", [0.01, 3.3, 9.99, 10.0, 14.0])
def test_a_short_recordings_tokens_are_those_of_its_patches(any_pair, make_ecg, seconds):
    encoder, extractor = any_pair
    ecg = make_ecg(seconds=seconds, seed=3)
    features, spans = extractor([make_ecg(seed=4), ecg]), extractor.token_spans(ecg)
    with torch.no_grad():
        out, padded = encoder(**features), encoder(features["ecg_values"])
    assert torch.equal(out.last_hidden_state[0], padded.last_hidden_state[0])
    assert out.mask[0].all() and int(out.mask[1].sum()) == len(spans)
    ends = [span.end for span in spans]
    assert max(ends) == pytest.approx(min(seconds, 10.0)) and all(span.start < span.end for span in spans)
    size, steps = encoder.config.patch_size / 100, encoder.config.num_patches
    for token, span in zip(out.last_hidden_state[1], spans):
        lead = 0 if span.lead is None else LEADS.index(span.lead)
        assert torch.equal(token, padded.last_hidden_state[1, lead * steps + round(span.start / size)])


@pytest.mark.parametrize("name", LINEAR | CONV)
def test_tokens_are_linear_in_millivolts_unless_convolutions_come_first(name):
    torch.manual_seed(0)
    encoder = new_encoder("ecg_patch", **(LINEAR | CONV)[name])[0].double()
    x, y = torch.randn(2, 5, 12, 1000, dtype=torch.float64)
    a, b = torch.randn(2, 5, 1, 1, dtype=torch.float64) * 3
    with torch.no_grad():
        nothing = encoder(torch.zeros_like(x)).last_hidden_state
        of_x, of_y, of_both = (encoder(v).last_hidden_state - nothing for v in (x, y, a * x + b * y))
    assert torch.allclose(of_both, a * of_x + b * of_y, atol=1e-9) == (name in LINEAR)


def test_new_tokens_are_about_as_large_as_the_signal_and_positions_small_beside_it(any_pair):
    encoder, _ = any_pair
    torch.manual_seed(1)
    with torch.no_grad():
        tokens = encoder(torch.randn(8, 12, 1000)).last_hidden_state
        positions = encoder.position.std(correction=0)
        if encoder.config.patches == "leads":
            positions += encoder.lead_position.std(correction=0)
    assert 0.6 < tokens.std() < 1.4 and positions < 0.06


def test_what_was_saved_before_there_was_a_choice_of_patches_loads(tmp_path, make_ecg):
    encoder, extractor = new_encoder("ecg_patch", hidden_size=8)
    save_encoder(encoder, extractor, tmp_path)
    for file, new in (
        ("config.json", ("patches", "conv_dim", "conv_stride")),
        ("preprocessor_config.json", ("patches",)),
    ):
        saved = json.loads((tmp_path / file).read_text())
        for name in new:
            del saved[name]
        (tmp_path / file).write_text(json.dumps(saved))
    loaded, its_extractor = load_encoder(tmp_path)
    assert loaded.config.patches == its_extractor.patches == "time"
    assert {*loaded.state_dict()} == {"position", "patch.weight", "patch.bias"}
    features = its_extractor(make_ecg())
    assert torch.equal(loaded(**features).last_hidden_state, encoder(**features).last_hidden_state)


def test_new_weights_follow_from_torchs_seed():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(new_encoder("ecg_patch", hidden_size=8)[0].state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_settings_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="unknown setting normalise: ecg_patch has .*normalize"):
        new_encoder("ecg_patch", normalise="minmax")
    with pytest.raises(ValueError, match="normalize must be one of millivolts, zscore, minmax, got 'max'"):
        new_encoder("ecg_patch", normalize="max")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": 7}, "not a whole number of patches of 7"),
        ({"patch_size": 0}, "not a whole number of patches of 0"),
        ({"patches": "beats"}, "patches must be one of time, leads, conv, got 'beats'"),
        ({"patches": "conv", "conv_dim": (8,)}, r"conv_dim \(8,\) and conv_stride \(2, 2\) must have one entry per"),
        ({"patches": "conv", "conv_dim": (), "conv_stride": ()}, "must have one entry per convolution"),
        ({"patches": "conv", "patch_size": 25}, r"25 samples is not a whole number of steps of 4, the .*\(2, 2\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PatchConfig(**settings)


@pytest.mark.parametrize("samples", [0, 30, 1020])
def test_an_input_that_is_no_whole_patches_is_refused(samples):
    encoder = PatchEncoder(PatchConfig(hidden_size=8))
    with pytest.raises(ValueError, match=f"{samples} samples are not 1 to 50 whole patches of 20"):
        encoder(torch.zeros(1, 12, samples))
