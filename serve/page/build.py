"""The chat page in Gradio: which button does what.

Nothing leaves this machine: no analytics, no share link, no fonts or scripts from elsewhere, no history in the browser
(Gradio's run history would keep uploads and answers there). Uploaded files are read once and deleted at once.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it when it is imported

import gradio as gr

from data.paper import GAINS, LAYOUTS, SECONDS, SPEEDS, Paper
from data.readers.staging import Budget
from serve.page.desk import COMPARISONS, MOST_CHARACTERS, QUESTIONS, Desk
from serve.page.session import Condition, Session, can_ask_again, needs_words
from serve.page.view import DISCLAIMER, chat_html, facts_html, head_html, paper_html, warning_html

FILES_KEPT = 600  # s that a file stays at most which was sent but never read
MAX_FILE_SIZE = "5mb"
DRAWN_EVERY = 0.06  # s: a model may say more words than a browser can follow
HERE = Path(__file__).parent

Update = dict[Any, Any]


def build(desk: Desk, folder: Path | None = None) -> gr.Blocks:
    """The page.

    Args:
        desk: What visitors can do.
        folder: Of the model, where its audit may lie.
    """
    with gr.Blocks(
        title="Ask an ECG", analytics_enabled=False, fill_width=True, delete_cache=(FILES_KEPT, FILES_KEPT)
    ) as page:
        gr.HTML(warning_html(), elem_id="warning")
        gr.HTML(head_html(desk.engine.name, desk.engine.digest, folder))
        with gr.Row(elem_id="desk", equal_height=False):
            with gr.Column(elem_id="recordings", scale=3, min_width=300):
                with gr.Row(elem_id="places", equal_height=False):
                    places = [_Place(desk, number) for number in (0, 1)]
                with gr.Row(elem_id="tools", equal_height=True):
                    compare = gr.Checkbox(label="Compare two ECGs", container=False, elem_id="compare", min_width=150)
                    settings = [
                        gr.Dropdown(choices, label=label, value=value, min_width=70, elem_id=label.split()[0].lower())
                        for label, choices, value in (
                            ("Layout", list(LAYOUTS), "3x4"),
                            ("Speed (mm/s)", list(SPEEDS), 25),
                            ("Gain (mm/mV)", list(GAINS), 10),
                        )
                    ]
            with gr.Column(elem_id="talk", scale=2, min_width=300):
                chat = gr.HTML(chat_html(Session()), elem_id="chat", autoscroll=True)
                gr.HTML('<p class="ecg-quiet">Does the answer come from the ECG? Ask again:</p>')
                with gr.Row(elem_id="again"):
                    without = gr.Button("Without this ECG", size="sm", interactive=False, elem_id="without")
                    another = gr.Button("With another patient's ECG", size="sm", interactive=False, elem_id="another")
                with gr.Row(elem_id="ask-box", equal_height=True):
                    question = gr.Textbox(
                        placeholder="Ask about the ECG", label="Question", show_label=False, container=False, scale=6,
                        max_lines=4, max_length=MOST_CHARACTERS, min_width=160, elem_id="question",
                    )  # fmt: skip
                    ask = gr.Button("Ask", variant="primary", size="md", elem_id="ask", min_width=60)
                    stop = gr.Button("Stop", size="md", interactive=False, elem_id="stop", min_width=60)
                with gr.Row(elem_id="suggestions"):
                    suggested = [
                        gr.Button(words, size="sm", elem_classes="suggestion", min_width=60) for words in QUESTIONS
                    ]

        idle = [ask, *suggested]  # what begins an answer

        def rest(session: Session, note: str = "") -> Update:
            """The conversation, and the buttons as they are while nothing is said."""
            ready = gr.update(interactive=can_ask_again(session))
            return {
                chat: chat_html(session, note),
                without: ready,
                another: ready,
                stop: gr.update(interactive=False),
                **{button: gr.update(interactive=True) for button in idle},
            }

        def answering(session: Session, steps: Iterator[None]) -> Iterator[Update]:
            """The conversation while an answer is given: what changes is sent, and no more."""
            still = gr.update(interactive=False)
            busy = {without: still, another: still, stop: gr.update(interactive=True), **dict.fromkeys(idle, still)}
            note, shown = "", 0.0
            try:
                for _ in steps:
                    if time.monotonic() - shown > DRAWN_EVERY:
                        yield {chat: chat_html(session), **busy}
                        busy, shown = {}, time.monotonic()
            except ValueError as error:  # it was not even asked
                note = str(error)
            yield rest(session, note)

        def on_ask(words: str, request: gr.Request) -> Iterator[Update]:
            session = desk.sessions[request.session_hash]
            if problem := desk.problem(session, words):
                yield rest(session, problem)
                return
            yield {question: ""}
            yield from answering(session, desk.ask(session, words))

        def on_suggested(words: str, request: gr.Request) -> Iterator[Update]:
            session = desk.sessions[request.session_hash]
            yield from answering(session, desk.ask(session, words))

        def again(condition: Condition) -> Callable[..., Iterator[Update]]:
            def on_again(request: gr.Request) -> Iterator[Update]:
                session = desk.sessions[request.session_hash]
                yield from answering(session, desk.again(session, condition))

            return on_again

        def on_stop(request: gr.Request) -> None:
            desk.sessions[request.session_hash].stop.set()

        def on_compare(on: bool, request: gr.Request) -> Update:
            session = desk.sessions[request.session_hash]
            desk.compare(session, on)
            words = (COMPARISONS if on else QUESTIONS)[: len(suggested)]
            return {
                places[0].title: gr.update(visible=on),
                places[1].column: gr.update(visible=on),
                **{
                    button: gr.update(value=words[i], visible=True) if i < len(words) else gr.update(visible=False)
                    for i, button in enumerate(suggested)
                },
                without: gr.update(value="Without these ECGs" if on else "Without this ECG"),
                another: gr.update(value="With other patients' ECGs" if on else "With another patient's ECG"),
            }

        def on_leave(request: gr.Request) -> None:
            desk.sessions.close(request.session_hash)

        def after(request: gr.Request) -> Update:
            return rest(desk.sessions[request.session_hash])

        answers = [chat, without, another, stop, *idle]
        # Answers wait for the model by themselves; Gradio's default would let one visitor in at a time.
        said: dict[str, Any] = {"concurrency_limit": 16, "concurrency_id": "answers", "show_progress": "hidden"}
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        gr.on(
            [ask.click, question.submit], on_ask, question, [question, *answers],
            api_visibility="private", **said,
        )  # fmt: skip
        for button in suggested:
            button.click(on_suggested, button, answers, api_visibility="private", **said)
        without.click(again("none"), None, answers, api_visibility="private", **said)
        another.click(again("swap"), None, answers, api_visibility="private", **said)
        stop.click(on_stop, None, None, queue=False, **quiet)
        for place in places:
            place.wire(settings, after, answers)
        compare.change(
            on_compare, compare, [places[0].title, places[1].column, *suggested, without, another], **quiet
        ).then(after, None, answers, **quiet)  # fmt: skip
        page.unload(on_leave)
    return page


class _Place:
    """Where a recording lies: buttons to choose it, what is known of it, and its paper."""

    def __init__(self, desk: Desk, number: int) -> None:
        self.desk, self.number = desk, number
        with gr.Column(elem_id=f"place-{number + 1}", visible=number == 0, min_width=300) as self.column:
            self.title = gr.HTML(f"<h2>{('First', 'Second')[number]} ECG</h2>", visible=number == 1)
            with gr.Row(elem_classes="choose"):
                self.examples = [
                    gr.Button(f"Example {i + 1}", size="sm", min_width=70, elem_classes="example")
                    for i in range(len(desk.shelf.examples))
                ]
                self.upload = gr.UploadButton(
                    "Upload", size="sm", file_count="multiple", min_width=70, elem_classes="upload", variant="primary"
                )
            self.facts = gr.HTML(facts_html(None), elem_classes="facts")
            with gr.Group(visible=False, elem_classes="words") as self.form:
                gr.HTML("<p>This file holds bare numbers. What are they?</p>")
                with gr.Row():
                    # Not a number field: Gradio's holds a 0 from the start, which stays behind what is typed.
                    self.fs = gr.Textbox(label="Sampling rate (Hz)", max_length=12, min_width=100, elem_classes="rate")
                    self.units = gr.Dropdown(["mV", "uV", "V", "nV"], label="Units", value=None, min_width=100)
                self.leads = gr.Textbox(
                    label="Leads in order", placeholder="I II III aVR aVL aVF V1 V2 V3 V4 V5 V6 "
                    "(empty where a CSV names them)", max_length=400, elem_classes="leads",
                )  # fmt: skip
                self.read = gr.Button("Read it", size="sm", variant="primary", elem_classes="read")
            self.start = gr.Slider(0, 1, 0, step=1, label="Shown from second", visible=False)
            self.paper = gr.HTML(paper_html(None, Paper()), elem_classes="paper")

    def wire(self, settings: list[Any], after: Callable[..., Update], answers: list[Any]) -> None:
        """Connect the buttons; `after` shows the conversation, which other recordings begin anew."""
        look = [*settings, self.start]
        mine = [self.facts, self.form, self.start, self.paper]

        def shown(session: Session, layout: str, speed: int, gain: int) -> Update:
            recording = session.recordings[self.number]
            last = recording.ecg.duration - SECONDS if recording is not None else 0.0
            return {
                self.facts: facts_html(recording, session.notes[self.number]),
                self.form: gr.update(visible=needs_words(session, self.number)),
                self.start: gr.update(visible=last >= 1, maximum=max(1, int(last)), value=0),
                self.paper: paper_html(recording, Paper(layout, speed, gain)),
            }

        def example(chosen: int) -> Callable[..., Update]:
            def on_example(layout: str, speed: int, gain: int, request: gr.Request) -> Update:
                session = self.desk.sessions[request.session_hash]
                self.desk.example(session, self.number, chosen)
                return shown(session, layout, speed, gain)

            return on_example

        def on_upload(paths: list[str], layout: str, speed: int, gain: int, request: gr.Request) -> Update:
            session = self.desk.sessions[request.session_hash]
            self.desk.upload(session, self.number, taken(paths))
            # What was said of the file before need not hold for this one.
            return shown(session, layout, speed, gain) | {self.fs: "", self.units: None, self.leads: ""}

        def on_read(
            fs: str, units: str | None, leads: str, layout: str, speed: int, gain: int, request: gr.Request
        ) -> Update:
            session = self.desk.sessions[request.session_hash]
            self.desk.read(session, self.number, number(fs), units, leads)
            return shown(session, layout, speed, gain)

        def on_measure(request: gr.Request) -> str:
            session = self.desk.sessions[request.session_hash]
            recording = session.recordings[self.number]
            return facts_html(recording.measure() if recording is not None else None, session.notes[self.number])

        def on_look(layout: str, speed: int, gain: int, start: float, request: gr.Request) -> str:
            recording = self.desk.sessions[request.session_hash].recordings[self.number]
            return paper_html(recording, Paper(layout, speed, gain), start)

        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        reading = {**private, "concurrency_limit": 2, "concurrency_id": "uploads"}  # each takes a process of its own
        for i, button in enumerate(self.examples):
            self._then(button.click(example(i), settings, mine, **private), on_measure, after, answers)
        words = [self.fs, self.units, self.leads]
        sent = self.upload.upload(on_upload, [self.upload, *settings], [*mine, *words], **reading)
        self._then(sent, on_measure, after, answers)
        self._then(self.read.click(on_read, [*words, *settings], mine, **reading), on_measure, after, answers)
        for control in settings:
            control.change(on_look, look, self.paper, **private)
        self.start.release(on_look, look, self.paper, **private)

    def _then(
        self, event: Any, on_measure: Callable[..., str], after: Callable[..., Update], answers: list[Any]
    ) -> None:
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        event.then(after, None, answers, **private)
        event.then(on_measure, None, self.facts, concurrency_limit=4, concurrency_id="measuring", **private)


def number(words: str) -> float | None:
    """The number that was typed; None where nothing was, and not a number where it is none."""
    try:
        return float(words) if words.strip() else None
    except ValueError:
        return math.nan


def taken(paths: list[str]) -> list[tuple[str, bytes]]:
    """Names and contents of files that Gradio saved, which are then deleted. Too many bytes: one more is read."""
    files = []
    for path in map(Path, paths):
        with path.open("rb") as file:
            files.append((path.name, file.read(Budget().file_bytes + 1)))
        path.unlink(missing_ok=True)  # two visitors with the same file have one path
    return files


def launch(page: gr.Blocks, host: str, port: int, password: str | None) -> None:
    """Serve the page until it is closed.

    Raises:
        OSError: The port is taken.
    """
    page.queue(default_concurrency_limit=8, max_size=200, api_open=False)
    page.launch(
        server_name=host,
        server_port=port,
        auth=("ecg", password) if password else None,
        auth_message=f"{DISCLAIMER} The user name is ecg.",
        share=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        quiet=True,
        show_error=False,
        inbrowser=False,
        strict_cors=True,
        allowed_paths=[],
        max_file_size=MAX_FILE_SIZE,
        prevent_thread_lock=True,
        theme=gr.themes.Default(
            primary_hue="rose", neutral_hue="slate", font=("system-ui", "sans-serif"),
            font_mono=("ui-monospace", "monospace"),
        ).set(  # a shade darker than Gradio's: white letters on it are legible
            button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700",
            button_primary_border_color="*primary_600",
        ),
        css_paths=HERE / "page.css",
        head=f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>",
    )  # fmt: skip
