"""Going on from a saved model: training begins with its parts, what contradicts them is refused, the card says so."""

import dataclasses
import json
import os

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from trl import ModelConfig, SFTConfig

import elm
from data.conversations import load_questions
from data.conversations.rows import user
from elm.model.quantization import is_quantized
from elm.saved.arguments import ElmArguments
from elm.saved.card import write_card
from elm.saved.folder import save
from elm.training import leaks
from elm.training.base import base_of, earlier_trainings, explicit_settings, record_of, refuse_own_folder, settled
from elm.training.build import build, lora
from elm.training.plan import skeleton
from elm.training.run import Run
from elm.training.settings import claim
from encoders import save_encoder
from helpers.golden import SMALL

DATASET = {"patients": 12, "held_out_patients": 6, "questions": 4, "held_out_questions": 2}


@pytest.fixture
def saved(make_pair, tmp_path):
    """`saved(encoder, dtype=..., **arguments)`: a pair, and the folder of it as a recipe would have saved it."""

    def make(kind="patch", *, dtype=torch.float32, name="base", base=None, **settings):
        kinds = {"pool": settings.get("projector_pool", 1), "kind": settings.get("projector_type", "mlp")}
        model, processor = pair = make_pair(kind, **kinds)
        for weight in model.parameters():
            weight.data = weight.data.to(dtype)
        arguments = ElmArguments(**{"encoder": "my-encoder", "dataset_args": DATASET} | settings)
        training = {
            "language_model": "lab/small-llama", "dataset_name": "simulated cohort", "corpora": [], "notes": [],
            "train_condition": "real", "arguments": dataclasses.asdict(arguments), "losses": [1.0], "base": base,
        }  # fmt: skip
        return pair, save(model, processor, tmp_path / name, training=training)

    return make


def named(folder, **settings):
    return ModelConfig(model_name_or_path=str(folder), **settings)


def going_on(folder, arguments=None, **settings):
    """What a run builds."""
    model_args = named(folder, **settings)
    return build(settled(arguments or ElmArguments(), model_args), model_args, None, seed=5)


def assert_same(model, expected, dtype=None):
    ours, theirs = model.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value.to(ours[name].dtype)), name


# --- the parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["patch", "beats", "heart-compact", "codes"])
def test_every_part_is_the_saved_one(saved, make_ecg, encoder):
    (model, processor), folder = saved(encoder, projector_pool=2)
    again, its_processor = going_on(folder)
    assert_same(again, model)
    assert its_processor.to_dict() == processor.to_dict() and its_processor.chat_template == processor.chat_template
    messages = [user(1, "Is it?")]
    ours, theirs = (p(messages, [make_ecg(3)])["input_ids"] for p in (its_processor, processor))
    assert torch.equal(ours, theirs)
    with torch.no_grad():
        assert again(**its_processor(messages, [make_ecg(3)])).logits.shape[1] == theirs.shape[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_what_is_trained_in_full_is_float32_and_not_rounded(saved, dtype):
    """The language model has the precision that is asked for, as of one that is loaded by itself."""
    (model, _), folder = saved()
    again, _ = going_on(folder, dtype=dtype)
    wanted = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": torch.float32}[dtype]
    assert {w.dtype for w in again.model.language_model.parameters()} == {wanted} == {again.lm_head.weight.dtype}
    for part in ("encoder", "projector"):
        assert_same(getattr(again.model, part), getattr(model.model, part))
        assert {w.dtype for w in getattr(again.model, part).parameters()} == {torch.float32}


def test_a_model_saved_in_half_precision_goes_on_in_float32(saved):
    (model, _), folder = saved("beats", dtype=torch.bfloat16)
    again, _ = going_on(folder)
    assert {weight.dtype for weight in again.parameters()} == {torch.float32}
    assert_same(again, model)


def test_the_attention_is_the_one_that_is_asked_for(saved):
    _, folder = saved()
    assert going_on(folder, attn_implementation="eager")[0].model.language_model.config._attn_implementation == "eager"
    assert going_on(folder)[0].model.language_model.config._attn_implementation == "sdpa"


def test_in_4_bits_only_the_language_model_is(saved, tmp_path):
    pytest.importorskip("bitsandbytes", reason='needs bitsandbytes: pip install "ecg-elm[quant]"')
    (model, processor), folder = saved("beats")
    again, _ = going_on(folder, ElmArguments(quantization="nf4"), dtype="bfloat16")
    assert is_quantized(again.model.language_model) and not is_quantized(again.model.encoder)
    assert again.model.language_model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert again.lm_head.weight.dtype == torch.bfloat16
    for part in ("encoder", "projector"):
        assert_same(getattr(again.model, part), getattr(model.model, part))
    assert "quantization_config" not in again.config.to_dict()


def test_lora_is_put_on_as_on_a_new_model(saved):
    _, folder = saved()
    config = lora(ModelConfig(lora_r=4), going_on(folder)[0], train_encoder=False)
    assert "q_proj" in config.target_modules and config.modules_to_save == ["projector"]


def test_a_run_is_planned_on_its_shapes(saved):
    (model, _), folder = saved("beats", projector_pool=3)
    empty = skeleton(settled(ElmArguments(), named(folder)), named(folder))
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}


