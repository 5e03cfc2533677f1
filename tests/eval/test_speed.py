import subprocess
import sys

import pytest
import torch

from elm import EcgCollator
from elm.training.tiny_encoder import melp_config
from encoders.melp import MelpConfig, MelpModel
from eval.speed import __main__ as speed
from eval.speed import sft


def run(*argv):
    return subprocess.run([sys.executable, "-m", "eval.speed", *argv], capture_output=True, text=True)


@pytest.mark.slow
def test_help_lists_every_part_and_what_it_times():
    shown = run("--help")
    assert shown.returncode == 0
    for name, line in speed.parts().items():
        assert line.endswith(".") and f"  {name:<12}{line}" in shown.stdout.splitlines()
    assert "statistics" in speed.parts() and not any(name.startswith("_") for name in speed.parts())


@pytest.mark.slow
def test_an_unknown_part_is_named_beside_the_known_ones():
    shown = run("patience")
    assert shown.returncode == 2
    assert "invalid choice: 'patience'" in shown.stderr and "statistics" in shown.stderr


def test_options_after_the_part_are_its_own(capsys):
    with pytest.raises(SystemExit):
        speed.main(["statistics", "--help"])
    assert "--flips" in capsys.readouterr().out


def test_times_of_statistics_stand_beside_those_of_loops(capsys):
    speed.main(["statistics", "--items", "200", "--patients", "50", "--draws", "100", "--flips", "300"])
    about, _, *rows = capsys.readouterr().out.splitlines()
    assert about == "200 answers about 50 patients; loops timed over 50 draws and scaled"
    assert len(rows) == 3
    for row, draws in zip(rows, (100, 100, 300)):
        *_, count, here, _, loop, _, ratio = row.split()
        assert int(count) == draws and ratio.endswith("x")
        assert float(ratio[:-1]) == pytest.approx(float(loop) / float(here), rel=0.02)


@pytest.fixture(scope="module")
def tiny_job():
    return sft.job(melp_config(), records=2, questions=3)


@pytest.mark.slow
def test_all_ways_of_training_learn_the_same(tiny_job, tmp_path):
    """Every step is on all six questions: whatever their order, the losses of the three ways are equal."""
    before = {name: value.clone() for name, value in tiny_job.model.state_dict().items()}
    store, seconds = sft.fill(tiny_job, tmp_path / "cache")
    assert seconds > 0 and all(record in store for record in tiny_job.source)
    ways = [EcgCollator(tiny_job.processor, tiny_job.source), *[EcgCollator(tiny_job.processor, {}, store)] * 2]
    trained = [sft.train(tiny_job, way, 3, each, tmp_path) for way, each in zip(ways, (1, 1, 3), strict=True)]
    for way in trained:
        assert len(way.losses) == 3 and way.rate > 0 and way.losses[-1] < way.losses[0]
        assert way.losses == pytest.approx(trained[0].losses, abs=1e-4)
    assert all((value == before[name]).all() for name, value in tiny_job.model.state_dict().items())


@pytest.mark.slow
def test_the_cached_ways_never_run_the_encoder_and_the_other_one_always_does(tiny_job, tmp_path, monkeypatch):
    store, _ = sft.fill(tiny_job, tmp_path / "cache")
    seen = []
    forward = MelpModel.forward
    monkeypatch.setattr(MelpModel, "forward", lambda self, *a, **k: (seen.append(1), forward(self, *a, **k))[1])
    cached = EcgCollator(tiny_job.processor, {}, store)
    for questions_per_row in (1, 3):
        sft.train(tiny_job, cached, 2, questions_per_row, tmp_path)
    assert not seen
    sft.train(tiny_job, EcgCollator(tiny_job.processor, tiny_job.source), 2, 1, tmp_path)
    assert len(seen) == 2


def test_a_job_asks_as_much_about_each_recording():
    made = sft.job(melp_config(), records=3, questions=200)  # more than there are different ones
    assert [row["ecgs"] for row in made.rows] == [[record] for record in made.source for _ in range(200)]
    assert len({row["question"] for row in made.rows}) > 25 and made.records_per_step == 2
    assert len({row["id"] for row in made.rows}) == 600


def test_ratios_of_training_stand_beside_their_baselines(tiny_job, capsys, monkeypatch):
    """Of made-up rates: what is shown are medians, and ratios within a repeat."""
    rates = iter([2.0, 100.0, 400.0, 4.0, 100.0, 200.0, 2.0, 100.0, 500.0])
    configs = []
    monkeypatch.setattr(sft, "job", lambda config, *_: (configs.append(config), tiny_job)[1])
    monkeypatch.setattr(sft, "train", lambda *_: sft.Trained(next(rates), []))
    monkeypatch.setattr(sft, "fill", lambda *_: (None, 0.06))
    threads = torch.get_num_threads()
    speed.main(["sft", "--records", "2", "--questions", "3", "--repeats", "3", "--threads", str(threads)])
    assert next(rates, None) is None
    published = {**MelpConfig().to_dict(), "dropout": 0.0, "dropout_input": 0.0, "attention_dropout": 0.0}
    assert configs[0].to_dict() == published
    *_, filled, once, shared, about = capsys.readouterr().out.splitlines()
    # 6 questions in 0.06 s and 0.06 s of filling: 50 a second
    assert filled.split() == ["cache,", "filled", "in", "one", "epoch", "50", "2", "25x", "(12.5-25)"]
    assert once.split() == ["cache,", "once", "filled", "100", "2", "50x", "(25-50)"]
    assert shared.split() == ["3", "questions", "share", "a", "row", "400", "100", "4x", "(2-5)"]
    assert about == "Baselines: no cache; no cache; the cache with one question per row."


@pytest.mark.slow
def test_help_of_a_part_waits_for_no_torch():
    run_help = "try: main(['sft', '--help'])\nfinally: print('torch' in sys.modules)"
    code = f"import sys\nfrom eval.speed.__main__ import main\n{run_help}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("False\n")
