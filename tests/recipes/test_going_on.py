"""Going on in a folder: from a checkpoint before a damaged one, with the same settings, and alone."""

import json
import multiprocessing
import shutil
from pathlib import Path

import pytest

from data.conversations import load_questions
from elm.training.claim import claim_folder
from helpers.pretraining import metrics, same_weights
from helpers.runs import losses


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "trainer_state.json"])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(name, trained, train, tmp_path, caplog):
    """Of the last one, that is: it was damaged before the model was saved."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "config.json").unlink()
    newest = folder / "checkpoints" / "sft" / "checkpoint-6"
    shutil.copytree(newest, newest.with_name("checkpoint-old"))
    cut(newest / name)
    train(folder)
    said = [message for message in caplog.messages if "sft" in message]
    assert said[0].startswith(f"{newest} was not written to its end, or is damaged: {name} ")
    assert said[1] == f"going on from {newest.with_name('checkpoint-4')}"
    assert losses(folder) == losses(trained)
    assert newest.with_name("checkpoint-old").is_dir()
    record = json.loads((folder / "training.json").read_text())
    assert record["steps"] == {"align": 2, "sft": 6} and record["model"]["lora_dropout"] == 0


@pytest.mark.slow
def test_an_encoder_goes_on_from_the_checkpoint_before_a_damaged_one(pretrain, tmp_path, caplog):
    whole, folder = pretrain.trained("vqhbr"), tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints" / "checkpoint-6")
    newest = folder / "checkpoints" / "checkpoint-4"
    cut(newest / "scheduler.pt")
    pretrain("vqhbr", folder)
    assert f"going on from {folder / 'checkpoints' / 'checkpoint-2'}" in caplog.messages
    assert metrics(folder)["losses"] == metrics(whole)["losses"]
    assert same_weights(folder / "model.safetensors", whole / "model.safetensors")


@pytest.mark.parametrize(
    "change",
    [{"optim": "adafactor"}, {"max_grad_norm": 0.1}, {"neftune_noise_alpha": 5}, {"train_sampling_strategy": "random"},
     {"adam_beta2": 0.95}, {"per_device_train_batch_size": 2}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_finished_run_is_not_taken_for_one_with_other_settings(change, trained, train, tmp_path, monkeypatch):
    """And this is said before the questions are read."""
    shutil.copytree(trained, tmp_path / "again")
    monkeypatch.setattr("recipes.sft_llava.questions_for", lambda _: pytest.fail("the questions were read"))
    with pytest.raises(ValueError, match=rf"{next(iter(change))}.* but now .*another output_dir, or --resume false"):
        train(tmp_path / "again", **change)


def _hold(folder, pipe):
    claim_folder(folder, {}, resume=False)
    pipe.send("held")
    pipe.poll(120)


def test_a_second_run_in_a_folder_is_refused_at_once(train, tmp_path, monkeypatch):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    other = context.Process(target=_hold, args=(tmp_path / "run" / "checkpoints", theirs), daemon=True)
    other.start()
    assert ours.poll(60)
    monkeypatch.setattr("recipes.sft_llava.questions_for", lambda _: pytest.fail("the questions were read"))
    try:
        with pytest.raises(RuntimeError, match=f"another run trains into {tmp_path / 'run'} at this moment"):
            train(tmp_path / "run")
    finally:
        other.kill()
        other.join(60)


def test_fewer_rows_than_a_batch_are_refused_where_none_would_be_trained_on(train, parts, tmp_path):
    questions = load_questions("synthetic", patients=12, held_out_patients=6, questions=4, held_out_questions=2,
                               cache=Path(parts["cache_dir"]))  # fmt: skip
    assert len(questions.train) < 5000
    with pytest.raises(ValueError, match=r"rows to train on, fewer than the 5000 of a batch, .*dataloader_drop_last"):
        train(tmp_path / "run", dataloader_drop_last=True, per_device_train_batch_size=5000)


@pytest.mark.slow
def test_noise_changes_what_is_learned(trained, train, tmp_path):
    """`neftune_noise_alpha` reaches the embeddings of a model with LoRA on it."""
    train(tmp_path / "noisy", neftune_noise_alpha=50)
    assert losses(tmp_path / "noisy") != losses(trained)
