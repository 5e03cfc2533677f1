"""The line of measured features: where it stands, that it goes with its ECG, and that training and asking agree."""

import json
import multiprocessing
import re

import numpy as np
import pytest
import torch

from data import measure as measure_module
from data.conversations.rows import QuestionSet, packed, question_row, user
from data.experiment.conditions import Altered, apply
from data.experiment.donors import Donor
from data.measure import NOT_MEASURABLE, Measurements, as_text, delineate, measure
from data.synthetic import SyntheticCohort
from elm import EcgCollator, ElmProcessor
from elm.ask import ask
from elm.inputs.features import FeatureStore
from elm.inputs.measured import MeasuredStore
from elm.saved.arguments import ElmArguments
from elm.training.build import build_collator
from eval.answerers.model import ModelResponder, SplitStore

pytest.importorskip("neurokit2", reason='measuring needs pip install "ecg-elm[measure]"')


class Told:
    """Measurements that name the recording they are of: what a store gives, without measuring."""

    def __init__(self):
        self.asked = []

    def fill(self, records):
        self.asked += records

    def get(self, records):
        return [self.of(record) for record in records]

    @staticmethod
    def of(record):
        rate = 100.0 * len(record) + int(record.partition("~")[0][1:])
        return Measurements("good", rate=rate, r={"I": rate / 1000}, s={"I": 0.0})


@pytest.fixture(scope="module")
def source(make_ecg):
    return {f"r{i}": make_ecg(i, seconds=10 - i) for i in range(6)}


@pytest.fixture(scope="module")
def measured_pair(make_pair):
    model, processor = make_pair(pool=2)
    told = ElmProcessor(processor.feature_extractor, processor.tokenizer, pool=2, measured=True)
    return model, told, processor


def row(ecgs, question="Is it?", answer="yes"):
    return question_row(
        id=f"{question}{ecgs}", ecgs=ecgs, patient_ids=["p"] * len(ecgs), question_type="t", question=question,
        answer=[answer],
    )  # fmt: skip


def text_of(processor, ids, mask=None):
    ids = ids if mask is None else ids[mask.bool()]
    return processor.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def line(record):
    return as_text(Told.of(record))


# --- the prompt -------------------------------------------------------------------------------------------------------


def test_the_line_stands_right_behind_its_ecgs_tokens(measured_pair, source):
    _, processor, plain = measured_pair
    mask = torch.ones(2, 5, dtype=torch.bool)
    messages = [user(2, "Compare")]
    ids = processor(messages, ecg_mask=mask, measured=["first line.", "second line."])["input_ids"][0]
    token = processor.ecg_token
    assert f"{token * 3}\nfirst line.\n{token * 3}\nsecond line.\nCompare" in text_of(processor, ids)
    without = plain(messages, ecg_mask=mask)["input_ids"][0]
    assert (ids == processor.ecg_token_id).sum() == (without == plain.ecg_token_id).sum() == 6
    # A line is text whatever it says.
    ids = processor([user(1, "Is it?")], ecg_mask=mask[:1], measured=["<ecg> <eos>."])["input_ids"][0]
    assert (ids == processor.ecg_token_id).sum() == 3 and "< ecg> < eos>." in text_of(processor, ids)


@pytest.mark.slow
def test_given_recordings_are_measured(measured_pair):
    """With the same numbers as by hand."""
    _, processor, _ = measured_pair
    cohort = SyntheticCohort(2, records_per_patient=1)
    ecgs = [cohort[record] for record in cohort.records]
    ids = processor([user(2, "Compare")], ecgs)["input_ids"][0]
    lines = [as_text(delineate(ecg)) for ecg in ecgs]
    assert lines[0] != lines[1] and all(f"\n{one}\n" in text_of(processor, ids) for one in lines)
    given = processor([user(2, "Compare")], ecgs, measured=["a.", "b."])["input_ids"][0]
    assert "\na.\n" in text_of(processor, given) and lines[0] not in text_of(processor, given)
    bare = ElmProcessor(
        processor.feature_extractor, processor.tokenizer, pool=2, measured=True, measured_amplitudes="none"
    )
    said = text_of(bare, bare([user(1, "Is it?")], ecgs[:1])["input_ids"][0])
    assert (
        "amplitude" in lines[0] and "amplitude" not in said and as_text(delineate(ecgs[0]), amplitudes="none") in said
    )


