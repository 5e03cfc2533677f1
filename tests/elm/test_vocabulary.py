"""ECG-Byte language models: the model that is trained, the plain one that is saved, and that they are one.

Models of a few thousand random weights of every family, built by the recipe's own `build` (see test_families.py).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from trl import ModelConfig, SFTConfig

import elm
from data.conversations import load_questions
from data.conversations.rows import assistant, question_row, user
from data.ecg import LEADS, Ecg
from data.synthetic import SyntheticCohort
from elm import EcgCollator
from elm.inputs.features import FeatureStore, weights_hash
from elm.model import vocabulary
from elm.model.configuration import ECG_VOCABULARY, ElmConfig, token_name
from elm.saved import publish as hub
from elm.saved.arguments import ElmArguments
from elm.saved.folder import save, save_adapter
from elm.training.base import settled
from elm.training.build import build as build_model
from elm.training.build import lora
from elm.training.stages import stage_args, train_stage
from encoders import load_encoder, save_encoder
from encoders.ecg_byte import EcgByteEncoder, EcgByteSettings, EcgByteTokenizer, Quantizer
from encoders.ecg_byte.modeling import from_bytes
from eval.answerers.model import ModelResponder
from helpers import families

TRAINING = {"language_model": "tiny", "dataset_name": "synthetic", "notes": [], "train_condition": "real"}
POSITIONS = 1200


@pytest.fixture(scope="session")
def cohort():
    return SyntheticCohort(12, records_per_patient=2, fs=100)


@pytest.fixture(scope="session")
def byte(cohort):
    """More tokens than one byte or a bfloat16 can count, and recordings of about 50 to 200 of them."""
    settings = EcgByteSettings(sampling_rate=50, seconds=4, leads=("I", "II", "V2"), max_tokens=400)
    return EcgByteTokenizer.train([cohort[record] for record in cohort.records], 300, settings, progress=False)


@pytest.fixture(scope="session")
def byte_folder(byte, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ecg-byte")
    save_encoder(*EcgByteEncoder.for_tokenizer(byte, lead_tokens=True), folder)
    return folder


@dataclass
class Built:
    name: str
    language: Path  # the folder of words alone
    model: elm.ElmForConditionalGeneration
    processor: elm.ElmProcessor

    @property
    def start(self) -> int:
        return self.model.config.vocabulary_start


@pytest.fixture(scope="session")
def build(byte_folder):
    """`build(folder)`: a new model around a language model's folder."""

    def make(folder, **settings):
        arguments = ElmArguments(encoder=str(byte_folder), projector_type="vocabulary", **settings)
        model, processor = build_model(arguments, ModelConfig(model_name_or_path=str(folder)), None, 0)
        return model.eval(), processor

    return make


@pytest.fixture(scope="session")
def one_of(build, tmp_path_factory):
    """One of each family, made when it is first asked for. Not to be changed by a test."""

    @cache
    def make(name) -> Built:
        language = families.saved(name, tmp_path_factory.mktemp(name), POSITIONS)
        return Built(name, language, *build(language))

    return make


@pytest.fixture(scope="session", params=families.EACH)
def built(request, one_of) -> Built:
    return one_of(request.param)


def conversation(cohort):
    """Two turns about two ECGs, the second of them short."""
    second = {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "ecg"}]}
    messages = [user(1, "Is this a normal ECG?"), assistant("yes"), second]
    return messages, [cohort[cohort.records[0]], cohort[cohort.records[2]].crop(0, 3)]


@torch.no_grad()
def logits(model, processor, cohort):
    return model(**processor(*conversation(cohort), add_generation_prompt=True)).logits


def plain_of(folder, built):
    """What any user of transformers loads, and what he is told of missing weights."""
    attention = "eager" if built.name == "gemma2" else None  # sdpa leaves its bound out
    return AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, attn_implementation=attention)


# --- the vocabulary ---------------------------------------------------------------------------------------------------


