"""The protocol: what is compared with what, what is left out, what is kept, and the command line."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data.ecg import LEADS, Ecg
from data.readers import write_wfdb
from encoders import load_encoder, new_encoder
from encoders.base import EcgEncoderOutput
from encoders.hub import save_encoder
from eval import probe
from eval.probing.numbers import _filled
from eval.probing.probe import measure
from eval.probing.settings import Finetuning, Protocol
from eval.probing.tasks import Task, drawn
from eval.probing.text import probe_text
from eval.probing.vectors import random_like, settle_batch_norm, vector_of, vectors
from eval.statistics import auroc
from eval.statistics.linear import fit_probe

SMALL = {"conv_dim": [8, 8], "conv_stride": [5, 4]}
CLASSES = ("slow", "fast", "rare", "everywhere")
QUICK = Protocol((10.0, 100.0), random_seeds=2, draws=200)


def recording(names, rng):
    """Each class is a wave of its own in leads of its own."""
    time = np.arange(500) / 100
    signal = 0.5 * rng.standard_normal((12, 500))
    for k, name in enumerate(("slow", "fast")):
        signal[2 * k : 2 * k + 2] += (name in names) * 0.5 * np.sin(2 * np.pi * (3 + 9 * k) * time + rng.uniform(0, 6))
    return signal


class Counting(dict):
    """A source that says how often it was asked."""

    asked = 0

    def __getitem__(self, record):
        self.asked += 1
        return super().__getitem__(record)


@pytest.fixture
def task():
    rng = np.random.default_rng(0)
    source, labels, patient_of, splits = Counting(), {}, {}, {}
    for split, count in (("train", 90), ("valid", 40), ("test", 60)):
        splits[split] = tuple(f"{split}{i:02d}" for i in range(count))
        for i, record in enumerate(splits[split]):
            names = {name for name in ("slow", "fast") if rng.random() < 0.5} | {"everywhere"}
            names |= {"rare"} if split == "train" and i == 0 else set()
            source[record] = Ecg(recording(names, rng), 100, LEADS, record)
            labels[record], patient_of[record] = frozenset(names), f"{split}-p{i // 2}"
    return Task("ptbxl-all", "ptbxl", source, "key", CLASSES, labels, patient_of, splits, ("A note.",))


@pytest.fixture
def cnn():
    torch.manual_seed(0)
    return new_encoder("ecg_cnn", **SMALL)


def test_the_macro_mean_is_what_the_parts_give_and_its_row_of_random_weights_beside_it(task, cnn, tmp_path):
    numbers = measure({"cnn": cnn}, task, task, tmp_path, QUICK)
    assert [result["percent"] for result in numbers["results"]] == [10, 100]
    test = task.splits["test"]
    models = [cnn[0]]
    for seed in (1, 2):
        models.append(random_like(cnn[0], seed))
        settle_batch_norm(models[-1], cnn[1], task.source, task.splits["train"])
    for result in numbers["results"]:
        assert result["classes"] == ["slow", "fast"]
        seen = "test" if result["percent"] == 100 else "training"  # the one record with it is not among ten per cent
        assert result["left_out"] == {
            "rare": f"no {seen} record has it",
            "everywhere": "every training record has it",
        }
        records = drawn(task, result["percent"], 0)
        assert result["records"] == len(records) and result["positives"].keys() == {"slow", "fast"}
        by_hand = []
        for model in models:
            x, held, z = (
                vectors(model, cnn[1], task.source, "key", part, tmp_path / "other")
                for part in (records, task.splits["valid"], test)
            )
            fitted = fit_probe(
                x,
                task.matrix(records, result["classes"]),
                [task.patient_of[record] for record in records],
                validation=(held, task.matrix(task.splits["valid"], result["classes"])),
            )(z)
            truth = task.matrix(test, result["classes"])
            by_hand.append([auroc(fitted[:, k], truth[:, k]) for k in (0, 1)])
        told = result["encoders"]["cnn"]
        macro = np.mean(by_hand, axis=1)
        assert told["auroc"] == pytest.approx(macro[0], abs=1e-6)
        assert told["random"]["by_seed"] == pytest.approx(macro[1:].tolist(), abs=1e-6)
        assert told["random"]["auroc"] == pytest.approx(macro[1:].mean(), abs=1e-6)
        assert told["difference"]["value"] == pytest.approx(macro[0] - macro[1:].mean(), abs=2e-6)
        assert [told["classes"][name]["auroc"] for name in ("slow", "fast")] == pytest.approx(by_hand[0], abs=1e-6)
        for part in (told, told["random"]):
            assert part["interval"][0] < part["auroc"] < part["interval"][1]
    text = probe_text(numbers)
    assert (
        "100 %: left out of the mean: rare (no test record has it); everywhere (every training record has it)." in text
    )
    assert "- A note." in text and "classes in the mean" in text
    json.dumps(numbers)


def test_encoders_are_compared_on_the_same_draws(task, cnn, tmp_path):
    torch.manual_seed(9)
    other = new_encoder("ecg_patch", hidden_size=None)
    numbers = measure({"cnn": cnn, "patch": other}, task, task, tmp_path, QUICK)
    for result in numbers["results"]:
        (pair,) = result["pairs"]
        first, second = (result["encoders"][name]["auroc"] for name in ("cnn", "patch"))
        assert (pair["first"], pair["second"]) == ("cnn", "patch")
        assert pair["difference"] == pytest.approx(first - second, abs=2e-6)
    same = measure({"a": cnn, "b": cnn}, task, task, tmp_path, QUICK)["results"][1]["pairs"][0]
    assert same["difference"] == 0 and same["interval"] == [0, 0]


def test_a_resample_without_a_class_borrows_from_the_next_that_has_it():
    nan = np.nan
    assert _filled(np.array([nan, 0.5, nan, nan, 0.7, nan])).tolist() == [0.5, 0.5, 0.7, 0.7, 0.7, 0.5]
    assert np.isnan(_filled(np.full(3, nan))).all()


def test_a_class_with_one_positive_does_not_cost_the_interval(task, cnn, tmp_path):
    labels = {record: names - {"rare"} for record, names in task.labels.items()}
    labels["test00"] |= {"rare"}
    for record in task.splits["train"][:20]:
        labels[record] |= {"rare"}
    numbers = measure({"cnn": cnn}, dataclasses.replace(task, labels=labels), dataclasses.replace(task, labels=labels),
                      tmp_path, Protocol((100.0,), random_seeds=1, draws=200))  # fmt: skip
    told = numbers["results"][0]["encoders"]["cnn"]
    assert list(told["classes"]) == ["slow", "fast", "rare"] and None not in told["interval"]
    assert told["auroc"] == pytest.approx(np.mean([of["auroc"] for of in told["classes"].values()]), abs=2e-6)


def test_nothing_to_learn_and_nothing_to_probe_are_refused(task, cnn, tmp_path):
    empty = dataclasses.replace(task, labels=dict.fromkeys(task.labels, frozenset()))
    with pytest.raises(ValueError, match="no class can be learned and tested: slow, fast, rare, everywhere"):
        measure({"cnn": cnn}, empty, empty, tmp_path, QUICK)
    with pytest.raises(ValueError, match="no encoder to probe"):
        measure({}, task, task, tmp_path, QUICK)
    with pytest.raises(ValueError, match="random_seeds and draws must be at least 1, got 0 and 2000"):
        Protocol(random_seeds=0)
    with pytest.raises(ValueError, match="percents: give at least one"):
        Protocol(())


def test_an_encoder_that_has_seen_the_corpus_is_warned_of(task, cnn, tmp_path, caplog):
    cnn[0].config.pretrained_on = "PTB-XL folds 1-8"
    with caplog.at_level(logging.WARNING):
        numbers = measure({"cnn": cnn}, task, task, tmp_path, QUICK)
    assert "cnn was pretrained on: PTB-XL folds 1-8. That names ptbxl" in caplog.text
    assert any("may have seen the test records" in note for note in numbers["notes"])


@pytest.mark.slow
def test_fine_tuning_is_told_beside_random_weights(task, cnn, tmp_path):
    protocol = Protocol((100.0,), finetune=Finetuning(epochs=15, learning_rate=1e-2), random_seeds=1, draws=100)
    numbers = measure({"cnn": cnn}, task, task, tmp_path, protocol)
    told = numbers["results"][0]["encoders"]["cnn"]
    assert told["auroc"] > 0.8 and 1 <= told["fit"]["epoch"] <= 15
    assert told["fit"]["learning_rates"]["layer 0"] < told["fit"]["learning_rates"]["head"] == 1e-2
    assert numbers["protocol"]["finetune"]["layer_decay"] == 0.75
    assert not list(tmp_path.glob("inputs-*"))


# --- vectors ----------------------------------------------------------------------------------------------------------


def test_vectors_are_of_tokens_that_carry_signal():
    tokens = torch.tensor([[[1.0, 2.0], [3.0, -4.0], [float("nan"), 9.0]]])
    output = EcgEncoderOutput(last_hidden_state=tokens, mask=torch.tensor([[True, True, False]]))
    assert vector_of(output, "mean").tolist() == vector_of(output, "paper").tolist() == [[2.0, -1.0]]
    assert vector_of(output, "max").tolist() == [[3.0, 2.0]]
    with pytest.raises(ValueError, match="no vector 'rhythm' per recording: expected one of paper, mean, max$"):
        vector_of(output, "rhythm")
    output = EcgEncoderOutput(
        last_hidden_state=tokens, mask=torch.tensor([[True, True, False]]), probe=torch.tensor([[7.0]])
    )
    assert vector_of(output, "paper").tolist() == [[7.0]] and vector_of(output, "mean").tolist() == [[2.0, -1.0]]


def test_melp_is_probed_as_its_paper_does():
    torch.manual_seed(0)
    encoder, extractor = new_encoder(
        "ecg_melp", sampling_rate=100, conv_dim=[8] * 4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, conv_pos_kernel=7, conv_pos_groups=2, shared_dim=8, caption_dim=8, pooler_heads=2,
        n_queries_contrast=3, n_queries_caption=4,
    )  # fmt: skip
    with torch.no_grad():
        output = encoder(**extractor([Ecg(recording((), np.random.default_rng(0)), 100, LEADS)]))
    # The rhythm is the same vector after the last projection.
    assert torch.allclose(vector_of(output, "paper") @ encoder.proj_contrast, vector_of(output, "rhythm"), atol=1e-5)


def test_what_is_computed_is_kept(task, cnn, tmp_path, caplog):
    encoder, extractor = cnn
    records = task.splits["valid"]
    encoder.train()
    first = vectors(encoder, extractor, task.source, "key", records[:30], tmp_path)
    assert encoder.training and task.source.asked == 30
    second = vectors(encoder, extractor, task.source, "key", records[::-1], tmp_path)
    assert task.source.asked == 40 and (second[10:] == first[::-1]).all()
    vectors(encoder, extractor, task.source, "key", records, tmp_path)
    assert task.source.asked == 40
    encoder.eval()  # in eval mode all the same
    with torch.no_grad():
        tokens = encoder(**extractor([task.source[record] for record in records[:30]])).last_hidden_state
    want = tokens[:, :25].mean(dim=1)  # 5 s of the 10 s that the encoder takes
    assert first == pytest.approx(want.numpy(), abs=1e-5)
    for other in ({"kind": "max"}, {"source_key": "another"}):
        given = {"source_key": "key", **other}
        vectors(encoder, extractor, task.source, records=records[:1], cache=tmp_path, **given)
    assert len(list(tmp_path.iterdir())) == 3
    for path in tmp_path.glob("*/*"):
        path.write_bytes(path.read_bytes()[:-40])
    with caplog.at_level(logging.WARNING):
        again = vectors(encoder, extractor, task.source, "key", records[:30], tmp_path)
    assert "is damaged" in caplog.text and again == pytest.approx(first, abs=1e-6)


def test_a_vector_that_is_not_finite_names_its_record(task, cnn, tmp_path):
    with torch.no_grad():
        cnn[0].layers[1][0].weight.fill_(float("inf"))
    with pytest.raises(ValueError, match="record test00: the encoder's vector is not finite"):
        vectors(*cnn, task.source, "key", task.splits["test"][:3], tmp_path)


def test_random_weights_are_the_same_architecture_in_a_settled_state(task, cnn):
    cnn[0].config.pretrained_on = "something"
    first, again, other = (random_like(cnn[0], seed) for seed in (1, 1, 2))
    assert first.config.pretrained_on == "" and not first.training
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))
    assert not torch.equal(first.layers[0][0].weight, other.layers[0][0].weight)
    records = task.splits["train"]
    settle_batch_norm(first, cnn[1], task.source, records)
    assert not any(module.training for module in first.modules())
    # In the state it was left in, what comes out of each norm has a mean near 0 and a variance near 1.
    x = cnn[1]([task.source[record] for record in records])["ecg_values"]
    with torch.no_grad():
        for layer in first.layers:
            normed = layer[1](layer[0](x))
            assert normed.mean(dim=(0, 2)).abs().max() < 0.05 and (normed.var(dim=(0, 2)) - 1).abs().max() < 0.1
            x = layer[2](normed)
    patch, extractor = new_encoder("ecg_patch", hidden_size=4)
    before = task.source.asked
    settle_batch_norm(patch, extractor, task.source, records)
    assert task.source.asked == before


# --- command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def ptbxl(tmp_path):
    """Recordings of folds 1, 8 and 9 in PTB-XL's layout."""
    root, rng = tmp_path / "ptbxl", np.random.default_rng(0)
    fields = ["ecg_id", "patient_id", "strat_fold", "filename_lr", "filename_hr", "age", "sex", "scp_codes"]
    rows = []
    for i in range(90):
        fold = (1, 8, 9)[i % 3]
        names = {"slow"} if rng.random() < 0.5 else {"fast"}
        paths = [f"records{rate}/00000/{i + 1:05d}_{end}" for rate, end in ((100, "lr"), (500, "hr"))]
        write_wfdb(Ecg(recording(names, rng), 100, LEADS, record_id=paths[0][-8:]), (root / paths[0]).parent)
        codes = {"NORM": 100.0} if "slow" in names else {"IMI": 0.0}
        rows.append([i + 1, i // 2, fold, *paths, 60, 0, repr(codes)])
        rows[-1][1] = 1000 * fold + i // 6
    (root / "scp_statements.csv").write_text(
        ",description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass\n"
        "NORM,normal ECG,1.0,,,NORM,NORM\nIMI,inferior myocardial infarction,1.0,,,MI,IMI\n"
    )
    with (root / "ptbxl_database.csv").open("w", newline="") as file:
        csv.writer(file).writerows([fields, *rows])
    return root


def arguments(ptbxl, folder, *more):
    return ["--task", "ptbxl-super", "--ptbxl", str(ptbxl), "--rate", "100", "--folds", "1/8/9", "--cache",
            str(folder / "cache"), "--output", str(folder / "out"), "--random_seeds", "1", *more]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--finetune", "--epochs", "2", "--percent", "100"]])
def test_the_command_writes_the_same_bytes_twice(more, ptbxl, tmp_path, capsys):
    torch.manual_seed(3)
    save_encoder(*new_encoder("ecg_cnn", **SMALL), tmp_path / "mine")
    given = arguments(ptbxl, tmp_path, "--encoder", str(tmp_path / "mine"), "--encoder", "ecg_patch", *more)
    written = []
    for _ in range(2):
        probe.main(given)
        written.append([(tmp_path / "out" / name).read_bytes() for name in ("probe.json", "probe.md")])
    assert written[0] == written[1]
    numbers = json.loads(written[0][0])
    assert numbers["command"].startswith("python -m eval.probe --task ptbxl-super")
    assert numbers["results"][-1]["classes"] == ["NORM", "MI"]
    assert numbers["results"][-1]["encoders"].keys() == {str(tmp_path / "mine"), "ecg_patch"}
    assert len({told["weights"] for told in numbers["encoders"].values()}) == 2
    assert numbers["encoders"][str(tmp_path / "mine")]["model_type"] == "ecg_cnn"
    shown = capsys.readouterr().out
    assert written[0][1].decode() in shown and "Written to" in shown
    assert "Folds 1/8/9, not 1-8/9/10" in shown
    loaded, _ = load_encoder(tmp_path / "mine")
    assert loaded.config.model_type == "ecg_cnn"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--encoder", "ecg_cnn", "--folds", "1-8/9/10"], "in fold 10, which is to be test"),
        (["--encoder", "ecg_cnn", "--encoder", "ecg_cnn"], "an encoder is given twice"),
        (["--encoder", "nowhere"], "no encoder at nowhere"),
        (["--encoder", "ecg_cnn", "--rate", "500"], "is in records500/"),
        (["--encoder", "ecg_cnn", "--epochs", "3"], "--epochs is of --finetune"),
        (["--encoder", "ecg_cnn", "--train_task", "csn"], "give --task, or --train_task and --test_task"),
        (["--encoder", "ecg_cnn", "--task", "cpsc2018"], "pass the folder of its recordings (--cpsc2018)"),
        (["--encoder", "ecg_cnn", "--task", "ptbxl-hyper"], "no task 'ptbxl-hyper': expected one of ptbxl-super"),
        (["--encoder", "ecg_cnn", "--percent", "0"], "must be above 0 and at most 100"),
        (["--encoder", "ecg_cnn", "--features", "rhythm"], "expected one of paper, mean, max"),
    ],
)
def test_what_cannot_be_done_is_an_error_in_words(given, message, ptbxl, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        probe.main(arguments(ptbxl, tmp_path, *given))
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_transfer_between_corpora(ptbxl, tmp_path, capsys):
    root, rng = tmp_path / "cpsc", np.random.default_rng(1)
    names = [f"A{i:04d}" for i in range(30)]
    for i, name in enumerate(names):
        signal = recording({"slow"} if i % 2 else {"fast"}, rng)
        write_wfdb(Ecg(np.repeat(signal, 5, axis=1), 500, LEADS, record_id=name), root / "g1")
    classes = ("AFIB", "VPC", "NORM", "1AVB", "CRBBB", "STE", "PAC", "CLBBB", "STD")
    for split, part in (("train", names[:2]), ("val", names[2:4]), ("test", names[4:])):
        rows = [
            ["filename", *classes],
            *([name, *(int(c == "NORM" and int(name[1:]) % 2 == 1) for c in classes)] for name in part),
        ]
        with (root / f"icbeb_{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    given = [
        *arguments(ptbxl, tmp_path, "--encoder", "ecg_cnn", "--percent", "100")[2:],
        *("--train_task", "ptbxl-all", "--test_task", "cpsc2018", "--cpsc2018", str(root), "--splits", str(root)),
    ]
    probe.main(given)
    numbers = json.loads((tmp_path / "out/probe.json").read_text())
    assert numbers["results"][0]["classes"] == ["normal ECG"]
    assert numbers["train_task"]["splits"]["train"]["records"] == 30
    assert numbers["test_task"]["splits"]["test"]["records"] == 26
    assert "normal ECG: NORM of ptbxl-all is NORM of cpsc2018." in numbers["notes"]
    assert "Labels of ptbxl-all that cpsc2018 lacks: IMI." in numbers["notes"]
    assert "# Linear probe: from ptbxl-all to cpsc2018" in capsys.readouterr().out


@pytest.mark.slow
def test_help_does_not_wait_for_torch():
    heavy = "{'torch', 'transformers', 'scipy', 'wfdb', 'pandas'}"
    code = f"import sys, eval.probe as p\ntry: p.main(['--help'])\nfinally: print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "--train_task" in done.stdout and done.stdout.endswith("set()\n")


def test_the_docs_name_every_task():
    text = (Path(__file__).resolve().parents[2] / "docs/probe.md").read_text(encoding="utf-8")
    from eval.probing.tasks import TASKS
    from eval.probing.transfer import FINDINGS

    assert all(f"`{name}`" in text for name in TASKS)
    assert all(finding in text for finding in FINDINGS)
