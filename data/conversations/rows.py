"""Rows of questions: the one shape in which every question set reaches training, the chat page and the audit.

A row names its recordings, it does not hold them: arrays stay in an `EcgSource` (`source[record_id] -> Ecg`).
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

import numpy as np

from data.corpus import Traits
from data.ecg import LEADS, EcgSource, canonical_lead

Part = dict[str, str]
Message = dict[str, Any]  # {"role": "user" | "assistant" | "system", "content": str | list[Part]}
QuestionKey = tuple[str, int, str, str, tuple[str, ...], str]  # type, template, attribute, control, leads, wording


class Row(TypedDict):
    """One question about one or more recordings, or a dialogue of several.

    `answer` is a set in canonical order (its order in a published file carries no meaning). `attribute` is what the
    question names (a finding, say), and never what its answer names; `group` is the family the attribute belongs to
    (`"rhythm"`, `"ST"`, ...). Both are empty where unknown. `control` is empty for an ordinary question; otherwise it
    names the group that is reported in a row of its own and kept out of every headline number (for example
    `"voltage"`, which an encoder blind to gain cannot answer). `others` are more conversations about the same
    recordings, which stand in a row of training beside `messages` (`packed`). Rows are values: many share their
    `messages` and `answer`, so whoever wants other ones makes new lists.
    """

    id: str
    messages: list[Message]
    ecgs: list[str]
    patient_ids: list[str]
    question_type: str
    template_id: int
    attribute: str
    group: str
    question: str
    answer: list[str]
    control: str
    others: NotRequired[list[list[Message]]]


@dataclass
class QuestionSet:
    """Questions of one corpus, split by patient, with the recordings they are about."""

    name: str  # what the report and the model card call it
    source: EcgSource  # gives the recording of every id in the rows
    source_key: str  # a name for those recordings, for caches of what is made of them
    train: list[Row]  # single-turn rows whose recordings belong to training patients
    test: list[Row]  # single-turn rows of held-out patients
    reports: list[Row]  # rows that ask for the report of one training recording: the align stage
    patient_of: dict[str, str]  # patient of every record id, of both splits
    notes: list[str] = field(default_factory=list)  # what was dropped and why, in sentences for the model card
    traits: dict[str, Traits] = field(default_factory=dict)  # what donors are matched on, of each record id
    test_reports: list[Row] = field(default_factory=list)  # rows that ask for the report of one held-out recording
    fold_of: dict[str, str] = field(default_factory=dict)  # of each record id in its corpus' published split, if any
    leads: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of each record id whose recording was read


def user(n_ecgs: int, text: str) -> Message:
    """A user's turn: `n_ecgs` recordings, then the text. All parts have the same keys, as Arrow demands."""
    ecgs: list[Part] = [{"type": "ecg", "text": ""}] * n_ecgs
    return {"role": "user", "content": [*ecgs, {"type": "text", "text": text}]}


