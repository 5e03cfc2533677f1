"""Recordings to pretrain on: sides without a common patient, folds by patient, names that the leak check knows."""

import pytest

from data.experiment.leaks import _letters
from data.experiment.recordings import FOLDS, evenly, fold_by_patient, fold_ranges, folds_in_words, load_recordings

COHORT = {"patients": 200, "records_per_patient": 2}


def test_no_patient_is_on_both_sides_and_none_is_lost():
    found = load_recordings("synthetic", range(1, 10), [10], **COHORT)
    patients = [{found.patient_of[record] for record in side} for side in found.sides]
    assert not patients[0] & patients[1] and len(patients[0] | patients[1]) == 200
    assert len(found.train) + len(found.held_out) == 400 and found.sides == (found.train, found.held_out)
    assert 10 <= len(patients[1]) <= 32, "about a tenth"
    part = load_recordings("synthetic", [1, 2], [10], **COHORT)
    assert set(part.train) < set(found.train) and part.held_out == found.held_out


def test_folds_follow_from_the_patient_alone():
    counts = [0] * (FOLDS + 1)
    for patient in range(10_000):
        counts[fold_by_patient(str(patient))] += 1
    assert counts[0] == 0 and min(counts[1:]) > 900 and max(counts[1:]) < 1100
    assert fold_by_patient("10000032") == fold_by_patient("10000032")


@pytest.mark.parametrize("corpus", ["ptbxl", "mimic"])
def test_published_corpora(corpus, tmp_path, request):
    """PTB-XL by its own folds, MIMIC-IV-ECG by patients; under names that the leak check knows."""
    if corpus == "ptbxl":
        _write_ptbxl(tmp_path)
        found = load_recordings("ptbxl", [1, 2], [9], root=tmp_path)
        assert (found.train, found.held_out, found.name) == (["1", "2"], ["9"], "PTB-XL, folds 1-2")
        assert "ptbxl" in _letters(found.name)
        with pytest.raises(ValueError, match=r"patient 70 is in a fold to train on and in one held out"):
            load_recordings("ptbxl", [1, 3], [9], root=tmp_path)
    else:
        table = ["subject_id,study_id,path"]
        table += [f"{s},{4 * s + i},files/x/{4 * s + i}" for s in range(10_000_001, 10_000_101) for i in range(2)]
        (tmp_path / "record_list.csv").write_text("\n".join(table) + "\n")
        found = load_recordings("mimic_iv_ecg", range(1, 10), [10], root=tmp_path)
        assert len(found.train) + len(found.held_out) == 200 and "mimicivecg" in _letters(found.name)
        patients = [{found.patient_of[record] for record in side} for side in found.sides]
        assert not patients[0] & patients[1]


def _write_ptbxl(root):
    """Tables and headers of four records; no record is read."""
    columns = "ecg_id,patient_id,strat_fold,filename_lr,filename_hr,age,sex,scp_codes"
    rows = [columns]
    for record, patient, fold in ((1, 50, 1), (2, 60, 2), (3, 70, 3), (9, 70, 9)):
        rows.append(f"{record},{patient},{fold},records100/{record},records500/{record},50,0,{{}}")
        (root / "records100").mkdir(exist_ok=True)
        (root / "records100" / f"{record}.hea").touch()
    (root / "ptbxl_database.csv").write_text("\n".join(rows) + "\n")
    (root / "scp_statements.csv").write_text(",description\nNORM,normal ECG\n")


def test_what_is_refused(tmp_path):
    for arguments, message in (
        (("ptb-xl", [1], [2]), "unknown corpus 'ptb-xl': one of cpsc2018, csn, mimic_iv_ecg, ptbxl, synthetic"),
        (("synthetic", [0, 1], [2]), "folds are numbered from 1 to 10, got 0"),
        (("synthetic", [1, 2], [2]), "fold 2 cannot be both trained on and held out"),
        (("ptbxl", [1], [2]), "settings of the corpus 'ptbxl'.*root"),
    ):
        with pytest.raises(ValueError, match=message):
            load_recordings(*arguments)
    with pytest.raises(ValueError, match=r"none of its 2 recordings is in folds .* \(held out\)"):
        fold = fold_by_patient("s00000")
        load_recordings("synthetic", [fold], [fold % 10 + 1], patients=1)


def test_some_are_spread_over_all():
    assert evenly(range(10), 4) == [0, 2, 5, 7] and evenly("abc", 9) == list("abc") and evenly([], 3) == []
    assert len(set(evenly(range(1000), 999))) == 999


def test_folds_in_words():
    assert fold_ranges([1, 2, 3, 8, 10]) == "1-3, 8, 10" and fold_ranges([9]) == "9"
    assert folds_in_words(["10", "2", "1", "other", "3"]) == "folds 1-3, 10, other"
    assert folds_in_words(["9"]) == "fold 9"
