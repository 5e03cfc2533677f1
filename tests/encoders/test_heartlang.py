"""HeartLang's networks: upstream's numbers, layouts of tokens, codes, masks."""

import copy
import hashlib
import json
import multiprocessing
import socket
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from encoders.checkpoints import read_state
from encoders.heartlang import (
    HeartLangClassifier,
    HeartLangConfig,
    HeartLangForMaskedSentence,
    HeartLangModel,
    HeartLangVQ,
    HeartLangVQConfig,
    codebook_usage,
    masked_words,
    upstream,
)
from encoders.heartlang.vq import HeartLangQuantizer, nearest
from helpers.golden import script

TWO_HEADS = HeartLangConfig(num_attention_heads=2, head_dim=16)  # of the small checkpoints
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8, "intermediate_size": 48}
CLOSE, FULL_CLOSE = {"atol": 2e-5, "rtol": 1e-4}, {"atol": 2e-4, "rtol": 1e-3}


@pytest.fixture(scope="module")
def golden(golden_heartlang):
    return golden_heartlang


@pytest.fixture(scope="module")
def small(golden):
    """A tensor of the small configuration by name."""
    return lambda name: torch.from_numpy(np.load(golden / "small" / f"{name}.npy"))


@pytest.fixture(scope="module")
def told(golden):
    return json.loads((golden / "small" / "scalars.json").read_text())


@pytest.fixture(scope="module")
def sentences(golden):
    """Upstream's words of six recordings."""
    names = ("words", "in_chan", "in_time")
    return {name: torch.from_numpy(np.load(golden / "tokenizer" / f"{name}_12lead.npy"))[:6] for name in names}


def first(sentences, count):
    return {name: tensor[:count] for name, tensor in sentences.items()}


def sentence(*words_per_lead, seed=0, config=None):
    """Random words, so many in each lead: a batch of one."""
    config = config or HeartLangConfig(**SMALL)
    lead = [lead for lead, count in enumerate(words_per_lead, 1) for _ in range(count)]
    in_chan = torch.tensor([lead + [0] * (config.max_words - len(lead))])
    words = torch.randn(1, config.max_words, config.word_length, generator=torch.Generator().manual_seed(seed))
    return {"words": words * (in_chan > 0)[..., None], "in_chan": in_chan, "in_time": in_chan.clamp(max=10)}


# --- upstream's numbers -----------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("file", ["pretrain-checkpoint-200.pth", "pretrain.safetensors", "finetune.safetensors"])
def test_every_token_is_upstreams(golden, small, sentences, file):
    model = HeartLangModel.from_upstream(golden / "small" / file, TWO_HEADS)
    out = model(**sentences, output_hidden_states=True)
    torch.testing.assert_close(out.last_hidden_state, small("pretrain_tokens_all"), **CLOSE)
    torch.testing.assert_close(out.probe, small("pretrain_tokens_all")[:, 0], **CLOSE)
    assert len(out.hidden_states) == 3
    for layer, hidden in enumerate(out.hidden_states):
        torch.testing.assert_close(hidden[:2], small(f"pretrain_hidden_{layer}"), **CLOSE)
    bare = model(words=sentences["words"][:2])
    torch.testing.assert_close(bare.last_hidden_state, small("pretrain_tokens_all_no_position_inputs"), **CLOSE)
    assert torch.equal(out.mask, torch.cat([torch.ones(6, 1, dtype=torch.bool), sentences["in_chan"] > 0], dim=1))
    assert bare.mask.all()


