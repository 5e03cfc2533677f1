"""What each condition does to rows, recordings and inputs, and that it does nothing else."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.conversations.rows import dialogues, question_row, user
from data.ecg import LEADS, Ecg
from data.experiment import conditions
from data.experiment.conditions import CONDITIONS, FAST, Altered, apply, asked_leads, condition_named, zero_features
from data.experiment.donors import Donor, Question
from data.synthetic import SyntheticCohort

AUDIT = Path(__file__).parents[2] / "docs" / "audit.md"
quick = settings(max_examples=30, deadline=None)


def row(id, *ecgs, question="Is it?", **settings):
    patients = [f"p-{e}" for e in ecgs]
    known = {"question_type": "single-verify", "answer": ["yes"], **settings}
    return question_row(id=id, ecgs=ecgs, patient_ids=patients, question=question, **known)


ROWS = [row("1", "a"), row("2", "b", "c")]
DONORS = [Donor(1, ["x"], ["no"]), Donor(0, ["y", "z"], [])]
OTHERS = [Question(1, "Is it that?"), Question(0, "Or this?")]


def but(rows, *changed):
    return [{name: value for name, value in row.items() if name not in changed} for row in rows]


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", ["real", "zero", "mean"])
def test_what_is_not_done_to_rows_leaves_them_as_they_are(condition):
    assert apply(condition, ROWS) == ROWS


def test_none_takes_the_ecgs_out_of_every_turn():
    talk = dialogues([row("1", "a", "b"), row("3", "a", "b")], turns=2)[0]
    talk["messages"].insert(0, {"role": "system", "content": "Be <ecg> brief."})
    before = copy.deepcopy(talk)
    (bare,) = apply("none", [talk])
    assert talk == before
    kinds = [part["type"] for message in bare["messages"][1:] for part in message["content"]]
    assert bare["ecgs"] == [] and kinds == ["text"] * 4
    assert bare["messages"][0] == talk["messages"][0]
    assert but([bare], "messages", "ecgs") == but([talk], "messages", "ecgs")


@pytest.mark.parametrize("condition", ["swap", "swap-flip", "swap-same"])
def test_swaps_change_recordings_and_nothing_else(condition):
    before = copy.deepcopy(ROWS)
    swapped = apply(condition, ROWS, DONORS)
    assert before == ROWS and [r["ecgs"] for r in swapped] == [["x"], ["y", "z"]]
    assert but(swapped, "ecgs") == but(ROWS, "ecgs")  # patients and answers too: the question's own


def test_the_four_coalitions_of_question_and_ecg():
    before = copy.deepcopy(ROWS)
    asked = apply("question-swap", ROWS, questions=OTHERS)
    assert before == ROWS and but(asked, "question", "messages") == but(ROWS, "question", "messages")
    assert [r["question"] for r in asked] == ["Is it that?", "Or this?"]
    assert [r["messages"][0] for r in asked] == [user(1, "Is it that?"), user(2, "Or this?")]
    assert [r["messages"][1] for r in asked] == [r["messages"][1] for r in ROWS]
    assert apply("both-swap", ROWS, DONORS, OTHERS) == apply("swap", asked, DONORS)
    assert all(CONDITIONS[name].donors == rule for name, rule in (("both-swap", "any"), ("swap", "any")))


def test_a_dialogue_has_no_single_question_to_exchange():
    talk = dialogues([row("1", "a"), row("3", "a")], turns=2)
    with pytest.raises(ValueError, match=r"row '\d\+\d' has 2 turns: only a single question"):
        apply("question-swap", talk, questions=OTHERS[:1])


@pytest.mark.parametrize("condition", ["flat", "noise", "phase", "reverse"])
def test_recordings_get_derived_names(condition):
    before = copy.deepcopy(ROWS)
    altered = apply(condition, ROWS)
    assert before == ROWS and but(altered, "ecgs") == but(ROWS, "ecgs")
    assert [r["ecgs"] for r in altered] == [[f"a~{condition}"], [f"b~{condition}", f"c~{condition}"]]


def test_the_leads_in_question_are_dropped_else_half_of_them():
    asked = row("1", "a", question="Is there static noise in lead V3?")
    assert apply("lead-drop", [asked])[0]["ecgs"] == ["a~drop:V3"]
    (two,) = apply("lead-drop", [ROWS[1]])
    drawn = [record.partition("~drop:")[2].split(",") for record in two["ecgs"]]
    assert all(len(leads) == 6 and sorted(leads, key=LEADS.index) == leads for leads in drawn)
    assert drawn[0] != drawn[1]  # by recording, and the same ones in every question about it
    assert apply("lead-drop", [row("9", "c", question="And now?")])[0]["ecgs"] == two["ecgs"][1:]


def test_planted_rows_are_altered_already():
    planted = row("1", "a~set:gain=2", control="planted")
    assert apply("planted", [planted]) == [planted]
    with pytest.raises(ValueError, match="row '2' is not planted: see data.experiment.planted.planted_rows"):
        apply("planted", [planted, ROWS[1]])


@pytest.mark.parametrize(
    ("question", "leads"),
    [
        ("Is there anterior ST elevation in this ECG?", "V1 V2 V3 V4"),
        ("Does this ECG show an anterolateral infarction?", "I aVL V1 V2 V3 V4 V5 V6"),
        ("Are there ischemic ST-T changes in inferior leads?", "II III aVF"),
        ("Which does this ECG show, septal or lateral infarction?", "I aVL V1 V2 V5 V6"),
        ("Inferior ST elevation in lead V1?", "V1"),  # what is named in so many words goes first
        ("Does this ECG show left anterior fascicular block?", ""),
        ("Left anterior or left posterior fascicular block?", ""),
        ("Is there bilateral bundle branch block?", ""),
        ("What is the rhythm?", ""),
    ],
)
def test_territories(question, leads):
    assert asked_leads(question) == tuple(leads.split())


def test_the_table_is_whole():
    lines = AUDIT.read_text(encoding="utf-8").split("## What is asked")[1].split("What the alterations")[0].splitlines()
    cells = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| `")]
    assert [(name, level) for name, _, level, _ in cells] == [(name, c.level) for name, c in CONDITIONS.items()]
    assert all(condition_named(name).name == name for name in CONDITIONS) and set(FAST) < set(CONDITIONS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("flip", ROWS), "unknown condition 'flip': expected one of real, swap, swap-flip, swap-same, zero"),
        (("swap", ROWS), "condition 'swap' of 2 rows was given no donors: see data.experiment.donors.choose_donors"),
        (("swap-flip", ROWS, DONORS[:1]), "'swap-flip' of 2 rows was given 1 donors"),
        (("swap", ROWS, DONORS[::-1]), "row '1' has 1 ECGs but was given 2 of its donor"),
        (("swap", ROWS, [DONORS[0], None]), "row '2' has none of the donors that condition 'swap' needs: leave it out"),
        (
            ("both-swap", ROWS, DONORS),
            "'both-swap' of 2 rows was given no questions: see data.experiment.donors.choose_questions",
        ),
        (("question-swap", ROWS, None, [None, None]), "row '1' has none of the questions"),
    ],
)
def test_wrong_use_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        apply(*arguments)


# --- recordings -------------------------------------------------------------------------------------------------------


class Folder(dict):
    """A source of recordings that have no parameters."""


def recording(samples, seed=0, leads=LEADS):
    rng = np.random.default_rng(seed)
    signal = rng.normal(
        rng.normal(0, 0.3, (len(leads), 1)), rng.uniform(0.1, 2, (len(leads), 1)), (len(leads), samples)
    )
    if leads == LEADS:
        signal[1] = signal[0] + signal[2]
    return Ecg(signal, 100, leads, "r", "p", {"age": 50})


@pytest.fixture(scope="module")
def cohort():
    return SyntheticCohort(5, seed=1)


@quick
@given(st.integers(2, 400), st.integers(0, 9), st.sampled_from(["flat", "noise", "phase", "reverse", "drop:V1,avr"]))
def test_an_alteration_is_of_the_recording_and_repeatable(samples, seed, change):
    ecg = recording(samples, seed)
    sources = [Altered(Folder(a=ecg, b=ecg)) for _ in range(2)]
    altered, again = (source[f"a~{change}"] for source in sources)
    assert (altered.record_id, altered.patient_id, altered.fs, altered.leads) == (f"a~{change}", "p", 100, LEADS)
    assert altered.meta == ecg.meta and altered.signal.shape == ecg.signal.shape and np.isfinite(altered.signal).all()
    np.testing.assert_array_equal(altered.signal, again.signal)
    other = sources[0][f"b~{change}"].signal  # the id decides what is drawn, not the array
    drawn = change == "noise" or (change == "phase" and samples > 2)  # two samples have no phase to draw
    assert np.array_equal(altered.signal, other) != drawn
    assert sources[0]["a"] is ecg


def test_flat_is_0_mv_and_reverse_is_its_own_inverse(cohort):
    source, record = Altered(cohort), cohort.records[0]
    assert not source[f"{record}~flat"].signal.any()
    np.testing.assert_array_equal(source[f"{record}~reverse"].signal, cohort[record].signal[:, ::-1])
    np.testing.assert_array_equal(source[f"{record}~reverse~reverse"].signal, cohort[record].signal)


def test_noise_has_mean_and_variance_of_each_lead_and_no_order():
    ecg = recording(5000)
    made = conditions.noise(ecg).signal
    np.testing.assert_allclose(made.mean(axis=1), ecg.signal.mean(axis=1), atol=0.15)
    np.testing.assert_allclose(made.std(axis=1), ecg.signal.std(axis=1), rtol=0.06)
    between = np.corrcoef(np.concatenate([made, np.roll(made, 1, axis=1)]))
    assert np.abs(between - np.eye(24)).max() < 0.08


@quick
@given(st.integers(2, 300), st.integers(0, 9))
def test_phase_keeps_spectra_means_and_what_leads_have_to_do_with_each_other(samples, seed):
    ecg = recording(samples, seed)
    made = conditions.phase(ecg).signal.astype(float)
    spectra = [np.fft.rfft(signal, axis=1) for signal in (ecg.signal.astype(float), made)]
    np.testing.assert_allclose(np.abs(spectra[1]), np.abs(spectra[0]), atol=1e-3)
    np.testing.assert_allclose(made.mean(axis=1), ecg.signal.mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(made[0] + made[2], made[1], atol=1e-4)
    np.testing.assert_allclose(np.cov(made), np.cov(ecg.signal), atol=1e-3)


def test_phase_leaves_no_waves(cohort):
    ecg = cohort.render(cohort.records[0], noise=0, st_mv=0, pvc=False, atrial_fibrillation=False)
    made = conditions.phase(ecg).signal
    # The R waves of an ECG stand far out of its distribution; a surrogate is all but Gaussian.
    before, after = (np.mean(((x - x.mean()) / x.std()) ** 4) for x in (ecg.signal[4], made[4]))
    assert before > 8 and after < 4


def test_dropped_leads_are_0_mv_and_the_others_untouched():
    ecg = recording(20, leads=("-aVR", "V1", "II"))
    made = conditions.drop(ecg, ["avr", "V6", "V1"])
    assert made.leads == ecg.leads and not made.signal[:2].any()
    np.testing.assert_array_equal(made.signal[2], ecg.signal[2])
    with pytest.raises(ValueError, match="unknown lead 'V9x'"):
        conditions.drop(ecg, ["V9x"])


def test_parameters_are_moved_where_there_are_some(cohort):
    record = cohort.records[3]
    altered = Altered(cohort)[f"{record}~set:heart_rate=97,pvc=0,conduction=2"]
    assert altered.meta["heart_rate"] == 97 and altered.meta["pvc"] is False and altered.meta["conduction"] == 2
    expected = cohort.render(record, heart_rate=97, pvc=False, conduction=2)
    np.testing.assert_array_equal(altered.signal, expected.signal)
    assert altered.record_id == f"{record}~set:heart_rate=97,pvc=0,conduction=2"
    twice = Altered(cohort)[f"{record}~set:gain=2~noise"]
    assert twice.signal[1].std() == pytest.approx(cohort.render(record, gain=2).signal[1].std(), rel=0.15)
    with pytest.raises(ValueError, match="unknown parameter .'rate'.: one of .'heart_rate'"):
        Altered(cohort)[f"{record}~set:rate=97"]
    with pytest.raises(ValueError, match="record 'a': gain cannot be moved: Folder holds recordings, not parameters"):
        Altered(Folder(a=recording(10)))["a~set:gain=2"]


@pytest.mark.parametrize("change", ["zero", "", "drop", "drop:", "drop:V7x", "set:", "set:gain", "set:gain=x", "set"])
def test_an_unknown_alteration_is_named(change):
    with pytest.raises(KeyError, match=f"record 'a~{change}': unknown alteration '{change}': expected flat, noise, ph"):
        Altered(Folder(a=recording(10)))[f"a~{change}"]


def test_an_unknown_recording_is_named(cohort):
    for source, error in ((Folder(), "no record 'q' to alter"), (cohort, "no record 'q' to alter")):
        with pytest.raises(KeyError, match=error):
            Altered(source)["q~flat"]
    with pytest.raises(KeyError, match="no record 'q' in a cohort"):
        Altered(cohort)["q~set:gain=1"]


# --- inputs -----------------------------------------------------------------------------------------------------------


def array(make, kind, *shape):
    return make(shape).astype(kind) if make is np.ones else make(shape).to(getattr(torch, kind))


FAMILIES = {
    "signal": ({"ecg_values": ("float16", 2, 3), "ecg_times": ("int64", 2, 3), "token_mask": ("bool", 2, 3),
                "float_mask": ("float32", 2, 3), "other": ("float32", 2)}, "ecg_values"),
    "words": ({"words": ("float32", 2, 256, 96), "in_chan": ("int64", 2, 256), "in_time": ("int32", 2, 256)}, "words"),
    "tokens": ({"ecg_tokens": ("int32", 2, 9), "token_mask": ("bool", 2, 9)}, "ecg_tokens"),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("make", [np.ones, torch.ones])
def test_zeros_keep_shape_type_and_everything_that_is_not_signal(make, family):
    kinds, signal = FAMILIES[family]
    features = {name: array(make, *kind) for name, kind in kinds.items()}
    before = dict(features)
    zeroed = zero_features(features, [name for name in kinds if name != "other"], zero_token=97)
    assert features == before and bool((features[signal] == 1).all())
    assert type(zeroed[signal]) is type(features[signal])
    assert zeroed[signal].dtype == features[signal].dtype and zeroed[signal].shape == features[signal].shape
    assert bool((zeroed[signal] == (97 if signal == "ecg_tokens" else 0)).all())
    assert all(zeroed[name] is features[name] for name in features if name != signal)


def test_zeroing_nothing_is_an_error():
    with pytest.raises(ValueError, match="cannot zero.*'signal'.*'ecg_values'"):
        zero_features({"ecg_values": np.ones(2)}, ["signal"])
    with pytest.raises(ValueError, match="nothing to zero"):
        zero_features({"ecg_times": np.ones(2, int)}, ["ecg_times"])
    with pytest.raises(ValueError, match="cannot zero 'ecg_tokens' without zero_token"):
        zero_features({"ecg_tokens": np.ones(2, np.int32)}, ["ecg_tokens"])


@pytest.mark.parametrize(
    ("record", "base", "change"),
    [("a", "a", None), ("a~noise", "a", "noise"), ("a~set:gain=2~flat", "a~set:gain=2", "flat")],
)
def test_ids_of_altered_recordings_come_apart_as_they_were_put_together(record, base, change):
    assert conditions.split_id(record) == (base, change)
    assert conditions.is_altered(record) == (change is not None)
    if change is not None:
        assert conditions.altered_id(base, change) == record
