"""The leak check: what is on both sides of a split, under whatever name, and what is not."""

from __future__ import annotations

import csv
import gzip
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal

from data.conversations import synthetic
from data.conversations.rows import QuestionSet, question_row
from data.corpora.ptbxl import PtbXl
from data.ecg import LEADS, Ecg
from data.experiment import leaks as splits
from data.experiment.duplicates import find_duplicates
from data.experiment.leaks import check_leaks
from data.readers import WfdbFolder
from data.synthetic import SyntheticCohort

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture(scope="module")
def heartbeats() -> dict[str, Ecg]:
    """Forty simulated recordings of forty patients."""
    cohort = SyntheticCohort(40, seed=11)
    return {record: cohort[record] for record in cohort.records[::2]}


def rows(records: dict[str, str], split: str) -> list[Any]:
    """One question about each record of these; the values are their patients."""
    return [
        question_row(
            id=f"{split}/{record}", ecgs=[record], patient_ids=[patient], question_type="single-verify",
            question="Is it?", answer=["yes"],
        ) for record, patient in records.items()
    ]  # fmt: skip


def questions(source: Any, train: dict[str, str], test: dict[str, str], **more: Any) -> QuestionSet:
    return QuestionSet("q", source, "q", rows(train, "train"), rows(test, "test"), [], {**train, **test}, **more)


def copies(ecg: Ecg, rng: np.random.Generator) -> dict[str, Ecg]:
    """What may have been done to a recording before it got its second name."""
    order = rng.permutation(12)
    gain, offset = rng.uniform(0.3, 3, (12, 1)), rng.uniform(-1, 1, (12, 1))
    fast = ecg.resample(500)
    band = scipy.signal.butter(3, [0.67, 40], "bandpass", fs=500, output="sos")
    filtered = scipy.signal.sosfiltfilt(band, fast.signal)
    start = round(rng.uniform(0, 4) * 500) / 500
    return {
        "as it is": ecg,
        "gain, offset": replace(ecg, signal=ecg.signal * gain + offset),
        "leads": Ecg(ecg.signal[order], ecg.fs, tuple(LEADS[i] for i in order)),
        "500 Hz": fast,
        "another resampling": replace(ecg, signal=scipy.signal.resample(ecg.signal, 1280, axis=1), fs=128),
        "filter": replace(fast, signal=filtered),
        "noise": replace(fast, signal=filtered + 0.1 * rng.standard_normal(filtered.shape) * filtered.std()),
        "cut": ecg.crop(1.5, 6),
        "cut off the grid": fast.crop(start, 6),
    }


def find_planted(source: dict[str, Ecg], seed: int) -> tuple[Counter[str], Counter[str], int]:
    """Copies made and copies found by kind, and pairs found that are none."""
    rng = np.random.default_rng(seed)
    made = {f"{kind}|{name}": ecg for name in source for kind, ecg in copies(source[name], rng).items()}
    found = find_duplicates({**source, **made}, list(source), list(made))
    right = [pair for pair in found if pair.test.partition("|")[2] == pair.train]
    kinds = (Counter(name.partition("|")[0] for name in names) for names in (made, [pair.test for pair in right]))
    return *kinds, len(found) - len(right)


@pytest.mark.slow
def test_planted_copies_are_found_and_nothing_else(heartbeats):
    made, found, wrong = find_planted(heartbeats, 0)
    assert wrong == 0
    exact = [kind for kind in made if kind != "cut off the grid"]
    assert {kind: found[kind] for kind in exact} == dict.fromkeys(exact, 40)
    assert found["cut off the grid"] >= 36


def test_other_recordings_are_no_copies(heartbeats):
    names = sorted(heartbeats)
    assert find_duplicates(heartbeats, names[:20], names[20:]) == ()
    assert find_duplicates(heartbeats, names, []) == find_duplicates(heartbeats, [], names) == ()


def test_a_cut_may_be_the_longer_side_or_the_shorter(heartbeats):
    name = next(iter(heartbeats))
    source = {"long": heartbeats[name], "short": heartbeats[name].crop(2, 5)}
    for train, test in (("long", "short"), ("short", "long")):
        (found,) = find_duplicates(source, [train], [test])
        assert (found.train, found.test) == (train, test) and found.correlation > 0.98


