"""The recipe that pretrains MELP: what it leaves, each loss by itself, resuming, several processes, its configs."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

from data.experiment.recordings import load_recordings
from elm.saved.questions import DEV_NOTE
from elm.training import dev, tiny_encoder
from elm.training.resume import newest_whole_checkpoint
from encoders import load_encoder, new_encoder, save_encoder
from encoders.melp import MelpModel
from encoders.melp.files import load_pretraining
from encoders.melp.text import tokenize_texts
from recipes import pretrain_melp

REPO = Path(__file__).resolve().parents[2]
CONFIGS = sorted((REPO / "recipes" / "configs").glob("melp_*.yaml"))
COHORT = {"patients": 30, "records_per_patient": 1}
SIZES = {
    "sampling_rate": 100, "conv_dim": [8] * 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "conv_pos_kernel": 8, "conv_pos_groups": 4, "shared_dim": 16, "caption_dim": 16,
    "pooler_heads": 2, "n_queries_contrast": 4, "n_queries_caption": 5,
}  # fmt: skip
TEXT = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 120,
}  # fmt: skip
SIDE = {"text_hidden_dim": 16, "decoder_layers": 1, "decoder_heads": 2}
SETTINGS = {
    "corpus": "synthetic", "corpus_args": COHORT, "held_out_folds": [9, 10], "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4, "max_steps": 6, "save_steps": 2, "logging_steps": 1, "learning_rate": 1e-2,
    "report_to": "none", "use_cpu": True, "disable_tqdm": True, "threads": 1, "jobs": 1, "save_total_limit": 3,
    "dataloader_pin_memory": False, "encoder_args": SIZES, "text_model": "tiny", "text_args": TEXT,
    "pretraining_args": SIDE, "lead_mask": 0.5, "reports": ["english"],
}  # fmt: skip
STILL = {
    "encoder_args": SIZES | {"dropout": 0.0, "dropout_input": 0.0, "attention_dropout": 0.0},
    "text_args": TEXT | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("melp")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | {"cache_dir": str(folder / "cache")}))
    return path


def words(config, folder, **changes):
    found = ["--config", str(config), "--output_dir", str(folder)]
    for name, value in changes.items():
        if isinstance(value, list):
            found += [f"--{name}", *map(str, value)]
        else:
            found += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return found


@pytest.fixture(scope="session")
def train(config):
    """Run the recipe in this process."""

    def run(folder, **changes):
        pretrain_melp.main(*pretrain_melp.parse(words(config, folder, **changes)))

    return run


@pytest.fixture(scope="session")
def trained(train, tmp_path_factory):
    """The folder of an uninterrupted run, with masked leads and dropout."""
    folder = tmp_path_factory.mktemp("trained") / "melp"
    train(folder)
    return folder


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def same_weights(one, other):
    ours, theirs = load_file(one), load_file(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


# --- what it leaves ---------------------------------------------------------------------------------------------------


def test_the_folder_holds_an_encoder_and_the_whole_model(trained):
    encoder, extractor = load_encoder(trained)
    model, again, tokenizer = load_pretraining(trained / "pretraining")
    assert isinstance(encoder, MelpModel) and again.to_dict() == extractor.to_dict()
    ours, theirs = encoder.state_dict(), model.encoder.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    cohort = load_recordings("synthetic", [1], [2], **COHORT)
    values = extractor([cohort.source[record] for record in cohort.train[:2]])["ecg_values"]
    with torch.no_grad():
        text = model.encode_text(**tokenize_texts(tokenizer, ["Atrial fibrillation.", "sinus rhythm"]))
        assert encoder(values).last_hidden_state.shape == (2, 5, 16)
        assert model.encode_ecg(values).shape == text.shape == (2, 16)


def test_the_encoder_says_what_it_has_seen(trained, train, tmp_path):
    said = "simulated ECGs by patient, folds 1-8: recordings and their reports (MELP)"
    assert load_encoder(trained)[0].config.pretrained_on == said
    assert load_pretraining(trained / "pretraining")[0].encoder.config.pretrained_on == said
    train(tmp_path / "more", encoder=str(trained), encoder_args="{}", train_folds=[1, 2, 3], max_steps=1)
    more, _ = load_encoder(tmp_path / "more")
    assert more.config.pretrained_on == (
        "simulated ECGs by patient, folds 1-3: recordings and their reports (MELP); "
        f"begun with an encoder pretrained on: {said}"
    )
    begun = load_encoder(trained)[0].state_dict()
    moved = [float((value - begun[name]).abs().max()) for name, value in more.state_dict().items()]
    assert 0 < max(moved) < 0.05, "one step from the weights it began with"


def test_labels_that_it_was_told_are_named(config, tmp_path):
    recordings = load_recordings("synthetic", [1], [2], **COHORT)
    for kinds, said in ((["english", "labels"], "their reports and sentences made from labels (MELP)"),
                        (["english"], "their reports (MELP)")):  # fmt: skip
        arguments, _ = pretrain_melp.parse(words(config, tmp_path, corpus="ptbxl", reports=kinds))
        assert pretrain_melp.pretrained_on(arguments, recordings, "").endswith(said)


def test_what_was_measured_stands_in_the_folder(trained):
    told = metrics(trained)
    cohort = load_recordings("synthetic", range(1, 9), [9, 10], **COHORT)
    assert (told["train_records"], told["held_out_records"]) == (len(cohort.train), len(cohort.held_out))
    found = told["metrics"]
    gap = found["own_similarity"]["value"] - found["other_similarity"]["value"]
    assert found["alignment_gap"]["value"] == pytest.approx(gap, abs=1e-5)
    assert {"own_report_preferred", "own_report_in_ten", "caption_nats_of_other_ecg", "local_preferred"} <= found.keys()
    log = json.loads((trained / "checkpoints" / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    steps = [entry for entry in log if "loss" in entry]
    assert len(told["losses"]) == len(steps) == 6
    for entry in steps:
        parts = entry["contrast_loss"] + 2 * entry["caption_loss"] + 0.2 * entry["local_loss"]
        assert entry["loss"] == pytest.approx(parts, abs=2e-3)
        assert -2 < entry["alignment_gap"] < 2
    card = (trained / "README.md").read_text()
    assert "| alignment_gap |" in card and "Not a medical device" in card


def test_every_weight_moves(trained):
    early, late = (
        load_file(trained / "checkpoints" / f"checkpoint-{step}" / "model.safetensors") for step in (2, 6)
    )  # fmt: skip
    still = {name for name, value in late.items() if torch.equal(value, early[name])}
    assert still == set(), "norms, biases and the temperature too"


@pytest.mark.parametrize("alone", ["contrast", "caption", "local"])
def test_each_loss_trains_by_itself(alone, train, tmp_path):
    side = SIDE | {f"{name}_weight": float(name == alone) for name in ("contrast", "caption", "local")}
    train(tmp_path, pretraining_args=side, max_steps=3, save_steps=1)
    found = metrics(tmp_path)["metrics"]
    said = {"contrast": "alignment_gap", "caption": "caption_nats", "local": "local_preferred"}
    assert {name for name, key in said.items() if key in found} == {alone}
    early, late = (
        load_file(tmp_path / "checkpoints" / f"checkpoint-{step}" / "model.safetensors") for step in (1, 3)
    )  # fmt: skip
    moved = {name for name, value in late.items() if not torch.equal(value, early[name])}
    # "query" as the pooler whose tokens this loss sees; the other two losses' own parts stay.
    own = {"contrast": "proj_t.0.weight", "caption": "text_decoder.text_projection", "local": "sent_proj.weight"}
    assert {name for name, part in own.items() if part in moved} == {alone}
    poolers = {"caption" if "caption" in name else "contrast" for name in moved if name.endswith(".query")}
    assert poolers == {"caption" if alone == "caption" else "contrast"}
    assert any(name.startswith("encoder.ecg_encoder.") for name in moved)


def test_it_learns_whose_report_is_whose(train, tmp_path):
    """Of the recordings it is shown: 16 in a batch, each four dozen times."""
    more = {"per_device_train_batch_size": 16, "max_steps": 80, "warmup_steps": 20, "learning_rate": 3e-3}
    side = SIDE | {"caption_weight": 0.0, "local_weight": 0.0}
    train(tmp_path, **more, **STILL, pretraining_args=side, lead_mask=0.0, logging_steps=20, save_steps=80)
    state = json.loads((tmp_path / "checkpoints" / "checkpoint-80" / "trainer_state.json").read_text())
    first, *_, last = (entry for entry in state["log_history"] if "alignment_gap" in entry)
    assert abs(first["alignment_gap"]) < 0.05 and last["alignment_gap"] > 0.2
    assert last["contrast_loss"] < 0.8 * first["contrast_loss"]


def test_a_collapse_is_told(train, tmp_path, caplog):
    """Nothing is learned at a rate of 0: all recordings look alike to random weights."""
    train(tmp_path, learning_rate=0.0, max_steps=6)
    assert "step 5: the alignment gap is" in caplog.text and "below 0.02 in 5 logs" in caplog.text
    assert "on held-out patients: a recording's own report is hardly nearer" in caplog.text


# --- the same again ---------------------------------------------------------------------------------------------------


def test_resume_after_kill_gives_the_same_bytes(trained, train, tmp_path):
    """The child dies by SIGKILL while it writes checkpoint-4; order, masked leads and dropout go on as they would."""
    folder = tmp_path / "killed"

    def run_until_killed():
        save = transformers.Trainer._save_rng_state

        def kill(self, output_dir):
            if output_dir.endswith("checkpoint-4"):
                os.kill(os.getpid(), signal.SIGKILL)
            save(self, output_dir)

        transformers.Trainer._save_rng_state = kill
        train(folder)

    child = multiprocessing.get_context("fork").Process(target=run_until_killed, daemon=True)
    child.start()
    child.join(240)
    assert child.exitcode == -signal.SIGKILL
    assert newest_whole_checkpoint(folder / "checkpoints") == str(folder / "checkpoints" / "checkpoint-2")
    assert not (folder / "config.json").exists()
    train(folder)
    assert metrics(folder)["losses"] == metrics(trained)["losses"]
    assert same_weights(folder / "model.safetensors", trained / "model.safetensors")
    assert same_weights(*(each / "pretraining" / "model.safetensors" for each in (folder, trained)))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        assert (folder / "pretraining" / name).read_bytes() == (trained / "pretraining" / name).read_bytes(), name
    assert metrics(folder)["metrics"] == metrics(trained)["metrics"]


def test_resume_in_a_later_epoch_and_loader_workers_change_nothing(train, tmp_path):
    """An epoch is five steps: interrupted in the second, with a worker the second time."""
    settings = {"max_steps": 9, "save_steps": 7}
    train(tmp_path / "whole", **settings)
    state = json.loads((tmp_path / "whole" / "checkpoints" / "checkpoint-7" / "trainer_state.json").read_text())
    assert 1 < state["epoch"] < 2
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "checkpoint-9")
    train(tmp_path / "parts", **settings, dataloader_num_workers=1)
    assert same_weights(tmp_path / "parts" / "model.safetensors", tmp_path / "whole" / "model.safetensors")


def test_a_finished_run_started_again_trains_no_further(trained, train, tmp_path):
    shutil.copytree(trained, tmp_path / "again")
    train(tmp_path / "again")
    assert same_weights(tmp_path / "again" / "model.safetensors", trained / "model.safetensors")
    assert metrics(tmp_path / "again")["metrics"] == metrics(trained)["metrics"]


@pytest.mark.parametrize("changes", [{"lead_mask": 0.0}, {"pretraining_args": SIDE | {"local_weight": 0.0}}])
def test_another_run_does_not_go_on_from_these_checkpoints(changes, trained, train, tmp_path):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(ValueError, match=f"{next(iter(changes))}.*another output_dir"):
        train(tmp_path, **changes)


def test_two_processes_contrast_the_recordings_of_both(config, train, tmp_path):
    """Two batches of two have the losses of one batch of four, and leave the same weights."""
    train(tmp_path / "one", **STILL)
    flags = words(config, tmp_path / "two", **STILL, per_device_train_batch_size=2)
    script = tmp_path / "both.py"
    lines = ["import sys", f"sys.path.insert(0, {str(REPO)!r})", "from recipes import pretrain_melp as r"]
    script.write_text("\n".join([*lines, f"r.main(*r.parse({flags!r}))"]))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script],
        capture_output=True, text=True, cwd=REPO, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert two["processes"] == 2
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-3)
    for name, number in one["metrics"].items():
        assert two["metrics"][name]["value"] == pytest.approx(number["value"], abs=1e-2), name


# --- configs and settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config_file", CONFIGS, ids=lambda path: path.stem)
def test_every_config_runs_with_dev(config_file, tmp_path, monkeypatch):
    for name in ("temporary", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "work")
    argv = ["--config", str(config_file), "--dev", "--disable_tqdm", "true"]
    pretrain_melp.main(*pretrain_melp.parse(argv))
    (folder,) = (tmp_path / "temporary").glob("ecg-elm-dev-*/model")
    assert list(Path.cwd().iterdir()) == [], "something went to a folder of the config's own"
    told = metrics(folder)
    assert len(told["losses"]) == dev.STEPS and told["notes"] == [DEV_NOTE]
    model, extractor, _ = load_pretraining(folder / "pretraining")
    assert sum(weight.numel() for weight in model.parameters()) < 1_000_000
    arguments, _ = pretrain_melp.parse(["--config", str(config_file), "--use_cpu", "true"])
    asked, _ = new_encoder("ecg_melp", **arguments.mapping("encoder_args"))
    for name in ("sampling_rate", "seconds", "n_queries_contrast", "n_queries_caption", "output"):
        assert vars(model.encoder.config)[name] == vars(asked.config)[name], name


def test_the_published_config_is_as_published():
    """Sizes are the classes' defaults, which the golden files hold to; here is what a config says."""
    file = str(next(path for path in CONFIGS if path.stem == "melp_mimic"))
    arguments, args = pretrain_melp.parse(["--config", file, "--use_cpu", "true"])
    assert (args.learning_rate, args.adam_beta1, args.adam_beta2, args.weight_decay) == (2e-4, 0.9, 0.95, 0.2)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps, args.seed) == (64, 1, 42)
    assert args.lr_scheduler_kwargs == {"min_lr": 1e-8} and args.bf16
    epoch = 694_524 // 256
    assert args.get_warmup_steps(50 * epoch) == pytest.approx(2 * epoch, abs=1)
    weights = {"contrast_weight": 1.0, "caption_weight": 2.0, "local_weight": 0.2, "frozen_text_layers": 6}
    assert arguments.mapping("pretraining_args") == weights and arguments.lead_mask == 0.5
    assert arguments.text_model == "ncbi/MedCPT-Query-Encoder" and arguments.text_weights
    assert not arguments.mapping("encoder_args") and not arguments.mapping("extractor_args")


