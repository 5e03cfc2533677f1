"""Publishing and loading by hub id: what is uploaded and what is not, and the same answers after the whole way."""

import html
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from trl import ModelConfig

import elm
from data.conversations import load_questions
from data.readers.wfdb import write_wfdb
from elm.inputs.features import weights_hash
from elm.saved import publish as publishing
from elm.saved.arguments import ElmArguments
from elm.saved.folder import resolve, save
from elm.saved.publish import Publication, last_parts, pattern_of
from elm.saved.run import SavedRun
from elm.training.base import base_of, record_of, settled
from elm.training.build import build
from elm.training.stages import stage_args
from encoders import load_encoder, save_encoder
from eval.answerers.scripted import ScriptedResponder
from eval.audit.run import run as audit
from eval.audit.settings import AuditSettings
from helpers import hub_server

DATASET = {"patients": 12, "held_out_patients": 10, "questions": 4, "held_out_questions": 6}
PRIVATE = "/home/somebody/my data"
WEIGHT = "model.language_model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="session")
def questions():
    return load_questions("synthetic", **DATASET)


@pytest.fixture(scope="session")
def audited_once(make_pair, questions, tmp_path_factory):
    """A model's folder as a recipe leaves it: audit, adapter, examples, checkpoints, settings full of private paths."""
    folder = tmp_path_factory.mktemp("out") / "model"
    model, processor = make_pair(pool=2)
    model.config.encoder_config.name_or_path = f"{PRIVATE}/encoder"
    arguments = {"dataset": "synthetic", "dataset_args": {**DATASET, "cache": f"{PRIVATE}/cache"},
                 "encoder": f"{PRIVATE}/encoder", "cache_dir": "out/cache"}  # fmt: skip
    training = {
        "language_model": "someone/llama", "dataset_name": questions.name, "corpora": [], "train_condition": "real",
        "notes": [f"Not read: {folder}/x.hea, /mnt/data/y.dat; see https://example.org/a/b/c or S/T."],
        "arguments": arguments, "trainer_dir": {"output_dir": "out/model"}, "losses": [0.5],
    }  # fmt: skip
    save(model, processor, folder, training=training)
    for name in ("adapter/adapter_model.safetensors", "checkpoints/sft/checkpoint-2/model.safetensors",
                 "text-only/model.safetensors"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True)
        shutil.copy(folder / "model.safetensors", folder / name)
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    (folder / "adapter" / "base.json").write_text('{"weights": "abc"}')
    (folder / "adapter" / "README.md").write_text(f"base_model: {folder}")
    write_wfdb(questions.source[questions.test[0]["ecgs"][0]], folder / "examples")
    reader = ScriptedResponder(lambda row, condition: "yes" if condition == "none" else ", ".join(row["answer"]))
    audit(AuditSettings(model=folder, draws=20), responder=reader, questions=questions)
    return folder


@pytest.fixture
def folder(audited_once, tmp_path):
    """One that a test may change."""
    shutil.copytree(audited_once, tmp_path / "model")
    return tmp_path / "model"


LOADS = {
    "config.json", "generation_config.json", "model.safetensors", "processor_config.json", "chat_template.jinja",
    "tokenizer.json", "tokenizer_config.json", "training.json",
}  # fmt: skip
ADAPTER = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/base.json"}
SHOWS_PATIENTS = re.compile(r"examples/.*|ablation/(examples\.json|predictions\.jsonl|asked-.*|report\.html)")


