"""`--dev`: every config in recipes/configs runs to its end, small, in a folder of its own."""

import json
import tempfile
from pathlib import Path

import pytest
import yaml

import elm
from data.conversations import load_questions
from elm import dev, training
from elm.published import LANGUAGE_MODELS
from recipes import ablation_grid, sft_llava

CONFIGS = sorted((Path(sft_llava.__file__).parent / "configs").glob("*.yaml"))


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary folders go; the working directory has nothing in it."""
    (tmp_path / "temporary").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "temporary"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_runs(config, temporary):
    recipe = ablation_grid if config.stem.startswith("grid_") else sft_llava
    told = yaml.safe_load(config.read_text())
    recipe.main(*recipe.parse(["--config", str(config), "--dev", "--disable_tqdm", "true"]))
    (folder,) = temporary.glob("ecg-elm-dev-*/model")
    assert list(Path.cwd().iterdir()) == [], "something went to a folder of the config's own"
    models = sorted(folder.glob("cells/*/")) if recipe is ablation_grid else [folder]
    assert len(models) == (4 if recipe is ablation_grid else 1)
    for one in models:
        record = json.loads((one / "training.json").read_text())
        assert len(record["losses"]) == dev.STEPS and dev.NOTE in record["notes"]
        assert dev.NOTE in (one / "README.md").read_text()
        assert (one / "ablation" / "report.json").exists()
        align = len(list((one / "checkpoints" / "align").glob("checkpoint-*")))
        assert (align > 0) == (told.get("align_steps", 0) > 0 and record["train_condition"] != "none")
    assert (folder / "text-only" / "config.json").exists() == told.get("text_only", False)
    model, _ = elm.load(models[0])
    assert model.dtype == getattr(__import__("torch"), told.get("dtype", "float32"))
    assert sum(weight.numel() for weight in model.parameters()) < 3_000_000
