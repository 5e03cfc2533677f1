"""The linear-probe protocol of ECG encoder papers, for any encoder: six tasks, 1, 10 and 100 % of the training data.

    python -m eval.probe --task ptbxl-super --ptbxl data/ptbxl --encoder fuyingw/MELP_Encoder
    python -m eval.probe --task ptbxl-rhythm --ptbxl data/ptbxl --rate 100 --encoder out/heartlang --encoder ecg_cnn
    python -m eval.probe --task cpsc2018 --cpsc2018 data/cpsc_2018 --splits data/splits --encoder out/heartlang
    python -m eval.probe --train_task ptbxl-all --test_task cpsc2018 --ptbxl data/ptbxl --cpsc2018 data/cpsc_2018 \
--splits data/splits --encoder fuyingw/MELP_Encoder
    python -m eval.probe --task ptbxl-super --ptbxl data/ptbxl --encoder out/heartlang --finetune

Tasks: ptbxl-super, ptbxl-sub, ptbxl-form, ptbxl-rhythm, cpsc2018, csn; and, for transfer, ptbxl-all (every statement)
and csn-stated (labels by the diagnoses, as the published columns have some too many).

The encoder is frozen; each recording becomes one vector; a penalised logistic regression per class is fitted to the
training records, its strength chosen on the validation split. Beside each encoder stands the same architecture with
random weights, which is a strong baseline, and the difference in the same resamples of test patients. With --finetune
the whole encoder is trained instead, and so is the one with random weights. docs/probe.md says it all.

Writes probe.json and probe.md. Research use only; not a medical device.
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.support.commands import command_line
from data.support.files import written_whole
from eval.report.parts import Table, auroc_span, markdown_table, signed_span

if TYPE_CHECKING:  # torch and scipy take seconds to import, which `--help` need not wait for
    from encoders.base import EcgEncoder, EcgFeatureExtractor
    from eval.probing.finetune import Settings
    from eval.probing.tasks import Task

logger = logging.getLogger(__name__)

Numbers = dict[str, Any]
Floats = NDArray[np.float64]
Pair = tuple["EcgEncoder", "EcgFeatureExtractor"]


@dataclass(frozen=True)
class Protocol:
    """What is done with every encoder.

    Attributes:
        percents: Of the training patients; each draw is the same for every encoder, and part of the next.
        features: Which vector of an encoder's output is taken (`eval.probing.vectors`).
        finetune: How the whole encoder is trained; None for the linear probe.
        random_seeds: Encoders with random weights beside each.
        draws: Resamples of test patients.
        seed: Of all that is drawn.

    Raises:
        ValueError: A number is too small.
    """

    percents: tuple[float, ...] = (1.0, 10.0, 100.0)
    features: str = "paper"
    finetune: Settings | None = None
    random_seeds: int = 3
    draws: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.percents:
            raise ValueError("percents: give at least one")
        if self.random_seeds < 1 or self.draws < 1:
            raise ValueError(
                f"random_seeds and draws must be at least 1, got {self.random_seeds} and {self.draws}: what an encoder "
                "has learned is the difference to its architecture with random weights"
            )


class Scored(NamedTuple):
    """Scores of the test records, `[records, classes]`, and what is to be told of the fit."""

    scores: Floats
    told: Numbers


@dataclass(frozen=True)
class Draw:
    """What is learned from so many per cent: records, and the classes that can be learned and tested."""

    percent: float
    records: tuple[str, ...]
    classes: tuple[str, ...]
    left_out: Mapping[str, str]


@dataclass
class Areas:
    """AUROCs of the classes, `[classes]`, and in the resamples of test patients, `[classes, draws]`."""

    point: Floats
    resampled: Floats

    @property
    def macro(self) -> tuple[float, Floats]:
        """Their mean, and in the resamples."""
        return float(self.point.mean()), np.asarray(self.resampled.mean(axis=0))


def measure(encoders: Mapping[str, Pair], train: Task, test: Task, cache: Path | str, protocol: Protocol) -> Numbers:
    """Probe or fine-tune encoders on a task, and test them on it or on another with the same classes.

    Args:
        encoders: By name, each with its feature extractor.
        train: Gives training and validation records.
        test: Gives test records: the same task, or one of another corpus (`eval.probing.tasks.transferred`).
        cache: Folder in which vectors are kept.
        protocol: What is done.

    Returns:
        What JSON can hold; see `text`.

    Raises:
        ValueError: No class can be learned and tested, or no encoder was given; or as `eval.probing.tasks.drawn`.
    """
    from eval.probing.tasks import drawn, lacking, seen_corpora
    from eval.probing.vectors import describe, random_like, settle_batch_norm

    if not encoders:
        raise ValueError("no encoder to probe")
    draws = []
    for percent in sorted(set(protocol.percents)):
        records = drawn(train, percent, protocol.seed)
        missing = lacking(train, records, test)
        classes = tuple(name for name in train.classes if name not in missing)
        draws.append(Draw(percent, records, classes, missing))
    if not any(draw.classes for draw in draws):
        raise ValueError(f"{train.name}: no class can be learned and tested: {_why(draws[-1].left_out)}")

    scored: dict[str, list[dict[float, Scored]]] = {}  # the encoder's first, then those of random weights
    told: dict[str, Numbers] = {}
    notes = [*train.notes, *(test.notes if test is not train else ())]
    for name, (encoder, extractor) in encoders.items():
        told[name] = describe(encoder)
        for corpus in seen_corpora(encoder.config.pretrained_on, (train, test)):
            notes.append(
                f"{name} was pretrained on: {encoder.config.pretrained_on}. That names {corpus}: it may have seen the "
                "test records, or other records of their patients."
            )
            logger.warning("%s", notes[-1])
        scored[name] = []
        with _scorer(extractor, train, test, cache, protocol) as score:
            for i in range(protocol.random_seeds + 1):
                model = encoder
                if i:
                    model = random_like(encoder, protocol.seed + i)
                    settle_batch_norm(model, extractor, train.source, train.splits["train"])
                logger.info("%s%s", name, f", random weights {i} of {protocol.random_seeds}" if i else "")
                scored[name].append({draw.percent: score(model, draw) for draw in draws if draw.classes})
    return {
        "train_task": _described(train),
        "test_task": _described(test),
        "protocol": {
            "head": "fine-tuned" if protocol.finetune else "linear probe",
            "features": protocol.features,
            "percents": [draw.percent for draw in draws],
            "random_seeds": protocol.random_seeds,
            "draws": protocol.draws,
            "seed": protocol.seed,
            **({"finetune": protocol.finetune.told()} if protocol.finetune else {}),
        },
        "encoders": told,
        "results": [_result(draw, scored, train, test, protocol) for draw in draws],
        "notes": notes,
    }


@contextmanager
def _scorer(
    extractor: EcgFeatureExtractor, train: Task, test: Task, cache: Path | str, protocol: Protocol
) -> Iterator[Callable[[EcgEncoder, Draw], Scored]]:
    """What scores the test records with an encoder and what it learns from a draw."""
    valid, tested = train.splits["valid"], test.splits["test"]

    def linear(encoder: EcgEncoder, draw: Draw) -> Scored:
        from eval.probing.vectors import vectors
        from eval.statistics.linear import fit_probe

        x = {
            split: vectors(encoder, extractor, of.source, of.source_key, of.splits[split], cache, protocol.features)
            for split, of in (("train", train), ("valid", train), ("test", test))
        }
        place = {record: i for i, record in enumerate(train.splits["train"])}
        probe = fit_probe(
            x["train"][[place[record] for record in draw.records]],
            train.matrix(draw.records, draw.classes),
            [train.patient_of[record] for record in draw.records],
            seed=protocol.seed,
            validation=(x["valid"], train.matrix(valid, draw.classes)),
        )
        return Scored(probe(x["test"]), {"strengths": dict(zip(draw.classes, map(float, probe.strengths)))})

    if protocol.finetune is None:
        yield linear
        return

    from eval.probing.finetune import Inputs, finetune
    from eval.statistics import rounded

    settings = protocol.finetune
    Path(cache).mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="inputs-", dir=cache) as here,
        tempfile.TemporaryDirectory(prefix="inputs-", dir=cache) as there,
    ):
        inputs = (
            Inputs(extractor, train.source, (*train.splits["train"], *valid), Path(here)),
            Inputs(extractor, test.source, tested, Path(there)),
        )

        def tuned(encoder: EcgEncoder, draw: Draw) -> Scored:
            labels = train.matrix(draw.records, draw.classes), train.matrix(valid, draw.classes)
            found = finetune(
                encoder, inputs, (draw.records, valid, tested), labels, settings,
                kind=protocol.features, seed=protocol.seed,
            )  # fmt: skip
            told = {"epoch": found.epoch, "validation_auroc": rounded(found.validation), "learning_rates": found.rates}
            return Scored(found.scores, told)

        yield tuned


# --- numbers ----------------------------------------------------------------------------------------------------------


def _described(task: Task) -> Numbers:
    return {
        "name": task.name,
        "recordings": task.source_key,
        "splits": {
            split: {
                "records": len(records),
                "patients": len({task.patient_of[record] for record in records}),
                "positives": task.counts(records),
            }
            for split, records in task.splits.items()
        },
    }


def _result(
    draw: Draw, scored: Mapping[str, Sequence[Mapping[float, Scored]]], train: Task, test: Task, protocol: Protocol
) -> Numbers:
    """What came of one draw."""
    numbers: Numbers = {
        "percent": draw.percent,
        "records": len(draw.records),
        "patients": len({train.patient_of[record] for record in draw.records}),
        "classes": list(draw.classes),
        "positives": {name: count for name, count in train.counts(draw.records).items() if name in draw.classes},
        "left_out": dict(draw.left_out),
        "encoders": {},
        "pairs": [],
    }
    if not draw.classes:
        return numbers
    records = test.splits["test"]
    truth, patients = test.matrix(records, draw.classes), [test.patient_of[record] for record in records]
    areas: dict[str, Areas] = {}
    for name, runs in scored.items():
        mine, *random = (
            areas_of(run[draw.percent].scores, truth, patients, protocol.draws, protocol.seed) for run in runs
        )
        areas[name] = mine
        numbers["encoders"][name] = {
            **_compared(draw.classes, mine, random),
            "fit": runs[0][draw.percent].told,
            "random_fits": [run[draw.percent].told for run in runs[1:]],
        }
    names = list(areas)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            (a, of_a), (b, of_b) = areas[first].macro, areas[second].macro
            numbers["pairs"].append(
                {"first": first, "second": second, **with_interval("difference", a - b, of_a - of_b)}
            )
    return numbers


def areas_of(scores: Floats, truth: NDArray[np.bool_], patients: Sequence[str], draws: int, seed: int) -> Areas:
    """AUROCs of scores `[records, classes]`; every class is there in some records and not in others."""
    from eval.statistics import auroc, resampled_aurocs

    columns = list(zip(scores.T, truth.T))
    return Areas(
        np.array([auroc(column, there) for column, there in columns]),
        np.stack([_filled(resampled_aurocs(column, there, patients, draws, seed)) for column, there in columns]),
    )


def _filled(areas: Floats) -> Floats:
    """A class's AUROC in the resamples, where a resample lacks the class that of the next resample which has it.

    Such resamples would else be lost to the macro mean, and with a few rare classes nearly all are; and a mean over the
    classes that are there would move with which these are.
    """
    there = np.flatnonzero(~np.isnan(areas))
    if not there.size:
        return areas
    return np.asarray(areas[there[np.searchsorted(there, np.arange(len(areas))) % len(there)]])


def _compared(classes: Sequence[str], mine: Areas, random: Sequence[Areas]) -> Numbers:
    """An encoder's AUROCs, those of random weights (the mean over seeds) and the differences."""
    from eval.statistics import rounded

    mean = Areas(np.mean([run.point for run in random], axis=0), np.mean([run.resampled for run in random], axis=0))
    difference = Areas(mine.point - mean.point, mine.resampled - mean.resampled)
    return {
        **with_interval("auroc", *mine.macro),
        "random": {**with_interval("auroc", *mean.macro), "by_seed": [rounded(run.macro[0]) for run in random]},
        "difference": with_interval("value", *difference.macro),
        "classes": {
            name: {
                **with_interval("auroc", mine.point[k], mine.resampled[k]),
                "random": rounded(mean.point[k]),
                "difference": with_interval("value", difference.point[k], difference.resampled[k]),
            }
            for k, name in enumerate(classes)
        },
    }


