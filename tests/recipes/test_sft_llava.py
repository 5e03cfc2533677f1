"""The recipe: what is trained and what is not, resuming, several processes, conditions, and what it refuses."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file

import elm
from data.conversations import load_questions
from elm.saved.arguments import ElmArguments
from elm.training.checkpoints import newest_whole_checkpoint
from elm.training.settings import check_launch
from elm.training.stages import under_condition
from helpers.processes import REPO, in_two_processes, killed_while_saving, python
from helpers.runs import example_of, losses
from recipes.sft_llava import parse


def test_projector_and_lora_are_trained_and_nothing_else(trained, parts):
    before, after = load_file(Path(parts["encoder"]) / "model.safetensors"), load_file(trained / "model.safetensors")
    assert all(torch.equal(after[f"model.encoder.{name}"], value) for name, value in before.items())
    language = load_file(Path(parts["model_name_or_path"]) / "model.safetensors")
    adapted = set()
    for name, value in language.items():
        if not torch.equal(after[f"model.language_model.{name.removeprefix('model.')}"], value):
            adapted.add(name.split(".")[-2])
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    align = load_file(trained / "checkpoints" / "align" / "checkpoint-2" / "model.safetensors")
    for name, value in language.items():
        assert torch.equal(align[f"model.language_model.{name.removeprefix('model.')}"], value), "align changed the LM"
    projector = [name for name in after if name.startswith("model.projector.")]
    assert projector and any(not torch.equal(after[name], align[name]) for name in projector)


def test_saved_model_equals_its_base_with_the_adapter(trained):
    """The adapter on the base it was trained on (the aligned model) gives the merged model's logits."""
    merged, processor = elm.load(trained)
    base, _ = elm.load(trained / "checkpoints" / "align" / "checkpoint-2", adapter=trained / "adapter")
    assert isinstance(base, PeftModel)
    _, inputs = example_of(trained, processor)
    with torch.no_grad():
        torch.testing.assert_close(merged(**inputs).logits, base(**inputs).logits, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_folder_is_complete_and_answers_in_another_process(trained):
    held = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "chat_template.jinja",
            "training.json", "README.md", "adapter", "checkpoints", "examples"}  # fmt: skip
    assert held <= {item.name for item in trained.iterdir()}
    assert not [item for item in trained.iterdir() if item.name.startswith((".", "tmp"))]
    examples = sorted((trained / "examples").glob("*.hea"))
    assert len(examples) == 3 and len({path.stem.partition("-")[0] for path in examples}) == 3
    python("-m", "elm.ask", trained, examples[0].with_suffix(""), "Is this a normal ECG?", timeout=120)


@pytest.mark.slow
def test_resume_after_kill_in_the_middle_of_saving_gives_the_same_losses(trained, train, tmp_path):
    folder = tmp_path / "killed"
    killed_while_saving(lambda: train(folder), run="sft")
    stage = folder / "checkpoints" / "sft"
    assert (stage / "checkpoint-4" / "optimizer.pt").exists()
    assert newest_whole_checkpoint(stage) == str(stage / "checkpoint-2")
    assert not (folder / "config.json").exists()
    train(folder)
    assert losses(folder) == losses(trained)
    ours, theirs = load_file(folder / "model.safetensors"), load_file(trained / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["random", "group_by_length"])
def test_resume_in_a_later_epoch_sees_the_rows_in_the_same_order(train, tmp_path, sampling):
    """Interrupted two steps into its second epoch of five."""
    settings = {"max_steps": 9, "save_steps": 7, "per_device_train_batch_size": 16}
    settings |= {"train_sampling_strategy": sampling, "align_steps": 0}
    train(tmp_path / "whole", **settings)
    stage = Path("checkpoints", "sft")
    state = json.loads((tmp_path / "whole" / stage / "checkpoint-7" / "trainer_state.json").read_text())
    assert state["epoch"] == 1.4
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "parts" / "config.json").unlink()
    shutil.rmtree(tmp_path / "parts" / stage / "checkpoint-9")
    train(tmp_path / "parts", **settings)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"bf16": True, "dtype": "bfloat16"}], ids=["float32", "bfloat16"])
def test_resume_between_the_stages_gives_the_same_losses(train, tmp_path, changes):
    """What a finished align stage leaves on the model (autocast, say) must not change the next one."""
    train(tmp_path / "whole", **changes)
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "align", tmp_path / "parts" / "checkpoints" / "align")
    train(tmp_path / "parts", **changes)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_loss(trained, train, tmp_path):
    """Of either stage: through a frozen language model to the projector, and with LoRA."""
    train(tmp_path / "checkpointed", gradient_checkpointing=True)
    assert losses(tmp_path / "checkpointed") == pytest.approx(losses(trained), abs=1e-5)
    align = [folder / "checkpoints" / "align" / "checkpoint-2" for folder in (trained, tmp_path / "checkpointed")]
    logs = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in align]
    assert [step["loss"] for step in logs[0]] == pytest.approx([step["loss"] for step in logs[1]], abs=1e-5)


