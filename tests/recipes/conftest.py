"""A question set, a language model and an encoder small enough to train in seconds, and the recipe as a function."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from trl import ModelConfig, SFTConfig, TrlParser

from data.conversations import load_questions
from elm.saved.arguments import ElmArguments
from elm.training import tiny

REPO = Path(__file__).resolve().parents[2]
DATASET = {"patients": 12, "held_out_patients": 6, "questions": 4, "held_out_questions": 2}


@pytest.fixture(scope="session")
def recipe():
    spec = importlib.util.spec_from_file_location("sft_llava", REPO / "recipes" / "sft_llava.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """Folders of a language model, an encoder and the cache."""
    torch.set_num_threads(1)
    cache = tmp_path_factory.mktemp("cache")
    questions = load_questions("synthetic", **DATASET, cache=cache)
    return {
        "model_name_or_path": str(tiny.language_model(questions, cache, steps=3)),
        "encoder": str(tiny.encoder(questions, cache, steps=1)),
        "cache_dir": str(cache),
    }


@pytest.fixture(scope="session")
def flags(parts):
    """Command-line flags of a run of six steps with checkpoints every two, without the ablation."""

    def make(output_dir, **changes):
        settings = {
            **parts, "output_dir": str(output_dir), "turns": 3, "align_steps": 2, "max_steps": 6, "save_steps": 2,
            "per_device_train_batch_size": 4, "logging_steps": 1, "report_to": "none", "bf16": False, "use_cpu": True,
            "gradient_checkpointing": False, "ablation": False, "text_only": False, "disable_tqdm": True, "threads": 1,
            "processes": 1, "dataloader_num_workers": 0, "questions_per_row": 1, "reports_in_sft": False,
            "learning_rate": 1e-3, **changes,
        }  # fmt: skip
        words = ["--config", REPO / "recipes" / "configs" / "tiny_cpu.yaml", "--dataset_args", json.dumps(DATASET)]
        for name, value in settings.items():
            words += [f"--{name}", value]
        return [str(word) for word in words]

    return make


@pytest.fixture
def train(recipe, flags):
    """Run the recipe in this process."""

    def run(output_dir, **changes):
        parser = TrlParser((ElmArguments, SFTConfig, ModelConfig))
        recipe.main(*parser.parse_args_and_config(flags(output_dir, **changes)))

    return run
