"""The leak check: whether a question set's test says anything about patients that were not trained on.

Three things are looked for, each with a finding in words: patients who are in training and in the test; recordings that
are in both under two names; and test recordings in those folds of a published split that encoders are commonly
pretrained on. What the encoder itself was pretrained on is repeated.

Simulated recordings are drawn one by one from few parameters and not compared: two patients with the same ones are as
alike as copies.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data.conversations.rows import QuestionSet
from data.corpora import registered
from data.experiment.duplicates import VERSION, Duplicate, find_duplicates
from data.experiment.recordings import fold_order, folds_in_words
from data.support.cache import cache_key, computed_once
from data.synthetic import SyntheticCohort

_NAMED = 5  # in a refusal


@dataclass(frozen=True)
class Leaks:
    """Findings of the leak check."""

    train: tuple[int, int]  # records and patients of training
    test: tuple[int, int]  # records and patients of the test
    patients: tuple[str, ...]  # in both, sorted
    duplicates: tuple[Duplicate, ...] | None  # in both under two names; None when not compared, being simulated
    folds: Mapping[str, int]  # test records in each fold of their corpus' published split
    pretraining_folds: tuple[str, ...]  # those of these folds that encoders are commonly pretrained on
    corpora: tuple[str, ...]  # of the test records
    pretrained_on: str  # what the encoder says it was pretrained on

    def _faults(self) -> tuple[str, str]:
        """What speaks against the split, of patients and of recordings; empty where nothing does."""
        pairs = [f"{pair.train} and {pair.test}" for pair in self.duplicates or ()]
        return _in_both("patient", self.patients), _in_both("recording", pairs, " under two names")

    def sentences(self) -> list[str]:
        """The findings, for the model card."""
        patients, recordings = self._faults()
        sentences = [
            f"Training: {self.train[0]:,} ECGs of {self.train[1]:,} patients. Test: {self.test[0]:,} ECGs of "
            f"{self.test[1]:,} patients.",
            patients or "No patient is in both.",
            "The recordings are simulated one by one: none is a copy of another."
            if self.duplicates is None
            else recordings or "No recording is in both under two names (compared by content).",
        ]
        if self.folds:
            seen = sum(count for fold, count in self.folds.items() if fold in self.pretraining_folds)
            total = sum(self.folds.values())
            sentences.append(
                f"Of {total:,} test ECGs {seen:,} lie in {folds_in_words(self.pretraining_folds)} of their corpus' "
                "published split, which encoders are commonly pretrained on."
                if seen
                else f"All {total:,} test ECGs lie in {folds_in_words(self.folds)} of their corpus' published split; "
                f"encoders are commonly pretrained on {folds_in_words(self.pretraining_folds)}."
            )
        sentences.append(f"The encoder was pretrained on: {self.pretrained_on or 'nothing stated'}.")
        sentences += [
            f"That names {corpus}, the corpus of the test ECGs: the encoder may have seen them, or other ECGs of their "
            "patients."
            for corpus in self.corpora
            if _letters(corpus) in _letters(self.pretrained_on)
        ]
        return sentences

    def refusal(self) -> str:
        """Why this split must not be trained on; empty when nothing speaks against it."""
        if not any(faults := self._faults()):
            return ""
        return (
            f"{' '.join(filter(None, faults))} Scores on this test would not be those of new patients. Leave these out "
            "of one side, or pass allow_leaks: true to train all the same; the model card then says so."
        )


def check_leaks(questions: QuestionSet, pretrained_on: str = "", cache: Path | str | None = None) -> Leaks:
    """Look for patients and recordings that are in training and in the test, and cross the split with published folds.

    Reads every recording of the question set once; reports count with the split they are of. In the folder `cache` the
    duplicates are kept, by the recordings that were compared.

    Raises:
        ValueError: A recording cannot be read, or holds samples that are not finite.
    """
    train = {ecg for row in (*questions.train, *questions.reports) for ecg in row["ecgs"]}
    test = {ecg for row in (*questions.test, *questions.test_reports) for ecg in row["ecgs"]}
    # A record without a known patient stands for one of its own.
    patients = [{questions.patient_of.get(ecg) or f"of record {ecg}" for ecg in side} for side in (train, test)]
    corpora = {str(traits["corpus"]) for ecg in test if "corpus" in (traits := questions.traits.get(ecg, {}))}
    folds = Counter(questions.fold_of[ecg] for ecg in test if ecg in questions.fold_of)
    is_simulated = isinstance(questions.source, SyntheticCohort)
    pretraining = {
        str(fold) for corpus in registered().values() if corpus.title.lower() in corpora for fold in corpus.train_folds
    }
    return Leaks(
        train=(len(train), len(patients[0])),
        test=(len(test), len(patients[1])),
        patients=tuple(sorted(patients[0] & patients[1])),
        duplicates=None if is_simulated else _duplicates_of(questions, sorted(train), sorted(test - train), cache),
        folds=dict(sorted(folds.items(), key=lambda item: fold_order(item[0]))) if pretraining else {},
        pretraining_folds=tuple(sorted(pretraining, key=fold_order)),
        corpora=tuple(sorted(corpora)),
        pretrained_on=pretrained_on,
    )


def _in_both(noun: str, names: Sequence[str], how: str = "") -> str:
    """How many are in both, and the first of them; empty where there is none."""
    many = f"{len(names):,} {noun} is" if len(names) == 1 else f"{len(names):,} {noun}s are"
    some = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    return f"{many} in training and in the test{how}: {some}." if names else ""


def _letters(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def _duplicates_of(
    questions: QuestionSet, train: Sequence[str], test: Sequence[str], cache: Path | str | None
) -> tuple[Duplicate, ...]:
    """The duplicates, from the cache if these recordings were compared before."""
    if cache is None:
        return find_duplicates(questions.source, train, test)
    file = Path(cache) / f"duplicates-{cache_key(VERSION, questions.source_key, train, test)}.json"
    pairs = computed_once(file, lambda: [asdict(pair) for pair in find_duplicates(questions.source, train, test)])
    return tuple(Duplicate(**pair) for pair in pairs)
