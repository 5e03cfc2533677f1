"""What is made on the spot: what the encoders are, what the language model reads, and that all are made once."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from data.conversations import load_questions
from data.conversations.rows import answer_text
from elm.training import tiny, tiny_encoder, tiny_llama
from encoders import load_encoder


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    torch.set_num_threads(1)
    cache = tmp_path_factory.mktemp("cohort")
    return load_questions(
        "synthetic", patients=150, held_out_patients=40, questions=4, held_out_questions=2, cache=cache
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "model_type"), [("tiny", "ecg_melp"), ("tiny-heartlang", "ecg_heartlang"), ("tiny-cnn", "ecg_cnn")]
)
def test_a_tiny_encoder_is_made_once_and_the_same_each_time(kind, model_type, questions, tmp_path):
    folder = tiny.encoder(questions, tmp_path / "a", kind=kind, steps=2)
    encoder, extractor = load_encoder(folder)
    assert encoder.config.model_type == model_type
    assert "ECGs and reports of the training split" in encoder.config.pretrained_on
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert tiny.encoder(questions, tmp_path / "a", kind=kind, steps=2) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    again, _ = load_encoder(tiny.encoder(questions, tmp_path / "b", kind=kind, steps=2))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in encoder.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tiny-heartlang", "tiny-cnn"])
def test_it_tells_rhythms_apart_after_seconds(kind, questions, tmp_path):
    """Of patients it has not seen: it learned from reports what a question will ask."""
    encoder, extractor = load_encoder(tiny.encoder(questions, tmp_path, kind=kind, steps=60))
    cohort = questions.source
    held_out = [record for record in cohort.records if cohort.patient_of[record] not in
                {row["patient_ids"][0] for row in questions.train}]  # fmt: skip
    trained = [row["ecgs"][0] for row in questions.reports]
    with torch.no_grad():
        features, of_trained = (
            encoder(**extractor([cohort[r] for r in records])).last_hidden_state.mean(dim=1).double()
            for records in (held_out, trained)
        )
    tachycardia = cohort.present("tachycardia")
    here, there = (
        torch.tensor(tachycardia[[cohort.index(r) for r in records]], dtype=torch.float64)
        for records in (held_out, trained)
    )
    mean, spread = of_trained.mean(0), of_trained.std(0) + 1e-6
    x = torch.cat([(of_trained - mean) / spread, torch.ones(len(trained), 1)], dim=1)
    weights = torch.linalg.solve(x.T @ x + 30 * torch.eye(x.shape[1], dtype=torch.float64), x.T @ (2 * there - 1))
    told = torch.cat([(features - mean) / spread, torch.ones(len(held_out), 1)], dim=1) @ weights
    positive, negative = told[here > 0].numpy(), told[here == 0].numpy()
    assert len(positive) >= 20
    area = float(np.mean(positive[:, None] > negative[None]))
    assert area > 0.8, area


def test_heartlang_learns_from_short_and_flat_recordings_too(questions, tmp_path):
    """A recording of a second, one without a beat and one without any signal stand beside an ordinary one."""
    record = questions.source[questions.reports[0]["ecgs"][0]]
    flat = dataclasses.replace(record, signal=np.zeros_like(record.signal))
    pause = dataclasses.replace(record, signal=np.tile(np.linspace(0, 0.1, record.signal.shape[1]), (12, 1)))
    reader = tiny_encoder.ENCODERS["tiny-heartlang"](40)
    batch = reader.extractor([record, record.crop(2.0, 1.0), pause, flat])
    inputs = {name: batch[name] for name in reader.encoder.ecg_inputs}
    loss = reader.loss(inputs, torch.ones(4, 40))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in reader.parameters() if p.grad is not None)
    out = reader.encoder(**inputs)
    assert out.last_hidden_state.shape == (4, 12, 64) and torch.isfinite(out.last_hidden_state).all()
    assert torch.equal(out.mask, batch["token_mask"]) and out.mask[0].all()
    broken = dataclasses.replace(record, signal=np.where(np.arange(record.signal.shape[1]) == 7, np.nan, record.signal))
    with pytest.raises(ValueError, match=f"record {record.record_id!r} has samples that are not finite"):
        reader.extractor([record, broken])


def test_each_lead_answers_for_its_share_and_cls_for_all_words():
    """Else all leads would become copies of one vector."""
    torch.manual_seed(0)
    reader = tiny_encoder.ENCODERS["tiny-heartlang"](24)
    assert reader.owner.tolist() == [lead for lead in range(12) for _ in range(2)]
    words = torch.randn(2, 120, 96)
    inputs = {
        "words": words, "in_chan": torch.arange(1, 13).repeat_interleave(10).expand(2, -1),
        "in_time": torch.arange(1, 11).repeat(12).expand(2, -1),
    }  # fmt: skip
    weights = torch.zeros(2, 24)
    losses = []
    for word in range(24):
        held = weights.clone()
        held[:, word] = 1
        losses.append(reader.loss(inputs, held))
    out = reader.encoder(**inputs)
    expected = []
    for word in range(24):
        of_lead = out.last_hidden_state[:, word // 2] @ reader.heads[0].weight[word] + reader.heads[0].bias[word]
        expected.append(of_lead + 0.3 * reader.heads[1](out.probe)[:, word])
    # Cross-entropy with one word more is less by that word's logit, over the number of words.
    base = reader.loss(inputs, weights)
    torch.testing.assert_close(torch.stack(losses), base - torch.stack(expected).mean(dim=1) / 24, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    cache = tmp_path_factory.mktemp("pairs")
    return load_questions("synthetic", patients=60, held_out_patients=10, questions=8, pairs=60, cache=cache)


def test_rows_of_the_curriculum_are_true_and_of_training_patients(pairs):
    """Reports stand where recordings would, and what is answered is what is right about them."""
    curriculum = tiny_llama.Curriculum(pairs, np.random.default_rng(0))
    right = {(tuple(row["ecgs"]), row["question"]): answer_text(row["answer"]) for row in pairs.train}
    reports = {row["ecgs"][0]: tiny_llama.report_of(row) for row in pairs.reports}
    requests = {row["question"] for row in pairs.reports}
    sizes, asks = Counter(), Counter()
    for _ in range(400):
        ecgs, some = curriculum.draw(two=0.5)
        sizes[len(ecgs)] += 1
        assert len(some) <= tiny_llama.QUESTIONS + 1 and len(set(some)) == len(some)
        for question, answer in some:
            asks[question in requests] += 1
            assert answer == (reports[ecgs[0]] if question in requests else right[tuple(ecgs), question])
    assert 150 < sizes[2] < 250 and asks[True] > 50
    assert all(len(curriculum.draw(two=0.0)[0]) == 1 for _ in range(100))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_curriculum_takes_what_questions_there_are(pairs, count):
    """Of a corpus without questions about two ECGs, or about one, or without any."""
    some = dataclasses.replace(pairs, train=[row for row in pairs.train if len(row["ecgs"]) == count])
    curriculum = tiny_llama.Curriculum(some, np.random.default_rng(0))
    sizes = {len(curriculum.draw(two=0.5)[0]) for _ in range(60)}
    assert sizes == ({1, 2} if count == 2 else {1})


def test_questions_of_a_row_have_the_losses_they_have_alone(pairs):
    """Packed behind the same report, none of them reads another."""
    curriculum = tiny_llama.Curriculum(pairs, np.random.default_rng(0))
    tokenizer = tiny_llama.train_tokenizer([curriculum.text(0.5) for _ in range(50)])

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_llama.llama_config(tokenizer)).eval()
    shown, some = next(row for row in iter(lambda: curriculum.pieces(0.0), None) if len(row[1]) > 3)
    with torch.no_grad():
        together, words = tiny_llama.losses(model, [tiny_llama.encode(shown, some, ids)])
        total, tokens = 0.0, 0
        for one in some:
            row = tiny_llama.encode(shown, [one], ids)
            alone, same_words = tiny_llama.losses(model, [row])
            labels = torch.tensor([row["input_ids"]])
            labels[0, [label == -100 for label in row["labels"]]] = -100
            plain = model(torch.tensor([row["input_ids"]]), labels=labels).loss
            torch.testing.assert_close(alone, plain, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(same_words, words, rtol=1e-4, atol=1e-5)
            total, tokens = total + float(alone) * len(ids(one[1])), tokens + len(ids(one[1]))
    assert float(together) == pytest.approx(total / tokens, rel=1e-4)


def test_parts_are_made_once_in_either_order(questions, tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(tiny_llama, "train", lambda *args: order.append("text"))
    monkeypatch.setattr(tiny_encoder, "train", lambda *args: order.append("ecg"))
    first = tiny.parts("tiny", "tiny-cnn", questions, tmp_path / "a")
    assert (
        order == ["ecg", "text"] and tiny.parts("tiny", "tiny-cnn", questions, tmp_path / "a", text_first=True) == first
    )
    second = tiny.parts("tiny", "tiny-cnn", questions, tmp_path / "b", text_first=True)
    assert order == ["ecg", "text", "text", "ecg"] and [Path(p).name for p in second] == [Path(p).name for p in first]
    assert tiny.parts("some/llama", "some/encoder", questions, tmp_path) == ("some/llama", "some/encoder")
    assert len(order) == 4
