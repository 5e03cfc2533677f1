"""Which signals are which leads: spellings, renaming, what may be left out, and limb leads that are computed."""

import re
from pathlib import Path

import numpy as np
import pytest

from data.ecg import LEADS
from data.readers import read_ecg
from helpers.written import FS, WORDS, header, npy, waves

# Limb leads that were not stored


def limbs() -> dict[str, np.ndarray]:
    one, two = waves()[:2]
    return {"I": one, "II": two, "III": two - one, "aVR": -(one + two) / 2, "aVL": one - two / 2, "aVF": two - one / 2}


@pytest.mark.parametrize("pair", [("I", "II"), ("II", "III"), ("III", "I")])
@pytest.mark.parametrize("chest", [(), LEADS[6:], ("V5", "V2")])
def test_two_limb_leads_give_the_others(pair, chest, tmp_path):
    stored = {lead: limbs()[lead] for lead in pair} | {lead: waves()[LEADS.index(lead)] for lead in chest}
    path = npy(tmp_path, np.stack([*stored.values()]))
    ecg = read_ecg(path, fs=FS, units="mV", leads=list(stored))
    assert ecg.leads == tuple(lead for lead in LEADS if lead in (*LEADS[:6], *chest))
    assert set(ecg.meta["derived_leads"]) == set(LEADS[:6]) - set(pair)
    for lead, row in (limbs() | stored).items():
        np.testing.assert_allclose(ecg.select([lead]).signal[0], row, atol=1e-6)
    assert any("Computed from the other limb leads: " in note for note in ecg.meta["quality"].notes)


def test_a_stored_lead_is_never_replaced(tmp_path):
    own = limbs()
    signal = np.stack([own["II"], own["I"], -own["aVR"], own["III"] + 0.003])  # III as another amplifier gave it
    ecg = read_ecg(npy(tmp_path, signal), fs=FS, units="mV", leads=["II", "I", "-aVR", "III"])
    assert ecg.leads == ("I", "II", "III", "-aVR", "aVL", "aVF") and ecg.meta["derived_leads"] == ("aVL", "aVF")
    np.testing.assert_allclose(ecg.signal[:4], signal[[1, 0, 3, 2]], atol=1e-6)


@pytest.mark.parametrize("leads", [("I", "II", "III"), ("I", "II", "aVF"), ("III", "II", "-aVR", "I")])
def test_nothing_is_computed_from_leads_that_contradict_each_other(leads, tmp_path):
    ecg = read_ecg(npy(tmp_path, waves()[: len(leads)]), fs=FS, units="mV", leads=leads)
    assert ecg.leads == leads and "derived_leads" not in ecg.meta


@pytest.mark.parametrize("leads", [("II", "V5"), ("aVR", "aVL", "aVF"), ("I", "VX", "VY"), ("V1", "V2")])
def test_what_two_limb_leads_do_not_give_is_not_made(leads, tmp_path):
    ecg = read_ecg(npy(tmp_path, waves()[: len(leads)]), fs=FS, units="mV", leads=leads)
    assert ecg.leads == leads and "derived_leads" not in ecg.meta


def test_nothing_is_computed_from_a_flat_or_an_absent_lead(tmp_path):
    for value in (0.3, np.nan):
        signal = waves()[:2]
        signal[0] = value
        ecg = read_ecg(npy(tmp_path, signal), fs=FS, units="mV", leads=["I", "II"], nan="interpolate")
        assert ecg.leads == (("II",) if np.isnan(value) else ("I", "II")) and "derived_leads" not in ecg.meta


def test_an_absent_lead_is_not_computed_anew(tmp_path):
    signal = waves()
    signal[2] = np.nan
    ecg = read_ecg(npy(tmp_path, signal), **WORDS, nan="interpolate")
    assert "III" not in ecg.leads and ecg.meta["absent_leads"] == ("III",) and "derived_leads" not in ecg.meta


# Names of signals


