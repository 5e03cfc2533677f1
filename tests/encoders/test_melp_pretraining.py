"""MELP's text side and losses against upstream's own outputs (seeded random weights), and what upstream gets wrong."""

import json
import math
import multiprocessing
import socket
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModel, BertConfig, BertModel, BertTokenizer, Trainer, TrainingArguments

from data.support.hub import commit
from encoders import load_encoder
from encoders.checkpoints import built
from encoders.melp import MelpConfig, MelpFeatureExtractor, MelpForPretraining, MelpModel, MelpPretrainingConfig
from encoders.melp.files import load_pretraining, new_pretraining, save_pretraining
from encoders.melp.losses import local_similarity
from encoders.melp.pretraining import mask_leads, zero_shot
from encoders.melp.text import add_bos, sentence_weights, token_settings, tokenize_texts
from encoders.melp.upstream import read_published_pretraining
from helpers.golden import script

TINY = {
    "encoder_config": {"num_attention_heads": 4, "pooler_heads": 4},
    "text_config": {"num_attention_heads": 4},
    "decoder_heads": 4,
    "special_token_ids": (0, 2, 3, 4, 82),
    "single_sentence": "uniform",
}
SMALL = {
    "sampling_rate": 100,
    "seconds": 4.0,
    "conv_dim": (16, 16, 16, 16),
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_pos_kernel": 8,
    "conv_pos_groups": 4,
    "shared_dim": 16,
    "caption_dim": 32,
    "pooler_heads": 4,
    "n_queries_contrast": 5,
    "n_queries_caption": 6,
    "dropout_input": 0.0,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
SMALL_TEXT = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
WORDS = ["normal", "ecg", "sinus", "rhythm", "atrial", "fibrillation", "left", "axis", "deviation", "##s", ",", "old"]
REPORTS = ["Sinus rhythm. Normal ECG.", "atrial fibrillation", "sinus rhythm, left axis. old infarct! normal"]


def small(**settings) -> MelpForPretraining:
    torch.manual_seed(0)
    own = {"text_length": 32, "text_hidden_dim": 20, "decoder_layers": 2, "decoder_heads": 4, "frozen_text_layers": 1}
    ids = {"special_token_ids": (0, 2, 3, 4, 39), "sentence_end_ids": (18,)}
    config = MelpPretrainingConfig(encoder_config=SMALL, text_config=SMALL_TEXT, **(own | ids | settings))
    return MelpForPretraining(config).eval()


def batch(count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Tones of 1, 2, ... Hz as recordings, and reports of different lengths and numbers of sentences."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(count):
        words = torch.randint(5, 18, (3 + 2 * index,), generator=generator).tolist()
        rows.append([39, *(18 if i % 3 == 2 and index % 2 else word for i, word in enumerate(words)), 3])
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    rates = torch.arange(1, count + 1)[:, None, None]
    tones = torch.sin(2 * torch.pi * (rates * torch.arange(400) / 100 + torch.rand(count, 12, 1, generator=generator)))
    ecg = (1 + tones * torch.rand(12, 1, generator=generator)) / 2
    return {"ecg_values": ecg, "input_ids": ids, "attention_mask": (ids != 0).long()}


@pytest.fixture
def tokenizer() -> BertTokenizer:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "!", "-", *WORDS, "infarct"]
    return BertTokenizer({word: index for index, word in enumerate(vocabulary)})


@pytest.fixture
def text_folder(tokenizer, tmp_path):
    """A text model as it lies on the hub: no decoder, a pooler that MELP has no use for, no [BOS]."""
    torch.manual_seed(1)
    config = BertConfig(**SMALL_TEXT | {"vocab_size": len(tokenizer)})
    BertModel(config).save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    return tmp_path / "text"


# --- upstream's numbers -----------------------------------------------------------------------------------------------


def published(path, **settings) -> MelpForPretraining:
    found = read_published_pretraining(path, **settings)
    return built(MelpForPretraining(found.config), found.weights, source=str(path))


def test_a_configuration_says_what_no_tensor_shows(golden, whole):
    for config in (MelpPretrainingConfig(**TINY), MelpConfig(**TINY["encoder_config"])):
        model = MelpForPretraining.from_upstream(golden / "melp_tiny.ckpt", config)
        assert model.config.to_dict() == whole.config.to_dict() and not model.training
        assert all(torch.equal(value, whole.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(
        ValueError, match="heads of its text tower, of width 96, is not known: give num_attention_heads"
    ):
        read_published_pretraining(golden / "melp_tiny.ckpt", encoder_config=TINY["encoder_config"])
    with pytest.raises(ValueError, match="has no text side"):
        MelpForPretraining.from_upstream(golden / "encoder_tiny.safetensors", MelpPretrainingConfig(**TINY))


def load(path) -> torch.Tensor:
    return torch.from_numpy(np.load(path))


def close(ours, theirs, atol=1e-5):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=1e-5)


@pytest.fixture(scope="module")
def whole(golden) -> MelpForPretraining:
    return published(golden / "melp_tiny.safetensors", **TINY)


@pytest.fixture(scope="module")
def summary(golden):
    return json.loads((golden / "melp_tiny_summary.json").read_text())


@pytest.fixture(scope="module")
def reports(summary) -> dict[str, torch.Tensor]:
    """The reports of upstream's training forward; its labels are their ids less the first, [BOS]."""
    labels = torch.tensor(summary["labels"])
    ids = torch.cat([torch.full((len(labels), 1), 82), labels], dim=1)
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


@torch.no_grad()
def test_texts_are_upstreams(golden, whole, summary):
    ids, mask = load(golden / "text_input_ids.npy"), load(golden / "text_attention_mask.npy")
    states, last = whole.text_states(ids, mask)
    raw, unit = whole.proj_t(last), whole.encode_text(ids, mask)
    close(raw, load(golden / "melp_tiny_text_emb_raw.npy"))
    close(unit, load(golden / "melp_tiny_text_emb.npy"))
    close(states[:2], load(golden / "melp_tiny_text_token_emb.npy"))
    assert states.double().norm().item() == pytest.approx(summary["stages"]["text_token_emb"]["l2"], rel=1e-6)
    close(unit[:3].T, load(golden / "melp_tiny_zero_shot_weights.npy"))


@torch.no_grad()
def test_similarities_are_upstreams(golden, whole):
    ids, mask = load(golden / "text_input_ids.npy"), load(golden / "text_attention_mask.npy")
    ecg, text = whole.encode_ecg(load(golden / "in_model.npy")), whole.encode_text(ids, mask)
    close(zero_shot(ecg, text[:3]), load(golden / "melp_tiny_zero_shot_logits.npy"))
    close(whole.logit_scale.exp() * zero_shot(ecg, text), load(golden / "melp_tiny_clip_logits.npy"), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["melp_tiny.ckpt", "melp_tiny.safetensors"])
def test_losses_are_upstreams(golden, summary, reports, name):
    out = published(golden / name, **TINY)(load(golden / "in_model.npy"), **reports)
    for ours, theirs in (
        (out.contrast_loss, "clip"),
        (2 * out.caption_loss, "caption_weighted_2x"),
        (out.local_loss, "local_gloria"),
        (out.loss, "total_1_2_02"),
    ):
        assert ours.item() == pytest.approx(summary["losses"][theirs], abs=1e-5), theirs


@torch.no_grad()
def test_sentences_and_captions_are_upstreams(golden, whole, summary, reports):
    ids, mask = reports["input_ids"], reports["attention_mask"]
    states, _ = whole.text_states(ids, mask)
    sentences, there = whole.sentences(states, ids, mask)
    for index in range(3):
        close(sentences[index, there[index]], load(golden / f"melp_tiny_sent_proj_{index}.npy"))
    # Upstream decodes behind a report's end too.
    ids, mask = (F.pad(tensor, (0, 127 - tensor.shape[1])) for tensor in (ids, mask))
    states, _ = whole.text_states(ids, mask)
    tokens = whole.encoder(load(golden / "in_model.npy")).tokens
    logits = whole.text_decoder.logits(whole.text_decoder(states[:, :-1], tokens))
    close(logits[:, :24], load(golden / "melp_tiny_caption_logits.npy"))
    want = summary["stages"]["caption_logits"]
    assert list(logits.shape) == want["shape"]
    assert logits.double().abs().sum().item() == pytest.approx(want["abssum"], rel=1e-6)


@pytest.mark.slow
@torch.no_grad()
def test_full_size_is_upstreams(golden, tmp_path):
    recipe = script(golden / "seed_recipe.py")
    keys = json.loads((golden / "melp_full.keys.json").read_text())
    weights = {
        name: torch.from_numpy(recipe.fill(recipe.alias(name), key["shape"], recipe.SEED)) for name, key in keys.items()
    }
    save_file(weights, tmp_path / "model.safetensors")
    model = published(tmp_path)
    own = [name for name in keys if name == recipe.alias(name) and ".bn." not in name]
    assert sum(weights[name].numel() for name in own) == 284_075_325, "as upstream counts its parameters"
    default = MelpPretrainingConfig()
    assert {**model.config.text_config.to_dict(), **default.text_config.to_dict()} == model.config.text_config.to_dict()
    assert (model.config.text_hidden_dim, model.config.decoder_layers, model.config.frozen_text_layers) == (256, 6, 6)
    ids = load(golden / "full_text_input_ids.npy")
    mask = (ids != 0).long()
    states, last = model.text_states(ids, mask)
    close(model.proj_t(last), load(golden / "full_text_emb_raw.npy"), atol=5e-5)
    for place, values in json.loads((golden / "melp_full_summary.json").read_text())[
        "text_token_emb_row_first8"
    ].items():
        row, column = map(int, place.split(","))
        close(states[row, column, :8], torch.tensor(values), atol=5e-5)
    ecg = model.encode_ecg(load(golden / "in_model.npy")[:2])
    close(zero_shot(ecg, model.encode_text(ids, mask)), load(golden / "full_similarity.npy"), atol=5e-5)


def test_what_a_training_checkpoint_holds_besides_is_reported(golden, whole):
    found = read_published_pretraining(golden / "melp_tiny.ckpt", **TINY)
    keys = json.loads((golden / "melp_tiny.keys.json").read_text())
    assert len(found.weights) + len(found.ignored) + 1 == len(keys)  # weight norm: two tensors become one
    assert {name.split(".")[0] for name in found.ignored} == {"ecg_encoder", "lm_model"}
    assert all(name.startswith("lm_model.cls.") for name in found.ignored if name.startswith("lm_model"))
    assert "ecg_encoder.logit_scale" in found.ignored and found.weights["logit_scale"] == pytest.approx(
        2.6593, abs=1e-4
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("proj_t.0.weight", "no whole MELP: no 2-d tensor for proj_t.0.weight"),
        ("sent_proj.bias", "sent_proj.bias is missing"),
        ("text_decoder.cross_attn.1.ln_1_kv.weight", "cross_attn.1.ln_1_kv.weight is missing"),
        ("lm_model.bert.embeddings.LayerNorm.bias", "text_model.embeddings.LayerNorm.bias is missing"),
        ("logit_scale", "logit_scale is missing"),
    ],
)
def test_a_training_checkpoint_without_a_tensor_is_refused(golden, tmp_path, name, message):
    weights = load_file(golden / "melp_tiny.safetensors")
    del weights[name]
    save_file(weights, tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match=message):
        published(tmp_path / "cut.safetensors", **TINY)


def test_the_published_encoder_has_no_text_side(golden):
    with pytest.raises(ValueError, match="has no text side .*: what is published is the encoder"):
        read_published_pretraining(golden / "encoder_tiny.safetensors", **TINY)


# --- texts ------------------------------------------------------------------------------------------------------------


def test_texts_become_upstreams_tokens(tokenizer):
    add_bos(tokenizer)
    got = tokenize_texts(tokenizer, REPORTS, length=12)
    for row, mask, text in zip(got["input_ids"], got["attention_mask"], REPORTS):
        theirs = tokenizer("[BOS] " + text, max_length=12, truncation=True)["input_ids"][1:]
        assert row[mask.bool()].tolist() == theirs
    assert got["input_ids"].shape == (3, 11) and got["input_ids"][1, 4:].tolist() == [tokenizer.pad_token_id] * 7
    assert got["input_ids"][2].tolist()[-1] == tokenizer.sep_token_id, "a text that is cut still ends"


def test_special_tokens_in_a_report_are_text(tokenizer):
    add_bos(tokenizer)
    ids = tokenize_texts(tokenizer, ["normal [SEP] [CLS] [BOS] ecg"])["input_ids"][0].tolist()
    named = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id}
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.sep_token_id
    assert not named & set(ids[1:-1])


