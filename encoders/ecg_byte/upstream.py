"""ECG-Byte as upstream has it: its published tables of tokens, and what they were learned with."""

import json
from collections.abc import Iterable
from pathlib import Path

from data.support.pickles import load_builtins
from encoders.ecg_byte.quantizing import EcgByteSettings, Quantizer

# A published table does not say which rate, leads and normalisation it was learned with: this is what ECG-Bench's data
# sets and its loader have. The order of the leads is the recording's: upstream's own corpora differ in it.
UPSTREAM = EcgByteSettings(250.0, None, None, Quantizer("minmax", decode="upstream"), across=True)


def read_table(path: Path, first: int) -> tuple[list[str], Iterable[int]]:
    """The strings of the ids from `first`, and all ids in the order of the vocabulary.

    A file whose name ends in `.json` holds them as `merges` and `vocab_key_order`. Any other is taken for the pickle of
    a pair (vocabulary: id to string; merges: each its bytes and id).

    Raises:
        KeyError, TypeError, ValueError: It does not, or contradicts itself.
    """
    if path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["merges"], content["vocab_key_order"]
    vocabulary, merges = load_builtins(path)
    strings = ["".join(map(chr, symbols)) for symbols, _ in merges]
    if [token for _, token in merges] != list(range(first, first + len(strings))):
        raise ValueError(f"the ids of merges must be {first}, {first + 1}, ...")
    if any(vocabulary[first + i] != string for i, string in enumerate(strings)):
        raise ValueError("the vocabulary and the merges differ")
    return strings, vocabulary
