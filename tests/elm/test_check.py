"""A folder that is no saved model, or not a whole one: what it is, and which one to give, in every command."""

import os
import shutil
from pathlib import Path

import pytest

import elm
from elm import ask as asking
from elm.inputs.features import weights_hash
from elm.saved import publish
from elm.saved.folder import resolve, save
from elm.saved.run import SavedRun
from eval import ablation
from serve import app
from serve.serving.options import options
from serve.serving.settings import Settings

TRAINING = {"language_model": "tiny", "dataset_name": "x", "notes": [], "train_condition": "real"}


@pytest.fixture
def run(make_pair, tmp_path):
    """A finished run: its model, checkpoints of both stages, adapter, audit, examples."""
    folder = save(*make_pair(), tmp_path / "out" / "run", training=TRAINING)
    for name in ("align/checkpoint-2", "sft/checkpoint-4", "sft/checkpoint-6"):
        checkpoint = folder / "checkpoints" / name
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text("{}")
    # A checkpoint of the align stage holds all that a model needs; nothing tells it from one but the trainer's state.
    for file in ("config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "chat_template.jinja"):
        shutil.copy(folder / file, folder / "checkpoints/align/checkpoint-2")
    (folder / "checkpoints/sft/checkpoint-6/adapter_config.json").write_text("{}")
    (folder / "checkpoints/run.json").write_text("{}")
    for name in ("adapter", "ablation", "examples"):
        (folder / name).mkdir()
    (folder / "adapter/adapter_config.json").write_text("{}")
    (folder / "ablation/report.json").write_text("{}")
    (folder / "examples/s1.hea").write_text("")
    return folder


PARTS = [
    ("checkpoints/align/checkpoint-2", "it is a checkpoint of the run in {run}, whose model is in that folder: give"),
    ("checkpoints/sft/checkpoint-4", "it is a checkpoint of the run in {run}, whose model is in that folder"),
    ("checkpoints/sft/checkpoint-6", "it is a checkpoint of the run in {run}, whose model is in that folder"),
    ("checkpoints/sft", "it holds checkpoints of the run in {run}, whose model is in that folder: give {run}"),
    ("checkpoints", "it holds checkpoints of the run in {run}, whose model is in that folder: give {run}"),
    ("adapter", "it holds LoRA weights; the model with these merged is in {run}: give that folder"),
    ("ablation", "it is a part of the model in {run}: give that folder"),
    ("examples", "it is a part of the model in {run}: give that folder"),
    ("model.safetensors", "it is a file of the one in {run}: give that folder"),
    ("config.json", "it is a file of the one in {run}: give that folder"),
    ("examples/s1.hea", "it is a file"),
]  # fmt: skip


@pytest.mark.parametrize(("part", "what"), PARTS)
def test_a_part_says_which_folder_is_meant(run, part, what):
    message = f"{run / part} is no saved model: {what.format(run=run)}"
    for read in (elm.load, resolve, lambda path: SavedRun(path).folder):
        with pytest.raises(FileNotFoundError) as error:
            read(run / part)
        assert str(error.value).startswith(message)


def test_it_is_named_in_the_words_that_were_given(run, monkeypatch):
    monkeypatch.chdir(run.parent.parent)
    for given in ("out/run/checkpoints/align/checkpoint-2", "out/run/checkpoints/align/checkpoint-2/"):
        with pytest.raises(FileNotFoundError, match="^out/run/.* is no saved model: .* give out/run$"):
            elm.load(given)
    monkeypatch.chdir(run / "checkpoints" / "sft" / "checkpoint-4")
    with pytest.raises(FileNotFoundError, match=f"^. is no saved model: .* give {run}$"):
        elm.load(".")
    (run.parent / "latest").symlink_to("run/checkpoints/sft/checkpoint-6")
    with pytest.raises(FileNotFoundError, match=f"latest is no saved model: it is a checkpoint of the run in {run}"):
        elm.load(run.parent / "latest")


def test_the_checkpoint_of_an_unfinished_run_says_how_to_finish_it(run):
    (run / "config.json").unlink()
    for part in ("checkpoints/align/checkpoint-2", "checkpoints/sft", "checkpoints"):
        with pytest.raises(FileNotFoundError, match=f"the run in {run}, whose training is not finished: start it"):
            elm.load(run / part)
    with pytest.raises(FileNotFoundError, match="it has no config.json .its training was interrupted before the end"):
        elm.load(run)


def test_what_was_copied_from_a_run_is_known_too(run, tmp_path):
    """By what is in it: under another name, in another place."""
    shutil.copytree(run / "checkpoints/align/checkpoint-2", tmp_path / "best")
    shutil.copytree(run / "adapter", tmp_path / "lora")
    with pytest.raises(FileNotFoundError, match="best is no saved model: it is a checkpoint of a training: give the"):
        elm.load(tmp_path / "best")
    with pytest.raises(FileNotFoundError, match="lora is no saved model: it holds LoRA weights; .* written into"):
        elm.load(tmp_path / "lora")


def test_what_is_no_adapter_is_named(run):
    with pytest.raises(FileNotFoundError, match="adapter is no adapter/ folder of a saved model: it has no base.json"):
        elm.load(run, adapter=run / "adapter")
    (run / "adapter" / "base.json").write_text('{"weights": ')
    with pytest.raises(ValueError, match="adapter/base.json is damaged"):
        elm.load(run, adapter=run / "adapter")


def test_a_folder_of_models_names_one(run):
    with pytest.raises(FileNotFoundError, match=rf"out is no saved model: .*it holds models: give one .*{run}"):
        elm.load(run.parent)


def test_a_model_may_be_called_anything(run, tmp_path):
    """A folder that people keep below `checkpoints`, or call like a trainer's, is a model all the same."""
    for name in ("checkpoints/mine", "checkpoint-7", "adapter"):
        folder = tmp_path / name
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints", "adapter", "ablation", "examples"))
        assert weights_hash(elm.load(folder)[0]) == weights_hash(elm.load(run)[0])


@pytest.mark.parametrize("part", ["checkpoints/align/checkpoint-2", "adapter"])
def test_every_command_says_it(run, part, capsys):
    path = run / part
    for main, argv in (
        (asking.main, [path, "no-record", "Is it?"]),
        (ablation.main, ["--model", path]),
        (app.main, ["--model", path]),
    ):
        if main is asking.main:  # it reads the recording first
            argv[1] = Path(__file__).parents[1] / "golden/saved_run/examples/s00600-1"
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in argv])
        error = capsys.readouterr().err
        assert end.value.code == 2 and f"{path} is no saved model: it " in error and str(run) in error
    with pytest.raises(FileNotFoundError, match="is no saved model: it (is a checkpoint|holds LoRA weights)"):
        options(Settings(model=str(path)), on_cpu=False)
    with pytest.raises(FileNotFoundError, match="is no saved model: it (is a checkpoint|holds LoRA weights)"):
        publish.contents(path, "owner/model")
    assert not (path / "ablation").exists()


