"""Does a model read the ECG, or does it guess from the question? Asks the same questions with other ECGs, and compares.

    python -m eval.ablation --model out/sft-llava
    python -m eval.ablation --model out/sft-llava --conditions real swap --limit 500 --out /tmp/quick

Every held-out question of the model's data set is asked under each condition of `data/conditions.py`: with its ECG
(`real`), with zeros, with no ECG, with another patient's (`swap`). Beside them stands the best that can be done without
any ECG: the most common answer to each question among the training rows.

Writes `report.md`, `ablation.png`, `predictions.jsonl` (one line per question and condition) and `report.json` into
`MODEL/ablation`. Research use only; not a medical device.
"""

from __future__ import annotations

import argparse
import logging
import shlex
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.conditions import CONDITIONS, apply, choose_donors, condition_named
from eval import report as reporting
from eval.answers import Responder, load_questions, load_responder
from eval.score import answer_set, is_correct, majority_by_question, parse, vocabulary
from eval.summary import summarise

if TYPE_CHECKING:
    from data.conversations.rows import QuestionSet, Row

logger = logging.getLogger(__name__)

DEFAULT_CONDITIONS = ("real", "zero", "none", "swap")


def run(
    model_dir: Path | str,
    *,
    conditions: Sequence[str] = DEFAULT_CONDITIONS,
    limit: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    out: Path | str | None = None,
    responder: Responder | None = None,
    questions: QuestionSet | None = None,
    draws: int = 2000,
) -> dict[str, Any]:
    """Ask, score, compare, write the report.

    Args:
        model_dir: Folder of the saved model. With `responder` and `questions` given, only its name is used.
        conditions: Names of `data.conditions.CONDITIONS`.
        limit: Ask only about so many questions, as evenly over templates as they allow. For a quick look: the headline
            is then another mixture of questions.
        batch_size: Questions asked at once.
        seed: Of donors, sample and resamples.
        out: Where to write; `model_dir/ablation` if not given.
        responder: Who answers, in place of the saved model.
        questions: What to ask, in place of what the model's folder records.
        draws: Resamples for the intervals.

    Returns:
        What `report.json` holds.

    Raises:
        FileNotFoundError: The folder is not a saved model.
        ValueError: Unknown conditions, or questions that cannot be asked; names the question.
    """
    model_dir, names = Path(model_dir), list(dict.fromkeys(conditions))
    for name in names:
        condition_named(name)
    out = Path(out) if out is not None else model_dir / "ablation"
    if responder is None:
        _require(model_dir, "config.json", "so it is not a saved model")
    if questions is None:
        _require(model_dir, "training.json", "so what it was trained on is not known")
        questions = load_questions(model_dir)

    # What can fail does so before hours of asking.
    rows = sample(questions.test, limit, seed)
    _check(questions.name, rows)
    majority = majority_by_question(questions.train)
    out.mkdir(parents=True, exist_ok=True)
    donors = None
    if any(CONDITIONS[name].needs_donors for name in names):
        # Chosen before sampling: a question has the same donors whatever the limit.
        chosen = choose_donors(questions.test, questions.patient_of, seed)
        given = {row["id"]: records for row, records in zip(questions.test, chosen)}
        donors = [given[row["id"]] for row in rows]
    terms = vocabulary([*questions.train, *questions.test])
    if responder is None:
        responder = load_responder(model_dir, questions, batch_size)
    lines = {name: _ask(responder, name, rows, donors, terms) for name in names}

    blind = np.array([majority(row) == answer_set(row["answer"]) for row in rows], dtype=bool)
    options = [] if names == list(DEFAULT_CONDITIONS) else ["--conditions", *names]
    options += [] if limit is None else ["--limit", str(limit)]
    options += [] if batch_size == 64 else ["--batch_size", str(batch_size)]
    options += [] if out == model_dir / "ablation" else ["--out", str(out)]
    report = {
        "model": str(model_dir),
        "dataset": questions.name,
        "command": shlex.join(
            ["python", "-m", "eval.ablation", "--model", str(model_dir), "--seed", str(seed), *options]
        ),
        "seed": seed,
        "draws": draws,
        "limit": limit,
        "available": len(questions.test),
        "notes": list(questions.notes),
        **summarise(rows, lines, blind, draws, seed),
    }
    written = reporting.write(out, report, [line for name in names for line in lines[name]])
    logger.info("wrote %s", ", ".join(map(str, written)))
    return report


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


def _ask(
    responder: Responder, condition: str, rows: Sequence[Row], donors: list[list[str]] | None, terms: frozenset[str]
) -> list[dict[str, Any]]:
    """Ask under one condition; the lines of predictions.jsonl."""
    predictions = responder.ask(apply(condition, rows, donors), condition)
    if len(predictions) != len(rows):
        raise ValueError(f"condition {condition!r}: {len(rows)} questions asked but {len(predictions)} answers given")
    shown = donors if donors is not None and CONDITIONS[condition].needs_donors else [[] for _ in rows]
    lines = []
    for row, given, prediction in zip(rows, shown, predictions):
        parsed = parse(prediction, terms)
        lines.append(
            {
                "id": row["id"],
                "condition": condition,
                "prediction": prediction,
                "answer": row["answer"],
                "question": row["question"],
                "question_type": row["question_type"],
                "template_id": row["template_id"],
                "attribute": row["attribute"],
                "patient_ids": row["patient_ids"],
                "ecgs": row["ecgs"],
                "donors": given,
                "control": row["control"],
                "correct": is_correct(prediction, row["answer"]),
                "parsed": None if parsed is None else sorted(parsed),
            }
        )
    return lines


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
        default=list(DEFAULT_CONDITIONS),
        help="what to do to the ECG (default: all)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="ask only N questions, evenly over templates")
    parser.add_argument("--batch_size", type=int, default=64, metavar="N", help="questions at once (default: 64)")
    parser.add_argument("--seed", type=int, default=0, help="of donors, sample and resamples (default: 0)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: MODEL/ablation)")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        report = run(
            args.model,
            conditions=args.conditions,
            limit=args.limit,
            batch_size=args.batch_size,
            seed=args.seed,
            out=args.out,
        )
    except FileNotFoundError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"\n{reporting.table(report)}\n\n{reporting.finding(report)}\n")
    print(f"Report, picture and predictions: {args.out or args.model / 'ablation'}")


if __name__ == "__main__":
    main()
