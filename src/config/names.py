"""Which names a config may have: they become files and folders, and words of command lines."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from src.config.plain_yaml import control_character
from src.core.console import InputError, nearest
from src.core.paths import COMPETITION

LONGEST_NAME = 120  # bytes: file systems take 255, and a name gets .yaml, a study's cell and a seed


def check_name(name: str, where: object, what: str = "config") -> None:
    """Raises InputError for a name that cannot be a file's, misleads, or is another artifact's."""
    odd = control_character(name, ("Cc", "Cs", "Cf"), allowed="")
    reasons = {
        "it is empty": not name,
        "it is a folder's": name in (".", ".."),
        "it holds a slash": "/" in name or "\\" in name,
        f"it holds the character {odd}": odd,
        "it begins with a dot or a dash, or with or in a space": name.startswith((".", "-"))
        or name != name.strip(),
        f"it is longer than {LONGEST_NAME} bytes": len(name.encode(errors="replace"))
        > LONGEST_NAME,
        "submissions/log.csv is the list of what was sent": name.casefold() == "log",
        f"{COMPETITION} is not an experiment": name.casefold() == Path(COMPETITION).stem,
    }
    wrong = next((reason for reason, applies in reasons.items() if applies), None)
    if wrong:
        where = f"{str(where)[:160]}…" if len(str(where)) > 160 else where
        raise InputError(
            f"no {what} may be called '{name[:60]}': {wrong}", where, "Rename it", code="bad_name"
        )


def check_known(name: str, known: Collection[str], kind: str, key: str) -> None:
    """Raises InputError, with the nearest known name, where `key` gives one that does not exist."""
    if name not in known:
        raise InputError(
            f"unknown {kind} '{name[:60]}'", key, nearest(name[:60], known), code="unknown_part"
        )
