"""Where commands write: a place that cannot be written is found at once, and nothing goes where nobody was told."""

import json
import shutil
from pathlib import Path

import pytest

from data.wire import http
from elm.saved.arguments import ElmArguments, with_cache
from elm.saved.run import SavedRun
from eval import ablation, probe, super_classes, zero_shot
from eval.audit import run as audit
from eval.audit.settings import AuditSettings
from eval.probing.settings import ProbeSettings, ZeroShotSettings
from helpers.golden import SMALL
from helpers.read_only import read_only, state_of


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A model saved by earlier code, and a working directory of its own: its training.json names `out/cache`."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return shutil.copytree(SMALL / "saved_run", tmp_path / "saved")


def refused(capsys, main, *words):
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as end:
        main(list(map(str, words)))
    said = capsys.readouterr().err
    assert end.value.code == 2 and "Traceback" not in said
    return said.splitlines()[-1]


def test_a_folder_that_cannot_be_written_is_no_verdict(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(audit, "load_responder", lambda *_: pytest.fail("it was loaded before the folder was tried"))
    (tmp_path / "file").write_text("")
    words = ["--model", saved, "--gate", "reads", "--out"]
    said = refused(capsys, ablation.main, *words, tmp_path / "file")
    assert said == (
        f"error: {tmp_path / 'file'}: a file is there where a folder must be: give --out a folder that can be written"
    )
    assert "file/below: a file is there" in refused(capsys, ablation.main, *words, tmp_path / "file" / "below")
    said = refused(capsys, ablation.main, *words, tmp_path / "out", "--cache_dir", tmp_path / "file")
    assert "give --cache_dir a folder" in said


def test_a_model_that_cannot_be_written_wants_another_place(saved, capsys):
    before = state_of(saved)
    with read_only(saved):
        for words in (["--model", saved], ["--model", saved, "--rescore"]):
            said = refused(capsys, ablation.main, *words)
            assert said.startswith(f"error: {saved / 'ablation'}: Read-only file system: give --out a folder")
        said = refused(capsys, super_classes.main, "--model", saved)
        assert str(saved / "ablation") in said and "--out" in said
    assert state_of(saved) == before and not list(Path().iterdir())


@pytest.mark.slow
def test_a_server_that_is_down_is_no_verdict(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(http, "WAIT", (0.0, 0.0))
    server = ["--server", "http://127.0.0.1:9/v1", "--served_name", "ecg"]
    words = ["--model", saved, "--limit", 5, "--conditions", "real", "--gate", "reads", "--out", tmp_path / "out"]
    said = refused(capsys, ablation.main, *words, *server)
    assert "http://127.0.0.1:9/v1" in said and "Connection refused (6 attempts). Is the server running" in said
    assert not list(Path().iterdir())


def recorded(folder, **arguments):
    """A folder whose training.json holds these arguments."""
    folder.mkdir(exist_ok=True)
    (folder / "training.json").write_text(json.dumps({"arguments": arguments}))
    return folder


def test_the_cache_of_the_training_is_used_where_it_can_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache, spare = tmp_path / "cache", tmp_path / "report" / "cache"
    model = recorded(tmp_path / "m", cache_dir=str(cache), dataset_args={"patients": 9, "cache": str(cache)})

    def chosen(folder, *places):
        arguments = SavedRun(folder, *places).arguments
        return Path(arguments.cache_dir), arguments.dataset_args

    assert chosen(model, None, spare) == (spare, {"patients": 9, "cache": str(spare)})
    cache.mkdir()
    assert chosen(model, None, spare) == (cache, {"patients": 9, "cache": str(cache)})
    assert chosen(model, tmp_path / "x", spare)[0] == tmp_path / "x"
    with read_only(cache):
        assert chosen(model, None, spare)[0] == spare
    relative = recorded(tmp_path / "r", cache_dir="out/cache", dataset_args={"cache": "elsewhere"})
    assert chosen(relative, None, spare) == (spare, {"cache": "elsewhere"})
    assert not (tmp_path / "out").exists() and not spare.exists()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert chosen(relative)[0] == tmp_path / "home" / ".cache" / "ecg-elm"


def test_settings_of_the_questions_follow_the_cache():
    repeated = ElmArguments(cache_dir="out/cache", dataset_args={"patients": 3, "cache": "out/cache"})
    moved = with_cache(repeated, Path("/cache"))
    assert (moved.cache_dir, moved.dataset_args) == ("/cache", {"patients": 3, "cache": "/cache"})
    assert repeated.dataset_args["cache"] == "out/cache"


def test_arguments_of_another_version_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"m/training.json names arguments that this version does not have \(warp\)"):
        _ = SavedRun(recorded(tmp_path / "m", warp=9)).arguments
    (tmp_path / "m" / "training.json").write_text("{}")
    with pytest.raises(ValueError, match="does not say on which questions"):
        _ = SavedRun(tmp_path / "m").arguments
    (tmp_path / "m" / "training.json").write_text('{"arguments": ')
    with pytest.raises(ValueError, match="m/training.json is damaged, it is not JSON"):
        _ = SavedRun(tmp_path / "m").arguments


def test_caches_are_below_what_is_written_elsewhere():
    words = {"task": "ptbxl-super", "encoder": ("ecg_cnn",)}
    assert ProbeSettings(**words).cache_folder == Path("out/cache")
    assert ProbeSettings(**words, output=Path("/r")).cache_folder == Path("/r/cache")
    assert ZeroShotSettings(model="m", task="synthetic", output=Path("/r")).cache_folder == Path("/r/cache")
    assert ZeroShotSettings(model="m", task="synthetic", cache=Path("c")).cache_folder == Path("c")
    settings = AuditSettings(model=Path("/m"), cache_dir=Path("/c"), out=Path("/r"))
    assert settings.command.endswith("--out /r --cache_dir /c")


def test_probes_try_their_folders_first(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = ["--task", "ptbxl-super", "--encoder", "nowhere", "--output"]
    assert "give --output a folder" in refused(capsys, probe.main, *words, tmp_path / "file")
    assert "give --cache a folder" in refused(capsys, probe.main, *words, tmp_path / "o", "--cache", tmp_path / "file")
    words = ["--model", "nowhere", "--task", "synthetic", "--output", tmp_path / "file"]
    assert "give --output a folder" in refused(capsys, zero_shot.main, *words)


def test_paths_may_begin_with_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    arguments = ElmArguments(cache_dir="~/cache", encoder="~/out/encoder")
    assert (arguments.cache_dir, arguments.encoder) == ("/home/ada/cache", "/home/ada/out/encoder")


def test_a_damaged_report_cannot_be_scored_again(saved, capsys):
    words = ["--model", saved, "--rescore"]
    (saved / "ablation" / "report.json").write_text("{}")
    assert "is not an audit's (no field 'model'): run the audit without --rescore" in refused(
        capsys, ablation.main, *words
    )
    (saved / "ablation" / "report.json").write_bytes(b"\xff{")
    assert f"{saved / 'ablation' / 'report.json'} is damaged" in refused(capsys, ablation.main, *words)
