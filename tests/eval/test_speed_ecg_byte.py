"""ECG-Byte's times stand beside those of upstream's steps, which give the same."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from data.synthetic import SyntheticCohort
from encoders.ecg_byte import UPSTREAM, EcgByteTokenizer, TokenTable
from encoders.ecg_byte.training import learn_merges
from eval.speed import __main__ as speed
from eval.speed import ecg_byte


def test_upstreams_steps_give_the_same_table_and_ids():
    cohort = SyntheticCohort(2, records_per_patient=1, fs=100, seconds=3)
    signals = [cohort[record].signal for record in cohort.records]
    levels = [EcgByteTokenizer(TokenTable(()), UPSTREAM).levels(signal) for signal in signals]
    learned = learn_merges([row for signal in levels for row in signal], 100, across=True, progress=False)
    assert ecg_byte.direct_learn(np.concatenate(levels).ravel().tolist(), 100) == learned
    merges = [(list(merge.encode()), 256 + i) for i, merge in enumerate(learned)]
    tokenizer = EcgByteTokenizer(TokenTable(learned), UPSTREAM)
    assert all(ecg_byte.direct_encode(signal, merges) == tokenizer.encode(signal) for signal in signals)


def test_ratios_stand_beside_both_times(capsys, monkeypatch):
    monkeypatch.setattr(ecg_byte, "LEARNED", 20)
    monkeypatch.setattr(ecg_byte, "SAMPLES", 50)
    monkeypatch.setattr(ecg_byte, "LEARNING_REPEATS", 1)
    speed.main(["ecg_byte", "--merges", "50", "--recordings", "6", "--repeats", "1"])
    about, scaled, _, encoding, learning = capsys.readouterr().out.splitlines()
    assert about.startswith("50 merges. Medians of 1 and 1 repeats") and "timed over 3 recordings" in scaled
    for row, name, unit in ((encoding, "encode 12 x 2500", "ms"), (learning, "learn 20 merges, 6 x 12 x 50", "s")):
        assert row.startswith(name)
        here, here_unit, direct, direct_unit, ratio, _ = row.removeprefix(name).split()
        assert here_unit == direct_unit == unit
        assert float(ratio[:-1]) == pytest.approx(float(direct) / float(here), rel=0.02)


def test_ids_that_differ_end_the_run(capsys, monkeypatch):
    monkeypatch.setattr(ecg_byte, "direct_encode", lambda *_: [0])
    monkeypatch.setattr(ecg_byte, "SAMPLES", 50)
    with pytest.raises(SystemExit) as end:
        speed.main(["ecg_byte", "--merges", "5", "--recordings", "3", "--repeats", "1"])
    assert end.value.code == 2 and "recording 0 has other ids than upstream's steps give" in capsys.readouterr().err


@pytest.mark.slow
def test_its_help_waits_for_no_torch():
    run_help = "try: main(['ecg_byte', '--help'])\nfinally: print('torch' in sys.modules)"
    code = f"import sys\nfrom eval.speed.__main__ import main\n{run_help}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("False\n")
