"""Whose folder it is: every setting is compared or known not to matter, and one process at a time trains into it."""

import dataclasses
import json
import multiprocessing
import os
import signal

import pytest
from transformers import TrainingArguments
from trl import ModelConfig, SFTConfig

from elm.saved.arguments import ElmArguments
from elm.training.claim import CANNOT_MATTER, claim_folder, release, run_settings
from elm.training.heartlang import HeartLangArguments
from elm.training.melp import MelpArguments
from elm.training.settings import settings_of_a_run
from eval.grids.cells import GridArguments

# Every field of upstream's settings that is compared. One that is new upstream belongs here or in cannot_matter.yaml.
COMPARED = """
    accelerator_config adam_beta1 adam_beta2 adam_epsilon auto_find_batch_size average_tokens_across_devices
    batch_eval_metrics bf16 bf16_full_eval data_seed dataloader_drop_last dataloader_in_order deepspeed do_eval
    do_predict do_train eval_accumulation_steps eval_delay eval_do_concat_batches eval_on_start eval_steps
    eval_strategy eval_use_gather_object fp16 fp16_full_eval full_determinism gradient_checkpointing_kwargs
    greater_is_better ignore_data_skip include_for_metrics label_names label_smoothing_factor learning_rate
    length_column_name liger_kernel_config load_best_model_at_end lr_scheduler_kwargs lr_scheduler_type max_grad_norm
    max_steps metric_for_best_model neftune_noise_alpha num_train_epochs optim optim_args optim_target_modules
    parallelism_config prediction_loss_only remove_unused_columns restore_callback_states_from_checkpoint seed tf32
    torch_compile torch_compile_backend torch_compile_mode train_sampling_strategy use_cache use_liger_kernel
    warmup_steps weight_decay
"""
OF_TRL = """
    assistant_only_loss chat_template_path completion_only_loss dataset_kwargs dataset_num_proc dataset_text_field
    eos_token eval_packing loss_type max_length model_init_kwargs packing packing_strategy pad_to_multiple_of pad_token
    padding_free router_aux_loss_coef shuffle_dataset truncation_mode trust_remote_code
"""
OF_THE_MODEL = """
    attn_implementation bnb_4bit_quant_storage bnb_4bit_quant_type dtype load_in_4bit load_in_8bit lora_alpha
    lora_dropout lora_modules_to_save lora_r lora_target_modules lora_target_parameters lora_task_type
    model_name_or_path model_revision use_bnb_nested_quant use_dora use_rslora
"""


def names_of(*kinds):
    return {each.name for kind in kinds for each in dataclasses.fields(kind) if each.init}


def test_every_field_is_compared_or_known_not_to_matter():
    for kind, compared in (
        (TrainingArguments, COMPARED), (SFTConfig, f"{COMPARED} {OF_TRL}"), (ModelConfig, OF_THE_MODEL)
    ):  # fmt: skip
        fields, compared = names_of(kind), set(compared.split())
        assert not compared & CANNOT_MATTER.keys()
        assert fields - compared - CANNOT_MATTER.keys() == set(), "new fields"
        assert compared - fields == set(), "fields that are gone"
    ours = names_of(SFTConfig, ModelConfig, ElmArguments, GridArguments, MelpArguments, HeartLangArguments)
    assert not CANNOT_MATTER.keys() - ours, "names of no field"


@pytest.fixture
def settings(tmp_path):
    """`settings(optim="sgd")`: what run.json would hold of a run."""

    def of(**changes):
        kinds = {SFTConfig: {"output_dir": str(tmp_path), "use_cpu": True}, ElmArguments: {}, ModelConfig: {}}
        for name, value in changes.items():
            next(given for kind, given in kinds.items() if name in names_of(kind))[name] = value
        training, arguments, model = (kind(**given) for kind, given in kinds.items())
        return settings_of_a_run(arguments, training, model)

    return of


def test_what_is_compared_is_there_and_nothing_else(settings):
    compared = set(f"{COMPARED} {OF_TRL} {OF_THE_MODEL} mixed_precision batch_size".split())
    compared |= names_of(ElmArguments) - CANNOT_MATTER.keys()
    assert settings().keys() == compared


