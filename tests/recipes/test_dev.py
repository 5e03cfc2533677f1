"""`--dev`: every config of a model that answers runs to its end, small, in a folder of its own."""

import dataclasses
import json
import tempfile
from pathlib import Path

import pytest
import torch
import yaml
from trl import SFTConfig

import elm
from data.conversations import load_questions
from elm.saved.arguments import ElmArguments
from elm.saved.run import DEV_NOTE, TEST_ROWS, TRAIN_ROWS, few
from elm.training import dev
from elm.training.dev import LANGUAGE_MODELS, language_config
from elm.training.settings import for_dev
from encoders.melp import MelpConfig
from recipes import ablation_grid, sft_llava

# Configs that pretrain an encoder run in the tests of their recipe.
CONFIGS = [
    path
    for path in sorted((Path(sft_llava.__file__).parent / "configs").glob("*.yaml"))
    if not path.stem.startswith(("heartlang_", "melp_"))
]


QUICK = ("tiny_cpu",)  # the default job


@pytest.mark.parametrize(
    "config",
    [pytest.param(path, marks=[] if path.stem in QUICK else pytest.mark.slow, id=path.stem) for path in CONFIGS],
)
def test_every_config_runs(config, folder_of_dev):
    recipe = ablation_grid if config.stem.startswith("grid_") else sft_llava
    told = yaml.safe_load(config.read_text())
    if told.get("quantization"):
        pytest.importorskip("bitsandbytes", reason='needs bitsandbytes: pip install "ecg-elm[quant]"')
    flags = ["--config", str(config), "--dev", "--disable_tqdm", "true"]
    folder = folder_of_dev(lambda: recipe.main(*recipe.parse(flags)))
    models = sorted(folder.glob("cells/*/")) if recipe is ablation_grid else [folder]
    assert len(models) == (4 if recipe is ablation_grid else 1)
    for one in models:
        record = json.loads((one / "training.json").read_text())
        assert len(record["losses"]) == dev.STEPS and DEV_NOTE in record["notes"]
        assert DEV_NOTE in (one / "README.md").read_text()
        assert (one / "ablation" / "report.json").exists()
        align = len(list((one / "checkpoints" / "align").glob("checkpoint-*")))
        assert (align > 0) == (told.get("align_steps", 0) > 0 and record["train_condition"] != "none")
    assert (folder / "text-only" / "config.json").exists() == told.get("text_only", False)
    model, _ = elm.load(models[0])
    assert model.dtype == getattr(torch, told.get("dtype", "float32"))
    assert sum(weight.numel() for weight in model.parameters()) < 4_000_000


def test_grouped_queries_ties_and_positions_stay_those_of_the_published_model():
    for name in LANGUAGE_MODELS:
        published = language_config(name)
        small = dev.shrunk_language(published, vocab_size=300)
        for config in (published, small):
            assert config.hidden_size == config.num_attention_heads * config.head_dim
        ratios = [
            (c.num_attention_heads / c.num_key_value_heads, c.intermediate_size / c.hidden_size, c.rope_parameters,
             c.tie_word_embeddings, c.max_position_embeddings, c.rms_norm_eps)
            for c in (published, small)
        ]  # fmt: skip
        assert ratios[0] == ratios[1]
        assert small.num_hidden_layers == 2 and small.hidden_size <= 128 and small.vocab_size == 300


def test_the_small_encoder_takes_the_same_input_and_gives_as_many_tokens():
    small = dev.shrunk_encoder(MelpConfig())
    assert (small.sampling_rate, small.seconds, small.max_tokens) == (500, 10.0, MelpConfig().max_tokens)
    assert small.output_dim < MelpConfig().output_dim


def test_few_questions_are_spread_over_all(tmp_path):
    questions = load_questions("synthetic", patients=60, held_out_patients=12, questions=10, cache=tmp_path)
    some = few(questions)
    assert 0 < len(some.train) <= TRAIN_ROWS < len(questions.train) and 0 < len(some.test) <= TEST_ROWS
    assert some.train[-1] in questions.train[-len(questions.train) // 10 :], "not the first ones alone"
    assert some.notes[0] == DEV_NOTE and questions.notes[0] != DEV_NOTE


def test_a_corpus_that_is_there_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    arguments = ElmArguments(dataset="ecg_qa", dataset_args={"root": str(tmp_path)}, align_steps=500, dev=True)
    training_args = SFTConfig(str(tmp_path / "real"), use_cpu=True)
    found, aside = for_dev(arguments, training_args)
    assert found.dataset == "ecg_qa" and found.dataset_args == arguments.dataset_args
    assert Path(aside.output_dir).is_relative_to(tmp_path) and Path(found.cache_dir).is_relative_to(tmp_path)
    assert found.align_steps == dev.STEPS
    gone = dataclasses.replace(arguments, dataset_args={"root": "nowhere"})
    assert for_dev(gone, training_args)[0].dataset == "synthetic"