def test_tokens_are_numbered_in_the_tables_order_and_words_stay(built, byte):
    """Those that say which lead begins come last."""
    model, processor, start = built.model, built.processor, built.start
    count = len(byte.table.llm_order) + 3
    assert processor.tokenizer.convert_tokens_to_ids([token_name(n) for n in range(count)]) == list(
        range(start, start + count)
    )
    kind = families.KINDS[built.name]
    words = families.make_tokenizer(kind)
    assert start == len(words) + (kind.ecg not in words.get_vocab()) and len(processor.tokenizer) == start + count
    published = AutoModelForCausalLM.from_pretrained(built.language).get_input_embeddings().weight
    table = model.get_input_embeddings().weight
    least = min(len(published), start)
    assert torch.equal(table[:least], published[:least])
    assert torch.equal(table[start : start + count], model.model.projector.weight)
    assert len(table) == model.config.text_config.vocab_size >= len(processor.tokenizer)
    before = len(published)
    assert len(table) % min(before & -before, 128) == 0, "no longer a multiple of what it was padded to"
    assert model.config.encoder_config.vocabulary == count > 256


def test_rows_have_the_words_mean_and_spread_and_look_like_their_tokens(one_of, byte):
    built = one_of("llama-3.2")
    words = built.model.get_input_embeddings().weight[: built.start].detach()
    like = words.new_empty(len(words), 256).normal_(0.5, 2, generator=torch.Generator().manual_seed(1))
    rows = vocabulary.content_rows(byte, like)
    assert torch.equal(rows, vocabulary.content_rows(byte, like))
    assert not torch.equal(rows, vocabulary.content_rows(byte, like, seed=1))
    # A recording's tokens are not evenly spread over shapes: the mean keeps a little of the commonest.
    assert abs(float(rows.mean() - like.mean())) < 0.2 and 0.8 < float(rows.std() / like.std()) < 1.2
    unit = torch.nn.functional.normalize(rows - like.mean(0), dim=1)
    cosines = unit @ unit.T
    letters = cosines[:26, :26]
    near, far = letters.diagonal(1).mean(), letters.diagonal(20).mean()
    assert near > 0.7 > 0.3 > far, "neighbouring levels are alike, distant ones are not"
    off = cosines[~torch.eye(len(rows), dtype=torch.bool)]
    assert off.median() < 0.5 and len(rows.unique(dim=0)) == len(rows) and off.max() < 0.9999, "two are one word"
    half = vocabulary.content_rows(byte, like.bfloat16())
    assert half.dtype == torch.bfloat16 and len(half.unique(dim=0)) == len(half)


def test_a_head_of_its_own_begins_with_the_words_mean(one_of):
    built = one_of("llama-3-base")
    head, count = built.model.lm_head.weight, built.model.config.encoder_config.vocabulary
    words = head[: built.start]
    new = head[built.start : built.start + count]
    torch.testing.assert_close(new, words.mean(0).expand_as(new), atol=1e-5, rtol=1e-5)


def test_a_vocabulary_grows_once(one_of, byte):
    built = one_of("gpt2")
    language = families.make_language(families.KINDS["gpt2"], families.make_tokenizer(families.KINDS["gpt2"]))
    with pytest.raises(ValueError, match="has ECG tokens already: begin with a model of words alone"):
        vocabulary.extend(language, built.processor.tokenizer, byte)


def test_configurations_that_contradict_themselves_are_refused(one_of, encoder_config):
    told = one_of("gpt2").model.config.to_dict()
    for change, message in (
        ({"projector_type": "mlp"}, "projector_type 'mlp' does not fit an encoder of type 'ecg_byte'"),
        ({"projector_pool": 2}, "words are not pooled and have ids: projector_pool must be 1"),
        ({"vocabulary_start": None}, "and vocabulary_start given"),
        ({"encoder_config": encoder_config("patch").to_dict()}, "'vocabulary' does not fit an encoder of type 'ecg_p"),
    ):
        with pytest.raises(ValueError, match=message):
            ElmConfig.from_dict(told | change)


# --- the plain form ---------------------------------------------------------------------------------------------------