def test_lines_that_are_missing_or_too_many_are_refused(measured_pair, source):
    _, processor, plain = measured_pair
    mask = torch.ones(2, 5, dtype=torch.bool)
    for p, given, told in ((processor, None, 0), (processor, ["a."], 1), (plain, ["a.", "b."], 2)):
        with pytest.raises(
            ValueError, match=f"{told} lines of measured features are given for 2 ECGs, but the processor"
        ):
            p([user(2, "Compare")], ecg_mask=mask, measured=given)
    with pytest.raises(ValueError, match="0 lines of measured features are given for 2 ECGs.*measured=True"):
        processor.render([user(2, "Compare")], [3, 3])


def test_the_setting_is_saved_with_the_processor(measured_pair, tmp_path):
    _, processor, plain = measured_pair
    settings = {"measured": True, "measured_amplitudes": "none"}
    ElmProcessor(processor.feature_extractor, processor.tokenizer, pool=2, **settings).save_pretrained(tmp_path / "a")
    again = ElmProcessor.from_pretrained(tmp_path / "a")
    assert again.measured is True and again.measured_amplitudes == "none" and again.pool == 2
    plain.save_pretrained(tmp_path / "b")
    assert ElmProcessor.from_pretrained(tmp_path / "b").measured is False


# --- training and asking ----------------------------------------------------------------------------------------------


@pytest.fixture
def stores(measured_pair, source, tmp_path):
    model, processor, _ = measured_pair

    def make(name="c", source_=source, **settings):
        return FeatureStore(model.model.encoder, processor.feature_extractor, source_, name, tmp_path, **settings)

    return SplitStore(make(), make("altered", Altered(source))), make(zero=True)


@pytest.mark.parametrize("cached", [False, True])
def test_training_and_asking_give_the_same_prompt(measured_pair, source, stores, cached):
    model, processor, _ = measured_pair
    features, zeros = stores
    rows = [row(["r1"]), row(["r4", "r2"], "Compare"), row([], "What?"), row(["r3"], answer="sinus rhythm")]
    collator = EcgCollator(processor, source, features if cached else None, measured=Told())
    responder = ModelResponder(model, processor, source, features if cached else None, measured=Told(), zeros=zeros)
    trained = collator(rows)
    asked = responder._inputs(rows, "real")
    for r, one in enumerate(rows):
        prompt = asked["input_ids"][r][asked["attention_mask"][r].bool()]
        assert torch.equal(trained["input_ids"][r][: len(prompt)], prompt)
        assert trained["labels"][r][: len(prompt)].eq(-100).all() and trained["labels"][r][len(prompt)] != -100
        said = text_of(processor, prompt)
        assert [said.count(line(record)) for record in one["ecgs"]] == [1] * len(one["ecgs"])
        assert said.count("Measured:") == len(one["ecgs"])
    # And in a row of several questions.
    pair = collator(packed([rows[0], row(["r1"], "What?")], 2))
    ids, questions = pair["input_ids"][0], pair["question_ids"][0]
    assert line("r1") in text_of(processor, ids[questions == 0]) and text_of(processor, ids).count("Measured:") == 1


def prompts(responder, rows, condition):
    inputs = responder._inputs(rows, condition)
    return [text_of(responder.processor, i, m) for i, m in zip(inputs["input_ids"], inputs["attention_mask"])]


