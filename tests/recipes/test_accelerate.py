"""The launcher files say to accelerate what they are for, and a sharded run is the run of one process."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from safetensors.torch import load_file
from trl import ModelConfig, SFTConfig

import elm
from elm.saved.arguments import ElmArguments
from elm.training.settings import check_settings
from helpers.runs import example_of, losses

REPO = Path(__file__).resolve().parents[2]
FILES = sorted((REPO / "recipes" / "accelerate").glob("*.yaml"))


def environment(file):
    """What `accelerate launch --config_file` sets for the processes."""
    args = launch_command_parser().parse_args(["--config_file", str(file), "script.py"])
    args, _, _ = _validate_launch_command(args)
    config = load_config_from_file(str(file))
    args.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config or [])
    prepared = prepare_deepspeed_cmd_env(args)[1] if config.deepspeed_config else prepare_multi_gpu_env(args)
    return {name: value for name, value in prepared.items() if name.startswith(("ACCELERATE_", "FSDP_"))}


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_every_file_starts_several_processes_and_leaves_precision_to_the_recipe(file):
    config = load_config_from_file(str(file))
    assert config.num_processes >= 2 and config.num_machines == 1 and config.mixed_precision == "no"
    wanted = {"fsdp": "FSDP", "deepspeed_zero2": "DEEPSPEED", "deepspeed_zero3": "DEEPSPEED"}
    assert config.distributed_type == wanted.get(file.stem, "MULTI_GPU")
    assert environment(file)["ACCELERATE_MIXED_PRECISION"] == "no"
    head = file.read_text().partition("compute_environment")[0]
    assert f"accelerate launch --config_file recipes/accelerate/{file.name}" in head


def test_fsdp_shards_each_block(monkeypatch):
    for name, value in environment(REPO / "recipes" / "accelerate" / "fsdp.yaml").items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert "SHARDED" in str(plugin.state_dict_type) and not plugin.activation_checkpointing
    assert not plugin.cpu_ram_efficient_loading, "a process that did not load the model could not build it again"


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_stages(stage):
    told = environment(REPO / "recipes" / "accelerate" / f"deepspeed_zero{stage}.yaml")
    assert told["ACCELERATE_USE_DEEPSPEED"] == "true" and told["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == str(stage)
    assert told["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "false", "parts are joined whole"
    assert told["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] == "none"
    assert (told.get("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL") == "true") == (stage == 3)


@pytest.fixture
def sharded(flags):
    """Run the recipe with the launcher file for FSDP, on two CPU processes."""

    def run(folder):
        command = ["-m", "accelerate.commands.launch", "--config_file", REPO / "recipes" / "accelerate" / "fsdp.yaml"]
        done = subprocess.run(
            [sys.executable, *command, Path(__file__).with_name("sharded_on_cpus.py"),
             *flags(folder, per_device_train_batch_size=2)],
            capture_output=True, text=True, cwd=REPO, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture
def two(both, sharded, train):
    """A folder trained by one process, `one`, and by two that shard the model, `two`."""
    if not (both / "two").exists():
        sharded(both / "two")
        train(both / "one")
    return both / "two"


@pytest.mark.slow
def test_a_sharded_run_is_the_run_of_one_process(two):
    one = two.with_name("one")
    assert json.loads((two / "training.json").read_text())["processes"] == 2
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    ours, theirs = load_file(two / "model.safetensors"), load_file(one / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=0)
    model, processor = elm.load(two)
    other, _ = elm.load(one)
    _, inputs = example_of(two, processor)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, other(**inputs).logits, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_sharded_run_resumes(two, sharded, tmp_path):
    folder = tmp_path / "parts"
    shutil.copytree(two, folder)
    (folder / "config.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "sft" / "checkpoint-6")
    sharded(folder)
    assert losses(folder) == losses(two)
    ours, theirs = load_file(folder / "model.safetensors"), load_file(two / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture
def check(tmp_path):
    training_args = SFTConfig(str(tmp_path), use_cpu=True)  # made before a test says DeepSpeed, which it would import

    def check(quantization=None):
        check_settings(ElmArguments(quantization=quantization), training_args, ModelConfig())

    return check


def test_what_cannot_be_sharded_is_refused(check, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ValueError, match="FSDP needs fsdp_version: 2, as in recipes/accelerate/fsdp.yaml"):
        check()
    monkeypatch.setenv("FSDP_VERSION", "2")
    check()
    with pytest.raises(ValueError, match=r"4-bit weights cannot be sharded.*recipes/accelerate/multi_gpu.yaml"):
        check(quantization="nf4")
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="4-bit weights cannot be sharded"):
        check(quantization="nf4")
