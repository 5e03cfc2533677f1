"""Settings that are refused before anything is loaded, and attention implementations that give the same."""

import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest
import torch
import yaml
from trl import ModelConfig, SFTConfig

from data.conversations.rows import assistant, user
from elm.model.quantization import nf4
from elm.saved.arguments import ElmArguments
from elm.training.settings import REFUSED, check_settings
from elm.training.stages import FIXED

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"


@pytest.fixture
def check(tmp_path):
    def check(*, full_determinism=False, quantization=None, **model_args):
        training_args = SFTConfig(str(tmp_path), use_cpu=True, full_determinism=full_determinism)
        check_settings(ElmArguments(quantization=quantization), training_args, ModelConfig(**model_args))

    return check


def test_one_way_to_say_a_thing(check):
    for name in ("load_in_4bit", "load_in_8bit"):
        with pytest.raises(ValueError, match="give --quantization nf4 in place of load_in_4bit and load_in_8bit"):
            check(**{name: True})
    with pytest.raises(ValueError, match="give --deterministic in place of full_determinism"):
        check(full_determinism=True)
    with pytest.raises(ValueError, match="quantization must be nf4 or left out, got 'int8'"):
        ElmArguments(quantization="int8")
    with pytest.raises(
        ValueError, match="attn_implementation must be one of sdpa, flash_attention_2, eager, got 'fla'"
    ):
        check(attn_implementation="fla")
    for name in (None, "sdpa", "eager"):
        check(attn_implementation=name)


# Every field of SFTConfig that is neither refused (`REFUSED`) nor set for each stage (`FIXED`), by who reads it.
BY_RECIPES = "output_dir hub_model_id hub_token hub_private_repo"
BY_THE_TRAINER = """
    per_device_train_batch_size gradient_accumulation_steps average_tokens_across_devices num_train_epochs max_steps
    seed train_sampling_strategy learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim
    optim_args optim_target_modules weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm loss_type
    neftune_noise_alpha bf16 fp16 tf32 gradient_checkpointing gradient_checkpointing_kwargs activation_offloading
    torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps
    logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter
    include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name project trackio_space_id
    trackio_bucket_id trackio_static_space_id save_only_model save_strategy save_steps save_on_each_node
    save_total_limit enable_jit_checkpoint ignore_data_skip restore_callback_states_from_checkpoint use_cpu
    accelerator_config parallelism_config dataloader_drop_last dataloader_num_workers dataloader_pin_memory
    dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp
    fsdp_config deepspeed debug skip_memory_metrics local_rank
"""
# And every such field of ModelConfig: what builds the model, and what TRL makes a LoraConfig of.
BY_BUILD = "model_name_or_path model_revision dtype attn_implementation"
BY_LORA = "use_peft lora_r lora_alpha lora_dropout lora_target_modules lora_modules_to_save use_rslora use_dora"


def test_every_field_of_trls_settings_is_used_passed_on_or_refused():
    """A field that is new upstream belongs to none of them: look what it does, and put it where it belongs."""
    for kind, used in ((SFTConfig, f"{BY_RECIPES} {BY_THE_TRAINER}"), (ModelConfig, f"{BY_BUILD} {BY_LORA}")):
        fields = [each.name for each in dataclasses.fields(kind)]
        classes = {name: [name in REFUSED, name in FIXED, name in used.split()] for name in fields}
        assert not [name for name, found in classes.items() if not any(found)], "new fields"
        assert not [name for name, (refused, _, is_used) in classes.items() if refused and is_used]
        assert not set(used.split()) - set(fields), "fields that are gone"
    fields = {each.name for kind in (SFTConfig, ModelConfig) for each in dataclasses.fields(kind)}
    assert not REFUSED.keys() - fields and not FIXED.keys() - fields, "fields that are gone"


