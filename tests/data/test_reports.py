"""Reports of simulated recordings; those of PTB-XL and MIMIC-IV-ECG are tested with their questions."""

import pytest

from data.conversations.reports import check_kinds, find_reports
from data.synthetic import SyntheticCohort


def reports(cohort, **settings):
    return find_reports(cohort, cohort.records, ["english"], translated=dict, **settings)


def test_a_simulated_report_follows_from_seed_and_record_and_says_what_is_planted():
    cohort, larger = SyntheticCohort(30), SyntheticCohort(40)
    texts, notes = reports(cohort)
    assert notes == ["Reports of 60 of 60 training records: 60 in English as written."]
    more, _ = reports(larger)
    assert texts == {record: more[record] for record in cohort.records}
    assert texts != reports(SyntheticCohort(30, seed=1))[0]
    for name in ("atrial fibrillation", "left bundle branch block", "premature ventricular complexes"):
        assert [name in texts[record] for record in cohort.records] == cohort.present(name).tolist()


def test_without_voltage_a_simulated_report_says_all_but_that():
    cohort = SyntheticCohort(10)
    whole, without = (reports(cohort, voltage=voltage)[0] for voltage in (True, False))
    for record in cohort.records:
        sentences = whole[record].removesuffix(".").split(". ")
        kept = [sentence for sentence in sentences if "voltage" not in sentence]
        assert len(kept) == len(sentences) - 1 and without[record] == ". ".join(kept) + "."


def test_other_kinds_of_report_are_not_made_up():
    cohort = SyntheticCohort(3)
    assert find_reports(cohort, cohort.records, ["labels"], translated=dict)[0] == {}
    with pytest.raises(ValueError, match="those of simulated recordings are English: ask for 'english'"):
        check_kinds(["german"], None, "simulated recordings")
