"""Zero-shot: what is compared with what, a model whose vectors are known, what is left out, and the command line."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizer

from data.ecg import LEADS, Ecg
from data.readers import write_wfdb
from data.synthetic import NOISES, VOLTAGES, SyntheticCohort
from encoders import save_encoder
from encoders.melp import (
    MelpConfig,
    MelpFeatureExtractor,
    MelpForPretraining,
    MelpModel,
    MelpOutput,
    MelpPretrainingConfig,
)
from encoders.melp.files import new_pretraining, save_pretraining
from encoders.melp.text import add_bos, tokenize_texts
from eval import zero_shot as door
from eval.probing import zero_shot
from eval.probing.tasks import TASKS, Task, simulated
from eval.probing.text import SHOWN, score_text, zero_shot_text
from eval.probing.transfer import FINDINGS, prompts_of, read_prompts
from eval.probing.transfer import WORDS as PLAIN
from eval.probing.zero_shot import OUTSIDE, TextAndEcg, measure, score
from eval.statistics import auroc

PROMPTS = Path(__file__).resolve().parents[2].parent / "shared/data/metadata/CKEPE_prompt.json"
WORDS = [
    "normal",
    "ecg",
    "atrial",
    "fibrillation",
    "sinus",
    "rhythm",
    "brady",
    "##cardia",
    "tachycardia",
    "left",
    "axis",
]
CONFIG = {
    "sampling_rate": 100, "conv_dim": (8, 8, 8, 8), "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 16, "conv_pos_kernel": 8, "conv_pos_groups": 2, "shared_dim": 8,
    "caption_dim": 16, "pooler_heads": 2, "n_queries_contrast": 3, "n_queries_caption": 3,
}  # fmt: skip
QUICK = {"draws": 200}


def tokenizer() -> BertTokenizer:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", *WORDS]
    return BertTokenizer({word: index for index, word in enumerate(vocabulary)})


# --- a model whose vectors are known ----------------------------------------------------------------------------------


class KnownEncoder(MelpModel):
    """The rhythm says which of the first four leads are high."""

    def forward(self, ecg_values, token_mask=None):
        high = ecg_values[:, :4].mean(dim=-1)
        return MelpOutput(
            last_hidden_state=high[:, None], mask=token_mask[:, :1], rhythm=5 * nn.functional.pad(high, (0, 1))
        )


class KnownModel(nn.Module):
    """`normal`, `ecg`, `atrial`, `fibrillation` are the four leads, in this order; other words are none of them."""

    def __init__(self, ids):
        super().__init__()
        self.encoder = KnownEncoder(MelpConfig(output="rhythm", **CONFIG)).eval()
        self.config, self.logit_scale = SimpleNamespace(text_length=12), nn.Parameter(torch.tensor(2.0))
        self.ids, self.seen = ids, []

    def encode_text(self, input_ids, attention_mask):
        self.seen.append(input_ids)
        leads = torch.stack([(input_ids == index).any(dim=1) for index in self.ids], dim=1)
        return nn.functional.normalize(torch.cat([leads, ~leads.any(dim=1, keepdim=True)], dim=1).float(), dim=-1)


@pytest.fixture
def known():
    words = tokenizer()
    add_bos(words)
    model = KnownModel([words.get_vocab()[word] for word in WORDS[:4]])
    extractor = MelpFeatureExtractor(sampling_rate=100, seconds=2.0, output="rhythm", num_tokens=1, leads=LEADS)
    return TextAndEcg(model, extractor, words)


def recording(names, record=""):
    """One lead is high for each class; all are as likely to be 0 or 1 elsewhere, so that the scale is always that."""
    signal = np.zeros((12, 200))
    signal[11] = np.linspace(0, 1, 200)
    for lead, name in enumerate(("A", "B", "C", "D")):
        signal[lead] = name in names
    return Ecg(signal, 100, LEADS, record)


def make_task(known_classes=("A", "B"), count=60, **changed):
    rng = np.random.default_rng(0)
    labels = {f"r{i:02d}": frozenset(c for c in "ABCD" if rng.random() < 0.5) for i in range(count)}
    source = {record: recording(names, record) for record, names in labels.items()}
    patients = {record: f"p{i // 2}" for i, record in enumerate(labels)}
    records = tuple(labels)
    splits = {"train": records[:2], "valid": records[2:4], "test": records[4:]}
    made = Task("ptbxl-super", "ptbxl", source, "key", tuple(known_classes), labels, patients, splits, ("A note.",))
    return dataclasses.replace(made, **changed)


def test_a_model_that_knows_is_always_right_and_one_that_does_not_guesses(known, tmp_path):
    task = make_task("ABC")
    right = {"A": "Normal", "B": "ECG", "C": "ATRIAL", "Z": "of no class here"}
    numbers = measure(known, task, tmp_path, prompts=right, **QUICK)
    truth = task.matrix(task.splits["test"], "ABC")
    leads = np.array([[c in task.labels[r] for c in "ABCD"] for r in task.splits["test"]], float)
    by_hand = (leads / np.maximum(np.linalg.norm(leads, axis=1, keepdims=True), 1e-12))[:, :3]
    for k, name in enumerate("ABC"):
        told = numbers["classes"][name]
        assert told["auroc"] == pytest.approx(auroc(by_hand[:, k], truth[:, k]), abs=1e-6) == 1
        assert told["interval"] == [1, 1] and told["positives"] == truth[:, k].sum()
        assert told["prompt"] == right[name]
    assert numbers["auroc"] == 1 and numbers["interval"] == [1, 1] and numbers["left_out"] == {}
    mixed = measure(known, task, tmp_path, prompts={"A": "left axis", "B": "Normal", "C": "ATRIAL"}, **QUICK)
    told = [of["auroc"] for of in mixed["classes"].values()]
    assert told[0] == 0.5 and mixed["classes"]["A"]["interval"] == [0.5, 0.5]  # as like any recording as any other
    assert told[1] == pytest.approx(auroc(by_hand[:, 0], truth[:, 1]), abs=1e-6) and 0.3 < told[1] < 0.7
    nothing = measure(known, task, tmp_path, prompts=dict.fromkeys("ABC", "left axis"), **QUICK)
    assert nothing["auroc"] == 0.5 and nothing["interval"] == [0.5, 0.5]


def test_models_of_random_weights_stand_beside_it(known, tmp_path):
    task, right = make_task("ABC"), {"A": "Normal", "B": "ECG", "C": "ATRIAL"}
    words = tokenizer()
    add_bos(words)
    ignorant = known._replace(model=KnownModel([words.get_vocab()[word] for word in WORDS[5:9]]))  # of other words
    numbers = measure(known, task, tmp_path, prompts=right, random=[ignorant, known], **QUICK)
    assert numbers["random"]["by_seed"] == [0.5, numbers["auroc"]] and numbers["random"]["auroc"] == 0.75
    assert numbers["difference"] == {"value": 0.25, "interval": [0.25, 0.25]}
    assert [told["random"] for told in numbers["classes"].values()] == [0.75] * 3
    told = zero_shot_text(numbers)
    assert "mean of 2 seeds (0.500 to 1.000): the model is above it by +0.25 (+0.25 to +0.25)" in told
    assert "random weights" in told and "random weights" not in zero_shot_text(
        measure(known, task, tmp_path, prompts=right, **QUICK)
    )


def test_random_weights_follow_from_the_seed_alone():
    text = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "max_position_embeddings": 40}  # fmt: skip
    sizes = {"text_length": 32, "decoder_layers": 1, "decoder_heads": 2, "frozen_text_layers": 0}
    config = MelpPretrainingConfig(encoder_config=MelpConfig(**CONFIG), text_config=text, **sizes)
    loaded = TextAndEcg(MelpForPretraining(config), None, None)
    before = torch.random.get_rng_state()
    one, same, other = (zero_shot.random_like(loaded, seed).model.state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    for name in ("text_model.embeddings.word_embeddings.weight", "encoder.attn_pool_contrast.query", "proj_t.0.weight"):
        assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])


def test_the_macro_mean_and_its_interval_are_over_classes_in_the_same_resamples(known, tmp_path):
    task = make_task("ABC")
    prompts = {"A": "normal ecg", "B": "ecg atrial fibrillation", "C": "normal"}
    numbers = measure(known, task, tmp_path, prompts=prompts, **QUICK)
    told = numbers["classes"]
    assert numbers["auroc"] == pytest.approx(np.mean([told[name]["auroc"] for name in "ABC"]), abs=2e-6)
    assert numbers["interval"][0] < numbers["auroc"] < numbers["interval"][1]
    width = {name: told[name]["interval"][1] - told[name]["interval"][0] for name in "ABC"}
    assert numbers["interval"][1] - numbers["interval"][0] < np.mean(list(width.values()))
    apart = measure(known, task, tmp_path, prompts=prompts, outside={"Because.": ["C", "other"]}, **QUICK)
    assert apart["classes"]["C"].pop("apart") == "Because." and apart["classes"] == told
    assert apart["auroc"] == pytest.approx((told["A"]["auroc"] + told["B"]["auroc"]) / 2, abs=2e-6)
    words = zero_shot_text({**apart, "classes": {**told, "C": {**told["C"], "apart": "Because."}}})
    assert "its mean over 2 classes" in words and "- Not in the mean: C. Because." in words and "C (apart)" in words


def test_classes_without_positives_are_reported_and_left_out(known, tmp_path):
    labels = {record: names - {"B"} | {"D"} for record, names in make_task().labels.items()}
    task = make_task("ABD", labels=labels)
    with pytest.raises(ValueError, match="ptbxl-super: no prompt for B: add them to the file of prompts"):
        measure(known, task, tmp_path, prompts={"A": "normal", "D": "normal"}, **QUICK)
    numbers = measure(known, task, tmp_path, prompts=dict.fromkeys("ABD", "normal"), **QUICK)
    assert numbers["left_out"] == {"B": "no test record has it", "D": "every test record has it"}
    assert list(numbers["classes"]) == ["A"]
    words = zero_shot_text(numbers)
    assert "- Left out: B, no test record has it." in words and "- A note." in words
    with pytest.raises(ValueError, match="no class is there in some test records and not in others"):
        measure(known, make_task("B", labels=labels), tmp_path, prompts={"B": "normal"}, **QUICK)


def test_labels_go_by_name_and_not_by_place(known, tmp_path):
    prompts = {"A": "normal", "B": "ecg"}
    one, other = (measure(known, make_task(order), tmp_path, prompts=prompts, **QUICK) for order in ("AB", "BA"))
    assert one["classes"] == other["classes"] and list(other["classes"]) == ["B", "A"]


def test_a_model_that_has_seen_the_corpus_is_warned_of_and_cut_prompts_are_named(known, tmp_path, caplog):
    known.model.encoder.config.pretrained_on = "MIMIC-IV-ECG, chosen on PTB-XL"
    long = " ".join(["normal"] * 10)
    with caplog.at_level(logging.WARNING):
        numbers = measure(known, make_task(), tmp_path, prompts={"A": "normal", "B": long}, **QUICK)
    assert "That names ptbxl: it may have seen the test records" in caplog.text
    assert numbers["notes"][-1] == "Prompts longer than the model reads, which are cut: B."


def test_prompts_are_read_in_lower_case_and_in_the_models_form(known, tmp_path):
    score(known, {"a": recording("A")}, "key", ["a"], ["NORMAL ECG"], tmp_path)
    want = tokenize_texts(known.tokenizer, ["normal ecg"], 12)["input_ids"]
    assert torch.equal(known.model.seen[0], want)
    with pytest.raises(ValueError, match="text 0 has no words"):
        score(known, {"a": recording("A")}, "key", ["a"], [" "], tmp_path)


def test_own_prompts_give_cosines_and_from_two_on_a_softmax(known, tmp_path):
    source = {name: recording(names) for name, names in (("a", "A"), ("ab", "AB"), ("c", "C"))}
    prompts = ["normal", "normal ecg", "atrial"]
    numbers = score(known, source, "key", list(source), prompts, tmp_path)
    half = 2**-0.5
    want = np.array([[1, half, 0], [half, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose([told["cosines"] for told in numbers["records"]], want, atol=1e-5)
    shares = np.exp(np.exp(2) * want)
    shares /= shares.sum(axis=1, keepdims=True)
    np.testing.assert_allclose([told["softmax"] for told in numbers["records"]], shares, atol=1e-5)
    lines = score_text(numbers).splitlines()
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("| ")][2:]
    assert rows == ["a", "ab", "c"]
    alone = score(known, source, "key", ["c", "a"], ["atrial"], tmp_path)
    assert [told["record"] for told in alone["records"]] == ["c", "a"] and "softmax" not in alone["records"][0]
    many = {f"r{i:03d}": recording("A") for i in range(SHOWN + 1)}
    words = score_text(score(known, many, "many", list(many), ["normal"], tmp_path))
    assert "20 of 21 records" in words and "| r019" in words and "| r020" not in words


# --- words ------------------------------------------------------------------------------------------------------------


def classes_of() -> dict[str, tuple[str, ...]]:
    from data.corpora.cpsc2018 import Cpsc2018
    from data.corpora.csn import Csn
    from eval.probing.tasks import _PTBXL

    return {
        **{name: classes for name, (_, classes) in _PTBXL.items()},
        "cpsc2018": Cpsc2018.classes,
        "csn": Csn.classes,
    }


def stub(name, classes):
    return make_task(classes, name=name, labels={f"r{i:02d}": frozenset() for i in range(60)})


def test_every_class_of_every_task_has_plain_words_that_agree_with_the_findings_that_corpora_share():
    for name, classes in classes_of().items():
        prompts = prompts_of(stub(name, classes))
        assert list(prompts) == list(classes) and all(text.strip() for text in prompts.values())
        assert len(set(prompts.values())) == len(classes), f"{name}: two classes in the same words"
    assert {"synthetic", *TASKS} - {"ptbxl-all", "csn-stated", "synthetic"} == classes_of().keys()
    for finding in ("sinus rhythm", "atrial fibrillation", "atrial flutter", "sinus tachycardia", "ST depression"):
        for labels in FINDINGS[finding].values():
            assert all(PLAIN[label] == finding for label in labels), finding


def test_every_statement_of_ptbxl_has_plain_words():
    from data.corpora.ptbxl import PtbXl  # noqa: F401

    table = PROMPTS.parent / "ptbxl/scp_statements.csv"
    if not table.is_file():
        pytest.skip(f"PTB-XL's statements are not at {table}")
    codes = {line.partition(",")[0].strip("_") for line in table.read_text().splitlines()[1:]}
    assert len(codes) == 71 and codes <= PLAIN.keys()


def test_the_papers_prompts_serve_every_task():
    if not PROMPTS.is_file():
        pytest.skip(f"the paper's prompts are not at {PROMPTS}")
    found = read_prompts(PROMPTS)
    for name, classes in classes_of().items():
        assert all(prompts_of(stub(name, classes), found)[c] == found[c] for c in classes)
    assert found["AFIB"].startswith("Atrial Fibrillation, Paroxysmal")


def test_faults_of_a_prompts_file_are_named(tmp_path):
    path = tmp_path / "prompts.json"
    for content, message in (("{", "is no JSON"), ('["a"]', "expected one text"), ('{"A": " "}', "expected one text")):
        path.write_text(content)
        with pytest.raises(ValueError, match=f"prompts.json.*{message}"):
            read_prompts(path)


def test_simulated_findings_are_those_of_held_out_patients():
    task = simulated(200)
    cohort = SyntheticCohort(200)
    assert task.source_key == cohort.key and sum(map(len, task.splits.values())) == 400
    assert not {task.patient_of[r] for r in task.splits["test"]} & {task.patient_of[r] for r in task.splits["train"]}
    smaller = simulated(150)
    assert set(smaller.splits["test"]) <= set(task.splits["test"])
    for name in task.classes:
        there = {r for r, present in zip(cohort.records, cohort.present(name)) if present}
        assert there == {r for r in cohort.records if name in task.labels[r]}
    assert list(prompts_of(task)) == list(prompts_of(task).values()) == list(task.classes)
    assert {name for names in OUTSIDE.values() for name in names} == {*VOLTAGES[1:], *NOISES[1:]}
    with pytest.raises(ValueError, match="synthetic: no record in the split 'valid'"):
        simulated(1)


# --- command line -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole model of random weights, where recipes/pretrain_melp.py puts it."""
    path = tmp_path_factory.mktemp("melp")
    torch.manual_seed(0)
    encoder = MelpModel(MelpConfig(pretrained_on="simulated ECGs, folds 1-8", **CONFIG))
    extractor = MelpFeatureExtractor.from_config(encoder.config)
    words = tokenizer()
    bert = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=40,
    )  # fmt: skip
    BertModel(bert).save_pretrained(path / "text")
    words.save_pretrained(path / "text")
    model, own = new_pretraining(
        encoder, path / "text", text_length=32, text_hidden_dim=8, decoder_layers=1, decoder_heads=2
    )
    save_pretraining(model, extractor, own, path / "run/pretraining")
    save_encoder(encoder, extractor, path / "run")
    return path / "run"


