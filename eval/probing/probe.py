"""The linear-probe protocol of ECG encoder papers: six tasks, 1, 10 and 100 % of the training data.

Beside each encoder stands its architecture with random weights, and the difference in the same resamples of patients.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch

from data.support.commands import command_of
from data.support.files import require_writable
from encoders import load_encoder, new_encoder
from encoders.base import EcgEncoder, EcgFeatureExtractor
from encoders.registry import find_config
from eval.probing.finetune import Inputs, finetune
from eval.probing.numbers import Areas, Floats, Numbers, compared, with_interval
from eval.probing.settings import ProbeSettings, Protocol
from eval.probing.tasks import Task, drawn, lacking, task_of
from eval.probing.text import reasons
from eval.probing.transfer import seen_notes, transferred
from eval.probing.vectors import describe, random_like, settle_batch_norm, vectors
from eval.statistics import rounded
from eval.statistics.linear import fit_probe

logger = logging.getLogger(__name__)

Pair = tuple[EcgEncoder, EcgFeatureExtractor]


@dataclass(frozen=True)
class Draw:
    """Records of so many per cent of the training patients, and the classes that can be learned and tested."""

    percent: float
    records: tuple[str, ...]
    classes: tuple[str, ...]
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class Scored:
    """Scores of the test records, `[records, classes]`, and what a report says of the fit."""

    scores: Floats
    fit: Numbers


Score = Callable[[EcgEncoder, Draw], Scored]


def run(settings: ProbeSettings) -> Numbers:
    """Load tasks and encoders, and measure.

    Raises:
        ValueError: As `measure`, `eval.probing.tasks.load_task` and `eval.probing.transfer.transferred`.
        FileNotFoundError: There is no such encoder.
    """
    require_writable(settings.output, "--output")
    require_writable(settings.cache_folder, "--cache")
    train_name, test_name = settings.tasks
    train = test = task_of(settings, train_name)
    notes: list[str] = []
    if test_name != train_name:
        train, test, notes = transferred(train, task_of(settings, test_name))
    encoders = {name: _load(name, train, settings.seed) for name in settings.encoder}
    numbers = measure(encoders, train, test, settings.cache_folder, settings.protocol())
    return {"command": command_of("eval.probe", settings), **numbers, "notes": [*notes, *numbers["notes"]]}


def _load(name: str, train: Task, seed: int) -> Pair:
    if find_config(name) is None:
        encoder, extractor = load_encoder(name)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder, extractor = new_encoder(name)
        settle_batch_norm(encoder, extractor, train.source, train.splits["train"])
    return encoder.to("cuda" if torch.cuda.is_available() else "cpu"), extractor


def measure(encoders: Mapping[str, Pair], train: Task, test: Task, cache: Path | str, protocol: Protocol) -> Numbers:
    """Probe or fine-tune encoders on a task, and test them on it or on another with the same classes.

    Encoders are by name, each with its feature extractor; `train` gives training and validation records, `test` the
    test records: the same task, or one of another corpus (`eval.probing.transfer.transferred`).

    Raises:
        ValueError: No class can be learned and tested, or no encoder was given; or as `eval.probing.tasks.drawn`.
    """
    if not encoders:
        raise ValueError("no encoder to probe")
    draws = []
    for percent in sorted(set(protocol.percents)):
        records = drawn(train, percent, protocol.seed)
        missing = lacking(train, records, test)
        classes = tuple(name for name in train.classes if name not in missing)
        draws.append(Draw(percent, records, classes, missing))
    if not any(draw.classes for draw in draws):
        raise ValueError(f"{train.name}: no class can be learned and tested: {reasons(draws[-1].left_out)}")

    scored: dict[str, list[dict[float, Scored]]] = {}  # the encoder's first, then those of random weights
    about: dict[str, Numbers] = {}
    notes = [*train.notes, *(test.notes if test is not train else ())]
    for name, (encoder, extractor) in encoders.items():
        about[name] = describe(encoder)
        notes += seen_notes(name, encoder.config.pretrained_on, (train, test))
        scorer = _Scorer(extractor, train, test, Path(cache), protocol)
        with scorer.finetuned() if protocol.finetune else nullcontext(scorer.linear) as score:
            scored[name] = [
                {draw.percent: score(model, draw) for draw in draws if draw.classes}
                for model in scorer.with_random(name, encoder)
            ]
    settings: Numbers = {"head": "fine-tuned" if protocol.finetune else "linear probe", "features": protocol.features}
    settings |= {"percents": [draw.percent for draw in draws], "random_seeds": protocol.random_seeds}
    settings |= {"draws": protocol.draws, "seed": protocol.seed}
    return {
        "train_task": _described(train),
        "test_task": _described(test),
        "protocol": {**settings, **({"finetune": protocol.finetune.to_json()} if protocol.finetune else {})},
        "encoders": about,
        "results": [_result(draw, scored, train, test, protocol) for draw in draws],
        "notes": notes,
    }


@dataclass(frozen=True)
class _Scorer:
    """Scores of the test records by an encoder and what it learns from a draw."""

    extractor: EcgFeatureExtractor
    train: Task
    test: Task
    cache: Path
    protocol: Protocol

    def with_random(self, name: str, encoder: EcgEncoder) -> Iterator[EcgEncoder]:
        """The encoder, then its architecture with random weights, one seed after the other."""
        logger.info("%s", name)
        yield encoder
        for i in range(1, self.protocol.random_seeds + 1):
            model = random_like(encoder, self.protocol.seed + i)
            settle_batch_norm(model, self.extractor, self.train.source, self.train.splits["train"])
            logger.info("%s, random weights %d of %d", name, i, self.protocol.random_seeds)
            yield model

    def linear(self, encoder: EcgEncoder, draw: Draw) -> Scored:
        """Probe the frozen encoder."""
        train, valid = self.train, self.train.splits["valid"]
        x, kind = {}, self.protocol.features
        for split, of in (("train", train), ("valid", train), ("test", self.test)):
            records = of.splits[split]
            x[split] = vectors(encoder, self.extractor, of.source, of.source_key, records, self.cache, kind)
        place = {record: i for i, record in enumerate(train.splits["train"])}
        probe = fit_probe(
            x["train"][[place[record] for record in draw.records]],
            train.matrix(draw.records, draw.classes),
            [train.patient_of[record] for record in draw.records],
            seed=self.protocol.seed,
            validation=(x["valid"], train.matrix(valid, draw.classes)),
        )
        return Scored(probe(x["test"]), {"strengths": dict(zip(draw.classes, map(float, probe.strengths)))})

    @contextmanager
    def finetuned(self) -> Iterator[Score]:
        """Train the whole encoder; what its extractor makes of recordings is in the cache for as long."""
        train, settings = self.train, self.protocol.finetune
        assert settings is not None
        valid, tested = train.splits["valid"], self.test.splits["test"]
        self.cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="inputs-", dir=self.cache) as folder:
            learned_from = (*train.splits["train"], *valid)
            of_train = Inputs(self.extractor, train.source, learned_from, Path(folder) / "train")
            inputs = of_train, Inputs(self.extractor, self.test.source, tested, Path(folder) / "test")

            def score(encoder: EcgEncoder, draw: Draw) -> Scored:
                labels = train.matrix(draw.records, draw.classes), train.matrix(valid, draw.classes)
                records, kind = (draw.records, valid, tested), self.protocol.features
                tuned = finetune(encoder, inputs, records, labels, settings, kind=kind, seed=self.protocol.seed)
                fit = {"epoch": tuned.epoch, "validation_auroc": rounded(tuned.validation)}
                return Scored(tuned.scores, {**fit, "learning_rates": tuned.rates})

            yield score


def _described(task: Task) -> Numbers:
    splits = {}
    for split, records in task.splits.items():
        patients = {task.patient_of[record] for record in records}
        splits[split] = {"records": len(records), "patients": len(patients), "positives": task.counts(records)}
    return {"name": task.name, "recordings": task.source_key, "splits": splits}


def _result(
    draw: Draw, scored: Mapping[str, Sequence[Mapping[float, Scored]]], train: Task, test: Task, protocol: Protocol
) -> Numbers:
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
        of_draw = [run[draw.percent] for run in runs]
        areas[name], *random = (Areas.of(run.scores, truth, patients, protocol.draws, protocol.seed) for run in of_draw)
        numbers["encoders"][name] = {
            **compared(areas[name], random),
            "classes": _by_class(draw.classes, areas[name], Areas.mean(random)),
            "fit": of_draw[0].fit,
            "random_fits": [run.fit for run in of_draw[1:]],
        }
    for first, second in combinations(areas, 2):
        (a, of_a), (b, of_b) = areas[first].macro, areas[second].macro
        difference = with_interval("difference", a - b, of_a - of_b)
        numbers["pairs"].append({"first": first, "second": second, **difference})
    return numbers


def _by_class(classes: Sequence[str], model: Areas, random: Areas) -> Numbers:
    difference, rows = model - random, {}
    for k, name in enumerate(classes):
        area = with_interval("auroc", model.point[k], model.resampled[k])
        above = with_interval("value", difference.point[k], difference.resampled[k])
        rows[name] = {**area, "random": rounded(random.point[k]), "difference": above}
    return rows
