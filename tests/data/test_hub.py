"""One commit to the hub: whole or not at all, by who may, into what is as private as asked for."""

import pytest
from huggingface_hub.errors import HfHubHTTPError

from data.support.hub import check_repo_id, commit
from helpers import hub_server

CARD = b"---\nlicense: mit\n---\n# Model\n"


def send(name="owner/model", files=None, **settings):
    settings = {"kind": "model", "message": "A model", "ours": ["*.bin", "README.md"]} | settings
    return commit(name, {"README.md": CARD} if files is None else files, **settings)


def test_files_become_one_commit(logged_in, tmp_path):
    (tmp_path / "weights").write_bytes(bytes(20_000))
    where = send(files={"README.md": CARD, "a/b.bin": tmp_path / "weights"})
    repo = logged_in.repos["model", "owner/model"]
    assert repo.messages == ["initial commit", "A model"] and not repo.private
    assert where == f"{logged_in.url}/owner/model/commit/{repo.refs['main']}"
    assert repo.files.keys() == {".gitattributes", "README.md", "a/b.bin"}
    assert (repo.files["README.md"], repo.files["a/b.bin"]) == (CARD, bytes(20_000))


def test_what_an_earlier_upload_left_goes_and_what_others_added_stays(logged_in):
    send(files={"README.md": CARD, "old.bin": b"1", "LICENSE": b"by hand"})
    send(files={"README.md": CARD, "new.bin": b"2"})
    repo = logged_in.repos["model", "owner/model"]
    assert repo.files.keys() == {".gitattributes", "README.md", "LICENSE", "new.bin"}
    assert len(repo.messages) == 3


def test_a_failure_leaves_what_was_there(logged_in):
    send(files={"README.md": CARD, "a.bin": bytes(20_000)})
    repo = logged_in.repos["model", "owner/model"]
    before = dict(repo.files)
    logged_in.full = True
    with pytest.raises(Exception, match=r"uploading 'b\.bin'"):
        send(files={"README.md": CARD + b"more", "b.bin": bytes(30_000)})
    assert repo.files == before and len(repo.messages) == 2


def test_two_who_write_at_once_do_not_mix(logged_in, monkeypatch):
    send()
    repo = logged_in.repos["model", "owner/model"]
    upload = hub_server._Handler._upload_mode

    def somebody_else_commits(files, told):
        repo.commit({**repo.commits[repo.refs["main"]], "theirs.txt": (b"x", False)}, "theirs")
        return upload(files, told)

    monkeypatch.setattr(hub_server._Handler, "_upload_mode", staticmethod(somebody_else_commits))
    with pytest.raises(HfHubHTTPError, match="412"):
        send(files={"README.md": CARD + b"more"})
    assert repo.files["README.md"] == CARD and "theirs.txt" in repo.files


@pytest.mark.parametrize("token", [None, "hf_reader", "hf_wrong"])
def test_who_may_not_write_is_told_what_to_do(logged_in, monkeypatch, tmp_path, token):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with pytest.raises(PermissionError, match="does not let you write to owner/model: log in with `hf auth login`"):
        send(token=token)
    assert not logged_in.repos


def test_private_means_private(logged_in):
    send("owner/secret", private=True)
    assert logged_in.repos["model", "owner/secret"].private
    send("owner/secret", private=True)
    send("owner/open")
    with pytest.raises(ValueError, match="owner/open is there already and is public: make it private"):
        send("owner/open", files={"a.bin": b"1"}, private=True)
    assert "a.bin" not in logged_in.repos["model", "owner/open"].files


@pytest.mark.parametrize("name", [None, "", "model", "a/b/c", "owner/", "/model", "owner/mo del", "owner/" + "x" * 91])
def test_a_repository_has_an_owner_and_a_name(name):
    with pytest.raises(ValueError, match="is called OWNER/NAME, for example"):
        check_repo_id(name)
    assert check_repo_id("my-lab/ecg_model.v1") == "my-lab/ecg_model.v1"