def test_the_saved_plain_model_says_what_ours_says(built, cohort, tmp_path):
    model, processor = built.model, built.processor
    want = logits(model, processor, cohort)
    save(model, processor, tmp_path, training=TRAINING)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == model.config.text_config.model_type and ECG_VOCABULARY in config
    plain, info = plain_of(tmp_path, built)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not any("encoder" in name or "projector" in name for name in plain.state_dict())
    messages, ecgs = conversation(cohort)
    ids = torch.tensor([processor.token_ids(messages, ecgs)])
    loaded, again = elm.load(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, want, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits(loaded, again, cohort), want, atol=1e-5, rtol=1e-5)
        settings = {"do_sample": False, "max_new_tokens": 8}
        theirs = plain.generate(ids, **settings)[0, ids.shape[1] :]
        inputs = processor(messages, ecgs, add_generation_prompt=True)
        ours = model.generate(**inputs, **settings)[0, ids.shape[1] :]
        assert theirs.tolist() == ours.tolist()
        other = processor(messages, [cohort[r] for r in cohort.records[4:8:2]], add_generation_prompt=True)
        moved = (model(**other).logits[0, -1] - want[0, -1]).norm() / want[0, -1].norm()
    assert moved > 0.05, "or nothing here could tell one ECG from another"
    start, count = built.start, model.config.encoder_config.vocabulary
    names = AutoTokenizer.from_pretrained(tmp_path).convert_ids_to_tokens(list(range(start, start + count)))
    assert names == [token_name(n) for n in range(count)]


def test_token_ids_are_the_conversation_with_tokens_in_place(built, byte, cohort):
    processor = built.processor
    messages, ecgs = conversation(cohort)
    number = {token: n for n, token in enumerate(byte.table.llm_order)}
    tokens = []
    for ecg in ecgs:
        for lead, row in enumerate(byte.levels(ecg)):
            tokens += [built.start + len(number) + lead]
            tokens += [built.start + number[token] for token in byte._ids(row[None])]
    for prompt in (True, False):
        ids = processor.token_ids(messages, ecgs, add_generation_prompt=prompt)
        places = processor(messages, ecgs, add_generation_prompt=prompt)["input_ids"][0]
        here = places == processor.ecg_token_id
        assert torch.tensor(ids)[here].tolist() == tokens and torch.equal(torch.tensor(ids)[~here], places[~here])
    assert processor.token_ids([user(0, "Is it?")], add_generation_prompt=False) == (
        processor([user(0, "Is it?")])["input_ids"][0].tolist()
    )
    with pytest.raises(ValueError, match="has 1 ECG placeholders but 0 ECGs are given"):
        processor.token_ids([user(1, "Is it?")])


def test_token_ids_of_another_kind_of_model_are_refused(pair, make_ecg):
    with pytest.raises(ValueError, match="an ECG is no words to a model with PatchFeatureExtractor: only an ECG-Byte"):
        pair.processor.token_ids([user(1, "Is it?")], [make_ecg(1)])


@pytest.mark.parametrize("name", ["llama-3.2", "gemma3-multimodal", "opt"])
def test_saved_loaded_and_saved_again_is_the_same_bytes(one_of, tmp_path, name):
    built = one_of(name)
    first, second = tmp_path / "a" / "model", tmp_path / "b" / "model"
    save(built.model, built.processor, first, training=TRAINING)
    save(*elm.load(first), second, training=TRAINING)
    assert {path.name: path.read_bytes() for path in first.iterdir()} == {
        path.name: path.read_bytes() for path in second.iterdir()
    }


@pytest.mark.parametrize("name", ["llama-3.2", "gemma3"])
def test_bfloat16_is_the_same_in_both_forms(one_of, build, cohort, tmp_path, name):
    """The width of this Gemma has a root that bfloat16 rounds, as those of some published ones have."""
    built = one_of(name)
    model, processor = build(built.language)
    model.bfloat16()
    save(model, processor, tmp_path, training=TRAINING)
    loaded, again = elm.load(tmp_path)
    plain, _ = plain_of(tmp_path, built)
    assert {weight.dtype for weight in plain.parameters()} == {torch.bfloat16}
    ids = torch.tensor([processor.token_ids(*conversation(cohort))])
    with torch.no_grad():
        torch.testing.assert_close(logits(loaded, again, cohort), plain(ids).logits, atol=0, rtol=0)