def test_what_is_uploaded_and_what_is_not(folder):
    files = publishing.contents(folder, "owner/model")
    audit = {path for path in files if path.startswith("ablation/")}
    assert files.keys() == LOADS | ADAPTER | audit | {"README.md"}
    assert {"ablation/report.json", "ablation/report.md", "ablation/gap.png", "ablation/conditions.png"} <= audit
    assert not [path for path in files if SHOWS_PATIENTS.fullmatch(path)]
    card = files["README.md"].decode()
    assert "`ablation/report.md`" in card and 'elm.load("owner/model")' in card and "name: model" in card
    with_recordings = publishing.contents(folder, "owner/model", Publication(with_recordings=True))
    more = with_recordings.keys() - files.keys()
    assert more and all(SHOWS_PATIENTS.fullmatch(path) for path in more)
    assert {"ablation/report.html", "ablation/predictions.jsonl", "ablation/examples.json"} <= more
    assert "`ablation/report.html`" in with_recordings["README.md"].decode()
    report = folder / "ablation" / "report.html"  # one that draws no recording shows no patient
    report.write_text(re.sub(r"<svg [^>]*class=\"strip\".*?</svg>", "", report.read_text(), flags=re.DOTALL))
    assert "ablation/report.html" in publishing.contents(folder, "owner/model")


@pytest.mark.parametrize(
    ("places", "text", "want"),
    [
        (
            ["out/cache"],
            "layout/cache and out/cache, out/cache-2 or x/out/cache",
            "layout/cache and cache, out/cache-2 or x/out/cache",
        ),
        (["/data", "/data/big set/"], "from '/data/big set/x' and /data-2", "from 'big set/x' and /data-2"),
        (["/", "data/", "."], "1/2 of data/x is here.", "1/2 of data/x is here."),
        ([], "~/x/y, C:\\Users\\me\\x and =/a/b/c/", "y, x and =c"),
        ([], "</td><br/> 1/min/kg https://a.org/b/c //a.org/b/c/d I/II/III (a/b)/c", None),
        (
            [],
            "<img src='data:image/png;base64,=/ab/cd/ef=='>/ab/cd/ef",
            "<img src='data:image/png;base64,=/ab/cd/ef=='>ef",
        ),
    ],
)
def test_places_are_told_from_what_only_looks_like_them(places, text, want):
    assert last_parts(text, pattern_of([*places, "/some/where"])) == (want or text)


@pytest.mark.parametrize("with_recordings", [False, True])
def test_no_place_of_this_machine_is_named(folder, audited_once, with_recordings):
    files = publishing.contents(folder, "owner/model", Publication(with_recordings=with_recordings))
    text = {
        path: (content if isinstance(content, bytes) else content.read_bytes()).decode()
        for path, content in files.items()
        if path.endswith((".json", ".md", ".html", ".jsonl", ".jinja"))
    }
    assert {"training.json", "config.json", "ablation/report.json", "ablation/report.md", "README.md"} <= text.keys()
    for path, told in text.items():
        for place in (str(folder), str(audited_once), str(audited_once.parent), "/home/somebody", "my data", "out/"):
            assert place not in html.unescape(told), f"{path} names {place}"
    training, report = json.loads(text["training.json"]), json.loads(text["ablation/report.json"])
    assert training["arguments"]["dataset_args"] == {**DATASET, "cache": "cache"}
    assert training["arguments"]["cache_dir"] == "cache" and training["arguments"]["encoder"] == "encoder"
    assert training["trainer_dir"]["output_dir"] == "model" and training["language_model"] == "someone/llama"
    assert training["notes"] == ["Not read: model/x.hea, y.dat; see https://example.org/a/b/c or S/T."]
    assert json.loads(text["config.json"])["encoder_config"]["_name_or_path"] == "encoder"
    assert report["model"] == "model" and report["command"].startswith("python -m eval.ablation --model model ")
    before = json.loads((folder / "ablation" / "report.json").read_text())
    changed = {name for name in report if report[name] != before[name]}
    assert changed == {"model", "command", "notes"} or changed == {"model", "command"}


def test_pages_and_tokenizers_stay_as_they_are_but_for_places(folder, audited_once):
    files = publishing.contents(folder, "owner/model", Publication(with_recordings=True))
    for path in ("ablation/report.html", "ablation/report.md"):
        before = (folder / path).read_text()
        assert str(audited_once) in before
        assert files[path].decode() == before.replace(str(audited_once), "model")
    assert files["tokenizer.json"] == folder / "tokenizer.json"
    assert files["model.safetensors"] == folder / "model.safetensors"


