"""Settings of a trainer that do nothing, or cannot be: refused by name, before anything is loaded."""

import dataclasses
import re

import pytest
import torch
from transformers import TrainingArguments
from trl import ModelConfig, SFTConfig

from elm.saved.arguments import ElmArguments
from elm.training.pretraining import REFUSED, PretrainingArguments, begin
from elm.training.settings import check_settings
from elm.training.trainer_settings import LEAST, check_seed, check_trainer

OURS = {each.name for each in dataclasses.fields(ElmArguments)}
OF_THE_MODEL = {each.name for each in dataclasses.fields(ModelConfig)}


@pytest.fixture
def check(tmp_path):
    """`check(seed=-1)`: the settings of a run, looked through."""

    def check(**changes):
        arguments = ElmArguments(**{name: value for name, value in changes.items() if name in OURS})
        model_args = ModelConfig(**{name: value for name, value in changes.items() if name in OF_THE_MODEL})
        trainer = {name: value for name, value in changes.items() if name not in OURS | OF_THE_MODEL}
        check_settings(
            arguments, SFTConfig(str(tmp_path), **{"use_cpu": True, "report_to": "none"} | trainer), model_args
        )

    return check


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "seed must be a whole number from 0 to 4294967295, got -1"),
        ({"seed": 2**32}, "seed must be a whole number from 0 to 4294967295, got 4294967296"),
        ({"tiny_seed": -3}, "tiny_seed must be a whole number from 0"),
        ({"max_steps": 0}, "max_steps must be above 0, got 0: leave it out"),
        ({"max_steps": -5}, "max_steps must be above 0, got -5"),
        ({"num_train_epochs": 0}, "num_train_epochs must be above 0, got 0"),
        ({"save_only_model": True}, "save_only_model leaves out of a checkpoint .* or say --resume false with it"),
        ({"save_strategy": "best", "metric_for_best_model": None}, "save_strategy must be steps, epoch or no"),
        ({"train_sampling_strategy": "batch_rebalance"}, "train_sampling_strategy must be one of random, sequential"),
        ({"train_sampling_strategy": "by_length"}, "train_sampling_strategy must be one of .*, got 'by_length'"),
        ({"loss_type": "focal"}, "loss_type must be nll or dft, got 'focal'"),
        ({"data_seed": 3}, "leave data_seed out .*: the order of rows follows from --seed alone"),
        ({"auto_find_batch_size": True}, "leave auto_find_batch_size out .*: another size of batch is another run"),
        ({"label_smoothing_factor": 0.1}, "leave label_smoothing_factor out"),
        ({"torch_compile": True}, "leave torch_compile out: on a CPU it compiles for minutes"),
        ({"activation_offloading": True}, "leave activation_offloading out: it moves activations from a GPU"),
        ({"fp16": True, "bf16": False}, "leave fp16 out: on a CPU it is bf16, or float32"),
        ({"dataloader_persistent_workers": True}, "dataloader_persistent_workers needs workers: give"),
        ({"report_to": "pigeon"}, "report_to: pigeon is not supported, only .*wandb"),
        ({"optim": "sgd", "optim_args": "momentun=0.9"}, "optim_args: momentun=0.9 changes nothing of sgd"),
        ({"optim_args": "momentum=0.9"}, "optim_args: momentum=0.9 changes nothing of adamw_torch"),
        ({"optim_args": "momentum"}, "optim adamw_torch.*, optim_args 'momentum'"),
        ({"optim": "sgd", "adam_beta2": 0.95}, "adam_beta2 changes nothing of optim sgd: leave it out"),
        ({"optim_target_modules": ["q_proj"]}, "leave optim_target_modules out: adamw_torch.* reads none"),
        ({"adam_beta1": 1.5}, "optim adamw_torch.* cannot be made with .*beta"),
        ({"lr_scheduler_kwargs": {"min_lr": 0.1}}, "lr_scheduler_type linear with lr_scheduler_kwargs .*min_lr"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type cosine_with_min_lr with .*min_lr"),
        ({"projector_type": "resampler"}, "projector_type must be 'linear', 'mlp' or 'vocabulary', got 'resampler'"),
        ({"projector_pool_mode": "max"}, "projector_pool_mode must be 'stack' or 'mean', got 'max'"),
        ({"measured_amplitudes": "all"}, "measured_amplitudes must be one of .*, got 'all'"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_cannot_be_trained_with_is_refused_by_name(settings, message, check):
    with pytest.raises(ValueError, match=message):
        check(**settings)


@pytest.mark.parametrize("name", sorted(LEAST.keys() - {"jobs", "held_out_records"}))
def test_numbers_that_are_too_small_are_refused_by_name(name, check):
    least, is_allowed = LEAST[name]
    wrong = type(least)(least - 1) if is_allowed else least
    if name == "logging_steps":  # upstream refuses 0 itself
        wrong = -1
    with pytest.raises(ValueError, match=rf"^{name} must be (at least|above) {least:g}, got {wrong!r}"):
        check(**{name: wrong})


@pytest.mark.parametrize("rate", [float("nan"), float("inf")])
def test_a_rate_is_a_number(rate, check):
    with pytest.raises(ValueError, match=f"learning_rate must be at least 0, got {rate}"):
        check(learning_rate=rate)


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 0}, {"seed": 2**32 - 1}, {"max_grad_norm": 0}, {"neftune_noise_alpha": 5}, {"loss_type": "dft"},
        {"save_strategy": "no"}, {"save_strategy": "epoch"}, {"train_sampling_strategy": "sequential"},
        {"train_sampling_strategy": "group_by_length"}, {"dataloader_drop_last": True}, {"optim": "adafactor"},
        {"optim": "sgd", "optim_args": "momentum=0.9,nesterov=true"}, {"adam_beta2": 0.95}, {"warmup_steps": 0.1},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5}}, {"weight_decay": 0.1},
        {"save_only_model": True, "resume": False}, {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 4},
        {"lr_scheduler_type": "constant"}, {"encoder": "ecg_byte", "projector_type": "vocabulary"},
    ],
    ids=lambda settings: ",".join(settings),
)  # fmt: skip
def test_what_works_is_let_through(settings, check):
    check(**settings)


