"""The recipe that pretrains HeartLang: its two stages, what they leave, resuming, several processes, its configs."""

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
from elm.training import dev
from elm.training.resume import newest_whole_checkpoint
from encoders import load_encoder
from encoders.heartlang import HeartLangForMaskedSentence, HeartLangModel, HeartLangVQ
from recipes import pretrain_heartlang

REPO = Path(__file__).resolve().parents[2]
CONFIGS = sorted((REPO / "recipes" / "configs").glob("heartlang_*.yaml"))
STAGES = ("vqhbr", "sentence")
COHORT = {"patients": 30, "records_per_patient": 1}
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "head_dim": 8, "intermediate_size": 32, "max_words": 96}
SETTINGS = {
    "corpus": "synthetic", "corpus_args": COHORT, "held_out_folds": [9, 10], "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 8, "max_steps": 6, "save_steps": 2, "logging_steps": 1, "learning_rate": 1e-2,
    "report_to": "none", "use_cpu": True, "disable_tqdm": True, "threads": 1, "jobs": 1, "save_total_limit": 3,
    "dataloader_pin_memory": False,
    "stages": {
        "vqhbr": {"encoder_args": SIZES | {"num_hidden_layers": 1, "decoder_layers": 1, "codebook_size": 32,
                                           "code_dim": 8}},
        "sentence": {"encoder_args": {name: value for name, value in SIZES.items() if name != "max_words"}
                     | {"num_hidden_layers": 2, "hide_masked_words": True}},
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("heartlang")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | {"cache_dir": str(folder / "cache")}))
    return path


@pytest.fixture(scope="session")
def train(config):
    """Run a stage in this process."""

    def run(stage, folder, **changes):
        words = ["--config", config, "--stage", stage, "--output_dir", folder]
        for name, value in changes.items():
            words += [f"--{name}", *(value if isinstance(value, list) else [value])]
        pretrain_heartlang.main(*pretrain_heartlang.parse([str(word) for word in words]))

    return run


