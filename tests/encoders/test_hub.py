"""Loading: our folders, published MELP checkpoints, and every way in which one of them can be wrong."""

import json
import logging
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.hub import commit
from encoders import load_encoder, save_encoder
from encoders.cnn import CnnEncoder
from encoders.melp import MelpModel
from encoders.melp.convert import PRETRAINED_ON, read_published
from encoders.patch import PatchEncoder

TINY_HEADS = {"num_attention_heads": 4, "pooler_heads": 4}


@pytest.fixture
def folder(pair, tmp_path):
    save_encoder(*pair, tmp_path)
    return tmp_path


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, name: w.pop(name), "{} is missing"),
        (lambda w, name: w.update(extra=torch.zeros(2)), "extra is unexpected"),
        (lambda w, name: w.update({name: torch.zeros(3, 5, 7)}), "{} is \\(3, 5, 7\\) instead of"),
        (lambda w, name: w[name].view(-1)[0].fill_(float("nan")), "{} holds NaN"),
        (lambda w, name: w[name].view(-1)[-1].fill_(float("inf")), "{} holds NaN or infinity"),
    ],
    ids=["missing", "unexpected", "misshapen", "nan", "inf"],
)
def test_a_wrong_weight_is_an_error_that_names_it(folder, change, message):
    name = next(name for name, weight in load_file(folder / "model.safetensors").items() if weight.is_floating_point())
    edit_weights(folder, lambda weights: change(weights, name))
    with pytest.raises(ValueError, match=message.format(name)):
        load_encoder(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "preprocessor_config.json"])
def test_an_incomplete_folder_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_encoder(folder)


def test_preprocessing_that_contradicts_the_encoder_is_refused(folder):
    file = folder / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"sampling_rate": 250}))
    with pytest.raises(ValueError, match="sampling_rate 250 but 100"):
        load_encoder(folder)
    file.write_text(json.dumps(settings | {"notch": 50}))
    with pytest.raises(TypeError, match="notch"):
        load_encoder(folder)


def test_overrides_change_encoder_and_extractor_together(folder):
    with pytest.raises(ValueError, match="unknown setting outptu"):
        load_encoder(folder, outptu="features")
    with pytest.raises(ValueError, match="unknown setting architectures"):
        load_encoder(folder, architectures=["Other"])
    if isinstance(load_encoder(folder)[0], PatchEncoder):
        encoder, extractor = load_encoder(folder, normalize="zscore")
        assert extractor.normalize == "zscore"
        tokens, width = encoder.config.max_tokens, encoder.config.output_dim
        with pytest.raises(ValueError, match=rf"position is \({tokens}, {width}\) instead of \({tokens * 4 // 5},"):
            load_encoder(folder, seconds=8.0)
        return
    if isinstance(load_encoder(folder)[0], CnnEncoder):
        encoder, extractor = load_encoder(folder, normalize="millivolts", seconds=8.0)
        assert (extractor.normalize, extractor.seconds, encoder.config.max_tokens) == ("millivolts", 8.0, 20)
        return
    encoder, extractor = load_encoder(folder, output="features", missing_leads="constant", seconds=8.0)
    assert encoder.config.max_tokens == extractor.num_tokens == 800 // 16
    assert (extractor.output, extractor.missing_leads, extractor.seconds) == ("features", "constant", 8.0)
    with pytest.raises(ValueError, match="attn_pool_caption.query is"):
        load_encoder(folder, n_queries_caption=9)


def test_extractor_settings_are_kept(folder, pair):
    encoder, extractor = pair
    own = {"missing_leads": "constant"} if isinstance(encoder, MelpModel) else {"scale": 0.25}
    save_encoder(encoder, type(extractor).from_config(encoder.config, **own), folder)
    assert own.items() <= load_encoder(folder)[1].to_dict().items()


def test_hub_ids_are_downloaded_once_and_without_code(logged_in, folder, pair):
    files = {path.name: path for path in folder.iterdir()} | {"modeling.py": b"1 / 0", "pytorch_model.bin": b"pickle"}
    first = commit("owner/encoder", files, kind="model", message="An encoder", ours=[]).rpartition("/")[2]
    for revision in (None, "main", first):
        encoder, extractor = load_encoder("owner/encoder", revision=revision)
        assert not encoder.training and extractor.to_dict() == pair[1].to_dict()
        assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in pair[0].state_dict().items())
    fetched = [path.rpartition("/")[2] for path in logged_in.downloads()]
    assert len(fetched) == 3 and not {"modeling.py", "pytorch_model.bin"} & set(fetched)
    with pytest.raises(FileNotFoundError, match="no encoder at owner/encoder: .*has no revision v9"):
        load_encoder("owner/encoder", revision="v9")


def test_what_is_neither_here_nor_on_the_hub_is_refused(folder):
    for missing in ("nowhere", folder / "nowhere", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="no encoder at"):
            load_encoder(missing)


