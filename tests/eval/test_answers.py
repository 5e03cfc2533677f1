"""Answers and log-probabilities of real, untrained models, against the plain forward pass training uses."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen3Config

from data.conversations.rows import QuestionSet, assistant, question_row, user
from data.ecg import LEADS, Ecg
from data.experiment import conditions
from data.experiment.conditions import Altered
from elm import ElmConfig, ElmForConditionalGeneration, ElmProcessor
from elm.inputs.features import FeatureStore
from elm.saved.arguments import ElmArguments
from elm.saved.run import SavedRun
from elm.training.tiny_llama import train_tokenizer
from encoders.patch import PatchConfig, PatchFeatureExtractor
from eval.answerers.base import question_messages
from eval.answerers.memory import remembering
from eval.answerers.model import ModelResponder, SplitStore, load_responder
from eval.answerers.scripted import ScriptedResponder

torch.set_num_threads(1)
WORDS = ["yes", "no", "atrial fibrillation", "sinus rhythm, left axis deviation", "none"]
TEXTS = ["Is this a normal ECG? What is the rhythm? Compare the two ECGs.", ", ".join(WORDS)]
CHATML = (  # ends a turn with white space that is nobody's answer
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAMILIES = {
    "llama": (LlamaConfig, {}),
    "tied": (LlamaConfig, {"tie_word_embeddings": True}),
    "sliding": (MistralConfig, {"sliding_window": 8}),
    "qwen": (Qwen3Config, {"head_dim": 8}),
}


@pytest.fixture(scope="module")
def recordings():
    def ecg(i):
        seconds = (10, 3, 7)[i % 3]
        signal = np.random.default_rng(i).normal(size=(12, seconds * 100))
        return Ecg(signal, 100, LEADS, record_id=f"r{i}")

    return {f"r{i}": ecg(i) for i in range(12)}


@pytest.fixture(scope="module")
def make_model():
    def make(family="llama", template=None, pool=2):
        tokenizer = train_tokenizer(TEXTS, vocab_size=320)
        if template is not None:
            tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
            tokenizer.chat_template = template
        torch.manual_seed(0)
        kind, settings = FAMILIES[family]
        sizes = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.3,  # at 0.02 an untrained model says the same to everyone
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        config = ElmConfig(
            text_config=kind(**sizes | settings),
            encoder_config=PatchConfig(patch_size=200, hidden_size=12),
            ecg_token_id=tokenizer.convert_tokens_to_ids("<ecg>"),
            projector_pool=pool,
        )
        model = ElmForConditionalGeneration(config).eval()
        with torch.no_grad():
            for weight in model.model.projector.parameters():
                weight += 0.3 * torch.randn_like(weight)
        extractor = PatchFeatureExtractor.from_config(config.encoder_config)
        return model, ElmProcessor(extractor, tokenizer, pool=pool)

    return make


@pytest.fixture(scope="module")
def pair(make_model):
    """Five patches to three tokens. Not to be changed by a test."""
    return make_model()


@pytest.fixture(scope="module")
def rows():
    """Of none, one and two ECGs, and of unlike lengths."""

    def row(i):
        ecgs = [f"r{(5 * i + j) % 12}" for j in range(i % 3)]
        question = ("Is this a normal ECG?", "What is it?", "Compare the two ECGs and say what the rhythm is.")[
            i % 7 % 3
        ]
        return question_row(
            id=f"q{i:02d}", ecgs=ecgs, patient_ids=["p"], question_type="t", question=question, answer=[WORDS[i % 5]]
        )

    return [row(i) for i in range(14)]


OPTIONS = [["yes", "no"], ["yes"], ["sinus rhythm, left axis deviation", "no", "atrial fibrillation", "none"], []]


def options_of(rows):
    return [OPTIONS[i % 4] for i in range(len(rows))]


def plain(pair, recordings, row, text, **ecg):
    """Log p of an answer by the forward pass that training takes: one conversation, its labels."""
    model, processor = pair
    conversation = [*question_messages(row), assistant(text)]
    ecgs = [recordings[record] for record in row["ecgs"]]
    batch = dict(processor(conversation, ecgs or None, return_labels=True))
    if ecg and ecgs:
        del batch["ecg_values"], batch["token_mask"]
        batch |= ecg
    labels = batch.pop("labels")[0, 1:]
    with torch.no_grad():
        logp = model(**batch).logits[0, :-1].float().log_softmax(-1)
    assert (labels != -100).any()
    return sum(float(logp[i, token]) for i, token in enumerate(labels) if token != -100)


def flat(scores):
    return [value for row in scores for value in row]


@pytest.mark.parametrize(("family", "template"), [(f, None) for f in FAMILIES] + [("llama", CHATML)])
def test_scores_are_those_of_the_plain_forward_pass(make_model, recordings, rows, family, template):
    pair = make_model(family, template)
    options = options_of(rows)
    scores = ModelResponder(*pair, recordings, batch_size=5).score(rows, "real", options)
    assert [len(row) for row in scores] == [len(texts) for texts in options]
    want = [[plain(pair, recordings, row, text) for text in texts] for row, texts in zip(rows, options)]
    assert flat(scores) == pytest.approx(flat(want), abs=1e-4)
    assert np.ptp(flat(scores)) > 1


def test_an_answer_has_the_tokens_it_is_trained_with(make_model, recordings):
    for _, processor in (make_model(), make_model(template=CHATML)):
        for text in (*WORDS, "a <ecg> b", "", "  padded "):
            conversation = [user(1, "What is the rhythm?"), assistant(text)]
            batch = processor(conversation, [recordings["r0"]], return_labels=True)
            ids = processor.answer_ids(text)
            assert ids == [token for token in batch["labels"][0].tolist() if token != -100]
            assert processor.tokenizer.decode(ids[-1]) in ("</s>", "<|im_end|>", processor.tokenizer.eos_token)


@pytest.mark.parametrize("condition", ["real", "zero", "mean"])
def test_neither_batches_nor_order_change_answers_and_scores(pair, recordings, rows, condition):
    options, order = options_of(rows), np.random.default_rng(0).permutation(len(rows)).tolist()

    def make(batch_size):
        return ModelResponder(*pair, recordings, training_records=recordings, batch_size=batch_size, max_new_tokens=8)

    said, scores = make(3).ask(rows, condition), make(3).score(rows, condition, options)
    assert len(set(said)) > 3
    for batch_size in (1, 64):
        assert make(batch_size).ask(rows, condition) == said
        assert flat(make(batch_size).score(rows, condition, options)) == pytest.approx(flat(scores), abs=1e-4)
    shuffled, theirs = [rows[i] for i in order], [options[i] for i in order]
    assert make(3).ask(shuffled, condition) == [said[i] for i in order]
    assert flat(make(3).score(shuffled, condition, theirs)) == pytest.approx(flat(scores[i] for i in order), abs=1e-4)


def test_greedy_answers_are_those_of_generate(pair, recordings, rows):
    model, processor = pair
    model.train()
    said = ModelResponder(model, processor, recordings, max_new_tokens=8).ask(rows, "real")
    assert model.training  # as it was
    model.eval()
    for row, answer in zip(rows, said):
        ecgs = [recordings[record] for record in row["ecgs"]]
        batch = processor(question_messages(row), ecgs or None, add_generation_prompt=True)
        tokens = model.generate(**batch, do_sample=False, max_new_tokens=8)[0, batch["input_ids"].shape[1] :]
        assert processor.tokenizer.decode(tokens, skip_special_tokens=True).strip() == answer


def test_equal_options_are_computed_once(pair, recordings, rows, monkeypatch):
    responder = ModelResponder(*pair, recordings)
    seen, go_on = [], responder._go_on
    monkeypatch.setattr(responder, "_go_on", lambda *args: seen.append(args[-1]) or go_on(*args))
    twice = responder.score(rows[:2], "real", [["yes", "no", "yes"], ["no", "no"]])
    assert seen == [[(0, "yes"), (0, "no"), (1, "no")]]
    assert twice[0][0] == twice[0][2] and twice[1][0] == twice[1][1]


def test_altered_recordings_are_altered_before_the_feature_extractor(pair, recordings, rows):
    row = {**rows[1], "ecgs": ["r5~flat"]}
    flat_ecg = Ecg(np.zeros_like(recordings["r5"].signal), 100, LEADS)
    got = ModelResponder(*pair, recordings).score([row], "flat", [["yes", "no"]])[0]
    want = [plain(pair, {"r5~flat": flat_ecg}, row, text) for text in ("yes", "no")]
    assert got == pytest.approx(want, abs=1e-4)


def test_zeros_are_zeros_behind_the_extractor(pair, recordings, rows):
    model, processor = pair
    row = rows[2]
    tensors = processor.feature_extractor([recordings[record] for record in row["ecgs"]])
    with torch.no_grad():
        encoded = model.model.encoder(torch.zeros_like(tensors["ecg_values"]), token_mask=tensors["token_mask"])
    zeroed = {"ecg_features": encoded.last_hidden_state, "ecg_mask": encoded.mask}
    want = plain(pair, recordings, row, "yes", **zeroed)
    assert ModelResponder(*pair, recordings).score([row], "zero", [["yes"]])[0] == pytest.approx([want], abs=1e-4)


def test_mean_gives_every_ecg_the_mean_training_token_of_each_place(pair, recordings, rows):
    """Of places that are kept: r0 has three tokens, r1 (3 s) one, r2 (7 s) two."""
    model, processor = pair
    known, row = ["r0", "r1", "r2", "r4"], rows[5]
    with torch.no_grad():
        tensors = processor.feature_extractor([recordings[record] for record in known])
        encoded = model.model.encoder(**tensors)
        projected, kept = model.model.projector(encoded.last_hidden_state, encoded.mask)
    assert kept.sum(1).tolist() == [3, 1, 2, 1]
    places = [projected[:, place][kept[:, place]].mean(0) for place in range(3)]
    mask = processor.feature_extractor([recordings[record] for record in row["ecgs"]])["token_mask"]
    means = {"ecg_embeds": torch.stack([torch.stack(places)] * len(mask)), "ecg_mask": mask}
    want = plain(pair, recordings, row, "yes", **means)
    for records in (known, [*known, "r1"]):
        responder = ModelResponder(*pair, recordings, training_records=records, batch_size=3)
        assert responder.score([row], "mean", [["yes"]])[0] == pytest.approx([want], abs=1e-4)
    # Where no training record has a token, that of all places.
    short = ModelResponder(*pair, recordings, training_records=["r1", "r4"])
    one = projected[[1, 3], 0].mean(0)
    means["ecg_embeds"] = one.expand(len(mask), 3, -1)
    want = plain(pair, recordings, row, "yes", **means)
    assert short.score([row], "mean", [["yes"]])[0] == pytest.approx([want], abs=1e-4)


def test_mean_needs_training_records(pair, recordings, rows):
    responder = ModelResponder(*pair, recordings)
    for call in (responder.prepare, responder.ask):
        with pytest.raises(ValueError, match="'mean' needs the training records"):
            call(rows, "mean")


def test_the_mean_is_of_five_hundred_records_at_most(pair, recordings, monkeypatch):
    class Many(dict):
        def __missing__(self, record):
            return recordings["r0"]

    responder = ModelResponder(*pair, Many(), training_records=[f"t{i}" for i in range(700)], batch_size=200)
    seen, encoded = [], responder._encoded
    monkeypatch.setattr(responder, "_encoded", lambda records, **kw: seen.extend(records) or encoded(records, **kw))
    again = ModelResponder(*pair, Many(), training_records=[f"t{i}" for i in reversed(range(700))])
    assert torch.equal(responder._mean, responder._mean) and len(set(seen)) == len(seen) == 500
    assert responder.name == again.name


@pytest.fixture
def stores(pair, recordings, tmp_path):
    def make(altered="v1"):
        model, processor = pair
        args = (model.model.encoder, processor.feature_extractor)
        return SplitStore(
            FeatureStore(*args, recordings, "corpus", tmp_path),
            FeatureStore(*args, Altered(recordings), f"corpus~{altered}", tmp_path),
        ), FeatureStore(*args, recordings, "corpus", tmp_path, zero=True)

    return make


class Nothing:
    def __getitem__(self, record):
        raise AssertionError(f"{record} was read")


@pytest.mark.parametrize("condition", ["real", "zero", "mean", "flat"])
def test_stored_features_change_nothing(pair, recordings, rows, stores, condition):
    if condition == "flat":  # beside recordings as they are
        rows = [{**row, "ecgs": [f"{record}~flat" for record in row["ecgs"][:1]] + row["ecgs"][1:]} for row in rows]
    features, zeros = stores()
    settings = {"training_records": recordings, "max_new_tokens": 8, "batch_size": 4}
    without = ModelResponder(*pair, recordings, **settings)
    stored = ModelResponder(*pair, recordings, features, zeros=zeros, **settings)
    stored.prepare(rows, condition)
    options = options_of(rows)
    for responder in (stored, ModelResponder(*pair, Nothing(), *[features], zeros=zeros, **settings)):
        assert responder.ask(rows, condition) == without.ask(rows, condition)
        scores = flat(responder.score(rows, condition, options))
        assert scores == pytest.approx(flat(without.score(rows, condition, options)), abs=1e-4)


def test_all_that_is_missing_is_encoded_before_the_first_question(recordings, rows, stores):
    features, zeros = stores()
    altered = [{**row, "ecgs": [f"{record}~flat" for record in row["ecgs"]]} for row in rows]
    responder = ModelResponder(*[None] * 2, recordings)
    responder.model, responder.features, responder.zeros = torch.nn.Module(), features, zeros
    used = {record for row in rows for record in row["ecgs"]}
    responder.prepare(altered, "flat")
    assert all(f"{record}~flat" in features.stores[True] for record in used)
    assert not any(record in features.stores[False] for record in used)
    responder.prepare(rows, "real")
    assert all(record in features.stores[False] for record in used)
    responder.prepare(rows, "zero")
    assert all(record in zeros for record in used)
    assert len(list(features.stores[True].folder.glob("*.safetensors"))) == 1


def test_the_name_tells_what_answers_depend_on(make_model, recordings):
    model, processor = make_model()
    name = ModelResponder(model, processor, recordings).name
    assert name == ModelResponder(*make_model(), {}, batch_size=3).name
    names = {name, ModelResponder(model, processor, {}, max_new_tokens=5).name}
    names.add(ModelResponder(model, processor, {}, training_records=["r1"]).name)
    processor.chat_template += " "
    names.add(ModelResponder(model, processor, {}).name)
    processor.feature_extractor.scale = 2.0
    names.add(ModelResponder(model, processor, {}).name)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    names.add(ModelResponder(model, processor, {}).name)
    assert len(names) == 6


@pytest.mark.slow
def test_a_saved_model_is_asked_with_its_own_caches(pair, recordings, rows, tmp_path, monkeypatch):
    """Altered recordings apart, by the version of the alterations; answers may be as long as the longest right one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = dataclasses.asdict(ElmArguments(cache_dir=str(tmp_path / "cache")))
    for part in pair:
        part.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "training.json").write_text(json.dumps({"arguments": arguments}))
    long = {**rows[0], "answer": [" and ".join(WORDS * 6)]}
    patients = dict.fromkeys(recordings, "p")
    questions = QuestionSet("tiny", recordings, "tiny", rows, [*rows, long], [], patients, [])
    responder = load_responder(SavedRun(tmp_path / "model"), questions, 4)
    length = len(pair[1].answer_ids(long["answer"][0]))
    assert length > 48 and responder.max_new_tokens == length
    assert responder.training_records == sorted({record for row in rows for record in row["ecgs"]})
    same = ModelResponder(*pair, recordings, training_records=responder.training_records, max_new_tokens=length)
    assert responder.name == same.name
    altered = [{**row, "ecgs": [f"{record}~flat" for record in row["ecgs"]]} for row in rows]
    for asked, condition in ((rows, "real"), (rows, "zero"), (rows, "mean"), (altered, "flat")):
        assert responder.ask(asked, condition) == same.ask(asked, condition)

    plain_store, own = (responder.features.stores[altered].folder for altered in (False, True))
    assert own != plain_store != responder.zeros.folder
    monkeypatch.setattr(conditions, "VERSION", conditions.VERSION + 1)
    again = load_responder(SavedRun(tmp_path / "model"), questions, 4)
    assert again.features.stores[False].folder == plain_store
    assert again.features.stores[True].folder != own


