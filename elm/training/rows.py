"""Training rows: what a training condition makes of them, how long they are, and the trainer's dataset of them."""

from collections.abc import Sequence

from datasets import Dataset
from tqdm.auto import tqdm

from data.conversations.rows import QuestionSet, Row
from data.ecg import EcgSource
from data.experiment.conditions import apply
from data.experiment.donors import derangement
from elm.inputs.processing import ElmProcessor
from elm.model.configuration import tokens_per_ecg


def under_condition(rows: Sequence[Row], questions: QuestionSet, condition: str, seed: int) -> list[Row]:
    """Training rows with the ECGs of a training condition (zeroing is done to the model's inputs, not to rows)."""
    if condition == "none":
        return apply("none", rows)
    if condition == "shuffled":
        patients = {e: questions.patient_of[e] for row in rows for e in row["ecgs"]}
        other = derangement(patients, seed=seed)
        return [{**row, "ecgs": [other[e] for e in row["ecgs"]]} for row in rows]
    return list(rows)


def lengths_of(rows: Sequence[Row], processor: ElmProcessor, source: EcgSource, *, grouped: bool = True) -> list[int]:
    """Lengths of rows, for putting those of like length into a batch: by ECGs, then by characters.

    They are counted before a training condition takes ECGs away or exchanges them: under each, rows come in the same
    order. Where recordings take different numbers of tokens, each token counts as four characters; they are not counted
    if rows are not to be grouped.
    """
    lengths = [_length(row) for row in rows]
    extractor = processor.feature_extractor
    if not (grouped and extractor.varying):
        return lengths
    records = list(dict.fromkeys(record for row in rows for record in row["ecgs"]))
    counts = {
        record: tokens_per_ecg(extractor([source[record]])["token_mask"], processor.pool)[0]
        for record in tqdm(records, desc="Counting tokens", unit="ECG", disable=None)
    }
    return [n + 4 * sum(counts[record] for record in row["ecgs"]) for n, row in zip(lengths, rows)]


def as_dataset(rows: Sequence[Row], lengths: Sequence[int] | None = None) -> Dataset:
    """Rows as the trainer wants them; `length` (`lengths_of`) lets it put rows of like length into a batch."""
    lengths = lengths or [_length(row) for row in rows]
    return Dataset.from_list(
        [
            {"messages": row["messages"], "others": row.get("others", []), "ecgs": row["ecgs"], "length": length}
            for row, length in zip(rows, lengths, strict=True)
        ]
    )


def characters(row: Row) -> int:
    """Characters of all texts of a row."""
    conversations = [row["messages"], *row.get("others", [])]
    return sum(len(part["text"]) for messages in conversations for message in messages for part in message["content"])


def _length(row: Row) -> int:
    """Patients count, and not `ecgs`: rows come in the same order where these are taken away."""
    return 10_000 * len(row["patient_ids"]) + characters(row)