# Published MELP checkpoints.


def test_all_published_formats_hold_the_same_encoder(golden, tiny):
    want = tiny.state_dict()
    for name in ("encoder_tiny.safetensors", "melp_tiny.safetensors", "melp_tiny.ckpt"):
        encoder, _ = load_encoder(golden / name, **TINY_HEADS)
        assert all(torch.equal(value, want[key]) for key, value in encoder.state_dict().items()), name
        assert encoder.config.n_queries_contrast == 5 and encoder.config.n_queries_caption == 16
        assert encoder.config.pretrained_on == PRETRAINED_ON


def test_what_is_not_used_is_reported(golden, caplog):
    keys = json.loads((golden / "melp_tiny.keys.json").read_text())
    with caplog.at_level(logging.INFO, "encoders"):
        published = read_published(golden / "melp_tiny.ckpt", **TINY_HEADS)
    ignored = set(published.ignored)
    assert len(ignored) + len(published.weights) + 1 == len(keys)  # weight norm: two tensors become one
    assert {"ecg_encoder.ecg_encoder.mask_emb", "ecg_encoder.bn.running_mean", "logit_scale"} <= ignored
    assert {name.split(".")[0] for name in ignored} >= {"lm_model", "proj_t", "sent_proj", "text_decoder"}
    assert "lm_model.bert.embeddings.word_embeddings.weight" in caplog.text


def test_old_names_of_weight_norm(golden, tiny, tmp_path):
    weights = load_file(golden / "encoder_tiny.safetensors")
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        prefix = "ecg_encoder.ecg_encoder.conv_pos.pos_conv.0."
        weights[prefix + old] = weights.pop(f"{prefix}parametrizations.weight.{new}")
    save_file(weights, tmp_path / "old.safetensors")
    encoder, _ = load_encoder(tmp_path / "old.safetensors", **TINY_HEADS)
    assert all(torch.equal(value, tiny.state_dict()[key]) for key, value in encoder.state_dict().items())


def test_published_folder_and_a_folder_of_ours_made_from_it(golden, tiny, tmp_path):
    shutil.copy(golden / "encoder_tiny.safetensors", tmp_path / "model.safetensors")
    config = {"model_type": "melp", "architectures": ["MELPEncoderModel"], "attn_pooler_heads": 4, "num_leads": 12}
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder, extractor = load_encoder(tmp_path, output="beats", num_attention_heads=4)
    assert encoder.config.pooler_heads == 4
    save_encoder(encoder, extractor, tmp_path / "ours")
    again, extractor = load_encoder(tmp_path / "ours")
    assert again.config.output == extractor.output == "beats" and again.config.pretrained_on == PRETRAINED_ON
    assert all(torch.equal(value, tiny.state_dict()[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ecg_encoder.attn_pool_caption.query", "no 2-d tensor ecg_encoder.attn_pool_caption.query"),
        ("ecg_encoder.proj_contrast", "proj_contrast is missing"),
        ("ecg_encoder.ecg_encoder.encoder.layers.0.self_attn.k_proj.bias", "layers.0.self_attn.k_proj.bias is missing"),
    ],
)
def test_a_published_file_without_a_tensor_is_refused(golden, tmp_path, name, message):
    weights = load_file(golden / "encoder_tiny.safetensors")
    del weights[name]
    save_file(weights, tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match=message):
        load_encoder(tmp_path / "cut.safetensors", **TINY_HEADS)


def test_other_published_faults(golden, tmp_path):
    weights = load_file(golden / "encoder_tiny.safetensors")
    save_file(weights | {"ecg_encoder.adapter.weight": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(ValueError, match="adapter.weight is unexpected"):
        load_encoder(tmp_path / "more.safetensors", **TINY_HEADS)
    with pytest.raises(ValueError, match="give num_attention_heads"):
        load_encoder(golden / "encoder_tiny.safetensors", pooler_heads=4)
    backbone = {k.removeprefix("ecg_encoder."): v for k, v in weights.items() if ".ecg_encoder." in k}
    save_file(backbone, tmp_path / "ssl.safetensors")  # before MELP's own training there are no poolers
    with pytest.raises(ValueError, match="no MELP encoder with both poolers"):
        load_encoder(tmp_path / "ssl.safetensors")
    with pytest.raises(FileNotFoundError, match="no MELP checkpoint"):
        load_encoder(tmp_path)
    for content in ([1, 2], {"state_dict": {"epoch": 3}}):
        torch.save(content, tmp_path / "other.ckpt")
        with pytest.raises(ValueError, match="holds no state_dict"):
            load_encoder(tmp_path / "other.ckpt")


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("pwned").touch, ())

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        load_encoder(tmp_path / "evil.ckpt")
    assert not (tmp_path / "pwned").exists()
