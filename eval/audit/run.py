"""The audit from question to report: ask, score, judge, write."""

import dataclasses
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.conversations.rows import QuestionSet, answer_text
from data.experiment.conditions import condition_named
from data.support.files import read_json, require_writable, written_whole
from elm.saved import card
from elm.saved.run import SavedRun
from eval.answerers.base import Responder
from eval.answerers.memory import remembering
from eval.answerers.model import ModelResponder, load_responder
from eval.answerers.server import ServerResponder
from eval.audit import super_classes
from eval.audit.examples import examples
from eval.audit.journal import Journal
from eval.audit.ladder import LadderSettings, ladder
from eval.audit.plan import Plan, check, choose_conditions, sample, with_simulated
from eval.audit.settings import AuditSettings
from eval.report import write as reporting
from eval.report.strips import Example
from eval.scoring.likelihood import margin_of
from eval.scoring.lines import Key, Line, by_condition, read, scored
from eval.scoring.numbers import measure
from eval.scoring.results import TEXT_ONLY, About, Ladder, Report, SuperClasses, Unscored

logger = logging.getLogger(__name__)

REPORT_CONDITIONS = ("real", "swap", "none")  # under which reports are asked for


def run(settings: AuditSettings, *, responder: Responder | None = None, questions: QuestionSet | None = None) -> Report:
    """Ask, score, judge, write the report.

    With `rescore`, only the answers of the last audit are scored again. A responder answers in place of the saved
    model; questions are asked in place of those the model's folder records. With both, only its name is used.

    Raises:
        FileNotFoundError: A folder is not a saved model.
        OSError: The folder of the report or of the caches cannot be written; names it.
        ValueError: Unknown conditions, conditions the responder cannot be asked under, or questions that cannot be
            asked; names the question.
    """
    if settings.rescore:
        return rescore(settings.folder)
    for name in settings.conditions or ():
        condition_named(name)
    settings = _with_text_only(settings)
    saved = _saved(settings.model, settings)
    named_only = responder is not None and questions is not None and not settings.model.is_dir()
    if responder is None and settings.server is None:
        _require(saved.folder, "config.json", "so it is not a saved model")
    if questions is None:
        _require(saved.folder, "training.json", "so what it was trained on is not known")

    # What can fail does so before hours of asking.
    require_writable(settings.folder, "--out")
    if settings.cache_dir is not None:
        require_writable(settings.cache_dir, "--cache_dir")
    questions = with_simulated(saved.questions) if questions is None else questions
    if settings.model.is_dir():
        questions = saved.fitting(questions)
    rows = sample(questions.test, settings.limit, settings.seed)
    check(questions.name, rows)
    plan = Plan(questions, rows, Key.of(questions), settings.seed)
    if responder is None and settings.server is not None:
        responder = _served(settings, questions)
    elif responder is None:
        responder = load_responder(saved, questions, settings.batch_size)
    names, notes = choose_conditions(settings.conditions, settings.full, responder, plan)
    split = None
    if settings.limit is None and responder.scores:
        cache = saved.arguments.cache_dir if settings.model.is_dir() and saved.digest else None
        split, more = super_classes.split_for_audit(questions, cache)
        notes += more

    lines = _answers(plan, responder, names, settings)
    if settings.full and questions.test_reports:
        plan_of_reports = dataclasses.replace(plan, rows=questions.test_reports, reports=True)
        lines += _answers(plan_of_reports, responder, REPORT_CONDITIONS, settings)
    if settings.text_only is not None:
        blind = load_responder(_saved(settings.text_only, settings), questions, settings.batch_size)
        lines += _answers(plan, blind, ["none"], settings, TEXT_ONLY)
    about = About(
        model=str(settings.model),
        # So that no other model passes for audited.
        training=None if named_only else saved.digest or None,
        dataset=questions.name,
        command=settings.command,
        seed=settings.seed,
        draws=settings.draws,
        limit=settings.limit,
        available=len(questions.test),
        text_only=None if settings.text_only is None else str(settings.text_only),
        notes=[*questions.notes, *notes],
        vocabulary=sorted(plan.key.vocabulary),
    )
    report = dataclasses.replace(
        measure(by_condition(lines), about),
        ladder=_ladder(responder, questions, lines, settings) if settings.full else None,
        super_classes=None if split is None else _super_classes(responder, split, settings),
    )
    _write(settings.folder, report, lines, examples(questions, lines, settings.seed))
    return report


