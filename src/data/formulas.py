"""Cells that a spreadsheet would take for a formula, and calculate when a person opens the table.

Tables that the program reads back hold every name exactly (prepare warns of such names once). Those
that are for people alone have an apostrophe before it, as spreadsheets themselves write text.
"""

from __future__ import annotations

import re

STARTS = ("=", "+", "-", "@", "\t", "\r")
MARKED = re.compile(r"'+[=+\-@\t\r]")


def is_formula(text: str) -> bool:
    """A plain number such as -1 is none."""
    return text.startswith(STARTS) and not re.fullmatch(r"[-+]\d+(\.\d+)?", text)


def as_text(cell: object) -> object:
    """The same with an apostrophe before what would be a formula; `as_meant` undoes it."""
    marked = isinstance(cell, str) and (is_formula(cell) or MARKED.match(cell))
    return f"'{cell}" if marked else cell


def as_meant(cell: str) -> str:
    return cell[1:] if MARKED.match(cell) else cell
