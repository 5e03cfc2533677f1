"""Does a model read the ECG, or does it guess from the question? Asks the same questions about other ECGs, and judges.

    python -m eval.ablation --model out/sft-llava
    python -m eval.ablation --model out/sft-llava --full --gate reads
    python -m eval.ablation --model out/sft-llava --server http://127.0.0.1:8000/v1 --served_name ecg
    python -m eval.ablation --model out/sft-llava --rescore

Every held-out question of the model's data set is asked about its own ECG (`real`), about another patient's (`swap`),
about one whose right answer differs (`swap-flip`), with zeros (`zero`) and with none (`none`); `--full` adds the other
conditions of `data/conditions.py`, a dose-response on simulated patients, and the ladder from encoder to answer. The
verdict follows the rule in docs/audit.md.

Writes `report.html` (one page, for reading), `report.md`, `report.json`, figures and `predictions.jsonl` (one line per
question and condition) into `MODEL/ablation`, and the verdict into the model's card. Interrupted, it goes on where it
stopped when started again. Research use only; not a medical device.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.conditions import CONDITIONS, FAST, apply, condition_named
from data.files import written_whole
from eval import report as reporting
from eval.answers import Responder, load_questions, load_responder

if TYPE_CHECKING:  # torch and scipy take seconds to import, which `--help` need not wait for
    from data.conversations.rows import QuestionSet, Row
    from data.donors import Donor, Question, Rule
    from eval.items import Key, Line
    from eval.journal import Journal

logger = logging.getLogger(__name__)

BATCH_SIZE = 64
REPORT_CONDITIONS = ("real", "swap", "none")  # under which reports are asked for
SIMULATED_PATIENTS = 25  # beside the recordings of a corpus
STRIP_SECONDS = 5.0  # of the ECGs that the page shows
SCORED_ONLY = ("question-swap", "both-swap", "planted")  # what they measure is a likelihood, not words
GATES = {"reads": ("reads",), "partly": ("reads", "partly")}  # verdicts that pass


def run(
    model_dir: Path | str,
    *,
    conditions: Sequence[str] | None = None,
    full: bool = False,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    out: Path | str | None = None,
    text_only: Path | str | None = None,
    responder: Responder | None = None,
    questions: QuestionSet | None = None,
    draws: int = 2000,
) -> dict[str, Any]:
    """Ask, score, judge, write the report.

    Args:
        model_dir: Folder of the saved model. With `responder` and `questions` given, only its name is used.
        conditions: Names of `data.conditions.CONDITIONS`; `FAST` if not given, or all with `full`.
        full: All conditions, the dose-response and the ladder.
        limit: Ask only about so many questions, as evenly over templates as they allow. For a quick look: the headline
            is then another mixture of questions.
        batch_size: Questions asked at once.
        seed: Of donors, sample and resamples.
        out: Where to write; `model_dir/ablation` if not given.
        text_only: Folder of a model trained on the same questions without ECGs: a row of reference.
        responder: Who answers, in place of the saved model.
        questions: What to ask, in place of what the model's folder records.
        draws: Resamples for the intervals.

    Returns:
        What `report.json` holds.

    Raises:
        FileNotFoundError: A folder is not a saved model.
        ValueError: Unknown conditions, conditions the responder cannot be asked under, or questions that cannot be
            asked; names the question.
    """
    model_dir = Path(model_dir)
    for name in conditions or ():
        condition_named(name)
    out = Path(out) if out is not None else model_dir / "ablation"
    if responder is None:
        _require(model_dir, "config.json", "so it is not a saved model")
    if text_only is not None:
        _require(Path(text_only), "config.json", "so it is not a saved model")
    if questions is None:
        _require(model_dir, "training.json", "so what it was trained on is not known")
        questions = with_simulated(load_questions(model_dir))

    from eval.items import Key
    from eval.journal import Journal
    from eval.measures import TEXT_ONLY

    # What can fail does so before hours of asking.
    rows = sample(questions.test, limit, seed)
    _check(questions.name, rows)
    key = Key.of(questions)
    out.mkdir(parents=True, exist_ok=True)
    plan = Plan(questions, rows, key, seed)
    if responder is None:
        responder = load_responder(model_dir, questions, batch_size)
    names, notes = _names(conditions, full, responder, plan)

    settings = {"questions": plan.digest, "limit": limit, "seed": seed, "batch_size": batch_size}
    with Journal(out, {"model": responder.name, **settings}) as journal:
        lines = [line for name in names for line in plan.ask(responder, name, journal, batch_size)]
    if full and questions.test_reports:
        about = Plan(questions, questions.test_reports, key, seed, reports=True)
        with Journal(out, {"model": responder.name, **settings, "questions": about.digest}) as journal:
            for name in REPORT_CONDITIONS:
                lines += about.ask(responder, name, journal, batch_size)
    if text_only is not None:
        other = load_responder(Path(text_only), questions, batch_size)
        with Journal(out, {"model": other.name, **settings}) as journal:
            lines += plan.ask(other, "none", journal, batch_size, called=TEXT_ONLY)
    report = {
        "model": str(model_dir),
        "dataset": questions.name,
        "command": _command(model_dir, conditions, full, limit, batch_size, seed, out, text_only),
        "seed": seed,
        "draws": draws,
        "limit": limit,
        "available": len(questions.test),
        "text_only": None if text_only is None else str(text_only),
        "notes": [*questions.notes, *notes],
        "vocabulary": sorted(key.vocabulary),
    }
    found = finish(report, lines)
    if full and (ladder := _ladder(responder, questions, lines, seed, draws)) is not None:
        found["ladder"] = ladder
    _write(out, found, lines, examples(questions, lines, seed))
    return found


def with_simulated(questions: QuestionSet) -> QuestionSet:
    """The question set with simulated patients beside its recordings, in whom doses can be planted."""
    from data.planted import Beside, simulated
    from data.synthetic import SyntheticCohort

    if simulated(questions.source) is not None:
        return questions
    cohort = SyntheticCohort(SIMULATED_PATIENTS, records_per_patient=1, fs=500)
    return dataclasses.replace(questions, source=Beside(questions.source, cohort))


def finish(report: Mapping[str, Any], lines: Sequence[Line]) -> dict[str, Any]:
    """The report with all numbers that follow from its lines."""
    from eval.measures import by_condition, measure

    return {**report, **measure(by_condition(lines), report["draws"], report["seed"])}


def rescore(out: Path | str) -> dict[str, Any]:
    """Score the answers in a report's folder again and write the report anew, without a model.

    Raises:
        FileNotFoundError: It holds no report.
        ValueError: Its predictions.jsonl is damaged; names the line.
    """
    from eval.items import read, scored

    out = Path(out)
    for name in ("predictions.jsonl", "examples.json", "report.json"):
        if not (out / name).is_file():
            raise FileNotFoundError(f"{out} has no {name}: run the audit itself first, without --rescore")
    before = json.loads((out / "report.json").read_text(encoding="utf-8"))
    vocabulary = frozenset(before["vocabulary"])
    lines = [scored(line, vocabulary) for line in read(out / "predictions.jsonl")]
    found = finish(before, lines)
    shown = json.loads((out / "examples.json").read_text(encoding="utf-8"))
    _write(out, found, lines, shown)
    return found


class Plan:
    """What is asked under each condition, and what is known about the right answers.

    Args:
        questions: The question set.
        rows: Those of its test rows that are asked.
        key: What answers are scored with.
        seed: Of donors.
        reports: The rows ask for reports: they are among its `test_reports`, and open.
    """

    def __init__(self, questions: QuestionSet, rows: Sequence[Row], key: Key, seed: int, reports: bool = False) -> None:
        self.questions, self.rows, self.key, self.seed = questions, rows, key, seed
        self.everything = questions.test_reports if reports else questions.test
        self.options = (lambda row: None) if reports else key.options
        self._donors: dict[str, dict[str, Donor]] = {}

    @property
    def digest(self) -> str:
        """A hash of the questions, their options and their order."""
        told = [[row["id"], row["question"], row["answer"], row["ecgs"], self.options(row)] for row in self.rows]
        whole = [told, len(self.everything), self.questions.source_key]
        return hashlib.sha256(json.dumps(whole, ensure_ascii=False).encode()).hexdigest()[:16]

    def donors(self, rule: Rule) -> dict[str, Donor]:
        """Who gives an ECG to which row, by id. Chosen among all test rows: it does not depend on the sample."""
        from data.donors import choose_donors

        if rule not in self._donors:
            chosen = choose_donors(self.everything, self.questions.patient_of, rule, self.seed, self.questions.traits)
            self._donors[rule] = {row["id"]: donor for row, donor in zip(self.everything, chosen) if donor is not None}
        return self._donors[rule]

    def ask(
        self, responder: Responder, condition: str, journal: Journal, batch_size: int, called: str | None = None
    ) -> list[Line]:
        """The scored lines of one condition; `called` is its name in them, where another one says more."""
        from data.conversations.rows import answer_text
        from eval.items import lines
        from eval.journal import ask_all

        known, rows = CONDITIONS[condition], list(self.rows)
        donors = questions = more = None
        if condition == "planted":
            rows, more = self.planted()
        if known.donors:
            given = self.donors(known.donors)
            rows = [row for row in rows if row["id"] in given]
        if known.questions:
            other = self.other_questions()
            rows = [row for row in rows if row["id"] in other]
            questions = [other[row["id"]] for row in rows]
        if known.donors:
            donors = [given[row["id"]] for row in rows]
        asked = apply(condition, rows, donors, questions)
        options = [self.options(row) if responder.scores else None for row in rows]
        gold = [answer_text(row["answer"]) for row in rows]
        answers = ask_all(responder, condition, asked, options, gold, journal, batch_size)
        return lines(called or condition, rows, answers, options, self.key, donors, more)

    @property
    def can_plant(self) -> bool:
        """Whether there are simulated recordings, and training questions about what can be planted in them."""
        from data.planted import DOSES, simulated

        return simulated(self.questions.source) is not None and bool(
            wordings(self.questions.train).keys() & {doses.finding for doses in DOSES}
        )

    def other_questions(self) -> dict[str, Question]:
        """What else could be asked about the ECGs of each row, by id."""
        from data.donors import choose_questions

        chosen = choose_questions(self.everything, self.seed)
        return {row["id"]: other for row, other in zip(self.everything, chosen) if other is not None}

    def planted(self) -> tuple[list[Row], dict[str, dict[str, Any]]]:
        """Questions about simulated recordings with one parameter moved, and the dose of each.

        Asked in the words of the training questions; what these never ask about is left out.
        """
        from data.planted import DOSES, planted_rows, simulated

        cohort = simulated(self.questions.source)
        assert cohort is not None  # `_names` has looked
        mine = {record for row in self.questions.test for record in row["ecgs"] if record in cohort.patient_of}
        words = wordings(self.questions.train)
        rows = [
            row
            for doses in DOSES
            if doses.finding in words
            for row in planted_rows(
                cohort, mine or cohort.records, seed=self.seed, question=words[doses.finding], doses=[doses]
            )
        ]
        return list(rows), {row["id"]: {name: row[name] for name in ("parameter", "dose", "sign")} for row in rows}


def wordings(train: Sequence[Row]) -> dict[str, str]:
    """How training questions ask whether a finding is there, as a pattern with `{finding}`, by finding."""
    found: dict[str, str] = {}
    for row in sorted(train, key=lambda row: (row["template_id"], row["question"])):
        if row["question_type"] == "single-verify" and row["attribute"] and row["attribute"] in row["question"]:
            found.setdefault(row["attribute"], row["question"].replace(row["attribute"], "{finding}"))
    return found


def sample(rows: Sequence[Row], limit: int | None, seed: int) -> list[Row]:
    """At most `limit` rows, one from each template in turn, in their old order; which ones depends on the seed only."""
    if limit is None or limit >= len(rows):
        return list(rows)
    if limit < 1:
        raise ValueError(f"limit must be positive, got {limit}")
    rng = np.random.default_rng(seed)
    templates: dict[tuple[int, str, str], list[int]] = defaultdict(list)
    for i in sorted(range(len(rows)), key=lambda i: rows[i]["id"]):
        row = rows[i]
        templates[row["template_id"], row["question_type"], row["control"]].append(i)
    # (turn, template, row): the first rows of all templates, in shuffled order, then the second ones, ...
    turns = [
        (turn, place, members[j])
        for place, (_, members) in zip(rng.permutation(len(templates)), sorted(templates.items()))
        for turn, j in enumerate(rng.permutation(len(members)))
    ]
    return [rows[i] for i in sorted(i for _, _, i in sorted(turns)[:limit])]


def _names(wanted: Sequence[str] | None, full: bool, responder: Responder, plan: Plan) -> tuple[list[str], list[str]]:
    """Conditions to ask under, and notes on those that cannot be asked. One asked for by name must be possible."""
    names, notes = [], []
    for name in dict.fromkeys(wanted if wanted is not None else CONDITIONS if full else FAST):
        level = CONDITIONS[name].level
        reason = None
        if level not in responder.levels:
            reason = (
                f"condition {name!r} is done to the model's {level}s, which a server keeps to itself: it can be asked "
                f"under {', '.join(n for n, c in CONDITIONS.items() if c.level in responder.levels)}"
            )
        elif name in SCORED_ONLY and not responder.scores:
            reason = f"condition {name!r} is read from log-probabilities, which this responder does not give"
        elif name == "planted" and not plan.can_plant:
            reason = "condition 'planted' asks about findings of simulated recordings; no training question does"
        if reason is None:
            names.append(name)
        elif wanted is not None:
            raise ValueError(reason)
        else:
            notes.append(f"Not asked: {reason}.")
    return names, notes


def _ladder(
    responder: Responder, questions: QuestionSet, lines: Sequence[Line], seed: int, draws: int
) -> dict[str, Any] | None:
    """Where the signal is lost, between encoder and answer; None for a responder whose inside cannot be seen."""
    from eval.answers import ModelResponder
    from eval.ladder import ladder
    from eval.score import yes_margin

    if not isinstance(responder, ModelResponder) or responder.features is None:
        return None
    answers = {}
    for line in lines:
        if line["condition"] == "real" and line["logp"] is not None and line["question_type"] == "single-verify":
            margin = yes_margin(line["options"], line["logp"])
            if margin is not None and not line["control"] and set(line["answer"]) <= {"yes", "no"}:
                answers[line["id"]] = margin
    rows = [row for row in questions.test if row["id"] in answers]
    if not rows:
        return None
    return ladder(
        responder.model, responder.processor, questions, responder.features, answers=answers, rows=rows,
        batch_size=responder.batch_size, draws=draws, seed=seed,
    )  # fmt: skip


def examples(questions: QuestionSet, lines: Sequence[Line], seed: int, count: int = 4) -> list[dict[str, Any]]:
    """Flip pairs to be shown, each of another group, with their ECGs: drawn at random, right answered or not."""
    from eval.measures import by_condition
    from eval.score import is_correct, probabilities

    told = by_condition(lines)
    real, flip = told.get("real", {}), told.get("swap-flip", {})
    rng = np.random.default_rng(seed)
    ids = sorted(id for id in real.keys() & flip.keys() if len(real[id]["ecgs"]) == 1 and not real[id]["control"])
    found: dict[str, dict[str, Any]] = {}
    for i in rng.permutation(len(ids)):
        pair = real[ids[i]], flip[ids[i]]
        if len(found) == count or pair[0]["group"] in found:
            continue
        found[pair[0]["group"]] = {
            "question": pair[0]["question"],
            "ecgs": [
                {
                    **_strips(questions, record),
                    "right": line["shown_answer"],
                    "said": line["prediction"],
                    "correct": is_correct(line["prediction"], line["shown_answer"]),
                    "p": None
                    if line["logp"] is None
                    else {o: round(float(p), 3) for o, p in zip(line["options"], probabilities(line["logp"]))},
                }
                for line, record in zip(pair, (pair[0]["ecgs"][0], pair[1]["donors"][0]))
            ],
        }
    return list(found.values())


def _strips(questions: QuestionSet, record: str) -> dict[str, Any]:
    """Some leads of a recording in mV, as a page can hold them: 0.01 mV is less than the width of a pen's line."""
    ecg = questions.source[record]
    leads: list[str] = [lead for lead in ("II", "V1", "V5") if lead in ecg.leads] or list(ecg.leads[:3])
    signal = ecg.select(leads).crop(0, min(STRIP_SECONDS, ecg.signal.shape[1] / ecg.fs)).signal
    return {
        "record": record,
        "fs": ecg.fs,
        "leads": {lead: [round(float(v), 2) for v in values] for lead, values in zip(leads, signal)},
    }


