"""Does a model read the ECG, or does it guess from the question? Asks the same questions about other ECGs, and judges.

    python -m eval.ablation --model out/sft-llava
    python -m eval.ablation --model out/sft-llava --full --gate reads
    python -m eval.ablation --model out/sft-llava --server http://127.0.0.1:8000/v1 --served_name ecg
    python -m eval.ablation --model out/sft-llava --rescore

Every held-out question of the model's data set is asked about its own ECG (`real`), about another patient's (`swap`),
about one whose right answer differs (`swap-flip`), with zeros (`zero`) and with none (`none`); `--full` adds the other
conditions of `data/experiment/conditions.py`, a dose-response on simulated patients, and the ladder from encoder to
answer. The verdict follows the rule in docs/audit.md.

Writes `report.html` (one page, for reading), `report.md`, `report.json`, figures and `predictions.jsonl` (one line per
question and condition) into `MODEL/ablation`, and the verdict into the model's card. Interrupted, it goes on where it
stopped when started again. Research use only; not a medical device.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.experiment.conditions import CONDITIONS, FAST, condition_named
from data.support.commands import command_line
from data.support.files import written_whole
from eval.answerers.memory import remembering
from eval.answerers.model import Responder, load_responder
from eval.audit.plan import Plan, check, choose_conditions, sample, with_simulated
from eval.report import write as reporting

if TYPE_CHECKING:  # torch and scipy take seconds to import, which `--help` need not wait for
    from data.conversations.rows import QuestionSet
    from eval.scoring.lines import Line

logger = logging.getLogger(__name__)

BATCH_SIZE = 64
REPORT_CONDITIONS = ("real", "swap", "none")  # under which reports are asked for
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
        model_dir: Folder of the saved model, or its hub id. With `responder` and `questions` given, only its name is
            used.
        conditions: Names of `data.experiment.conditions.CONDITIONS`; `FAST` if not given, or all with `full`.
        full: All conditions, the dose-response and the ladder.
        limit: Ask only about so many questions, as evenly over templates as they allow. For a quick look: the headline
            is then another mixture of questions.
        batch_size: Questions asked at once.
        seed: Of donors, sample and resamples.
        out: Where to write; `default_out(model_dir)` if not given.
        text_only: Folder of a model trained on the same questions without ECGs: a row of reference. That of the model
            itself, `model_dir/text-only`, if not given and there is one.
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
    from elm.saved.run import SavedRun
    from eval.audit.examples import examples
    from eval.audit.journal import Journal
    from eval.scoring.lines import Key
    from eval.scoring.numbers import TEXT_ONLY

    model_dir = Path(model_dir)
    for name in conditions or ():
        condition_named(name)
    out = Path(out) if out is not None else default_out(model_dir)
    saved = SavedRun(model_dir)
    named_only = responder is not None and questions is not None and not model_dir.is_dir()
    if responder is None:
        _require(saved.folder, "config.json", "so it is not a saved model")
    if text_only is None and (model_dir / TEXT_ONLY / "config.json").is_file():
        text_only = model_dir / TEXT_ONLY
    elif text_only is not None:
        _require(Path(text_only), "config.json", "so it is not a saved model")
    if questions is None:
        _require(saved.folder, "training.json", "so what it was trained on is not known")
        questions = with_simulated(saved.questions)

    # What can fail does so before hours of asking.
    rows = sample(questions.test, limit, seed)
    check(questions.name, rows)
    key = Key.of(questions)
    out.mkdir(parents=True, exist_ok=True)
    plan = Plan(questions, rows, key, seed)
    if responder is None:
        responder = load_responder(saved, questions, batch_size)
    names, notes = choose_conditions(conditions, full, responder, plan)

    memory = remembering(responder)
    settings = {"questions": plan.digest, "limit": limit, "seed": seed, "batch_size": batch_size}
    with Journal(out, {"model": responder.name, **settings}) as journal:
        lines = [line for name in names for line in plan.ask(memory, name, journal, batch_size)]
    if full and questions.test_reports:
        about = Plan(questions, questions.test_reports, key, seed, reports=True)
        with Journal(out, {"model": responder.name, **settings, "questions": about.digest}) as journal:
            for name in REPORT_CONDITIONS:
                lines += about.ask(memory, name, journal, batch_size)
    if text_only is not None:
        other = load_responder(SavedRun(text_only), questions, batch_size)
        with Journal(out, {"model": other.name, **settings}) as journal:
            lines += plan.ask(remembering(other), "none", journal, batch_size, called=TEXT_ONLY)
    report = {
        "model": str(model_dir),
        "training": None if named_only else saved.digest or None,
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
    if limit is None and (classes := _super_classes(responder, questions, seed, draws)) is not None:
        found["super_classes"] = classes
    _write(out, found, lines, examples(questions, lines, seed))
    return found


def default_out(model: Path | str) -> Path:
    """Where a model's audit is written: into its folder, or below out/ where it comes from the hub."""
    model = Path(model)
    return model / "ablation" if model.is_dir() or model.is_absolute() else Path("out") / model.name / "ablation"


