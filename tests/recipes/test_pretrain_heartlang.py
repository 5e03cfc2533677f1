"""The recipe that pretrains HeartLang: its two stages, what they leave, its configs."""

import pytest
import torch
import yaml
from safetensors.torch import load_file

from data.experiment.recordings import load_recordings
from encoders import load_encoder
from encoders.heartlang import HeartLangForMaskedSentence, HeartLangModel, HeartLangVQ
from helpers.pretraining import COHORT, STAGES, metrics, moved
from recipes import pretrain_heartlang


@pytest.fixture(scope="session")
def trained(pretrain):
    """Folders of uninterrupted runs of either stage, with dropout in the second."""
    return {stage: pretrain.trained(stage) for stage in ("vqhbr", "sentence")}


@pytest.mark.slow
def test_each_stage_leaves_an_encoder(trained):
    vqhbr, tokenizer = load_encoder(trained["vqhbr"])
    encoder, words = load_encoder(trained["sentence"])
    assert isinstance(vqhbr, HeartLangVQ) and isinstance(encoder, HeartLangModel)
    cohort = load_recordings("synthetic", [1], [2], **COHORT)
    ecgs = [cohort.source[record] for record in cohort.train[:2]]
    with torch.no_grad():
        codes, tokens = vqhbr(**tokenizer(ecgs)), encoder(**words(ecgs))
    assert codes.codes.shape == (2, 96) and tokens.last_hidden_state.shape == (2, 97, 16)
    assert encoder.config.vocab_size == vqhbr.config.codebook_size == 32
    assert bool(vqhbr.quantize.started)


def test_the_masked_model_stands_beside_the_encoder(trained):
    masked = HeartLangForMaskedSentence.from_pretrained(trained["sentence"] / "masked")
    encoder = load_file(trained["sentence"] / "model.safetensors")
    state = masked.state_dict()
    assert state.keys() - encoder.keys() == {"lm_head.weight", "lm_head.bias"}
    assert all(torch.equal(state[name], value) for name, value in encoder.items())


@pytest.mark.parametrize("stage", ["vqhbr", "sentence"])
def test_what_is_trained_is_trained(stage, trained):
    """Every weight moved, but for VQ-HBR's mask tokens, which nothing uses; so did the codebook, without gradient."""
    weights, changed = moved(trained[stage], 2, 6)
    still = {"encoder.mask_token", "decoder.mask_token", "quantize.started"} if stage == "vqhbr" else set()
    assert weights - changed == still


def test_what_was_measured_on_whom_stands_in_the_folder(trained):
    told = metrics(trained["vqhbr"])
    found = told["metrics"]
    assert {"reconstruction_error", "mean_word_error", "zero_error", "explained_variance", "codes_used"} <= found.keys()
    assert 0 < found["codes_used"] <= found["codes"] == 32 and 1 <= found["perplexity"] <= 32
    error, usual = found["reconstruction_error"], found["mean_word_error"]
    assert error["low"] < error["value"] < error["high"]
    assert found["over_mean_word"]["value"] == pytest.approx(1 - error["value"] / usual["value"], abs=1e-5)
    cohort = load_recordings("synthetic", range(1, 9), [9, 10], **COHORT)
    assert (told["train_records"], told["held_out_records"]) == (len(cohort.train), len(cohort.held_out))
    assert len(told["losses"]) == 6 and told["refused"] == {}
    guesses = metrics(trained["sentence"])["metrics"]
    accuracy = guesses["masked_accuracy"]["value"]
    for name in ("most_frequent_code", "most_frequent_code_of_lead", "nearest_word"):
        assert guesses[f"over_{name}"]["value"] == pytest.approx(accuracy - guesses[name]["value"], abs=1e-5)
    card = (trained["sentence"] / "README.md").read_text()
    assert f"| masked_accuracy | {accuracy:.4f} |" in card and "simulated ECGs of this project" in card
    assert "Not a medical device" in card


def test_the_encoder_says_what_it_has_seen(trained):
    said = "simulated ECGs by patient, folds 1-8: recordings without reports or labels (HeartLang)"
    for stage in trained:
        assert load_encoder(trained[stage])[0].config.pretrained_on == said


def test_a_codebook_of_other_patients_is_named(pretrain, tmp_path):
    pretrain("sentence", tmp_path / "other", train_folds=[1, 2, 3, 4, 5], max_steps=1)
    said = load_encoder(tmp_path / "other")[0].config.pretrained_on
    assert said.startswith("simulated ECGs by patient, folds 1-5: ")
    assert "; codes of a VQ-HBR pretrained on: simulated ECGs by patient, folds 1-8" in said


# --- configs and settings ---------------------------------------------------------------------------------------------


def test_the_published_config_is_as_published():
    """Sizes are the classes' defaults, which the golden files hold to; here is what a config says."""
    file = str(next(path for path in STAGES["vqhbr"].configs if path.stem == "heartlang_mimic"))
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


def test_the_masked_stage_says_that_it_needs_a_codebook(pretrain, tmp_path):
    with pytest.raises(ValueError, match="stage sentence needs vqhbr"):
        pretrain("sentence", tmp_path / "never", vqhbr="")