def with_interval(name: str, value: float, resampled: Floats) -> Numbers:
    """A number by name, and its interval of 95 %."""
    from eval.statistics import percentile_interval, rounded

    limits = percentile_interval(resampled)
    return {name: rounded(value), "interval": [rounded(x) if x == x else None for x in limits]}


# --- words ------------------------------------------------------------------------------------------------------------


def tables(numbers: Numbers) -> list[Table]:
    """The macro means by draw, and the classes of the largest draw."""
    results = [result for result in numbers["results"] if result["classes"]]
    head = ["", *(f"{result['percent']:g} % of training patients" for result in results)]
    rows = [
        ["records", *(f"{result['records']:,}" for result in results)],
        ["classes in the mean", *(f"{len(result['classes'])}" for result in results)],
    ]
    for name in numbers["encoders"]:
        of = [result["encoders"][name] for result in results]
        rows.append([f"**{name}**", *(auroc_span(told["auroc"], told["interval"]) for told in of)])
        rows.append(["random weights, mean", *(auroc_span(t["random"]["auroc"], t["random"]["interval"]) for t in of)])
        spans = [told["random"]["by_seed"] for told in of]
        rows.append(["random weights, range", *(f"{min(by_seed):.3f} to {max(by_seed):.3f}" for by_seed in spans)])
        differences = [told["difference"] for told in of]
        rows.append(["difference", *(signed_span(d["value"], d["interval"], 3) for d in differences)])
    made = [Table(head, rows)]
    if any(result["pairs"] for result in results):
        of_pairs = [
            [f"{pairs[0]['first']} − {pairs[0]['second']}"]
            + [signed_span(pair["difference"], pair["interval"], 3) for pair in pairs]
            for pairs in zip(*(result["pairs"] for result in results))
        ]
        made.append(Table(["difference of encoders", *head[1:]], of_pairs))
    last = results[-1]
    test = numbers["test_task"]["splits"]["test"]["positives"]
    columns = [f"{name}{what}" for name in numbers["encoders"] for what in ("", ", minus random")]
    classes = []
    for name in last["classes"]:
        told = [last["encoders"][encoder]["classes"][name] for encoder in numbers["encoders"]]
        cells = [
            cell
            for of_class in told
            for cell in (
                auroc_span(of_class["auroc"], of_class["interval"]),
                signed_span(of_class["difference"]["value"], of_class["difference"]["interval"], 3),
            )
        ]
        classes.append([name, f"{last['positives'][name]:,}", f"{test[name]:,}", *cells])
    made.append(Table([f"class ({last['percent']:g} %)", "in training", "in test", *columns], classes))
    return made