def finish(report: Mapping[str, Any], lines: Sequence[Line]) -> dict[str, Any]:
    """The report with all numbers that follow from its lines."""
    from eval.scoring.numbers import by_condition, measure

    return {**report, **measure(by_condition(lines), report["draws"], report["seed"])}


def rescore(out: Path | str) -> dict[str, Any]:
    """Score the answers in a report's folder again and write the report anew, without a model.

    Raises:
        FileNotFoundError: It holds no report.
        ValueError: Its predictions.jsonl is damaged; names the line.
    """
    from eval.scoring.lines import read, scored

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


def _ladder(
    responder: Responder, questions: QuestionSet, lines: Sequence[Line], seed: int, draws: int
) -> dict[str, Any] | None:
    """Where the signal is lost, between encoder and answer; None for a responder whose inside cannot be seen."""
    from eval.answerers.model import ModelResponder
    from eval.audit.ladder import ladder
    from eval.scoring.answers import yes_margin

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
        measured=responder.measured, batch_size=responder.batch_size, draws=draws, seed=seed,
    )  # fmt: skip


def _super_classes(responder: Responder, questions: QuestionSet, seed: int, draws: int) -> dict[str, Any] | None:
    """PTB-XL's super-classes beside a plain CNN; None for other recordings, and for who gives no log-probabilities."""
    from eval.audit import super_classes

    if not responder.scores or (found := super_classes.folds_of(questions)) is None:
        return None
    ptbxl, train_folds, test_folds = found
    return super_classes.measure(responder, ptbxl, test_folds, (ptbxl, train_folds), draws=draws, seed=seed)


def _write(out: Path, report: Mapping[str, Any], lines: Sequence[Line], shown: Sequence[Mapping[str, Any]]) -> None:
    with written_whole(out / "examples.json", "w") as file:
        json.dump(shown, file)
    written = reporting.write(out, report, lines, shown)
    model_dir = Path(report["model"])
    if out == model_dir / "ablation" and (model_dir / "config.json").is_file():
        from elm.saved import card

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
    options += [] if text_only in (None, model_dir / "text-only") else ["--text_only", str(text_only)]
    options += [] if out == default_out(model_dir) else ["--out", str(out)]
    return shlex.join(["python", "-m", "eval.ablation", "--model", str(model_dir), "--seed", str(seed), *options])


def _require(model_dir: Path, name: str, meaning: str) -> None:
    if not (model_dir / name).is_file():
        raise FileNotFoundError(
            f"{model_dir} has no {name}, {meaning}. Give --model the folder a recipe wrote, for example with "
            f"`accelerate launch recipes/sft_llava.py --output_dir {model_dir}`"
        )


def _served(args: argparse.Namespace, questions: QuestionSet) -> Responder:
    """The server of the command line; its key, if it wants one, is in the environment."""
    from data.conversations.rows import answer_text
    from eval.answerers.server import ServerResponder

    longest = max(len(answer_text(row["answer"])) for row in questions.test)  # no token is shorter than a character
    return ServerResponder(
        args.server, args.served_name, questions.source, os.environ.get("OPENAI_API_KEY"),
        prefix_caching_off=args.prefix_caching_off, max_new_tokens=max(48, longest),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line("eval.ablation", __doc__)
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="folder of a trained model, or its hub id"
    )
    parser.add_argument(
        "--conditions",
        nargs="+",
        choices=list(CONDITIONS),
        metavar="NAME",
        help=f"what to do to the ECG: {', '.join(CONDITIONS)} (default: {', '.join(FAST)})",
    )
    parser.add_argument("--full", action="store_true", help="all conditions, the dose-response and the ladder")
    parser.add_argument("--limit", type=int, metavar="N", help="ask only N questions, evenly over templates")
    parser.add_argument(
        "--text_only",
        type=Path,
        metavar="DIR",
        help="a model trained without ECGs, for reference (default: MODEL/text-only if it is there)",
    )
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
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: MODEL/ablation, or out/)")
    args = parser.parse_args(argv)
    if (args.server is None) != (args.served_name is None):
        parser.error("--server and --served_name go together")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = args.out or default_out(args.model)
    try:
        if args.rescore:
            report = rescore(out)
        else:
            questions = responder = None
            if args.server is not None:
                from elm.saved.run import SavedRun

                saved = SavedRun(args.model)
                _require(saved.folder, "training.json", "so what to ask is not known")
                questions = with_simulated(saved.questions)
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