def test_what_is_no_text_or_no_tokenizer_is_refused(tokenizer):
    add_bos(tokenizer)
    with pytest.raises(ValueError, match="text 1 has no words: '  '"):
        tokenize_texts(tokenizer, ["normal", "  "])
    with pytest.raises(ValueError, match="none of . ! ?"):
        token_settings(BertTokenizer({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "normal": 5}))
    tokenizer.cls_token = None
    with pytest.raises(ValueError, match=r"the tokenizer has no \[CLS\]: MELP's text tower takes that of a BERT"):
        add_bos(tokenizer)


def test_sentences_are_found_by_the_tokenizer(tokenizer):
    add_bos(tokenizer)
    settings = token_settings(tokenizer)
    assert settings["sentence_end_ids"] == [5, 6] and settings["cls_token_id"] == 2
    assert set(settings["special_token_ids"]) == {0, 2, 3, 4, len(tokenizer) - 1}, "an unknown word is a word"
    texts = tokenize_texts(tokenizer, [*REPORTS, "normal.. . ecg.", "."])
    ids = texts["input_ids"]
    weights, mask = sentence_weights(**texts, ends=settings["sentence_end_ids"], special=settings["special_token_ids"])
    found = [
        [tokenizer.decode(ids[row][weights[row, s] > 0]) for s in range(mask.shape[1]) if mask[row, s]]
        for row in range(4)
    ]
    assert found == [
        ["sinus rhythm.", "normal ecg."],
        ["atrial fibrillation"],
        ["sinus rhythm, left axis.", "old infarct!", "normal"],
        ["normal.", "ecg."],
    ]
    close(weights.sum(dim=2)[:4], mask[:4].float())
    assert mask[4].tolist() == [True] + [False] * (mask.shape[1] - 1) and not weights[4].any()