def test_the_line_goes_with_its_ecg(measured_pair, source, stores):
    """Swapped with it, gone with it, silent where what it says is taken away, and measured anew where it is altered."""
    model, processor, _ = measured_pair
    features, zeros = stores
    told = Told()
    responder = ModelResponder(
        model, processor, source, features, zeros=zeros, measured=told, training_records=["r1", "r2"]
    )
    rows = [row(["r1"]), row(["r4", "r2"], "Compare")]
    real = prompts(responder, rows, "real")
    donors = [Donor(1, ["r3"], ["no"]), Donor(0, ["r2", "r4"], ["no"])]
    swapped = prompts(responder, apply("swap", rows, donors), "swap")
    assert line("r3") in swapped[0] and line("r1") not in swapped[0]
    assert swapped[1].index(line("r2")) < swapped[1].index(line("r4"))
    assert real[1].index(line("r4")) < real[1].index(line("r2"))
    assert not any("Measured" in said for said in prompts(responder, apply("none", rows), "none"))
    for condition in ("zero", "mean"):
        responder.prepare(rows, condition)
        assert told.asked == []  # nothing of the recordings is asked for
        silent = prompts(responder, rows, condition)
        for before, after, one in zip(real, silent, rows):
            for record in one["ecgs"]:
                before = before.replace(line(record), NOT_MEASURABLE)
            assert after == before and "Measured: rate" not in after
    for condition in ("noise", "flat", "lead-drop"):
        altered = apply(condition, rows)
        responder.prepare(altered, condition)
        said = prompts(responder, altered, condition)
        assert all("~" in record and line(record) in said[0] for record in altered[0]["ecgs"])
    assert {record.partition("~")[2][:4] for record in told.asked} == {"nois", "flat", "drop"}


def test_what_is_measured_changes_the_name_of_who_answers(measured_pair, source, monkeypatch):
    model, processor, plain = measured_pair
    bare = ElmProcessor(
        processor.feature_extractor, processor.tokenizer, pool=2, measured=True, measured_amplitudes="none"
    )
    names = {ModelResponder(model, plain, source).name}
    names |= {ModelResponder(model, p, source, measured=Told()).name for p in (processor, bare)}
    monkeypatch.setattr("eval.answerers.model.version", lambda: "another")
    names.add(ModelResponder(model, processor, source, measured=Told()).name)
    assert len(names) == 4


def test_training_on_zeros_tells_nothing(measured_pair, source, tmp_path):
    model, processor, _ = measured_pair
    questions = QuestionSet("t", source, "t", [row(["r1"])], [], [], {})
    settings = {"measured": True, "cache_dir": str(tmp_path)}
    zero = build_collator(ElmArguments(train_condition="zero", **settings), model, processor, questions)
    assert zero.measured is None
    said = text_of(processor, zero([row(["r1"])])["input_ids"][0])
    assert f"\n{NOT_MEASURABLE}\n" in said
    real = build_collator(ElmArguments(**settings), model, processor, questions)
    assert isinstance(real.measured, MeasuredStore)
    assert build_collator(ElmArguments(cache_dir=str(tmp_path)), model, processor, questions).measured is None


@pytest.mark.slow
def test_asking_about_files_measures_them(measured_pair):
    model, processor, _ = measured_pair
    cohort = SyntheticCohort(1, records_per_patient=1)
    seen = []
    hook = model.model.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(inputs["input_ids"]), with_kwargs=True
    )
    ask(model, processor, [cohort[cohort.records[0]]], "Is it?", max_new_tokens=2)
    hook.remove()
    assert as_text(delineate(cohort[cohort.records[0]])) in text_of(processor, seen[0][0])


