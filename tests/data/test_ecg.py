"""`Ecg`: lead names, shape, immutability, cutting and resampling."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.ecg import LEADS, Ecg, canonical_lead, split_unit

quick = settings(deadline=None, max_examples=40)
ALL = (*LEADS, "VX", "VY", "VZ", "V3R", "V4R", "V7", "V8", "V9")


def make(leads=LEADS, samples=1000, fs=100.0, **fields) -> Ecg:
    rng = np.random.default_rng(len(leads))
    return Ecg(rng.standard_normal((len(leads), samples)), fs, tuple(leads), **fields)


spelled = st.sampled_from(ALL).flatmap(
    lambda name: st.tuples(
        st.just(name), st.sampled_from([name, name.lower(), name.upper(), f" {name} ", name.swapcase()])
    )
)


@given(spelled)
def test_every_spelling_of_a_lead_is_its_canonical_name(pair):
    name, spelling = pair
    assert canonical_lead(spelling) == name
    assert canonical_lead("-" + spelling.strip()) == "-" + name
    assert canonical_lead(canonical_lead(spelling)) == name


# What files call leads, beside the canonical names in any case: `{}` is the name.
WRITTEN = [
    "Lead {}", "lead_{}", "LEAD-{}", "lead{}", "ECG {}", "ECG_{}", "EKG {}", "ecg lead {}", "ECG-Lead {}", 
    "MDC_ECG_LEAD_{}", "ECG - {}",
    "{} (mV)", "{} [uV]", "{}(µV)", "{} ( nV )", "{}_mV", "{} uV", '"{}"', "'{}'", "# {}", "\ufeff{}",
    "Lead {} (V)", " {}\r",
]  # fmt: skip


@pytest.mark.parametrize("written", WRITTEN)
def test_what_files_write_around_a_name_is_no_part_of_it(written):
    for name in ALL:
        for spelling in (name, name.upper(), name.lower()):
            assert canonical_lead(written.format(spelling)) == name


OTHER_NAMES = {
    "I": ["DI", "LI", "D1", "di", "L1", "Lead L1", "D I"],
    "II": ["DII", "D2", "L2", "L2 (mV)"],
    "III": ["DIII", "LIII", "D3", "l3"],
    "aVR": ["a VR", "aV R", "AV R", "a_VR", "a V R", "MDC_ECG_LEAD_AVR"],
    "-aVR": ["-AVR", "- aVR", "Lead -aVR", "-Lead aVR", "-aVR (mV)"],
    "V1": ["C1", "V 1", "V_1", "ECG C1", "c1"],
    "V6": ["C6", "v 6"],
    "V3R": ["V 3R", "v3r"],
}


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_other_names_of_the_same_electrodes(name):
    assert {canonical_lead(other) for other in OTHER_NAMES[name]} == {name}


def test_no_spelling_means_two_leads():
    spelled = [written.format(name) for written in WRITTEN for name in ALL]
    spelled += [other for others in OTHER_NAMES.values() for other in others]
    meant = {}
    for spelling in spelled:
        key = " ".join(spelling.lower().split())
        assert meant.setdefault(key, canonical_lead(spelling)) == canonical_lead(spelling)


@pytest.mark.parametrize(
    "name",
    ["", "-", "--I", "aVX", "V10", "VII", "MLII", "MLI", "ML2", "MCL1", "CM5", "V1-", "I I", "I-II", "Lead 1",
     "ECG 1", "ECG_2", "1", "L4", "D4", "C7", "D", "DV1", "lead", "ECG", "V", "Lead -", "-Lead -I", "I (mV) II", 
     "I (Hz)", "V1-V2", "leads I"],
)  # fmt: skip
def test_unknown_lead_is_named_with_what_is_known(name):
    with pytest.raises(ValueError, match=r"unknown lead .*expected one of I, II, III, aVR"):
        canonical_lead(name)


@pytest.mark.parametrize(
    ("name", "bare", "unit"),
    [("I", "I", None), ("I (uV)", "I", "uV"), ("# aVR [mV]", "aVR", "mV"), ("V1_nV", "V1", "nV"), 
     ("II (adu)", "II", "adu"),
     ("V", "V", None), ("MV", "MV", None), ("aV", "aV", None), ("'Lead I (µV)'", "Lead I", "μV"), 
     ("lead V", "lead V", None)],
)  # fmt: skip
def test_the_unit_in_a_name(name, bare, unit):
    assert split_unit(name) == (bare, unit)


@given(st.permutations(range(12)), st.integers(1, 12))
def test_select_gives_the_asked_rows_in_any_order_and_spelling(order, count):
    ecg = make(record_id="r", patient_id="p", meta={"a": 1})
    names = [LEADS[i] for i in order[:count]]
    out = ecg.select([name.upper() for name in names])
    assert out.leads == tuple(names)
    np.testing.assert_array_equal(out.signal, ecg.signal[list(order[:count])])
    assert (out.record_id, out.patient_id, dict(out.meta), out.fs) == ("r", "p", {"a": 1}, ecg.fs)


def test_minus_inverts_and_twice_restores():
    ecg = make()
    inverted = ecg.select(["-avr"])
    assert inverted.leads == ("-aVR",)
    np.testing.assert_array_equal(inverted.signal[0], -ecg.signal[3])
    np.testing.assert_array_equal(inverted.select(["AVR"]).signal[0], ecg.signal[3])


@pytest.mark.parametrize(
    ("leads", "message"),
    [
        (["V9"], "'r1' has no lead V9; it has I, II"),
        (["-V1"], "'r1' has no lead V1"),
        (["X"], "unknown lead 'X'"),
        (["I", "i"], "named twice"),
        ([], "no lead was asked for"),
    ],
)
def test_select_says_what_is_missing(leads, message):
    with pytest.raises(ValueError, match=message):
        make(("I", "II"), record_id="r1").select(leads)


def test_signal_is_a_read_only_copy():
    source = np.zeros((1, 5), np.float32)
    ecg = Ecg(source, 100, ("i",), meta={"k": [1]})
    source[:] = 1
    assert ecg.signal.max() == 0 and ecg.signal.dtype == np.float32 and ecg.leads == ("I",)
    with pytest.raises(ValueError, match="read-only"):
        ecg.signal[0, 0] = 1
    with pytest.raises(TypeError):
        ecg.meta["k"] = 2
    for part in (ecg.resample(50), ecg.crop(0, 0.02), ecg.pad(1), ecg.select(["I"])):
        assert not part.signal.flags.writeable


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda ecg: pickle.loads(pickle.dumps(ecg))])
def test_survives_the_way_into_another_process(copied):
    ecg = make(record_id="r", patient_id="p", meta={"age": 3.0})
    twin = copied(ecg)
    np.testing.assert_array_equal(twin.signal, ecg.signal)
    assert (twin.fs, twin.leads, twin.record_id, twin.patient_id) == (ecg.fs, ecg.leads, "r", "p")
    assert dict(twin.meta) == {"age": 3.0} and not twin.signal.flags.writeable


@pytest.mark.parametrize(
    ("signal", "fs", "leads", "message"),
    [
        (np.zeros(5), 100, ("I",), r"\[leads, samples\]"),
        (np.zeros((1, 0)), 100, ("I",), "at least one sample"),
        (np.zeros((2, 5)), 100, ("I",), "2 rows of signal but 1 lead"),
        (np.zeros((2, 5)), 100, ("aVR", "AVR"), "named twice"),
        (np.zeros((1, 5)), 0, ("I",), "must be positive, got 0"),
        (np.zeros((1, 5)), float("inf"), ("I",), "must be positive"),
        (np.zeros((1, 5)), 100, ("Q",), "unknown lead 'Q'"),
    ],
)
def test_contradictions_are_refused_with_the_record_named(signal, fs, leads, message):
    with pytest.raises(ValueError, match=message) as caught:
        Ecg(signal, fs, leads, record_id="r7")
    assert "r7" in str(caught.value) or "unknown lead" in message


@quick
@given(st.integers(0, 899), st.integers(1, 100))
def test_crop_then_pad_keeps_the_span_and_its_length(first, count):
    ecg = make()
    cut = ecg.crop(first / 100, count / 100)
    np.testing.assert_array_equal(cut.signal, ecg.signal[:, first : first + count])
    padded = cut.pad(10, value=-1.5)
    assert padded.signal.shape == ecg.signal.shape and padded.duration == 10
    np.testing.assert_array_equal(padded.signal[:, :count], cut.signal)
    assert (padded.signal[:, count:] == -1.5).all()


@pytest.mark.parametrize(("start", "seconds"), [(-1, 2), (9, 2), (0, 10.01), (0, 0), (20, 1)])
def test_crop_outside_is_refused_with_the_duration(start, seconds):
    with pytest.raises(ValueError, match="'r' *: cannot crop .* it lasts 10 s"):
        make(record_id="r").crop(start, seconds)


def test_pad_never_shortens():
    with pytest.raises(ValueError, match="lasts 10 s, longer than 5 s: crop it"):
        make().pad(5)


@quick
@given(st.sampled_from([50, 250, 257, 360, 500]))
def test_resample_keeps_duration_and_names(fs):
    ecg = make(record_id="r").resample(fs)
    assert ecg.fs == fs and ecg.record_id == "r" and ecg.leads == LEADS
    assert abs(ecg.duration - 10) <= 1 / fs
    assert ecg.resample(fs) is ecg