def test_what_is_no_such_model_says_so(one_of, tmp_path):
    built = one_of("llama-3-base")
    with pytest.raises(ValueError, match=f"{built.language}: config.json is that of a 'llama', which is no ECG-lang"):
        elm.load(built.language)
    save(built.model, built.processor, tmp_path, training=TRAINING)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="do not fit its config.json: model.layers.0.mlp.up_proj.weight is missing"):
        elm.load(tmp_path)


def test_it_is_published_like_any_other(one_of, tmp_path):
    built = one_of("llama-3.2")
    save(built.model, built.processor, tmp_path / "model", training=TRAINING)
    files = hub.contents(tmp_path / "model", "owner/model", hub.Publication(unaudited=True))
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= files.keys()
    published = tmp_path / "published"
    published.mkdir()
    for name, content in files.items():
        (published / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    again, _ = elm.load(published)
    assert weights_hash(again) == weights_hash(built.model)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "vocabulary" in card and f"at most {built.model.config.encoder_config.budget} " in card


# --- words ------------------------------------------------------------------------------------------------------------


def test_typed_names_of_tokens_are_text(built):
    typed = "Is <|ecg:5|> the same as <|ecg:12|>?"
    count = built.model.config.encoder_config.vocabulary
    ids = built.processor([user(0, typed), assistant(typed)])["input_ids"][0]
    assert not ((ids >= built.start) & (ids < built.start + count)).any()
    assert ids.tolist() == built.processor.token_ids([user(0, typed), assistant(typed)], add_generation_prompt=False)
    assert len(built.processor.as_text(typed)) == len(typed) + 2, "a space in each, and no more"


@torch.no_grad()
def test_an_answer_never_holds_a_token_of_an_ecg(one_of, cohort, tmp_path):
    """Not even one that the model would say; nor does the plain form in transformers."""
    built = one_of("qwen2.5")
    start, count = built.start, built.model.config.encoder_config.vocabulary
    save(built.model, built.processor, tmp_path, training=TRAINING)
    plain, _ = plain_of(tmp_path, built)
    inputs = built.processor(*conversation(cohort), add_generation_prompt=True)
    ids = torch.tensor([built.processor.token_ids(*conversation(cohort))])
    bias = {"sequence_bias": [[[token], 1000.0] for token in (start + 3, start + count - 1)]}
    settings = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4, **bias}
    for said in (built.model.generate(**inputs, **settings), plain.generate(ids, **settings)):
        new = said[0, ids.shape[1] :]
        assert len(new) == 4 and not ((new >= start) & (new < start + count)).any()
    free = plain.generate(ids, **settings, suppress_tokens=None)[0, ids.shape[1] :]
    assert (free >= start).all(), "or nothing was suppressed"


# --- training ---------------------------------------------------------------------------------------------------------


def rows_of(cohort, count=6):
    return [
        question_row(
            id=str(i), ecgs=[record], patient_ids=[cohort.patient_of[record]], question_type="t", question="Is it?",
            answer=["yes" if i % 2 else "no"],
        )
        for i, record in enumerate(cohort.records[:count])
    ]  # fmt: skip


def numbers_of(processor, cohort, records):
    """Which tokens these recordings are made of."""
    features = processor.feature_extractor([cohort[record] for record in records])
    return set(features["ecg_tokens"][features["token_mask"]].tolist())


@pytest.mark.parametrize("name", ["llama-3.2", "llama-3-base", "gemma3"])
def test_a_gradient_reaches_the_rows_that_occur_and_no_other(one_of, build, cohort, name):
    model, processor = build(one_of(name).language)
    model.requires_grad_(False)
    model.model.projector.requires_grad_(True)
    rows = rows_of(cohort)
    model.train()(**EcgCollator(processor, cohort)(rows)).loss.backward()
    gradient = model.model.projector.weight.grad
    reached = set(gradient.abs().sum(1).nonzero()[:, 0].tolist())
    assert reached == numbers_of(processor, cohort, [row["ecgs"][0] for row in rows])
    assert 0 < len(reached) < len(gradient)