def test_one_saved_by_an_earlier_version_is_gone_on_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = SMALL / "saved_run"
    arguments = settled(ElmArguments(encoder_args={"output": "tokens"}), named(folder))
    assert arguments.encoder == "tiny" and arguments.encoder_args == {"output": "tokens"}
    again, processor = build(arguments, named(folder), None, 0)
    model, _ = elm.load(folder)
    assert_same(again, model)
    record = record_of(base_of(named(folder)))
    assert record["dataset_name"] == "simulated cohort" and record["arguments"]["dataset_args"]["patients"] == 600


# --- its settings -----------------------------------------------------------------------------------------------------


def test_settings_of_the_parts_are_those_of_the_saved_model(saved):
    settings = {"encoder_args": {"patch_size": 200}, "measured": True, "measured_amplitudes": "mean"}
    _, folder = saved(projector_pool=2, projector_type="linear", **settings)
    arguments = settled(ElmArguments(dataset="ecg_qa", align_steps=3), named(folder))
    assert (arguments.encoder, arguments.projector_pool, arguments.projector_type) == ("my-encoder", 2, "linear")
    assert {name: getattr(arguments, name) for name in settings} == settings
    assert (arguments.dataset, arguments.align_steps) == ("ecg_qa", 3)  # all else is the new run's
    assert settled(arguments, named(folder)) == arguments
    same = ElmArguments(encoder="my-encoder", encoder_args={"patch_size": 200}, projector_pool=2)
    assert settled(same, named(folder)) == settled(ElmArguments(), named(folder))


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("encoder", "fuyingw/MELP_Encoder", "the encoder"),
        ("encoder", "ecg_byte", "the encoder"),
        ("encoder_args", {"patch_size": 100}, "the encoder"),
        ("encoder_args", {"output": "beats"}, "the encoder"),
        ("projector_type", "linear", "the projector"),
        ("projector_type", "vocabulary", "the projector"),
        ("projector_norm", False, "the projector"),
        ("projector_pool", 4, "the projector"),
        ("projector_pool_mode", "mean", "the projector"),
        ("measured", True, "what the model reads of measured features"),
        ("measured_amplitudes", "none", "what the model reads of measured features"),
    ],
)
def test_a_setting_that_contradicts_it_is_refused_by_name(saved, name, value, what):
    _, folder = saved()
    message = f"{what} is that of {folder}: leave {name} out \\(it is .*, and there "
    with pytest.raises(ValueError, match=message):
        settled(ElmArguments(**{name: value}), named(folder))
    with pytest.raises(ValueError, match=message):  # and by a run that is called without a command line
        Run.build(ElmArguments(**{name: value}), SFTConfig("x", use_cpu=True, bf16=False), named(folder), None)


def test_a_default_that_somebody_gave_contradicts_too(saved):
    """`--encoder tiny` is meant; `encoder: tiny` of the default config is not."""
    _, folder = saved(projector_pool=2)
    for name in ("encoder", "projector_pool"):
        with pytest.raises(ValueError, match=f"leave {name} out"):
            settled(ElmArguments(), named(folder), explicit={name})
    by_default = ElmArguments(encoder="tiny", encoder_args={"output": "tokens"})
    assert settled(by_default, named(folder), explicit=set()).encoder_args == {}
    with pytest.raises(ValueError, match="leave encoder_args out"):
        settled(by_default, named(folder), explicit={"encoder_args"})


def test_an_encoder_may_be_named_by_another_path_to_it(saved, tmp_path):
    (tmp_path / "encoder").mkdir()
    (tmp_path / "link").symlink_to("encoder")
    _, folder = saved(encoder=str(tmp_path / "encoder"))
    arguments = settled(ElmArguments(encoder=str(tmp_path / "link")), named(folder))
    assert arguments.encoder == str(tmp_path / "encoder")


def test_settings_that_a_command_line_gives(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump({"encoder": "x", "dataset": "ecg_qa"}))
    assert explicit_settings(["--encoder_args", "{}", "--max_steps", "3"]) == {"encoder_args"}
    assert explicit_settings(["--projector_pool=2"]) == {"projector_pool"}
    for words in (["--projector_n", "false"], ["--no_projector_norm"], ["--no-projector-norm"], ["--projector-norm=0"]):
        assert explicit_settings(words) == {"projector_norm"}
    assert explicit_settings(["--config", str(config), "--measured"]) == {"encoder", "dataset", "measured"}
    assert "encoder" in explicit_settings([f"--config={config}"])
    assert explicit_settings(["--model_name_or_path", "out/x", "--dev"]) == set()


