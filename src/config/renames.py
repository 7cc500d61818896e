"""Settings that are written under the name they had in an earlier version."""

from __future__ import annotations

import functools
from collections.abc import Collection
from pathlib import Path

from src.core.console import InputError, warn
from src.core.settings import RENAMED


def current_name(key: str) -> str:
    """What this dotted key is called now; the first use of an old name is warned about."""
    if key not in RENAMED:
        return key
    _warn(key)
    return RENAMED[key]


@functools.cache
def _warn(key: str) -> None:
    warn(f"{key} is now called {RENAMED[key]}")


def with_current_names(tree: dict, where: Path | str) -> dict:
    """The tree of a config with every setting under its current name, in its place.

    Raises InputError where a setting is there under both names.
    """
    renamed = dict(tree)
    for section, settings in tree.items():
        if isinstance(settings, dict):
            dotted = [f"{section}.{name}" for name in settings]
            refuse_both_names(dotted, where)
            names = [
                current_name(key).rpartition(".")[2] if key in RENAMED else name
                for key, name in zip(dotted, settings)
            ]
            renamed[section] = dict(zip(names, settings.values()))
    return renamed


def refuse_both_names(keys: Collection[str], where: Path | str) -> None:
    """Raises InputError where one setting is among these dotted keys under both of its names."""
    for old, new in RENAMED.items():
        if old in keys and new in keys:
            raise InputError(
                f"{old} and {new} are the old and the new name of one setting",
                where,
                f"Keep {new}",
                code="renamed_twice",
            )
