"""Asking a saved model. The only file of `eval` that knows how the model is called."""

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from hashlib import blake2b, sha256

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, Cache

from data.conversations.rows import QuestionSet, Row, answer_text
from data.ecg import EcgSource
from data.experiment.conditions import Altered, condition_named
from data.measure import NOT_MEASURABLE, version
from elm import ElmForConditionalGeneration, ElmProcessor
from elm.inputs.features import encode_ecgs, weights_hash
from elm.model.attention import positions_of
from elm.saved.run import SavedRun
from eval.answerers.base import LEVELS, FeatureSource, MeasuredSource, question_messages

MEAN_OF = 500  # training records: their mean is known to a twentieth of their spread

Tensors = Mapping[str, torch.Tensor]


class SplitStore:
    """Two stores as one: recordings as they are in one, altered ones (a `~` in their id) in the other."""

    def __init__(self, plain: FeatureSource, altered: FeatureSource) -> None:
        self.stores = {False: plain, True: altered}

    def fill(self, records: Iterable[str]) -> None:
        """Compute what is missing."""
        records = list(records)
        for altered, store in self.stores.items():
            store.fill(record for record in records if ("~" in record) == altered)

    def get(self, records: Sequence[str]) -> Tensors:
        """`ecg_features` `[N, T, D]` and `ecg_mask` `[N, T]` of these recordings."""
        order: list[int] = []
        parts: list[Tensors] = []
        for altered, store in self.stores.items():
            if places := [i for i, record in enumerate(records) if ("~" in record) == altered]:
                order += places
                parts.append(store.get([records[i] for i in places]))
        back = np.argsort(order)
        return {name: torch.cat([part[name] for part in parts])[back] for name in ("ecg_features", "ecg_mask")}


