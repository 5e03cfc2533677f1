"""A model's folder: what goes in comes out, what does not fit is named, and no failure leaves half a model."""

import errno
import json
import os
import re
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import elm
from data.conversations.rows import user
from elm import ElmForConditionalGeneration, ElmProcessor
from elm.inputs.features import weights_hash
from elm.saved.folder import load, save, save_adapter

TRAINING = {
    "language_model": "tiny",
    "dataset_name": "ECG-QA (PTB-XL)",
    "notes": ["12 questions were dropped."],
    "train_condition": "shuffled",
}


@pytest.fixture
def pair(make_pair):
    """One that a test may change."""
    return make_pair("beats", pool=2)


@pytest.fixture
def folder(pair, tmp_path):
    return save(*pair, tmp_path / "model", training=TRAINING)


def settings(model):
    """Its configuration but for the precision, which only loading writes into the parts."""

    def without(tree):
        return {k: without(v) if isinstance(v, dict) else v for k, v in tree.items() if k != "dtype"}

    return without(model.config.to_diff_dict())


@torch.no_grad()
def logits(model, processor, make_ecg):
    return model(**processor([user(2, "Compare")], [make_ecg(1), make_ecg(2)])).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("encoder", ["patch", "features", "tokens"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_round_trip_is_bitwise(make_pair, make_ecg, tmp_path, tied, encoder, dtype):
    model, processor = make_pair(encoder, pool=3, tied=tied, mode="mean", kind="linear")
    for weight in model.parameters():  # not `.to`: the angles of rotary embeddings stay float32
        weight.data = weight.data.to(dtype)
    assert save(model, processor, tmp_path / "a" / "model", training=TRAINING) == tmp_path / "a" / "model"
    loaded, again = elm.load(str(tmp_path / "a" / "model"))
    assert type(loaded) is ElmForConditionalGeneration and type(again) is ElmProcessor and not loaded.training
    assert settings(loaded) == settings(model)
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)
    assert weights_hash(loaded) == weights_hash(model)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) is tied
    assert torch.equal(logits(loaded, again, make_ecg), logits(model, processor, make_ecg))
    assert loaded.generation_config.suppress_tokens == [model.config.ecg_token_id]
    assert {weight.dtype for weight in load(tmp_path / "a" / "model", dtype="float32")[0].parameters()} == {
        torch.float32
    }


def test_the_folder_holds_what_its_description_says(folder, pair):
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "chat_template.jinja"} <= names
    assert {"tokenizer.json", "tokenizer_config.json", "training.json", "README.md"} <= names
    assert not any(path.name.startswith(".") or path.suffix in (".bin", ".pt", ".pkl") for path in folder.rglob("*"))
    training = json.loads((folder / "training.json").read_text())
    assert training == TRAINING | {"parameters": sum(weight.numel() for weight in pair.model.parameters())}


WEIGHT = "model.language_model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(WEIGHT), f"{WEIGHT} is missing"),
        (lambda w: w.update({"model.extra.weight": torch.zeros(3)}), "model.extra.weight is unexpected"),
        (lambda w: w.update({WEIGHT: w[WEIGHT][:5].clone()}), f"{WEIGHT} is (5, 32) instead of (48, 32)"),
        (lambda w: w[WEIGHT][3].fill_(float("nan")), f"{WEIGHT} holds NaN or infinity"),
        (lambda w: w["model.encoder.proj_contrast"][0].fill_(float("inf")), "proj_contrast holds NaN or infinity"),
        (lambda w: w.pop("model.projector.norm.weight"), "model.projector.norm.weight is missing"),
        (lambda w: [w.pop(name) for name in list(w) if "encoder" in name], "more"),
    ],
)
def test_weights_that_do_not_fit_are_named(folder, change, message):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"weights of .*model do not fit its config.json: .*{re.escape(message)}"):
        elm.load(folder)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_are_missed_whether_tied_or_not(make_pair, tmp_path, tied):
    save(*make_pair(tied=tied), tmp_path, training=TRAINING)
    weights = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in weights) is not tied
    del weights["model.language_model.embed_tokens.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="embed_tokens.weight is missing"):
        elm.load(tmp_path)


def test_what_is_no_model_says_so(folder, tmp_path):
    os.truncate(folder / "model.safetensors", 5000)
    with pytest.raises(ValueError, match="the weights in .*model.safetensors are damaged"):
        elm.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="is no saved model: it has no model.safetensors, which holds weights"):
        elm.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="is no saved model: it has no config.json"):
        elm.load(folder)
    with pytest.raises(FileNotFoundError, match="no saved model at .*nothing-here: no such folder"):
        elm.load(tmp_path / "nothing-here")


# --- adapters ---------------------------------------------------------------------------------------------------------


