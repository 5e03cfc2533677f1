"""What can be done to the ECG of a question in an experiment, or to the question itself.

docs/audit.md has the table of conditions: what the model is given under each and what it tells, what alterations become
in each family of inputs, and what stays readable under them.

The level of a condition says who does it. *row*: `apply` changes the row. *recording*: `apply` names derived
recordings, such as `"s02000-1~noise"`, which `Altered(source)` makes in mV before any feature extractor: the same for
every family of encoders, and a server can be asked. *input*: whoever asks the model zeroes its inputs
(`zero_features`). *embedding*: whoever asks the model replaces the projected tokens. Donors and other questions are
chosen in `data/experiment/donors.py`.

`swap-flip` beside `real` is what tells a reader of ECGs from a guesser. Zeros, flat lines, noise and absent ECGs are
inputs a model may never have seen: a blind model can break on them and then looks as if it had read the ECG.
`question-swap`, `both-swap`, `swap` and `real` are the four coalitions of two players, question and ECG, of which the
Shapley values are made; answers are held against the row's own in all four.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import numpy as np

from data.conversations.rows import Message, Row, named_leads, user
from data.ecg import LEADS, Ecg, EcgSource, canonical_lead
from data.experiment.donors import Donor, Question
from data.experiment.surrogates import drop, flat, noise, phase, reverse, rng_of

VERSION = 1  # of alterations, in cache keys: tests/test_versions.py says when to raise it

T = TypeVar("T")


@dataclass(frozen=True)
class Condition:
    """What is done, and by whom."""

    name: str  # what commands and files call it
    label: str  # what tables and pictures call it
    level: Literal["row", "recording", "input", "embedding"]  # who does it, see the module
    donors: Literal["", "any", "flip", "same"] = ""  # rule by which donors for `apply` are chosen; empty without any
    questions: bool = False  # whether `apply` must be given other questions


_CONDITIONS = (
    Condition("real", "the real ECG", "row"),
    Condition("swap", "another patient's ECG", "row", donors="any"),
    Condition("swap-flip", "another patient's ECG, other answer", "row", donors="flip"),
    Condition("swap-same", "another patient's ECG, same answer", "row", donors="same"),
    Condition("zero", "zeros for the ECG", "input"),
    Condition("flat", "a flat line", "recording"),
    Condition("none", "no ECG", "row"),
    Condition("mean", "the mean ECG token", "embedding"),
    Condition("noise", "noise of the same variance", "recording"),
    Condition("phase", "the same spectrum without waves", "recording"),
    Condition("lead-drop", "the leads in question at 0 mV", "recording"),
    Condition("reverse", "the ECG backwards", "recording"),
    Condition("question-swap", "another question", "row", questions=True),
    Condition("both-swap", "another question, another patient's ECG", "row", donors="any", questions=True),
    Condition("planted", "simulated ECGs, one quantity moved", "recording"),
)
CONDITIONS: Mapping[str, Condition] = MappingProxyType({condition.name: condition for condition in _CONDITIONS})
FAST = ("real", "swap", "swap-flip", "zero", "none")


def condition_named(name: str) -> Condition:
    """The condition of that name.

    Raises:
        ValueError: There is none.
    """
    if name not in CONDITIONS:
        raise ValueError(f"unknown condition {name!r}: expected one of {', '.join(CONDITIONS)}")
    return CONDITIONS[name]


# --- rows -------------------------------------------------------------------------------------------------------------


def apply(
    condition: str,
    rows: Sequence[Row],
    donors: Sequence[Donor | None] | None = None,
    questions: Sequence[Question | None] | None = None,
) -> list[Row]:
    """The rows as they are asked under a condition. Nothing is changed in place.

    `patient_ids` stay those of the question, also under `swap`: they are the unit of statistics. `answer` stays, too:
    what is right about a donor's ECGs is `Donor.answer`. What is done to inputs or embeddings leaves rows as they are.

    Args:
        condition: A name of `CONDITIONS`.
        rows: Questions; for `planted`, those of `data.experiment.planted.planted_rows`.
        donors: One per row, where the condition names a rule: `data.experiment.donors.choose_donors`.
        questions: One per row, where the condition asks others: `data.experiment.donors.choose_questions`.

    Raises:
        ValueError: An unknown condition, or donors or questions that do not fit the rows; names the row.
    """
    rule = condition_named(condition)
    changed = list(rows)
    if rule.donors:
        changed = [_with_ecgs(row, donor) for row, donor in _each(rule, changed, donors, "donors")]
    if rule.questions:
        changed = [_with_question(row, other) for row, other in _each(rule, changed, questions, "questions")]
    if condition == "none":
        return [_without_ecgs(row) for row in changed]
    if condition == "planted":
        if ordinary := [row for row in changed if row["control"] != "planted"]:
            raise ValueError(f"row {ordinary[0]['id']!r} is not planted: see data.experiment.planted.planted_rows")
        return changed
    if rule.level != "recording":
        return changed
    return [{**row, "ecgs": [altered_id(ecg, _change(condition, row, ecg)) for ecg in row["ecgs"]]} for row in changed]


def _each(
    condition: Condition, rows: Sequence[Row], values: Sequence[T | None] | None, what: str
) -> Iterator[tuple[Row, T]]:
    """Rows, each with its value; refuses where there is none for a row."""
    if values is None or len(values) != len(rows):
        count = "no" if values is None else str(len(values))
        raise ValueError(
            f"condition {condition.name!r} of {len(rows)} rows was given {count} {what}: "
            f"see data.experiment.donors.choose_{what}"
        )
    for row, value in zip(rows, values):
        if value is None:
            needs = f"none of the {what} that condition {condition.name!r} needs"
            raise ValueError(f"row {row['id']!r} has {needs}: leave it out")
        yield row, value


def _with_ecgs(row: Row, donor: Donor) -> Row:
    if len(donor.ecgs) != len(row["ecgs"]):
        raise ValueError(f"row {row['id']!r} has {len(row['ecgs'])} ECGs but was given {len(donor.ecgs)} of its donor")
    return {**row, "ecgs": list(donor.ecgs)}


def _with_question(row: Row, other: Question) -> Row:
    turns = sum(message["role"] == "user" for message in row["messages"])
    if turns != 1:
        raise ValueError(f"row {row['id']!r} has {turns} turns: only a single question can be exchanged")
    turn = user(len(row["ecgs"]), other.text)
    messages = [turn if message["role"] == "user" else message for message in row["messages"]]
    return {**row, "messages": messages, "question": other.text}


def _without_ecgs(row: Row) -> Row:
    def words(message: Message) -> Message:
        content = message["content"]
        if isinstance(content, str):
            return message
        return {**message, "content": [part for part in content if part["type"] != "ecg"]}

    without: Row = {**row, "messages": [words(turn) for turn in row["messages"]], "ecgs": []}
    if "others" in row:
        without["others"] = [[words(turn) for turn in conversation] for conversation in row["others"]]
    return without


def _change(condition: str, row: Row, record: str) -> str:
    """What is to be done to a recording of a row, as `Altered` reads it."""
    if condition != "lead-drop":
        return condition
    leads = asked_leads(row["question"])
    if not leads:
        drawn = rng_of(altered_id(record, "drop")).permutation(len(LEADS))[: len(LEADS) // 2]
        leads = tuple(lead for i, lead in enumerate(LEADS) if i in drawn)
    return f"drop:{','.join(leads)}"


_TERRITORIES = (
    ("antero|anterior", ("V1", "V2", "V3", "V4")),
    ("infero|inferior", ("II", "III", "aVF")),
    ("(?<!bi)lateral", ("I", "aVL", "V5", "V6")),
    ("septal", ("V1", "V2")),
)
_NO_TERRITORY = "(anterior|posterior)( (or|and)( left)? (anterior|posterior))? (fascic|hemi)"


def asked_leads(question: str) -> tuple[str, ...]:
    """The leads a question is about, in the order of `LEADS`; empty where it does not say.

    Those it names; else those of the territories it names: anterior V1-V4, inferior II, III and aVF, lateral I, aVL, V5
    and V6, septal V1 and V2. A left anterior fascicular block is in no territory.
    """
    if named := named_leads(question):
        return named
    text = re.sub(_NO_TERRITORY, "", question, flags=re.IGNORECASE)
    territory = {lead for name, leads in _TERRITORIES if re.search(name, text, re.IGNORECASE) for lead in leads}
    return tuple(lead for lead in LEADS if lead in territory)


# --- recordings -------------------------------------------------------------------------------------------------------


def altered_id(record_id: str, change: str) -> str:
    """The id under which `Altered` gives a recording after a change."""
    return f"{record_id}~{change}"


def split_id(record_id: str) -> tuple[str, str | None]:
    """Recording and last change of an id; None where it names no change."""
    base, mark, change = record_id.rpartition("~")
    return (base, change) if mark else (record_id, None)


def is_altered(record_id: str) -> bool:
    """Whether an id names a change."""
    return "~" in record_id


_ALTERATIONS: Mapping[str, Callable[[Ecg], Ecg]] = {"flat": flat, "noise": noise, "phase": phase, "reverse": reverse}


def _alteration(change: str) -> Callable[[Ecg], Ecg] | None:
    """The function an alteration names; None where there is none."""
    name, _, leads = change.partition(":")
    if name != "drop":
        return _ALTERATIONS.get(change)
    try:
        return partial(drop, leads=[canonical_lead(lead) for lead in leads.split(",")])
    except ValueError:
        return None


def _moved(change: str) -> dict[str, float] | None:
    """The parameters of `set:NAME=NUMBER,...`; None where the alteration is none of this form."""
    if not change.startswith("set:"):
        return None
    try:
        return {key: float(number) for key, number in (pair.split("=") for pair in change[4:].split(","))}
    except ValueError:
        return None


class Altered:
    """A source whose recordings can be asked for altered; an `EcgSource` itself.

    Plain ids are the source's. `"ID~noise"`, `"ID~phase"`, `"ID~flat"` and `"ID~reverse"` are the recording ID after
    the function of that name, `"ID~drop:V1,V2"` is it without two leads, and `"ID~set:heart_rate=120,pvc=0"` is ID
    simulated with parameters moved, which takes a source with `render(record_id, **moved)` (`SyntheticCohort`).
    Alterations can be chained: `"ID~set:gain=2~noise"`.
    """

    def __init__(self, source: EcgSource) -> None:
        self.source = source

    def __getitem__(self, record_id: str) -> Ecg:
        """The recording, under the id it was asked for by.

        Raises:
            KeyError: The source has no such recording, or there is no such alteration.
            ValueError: Parameters are to be moved that are not, or of a source that has none.
        """
        base, change = split_id(record_id)
        if change is None:
            return self.source[record_id]
        if moved := _moved(change):
            return replace(self._render(base, moved), record_id=record_id)
        alter = _alteration(change)
        if alter is None:
            raise KeyError(
                f"record {record_id!r}: unknown alteration {change!r}: expected {', '.join(_ALTERATIONS)}, drop:V1,V2 "
                "or set:NAME=NUMBER"
            )
        try:
            ecg = replace(self[base], record_id=base)  # whatever the source calls it: the id decides what is drawn
        except KeyError as error:
            raise KeyError(f"record {record_id!r}: no record {base!r} to alter") from error
        return replace(alter(ecg), record_id=record_id)

    def _render(self, record_id: str, moved: Mapping[str, float]) -> Ecg:
        render: Callable[..., Ecg] | None = getattr(self.source, "render", None)
        if render is None:
            raise ValueError(
                f"record {record_id!r}: {', '.join(moved)} cannot be moved: {type(self.source).__name__} holds "
                "recordings, not parameters; ask for planted findings of a SyntheticCohort"
            )
        return render(record_id, **moved)


# --- inputs -----------------------------------------------------------------------------------------------------------


def zero_features(features: Mapping[str, Any], names: Iterable[str], zero_token: int | None = None) -> dict[str, Any]:
    """The features with their signal set to zero: torch tensors or numpy arrays, same type, shape and device.

    Of the named ones, floating-point values become 0 (signals, the samples of HeartLang's words) and `ecg_tokens`
    (ECG-Byte) that of a sample at 0. Other integers and booleans are positions and masks, which say
    where the signal is and not what it looks like. Features called masks are left alone whatever their type.

    `names` are the inputs of the encoder (`model.ecg_inputs`), `zero_token` is the token of a sample at 0.

    Raises:
        ValueError: A name is missing, there are tokens but no `zero_token`, or nothing was left to zero: the answers
            would be those of `real`.
    """
    zeroed, names = dict(features), list(names)
    if missing := [name for name in names if name not in zeroed]:
        raise ValueError(f"cannot zero {missing}: the features are {sorted(zeroed)}")
    signals = {name: 0 for name in names if "mask" not in name and _is_floating(zeroed[name])}
    if "ecg_tokens" in names:
        if zero_token is None:
            raise ValueError("cannot zero 'ecg_tokens' without zero_token: it says which of them stands for 0")
        signals["ecg_tokens"] = zero_token
    if not signals:
        raise ValueError(f"nothing to zero: none of {names} is a signal, floating-point or tokens")
    for name, zero in signals.items():
        value = zeroed[name]
        zeroed[name] = np.full_like(value, zero) if isinstance(value, np.ndarray) else value.new_full(value.shape, zero)
    return zeroed


def _is_floating(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return bool(np.issubdtype(value.dtype, np.floating))
    return bool(value.is_floating_point())
