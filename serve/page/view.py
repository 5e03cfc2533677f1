"""HTML of the chat page: how a `Session` looks.

Words from elsewhere (questions, answers, error messages, names of models) are text, whatever they look like: all of
them pass through `text`.
"""

import html
import logging
from pathlib import Path

from data.ecg import Ecg
from data.paper import SECONDS, Paper
from data.quality import signal_quality
from elm.inputs.window import SLACK
from elm.saved.audit import AuditSummary
from serve.page.recordings import Recording, window
from serve.page.session import Answer, Session, Turn, meaning

logger = logging.getLogger(__name__)

DISCLAIMER = "Research use only. Not a medical device. Not for diagnosis."
EMERGENCY = "Chest pain or feeling unwell? Call emergency services."
LABELS = {  # of one recording, of two
    "real": ("With this ECG", "With these ECGs"),
    "none": ("Without this ECG", "Without these ECGs"),
    "swap": ("With another patient's ECG", "With other patients' ECGs"),
}
_TONES = {"reads": "good", "partly": "fair"}
# Gradio makes a template of what it shows: braces and dollar signs of strangers must be none to it.
_TEMPLATE = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;", "\\": "&#92;", "@": "&#64;"})


def text(words: str) -> str:
    """Words as HTML that shows them and does nothing else."""
    return html.escape(words).translate(_TEMPLATE)


def _p(kind: str, words: str) -> str:
    return f'<p class="ecg-{kind}">{text(words)}</p>'


def _problem(words: str) -> str:
    return f'<p class="ecg-problem" role="alert">{text(words)}</p>' if words else ""


def warning_html() -> str:
    """The warning that always stands on top of the page."""
    return f'<p class="ecg-warning" role="note"><b>{DISCLAIMER}</b> {EMERGENCY}</p>'


def head_html(name: str, digest: str, folder: Path | None) -> str:
    """Title, model and verdict of its audit in `folder`; the digest of a training is empty where it is not known."""
    version = f' <code title="which training this is">{text(digest)}</code>' if digest else ""
    return (
        f'<header class="ecg-head"><div class="ecg-line"><h1>Ask an ECG</h1>'
        f'<p class="ecg-model"><b>{text(name)}</b>{version}</p></div>'
        f"{_audit(folder, digest)}</header>"
    )


def _audit(folder: Path | None, digest: str) -> str:
    """Does it read the ECG? The verdict of the audit beside the model, if it is of this training."""
    unknown = "Does it read the ECG? Not audited: nobody has tested whether its answers come from the ECG."
    try:
        audit = None if folder is None else AuditSummary.of_folder(folder)
    except ValueError as error:
        logger.warning("%s", error)
        audit = None
    if audit is None:
        return f'<p class="ecg-audit">{unknown}</p>'
    if audit.training != digest:
        return f'<p class="ecg-audit">{unknown} (The report beside it is of another training.)</p>'
    tone = _TONES.get(audit.verdict or "", "poor")
    verdict = f'<b class="ecg-{tone}">{text(audit.sentence)}</b> <span>{text(audit.detail)}</span>'
    return f'<p class="ecg-audit">Does it read the ECG? {verdict}</p>'


def facts_html(recording: Recording | None, note: str = "", start: float = 0.0, seconds: float = SECONDS) -> str:
    """Name, measurements and quality of a recording, or why there is none; a model reads `seconds` from `start` on."""
    if recording is None:
        return _problem(note) or _p("hint", "Choose an example, or upload an ECG.")
    ecg, name = recording.ecg, text(recording.name[:1].upper() + recording.name[1:])
    about = f"{ecg.duration:.3g} s, {ecg.fs:g} Hz, {len(ecg.leads)} leads"
    title = f'<p class="ecg-title"><b>{name}</b> <span>{about}</span></p>'
    _, span = window(ecg, seconds, start)
    shown, _ = window(ecg, max(seconds, SECONDS), start)
    quality = signal_quality(shown)
    refused = quality.grade == "unreadable"
    notes = [span, *_left_out(ecg), *([f"No model can read this recording: {quality}"] if refused else quality.notes)]
    return "".join([_problem(note), title, _measured(recording), *(_p("note", words) for words in notes if words)])


def _left_out(ecg: Ecg) -> list[str]:
    """Sentences about what was in an upload beside the recording."""
    sentences = []
    if count := len(ecg.meta.get("other_signals", ())):
        sentences.append(f"{count} of the file's signals {'is' if count == 1 else 'are'} no ECG lead, and left out.")
    if count := ecg.meta.get("files_left_out", 0):
        one = count == 1
        sentences.append(f"{count} file{' is' if one else 's are'} no part of the record, and left out.")
    return sentences