def named(folder: Path, names: list[str], how: str) -> Path:
    """Signals of these names in a WFDB record or a table."""
    if how == "wfdb":
        return header(folder, leads=tuple(names))
    path = folder / "named.csv"
    rows = [",".join(names), *(",".join(map(str, row)) for row in waves()[: len(names)].T)]
    path.write_text("\n".join(rows) + "\n")
    return path


def words(how: str) -> dict:
    return {} if how == "wfdb" else {"fs": FS, "units": "mV"}


@pytest.mark.parametrize("how", ["wfdb", "csv"])
@pytest.mark.parametrize(
    "names",
    [["DI", "DII", "DIII", *LEADS[3:]], ["L1", "L2", "L3", *LEADS[3:6], "C1", "C2", "C3", "C4", "C5", "C6"],
     [f"MDC_ECG_LEAD_{lead.upper()}" for lead in LEADS], [f"Lead {lead}" for lead in LEADS],
     [f"ECG_{lead}" for lead in LEADS]],
)  # fmt: skip
def test_spellings_of_devices_are_known(how, names, tmp_path):
    ecg = read_ecg(named(tmp_path, names, how), **words(how))
    assert ecg.leads == LEADS and "other_signals" not in ecg.meta
    np.testing.assert_allclose(ecg.signal, waves(), atol=1e-6)


@pytest.mark.parametrize("how", ["wfdb", "csv"])
@pytest.mark.parametrize(
    ("names", "unknown"),
    [(["MLII", "V5"], "MLII"), (["II", "V", "RESP"], "V"), (["ECG 1", "aVF", "ECG 2"], "ECG 1, ECG 2"),
     (["I", "II", "III", "Ableitung 4"], "Ableitung 4"), (["V1", "V2", "V3.1"], "V3.1")],
)  # fmt: skip
def test_what_may_be_a_lead_is_not_left_out(how, names, unknown, tmp_path):
    message = (
        rf"leads: not known, though they may be leads: {re.escape(unknown)}: with leads= \(commands: --leads\) name "
        rf"all {len(names)} signals in order, - for one that is not a lead"
    )
    with pytest.raises(ValueError, match=message):
        read_ecg(named(tmp_path, names, how), **words(how))


@pytest.mark.parametrize("how", ["wfdb", "csv"])
def test_signals_can_be_renamed_and_left_out(how, tmp_path):
    path = named(tmp_path, ["MLII", "V5", "aux"], how)
    for blank in ("-", "", " "):
        ecg = read_ecg(path, **words(how), leads=["II", "V5", blank])
        assert ecg.leads == ("II", "V5") and ecg.meta["other_signals"] == ("aux",)
        np.testing.assert_allclose(ecg.signal, waves()[:2], atol=1e-6)
    assert read_ecg(path, **words(how), leads=["-", "-", "v1"]).leads == ("V1",)


@pytest.mark.parametrize("how", ["wfdb", "csv"])
def test_signals_that_are_evidently_no_leads_need_no_name(how, tmp_path, caplog):
    path = named(tmp_path, ["ch1", "SpO2", "ch2", "RESP impedance", "marker_1"], how)
    ecg = read_ecg(path, **words(how), leads=["V2", "V5"])
    assert ecg.leads == ("V2", "V5") and ecg.meta["other_signals"] == ("SpO2", "RESP impedance", "marker_1")
    np.testing.assert_allclose(ecg.signal, waves()[[0, 2]], atol=1e-6)
    assert "SpO2, RESP impedance, marker_1" in caplog.text
    assert read_ecg(path, **words(how), leads=["V2", "-", "V5", "-", "-"]).leads == ("V2", "V5")


