"""MELP's pretraining on transformers' Trainer: pairs of recordings and reports, and what the model is measured by.

Wang, Xu and Yu, "From Token to Rhythm", ICML 2025, arXiv 2506.21803. Without a warm-up of the learning rate both towers
collapse within some tens of steps: all recordings look alike, and so do all reports. The alignment gap tells; it is
logged as the model trains, and the trainer warns where it stays near zero.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import BertConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from data.ecg import EcgSource
from data.support.cache import cache_key, computed_once
from data.support.pool import in_processes
from encoders.melp import losses
from encoders.melp.feature_extraction import MelpFeatureExtractor
from encoders.melp.pretraining import MelpForPretraining, mask_leads
from encoders.melp.text import tokenize_texts
from encoders.training import PretrainingTrainer, Ratios, generator_for

logger = logging.getLogger(__name__)

Batch = dict[str, torch.Tensor]

NEAR_ZERO = 0.02  # an alignment gap, which is at most 2
PATIENCE = 5  # logs in a row after which a gap near zero is warned about
CHUNK = 512  # recordings a process tries to read at once
# For a run that shows that it runs: narrow, with the input and the outputs of the other.
SMALL = {
    "conv_dim": [16] * 4, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
    "conv_pos_groups": 4, "shared_dim": 32, "caption_dim": 48, "pooler_heads": 4,
}  # fmt: skip
SMALL_TEXT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
SMALL_SIDE = {"text_hidden_dim": 32, "decoder_layers": 2, "decoder_heads": 4, "frozen_text_layers": 0}


# --- data -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs(Dataset[dict[str, Any]]):
    """Recordings with their reports: `ecg_values` float32 `[leads, samples]` and `text`.

    Number `i` is recording `i % len(records)`, so that `i + k * len(records)` is the same one with other leads masked.

    Attributes:
        records: Which recordings.
        source: Where they come from.
        extractor: Makes the model's input of them.
        texts: Report of each.
        lead_mask: Probability with which a lead is set to zero.
        seed: Of the leads.
    """

    records: list[str]
    source: EcgSource
    extractor: MelpFeatureExtractor
    texts: Mapping[str, str]
    lead_mask: float = 0.0
    seed: int = 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> dict[str, Any]:
        record = self.records[number % len(self.records)]
        values = torch.from_numpy(self.extractor.features(self.source[record])["ecg_values"])
        if self.lead_mask:
            values = mask_leads(values, self.lead_mask, generator_for(self.seed, number))
        return {"ecg_values": values, "text": self.texts[record]}


@dataclass(frozen=True)
class PairCollator:
    """Pairs to the inputs of `MelpForPretraining`.

    Attributes:
        tokenizer: With [BOS].
        length: `MelpPretrainingConfig.text_length`; longer reports are cut.
    """

    tokenizer: PreTrainedTokenizerBase
    length: int

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> Batch:
        """`ecg_values` `[B, leads, samples]`, `input_ids` and `attention_mask` `[B, L]`."""
        texts = tokenize_texts(self.tokenizer, [pair["text"] for pair in pairs], self.length)
        return {"ecg_values": torch.stack([pair["ecg_values"] for pair in pairs]), **texts}


def unreadable(
    records: Sequence[str],
    source: EcgSource,
    source_key: str,
    extractor: MelpFeatureExtractor,
    root: Path | str,
    jobs: int = 1,
) -> dict[str, str]:
    """Which recordings cannot be trained on, and why: unreadable, a lead or samples missing, all leads constant.

    Each is read once; what was found is kept in a file of `root`. In the middle of training it would end the run.

    Args:
        records: Which recordings.
        source: Where they come from.
        source_key: Tells sources apart that use the same record ids.
        extractor: Has to take them.
        root: Folder of all caches.
        jobs: Processes that share the work; 1 does it in this one.

    Raises:
        ValueError: None of them can be read.
    """
    path = Path(root) / f"unreadable-{cache_key(source_key, extractor.to_json_string(), list(records))}.json"
    refused = computed_once(path, lambda: _all_refused(records, source, extractor, jobs))
    if refused:
        first, why = next(iter(refused.items()))
        logger.warning("%d of %d recordings left out, such as %s: %s", len(refused), len(records), first, why)
        if len(refused) == len(set(records)):
            raise ValueError(f"none of {len(records):,} recordings can be trained on, the first {first!r}: {why}")
    return refused


def _all_refused(
    records: Sequence[str], source: EcgSource, extractor: MelpFeatureExtractor, jobs: int
) -> dict[str, str]:
    chunks = [list(records[i : i + CHUNK]) for i in range(0, len(records), CHUNK)]
    jobs, refused = min(jobs, len(chunks) // 8), dict[str, str]()
    with tqdm(total=len(records), desc="Trying to read ECGs", unit="ECG") as progress:
        results = in_processes(_refused, chunks, source, extractor, jobs=jobs, start="spawn")
        for chunk, result in zip(chunks, results):
            refused |= result
            progress.update(len(chunk))
    return refused


def _refused(records: Sequence[str], source: EcgSource, extractor: MelpFeatureExtractor) -> dict[str, str]:
    refused = {}
    for record in records:
        try:
            values = extractor.features(source[record])["ecg_values"]
        except (ValueError, OSError) as error:
            refused[record] = str(error)
        else:
            if not np.ptp(values, axis=1).any():
                refused[record] = "all leads are constant"
    return refused


def new_text_model(texts: Sequence[str], settings: Mapping[str, Any], folder: Path) -> None:
    """Write what a small BERT with random weights needs: its configuration, and a tokenizer made of the reports.

    The same texts and settings give the same bytes.

    Args:
        texts: Reports to train on.
        settings: Fields of `BertConfig`; `vocab_size` (1000) is the most the tokenizer has, unless the letters of the
            reports alone are more. Rarer words are spelt.
        folder: For `encoders.melp.files.new_pretraining` with `text_weights=False`.

    Raises:
        ValueError: A setting that `BertConfig` does not have.
    """
    if unknown := settings.keys() - BertConfig().to_dict().keys():
        raise ValueError(f"text_args: BERT has no setting {', '.join(sorted(unknown))}")
    sizes = {"vocab_size": 1000, **settings}
    normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts = Counter(
        word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    )  # fmt: skip
    # All letters, alone and inside of a word, then whole words: the library's own trainer breaks ties by chance. A full
    # stop ends a sentence: it must be a token where no report has one.
    letters = sorted({".", *(letter for word in counts for letter in word)})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    by_count = sorted(counts.keys() - set(letters), key=lambda word: (-counts[word], word))
    tokens += by_count[: max(0, sizes["vocab_size"] - len(tokens))]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pieces = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    pieces.normalizer, pieces.pre_tokenizer = normalizer, splitter
    pieces.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip
    config = BertConfig(**sizes | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id})
    tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)


# --- training ---------------------------------------------------------------------------------------------------------


class MelpTrainer(PretrainingTrainer):
    """The Trainer for MELP: logs each loss and the alignment gap of training batches, and warns of a collapse.

    Gradients of several batches can be accumulated, but only the recordings of one batch, of all processes, are
    contrasted with each other.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sums: dict[str, torch.Tensor] = {}
        self._batches = self._low = 0

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's own loss, where the stock method would look for labels."""
        outputs = model(**inputs)
        names = [name for name in ("contrast_loss", "caption_loss", "local_loss") if name in outputs]
        for name in (*names, *(["alignment_gap"] if "contrast_loss" in names else [])):
            self._sums[name] = self._sums.get(name, 0) + outputs[name].detach()
        self._batches += 1
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With the means since the last log; those of the first process, as far as they are its own recordings'."""
        if "loss" in logs and self._batches:
            means = {name: float(total) / self._batches for name, total in self._sums.items()}
            logs = logs | {name: round(mean, 5) for name, mean in means.items()}
            self._sums, self._batches = {}, 0
            if "alignment_gap" in means:
                self._watch(means["alignment_gap"])
        super().log(logs, start_time)

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """What `measure` says; warns where held-out recordings and reports have no gap."""
        measured = super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        gap = measured.get(f"{metric_key_prefix}_alignment_gap")
        if gap is not None and gap < NEAR_ZERO and self._is_warm:
            self._warn(gap, "on held-out patients")
        return measured

    @property
    def _is_warm(self) -> bool:
        return self.state.global_step > self.args.get_warmup_steps(self.state.max_steps)

    def _watch(self, gap: float) -> None:
        self._low = self._low + 1 if self._is_warm and gap < NEAR_ZERO else 0
        if self._low and self._low % PATIENCE == 0:
            self._warn(gap, f"and was below {NEAR_ZERO:g} in {self._low} logs")

    def _warn(self, gap: float, where: str) -> None:
        logger.warning(
            "step %d: the alignment gap is %.4f %s: a recording's own report is hardly nearer to it than others. "
            "Lower learning_rate, raise warmup_steps, or take larger batches",
            self.state.global_step, gap, where,
        )  # fmt: skip


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Alignment:
    """How well recordings of held-out patients and their reports find each other.

    A recording is compared with every report that is another patient's and says something else than its own.

    Attributes:
        pairs: Of held-out patients, without masked leads.
        patients: Of each recording.
        collator: Makes batches of them.
        batch_size: Recordings at once.
    """

    pairs: Pairs
    patients: Sequence[str]
    collator: PairCollator
    batch_size: int

    def others(self) -> NDArray[np.bool_]:
        """Bool `[N, N]`: which reports a recording is compared with, its own apart."""
        people, texts = (
            np.unique(np.array(values), return_inverse=True)[1]
            for values in (self.patients, [self.pairs.texts[record] for record in self.pairs.records])
        )
        return (people[:, None] != people) & (texts[:, None] != texts)

    @torch.no_grad()
    def __call__(self, model: MelpForPretraining) -> Ratios:
        """Measure a model in eval mode, in float32.

        Returns:
            With the contrast: `alignment_gap`, `own_similarity` less `other_similarity` (cosines); how often a report
            is less similar to a recording than its own (`own_report_preferred`, 0.5 by chance), and a recording to a
            report (`own_recording_preferred`); how often the own report is among the ten most similar
            (`own_report_in_ten`, beside `by_chance_in_ten`). With captions: `caption_nats` per token, and
            `caption_nats_of_other_ecg`, given the recording of another patient. With the local loss:
            `local_preferred`, as the first, by beats and sentences, within a batch. What cannot be said, as all reports
            are alike, is left out.
        """
        config, others = model.config, self.others()
        above: dict[str, Any] = {}
        below: dict[str, Any] = {}
        embeds: list[tuple[torch.Tensor, torch.Tensor]] = []
        columns: dict[str, list[torch.Tensor]] = {}
        for start in range(0, len(self.pairs), self.batch_size):
            rows = np.arange(start, min(start + self.batch_size, len(self.pairs)))
            batch = self._batch(rows, model)
            ids, mask = batch["input_ids"], batch["attention_mask"]
            ecg = model.encoder(batch["ecg_values"])
            states, summary = model.text_states(ids, mask)
            embeds.append((F.normalize(ecg.rhythm, dim=-1).cpu(), F.normalize(model.proj_t(summary), dim=-1).cpu()))
            found: Batch = {}
            if config.caption_weight:
                # Of another patient, half-way through the list; without one, nothing is said of others.
                far = [_first(others[row], row + len(others) // 2) for row in rows]
                other = model.encoder(self._batch(far, model)["ecg_values"])
                found["caption_nats"], found["tokens"] = _nats(model, states, ecg.tokens, ids, mask)
                found["caption_nats_of_other_ecg"], _ = _nats(model, states, other.tokens, ids, mask)
            if config.local_weight:
                sentences, there = model.sentences(states, ids, mask)
                scores = losses.local_similarity(ecg.beats, sentences, there, config.single_sentence).cpu().numpy()
                wins, compared = _wins(scores, scores.diagonal(), others[np.ix_(rows, rows)])
                found["local_preferred"], found["local"] = torch.from_numpy(wins), torch.from_numpy(compared)
            for name, values in found.items():
                columns.setdefault(name, []).append(values.cpu().double())
        told = {name: torch.cat(parts).numpy() for name, parts in columns.items()}
        for name, count in (("caption_nats", "tokens"), ("caption_nats_of_other_ecg", "tokens"),
                            ("local_preferred", "local")):  # fmt: skip
            if name in told:
                above[name], below[name] = told[name], told[count]
        if not others.any():
            above.pop("caption_nats_of_other_ecg", None)
        if config.contrast_weight:
            ecgs, texts = (torch.cat(parts).double().numpy() for parts in zip(*embeds, strict=True))
            self._compare(ecgs @ texts.T, others, above, below)
        kept = [name for name in above if below[name].any()]
        return Ratios({name: above[name] for name in kept}, {name: below[name] for name in kept}, {})

    def _batch(self, rows: Sequence[int] | NDArray[np.int64], model: nn.Module) -> Batch:
        batch = self.collator([self.pairs[int(row)] for row in rows])
        device = next(model.parameters()).device
        return {name: values.to(device) for name, values in batch.items()}

    @staticmethod
    def _compare(
        similarity: NDArray[np.float64], others: NDArray[np.bool_], above: dict[str, Any], below: dict[str, Any]
    ) -> None:
        """What cosines `[N, N]` of all recordings and reports tell."""
        own, count = similarity.diagonal(), others.sum(axis=1)
        mean = (similarity * others).sum(axis=1) / np.maximum(count, 1)
        ahead = ((similarity > own[:, None]) & others).sum(axis=1)
        compared = (count > 0).astype(float)
        by_ecg, _ = _wins(similarity, own, others)
        by_text, _ = _wins(similarity.T, own, others.T)
        for name, values, counts in (
            ("own_similarity", own * compared, compared),
            ("other_similarity", mean * compared, compared),
            ("alignment_gap", (own - mean) * compared, compared),
            ("own_report_preferred", by_ecg, count),
            ("own_recording_preferred", by_text, count),
            ("own_report_in_ten", (ahead < 10) * compared, compared),
            ("by_chance_in_ten", np.minimum(1, 10 / (count + 1)) * compared, compared),
        ):
            above[name], below[name] = values, counts


def _first(allowed: NDArray[np.bool_], start: int) -> int:
    """The first place from `start` on, cyclically, that is allowed; `start` itself where none is."""
    turned = np.roll(allowed, -(start % len(allowed)))
    return int((start + np.argmax(turned)) % len(allowed))


def _wins(
    scores: NDArray[Any], own: NDArray[Any], others: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How many others in each row score less than its own, a tie being half, and how many there are."""
    less = (scores < own[:, None]) + 0.5 * (scores == own[:, None])
    return (less * others).sum(axis=1), others.sum(axis=1).astype(float)


def _nats(
    model: MelpForPretraining, states: torch.Tensor, tokens: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each report given caption tokens, summed over its tokens, and their number; both `[B]`."""
    told = mask[:, 1:].bool()
    logits = model.text_decoder.logits(model.text_decoder(states[:, :-1], tokens)[told])
    each = torch.zeros(told.shape, device=logits.device)
    each[told] = F.cross_entropy(logits.float(), ids[:, 1:][told], reduction="none")
    return each.sum(dim=1), told.sum(dim=1)