@pytest.fixture(scope="session")
def trained(train, tmp_path_factory):
    """Folders of uninterrupted runs of either stage, with dropout in the second."""
    folder = tmp_path_factory.mktemp("trained")
    train("vqhbr", folder / "vqhbr")
    train("sentence", folder / "sentence", vqhbr=str(folder / "vqhbr"))
    return folder


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def same_weights(one, other):
    ours, theirs = load_file(one), load_file(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_each_stage_leaves_an_encoder(trained):
    vqhbr, tokenizer = load_encoder(trained / "vqhbr")
    encoder, words = load_encoder(trained / "sentence")
    assert isinstance(vqhbr, HeartLangVQ) and isinstance(encoder, HeartLangModel)
    cohort = load_recordings("synthetic", [1], [2], **COHORT)
    ecgs = [cohort.source[record] for record in cohort.train[:2]]
    with torch.no_grad():
        codes, tokens = vqhbr(**tokenizer(ecgs)), encoder(**words(ecgs))
    assert codes.codes.shape == (2, 96) and tokens.last_hidden_state.shape == (2, 97, 16)
    assert encoder.config.vocab_size == vqhbr.config.codebook_size == 32
    assert bool(vqhbr.quantize.started)


def test_the_masked_model_stands_beside_the_encoder(trained):
    masked = HeartLangForMaskedSentence.from_pretrained(trained / "sentence" / "masked")
    encoder = load_file(trained / "sentence" / "model.safetensors")
    state = masked.state_dict()
    assert state.keys() - encoder.keys() == {"lm_head.weight", "lm_head.bias"}
    assert all(torch.equal(state[name], value) for name, value in encoder.items())


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_trained_is_trained(stage, trained):
    """Every weight moved, but for VQ-HBR's mask tokens, which nothing uses; so did the codebook, without gradient."""
    folder = trained / stage / "checkpoints"
    early, late = (load_file(folder / f"checkpoint-{step}" / "model.safetensors") for step in (2, 6))
    still = {name for name, value in late.items() if torch.equal(value, early[name])}
    assert still == ({"encoder.mask_token", "decoder.mask_token", "quantize.started"} if stage == "vqhbr" else set())


def test_what_was_measured_on_whom_stands_in_the_folder(trained):
    told = metrics(trained / "vqhbr")
    found = told["metrics"]
    assert {"reconstruction_error", "mean_word_error", "zero_error", "explained_variance", "codes_used"} <= found.keys()
    assert 0 < found["codes_used"] <= found["codes"] == 32 and 1 <= found["perplexity"] <= 32
    error, usual = found["reconstruction_error"], found["mean_word_error"]
    assert error["low"] < error["value"] < error["high"]
    assert found["over_mean_word"]["value"] == pytest.approx(1 - error["value"] / usual["value"], abs=1e-5)
    cohort = load_recordings("synthetic", range(1, 9), [9, 10], **COHORT)
    assert (told["train_records"], told["held_out_records"]) == (len(cohort.train), len(cohort.held_out))
    assert len(told["losses"]) == 6 and told["refused"] == {}
    guesses = metrics(trained / "sentence")["metrics"]
    accuracy = guesses["masked_accuracy"]["value"]
    for name in ("most_frequent_code", "most_frequent_code_of_lead", "nearest_word"):
        assert guesses[f"over_{name}"]["value"] == pytest.approx(accuracy - guesses[name]["value"], abs=1e-5)
    card = (trained / "sentence" / "README.md").read_text()
    assert f"| masked_accuracy | {accuracy:.4f} |" in card and "simulated ECGs of this project" in card
    assert "Not a medical device" in card


def test_the_encoder_says_what_it_has_seen(trained):
    said = "simulated ECGs by patient, folds 1-8: recordings without reports or labels (HeartLang)"
    for stage in STAGES:
        assert load_encoder(trained / stage)[0].config.pretrained_on == said


def test_a_codebook_of_other_patients_is_named(train, trained, tmp_path):
    train("sentence", tmp_path / "other", vqhbr=str(trained / "vqhbr"), train_folds=[1, 2, 3, 4, 5], max_steps=1)
    said = load_encoder(tmp_path / "other")[0].config.pretrained_on
    assert said.startswith("simulated ECGs by patient, folds 1-5: ")
    assert "; codes of a VQ-HBR pretrained on: simulated ECGs by patient, folds 1-8" in said


@pytest.mark.parametrize("stage", STAGES)
def test_resume_after_kill_gives_the_same_bytes(stage, trained, train, tmp_path):
    """The child dies by SIGKILL while it writes checkpoint-4; the order, the masks, dropout and the codebook go on."""
    folder = tmp_path / "killed"
    more = {"vqhbr": str(trained / "vqhbr")} if stage == "sentence" else {}

    def run_until_killed():
        save = transformers.Trainer._save_rng_state

        def kill(self, output_dir):
            if output_dir.endswith("checkpoint-4"):
                os.kill(os.getpid(), signal.SIGKILL)
            save(self, output_dir)

        transformers.Trainer._save_rng_state = kill
        train(stage, folder, **more)

    child = multiprocessing.get_context("fork").Process(target=run_until_killed, daemon=True)
    child.start()
    child.join(240)
    assert child.exitcode == -signal.SIGKILL
    assert newest_whole_checkpoint(folder / "checkpoints") == str(folder / "checkpoints" / "checkpoint-2")
    assert not (folder / "config.json").exists()
    train(stage, folder, **more)
    assert metrics(folder)["losses"] == metrics(trained / stage)["losses"]
    assert same_weights(folder / "model.safetensors", trained / stage / "model.safetensors")
    assert metrics(folder)["metrics"] == metrics(trained / stage)["metrics"]


def test_resume_in_a_later_epoch_and_loader_workers_change_nothing(trained, train, tmp_path):
    """An epoch is five steps: interrupted in the second, with workers the second time."""
    settings = {"vqhbr": str(trained / "vqhbr"), "max_steps": 9, "save_steps": 7}
    train("sentence", tmp_path / "whole", **settings)
    state = json.loads((tmp_path / "whole" / "checkpoints" / "checkpoint-7" / "trainer_state.json").read_text())
    assert 1 < state["epoch"] < 2
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "checkpoint-9")
    train("sentence", tmp_path / "parts", **settings, dataloader_num_workers=1)
    assert same_weights(tmp_path / "parts" / "model.safetensors", tmp_path / "whole" / "model.safetensors")


@pytest.mark.parametrize("stage", STAGES)
def test_a_finished_run_started_again_trains_no_further(stage, trained, train, tmp_path):
    shutil.copytree(trained / stage, tmp_path / "again")
    train(stage, tmp_path / "again", **({"vqhbr": str(trained / "vqhbr")} if stage == "sentence" else {}))
    assert same_weights(tmp_path / "again" / "model.safetensors", trained / stage / "model.safetensors")
    assert metrics(tmp_path / "again")["metrics"] == metrics(trained / stage)["metrics"]


def test_another_run_does_not_go_on_from_these_checkpoints(trained, train, tmp_path):
    shutil.copytree(trained / "vqhbr" / "checkpoints", tmp_path / "copy" / "checkpoints")
    with pytest.raises(ValueError, match="learning_rate.*another output_dir"):
        train("vqhbr", tmp_path / "copy", learning_rate=5e-4)


def test_two_processes_give_the_losses_of_one(config, train, trained, tmp_path):
    """Recordings have different numbers of words, and the codebook starts and moves by what both processes see."""
    still = json.dumps(SETTINGS["stages"]["sentence"]["encoder_args"] | {"dropout": 0.0, "embedding_dropout": 0.0})
    runs = [["vqhbr"], ["sentence", "--vqhbr", str(trained / "vqhbr"), "--encoder_args", still]]
    lines = [f"sys.path.insert(0, {str(REPO)!r})", "from recipes import pretrain_heartlang as r"]
    for words in runs:
        flags = ["--config", str(config), "--stage", *words, "--output_dir", str(tmp_path / words[0])]
        lines.append(f"r.main(*r.parse({[*flags, '--per_device_train_batch_size', '2']!r}))")
    script = tmp_path / "both.py"
    script.write_text("\n".join(["import sys", *lines]))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script],
        capture_output=True, text=True, cwd=REPO, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    train("sentence", tmp_path / "one", vqhbr=str(trained / "vqhbr"), encoder_args=still)
    for stage, alone in (("vqhbr", trained / "vqhbr"), ("sentence", tmp_path / "one")):
        assert metrics(tmp_path / stage)["processes"] == 2
        assert metrics(tmp_path / stage)["losses"] == pytest.approx(metrics(alone)["losses"], abs=1e-4)