def _write(out: Path, report: Mapping[str, Any], lines: Sequence[Line], shown: Sequence[Mapping[str, Any]]) -> None:
    with written_whole(out / "examples.json", "w") as file:
        json.dump(shown, file)
    written = reporting.write(out, report, lines, shown)
    model_dir = Path(report["model"])
    if out == model_dir / "ablation" and (model_dir / "config.json").is_file():
        from elm import card

        card.write_card(model_dir)  # it repeats the verdict
    logger.info("wrote %s", ", ".join(map(str, written)))


def _command(
    model_dir: Path,
    conditions: Sequence[str] | None,
    full: bool,
    limit: int | None,
    batch_size: int,
    seed: int,
    out: Path,
    text_only: Path | str | None,
) -> str:
    """The command that gives the same report."""
    options = [] if conditions is None else ["--conditions", *conditions]
    options += ["--full"] if full else []
    options += [] if limit is None else ["--limit", str(limit)]
    options += [] if batch_size == BATCH_SIZE else ["--batch_size", str(batch_size)]
    options += [] if text_only is None else ["--text_only", str(text_only)]
    options += [] if out == model_dir / "ablation" else ["--out", str(out)]
    return shlex.join(["python", "-m", "eval.ablation", "--model", str(model_dir), "--seed", str(seed), *options])


