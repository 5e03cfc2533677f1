"""Asking: who answers the questions of an evaluation. The only file of `eval` that knows how the model is called."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from data.experiment.conditions import Altered, condition_named, zero_features

if TYPE_CHECKING:  # torch and scipy take seconds to import, which `--help` need not wait for
    import torch

    from data.conversations.rows import Message, QuestionSet, Row
    from data.ecg import EcgSource
    from data.measure import Measurements
    from elm.saved.run import SavedRun

logger = logging.getLogger(__name__)

LEVELS = frozenset({"row", "recording", "input", "embedding"})
MEAN_OF = 500  # training records: their mean is known to a twentieth of their spread


class Responder(Protocol):
    """Anything that answers questions: a model, a script, a server.

    Rows are given as the condition leaves them (`data.experiment.conditions.apply`); its name is given for what a row
    cannot show (zeroed inputs).
    """

    @property
    def levels(self) -> frozenset[str]:
        """Levels of the conditions it can be asked under (`data.experiment.conditions.Condition.level`)."""
        ...

    @property
    def scores(self) -> bool:
        """Whether it can `score`."""
        ...

    @property
    def name(self) -> str:
        """Tells apart responders that answer differently."""
        ...

    def prepare(self, rows: Sequence[Row], condition: str) -> None:
        """Called with all rows of a condition before the first of them is asked: what is best computed at once."""
        ...

    def ask(self, rows: Sequence[Row], condition: str) -> list[str]:
        """One answer per row, in the order of the rows."""
        ...

    def score(self, rows: Sequence[Row], condition: str, options: Sequence[Sequence[str]]) -> list[list[float]]:
        """Per row, natural log of p(option, end of turn | question) for each of its options: sums over their tokens."""
        ...


class ScriptedResponder:
    """Answers by functions: the known answerers an evaluation is tested on.

    Args:
        fn: `(row, condition) -> text`.
        score: `(row, condition, options) -> log-probabilities`.
        name: What stands for it in a journal.
    """

    levels = LEVELS

    def __init__(
        self,
        fn: Callable[[Row, str], str],
        score: Callable[[Row, str, Sequence[str]], list[float]] | None = None,
        name: str = "scripted",
    ) -> None:
        self.fn, self.score_fn, self.name = fn, score, name
        self.scores = score is not None

    def prepare(self, rows: Sequence[Row], condition: str) -> None:
        """There is nothing to prepare."""

    def ask(self, rows: Sequence[Row], condition: str) -> list[str]:
        """One answer per row."""
        return [self.fn(row, condition) for row in rows]

    def score(self, rows: Sequence[Row], condition: str, options: Sequence[Sequence[str]]) -> list[list[float]]:
        """Log-probabilities of every row's options.

        Raises:
            ValueError: It was made without a function for them.
        """
        if self.score_fn is None:
            raise ValueError(f"responder {self.name!r} gives no log-probabilities")
        return [self.score_fn(row, condition, texts) for row, texts in zip(rows, options, strict=True)]


class FeatureSource(Protocol):
    """Encoder outputs computed earlier (`elm.inputs.features.FeatureStore`)."""

    def fill(self, records: Iterable[str]) -> Any:
        """Compute what is missing."""
        ...

    def get(self, records: Sequence[str]) -> Mapping[str, Any]:
        """`ecg_features` `[N, T, D]` and `ecg_mask` `[N, T]` of these recordings."""
        ...


class MeasuredSource(Protocol):
    """Measured features (`elm.inputs.measured.MeasuredStore`)."""

    def fill(self, records: Iterable[str]) -> Any:
        """Measure what is missing."""
        ...

    def get(self, records: Sequence[str]) -> list[Measurements]:
        """Those of these recordings."""
        ...


class SplitStore:
    """Two stores as one: recordings as they are in one, altered ones (a `~` in their id) in the other."""

    def __init__(self, plain: FeatureSource, altered: FeatureSource) -> None:
        self.stores = {False: plain, True: altered}

    def fill(self, records: Iterable[str]) -> None:
        """Compute what is missing."""
        records = list(records)
        for altered, store in self.stores.items():
            store.fill(record for record in records if ("~" in record) == altered)

    def get(self, records: Sequence[str]) -> Mapping[str, Any]:
        """`ecg_features` `[N, T, D]` and `ecg_mask` `[N, T]` of these recordings."""
        import torch

        order: list[int] = []
        found: list[Mapping[str, Any]] = []
        for altered, store in self.stores.items():
            if here := [i for i, record in enumerate(records) if ("~" in record) == altered]:
                order += here
                found.append(store.get([records[i] for i in here]))
        back = np.argsort(order)
        return {name: torch.cat([part[name] for part in found])[back] for name in ("ecg_features", "ecg_mask")}


class ModelResponder:
    """Asks an ECG-language model, greedily, and scores answers by its log-probabilities.

    Args:
        model: An `ElmForConditionalGeneration`.
        processor: Its `ElmProcessor`.
        source: The recordings, as they are; the alterations of `data.experiment.conditions` are made of them.
        features: Outputs of the model's frozen encoder computed earlier, to be used in place of the recordings.
        zeros: The same for inputs set to zero. Without it, `zero` runs the encoder: a zeroed *output* of the encoder
            is another condition.
        measured: What is measured in the recordings, altered ones too, for a processor that puts it into the prompt.
            Under `zero` and `mean` it says that nothing could be measured: what the ECG says is taken away in numbers,
            too, and the format stays.
        training_records: Of whose embeddings the condition `mean` gives the mean: at most 500 of them, drawn by a fixed
            seed.
        batch_size: Questions, or answers to be scored, at once.
        max_new_tokens: Where an answer is cut.
    """

    levels = LEVELS
    scores = True

    def __init__(
        self,
        model: Any,
        processor: Any,
        source: EcgSource,
        features: FeatureSource | None = None,
        *,
        zeros: FeatureSource | None = None,
        measured: MeasuredSource | None = None,
        training_records: Iterable[str] = (),
        batch_size: int = 64,
        max_new_tokens: int = 48,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        self.model, self.processor, self.source = model, processor, Altered(source)
        self.features, self.zeros, self.measured = features, zeros, measured
        self.training_records = sorted(set(training_records))
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self._answer_ids: dict[str, list[int]] = {}
        self._names: dict[tuple[str, str], str] = {}

    @cached_property
    def name(self) -> str:
        """A hash of all that answers depend on beside the recordings: weights, preprocessing, chat template."""
        from elm.inputs.features import weights_hash

        processor = self.processor
        key = [weights_hash(self.model), processor.to_json_string(), processor.chat_template]
        key += [self.training_records, self.max_new_tokens]
        if self.measured is not None:
            from data.measure import version

            key.append(version())
        return sha256(json.dumps(key).encode()).hexdigest()[:16]

    def prepare(self, rows: Sequence[Row], condition: str) -> None:
        """Runs the encoder over all recordings that are not in the stores yet, and settles what `mean` is."""
        level = condition_named(condition).level
        store = self.zeros if level == "input" else self.features
        with self._evaluating():
            if store is not None:
                store.fill(record for row in rows for record in row["ecgs"])
            if self.measured is not None and level in ("row", "recording"):
                self.measured.fill(record for row in rows for record in row["ecgs"])
            if level == "embedding":
                _ = self._mean

    def inputs(self, rows: Sequence[Row], condition: str) -> list[str]:
        """The words of each row and what stands for its ECGs: rows with equal texts are the same to the model."""
        level = condition_named(condition).level
        records = [record for row in rows for record in row["ecgs"]]
        shown = iter(self._shown(records, level))
        lines = iter(self._lines(records, level) or [""] * len(records))
        return [json.dumps([question_messages(row), [[next(shown), next(lines)] for _ in row["ecgs"]]]) for row in rows]

    def _shown(self, records: Sequence[str], level: str) -> list[str]:
        """A name for what the projector is given for each record: a hash of the encoder's output, where it is kept."""
        kind = level if level in ("input", "embedding") else "row"
        if (self.zeros if kind == "input" else self.features) is None:
            return [f"{kind} {record}" for record in records]
        if new := [record for record in dict.fromkeys(records) if (kind, record) not in self._names]:
            encoded = self._encoded(new, zero=kind == "input")
            for record, features, mask in zip(new, encoded["ecg_features"], encoded["ecg_mask"], strict=True):
                content = b"mean" if kind == "embedding" else features.cpu().float().numpy().tobytes()
                name = blake2b(content + mask.cpu().numpy().tobytes(), digest_size=16)
                self._names[kind, record] = name.hexdigest()
        return [self._names[kind, record] for record in records]

    def ask(self, rows: Sequence[Row], condition: str) -> list[str]:
        """One answer per row, in the order of the rows."""
        answers: list[str] = []
        with self._evaluating():
            for start in range(0, len(rows), self.batch_size):
                inputs = self._inputs(rows[start : start + self.batch_size], condition)
                tokens = self.model.generate(**inputs, do_sample=False, max_new_tokens=self.max_new_tokens)
                new = tokens[:, inputs["input_ids"].shape[1] :]  # padding is on the left: all prompts end at one place
                answers += self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [answer.strip() for answer in answers]

    def score(self, rows: Sequence[Row], condition: str, options: Sequence[Sequence[str]]) -> list[list[float]]:
        """Per row, log p of each of its options: of its tokens as training renders them, end of turn included.

        Every question is read once; the options, each once, go on from what the model keeps of it.
        """
        if len(options) != len(rows):
            raise ValueError(f"{len(rows)} rows but the options of {len(options)}")
        scores: list[list[float]] = []
        with self._evaluating():
            for start in range(0, len(rows), self.batch_size):
                here = slice(start, start + self.batch_size)
                scores += self._score(self._inputs(rows[here], condition), options[here])
        return scores

    def _score(self, inputs: dict[str, Any], options: Sequence[Sequence[str]]) -> list[list[float]]:
        mask = inputs["attention_mask"]
        asked = self.model.model(**inputs, position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=True)
        last = asked.last_hidden_state[:, -1]  # [B, H]
        pairs = [(row, text) for row, texts in enumerate(options) for text in dict.fromkeys(texts)]
        found: dict[tuple[int, str], float] = {}
        for start in range(0, len(pairs), self.batch_size):
            chunk = pairs[start : start + self.batch_size]
            found.update(zip(chunk, self._go_on(asked.past_key_values, last, mask, chunk)))
        return [[found[row, text] for text in texts] for row, texts in enumerate(options)]

    def _go_on(
        self, cache: Any, last: torch.Tensor, mask: torch.Tensor, pairs: Sequence[tuple[int, str]]
    ) -> list[float]:
        """Log p of answers to questions the model has read.

        Args:
            cache: What it keeps of the questions; stays as it is.
            last: Hidden states of the questions' last tokens, `[B, H]`.
            mask: Attention mask of the questions, `[B, S]`.
            pairs: Row of the question, and answer.
        """
        import torch

        rows = torch.tensor([row for row, _ in pairs], device=mask.device)
        ids = [torch.tensor(self._ids(text), device=mask.device) for _, text in pairs]
        tokens = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)  # [N, L]
        said = torch.nn.utils.rnn.pad_sequence([torch.ones_like(i) for i in ids], batch_first=True).bool()
        hidden = last[rows][:, None]  # foretells the first token
        if tokens.shape[1] > 1:
            before = mask[rows]
            out = self.model.model(
                input_ids=tokens[:, :-1],
                attention_mask=torch.cat([before, said[:, :-1].to(before)], dim=1),
                position_ids=before.sum(1, keepdim=True) + torch.arange(tokens.shape[1] - 1, device=mask.device),
                past_key_values=_rows_of(cache, rows),
            )
            hidden = torch.cat([hidden, out.last_hidden_state], dim=1)
        logits = self.model.logits_of(hidden[said]).float()
        logp = torch.zeros(said.shape, dtype=torch.float64, device=said.device)
        logp[said] = -torch.nn.functional.cross_entropy(logits, tokens[said], reduction="none").double()
        summed: list[float] = logp.sum(1).tolist()
        return summed

    def _ids(self, text: str) -> list[int]:
        if text not in self._answer_ids:
            self._answer_ids[text] = self.processor.answer_ids(text)
        return self._answer_ids[text]

    def _inputs(self, rows: Sequence[Row], condition: str) -> dict[str, Any]:
        """What the model is given for these rows."""
        level = condition_named(condition).level
        settings: dict[str, Any] = {"add_generation_prompt": True, "padding_side": "left", "return_tensors": "pt"}
        settings["messages"] = [question_messages(row) for row in rows]
        records = [record for row in rows for record in row["ecgs"]]
        if (lines := self._lines(records, level)) is not None:
            settings["measured"] = lines
        if not records:
            return placed(self.model, self.processor(**settings))
        ecgs = self._encoded(records, zero=level == "input")
        inputs = self.processor(ecg_mask=ecgs["ecg_mask"].cpu(), **settings)
        if level == "embedding":
            ecgs = {"ecg_embeds": self._mean.expand(len(records), -1, -1), "ecg_mask": ecgs["ecg_mask"]}
        return placed(self.model, {**inputs, **ecgs})

    def _lines(self, records: Sequence[str], level: str) -> list[str] | None:
        """What is said to be measured in each record, where the model is told."""
        if self.measured is None:
            return None
        from data.measure import NOT_MEASURABLE

        if level in ("row", "recording"):
            lines: list[str] = self.processor.lines(self.measured.get(records))
            return lines
        return [NOT_MEASURABLE] * len(records)

    def _encoded(self, records: Sequence[str], zero: bool = False) -> Mapping[str, Any]:
        """`ecg_features` `[N, T, D]` and `ecg_mask` `[N, T]` of these recordings."""
        store = self.zeros if zero else self.features
        if store is not None:
            return store.get(records)
        encoder = self.model.model.encoder
        tensors = placed(self.model, self.processor.feature_extractor([self.source[record] for record in records]))
        if zero:
            tensors = zero_features(tensors, encoder.ecg_inputs, encoder.zero_token)
        encoded = encoder(**tensors)
        return {"ecg_features": encoded.last_hidden_state, "ecg_mask": encoded.mask}

    @cached_property
    def _mean(self) -> torch.Tensor:
        """Mean of the training records' projected tokens at each place, `[T', H]`, over those that are kept.

        A place that none of them fills has the mean of all places.
        """
        import torch

        if not self.training_records:
            raise ValueError("the condition 'mean' needs the training records: give ModelResponder training_records")
        drawn = np.random.default_rng(0).permutation(len(self.training_records))[:MEAN_OF]
        records = [self.training_records[i] for i in sorted(drawn)]
        if self.features is not None:
            self.features.fill(records)
        total, count = torch.zeros(1), torch.zeros(1)
        for start in range(0, len(records), self.batch_size):
            ecgs = placed(self.model, self._encoded(records[start : start + self.batch_size]))
            projected, kept = self.model.model.projector(ecgs["ecg_features"], ecgs["ecg_mask"])
            total = total + projected.double().cpu().masked_fill(~kept.cpu()[..., None], 0).sum(0)  # [T', H]
            count = count + kept.cpu().sum(0)[:, None]  # [T', 1]
        return torch.where(count > 0, total / count.clamp(min=1), total.sum(0) / count.sum())

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        import torch

        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.model.train(was_training)