# --- configs and settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("config_file", CONFIGS, ids=lambda path: path.stem)
def test_every_config_runs_with_dev(config_file, stage, tmp_path, monkeypatch):
    for name in ("temporary", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "work")
    argv = ["--config", str(config_file), "--stage", stage, "--dev", "--disable_tqdm", "true"]
    pretrain_heartlang.main(*pretrain_heartlang.parse(argv))
    (folder,) = (tmp_path / "temporary").glob("ecg-elm-dev-*/model")
    assert list(Path.cwd().iterdir()) == [], "something went to a folder of the config's own"
    told = metrics(folder)
    assert len(told["losses"]) == dev.STEPS and told["notes"] == [DEV_NOTE]
    assert DEV_NOTE in (folder / "README.md").read_text()
    encoder, tokenizer = load_encoder(folder)
    assert sum(weight.numel() for weight in encoder.parameters()) < 1_000_000
    own = yaml.safe_load(config_file.read_text())["extractor_args"]
    assert {name: tokenizer.to_dict()[name] for name in own} == own


def test_the_published_config_is_as_published():
    """Sizes are the classes' defaults, which the golden files hold to; here is what a config says."""
    file = str(next(path for path in CONFIGS if path.stem == "heartlang_mimic"))
    flags = ["--config", file, "--use_cpu", "true", "--stage"]
    for stage, rate, beta2, decay, epochs, warmup, clip in (
        ("vqhbr", 2e-4, 0.99, 1e-4, 100, 10, 0), ("sentence", 5e-4, 0.98, 0.05, 200, 5, 3.0)
    ):  # fmt: skip
        arguments, args = pretrain_heartlang.parse([*flags, stage])
        assert (args.learning_rate, args.adam_beta2, args.weight_decay) == (rate, beta2, decay)
        assert (args.num_train_epochs, args.max_grad_norm, args.adam_beta1) == (epochs, clip, 0.9)
        assert args.get_warmup_steps(1400 * epochs) == pytest.approx(1400 * warmup, abs=1)
        assert args.lr_scheduler_kwargs == {"min_lr": 1e-5} and args.per_device_train_batch_size == 64
        assert not set(arguments.train_folds) & set(arguments.held_out_folds)
    assert not arguments.target_positions and arguments.mask_padding and arguments.mask_share == 0.5


def parse(tmp_path, settings, *flags):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"output_dir": "out", "use_cpu": True} | settings))
    return pretrain_heartlang.parse(["--config", str(path), *flags])


def test_a_flag_wins_over_the_stage_and_the_stage_over_the_rest(tmp_path):
    settings = {"learning_rate": 1.0, "seed": 7, "stages": {"vqhbr": {"learning_rate": 2.0}, "sentence": {}}}
    assert parse(tmp_path, settings, "--stage", "sentence")[1].learning_rate == 1.0
    assert parse(tmp_path, settings, "--stage", "vqhbr")[1].learning_rate == 2.0
    arguments, args = parse(tmp_path, settings, "--stage", "vqhbr", "--learning_rate", "3.0")
    assert (args.learning_rate, args.seed, arguments.stage) == (3.0, 7, "vqhbr")


def test_an_unknown_key_is_an_error_in_either_stage(tmp_path):
    with pytest.raises(ValueError, match="config.yaml: unknown setting learnig_rate"):
        parse(tmp_path, {"learnig_rate": 0.1}, "--stage", "vqhbr")
    with pytest.raises(ValueError, match="stage sentence: unknown setting mask_shar"):
        parse(tmp_path, {"stages": {"sentence": {"mask_shar": 0.5}}}, "--stage", "vqhbr")
    with pytest.raises(ValueError, match="no stage 'sentences': vqhbr, sentence"):
        parse(tmp_path, {"stages": {"sentences": {}}}, "--stage", "vqhbr")


def test_a_stage_is_needed(tmp_path, capsys):
    for flags in ([], ["--stage", "both"]):
        with pytest.raises(SystemExit):
            parse(tmp_path, {}, *flags)
        assert "--stage" in capsys.readouterr().err


def test_a_launcher_that_takes_models_apart_is_refused(train, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="recipes/accelerate/multi_gpu.yaml"):
        train("vqhbr", tmp_path / "never")


def test_the_masked_stage_says_that_it_needs_a_codebook(train, tmp_path):
    with pytest.raises(ValueError, match="stage sentence needs vqhbr"):
        train("sentence", tmp_path / "never")