# A value of each refused field that is not its default, where that does not follow from the default.
VALUES = {
    "eval_strategy": "steps", "truncation_mode": "keep_end", "packing_strategy": "wrapped",
    "hub_strategy": "end", "bnb_4bit_quant_type": "fp4", "lora_task_type": "SEQ_CLS", "include_for_metrics": ["loss"],
    "dataset_kwargs": {"skip_prepare_dataset": False}, "lora_target_parameters": ["mlp.up_proj.weight"],
    "model_init_kwargs": {"use_cache": True}, "liger_kernel_config": {"rope": True}, "label_names": ["labels"],
    "length_column_name": "n", "dataset_text_field": "messages", "max_length": 512, "label_smoothing_factor": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_ignored_is_refused_by_name(name, tmp_path):
    settings = {False: SFTConfig(str(tmp_path), use_cpu=True), True: ModelConfig()}
    on_model = hasattr(settings[True], name)
    before = getattr(settings[on_model], name)
    value = VALUES.get(name, not before if isinstance(before, bool) else 7 if isinstance(before, int) else "other")
    setattr(settings[on_model], name, value)
    with pytest.raises(ValueError, match=f"^leave {name} out \\(it is .*\\): {re.escape(REFUSED[name])}"):
        check_settings(ElmArguments(), settings[False], settings[True])


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_no_config_sets_what_is_refused(config):
    settings = yaml.safe_load(config.read_text())
    if "corpus" not in settings:  # these pretrain an encoder
        assert not settings.keys() & (REFUSED.keys() | FIXED.keys())


def test_what_holds_anyhow_may_be_said(tmp_path):
    settings = {"max_length": None, "pad_to_multiple_of": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    check_settings(ElmArguments(), SFTConfig(str(tmp_path), use_cpu=True, **settings), ModelConfig(use_peft=True))


def test_a_package_that_is_not_there_is_named(check, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in missing else find(name, *a))
    missing = ("flash_attn", "bitsandbytes")
    with pytest.raises(ImportError, match=r'pip install --no-build-isolation "ecg-elm\[flash\]", or take sdpa'):
        check(attn_implementation="flash_attention_2")
    with pytest.raises(ImportError, match=r'quantization nf4 needs bitsandbytes: pip install "ecg-elm\[quant\]"'):
        check(quantization="nf4")
    with pytest.raises(ImportError, match="bitsandbytes"):
        nf4()


def test_nf4_is_double_quantised_and_computes_in_bfloat16():
    pytest.importorskip("bitsandbytes", reason='needs bitsandbytes: pip install "ecg-elm[quant]"')
    config = nf4()
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.bfloat16


def logits(pair, ecgs, implementation, device="cpu", dtype=torch.float32):
    """Of a batch of two rows of different length, padded, and their mask."""
    model, processor = pair
    rows = [[user(1, "Is it?"), assistant("yes")], [user(1, "What is the rhythm of this ECG?"), assistant("sinus")]]
    batch = processor(rows, [[ecg] for ecg in ecgs]).to(device, dtype)
    model = model.to(device, dtype)
    model.set_attn_implementation(implementation)
    assert model.model.language_model.config._attn_implementation == implementation
    with torch.no_grad():
        return model(**batch).logits, batch["attention_mask"].bool()


def test_sdpa_and_eager_give_the_same(make_pair, make_ecg):
    ecgs = [make_ecg(0), make_ecg(1)]
    ours, mask = logits(make_pair(pool=2), ecgs, "sdpa")
    theirs, _ = logits(make_pair(pool=2), ecgs, "eager")
    torch.testing.assert_close(ours[mask], theirs[mask], atol=1e-4, rtol=0)


@pytest.mark.gpu
def test_sdpa_and_flash_attention_give_the_same(make_pair, make_ecg):
    """In bfloat16, within what its eight bits of mantissa leave."""
    pytest.importorskip("flash_attn", reason='needs flash-attn: pip install --no-build-isolation "ecg-elm[flash]"')
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    ecgs = [make_ecg(0), make_ecg(1)]
    ours, mask = logits(make_pair(pool=2), ecgs, "sdpa", "cuda", torch.bfloat16)
    theirs, _ = logits(make_pair(pool=2), ecgs, "flash_attention_2", "cuda", torch.bfloat16)
    difference = (ours[mask] - theirs[mask]).float()
    assert difference.square().mean().sqrt() < 0.02 * ours[mask].float().std()