CHANGES = [
    {"optim": "sgd"}, {"max_grad_norm": 0.5}, {"neftune_noise_alpha": 5.0}, {"train_sampling_strategy": "sequential"},
    {"lr_scheduler_kwargs": {"num_cycles": 2}}, {"adam_beta2": 0.95}, {"weight_decay": 0.1}, {"loss_type": "dft"},
    {"dataloader_drop_last": True}, {"bf16": False}, {"seed": 1}, {"lora_target_modules": ["q_proj"]},
    {"use_dora": True}, {"encoder_args": {"output": "features"}}, {"balance": 3}, {"ignore_data_skip": True},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_another_setting_is_refused_by_name_with_both_values(change, settings, tmp_path):
    (name,) = change
    claim_folder(tmp_path, settings(), resume=True)
    claim_folder(tmp_path, settings(), resume=True)
    before, now = settings()[name], settings(**change)[name]
    with pytest.raises(ValueError) as refusal:
        claim_folder(tmp_path, settings(**change), resume=True)
    assert f"another run ({name} {before!r} but now {now!r}" in str(refusal.value)
    assert str(refusal.value).endswith("give another output_dir, or --resume false to start over")


def test_a_setting_that_is_taken_back_is_another_one(settings, tmp_path):
    claim_folder(tmp_path, settings(lora_target_modules=["q_proj", "v_proj"]), resume=True)
    with pytest.raises(ValueError, match=r"lora_target_modules \['q_proj', 'v_proj'\] but now None"):
        claim_folder(tmp_path, settings(), resume=True)


def test_rows_of_a_step_are_compared_and_not_how_they_come_together(settings, tmp_path):
    claim_folder(tmp_path, settings(per_device_train_batch_size=8), resume=True)
    claim_folder(tmp_path, settings(per_device_train_batch_size=2, gradient_accumulation_steps=4), resume=True)
    for change in ({"per_device_train_batch_size": 4}, {"gradient_accumulation_steps": 2}):
        with pytest.raises(ValueError, match=r"gradient_accumulation_steps x processes\) 8 but now (4|16)"):
            claim_folder(tmp_path, settings(**change), resume=True)


def test_an_encoder_is_another_one_with_batches_put_together(tmp_path):
    """Recordings are compared with those of their batch."""
    arguments = [TrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=8 // n,
                                   gradient_accumulation_steps=n) for n in (1, 2)]  # fmt: skip
    whole, parts = (run_settings(each, {}, also=("gradient_accumulation_steps",)) for each in arguments)
    assert whole["batch_size"] == parts["batch_size"]
    claim_folder(tmp_path, whole, resume=True)
    with pytest.raises(ValueError, match=r"\(gradient_accumulation_steps 1 but now 2\)"):
        claim_folder(tmp_path, parts, resume=True)