def test_wrong_arguments_are_named(pair, recordings, rows):
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        ModelResponder(*pair, recordings, batch_size=0)
    with pytest.raises(ValueError, match="14 rows but the options of 1"):
        ModelResponder(*pair, recordings).score(rows, "real", [["yes"]])


def test_a_script_answers_and_scores(rows):
    script = ScriptedResponder(lambda row, condition: row["id"] + condition)
    assert script.ask(rows[:2], "real") == ["q00real", "q01real"] and not script.scores
    with pytest.raises(ValueError, match="'scripted' gives no log-probabilities"):
        script.score(rows, "real", options_of(rows))
    scored = ScriptedResponder(lambda row, condition: "", lambda row, condition, texts: [-1.0] * len(texts), "mine")
    assert scored.scores and scored.name == "mine"
    assert scored.score(rows[:2], "real", [["yes", "no"], []]) == [[-1.0, -1.0], []]


def test_the_answer_is_never_shown(rows):
    assert [m["role"] for m in question_messages(rows[0])] == ["user"]


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("condition", ["real", "flat", "zero", "mean"])
def test_equal_inputs_are_told_from_others(pair, recordings, rows, tmp_path, condition, cached):
    """Rows that are one to the model have one text; another word, recording or length makes another."""
    model, processor = pair
    stores = [
        FeatureStore(model.model.encoder, processor.feature_extractor, Altered(recordings), "r", tmp_path, zero)
        for zero in (False, True)
    ]
    features, zeros = stores if cached else (None, None)
    responder = ModelResponder(*pair, recordings, features, zeros=zeros, training_records=recordings)
    row = {**rows[1], "ecgs": ["r0"]}
    same_length, longer = ({**row, "ecgs": [record]} for record in ("r3", "r1"))
    if condition == "flat":
        row, same_length, longer = (
            {**each, "ecgs": [f"{each['ecgs'][0]}~flat"]} for each in (row, same_length, longer)
        )
    other_words = {**row, "messages": [user(1, "What is it not?")]}
    with torch.inference_mode():
        texts = responder.inputs([row, dict(row), same_length, longer, other_words], condition)
        assert responder.inputs([row], condition) == texts[:1]
    assert texts[0] == texts[1] and len({texts[0], texts[3], texts[4]}) == 3
    alike = condition == "zero" or condition == "mean" or (condition == "flat" and cached)
    assert (texts[0] == texts[2]) == (alike and cached)
    scores = responder.score([row, same_length], condition, [["yes"]] * 2)
    assert texts[0] != texts[2] or scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_a_memory_changes_no_answer(pair, recordings, rows):
    plain = ModelResponder(*pair, recordings, training_records=recordings, max_new_tokens=8)
    memory, options = remembering(plain), options_of(rows)
    for condition in ("real", "zero", "mean", "real"):
        twice = [*rows, *rows[::-1]]
        assert memory.ask(twice, condition) == plain.ask(twice, condition)
        scores = memory.score(twice, condition, [*options, *options[::-1]])
        assert flat(scores) == pytest.approx(flat(plain.score(twice, condition, [*options, *options[::-1]])), abs=1e-4)
