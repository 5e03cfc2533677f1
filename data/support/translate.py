"""Translates short texts with a sequence-to-sequence model, each text once: what was translated is kept on disk.

Any model that transformers' `AutoModelForSeq2SeqLM` loads will do, such as Helsinki-NLP/opus-mt-de-en for reports in
German (Tiedemann and Thottingal, OPUS-MT, EAMT 2020). Decoding is greedy: the same text always gives the same words.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from data.support.cache import cache_key, content_key, locked
from data.support.files import visible_files, written_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VERSION = 2  # in cache keys: to be raised with how texts are decoded
_SAVE_EVERY = 30.0  # seconds


def translate(texts: Iterable[str], model: Path | str, cache: Path | str, *, batch_size: int = 32) -> dict[str, str]:
    """The translation of each text that has one, made now or before.

    A translation that is empty, repeats its text, or comes to no end within twice the text's length is none. A run that
    was interrupted goes on where it was at most half a minute before; a second process waits for the first.

    `model` is a hub id, or the folder of a model and its tokenizer; `cache` gets one JSON file of translations per
    model, by the hash of the text. Texts of like length are translated together, `batch_size` at once.

    Raises:
        ValueError: The model's files cannot be found or used, or the file of translations is damaged.
    """
    from tqdm.auto import tqdm

    texts = dict.fromkeys(texts)
    if not texts:
        return {}
    revision, key = _version(model)
    file = Path(cache) / f"translations-{key}.json"
    with locked(file):
        translations = _read(file)
        new = sorted((t for t in texts if cache_key(t) not in translations), key=lambda text: (len(text), text))
        if new:
            tokenizer, translator = _load(model, revision)
            saved = time.monotonic()
            with tqdm(total=len(new), desc="Translating reports", unit="report") as progress:
                for start in range(0, len(new), batch_size):
                    batch = new[start : start + batch_size]
                    for text, translation in zip(batch, _batch(batch, tokenizer, translator)):
                        changed = translation.casefold() != text.casefold()
                        translations[cache_key(text)] = translation if changed else ""
                    progress.update(len(batch))
                    if start + batch_size >= len(new) or time.monotonic() - saved > _SAVE_EVERY:
                        with written_whole(file, "w") as out:
                            json.dump(translations, out, ensure_ascii=False, indent=0)
                        saved = time.monotonic()
    return {text: translation for text in texts if (translation := translations[cache_key(text)])}


def _version(model: Path | str) -> tuple[str | None, str]:
    """Revision of a model of the hub (None of a folder), and a name for exactly these weights."""
    if Path(model).is_dir():
        files = visible_files(model)
        return None, cache_key(VERSION, [[file.name, content_key(file)] for file in files])
    from huggingface_hub import hf_hub_download

    try:  # files lie in a folder named by their revision; without a network this is the newest that is there
        revision = Path(hf_hub_download(str(model), "config.json")).parent.name
    except (OSError, ValueError) as error:
        raise ValueError(f"translator {model}: neither a folder nor a model of the hub: {error}") from error
    return revision, cache_key(VERSION, str(model), revision)


def _read(file: Path) -> dict[str, str]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}
    except ValueError as error:
        raise ValueError(f"{file}: not the translations that were written there: delete it ({error})") from error


def _load(model: Path | str, revision: str | None) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model), revision=revision or "main")
        translator = AutoModelForSeq2SeqLM.from_pretrained(str(model), revision=revision or "main", dtype=torch.float32)
    except ImportError as error:
        package = "its tokenizer needs another package: pip install 'ecg-elm[translate]'"
        raise ValueError(f"translator {model}: {package} ({error})") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"translator {model}: not a sequence-to-sequence model with a tokenizer: {error}") from error
    translator.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return tokenizer, translator


def _batch(texts: list[str], tokenizer: PreTrainedTokenizerBase, translator: PreTrainedModel) -> list[str]:
    """The translation of each text; empty where there is none."""
    import torch

    tokens = tokenizer(texts, return_tensors="pt", padding=True).to(translator.device)
    lengths = tokens["attention_mask"].sum(-1).tolist()
    most = translator.config.to_dict().get("max_position_embeddings") or tokenizer.model_max_length
    if max(lengths) > most:  # a text too long for the model is none it can translate; the others still are
        fits = [text for text, length in zip(texts, lengths) if length <= most]
        done = dict(zip(fits, _batch(fits, tokenizer, translator))) if fits else {}
        return [done.get(text, "") for text in texts]
    limits = [min(2 * length + 16, most - 1) for length in lengths]
    with torch.inference_mode():
        # One more than any limit: some models are made to end at the last token, which is no end of their own.
        inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        out = translator.generate(**inputs, num_beams=1, do_sample=False, max_new_tokens=max(limits) + 1)
    ends = translator.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    translations = []
    for row, limit in zip(out[:, 1:].tolist(), limits):  # without the token that starts the decoder
        end = next((place for place, token in enumerate(row) if token in ends), len(row))
        text = " ".join(tokenizer.decode(row[:end], skip_special_tokens=True).split())
        translations.append(text if end < limit else "")
    return translations
