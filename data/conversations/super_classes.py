"""PTB-XL's five super-classes as yes/no questions, all five of every record whose labels are known.

The words are ECG-QA's (templates 1 and 2); the answers are PTB-XL's labels, so this is **not** ECG-QA. Everything is
asked of every record, which makes the answers a classifier's: they are scored beside a classifier on the same items.
"""

from collections.abc import Collection

from data.conversations.rows import Row, question_row
from data.corpus import Corpus

SUPER_CLASSES = {
    "NORM": "Is this a normal ECG?",
    "MI": "Does this ECG show symptoms of myocardial infarction?",
    "STTC": "Does this ECG show symptoms of st/t change?",
    "CD": "Does this ECG show symptoms of conduction disturbance?",
    "HYP": "Does this ECG show symptoms of hypertrophy?",
}  # class and question, in the order of PTB-XL's benchmark


def super_class_rows(corpus: Corpus, folds: Collection[int]) -> list[Row]:
    """Five rows for each record of these folds whose super-classes are known; `attribute` is the class."""
    labels = corpus.labels("super_class")
    return [
        question_row(
            id=f"super-class/{record}/{name}",
            ecgs=[record],
            patient_ids=[corpus.patient_of[record]],
            question_type="single-verify",
            question=question,
            answer=["yes" if name in present else "no"],
            template_id=2 if name == "NORM" else 1,
            attribute=name,
            group="scp_code",
        )
        for record in corpus.records
        if corpus.fold_of[record] in folds and (present := labels[record]) is not None
        for name, question in SUPER_CLASSES.items()
    ]
