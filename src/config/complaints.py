"""What pydantic finds wrong with a config, as one line in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from src.config.renames import current_name
from src.core.console import InputError, nearest

MEANT = {  # pydantic's short name of an error -> what the value should be
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "number": "a number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list, in brackets",
    "tuple_type": "a list, in brackets",
    "dict_type": "key: value pairs",
    "model_type": "key: value pairs",
    "model_attributes_type": "key: value pairs",
    "string_too_short": "a text that is not empty",
}
BOUNDED = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")
WORDS = ("string_type", "literal_error")
LONGEST = 60  # characters of a wrong value that are shown


def complaint(
    error: ValidationError,
    model: type[BaseModel],
    file: Path | str,
    overrides: Sequence[str],
    known: list[str],
) -> InputError:
    """The first of the errors; of a value that may be one of several types, what all of them want.

    `known`: every key of the config.
    """
    found = error.errors()
    first = found[0]
    if first["type"] == "extra_forbidden":
        where = ".".join(map(str, first["loc"]))
        return InputError(
            f"unknown key '{where[:LONGEST]}'",
            _source(where, file, overrides),
            nearest(where[:LONGEST], known),
            code="unknown_key",
        )
    paths = [_where(model, e["loc"]) for e in found]
    deeper = [e for e, path in zip(found, paths) if path.startswith(paths[0] + ".")]
    if first["type"] == "literal_error" and isinstance(first["input"], list) and deeper:
        found, first = deeper, deeper[0]  # it was meant as a list, and one of its values is wrong
        paths = [_where(model, e["loc"]) for e in found]
    where = paths[0]
    wants = dict.fromkeys(_wanted(e) for e, path in zip(found, paths) if path == where)
    wanted = " or ".join(wants).replace(" or should be ", " or ")
    shown = _shown(first, where)
    what = f"{where}: {wanted}{shown}" if where else wanted
    bounds = _bounds(model, first["loc"]) if first["type"] in BOUNDED else ""
    return InputError(what, _source(where, file, overrides), bounds, code="invalid_value")


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def _wanted(error: dict) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return "this is needed, and missing"
    if kind == "invalid_key":
        return "a key should be a word"
    if kind in MEANT:
        return f"should be {MEANT[kind]}"
    if kind == "too_short":
        return f"at least {context['min_length']} needed"
    if kind == "too_long":
        return f"at most {context['max_length']} allowed"
    return error["msg"].removeprefix("Value error, ").removeprefix("Input ")


def _shown(error: dict, where: str) -> str:
    """', not VALUE', where that helps."""
    value = error["input"]
    if (
        not where
        or error["type"] in ("missing", "too_short", "too_long")
        or isinstance(value, dict)
    ):
        return ""
    unquoted = isinstance(value, bool) and error["type"] in WORDS
    return f", not {shortened(value)}" + (
        " (YAML reads yes, no, on and off so: put the word in quotes)" if unquoted else ""
    )


def _where(model: type[BaseModel], loc: tuple) -> str:
    """The dotted key of an error, without the names of a union's branches."""
    words: list[str] = []
    section: Any = model
    for word in loc:
        if (
            get_origin(section) is not None
            and not isinstance(word, int)
            and len(_branches(section)) > 1
        ):
            section = None  # the name of a branch; what follows lies in it
            continue
        if word == "[key]":
            continue
        words.append(str(word)[:LONGEST])
        fields = getattr(section, "model_fields", {})
        section = fields[word].annotation if word in fields else None
    return ".".join(words)


def _bounds(model: type[BaseModel], loc: tuple) -> str:
    """'It is from 1 to 10', of a setting whose least and greatest value are known; ''."""
    section, about = model, ()
    for word in loc:
        info = getattr(section, "model_fields", {}).get(word)
        if info is None:
            return ""
        section, about = info.annotation, info.metadata
    least = [f"above {m.gt:,}" for m in about if hasattr(m, "gt")] + [
        f"from {m.ge:,}" for m in about if hasattr(m, "ge")
    ]
    most = [f"below {m.lt:,}" for m in about if hasattr(m, "lt")] + [
        f"to {m.le:,}" for m in about if hasattr(m, "le")
    ]
    if not least or not most:
        return ""
    return f"It is {least[0]} {'and ' if most[0].startswith('below') else ''}{most[0]}".replace(
        ",", " "
    )


def _branches(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (dict, list, tuple):
        return [annotation]
    return [a for a in get_args(annotation) if a is not type(None)]


def _source(where: str, file: Path | str, overrides: Sequence[str]) -> Path | str:
    """The --set that it came from, else the file."""
    keys = [(text, current_name(text.partition("=")[0].strip())) for text in overrides]
    typed = [
        text
        for text, key in keys
        if where == key or where.startswith(key + ".") or key.startswith(where + ".")
    ]
    return f"--set {typed[-1][: 2 * LONGEST]}" if typed else file