def text(numbers: Numbers) -> str:
    """The numbers of `measure` in Markdown."""
    train, test, protocol = numbers["train_task"], numbers["test_task"], numbers["protocol"]
    what = train["name"] if train == test else f"from {train['name']} to {test['name']}"
    head = {
        "linear probe": "Linear probe: the encoder is frozen, and a penalised logistic regression per class reads one "
        f"vector per recording (`{protocol['features']}`), its strength chosen on the validation split.",
        "fine-tuned": "The whole encoder is trained with a linear head on one vector per recording "
        f"(`{protocol['features']}`), and the best epoch by validation taken.",
    }[protocol["head"]]
    about = (
        f"{head} Macro AUROC on {test['splits']['test']['records']:,} test records of "
        f"{test['splits']['test']['patients']:,} patients; intervals are 95 %, by patient. Random weights: the same "
        f"architecture, {protocol['random_seeds']} seeds; the difference is to their mean, in the same resamples, and "
        "its interval says nothing of how seeds vary."
    )
    parts = [f"# {protocol['head'].capitalize()}: {what}"]
    if "command" in numbers:
        parts.append(f"```\n{numbers['command']}\n```")
    parts += [about, *(markdown_table([table.head, *table.rows], table.words) for table in tables(numbers))]
    left = [
        f"- {result['percent']:g} %: {'no class is left' if not result['classes'] else 'left out of the mean'}: "
        f"{_why(result['left_out'])}"
        for result in numbers["results"]
        if result["left_out"]
    ]
    if left:
        parts += ["Classes that cannot be learned, or not be tested:", "\n".join(left)]
    rows = [
        [name, *(f"{task['splits'][split]['positives'][name]:,}" for task, split in _splits(train, test))]
        for name in train["splits"]["train"]["positives"]
    ]
    for unit in ("records", "patients"):
        rows.insert(0, [unit, *(f"{task['splits'][split][unit]:,}" for task, split in _splits(train, test))])
    parts.append(markdown_table([["", *(f"{t['name']}, {split}" for t, split in _splits(train, test))], *rows]))
    parts.append(
        "\n".join(
            f"- **{name}**: {told['model_type']}, {told['parameters']:,} parameters, weights {told['weights']}; "
            f"pretrained on: {told['pretrained_on'] or 'nothing stated'}."
            for name, told in numbers["encoders"].items()
        )
    )
    if numbers["notes"]:
        parts.append("\n".join(f"- {note}" for note in numbers["notes"]))
    return "\n\n".join([*parts, "Research use only; not a medical device."]) + "\n"


