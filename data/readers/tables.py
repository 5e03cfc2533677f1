"""Parses tables of numbers as spreadsheets, pandas, NumPy and R write them: encoding, delimiter, decimal mark, header.

What could be two things is refused, with what to do.
"""

import codecs
import csv
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.readers.columns import Table, is_count, without_counters
from data.readers.common import is_lead

Line = tuple[int, str]  # number of a line in the file, and its text
Row = tuple[int, list[str]]  # the same with its cells

# In this order: "0,12;0,34" holds commas, too, and "I (mV), II (mV)" blanks.
_DELIMITERS = {"\t": "tabs", ";": "semicolons", "|": "bars", ",": "commas", " ": "white space"}
_MISSING = {"", "nan", "-nan", "na", "n/a", "#n/a", "null", "none"}
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
_UNIT = re.compile(r"[(\[]?([numμ]?v|adu|m?s|sec|seconds|)[)\]]?", re.IGNORECASE)


def looks_like_table(head: bytes, fewest: int = 2) -> bool:
    """Whether a file that begins so is text with so many columns of numbers, below a header row at most."""
    try:
        lines = _lines(decoded(head, whole=False))
    except ValueError:
        return False
    body = _body(lines[:-1] if len(lines) > 2 else lines)[1]  # the last one may be cut off
    return bool(body) and _fits(body[1:] or body, _delimiter(body), fewest)


def parse_table(content: bytes, named: bool = True) -> Table:
    """Parse a table: one row per sample below a header or none, or one row per lead that may begin with its name.

    `named` says that the caller names the leads: else a first row that may be column numbers need not be decided on.

    Raises:
        ValueError: It holds no samples, its rows differ in length, a cell is no number, or it can be read in two ways.
            Names row and column, or what is doubtful and what to do.
    """
    comments, body = _body(_lines(decoded(content)))
    mark = _delimiter(body)
    rows = [(number, _cells(line, mark)) for number, line in body]
    while rows and not any(rows[-1][1]):  # spreadsheets end so
        rows.pop()
    rows = _regular(rows, mark)
    if by_lead := _by_lead(rows):
        values = _values([(number, cells[1:]) for number, cells in by_lead], mark, left_out=1)
        return Table(values.T, tuple(cells[0] for _, cells in by_lead), delimiter=_DELIMITERS[mark])
    names, rows = _header(rows, named)
    if names is None and rows:
        names = _commented(comments, len(rows[0][1]))
    elif names and rows and any(rows[0][1]) and all(_UNIT.fullmatch(cell) for cell in rows[0][1]):
        units = [f" ({unit.strip('()[]')})" if unit else "" for unit in rows[0][1]]
        names, rows = tuple(name + unit for name, unit in zip(names, units)), rows[1:]
    if not rows:
        raise ValueError("the table has no samples")
    return without_counters(_values(rows, mark), names, _DELIMITERS[mark])


def decoded(content: bytes, whole: bool = True) -> str:
    """The text of a table, or of its beginning, which may end within a letter.

    It is UTF-8, UTF-16 with a byte order mark, or Windows' cp1252 (`µV` from a spreadsheet).

    Raises:
        ValueError: The bytes are no text.
    """
    encodings = ["utf-16"] if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(content, final=whole)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text.replace("\u2212", "-")  # the minus sign of typesetters
    raise ValueError("not a readable table: this is no text: save the table as CSV (UTF-8)")


def _lines(text: str) -> list[Line]:
    """Lines that are not empty, whatever ends them."""
    lines = enumerate(re.split(r"\r\n|\r|\n", text), start=1)
    return [(number, line) for number, line in lines if line.strip()]


def _body(lines: Sequence[Line]) -> tuple[list[str], list[Line]]:
    """Comments at the beginning, and the lines below; a comment of one lead's name is the first cell of a header."""
    first = next((place for place, (_, line) in enumerate(lines) if not re.match(r"\s*#|sep=.$", line)), len(lines))
    return [line.strip().lstrip("# ") for _, line in lines[:first]], list(lines[first:])


def _cells(line: str, mark: str) -> list[str]:
    cells = line.split() if mark == " " else next(csv.reader([line], delimiter=mark, skipinitialspace=True))
    return [cell.strip().strip("'\"").strip() for cell in cells]


def _is_number(cell: str) -> bool:
    """Whether a cell holds a number or nothing."""
    return cell.lower() in _MISSING or _NUMBER.fullmatch(cell) is not None


def _fits(lines: Sequence[Line], mark: str, fewest: int, first: Line | None = None) -> bool:
    """Whether the mark cuts all lines into as many numbers, `first` into as many names. A first cell may be a name."""
    cells = [_cells(line, mark) for _, line in lines]
    counts = {len(row) for row in cells} | ({len(_cells(first[1], mark))} if first else set())
    numbers = (cell for row in cells for cell in (row[1:] if is_lead(row[0]) else row))
    return len(counts) == 1 and counts.pop() >= fewest and all(map(_is_number, numbers))


