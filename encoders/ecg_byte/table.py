"""The tokens of ECG-Byte: which strings of symbols they are, and how a string is cut into them.

Encoding takes the longest token that fits, from left to right. It is not byte-pair encoding, by which only the table is
learned: applied in the order of their rank, the same merges give other ids for every signal.
"""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from encoders.ecg_byte.upstream import read_table

SYMBOLS = "abcdefghijklmnopqrstuvwxyz"
BYTES = 256  # ids below are single bytes, most of them unused
BOUNDARY = "\n"  # in no token, so none goes across it; it takes no id itself


class TokenTable:
    """Tokens by id: 256 single bytes, then one string of symbols per merge.

    Attributes:
        merges: The strings, of two symbols or more, of the ids from 256, in the order in which they were learned.
        llm_order: The ids in the order in which a language model's tokenizer gets them. `None` stands for the 26
            symbols and the merges, without the 230 bytes that no recording contains. Upstream adds all 256, and its
            merges in the accidental order of a hash map, by the name of `signal_<id>`.

    Raises:
        ValueError: A merge is no string of symbols or stands twice, or the order misses an id that may occur, holds one
            twice, or holds one that there is not.
    """

    def __init__(self, merges: Iterable[str], llm_order: Iterable[int] | None = None) -> None:
        self.merges = tuple(merges)
        for i, merge in enumerate(self.merges):
            if not isinstance(merge, str) or len(merge) < 2 or not set(merge) <= set(SYMBOLS):
                raise ValueError(f"token {BYTES + i} must be two or more of the letters a to z, got {merge!r}")
        if len(set(self.merges)) != len(self.merges):
            twice = next(merge for merge in self.merges if self.merges.count(merge) > 1)
            raise ValueError(f"two tokens are the same string {twice!r}")
        occurring = [*map(ord, SYMBOLS), *range(BYTES, len(self))]
        self.llm_order = tuple(occurring if llm_order is None else llm_order)
        order = set(self.llm_order)
        if len(order) != len(self.llm_order) or not set(occurring) <= order <= set(range(len(self))):
            raise ValueError(
                f"the order of tokens must hold the ids of a to z and {BYTES} to {len(self) - 1}, each once"
            )

    def __len__(self) -> int:
        """Ids, those of unused bytes included."""
        return BYTES + len(self.merges)

    def __getitem__(self, token: int) -> bytes:
        """The bytes of a token.

        Raises:
            ValueError: There is no such id.
        """
        if not 0 <= token < len(self):
            raise ValueError(f"no token has the id {token}: they end at {len(self) - 1}")
        return bytes([token]) if token < BYTES else self.merges[token - BYTES].encode()

    @classmethod
    def from_upstream(cls, path: Path | str) -> Self:
        """Read a table of ECG-Byte or ECG-Bench: the pickle that they publish, or the same as JSON.

        Raises:
            ValueError: It is neither, or contradicts itself; the file is named.
        """
        try:
            return cls(*read_table(Path(path), BYTES))
        except (KeyError, TypeError, ValueError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path}: not a table of ECG-Byte: {why}") from error

    def first(self, merges: int) -> Self:
        """The table that learning would have ended with after so many merges."""
        return type(self)(self.merges[:merges])

    def encode(self, text: str) -> list[int]:
        """The ids of a string of symbols, the longest token at each place; `BOUNDARY` ends a token and has no id."""
        return [token for _, token in self._automaton.iter_long(text)]

    def decode(self, ids: Iterable[int]) -> bytes:
        """The symbols of a sequence of ids.

        Raises:
            ValueError: An id does not exist, or is that of a byte that is no symbol.
        """
        return b"".join([self._symbols_of(token) for token in ids])

    def _symbols_of(self, token: int) -> bytes:
        content = self[token]
        if token < BYTES and chr(token) not in SYMBOLS:
            raise ValueError(f"token {token} is a byte that stands for no level: symbols are a to z (97 to 122)")
        return content

    @cached_property
    def _automaton(self) -> Any:
        import ahocorasick

        automaton = ahocorasick.Automaton()
        for token in (*map(ord, SYMBOLS), *range(BYTES, len(self))):
            automaton.add_word(self[token].decode(), token)
        automaton.make_automaton()
        return automaton