@pytest.mark.parametrize("optim", ["schedule_free_adamw", "galore_adamw", "lomo", "grokadamw"])
def test_an_optimizer_whose_package_is_not_there_is_named(optim, check):
    with pytest.raises((ImportError, ValueError), match=rf"optim {optim}.*install"):
        check(optim=optim, optim_target_modules=["q_proj"] if optim.startswith("galore") else None)


def test_what_is_reported_to_must_be_there(check, monkeypatch):
    monkeypatch.setattr("elm.training.trainer_settings.get_available_reporting_integrations", lambda: ["tensorboard"])
    check(report_to="tensorboard")
    with pytest.raises(ImportError, match="report_to wandb needs a package that is not there: install it, or say"):
        check(report_to=["tensorboard", "wandb"])


def test_seeds_of_a_grid_are_seeds():
    with pytest.raises(ValueError, match="seeds must be a whole number from 0 to 4294967295, got -1"):
        check_seed("seeds", -1)


# --- encoders ---------------------------------------------------------------------------------------------------------

# Every field of TrainingArguments that pretraining does not refuse, by what it is for.
USED = """
    per_device_train_batch_size gradient_accumulation_steps average_tokens_across_devices num_train_epochs max_steps
    seed learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim optim_args optim_target_modules
    weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm bf16 fp16 tf32 gradient_checkpointing
    gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps
    use_cache logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter
    include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name project trackio_space_id
    trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay per_device_eval_batch_size
    eval_on_start do_eval save_only_model save_strategy save_steps save_on_each_node save_total_limit
    enable_jit_checkpoint load_best_model_at_end metric_for_best_model greater_is_better ignore_data_skip
    restore_callback_states_from_checkpoint full_determinism use_cpu accelerator_config parallelism_config
    dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context dataloader_in_order ddp_find_unused_parameters ddp_bucket_cap_mb
    ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config deepspeed debug skip_memory_metrics
    local_rank output_dir hub_token
"""
SET = {"remove_unused_columns", "dataloader_drop_last"}  # by `trainer_args`


def test_every_field_is_used_or_refused_where_an_encoder_is_pretrained():
    fields = {each.name for each in dataclasses.fields(TrainingArguments) if each.init}
    used = set(USED.split())
    assert not used & REFUSED.keys()
    assert fields - used - SET - REFUSED.keys() == set(), "new fields"
    assert (used | SET | REFUSED.keys()) - fields == set(), "fields that are gone"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neftune_noise_alpha": 5.0}, "leave neftune_noise_alpha out"),
        ({"push_to_hub": True}, "leave push_to_hub out .*upload its folder with `hf upload`"),
        ({"train_sampling_strategy": "group_by_length"}, "leave train_sampling_strategy out"),
        ({"save_only_model": True}, "save_only_model leaves out of a checkpoint"),
        ({"seed": -1}, "seed must be a whole number"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_pretraining_refuses_them_too(changes, message, tmp_path):
    args = TrainingArguments(str(tmp_path / "run"), use_cpu=True, report_to="none", **changes)
    with pytest.raises(ValueError, match=message):
        begin(PretrainingArguments(corpus="synthetic"), args, lambda *settings: settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dev", [True, False])
def test_a_misspelt_setting_of_the_corpus_is_refused_with_and_without_dev(dev, tmp_path):
    args = TrainingArguments(str(tmp_path / "run"), use_cpu=True, report_to="none")
    for corpus, settings, message in (
        ("ptbxl", {"root": "none", "ratee": 100}, "settings of the corpus 'ptbxl': .*ratee"),
        ("synthetic", {"patiens": 9}, "settings of the corpus 'synthetic': .*patiens"),
        ("ptb", {}, "unknown corpus 'ptb'"),
    ):
        with pytest.raises(ValueError, match=message):
            arguments = PretrainingArguments(corpus=corpus, corpus_args=settings, dev=dev)
            begin(arguments, args, lambda *settings: settings)


@pytest.mark.parametrize(
    ("dataset", "settings", "message"),
    [
        ("synthetic", {"patiens": 12}, "dataset 'synthetic' has no setting patiens: it has patients"),
        ("synthetic", {"patients": 12, "Seed": 1, "pair": 2}, "has no setting Seed, pair"),
        ("ecg_qa", {"root": "nowhere", "sourse": "ptbxl"}, "dataset 'ecg_qa' has no setting sourse"),
        ("ecg_qa", {"source": "ptbxl"}, "dataset 'ecg_qa' needs the setting root"),
        ("ecg-qa", {"root": "nowhere"}, "unknown dataset 'ecg-qa'"),
    ],
)
@pytest.mark.parametrize("dev", [True, False])
def test_dev_finds_what_the_run_itself_would_refuse(dev, dataset, settings, message, check):
    with pytest.raises(ValueError, match=re.escape(message)):
        check(dataset=dataset, dataset_args=settings, dev=dev)


def test_a_gpu_takes_what_a_cpu_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    args = SFTConfig(str(tmp_path), use_cpu=True, report_to="none")
    args.use_cpu, args.torch_compile, args.activation_offloading = False, True, True
    check_trainer(args, resume=True)
