"""PTB-XL's five super-classes: yes/no answers as a classifier's scores, beside a plain CNN on the same items.

    python -m eval.super_classes --model out/ecg-qa-ptbxl
    python -m eval.super_classes --model out/ecg-qa-ptbxl --ptbxl other/ptbxl --folds 10

All five questions are asked of every held-out record whose labels are known, and scored by log p(yes) − log p(no): no
question is easier for its usual answer, as it would be by accuracy. The CNN learns from the labels of the records that
the model was trained on. The same is asked about another patient's ECG, drawn without regard to age and sex, and in
flip pairs.

The audit of a model trained on PTB-XL's folds does this by itself; the command repeats it, on other recordings if need
be, and writes `super-classes.json` into `MODEL/ablation`. Research use only; not a medical device.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data.support.commands import command_line
from data.support.files import written_whole
from eval.report.parts import Table, auroc_span, markdown_table, percent, points_span, signed_span

if TYPE_CHECKING:  # torch and scipy take seconds to import, which `--help` need not wait for
    from data.conversations.rows import QuestionSet, Row
    from data.corpora.ptbxl import PtbXl
    from data.ecg import EcgSource
    from eval.answerers.model import Responder

logger = logging.getLogger(__name__)

Numbers = dict[str, Any]
Floats = NDArray[np.float64]
OPTIONS = ["yes", "no"]


def folds_of(questions: QuestionSet) -> tuple[PtbXl, list[int], list[int]] | None:
    """PTB-XL, and its folds that a question set trains on and holds out; None where these are not apart."""
    from data.corpora.ptbxl import PtbXl
    from data.experiment.planted import Beside

    source: EcgSource = questions.source
    ptbxl = source.corpus if isinstance(source, Beside) else source
    if not isinstance(ptbxl, PtbXl):
        return None
    train, test = (
        {ptbxl.fold_of[ecg] for row in rows for ecg in row["ecgs"] if ecg in ptbxl.fold_of}
        for rows in ([*questions.reports, *questions.train], questions.test)
    )
    if not train or train & test:
        return None
    return ptbxl, sorted(train), sorted(test)


def measure(
    responder: Responder,
    ptbxl: PtbXl,
    folds: Collection[int],
    trained_on: tuple[PtbXl, Collection[int]],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Numbers:
    """Ask all five questions about every record of these folds, and train the CNN.

    Args:
        responder: Whom to ask; it must give log-probabilities, and know the recordings of `ptbxl`.
        ptbxl: The recordings.
        folds: Those asked about.
        trained_on: Recordings and folds the CNN learns from.
        draws: Resamples of patients.
        seed: Of donors, resamples and the CNN.

    Returns:
        Numbers of each class and their means; see `table`.

    Raises:
        ValueError: A class has no record with it or none without, in these folds or in those of the CNN; or a patient
            is in both.
    """
    from data.conversations.super_classes import SUPER_CLASSES, super_class_rows
    from data.experiment.conditions import apply
    from data.experiment.donors import Donor, choose_donors, derangement
    from eval.audit.cnn import CnnClassifier

    rows = super_class_rows(ptbxl, folds)
    learned = super_class_rows(*trained_on)
    _refuse(rows, learned)
    patient_of = {row["ecgs"][0]: row["patient_ids"][0] for row in rows}
    records = list(patient_of)
    other = derangement(patient_of, seed)
    index = {row["id"]: i for i, row in enumerate(rows)}
    place = {(row["ecgs"][0], row["attribute"]): i for i, row in enumerate(rows)}
    shape = (len(records), len(SUPER_CLASSES))

    def ask(condition: str, asked: Sequence[Row], donors: Sequence[Donor] | None = None) -> Floats:
        given = apply(condition, asked, donors)
        responder.prepare(given, condition)
        told = responder.score(given, condition, [OPTIONS] * len(given))
        return np.array([yes - no for yes, no in told])

    swapped = [place[other[row["ecgs"][0]], row["attribute"]] for row in rows]
    flips = choose_donors(rows, patient_of, "flip", seed)
    pairs = [(row, flip) for row, flip in zip(rows, flips) if flip is not None]
    real = ask("real", rows)
    swap = ask("swap", rows, [Donor(j, rows[j]["ecgs"], rows[j]["answer"]) for j in swapped])
    flipped = ask("swap-flip", [row for row, _ in pairs], [flip for _, flip in pairs])

    train_records = list(dict.fromkeys(row["ecgs"][0] for row in learned))
    labels = np.array([row["answer"] == ["yes"] for row in learned]).reshape(len(train_records), -1)
    cnn = CnnClassifier(shape[1], seed).fit(trained_on[0], train_records, labels)
    yes = np.array([row["answer"] == ["yes"] for row in rows])
    mine = [index[row["id"]] for row, _ in pairs]
    still = (flipped > 0) == yes[mine]  # the answer that is right about the real ECG, given about the other one
    gap = ((real[mine] > 0) == yes[mine]).astype(float) - still
    clusters = [tuple({row["patient_ids"][0], patient_of[flip.ecgs[0]]}) for row, flip in pairs]
    return {
        **_classes(
            list(SUPER_CLASSES), yes.reshape(shape), real.reshape(shape), cnn.scores(ptbxl, records),
            swap.reshape(shape), [patient_of[record] for record in records], draws, seed,
        ),
        "folds": sorted(folds),
        "trained_on": {"folds": sorted(trained_on[1]), "records": len(train_records)},
        "items": len(rows),
        "records": len(records),
        "patients": len(set(patient_of.values())),
        "flips": _gap(gap, clusters),
    }  # fmt: skip


def _refuse(rows: Sequence[Row], learned: Sequence[Row]) -> None:
    """Items that cannot be scored."""
    for what, some in (("asked about", rows), ("that the CNN learns from", learned)):
        given: dict[str, set[str]] = {}
        for row in some:
            given.setdefault(row["attribute"], set()).update(row["answer"])
        if not given:
            raise ValueError(f"of no record {what} the super-classes are known: look at the folds")
        if lacking := [name for name, answers in given.items() if len(answers) < 2]:
            raise ValueError(f"{lacking[0]}: the records {what} all have the same answer: take more folds")
    shared = {row["patient_ids"][0] for row in rows} & {row["patient_ids"][0] for row in learned}
    if shared:
        raise ValueError(
            f"{len(shared)} patients, such as {min(shared)}, are among those asked about and among those the CNN "
            "learns from: ask about folds that were not trained on"
        )


def _classes(
    names: Sequence[str],
    yes: NDArray[np.bool_],
    real: Floats,
    cnn: Floats,
    swap: Floats,
    patients: Sequence[str],
    draws: int,
    seed: int,
) -> Numbers:
    """AUROC and balanced accuracy of each class, model beside CNN, in the same resamples of patients.

    Args:
        names: Of the classes.
        yes: The labels, `[records, classes]`, as all that follow.
        real: Scores of the model.
        cnn: Scores of the CNN.
        swap: Scores of the model for other patients' ECGs.
        patients: Of each record.
        draws: Resamples.
        seed: Of the resamples.
    """
    from eval.statistics import auroc, balanced_accuracy, percentile_interval, resampled_aurocs, rounded

    scored = {"model": real, "cnn": cnn, "swap": swap}
    areas = {
        who: np.stack([resampled_aurocs(s[:, k], yes[:, k], patients, draws, seed) for k in range(len(names))])
        for who, s in scored.items()
    }
    shares = {
        who: np.stack([_balanced(s[:, k] > 0, yes[:, k], patients, draws, seed) for k in range(len(names))])
        for who, s in scored.items()
    }
    area = {who: np.array([auroc(s[:, k], yes[:, k]) for k in range(len(names))]) for who, s in scored.items()}
    share = {
        who: np.array([balanced_accuracy(s[:, k] > 0, yes[:, k]) for k in range(len(names))])
        for who, s in scored.items()
    }

    def told(value: Floats, resampled: Floats) -> Numbers:
        """A mean over classes, and its interval."""
        limits = percentile_interval(resampled.mean(axis=0))
        return {"value": rounded(value.mean()), "interval": [rounded(x) if x == x else None for x in limits]}

    def row(here: slice) -> Numbers:
        return {
            **{who: {"auroc": told(area[who][here], areas[who][here]),
                     "balanced_accuracy": told(share[who][here], shares[who][here])} for who in scored},
            "auroc_difference": told((area["model"] - area["cnn"])[here], (areas["model"] - areas["cnn"])[here]),
            "balanced_accuracy_difference": told(
                (share["model"] - share["cnn"])[here], (shares["model"] - shares["cnn"])[here]
            ),
        }  # fmt: skip

    of_class = {name: {"positives": int(yes[:, k].sum()), **row(slice(k, k + 1))} for k, name in enumerate(names)}
    return {"classes": of_class, "macro": row(slice(None))}


def _balanced(
    said: NDArray[np.bool_], yes: NDArray[np.bool_], patients: Sequence[str], draws: int, seed: int
) -> Floats:
    """Balanced accuracy in the resamples, `[draws]`; NaN in those without both answers."""
    from eval.statistics import resampled_means

    columns = np.column_stack([said & yes, yes, ~said & ~yes, ~yes]).astype(float)
    means = resampled_means(columns, patients, draws, seed)
    if means is None:
        return np.full(draws, np.nan)
    with np.errstate(invalid="ignore"):
        balanced: Floats = (means[:, 0] / means[:, 1] + means[:, 2] / means[:, 3]) / 2
    return balanced


def _gap(gap: Floats, clusters: Sequence[tuple[str, ...]]) -> Numbers:
    from eval.statistics import patients_of, robust_interval, rounded

    limits = robust_interval(gap, clusters)
    return {
        "pairs": len(gap),
        "patients": len(patients_of(clusters)),
        "gap": rounded(gap.mean()),
        "interval": [rounded(x) if x == x else None for x in limits],
    }


def table(numbers: Mapping[str, Any]) -> Table:
    """The numbers of `measure` as people read them: one line per class, and their means."""

    def line(name: str, told: Mapping[str, Any]) -> list[str]:
        def area(who: str) -> str:
            return auroc_span(told[who]["auroc"]["value"], told[who]["auroc"]["interval"])

        difference = told["auroc_difference"]
        balanced = [percent(told[who]["balanced_accuracy"]["value"]) for who in ("model", "cnn")]
        return [
            name, f"{told['positives']}" if "positives" in told else "",
            area("model"), area("cnn"), signed_span(difference["value"], difference["interval"], 3),
            *balanced, f"{told['swap']['auroc']['value']:.3f}",
        ]  # fmt: skip

    head = ["class", "positives", "AUROC", "AUROC, CNN", "difference", "balanced accuracy", "the same, CNN",
            "AUROC, another's ECG"]  # fmt: skip
    rows = [line(name, told) for name, told in numbers["classes"].items()]
    return Table(head, [*rows, line("mean", numbers["macro"])])


def sentences(numbers: Mapping[str, Any]) -> list[str]:
    """What the table is about, and what does not fit into it."""
    flips, macro, learned = numbers["flips"], numbers["macro"], numbers["trained_on"]
    mine, difference = macro["model"]["balanced_accuracy"], macro["balanced_accuracy_difference"]
    return [
        f"All five questions about each of {numbers['records']:,} records ({numbers['items']:,} items, "
        f"{numbers['patients']:,} patients, {_folds(numbers['folds'])}), scored by log p(yes) − log p(no). The CNN was "
        f"trained on the labels of {learned['records']:,} records of {_folds(learned['folds'])}, and no language. "
        "Intervals are 95 %, by patient.",
        f"Mean balanced accuracy of what the model says (yes where it is likelier than no): "
        f"{percent(mine['value'])}, {points_span(difference['value'], difference['interval'])} points beside the CNN.",
        f"Swap-flip gap: {points_span(flips['gap'], flips['interval'])} points, {flips['pairs']:,} flip pairs of "
        f"{flips['patients']:,} patients.",
    ]


def _folds(folds: Sequence[int]) -> str:
    return f"fold {folds[0]}" if len(folds) == 1 else f"folds {', '.join(map(str, folds))}"


def text(numbers: Mapping[str, Any]) -> str:
    """`sentences` and `table` in Markdown."""
    told = table(numbers)
    about, *rest = sentences(numbers)
    return "\n\n".join([about, markdown_table([told.head, *told.rows], told.words), *rest])


def run(model_dir: Path | str, *, ptbxl: Path | None = None, folds: Collection[int] = (), seed: int = 0) -> Numbers:
    """Load a saved model and measure it.

    Args:
        model_dir: Its folder.
        ptbxl: Other recordings, in PTB-XL's layout, in place of those it was trained on.
        folds: Which of them; those its question set holds out if not given.
        seed: As `measure`.

    Raises:
        ValueError: It was not trained along PTB-XL's folds; or as `measure`.
    """
    import dataclasses

    from data.conversations.super_classes import super_class_rows
    from data.corpora.ptbxl import PtbXl
    from elm.saved.run import SavedRun
    from eval.answerers.model import load_responder

    saved = SavedRun(model_dir)
    questions = saved.questions
    if (found := folds_of(questions)) is None:
        raise ValueError(f"{model_dir} was trained on {questions.name}, which is not split along PTB-XL's folds")
    trained, train_folds, test_folds = found
    asked = trained if ptbxl is None else PtbXl(ptbxl, trained.rate)
    folds = folds or test_folds
    rows = super_class_rows(asked, folds)
    responder = load_responder(
        saved, dataclasses.replace(questions, source=asked, source_key=asked.key, test=rows), batch_size=256
    )
    numbers = measure(responder, asked, folds, (trained, train_folds), seed=seed)
    return {"model": str(model_dir), "recordings": str(asked.root), **numbers}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line("eval.super_classes", __doc__)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="folder of a trained model")
    parser.add_argument("--ptbxl", type=Path, metavar="DIR", help="other recordings, in PTB-XL's layout")
    parser.add_argument(
        "--folds", type=int, nargs="+", default=(), metavar="N", help="which of them (default: held out)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of donors, resamples and the CNN (default: 0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: MODEL/ablation/super-classes.json")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = args.out or args.model / "ablation" / "super-classes.json"
    try:
        numbers = run(args.model, ptbxl=args.ptbxl, folds=args.folds, seed=args.seed)
    except (FileNotFoundError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    with written_whole(out, "w") as file:
        json.dump(numbers, file, indent=2)
    print(f"\n{text(numbers)}\n\nWritten to {out}")


if __name__ == "__main__":
    main()