@torch.no_grad()
def test_padding_makes_no_difference():
    model, given = small(), batch(3)
    want = model(**given)
    longer = {name: F.pad(given[name], (0, 7)) for name in ("input_ids", "attention_mask")}
    got = model(given["ecg_values"], **longer)
    for name in ("loss", "contrast_loss", "caption_loss", "local_loss", "text_embeds"):
        close(got[name], want[name], atol=1e-6)
    with pytest.raises(ValueError, match=r"texts of 32 tokens: with the \[CLS\] they must not exceed 32"):
        model.encode_text(torch.ones(1, 32, dtype=torch.long), torch.ones(1, 32, dtype=torch.long))


@torch.no_grad()
def test_the_text_tower_is_causal_and_its_summary_is_not_by_the_first_token():
    model, given = small(), batch(2)
    ids, mask = given["input_ids"][1:], given["attention_mask"][1:]
    other = ids.clone()
    other[0, 4] = 7 if ids[0, 4] != 7 else 8
    (states, last), (changed, moved) = model.text_states(ids, mask), model.text_states(other, mask)
    assert torch.equal(states[:, :4], changed[:, :4]) and not torch.allclose(states[:, 4:], changed[:, 4:])
    assert not torch.allclose(last, moved)


# --- losses -----------------------------------------------------------------------------------------------------------