def trained(model, processor, cohort, folder, rows):
    """An align stage and an sft stage, as the recipe does them; the tuned model and its base's hash."""
    store = FeatureStore(model.model.encoder, processor.feature_extractor, cohort, cohort.key, folder / "cache")
    collator = EcgCollator(processor, cohort, store)
    args = SFTConfig(
        output_dir=str(folder), max_steps=3, per_device_train_batch_size=3, learning_rate=1e-2, bf16=False,
        use_cpu=True, logging_steps=1, report_to="none", disable_tqdm=True, save_steps=3, lr_scheduler_type="constant",
        gradient_checkpointing=False,
    )  # fmt: skip
    model.requires_grad_(False)
    model.model.projector.requires_grad_(True)
    align = stage_args(args, "align")
    trainer = train_stage(model, processor, rows, collator, align, resume=True)
    model = trainer.accelerator.unwrap_model(trainer.model)
    base = weights_hash(model)
    config = lora(ModelConfig(lora_r=4, lora_dropout=0.0), model, train_encoder=False)
    sft = stage_args(args, "sft")
    trainer = train_stage(model, processor, rows, collator, sft, resume=True, peft_config=config)
    return trainer, trainer.accelerator.unwrap_model(trainer.model), base


@pytest.mark.parametrize("name", ["llama-3.2", pytest.param("llama-3-base", marks=pytest.mark.slow)])
def test_rows_are_trained_in_both_stages_and_words_are_not(one_of, build, cohort, tmp_path, name):
    built = one_of(name)
    rows = rows_of(cohort)
    model, processor = build(built.language)
    head_before = model.lm_head.weight.detach().clone()
    trainer, tuned, base = trained(model, processor, cohort, tmp_path / "run", rows)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    want = logits(tuned.eval(), processor, cohort)
    save_adapter(tuned, tmp_path / "adapter", base)
    save(tuned.merge_and_unload(), processor, tmp_path / "model", training=TRAINING)

    # Rows: those that occur have moved, the others and the words have not by a bit.
    plain, _ = plain_of(tmp_path / "model", built)
    start, before = built.start, built.model.get_input_embeddings().weight
    after, count = plain.get_input_embeddings().weight, model.config.encoder_config.vocabulary
    moved = set((after[start : start + count] != before[start : start + count]).any(1).nonzero()[:, 0].tolist())
    assert moved == numbers_of(processor, cohort, [row["ecgs"][0] for row in rows])
    assert torch.equal(after[:start], before[:start]) and torch.equal(after[start + count :], before[start + count :])
    head = plain.get_output_embeddings().weight
    if name == "llama-3.2":
        assert head is after
    else:
        assert torch.equal(head, head_before)

    # The plain model, ours of the same folder, and the adapter on its base say the same.
    ids = torch.tensor([processor.token_ids(*conversation(cohort))])
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(*elm.load(tmp_path / "model"), cohort), want, atol=1e-4, rtol=1e-4)
    aligned, _ = build(built.language)
    checkpoint = tmp_path / "run" / "checkpoints" / "align" / "checkpoint-3" / "model.safetensors"
    row_weights = load_file(checkpoint)["model.projector.weight"]
    assert not torch.equal(row_weights, built.model.model.projector.weight), "nothing was learned in the align stage"
    aligned.model.projector.weight.data.copy_(row_weights)
    save(aligned, processor, tmp_path / "base", training=TRAINING)
    adapted = elm.load(tmp_path / "base", adapter=tmp_path / "adapter")
    torch.testing.assert_close(logits(*adapted, cohort), want, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=f"was trained on other weights \\({base}\\) than those of .*model"):
        elm.load(tmp_path / "model", adapter=tmp_path / "adapter")

    # Interrupted between the stages.
    (tmp_path / "again" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "align").rename(tmp_path / "again" / "checkpoints" / "align")
    model, processor = build(built.language)
    trainer, tuned, again = trained(model, processor, cohort, tmp_path / "again", rows)
    assert again == base and [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] == losses
    assert torch.equal(logits(tuned.eval(), processor, cohort), want)


