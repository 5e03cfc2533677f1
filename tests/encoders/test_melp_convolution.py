"""The convolution by its spectrum is the plain one: outputs, gradients, any length and kernel."""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from encoders.melp.convolution import WideConv1d


def plain(conv: WideConv1d, x: torch.Tensor) -> torch.Tensor:
    return F.conv1d(x, conv.weight, conv.bias, padding=conv.padding, groups=conv.groups)[..., : x.shape[-1]]


@pytest.mark.parametrize("taps", [1, 2, 7, 16])
@pytest.mark.parametrize("frames", [1, 2, 15, 16, 17, 50])
def test_outputs_and_gradients_are_those_of_the_plain_way(taps, frames):
    torch.manual_seed(taps * 100 + frames)
    conv, x = WideConv1d(12, taps, 3), torch.randn(2, 12, frames, requires_grad=True)
    exact, y = copy.deepcopy(conv).double(), x.detach().double().requires_grad_()
    ours, theirs = conv(x), plain(exact, y)
    assert ours.shape == x.shape
    torch.testing.assert_close(ours.double(), theirs, atol=2e-6, rtol=0)
    upwards = torch.randn_like(ours)
    ours.backward(upwards)
    theirs.backward(upwards.double())
    for mine, exactly in ((x, y), (conv.weight, exact.weight), (conv.bias, exact.bias)):
        torch.testing.assert_close(mine.grad.double(), exactly.grad, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_it_is_as_exact_as_the_plain_way_at_full_size():
    torch.manual_seed(0)
    conv, x = WideConv1d(768, 128, 16), torch.randn(1, 768, 312)
    conv.weight.normal_(std=0.03)
    exact = plain(copy.deepcopy(conv).double(), x.double())
    ours, theirs = ((out - exact).abs().max() for out in (conv(x), plain(conv, x)))
    assert ours < max(1.5 * theirs, 1e-5) and exact.std() > 2


@torch.no_grad()
def test_what_is_not_float32_goes_the_plain_way(monkeypatch):
    torch.manual_seed(0)
    conv, x = WideConv1d(12, 8, 3), torch.randn(2, 12, 20)
    for dtype in (torch.float64, torch.bfloat16):
        other = copy.deepcopy(conv).to(dtype)
        assert torch.equal(other(x.to(dtype)), plain(other, x.to(dtype)))
    assert not torch.equal(conv(x), plain(conv, x))