def test_what_has_no_beat_is_told_not_paired(heartbeats, caplog):
    flat = Ecg(np.zeros((12, 1000)), 100, LEADS)
    short = next(iter(heartbeats.values())).crop(0, 1)
    other = Ecg(np.ones((1, 1000)), 100, ("V7",))
    source = {"a": flat, "b": flat, "c": short, "d": short, "e": other, "f": other}
    assert find_duplicates(source, ["a", "c", "e"], ["b", "d", "f"]) == ()
    assert "6 recordings have no beat to compare them by, such as a" in caplog.text


def test_samples_that_are_not_finite_are_refused(heartbeats):
    name, ecg = next(iter(heartbeats.items()))
    broken = replace(ecg, signal=np.where(np.arange(ecg.signal.shape[1]) == 3, np.nan, ecg.signal), record_id="x")
    with pytest.raises(ValueError, match="record 'x': samples that are not finite cannot be compared: repair them"):
        find_duplicates({name: ecg, "x": broken}, [name], ["x"])


def test_a_clean_split_says_so(heartbeats):
    names = sorted(heartbeats)
    found = check_leaks(questions(heartbeats, {names[0]: "p0", names[1]: "p1"}, {names[2]: "p2"}), "reports of my own")
    assert found.refusal() == "" and found.patients == () and found.duplicates == ()
    assert found.sentences() == [
        "Training: 2 ECGs of 2 patients. Test: 1 ECGs of 1 patients.",
        "No patient is in both.",
        "No recording is in both under two names (compared by content).",
        "The encoder was pretrained on: reports of my own.",
    ]


def test_shared_patients_and_copies_are_refused_by_name(heartbeats):
    names = sorted(heartbeats)
    train = {name: f"p{i}" for i, name in enumerate(names[:7])}
    test = {name: f"p{i}" for i, name in enumerate(names[7:14])}
    found = check_leaks(questions(heartbeats, train, test))
    assert found.patients == tuple(f"p{i}" for i in range(7))
    assert found.refusal().startswith(
        "7 patients are in training and in the test: p0, p1, p2, p3, p4, .... Scores on this test would not be those of"
    )
    assert "pass allow_leaks: true to train all the same; the model card then says so" in found.refusal()
    source = {**heartbeats, "twin": heartbeats[names[0]].resample(250)}
    found = check_leaks(questions(source, train, {"twin": "q"}))
    assert f"1 recording is in training and in the test under two names: {names[0]} and twin." in found.refusal()
    assert found.sentences()[1] == "No patient is in both." and names[0] in found.sentences()[2]


def test_reports_count_with_their_split_and_unknown_patients_are_their_own(heartbeats):
    names = sorted(heartbeats)
    split = questions(heartbeats, {names[0]: "p0"}, {names[1]: ""})
    told = replace(split, reports=rows({names[2]: "p2"}, "report"), test_reports=rows({names[3]: ""}, "report"))
    found = check_leaks(replace(told, patient_of={**split.patient_of, names[2]: "p2", names[3]: ""}))
    assert (found.train, found.test, found.patients) == ((2, 2), (2, 2), ())


def test_simulated_recordings_are_not_compared():
    questions = synthetic.load(patients=12, held_out_patients=6, questions=4, held_out_questions=2)
    found = check_leaks(questions)
    assert found.duplicates is None and found.refusal() == ""
    assert found.sentences()[2] == "The recordings are simulated one by one: none is a copy of another."


def test_what_was_compared_is_remembered(heartbeats, tmp_path, monkeypatch):
    names = sorted(heartbeats)
    source = {**heartbeats, "twin": heartbeats[names[0]]}
    split = questions(source, {names[0]: "a", names[1]: "b"}, {"twin": "c"})
    first = check_leaks(split, cache=tmp_path)
    assert first.duplicates
    monkeypatch.setattr(splits, "find_duplicates", lambda *_: pytest.fail("compared again"))
    assert check_leaks(split, "something else", tmp_path).duplicates == first.duplicates
    with pytest.raises(pytest.fail.Exception, match="compared again"):
        check_leaks(questions(source, {names[1]: "b"}, {"twin": "c"}), cache=tmp_path)


