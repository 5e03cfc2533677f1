"""Recordings that no model can be asked about: found by their files' sizes or by reading, refused or left out."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from data.conversations import load_questions
from data.conversations.readable import readable_questions, records_of, without_unreadable
from data.conversations.rows import QuestionSet, question_row
from data.corpora import verdicts
from data.corpora.ptbxl import PtbXl
from data.corpora.verdicts import Verdict, common_notes, damaged_files, read_recordings
from data.ecg import LEADS, Ecg
from data.readers import WfdbFolder, write_wfdb
from data.synthetic import SyntheticCohort
from helpers.ecg_qa import cut, sample_file, write_ecg_qa

FOLDS = {1: 1, 2: 2, 3: 8, 9: 9, 10: 9}
ASKED = {"train": [1, 2, 3], "valid": [9], "test": [10]}
SETS = {"sets": ["ecgqa"]}
COHORT = SyntheticCohort(3, records_per_patient=1, seed=9)


@pytest.fixture
def root(tmp_path):
    return write_ecg_qa(tmp_path / "qa", FOLDS, ASKED)


@pytest.fixture
def corpus(root):
    return PtbXl(root / "ptbxl")


def recording(name, **changes):
    return replace(COHORT[COHORT.records[0]], record_id=name, **changes)


def question_set(source, train, test=()):
    """One question about each record, all of patients of their own."""
    rows = {
        part: [
            question_row(
                id=f"{part}/{record}", ecgs=[record], patient_ids=[f"p{record}"], question_type="single-verify",
                question="Is it?", answer=["yes"],
            ) for record in records
        ] for part, records in (("train", train), ("test", test))
    }  # fmt: skip
    patient_of = {record: f"p{record}" for record in (*train, *test)}
    return QuestionSet("ours", source, "ours", rows["train"], rows["test"], [], patient_of, fold_of=dict(patient_of))


def test_a_cut_off_file_is_refused_when_the_questions_are_loaded(root):
    cut(sample_file(root, 2), 5000)
    sample_file(root, 9).unlink()
    with pytest.raises(
        ValueError, match=r"2 recordings of 5 cannot be read:\n  2: .*00002_lr\.dat: 5000 bytes"
    ) as told:
        load_questions("ecg_qa", root=root, **SETS)
    assert "\n  9: " in str(told.value) and "--unreadable leave_out" in str(told.value)


def test_left_out_recordings_are_counted_and_named(root):
    cut(sample_file(root, 2), 5000)
    cut(sample_file(root, 9), 0)
    loaded = load_questions("ecg_qa", unreadable="leave_out", root=root, **SETS)
    assert [row["ecgs"] for row in loaded.train] == [["1"], ["3"]] and [row["ecgs"] for row in loaded.test] == [["10"]]
    assert [row["ecgs"] for row in loaded.reports] == [["1"], ["3"]]
    assert records_of(loaded) == ["1", "3", "10"] == list(loaded.patient_of) == list(loaded.traits)
    assert loaded.notes[-1].startswith(
        "2 recordings that cannot be read were left out, and with them 1 training questions, 1 test questions, "
        "1 training reports, 1 test reports: 2, 9 (/"
    )


def test_a_policy_must_be_one(root):
    with pytest.raises(ValueError, match="unreadable must be one of refuse, leave_out, got 'ignore'"):
        load_questions("ecg_qa", unreadable="ignore", root=root, **SETS)


def test_sound_sets_are_left_as_they_are(root):
    loaded = load_questions("ecg_qa", unreadable=None, root=root, **SETS)
    again = readable_questions(loaded, "refuse")
    assert (again.train, again.test, again.notes) == (loaded.train, loaded.test, loaded.notes)
    assert again.leads == dict.fromkeys(records_of(loaded), LEADS)


def test_only_the_first_are_named(tmp_path):
    questions = question_set({}, [f"r{i:02d}" for i in range(14)])
    with pytest.raises(ValueError, match=r"14 recordings of 14 cannot be read:\n  r00: r00\n") as told:
        readable_questions(questions, "refuse")
    assert "r09" in str(told.value) and "r10" not in str(told.value) and "and 4 more" in str(told.value)


@pytest.mark.parametrize(
    ("signal", "reason"),
    [
        (np.zeros((12, 1000)), "no model can read this recording: Flat"),
        (np.full((12, 1000), 0.7), "no model can read this recording: Flat"),
        (np.ones((12, 20)), "no model can read this recording: Only 0.2 s long"),
        (1000 * COHORT[COHORT.records[1]].signal, "spans .* mV, an ECG less than 20 mV"),
    ],
)
def test_what_cannot_be_asked_about_cannot_be_trained_on(signal, reason):
    source = {"bad": Ecg(signal, 100, LEADS, record_id="bad"), "good": recording("good")}
    with pytest.raises(ValueError, match=rf"1 recording of 2 cannot be read:\n  bad: .*{reason}"):
        readable_questions(question_set(source, ["good", "bad"]), "refuse")
    left = readable_questions(question_set(source, ["good", "bad"]), "leave_out")
    assert [row["ecgs"] for row in left.train] == [["good"]] and left.fold_of == {"good": "pgood"}


@pytest.mark.parametrize(
    "error", [KeyError("no record 'x'"), OSError("disk"), EOFError("torn"), ZeroDivisionError("?")]
)
def test_whatever_a_source_raises_is_a_reason(error):
    class Broken:
        def __getitem__(self, record):
            raise error

    (verdict,) = read_recordings(Broken(), "k", ["x"]).values()
    assert str(error.args[0]) in verdict.reason and (type(error).__name__ in verdict.reason) == (
        isinstance(error, EOFError | ZeroDivisionError)
    )


def test_simulated_recordings_are_not_looked_at(monkeypatch):
    monkeypatch.setattr(SyntheticCohort, "__getitem__", lambda *_: pytest.fail("read"))
    assert read_recordings(COHORT, COHORT.key, COHORT.records) == {} == damaged_files(COHORT, COHORT.records)


def test_a_gap_is_bridged_in_training_as_in_asking(root, corpus):
    header = sample_file(root, 1).with_suffix(".hea")
    stored = np.fromfile(sample_file(root, 1), "<i2").reshape(-1, 12)
    stored[100:110, 6] = -32768
    stored.tofile(sample_file(root, 1))
    lines = [line.split() for line in header.read_text().splitlines()]
    unsummed = [[*fields[:6], "0", *fields[7:]] if len(fields) > 5 else fields for fields in lines]
    header.write_text("\n".join(map(" ".join, unsummed)))
    folder = WfdbFolder(header.parent)
    for ecg in (corpus["1"], folder["00001_lr"]):
        assert ecg.meta["repaired_samples"] == {"V1": 10} and np.isfinite(ecg.signal).all()
    (verdict,) = read_recordings(corpus, corpus.key, ["1"]).values()
    assert not verdict.reason and "Missing samples" in " ".join(verdict.notes)


def test_folders_of_wfdb_records_are_looked_at_too(tmp_path):
    for name in ("a", "b"):
        write_wfdb(recording(name, meta={}), tmp_path)
    cut(tmp_path / "b.dat", 10)
    found = damaged_files(WfdbFolder(tmp_path), ["a", "b", "c"])
    assert list(found) == ["b", "c"] and "10 bytes" in found["b"] and found["c"].startswith("no record 'c' in")


def test_links_into_a_store_are_followed(root, corpus, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    for number, path in enumerate(sorted(sample_file(root, 1).parent.iterdir())):
        shutil.move(path, store / f"{number}")
        path.symlink_to(store / f"{number}")
    assert damaged_files(corpus, corpus.records) == {}
    assert not any(verdict.reason for verdict in read_recordings(corpus, corpus.key, corpus.records).values())
    (store / "1").unlink()
    assert len(damaged_files(corpus, corpus.records)) == 1


@pytest.fixture
def reads(monkeypatch):
    """Records that are read."""
    records = []

    def read(chunk, source):
        records.extend(chunk)
        return original(chunk, source)

    original = verdicts._verdicts
    monkeypatch.setattr(verdicts, "_verdicts", read)
    return records


def test_what_was_read_is_not_read_again(corpus, tmp_path, reads):
    first = read_recordings(corpus, corpus.key, ["1", "2"], tmp_path)
    again = read_recordings(corpus, corpus.key, ["2", "3", "1"], tmp_path)
    assert {record: again[record] for record in "12"} == first and again["1"].leads == LEADS
    assert reads == ["1", "2", "3"]
    read_recordings(corpus, "another source", ["1"], tmp_path)
    assert reads == ["1", "2", "3", "1"]


def test_changed_files_and_bad_ones_are_read_again(root, corpus, tmp_path, reads):
    whole = sample_file(root, 2).read_bytes()
    cut(sample_file(root, 2), 5000)
    assert read_recordings(corpus, corpus.key, ["1", "2"], tmp_path)["2"].reason
    sample_file(root, 2).write_bytes(whole)
    cut(sample_file(root, 1), 300)
    again = read_recordings(corpus, corpus.key, ["1", "2"], tmp_path)
    assert again["1"].reason and not again["2"].reason and reads == ["1", "2", "1", "2"]


@pytest.mark.parametrize("content", ["{", "[]", '{"signals": [], "records": {"1": ["x", 3]}}'])
def test_a_damaged_memory_is_made_anew(content, corpus, tmp_path, reads, caplog):
    read_recordings(corpus, corpus.key, ["1"], tmp_path)
    (file,) = tmp_path.glob("recordings-*.json")
    file.write_text(content)
    read_recordings(corpus, corpus.key, ["1"], tmp_path)
    assert (
        reads == ["1", "1"] and "is damaged" in caplog.text and json.loads(file.read_text())["records"].keys() == {"1"}
    )


def test_a_memory_that_cannot_be_written_is_done_without(corpus, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file")
    assert len(read_recordings(corpus, corpus.key, ["1"], tmp_path / "cache")) == 1
    assert "which recordings can be read is not remembered" in caplog.text


def test_sources_without_files_are_always_read(tmp_path, reads):
    source = {"a": recording("a")}
    for _ in range(2):
        read_recordings(source, "ours", ["a"], tmp_path)
    assert reads == ["a", "a"] and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_several_processes_find_the_same(root, corpus, monkeypatch):
    monkeypatch.setattr(verdicts, "_FEW", 0)
    monkeypatch.setattr(verdicts, "_CHUNK", 2)
    cut(sample_file(root, 3), 5000)
    alone = read_recordings(corpus, corpus.key, corpus.records, jobs=1)
    assert read_recordings(corpus, corpus.key, corpus.records, jobs=2) == alone and alone["3"].reason


def test_notes_are_gathered_by_what_they_say():
    verdicts = {
        "a": Verdict("", ("Flat: V1, V2.", "Only 7 s long."), LEADS), "b": Verdict("", ("Flat: V6.",), LEADS),
        "c": Verdict("", ("Only 8.5 s long.",), LEADS), "d": Verdict("unreadable", ("Flat: I.",), ()),
        "e": Verdict("", ("Flat: I.",), LEADS),
    }  # fmt: skip
    assert common_notes(verdicts) == {"Flat": ["a", "b", "e"], "Only … s long": ["a", "c"]}


def test_nothing_is_left_out_without_a_reason():
    questions = question_set({}, ["a"])
    assert without_unreadable(questions, {}, "leave_out") is questions


def test_links_into_a_store_are_followed_in_every_format(tmp_path):
    wfdb = pytest.importorskip("wfdb")
    signal, store = np.array(recording("x").signal.T, np.float64), tmp_path / "store"
    names, units = list(LEADS), ["mV"] * 12
    wfdb.wrsamp(
        "x",
        100,
        units,
        names,
        signal,
        fmt=["212"] * 12,
        adc_gain=[200] * 12,
        baseline=[0] * 12,
        write_dir=str(tmp_path),
    )
    store.mkdir()
    for number, path in enumerate(sorted(tmp_path.glob("x.*"))):
        shutil.move(path, store / f"{number}")
        path.symlink_to(store / f"{number}")
    assert WfdbFolder(tmp_path)["x"].signal == pytest.approx(signal.T, abs=0.01)
