"""The tiny language model: a Llama that learns from text alone to answer from reports, and to compare two of them.

A row holds one report in words where a recording would stand, or two, and several questions about them that share it
(`elm.model.attention`): more questions per token than one to a row. One-report rows come first; two-report rows, begun
too early, teach nothing. Some rows ask for the report itself: from that a projector learns what an ECG stands for.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data.conversations.rows import QuestionSet, Row, answer_text
from elm.model.attention import mask_of_questions

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<ecg>", "<user>", "<assistant>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<assistant>{{ message['content'] }}{{ eos_token }}"
    "{% else %}<user>{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

# Raising the first two raises the quality and the time of the default job.
STEPS, BATCH = 420, 20
QUESTIONS = 7  # about the same reports in a row
REPORTS, REPORT_TOO = 0.1, 0.3  # of the rows ask for a report alone; of the other rows about one report, for it, too
TWO_FROM, TWO_BEFORE, TWO = 0.45, 0.05, 0.7  # share of the steps after which most rows are about two reports
RATE = 4e-3

Drawn = tuple[list[str], list[tuple[str, str]]]  # records, then questions and answers about them


def report_of(row: Row) -> str:
    """The report in a row of the align stage."""
    return str(row["messages"][-1]["content"][0]["text"])


class Curriculum:
    """Draws rows about the training reports of a question set."""

    def __init__(self, questions: QuestionSet, rng: np.random.Generator) -> None:
        self.rng = rng
        self.reports = {row["ecgs"][0]: report_of(row) for row in questions.reports}
        self.requests = [row["question"] for row in questions.reports]
        pools = (self._by_ecgs(questions.train, count) for count in (1, 2))
        self.pools = [pool for pool in pools if pool]  # questions about one recording, then about two

    def _by_ecgs(self, rows: Sequence[Row], count: int) -> list[Drawn]:
        """Questions by the recordings they are about, where all of these have reports."""
        by_ecgs: dict[tuple[str, ...], list[tuple[str, str]]] = defaultdict(list)
        for row in rows:
            if len(row["ecgs"]) == count and all(record in self.reports for record in row["ecgs"]):
                by_ecgs[tuple(row["ecgs"])].append((row["question"], answer_text(row["answer"])))
        return [(list(ecgs), some) for ecgs, some in by_ecgs.items()]

    def draw(self, two: float) -> Drawn:
        """A row, with this probability about two reports."""
        chance, rng = self.rng.random(), self.rng
        if chance < REPORTS or not self.pools:
            record = list(self.reports)[rng.integers(len(self.reports))]
            return [record], [self._request(record)]
        pool = self.pools[-1 if chance < REPORTS + two else 0]
        ecgs, some = pool[rng.integers(len(pool))]
        some = [some[i] for i in rng.permutation(len(some))[:QUESTIONS]]
        if len(ecgs) == 1 and rng.random() < REPORT_TOO:
            some.append(self._request(ecgs[0]))
        return ecgs, some

    def _request(self, record: str) -> tuple[str, str]:
        return self.requests[self.rng.integers(len(self.requests))], self.reports[record]

    def pieces(self, two: float) -> tuple[str, list[tuple[str, str]]]:
        """What stands at the start of a row, then questions and answers, all as the chat template renders them."""
        ecgs, some = self.draw(two)
        shown = "<bos><user>" + "".join(f"{self.reports[record]}\n" for record in ecgs)
        return shown, [(f"{question}<assistant>", f"{answer}<eos>") for question, answer in some]

    def text(self, two: float) -> str:
        """A row as one text, for the tokenizer to learn from."""
        shown, some = self.pieces(two)
        return shown + "".join(question + answer for question, answer in some)


def train_tokenizer(texts: Sequence[str], vocab_size: int = 768) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template and an `<ecg>` token."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, show_progress=False, initial_alphabet=alphabet
    )
    bpe.train_from_iterator(texts, trainer)
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


def train(questions: QuestionSet, seed: int, steps: int, folder: Path) -> None:
    """Train a tokenizer and a Llama on the text of the training split, and write both into a folder."""
    curriculum = Curriculum(questions, np.random.default_rng([seed, 1]))
    tokenizer = train_tokenizer([curriculum.text(0.3) for _ in range(1500)])
    torch.manual_seed(seed)
    model = LlamaForCausalLM(llama_config(tokenizer))
    optimizers = _optimizers(model)
    schedules = [OneCycleLR(each, RATE, steps + 1, pct_start=0.1, cycle_momentum=False) for each in optimizers]
    batches: list[list[Encoded]] = []

    @cache
    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    line = int(parent_process() is not None)  # a second process has its bar below that of the first
    with tqdm(range(steps), "Tiny Llama learns the language", unit="step", disable=None, position=line) as progress:
        for step in progress:
            if not batches:  # of rows of like length: no time is wasted on padding
                two = TWO if step > TWO_FROM * steps else TWO_BEFORE
                rows = [encode(*curriculum.pieces(two), ids) for _ in range(BATCH * 16)]
                rows.sort(key=lambda row: len(row["input_ids"]))
                batches = [rows[BATCH * i : BATCH * (i + 1)] for i in curriculum.rng.permutation(16)]
            answers, words = losses(model, batches.pop())
            model.zero_grad()
            (answers + 0.1 * words).backward()  # what is answered matters; what is read is learned a little, too
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            if step % 20 == 0:
                progress.set_postfix(answers=f"{answers.item():.3f}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices of the layers: comparing is learned in half the steps."""
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in model.parameters() if all(parameter is not matrix for matrix in matrices)]
    return [
        torch.optim.AdamW(others, lr=RATE, betas=(0.9, 0.98), weight_decay=0.01),
        torch.optim.Muon(matrices, lr=RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    ]


Encoded = dict[str, list[int]]
PADDING = {"input_ids": 0, "labels": -100, "position_ids": 0, "question_ids": 0}  # no token is padding's: it is masked


def encode(shown: str, some: Sequence[tuple[str, str]], ids: Callable[[str], list[int]]) -> Encoded:
    """A row of questions that share what is shown, as `elm.model.attention` has them."""
    prefix = ids(shown)
    row = {"input_ids": [*prefix], "labels": [-100] * len(prefix)}
    row |= {"position_ids": [*range(len(prefix))], "question_ids": [0] * len(prefix)}
    for number, (question, answer) in enumerate(some, start=1):
        asks, says = ids(question), ids(answer)
        row["input_ids"] += asks + says
        row["labels"] += [-100] * len(asks) + says
        row["position_ids"] += range(len(prefix), len(prefix) + len(asks) + len(says))
        row["question_ids"] += [number] * (len(asks) + len(says))
    return row


def losses(model: LlamaForCausalLM, rows: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the answers' tokens, and of the reports'."""
    width = max(len(row["input_ids"]) for row in rows)
    padded = {key: [row[key] + [filler] * (width - len(row[key])) for row in rows] for key, filler in PADDING.items()}
    batch = {key: torch.tensor(values) for key, values in padded.items()}
    present = torch.arange(width) < torch.tensor([[len(row["input_ids"])] for row in rows])
    mask = mask_of_questions(batch["question_ids"], present, model.config._attn_implementation, torch.float32)
    inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
    hidden = model.model(**inputs, attention_mask=mask).last_hidden_state[:, :-1]

    def of(places: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model.lm_head(hidden[places]), batch["input_ids"][:, 1:][places])

    return of(batch["labels"][:, 1:] != -100), of((batch["question_ids"] == 0)[:, 1:] & present[:, 1:])
