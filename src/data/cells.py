"""The cells of a table as contests write them: any usual delimiter, quotes, byte order mark.

And cells that a spreadsheet would take for a formula, and calculate when a person opens the table.
Tables that the program reads back hold every name exactly (prepare warns of such names once).
Those that are for people alone have an apostrophe before it, as spreadsheets write text.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path

from src.core.console import InputError, listing, printable
from src.core.disk import must_be_file
from src.data.files import MOST_BYTES

BOM = "\ufeff".encode()
MOST_COLUMNS = 10_000
LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|$)")  # splitlines would split at what cells may hold
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how one begins
MARKED = re.compile(r"'+[=+\-@\t\r]")
csv.field_size_limit(2**31 - 1)  # the run lengths of one large image have more than csv's 131,072


def table_bytes(file: Path) -> bytes:
    """Raises OSError, and ValueError for a file that is too large to be a table."""
    must_be_file(file, "this table")
    if file.stat().st_size > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    return file.read_bytes()


def table_text(data: bytes, file: Path) -> str:
    """The text of a table without its byte order mark. Raises InputError where it is not text."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # the UTF-16 of plain letters would pass for UTF-8
        what = "the table is not UTF-8 text"
        raise InputError(what, file, "Save it as UTF-8", code="not_utf8")
    return text


def cells_of(
    text: str, file: Path, delimiter: str | None = None
) -> tuple[list[list[str]], str, str]:
    """(the cells of each row that is not blank, the first row as it stands there, the delimiter).

    Raises InputError for what is not a table, and for rows of different lengths.
    """
    lines = LINE.findall(text)[:-1]
    start = next((n for n, line in enumerate(lines) if line.strip()), 0)
    few = [line.rstrip("\r\n") for line in lines[start : start + 50]]
    rows, head, began = [], "", 0
    try:
        delimiter = delimiter or delimiter_of(few[0] if few else "", few)
        reader = csv.reader(lines, delimiter=delimiter)
        for row in reader:
            if len(row) > 1 or row and row[0].strip():
                rows.append(row)
                head = head or "".join(lines[began : reader.line_num]).strip("\r\n")
                _check_length(row, len(rows[0]), reader.line_num, file)
            began = reader.line_num
    except csv.Error as error:
        what, todo = f"not readable as a table: {error}", "Download it again"
        raise InputError(what, file, todo, code="not_a_table") from None
    return rows, head, delimiter


def _check_length(row: list[str], columns: int, line: int, file: Path) -> None:
    if len(row) > MOST_COLUMNS:
        what, todo = f"line {line} has {len(row)} cells", f"At most {MOST_COLUMNS} columns are read"
        raise InputError(what, file, todo, code="too_many_columns")
    if len(row) != columns:
        what = f"line {line} has {len(row)} cells instead of {columns}"
        todo = "Correct it, or download the table again"
        raise InputError(what, file, todo, code="ragged_table")


def delimiter_of(head: str, lines: list[str]) -> str:
    """The one by which header and first row fall into the same number of cells, at best many."""
    below = lines[lines.index(head) + 1 :] if head else []
    first = next((line for line in below if line.strip()), head)
    counts, others = ({d: _count(line, d) for d in ",;\t|"} for line in (head, first))
    good = [d for d in counts if counts[d] > 1 and others[d] == counts[d]]
    return max(good or counts, key=counts.get)


def _count(line: str, delimiter: str) -> int:
    return len(next(csv.reader([line], delimiter=delimiter), []))


def names_of(columns: Iterable[str], most: int = 40) -> str:
    """Columns or cells in a message, however many and long they are."""
    return listing((printable(c, 60) for c in columns), most)


def check_written(text: str, shown: set[str], setting: str, where: str) -> None:
    """Raises InputError for a text that is to be a cell of the submission, is in no cell of the
    sample's column (`shown`), and would be taken for something else: for nothing, or a formula."""
    if text in shown:
        return
    if len(text) > 1 and is_formula(text):
        odd = "which a spreadsheet takes for a formula"
    elif not text:
        odd = "which is empty"
    elif text != text.strip():
        odd = "with a space before or behind it"
    else:
        return
    what = f"submission.{setting} writes '{text}', {odd}, and the sample has no such cell"
    raise InputError(what, where, "Take what the sample has, or a word", code="odd_cell")


def is_formula(text: str) -> bool:
    """A plain number such as -1 is not one."""
    return text.startswith(FORMULA) and not re.fullmatch(r"[-+]\d+(\.\d+)?", text)


def as_text(cell: object) -> object:
    """The same with an apostrophe before what would be a formula; `as_meant` undoes it."""
    marked = isinstance(cell, str) and (is_formula(cell) or MARKED.match(cell))
    return f"'{cell}" if marked else cell


def as_meant(cell: str) -> str:
    return cell[1:] if MARKED.match(cell) else cell
