"""PTB-XL's five super-classes: yes/no answers as a classifier's scores, beside a plain CNN on the same items."""

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.conversations.rows import QuestionSet, Row
from data.conversations.super_classes import SUPER_CLASSES, super_class_rows
from data.corpora.ptbxl import PtbXl
from data.corpora.verdicts import counted, first_of, read_recordings
from data.ecg import EcgSource
from data.experiment.conditions import apply
from data.experiment.donors import Donor, choose_donors, derangement
from data.experiment.planted import Beside
from data.support.files import require_writable
from elm.saved.run import SavedRun
from eval.answerers.base import Responder
from eval.answerers.model import load_responder
from eval.audit.cnn import CnnClassifier
from eval.audit.settings import SuperClassSettings
from eval.scoring.results import ClassFlips, ClassResult, ClassScores, Estimate, SuperClasses, TrainedOn
from eval.statistics import (
    Floats,
    auroc,
    balanced_accuracy,
    patients_of,
    percentile_interval,
    resampled_aurocs,
    resampled_means,
    robust_interval,
)

logger = logging.getLogger(__name__)

Split = tuple[PtbXl, list[int], list[int]]  # recordings, and their folds that are trained on and held out

OPTIONS = ["yes", "no"]


def folds_of(questions: QuestionSet) -> Split | None:
    """PTB-XL, and its folds that a question set trains on and holds out; None where these overlap."""
    source: EcgSource = questions.source
    ptbxl = source.corpus if isinstance(source, Beside) else source
    if not isinstance(ptbxl, PtbXl):
        return None
    train, test = (
        {ptbxl.fold_of[ecg] for row in rows for ecg in row["ecgs"] if ecg in ptbxl.fold_of}
        for rows in ([*questions.reports, *questions.train], questions.test)
    )
    return None if not train or train & test else (ptbxl, sorted(train), sorted(test))


def readable_part(split: Split, cache: Path | str | None) -> tuple[Split, list[str]]:
    """PTB-XL and its folds without the recordings that cannot be read, and a note on these.

    Super-classes are asked of every record of a fold, those, too, that no question of the set is about.
    """
    ptbxl, train, test = split
    records = [record for record in ptbxl.records if ptbxl.fold_of[record] in (*train, *test)]
    verdicts = read_recordings(ptbxl, ptbxl.key, records, cache)
    bad = [record for record, verdict in verdicts.items() if verdict.reason]
    if not bad:
        return split, []
    note = f"Left out of the super-classes: {counted(bad)} of PTB-XL that cannot be read ({first_of(bad)})."
    return (ptbxl.without(set(bad)), train, test), [note]


def split_for_audit(questions: QuestionSet, cache: Path | str | None) -> tuple[Split | None, list[str]]:
    """PTB-XL and its folds that an audit asks the super-classes of, and notes; None where it cannot.

    It is known before an audit asks anything, lest hours of answers end in a refusal.
    """
    if (split := folds_of(questions)) is None:
        return None, []
    (ptbxl, train, test), notes = readable_part(split, cache)
    try:
        _refuse(super_class_rows(ptbxl, test), super_class_rows(ptbxl, train))
    except ValueError as error:
        return None, [*notes, f"Super-classes were not asked: {error}."]
    return (ptbxl, train, test), notes


