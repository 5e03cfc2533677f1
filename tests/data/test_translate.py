"""Translation: by a tiny model that was taught a dictionary, each text once, and nothing where there is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

from data.support import translate as module
from data.support.translate import translate
from helpers import hub_server

pytestmark = pytest.mark.slow  # a translator is made for them

WORDS = {
    "sinusrhythmus": "rhythm", "linkstyp": "left", "rechtstyp": "right", "infarkt": "infarct", "alt": "old",
    "normal": "normal", "ekg": "ecg", "schenkelblock": "block",
}  # fmt: skip
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


def english(german: str) -> str:
    return " ".join(WORDS[word] for word in german.split())


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny BART, taught in seconds to put each word in its place."""
    folder = tmp_path_factory.mktemp("translator")
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys((*SPECIAL, *WORDS, *WORDS.values())))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    from tokenizers.processors import TemplateProcessing

    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        model_max_length=24,
    )  # fmt: skip
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=len(vocabulary), d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=24, dropout=0.0,
        attention_dropout=0.0, bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
        forced_eos_token_id=None,
    )  # fmt: skip
    bart = BartForConditionalGeneration(config)
    optimizer = torch.optim.AdamW(bart.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    german = list(WORDS)
    for _ in range(300):
        lengths = torch.randint(1, 6, (32,), generator=generator).tolist()
        texts = [" ".join(german[i] for i in torch.randint(len(german), (n,), generator=generator)) for n in lengths]
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        labels = tokenizer([english(text) for text in texts], return_tensors="pt", padding=True)["input_ids"]
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        loss = bart(**inputs, labels=labels.masked_fill(labels == 1, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    bart.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


TEXTS = [
    "sinusrhythmus linkstyp", "infarkt alt", "normal ekg", "sinusrhythmus rechtstyp schenkelblock infarkt", "ekg",
    "schenkelblock alt linkstyp", "alt",
]  # fmt: skip


@pytest.mark.slow
def test_texts_are_translated_the_same_alone_and_together(model, tmp_path):
    together = translate(TEXTS, model, tmp_path / "together")
    assert together == {text: english(text) for text in TEXTS}
    one_by_one = translate(TEXTS, model, tmp_path / "alone", batch_size=1)
    assert one_by_one == together == translate(reversed(TEXTS), model, tmp_path / "again", batch_size=3)


def test_nothing_is_translated_twice(model, tmp_path, monkeypatch):
    asked: list[str] = []
    batch = module._batch
    monkeypatch.setattr(module, "_batch", lambda texts, *rest: asked.extend(texts) or batch(texts, *rest))
    first = translate([*TEXTS[:3], TEXTS[0]], model, tmp_path)
    assert sorted(asked) == sorted(TEXTS[:3]) and len(first) == 3
    assert translate(TEXTS, model, tmp_path) | first == translate(TEXTS, model, tmp_path)
    assert sorted(asked) == sorted(TEXTS)  # each once
    (file,) = tmp_path.glob("translations-*.json")
    assert "sinusrhythmus" not in file.read_text()  # texts are known by their hash


def test_another_model_has_translations_of_its_own(model, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for file in model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    translate(TEXTS[:1], model, tmp_path)
    translate(TEXTS[:1], other, tmp_path)  # the same files under another name
    assert len(list(tmp_path.glob("translations-*.json"))) == 1
    (other / "generation_config.json").write_text('{"decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}')
    translate(TEXTS[:1], other, tmp_path)
    assert len(list(tmp_path.glob("translations-*.json"))) == 2


def test_an_interrupted_run_goes_on(model, tmp_path, monkeypatch):
    batch, asked = module._batch, []

    def breaking(texts, *rest):
        asked.append(list(texts))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return batch(texts, *rest)

    monkeypatch.setattr(module, "_SAVE_EVERY", 0.0)
    monkeypatch.setattr(module, "_batch", breaking)
    with pytest.raises(KeyboardInterrupt):
        translate(TEXTS, model, tmp_path, batch_size=2)
    done = {text for texts in asked[:2] for text in texts}
    assert len(done) == 4
    assert translate(TEXTS, model, tmp_path, batch_size=2) == {text: english(text) for text in TEXTS}
    assert sorted(text for texts in asked[3:] for text in texts) == sorted(set(TEXTS) - done)


def test_what_is_empty_unchanged_unfinished_or_too_long_is_left_out(model, tmp_path, monkeypatch):
    said = {"alt": "", "normal": "NORMAL", "ekg": "ecg"}
    monkeypatch.setattr(module, "_batch", lambda texts, *_: [said[text] for text in texts])
    assert translate(said, model, tmp_path) == {"ekg": "ecg"}
    monkeypatch.undo()
    assert translate(["normal"], model, tmp_path / "own words") == {}  # "normal" is "normal" in English, too
    long = " ".join(["alt"] * 30)
    assert translate([long, "alt"], model, tmp_path / "long") == {"alt": "old"}
    monkeypatch.setattr(
        BartForConditionalGeneration, "generate", lambda _, input_ids, **more: babble(input_ids, **more)
    )
    assert translate(["ekg alt"], model, tmp_path / "babble") == {}


def babble(input_ids, *, max_new_tokens: int, **_) -> torch.Tensor:
    """A model that does not end by itself, and is made to at the last token."""
    rows = torch.full((len(input_ids), 1 + max_new_tokens), 5)
    rows[:, -1] = 2
    return rows


def test_faults_say_what_to_do(model, tmp_path):
    assert translate([], "no such folder", tmp_path) == {}
    with pytest.raises(ValueError, match="translator .*empty: not a sequence-to-sequence model with a tokenizer"):
        (tmp_path / "empty").mkdir()
        translate(["alt"], tmp_path / "empty", tmp_path)
    translate(["alt"], model, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("translations-*.json")
    file.write_text(json.dumps({"a": "b"})[:-1])
    with pytest.raises(ValueError, match="not the translations that were written there: delete it"):
        translate(["alt"], model, tmp_path / "cache")


def test_a_name_that_is_no_folder_and_not_on_the_hub_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="translator no/such-model: neither a folder nor a model of the hub"):
        translate(["alt"], "no/such-model", tmp_path)


def test_a_model_of_the_hub_is_known_by_its_revision(logged_in, model, tmp_path):
    files = {file.name: (file.read_bytes(), False) for file in model.iterdir()}
    repo = logged_in.repos["model", "owner/de-en"] = hub_server.Repo(private=False)
    first = repo.commit(files, "a model")
    assert module._version("owner/de-en")[0] == first
    assert translate(TEXTS[:2], "owner/de-en", tmp_path) == {text: english(text) for text in TEXTS[:2]}
    logged_in.requests.clear()
    assert len(translate(TEXTS[:2], "owner/de-en", tmp_path)) == 2
    assert not [path for path in logged_in.downloads() if "safetensors" in path]  # nothing to translate, nothing loaded
    second = repo.commit({**files, "README.md": (b"trained further", False)}, "another")
    assert module._version("owner/de-en")[0] == second != first
    translate(TEXTS[:1], "owner/de-en", tmp_path)
    assert len(list(tmp_path.glob("translations-*.json"))) == 2