def plain_local(beats, sentences, single):
    """GLoRIA's local similarity of one pair, step by step."""
    scores = beats @ sentences.T  # [Q, S]
    share = scores.softmax(dim=1)
    if len(sentences) == 1 and single == "cosine":
        share = F.cosine_similarity(beats, sentences)[:, None]
    context = (4 * share).softmax(dim=0).T @ beats
    return 10 * (5 * F.cosine_similarity(sentences, context)).exp().sum().log()


@pytest.mark.parametrize("single", ["cosine", "uniform"])
def test_local_similarity_is_that_of_each_pair(single):
    generator = torch.Generator().manual_seed(0)
    beats, counts = torch.randn(3, 5, 8, generator=generator), (1, 4, 2, 1)
    sentences = [torch.randn(count, 8, generator=generator) for count in counts]
    padded = torch.nn.utils.rnn.pad_sequence(sentences, batch_first=True, padding_value=3.0)
    mask = torch.arange(4) < torch.tensor(counts)[:, None]
    got = local_similarity(beats, padded, mask, single)
    want = torch.stack([torch.stack([plain_local(b, s, single) for s in sentences]) for b in beats])
    close(got, want, atol=1e-4)


def test_the_only_sentence_of_a_report_chooses_among_the_beats():
    beats = torch.eye(4)[None] * 3
    sentence, mask = torch.eye(4)[:1, None], torch.ones(1, 1, dtype=torch.bool)
    chosen, uniform = (local_similarity(beats, sentence, mask, single).item() for single in ("cosine", "uniform"))
    assert uniform == pytest.approx(10 * 5 * 0.5, abs=1e-3), "the mean of four orthogonal beats"
    assert chosen > 49


