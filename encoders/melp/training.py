"""MELP's pretraining on transformers' Trainer: pairs of recordings and reports, a text model made of them, the trainer.

Wang, Xu and Yu, "From Token to Rhythm", ICML 2025, arXiv 2506.21803. Without a warm-up of the learning rate both towers
collapse within some tens of steps: all recordings look alike, and so do all reports. The alignment gap tells; it is
logged as the model trains, and the trainer warns where it stays near zero.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import BertConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import ModelOutput

from data.ecg import EcgSource
from data.support.cache import cache_key, computed_once
from data.support.parallel import in_processes
from encoders.melp.feature_extraction import MelpFeatureExtractor
from encoders.melp.pretraining import mask_leads
from encoders.melp.text import tokenize_texts
from encoders.training import PretrainingTrainer, generator_for, report_refused

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


class Pair(TypedDict):
    """A recording float32 `[leads, samples]` and its report."""

    ecg_values: torch.Tensor
    text: str


@dataclass(frozen=True)
class Pairs(Dataset[Pair]):
    """Recordings with their reports.

    Number `i` is recording `i % len(records)`, so that `i + k * len(records)` is the same one with other leads masked.
    """

    records: list[str]  # which recordings of `source`
    source: EcgSource
    extractor: MelpFeatureExtractor  # makes the model's input of them
    texts: Mapping[str, str]  # report of each
    lead_mask: float = 0.0  # probability with which a lead is set to zero; `seed` says which
    seed: int = 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> Pair:
        record = self.records[number % len(self.records)]
        values = torch.from_numpy(self.extractor.features(self.source[record])["ecg_values"])
        if self.lead_mask:
            values = mask_leads(values, self.lead_mask, generator_for(self.seed, number))
        return {"ecg_values": values, "text": self.texts[record]}


@dataclass(frozen=True)
class PairCollator:
    """Pairs to the inputs of `MelpForPretraining`."""

    tokenizer: PreTrainedTokenizerBase  # with [BOS]
    length: int  # `MelpPretrainingConfig.text_length`; longer reports are cut

    def __call__(self, pairs: Sequence[Pair]) -> Batch:
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

    In the middle of training one would end the run. Each is read once, by one of `jobs` processes, and the result kept
    in a file of `root`, the folder of all caches; `source_key` tells sources apart that use the same record ids.

    Raises:
        ValueError: None of them can be read.
    """
    path = Path(root) / f"unreadable-{cache_key(source_key, extractor.to_json_string(), list(records))}.json"
    refused = computed_once(path, lambda: _all_refused(records, source, extractor, jobs))
    report_refused(refused, records)
    if refused and len(refused) == len(set(records)):
        first, why = next(iter(refused.items()))
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

    The same texts and settings, fields of `BertConfig`, give the same bytes. `vocab_size` (1000) is the most that the
    tokenizer has, unless the letters of the reports alone are more; rarer words are spelt. The folder is for
    `encoders.melp.files.new_pretraining` with `text_weights=False`.

    Raises:
        ValueError: A setting that `BertConfig` does not have.
    """
    if unknown := settings.keys() - BertConfig().to_dict().keys():
        raise ValueError(f"text_args: BERT has no setting {', '.join(sorted(unknown))}")
    sizes = {"vocab_size": 1000, **settings}
    normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    splitter = pre_tokenizers.BertPreTokenizer()
    split = (splitter.pre_tokenize_str(normalizer.normalize_str(text)) for text in texts)
    counts = Counter(word for words in split for word, _ in words)
    # All letters, alone and inside of a word, then whole words: the library's own trainer breaks ties by chance. A full
    # stop ends a sentence: it must be a token where no report has one.
    letters = sorted({".", *(letter for word in counts for letter in word)})
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    tokens = [*special.values(), *letters, *(f"##{letter}" for letter in letters)]
    by_count = sorted(counts.keys() - set(letters), key=lambda word: (-counts[word], word))
    tokens += by_count[: max(0, sizes["vocab_size"] - len(tokens))]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pieces = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    pieces.normalizer, pieces.pre_tokenizer = normalizer, splitter
    pieces.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, **special)
    config = BertConfig(**sizes | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id})
    tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)


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
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: object = None
    ) -> torch.Tensor | tuple[torch.Tensor, ModelOutput]:
        """The model's own loss, where the stock method would look for labels."""
        outputs = model(**inputs)
        names = [name for name in ("contrast_loss", "caption_loss", "local_loss") if name in outputs]
        for name in (*names, *(["alignment_gap"] if "contrast_loss" in names else [])):
            self._sums[name] = self._sums.get(name, 0) + outputs[name].detach()
        self._batches += 1
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means since the last log; those of the first process, as far as they are its own recordings'."""
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
