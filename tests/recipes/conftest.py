"""A question set, a language model and an encoder small enough to train in seconds, and the recipe as a function."""

import json
import tempfile
from pathlib import Path

import pytest
from transformers import Trainer

from data.conversations import load_questions
from elm.training import tiny
from helpers.pretraining import Pretrain
from recipes import sft_llava

CONFIG = Path(sft_llava.__file__).parent / "configs" / "tiny_cpu.yaml"
DATASET = {"patients": 12, "held_out_patients": 6, "questions": 4, "held_out_questions": 2}
SETTINGS = {
    "turns": 3, "align_steps": 2, "max_steps": 6, "save_steps": 2, "per_device_train_batch_size": 4, "threads": 1,
    "logging_steps": 1, "report_to": "none", "bf16": False, "use_cpu": True, "gradient_checkpointing": False,
    "ablation": False, "text_only": False, "disable_tqdm": True, "learning_rate": 1e-3,
    "processes": 1, "dataloader_num_workers": 0, "questions_per_row": 1, "reports_in_sft": False,
}  # fmt: skip


@pytest.fixture(scope="session")
def parts(built_once):
    """Folders of a language model, an encoder and the cache."""

    def build(cache):
        questions = load_questions("synthetic", **DATASET, cache=cache)
        language, encoder = tiny.language_model(questions, cache, steps=3), tiny.encoder(questions, cache, steps=1)
        places = {"model_name_or_path": str(language), "encoder": str(encoder), "cache_dir": str(cache)}
        (cache / "parts.json").write_text(json.dumps(places))

    return json.loads((built_once("parts", build) / "parts.json").read_text())


@pytest.fixture(scope="session")
def flags(parts):
    """Command-line flags of a run of six steps with checkpoints every two, without the ablation."""

    def make(output_dir, **changes):
        words = ["--config", CONFIG, "--dataset_args", json.dumps(DATASET)]
        for name, value in {**parts, "output_dir": output_dir, **SETTINGS, **changes}.items():
            words += [f"--{name}", value]
        return [str(word) for word in words]

    return make


@pytest.fixture(scope="session")
def train(flags):
    """Run the recipe in this process."""

    def run(output_dir, **changes):
        sft_llava.main(*sft_llava.parse(flags(output_dir, **changes)))

    return run


@pytest.fixture(scope="session")
def trained(train, built_once):
    """An uninterrupted run, for all tests that only read one."""
    return built_once("trained", lambda folder: train(folder / "model")) / "model"


@pytest.fixture
def no_steps(monkeypatch):
    """Trainers collate one batch and take no step, for tests of what reaches them and what is saved; returns them."""
    trainers = []

    def train(self, resume_from_checkpoint=None):
        self.first_batch = next(iter(self.get_train_dataloader()))
        self.to_train = {name: p.shape for name, p in self.model.named_parameters() if p.requires_grad}
        self.state.global_step = self.state.max_steps = self.args.max_steps
        self.state.log_history = [{"step": step, "loss": 1.0} for step in range(1, self.args.max_steps + 1)]
        trainers.append(self)

    monkeypatch.setattr(Trainer, "train", train)
    return trainers


@pytest.fixture
def folder_of_dev(tmp_path, monkeypatch):
    """`folder_of_dev(run)`: what `run()` leaves with `--dev`, which writes nothing to the working directory."""
    for name in ("temporary", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "work")

    def left_by(run):
        run()
        (folder,) = (tmp_path / "temporary").glob("ecg-elm-dev-*/model")
        assert list(Path.cwd().iterdir()) == [], "something went to a folder of the config's own"
        return folder

    return left_by


@pytest.fixture(scope="session")
def pretrain(built_once):
    """The recipes that pretrain encoders: see helpers/pretraining.py."""
    return Pretrain(built_once)
