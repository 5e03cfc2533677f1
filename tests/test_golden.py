"""Parity with upstream on any machine: small cuts of the golden files. tests/encoders has all of them, in ../shared."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data.ecg import LEADS, Ecg
from encoders import load_encoder
from encoders.ecg_byte import EcgByteTokenizer
from encoders.heartlang import HeartLangConfig, HeartLangModel, HeartLangVQ, HeartLangVQConfig, QrsTokenizer
from helpers.golden import SMALL, heartlang_weight, melp_weight

SHAPES = json.loads((SMALL / "shapes.json").read_text())
TWO_HEADS = {"num_attention_heads": 2, "head_dim": 16}  # of the small checkpoints


@pytest.fixture
def golden(request):
    return np.load(SMALL / f"{request.param}.npz")


def same_bytes(array, digest):
    """Whether the values are those of the hash; -0 counts as 0."""
    return hashlib.sha256((array + np.float32(0)).tobytes()).digest() == digest.tobytes()


def close(ours, theirs, **tolerance):
    torch.testing.assert_close(ours, torch.from_numpy(theirs), **{"atol": 2e-5, "rtol": 1e-4} | tolerance)


@torch.no_grad()
@pytest.mark.parametrize("golden", ["melp"], indirect=True)
def test_melp(golden, tmp_path):
    save_file({name: melp_weight(name, shape) for name, shape in SHAPES["melp"].items()}, tmp_path / "melp.safetensors")
    model, extractor = load_encoder(tmp_path / "melp.safetensors", num_attention_heads=4, pooler_heads=4)
    inputs = extractor(Ecg(golden["adc"] / 1000, 500, LEADS))
    assert same_bytes(inputs["ecg_values"][0].numpy(), golden["values_sha256"])
    out = model(**inputs)
    for name in ("rhythm", "beats", "tokens", "probe"):
        close(out[name][0], golden[name], rtol=1e-5, msg=name)
    close(out.features[0, ::24], golden["features"], rtol=1e-5)


@pytest.fixture
def heartlang(tmp_path):
    """Upstream's file of a model with weights drawn by recipe."""

    def write(name, seed):
        weights = {key: heartlang_weight(key, shape, seed) for key, shape in SHAPES[name].items()}
        save_file(weights, tmp_path / f"{name}.safetensors")
        return tmp_path / f"{name}.safetensors"

    return write


@torch.no_grad()
@pytest.mark.parametrize("golden", ["heartlang"], indirect=True)
def test_heartlang(golden, heartlang):
    sentences = QrsTokenizer(mode="parity", filter=None)(
        [Ecg(signal, 100, LEADS) for signal in golden["signal"]], return_tensors="pt"
    )
    assert same_bytes(sentences["words"].numpy(), golden["words_sha256"])
    for name in ("in_chan", "in_time"):
        assert np.array_equal(sentences[name].numpy(), golden[name]), name
    inputs = {name: sentences[name] for name in ("words", "in_chan", "in_time")}
    model = HeartLangModel.from_upstream(heartlang("heartlang", 101), HeartLangConfig(**TWO_HEADS))
    close(model(**inputs).last_hidden_state[:, ::16], golden["tokens"])
    vq = HeartLangVQ.from_upstream(heartlang("heartlang_vq", 202), HeartLangVQConfig(**TWO_HEADS, count_padding=True))
    clear = golden["margins"] > 2e-4
    assert clear.mean() > 0.99 and (vq(**inputs).codes.numpy() == golden["codes"])[clear].all()


@pytest.mark.parametrize("golden", ["ecg_byte"], indirect=True)
def test_ecg_byte(golden):
    tokenizer = EcgByteTokenizer.from_upstream(SMALL / "ecg_byte_tokenizer_1000_25.json")
    read = tokenizer.read(golden["signal"])
    assert read.ids == golden["ids"].tolist() == tokenizer.encode(Ecg(golden["signal"], 250, LEADS))
    assert (read.low, read.high) == (golden["low"], golden["high"])
