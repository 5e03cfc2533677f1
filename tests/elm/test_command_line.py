"""What a recipe's command line and its YAML say, and how a wrong name or value is named."""

from pathlib import Path

import pytest

from elm.training.command_line import parse
from recipes import ablation_grid, pretrain_heartlang, pretrain_melp, sft_ecg_byte, sft_encoder_free, sft_llava

CPU = ["--use_cpu", "true", "--bf16", "false"]
RECIPES = (sft_llava, sft_ecg_byte, sft_encoder_free, ablation_grid, pretrain_melp, pretrain_heartlang)


@pytest.fixture
def config(tmp_path):
    """`config("seed: 3")`: a file with this text."""

    def write(text, name="ours.yaml"):
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return file

    return write


def settings_of(*words, recipe=sft_llava):
    flags = ["--stage", "vqhbr"] if recipe is pretrain_heartlang else []
    return recipe.parse([*map(str, words), *flags, *CPU])


def trainer_of(*words, recipe=sft_llava):
    settings = settings_of(*words, recipe=recipe)
    return next(each for each in settings if hasattr(each, "weight_decay"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_a_config_is_named_either_way_in_every_recipe(recipe, config):
    file = config("seed: 1234\noutput_dir: out/x\n")
    assert trainer_of("--config", file, recipe=recipe).seed == 1234
    assert trainer_of(f"--config={file}", recipe=recipe).seed == 1234
    assert trainer_of("--seed", 5, f"--config={file}", recipe=recipe).seed == 5, "a flag wins, wherever it stands"
    assert trainer_of(recipe=recipe).seed != 1234, "without one, the recipe's own"


def test_a_home_folder_is_meant_by_its_sign(config, tmp_path, monkeypatch):
    config("output_dir: ~/out\ncache_dir: ~/cache\ncorpus: synthetic\n", "ours.yaml")
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments, training_args = settings_of("--config=~/ours.yaml", recipe=pretrain_melp)
    assert training_args.output_dir == str(tmp_path / "out") and arguments.cache_dir == str(tmp_path / "cache")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learnig_rate: 0.1", r"ours\.yaml: unknown setting learnig_rate: is learning_rate meant\?"),
        ("zzz: 1", r"ours\.yaml: unknown setting zzz: --help names all"),
        ("env: {A: 1}", r"ours\.yaml: unknown setting env"),
        ("seed: 1\nlora_r: 8\nseed: 2", r"ours\.yaml is no YAML \(line 3\): seed is there twice, in lines 1 and 3"),
        ("dataset_args: {root: a, root: b}\nseed: 1", r"ours\.yaml"),
        ("dataset_args:\n  root: a\n  root: b", r"root is there twice, in lines 2 and 3"),
        ("- seed: 1", r"ours\.yaml holds a list in place of settings: each stands on a line, `name: value`"),
        ("", r"ours\.yaml holds nothing in place of settings"),
        ("just words", r"ours\.yaml holds 'just words' in place of settings"),
        ("seed: [1", r"ours\.yaml is no YAML \(line 1\)"),
        ("seed:\t1\n  x: 2", r"ours\.yaml is no YAML \(line \d\)"),
        ("seed: \x01", r"ours\.yaml is no YAML"),
        ("max_steps: 10.5", r"ours\.yaml: max_steps must be a whole number, got 10\.5"),
        ("max_steps: true", r"ours\.yaml: max_steps must be a whole number, got True"),
        ("learning_rate: fast", r"ours\.yaml: learning_rate must be a number, got 'fast'"),
        ("bf16: maybe", r"ours\.yaml: bf16 must be true or false, got 'maybe'"),
        ("max_steps: [3]", r"ours\.yaml: max_steps must be a whole number, got \[3\]"),
        ("seed:", r"ours\.yaml: seed has no value: give one, or leave the line out"),
        ("train_condition: no", r"ours\.yaml: train_condition is false: put a word in quotes"),
        ("train_sampling_strategy: grouped", r"ours\.yaml: train_sampling_strategy must be one of random, sequential"),
        ("optim: adam", r"ours\.yaml: optim must be one of .*adamw_torch.*, got 'adam'"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_config_is_named(text, message, config):
    with pytest.raises(ValueError, match=message):
        settings_of("--config", config(text))


def test_what_yaml_makes_of_words_is_understood(config):
    file = config(
        "learning_rate: 1e-3\nmax_steps: 1.0e+3\nsave_strategy: no\nquestion_types: single-verify\n"
        "lora_target_modules: [q_proj, v_proj]\ndataset_args: {patients: 3}\nlr_scheduler_kwargs: {min_lr: 0.1}\n"
        "defaults: &d {a: 1}\n".replace("defaults: &d {a: 1}\n", "")
    )
    arguments, training_args, model_args, _ = settings_of("--config", file)
    assert (training_args.learning_rate, training_args.max_steps, training_args.save_strategy) == (1e-3, 1000, "no")
    assert arguments.question_types == ["single-verify"] and arguments.dataset_args == {"patients": 3}
    assert model_args.lora_target_modules == ["q_proj", "v_proj"]
    assert training_args.lr_scheduler_kwargs == {"min_lr": 0.1}


def test_a_config_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"--config: there is no file {tmp_path}/none\.yaml"):
        settings_of("--config", tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="is a folder: name the YAML file in it"):
        settings_of(f"--config={tmp_path}")
    (tmp_path / "latin.yaml").write_bytes("run_name: Köln\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.yaml is no text in UTF-8 \(byte 12\)"):
        settings_of("--config", tmp_path / "latin.yaml")


def test_a_byte_order_mark_is_no_part_of_a_name(config, tmp_path):
    (tmp_path / "windows.yaml").write_bytes(b"\xef\xbb\xbfseed: 9\r\n")
    assert trainer_of("--config", tmp_path / "windows.yaml").seed == 9


@pytest.mark.parametrize("words", [["--config"], ["--config="], ["--config", "--dev"]], ids=" ".join)
def test_a_config_needs_a_name(words):
    with pytest.raises(ValueError, match="--config needs the name of a file"):
        sft_llava.parse(words)


def test_a_run_has_one_config(config):
    file = config("seed: 1")
    with pytest.raises(ValueError, match=r"--config is given 2 times \(.*ours\.yaml, .*ours\.yaml\): a run has one"):
        settings_of("--config", file, f"--config={file}")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_a_misspelt_flag_is_named_with_the_one_that_is_meant(recipe):
    for words in (["--learnig_rate", "1"], ["--learnig-rate=1"]):
        with pytest.raises(ValueError, match=r"^unknown flag --learnig.rate: is --learning_rate meant\?$"):
            settings_of(*words, recipe=recipe)
    with pytest.raises(ValueError, match="^unknown flag --conf: is --config meant"):
        settings_of("--conf", "x", recipe=recipe)


def test_a_wrong_value_of_a_flag_is_a_line(capsys):
    with pytest.raises(SystemExit) as end:
        settings_of("--max_steps", "many")
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: argument --max_steps/--max-steps: invalid int value: 'many' (--help names all flags)"


@pytest.mark.parametrize("words", [["--dev"], ["--dev", "true"], ["--dev=true"]], ids=" ".join)
def test_dev_means_the_same_however_it_is_said(words, config):
    _, training_args, _, _ = settings_of(*words)
    assert (training_args.max_steps, training_args.save_steps) == (2, 1)
    _, training_args, _, _ = settings_of("--config", config("dev: true\nmax_steps: 50\noutput_dir: out/x"))
    assert training_args.max_steps == 2
    _, training_args, _, _ = settings_of("--dev=false", "--max_steps", 50)
    assert training_args.max_steps == 50


def test_a_stage_in_the_config_is_that_of_the_flag(config):
    text = "seed: 3\nstages: {vqhbr: {seed: 4}, sentence: {seed: 5}}"
    kinds = pretrain_heartlang.HeartLangArguments, pretrain_heartlang.TrainingArguments
    for words, seed in ((["--stage=vqhbr"], 4), (["--stage", "sentence"], 5), (["--stage=sentence", "--seed=6"], 6)):
        words = [f"--config={config(text)}", *words, *CPU]
        _, training_args = parse(words, kinds, Path("unused.yaml"), stages=("vqhbr", "sentence"))
        assert training_args.seed == seed
    with pytest.raises(ValueError, match="there is no stage 'vqhbr': this recipe has none"):
        settings_of("--config", config(text), recipe=pretrain_melp)
    with pytest.raises(ValueError, match=r"stage sentence: seed must be a whole number, got 'x'"):
        bad = config("stages: {sentence: {seed: x}}")
        parse([f"--config={bad}", "--stage=vqhbr"], kinds, bad, stages=("vqhbr", "sentence"))