def _splits(train: Numbers, test: Numbers) -> list[tuple[Numbers, str]]:
    return [(train, "train"), (train, "valid"), (test, "test")]


def _why(left_out: Mapping[str, str]) -> str:
    reasons: dict[str, list[str]] = {}
    for name, why in left_out.items():
        reasons.setdefault(why, []).append(name)
    return "; ".join(f"{', '.join(names)} ({why})" for why, names in reasons.items()) + "."


# --- command line -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Where:
    """Where recordings and split tables are.

    Attributes:
        folders: By corpus.
        tables: Of split tables.
        folds: Of PTB-XL.
        rate: Of PTB-XL.
        leave_out: Records that split tables list and that are not on disk.
    """

    folders: Mapping[str, Path] = field(default_factory=dict)
    tables: Path | None = None
    folds: str = "1-8/9/10"
    rate: int = 500
    leave_out: bool = False

    def task(self, name: str) -> Task:
        """A task by name.

        Raises:
            ValueError: As `eval.probing.tasks.load_task`; or the corpus' folder was not given.
        """
        from eval.probing.tasks import TASKS, load_task

        corpus = name.partition("-")[0]
        if name in TASKS and corpus not in self.folders:
            raise ValueError(f"{name}: pass the folder of its recordings (--{corpus})")
        return load_task(
            name, self.folders.get(corpus, Path()), tables=self.tables, folds=self.folds, rate=self.rate,
            leave_out=self.leave_out,
        )  # fmt: skip