@pytest.fixture
def determinism():
    """What --deterministic sets for the whole process is taken back."""
    before = dict(os.environ)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.mark.slow
def test_deterministic_runs_give_the_same_bytes(train, parts, tmp_path, determinism):
    """With dropout, worker processes and caches of their own."""
    for name in ("first", "second"):
        train(tmp_path / name, deterministic=True, lora_dropout=0.1, dataloader_num_workers=1, max_steps=4,
              cache_dir=tmp_path / f"{name}-cache")  # fmt: skip
        assert torch.are_deterministic_algorithms_enabled()
    first, second = tmp_path / "first", tmp_path / "second"
    assert losses(first) == losses(second)
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_text_only_trains_the_same_without_ecgs_and_stands_in_the_audit(train, tmp_path):
    folder = tmp_path / "both"
    train(folder, text_only=True, ablation=True)
    told = [json.loads((where / "training.json").read_text()) for where in (folder, folder / "text-only")]
    assert [one["train_condition"] for one in told] == ["real", "none"]
    same = ("max_steps", "learning_rate", "per_device_train_batch_size", "seed")
    assert all(told[0]["trainer"][name] == told[1]["trainer"][name] for name in same)
    assert told[0]["lora"] == told[1]["lora"]
    report = json.loads((folder / "ablation" / "report.json").read_text())
    assert report["text_only"] == str(folder / "text-only") and "--text_only" not in report["command"]
    assert report["conditions"]["text-only"]["n"] == report["n"]
    assert report["verdict"]["sentence"] in (folder / "README.md").read_text()


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_good_checkpoint(trained, train, tmp_path, monkeypatch):
    folder = tmp_path / "full"
    save = transformers.Trainer._save_optimizer_and_scheduler

    def no_space(self, output_dir):
        if "sft" in output_dir and output_dir.endswith("checkpoint-4"):
            raise OSError(28, "No space left on device")
        save(self, output_dir)

    monkeypatch.setattr(transformers.Trainer, "_save_optimizer_and_scheduler", no_space)
    with pytest.raises(OSError, match="No space left"):
        train(folder)
    monkeypatch.undo()
    assert newest_whole_checkpoint(folder / "checkpoints" / "sft").endswith("checkpoint-2")
    train(folder)
    assert losses(folder) == losses(trained)


