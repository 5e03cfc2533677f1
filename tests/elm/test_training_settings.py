"""Settings that are refused before anything is loaded, and attention implementations that give the same."""

import importlib.util

import pytest
import torch
from trl import ModelConfig, SFTConfig

from data.conversations.rows import assistant, user
from elm.model.quantization import nf4
from elm.saved.arguments import ElmArguments
from elm.training.settings import check_settings


@pytest.fixture
def check(tmp_path):
    def check(*, full_determinism=False, quantization=None, **model_args):
        training_args = SFTConfig(str(tmp_path), use_cpu=True, full_determinism=full_determinism)
        check_settings(ElmArguments(quantization=quantization), training_args, ModelConfig(**model_args))

    return check


def test_one_way_to_say_a_thing(check):
    for name in ("load_in_4bit", "load_in_8bit"):
        with pytest.raises(ValueError, match="give --quantization nf4 in place of load_in_4bit and load_in_8bit"):
            check(**{name: True})
    with pytest.raises(ValueError, match="give --deterministic in place of full_determinism"):
        check(full_determinism=True)
    with pytest.raises(ValueError, match="quantization must be nf4 or left out, got 'int8'"):
        ElmArguments(quantization="int8")
    with pytest.raises(
        ValueError, match="attn_implementation must be one of sdpa, flash_attention_2, eager, got 'fla'"
    ):
        check(attn_implementation="fla")
    for name in (None, "sdpa", "eager"):
        check(attn_implementation=name)


def test_a_package_that_is_not_there_is_named(check, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in missing else find(name, *a))
    missing = ("flash_attn", "bitsandbytes")
    with pytest.raises(ImportError, match=r'pip install --no-build-isolation "ecg-elm\[flash\]", or take sdpa'):
        check(attn_implementation="flash_attention_2")
    with pytest.raises(ImportError, match=r'quantization nf4 needs bitsandbytes: pip install "ecg-elm\[quant\]"'):
        check(quantization="nf4")
    with pytest.raises(ImportError, match="bitsandbytes"):
        nf4()


def test_nf4_is_double_quantised_and_computes_in_bfloat16():
    pytest.importorskip("bitsandbytes", reason='needs bitsandbytes: pip install "ecg-elm[quant]"')
    config = nf4()
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.bfloat16


def logits(pair, ecgs, implementation, device="cpu", dtype=torch.float32):
    """Of a batch of two rows of different length, padded, and their mask."""
    model, processor = pair
    rows = [[user(1, "Is it?"), assistant("yes")], [user(1, "What is the rhythm of this ECG?"), assistant("sinus")]]
    batch = processor(rows, [[ecg] for ecg in ecgs]).to(device, dtype)
    model = model.to(device, dtype)
    model.set_attn_implementation(implementation)
    assert model.model.language_model.config._attn_implementation == implementation
    with torch.no_grad():
        return model(**batch).logits, batch["attention_mask"].bool()


def test_sdpa_and_eager_give_the_same(make_pair, make_ecg):
    ecgs = [make_ecg(0), make_ecg(1)]
    ours, mask = logits(make_pair(pool=2), ecgs, "sdpa")
    theirs, _ = logits(make_pair(pool=2), ecgs, "eager")
    torch.testing.assert_close(ours[mask], theirs[mask], atol=1e-4, rtol=0)


@pytest.mark.gpu
def test_sdpa_and_flash_attention_give_the_same(make_pair, make_ecg):
    """In bfloat16, within what its eight bits of mantissa leave."""
    pytest.importorskip("flash_attn", reason='needs flash-attn: pip install --no-build-isolation "ecg-elm[flash]"')
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    ecgs = [make_ecg(0), make_ecg(1)]
    ours, mask = logits(make_pair(pool=2), ecgs, "sdpa", "cuda", torch.bfloat16)
    theirs, _ = logits(make_pair(pool=2), ecgs, "flash_attention_2", "cuda", torch.bfloat16)
    difference = (ours[mask] - theirs[mask]).float()
    assert difference.square().mean().sqrt() < 0.02 * ours[mask].float().std()
