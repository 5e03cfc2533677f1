"""The instrument itself is tested: answerers whose reading is known must get their verdicts."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from eval import calibrate as door
from eval.audit import calibrate
from eval.audit.calibrate import ANSWERERS, draw, one, table

AUDITS = 12  # `python -m eval.calibrate` does 200 and more; docs/audit.md has its table


@pytest.fixture(scope="module")
def verdicts():
    told = [one((2000, 200), seed, draws=400) for seed in range(AUDITS)]
    return {name: [verdict[name] for verdict in told] for name in ANSWERERS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answerer", "allowed", "at_least"),
    [
        ("oracle", {"reads"}, AUDITS),
        ("30 % reader", {"reads", "partly"}, AUDITS - 1),
        ("reads one group of eight", {"partly"}, AUDITS - 1),
        ("blind", {"ignores"}, AUDITS),
        ("blind, samples", {"ignores", "inconclusive"}, AUDITS - 2),
        ("distracted", {"ignores", "inconclusive"}, AUDITS - 2),
        ("blind, brittle", {"brittle"}, AUDITS),
        ("abstaining", {"inconclusive"}, AUDITS),
        ("leaking", {"ignores"}, AUDITS),
    ],
)
def test_known_answerers_get_their_verdicts(verdicts, answerer, allowed, at_least):
    assert sum(told in allowed for told in verdicts[answerer]) >= at_least, Counter(verdicts[answerer])
    if answerer not in ("oracle", "30 % reader"):
        assert "reads" not in verdicts[answerer]


def test_a_flip_pair_is_one_question_about_two_patients_with_two_answers():
    audit = draw(2000, 200, np.random.default_rng(0))
    here = np.flatnonzero(audit.donor >= 0)
    other = audit.donor[here]
    assert len(here) > 1000 and len(set(other)) == len(other)
    assert (audit.question[here] == audit.question[other]).all()
    assert (audit.patient[here] != audit.patient[other]).all()
    assert (audit.answer[here] != audit.answer[other]).all()


def test_a_guess_is_worth_as_much_as_a_middling_reader():
    audit = draw(50_000, 200, np.random.default_rng(0))
    right = (audit.prior == audit.answer).mean()
    assert 0.65 < right < 0.75 and 0.08 < audit.misread.mean() < 0.12


def test_the_table_shows_shares():
    shown = table({(500, 50): {"blind": Counter(ignores=3, inconclusive=1)}})
    assert re.search(r"\| 500, 50 +\| blind +\| +\| +\| +\| +75.0 \| +25.0 \|", shown)


def test_the_command_prints_the_table(capsys, monkeypatch):
    monkeypatch.setattr(calibrate, "ANSWERERS", {"blind": ANSWERERS["blind"]})
    door.main(["--audits", "2", "--sizes", "100x30", "--draws", "50"])
    assert re.search(r"\| 100, 30 +\| blind +\|", capsys.readouterr().out)


def test_a_size_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit):
        door.main(["--sizes", "2000"])
    assert "expected QUESTIONSxPATIENTS such as 2000x200, got '2000'" in capsys.readouterr().err