@pytest.mark.slow
def test_a_finished_run_started_again_trains_no_further(train, tmp_path):
    """With a constant learning rate, so that a step too many would be seen."""
    folder = tmp_path / "again"
    train(folder, lr_scheduler_type="constant")
    before = load_file(folder / "model.safetensors")
    checkpoints = sorted(folder.glob("checkpoints/*/checkpoint-*"))
    train(folder, lr_scheduler_type="constant")
    after = load_file(folder / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert sorted(folder.glob("checkpoints/*/checkpoint-*")) == checkpoints


def test_another_run_does_not_go_on_from_these_checkpoints(trained, train, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained / "checkpoints", folder / "checkpoints")
    with pytest.raises(ValueError, match="learning_rate.*another output_dir"):
        train(folder, learning_rate=5e-4)


def test_where_the_cache_was_is_recorded_for_whoever_is_elsewhere(train, no_steps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train("model", cache_dir="cache")
    recorded = json.loads((tmp_path / "model" / "training.json").read_text())["arguments"]
    assert recorded["cache_dir"] == str(tmp_path / "cache") and "cache" not in recorded["dataset_args"]


@pytest.mark.slow
def test_two_processes_are_two_and_give_the_losses_of_one(trained, flags, tmp_path):
    folder = tmp_path / "two"
    script = REPO / "recipes" / "sft_llava.py"
    in_two_processes(script, *flags(folder, per_device_train_batch_size=2))
    assert json.loads((folder / "training.json").read_text())["processes"] == 2
    assert losses(folder) == pytest.approx(losses(trained), abs=2e-4)


def test_a_launch_that_silently_runs_one_process_is_refused(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(RuntimeError, match="only one was started"):
        check_launch()


@pytest.mark.parametrize("condition", ["zero", "none", "shuffled"])
def test_training_conditions(condition, train, no_steps, tmp_path):
    folder = tmp_path / condition
    train(folder, train_condition=condition)
    assert json.loads((folder / "training.json").read_text())["train_condition"] == condition
    assert f"ECGs given in training: {condition}" in (folder / "README.md").read_text()
    stages = ["sft"] if condition == "none" else ["align", "sft"]  # without ECGs a projector has nothing to learn from
    assert [Path(trainer.args.output_dir).name for trainer in no_steps] == stages
    for trainer in no_steps:
        assert any(name.startswith("ecg_") for name in trainer.first_batch) == (condition != "none")


def test_each_stage_is_trained_by_its_settings(train, no_steps, tmp_path):
    """Steps, rate and what is trained differ; batches, logs and checkpoints do not."""
    train(tmp_path, align_learning_rate=3e-3, gradient_checkpointing=True, lora_r=4, weight_decay=0.25, seed=3)
    align, sft = no_steps
    assert (align.args.max_steps, align.args.learning_rate) == (2, 3e-3)
    assert (sft.args.max_steps, sft.args.learning_rate) == (6, 1e-3)
    for args in (align.args, sft.args):
        assert (args.per_device_train_batch_size, args.save_steps, args.seed, args.weight_decay) == (4, 2, 3, 0.25)
        assert args.gradient_checkpointing
    assert align.to_train and all(".projector." in name for name in align.to_train)
    kinds = {kind for name in sft.to_train for kind in ("lora_A", "lora_B", ".projector.") if kind in name}
    assert kinds == {"lora_A", "lora_B", ".projector."}
    assert {shape[0] for name, shape in sft.to_train.items() if "lora_A" in name} == {4}


def test_what_the_conditions_do_to_rows(parts):
    questions = load_questions("synthetic", patients=12, held_out_patients=6, questions=4, cache=parts["cache_dir"])
    none = under_condition(questions.train, questions, "none", 0)
    assert all(row["ecgs"] == [] for row in none)
    assert not any(part["type"] == "ecg" for row in none for message in row["messages"] for part in message["content"])
    shuffled = under_condition(questions.train, questions, "shuffled", 0)
    train_patients = {patient for row in questions.train for patient in row["patient_ids"]}
    for row, other in zip(questions.train, shuffled, strict=True):
        assert other["messages"] == row["messages"]
        for mine, theirs in zip(row["ecgs"], other["ecgs"], strict=True):
            assert questions.patient_of[mine] != questions.patient_of[theirs]
            assert questions.patient_of[theirs] in train_patients


def test_training_the_encoder_too(train, parts, tmp_path):
    train(tmp_path / "both", train_encoder=True, align_steps=0, max_steps=2)
    before = load_file(Path(parts["encoder"]) / "model.safetensors")
    after = load_file(tmp_path / "both" / "model.safetensors")
    assert any(not torch.equal(after[f"model.encoder.{name}"], value) for name, value in before.items())


def test_an_unknown_key_in_a_config_is_an_error(tmp_path):
    config = tmp_path / "typo.yaml"
    config.write_text("output_dir: out\nbf16: false\nuse_cpu: true\nlearnig_rate: 0.1\n")
    with pytest.raises(ValueError, match=r"typo.yaml: unknown setting learnig_rate: is learning_rate meant\?"):
        parse(["--config", str(config)])


OTHERS = ("grid_", "heartlang_", "melp_")
CONFIGS = [path for path in (REPO / "recipes" / "configs").glob("*.yaml") if not path.stem.startswith(OTHERS)]


@pytest.mark.parametrize("config", sorted(CONFIGS), ids=lambda path: path.stem)
def test_every_config_parses(config):
    flags = ["--config", str(config), "--use_cpu", "true", "--bf16", "false"]
    arguments, training_args, model_args, _ = parse(flags)
    assert arguments.dataset_args and model_args.model_name_or_path and training_args.report_to in ([], ["none"])


def test_bad_arguments():
    with pytest.raises(ValueError, match="train_condition must be one of real, zero, none, shuffled, got 'zeros'"):
        ElmArguments(train_condition="zeros")


SMALL_HEARTLANG = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 4}


@pytest.mark.parametrize(
    ("kind", "settings", "most"),
    [
        ("ecg_heartlang", {"output": "compact"}, 34),
        ("ecg_heartlang_vq", {"decoder_layers": 1, "codebook_size": 32, "code_dim": 8}, 256),
    ],
)
def test_heart_beat_words_feed_the_language_model(train, no_steps, tmp_path, kind, settings, most):
    """The tokens of a recording are as many as its words; the beats they stand for can be asked of the processor."""
    train(
        tmp_path / "model", encoder=kind, encoder_args=json.dumps(SMALL_HEARTLANG | settings), projector_pool=1,
        align_steps=0, max_steps=2,
    )  # fmt: skip
    model, processor = elm.load(tmp_path / "model")
    assert model.config.encoder_config.model_type == kind and model.config.max_tokens_per_ecg == most
    record, inputs = example_of(tmp_path / "model", processor)
    sentence = processor.feature_extractor.sentence(record)
    words = int((sentence.in_chan > 0).sum())
    count = words if most == 256 else 13 + len(sentence.beat_of_word)
    assert (inputs["input_ids"] == model.config.ecg_token_id).sum() == count
    assert len(sentence.beats) > 3 and (sentence.beats[:-1] < sentence.beats[1:]).all() and sentence.beats[-1] < 10