def test_a_language_model_changes_no_setting(tmp_path):
    arguments = ElmArguments(encoder="x", projector_pool=3)
    for name in ("tiny", "meta-llama/Llama-3.2-1B-Instruct"):
        assert settled(arguments, named(name)) is arguments and base_of(named(name)) is None


# --- what is no base --------------------------------------------------------------------------------------------------


def small_llama(folder):
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=1)).save_pretrained(folder)
    return folder


def checkpoint(folder, run):
    """A checkpoint of a run's align stage, which holds a whole model."""
    inner = run / "checkpoints" / "align" / "checkpoint-2"
    inner.mkdir(parents=True)
    for file in ("config.json", "model.safetensors", "processor_config.json", "tokenizer.json"):
        os.link(folder / file, inner / file)
    (inner / "trainer_state.json").write_text("{}")
    return inner


def test_a_part_of_a_saved_model_is_no_base(saved, tmp_path):
    _, folder = saved()
    align = checkpoint(folder, folder)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / ".saving-x1").mkdir()
    (folder / ".saving-x1" / "config.json").write_bytes((folder / "config.json").read_bytes())
    for part, what in (
        (align, "it is a checkpoint of the run in"),
        (align.parent, "it holds checkpoints of the run in"),
        (align.parent.parent, "it holds checkpoints of the run in"),
        (folder / "adapter", "it holds LoRA weights; the model with these merged is in"),
        (folder / ".saving-x1", "it is what an interrupted saving left in"),
        (folder / "model.safetensors", "it is a file of the one in"),
    ):
        with pytest.raises(ValueError, match=f"model_name_or_path {part}: .*{what} {folder}"):
            base_of(named(part))
    with pytest.raises(ValueError, match="its training is not finished|whose training is not finished: start it again"):
        base_of(named(checkpoint(folder, tmp_path / "other")))