def test_training_goes_on_from_a_saved_one(built, cohort, tmp_path):
    """Its rows are those of the saved vocabulary; no token is added, and the words stay."""
    arguments = ElmArguments(encoder="ecg_byte", projector_type="vocabulary", encoder_args={"max_tokens": 400})
    training = {**TRAINING, "arguments": dataclasses.asdict(arguments)}
    save(built.model, built.processor, tmp_path, training=training)
    model_args = ModelConfig(model_name_or_path=str(tmp_path))
    settings = settled(ElmArguments(encoder_args={"output": "tokens"}), model_args, explicit=set())
    assert (settings.encoder, settings.projector_type) == ("ecg_byte", "vocabulary")
    model, processor = build_model(settings, model_args, None, 3)
    assert len(processor.tokenizer) == len(built.processor.tokenizer)
    assert model.model.projector.weight.dtype == torch.float32
    assert torch.equal(model.model.projector.weight, built.model.model.projector.weight)
    assert torch.equal(logits(model.eval(), processor, cohort), logits(built.model, built.processor, cohort))
    for name, value in {"encoder": "tiny-cnn", "projector_type": "mlp", "encoder_args": {"max_tokens": 300}}.items():
        with pytest.raises(ValueError, match=f"leave {name} out"):
            settled(dataclasses.replace(settings, **{name: value}), model_args, explicit={name})


