"""Other people's encoder and question set: two packages outside the tree, installed, trained on, audited and asked."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

import elm
from data.conversations import load_questions
from data.readers.wfdb import write_wfdb
from data.synthetic import SyntheticCohort
from elm.training import tiny_llama
from encoders import load_encoder

REPO = Path(__file__).resolve().parents[1]
PACKAGES = [REPO / "tests" / "extension" / name for name in ("encoder", "questions")]
FINDINGS = ("atrial fibrillation", "bradycardia")
PATIENTS, HELD_OUT = 36, 12


def shown(kind):
    """The blocks of a kind in the manual."""
    manual = (REPO / "docs" / "extending.md").read_text(encoding="utf-8")
    return re.findall(rf"```{kind}\n(.*?)```", manual, re.DOTALL)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment of a process that finds both packages installed."""
    folder = tmp_path_factory.mktemp("installed")
    copies = [shutil.copytree(package, folder / "source" / package.name) for package in PACKAGES]
    site = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    only_these = ["--no-index", "--no-deps", "--no-build-isolation", "--target", site]
    subprocess.run([*pip, *only_these, *copies], check=True)
    return os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def run(installed, tmp_path_factory):
    """Run Python with these arguments, in a folder that holds nothing; gives what it printed."""
    empty = tmp_path_factory.mktemp("empty")

    def call(*words):
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(command, env=installed, cwd=empty, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "cannot be imported" not in done.stderr
        return done.stdout

    return call


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """WFDB records of simulated patients, and the table of what they show, a part of it unknown."""
    root = tmp_path_factory.mktemp("records")
    cohort = SyntheticCohort(PATIENTS, records_per_patient=1)
    with (root / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["record", "patient", "split", *FINDINGS])
        for i, record in enumerate(cohort.records):
            write_wfdb(cohort[record], root)
            shown = [
                "" if i % 9 == k else "yes" if cohort.present(name)[i] else "no" for k, name in enumerate(FINDINGS)
            ]
            table.writerow([record, cohort.patient_of[record], "test" if i < HELD_OUT else "train", *shown])
    return root


@pytest.fixture(scope="module")
def model(run, records, tmp_path_factory):
    """A model that the recipe has trained: their encoder, their questions, an untrained Llama."""
    llama, folder = tmp_path_factory.mktemp("llama"), tmp_path_factory.mktemp("trained") / "model"
    torch.manual_seed(0)
    tokenizer = tiny_llama.train_tokenizer(
        [f"Does this ECG show {finding}? yes no" for finding in FINDINGS], vocab_size=320
    )
    LlamaForCausalLM(tiny_llama.llama_config(tokenizer)).save_pretrained(llama)
    tokenizer.save_pretrained(llama)
    config = folder.parent / "ours.yaml"
    config.write_text(*shown("yaml"))
    here = {
        "config": config, "dataset_args": json.dumps({"root": str(records)}), "model_name_or_path": llama,
        "output_dir": folder, "cache_dir": folder.parent / "cache", "dtype": "float32", "bf16": False, "use_cpu": True,
        "max_steps": 3, "logging_steps": 1, "ablation": False,
    }  # fmt: skip
    run(REPO / "recipes" / "sft_llava.py", *(word for name, value in here.items() for word in (f"--{name}", value)))
    return folder


def test_they_are_small():
    for package in PACKAGES:
        files = [path for path in package.rglob("*") if path.suffix in (".py", ".toml")]
        assert len(files) == 2
        assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= 80


def test_the_manual_shows_them_in_full():
    for kind, suffix in (("toml", ".toml"), ("python", ".py")):
        files = [path.read_text(encoding="utf-8") for package in PACKAGES for path in package.glob(f"*{suffix}")]
        assert shown(kind) == files


@pytest.mark.slow
def test_the_recipe_trains_their_encoder_on_their_questions(model, records):
    config = json.loads((model / "config.json").read_text())["encoder_config"]
    assert (config["model_type"], config["hidden_size"]) == ("ecg_conv", 96)
    training = json.loads((model / "training.json").read_text())
    assert training["arguments"]["dataset"] == "table" and training["losses"]
    examples = {path.stem for path in (model / "examples").glob("*.hea")}
    assert len(examples) == 3 and examples <= {path.stem for path in records.glob("*.hea")}


@pytest.mark.slow
def test_the_audit_asks_their_questions(model, run):
    assert "ablation/report.html" in run("-m", "eval.ablation", "--model", model)
    report = json.loads((model / "ablation" / "report.json").read_text())
    assert report["dataset"] == f"table of {PATIENTS} records" and report["patients"] == HELD_OUT
    assert {"real", "swap", "swap-flip", "zero", "none"} <= report["conditions"].keys()
    lines = [json.loads(line) for line in (model / "ablation" / "predictions.jsonl").read_text().splitlines()]
    assert {line["attribute"] for line in lines} == set(FINDINGS)
    assert {tuple(line["options"]) for line in lines if line["condition"] == "real"} == {("no", "yes")}


SCRIPT = """
import sys
from pathlib import Path

import ecg_conv  # before ours, as its own tests would
import torch
from transformers import AutoModel

import elm
from data.conversations import check_questions, load_questions
from data.readers import read_ecg
from elm.ask import ask
from encoders import check_encoder, load_encoder, new_encoder, save_encoder

folder, records = map(Path, sys.argv[1:])
encoder, extractor = new_encoder("ecg_conv", hidden_size=16)
check_encoder(encoder, extractor)
check_questions(load_questions("table", root=records))
save_encoder(encoder, extractor, "encoder")
for loaded in (load_encoder("encoder")[0], AutoModel.from_pretrained("encoder")):
    assert type(loaded) is ecg_conv.ConvEncoder and loaded.config.hidden_size == 16
model, processor = elm.load(folder)
assert type(model.model.encoder) is ecg_conv.ConvEncoder
assert type(processor.feature_extractor) is ecg_conv.ConvFeatureExtractor
ecg = read_ecg(sorted((folder / "examples").glob("*.hea"))[0])
print("answer:", ask(model, processor, [ecg], "Does this ECG show bradycardia?", max_new_tokens=4))
"""


@pytest.mark.slow
def test_their_model_loads_and_answers_and_their_parts_keep_the_contracts(model, records, run, tmp_path):
    script = tmp_path / "use.py"
    script.write_text(SCRIPT)
    assert "answer:" in run(script, model, records)


@pytest.mark.slow
def test_without_the_packages_their_names_are_unknown(model):
    with pytest.raises(ValueError, match="unknown encoder type 'ecg_conv': is the package that provides it installed?"):
        elm.load(model)
    with pytest.raises(
        FileNotFoundError, match="no encoder at ecg_conv: .*nor an encoder type of an installed package"
    ):
        load_encoder("ecg_conv")
    with pytest.raises(ValueError, match="unknown dataset 'table': .*is the package that provides it installed?"):
        load_questions("table")
