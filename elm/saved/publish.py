"""Publishing a saved model: what is uploaded, with its card and its audit, and what is not."""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from data.card import check_terms, sources_of
from data.support.hub import check_access, check_repo_id, commit
from elm.model.configuration import ElmConfig
from elm.saved.audit import REPORT, SUMMARY, AuditSummary
from elm.saved.card import REPORTS, model_card
from elm.saved.check import FILES, check_tensors, check_weights, refuse_part
from elm.saved.run import SavedRun

logger = logging.getLogger(__name__)

ADAPTER = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/base.json")
AUDIT = ("ablation/report.html", REPORT, "ablation/report.md", SUMMARY, "ablation/*.png")
RECORDINGS = ("examples/*", "ablation/examples.json", "ablation/predictions.jsonl", "ablation/asked-*.jsonl")
_DRAWN = 'class="strip"'  # of a recording in report.html

_CONFIGS = (*(name for name in FILES if name.endswith("config.json")), ADAPTER[0])


def check(repo_id: str | None, *, audited: bool = True, token: str | None = None) -> None:
    """Refuse at the start of a run what `push` would refuse at its end: no name of a repository, no audit, no access.

    Raises as `data.support.hub.check_access` does.
    """
    name = check_repo_id(repo_id)
    if not audited:
        raise ValueError(
            "a model is published with its audit: leave ablation on, or train without --push_to_hub and say "
            "`python -m elm.hub push FOLDER OWNER/NAME --unaudited`"
        )
    check_access(name, token)


@dataclass(frozen=True)
class Publication:
    """How a model is published."""

    private: bool = False  # only the owner, or the members of an organization, may see it
    licence: str | None = None  # the hub's identifier of the licence of the weights, for the card
    unaudited: bool = False  # without an audit; the card says so
    # With what shows patients: `examples/`, questions and answers about each recording, a report.html that draws some.
    with_recordings: bool = False


def push(folder: Path | str, repo_id: str | None, how: Publication = Publication(), token: str | None = None) -> str:
    """Upload a saved model as one commit, and return its address; without a `token` as the account that is logged in.

    Raises:
        FileNotFoundError: The folder is no saved model.
        ValueError: No name of a repository; the model was not audited, or trained anew since; its weights are damaged;
            or recordings of patients whose terms forbid it.
        PermissionError: The account may not write there.
    """
    name = check_repo_id(repo_id)
    files = contents(folder, name, how)
    for path in sorted(files):
        logger.info("to upload: %s", path)
    ours = (*FILES, *ADAPTER, *AUDIT, *RECORDINGS, "README.md")
    message = f"ECG-language model, {'with its audit' if REPORT in files else 'not audited'}"
    return commit(name, files, kind="model", message=message, ours=ours, private=how.private, token=token)


def contents(folder: Path | str, repo_id: str, how: Publication = Publication()) -> dict[str, Path | bytes]:
    """Files that `push` uploads, or their content, by path in the repository. Raises as it does."""
    folder = Path(folder).expanduser()
    refuse_part(folder, folder)
    for file in ("config.json", "training.json"):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder} is no saved model: it has no {file}")
    saved = SavedRun(folder)
    training = saved.training
    audit = None if how.unaudited else _audit(folder, saved.digest)
    if how.with_recordings and not how.private:
        sources = sources_of([training["dataset_name"], *training.get("corpora", ())])
        check_terms(sources, f"the recordings and answers in {folder}")

    patterns = [*FILES, *ADAPTER, *(AUDIT if audit is not None else ())]
    if how.with_recordings:
        patterns += RECORDINGS if audit is not None else RECORDINGS[:1]
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files: dict[str, Path | bytes] = {path: folder / path for path in there if any(fnmatch(path, p) for p in patterns)}
    check_weights(folder, folder)
    if ADAPTER[1] in files:
        check_tensors(folder / ADAPTER[1])
    page = "ablation/report.html"
    if page in files and not how.with_recordings and _DRAWN in (folder / page).read_text(encoding="utf-8"):
        del files[page]

    # What is named by its last part: whole values of settings, wherever else these values are repeated, and every
    # other place in a sentence.
    trees = {path: _read(folder / path) for path in (*_CONFIGS, "training.json", REPORT, SUMMARY) if path in files}
    places = pattern_of([*places_in(list(trees.values())), str(folder), str(folder.absolute())])
    for path, tree in trees.items():
        trees[path] = without_places(tree, places)
        files[path] = (json.dumps(trees[path], indent=2, ensure_ascii=False) + "\n").encode()
    for path in files:
        if path.endswith((".md", ".html")):
            files[path] = last_parts((folder / path).read_text(encoding="utf-8"), places).encode()
    card = model_card(
        ElmConfig.of_saved(trees["config.json"]),
        trees["training.json"],
        None if audit is None else AuditSummary.from_json(trees.get(SUMMARY) or trees[REPORT]),
        name=repo_id.partition("/")[2],
        repo_id=repo_id,
        licence=how.licence,
        report_file=next((name for name in REPORTS if f"ablation/{name}" in files), None),
    )
    return {**files, "README.md": card.encode()}