def tune(model):
    """LoRA on the language model and a changed projector, as after training."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=8,
        target_modules=r"model\.language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
        modules_to_save=["projector"],
    )
    tuned = get_peft_model(model, config).eval()
    with torch.no_grad():
        for weight in tuned.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn_like(weight)
    return tuned


@pytest.mark.parametrize("tied", [True, False])
def test_adapter_on_its_base_and_merged_model_say_the_same(make_pair, make_ecg, tmp_path, tied):
    pair = make_pair("features", tied=tied, pool=4)  # its layers, too, have a q_proj
    save(*pair, tmp_path / "base", training=TRAINING)
    before = logits(*pair, make_ecg)
    base_weights = weights_hash(pair.model)
    tuned = tune(pair.model)
    want = logits(tuned, pair.processor, make_ecg)
    assert (want - before).abs().max() > 1e-2
    save_adapter(tuned, tmp_path / "model" / "adapter", base_weights)
    save(tuned.merge_and_unload(), pair.processor, tmp_path / "model", training=TRAINING)
    merged = logits(*elm.load(tmp_path / "model"), make_ecg)
    adapted = logits(*elm.load(tmp_path / "base", adapter=tmp_path / "model" / "adapter"), make_ecg)
    torch.testing.assert_close(merged, want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(adapted, want, atol=1e-4, rtol=1e-4)


def test_an_adapter_of_another_base_names_both(make_pair, tmp_path):
    bases = [make_pair(seed=seed) for seed in (0, 1)]
    hashes = [weights_hash(model) for model, _ in bases]
    for i, base in enumerate(bases):
        save(*base, tmp_path / str(i), training=TRAINING)
    save_adapter(tune(bases[0].model), tmp_path / "adapter", hashes[0])
    with pytest.raises(
        ValueError, match=f"trained on other weights \\({hashes[0]}\\) than those of .*1 \\({hashes[1]}\\)"
    ):
        elm.load(tmp_path / "1", adapter=tmp_path / "adapter")
    elm.load(tmp_path / "0", adapter=tmp_path / "adapter")


# --- failures while saving --------------------------------------------------------------------------------------------


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("step", ["model", "processor", "card"])
def test_a_full_disk_leaves_the_model_before(folder, pair, make_ecg, monkeypatch, step):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    want = logits(*pair, make_ecg)
    with torch.no_grad():
        pair.model.lm_head.weight.add_(1.0)
    if step == "card":
        monkeypatch.setattr("elm.saved.folder.write_card", full)
    else:
        monkeypatch.setattr(getattr(pair, step), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        save(*pair, folder, training=TRAINING)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert torch.equal(logits(*elm.load(folder), make_ecg), want)


def test_a_first_save_that_fails_leaves_no_model(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(pair.processor, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        save(*pair, tmp_path / "new", training=TRAINING)
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(FileNotFoundError, match="is no saved model"):
        elm.load(tmp_path / "new")


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_crash_between_two_files_is_no_mixture(folder, pair, monkeypatch, file):
    """Old settings with new weights could load and answer wrongly."""
    replace = os.replace

    def crash(source, target):
        if os.fspath(target) == str(folder / file):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save(*pair, folder, training=TRAINING)
    with pytest.raises(FileNotFoundError, match="was its training interrupted"):
        elm.load(folder)
    assert not list(folder.glob(".saving-*"))
    monkeypatch.undo()
    save(*pair, folder, training=TRAINING)
    assert weights_hash(elm.load(folder)[0]) == weights_hash(pair.model)


@pytest.mark.parametrize("first", ["whole", "sharded"])
def test_no_weights_of_the_model_before_are_read(pair, tmp_path, monkeypatch, first):
    """transformers prefers one file to several, whichever is newer."""
    for kind in (first, {"whole": "sharded", "sharded": "whole"}[first]):
        with torch.no_grad():
            pair.model.lm_head.weight.add_(1.0)
        size = {"whole": "1GB", "sharded": "20KB"}[kind]
        monkeypatch.setattr(
            pair.model, "save_pretrained", partial(type(pair.model).save_pretrained, pair.model, max_shard_size=size)
        )
        save(*pair, tmp_path, training=TRAINING)
        assert (len(list(tmp_path.glob("model*.safetensors"))) > 1) is (kind == "sharded")
        assert weights_hash(elm.load(tmp_path)[0]) == weights_hash(pair.model)


def test_what_lies_beside_moves_in_and_the_rest_stays(folder, pair, tmp_path):
    for name in ("adapter/old.txt", "ablation/report.md", "checkpoints/checkpoint-1/state"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")
    (tmp_path / "beside" / "adapter").mkdir(parents=True)
    (tmp_path / "beside" / "adapter" / "new.txt").write_text("new")
    save(*pair, folder, training=TRAINING, beside=tmp_path / "beside")
    assert [path.name for path in (folder / "adapter").iterdir()] == ["new.txt"]
    assert (folder / "checkpoints/checkpoint-1/state").exists() and (folder / "ablation/report.md").exists()