def _measured(recording: Recording) -> str:
    m = recording.measured
    if m is None:
        return _p("note ecg-quiet", f"Not measured: {recording.unmeasured}" if recording.unmeasured else "Measuring …")
    if m.quality == "failed":
        return _p("note", f"Rate, intervals and axis are not measurable{_why(recording)}.")
    intervals = [(name, value, " ms") for name, value in (("PR", m.pr), ("QRS", m.qrs), ("QT", m.qt), ("QTc", m.qtc))]
    values = [("Rate", m.rate, "/min"), *intervals, ("Axis", m.axis, "\N{DEGREE SIGN}")]
    items = "".join(
        f"<div><dt>{name}</dt><dd>{'<i>not measurable</i>' if value is None else f'{value:.0f}{unit}'}</dd></div>"
        for name, value, unit in values
    )
    poor = _p("note", f"Measured with doubt{_why(recording)}.") if m.quality == "poor" else ""
    seconds = recording.ecg.duration
    where = f"all {seconds:.3g} s of " if seconds > SECONDS + SLACK else ""
    by = _p("quiet", f"Measured in {where}the signal by an algorithm, not by the model.")
    return f'<dl class="ecg-facts">{items}</dl>{by}{poor}'


def _why(recording: Recording) -> str:
    """Why something could not be measured, or with doubt, beside what is wrong with the signal: that is said below."""
    reason = "" if recording.measured is None else recording.measured.reason
    for words in signal_quality(recording.ecg).notes:
        reason = reason.replace(words.rstrip("."), "")
    reasons = [words for words in reason.split("; ") if words]
    return f": {'; '.join(reasons)}" if reasons else ""


def paper_html(recording: Recording | None, paper: Paper, start: float = 0.0) -> str:
    """A recording on paper, with buttons to zoom."""
    if recording is None:
        return '<div class="ecg-empty" aria-hidden="true"></div>'
    start = min(start, max(0.0, recording.ecg.duration - SECONDS))
    try:
        drawing = paper.draw(recording.ecg, start)
    except ValueError as error:
        return _p("problem", str(error))
    buttons = "".join(
        f'<button type="button" data-zoom="{step}" aria-label="{label}" title="{label}">{sign}</button>'
        for step, label, sign in (("-1", "zoom out", "−"), ("0", "fit", "fit"), ("1", "zoom in", "+"))
    )
    return (
        f'<div class="ecg-frame"><div class="ecg-zoom"><span>Drag with the mouse to measure</span>{buttons}</div>'
        f'<div class="ecg-scroll" tabindex="0" role="region" aria-label="ECG, scrolls sideways" '
        f'style="--mm:{drawing.width}">{drawing.svg(interactive=True)}</div></div>'
    )


def chat_html(session: Session, note: str = "") -> str:
    """The conversation, with the last question's answers side by side."""
    turns = "".join(_turn(turn, session.compare) for turn in session.turns)
    if not turns:
        about = "both ECGs" if session.compare else "the ECG"
        turns = _p("hint", f"Ask anything about {about}, or choose a question below.")
    if count := session.forgotten():
        which = "The first question is" if count == 1 else f"The first {count} questions are"
        turns = _p("note", f"{which} no longer part of the conversation: it has become too long.") + turns
    answers = [answer for turn in session.turns for answer in (turn.answer, *turn.columns.values())]
    # Busy until all answers are finished: screen readers would begin anew with every word.
    busy = "true" if any(answer.state == "asking" for answer in answers) else "false"
    return f'<div class="ecg-talk" role="log" aria-live="polite" aria-busy="{busy}">{turns}{_problem(note)}</div>'


def _turn(turn: Turn, two: bool) -> str:
    parts = [_p("question", turn.question)]
    if "real" in turn.columns or not turn.columns:
        parts.append(f'<div class="ecg-answer">{_words(turn.answer)}</div>')
    if "real" in turn.columns:
        parts.append(_p("quiet", "Asked again without what was said before, which would tell what the ECG shows:"))
    if turn.columns:
        columns = {"real": turn.answer, **turn.columns}
        shown = "".join(_column(condition, columns[condition], two) for condition in LABELS if condition in columns)
        parts.append(f'<div class="ecg-columns">{shown}</div>')
    if "swap" in turn.columns and (about := turn.columns["swap"].about):
        parts.append(_p("quiet", f"The other ECG{'s' if two else ''}: {about}."))
    meanings = [(condition, meaning(turn, condition)) for condition in ("none", "swap")]
    if items := "".join(f'<li class="ecg-{condition}">{text(words)}</li>' for condition, words in meanings if words):
        parts.append(f'<ul class="ecg-means">{items}</ul>')
    return f'<section class="ecg-turn">{"".join(parts)}</section>'


def _column(condition: str, answer: Answer, two: bool) -> str:
    head = f"<h3>{LABELS[condition][two]}</h3>"
    return f'<div class="ecg-column ecg-{condition}">{head}<div class="ecg-answer">{_words(answer)}</div></div>'


def _words(answer: Answer) -> str:
    if answer.state == "failed":
        return f'<span class="ecg-problem" role="alert">{text(answer.words)}</span>'
    words = text(answer.words)
    if answer.state == "asking":
        return f'{words}<span class="ecg-cursor" aria-label="answering"></span>'
    if answer.state == "stopped":
        return f'{words} <span class="ecg-quiet">(stopped)</span>'
    return words or '<span class="ecg-quiet">(the model said nothing)</span>'