@dataclass(eq=False, repr=False)
class ModelResponder:
    """Asks an ECG-language model, greedily, and scores answers by its log-probabilities."""

    levels = LEVELS
    scores = True

    model: ElmForConditionalGeneration
    processor: ElmProcessor
    source: EcgSource  # the recordings, as they are; those of `data.experiment.conditions` are made of them
    features: FeatureSource | None = None  # outputs of the frozen encoder, to be used in place of the recordings
    _: KW_ONLY
    # The same for inputs set to zero. Without it, `zero` runs the encoder: a zeroed *output* is another condition.
    zeros: FeatureSource | None = None
    # What is measured in the recordings, altered ones too, for a processor that puts it into the prompt. Under `zero`
    # and `mean` it says that nothing could be measured: what the ECG says is taken away in numbers, too, and the format
    # stays.
    measured: MeasuredSource | None = None
    # Recordings whose mean embedding the condition `mean` gives: at most 500, by a fixed seed.
    training_records: Sequence[str] = ()
    batch_size: int = 64  # questions, or answers to be scored, at once
    max_new_tokens: int = 48  # where an answer is cut

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {self.batch_size}")
        self.source, self.training_records = Altered(self.source), sorted(set(self.training_records))
        self._answer_ids: dict[str, list[int]] = {}
        self._names: dict[tuple[str, str], str] = {}

    @cached_property
    def name(self) -> str:
        """A hash of all that answers depend on beside the recordings: weights, preprocessing, chat template."""
        processor = self.processor
        key = [weights_hash(self.model), processor.to_json_string(), processor.chat_template]
        key += [self.training_records, self.max_new_tokens]
        if self.measured is not None:
            key.append(version())
        return sha256(json.dumps(key).encode()).hexdigest()[:16]

    def prepare(self, rows: Sequence[Row], condition: str) -> None:
        """Runs the encoder over all recordings that are not in the stores yet, and settles what `mean` is."""
        level = condition_named(condition).level
        store = self.zeros if level == "input" else self.features
        with self.evaluating():
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
        """A name for what the projector is given for each record: a hash of the encoder's output, if stored."""
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
        with self.evaluating():
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
        with self.evaluating():
            for start in range(0, len(rows), self.batch_size):
                batch = slice(start, start + self.batch_size)
                scores += self._score(self._inputs(rows[batch], condition), options[batch])
        return scores

    def _score(self, inputs: Tensors, options: Sequence[Sequence[str]]) -> list[list[float]]:
        mask = inputs["attention_mask"]
        questions = self.model.model(**inputs, position_ids=positions_of(mask), use_cache=True)
        last = questions.last_hidden_state[:, -1]  # [B, H]
        pairs = [(row, text) for row, texts in enumerate(options) for text in dict.fromkeys(texts)]
        logp: dict[tuple[int, str], float] = {}
        for start in range(0, len(pairs), self.batch_size):
            chunk = pairs[start : start + self.batch_size]
            logp.update(zip(chunk, self._go_on(questions.past_key_values, last, mask, chunk)))
        return [[logp[row, text] for text in texts] for row, texts in enumerate(options)]

    def _go_on(
        self, cache: Cache, last: torch.Tensor, mask: torch.Tensor, pairs: Sequence[tuple[int, str]]
    ) -> list[float]:
        """Log p of answers (row of the question, text) to questions the model has read.

        The cache holds keys and values of the questions, and stays as it is; `last` are the hidden states of their last
        tokens `[B, H]`, `mask` is their attention mask `[B, S]`.
        """
        rows = torch.tensor([row for row, _ in pairs], device=mask.device)
        ids = [torch.tensor(self._ids(text), device=mask.device) for _, text in pairs]
        tokens = pad_sequence(ids, batch_first=True)  # [N, L]
        is_token = pad_sequence([torch.ones_like(i) for i in ids], batch_first=True).bool()
        hidden = last[rows][:, None]  # predicts the first token
        if tokens.shape[1] > 1:
            before = mask[rows]
            out = self.model.model(
                input_ids=tokens[:, :-1],
                attention_mask=torch.cat([before, is_token[:, :-1].to(before)], dim=1),
                position_ids=before.sum(1, keepdim=True) + torch.arange(tokens.shape[1] - 1, device=mask.device),
                past_key_values=_rows_of(cache, rows),
            )
            hidden = torch.cat([hidden, out.last_hidden_state], dim=1)
        logits = self.model.logits_of(hidden[is_token]).float()
        logp = torch.zeros(is_token.shape, dtype=torch.float64, device=is_token.device)
        logp[is_token] = -torch.nn.functional.cross_entropy(logits, tokens[is_token], reduction="none").double()
        summed: list[float] = logp.sum(1).tolist()
        return summed

    def _ids(self, text: str) -> list[int]:
        if text not in self._answer_ids:
            self._answer_ids[text] = self.processor.answer_ids(text)
        return self._answer_ids[text]

    def _inputs(self, rows: Sequence[Row], condition: str) -> dict[str, torch.Tensor]:
        """Inputs of the model for these rows."""
        level = condition_named(condition).level
        messages = [question_messages(row) for row in rows]
        records = [record for row in rows for record in row["ecgs"]]
        ecgs = self._encoded(records, zero=level == "input") if records else {}
        inputs = self.processor(
            messages,
            ecg_mask=ecgs["ecg_mask"].cpu() if records else None,
            measured=self._lines(records, level),
            add_generation_prompt=True,
            padding_side="left",
            return_tensors="pt",
        )
        if records and level == "embedding":
            ecgs = {"ecg_embeds": self._mean.expand(len(records), -1, -1), "ecg_mask": ecgs["ecg_mask"]}
        return placed(self.model, {**inputs, **ecgs})

    def _lines(self, records: Sequence[str], level: str) -> list[str] | None:
        """What is said to be measured in each record, where the model reads that."""
        if self.measured is None:
            return None
        if level in ("row", "recording"):
            return self.processor.lines(self.measured.get(records))
        return [NOT_MEASURABLE] * len(records)

    def _encoded(self, records: Sequence[str], zero: bool = False) -> Tensors:
        """`ecg_features` `[N, T, D]` and `ecg_mask` `[N, T]` of these recordings."""
        store = self.zeros if zero else self.features
        if store is not None:
            return store.get(records)
        ecgs = [self.source[record] for record in records]
        encoded = encode_ecgs(self.model.model.encoder, self.processor.feature_extractor, ecgs, zero)
        return {"ecg_features": encoded["last_hidden_state"], "ecg_mask": encoded["mask"]}

    @cached_property
    def _mean(self) -> torch.Tensor:
        """Mean of the training records' projected tokens at each place, `[T', H]`, over those that are kept.

        A place that none of them fills has the mean of all places.
        """
        if not self.training_records:
            raise ValueError("the condition 'mean' needs the training records: give ModelResponder training_records")
        drawn = np.random.default_rng(0).permutation(len(self.training_records))[:MEAN_OF]
        records = [self.training_records[i] for i in sorted(drawn)]
        if self.features is not None:
            self.features.fill(records)
        total, count = torch.zeros(1), torch.zeros(1)
        for start in range(0, len(records), self.batch_size):
            ecgs = placed(self.model, self._encoded(records[start : start + self.batch_size]))
            projected, mask = self.model.model.projector(ecgs["ecg_features"], ecgs["ecg_mask"])
            total = total + projected.double().cpu().masked_fill(~mask.cpu()[..., None], 0).sum(0)  # [T', H]
            count = count + mask.cpu().sum(0)[:, None]  # [T', 1]
        return torch.where(count > 0, total / count.clamp(min=1), total.sum(0) / count.sum())

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The model as it is asked, without gradients; afterwards it trains again if it did before."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.model.train(was_training)


def _rows_of(cache: Cache, rows: torch.Tensor) -> Cache:
    """A key-value cache of these rows, some perhaps several times; `cache` stays as it is."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]  # selecting and growing put new tensors in them
    chosen.batch_select_indices(rows)
    return chosen


def placed(model: ElmForConditionalGeneration, inputs: Tensors) -> dict[str, torch.Tensor]:
    """Inputs on the model's device, signals in its precision."""
    return dict(BatchFeature(dict(inputs)).to(model.device, model.dtype))


def load_responder(saved: SavedRun, questions: QuestionSet, batch_size: int) -> ModelResponder:
    """A saved model, ready to be asked, on the GPU if there is one. Its frozen encoder runs once per recording.

    An answer may be as long as the longest right one, lest a right answer be cut and count as wrong.
    """
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
        training_records=[record for row in questions.train for record in row["ecgs"]],
        batch_size=batch_size,
        max_new_tokens=max(48, *(len(processor.answer_ids(answer)) for answer in answers)),
    )
