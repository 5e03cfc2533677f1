"""How well recordings of held-out patients and their reports find each other: what measures MELP's pretraining."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import nn

from encoders.melp import losses
from encoders.melp.pretraining import MelpForPretraining
from encoders.melp.training import Batch, PairCollator, Pairs
from encoders.training import Column, Ratios, columns

Floats = NDArray[np.floating]
Pair = tuple[Column, Column]  # above and below the line, of each recording

# What is measured by batches, and by what it is divided.
_BY_BATCH = {"caption_nats": "tokens", "caption_nats_of_other_ecg": "tokens", "local_preferred": "local"}


@dataclass(frozen=True)
class Alignment:
    """Compares each recording with every report that is another patient's and says something else than its own."""

    pairs: Pairs  # held-out recordings and reports, without masked leads
    patients: Sequence[str]  # patient of each recording
    collator: PairCollator  # makes batches of them
    batch_size: int  # recordings at once

    def others(self) -> NDArray[np.bool_]:
        """Bool `[N, N]`: which other reports a recording is compared with."""
        people, texts = (
            np.unique(np.array(values), return_inverse=True)[1]
            for values in (self.patients, [self.pairs.texts[record] for record in self.pairs.records])
        )
        return (people[:, None] != people) & (texts[:, None] != texts)

    @torch.no_grad()
    def __call__(self, model: MelpForPretraining) -> Ratios:
        """Measure a model in eval mode, in float32: what docs/pretraining.md lists, for the losses that have a weight.

        What cannot be said, as all reports are alike, is left out.
        """
        others, count = self.others(), len(self.pairs)
        starts = range(0, count, self.batch_size)
        measured = columns(self._measured(model, np.arange(i, min(i + self.batch_size, count)), others) for i in starts)
        pairs = {name: (measured[name], measured[by]) for name, by in _BY_BATCH.items() if name in measured}
        if not others.any():
            pairs.pop("caption_nats_of_other_ecg", None)
        if model.config.contrast_weight:
            pairs |= _compared(measured["ecg"] @ measured["text"].T, others)
        return Ratios.of({name: pair for name, pair in pairs.items() if pair[1].any()})

    def _measured(self, model: MelpForPretraining, rows: NDArray[np.int64], others: NDArray[np.bool_]) -> Batch:
        """What a batch tells of each of its recordings, and its recordings and reports in the shared space."""
        batch = self._batch(rows, model)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        ecg = model.encoder(batch["ecg_values"])
        states, summary = model.text_states(ids, mask)
        part = {"ecg": F.normalize(ecg.rhythm, dim=-1), "text": F.normalize(model.proj_t(summary), dim=-1)}
        if model.config.caption_weight:
            # Another patient's recording, half-way through the list; without one, nothing is said of others.
            far = [_first(others[row], row + len(others) // 2) for row in rows]
            other = model.encoder(self._batch(far, model)["ecg_values"])
            part["caption_nats"], part["tokens"] = _nats(model, states, ecg.tokens, ids, mask)
            part["caption_nats_of_other_ecg"], _ = _nats(model, states, other.tokens, ids, mask)
        if model.config.local_weight:
            sentences, present = model.sentences(states, ids, mask)
            scores = losses.local_similarity(ecg.beats, sentences, present, model.config.single_sentence).cpu().numpy()
            wins, compared = _wins(scores, scores.diagonal(), others[np.ix_(rows, rows)])
            part["local_preferred"], part["local"] = torch.from_numpy(wins), torch.from_numpy(compared)
        return part

    def _batch(self, rows: Sequence[int] | NDArray[np.int64], model: nn.Module) -> Batch:
        batch = self.collator([self.pairs[int(row)] for row in rows])
        device = next(model.parameters()).device
        return {name: values.to(device) for name, values in batch.items()}


def _compared(similarity: Column, others: NDArray[np.bool_]) -> dict[str, Pair]:
    """What cosines `[N, N]` of all recordings and reports tell."""
    matching, count = similarity.diagonal(), others.sum(axis=1)
    mean = (similarity * others).sum(axis=1) / np.maximum(count, 1)
    ahead = ((similarity > matching[:, None]) & others).sum(axis=1)
    compared = (count > 0).astype(float)
    return {
        "own_similarity": (matching * compared, compared),
        "other_similarity": (mean * compared, compared),
        "alignment_gap": ((matching - mean) * compared, compared),
        "own_report_preferred": _wins(similarity, matching, others),
        "own_recording_preferred": (_wins(similarity.T, matching, others.T)[0], count),
        "own_report_in_ten": ((ahead < 10) * compared, compared),
        "by_chance_in_ten": (np.minimum(1, 10 / (count + 1)) * compared, compared),
    }


def _first(allowed: NDArray[np.bool_], start: int) -> int:
    """The first place from `start` on, cyclically, that is allowed; `start` itself where none is."""
    turned = np.roll(allowed, -(start % len(allowed)))
    return int((start + np.argmax(turned)) % len(allowed))


def _wins(scores: Floats, matching: Floats, others: NDArray[np.bool_]) -> Pair:
    """How many others in each row score less than its own, a tie being half, and how many there are."""
    less = (scores < matching[:, None]) + 0.5 * (scores == matching[:, None])
    return (less * others).sum(axis=1), others.sum(axis=1).astype(float)


def _nats(
    model: MelpForPretraining, states: torch.Tensor, tokens: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each report given caption tokens, summed over its tokens, and their number; both `[B]`."""
    logits, words = model.word_logits(states, tokens, mask)
    each = torch.zeros(words.shape, device=logits.device)
    each[words] = F.cross_entropy(logits.float(), ids[:, 1:][words], reduction="none")
    return each.sum(dim=1), words.sum(dim=1)
