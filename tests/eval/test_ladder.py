import json
import logging

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from data.conversations.rows import QuestionSet, question_row
from data.ecg import LEADS, Ecg
from elm import ElmConfig, ElmForConditionalGeneration, ElmProcessor
from elm.inputs.features import FeatureStore
from elm.training.tiny_llama import train_tokenizer
from encoders.patch import PatchConfig, PatchFeatureExtractor
from eval.answerers.model import ModelResponder
from eval.audit import ladder as ladders
from eval.audit import rungs
from eval.audit.ladder import Finding, LadderSettings, ladder, verify_rows
from eval.scoring.results import RUNGS
from eval.statistics import auroc, auroc_interval

WORDING = {"alpha": "Is there alpha?", "beta": "Does this ECG show beta?", "hum": "Is there hum in this ECG?"}
TRAIN, TEST = 100, 60  # recordings, two of each patient


@pytest.fixture(scope="module")
def questions() -> QuestionSet:
    """Three findings that are there or not in each recording, each a shift of one lead over part of the time."""
    rng = np.random.default_rng(0)
    patient_of = {f"r{i:03d}": f"p{i // 2:02d}" for i in range(TRAIN + TEST)}
    there = dict(zip(patient_of, rng.random((len(patient_of), 3)) < 0.5))
    source = {}
    for i, (record, shifts) in enumerate(there.items()):
        signal = 0.3 * rng.normal(size=(12, 500 if i % 10 == 0 else 1000))  # some are shorter
        for lead, shift in enumerate(shifts):
            signal[lead, 100 * lead : 100 * lead + 300] += 2 * shift - 1
        source[record] = Ecg(signal, 100, LEADS, record_id=record)

    def row(record: str, finding: int, **changes):
        name = list(WORDING)[finding]
        settings = {
            "id": f"{name}/{record}",
            "ecgs": [record],
            "patient_ids": [patient_of[record]],
            "question_type": "single-verify",
            "question": WORDING[name],
            "answer": ["yes" if there[record][finding] else "no"],
            "attribute": name,
            "group": "noise" if name == "hum" else "rhythm",
        }
        return question_row(**settings | changes)

    rows = [row(record, finding) for record in patient_of for finding in range(3)]
    train = [row for row in rows if row["ecgs"][0] < f"r{TRAIN:03d}"]
    train += [row(record, 0, id=f"gone/{record}", attribute="gone") for record in list(patient_of)[:TRAIN]]
    return QuestionSet("tiny", source, "tiny", train, rows[3 * TRAIN :], [], patient_of)


@pytest.fixture(scope="module")
def make_model():
    tokenizer = train_tokenizer([*WORDING.values(), "yes no"], vocab_size=300)

    def make(no_projector: bool = False):
        torch.manual_seed(0)
        text = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, initializer_range=0.3, tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        encoder = PatchConfig(patch_size=100, hidden_size=24)  # 10 tokens of one second
        config = ElmConfig(
            text_config=text, encoder_config=encoder, ecg_token_id=tokenizer.convert_tokens_to_ids("<ecg>")
        )
        model = ElmForConditionalGeneration(config).eval()
        with torch.no_grad():
            for weight in model.model.projector.parameters():
                weight.mul_(0) if no_projector else weight.add_(0.3 * torch.randn_like(weight))
        return model, ElmProcessor(PatchFeatureExtractor.from_config(encoder), tokenizer)

    return make


@pytest.fixture(scope="module")
def store(make_model, questions, tmp_path_factory) -> FeatureStore:
    model, processor = make_model()
    cache = tmp_path_factory.mktemp("features")
    return FeatureStore(model.model.encoder, processor.feature_extractor, questions.source, "tiny", cache)


@pytest.fixture(scope="module")
def answers(questions) -> dict[str, float]:
    """Of a model that sees what is there through noise."""
    rng = np.random.default_rng(1)
    return {row["id"]: float(rng.normal(1.5 if row["answer"] == ["yes"] else 0)) for row in questions.test}


def responder_of(pair, questions, store, batch_size=64):
    return ModelResponder(*pair, questions.source, store, batch_size=batch_size)


@pytest.fixture(scope="module")
def climb(make_model, store, questions, answers):
    def climb(no_projector: bool = False, **changes):
        given = {"questions": questions, "rows": questions.test, "answers": answers} | changes
        settings = LadderSettings(draws=200, max_train=given.pop("max_train", 400))
        found = ladder(responder_of(make_model(no_projector), questions, store), settings=settings, **given)
        return found and found.to_json()

    return climb


@pytest.fixture(scope="module")
def found(climb):
    return climb()


def said(make_model, store, rows, no_projector):
    """log p(yes) - log p(no) of the first token, as `generate` finds it."""
    model, processor = make_model(no_projector)
    yes, no = (processor.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("yes", "no"))
    values = {}
    for row in rows:
        cached = store.get(row["ecgs"])
        inputs = processor(row["messages"][:1], ecg_mask=cached["ecg_mask"], add_generation_prompt=True)
        told = model.generate(
            **inputs, **cached, do_sample=False, max_new_tokens=1, output_logits=True, return_dict_in_generate=True
        )
        values[row["id"]] = float(told.logits[0][0, yes] - told.logits[0][0, no])
    return values


