"""Which names a config may have: they become files and folders, and words of command lines."""

from __future__ import annotations

from pathlib import Path

from src.config.plain_yaml import strange
from src.core.console import InputError
from src.core.paths import COMPETITION

LONGEST_NAME = 120  # bytes: file systems take 255, and a name gets .yaml, a study's cell and a seed


def check_name(name: str, where: object, what: str = "config") -> None:
    """Raises InputError for a name that cannot be a file's, misleads, or is another artifact's."""
    wrong = ""
    if not name or name in (".", ".."):
        wrong = "it is empty" if not name else "it is a folder's"
    elif "/" in name or "\\" in name:
        wrong = "it holds a slash"
    elif found := strange(name, ("Cf",)) or next((c for c in "\t\n\r" if c in name), ""):
        wrong = (
            f"it holds the character {found if found.startswith('U+') else f'U+{ord(found):04X}'}"
        )
    elif name[0] in ".-" or name != name.strip():
        wrong = "it begins with a dot or a dash, or with or in a space"
    elif len(name.encode()) > LONGEST_NAME:
        wrong = f"it is longer than {LONGEST_NAME} bytes"
    elif name.casefold() == "log":
        wrong = "submissions/log.csv is the list of what was sent"
    elif name.casefold() == Path(COMPETITION).stem:
        wrong = f"{COMPETITION} is no experiment"
    if wrong:
        where = f"{str(where)[:160]}…" if len(str(where)) > 160 else where
        raise InputError(
            f"no {what} may be called '{name[:60]}': {wrong}", where, "Rename it", code="bad_name"
        )