# --- files that are missing or cut off --------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["model.safetensors", "processor_config.json", "tokenizer.json"])
def test_a_missing_file_is_named(run, file):
    (run / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"run is no saved model: it has no {file}"):
        elm.load(run)


@pytest.mark.parametrize("size", [0, 4, 3000])
def test_weights_that_are_cut_off_are_named(run, size):
    os.truncate(run / "model.safetensors", size)
    with pytest.raises(ValueError, match="the weights in .*run/model.safetensors are damaged"):
        elm.load(run)
    with pytest.raises(ValueError, match="the weights in .*run/model.safetensors are damaged"):
        options(Settings(model=str(run)), on_cpu=False)


@pytest.mark.parametrize("file", ["config.json", "processor_config.json", "tokenizer.json", "training.json"])
@pytest.mark.parametrize("content", ["", "half", "[]"])
def test_a_damaged_file_of_settings_is_named(run, file, content):
    whole = (run / file).read_text()
    (run / file).write_text(content.replace("half", whole[: len(whole) // 2]))
    with pytest.raises(ValueError, match=f"run/{file} is damaged, it "):
        elm.load(run)


def test_the_missing_and_the_damaged_shard_is_named(make_pair, tmp_path, monkeypatch):
    model, processor = make_pair()
    whole = model.save_pretrained
    monkeypatch.setattr(model, "save_pretrained", lambda folder: whole(folder, max_shard_size="20KB"))
    folder = save(model, processor, tmp_path / "model", training=TRAINING)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1 and weights_hash(elm.load(folder)[0]) == weights_hash(model)
    os.truncate(shards[1], shards[1].stat().st_size - 1)
    with pytest.raises(ValueError, match=f"the weights in .*{shards[1].name} are damaged"):
        elm.load(folder)
    shards[0].unlink()
    with pytest.raises(FileNotFoundError, match=f"it has no {shards[0].name}, which holds weights"):
        elm.load(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="model.safetensors.index.json is damaged: it names no files of weights"):
        elm.load(folder)


# --- how a folder may be named ----------------------------------------------------------------------------------------


def test_a_folder_is_found_by_every_name_of_it(run, monkeypatch):
    monkeypatch.setenv("HOME", str(run.parent))
    monkeypatch.chdir(run.parent.parent)
    (run.parent / "link").symlink_to("run", target_is_directory=True)
    want = weights_hash(elm.load(run)[0])
    for name in ("~/run", "~/link/", "out/run", "out/run/", "./out/../out/run//", "out/link"):
        assert weights_hash(elm.load(name)[0]) == want and SavedRun(name).training["dataset_name"] == "x"
        assert SavedRun(name).digest == SavedRun(run).digest


def test_loading_writes_nothing(run):
    """So that a folder which nobody may write to can be asked."""
    for path in (run, *run.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*"))}
    saved = SavedRun(run)
    assert saved.model is not None and saved.processor is not None and saved.digest
    assert {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*"))} == before
    for path in (run, *run.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