@torch.no_grad()
def test_a_report_without_a_full_stop_counts_and_one_without_a_word_breaks_nothing():
    model, given = small(), batch(3)
    assert not (given["input_ids"][0] == 18).any()
    with_stop = model(**given).local_loss
    given["input_ids"][1, 1:] = 0
    given["input_ids"][1, 1], given["attention_mask"][1, 2:] = 3, 0
    empty = model(**given)
    assert all(torch.isfinite(empty[name]) for name in ("loss", "local_loss", "caption_loss"))
    assert with_stop.isfinite() and with_stop != empty.local_loss


@torch.no_grad()
def test_the_alignment_gap():
    model, given = small(), batch(4)
    out = model(**given)
    own = out.similarity.diagonal()
    other = out.similarity[~torch.eye(4, dtype=torch.bool)]
    close(out.alignment_gap, own.mean() - other.mean(), atol=1e-6)
    close(out.similarity, zero_shot(out.ecg_embeds, out.text_embeds), atol=1e-6)
    one = model(**{name: tensor[:1] for name, tensor in given.items()})
    assert one.alignment_gap.isnan() and one.contrast_loss == 0
    assert model(**given, return_loss=False).loss is None
    with pytest.raises(ValueError, match="4 recordings but 3 reports"):
        model(given["ecg_values"], given["input_ids"][:3], given["attention_mask"][:3])


LOSSES = ("contrast", "caption", "local")


@pytest.mark.parametrize("on", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)])
def test_a_loss_can_be_left_out_and_exactly_what_the_others_reach_is_trained(on):
    weights = {f"{name}_weight": weight for name, weight in zip(LOSSES, on)}
    model = small(**weights).train()
    out = model(**batch(3))
    for name, weight in zip(LOSSES, on):
        assert (f"{name}_loss" in out) == bool(weight)
    close(out.loss, sum(out[f"{name}_loss"] for name, weight in zip(LOSSES, on) if weight))
    out.loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert any(name.startswith("text_model.encoder.layer.0.") for name in frozen)
    assert not any(name.startswith(("text_model.encoder.layer.1.", "text_model.embeddings")) for name in frozen)


def test_the_temperature_stays_within_bounds():
    model, given = small().train(), batch(2)
    model.logit_scale.data.fill_(9.0)
    model(**given).loss.backward()
    assert model.logit_scale.item() == pytest.approx(math.log(100)) and model.logit_scale.grad != 0


