"""Models that are not there, and settings that an encoder has not, are found before anything is trained."""

import pytest
from trl import ModelConfig, SFTConfig

from data.support.hub import check_access
from elm.saved import publish
from elm.saved.arguments import ElmArguments
from elm.training import tiny
from elm.training.sources import check_model, check_sources
from helpers.hub_server import READER
from recipes import sft_llava


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a part was made before it was known whether the others are there")

    monkeypatch.setattr(tiny, "encoder", refuse)
    monkeypatch.setattr(tiny, "language_model", refuse)


def test_a_language_model_that_is_not_there_is_named(logged_in, tmp_path):
    for name, why in (
        ("owner/none", "model_name_or_path: no model owner/none is there: "),
        (tmp_path, "no config.json"),
    ):
        with pytest.raises(FileNotFoundError, match=why):
            check_sources(ElmArguments(), ModelConfig(model_name_or_path=str(name)))
    with pytest.raises(FileNotFoundError, match="no model owner/none at revision v7 is there"):
        check_model("text_model", "owner/none", "v7")


@pytest.mark.parametrize("encoder", ["tiny", "tiny-heartlang", "tiny-cnn", "ecg_patch", "ecg_melp"])
def test_a_setting_that_the_encoder_has_not_is_named(encoder):
    with pytest.raises(ValueError, match="unknown setting outptu: ecg_"):
        check_sources(ElmArguments(encoder=encoder, encoder_args={"outptu": 1}), ModelConfig(model_name_or_path="tiny"))
    check_sources(ElmArguments(encoder=encoder), ModelConfig(model_name_or_path="tiny"))


def test_an_encoder_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match="no encoder at nowhere: not a folder"):
        check_sources(ElmArguments(encoder="nowhere"), ModelConfig(model_name_or_path="tiny"))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model_name_or_path": "nowhere/at/all"}, FileNotFoundError, "model_name_or_path: no model nowhere/at/all"),
        ({"encoder_args": '{"outptu": "tokens"}'}, ValueError, "unknown setting outptu"),
        ({"dataset_args": '{"patiens": 3}'}, ValueError, "no setting patiens"),
    ],
    ids=["language model", "encoder", "questions"],
)
@pytest.mark.parametrize("dev", ["true", "false"])
def test_a_run_does_not_start(settings, error, message, dev, tmp_path):
    flags = {"output_dir": tmp_path / "out", "cache_dir": tmp_path / "cache", "use_cpu": "true", "dev": dev} | settings
    with pytest.raises(error, match=message):
        sft_llava.main(*sft_llava.parse([str(word) for name, value in flags.items() for word in (f"--{name}", value)]))
    assert not (tmp_path / "out").exists()


# --- who may publish --------------------------------------------------------------------------------------------------


def test_an_account_that_may_write_is_let_in_and_nothing_is_written(logged_in):
    publish.check("owner/new-model")
    assert not logged_in.repos


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("somebody/model", None, r"does not let owner write to somebody/model: log in .* may write below somebody/"),
        ("owner/model", READER, r"does not let reader write to owner/model"),
        ("owner/model", "hf_nobodys", r"the hub does not know the token that is to write to owner/model"),
    ],
)
def test_who_may_not_write_learns_it_at_the_start(name, token, message, logged_in):
    with pytest.raises(PermissionError, match=message):
        publish.check(name, token=token)


def test_nobody_is_logged_in(logged_in, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PermissionError, match="for nobody is logged in: log in with `hf auth login`, or set HF_TOKEN"):
        check_access("owner/model")


def test_a_hub_that_cannot_be_reached_is_said(logged_in, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="published as owner/model at the end, cannot be reached"):
        check_access("owner/model")


def test_a_run_that_could_not_publish_does_not_start(logged_in, tmp_path):
    words = ["--push_to_hub", "true", "--hub_model_id", "somebody/model", "--output_dir", str(tmp_path / "out")]
    settings = sft_llava.parse([*words, "--use_cpu", "true", "--cache_dir", str(tmp_path / "cache")])
    assert isinstance(settings[1], SFTConfig)
    with pytest.raises(PermissionError, match="somebody/model"):
        sft_llava.main(*settings)
    assert not (tmp_path / "out").exists()
