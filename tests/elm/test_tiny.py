"""The encoders that are made on the spot: what they are, that they are made once, and that they learn."""

import dataclasses

import numpy as np
import pytest
import torch

from data.conversations import load_questions
from elm.training import tiny
from encoders import load_encoder


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    torch.set_num_threads(1)
    cache = tmp_path_factory.mktemp("cohort")
    return load_questions(
        "synthetic", patients=150, held_out_patients=40, questions=4, held_out_questions=2, cache=cache
    )


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
    reader = tiny.ENCODERS["tiny-heartlang"](40)
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
    reader = tiny.ENCODERS["tiny-heartlang"](24)
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