# --- the store --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_recording_is_measured_once(tmp_path, monkeypatch):
    cohort = SyntheticCohort(3, records_per_patient=1)
    first, second, third = cohort.records
    altered = f"{first}~drop:V1"
    store = MeasuredStore(cohort, "cohort", tmp_path)
    got = store.get([second, first, altered, second])
    assert got == [measure(Altered(cohort)[record]) for record in (second, first, altered, second)]
    assert got[2].r["V1"] == 0 < got[1].r["V1"] - got[1].s["V1"]

    def refuse(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr("elm.inputs.measured.measure_many", refuse)
    again = MeasuredStore({}, "cohort", tmp_path)
    assert again.get([first, altered]) == [got[1], got[2]] and second in again and third not in again
    with pytest.raises(AssertionError, match="measured again"):
        again.get([third])
    assert MeasuredStore(cohort, "another", tmp_path).folder != store.folder
    monkeypatch.setattr(measure_module, "version", lambda: "next")
    assert MeasuredStore(cohort, "cohort", tmp_path).folder != store.folder
    monkeypatch.setattr("data.measure.worker.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="ecg-elm"):
        MeasuredStore(cohort, "cohort", tmp_path)


def fill(folder, records):
    import elm.inputs.measured

    def quickly(source, records, jobs=None):
        for record in records:
            yield Measurements("good", rate=float(record[1:]))

    elm.inputs.measured.measure_many = quickly
    elm.inputs.measured.SHARD = 5
    MeasuredStore({}, "c", folder).fill(records)


@pytest.mark.slow
def test_two_processes_fill_it_at_the_same_time(tmp_path, monkeypatch):
    context = multiprocessing.get_context("fork")
    parts = [[f"r{i}" for i in range(60)], [f"r{i}" for i in range(30, 90)]]
    children = [context.Process(target=fill, args=(tmp_path, part), daemon=True) for part in parts]
    for child in children:
        child.start()
    for child in children:
        child.join(240)
        assert child.exitcode == 0
    store = MeasuredStore({}, "c", tmp_path)
    assert [m.rate for m in store.get([f"r{i}" for i in range(90)])] == [float(i) for i in range(90)]
    assert all(json.loads(path.read_text()) for path in store.folder.iterdir())  # whole files and no others
    # What another process has measured since is found.
    late = MeasuredStore({}, "c", tmp_path)
    with monkeypatch.context() as m:
        m.setattr(
            "elm.inputs.measured.measure_many", lambda source, records, jobs: iter([Measurements("good", rate=7.0)])
        )
        store.get(["r100"])
    assert late.get(["r100"])[0].rate == 7.0


# --- what it is for ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_line_tells_voltage_which_the_encoder_cannot(tmp_path):
    """Low, normal and high voltage from the numbers of the line, and from what MELP's architecture makes of the ECG."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from elm.training.tiny_encoder import melp_config
    from encoders.melp import MelpFeatureExtractor, MelpModel

    cohort = SyntheticCohort(700, records_per_patient=1, seed=2)
    voltage = cohort.categories["voltage"]
    lines = [as_text(m) for m in MeasuredStore(cohort, cohort.key, tmp_path).get(cohort.records)]
    assert not any(said == NOT_MEASURABLE for said in lines)
    sizes = [re.findall(r"\d+\.\d", line.split("amplitude ")[1]) for line in lines]  # mean, and of each lead
    numbers = np.array(sizes, dtype=float)
    torch.manual_seed(0)
    config = melp_config()
    model, extractor = MelpModel(config).eval(), MelpFeatureExtractor.from_config(config)
    with torch.no_grad():
        tokens = [
            model(**extractor([cohort[record] for record in cohort.records[i : i + 100]])).last_hidden_state.flatten(1)
            for i in range(0, 700, 100)
        ]
    encoded = torch.cat(tokens).numpy()
    accuracy = {}
    for name, table in (("line", numbers), ("encoder", encoded)):
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, C=1.0 if name == "line" else 0.01))
        probe.fit(table[:500], voltage[:500])
        accuracy[name] = probe.score(table[500:], voltage[500:])
    most_common = np.bincount(voltage[500:]).max() / 200
    assert accuracy["line"] > 0.97, accuracy
    assert accuracy["encoder"] < most_common + 0.1, accuracy


def test_an_unknown_choice_of_amplitudes_is_refused(measured_pair):
    processor = measured_pair[1]
    with pytest.raises(ValueError, match="measured_amplitudes must be one of leads, mean, none, got 'all'"):
        ElmProcessor(processor.feature_extractor, processor.tokenizer, measured=True, measured_amplitudes="all")