def test_folds_and_pretraining_are_told(heartbeats):
    names = sorted(heartbeats)
    train, test = {names[0]: "a"}, {names[1]: "b", names[2]: "c", names[3]: "d"}
    told = {"traits": {name: {"corpus": "ptb-xl"} for name in (*train, *test)}}
    across = {"fold_of": dict(zip(names, ("3", "8", "10", "9")))}
    found = check_leaks(questions(heartbeats, train, test, **told, **across), "PTB-XL, folds 1-8, statements")
    assert dict(found.folds) == {"8": 1, "9": 1, "10": 1}
    assert found.sentences()[3:] == [
        "Of 3 test ECGs 1 lie in folds 1-8 of their corpus' published split, which encoders are commonly pretrained "
        "on.",
        "The encoder was pretrained on: PTB-XL, folds 1-8, statements.",
        "That names ptb-xl, the corpus of the test ECGs: the encoder may have seen them, or other ECGs of their "
        "patients.",
    ]
    held = {"fold_of": dict.fromkeys(names[1:], "9")}
    found = check_leaks(questions(heartbeats, train, test, **told, **held))
    assert found.sentences()[3].startswith("All 3 test ECGs lie in fold 9 of their corpus' published split;")
    along = {"fold_of": dict(zip(names, ("3", "9", "10", "9")))}
    found = check_leaks(questions(heartbeats, train, test, **told, **along), "MIMIC-IV-ECG")
    assert found.sentences()[3:] == [
        "All 3 test ECGs lie in folds 9-10 of their corpus' published split; encoders are commonly pretrained on folds "
        "1-8.",
        "The encoder was pretrained on: MIMIC-IV-ECG.",
    ]


@pytest.mark.slow
def test_ecg_qas_own_split_lies_across_ptbxls_folds():
    """The true lists: no recording is read, each stands for itself as an empty one."""
    lists = {split: SHARED / f"ecgqa/ptbxl_{split}_ecgs.tsv.gz" for split in ("train", "test")}
    if not SHARED.is_dir():
        pytest.skip(f"no real lists: {SHARED} is absent")
    with gzip.open(SHARED / "metadata/ptbxl/ptbxl_labels_all.csv.gz", "rt", newline="") as file:
        table = {row["ecg_id"]: row for row in csv.DictReader(file)}
    ecgs = {
        split: [line.split("\t")[1] for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
        for split, path in lists.items()
    }
    patients = {split: {ecg: table[ecg]["patient_id"] for ecg in ids} for split, ids in ecgs.items()}
    known = [*ecgs["train"], *ecgs["test"]]

    class Empty:
        def __getitem__(self, record: str) -> Ecg:
            return Ecg(np.zeros((1, 1)), 100, ("I",), record)

    found = check_leaks(
        questions(
            Empty(),
            *patients.values(),
            fold_of={ecg: table[ecg]["strat_fold"] for ecg in known},
            traits=dict.fromkeys(known, {"corpus": "ptb-xl"}),
        )
    )
    assert found.patients == () and found.train[0] == 11566
    assert found.sentences()[3].startswith("Of 3,214 test ECGs 2,324 lie in folds 1-8 of their corpus' published split")


@pytest.mark.slow
def test_real_recordings_of_several_corpora_and_their_copies():
    folder = SHARED / "wfdb"
    if not folder.is_dir():
        pytest.skip(f"no real recordings: {folder} is absent")
    stored, source = WfdbFolder(folder), {}
    # Not the folders of odd headers and formats, where a recording is there twice or is no ECG.
    for path in sorted(folder.glob("[!fh]*/*.hea")):
        name = str(path.relative_to(folder).with_suffix(""))
        source[name] = stored[name].crop(0, min(20, stored[name].duration))
    made = {f"copy of {name}": ecg.resample(100) for name, ecg in source.items()}
    found = find_duplicates({**source, **made}, list(source), list(made))
    assert {pair.test for pair in found} == set(made) and all(pair.test.endswith(pair.train) for pair in found)


@pytest.mark.slow
def test_real_pairs_and_planted_copies(tmp_path):
    """All 1.3 million pairs of real recordings: none is taken for one recording."""
    tool = SHARED.parent / "tools" / "unpack_ptbxl.py"
    if not tool.is_file():
        pytest.skip(f"no real data: {tool} is absent")
    subprocess.run([sys.executable, str(tool), str(tmp_path)], check=True, capture_output=True)
    ptbxl = PtbXl(tmp_path / "ptbxl")
    found = find_duplicates(ptbxl, ptbxl.records, ptbxl.records)
    assert {(pair.train, pair.test) for pair in found} == {(record, record) for record in ptbxl.records}
    some = np.random.default_rng(0).choice(ptbxl.records, 100, replace=False).tolist()
    made, hit, wrong = find_planted({name: ptbxl[name] for name in some}, 1)
    assert wrong == 0
    assert all(hit[kind] == count for kind, count in made.items() if kind not in ("cut", "cut off the grid"))
    assert hit["cut"] >= 98 and hit["cut off the grid"] >= 93