def test_a_planted_signal_is_found_on_its_way(found, questions, answers):
    told = {rung: of["auroc"] for rung, of in found["rungs"].items()}
    assert list(told) == list(RUNGS)
    assert told["encoder"] > 0.95 and told["projected"] > 0.9 and told["state"] > 0.65
    by_hand = [
        auroc([answers[row["id"]] for row in asked], [row["answer"] == ["yes"] for row in asked])
        for asked in ([row for row in questions.test if row["attribute"] == name] for name in ("alpha", "beta"))
    ]
    assert told["answer"] == pytest.approx(np.mean(by_hand), abs=1e-6)
    assert found["fraction_read"] == pytest.approx((told["answer"] - 0.5) / (told["encoder"] - 0.5), abs=1e-4)


@pytest.mark.slow
def test_what_no_token_carries_is_lost_at_the_projector(climb, make_model, store, questions):
    blind = climb(no_projector=True, answers=said(make_model, store, questions.test, no_projector=True))
    told = {rung: of["auroc"] for rung, of in blind["rungs"].items()}
    assert told["encoder"] > 0.95
    assert told["projected"] == 0.5
    assert [told["state"], told["answer"]] == pytest.approx([0.5, 0.5], abs=0.12)
    assert blind["rungs"]["projected"]["change_interval"][1] < -0.4
    assert blind["fraction_read"] == pytest.approx(0, abs=0.25)


def test_the_state_is_the_one_the_answer_is_made_from(make_model, store, questions):
    model, processor = make_model()
    rows = questions.test[:9]  # of several lengths: there is padding
    states = rungs.states(responder_of((model, processor), questions, store, batch_size=4), rows)
    yes, no = (processor.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("yes", "no"))
    logits = model.lm_head(torch.from_numpy(states)).detach()
    expected = said(make_model, store, rows, no_projector=False)
    assert (logits[:, yes] - logits[:, no]).tolist() == pytest.approx([expected[row["id"]] for row in rows], abs=1e-3)