def test_masked_sentences_are_guessed_as_upstream_does(golden, small, sentences, told):
    model = HeartLangForMaskedSentence.from_upstream(golden / "small" / "pretrain-checkpoint-200.pth", TWO_HEADS)
    for labels in ("without_position_inputs", "with_position_inputs"):
        codes = small("vq_indices" if labels.startswith("with_") else "vq_indices_no_position_inputs")
        model.zero_grad()
        out = model(**sentences, mask=small("mask").bool(), labels=codes)
        torch.testing.assert_close(out.logits, small("pretrain_masked_logits"), **CLOSE)
        assert out.loss.item() == pytest.approx(told[f"masked_ce_labels_{labels}"], abs=1e-5)
        if labels == "without_position_inputs":
            out.loss.backward()
            norms = {name.removeprefix("backbone."): p.grad.norm().item() for name, p in model.named_parameters()}
            assert norms == pytest.approx(told["masked_ce_grad_l2"], abs=2e-5, rel=1e-4)
    guessed = out.logits.argmax(dim=-1) == codes[small("mask").bool()]
    real = (sentences["in_chan"] > 0)[small("mask").bool()]
    assert (out.correct, out.counted) == ((guessed & real).sum(), real.sum()) and real.sum() < len(real)


@torch.no_grad()
def test_the_classifier_is_upstreams(golden, small, sentences):
    model = HeartLangClassifier.from_upstream(golden / "small" / "finetune.safetensors", TWO_HEADS)
    torch.testing.assert_close(model(**sentences).logits, small("classifier_logits"), **CLOSE)
    labels = torch.tensor([[0, 1, 0, 1, 1]] * 6)
    want = torch.nn.functional.binary_cross_entropy_with_logits(small("classifier_logits"), labels.float())
    torch.testing.assert_close(model(**sentences, labels=labels).loss, want, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("file", ["vqhbr-checkpoint-100.pth", "vqhbr.safetensors"])
def test_codes_and_reconstructions_are_upstreams(golden, small, sentences, told, file):
    config = HeartLangVQConfig(num_attention_heads=2, head_dim=16, count_padding=True)
    model = HeartLangVQ.from_upstream(golden / "small" / file, config)
    vectors = model.vectors(**sentences)
    torch.testing.assert_close(vectors, torch.nn.functional.normalize(small("vq_pre_quant"), dim=-1), **CLOSE)
    out = model(**sentences)
    clear = small("vq_index_margin") > 1e-4
    assert clear.float().mean() > 0.99 and (out.codes == small("vq_indices"))[clear].all()
    assert torch.equal(model.encode(**sentences), out.codes)
    bare, clear = model.encode(sentences["words"]), small("vq_index_margin_no_position_inputs") > 1e-4
    assert (bare == small("vq_indices_no_position_inputs"))[clear].all()
    assert (bare != out.codes).float().mean().item() == pytest.approx(
        told["codes_differ_with_vs_without_position_inputs"], abs=2e-3
    )
    torch.testing.assert_close(out.last_hidden_state, small("vq_quantized"), **CLOSE)
    torch.testing.assert_close(out.reconstruction[:2], small("vq_reconstruction"), **CLOSE)
    torch.testing.assert_close(
        model.decode(out.codes, sentences["in_chan"], sentences["in_time"]), out.reconstruction, **CLOSE
    )
    got = {"rec_loss": out.reconstruction_loss, "commit_loss": out.commitment_loss, "total": out.loss}
    assert {name: loss.item() for name, loss in got.items()} == pytest.approx(told["vq_with"], abs=1e-5)
    assert set(out.codes[sentences["in_chan"] == 0].tolist()) == set(told["pad_code_with"])


def test_a_training_step_is_upstreams(golden, small, sentences, told):
    config = HeartLangVQConfig(num_attention_heads=2, head_dim=16, count_padding=True)
    model = HeartLangVQ.from_upstream(golden / "small" / "vqhbr.safetensors", config).train()
    out = model(**sentences)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(told["vq_train_loss"], abs=1e-5)
    norms = {
        name: 0.0 if parameter.grad is None else parameter.grad.norm().item()
        for name, parameter in model.named_parameters()
    }
    want = {name: norm for name, norm in told["vq_train_grad_l2"].items() if not name.startswith("quantize")}
    assert norms == pytest.approx(want, abs=2e-5, rel=1e-4)
    torch.testing.assert_close(model.quantize.codebook, small("vq_codebook_after_one_train_step"), **CLOSE)
    torch.testing.assert_close(model.quantize.cluster_size, small("vq_cluster_size_after_one_train_step"), **CLOSE)


@pytest.fixture(scope="module")
def recipe(golden):
    return script(golden / "recipe.py")


@pytest.fixture(scope="module")
def full(golden):
    return json.loads((golden / "full" / "scalars.json").read_text())


def full_state(golden, recipe, kind, seed, sha):
    """Upstream's state dictionary of the published size, its weights drawn by recipe."""
    keys = json.loads((golden / f"{kind}.keys.json").read_text())["keys"]
    shapes = {name: torch.empty(told["shape"], device="meta") for name, told in keys.items()}
    state = recipe.recipe_state(shapes, seed)
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].numpy().tobytes())
    assert digest.hexdigest() == sha
    return state