def arguments(folder, tmp_path, *more):
    return ["--model", str(folder), "--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "out"), *more]


def written(tmp_path):
    return [(tmp_path / "out" / name).read_bytes() for name in ("zero_shot.json", "zero_shot.md")]


def test_the_command_writes_the_same_bytes_twice(folder, tmp_path, capsys):
    found = []
    for _ in range(2):
        door.main(arguments(folder, tmp_path, "--task", "synthetic", "--patients", "150"))
        found.append(written(tmp_path))
    assert found[0] == found[1]
    numbers = json.loads(found[0][0])
    assert numbers["command"].startswith("python -m eval.zero_shot --model")
    assert numbers["task"]["records"] == len(simulated(150).splits["test"])
    kept = [name for name, told in numbers["classes"].items() if "apart" not in told]
    assert "atrial fibrillation" in kept and not {*VOLTAGES, *NOISES} & set(kept)
    assert numbers["auroc"] == pytest.approx(np.mean([numbers["classes"][name]["auroc"] for name in kept]), abs=2e-6)
    assert numbers["interval"][0] < 0.5 < numbers["interval"][1] + 0.1  # random weights
    shown = capsys.readouterr().out
    assert found[0][1].decode() in shown and "Written to" in shown and "high QRS voltage (apart)" in shown
    # The vectors are those of the model itself.
    loaded = zero_shot.load(str(folder))
    record = simulated(150).splits["test"][0]
    batch = loaded.extractor([SyntheticCohort(150)[record]], return_tensors="pt")
    with torch.no_grad():
        ecg = loaded.model.encode_ecg(batch["ecg_values"])
        words = loaded.model.encode_text(**tokenize_texts(loaded.tokenizer, ["atrial fibrillation"], 32))
    door.main(
        arguments(folder, tmp_path, "--task", "synthetic", "--patients", "150", "--prompt", "Atrial Fibrillation")
    )
    told = json.loads(written(tmp_path)[0])
    assert told["records"][0]["record"] == record and len(told["records"]) == numbers["task"]["records"]
    assert told["records"][0]["cosines"][0] == pytest.approx(float(ecg[0] @ words[0]), abs=1e-5)


def test_recordings_by_path_are_scored_by_prompts(folder, tmp_path, capsys):
    cohort = SyntheticCohort(2)
    paths = [str(write_wfdb(cohort[record], tmp_path / "ecgs")) for record in cohort.records[:2]]
    door.main(arguments(folder, tmp_path, "--prompt", "normal ecg", "--prompt", "tachycardia", "--ecg", *paths))
    numbers = json.loads(written(tmp_path)[0])
    assert [told["record"] for told in numbers["records"]] == paths
    assert all(sum(told["softmax"]) == pytest.approx(1, abs=2e-6) for told in numbers["records"])
    assert numbers["prompts"] == ["normal ecg", "tachycardia"] and not (tmp_path / "cache").exists()
    assert "tachycardia, softmax" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "give --task, or --ecg with the recordings to be scored"),
        (["--task", "synthetic", "--ecg", "a", "--prompt", "x"], "give --task, or --ecg"),
        (["--ecg", "a"], "--ecg needs --prompt"),
        (["--task", "csn", "--prompt", "x", "--prompts", "y.json"], "give one of them"),
        (["--task", "csn"], "pass the folder of its recordings (--csn)"),
        (["--task", "ptbxl-hyper"], "no task 'ptbxl-hyper'"),
        (["--task", "synthetic", "--prompts", "nowhere.json"], "nowhere.json"),
        (["--task", "synthetic", "--patients", "1"], "no record in the split"),
        (["--prompt", "x", "--ecg", "nowhere.hea"], "nowhere.hea"),
    ],
)
def test_what_cannot_be_done_is_an_error_in_words(given, message, folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        door.main(arguments(folder, tmp_path, *given))
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_an_encoder_without_a_text_side_is_refused_with_what_is_needed(folder, tmp_path, capsys):
    """The published file by its name, without a download, and folders of encoders, ours and upstream's."""
    alone, upstream = tmp_path / "alone", tmp_path / "upstream"
    for path, kind in ((alone, "ecg_melp"), (upstream, "melp")):
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"model_type": kind}))
    for name in (zero_shot.PUBLISHED, str(alone), str(upstream)):
        with pytest.raises(SystemExit) as stop:
            door.main(arguments(name, tmp_path, "--task", "synthetic", "--patients", "150"))
        said = capsys.readouterr().err
        assert stop.value.code == 2 and f"{name} has no text side" in said
        assert "none of which is published" in said and "recipes/pretrain_melp.py" in said


def test_a_checkpoint_of_upstream_asks_for_its_tokenizer():
    golden = PROMPTS.parents[2] / "golden/melp/encoder_tiny.safetensors"
    if not golden.is_file():
        pytest.skip(f"upstream's fixtures are not at {golden}")
    with pytest.raises(ValueError, match="If it is a training checkpoint of upstream, say which tokenizer"):
        zero_shot.load(str(golden))


@pytest.mark.slow
def test_help_does_not_wait_for_torch():
    heavy = "{'torch', 'transformers', 'scipy', 'wfdb', 'pandas'}"
    code = f"import sys, eval.zero_shot as z\ntry: z.main(['--help'])\nfinally: print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "--prompts FILE" in done.stdout and done.stdout.endswith("set()\n")
    assert "cannot do this" in done.stdout