def gradients(rank, world, port, path):
    """Save loss and gradients of a share of the batch."""
    model = small().train()
    given = {name: tensor.chunk(world)[rank] for name, tensor in batch(6).items()}
    wrapped = model
    if world > 1:
        rendezvous = {"init_method": f"tcp://127.0.0.1:{port}", "timeout": timedelta(seconds=60)}
        dist.init_process_group("gloo", rank=rank, world_size=world, **rendezvous)
        wrapped = DistributedDataParallel(model)  # it averages gradients, and hangs where one is missing
        uneven = {name: tensor[: 3 - rank] for name, tensor in given.items()}
        with pytest.raises(ValueError, match=r"batches of \[3, 2\] recordings"), wrapped.no_sync():
            wrapped(**uneven)
        with torch.no_grad():
            alone = model.eval()(**given).loss if rank == 0 else None  # would wait for the other for ever
        assert rank or alone.isfinite()
        model.train()
    # Padding to what this process needs: others need more or less.
    longest = int(given["attention_mask"].sum(dim=1).max())
    out = wrapped(given["ecg_values"], given["input_ids"][:, :longest], given["attention_mask"][:, :longest])
    out.loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    kept = {name: out[name].detach() for name in ("loss", "contrast_loss", "caption_loss", "local_loss")}
    torch.save({"grad": found, "gap": out.alignment_gap, "shape": list(out.similarity.shape)} | kept, f"{path}-{rank}")
    if world > 1:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_loss_and_the_gradients_of_one(tmp_path):
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=gradients, args=(rank, 2, port, tmp_path / "two"), daemon=True) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(240)
        assert process.exitcode == 0
    gradients(0, 1, port, tmp_path / "one")
    one, *two = (torch.load(tmp_path / name, weights_only=True) for name in ("one-0", "two-0", "two-1"))
    assert two[0]["shape"] == [3, 6] and one["shape"] == [6, 6]
    for name in ("loss", "contrast_loss", "caption_loss", "local_loss"):
        assert two[0][name] != two[1][name]
        close((two[0][name] + two[1][name]) / 2, one[name])
    close((two[0]["gap"] + two[1]["gap"]) / 2, one["gap"], atol=1e-6)
    assert one["grad"].keys() == two[0]["grad"].keys()
    for name, want in one["grad"].items():
        torch.testing.assert_close(two[0]["grad"][name], want, atol=2e-5, rtol=1e-4, msg=name)
        assert torch.equal(two[0]["grad"][name], two[1]["grad"][name])


# --- training ---------------------------------------------------------------------------------------------------------