@pytest.mark.parametrize("how", ["wfdb", "csv"])
@pytest.mark.parametrize(
    ("names", "leads", "message"),
    [
        (["I", "II", "V1"], ["II", "I", "V1"], r"file says \('I', 'II', 'V1'\), the caller says \('II', 'I', 'V1'\)"),
        (["I", "MLII", "V1"], ["II", "I", "V1"], "leads: the file says .* the caller says .*: one is wrong, so decide"),
        (["II", "RESP", "V1"], ["II", "V5", "V1"], r"the caller says \('II', 'V5', 'V1'\): one is wrong"),
        (["I", "II", "V1"], ["I", "II"], r"the file says \('I', 'II', 'V1'\), the caller says \('I', 'II'\)"),
        (["ch1", "ch2"], ["I", "II", "III"], r"leads: none of \['ch1', 'ch2'\] is an ECG lead: name them I, II"),
        (["ch1", "ch2"], ["-", "-"], "leads: none of .* is an ECG lead"),
        (["ch1", "ch2"], ["I", "foo"], "leads: unknown lead 'foo': .*; - leaves a signal out"),
        (["ch1", "ch2"], ["V1", "C1"], "leads: V1 is named twice"),
    ],
)  # fmt: skip
def test_names_that_contradict_the_file(how, names, leads, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_ecg(named(tmp_path, names, how), **words(how), leads=leads)


def test_beside_all_twelve_another_signal_can_be_none_of_them(tmp_path, caplog):
    ecg = read_ecg(header(tmp_path, leads=LEADS))
    stored = np.rint(waves() * 1000).astype("<i2")
    path = tmp_path / "r.hea"
    path.with_suffix(".dat").write_bytes(np.vstack([stored, stored[:1]]).T.tobytes())
    text = path.read_text().replace("r 12", "r 13")
    path.write_text(text + "r.dat 16 1000/mV 16 0 0 0 0 aux\n")
    np.testing.assert_array_equal(read_ecg(path).signal, ecg.signal)
    assert read_ecg(path).meta["other_signals"] == ("aux",) and "left out: aux" in caplog.text


def test_a_unit_in_a_name_counts_and_may_not_contradict(tmp_path):
    path = tmp_path / "u.csv"
    path.write_text("Lead II (uV),V5 (mV)\n" + "1500,1.5\n" * 3)
    assert read_ecg(path, fs=500).signal.tolist() == [[1.5] * 3, [1.5] * 3]
    with pytest.raises(
        ValueError, match=r"column Lead II \(uV\): units: the file says uV, the caller says mV: one is wrong"
    ):
        read_ecg(path, fs=500, units="mV")
    path.write_text("II (uV),V5\n" + "1500,1.5\n" * 3)
    with pytest.raises(
        ValueError, match=r"column V5: its units are not known: pass units=\.\.\. \(commands: --units\)"
    ):
        read_ecg(path, fs=500)
    path.write_text("II (adu),V5 (adu)\n" + "1500,1.5\n" * 3)
    with pytest.raises(ValueError, match=r"column II \(adu\): unknown units 'adu'"):
        read_ecg(path, fs=500)
    wrong = header(tmp_path, leads=("I (uV)", "II (mV)"))
    with pytest.raises(ValueError, match=r"lead I is named 'I \(uV\)', its gain is per mV: correct one"):
        read_ecg(wrong)


def test_signals_of_a_bare_array_can_be_left_out(tmp_path):
    ecg = read_ecg(npy(tmp_path, waves()[:3]), fs=FS, units="mV", leads=["V1", "-", "V2"])
    assert ecg.leads == ("V1", "V2") and ecg.meta["other_signals"] == ("signal 2",)
    np.testing.assert_allclose(ecg.signal, waves()[[0, 2]], atol=1e-6)
    with pytest.raises(ValueError, match="leads: none of .* is an ECG lead"):
        read_ecg(npy(tmp_path, waves()[:2]), fs=FS, units="mV", leads=["-", ""])


@pytest.mark.parametrize("leads", ["I,II,III", "I II III", "V1"])
def test_names_in_one_word_are_no_list(leads, tmp_path):
    with pytest.raises(ValueError, match=f"leads must be a list of names, got '{leads}': split it"):
        read_ecg(npy(tmp_path), fs=FS, units="mV", leads=leads)