def run(
    encoders: Sequence[str], train_task: str, test_task: str, where: Where, cache: Path | str, protocol: Protocol
) -> Numbers:
    """Load tasks and encoders, and measure.

    Args:
        encoders: Folders, hub ids or checkpoints of trained ones, and types for new ones (`ecg_cnn`).
        train_task: What is learned.
        test_task: What is tested: the same, or a task of another corpus.
        where: The recordings.
        cache: As `measure`.
        protocol: As `measure`.

    Raises:
        ValueError: An encoder is given twice, or as `measure`, `eval.probing.tasks.load_task` and
        `eval.probing.tasks.transferred`.
        FileNotFoundError: There is no such encoder.
    """
    from eval.probing.tasks import transferred

    if len(set(encoders)) < len(encoders):
        raise ValueError(f"an encoder is given twice: {', '.join(encoders)}")
    train = test = where.task(train_task)
    said: list[str] = []
    if test_task != train_task:
        train, test, said = transferred(train, where.task(test_task))
    pairs = {name: _load(name, train, protocol.seed) for name in encoders}
    numbers = measure(pairs, train, test, cache, protocol)
    return {**numbers, "notes": [*said, *numbers["notes"]]}


def _load(name: str, train: Task, seed: int) -> Pair:
    import torch

    from encoders import load_encoder, new_encoder
    from encoders.registry import find_config
    from eval.probing.vectors import settle_batch_norm

    if find_config(name) is None:
        encoder, extractor = load_encoder(name)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder, extractor = new_encoder(name)
        settle_batch_norm(encoder, extractor, train.source, train.splits["train"])
    return encoder.to("cuda" if torch.cuda.is_available() else "cpu"), extractor


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line("eval.probe", __doc__)
    add = parser.add_argument
    add("--encoder", action="append", required=True, metavar="NAME",
        help="folder, checkpoint or hub id, or a type for a new one (ecg_cnn); repeat it to compare")  # fmt: skip
    add("--task", help="what is learned and tested")
    add("--train_task", metavar="TASK", help="with --test_task: learn on one corpus ...")
    add("--test_task", metavar="TASK", help="... and test on another, findings matched by name")
    for corpus, told in (("ptbxl", "PTB-XL"), ("cpsc2018", "CPSC2018"), ("csn", "CSN")):
        add(f"--{corpus}", type=Path, metavar="DIR", help=f"recordings of {told}, as published")
    add("--splits", type=Path, metavar="DIR", help="split tables of CPSC2018 and CSN")
    add("--folds", default="1-8/9/10", metavar="A/B/C", help="of PTB-XL: training, validation, test (1-8/9/10)")
    add("--rate", type=int, default=500, help="of PTB-XL: the records of 100 or of 500 Hz (default: 500)")
    add("--leave_out_missing", action="store_true", help="leave out records of the split tables that are not on disk")
    add("--percent", type=float, nargs="+", default=[1, 10, 100], metavar="P", help="of training patients (1 10 100)")
    add("--features", default="paper", metavar="KIND",
        help="paper (what the encoder's paper probes, else mean), mean, max, or a vector of its output")  # fmt: skip
    add("--finetune", action="store_true", help="train the whole encoder")
    for name, kind, told in (
        ("epochs", int, "30"), ("batch_size", int, "64"), ("learning_rate", float, "5e-4"),
        ("layer_decay", float, "0.75"),
    ):  # fmt: skip
        add(f"--{name}", type=kind, metavar="N", help=f"with --finetune (default: {told})")
    add("--random_seeds", type=int, default=3, metavar="N", help="random weights beside each encoder (default: 3)")
    add("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    add("--cache", type=Path, default=Path("out/cache"), metavar="DIR", help="of vectors (default: out/cache)")
    add("--output", type=Path, default=Path("out/probe"), metavar="DIR", help="default: out/probe")
    args = parser.parse_args(argv)
    two = args.train_task is not None and args.test_task is not None
    if (args.task is None) != two or (args.task is not None and (args.train_task or args.test_task)):
        parser.error("give --task, or --train_task and --test_task")
    chosen = {
        name: value
        for name in ("epochs", "batch_size", "learning_rate", "layer_decay")
        if (value := vars(args)[name]) is not None
    }
    if chosen and not args.finetune:
        parser.error(f"--{next(iter(chosen))} is of --finetune")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folders = {corpus: vars(args)[corpus] for corpus in ("ptbxl", "cpsc2018", "csn") if vars(args)[corpus] is not None}
    where = Where(folders, args.splits, args.folds, args.rate, args.leave_out_missing)
    try:
        settings = None
        if args.finetune:
            from eval.probing.finetune import Settings

            settings = Settings(**chosen)
        protocol = Protocol(tuple(args.percent), args.features, settings, args.random_seeds, seed=args.seed)
        train, test = (args.train_task, args.test_task) if two else (args.task, args.task)
        numbers = run(args.encoder, train, test, where, args.cache, protocol)
    except (FileNotFoundError, ImportError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    given = sys.argv[1:] if argv is None else argv
    numbers = {"command": f"python -m eval.probe {shlex.join(given)}", **numbers}
    with written_whole(args.output / "probe.json", "w") as file:
        json.dump(numbers, file, indent=2)
    with written_whole(args.output / "probe.md", "w") as file:
        file.write(text(numbers))
    print(f"\n{text(numbers)}\nWritten to {args.output / 'probe.md'} and probe.json")


if __name__ == "__main__":
    main()