def test_leads_are_masked_at_random_and_reproducibly():
    ecg = torch.rand(200, 12, 20) + 0.5
    masked = mask_leads(ecg, generator=torch.Generator().manual_seed(3))
    gone = (masked == 0).all(dim=2)
    assert torch.equal(masked[~gone], ecg[~gone]) and ecg.min() > 0
    assert gone.float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert gone.float().mean(dim=0).sub(0.5).abs().max() < 0.15 and len(gone.unique(dim=0)) > 150
    assert torch.equal(masked, mask_leads(ecg, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(mask_leads(ecg, p=0.0), ecg) and not mask_leads(ecg, p=1.0).any()


def test_new_weights_have_the_spread_they_are_meant_to():
    weights = small().state_dict()
    assert weights["text_decoder.text_projection"].std().item() == pytest.approx(32**-0.5, rel=0.06)
    assert weights["logit_scale"].item() == pytest.approx(math.log(1 / 0.07))
    assert weights["sent_proj.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.slow
def test_the_trainer_trains_and_evaluates_it(tmp_path):
    given = batch(8)
    rows = [dict(zip(given, values)) for values in zip(*given.values())]
    args = TrainingArguments(
        str(tmp_path), use_cpu=True, max_steps=100, learning_rate=1e-3, per_device_train_batch_size=8, report_to=[],
        save_strategy="no", logging_strategy="no", prediction_loss_only=True, disable_tqdm=True,
        lr_scheduler_type="constant_with_warmup", warmup_steps=10,  # without, all embeddings become one, and stay it
    )  # fmt: skip
    model = small()
    trainer = Trainer(model, args, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        out = model.eval()(**given)
    assert after < before / 3 and after == pytest.approx(out.loss.item(), rel=1e-4)
    assert out.alignment_gap > 0.4
    assert (out.similarity.argmax(dim=1) == torch.arange(8)).all()


def test_losses_are_float32_whatever_the_model_computes_in():
    model, given = small(), batch(4)
    want = model(**given)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(**given)
    half = model.bfloat16()(**given)
    for out in (mixed, half):
        assert out.contrast_loss.dtype == out.local_loss.dtype == out.caption_loss.dtype == torch.float32
        close(out.loss, want.loss, atol=0.2)


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(text_folder):
    torch.manual_seed(2)
    encoder = MelpModel(MelpConfig(**SMALL, output="features")).eval()
    model, tokenizer = new_pretraining(encoder, text_folder, text_length=32, decoder_layers=1, decoder_heads=4)
    return encoder, model, tokenizer


def test_a_new_model_is_the_encoder_and_the_text_model_it_was_made_from(made, text_folder):
    encoder, model, tokenizer = made
    assert all(torch.equal(value, model.encoder.state_dict()[name]) for name, value in encoder.state_dict().items())
    bert = AutoModel.from_pretrained(text_folder).state_dict()
    for name, value in model.text_model.state_dict().items():
        rows = -1 if name == "embeddings.word_embeddings.weight" else None
        assert torch.equal(value[:rows], bert[name]), name
    assert tokenizer.bos_token == "[BOS]" and model.config.text_config.vocab_size == len(tokenizer) == 22
    assert model.config.text_config.is_decoder and model.config.frozen_text_layers == 1
    assert not next(model.text_model.encoder.layer[0].parameters()).requires_grad
    assert not any(param is other for param in encoder.parameters() for other in model.parameters())
    torch.manual_seed(0)
    drawn, _ = new_pretraining(encoder, text_folder, text_weights=False, text_length=32, decoder_heads=4)
    assert drawn.config.frozen_text_layers == 0
    name = "encoder.layer.0.output.dense.weight"
    assert drawn.text_model.state_dict()[name].std().item() == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(drawn.text_model.state_dict()[name], bert[name])


@torch.no_grad()
def test_a_folder_gives_back_the_model_and_the_plain_encoder(made, tmp_path, make_ecg):
    encoder, model, tokenizer = made
    extractor = MelpFeatureExtractor.from_config(encoder.config, missing_leads="constant")
    save_pretraining(model, extractor, tokenizer, tmp_path / "out")
    again, same, words = load_pretraining(tmp_path / "out")
    assert same.to_dict() == extractor.to_dict() and not again.training
    assert again.config.to_dict() == model.config.to_dict() | {"architectures": again.config.architectures}
    given = extractor([make_ecg(seconds=4.0), make_ecg(seconds=4.0, seed=1)]) | tokenize_texts(words, REPORTS[:2], 32)
    assert torch.equal(given["input_ids"], tokenize_texts(tokenizer, REPORTS[:2], 32)["input_ids"])
    assert torch.equal(again(**given).loss, model(**given).loss)
    trained = [[name for name, p in m.named_parameters() if p.requires_grad] for m in (model, again)]
    assert trained[0] == trained[1]

    plain, of_plain = load_encoder(tmp_path / "out")
    assert type(plain) is MelpModel and of_plain.to_dict() == extractor.to_dict()
    ecg = {name: given[name] for name in ("ecg_values", "token_mask")}
    assert torch.equal(plain(**ecg).last_hidden_state, encoder(**ecg).last_hidden_state)
    assert load_encoder(tmp_path / "out", output="rhythm")[0].config.max_tokens == 1


def test_a_text_model_without_a_weight_is_refused(text_folder):
    weights = load_file(text_folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, text_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="the text model .* lacks encoder.layer.1.output.dense.weight"):
        new_pretraining(MelpModel(MelpConfig(**SMALL)), text_folder, text_length=32, decoder_heads=4)


def test_misspelt_settings_are_refused(text_folder, golden):
    with pytest.raises(ValueError, match="unknown setting local_wieght: MELP's pretraining has caption_weight, cls_"):
        new_pretraining(MelpModel(MelpConfig(**SMALL)), text_folder, local_wieght=0)
    with pytest.raises(ValueError, match="unknown setting heads"):
        load_pretraining(golden / "melp_tiny.ckpt", tokenizer=text_folder, heads=4)


def test_a_hub_id(made, tmp_path, logged_in):
    encoder, model, tokenizer = made
    save_pretraining(model, MelpFeatureExtractor.from_config(encoder.config), tokenizer, tmp_path / "out")
    files = {path.name: path for path in (tmp_path / "out").iterdir()}
    commit("owner/melp", files, kind="model", message="A model", ours=[])
    again, _, words = load_pretraining("owner/melp")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert words.get_vocab() == tokenizer.get_vocab()
    assert load_encoder("owner/melp")[0].config.output == "features"
    with pytest.raises(FileNotFoundError, match="owner/melp on the hub has no revision v9"):
        load_pretraining("owner/melp", revision="v9")
    with pytest.raises(FileNotFoundError, match="nowhere is no hub id"):
        load_pretraining(tmp_path / "nowhere")


def test_folders_that_do_not_fit_are_refused(made, tmp_path, text_folder, golden):
    encoder, model, tokenizer = made
    save_pretraining(model, MelpFeatureExtractor.from_config(encoder.config), tokenizer, tmp_path / "out")
    tokenizer.add_tokens(["tachycardia"])
    tokenizer.save_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match="the tokenizer has 23 tokens and the text tower of .* 22"):
        load_pretraining(tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    del weights["sent_proj.bias"]
    save_file(weights, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    tokenizer = BertTokenizer.from_pretrained(text_folder)
    add_bos(tokenizer)
    tokenizer.save_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match="sent_proj.bias is missing"):
        load_pretraining(tmp_path / "out")
    with pytest.raises(ValueError, match="no folder of a MELP pretraining model.*say which tokenizer"):
        load_pretraining(golden / "melp_tiny.ckpt")
    (text_folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": 5}))
    with pytest.raises(ValueError, match="is of type 'gpt2': MELP's text tower is a BERT"):
        new_pretraining(encoder, text_folder)


@torch.no_grad()
def test_a_training_checkpoint_of_upstream_becomes_a_folder_of_ours(golden, tmp_path):
    names = {0: "[PAD]", 1: "[UNK]", 2: "[CLS]", 3: "[SEP]", 4: "[MASK]", 18: "."}
    tokenizer = BertTokenizer({names.get(index, f"word{index}"): index for index in range(82)})
    tokenizer.save_pretrained(tmp_path / "text")
    settings = {name: value for name, value in TINY.items() if name != "special_token_ids"}
    model, extractor, tokenizer = load_pretraining(
        golden / "melp_tiny.ckpt", tokenizer=tmp_path / "text", **settings, frozen_text_layers=1
    )
    save_pretraining(model, extractor, tokenizer, tmp_path / "out")
    again, _, words = load_pretraining(tmp_path / "out")
    ids, mask = load(golden / "text_input_ids.npy"), load(golden / "text_attention_mask.npy")
    close(again.encode_text(ids, mask), load(golden / "melp_tiny_text_emb.npy"))
    assert again.config.special_token_ids == [0, 2, 3, 4, 82] and words.bos_token_id == 82


def test_settings_that_do_not_fit_are_refused():
    for settings, message in (
        ({"encoder_config": SMALL | {"caption_dim": 24}}, "caption_dim 24 is not the text tower's hidden_size 32"),
        ({"decoder_heads": 5}, "hidden_size 32 is not divisible by decoder_heads 5"),
        ({"text_length": 64}, "at most the text tower's 40 positions, got 64"),
        ({"frozen_text_layers": 3}, "frozen_text_layers 3: the text tower has 2 layers"),
        ({"single_sentence": "none"}, "single_sentence must be one of cosine, uniform, got 'none'"),
        ({"contrast_weight": 0, "caption_weight": 0, "local_weight": 0}, "one of them more than 0, got 0, 0, 0"),
        ({"local_weight": -1.0}, "must be 0 or more"),
    ):
        given = {"encoder_config": SMALL, "text_config": SMALL_TEXT, "decoder_heads": 4, "text_length": 32}
        with pytest.raises(ValueError, match=message):
            MelpPretrainingConfig(**(given | {"frozen_text_layers": 1} | settings))