def assert_statistics(tensor, want):
    assert list(tensor.shape) == want["shape"]
    got = {"mean": tensor.mean(), "std": tensor.std(unbiased=False), "min": tensor.min(), "max": tensor.max()}
    assert {name: value.item() for name, value in got.items()} == pytest.approx(
        {name: want[name] for name in got}, abs=1e-3, rel=1e-3
    )
    torch.testing.assert_close(
        tensor.flatten()[want["flat_positions"]], torch.tensor(want["flat_values"]), **FULL_CLOSE
    )


@pytest.mark.slow
@torch.no_grad()
def test_the_published_size_gives_upstreams_numbers(golden, recipe, full, sentences, tmp_path):
    state = full_state(golden, recipe, "pretrain", 101, full["pretrain_state_sha256"])
    torch.save({"model": state, "epoch": 200}, tmp_path / "checkpoint-200.pth")
    model = HeartLangForMaskedSentence.from_upstream(tmp_path / "checkpoint-200.pth")
    assert sum(parameter.numel() for parameter in model.parameters()) == 44_562_176
    encoded = model.backbone(sentences["words"], sentences["in_chan"], sentences["in_time"])
    assert_statistics(encoded, full["stats"]["pretrain_tokens_all"])
    torch.testing.assert_close(
        encoded[:, 0], torch.from_numpy(np.load(golden / "full" / "pretrain_cls.npy")), **FULL_CLOSE
    )
    head = full_state_head(golden, recipe)
    logits = torch.nn.functional.linear(encoded[:, 0], head["mlp_head.weight"], head["mlp_head.bias"])
    torch.testing.assert_close(
        logits, torch.from_numpy(np.load(golden / "full" / "classifier_logits.npy")), **FULL_CLOSE
    )


def full_state_head(golden, recipe):
    keys = json.loads((golden / "finetune.keys.json").read_text())["keys"]
    shapes = {n: torch.empty(told["shape"], device="meta") for n, told in keys.items() if n.startswith("mlp_head.")}
    return recipe.recipe_state(shapes, 303)


@pytest.mark.slow
@torch.no_grad()
def test_the_published_codebook_gives_upstreams_codes(golden, recipe, full, sentences, tmp_path):
    state = full_state(golden, recipe, "vqhbr", 202, full["vqhbr_state_sha256"])
    torch.save({"model": state, "epoch": 100}, tmp_path / "checkpoint-100.pth")
    model = HeartLangVQ.from_upstream(tmp_path / "checkpoint-100.pth")
    assert sum(parameter.numel() for parameter in model.parameters()) == 23_593_184
    out = model(**sentences)
    clear = torch.from_numpy(np.load(golden / "full" / "vq_index_margin.npy")) > 1e-4
    want = torch.from_numpy(np.load(golden / "full" / "vq_indices.npy"))
    assert clear.float().mean() > 0.99 and (out.codes == want)[clear].all()
    assert_statistics(out.last_hidden_state, full["stats"]["vq_quantized"])
    assert_statistics(out.reconstruction, full["stats"]["vq_reconstruction"])


