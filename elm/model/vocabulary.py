"""ECG-Byte language models: an ECG's tokens are words of a plain language model's vocabulary.

In training and in the audit such a model is an `ElmForConditionalGeneration` like every other: its projector is a table
of rows (`elm.model.projectors.Vocabulary`), looked up where another one computes. Saved, it is a plain language model
with a bigger vocabulary (`as_plain`), which any engine serves; `from_plain` makes the first of the second.

The vocabulary grows in the order of the tokenizer table's `llm_order`: the token at place n of it is `<|ecg:n|>`, and
its id is that of `<|ecg:0|>` plus n. What the rows begin with decides whether anything is learned: resizing a table the
usual way draws new rows from a normal distribution of variance 1e-9 around the mean row, so that all are the same word
to the model, and LoRA leaves the table as it is. Here a row begins with what its token looks like (`content_rows`), and
is trained.
"""

from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from data.conversations.rows import QuestionSet
from data.ecg import LEADS
from data.support.cache import built_once, cache_key
from elm.model.configuration import ECG_VOCABULARY, ElmConfig, token_name
from elm.model.families import fit_vocabulary
from elm.model.modeling import ElmForConditionalGeneration
from encoders import save_encoder
from encoders.ecg_byte import (
    EcgByteConfig,
    EcgByteEncoder,
    EcgByteFeatureExtractor,
    EcgByteSettings,
    EcgByteTokenizer,
    Quantizer,
)
from encoders.ecg_byte.quantizing import LEVELS

LEARNED_FROM = 2000  # recordings
MERGES = 2000
_POINTS = 32  # of a token's waveform; with 8, tokens that differ between two of them would begin as one row


def encoder(
    questions: QuestionSet,
    cache: Path,
    *,
    tokenizer: str | None = None,
    max_tokens: int | None = None,
    merges: int = MERGES,
    lead_tokens: bool = True,
    **settings: Any,
) -> Path:
    """A folder with the ECG-Byte "encoder" of a run: its tokens come from a file, or are learned.

    Args:
        questions: Tokens are learned from the first `LEARNED_FROM` ECGs of their training split.
        cache: Folder of what is computed once.
        tokenizer: A file that `EcgByteTokenizer.save` wrote; then nothing is learned.
        max_tokens: The most tokens of one recording (`EcgByteTokenizer.fit`).
        merges: The most tokens to learn.
        lead_tokens: See `EcgByteFeatureExtractor`.
        **settings: `low` and `high`, the mV of the first and the last level, and what else is in `EcgByteSettings`.

    Raises:
        ValueError: Neither or both of `tokenizer` and `max_tokens` are given, a setting is unknown, or recordings do
            not fit.
    """
    if (tokenizer is None) == (max_tokens is None) or (tokenizer is not None and settings):
        raise ValueError(
            "encoder_args of ecg_byte are either tokenizer, a file that EcgByteTokenizer.save wrote, or max_tokens "
            f"(and merges, sampling_rate, seconds, leads, low, high), got {sorted(settings)} beside "
            f"tokenizer={tokenizer} and max_tokens={max_tokens}"
        )
    records = list(dict.fromkeys(record for row in questions.train for record in row["ecgs"]))[:LEARNED_FROM]
    content = None if tokenizer is None else Path(tokenizer).read_text(encoding="utf-8")
    key = cache_key(questions.source_key, records, content, max_tokens, merges, lead_tokens, settings)

    def build(folder: Path) -> None:
        if tokenizer is not None:
            byte = EcgByteTokenizer.load(tokenizer)
        else:
            span = {name: settings.pop(name) for name in ("low", "high") if name in settings}
            try:
                plan = EcgByteSettings(quantizer=Quantizer(**span), **settings)
            except TypeError as error:
                raise ValueError(f"encoder_args of ecg_byte: {error}") from error
            assert max_tokens is not None
            byte = EcgByteTokenizer.fit([questions.source[record] for record in records], max_tokens, merges, plan)
        encoder, extractor = EcgByteEncoder.for_tokenizer(byte, lead_tokens)
        if tokenizer is None:
            encoder.config.pretrained_on = f"{questions.name}: ECGs of the training split (ECG-Byte merges)"
        save_encoder(encoder, extractor, folder)

    return built_once(cache / f"ecg-byte-{key}", build)


def planned(
    *,
    tokenizer: str | None = None,
    max_tokens: int = 1024,
    merges: int = MERGES,
    lead_tokens: bool = True,
    **settings: Any,
) -> EcgByteConfig:
    """The configuration that `encoder` would find, of the largest vocabulary it may learn."""
    if tokenizer is not None:
        loaded, _ = EcgByteEncoder.for_tokenizer(EcgByteTokenizer.load(tokenizer), lead_tokens)
        return cast("EcgByteConfig", loaded.config)
    leads = len(settings.get("leads", LEADS)) if lead_tokens else 0
    return EcgByteConfig(vocabulary=LEVELS + merges + leads, budget=max_tokens + leads)