def _check(name: str, rows: Sequence[Row]) -> None:
    """Refuse questions that would be counted wrongly rather than fail."""
    if not any(row["control"] == "" for row in rows):
        raise ValueError(
            f"{name}: of {len(rows)} held-out questions none is other than a control: there is no headline"
        )
    seen: set[str] = set()
    for row in rows:
        if row["id"] in seen:
            raise ValueError(f"{name}: two questions have the id {row['id']!r}")
        if not row["patient_ids"]:
            raise ValueError(f"{name}: question {row['id']!r} names no patient, so it cannot be resampled")
        seen.add(row["id"])


def _require(model_dir: Path, name: str, meaning: str) -> None:
    if not (model_dir / name).is_file():
        raise FileNotFoundError(
            f"{model_dir} has no {name}, {meaning}. Give --model the folder a recipe wrote, for example with "
            f"`accelerate launch recipes/sft_llava.py --output_dir {model_dir}`"
        )


def _served(args: argparse.Namespace, questions: QuestionSet) -> Responder:
    """The server of the command line; its key, if it wants one, is in the environment."""
    from data.conversations.rows import answer_text
    from eval.remote import ServerResponder

    longest = max(len(answer_text(row["answer"])) for row in questions.test)  # no token is shorter than a character
    return ServerResponder(
        args.server, args.served_name, questions.source, os.environ.get("OPENAI_API_KEY"),
        prefix_caching_off=args.prefix_caching_off, max_new_tokens=max(48, longest),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m eval.ablation",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="folder of a trained model")
    parser.add_argument(
        "--conditions",
        nargs="+",
        choices=list(CONDITIONS),
        metavar="NAME",
        help=f"what to do to the ECG: {', '.join(CONDITIONS)} (default: {', '.join(FAST)})",
    )
    parser.add_argument("--full", action="store_true", help="all conditions, the dose-response and the ladder")
    parser.add_argument("--limit", type=int, metavar="N", help="ask only N questions, evenly over templates")
    parser.add_argument("--text_only", type=Path, metavar="DIR", help="a model trained without ECGs, for reference")
    parser.add_argument(
        "--server", metavar="URL", help="ask this OpenAI-compatible server what --model was trained for"
    )
    parser.add_argument("--served_name", metavar="NAME", help="what the server calls the model")
    parser.add_argument(
        "--prefix_caching_off", action="store_true", help="the server caches no prefixes: it can score by likelihood"
    )
    parser.add_argument("--rescore", action="store_true", help="score the answers of the last audit again, ask nothing")
    parser.add_argument("--gate", choices=list(GATES), help="exit status 1 unless the verdict is this, or better")
    parser.add_argument(
        "--batch_size", type=int, default=BATCH_SIZE, metavar="N", help=f"questions at once (default: {BATCH_SIZE})"
    )
    parser.add_argument("--seed", type=int, default=0, help="of donors, sample and resamples (default: 0)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: MODEL/ablation)")
    args = parser.parse_args(argv)
    if (args.server is None) != (args.served_name is None):
        parser.error("--server and --served_name go together")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = args.out or args.model / "ablation"
    try:
        if args.rescore:
            report = rescore(out)
        else:
            questions = responder = None
            if args.server is not None:
                _require(args.model, "training.json", "so what to ask is not known")
                questions = with_simulated(load_questions(args.model))
                responder = _served(args, questions)
            report = run(
                args.model,
                conditions=args.conditions,
                full=args.full,
                limit=args.limit,
                batch_size=args.batch_size,
                seed=args.seed,
                out=args.out,
                text_only=args.text_only,
                responder=responder,
                questions=questions,
            )
    except (FileNotFoundError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"\n{reporting.table(report)}\n\n{reporting.finding(report)}\n")
    print(f"To read: {out / 'report.html'}; all answers: {out / 'predictions.jsonl'}")
    if args.gate and (report["verdict"] is None or report["verdict"]["verdict"] not in GATES[args.gate]):
        parser.exit(1, f"the verdict is not {args.gate!r}\n")


if __name__ == "__main__":
    main()