# --- tokens -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("words", [(5,) * 12, (21,) * 12, (1,) * 12, (4, 4, 4)], ids=["5", "21", "1", "3 leads"])
def test_layouts_are_means_of_words(words):
    given = sentence(*words)
    if len(words) == 3:
        given["in_chan"] = torch.where(given["in_chan"] == 3, 8, given["in_chan"])  # I, II and V2
    torch.manual_seed(0)
    config = HeartLangConfig(**SMALL, num_leads=len(words))
    model = HeartLangModel(config).eval()
    encoded = model(**given).words[0]
    parts = encoded[1 : 1 + sum(words)].split(words)
    leads = torch.stack([part.mean(dim=0) for part in parts])
    beats = torch.stack(parts).mean(dim=0)
    for output, want in (
        ("words", encoded[: 1 + sum(words)]),
        ("leads", leads),
        ("beats", beats),
        ("compact", torch.cat([encoded[:1], leads, beats])),
    ):
        model.config.output = output
        out = model(**given)
        assert out.last_hidden_state.shape == (1, config.max_tokens, config.output_dim)
        assert out.mask.sum() == len(want) and out.mask[0, : len(want)].all()
        torch.testing.assert_close(out.last_hidden_state[0, : len(want)], want, atol=1e-6, rtol=1e-5)
        assert torch.equal(out.probe[0], encoded[0]) and out.last_hidden_state.isfinite().all()


def test_a_layout_needs_leads():
    model = HeartLangModel(HeartLangConfig(**SMALL, output="beats"))
    with pytest.raises(ValueError, match="output 'beats' needs in_chan"):
        model(sentence(2)["words"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: given | {"words": given["words"][:, :9]}, r"words must be \[B, 256, 96\], got \(1, 9, 96\)"),
        (lambda given: given | {"in_time": given["in_time"][:, :9]}, r"in_time must be \(1, 256\) like the words"),
        (lambda given: given | {"token_mask": torch.ones(1, 9)}, r"token_mask is \(1, 9\)"),
    ],
)
def test_other_shapes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        HeartLangModel(HeartLangConfig(**SMALL))(**change(sentence(3, 3)))


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="output must be one of words, beats, leads, compact, got 'codes'"):
        HeartLangConfig(output="codes")
    with pytest.raises(ValueError, match="output must be one of codes, got 'beats'"):
        HeartLangVQConfig(output="beats")
    with pytest.raises(ValueError, match="300 leads do not share 256 words"):
        HeartLangConfig(num_leads=300)


@torch.no_grad()
def test_padding_is_attended_to_only_where_the_configuration_says():
    given = sentence(4, 4)
    louder = given | {"words": given["words"].clone()}
    louder["words"][:, 20:200] = 9.0  # not at the border: the convolution mixes neighbours
    for attend in (True, False):
        torch.manual_seed(0)
        model = HeartLangModel(HeartLangConfig(**SMALL, attend_padding=attend)).eval()
        same = torch.allclose(model(**given).words[0, :9], model(**louder).words[0, :9], atol=1e-6)
        assert same is not attend


# --- masked sentences -------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("hide", [False, True])
def test_a_masked_word_leaks_into_its_neighbours_unless_it_is_hidden(hide):
    given, mask = sentence(6, 6), torch.zeros(1, 256, dtype=torch.bool)
    mask[0, 3] = True
    torch.manual_seed(0)
    model = HeartLangForMaskedSentence(HeartLangConfig(**SMALL, vocab_size=16, hide_masked_words=hide)).eval()
    other = given | {"words": given["words"].index_fill(1, torch.tensor([3]), 0.7)}
    same = torch.allclose(model(**given, mask=mask).logits, model(**other, mask=mask).logits, atol=1e-6)
    assert same is hide


def test_masks_are_half_of_the_words_and_no_padding():
    in_chan = torch.cat([sentence(7, 7)["in_chan"], sentence(5)["in_chan"], sentence()["in_chan"]])
    generator = torch.Generator().manual_seed(3)
    masks = torch.stack([masked_words(in_chan, generator=generator) for _ in range(200)])
    assert (masks.sum(dim=2) == torch.tensor([7, 2, 0])).all() and not (masks & (in_chan == 0)).any()
    assert masks[:, 0].float().mean(dim=0)[:14].sub(0.5).abs().max() < 0.15, "every word is as likely"
    again = masked_words(in_chan, generator=torch.Generator().manual_seed(3))
    assert torch.equal(again, masks[0]) and not torch.equal(masks[0], masks[1])
    upstream = masked_words(in_chan, mask_padding=True)
    assert (upstream.sum(dim=1) == 128).all()