def assistant(text: str) -> Message:
    """An assistant's turn."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def answer_text(answer: Sequence[str]) -> str:
    """The words a model is trained to say for a set of answers: sorted, so that a set has one text."""
    return ", ".join(sorted(answer))


def question_row(
    *,
    id: str,
    ecgs: Sequence[str],
    patient_ids: Sequence[str],
    question_type: str,
    question: str,
    answer: Sequence[str],
    template_id: int = 0,
    attribute: str = "",
    group: str = "",
    control: str = "",
) -> Row:
    """A single-turn row."""
    return Row(
        id=id,
        messages=[user(len(ecgs), question), assistant(answer_text(answer))],
        ecgs=list(ecgs),
        patient_ids=list(patient_ids),
        question_type=question_type,
        template_id=template_id,
        attribute=attribute,
        group=group,
        question=question,
        answer=sorted(answer),
        control=control,
    )


_LEAD = r"(?:aV[RLF]|V[1-6]|I{1,3})"
_JOINED = r"(?:\s*(?:,|;|/|&|-|–|\band\b|\bor\b|\bto\b|\bthrough\b)\s*)+(?:leads?\s+)?"
_LIST_OF_LEADS = re.compile(rf"\b(leads?\s+)?({_LEAD}(?:{_JOINED}{_LEAD})*)\b", re.IGNORECASE)
_LEAD_OR_RANGE = re.compile(rf"{_LEAD}|-|–|\bto\b|\bthrough\b", re.IGNORECASE)
_SHORT_RANGE = re.compile(r"\b(V[1-6]\s*(?:-|–|to|through)\s*)(?=[1-6]\b)", re.IGNORECASE)


def named_leads(text: str) -> tuple[str, ...]:
    """The leads a text names, in the order of `LEADS`: `"leads II, III and aVF"`, `"V1-V4"`, `"lead v3"`.

    I, II and III are words of other meanings too, so they count only after `lead` or in a list with another lead.
    """
    leads: set[str] = set()
    for prefix, names in _LIST_OF_LEADS.findall(_SHORT_RANGE.sub(r"\1V", text)):
        if not prefix and not re.search("V", names, re.IGNORECASE):
            continue
        last, in_range = "", False
        for name in _LEAD_OR_RANGE.findall(names):
            if not re.fullmatch(_LEAD, name, re.IGNORECASE):
                in_range = True
                continue
            lead = canonical_lead(name)
            start = LEADS.index(last) if in_range else LEADS.index(lead)
            leads.update(LEADS[start : LEADS.index(lead) + 1], (lead,))
            last, in_range = lead, False
    return tuple(lead for lead in LEADS if lead in leads)


def same_question(row: Row) -> QuestionKey:
    """A key that rows share which ask the same, up to paraphrase: their answers differ only because their ECGs do.

    It is made of what is asked (type, template, attribute, control) and the leads the question names: ECG-QA asks for
    noise "in lead V6" under the attribute "noise". Where there is no attribute, the wording stands for it.
    """
    wording = "" if row["attribute"] else " ".join(row["question"].casefold().split())
    leads = named_leads(row["question"])
    return row["question_type"], row["template_id"], row["attribute"], row["control"], leads, wording


def dialogues(rows: Sequence[Row], turns: int, seed: int = 0) -> list[Row]:
    """Join single-turn rows about the same recordings into dialogues of at most `turns` questions, in shuffled order.

    The recordings are shown once, at the start, so a dialogue trains `turns` questions for the price of one prefix.
    Its `id` names all of its questions; `question`, `answer` and the like are those of the first.

    Raises:
        ValueError: `turns` is less than 1.
    """
    if turns < 1:
        raise ValueError(f"a dialogue has at least one turn, got {turns}")
    rng = np.random.default_rng(seed)
    by_ecgs: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for i in rng.permutation(len(rows)):
        by_ecgs[tuple(rows[i]["ecgs"])].append(rows[i])
    joined: list[Row] = []
    for same in by_ecgs.values():
        for start in range(0, len(same), turns):
            group = same[start : start + turns]
            messages = list(group[0]["messages"])
            for row in group[1:]:
                messages += [user(0, row["question"]), assistant(answer_text(row["answer"]))]
            joined.append({**group[0], "id": "+".join(row["id"] for row in group), "messages": messages})
    return [joined[i] for i in rng.permutation(len(joined))]


def balanced(rows: Sequence[Row], most: int) -> list[list[Row]]:
    """Rows whose rarer answers to a yes/no question are repeated until all are as frequent, each at most `most` times.

    Returns:
        All rows, then the repeats, round by round. No round holds a row twice, so `dialogues` of a round never ask what
        was just answered.

    Raises:
        ValueError: `most` is less than 1.
    """
    if most < 1:
        raise ValueError(f"a row is used at least once, got balance {most}")
    answers: dict[QuestionKey, dict[tuple[str, ...], list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["question_type"].endswith("verify"):
            answers[same_question(row)][tuple(row["answer"])].append(row)
    rounds: list[list[Row]] = [list(rows), *([] for _ in range(most - 1))]
    for by_answer in answers.values():
        wanted = max(map(len, by_answer.values()))
        for alike in by_answer.values():
            for k in range(1, most):
                rounds[k] += alike[: max(0, wanted - k * len(alike))]
    return [some for some in rounds if some]


def packed(rows: Sequence[Row], questions_per_row: int) -> list[Row]:
    """Pack rows about the same recordings, at most so many together, each where the first of its rows stood.

    What is packed are whole conversations, dialogues too: the first one's `messages`, those of the others in `others`.
    Unlike the turns of a dialogue they do not follow each other: none of them can read another (`elm.model.attention`).
    The `id` names all; `question`, `answer` and the like are those of the first.

    Raises:
        ValueError: `questions_per_row` is less than 1.
    """
    if questions_per_row < 1:
        raise ValueError(f"a row has at least one question, got questions_per_row {questions_per_row}")
    packs: list[list[Row]] = []
    open_packs: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        pack = open_packs.get(tuple(row["ecgs"]), [])
        if len(pack) % questions_per_row == 0:  # none yet, or a full one
            pack = open_packs[tuple(row["ecgs"])] = []
            packs.append(pack)
        pack.append(row)
    return [
        {**pack[0], "id": "+".join(row["id"] for row in pack), "others": [row["messages"] for row in pack[1:]]}
        for pack in packs
    ]
