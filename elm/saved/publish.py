"""Publish a trained model, or the questions it was trained on, on the Hugging Face hub.

    python -m elm.hub push out/sft-llava my-lab/ecg-model --license cc-by-4.0
    python -m elm.hub push-questions out/sft-llava my-lab/ecg-questions --private

`push` uploads what loads the model, its model card, and its audit; not its checkpoints, and not what shows patients:
recordings, and the questions and answers about each of them. Folders of this machine are named by their last part only.
A model that was not audited is refused. docs/hub.md says more. Research use only; not a medical device.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from data.card import check_terms, sources_of
from data.support.commands import command_line
from data.support.hub import check_repo_id, commit
from elm.saved.audit import REPORT, SUMMARY, AuditSummary

logger = logging.getLogger(__name__)

ADAPTER = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/base.json")
AUDIT = ("ablation/report.html", REPORT, "ablation/report.md", SUMMARY, "ablation/*.png")
RECORDINGS = ("examples/*", "ablation/examples.json", "ablation/predictions.jsonl", "ablation/asked-*.jsonl")
_DRAWN = 'class="strip"'  # of a recording in report.html

# Settings that name a folder, and those that name a folder or a hub id.
_FOLDERS = {"root", "recordings", "cache", "cache_dir", "output_dir", "logging_dir", "model", "text_only"}
_PARTS = {"_name_or_path", "name_or_path", "base_model_name_or_path", "language_model", "encoder", "translator"}
_CONFIGS = ("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json",
            "tokenizer_config.json", "adapter/adapter_config.json")  # fmt: skip
_PLACE = r"""(?:~|[A-Za-z]:)?(?:[/\\][^/\\\s"'<>|;,&()]+){2,}[/\\]?"""
_IN_TEXT = re.compile(rf"""(?<![\w/\\.:<+~-]){_PLACE}""")
_PICTURE = re.compile(r"(data:image/[a-z+]+;base64,[A-Za-z0-9+/=]+)")


def check(repo_id: str | None, *, audited: bool = True) -> None:
    """Refuse at the start of a run what `push` would refuse at its end.

    Args:
        repo_id: What `--hub_model_id` says.
        audited: Whether the run will end with the audit.

    Raises:
        ValueError: No name of a repository, or no audit.
    """
    check_repo_id(repo_id)
    if not audited:
        raise ValueError(
            "a model is published with its audit: leave ablation on, or train without --push_to_hub and say "
            "`python -m elm.hub push FOLDER OWNER/NAME --unaudited`"
        )


def push(
    folder: Path | str,
    repo_id: str | None,
    *,
    private: bool = False,
    licence: str | None = None,
    unaudited: bool = False,
    with_recordings: bool = False,
    token: str | None = None,
) -> str:
    """Upload a saved model as one commit.

    Args:
        folder: Written by a recipe.
        repo_id: OWNER/NAME; made if it is not there.
        private: Only the owner, or the members of an organization, may see it.
        licence: The hub's identifier of the licence of the weights, for the card.
        unaudited: Publish a model without an audit; its card says so.
        with_recordings: Upload what shows patients, too: `examples/`, the questions and answers about each recording,
            and a report.html that draws some.
        token: Of an account that may write there; the one that is logged in if not given.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: The folder is no saved model.
        ValueError: No name of a repository; the model was not audited, or trained anew since; its weights are damaged;
            or recordings of patients whose terms forbid it.
        PermissionError: The account may not write there.
    """
    name = check_repo_id(repo_id)
    files = contents(
        folder, name, licence=licence, unaudited=unaudited, with_recordings=with_recordings, private=private
    )
    for path in sorted(files):
        logger.info("to upload: %s", path)
    from elm.saved.folder import FILES

    ours = (*FILES, *ADAPTER, *AUDIT, *RECORDINGS, "README.md")
    message = "ECG-language model, " + ("not audited" if REPORT not in files else "with its audit")
    return commit(name, files, kind="model", message=message, ours=ours, private=private, token=token)


def contents(
    folder: Path | str,
    repo_id: str,
    *,
    licence: str | None = None,
    unaudited: bool = False,
    with_recordings: bool = False,
    private: bool = False,
) -> dict[str, Path | bytes]:
    """What `push` uploads: path in the repository to a file, or to its content where that is not what the folder holds.

    Raises as `push` does.
    """
    from elm.model.configuration import ElmConfig
    from elm.saved.card import REPORTS, model_card
    from elm.saved.folder import FILES, training_digest

    folder = Path(folder)
    for file in ("config.json", "training.json"):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder} is no saved model: it has no {file}")
    training = _read(folder / "training.json")
    audit = None if unaudited else _audit(folder, training_digest(folder))
    if with_recordings and not private:
        sources = sources_of([training["dataset_name"], *training.get("corpora", ())])
        check_terms(sources, f"the recordings and answers in {folder}")

    patterns = [*FILES, *ADAPTER, *(AUDIT if audit is not None else ())]
    if with_recordings:
        patterns += RECORDINGS if audit is not None else RECORDINGS[:1]
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files: dict[str, Path | bytes] = {
        path: folder / path for path in there if any(fnmatch(path, pattern) for pattern in patterns)
    }
    _check_weights(folder, [path for path in files if path.endswith(".safetensors")])
    page = "ablation/report.html"
    if page in files and not with_recordings and _DRAWN in (folder / page).read_text(encoding="utf-8"):
        del files[page]

    # What is named by its last part: whole values of settings, wherever else these values are repeated, and every
    # other place in a sentence.
    told = {path: _read(folder / path) for path in (*_CONFIGS, "training.json", REPORT, SUMMARY) if path in files}
    places = _pattern(
        {value for tree in told.values() for value in _places(tree)} | {str(folder), str(folder.absolute())}
    )
    for path, tree in told.items():
        told[path] = _without_places(tree, places)
        files[path] = (json.dumps(told[path], indent=2, ensure_ascii=False) + "\n").encode()
    for path in files:
        if path.endswith((".md", ".html")):
            files[path] = _last_parts((folder / path).read_text(encoding="utf-8"), places).encode()
    card = model_card(
        ElmConfig.of_saved(told["config.json"]),
        told["training.json"],
        None if audit is None else AuditSummary.from_json(told.get(SUMMARY) or told[REPORT]),
        name=repo_id.partition("/")[2],
        repo_id=repo_id,
        licence=licence,
        report_file=next((name for name in REPORTS if f"ablation/{name}" in files), None),
    )
    return {**files, "README.md": card.encode()}


def _audit(folder: Path, digest: str) -> AuditSummary:
    """Summary of the audit, of the model as it is now."""
    if (audit := AuditSummary.of_folder(folder)) is None:
        raise ValueError(
            f"{folder} was not audited: run `python -m eval.ablation --model {folder}` first, or say --unaudited, as "
            "its card then does, too"
        )
    if audit.training != digest:
        raise ValueError(
            f"the audit in {folder / 'ablation'} is of another training than the weights in {folder}: run "
            f"`python -m eval.ablation --model {folder}` again"
        )
    return audit


def _check_weights(folder: Path, paths: Sequence[str]) -> None:
    """Refuse weights that are cut short or not all there: what is published must load."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    wanted = set(_read(index)["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    if missing := sorted(wanted - set(paths)):
        raise FileNotFoundError(f"{folder} is no saved model: it has no {missing[0]}")
    for path in paths:
        try:
            with safe_open(folder / path, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"the weights in {folder / path} are damaged: {error}") from error


# --- places of this machine -------------------------------------------------------------------------------------------


def _places(tree: Any, key: str = "") -> Iterator[str]:
    """Values that name a file or a folder, in a tree of settings."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _places(value, name)
    elif isinstance(tree, list):
        for value in tree:
            yield from _places(value, key)
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


def _pattern(places: Iterable[str]) -> re.Pattern[str]:
    """Finds these places in text, longer ones first, and not where their letters are part of another name."""
    found = sorted({place.rstrip("/\\") for place in places}, key=len, reverse=True)
    found = [re.escape(place) for place in found if re.search(r"[/\\]", place)]
    return re.compile(rf"(?<![\w/\\.-])(?:{'|'.join(found)})(?![\w-])")


def _without_places(tree: Any, places: re.Pattern[str]) -> Any:
    if isinstance(tree, Mapping):
        return {name: _without_places(value, places) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_without_places(value, places) for value in tree]
    return _last_parts(tree, places) if isinstance(tree, str) else tree


def _last_parts(text: str, places: re.Pattern[str]) -> str:
    """Text in which places are named by their last part; pictures in it, whose letters mean nothing, stay."""
    pieces = _PICTURE.split(text)
    for i in range(0, len(pieces), 2):
        for pattern in (places, _IN_TEXT):
            pieces[i] = pattern.sub(lambda found: _last_part(found[0]), pieces[i])
    return "".join(pieces)


def _last_part(place: str) -> str:
    return re.split(r"[/\\]", place.rstrip("/\\"))[-1]


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


# --- the command line -------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line("elm.hub", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    model = commands.add_parser("push", help="a trained model with its card and audit")
    rows = commands.add_parser("push-questions", help="the rows of the questions it was trained on; no recordings")
    for command in (model, rows):
        command.add_argument("folder", type=Path, metavar="FOLDER", help="of a trained model")
        command.add_argument("repo_id", metavar="OWNER/NAME", help="repository on the hub; made if it is not there")
        command.add_argument("--private", action="store_true", help="make the repository private")
        command.add_argument("--license", metavar="ID", help="the hub's identifier of a licence, e.g. cc-by-4.0")
    model.add_argument("--unaudited", action="store_true", help="publish without an audit; the card says so")
    model.add_argument(
        "--with_recordings",
        action="store_true",
        help="upload what shows patients, too: examples/, and questions and answers about each recording",
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        check_repo_id(args.repo_id)
        if args.command == "push":
            where = push(
                args.folder,
                args.repo_id,
                private=args.private,
                licence=args.license,
                unaudited=args.unaudited,
                with_recordings=args.with_recordings,
            )
        else:
            where = _push_questions(args)
    except (ValueError, OSError, RuntimeError) as error:  # the client wraps a failed upload in the last one
        parser.exit(2, f"error: {error}\n")
    sys.stdout.write(f"{where}\n")


def _push_questions(args: argparse.Namespace) -> str:
    from data.card import push_questions
    from elm.saved.folder import resolve
    from elm.training.run import questions_of

    folder = resolve(args.folder)
    questions = questions_of(folder)
    leaks = _read(folder / "training.json").get("leaks") or ()
    return push_questions(questions, args.repo_id, private=args.private, licence=args.license, leaks=leaks)


if __name__ == "__main__":
    main()
