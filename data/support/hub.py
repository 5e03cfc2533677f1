"""Uploading to the Hugging Face hub: one commit, which holds all files or does not happen."""

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal


def check_repo_id(name: str | None) -> str:
    """Returns the name; raises `ValueError` where it is not of the form OWNER/NAME."""
    part = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?"
    if name is None or not re.fullmatch(f"{part}/{part}", name) or len(name) > 96:
        raise ValueError(f"a repository on the hub is called OWNER/NAME, for example my-lab/ecg-model; got {name!r}")
    return name


def check_access(name: str, token: str | None = None) -> None:
    """Find out at the start of a long run whether `commit` will be let in at its end. Nothing is written.

    Raises:
        PermissionError: No account is logged in, or it may not write below the owner's name.
        ConnectionError: The hub cannot be reached.
        ValueError: No name of a repository.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    owner = check_repo_id(name).partition("/")[0]
    how = f"log in with `hf auth login`, or set HF_TOKEN, as an account that may write below {owner}/"
    try:
        account = HfApi(token=token).whoami()
    except LocalTokenNotFoundError as error:
        raise PermissionError(f"the hub does not let you write to {name}, for nobody is logged in: {how}") from error
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise PermissionError(f"the hub does not know the token that is to write to {name}: {how}") from error
        raise
    except Exception as error:  # of whichever HTTP client the hub's package has
        raise ConnectionError(
            f"the hub, where the model is to be published as {name} at the end, cannot be reached: {error}"
        ) from error
    owners = {account["name"], *(each["name"] for each in account.get("orgs", ()))}
    if owner not in owners:
        raise PermissionError(f"the hub does not let {account['name']} write to {name}: {how}")


def commit(
    name: str,
    files: Mapping[str, Path | bytes],
    *,
    kind: Literal["model", "dataset"],
    message: str,
    ours: Collection[str],
    private: bool = False,
    token: str | None = None,
) -> str:
    """Upload files to a repository, made if it is not there, and return the address of the commit.

    Contents go up first, then one commit names them all: whoever downloads meanwhile, or after a failure, finds the
    repository as it was before. It fails, too, where somebody else has committed in between.

    `files` maps a path in the repository to a file or its content. `ours` are patterns of the paths that such a
    repository's earlier uploads may have made: those not among `files` are deleted by the same commit; what somebody
    added by other names stays. A `private` repository is seen by its owner, or the members of an organization, alone.
    Without a `token` the account that is logged in writes.

    Raises:
        ValueError: No name of a repository, or the repository is public although `private` is asked for.
        PermissionError: The account may not write there, or none is logged in.
        huggingface_hub.errors.HfHubHTTPError: Anything else the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    check_repo_id(name)
    api = HfApi(token=token)
    try:
        try:
            repository = api.repo_info(name, repo_type=kind)
        except RepositoryNotFoundError:
            api.create_repo(name, repo_type=kind, private=private or None)
            repository = api.repo_info(name, repo_type=kind)
        if private and not repository.private:
            raise ValueError(f"{name} is there already and is public: make it private on the hub, or take another name")
        before = set(api.list_repo_files(name, repo_type=kind, revision=repository.sha))
        gone = {path for path in before - files.keys() if any(fnmatch(path, pattern) for pattern in ours)}
        changes: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(path, content) for path, content in files.items()),
            *(CommitOperationDelete(path) for path in sorted(gone)),
        ]
        head = repository.sha
        uploaded = api.create_commit(name, changes, commit_message=message, repo_type=kind, parent_commit=head)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise PermissionError(
                f"the hub does not let you write to {name}: log in with `hf auth login`, or set HF_TOKEN, as an "
                f"account that may write below {name.split('/')[0]}/ "
                f"({error.server_message or error.response.status_code})"
            ) from error
        raise
    return str(uploaded.commit_url)
