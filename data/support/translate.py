"""Translates short texts with a sequence-to-sequence model, each text once: what was translated is kept on disk.

Any model that transformers' `AutoModelForSeq2SeqLM` loads will do, such as Helsinki-NLP/opus-mt-de-en for reports in
German (Tiedemann and Thottingal, OPUS-MT, EAMT 2020). Decoding is greedy: the same text always gives the same words.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.support.files import written_whole

_DECODING = "greedy 1"  # to be changed with how texts are decoded
_SAVE_EVERY = 30.0  # seconds


def translate(texts: Iterable[str], model: Path | str, cache: Path | str, *, batch_size: int = 32) -> dict[str, str]:
    """Translate texts, or look up what was translated before.

    A translation that is empty, repeats its text, or comes to no end within twice the text's length is none. A run that
    was interrupted goes on where it was at most half a minute before; a second process waits for the first.

    Args:
        texts: What to translate.
        model: Hub id or folder of the model and its tokenizer.
        cache: Folder for translations: one JSON file per model, by the hash of the text.
        batch_size: Texts translated at once, those of like length together.

    Returns:
        The translation of each text that has one.

    Raises:
        ValueError: The model's files cannot be found or used, or the file of translations is damaged.
    """
    from filelock import FileLock

    texts = dict.fromkeys(texts)
    if not texts:
        return {}
    version, key = _version(model)
    file = Path(cache) / f"translations-{key}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        known = _read(file)
        new = sorted((text for text in texts if _name(text) not in known), key=lambda text: (len(text), text))
        if new:
            _extend(known, new, model, version, file, batch_size)
    return {text: found for text in texts if (found := known[_name(text)])}


def _name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _version(model: Path | str) -> tuple[str | None, str]:
    """Revision of a model of the hub (None of a folder), and a name for exactly these weights."""
    digest = hashlib.sha256(_DECODING.encode())
    revision = None
    if Path(model).is_dir():
        for file in sorted(path for path in Path(model).iterdir() if path.is_file()):
            digest.update(file.name.encode())
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    else:
        from huggingface_hub import hf_hub_download

        try:  # files lie in a folder named by their revision; without a network this is the newest that is there
            revision = Path(hf_hub_download(str(model), "config.json")).parent.name
        except (OSError, ValueError) as error:
            raise ValueError(f"translator {model}: neither a folder nor a model of the hub: {error}") from error
        digest.update(f"{model} {revision}".encode())
    return revision, digest.hexdigest()[:16]


def _read(file: Path) -> dict[str, str]:
    try:
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError as error:
        raise ValueError(f"{file}: not the translations that were written there: delete it ({error})") from error
    return dict(known)


def _extend(
    known: dict[str, str], new: list[str], model: Path | str, version: str | None, file: Path, batch_size: int
) -> None:
    import torch
    from tqdm.auto import tqdm
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model), revision=version or "main")
        translator = AutoModelForSeq2SeqLM.from_pretrained(str(model), revision=version or "main", dtype=torch.float32)
    except ImportError as error:
        raise ValueError(
            f"translator {model}: its tokenizer needs another package: pip install 'ecg-elm[translate]' ({error})"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"translator {model}: not a sequence-to-sequence model with a tokenizer: {error}") from error
    translator.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    saved = time.monotonic()
    with tqdm(total=len(new), desc="Translating reports", unit="report") as progress:
        for start in range(0, len(new), batch_size):
            batch = new[start : start + batch_size]
            for text, found in zip(batch, _batch(batch, tokenizer, translator)):
                known[_name(text)] = "" if found.casefold() == text.casefold() else found
            progress.update(len(batch))
            if start + batch_size >= len(new) or time.monotonic() - saved > _SAVE_EVERY:
                with written_whole(file, "w") as out:
                    json.dump(known, out, ensure_ascii=False, indent=0)
                saved = time.monotonic()


def _batch(texts: list[str], tokenizer: Any, translator: Any) -> list[str]:
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
        out = translator.generate(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], num_beams=1, do_sample=False,
            max_new_tokens=max(limits) + 1,
        )  # fmt: skip
    ends = translator.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    said = []
    for row, limit in zip(out[:, 1:].tolist(), limits):  # without the token that starts the decoder
        end = next((place for place, token in enumerate(row) if token in ends), len(row))
        said.append(" ".join(tokenizer.decode(row[:end], skip_special_tokens=True).split()) if end < limit else "")
    return said
