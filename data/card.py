"""What a question set is made of and under which terms: the dataset card, and a set's rows on the Hugging Face hub.

Rows only: messages, answers, identifiers. Recordings are never uploaded; whoever has them joins by record id.
"""

import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from data.conversations.contract import ROW_FIELDS
from data.conversations.rows import QuestionSet, Row
from data.support.hub import check_repo_id, commit


@dataclass(frozen=True)
class Source:
    """Where recordings or questions come from."""

    title: str  # what a card calls it
    licence: str  # in words
    hub_licence: str  # the same as the hub's identifier
    link: str  # where it is published
    words: str  # pattern that finds it in the name of a question set or corpus


_ODBL = "ODbL 1.0 (share alike); notes and other tables of MIMIC-IV only under a data use agreement"
MIMIC = Source("MIMIC-IV-ECG 1.0", _ODBL, "odbl", "https://physionet.org/content/mimic-iv-ecg/", r"mimic")
_DERIVED = "questions derived from PTB-XL's labels in ECG-QA's schema; they are NOT ECG-QA"
SOURCES = (
    Source("simulated ECGs of this project", "MIT", "mit", "", r"simulated|synthetic"),
    Source("PTB-XL", "CC BY 4.0", "cc-by-4.0", "https://physionet.org/content/ptb-xl/", r"ptb-?xl"),
    Source("ECG-QA", "CC BY 4.0", "cc-by-4.0", "https://github.com/Jwoo5/ecg-qa", r"ecg-?qa(?!-derived)"),
    Source(_DERIVED, "CC BY 4.0", "cc-by-4.0", "", r"ecg-?qa-derived"),
    MIMIC,
)


def sources_of(words: Iterable[str]) -> list[Source]:
    """The known sources that names of question sets and corpora speak of."""
    text = " ".join(words).lower()
    return [source for source in SOURCES if re.search(source.words, text)]


def corpora_of(questions: QuestionSet) -> list[str]:
    """Names of the corpora that a set's recordings come from, as far as it says."""
    return sorted({str(traits["corpus"]) for traits in questions.traits.values() if "corpus" in traits})


def source_lines(sources: Iterable[Source]) -> list[str]:
    """Sources and their licences as items of a list."""
    return [f"- {s.title}: {s.licence}{f' (<{s.link}>)' if s.link else ''}." for s in sources]


def licence_of(sources: Sequence[Source]) -> str:
    """The hub's identifier of the licence all sources share, or `"other"`."""
    licences = {source.hub_licence for source in sources}
    return licences.pop() if len(licences) == 1 else "other"


def dataset_card(
    questions: QuestionSet, repo_id: str | None = None, *, licence: str | None = None, leaks: Sequence[str] = ()
) -> str:
    """The dataset card (README.md) of a question set's rows, with the hub's metadata.

    Args:
        questions: The set.
        repo_id: OWNER/NAME it gets on the hub.
        licence: The hub's identifier; by default that of its sources, `"other"` where these are unknown or differ.
        leaks: Findings of a check of the split, in sentences.
    """
    from huggingface_hub import DatasetCardData

    sources = _sources(questions)
    parts = _parts(questions)
    configs: dict[str, list[dict[str, str]]] = {}
    for config, split in parts:
        configs.setdefault(config, []).append({"split": split, "path": f"data/{config}-{split}.parquet"})
    data = DatasetCardData(
        license=licence or licence_of(sources),
        pretty_name=f"Questions about ECGs: {questions.name}",
        task_categories=["question-answering"],
        tags=["ecg", "medical"],
        configs=[
            {"config_name": name, "data_files": files, **({"default": True} if name == "questions" else {})}
            for name, files in configs.items()
        ],
    )
    sides = [*questions.train, *questions.reports], [*questions.test, *questions.test_reports]
    shared = [len(set.intersection(*map(ids_of, sides))) for ids_of in (_patients, _records)]
    counts = [Counter(row["question_type"] for row in rows) for rows in (questions.train, questions.test)]
    template = Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return environment.from_string(template).render(
        data=str(data.to_yaml()),
        questions=questions,
        repo_id=repo_id or "OWNER/NAME",
        derived=any("derived" in source.title for source in sources),
        sources=source_lines(sources),
        parts={name: (len(rows), len(_patients(rows)), len(_records(rows))) for name, rows in parts.items()},
        kinds={kind: [count[kind] for count in counts] for kind in sorted(set().union(*counts))},
        shared=shared,
        leaks=leaks,
    )


def push_questions(
    questions: QuestionSet,
    repo_id: str,
    *,
    private: bool = False,
    licence: str | None = None,
    leaks: Sequence[str] = (),
    token: str | None = None,
) -> str:
    """Upload a question set's rows (Parquet) and its card as one commit of a dataset repository; returns its address.

    The arguments are those of `dataset_card` and of `data.support.hub.commit`.

    Raises:
        ValueError: No name of a repository, or rows that may not be published: about patients of MIMIC, or of a
            source whose licence is not known.
        PermissionError: The account may not write there.
    """
    from datasets import Dataset

    check_repo_id(repo_id)
    if not private:
        sources = _sources(questions)
        check_terms(sources, f"the rows of {questions.name}")
        if not sources and licence is None:
            raise ValueError(
                f"under which licence the rows of {questions.name} may be published is not known: state it "
                "(--license), or push to a private repository (--private)"
            )
    card = dataset_card(questions, repo_id, licence=licence, leaks=leaks)
    files = {"README.md": card.encode()}
    for (config, split), rows in _parts(questions).items():
        buffer = io.BytesIO()
        fields = [{name: value for name, value in row.items() if name in ROW_FIELDS} for row in rows]
        Dataset.from_list(fields).to_parquet(buffer)
        files[f"data/{config}-{split}.parquet"] = buffer.getvalue()
    message = f"Questions about ECGs: {questions.name}"
    ours = ["README.md", "data/*.parquet"]
    return commit(repo_id, files, kind="dataset", message=message, ours=ours, private=private, token=token)


def check_terms(sources: Sequence[Source], what: str) -> None:
    """Refuse to publish what comes from patients of MIMIC.

    Raises:
        ValueError: One of the sources is MIMIC-IV-ECG.
    """
    if MIMIC in sources:
        raise ValueError(
            f"{what} come from patients of MIMIC-IV. Its ECGs are open (ODbL 1.0), but its notes and tables are given "
            "out under a data use agreement, which forbids to pass on what is derived from them: push to a private "
            "repository (--private), and let in only those who signed it"
        )


def _sources(questions: QuestionSet) -> list[Source]:
    return sources_of([questions.name, questions.source_key.partition(" ")[0], *corpora_of(questions)])


def _parts(questions: QuestionSet) -> dict[tuple[str, str], list[Row]]:
    """Configuration on the hub and split, and its rows; those that are empty are left out."""
    parts = {
        ("questions", "train"): questions.train,
        ("questions", "test"): questions.test,
        ("reports", "train"): questions.reports,
        ("reports", "test"): questions.test_reports,
    }
    return {where: rows for where, rows in parts.items() if rows}


def _patients(rows: Sequence[Row]) -> set[str]:
    return {patient for row in rows for patient in row["patient_ids"]}


def _records(rows: Sequence[Row]) -> set[str]:
    return {record for row in rows for record in row["ecgs"]}