def _rows_of(cache: Any, rows: torch.Tensor) -> Any:
    """A key-value cache of these rows, some perhaps several times. The given one stays as it is."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]  # selecting and growing put new tensors in them
    chosen.batch_select_indices(rows)
    return chosen


def placed(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs on the model's device, signals in its precision."""
    from transformers import BatchFeature

    return dict(BatchFeature(dict(inputs)).to(model.device, model.dtype))


def question_messages(row: Row) -> list[Message]:
    """The messages of a row up to the answer that is asked for."""
    messages = row["messages"]
    return messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages


def load_responder(saved: SavedRun, questions: QuestionSet, batch_size: int) -> ModelResponder:
    """A saved model, ready to be asked, on the GPU if there is one. Its frozen encoder runs once per recording.

    An answer may be as long as the longest right one, lest a right answer be cut and count as wrong.
    """
    import torch

    from data.conversations.rows import answer_text

    model, processor = saved.model, saved.processor
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    stores = saved.stores(questions)
    answers = {answer_text(row["answer"]) for row in questions.test}
    return ModelResponder(
        model,
        processor,
        questions.source,
        SplitStore(stores.features, stores.altered),
        zeros=stores.zeros,
        measured=saved.measured(questions),
        training_records=(record for row in questions.train for record in row["ecgs"]),
        batch_size=batch_size,
        max_new_tokens=max(48, *(len(processor.answer_ids(answer)) for answer in answers)),
    )
