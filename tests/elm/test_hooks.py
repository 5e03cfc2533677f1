"""Private parts of transformers, TRL and accelerate that we rely on are where they were, and do what they did."""

import inspect

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTConfig

from data.conversations.rows import question_row
from elm.inputs.collator import EcgCollator
from elm.training import hooks
from elm.training.stages import as_dataset, stage_args
from elm.training.trainer import ElmTrainer, LengthGrouped


@pytest.fixture
def trainer(make_pair, make_ecg, tmp_path):
    model, processor = make_pair(pool=2)
    model.requires_grad_(False)
    model.model.projector.requires_grad_(True)
    args = SFTConfig(
        str(tmp_path), use_cpu=True, bf16=True, gradient_checkpointing=False, report_to="none", disable_tqdm=True,
        train_sampling_strategy="group_by_length", per_device_train_batch_size=2, max_steps=1,
    )  # fmt: skip
    rows = [
        question_row(id=f"q{i}", ecgs=["r"], patient_ids=["p"], question_type="t", question="Is it?", answer=["yes"])
        for i in range(4)
    ]
    return ElmTrainer(
        model=model, args=stage_args(args, "sft"), train_dataset=as_dataset(rows), processing_class=processor,
        data_collator=EcgCollator(processor, {"r": make_ecg(1)}),
    )  # fmt: skip


def names(method):
    return list(inspect.signature(method).parameters)


def test_the_trainer_asks_for_the_sampler_by_this_method(trainer, monkeypatch):
    assert names(Trainer._get_train_sampler) == ["self", "train_dataset"]
    assert "_get_train_sampler" in inspect.getsource(Trainer.get_train_dataloader)
    assert isinstance(trainer._get_train_sampler(), LengthGrouped)
    monkeypatch.setattr(ElmTrainer, "ordered", lambda self, sampler: sampler)
    stock = trainer._get_train_sampler()
    assert type(stock) is LengthGroupedSampler and {"batch_size", "lengths", "generator"} <= vars(stock).keys()


def test_loading_a_checkpoint_reports_what_is_missing(trainer, tmp_path):
    assert names(Trainer._load_from_checkpoint)[:2] == ["self", "resume_from_checkpoint"]
    assert names(Trainer._issue_warnings_after_load) == ["self", "load_result"]
    trained = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
    trainer.model.save_pretrained(tmp_path / "whole")
    wanted = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    with torch.no_grad():
        for weight in trainer.model.model.projector.parameters():
            weight += 1
    hooks.load_checkpoint(trainer, str(tmp_path / "whole"))
    assert all(torch.equal(weight, wanted[name]) for name, weight in trainer.model.state_dict().items())
    hooks.save_without(trainer.model, trained[:1])
    trainer.model.save_pretrained(tmp_path / "part")
    with pytest.raises(ValueError, match=f"the checkpoint has no {trained[0]}, which is trained: give --resume false"):
        hooks.load_checkpoint(trainer, str(tmp_path / "part"))


def test_some_weights_may_be_left_out_of_a_checkpoint(make_pair, tmp_path):
    model = make_pair().model
    assert model._keys_to_ignore_on_save is None or not model._keys_to_ignore_on_save
    hooks.save_without(model, {"lm_head.weight"})
    model.save_pretrained(tmp_path / "part")
    hooks.restore(model)
    model.save_pretrained(tmp_path / "whole")
    part, whole = (load_file(tmp_path / name / "model.safetensors").keys() for name in ("part", "whole"))
    assert whole - part == {"lm_head.weight"}


def test_a_model_is_as_its_class_says_after_a_stage(trainer):
    """TRL patches `forward`; accelerate wraps it once more, and marks the model."""
    model = trainer.model
    assert "forward" in vars(model)
    prepared = trainer.accelerator.prepare_model(model)
    assert prepared is model and vars(model).keys() >= set(hooks.PATCHED)
    hooks.restore(model)
    assert not vars(model).keys() & set(hooks.PATCHED) and model.forward.__func__ is type(model).forward


def test_the_attention_of_a_model_is_in_its_configuration(make_pair):
    model = make_pair().model
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert hooks.attention_of(model.model.language_model) == name


def test_the_versions_these_were_read_in_are_named():
    described = inspect.getdoc(hooks) or ""
    for part in (*hooks.PATCHED, "_get_train_sampler", "_issue_warnings_after_load", "_load_from_checkpoint"):
        assert part in described
    assert "transformers 5.19.0, TRL\n1.16.0 and accelerate 1.15.0" in described