def measure(
    responder: Responder,
    ptbxl: PtbXl,
    folds: Collection[int],
    trained_on: tuple[PtbXl, Collection[int]],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> SuperClasses:
    """Ask all five questions about every record of these folds, and train the CNN.

    Args:
        responder: Whom to ask; it must give log-probabilities, and know the recordings of `ptbxl`.
        ptbxl: The recordings.
        folds: Those asked about.
        trained_on: Recordings and folds the CNN learns from.
        draws: Resamples of patients.
        seed: Seed of donors, resamples and the CNN.

    Raises:
        ValueError: A class has no record with it or none without, in these folds or in those of the CNN; or a patient
            is in both.
    """
    rows = super_class_rows(ptbxl, folds)
    learned = super_class_rows(*trained_on)
    _refuse(rows, learned)
    patient_of = {row["ecgs"][0]: row["patient_ids"][0] for row in rows}
    records = list(patient_of)
    shape = (len(records), len(SUPER_CLASSES))
    yes = np.array([row["answer"] == ["yes"] for row in rows])

    flips = choose_donors(rows, patient_of, "flip", seed)
    pairs = [(i, flip) for i, flip in enumerate(flips) if flip is not None]
    real = _ask(responder, "real", rows)
    swap = _ask(responder, "swap", rows, _swapped(rows, patient_of, seed))
    flipped = _ask(responder, "swap-flip", [rows[i] for i, _ in pairs], [flip for _, flip in pairs])
    places = [i for i, _ in pairs]
    still = (flipped > 0) == yes[places]  # the answer that is right about the real ECG, given about the other one
    gap = ((real[places] > 0) == yes[places]).astype(float) - still
    clusters = [tuple({rows[i]["patient_ids"][0], patient_of[flip.ecgs[0]]}) for i, flip in pairs]

    train_records = list(dict.fromkeys(row["ecgs"][0] for row in learned))
    labels = np.array([row["answer"] == ["yes"] for row in learned]).reshape(len(train_records), -1)
    cnn = CnnClassifier(shape[1], seed).fit(trained_on[0], train_records, labels)
    scores = {"model": real.reshape(shape), "cnn": cnn.scores(ptbxl, records), "swap": swap.reshape(shape)}
    resamples = [patient_of[record] for record in records], draws, seed
    classes, macro = _classes(yes.reshape(shape), scores, resamples)
    return SuperClasses(
        classes=classes,
        macro=macro,
        folds=sorted(folds),
        trained_on=TrainedOn(sorted(trained_on[1]), len(train_records)),
        items=len(rows),
        records=len(records),
        patients=len(set(patient_of.values())),
        flips=ClassFlips(len(gap), len(patients_of(clusters)), float(gap.mean()), robust_interval(gap, clusters)),
    ).rounded()


def _ask(responder: Responder, condition: str, rows: Sequence[Row], donors: Sequence[Donor] | None = None) -> Floats:
    """Log p(yes) - log p(no) of every row `[rows]`."""
    shown = apply(condition, rows, donors)
    responder.prepare(shown, condition)
    return np.array([yes - no for yes, no in responder.score(shown, condition, [OPTIONS] * len(shown))])


def _swapped(rows: Sequence[Row], patient_of: Mapping[str, str], seed: int) -> list[Donor]:
    """Another patient's ECG for each row, drawn without regard to age and sex."""
    other = derangement(patient_of, seed)
    place = {(row["ecgs"][0], row["attribute"]): i for i, row in enumerate(rows)}
    places = [place[other[row["ecgs"][0]], row["attribute"]] for row in rows]
    return [Donor(j, rows[j]["ecgs"], rows[j]["answer"]) for j in places]


def _refuse(rows: Sequence[Row], learned: Sequence[Row]) -> None:
    """Refuse items that cannot be scored."""
    for what, some in (("asked about", rows), ("that the CNN learns from", learned)):
        by_class: dict[str, set[str]] = {}
        for row in some:
            by_class.setdefault(row["attribute"], set()).update(row["answer"])
        if not by_class:
            raise ValueError(f"of no record {what} the super-classes are known: look at the folds")
        if lacking := [name for name, answers in by_class.items() if len(answers) < 2]:
            raise ValueError(f"{lacking[0]}: the records {what} all have the same answer: take more folds")
    if shared := {row["patient_ids"][0] for row in rows} & {row["patient_ids"][0] for row in learned}:
        raise ValueError(
            f"{len(shared)} patients, such as {min(shared)}, are among those asked about and among those the CNN "
            "learns from: ask about folds that were not trained on"
        )


# Patients that are resampled, how often, and the seed: the same for all numbers, so that differences are paired.
Resamples = tuple[Sequence[str], int, int]


def _classes(
    yes: NDArray[np.bool_], scores: Mapping[str, Floats], resamples: Resamples
) -> tuple[dict[str, ClassResult], ClassResult]:
    """AUROC and balanced accuracy of each class, and their means, model beside CNN, in the same resamples of patients.

    Labels `[records, classes]`; scores, of the same shape, of the model, of the CNN, and of the model for other
    patients' ECGs.
    """
    classes = range(yes.shape[1])
    area, areas, share, shares = {}, {}, {}, {}
    for who, s in scores.items():
        area[who] = np.array([auroc(s[:, k], yes[:, k]) for k in classes])
        share[who] = np.array([balanced_accuracy(s[:, k] > 0, yes[:, k]) for k in classes])
        areas[who] = np.stack([resampled_aurocs(s[:, k], yes[:, k], *resamples) for k in classes])
        shares[who] = np.stack([_balanced(s[:, k] > 0, yes[:, k], resamples) for k in classes])

    def result(chosen: slice, positives: int | None = None) -> ClassResult:
        def estimate(value: Floats, resampled: Floats) -> Estimate:
            return Estimate(float(value[chosen].mean()), percentile_interval(resampled[chosen].mean(axis=0)))

        of = {who: ClassScores(estimate(area[who], areas[who]), estimate(share[who], shares[who])) for who in scores}
        return ClassResult(
            positives,
            **of,
            auroc_difference=estimate(area["model"] - area["cnn"], areas["model"] - areas["cnn"]),
            balanced_accuracy_difference=estimate(share["model"] - share["cnn"], shares["model"] - shares["cnn"]),
        )

    by_class = {name: result(slice(k, k + 1), int(yes[:, k].sum())) for k, name in enumerate(SUPER_CLASSES)}
    return by_class, result(slice(None))


def _balanced(says_yes: NDArray[np.bool_], yes: NDArray[np.bool_], resamples: Resamples) -> Floats:
    """Balanced accuracy in the resamples, `[draws]`; NaN in those without both answers."""
    columns = np.column_stack([says_yes & yes, yes, ~says_yes & ~yes, ~yes]).astype(float)
    if (means := resampled_means(columns, *resamples)) is None:
        return np.full(resamples[1], np.nan)
    with np.errstate(invalid="ignore"):
        return np.asarray((means[:, 0] / means[:, 1] + means[:, 2] / means[:, 3]) / 2)


def run(settings: SuperClassSettings) -> tuple[str, SuperClasses]:
    """Load a saved model and measure it: the folder of the recordings, and the numbers.

    Raises:
        OSError: The folder of the results cannot be written; names it.
        ValueError: It was not trained along PTB-XL's folds; or as `measure`.
    """
    require_writable(settings.file.parent, "--out")
    saved = SavedRun(settings.model, settings.cache_dir, settings.file.with_name("cache"))
    questions = saved.questions
    if (split := folds_of(questions)) is None:
        raise ValueError(f"{settings.model} was trained on {questions.name}, which is not split along PTB-XL's folds")
    trained, train_folds, test_folds = split
    recordings = trained if settings.ptbxl is None else PtbXl(settings.ptbxl, trained.rate)
    folds = settings.folds or test_folds
    cache = saved.arguments.cache_dir if saved.digest else None
    (trained, *_), left_out = readable_part((trained, train_folds, []), cache)
    (recordings, *_), more = readable_part((recordings, [], list(folds)), cache)
    for note in (*left_out, *more):
        logger.warning("%s", note)
    rows = super_class_rows(recordings, folds)
    questions = dataclasses.replace(questions, source=recordings, source_key=recordings.key, test=rows)
    responder = load_responder(saved, questions, batch_size=256)
    return str(recordings.root), measure(responder, recordings, folds, (trained, train_folds), seed=settings.seed)