def test_no_audit_or_one_of_another_model_is_refused(folder, make_pair):
    training = json.loads((folder / "training.json").read_text())
    save(*make_pair(pool=2, seed=1), folder, training={**training, "losses": [0.4]})
    with pytest.raises(ValueError, match="ablation is of another training than the weights in .*: run `python -m eval"):
        publishing.contents(folder, "owner/model")
    shutil.rmtree(folder / "ablation")
    with pytest.raises(ValueError, match="was not audited: run `python -m eval.ablation --model .*or say --unaudited"):
        publishing.contents(folder, "owner/model")
    files = publishing.contents(folder, "owner/model", Publication(unaudited=True))
    card = files["README.md"].decode()
    assert "**Not audited.**" in card and "model-index" not in card
    assert files.keys() == LOADS | ADAPTER | {"README.md"}


def test_an_old_audit_is_not_published_as_that_of_an_unaudited_model(folder):
    files = publishing.contents(folder, "owner/model", Publication(unaudited=True, with_recordings=True))
    assert not [path for path in files if path.startswith("ablation/")] and "**Not audited.**" in str(
        files["README.md"]
    )


def test_what_would_not_load_is_refused(folder, tmp_path):
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(ValueError, match="the weights in .*model.safetensors are damaged"):
        publishing.contents(folder, "owner/model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="is no saved model: it has no model.safetensors"):
        publishing.contents(folder, "owner/model")
    with pytest.raises(FileNotFoundError, match="is no saved model: it has no config.json"):
        publishing.contents(tmp_path, "owner/model")


def test_recordings_of_mimic_stay_private(folder):
    training = json.loads((folder / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps(training | {"corpora": ["mimic-iv-ecg"]}))
    settings = {"unaudited": True, "with_recordings": True}
    with pytest.raises(ValueError, match="come from patients of MIMIC-IV"):
        publishing.contents(folder, "owner/model", Publication(**settings))
    assert "examples" in str(list(publishing.contents(folder, "owner/model", Publication(private=True, **settings))))
    assert "README.md" in publishing.contents(folder, "owner/model", Publication(unaudited=True))


@pytest.mark.parametrize(
    ("name", "audited", "message"),
    [(None, True, "is called OWNER/NAME"), ("model", True, "is called OWNER/NAME"), ("a/b", False, "--unaudited")],
)
def test_a_run_that_could_not_publish_does_not_start(name, audited, message):
    with pytest.raises(ValueError, match=message):
        publishing.check(name, audited=audited)


def test_the_trainer_publishes_no_checkpoints(tmp_path):
    from trl import SFTConfig

    settings = SFTConfig(
        output_dir=str(tmp_path), push_to_hub=True, hub_model_id="owner/model", use_cpu=True, bf16=False
    )
    assert settings.push_to_hub and not stage_args(settings, "sft").push_to_hub


# --- loading by hub id ------------------------------------------------------------------------------------------------


def publish(folder, name="owner/model", **settings):
    return publishing.push(folder, name, Publication(**settings)).rpartition("/")[2]  # the commit


@torch.no_grad()
def logits(model, processor, ecg):
    said = [{"role": "user", "content": [{"type": "ecg"}, {"type": "text", "text": "Is it?"}]}]
    return model(**processor(said, [ecg])).logits


def test_revisions_are_kept_apart_and_nothing_is_fetched_twice(logged_in, folder, make_ecg):
    first = publish(folder)
    old = logits(*elm.load("owner/model"), make_ecg(1))
    assert any(path.endswith(tuple(logged_in.lfs)) for path in logged_in.downloads())
    logged_in.requests.clear()
    elm.load("owner/model")
    assert logged_in.downloads() == []
    weights = load_file(folder / "model.safetensors")
    weights[WEIGHT] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    second = publish(folder)
    logged_in.repos["model", "owner/model"].refs["v1"] = first
    logged_in.requests.clear()
    assert not torch.equal(logits(*elm.load("owner/model"), make_ecg(1)), old)
    assert len(logged_in.downloads()) == 1  # the file that changed
    for revision, want in ((first, True), ("v1", True), (second, False)):
        assert torch.equal(logits(*elm.load("owner/model", revision=revision), make_ecg(1)), old) is want
    assert len(logged_in.downloads()) == 1
    with pytest.raises(
        FileNotFoundError, match="no saved model at owner/model: .* owner/model on the hub has no revision v9"
    ):
        elm.load("owner/model", revision="v9")


def test_an_interrupted_download_goes_on(logged_in, folder):
    publish(folder)
    logged_in.broken.add("model.safetensors")
    with pytest.raises(FileNotFoundError, match="the hub does not give out owner/model"):
        elm.load("owner/model")
    logged_in.broken.clear()
    logged_in.requests.clear()
    elm.load("owner/model")
    assert len([path for path in logged_in.downloads() if "/lfs/" in path]) == 1
    assert len(logged_in.downloads()) == 1, "what was there is fetched again"


def test_only_what_is_read_is_fetched(logged_in, folder):
    publish(folder, with_recordings=True)
    found = resolve("owner/model")
    assert {path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()} == LOADS
    logged_in.requests.clear()
    assert SavedRun("owner/model").questions.name == "simulated cohort" and logged_in.downloads() == []


def test_who_may_not_read_is_told_what_to_do(logged_in, folder, monkeypatch, make_pair, tmp_path):
    publish(folder, "owner/secret", private=True)
    pair = make_pair()
    save_encoder(pair.model.model.encoder, pair.processor.feature_extractor, tmp_path / "encoder")
    for token in (hub_server.READER, ""):
        monkeypatch.setenv("HF_TOKEN", token)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
        for name in ("owner/secret", "owner/nothing"):
            for load, what in ((elm.load, "saved model"), (load_encoder, "encoder")):
                with pytest.raises(FileNotFoundError, match=f"no {what} at {name}: .*it is private: log in as one"):
                    load(name)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(FileNotFoundError, match="does not give out owner/secret: .*401"):
        elm.load("owner/secret")


def test_without_a_network_the_cache_is_enough(logged_in, folder, monkeypatch, make_ecg):
    publish(folder)
    want = logits(*elm.load("owner/model"), make_ecg(1))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    logged_in.requests.clear()
    assert torch.equal(logits(*elm.load("owner/model"), make_ecg(1)), want) and logged_in.requests == []
    with pytest.raises(FileNotFoundError, match="owner/other is not in the cache, and the hub cannot be reached"):
        elm.load("owner/other")


SCRIPT = """
import contextlib, io, json, sys, torch, urllib.request
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoProcessor
import elm
from data.readers import read_ecg
from elm import ElmForConditionalGeneration, ask, hub
from eval import ablation
folder, endpoint = Path(sys.argv[1]), sys.argv[2]
record = sorted((folder / "examples").glob("*.hea"))[0].with_suffix("")
ecg, said = read_ecg(record), [{"role": "user", "content": [{"type": "ecg"}, {"type": "text", "text": "Is it?"}]}]

def step(name):
    with contextlib.suppress(OSError):
        urllib.request.urlopen(f"{endpoint}/step/{name}")

@torch.no_grad()
def logits(model, processor):
    return model.eval()(**processor(said, [ecg])).logits

hub.main(["push", str(folder), "owner/model", "--license", "mit"])
want = logits(*elm.load(folder))
step("load")
same = {"elm.load": torch.equal(logits(*elm.load("owner/model")), want)}
step("again")
processor = AutoProcessor.from_pretrained("owner/model")
for kind in (ElmForConditionalGeneration, AutoModelForCausalLM):
    same[kind.__name__] = torch.equal(logits(kind.from_pretrained("owner/model"), processor), want)
step("ask")
said_here, said_there = io.StringIO(), io.StringIO()
for model, words in ((folder, said_here), ("owner/model", said_there)):
    with contextlib.redirect_stdout(words):
        ask.main([str(model), str(record), "Is this a normal ECG?", "--max_new_tokens", "5"])
same["ask"] = said_here.getvalue() == said_there.getvalue()
with contextlib.redirect_stdout(io.StringIO()):
    ablation.main(["--model", "owner/model", "--limit", "12", "--conditions", "real", "swap-flip", "none"])
hub.main(["push-questions", str(folder), "owner/questions"])
print(json.dumps(same))
"""


@pytest.mark.slow
def test_the_whole_way_in_a_process_of_its_own(hub, folder, tmp_path):
    """As a user goes it, with the real client: publish, load by every name, ask, audit."""
    environment = {**os.environ, **hub.environment(tmp_path / "home", hub_server.WRITER), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT, folder, hub.url], capture_output=True, text=True,
                          env=environment, cwd=tmp_path, timeout=600)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    where, *_, told = done.stdout.strip().splitlines()
    same = json.loads(told)
    assert len(same) == 4 and all(same.values()), same
    repo = hub.repos["model", "owner/model"]
    assert where == f"{hub.url}/owner/model/commit/{repo.refs['main']}" and len(repo.messages) == 2
    assert "license: mit" in repo.files["README.md"].decode()
    steps = [path for _, path in hub.requests if path.startswith("/step/")]
    assert steps == ["/step/load", "/step/again", "/step/ask"]
    requests = [path for method, path in hub.requests if method == "GET" and "/resolve/" in path or "/lfs/" in path]
    after = hub.requests[hub.requests.index(("GET", "/step/again")) :]
    assert requests and not [path for method, path in after if method == "GET" and path.startswith("/lfs/")]
    report = json.loads((tmp_path / "out" / "model" / "ablation" / "report.json").read_text())
    assert report["model"] == "owner/model" and 0 < report["n"] <= 12 and "--out" not in report["command"]
    assert hub.repos["dataset", "owner/questions"].files.keys() >= {"README.md", "data/questions-test.parquet"}


# --- going on from a model of the hub ---------------------------------------------------------------------------------


def test_training_goes_on_from_a_hub_id(logged_in, folder, make_pair, tmp_path):
    publish(folder, "owner/first")
    model_args = ModelConfig(model_name_or_path="owner/first")
    arguments = settled(ElmArguments(), model_args)
    assert arguments.encoder == "encoder" and arguments.projector_pool == 2  # as it was published, without places
    model, _ = build(arguments, model_args, None, 0)
    assert weights_hash(model) == weights_hash(elm.load(folder)[0])
    record = record_of(base_of(model_args))
    training = {**json.loads((folder / "training.json").read_text()), "base": record}
    second = save(*make_pair(pool=2), tmp_path / "second", training=training)
    assert ModelCard.load(second / "README.md").data.base_model == ["owner/first", "someone/llama"]
    files = publishing.contents(second, "owner/second", Publication(unaudited=True))
    assert json.loads(files["training.json"])["base"] == record


def test_a_base_in_a_folder_is_published_by_its_last_part(folder, make_pair, tmp_path):
    record = record_of(base_of(ModelConfig(model_name_or_path=str(folder))))
    training = {**json.loads((folder / "training.json").read_text()), "base": record}
    training["leaks"] = [f"No patient of the test was in the training of {folder} (x), compared by name."]
    second = save(*make_pair(pool=2), tmp_path / "second", training=training)
    files = publishing.contents(second, "owner/second", Publication(unaudited=True))
    base = json.loads(files["training.json"])["base"]
    assert base["name_or_path"] == "model" and base["arguments"]["dataset_args"]["cache"] == "cache"
    assert "It went on from model (training " in files["README.md"].decode()
    assert str(tmp_path) not in files["README.md"].decode() + files["training.json"].decode()


def test_what_is_no_saved_model_on_the_hub_is_no_base(logged_in, monkeypatch):
    assert base_of(ModelConfig(model_name_or_path="owner/nothing")) is None
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert base_of(ModelConfig(model_name_or_path="owner/other")) is None
