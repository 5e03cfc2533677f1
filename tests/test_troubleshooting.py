"""The page of messages quotes messages that there are."""

import ast
import errno
import os
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "troubleshooting.md"
FIELDS = re.compile(r"…|METHOD URL|'…'|(?<![\w-])\d+(?![\w-])")  # stand for what differs


@cache
def spoken():
    """Pairs of neighbouring words in the texts of the program, and in what the system says of files."""
    texts = [os.strerror(number).lower() for number in errno.errorcode]
    for package in ("data", "encoders", "elm", "eval", "serve", "recipes"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    texts.append("\0".join(str(part.value) for part in node.values if isinstance(part, ast.Constant)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
        texts += [path.read_text(encoding="utf-8") for path in (ROOT / package).rglob("*.yaml")]
    return {pair for text in texts for pair in pairwise(re.findall(r"[\w./=-]+", text.lower()))}


def quoted():
    """The quotations in the first column of the tables."""
    rows = (line.split("|")[1] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `"))
    return [words for row in rows for words in re.findall(r"`([^`]+)`", row)]


@pytest.mark.parametrize("quotation", quoted())
def test_a_quotation_is_a_message(quotation):
    """Most of its pairs of neighbouring words: messages are put together of parts."""
    pieces = [re.findall(r"[\w./=-]+", piece.lower()) for piece in FIELDS.split(quotation)]
    pairs = [pair for words in pieces for pair in pairwise(words)]
    missing = [pair for pair in pairs if pair not in spoken()]
    assert len(missing) <= 0.34 * len(pairs), f"nothing says {missing}"


def test_the_page_quotes_many():
    assert len(quoted()) > 80
