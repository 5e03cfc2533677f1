"""A tiny language model and a tiny ECG encoder, made on the spot: the default job needs no download.

The language model is a Llama trained on text alone: it is given a training patient's report in words, where a recording
would stand, and answers questions about it or repeats it. It learns the language, and to answer from what it is given;
it has seen no ECG.

The encoder learns to predict from a training patient's ECG which words and word pairs the report of it holds; it never
sees a question or an answer. There are three: MELP's architecture at 100 Hz, HeartLang's, and a plain convolutional
network, which learns more from a few thousand real recordings.

Both are written to a cache folder under the hash of what made them, and are then loaded like any other model.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data.conversations.rows import QuestionSet, Row, dialogues
from data.ecg import Ecg
from data.support.cache import built_once, cache_key
from encoders.cnn import CnnConfig, CnnEncoder, varied
from encoders.heartlang import HeartLangConfig, HeartLangModel, QrsTokenizer
from encoders.hub import save_encoder
from encoders.melp import MelpConfig, MelpFeatureExtractor, MelpModel
from encoders.patch import PatchFeatureExtractor

logger = logging.getLogger(__name__)

VERSION = 1  # in cache keys: tests/test_versions.py says when to raise it
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<ecg>", "<user>", "<assistant>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<assistant>{{ message['content'] }}{{ eos_token }}"
    "{% else %}<user>{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

# Raising these raises the quality and the time of the default job.
LANGUAGE_STEPS, LANGUAGE_BATCH, TURNS = 480, 48, 2


def both(questions: QuestionSet, cache: Path, seed: int = 0, kind: str = "tiny") -> tuple[Path, Path]:
    """Folders of a tiny language model and a tiny encoder, each made on a core of its own."""
    text = dataclasses.replace(questions, source=_NoRecordings())  # another process gets the rows alone
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        llama = other.submit(language_model, text, cache, seed)
        ecg = encoder(questions, cache, seed, kind)
        return llama.result(), ecg


class _NoRecordings:
    """The source of a question set whose recordings nobody may ask for."""

    def __getitem__(self, record_id: str) -> Ecg:
        raise KeyError(f"a language model asked for the recording {record_id!r}")


def language_model(questions: QuestionSet, cache: Path, seed: int = 0, steps: int = LANGUAGE_STEPS) -> Path:
    """A folder with a tiny Llama and its tokenizer, trained on the text of the training split."""
    return _cached(cache, "tiny-llama", questions, (seed, steps), partial(_train_llama, questions, seed, steps))


def encoder(questions: QuestionSet, cache: Path, seed: int = 0, kind: str = "tiny", steps: int | None = None) -> Path:
    """A folder with a tiny encoder, trained on the reports of the training split.

    Args:
        questions: Whose reports and recordings.
        cache: Folder of what is computed once.
        seed: Of weights and batches.
        kind: A name in `ENCODERS`: `"tiny"` has MELP's architecture, `"tiny-heartlang"` HeartLang's, `"tiny-cnn"` is a
            plain convolutional network.
        steps: How long it learns, if not as long as its kind should.
    """
    reader = ENCODERS[kind]
    steps = reader.steps if steps is None else steps
    return _cached(
        cache, f"{kind}-encoder", questions, (seed, steps), partial(_train_encoder, questions, reader, seed, steps)
    )


def report_of(row: Row) -> str:
    """The report in a row of the align stage."""
    return str(row["messages"][-1]["content"][0]["text"])


def _cached(cache: Path, name: str, questions: QuestionSet, key: object, build: Callable[[Path], None]) -> Path:
    """`cache/name-hash`, built once. A build that is cut short leaves nothing under that name."""
    reports = [[row["ecgs"], report_of(row)] for row in questions.reports]
    made_from = [VERSION, questions.source_key, key, reports, len(questions.train)]
    return built_once(cache / f"{name}-{cache_key(*made_from)}", build)


# --- language model ---------------------------------------------------------------------------------------------------


def _texts(questions: QuestionSet, rng: np.random.Generator) -> Iterator[str]:
    """Conversations about reports, without end: in each, the report stands where a recording would."""
    reports = {row["ecgs"][0]: report_of(row) for row in questions.reports}
    rows = [row for row in questions.train if all(record in reports for record in row["ecgs"])]
    kinds: list[Sequence[Row]] = [questions.reports]
    for single in (True, False):
        some = [row for row in rows if (len(row["ecgs"]) == 1) == single]
        kinds += [dialogues(some, turns) for turns in (1, TURNS) if some]
    # Mostly short conversations about one recording: what a question refers to is learned fastest where little stands
    # between the two.
    shares = np.array([0.15, 0.45, 0.25, 0.1, 0.05])[: len(kinds)]
    while True:
        kind = kinds[rng.choice(len(kinds), p=shares / shares.sum())]
        row = kind[int(rng.integers(len(kind)))]
        text = "<bos>"
        for message in row["messages"]:
            said = "".join(part["text"] for part in message["content"])
            if message["role"] == "assistant":
                text += f"<assistant>{said}<eos>"
            else:
                shown = row["ecgs"] if text == "<bos>" else ()
                text += "<user>" + "".join(f"{reports[record]}\n" for record in shown) + said
        yield text


def train_tokenizer(texts: Sequence[str], vocab_size: int = 768) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template and an `<ecg>` token."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=SPECIAL, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        additional_special_tokens=["<ecg>", "<user>", "<assistant>"], chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def llama_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Sizes of the tiny Llama. Heads of 32 are the narrowest that vLLM serves on a CPU."""
    return LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=3,
        num_key_value_heads=3, max_position_embeddings=1024, tie_word_embeddings=True, initializer_range=0.08,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def _train_llama(questions: QuestionSet, seed: int, steps: int, folder: Path) -> None:
    rng = np.random.default_rng([seed, 1])
    texts = _texts(questions, rng)
    tokenizer = train_tokenizer([next(texts) for _ in range(3000)])
    torch.manual_seed(seed)
    model = LlamaForCausalLM(llama_config(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps + 1, pct_start=0.1)
    answer = tokenizer.convert_tokens_to_ids("<assistant>")
    pool: list[list[int]] = []
    with tqdm(range(steps), desc="Tiny Llama learns the language", unit="step", position=1) as progress:
        for step in progress:
            if not pool:  # batches of like length waste no time on padding
                ids = tokenizer([next(texts) for _ in range(LANGUAGE_BATCH * 16)], add_special_tokens=False)[
                    "input_ids"
                ]
                ids.sort(key=len)
                batches = [ids[i : i + LANGUAGE_BATCH] for i in range(0, len(ids), LANGUAGE_BATCH)]
                pool = [batches[i] for i in rng.permutation(len(batches))]
            batch = tokenizer.pad({"input_ids": pool.pop()}, return_tensors="pt")
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            # What is said matters; what is read is learned a little, too.
            logits = model(**batch).logits[:, :-1]
            losses = nn.functional.cross_entropy(
                logits.transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none"
            )
            kept = labels[:, 1:] != -100
            begun, ended = ((batch["input_ids"] == token).cumsum(dim=1) for token in (answer, tokenizer.eos_token_id))
            said = (begun > ended)[:, :-1] & kept
            loss = losses[said].mean() + 0.1 * losses[kept].mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                progress.set_postfix(answers=f"{losses[said].mean():.3f}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# --- encoder ----------------------------------------------------------------------------------------------------------


def melp_config() -> MelpConfig:
    """Sizes of the tiny MELP: 10 s at 100 Hz become 62 frames of 160 ms and 16 caption tokens."""
    return MelpConfig(
        sampling_rate=100, conv_dim=[32] * 4, hidden_size=96, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=192, conv_pos_kernel=15, conv_pos_groups=4, shared_dim=64, caption_dim=96, pooler_heads=4,
        n_queries_contrast=8, n_queries_caption=16, dropout=0.0, dropout_input=0.0, attention_dropout=0.0,
    )  # fmt: skip


def heartlang_config() -> HeartLangConfig:
    """Sizes of the tiny HeartLang: 10 s at 100 Hz become ten words of each lead, and those one token per lead.

    Faster than 60 beats per minute some beats have no words, evenly; how far beats are apart is in the others' width.
    """
    return HeartLangConfig(
        output="leads", max_words=120, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=16,
        intermediate_size=128, dropout=0.0, embedding_dropout=0.0, attend_padding=False, initializer_range=0.1,
    )  # fmt: skip


def word_targets(reports: Sequence[str]) -> tuple[torch.Tensor, list[str]]:
    """Which words and pairs of neighbouring words each report holds: float `[reports, words]`, and the words.

    Those that nearly all or nearly no reports hold are left out.
    """
    held = []
    for text in reports:
        grams: set[str] = set()
        for sentence in text.lower().replace(",", " ").split("."):
            words = sentence.split()
            grams.update(words, (" ".join(pair) for pair in zip(words, words[1:], strict=False)))
        held.append(grams)
    counts = Counter(gram for grams in held for gram in grams)
    words = sorted(g for g, n in counts.items() if 0.01 * len(reports) < n < 0.99 * len(reports))
    return torch.tensor([[word in grams for word in words] for grams in held], dtype=torch.float32), words


Inputs = dict[str, torch.Tensor]  # of an encoder, as its extractor makes them


class _MelpReader(nn.Module):
    """A tiny MELP that says which words a report holds.

    Each caption token answers for its own share of the words: read off their mean, all would become copies of one
    vector. The rhythm vector answers for all words, so that the contrast pooler learns too.
    """

    steps, batch = 441, 64
    config = staticmethod(melp_config)

    def __init__(self, words: int) -> None:
        super().__init__()
        self.encoder = MelpModel(config := melp_config())
        self.extractor = MelpFeatureExtractor.from_config(config)
        self.owner = torch.arange(words) * config.n_queries_caption // words
        self.heads = nn.ModuleList([nn.Linear(config.caption_dim, words), nn.Linear(config.shared_dim, words)])

    def loss(self, inputs: Inputs, held: torch.Tensor) -> torch.Tensor:
        """Of recordings and the words their reports hold, `[B, words]`."""
        out = self.encoder(**inputs)
        of_token = (out.tokens[:, self.owner] * self.heads[0].weight).sum(dim=-1) + self.heads[0].bias  # [B, words]
        bce = nn.functional.binary_cross_entropy_with_logits
        return bce(of_token, held) + 0.3 * bce(self.heads[1](out.rhythm), held)


class _HeartLangReader(nn.Module):
    """A tiny HeartLang that says which words a report holds.

    As in MELP's, each lead's token answers for its own share of the words, and CLS for all. Tokens of beats answer for
    none: there is no beat that every recording has.
    """

    steps, batch = 700, 32
    config = staticmethod(heartlang_config)

    def __init__(self, words: int) -> None:
        super().__init__()
        self.encoder = HeartLangModel(config := heartlang_config())
        self.extractor = QrsTokenizer.from_config(config)
        self.owner = torch.arange(words) * config.num_leads // words
        self.heads = nn.ModuleList([nn.Linear(config.hidden_size, words) for _ in range(2)])

    def loss(self, inputs: Inputs, held: torch.Tensor) -> torch.Tensor:
        """Of recordings and the words their reports hold, `[B, words]`."""
        out = self.encoder(**inputs)
        of_lead = (out.last_hidden_state[:, self.owner] * self.heads[0].weight).sum(dim=-1) + self.heads[0].bias
        bce = nn.functional.binary_cross_entropy_with_logits
        return bce(of_lead, held) + 0.3 * bce(self.heads[1](out.probe), held)


class _CnnReader(nn.Module):
    """A convolutional network that says which words a report holds, from the mean of its tokens."""

    steps, batch = 900, 64
    config = CnnConfig

    def __init__(self, words: int) -> None:
        super().__init__()
        self.encoder = CnnEncoder(config := CnnConfig())
        self.extractor = PatchFeatureExtractor.from_config(config, normalize="zscore")
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(config.output_dim, words))

    def loss(self, inputs: Inputs, held: torch.Tensor) -> torch.Tensor:
        """Of recordings and the words their reports hold, `[B, words]`."""
        tokens = self.encoder(varied(inputs["ecg_values"])).last_hidden_state
        return nn.functional.binary_cross_entropy_with_logits(self.head(tokens.mean(dim=1)), held)


# Every tiny encoder by the name that a config gives it.
ENCODERS: dict[str, type[_MelpReader] | type[_HeartLangReader] | type[_CnnReader]] = {
    "tiny": _MelpReader,
    "tiny-heartlang": _HeartLangReader,
    "tiny-cnn": _CnnReader,
}


def _train_encoder(
    questions: QuestionSet,
    kind: type[_MelpReader] | type[_HeartLangReader] | type[_CnnReader],
    seed: int,
    steps: int,
    folder: Path,
) -> None:
    records = [row["ecgs"][0] for row in questions.reports]
    targets, words = word_targets([report_of(row) for row in questions.reports])
    if not words:
        raise ValueError(f"{questions.name}: its reports share no words, so there is nothing for an encoder to learn")
    torch.manual_seed(seed)
    reader = kind(len(words)).train()
    reader.encoder.config.pretrained_on = (
        f"{questions.name}: ECGs and reports of the training split (report-word prediction)"
    )
    chunks = [records[i : i + 256] for i in range(0, len(records), 256)]
    parts = [
        reader.extractor([questions.source[r] for r in chunk], return_tensors="pt")
        for chunk in tqdm(chunks, desc="Reading ECGs", unit="batch")
    ]
    inputs = {name: torch.cat([part[name] for part in parts]) for name in reader.encoder.ecg_inputs}
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1, pct_start=0.1)
    batches: list[torch.Tensor] = []
    with tqdm(range(steps), desc="Tiny encoder learns from reports", unit="step") as progress:
        for step in progress:
            batches = batches or list(torch.randperm(len(records)).split(kind.batch))
            batch = batches.pop(0)
            loss = reader.loss({name: values[batch] for name, values in inputs.items()}, targets[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                progress.set_postfix(loss=f"{loss:.3f}")
    save_encoder(reader.encoder.eval(), reader.extractor, folder)