def _audit(folder: Path, digest: str) -> AuditSummary:
    """Summary of the audit, of the model as it is now."""
    command = f"run `python -m eval.ablation --model {folder}`"
    if (audit := AuditSummary.of_folder(folder)) is None:
        raise ValueError(f"{folder} was not audited: {command} first, or say --unaudited, as its card then does, too")
    if audit.training != digest:
        raise ValueError(
            f"the audit in {folder / 'ablation'} is of another training than the weights in {folder}: {command} again"
        )
    return audit


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


# --- places: in what is published, files and folders of this machine are named by their last part alone ---------------

# Settings that name a folder, and those that name a folder or a hub id.
_FOLDERS = {"root", "recordings", "cache", "cache_dir", "output_dir", "logging_dir", "model", "text_only"}
_PARTS = {"_name_or_path", "name_or_path", "base_model_name_or_path", "language_model", "encoder", "translator"}
_PLACE = r"""(?:~|[A-Za-z]:)?(?:[/\\][^/\\\s"'<>|;,&()]+){2,}[/\\]?"""
_IN_TEXT = re.compile(rf"""(?<![\w/\\.:<+~-]){_PLACE}""")
_PICTURE = re.compile(r"(data:image/[a-z+]+;base64,[A-Za-z0-9+/=]+)")


def places_in(tree: object, key: str = "") -> Iterator[str]:
    """Values that name a file or a folder, in a tree of settings."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from places_in(value, name)
    elif isinstance(tree, list):
        for value in tree:
            yield from places_in(value, key)
    elif isinstance(tree, str) and (
        key in _FOLDERS
        or (key in _PARTS and _is_place(tree))
        or re.fullmatch(r"(?:~|[A-Za-z]:)?[/\\][^\n]*[/\\][^\n]*", tree)
    ):
        yield tree


def _is_place(name: str) -> bool:
    """A folder and not a hub id: one that is here was read in the hub's place."""
    parts = re.split(r"[/\\]", name)
    return len(parts) > 2 or (len(parts) == 2 and (parts[0] in ("", ".", "..", "~") or Path(name).exists()))


def pattern_of(places: Iterable[str]) -> re.Pattern[str]:
    """A pattern of these places in text, longer ones first, and not where their letters are part of another name."""
    longest = sorted({place.rstrip("/\\") for place in places}, key=len, reverse=True)
    escaped = [re.escape(place) for place in longest if re.search(r"[/\\]", place)]
    return re.compile(rf"(?<![\w/\\.-])(?:{'|'.join(escaped)})(?![\w-])")


def without_places(tree: Any, places: re.Pattern[str]) -> Any:
    """A tree of settings in which places are named by their last part."""
    if isinstance(tree, Mapping):
        return {name: without_places(value, places) for name, value in tree.items()}
    if isinstance(tree, list):
        return [without_places(value, places) for value in tree]
    return last_parts(tree, places) if isinstance(tree, str) else tree


def last_parts(text: str, places: re.Pattern[str]) -> str:
    """Text in which places are named by their last part; pictures in it, whose letters mean nothing, stay."""
    pieces = _PICTURE.split(text)
    for i in range(0, len(pieces), 2):
        for pattern in (places, _IN_TEXT):
            pieces[i] = pattern.sub(lambda match: _last_part(match[0]), pieces[i])
    return "".join(pieces)


def _last_part(place: str) -> str:
    return re.split(r"[/\\]", place.rstrip("/\\"))[-1]
