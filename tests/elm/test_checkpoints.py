"""Which checkpoints a run can go on from: what is cut off, missing or of another name is passed over, and named."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from elm.training.checkpoints import KeepNewest, fault_of, newest_whole_checkpoint, numbered

FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@pytest.fixture
def write(tmp_path):
    """A checkpoint as a trainer leaves it, of a run of nine steps."""

    def write(steps, name=None, most=9):
        folder = tmp_path / (name or f"checkpoint-{steps}")
        folder.mkdir()
        save_file({"lora": torch.arange(600.0)}, folder / "adapter_model.safetensors")
        for file in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
            torch.save({"numbers": torch.arange(300.0)}, folder / file)
        (folder / "adapter_config.json").write_text('{"r": 4}')
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": steps, "max_steps": most}))
        return folder

    return write


def half(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


def zeros(file):
    """As a file system may leave what was not yet on the disk."""
    file.write_bytes(bytes(file.stat().st_size))


def missing(file):
    file.unlink()


@pytest.mark.parametrize("damage", [half, empty, zeros, missing], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_the_one_before_is_taken_and_the_damaged_file_is_named(name, damage, write, tmp_path, caplog):
    before, newest = write(3), write(6)
    assert newest_whole_checkpoint(tmp_path) == str(newest)
    damage(newest / name)
    assert newest_whole_checkpoint(tmp_path) == str(before)
    (message,) = caplog.messages
    assert f"{newest} was not written to its end, or is damaged: " in message and name.replace(".pth", "") in message


@pytest.mark.parametrize("damage", [half, empty, zeros], ids=lambda damage: damage.__name__)
def test_the_adapters_settings_are_read_and_must_be_whole(damage, write):
    folder = write(6)
    damage(folder / "adapter_config.json")
    assert fault_of(folder) == "adapter_config.json is cut off or damaged"


def test_what_is_not_read_does_not_count(write):
    folder = write(6)
    half(folder / "training_args.bin")
    (folder / "README.md").write_text("")
    assert fault_of(folder) is None


def test_of_a_finished_stage_weights_and_state_are_enough(write):
    """To make room, optimizers are deleted."""
    folder = write(9)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).unlink()
    assert fault_of(folder) is None
    half(folder / "adapter_model.safetensors")
    assert fault_of(folder) == "adapter_model.safetensors is cut off or damaged"


def test_where_none_is_left_it_is_said_that_the_run_starts_over(write, tmp_path, caplog):
    half(write(3) / "optimizer.pt")
    missing(write(6) / "scheduler.pt")
    assert newest_whole_checkpoint(tmp_path) is None
    assert [("checkpoint-6" in message, "checkpoint-3" in message) for message in caplog.messages[:2]] == [
        (True, False), (False, True)
    ]  # fmt: skip
    assert caplog.messages[2] == f"there is no whole checkpoint left in {tmp_path}: this part of the run starts over"


def test_an_empty_folder_is_nothing_to_speak_of(tmp_path, caplog):
    assert newest_whole_checkpoint(tmp_path) is None and newest_whole_checkpoint(tmp_path / "none") is None
    assert not caplog.messages


def test_other_names_are_no_checkpoints(write, tmp_path, caplog):
    whole = write(3)
    for name in ("checkpoint-old", "checkpoint-12-backup", "checkpoint-", "checkpoint-6 (copy)", "old-checkpoint-7"):
        write(6, name)
    (tmp_path / "checkpoint-8").write_text("a file")
    assert numbered(tmp_path) == [whole] and newest_whole_checkpoint(tmp_path) == str(whole)
    assert not caplog.messages


def test_steps_are_numbers(write, tmp_path):
    assert numbered(tmp_path) == [] and write(9) and write(10) and write(100)
    assert [path.name for path in numbered(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]


def test_a_link_into_a_store_is_a_checkpoint(write, tmp_path):
    (tmp_path / "store").mkdir()
    write(6).rename(tmp_path / "store" / "six")
    (tmp_path / "checkpoint-6").symlink_to(tmp_path / "store" / "six")
    assert newest_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")


def test_every_shard_of_an_index_is_there_and_whole(write):
    folder = write(6)
    missing(folder / "adapter_model.safetensors")
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for shard in shards:
        save_file({shard[:11]: torch.arange(500.0)}, folder / shard)
    index = {"weight_map": {shard[:11]: shard for shard in shards}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert fault_of(folder) is None
    half(folder / shards[1])
    assert fault_of(folder) == f"{shards[1]} is cut off or damaged"
    missing(folder / shards[1])
    assert fault_of(folder) == f"model.safetensors.index.json is cut off or damaged (there is no {shards[1]})"


def test_random_numbers_of_every_process_must_be_whole(write):
    folder = write(6)
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    torch.save({"cpu": torch.arange(100)}, folder / "rng_state_1.pth")
    assert fault_of(folder) is None
    empty(folder / "rng_state_1.pth")
    assert fault_of(folder) == "rng_state_1.pth is cut off or damaged"


def test_what_fsdp_and_deepspeed_write_is_a_checkpoint(write):
    folder = write(6)
    for name in ("adapter_model.safetensors", "optimizer.pt"):
        missing(folder / name)
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        (folder / name).mkdir()
        (folder / name / "__0_0.distcp").write_bytes(b"shard")
    assert fault_of(folder) is None
    empty(folder / "optimizer_0" / "__0_0.distcp")
    assert fault_of(folder) == "optimizer_0/__0_0.distcp is cut off or damaged"
    deepspeed = write(3)
    for name in ("adapter_model.safetensors", "optimizer.pt"):
        missing(deepspeed / name)
    (deepspeed / "global_step3").mkdir()
    torch.save({"a": torch.zeros(9)}, deepspeed / "global_step3" / "mp_rank_00_model_states.pt")
    assert fault_of(deepspeed) is None
    half(deepspeed / "global_step3" / "mp_rank_00_model_states.pt")
    assert fault_of(deepspeed) == "global_step3/mp_rank_00_model_states.pt is cut off or damaged"


def test_a_file_that_may_not_be_read_is_no_damaged_one(write, monkeypatch):
    """To start over would throw away what is there."""
    folder = write(6)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(folder / "optimizer.pt"))

    monkeypatch.setattr("elm.training.checkpoints.zipfile.ZipFile", refuse)
    with pytest.raises(PermissionError, match=r"optimizer\.pt"):
        fault_of(folder)


@pytest.mark.parametrize("content", ["[]", '{"max_steps": 9}', '{"global_step": null, "max_steps": 9}', "nonsense"])
def test_a_state_that_says_no_steps_is_damaged(content, write):
    folder = write(6)
    (folder / "trainer_state.json").write_text(content)
    assert fault_of(folder) == "trainer_state.json cannot be read"


def test_copies_are_not_deleted_and_what_is_to_be_written_again_is_not_counted(write, tmp_path):
    """Six steps were damaged: the run is at five again."""
    for steps in (2, 3, 4, 5, 6):
        write(steps)
    write(1, "checkpoint-old"), write(1, "checkpoint-1-backup")
    args, state = TrainingArguments(str(tmp_path), use_cpu=True), TrainerState(global_step=5)
    KeepNewest(2).on_save(args, state, TrainerControl())
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint-4", "checkpoint-5", "checkpoint-6", "checkpoint-old", "checkpoint-1-backup"
    }  # fmt: skip
    state.global_step, state.best_model_checkpoint = 6, str(tmp_path / "checkpoint-4")
    KeepNewest(1).on_save(args, state, TrainerControl())
    assert [path.name for path in numbered(tmp_path)] == ["checkpoint-4", "checkpoint-6"]


def test_a_word_is_a_warning(write, tmp_path, caplog):
    half(write(6) / "optimizer.pt")
    newest_whole_checkpoint(tmp_path)
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
