"""The recipe that pretrains MELP: what it leaves, each loss by itself, its configs."""

import json

import pytest
import torch

from data.experiment.recordings import load_recordings
from elm.training import tiny_encoder
from encoders import load_encoder, new_encoder, save_encoder
from encoders.melp import MelpModel
from encoders.melp.files import load_pretraining
from encoders.melp.text import tokenize_texts
from helpers.pretraining import COHORT, SIDE_ARGS, STAGES, metrics, moved
from recipes import pretrain_melp

MELP = STAGES["melp"]


@pytest.fixture(scope="session")
def train(pretrain):
    """Run the recipe in this process."""
    return lambda folder, **changes: pretrain("melp", folder, **changes)


@pytest.fixture(scope="session")
def trained(pretrain):
    """The folder of an uninterrupted run, with masked leads and dropout."""
    return pretrain.trained("melp")


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


def test_labels_that_it_was_told_are_named(pretrain, tmp_path):
    recordings = load_recordings("synthetic", [1], [2], **COHORT)
    for kinds, said in ((["english", "labels"], "their reports and sentences made from labels (MELP)"),
                        (["english"], "their reports (MELP)")):  # fmt: skip
        arguments, _ = pretrain_melp.parse(pretrain.words("melp", tmp_path, corpus="ptbxl", reports=kinds))
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
    weights, changed = moved(trained, 2, 6)
    assert changed == weights, "norms, biases and the temperature too"


@pytest.mark.parametrize("alone", ["contrast", "caption", "local"])
def test_each_loss_trains_by_itself(alone, train, tmp_path):
    side = SIDE_ARGS | {f"{name}_weight": float(name == alone) for name in ("contrast", "caption", "local")}
    train(tmp_path, pretraining_args=side, max_steps=3, save_steps=1)
    found = metrics(tmp_path)["metrics"]
    said = {"contrast": "alignment_gap", "caption": "caption_nats", "local": "local_preferred"}
    assert {name for name, key in said.items() if key in found} == {alone}
    _, changed = moved(tmp_path, 1, 3)
    # "query" as the pooler whose tokens this loss sees; the other two losses' own parts stay.
    own = {"contrast": "proj_t.0.weight", "caption": "text_decoder.text_projection", "local": "sent_proj.weight"}
    assert {name for name, part in own.items() if part in changed} == {alone}
    poolers = {"caption" if "caption" in name else "contrast" for name in changed if name.endswith(".query")}
    assert poolers == {"caption" if alone == "caption" else "contrast"}
    assert any(name.startswith("encoder.ecg_encoder.") for name in changed)


@pytest.mark.slow
def test_it_learns_whose_report_is_whose(train, tmp_path):
    """Of the recordings it is shown: 16 in a batch, each four dozen times."""
    more = {"per_device_train_batch_size": 16, "max_steps": 80, "warmup_steps": 20, "learning_rate": 3e-3}
    side = SIDE_ARGS | {"caption_weight": 0.0, "local_weight": 0.0}
    train(tmp_path, **more, **MELP.still, pretraining_args=side, lead_mask=0.0, logging_steps=20, save_steps=80)
    state = json.loads((tmp_path / "checkpoints" / "checkpoint-80" / "trainer_state.json").read_text())
    first, *_, last = (entry for entry in state["log_history"] if "alignment_gap" in entry)
    assert abs(first["alignment_gap"]) < 0.05 and last["alignment_gap"] > 0.2
    assert last["contrast_loss"] < 0.8 * first["contrast_loss"]


def test_a_collapse_is_told(train, tmp_path, caplog):
    """Nothing is learned at a rate of 0: all recordings look alike to random weights."""
    train(tmp_path, learning_rate=0.0, max_steps=6)
    assert "step 5: the alignment gap is" in caplog.text and "below 0.02 in 5 logs" in caplog.text
    assert "on held-out patients: a recording's own report is hardly nearer" in caplog.text


# --- configs and settings ---------------------------------------------------------------------------------------------


def test_the_published_config_is_as_published():
    """Sizes are the classes' defaults, which the golden files hold to; here is what a config says."""
    file = str(next(path for path in MELP.configs if path.stem == "melp_mimic"))
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
    file = str(next(path for path in MELP.configs if path.stem == "melp_tiny_cpu"))
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
