"""The patch encoder: one linear map of the samples, and ECG-Bench's scaling of them."""

import numpy as np
import pytest
import torch

from data.ecg import LEADS, Ecg
from encoders import new_encoder
from encoders.patch import PatchConfig, PatchEncoder, PatchFeatureExtractor

WHOLE = {"sampling_rate": 250, "seconds": 5, "patch_size": 1250, "normalize": "minmax"}  # ECG-Bench's one token


def upstream_minmax(signal):
    """ECG-Bench's formula, in its precision."""
    low, high = signal.min(), signal.max()
    return np.clip((signal - low) / (high - low + np.float32(1e-6)), 0, 1)


def test_a_whole_recording_is_one_token_and_one_linear_map(make_ecg):
    torch.manual_seed(0)
    encoder, extractor = new_encoder("ecg_patch", **WHOLE, hidden_size=16)
    ecgs = [make_ecg(fs=250, seed=seed) for seed in range(3)]
    with torch.no_grad():
        tokens = encoder(**extractor(ecgs)).last_hidden_state
    assert tokens.shape == (3, 1, 16)
    weight, bias = encoder.patch.weight.detach().numpy(), encoder.patch.bias.detach().numpy()
    flat = extractor(ecgs)["ecg_values"].numpy().reshape(3, 12 * 1250)
    position = encoder.position.detach().numpy()
    np.testing.assert_allclose(tokens[:, 0].numpy(), flat @ weight.T + bias + position, atol=1e-5)


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
    with pytest.raises(ValueError, match="not a whole number of patches of 7"):
        PatchEncoder(PatchConfig(patch_size=7))
