"""What --set KEY=VALUE means, and where in a config it goes."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel

from src.config import plain_yaml
from src.config.renames import current_name, with_current_names
from src.core.console import InputError

EXPONENT = r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+"


def leaves(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key of a config model, dotted; sections are keys, too."""
    keys = []
    for name, info in model.model_fields.items():
        keys.append(prefix + name)
        if _is_section(info.annotation):
            keys += leaves(info.annotation, f"{prefix}{name}.")
    return keys


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def parse_override(text: str) -> tuple[str, Any]:
    """'train.epochs=30' -> ('train.epochs', 30), the key under its current name."""
    key, equals, value = text.partition("=")
    shown = f"{text[:120]}…" if len(text) > 120 else text
    if odd := plain_yaml.control_character(text):
        raise InputError(
            f"it holds the character {odd}",
            f"--set {shown!a}",
            "Take it out",
            code="control_character",
        )
    if not equals or not key.strip():
        raise InputError(
            f"--set takes key=value, not '{shown}'",
            "",
            "For example --set train.epochs=30",
            code="usage",
        )
    key = current_name(key.strip())
    value = _parse_value(value, f"--set {shown}")
    return key, with_current_names({key: value}, f"--set {shown}")[key]


def _parse_value(text: str, where: str) -> Any:
    if text in ("", "-"):  # YAML reads these as nothing and as a list of nothing
        return text
    try:
        value = plain_yaml.parse(text)
    except plain_yaml.Unreadable as error:
        if error.code == "invalid_yaml":  # plain text all the same, such as a path with a colon
            return text
        raise InputError(f"not readable as YAML: {error}", where, code=error.code) from None
    # YAML reads 1e-3 as text
    if isinstance(value, str) and text[0] not in "'\"" and re.fullmatch(EXPONENT, value):
        return float(value)
    return value


def set_in(tree: dict, model: type[BaseModel], key: str, value: Any) -> None:
    """Put the value of a dotted key into the tree of a config.

    A section keeps what `value` does not name. A mapping such as loss.mask starts from its default,
    so that one entry can be added.
    """
    *path, last = key.split(".")
    section: Any = model
    inner = tree
    for word in path:
        info = getattr(section, "model_fields", {}).get(word)
        default = getattr(info, "default", None)
        start = default if section is not model and isinstance(default, dict) else {}
        inner = inner.setdefault(word, dict(start))
        if not isinstance(inner, dict):
            raise InputError(
                f"'{key[:60]}' is not a key: {word[:60]} has no settings of its own",
                "--set",
                code="unknown_key",
            )
        section = getattr(info, "annotation", None)
    info = getattr(section, "model_fields", {}).get(last)
    if isinstance(value, dict) and info is not None and _is_section(info.annotation):
        for name, setting in value.items():
            set_in(tree, model, f"{key}.{name}", setting)
    else:
        inner[last] = value