def test_guessing_needs_a_mask():
    model = HeartLangForMaskedSentence(HeartLangConfig(**SMALL, vocab_size=16))
    with pytest.raises(ValueError, match=r"mask must be bool \(1, 256\): which words to guess"):
        model(**sentence(2))


def test_accuracy_counts_no_padding():
    torch.manual_seed(0)
    model = HeartLangForMaskedSentence(HeartLangConfig(**SMALL, vocab_size=16)).eval()
    given = sentence(4, 4)
    everywhere = torch.ones(1, 256, dtype=torch.bool)
    labels = torch.zeros(1, 256, dtype=torch.int64)
    labels[0, everywhere[0]] = model(**given, mask=everywhere).logits.argmax(dim=-1)
    labels[0, 0] = (labels[0, 0] + 1) % 16
    out = model(**given, mask=everywhere, labels=labels)
    assert (out.correct, out.counted) == (7, 8)


# --- codes ------------------------------------------------------------------------------------------------------------


def small_vq(**settings):
    torch.manual_seed(0)
    return HeartLangVQ(HeartLangVQConfig(**SMALL, decoder_layers=1, codebook_size=24, code_dim=6, **settings))


def several(count=3):
    parts = [sentence(4 + i, 4 + i, seed=i) for i in range(count)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@torch.no_grad()
def test_nothing_changes_in_eval_mode():
    model = small_vq().eval()
    before = copy.deepcopy(model.state_dict())
    model(**several()), model.encode(**several())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.quantize.started


def test_padding_counts_only_where_the_configuration_says():
    given = several()
    garbage = given | {"words": torch.where(given["in_chan"][..., None] > 0, given["words"], 5.0)}
    for count in (False, True):
        torch.manual_seed(0)
        model = small_vq(count_padding=count, attend_padding=False).eval()
        out, other = model(**given), model(**garbage)
        rows = (out.reconstruction - given["words"]).square().mean(dim=-1)
        kept = torch.ones_like(rows, dtype=torch.bool) if count else given["in_chan"] > 0
        torch.testing.assert_close(out.reconstruction_loss, rows[kept].mean())
        assert bool(abs(other.reconstruction_loss - out.reconstruction_loss) > 1) == count


def test_the_codebook_starts_from_the_first_batch_and_follows_the_words():
    model = small_vq().train()
    given, valid = several(), several()["in_chan"] > 0
    with torch.no_grad():
        vectors = model.eval().vectors(**given)[valid]
        model.train()
        first_step = model(**given)
    book = model.quantize.codebook
    torch.testing.assert_close(book.norm(dim=-1), torch.ones(24))
    assert model.quantize.started and set(first_step.codes[valid].tolist()) <= set(range(24))
    random = torch.nn.functional.normalize(torch.randn(24, 6), dim=-1)
    near = lambda codes: (vectors @ codes.T).max(dim=-1).values.mean()  # noqa: E731
    assert near(book) > near(random) + 0.02
    before, rng = book.clone(), torch.random.get_rng_state()
    with torch.no_grad():
        model(**given)
    assert (model.quantize.codebook != before).any(), "the average moves"
    assert torch.equal(rng, torch.random.get_rng_state()), "no draw from the global generator"


def test_one_update_is_the_average_that_it_says():
    quantizer = HeartLangQuantizer(HeartLangVQConfig(codebook_size=3, code_dim=2, ema_decay=0.9)).train()
    quantizer.codebook.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    quantizer.started.fill_(True)
    vectors = torch.nn.functional.normalize(torch.tensor([[1.0, 0.2], [1.0, 0.4], [0.1, 1.0], [-1.0, 0.0]]), dim=-1)
    chosen, codes = quantizer(vectors, torch.tensor([True, True, True, False]))
    assert codes.tolist() == [0, 0, 1, 2] and torch.equal(chosen[3], torch.tensor([-1.0, 0.0]))
    unit = lambda *x: torch.nn.functional.normalize(torch.stack(x).sum(dim=0), dim=-1)  # noqa: E731
    want = [
        unit(0.9 * torch.tensor([1.0, 0.0]), 0.1 * unit(vectors[0], vectors[1])),
        unit(0.9 * torch.tensor([0.0, 1.0]), 0.1 * vectors[2]),
        torch.tensor([-1.0, 0.0]),  # the fourth vector is padding
    ]
    torch.testing.assert_close(quantizer.codebook, torch.stack(want))
    torch.testing.assert_close(quantizer.cluster_size, torch.tensor([0.2, 0.1, 0.0]))


def test_a_batch_of_padding_cannot_start_a_codebook():
    with pytest.raises(ValueError, match="no word that could start the codebook"):
        small_vq().train()(**sentence())


def test_the_gradient_of_a_code_goes_to_the_vector_that_chose_it():
    model = small_vq().eval()
    out = model(**several())
    out.reconstruction.square().sum().backward()
    assert model.encode_task_layer[0].weight.grad.abs().sum() > 0
    assert not model.quantize.codebook.requires_grad


def train_two_steps(rank, world, port, given, path):
    if world > 1:
        dist.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
        )
    model = small_vq().train()
    share = {name: tensor.chunk(world)[rank] for name, tensor in given.items()}
    with torch.no_grad():
        for _ in range(2):
            model(**share)
    torch.save(model.quantize.state_dict(), f"{path}-{rank}")
    if world > 1:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_make_the_codebook_of_one(tmp_path):
    given = several(4)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    train_two_steps(0, 1, port, given, tmp_path / "one")
    context = multiprocessing.get_context("fork")
    both = [
        context.Process(target=train_two_steps, args=(r, 2, port, given, tmp_path / "two"), daemon=True)
        for r in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(240)
        assert process.exitcode == 0
    one, *two = (torch.load(tmp_path / name, weights_only=True) for name in ("one-0", "two-0", "two-1"))
    for name, want in one.items():
        assert torch.equal(two[0][name], two[1][name])
        torch.testing.assert_close(two[0][name], want, atol=1e-6, rtol=1e-5)


def test_the_nearest_code_is_that_of_the_least_distance():
    generator = torch.Generator().manual_seed(0)
    vectors, book = (torch.nn.functional.normalize(torch.randn(n, 5, generator=generator)) for n in (9000, 31))
    assert torch.equal(nearest(vectors, book), torch.cdist(vectors, book).argmin(dim=1))


def test_codebook_usage():
    even = codebook_usage(torch.arange(8).repeat(5), 16)
    assert (even.used, even.size) == (8, 16) and even.perplexity == pytest.approx(8)
    one = codebook_usage(iter([torch.zeros(3, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64)]), 4)
    assert one.used == 1 and one.perplexity == pytest.approx(1)
    with pytest.raises(ValueError, match="no codes"):
        codebook_usage(torch.empty(0, dtype=torch.int64), 4)


# --- checkpoints ------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_wrappers_leave_their_prefix(golden, small, sentences, tmp_path, prefix, caplog):
    state = {
        f"{prefix}{name}": tensor for name, tensor in read_state(golden / "small" / "pretrain.safetensors").items()
    }
    torch.save({"model": state}, tmp_path / "c.pth")
    with caplog.at_level("INFO"):
        model = HeartLangModel.from_upstream(tmp_path / "c.pth", TWO_HEADS)
    torch.testing.assert_close(
        model(**first(sentences, 2)).last_hidden_state, small("pretrain_tokens_all")[:2], **CLOSE
    )
    assert "no use for 2 of its tensors: lm_head.bias, lm_head.weight" in caplog.text


@torch.no_grad()
def test_a_head_is_found_where_upstreams_finetune_puts_it(golden, small, sentences, tmp_path, caplog):
    state = read_state(golden / "small" / "finetune.safetensors")
    moved = {name.replace("mlp_head", "backbone.mlp_head"): tensor for name, tensor in state.items()}
    torch.save({"model": moved}, tmp_path / "c.pth")
    with caplog.at_level("INFO"):
        model = HeartLangClassifier.from_upstream(tmp_path / "c.pth", TWO_HEADS)
    torch.testing.assert_close(model(**sentences).logits, small("classifier_logits"), **CLOSE)
    assert "lm_head.weight" in caplog.text


def test_a_pretrained_checkpoint_gets_a_new_head_on_request(golden):
    file = golden / "small" / "pretrain.safetensors"
    with pytest.raises(ValueError, match="has no mlp_head: it is pretrained.*give a config with num_labels"):
        upstream.read_published(HeartLangClassifier, file, num_attention_heads=2)
    config = HeartLangConfig(num_attention_heads=2, head_dim=16, num_labels=7)
    model = HeartLangClassifier.from_upstream(file, config)
    assert model.mlp_head.out_features == 7
    assert torch.equal(model.backbone.pos_embed, HeartLangModel.from_upstream(file, config).backbone.pos_embed)


@pytest.mark.parametrize(
    ("model", "file", "message"),
    [
        (
            HeartLangModel,
            "vqhbr.safetensors",
            "is a VQ-HBR checkpoint, which HeartLangModel cannot read: use HeartLangVQ",
        ),
        (HeartLangVQ, "pretrain.safetensors", "is a pretrained checkpoint, which HeartLangVQ cannot read"),
        (HeartLangForMaskedSentence, "finetune.safetensors", "is fine-tuned: its lm_head was never trained"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(golden, model, file, message):
    with pytest.raises(ValueError, match=message):
        model.from_upstream(golden / "small" / file, TWO_HEADS)


def test_heads_that_do_not_fit_are_refused(golden):
    with pytest.raises(ValueError, match="attention is 32 wide, which is not 1 heads of 64: give num_attention_heads"):
        HeartLangModel.from_upstream(golden / "small" / "pretrain.safetensors")
    with pytest.raises(ValueError, match="attention is 32 wide, which is not 3 heads of 16"):
        HeartLangModel.from_upstream(
            golden / "small" / "pretrain.safetensors", HeartLangConfig(num_attention_heads=3, head_dim=16)
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("norm_layer.bias"), "backbone.norm_layer.bias is missing"),
        (lambda s: s.update(extra=torch.zeros(2)), "backbone.extra is unexpected"),
        (lambda s: s.update(cls_token=torch.zeros(3)), r"backbone.cls_token is \(3,\) instead of \(40,\)"),
        (lambda s: s["cls_token"][0].fill_(float("nan")), "backbone.cls_token holds NaN"),
        (lambda s: s.pop("token_embed.tokenConv.weight"), "no HeartLang checkpoint: it has no tensor token_embed"),
        (lambda s: s.pop("pos_embed"), "no whole HeartLang checkpoint: no 3-d tensor backbone.pos_embed"),
    ],
)
def test_a_damaged_checkpoint_is_refused(golden, tmp_path, change, message):
    state = {name: tensor.clone() for name, tensor in read_state(golden / "small" / "pretrain.safetensors").items()}
    change(state)
    torch.save({"model": state}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match=message):
        HeartLangModel.from_upstream(tmp_path / "c.pth", TWO_HEADS)


def test_a_model_saved_is_the_same_loaded(tmp_path):
    models = [
        HeartLangForMaskedSentence(HeartLangConfig(**SMALL, vocab_size=16)),
        HeartLangClassifier(HeartLangConfig(**SMALL, num_labels=3)),
        small_vq(),
    ]
    for model in models:
        model.save_pretrained(tmp_path / type(model).__name__)
        loaded = type(model).from_pretrained(tmp_path / type(model).__name__)
        assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
