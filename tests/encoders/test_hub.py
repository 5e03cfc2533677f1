"""Loading: our folders, published MELP checkpoints, and every way in which one of them can be wrong."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.support.hub import commit
from encoders import load_encoder, new_encoder, save_encoder
from encoders.cnn import CnnEncoder
from encoders.heartlang import HeartLangConfig, HeartLangModel, HeartLangVQ, QrsTokenizer
from encoders.melp import MelpFeatureExtractor
from encoders.melp.upstream import PRETRAINED_ON, read_published
from encoders.patch import PatchEncoder

TWO_HEADS = {"num_attention_heads": 2, "head_dim": 16}
SMALL_HEARTLANG = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 4}
TINY_HEADS = {"num_attention_heads": 4, "pooler_heads": 4}


@pytest.fixture
def folder(pair, tmp_path):
    save_encoder(*pair, tmp_path)
    return tmp_path


@pytest.fixture
def signal_folder(signal_pair, tmp_path):
    save_encoder(*signal_pair, tmp_path)
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


def test_overrides_change_encoder_and_extractor_together(signal_folder):
    folder = signal_folder
    with pytest.raises(ValueError, match="unknown setting outptu"):
        load_encoder(folder, outptu="features")
    with pytest.raises(ValueError, match="unknown setting architectures"):
        load_encoder(folder, architectures=["Other"])
    if isinstance(load_encoder(folder)[0], PatchEncoder):
        encoder, extractor = load_encoder(folder, normalize="zscore")
        assert extractor.normalize == "zscore"
        steps, width = encoder.position.shape
        with pytest.raises(ValueError, match=rf"position is \({steps}, {width}\) instead of \({steps * 4 // 5},"):
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
    owns = {MelpFeatureExtractor: {"missing_leads": "constant"}, QrsTokenizer: {"filter": None, "nan": "repair"}}
    own = owns.get(type(extractor), {"scale": 0.25})
    save_encoder(encoder, type(extractor).from_config(encoder.config, **own), folder)
    assert own.items() <= load_encoder(folder)[1].to_dict().items()


def test_layouts_of_words_are_chosen_on_loading(tmp_path, make_ecg):
    save_encoder(*new_encoder("ecg_heartlang", **SMALL_HEARTLANG), tmp_path)
    words, _ = load_encoder(tmp_path)
    for output, tokens in (("words", 257), ("beats", 21), ("leads", 12), ("compact", 34)):
        encoder, extractor = load_encoder(tmp_path, output=output, filter=None)
        assert encoder.config.max_tokens == tokens and (extractor.output, extractor.filter) == (output, None)
        assert extractor(make_ecg())["token_mask"].shape == (1, tokens)
        assert all(torch.equal(value, words.state_dict()[name]) for name, value in encoder.state_dict().items())
    with pytest.raises(ValueError, match="output must be one of words, beats, leads, compact, got 'codes'"):
        load_encoder(tmp_path, output="codes")


# Published HeartLang checkpoints.


@pytest.mark.parametrize("file", ["pretrain-checkpoint-200.pth", "pretrain.safetensors", "finetune.safetensors"])
def test_heartlangs_checkpoints_give_the_encoder_and_its_tokenizer(golden_heartlang, make_ecg, file):
    encoder, extractor = load_encoder(golden_heartlang / "small" / file, output="compact", **TWO_HEADS)
    assert isinstance(encoder, HeartLangModel) and not encoder.training and encoder.config.hidden_size == 40
    assert "MIMIC-IV-ECG" in encoder.config.pretrained_on and extractor.output == "compact"
    assert encoder(**extractor(make_ecg())).last_hidden_state.shape == (1, 34, 40)
    want = HeartLangModel.from_upstream(golden_heartlang / "small" / file, HeartLangConfig(**TWO_HEADS)).state_dict()
    assert all(torch.equal(value, want[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("file", ["vqhbr-checkpoint-100.pth", "vqhbr.safetensors"])
def test_a_vq_hbr_checkpoint_gives_codes(golden_heartlang, make_ecg, tmp_path, file):
    encoder, extractor = load_encoder(golden_heartlang / "small" / file, **TWO_HEADS)
    assert isinstance(encoder, HeartLangVQ) and encoder.config.decoder_layers == 1
    out = encoder(**extractor(make_ecg()))
    assert torch.equal(out.last_hidden_state, encoder.quantize.codebook[out.codes])
    save_encoder(encoder, extractor, tmp_path)
    assert torch.equal(load_encoder(tmp_path)[0](**extractor(make_ecg())).codes, out.codes)


def test_heartlangs_repository_is_read_as_it_is_laid_out(golden_heartlang, logged_in):
    """Only the checkpoint that is asked for is downloaded: the real ones take half a gigabyte."""
    small = golden_heartlang / "small"
    pretrain, vqhbr = (
        "checkpoints/pretrain/MIMIC-IV/checkpoint-200.pth",
        "checkpoints/vqhbr/MIMIC-IV/checkpoint-100.pth",
    )
    files = {pretrain: small / "pretrain-checkpoint-200.pth", vqhbr: small / "vqhbr-checkpoint-100.pth"}
    files |= {"LICENCE": b"MIT", "QRSTokenizer.py": b"1 / 0"}
    commit("owner/HeartLang", files, kind="model", message="Checkpoints", ours=[])
    encoder, _ = load_encoder("owner/HeartLang", **TWO_HEADS)
    want = load_encoder(small / "pretrain.safetensors", **TWO_HEADS)[0].state_dict()
    assert all(torch.equal(value, want[name]) for name, value in encoder.state_dict().items())
    fetched = logged_in.downloads()
    assert len(fetched) == 1
    codes, _ = load_encoder("owner/HeartLang", output="codes", **TWO_HEADS)
    assert isinstance(codes, HeartLangVQ) and len(logged_in.downloads()) == 2
    assert isinstance(load_encoder("owner/HeartLang", output="beats", **TWO_HEADS)[0], HeartLangModel)
    assert len(logged_in.downloads()) == 2, "from the cache"


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
        with pytest.raises(ValueError, match="holds no model or state_dict"):
            load_encoder(tmp_path / "other.ckpt")


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("pwned").touch, ())

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="evil.ckpt holds more than tensors and settings, and is not loaded"):
        load_encoder(tmp_path / "evil.ckpt")
    assert not (tmp_path / "pwned").exists()
