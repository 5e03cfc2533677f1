"""What holds for every recipe that pretrains an encoder: resuming, several processes, its configs, what it refuses."""

import json
import shutil

import pytest
import yaml

from elm.saved.run import DEV_NOTE
from elm.training import dev
from elm.training.checkpoints import newest_whole_checkpoint
from encoders import load_encoder, new_encoder
from encoders.melp.files import load_pretraining
from helpers.pretraining import SIDE_ARGS, STAGES, metrics, same_weights
from helpers.processes import REPO, in_two_processes, killed_while_saving

CONFIGS = [(name, config) for name, stage in STAGES.items() for config in stage.configs]


def check_the_same(folder, other, name):
    """The same losses, weights and numbers; for MELP also the same text side."""
    assert metrics(folder)["losses"] == metrics(other)["losses"]
    assert same_weights(folder / "model.safetensors", other / "model.safetensors")
    assert metrics(folder)["metrics"] == metrics(other)["metrics"]
    if name == "melp":
        assert same_weights(*(each / "pretraining" / "model.safetensors" for each in (folder, other)))
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
            assert (folder / "pretraining" / file).read_bytes() == (other / "pretraining" / file).read_bytes(), file


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_resume_after_kill_gives_the_same_bytes(name, pretrain, tmp_path):
    """The order, masks, dropout and the codebook go on as they would."""
    folder = tmp_path / "killed"
    trained = pretrain.trained(name)
    killed_while_saving(lambda: pretrain(name, folder))
    assert newest_whole_checkpoint(folder / "checkpoints") == str(folder / "checkpoints" / "checkpoint-2")
    assert not (folder / "config.json").exists()
    pretrain(name, folder)
    check_the_same(folder, trained, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sentence", "melp"])
def test_resume_in_a_later_epoch_and_loader_workers_change_nothing(name, pretrain, tmp_path):
    """An epoch is five steps: interrupted in the second, with a worker the second time."""
    settings = {"max_steps": 9, "save_steps": 7}
    pretrain(name, tmp_path / "whole", **settings)
    state = json.loads((tmp_path / "whole" / "checkpoints" / "checkpoint-7" / "trainer_state.json").read_text())
    assert 1 < state["epoch"] < 2
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "checkpoint-9")
    pretrain(name, tmp_path / "parts", **settings, dataloader_num_workers=1)
    assert same_weights(tmp_path / "parts" / "model.safetensors", tmp_path / "whole" / "model.safetensors")


@pytest.mark.parametrize("name", STAGES)
def test_a_finished_run_started_again_trains_no_further(name, pretrain, tmp_path):
    shutil.copytree(pretrain.trained(name), tmp_path / "again")
    pretrain(name, tmp_path / "again")
    check_the_same(tmp_path / "again", pretrain.trained(name), name)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vqhbr", {"learning_rate": 5e-4}),
        ("melp", {"lead_mask": 0.0}),
        ("melp", {"pretraining_args": SIDE_ARGS | {"local_weight": 0.0}}),
    ],
)
def test_another_run_does_not_go_on_from_these_checkpoints(name, changes, pretrain, tmp_path):
    shutil.copytree(pretrain.trained(name) / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(ValueError, match=f"{next(iter(changes))}.*another output_dir"):
        pretrain(name, tmp_path, **changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "close"), [(["vqhbr", "sentence"], 1e-4), (["melp"], 1e-3)], ids=["heartlang", "melp"]
)
def test_two_processes_give_the_losses_of_one(names, close, pretrain, tmp_path):
    """Two batches of two are one of four: words differ in number, the codebook and the contrast see both processes."""
    script = tmp_path / "two.py"
    lines = ["import sys", f"sys.path.insert(0, {str(REPO)!r})"]
    for name in names:
        recipe = STAGES[name].recipe.__name__
        words = pretrain.words(name, tmp_path / name, per_device_train_batch_size=2, **STAGES[name].still)
        lines += [f"import {recipe} as r", f"r.main(*r.parse({words!r}))"]
    script.write_text("\n".join(lines))
    in_two_processes(script)
    for name in names:
        pretrain(name, tmp_path / f"{name}-alone", **STAGES[name].still)
        two, one = metrics(tmp_path / name), metrics(tmp_path / f"{name}-alone")
        assert two["processes"] == 2
        assert two["losses"] == pytest.approx(one["losses"], abs=close)
        for key, number in one["metrics"].items() if name == "melp" else ():
            assert two["metrics"][key]["value"] == pytest.approx(number["value"], abs=1e-2), key


@pytest.mark.slow
@pytest.mark.parametrize(("name", "config"), CONFIGS, ids=[f"{name}-{config.stem}" for name, config in CONFIGS])
def test_every_config_runs_with_dev(name, config, folder_of_dev):
    recipe = STAGES[name].recipe
    flags = ["--config", str(config), *STAGES[name].flags]
    folder = folder_of_dev(lambda: recipe.main(*recipe.parse([*flags, "--dev", "--disable_tqdm", "true"])))
    assert len(metrics(folder)["losses"]) == dev.STEPS and metrics(folder)["notes"] == [DEV_NOTE]
    assert DEV_NOTE in (folder / "README.md").read_text()
    model, extractor = load_encoder(folder)
    if name == "melp":
        model, _, _ = load_pretraining(folder / "pretraining")
        arguments, _ = recipe.parse([*flags, "--use_cpu", "true"])
        wanted, _ = new_encoder("ecg_melp", **arguments.mapping("encoder_args"))
        for key in ("sampling_rate", "seconds", "n_queries_contrast", "n_queries_caption", "output"):
            assert vars(model.encoder.config)[key] == vars(wanted.config)[key], key
    else:
        extractor_args = yaml.safe_load(config.read_text())["extractor_args"]
        assert {key: extractor.to_dict()[key] for key in extractor_args} == extractor_args
    assert sum(weight.numel() for weight in model.parameters()) < 1_000_000


@pytest.mark.parametrize("name", ["vqhbr", "melp"])
def test_a_launcher_that_takes_models_apart_is_refused(name, pretrain, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="recipes/accelerate/multi_gpu.yaml"):
        pretrain(name, tmp_path / "never")