@pytest.mark.parametrize(
    "change",
    [
        {"save_steps": 7}, {"report_to": "none"}, {"dataloader_num_workers": 3}, {"threads": 2}, {"cache_gb": 1.0},
        {"gradient_checkpointing": True}, {"ablation": False}, {"text_only": True}, {"hub_model_id": "a/b"},
        {"cache_dir": "elsewhere"}, {"dataset_args": {"cache": "elsewhere"}},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_cannot_matter_may_change(change, settings, tmp_path):
    claim_folder(tmp_path, settings(), resume=True)
    claim_folder(tmp_path, settings(**change), resume=True)


def test_many_differences_are_counted(settings, tmp_path):
    claim_folder(tmp_path, settings(), resume=True)
    change = {name: value for each in CHANGES for name, value in each.items()}
    with pytest.raises(ValueError, match=rf"; and {len(change) + 1 - 8} more\): give another"):
        claim_folder(tmp_path, settings(**change), resume=True)


def test_what_earlier_code_did_not_note_is_named_and_not_claimed(settings, tmp_path, caplog):
    record = tmp_path / "run.json"
    before = {name: settings()[name] for name in ("seed", "learning_rate", "dataset_args", "batch_size")}
    before["dataset_args"] = {"cache": "out/cache"}
    record.write_text(json.dumps(before))
    claim_folder(tmp_path, settings(optim="sgd"), resume=True)
    (message,) = caplog.messages
    assert f"{record} was written by earlier code" in message and "could not be compared" in message
    names = message.rpartition(": ")[2].split(", ")
    assert "optim" in names and "seed" not in names and len(names) == len(settings()) - len(before)
    assert json.loads(record.read_text()) == before, "what it was made with is not known any better now"
    with pytest.raises(ValueError, match="seed 42 but now 1"):
        claim_folder(tmp_path, settings(seed=1), resume=True)


@pytest.mark.parametrize("content", ["", '{"seed": 1', "[]"])
def test_a_record_that_cannot_be_read_is_named(content, settings, tmp_path):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json cannot be read.*another output_dir, or --resume false to start"):
        claim_folder(tmp_path, settings(), resume=True)
    claim_folder(tmp_path, settings(), resume=False)
    assert json.loads((tmp_path / "run.json").read_text()) == settings()


# --- the lock ---------------------------------------------------------------------------------------------------------


def _hold(folder, pipe):
    claim_folder(folder, {}, resume=True)
    pipe.send("held")
    pipe.poll(60)


@pytest.fixture
def other_run(tmp_path):
    """A process that trains into `tmp_path / "run"` until something is sent to it."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_hold, args=(tmp_path / "run" / "checkpoints", theirs), daemon=True)
    process.start()
    assert ours.poll(60)
    yield process, ours
    process.kill()
    process.join(60)


@pytest.mark.parametrize("resume", [True, False])
def test_two_runs_do_not_share_a_folder(resume, other_run, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    (folder / "checkpoint-3").mkdir()
    with pytest.raises(RuntimeError, match=rf"another run trains into {tmp_path / 'run'} at this moment: wait until"):
        claim_folder(folder, {}, resume=resume)
    assert (folder / "checkpoint-3").is_dir(), "nothing of the other run is touched"
    claim_folder(tmp_path / "run" / "text-only" / "checkpoints", {}, resume=resume)


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_a_run_that_is_over_holds_nothing(how, other_run, tmp_path):
    process, pipe = other_run
    os.kill(process.pid, signal.SIGKILL) if how == "killed" else pipe.send("end")
    process.join(60)
    folder = tmp_path / "run" / "checkpoints"
    assert (folder / "run.lock").exists(), "the file stays; what it says is the system's to tell"
    claim_folder(folder, {}, resume=True)


def test_a_run_that_has_saved_its_model_lets_the_next_one_in(tmp_path):
    """And within a process the same folder can be claimed again."""
    folder = tmp_path / "mine" / "checkpoints"
    for resume in (True, False, True):
        claim_folder(folder, {"seed": 1}, resume=resume)
    context = multiprocessing.get_context("fork")

    def exit_status():
        child = context.Process(target=claim_folder, args=(folder, {"seed": 1}), kwargs={"resume": True})
        child.start()
        child.join(60)
        return child.exitcode

    assert exit_status() == 1
    release(folder)
    release(folder)
    assert exit_status() == 0


def test_starting_over_empties_the_folder_but_for_its_lock(settings, tmp_path):
    claim_folder(tmp_path, settings(), resume=True)
    (tmp_path / "sft" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "sft")
    claim_folder(tmp_path, settings(seed=1), resume=False)
    assert {path.name for path in tmp_path.iterdir()} == {"run.lock", "run.json"}


def test_a_process_that_does_not_write_takes_no_lock(other_run, tmp_path):
    """The others of a launch, beside the first one."""
    claim_folder(tmp_path / "run" / "checkpoints", {}, resume=True, write=False)


def test_a_file_system_without_locks_is_said(settings, tmp_path, monkeypatch, caplog):
    def none(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("elm.training.claim.fcntl.lockf", none)
    claim_folder(tmp_path, settings(), resume=True)
    assert caplog.messages == [f"{tmp_path} is on a file system without locks: see that no two runs train into it"]
