"""Asking: who answers the questions of an evaluation. The only file of `eval` that knows how the model is called."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from data.conditions import condition_named, zero_features

if TYPE_CHECKING:  # torch and scipy take seconds to import, which `--help` need not wait for
    from data.conversations.rows import Message, QuestionSet, Row
    from data.ecg import EcgSource

logger = logging.getLogger(__name__)


class Responder(Protocol):
    """Anything that answers questions: a model, a script, a server."""

    def ask(self, rows: Sequence[Row], condition: str) -> list[str]:
        """One answer per row, in the order of the rows.

        Args:
            rows: Questions as the condition leaves them (`data.conditions.apply`).
            condition: Its name, for what a row cannot show: zeroed inputs.
        """
        ...


class ScriptedResponder:
    """Answers by a function `(row, condition) -> text`: the known answerers an evaluation is tested on."""

    def __init__(self, fn: Callable[[Row, str], str]) -> None:
        self.fn = fn

    def ask(self, rows: Sequence[Row], condition: str) -> list[str]:
        """One answer per row."""
        return [self.fn(row, condition) for row in rows]


class FeatureSource(Protocol):
    """Encoder outputs computed earlier (`elm.features.FeatureStore`)."""

    def get(self, record_ids: Sequence[str]) -> Mapping[str, Any]:
        """`ecg_features` `[N, T, D]` and `ecg_mask` `[N, T]` of these recordings."""
        ...


class ModelResponder:
    """Asks an ECG-language model, greedily, in batches of similar length.

    Args:
        model: An `ElmForConditionalGeneration`.
        processor: Its `ElmProcessor`.
        source: The recordings of the rows.
        features: Outputs of the model's frozen encoder computed earlier, to be used in place of the recordings.
        zeros: The same for inputs set to zero. Without it, `zero` runs the encoder: a zeroed *output* of the encoder
            is another condition.
        batch_size: Questions at once.
        max_new_tokens: Where an answer is cut; raised to the longest right answer where that is longer.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        source: EcgSource,
        features: FeatureSource | None = None,
        *,
        zeros: FeatureSource | None = None,
        batch_size: int = 64,
        max_new_tokens: int = 48,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        self.model, self.processor, self.source = model, processor, source
        self.features, self.zeros = features, zeros
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens

    def ask(self, rows: Sequence[Row], condition: str) -> list[str]:
        """One answer per row, in the order of the rows. Shows a progress bar."""
        import torch
        from tqdm import tqdm

        max_new_tokens = self._room_for(rows)
        # Longest first: what does not fit into memory fails at once. Equal under every condition that keeps the words,
        # so that a question has the same neighbours and padding with and without its own ECG.
        order = sorted(range(len(rows)), key=lambda i: -_length(rows[i]))
        answers = [""] * len(rows)
        was_training = self.model.training
        self.model.eval()
        try:
            with (
                torch.inference_mode(),
                tqdm(total=len(rows), desc=f"asking, {condition}", unit="question") as progress,
            ):
                for start in range(0, len(order), self.batch_size):
                    batch = order[start : start + self.batch_size]
                    for i, answer in zip(batch, self._generate([rows[i] for i in batch], condition, max_new_tokens)):
                        answers[i] = answer
                    progress.update(len(batch))
        finally:
            self.model.train(was_training)
        return answers

    def _generate(self, rows: Sequence[Row], condition: str, max_new_tokens: int) -> list[str]:
        inputs = self._inputs(rows, condition)
        tokens = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        new = tokens[:, inputs["input_ids"].shape[1] :]  # padding is on the left, so all prompts end at one place
        return [text.strip() for text in self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def _inputs(self, rows: Sequence[Row], condition: str) -> dict[str, Any]:
        """What `generate` is given for these rows."""
        zero = condition_named(condition).zeroes_inputs
        settings: dict[str, Any] = {"add_generation_prompt": True, "padding_side": "left", "return_tensors": "pt"}
        settings["messages"] = [question_messages(row) for row in rows]
        records = [record for row in rows for record in row["ecgs"]]
        if not records:
            return self._placed(self.processor(**settings))
        store = self.zeros if zero else self.features
        if store is not None:
            cached = store.get(records)
            return self._placed({**self.processor(ecg_mask=cached["ecg_mask"], **settings), **cached})
        ecgs = [[self.source[record] for record in row["ecgs"]] for row in rows]
        inputs = self._placed(self.processor(ecgs=ecgs, **settings))
        # `ecg_inputs` names alternatives too (an ECG comes as a signal or as features).
        return zero_features(inputs, [name for name in self.model.ecg_inputs if name in inputs]) if zero else inputs

    def _placed(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs on the model's device, signals in its precision."""
        from transformers import BatchFeature

        return dict(BatchFeature(dict(inputs)).to(self.model.device, self.model.dtype))

    def _room_for(self, rows: Sequence[Row]) -> int:
        """Enough tokens for the longest right answer and its end, lest a right answer be cut and scored as wrong."""
        from data.conversations.rows import answer_text

        texts = sorted({answer_text(row["answer"]) for row in rows})
        ids = self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        longest = max((len(tokens) for tokens in ids), default=0) + 2
        if longest > self.max_new_tokens:
            logger.info("max_new_tokens raised from %d to %d: the longest answer", self.max_new_tokens, longest)
        return max(longest, self.max_new_tokens)


def question_messages(row: Row) -> list[Message]:
    """The messages of a row up to the answer that is asked for."""
    messages = row["messages"]
    return messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages


def _length(row: Row) -> int:
    """Characters of the question: good enough to sort by, the ECGs of a row being of like length."""
    return sum(
        len(part["text"])
        for message in question_messages(row)
        for part in ([{"text": message["content"]}] if isinstance(message["content"], str) else message["content"])
    )


def load_questions(model_dir: Path) -> QuestionSet:
    """The questions a saved model was trained for, as its folder records them."""
    from elm.training import questions_of

    questions: QuestionSet = questions_of(model_dir)
    return questions


def load_responder(model_dir: Path, questions: QuestionSet, batch_size: int) -> ModelResponder:
    """A saved model, ready to be asked, on the GPU if there is one. Its frozen encoder runs once per recording."""
    import torch

    import elm
    from elm.training import stores_of

    model, processor = elm.load(model_dir)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    features, zeros = stores_of(model_dir, model, processor, questions)
    return ModelResponder(model, processor, questions.source, features, zeros=zeros, batch_size=batch_size)