def test_a_tied_head_speaks_by_the_rows_of_this_step(one_of, build, cohort):
    """In training, so that a loss is that of the model which would be saved now."""
    model, processor = build(one_of("llama-3.2").language)
    batch = EcgCollator(processor, cohort)(rows_of(cohort, 2))
    with torch.no_grad():
        model.model.projector.weight += 0.5
    loss = model.train()(**batch).loss
    start, count = model.config.vocabulary_start, model.config.encoder_config.vocabulary
    assert torch.equal(model.lm_head.weight[start : start + count], model.model.projector.weight)
    plain = vocabulary.as_plain(model).eval()
    ids = batch["input_ids"].clone()
    tokens = [token for row in rows_of(cohort, 2) for token in _tokens(processor, cohort, row)]
    ids[ids == model.config.ecg_token_id] = start + torch.tensor(tokens)
    with torch.no_grad():
        told = plain(input_ids=ids, attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    assert loss.item() == pytest.approx(float(told), abs=1e-5)


def _tokens(processor, cohort, row):
    features = processor.feature_extractor(cohort[row["ecgs"][0]])
    return features["ecg_tokens"][features["token_mask"]].tolist()


# --- conditions -------------------------------------------------------------------------------------------------------


@pytest.fixture
def store_of(cohort, tmp_path):
    def make(model, processor, zero=False):
        extractor = processor.feature_extractor
        return FeatureStore(model.model.encoder, extractor, cohort, cohort.key, tmp_path / "cache", zero)

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_holds_every_token_exactly(one_of, build, cohort, store_of, dtype):
    model, processor = build(one_of("llama-3.2").language)
    model.to(dtype)
    records = list(cohort.records)
    cached = store_of(model, processor).fill(records).get(records)
    direct = processor.feature_extractor([cohort[record] for record in records])
    assert torch.equal(cached["ecg_mask"], direct["token_mask"])
    here = direct["token_mask"]
    numbers = from_bytes(cached["ecg_features"])[here]
    assert torch.equal(numbers, direct["ecg_tokens"][here].long())
    assert (numbers > 256).any() and (numbers % 2 == 1).any(), "or a bfloat16 could hold them, too"
    projected, kept = model.model.projector(cached["ecg_features"].to(dtype), cached["ecg_mask"])
    assert torch.equal(kept, here) and torch.equal(projected[kept], model.model.projector.weight[numbers])


def test_zero_keeps_the_number_of_tokens_and_makes_all_of_them_one(one_of, cohort, store_of):
    model, processor = one_of("gemma3").model, one_of("gemma3").processor
    records = list(cohort.records[:4])
    real, zero = (store_of(model, processor, zero).get(records) for zero in (False, True))
    assert torch.equal(real["ecg_mask"], zero["ecg_mask"])
    rows, kept = model.model.projector(zero["ecg_features"], zero["ecg_mask"])
    token = model.model.encoder.zero_token
    scale = model.config.text_config.hidden_size**0.5
    assert processor.feature_extractor.byte.table.llm_order[token] == ord("m")
    torch.testing.assert_close(rows[kept], (scale * model.model.projector.weight[token]).expand_as(rows[kept]))
    assert len(model.model.projector(real["ecg_features"], real["ecg_mask"])[0][kept].unique(dim=0)) > 20


def test_answers_under_the_conditions_of_an_audit(one_of, cohort, store_of):
    """The same from stores and without them; `mean` and `zero` know of an ECG its length at most."""
    built = one_of("llama-3-base")
    model, processor = built.model, built.processor
    rows = rows_of(cohort, 4)
    options = [["yes", "no"]] * len(rows)
    settings = {"training_records": list(cohort.records[8:12]), "batch_size": 4}
    stored = ModelResponder(model, processor, cohort, store_of(model, processor),
                            zeros=store_of(model, processor, True), **settings)  # fmt: skip
    bare = ModelResponder(model, processor, cohort, **settings)
    scores = {}
    for condition in ("real", "zero", "mean"):
        stored.prepare(rows, condition)
        scores[condition] = np.array(stored.score(rows, condition, options))
        np.testing.assert_allclose(scores[condition], bare.score(rows, condition, options), atol=1e-3)
    assert np.ptp(scores["real"], axis=0).min() > 0.01
    # Another ECG is asked about as that one's own question is.
    swapped = [{**row, "ecgs": rows[i - 1]["ecgs"]} for i, row in enumerate(rows)]
    moved = np.array(stored.score(swapped, "swap", options))
    np.testing.assert_allclose(moved, np.roll(scores["real"], 1, axis=0), atol=1e-3)
    # Recordings of equal length would have equal scores: zeroed, a recording is cut to that many tokens of one kind.
    counts = [len(_tokens(processor, cohort, row)) for row in rows]
    assert len(set(counts)) == len(counts), counts
    ids = [processor.token_ids(row["messages"][:1], [cohort[row["ecgs"][0]]]) for row in rows]
    token = built.start + model.model.encoder.zero_token
    tokens = range(built.start, built.start + model.config.encoder_config.vocabulary)
    for i, row in enumerate(ids):
        zeroed = torch.tensor([[token if one in tokens else one for one in row]])
        answer = torch.tensor([processor.answer_ids("yes")])
        with torch.no_grad():
            logp = vocabulary.as_plain(model)(torch.cat([zeroed, answer], 1)).logits[0].log_softmax(-1)
        said = logp[len(row) - 1 : -1].gather(1, answer[0][:, None]).sum()
        assert scores["zero"][i][0] == pytest.approx(float(said), abs=1e-3)


def test_a_recording_that_is_noise_is_named(one_of):
    noise = 10 * np.random.default_rng(0).normal(size=(12, 1000))
    with pytest.raises(ValueError, match="'r-noise' needs .* more than max_tokens=400"):
        one_of("gpt2").processor([user(1, "Is it?")], [Ecg(noise, 100, LEADS, record_id="r-noise")])


# --- LoRA on every family ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama-3.2", "qwen3", "gemma2", "gemma3", "gpt2", "opt"])
def test_lora_is_saved_merged_and_alone(one_of, build, cohort, tmp_path, name):
    built = one_of(name)
    model, processor = build(built.language)
    save(model, processor, tmp_path / "base", training=TRAINING)
    base = weights_hash(model)
    tuned = get_peft_model(model, lora(ModelConfig(lora_r=4), model, train_encoder=False)).eval()
    with torch.no_grad():
        for weight in tuned.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    tuned.get_base_model().model.mirror_rows()
    want = logits(tuned, processor, cohort)
    assert (want - logits(built.model, built.processor, cohort)).abs().max() > 1e-2
    save_adapter(tuned, tmp_path / "adapter", base)
    held = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert not any("embed" in name or "wte" in name for name in held), "rows of words in the adapter"
    save(tuned.merge_and_unload(), processor, tmp_path / "model", training=TRAINING)
    for folder, adapter in (("model", None), ("base", tmp_path / "adapter")):
        loaded, again = elm.load(tmp_path / folder, adapter=adapter)
        torch.testing.assert_close(logits(loaded, again, cohort), want, atol=2e-4, rtol=1e-3)


# --- where tokens come from -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def questions():
    return load_questions("synthetic", patients=10, held_out_patients=4, questions=2, held_out_questions=2)


SMALL = {"max_tokens": 500, "merges": 40, "sampling_rate": 50, "seconds": 3.0, "leads": ["I", "II"], "low": -2.5}


def test_tokens_are_learned_once_from_the_training_ecgs(questions, tmp_path):
    folder = vocabulary.encoder(questions, tmp_path, **SMALL)
    encoder, extractor = load_encoder(folder)
    settings = extractor.byte.settings
    assert (settings.leads, settings.sampling_rate, settings.quantizer.low) == (("I", "II"), 50, -2.5)
    assert encoder.config.vocabulary == 26 + len(extractor.byte.table.merges) + 2 and encoder.config.budget == 502
    assert encoder.config.pretrained_on == f"{questions.name}: ECGs of the training split (ECG-Byte merges)"
    records = list(dict.fromkeys(record for row in questions.train for record in row["ecgs"]))
    plan = EcgByteSettings(50, 3.0, ("I", "II"), Quantizer(low=-2.5))
    learned = EcgByteTokenizer.fit([questions.source[record] for record in records], 500, 40, plan, progress=False)
    assert extractor.byte.to_dict() == learned.to_dict()
    written = (folder / "config.json").stat().st_mtime_ns
    assert vocabulary.encoder(questions, tmp_path, **SMALL) == folder
    assert (folder / "config.json").stat().st_mtime_ns == written
    others = {
        vocabulary.encoder(questions, tmp_path, **SMALL | one) for one in ({"merges": 41}, {"lead_tokens": False})
    }
    assert len(others | {folder}) == 3


def test_tokens_of_a_file_are_taken_as_they_are(questions, byte, tmp_path):
    byte.save(tmp_path / "byte.json")
    folder = vocabulary.encoder(questions, tmp_path, tokenizer=str(tmp_path / "byte.json"), lead_tokens=False)
    encoder, extractor = load_encoder(folder)
    assert extractor.byte.to_dict() == byte.to_dict() and encoder.config.pretrained_on == ""
    EcgByteTokenizer(byte.table.first(5), byte.settings).save(tmp_path / "byte.json")
    assert vocabulary.encoder(questions, tmp_path, tokenizer=str(tmp_path / "byte.json")) != folder, "another content"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "are either tokenizer, a file that EcgByteTokenizer.save wrote, or max_tokens"),
        ({"tokenizer": "x.json", "max_tokens": 3}, "beside tokenizer=x.json and max_tokens=3"),
        ({"tokenizer": "x.json", "seconds": 3}, r"got \['seconds'\] beside tokenizer=x.json"),
        ({"max_tokens": 500, "rate": 50}, "encoder_args of ecg_byte: .*'rate'"),
        ({"max_tokens": 500, "sampling_rate": -1}, "sampling_rate must be a positive number, got -1"),
        (SMALL | {"max_tokens": 2}, "2 tokens are too few"),
    ],
)
def test_settings_of_tokens_that_cannot_be_are_refused(questions, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        vocabulary.encoder(questions, tmp_path, **settings)
    assert not list(tmp_path.iterdir()), "something was left in the cache"


def test_a_language_model_that_knows_no_ecgs_is_refused(tmp_path):
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="config.json is that of a 'llama', which is no ECG-language"):
        elm.load(tmp_path)
