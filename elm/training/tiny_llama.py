"""The tiny language model: a Llama that is trained on text alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data.conversations.rows import QuestionSet, Row, dialogues

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<ecg>", "<user>", "<assistant>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<assistant>{{ message['content'] }}{{ eos_token }}"
    "{% else %}<user>{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

# Raising these raises the quality and the time of the default job.
LANGUAGE_STEPS, LANGUAGE_BATCH, TURNS = 480, 48, 2


def report_of(row: Row) -> str:
    """The report in a row of the align stage."""
    return str(row["messages"][-1]["content"][0]["text"])


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


def train(questions: QuestionSet, seed: int, steps: int, folder: Path) -> None:
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