def rescore(out: Path | str) -> Report:
    """Score the answers in a report's folder again and write the report anew, without a model.

    Raises:
        FileNotFoundError: It holds no report.
        OSError: It cannot be written.
        ValueError: A file of it is damaged; names it, and of predictions.jsonl the line.
    """
    out = Path(out)
    for name in ("predictions.jsonl", "examples.json", "report.json"):
        if not (out / name).is_file():
            raise FileNotFoundError(f"{out} has no {name}: run the audit itself first, without --rescore")
    require_writable(out, "--out")
    saved, pairs = (read_json(out / name) for name in ("report.json", "examples.json"))
    try:
        before, shown = Unscored.from_json(saved), [Example.from_json(example) for example in pairs]
    except (KeyError, TypeError, ValueError) as error:
        what = f"report.json or examples.json in {out} is not an audit's ({error})"
        raise ValueError(f"{what}: run the audit without --rescore") from error
    vocabulary = frozenset(before.about.vocabulary)
    lines = [scored(line, vocabulary) for line in read(out / "predictions.jsonl")]
    scores = measure(by_condition(lines), before.about)
    report = dataclasses.replace(scores, ladder=before.ladder, super_classes=before.super_classes)
    _write(out, report, lines, shown)
    return report


def _saved(model: Path, settings: AuditSettings) -> SavedRun:
    return SavedRun(model, settings.cache_dir, settings.folder / "cache")


def _with_text_only(settings: AuditSettings) -> AuditSettings:
    """The settings with the model without ECGs that lies in the model's folder, unless another one is named."""
    beside = settings.model / TEXT_ONLY
    if settings.text_only is not None:
        _require(settings.text_only, "config.json", "so it is not a saved model")
    elif (beside / "config.json").is_file():
        return dataclasses.replace(settings, text_only=beside)
    return settings


def _answers(
    plan: Plan, responder: Responder, conditions: Iterable[str], settings: AuditSettings, label: str | None = None
) -> list[Line]:
    """Scored answers under some conditions; `label` stands in their lines in place of the condition."""
    size, lines, memory = settings.batch_size, [], remembering(responder)
    header = {"model": responder.name, "questions": plan.digest, "limit": settings.limit, "seed": settings.seed}
    with Journal(settings.folder, {**header, "batch_size": size}) as journal:
        for condition in conditions:
            lines += plan.ask(memory, condition, journal, size, label)
    return lines


def _ladder(
    responder: Responder, questions: QuestionSet, lines: Sequence[Line], settings: AuditSettings
) -> Ladder | None:
    """Where the signal is lost, between encoder and answer; None for a responder whose inside cannot be seen."""
    if not isinstance(responder, ModelResponder) or responder.features is None:
        return None
    margins = {
        line.id: margin
        for line in lines
        if line.condition == "real" and line.question_type == "single-verify" and not line.control
        if set(line.answer) <= {"yes", "no"} and (margin := margin_of(line)) is not None
    }
    rows = [row for row in questions.test if row["id"] in margins]
    return ladder(responder, questions, margins, rows, LadderSettings(settings.draws, settings.seed)) if rows else None


def _super_classes(responder: Responder, split: super_classes.Split, settings: AuditSettings) -> SuperClasses:
    """PTB-XL's super-classes beside a plain CNN."""
    ptbxl, train, test = split
    return super_classes.measure(responder, ptbxl, test, (ptbxl, train), draws=settings.draws, seed=settings.seed)


def _write(out: Path, report: Report, lines: Sequence[Line], shown: Sequence[Example]) -> None:
    with written_whole(out / "examples.json", "w") as file:
        json.dump([example.to_json() for example in shown], file)
    written = reporting.write(out, report, lines, shown)
    model_dir = Path(report.about.model)
    if out.resolve() == (model_dir / "ablation").resolve() and (model_dir / "config.json").is_file():
        card.write_card(model_dir)  # it repeats the verdict
    logger.info("wrote %s", ", ".join(map(str, written)))


def _require(model_dir: Path, name: str, meaning: str) -> None:
    if not (model_dir / name).is_file():
        raise FileNotFoundError(
            f"{model_dir} has no {name}, {meaning}. Give --model the folder a recipe wrote, for example with "
            f"`accelerate launch recipes/sft_llava.py --output_dir {model_dir}`"
        )


def _served(settings: AuditSettings, questions: QuestionSet) -> ServerResponder:
    """The server of the settings; its key, if it wants one, is in the environment."""
    longest = max(len(answer_text(row["answer"])) for row in questions.test)  # no token is shorter than a character
    return ServerResponder(
        settings.server or "",
        settings.served_name or "",
        questions.source,
        os.environ.get("OPENAI_API_KEY"),
        prefix_caching_off=settings.prefix_caching_off,
        max_new_tokens=max(48, longest),
    )