def test_a_model_that_does_not_say_what_it_was_trained_on_is_no_base(saved):
    _, folder = saved()
    record = json.loads((folder / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps({k: v for k, v in record.items() if k != "arguments"}))
    with pytest.raises(ValueError, match=f"training.json of {folder} does not say how it was trained"):
        base_of(named(folder))
    (folder / "training.json").unlink()
    with pytest.raises(ValueError, match="has no training.json: it does not say"):
        base_of(named(folder))


def test_an_encoder_is_no_base(make_pair, tmp_path):
    model, processor = make_pair("beats")
    save_encoder(model.model.encoder, processor.feature_extractor, tmp_path)
    with pytest.raises(ValueError, match=r"is an ECG encoder \(ecg_melp\): give it as encoder, and a language model"):
        base_of(named(tmp_path))


def test_a_saved_model_is_no_encoder(saved, tmp_path):
    """Found before a language model is made or loaded."""
    _, folder = saved()
    arguments = ElmArguments(encoder=str(folder), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=f"encoder {folder} is a whole ECG-language model: .* model_name_or_path"):
        build(arguments, named("tiny"), None, 0)
    assert not (tmp_path / "cache").exists()


def test_a_language_model_is_one_even_as_a_checkpoint_of_its_own_training(tmp_path):
    folder = small_llama(tmp_path / "checkpoint-20")
    (folder / "trainer_state.json").write_text("{}")
    assert base_of(named(folder)) is None and AutoModelForCausalLM.from_pretrained(folder) is not None


def test_a_damaged_one_is_named(saved):
    _, folder = saved()
    os.truncate(folder / "model.safetensors", 4000)
    with pytest.raises(ValueError, match=f"the weights in {folder}/model.safetensors are damaged"):
        base_of(named(folder))


def test_a_run_does_not_write_over_what_it_goes_on_from(saved, tmp_path):
    _, folder = saved(name="runs/base")
    base = base_of(named(folder))
    for out in (folder, tmp_path / "runs", f"{folder}/"):
        with pytest.raises(ValueError, match=f"output_dir {out} holds {folder}, which the run goes on from"):
            refuse_own_folder(base, str(out))
    refuse_own_folder(base, str(folder / "second"))
    refuse_own_folder(base, str(tmp_path / "runs" / "base-2"))


# --- what is told -----------------------------------------------------------------------------------------------------


def test_a_base_that_was_trained_anew_makes_another_run(saved, tmp_path):
    _, folder = saved()
    args = SFTConfig(str(tmp_path / "run"), use_cpu=True, bf16=False)
    arguments = settled(ElmArguments(), named(folder))
    claim(arguments, args, named(folder))
    claim(arguments, args, named(folder))
    record = json.loads((folder / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps(record | {"losses": [0.5]}))
    with pytest.raises(ValueError, match="holds checkpoints of another run \\(base '.*' but now '"):
        claim(arguments, args, named(folder))


def test_card_and_record_say_all_that_came_before(saved, make_pair, tmp_path):
    first = {"name_or_path": "lab/first", "training": "abc", "dataset_name": "MIMIC-IV-ECG questions",
             "corpora": ["mimic-iv-ecg"], "train_condition": "real", "arguments": {}, "base": None}  # fmt: skip
    _, folder = saved(base=first)
    base = base_of(named(folder))
    assert [one["name_or_path"] for one in earlier_trainings(base)] == [str(folder), "lab/first"]
    training = {**base.training, "dataset_name": "ECG-QA", "corpora": ["ptb-xl"], "base": record_of(base)}
    second = save(*make_pair(), tmp_path / "second", training=training)
    write_card(second)
    card = (second / "README.md").read_text()
    assert f"- It went on from {folder} (training {base.digest}): language model, projector and encoder" in card
    assert f"- Questions: ECG-QA.\n- Trained before, as {folder}, on: simulated cohort.\n" in card
    assert "- Trained before, as lab/first, on: MIMIC-IV-ECG questions.\n" in card
    assert "- MIMIC-IV-ECG 1.0: ODbL 1.0" in card and "- PTB-XL: CC BY 4.0" in card
    for line in ("- ecg-qa", "- simulated-cohort", "- mimic-iv-ecg-questions"):
        assert line in card.partition("datasets:")[2].partition("---")[0]


@pytest.fixture(scope="module")
def questions():
    return load_questions("synthetic", **DATASET)


@pytest.fixture
def told(saved, make_pair, tmp_path):
    """`told(questions, allow_leaks=..., **arguments)`: sentences of the leak check of a run on the saved model."""
    _, folder = saved()

    def of(questions, allow_leaks=False, record=None):
        arguments = ElmArguments(dataset_args=DATASET, cache_dir=str(tmp_path / "cache"), allow_leaks=allow_leaks)
        earlier = [record_of(base_of(named(folder))) | (record or {})]
        return leaks.leaks_of(arguments, questions, make_pair().model, earlier)

    of.name = str(folder)
    return of


def test_the_same_questions_again_have_the_same_test(told, questions):
    assert told(questions)[-1] == (
        f"No patient of the test was in the training of {told.name} (simulated cohort), compared by name."
    )


def test_patients_of_the_earlier_training_in_the_test_are_leaks(told, questions, monkeypatch):
    other = dataclasses.replace(questions, train=[*questions.train, *questions.test[:3]])
    monkeypatch.setattr(leaks, "questions_for", lambda arguments: other)
    before = {"arguments": {"dataset": "synthetic", "dataset_args": {**DATASET, "questions": 9}}}
    patients = {patient for row in questions.test[:3] for patient in row["patient_ids"]}
    count = f"{len(patients)} patients? of the test (was|were) in the training of .*base "
    with pytest.raises(ValueError, match=f"{count}.*not be those of new patients.*allow_leaks: true"):
        told(questions, record=before)
    sentences = told(questions, allow_leaks=True, record=before)
    assert all(patient in sentences[-1] for patient in patients)


def test_other_recordings_with_the_same_names_are_none(told, questions, monkeypatch):
    """Patient 1 of one corpus is not patient 1 of another."""
    swapped = dataclasses.replace(questions, train=questions.test, test=questions.train)
    before = {"arguments": {"dataset": "synthetic", "dataset_args": {**DATASET, "seed": 4}}}
    monkeypatch.setattr(leaks, "questions_for", lambda _: dataclasses.replace(swapped, source_key="another cohort"))
    assert told(questions, record=before)[-1].startswith("No patient of the test was in the training of")
    monkeypatch.setattr(leaks, "questions_for", lambda _: swapped)
    with pytest.raises(ValueError, match="in the training of"):
        told(questions, record=before)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"dataset": "ecg_qa", "dataset_args": {"root": "/nowhere/ptbxl"}}, ""),
        ({"dataset": "no_such_set", "dataset_args": {}}, "unknown dataset 'no_such_set'"),
        ({}, "its record does not say where they are"),
    ],
)
def test_what_cannot_be_compared_is_said(told, questions, arguments, why, caplog):
    traits = {record: {"corpus": "ptb-xl"} for record in questions.patient_of}
    questions = dataclasses.replace(questions, traits=traits)
    record = {"arguments": arguments, "corpora": ["ptb-xl"], "dataset_name": "ECG-QA"}
    last = told(questions, record=record)[-1]
    assert last.startswith(f"{told.name} was trained on ECG-QA, which cannot be read here (") and why in last
    assert last.endswith("whether it has seen patients of this test is not known. Both have recordings of ptb-xl.")
    assert last in caplog.text
