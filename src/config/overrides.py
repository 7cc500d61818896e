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
    """Every key of a config model, dotted."""
    found = []
    for name, info in model.model_fields.items():
        found.append(prefix + name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found += leaves(info.annotation, f"{prefix}{name}.")
    return found


def parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    shown = f"{text[:120]}…" if len(text) > 120 else text
    if found := plain_yaml.strange(text):
        raise InputError(
            f"it holds the character {found}",
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
    quoted, bare = (
        value[:1] in ("'", '"'),
        value
        in (
            "",
            "-",
        ),
    )  # YAML reads these two as nothing and as a list of nothing
    try:
        value = value if bare else plain_yaml.parse(value)
    except plain_yaml.Unreadable as error:
        if error.code != "invalid_yaml":
            raise InputError(
                f"not readable as YAML: {error}", f"--set {shown}", code=error.code
            ) from None
        # a plain string that YAML cannot read, such as a path with a colon
    # YAML reads 1e-3 as a string
    if isinstance(value, str) and not quoted and re.fullmatch(EXPONENT, value):
        value = float(value)
    key = current_name(key.strip())
    return key, with_current_names(key, value, f"--set {shown}")


def set_in(tree: dict, model: type[BaseModel], key: str, value: Any) -> None:
    words = key.split(".")
    if (
        words[0] in model.model_fields and len(words) > 1
    ):  # a mapping such as loss.mask starts from its default, so that one entry can be added
        parent = model.model_fields[words[0]].annotation
        field_ = getattr(parent, "model_fields", {}).get(words[1])
        if len(words) > 2 and field_ is not None and isinstance(field_.default, dict):
            outer = tree.setdefault(words[0], {})
            if isinstance(outer, dict):  # else its own complaint follows
                outer.setdefault(words[1], dict(field_.default))
    section = model
    for word in words:
        section = getattr(getattr(section, "model_fields", {}).get(word), "annotation", None)
    if (
        isinstance(value, dict) and isinstance(section, type) and issubclass(section, BaseModel)
    ):  # a section: what it does not name stays as it is
        for name, inner in value.items():
            set_in(tree, model, f"{key}.{name}", inner)
        return
    for word in words[:-1]:
        tree = tree.setdefault(word, {})
        if not isinstance(tree, dict):
            raise InputError(
                f"'{key[:60]}' is not a key: {word[:60]} has no parts", "--set", code="unknown_key"
            )
    tree[words[-1]] = value