def _delimiter(body: Sequence[Line]) -> str:
    """The mark between cells: it cuts the first lines into equally many numbers, the header into as many names."""
    if not body:
        return ","
    sample = body[1:21] or body[:1]
    single = not re.search(r"[\t;|,]", body[0][1].strip())
    for first, fewest in ((body[0], 1 if single else 2), (None, 2)):
        for mark in _DELIMITERS:
            if _fits(sample, mark, fewest, first):
                return mark
    # Something is wrong with it: what its first line suggests, so that a message can tell what.
    return next((mark for mark in _DELIMITERS if mark in body[0][1].strip()), ",")


def _regular(rows: list[Row], mark: str) -> list[Row]:
    """The rows, as long as the first one, which may lack the cell of a mark at the ends or of R's row numbers.

    Raises:
        ValueError: The rows differ in length.
    """
    if not rows:
        return rows
    (top, first), below = rows[0], rows[1:]
    ends = bool(below) and all(cells[-1] == "" for _, cells in below) and not all(map(_is_number, first))
    if ends and (first[-1] == "" or all(len(cells) == len(first) + 1 for _, cells in below)):
        below = [(number, cells[:-1]) for number, cells in below]
        first = first[:-1] if first[-1] == "" else first
    elif below and first[-1] == "" and all(len(cells) == len(first) - 1 for _, cells in below):
        first = first[:-1]
    elif (
        below and all(len(cells) == len(first) + 1 for _, cells in below) and is_count([cells[0] for _, cells in below])
    ):
        first = ["", *first]
    for number, cells in below:
        if mark == "," and len(cells) == 2 * len(first):
            marks = "commas stand between the cells and in the numbers"
            raise ValueError(f"row {number}: {marks}: save the table with semicolons or with decimal points")
        if len(cells) != len(first):
            between = f" (they are separated by {_DELIMITERS[mark]})"
            raise ValueError(f"row {number} has {len(cells)} cells, the first row has {len(first)}{between}")
    return [(top, first), *below]


def _by_lead(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows, where each is a lead and begins with its name, below numbers of the samples or nothing; else none."""
    if len(rows) > 1 and not is_lead(rows[0][1][0]) and is_count(rows[0][1][1:]):
        rows = rows[1:]
    named = all(len(cells) > 1 and is_lead(cells[0]) and _is_number(cells[1]) for _, cells in rows)
    return rows if named else ()


def _header(rows: list[Row], named: bool) -> tuple[tuple[str, ...] | None, list[Row]]:
    """The names in the first row, which pandas may have made of numbers, and the rows below; None and all without any.

    Raises:
        ValueError: Two numbers in the first row may be names or samples.
    """
    if not rows:
        return None, rows
    first, below = rows[0][1], rows[1:]
    if not all(map(_is_number, first)):
        return tuple(first), below
    numbered = first[0] == "" and bool(below) and is_count([cells[0] for _, cells in below])
    names = first[1:] if numbered else first
    if not below or not is_count(names):
        return None, rows
    if numbered or len(names) > 2 or not any(cell.lstrip("+-").isdigit() for _, cells in below for cell in cells):
        return tuple(first), below
    if len(names) == 2 and named:
        raise ValueError(f"row 1 is {' and '.join(names)}: column numbers or samples? write the leads' names above it")
    return None, rows


def _commented(comments: Sequence[str], columns: int) -> tuple[str, ...] | None:
    """Names of the columns in the last comment that holds as many, a lead among them: `np.savetxt` writes it."""
    for comment in reversed(comments):
        for mark in _DELIMITERS:
            cells = _cells(comment, mark)
            if len(cells) == columns and any(map(is_lead, cells)):
                return tuple(cells)
    return None


def _values(rows: Sequence[Row], mark: str, left_out: int = 0) -> NDArray[np.float64]:
    commas: str | None = ""  # None: one is surely decimal
    examples = {".": "", ",": ""}
    for number, cells in rows:
        for column, cell in enumerate(cells, start=1 + left_out):
            if not _is_number(cell):
                between = f" (cells are separated by {_DELIMITERS[mark]})"
                raise ValueError(f"row {number}, column {column}: {cell!r} is not a number{between}")
            if "," in cell:
                examples[","] = cell
                commas = cell if commas is not None and _THOUSANDS.fullmatch(cell) else None
            elif "." in cell:
                examples["."] = cell
    if all(examples.values()):
        both = " and ".join(examples.values())
        raise ValueError(f"{both}: points and commas in numbers: save the table with decimal points alone")
    if commas:
        raise ValueError(f"{commas}: a decimal comma or one of thousands? save the table with decimal points alone")
    numbers = [["nan" if cell.lower() in _MISSING else cell.replace(",", ".") for cell in cells] for _, cells in rows]
    return np.array(numbers, dtype=np.float64)
