"""The conversation on the chat page in Gradio, with the buttons that ask."""

import time
from collections.abc import Callable, Iterator

import gradio as gr
from gradio.blocks import Block

from serve.page.desk import COMPARISONS, MOST_CHARACTERS, QUESTIONS, Desk
from serve.page.session import Condition, Session
from serve.page.view import LABELS, chat_html

DRAWN_EVERY = 0.06  # s: a model may say more words than a browser can follow
QUIET: dict[str, object] = {"api_visibility": "private", "show_progress": "hidden"}  # events that only this page sends

Update = dict[Block, object]


class Talk:
    """The conversation, what asks, and what asks again; `outputs` are the components that an answer changes."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.chat = gr.HTML(chat_html(Session()), elem_id="chat", autoscroll=True)
        gr.HTML('<p class="ecg-quiet">Does the answer come from the ECG? Ask again:</p>')
        with gr.Row(elem_id="again"):
            self.without = gr.Button(LABELS["none"][0], size="sm", interactive=False, elem_id="without")
            self.another = gr.Button(LABELS["swap"][0], size="sm", interactive=False, elem_id="another")
        with gr.Row(elem_id="ask-box", equal_height=True):
            size = {"scale": 6, "max_lines": 4, "max_length": MOST_CHARACTERS, "min_width": 160}
            words = {"placeholder": "Ask about the ECG", "label": "Question", "show_label": False}
            self.question = gr.Textbox(**words, **size, container=False, elem_id="question")
            self.ask = gr.Button("Ask", variant="primary", size="md", elem_id="ask", min_width=60)
            self.stop = gr.Button("Stop", size="md", interactive=False, elem_id="stop", min_width=60)
        with gr.Row(elem_id="suggestions"):
            look = {"size": "sm", "elem_classes": "suggestion", "min_width": 60}
            self.suggestions = [gr.Button(words, **look) for words in QUESTIONS]
        self._starters = [self.ask, *self.suggestions]  # buttons that begin an answer
        self.outputs = [self.chat, self.without, self.another, self.stop, *self._starters]

    def wire(self) -> None:
        """Connect the buttons."""
        # Answers wait for the model by themselves; Gradio's default would let one visitor in at a time.
        asking = {**QUIET, "concurrency_limit": 16, "concurrency_id": "answers"}
        typed = [self.ask.click, self.question.submit]
        gr.on(typed, self._on_ask, self.question, [self.question, *self.outputs], **asking)
        for button in self.suggestions:
            button.click(self._on_suggestion, button, self.outputs, **asking)
        self.without.click(self._on_again("none"), None, self.outputs, **asking)
        self.another.click(self._on_again("swap"), None, self.outputs, **asking)
        self.stop.click(self._on_stop, None, None, queue=False, **QUIET)

    def after(self, request: gr.Request) -> Update:
        """The conversation after something else on the page has changed."""
        return self._finished(self.desk.sessions[request.session_hash])

    def compared(self, on: bool) -> Update:
        """Buttons for questions about two recordings, or about one."""
        words = (COMPARISONS if on else QUESTIONS)[: len(self.suggestions)]
        updates: Update = {button: gr.update(visible=False) for button in self.suggestions}
        updates |= {button: gr.update(value=text, visible=True) for button, text in zip(self.suggestions, words)}
        updates[self.without] = gr.update(value=LABELS["none"][on])
        updates[self.another] = gr.update(value=LABELS["swap"][on])
        return updates

    def _finished(self, session: Session, note: str = "") -> Update:
        """The conversation, and the buttons as they are while no answer is given."""
        again = gr.update(interactive=session.can_ask_again())
        return {
            self.chat: chat_html(session, note),
            **dict.fromkeys([self.without, self.another], again),
            self.stop: gr.update(interactive=False),
            **dict.fromkeys(self._starters, gr.update(interactive=True)),
        }

    def _answering(self, session: Session, steps: Iterator[None]) -> Iterator[Update]:
        """The conversation while an answer is given: what changes is sent, and no more."""
        off = gr.update(interactive=False)
        buttons: Update = dict.fromkeys([self.without, self.another, *self._starters], off)
        buttons[self.stop] = gr.update(interactive=True)
        note, drawn = "", 0.0
        try:
            for _ in steps:
                if time.monotonic() - drawn > DRAWN_EVERY:
                    yield {self.chat: chat_html(session), **buttons}
                    buttons, drawn = {}, time.monotonic()
        except ValueError as error:  # the question was not even asked
            note = str(error)
        yield self._finished(session, note)

    def _on_ask(self, words: str, request: gr.Request) -> Iterator[Update]:
        if not self.desk.problem(self.desk.sessions[request.session_hash], words):
            yield {self.question: ""}
        yield from self._on_suggestion(words, request)

    def _on_suggestion(self, words: str, request: gr.Request) -> Iterator[Update]:
        session = self.desk.sessions[request.session_hash]
        yield from self._answering(session, self.desk.ask(session, words))

    def _on_again(self, condition: Condition) -> Callable[[gr.Request], Iterator[Update]]:
        def on_again(request: gr.Request) -> Iterator[Update]:
            session = self.desk.sessions[request.session_hash]
            yield from self._answering(session, self.desk.again(session, condition))

        return on_again

    def _on_stop(self, request: gr.Request) -> None:
        self.desk.sessions[request.session_hash].stop.set()
