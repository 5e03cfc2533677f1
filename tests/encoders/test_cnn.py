"""The plain convolutional encoder: where its tokens stand in time, and what it refuses."""

import pytest
import torch
from torch import nn

from encoders import load_encoder, new_encoder, save_encoder
from encoders.cnn import CnnConfig, CnnEncoder


def test_a_token_reads_the_samples_around_its_place():
    torch.manual_seed(0)
    encoder = CnnEncoder(CnnConfig()).eval()
    quiet = torch.zeros(1, 12, 1000)
    pulse = quiet.clone()
    pulse[:, :, 500] = 5.0
    with torch.no_grad():
        changed = (encoder(pulse).last_hidden_state - encoder(quiet).last_hidden_state).abs().sum(dim=2)[0]
    here = changed.nonzero().flatten().tolist()
    # Kernel 7 at strides 2, 2, 2 and 5: 3 * (1 + 2 + 4 + 8) = 45 samples to each side of samples 0, 40, 80, ...
    assert here == [12, 13]  # 500 lies between the tokens of samples 480 and 520


def test_it_takes_other_lengths_than_its_own(make_ecg):
    encoder = CnnEncoder(CnnConfig()).eval()
    assert encoder(torch.zeros(2, 12, 800)).last_hidden_state.shape == (2, 20, 128)
    with pytest.raises(ValueError, match="810 samples are not a whole number of tokens of 40"):
        encoder(torch.zeros(2, 12, 810))


def test_the_statistics_of_its_norms_are_saved(tmp_path, make_ecg):
    """They are buffers: an encoder loaded without them would give other tokens."""
    encoder, extractor = new_encoder("ecg_cnn", normalize="zscore")
    features = extractor([make_ecg(seed=seed) for seed in range(4)])
    encoder.train()
    encoder(**features)  # moves the running mean and variance
    encoder.eval()
    save_encoder(encoder, extractor, tmp_path)
    loaded, _ = load_encoder(tmp_path)
    assert any(isinstance(module, nn.BatchNorm1d) and module.running_mean.any() for module in loaded.modules())
    with torch.no_grad():
        assert torch.equal(loaded(**features).last_hidden_state, encoder(**features).last_hidden_state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conv_dim": (8, 8)}, "must have one entry per convolution"),
        ({"conv_kernel": 6}, "conv_kernel must be odd"),
        ({"seconds": 9.5}, "not a whole number of tokens of 40"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CnnConfig(**settings)