def content_rows(byte: EcgByteTokenizer, like: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Rows for ECG tokens that begin with what each looks like, as far apart as words are.

    A token is described by its waveform, where it begins and ends, and its length. Half of a row's variance is linear
    in that, so that one attention head can read a voltage; half are random Fourier features of it (Rahimi and Recht,
    2007), whose cosine is near 1 for tokens that differ by a level and near 0 for most, so that every token is a word
    of its own. Mean and spread of the rows, in each dimension, are those of the words'.

    Takes rows of words, `like` `[V, H]`, and gives `[len(llm_order), H]` in their type.
    """
    waves = torch.from_numpy(byte.waveforms(_POINTS))
    levels = waves / waves.std().clamp(min=1e-6)
    lengths = torch.from_numpy(byte.lengths[list(byte.table.llm_order)]).float().log2()[:, None]
    # Ends count twice over: they are what joins a token to its neighbours.
    described = torch.cat([levels, levels[:, :1], levels[:, -1:], 2 * lengths], dim=1)
    words = like.float()
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(described.shape[1], words.shape[1], generator=generator)
    phase = 2 * torch.pi * torch.rand(words.shape[1], generator=generator)
    typical = torch.pdist(described[:: max(1, len(described) // 500)]).median().clamp(min=1e-6)
    fourier = torch.cos(2.0 / typical * described @ directions + phase)  # the typical pair's cosine is exp(-2)
    linear = (described - described.mean(0)) @ directions.roll(1, dims=1)
    features = _unit(fourier) + _unit(linear)
    return (words.mean(0) + words.std(0) * features / 2**0.5).to(like.dtype)


def _unit(features: torch.Tensor) -> torch.Tensor:
    """Features with mean 0 and, over all dimensions together, variance 1."""
    centred = features - features.mean(0)
    return centred / centred.std().clamp(min=1e-6)


@torch.no_grad()
def extend(
    language: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, extractor: EcgByteFeatureExtractor, seed: int = 0
) -> int:
    """Add an ECG's tokens to a language model and its tokenizer.

    Input rows are `content_rows`; those of lead tokens are drawn like words. Where the head has rows of its own
    (untied), new ones are the mean of the words': no answer is an ECG token, and the language model learns that of all
    of them at once.

    Returns the id of the first; raises `ValueError` where the tokenizer has such tokens already.
    """
    if token_name(0) in tokenizer.get_vocab():
        raise ValueError(f"{tokenizer.name_or_path} has ECG tokens already: begin with a model of words alone")
    words, (count, _, _) = len(tokenizer), extractor.config()
    tokenizer.add_tokens([token_name(number) for number in range(count)], special_tokens=True)
    fit_vocabulary(language, len(tokenizer))
    rows, head = language.get_input_embeddings().weight, language.get_output_embeddings().weight
    start = int(tokenizer.convert_tokens_to_ids(token_name(0)))
    like = rows[:words].float()
    drawn = torch.randn(extractor.count_of_lead_tokens, rows.shape[1], generator=torch.Generator().manual_seed(seed))
    leads = like.mean(0) + like.std(0) * drawn.to(rows.device)
    rows[start : start + count] = torch.cat([content_rows(extractor.byte, like, seed), leads]).to(rows.dtype)
    if head is not rows:
        head[start : start + count] = head[:words].float().mean(0).to(head.dtype)
    return start


def as_plain(model: ElmForConditionalGeneration) -> PreTrainedModel:
    """The plain language model with a bigger vocabulary that an ECG-Byte model is; shares its weights."""
    config = model.config
    model.model.mirror_rows()
    text = type(config.text_config).from_dict(config.text_config.to_dict())
    of_ecgs = {"encoder_config": config.encoder_config.to_dict(), "ecg_token_id": config.ecg_token_id}
    setattr(text, ECG_VOCABULARY, {**of_ecgs, "vocabulary_start": config.vocabulary_start})
    with torch.device("meta"):
        plain: PreTrainedModel = AutoModelForCausalLM.from_config(text)
    setattr(plain, plain.base_model_prefix, model.model.language_model)
    plain.set_output_embeddings(model.lm_head)
    plain.generation_config = model.generation_config
    return plain


def from_plain(plain: PreTrainedModel, config: ElmConfig) -> ElmForConditionalGeneration:
    """The model as training and audit know it; shares the weights of the plain form."""
    return ElmForConditionalGeneration.from_parts(config, EcgByteEncoder(config.encoder_config), plain)
