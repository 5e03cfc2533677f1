"""A recipe that publishes: once, at its end, with its audit; or it does not start."""

import json

import pytest

import elm

SMALL = {"align_steps": 0, "max_steps": 2, "save_steps": 1}


@pytest.mark.slow
def test_a_run_ends_on_the_hub(logged_in, train, tmp_path):
    folder = tmp_path / "model"
    hub_settings = {"push_to_hub": True, "hub_model_id": "owner/model", "hub_private_repo": True}
    train(folder, ablation=True, **SMALL, **hub_settings)
    repo = logged_in.repos["model", "owner/model"]
    assert repo.private and len(repo.messages) == 2, "checkpoints were pushed"
    assert not [path for path in repo.files if "checkpoint" in path or "optimizer" in path]
    report = json.loads((folder / "ablation" / "report.json").read_text())
    assert report["verdict"]["sentence"] in repo.files["README.md"].decode()
    (ours, _), (theirs, _) = elm.load(folder), elm.load("owner/model")
    assert all((a == b).all() for a, b in zip(ours.parameters(), theirs.parameters()))
    assert str(tmp_path).encode() not in b"".join(repo.files.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"hub_model_id": "model", "ablation": True}, "is called OWNER/NAME"), ({"hub_model_id": "a/b"}, "--unaudited")],
)
def test_a_run_that_could_not_publish_does_not_start(train, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "model", push_to_hub=True, **settings)
    assert not (tmp_path / "model" / "checkpoints").exists()
