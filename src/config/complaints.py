"""What pydantic finds wrong with a config, as one line in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from src.config.overrides import leaves
from src.config.renames import current_name
from src.core.console import InputError, nearest
from src.core.setting_types import Strict

MEANT = {  # pydantic's short name of an error -> what the value should be
    "int_type": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_from_float": "should be a whole number",
    "int_parsing_size": "should be a smaller whole number",
    "number": "should be a number",
    "float_type": "should be a number",
    "float_parsing": "should be a number",
    "finite_number": "should be a finite number",
    "bool_type": "should be true or false",
    "bool_parsing": "should be true or false",
    "string_type": "should be text",
    "list_type": "should be a list, in brackets",
    "tuple_type": "should be a list, in brackets",
    "dict_type": "should be key: value pairs",
    "model_type": "should be key: value pairs",
    "model_attributes_type": "should be key: value pairs",
    "string_too_short": "should be a text that is not empty",
    "missing": "this is needed, and missing",
    "invalid_key": "a key should be a word",
    "too_short": "at least {min_length} needed",
    "too_long": "at most {max_length} allowed",
}
BOUNDED = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")
WORDS = ("string_type", "literal_error")
LIMITS = {"gt": "above {:,}", "ge": "from {:,}", "lt": "and below {:,}", "le": "to {:,}"}
LONGEST = 60  # characters of a wrong value that are shown


def validate(model: type[Strict], tree: dict, file: Path, overrides: Sequence[str] = ()) -> Strict:
    """The settings that the tree of a config gives; raises InputError for the first wrong one."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise _complaint(error, model, file, overrides) from None


def _complaint(
    error: ValidationError, model: type[Strict], file: Path, overrides: Sequence[str]
) -> InputError:
    """The first of the errors; of a value that may be of several types, what all of them want."""
    errors = error.errors()
    first = errors[0]
    if first["type"] == "extra_forbidden":
        where = ".".join(map(str, first["loc"]))
        return InputError(
            f"unknown key '{where[:LONGEST]}'",
            _source(where, file, overrides),
            nearest(where[:LONGEST], leaves(model)),
            code="unknown_key",
        )
    paths = [_where(model, e["loc"]) for e in errors]
    if first["type"] == "literal_error" and isinstance(first["input"], list):
        # it was meant as a list, and one of its values is wrong
        inside = [k for k, path in enumerate(paths) if path.startswith(f"{paths[0]}.")] or [0]
        errors, paths = [errors[k] for k in inside], [paths[k] for k in inside]
        first = errors[0]
    where = paths[0]
    wants = dict.fromkeys(_wanted(e) for e, path in zip(errors, paths) if path == where)
    wanted = " or ".join(wants).replace(" or should be ", " or ")
    what = f"{where}: {wanted}{_shown(first)}" if where else wanted
    bounds = _bounds(model, first["loc"]) if first["type"] in BOUNDED else ""
    return InputError(what, _source(where, file, overrides), bounds, code="invalid_value")


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def _wanted(error: dict) -> str:
    kind = error["type"]
    if kind in MEANT:
        return MEANT[kind].format(**error.get("ctx", {}))
    return error["msg"].removeprefix("Value error, ").removeprefix("Input ")


def _shown(error: dict) -> str:
    """', not VALUE', where that helps."""
    value, kind = error["input"], error["type"]
    if kind in ("missing", "too_short", "too_long") or isinstance(value, dict):
        return ""
    shown = f", not {shortened(value)}"
    if isinstance(value, bool) and kind in WORDS:
        shown += " (YAML reads yes, no, on and off so: put the word in quotes)"
    return shown


def _where(model: type[Strict], loc: tuple) -> str:
    """The dotted key of an error, without the names of a union's branches."""
    words: list[str] = []
    section: Any = model
    for word in loc:
        if isinstance(word, str) and _is_union(section):
            section = None  # the name of a branch; what follows lies in it
        elif word != "[key]":
            words.append(str(word)[:LONGEST])
            info = getattr(section, "model_fields", {}).get(word)
            section = info.annotation if info else None
    return ".".join(words)


def _is_union(annotation: Any) -> bool:
    """Of two or more types, None not counted."""
    if get_origin(annotation) in (None, dict, list, tuple):
        return False
    return len([a for a in get_args(annotation) if a is not type(None)]) > 1


def _bounds(model: type[Strict], loc: tuple) -> str:
    """'It is from 1 to 10', of a setting whose least and greatest value are known; ''."""
    section, limits = model, {}
    for word in loc:
        info = getattr(section, "model_fields", {}).get(word)
        if info is None:
            return ""
        section = info.annotation
        known = [(name, m) for m in info.metadata for name in LIMITS if hasattr(m, name)]
        limits = {name: LIMITS[name].format(getattr(m, name)) for name, m in known}
    least, most = limits.get("gt", limits.get("ge")), limits.get("lt", limits.get("le"))
    return f"It is {least} {most}".replace(",", " ") if least and most else ""


def _source(where: str, file: Path, overrides: Sequence[str]) -> Path | str:
    """The --set that it came from, else the file."""
    for text in reversed(overrides):
        key = current_name(text.partition("=")[0].strip())
        if f"{where}.".startswith(f"{key}.") or key.startswith(f"{where}."):
            return f"--set {text[: 2 * LONGEST]}"
    return file