def test_the_tiny_config_has_the_encoder_of_the_default_job():
    """So that the two ways to train it can be compared."""
    file = str(next(path for path in CONFIGS if path.stem == "melp_tiny_cpu"))
    arguments, _ = pretrain_melp.parse(["--config", file])
    made, _ = new_encoder("ecg_melp", **arguments.mapping("encoder_args"))
    ours, theirs = (json.loads(json.dumps(each.to_dict())) for each in (made.config, tiny_encoder.melp_config()))
    assert {name for name in theirs if ours.get(name) != theirs[name]} <= {"dtype"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_device_train_batch_size": 1}, "a recording is told from others of its batch"),
        ({"lead_mask": 1.0}, "lead_mask is a probability below 1"),
        ({"text_model": "some/bert"}, "text_args are for text_model: tiny, not for some/bert"),
        ({"text_args": {"hiden_size": 8}}, "text_args: BERT has no setting hiden_size"),
        ({"reports": ["german"]}, "those of simulated recordings are English"),
        ({"reports": ["labels"]}, "none of the recordings to train on has a report"),
        ({"pretraining_args": {"caption": 0}}, "unknown setting caption"),
        ({"pretraining_args": "[1]"}, "pretraining_args must be a mapping"),
        ({"encoder_args": {"depth": 2}}, "unknown setting depth"),
    ],
)
def test_settings_that_cannot_be_trained_with_are_refused(changes, message, train, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **changes)


def test_it_begins_with_no_other_encoder(train, tmp_path):
    save_encoder(*new_encoder("ecg_patch"), tmp_path / "patch")
    with pytest.raises(ValueError, match="is of type ecg_patch: give a MELP"):
        train(tmp_path / "never", encoder=str(tmp_path / "patch"), encoder_args="{}")


def test_a_launcher_that_takes_models_apart_is_refused(train, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="recipes/accelerate/multi_gpu.yaml"):
        train(tmp_path / "never")
