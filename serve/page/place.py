"""The place of a recording on the chat page in Gradio: buttons to choose it, facts about it, and its paper."""

import math
from collections.abc import Callable
from pathlib import Path

import gradio as gr
from gradio.blocks import Block
from gradio.events import Dependency

from data.paper import SECONDS, Paper
from data.readers.budget import Budget
from elm.inputs.window import SLACK
from serve.page.desk import Desk
from serve.page.session import Session
from serve.page.talk import QUIET, Talk, Update
from serve.page.view import facts_html, paper_html


class Place:
    """One of the two places: number 0 or 1."""

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
                gr.HTML("<p>The file does not say it all. What are its numbers? Leave empty what it says.</p>")
                with gr.Row():
                    # Not a number field: Gradio's holds a 0 from the start, which stays behind what is typed.
                    self.fs = gr.Textbox(label="Sampling rate (Hz)", max_length=12, min_width=100, elem_classes="rate")
                    self.units = gr.Dropdown(["mV", "uV", "V", "nV"], label="Units", value=None, min_width=100)
                order = "I II III aVR aVL aVF V1 V2 V3 V4 V5 V6 (- for a signal that is no lead)"
                self.leads = gr.Textbox(label="Leads in order", placeholder=order, max_length=400, elem_classes="leads")
                self.read = gr.Button("Read it", size="sm", variant="primary", elem_classes="read")
            self.start = gr.Slider(0, 1, 0, step=1, label="Shown and asked about from second", visible=False)
            self.paper = gr.HTML(paper_html(None, Paper()), elem_classes="paper")

    def wire(self, settings: list[gr.Dropdown], talk: Talk) -> None:
        """Connect the buttons; `settings` are layout, speed and gain, and other recordings begin another `talk`."""
        outputs: list[Block] = [self.facts, self.form, self.start, self.paper]
        words = [self.fs, self.units, self.leads]
        reading = {**QUIET, "concurrency_limit": 2, "concurrency_id": "uploads"}  # each takes a process of its own
        for i, button in enumerate(self.examples):
            self._measure_after(button.click(self._on_example(i), settings, outputs, **QUIET), talk)
        sent = self.upload.upload(self._on_upload, [self.upload, *settings], [*outputs, *words], **reading)
        self._measure_after(sent, talk)
        self._measure_after(self.read.click(self._on_read, [*words, *settings], outputs, **reading), talk)
        for control in settings:
            control.change(self._on_look, settings, self.paper, **QUIET)
        moved = self.start.change(
            self._on_move, [self.start, *settings], [self.facts, self.paper], trigger_mode="always_last", **QUIET
        )
        moved.then(talk.after, None, talk.outputs, **QUIET)

    def _measure_after(self, event: Dependency, talk: Talk) -> None:
        event.then(talk.after, None, talk.outputs, **QUIET)
        event.then(self._on_measure, None, self.facts, concurrency_limit=4, concurrency_id="measuring", **QUIET)

    def _changed(self, session: Session, paper: Paper) -> Update:
        """Facts and paper of another recording, from its beginning."""
        recording = session.recordings[self.number]
        last = recording.ecg.duration - min(SECONDS, self.desk.seconds) if recording is not None else 0.0
        return {
            self.facts: self._facts(session),
            self.form: gr.update(visible=session.needs_words(self.number)),
            self.start: gr.update(visible=last > SLACK, maximum=max(1, math.ceil(last - SLACK)), value=0),
            self.paper: paper_html(recording, paper),
        }

    def _facts(self, session: Session) -> str:
        place = self.number
        return facts_html(session.recordings[place], session.notes[place], session.starts[place], self.desk.seconds)

    def _on_example(self, example: int) -> Callable[[str, int, int, gr.Request], Update]:
        def on_example(layout: str, speed: int, gain: int, request: gr.Request) -> Update:
            session = self.desk.sessions[request.session_hash]
            self.desk.example(session, self.number, example)
            return self._changed(session, Paper(layout, speed, gain))

        return on_example

    def _on_upload(self, paths: list[str], layout: str, speed: int, gain: int, request: gr.Request) -> Update:
        session = self.desk.sessions[request.session_hash]
        self.desk.upload(session, self.number, taken(paths))
        # The words about the file before need not hold for this one.
        return self._changed(session, Paper(layout, speed, gain)) | {self.fs: "", self.units: None, self.leads: ""}

    def _on_read(
        self, fs: str, units: str | None, leads: str, layout: str, speed: int, gain: int, request: gr.Request
    ) -> Update:
        session = self.desk.sessions[request.session_hash]
        self.desk.read(session, self.number, number(fs), units, leads)
        return self._changed(session, Paper(layout, speed, gain))

    def _on_measure(self, request: gr.Request) -> str:
        session = self.desk.sessions[request.session_hash]
        recording = session.recordings[self.number]
        if recording is not None:
            recording.measure()
        return self._facts(session)

    def _on_look(self, layout: str, speed: int, gain: int, request: gr.Request) -> str:
        session = self.desk.sessions[request.session_hash]
        return paper_html(session.recordings[self.number], Paper(layout, speed, gain), session.starts[self.number])

    def _on_move(self, start: float, layout: str, speed: int, gain: int, request: gr.Request) -> Update:
        session = self.desk.sessions[request.session_hash]
        self.desk.look(session, self.number, start)
        return {self.facts: self._facts(session), self.paper: self._on_look(layout, speed, gain, request)}


def number(words: str) -> float | None:
    """The number that was typed; None for no words, not a number (NaN) for other words."""
    try:
        return float(words) if words.strip() else None
    except ValueError:
        return math.nan


def taken(paths: list[str]) -> list[tuple[str, bytes]]:
    """Names and contents of files that Gradio saved, which are then deleted. Of too many bytes, one more is read."""
    files = []
    for path in map(Path, paths):
        with path.open("rb") as file:
            files.append((path.name, file.read(Budget().file_bytes + 1)))
        path.unlink(missing_ok=True)  # two visitors with the same file have one path
    return files
