"""The encoders that are made on the spot: what they are, that they are made once, and that they learn."""

import numpy as np
import pytest
import torch

from data.conversations import load_questions
from elm import tiny
from encoders import load_encoder


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    torch.set_num_threads(1)
    cache = tmp_path_factory.mktemp("cohort")
    return load_questions(
        "synthetic", patients=150, held_out_patients=40, questions=4, held_out_questions=2, cache=cache
    )


@pytest.mark.parametrize(("kind", "model_type"), [("tiny", "ecg_melp"), ("tiny-cnn", "ecg_cnn")])
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


def test_the_cnn_tells_rhythms_apart_after_seconds(questions, tmp_path):
    """Of patients it has not seen: it learned from reports what a question will ask."""
    encoder, extractor = load_encoder(tiny.encoder(questions, tmp_path, kind="tiny-cnn", steps=60))
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