def test_noise_is_shown_and_kept_out_of_the_headline(found):
    findings = found["findings"]
    assert [name for name, of in findings.items() if of["headline"]] == ["alpha", "beta"]
    assert findings["hum"]["group"] == "noise" and findings["hum"]["n"] == TEST
    for rung, of in found["rungs"].items():
        assert of["auroc"] == pytest.approx(np.mean([findings[n]["auroc"][rung] for n in ("alpha", "beta")]), abs=2e-6)
    assert (found["n"], found["patients"], found["findings_in_headline"]) == (2 * TEST, TEST // 2, 2)


def test_a_finding_nobody_held_out_is_asked_about_is_left_out(found):
    assert "gone" not in found["findings"]
    assert found["notes"] == ["Left out, held out fewer than 10 patients with one of the answers: gone."]


def test_questions_that_differ_in_more_than_their_wording_are_findings_of_their_own(climb, questions, answers):
    def split(rows):
        return [
            row | {"template_id": 1 + (i % 6 < 3)} if row["attribute"] == "alpha" else row for i, row in enumerate(rows)
        ]

    rows, train = split(questions.test), split(questions.train)
    apart = climb(questions=QuestionSet("t", questions.source, "t", train, rows, [], {}), rows=rows)
    assert sorted(apart["findings"]) == ["alpha: Is there alpha?", "beta", "hum"]


def test_intervals_hold_their_estimates(found):
    pairs = [(of["auroc"], of["interval"]) for of in found["rungs"].values()]
    pairs += [(of["change"], of["change_interval"]) for of in list(found["rungs"].values())[1:]]
    pairs.append((found["fraction_read"], found["fraction_interval"]))
    for value, (low, high) in pairs:
        assert low - 1e-6 <= value <= high + 1e-6
    json.dumps(found, allow_nan=False)


def asked(name, positive, clusters):
    rows = [
        question_row(
            id=f"{name}/{i}", ecgs=["e"], patient_ids=[who], question_type="single-verify", question="?",
            answer=["yes" if yes else "no"],
        ) for i, (yes, who) in enumerate(zip(positive, clusters))
    ]  # fmt: skip
    return Finding(name, "rhythm", [], rows)


def test_intervals_are_those_of_resampled_patients_and_findings_share_them():
    rng = np.random.default_rng(2)
    clusters = [f"p{i:02d}" for i in rng.integers(50, size=150)]
    positive = rng.random(150) < 0.4
    scores = rng.normal(size=(150, 4)) + positive[:, None] * [2, 1.5, 1, 0.5]
    numbers = ladders._numbers([asked("a", positive, clusters)], [scores], LadderSettings(draws=2000)).to_json()
    for k, rung in enumerate(RUNGS):
        expected = auroc_interval(scores[:, k], positive, clusters)
        assert numbers["rungs"][rung]["interval"] == pytest.approx(list(expected), abs=0.01)
    # The same patients asked the same five times over say no more about patients than once.
    five = ladders._numbers(
        [asked(name, positive, clusters) for name in "abcde"], [scores] * 5, LadderSettings()
    ).to_json()
    for rung in RUNGS:
        assert five["rungs"][rung]["interval"] == pytest.approx(numbers["rungs"][rung]["interval"], abs=1e-6)


def test_without_a_second_patient_there_is_no_interval_and_no_fraction():
    positive = np.arange(30) % 2 == 0
    scores = np.random.default_rng(3).normal(size=(30, 4)) + positive[:, None]
    numbers = ladders._numbers([asked("a", positive, ["p"] * 30)], [scores], LadderSettings(draws=100)).to_json()
    assert numbers["rungs"]["encoder"]["interval"] is None and numbers["fraction_read"] is None


def test_where_the_encoder_tells_nothing_there_is_no_fraction(climb, questions):
    rng = np.random.default_rng(4)

    def coin(rows):
        return [row | {"answer": [str(rng.choice(["yes", "no"]))]} for row in rows]

    rows, train = coin(questions.test), coin(questions.train)
    found = climb(questions=QuestionSet("t", questions.source, "t", train, rows, [], {}), rows=rows)
    assert found["fraction_read"] is None and "nothing to be read" in found["notes"][-1]


def test_the_order_of_rows_says_nothing(climb, found, questions):
    def mixed(rows):
        return [rows[i] for i in np.random.default_rng(5).permutation(len(rows))]

    train = QuestionSet("tiny", questions.source, "tiny", mixed(questions.train), [], [], {})
    assert climb(questions=train, rows=mixed(questions.test)) == found


def test_probes_are_fitted_to_as_many_questions_as_allowed_of_both_answers(questions):
    rows = [row for row in verify_rows(questions.train) if row["attribute"] == "alpha"]
    drawn = ladders._drawn(rows, 40, seed=0)
    assert len({row["id"] for row in drawn}) == 40 and sum(ladders._yes(drawn)) == 20
    few = [row for row in rows if row["answer"] == ["no"]] + [row for row in rows if row["answer"] == ["yes"]][:3]
    drawn = ladders._drawn(few, 20, seed=0)
    assert len(drawn) == 20 and sum(ladders._yes(drawn)) == 3


def test_wide_tokens_become_their_mean_and_deviation_at_both_rungs(climb, found, monkeypatch):
    assert found["representation"] == "tokens: one after the other (240 and 320 numbers)"
    monkeypatch.setattr(rungs, "WIDEST", 300)
    pooled = climb()
    assert pooled["representation"] == "tokens: their mean and standard deviation (48 and 64 numbers)"
    assert pooled["rungs"]["encoder"]["auroc"] > 0.8


def test_tokens_without_signal_do_not_count():
    rng = np.random.default_rng(6)
    tokens = torch.from_numpy(rng.normal(size=(3, 5, 4)))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 1]], dtype=torch.bool)
    tokens[~mask] = torch.nan
    flat, pooled = (rungs.row_of(tokens, mask, flat) for flat in (True, False))
    for i in range(3):
        kept = tokens[i][mask[i]].numpy()
        assert pooled[i].numpy() == pytest.approx(np.concatenate([kept.mean(axis=0), kept.std(axis=0)]))
        assert flat[i].reshape(5, 4)[mask[i]].numpy() == pytest.approx(kept)
    assert not flat.reshape(3, 5, 4)[~mask].any()


def test_only_yes_no_questions_about_one_ecg_are_looked_at(questions):
    row = questions.test[0]
    others = [
        row | {"ecgs": ["a", "b"]}, row | {"control": "voltage"}, row | {"answer": ["not sure"]},
        row | {"answer": ["no", "yes"]},
    ]  # fmt: skip
    assert verify_rows([*others, row]) == [row]


@pytest.mark.parametrize("value", [None, np.nan, -np.inf])
def test_an_answer_that_is_missing_names_its_row(climb, questions, answers, value):
    row = sorted(row["id"] for row in questions.test)[0]
    given = {**answers, row: value}
    if value is None:
        del given[row]
    with pytest.raises(ValueError, match=rf"row {row}: log p\(yes\) - log p\(no\) is .*score the answers"):
        climb(answers=given)


def test_a_patient_on_both_sides_is_named(climb, questions, answers):
    row = questions.train[0]
    with pytest.raises(ValueError, match="patient p00 is in training and held out"):
        climb(rows=[*questions.test, row], answers={**answers, row["id"]: 0.0})


def test_too_few_training_questions_are_refused(climb):
    with pytest.raises(ValueError, match="max_train must be at least 20, got 19"):
        climb(max_train=19)


def test_without_enough_questions_there_is_no_ladder(climb, questions, caplog):
    with caplog.at_level(logging.WARNING):
        assert climb(rows=questions.test[:12]) is None
    assert "no finding has 10 patients with each answer" in caplog.text
