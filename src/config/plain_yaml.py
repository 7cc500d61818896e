"""YAML as configs use it: mappings, lists, words and numbers, each key once, in bounds.

What YAML has besides is refused with its line: anchors that multiply or hold themselves, tags of
other types, several documents. A date is a word like any other, and so is what only YAML 1.1 takes
for a number: 1:30 (90 there), 1_0, 0b11, 017 (15 there).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from src.core.console import InputError, nearest
from src.core.disk import what_is
from src.core.paths import COMPETITION

MOST_BYTES = 100_000  # of a file: pyyaml reads about 50 kB a second
MOST_VALUES = 20_000  # anchors expanded
DEEPEST = 40
MOST_DIGITS = 300  # of a whole number: Python itself refuses to print some thousand digits
LONGEST = 5_000  # characters of one text

UNKNOWN = (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError)


class Unreadable(Exception):
    """`line`: from 1, or None. `code`: as InputError's; invalid_yaml where the form is wrong."""

    def __init__(self, what: str, line: int | None = None, *, code: str):
        super().__init__(what)
        self.line, self.code = line, code


class Loader(yaml.SafeLoader):
    """SafeLoader with fewer types."""

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except UNKNOWN:
            kind = node.tag.rpartition(":")[2]
            shown = f"'{node.value[:40]}'" if isinstance(node.value, str) else "this"
            raise Unreadable(
                f"{shown} is not of the type {kind}", _line(node), code="invalid_yaml_value"
            ) from None


TYPES = [
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")
]
NOT_RESOLVED = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")  # dates and = are words
Loader.yaml_constructors = {
    k: v for k, v in yaml.SafeLoader.yaml_constructors.items() if k is None or k in TYPES
}
NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(0|[1-9][0-9]*|0x[0-9a-fA-F]+)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"([-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)"
        r"|\.(nan|NaN|NAN))$"
    ),
}
Loader.yaml_implicit_resolvers = {
    first: [(tag, NUMBERS.get(tag, pattern)) for tag, pattern in known if tag not in NOT_RESOLVED]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(file: Path) -> dict:
    """The keys and values of a config; {} for an empty file. Raises InputError."""
    try:
        if file.is_symlink() and not file.exists():
            raise InputError(
                f"this config is {what_is(file)}",
                file,
                "Mend the link, or name the file itself",
                code="config_unreadable",
            )
        if not file.exists():
            beside = [p.stem for p in sorted(file.parent.glob("*.yaml")) if p.name != COMPETITION]
            example = "Try ./run.sh --config configs/cpu.yaml"
            todo = nearest(file.stem, beside) if beside else example
            raise InputError("no such config", file, todo, code="no_such_config")
        if not file.is_file():
            what = "a folder" if file.is_dir() else "not a file"
            raise InputError(
                f"a config is a YAML file, and this is {what}", file, code="config_unreadable"
            )
        tree = _parse_file(file)
    except Unreadable as error:
        line = f", line {error.line}" if error.line else ""
        raise InputError(
            f"not readable as YAML: {error}", f"{file}{line}", code=error.code
        ) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"this config cannot be read: {why}", str(file)[:160], code="config_unreadable"
        ) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError("a config is a list of key: value lines", file, code="config_unreadable")
    return tree


def _parse_file(file: Path) -> Any:
    with open(file, "rb") as stream:
        data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise Unreadable(
            f"it is larger than {MOST_BYTES // 1000} kB, which no config is",
            code="config_too_large",
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Unreadable("it is not text in UTF-8", line, code="not_utf8") from None
    return parse(text)


def parse(text: str) -> Any:
    """The value of a YAML text: dict, list, str, int, float, bool or None; raises Unreadable."""
    if len(text) > MOST_BYTES:
        raise Unreadable(
            f"it is longer than {MOST_BYTES} characters, which no config is",
            code="config_too_large",
        )
    try:
        loader = Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        for count, node in enumerate(_nodes(root)):
            if count >= MOST_VALUES:
                raise Unreadable(
                    f"it holds more than {MOST_VALUES} values", _line(node), code="config_too_large"
                )
            _check(node)
        return loader.construct_document(root)
    except RecursionError:
        raise _too_deep(None) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Unreadable(
            f"it holds the character {_spelled(chr(error.character))}: take it out",
            line,
            code="control_character",
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        what = getattr(error, "problem", None) or getattr(error, "context", None)
        typed = isinstance(error, yaml.constructor.ConstructorError)
        code = "invalid_yaml_value" if typed else "invalid_yaml"
        line = mark.line + 1 if mark else None
        raise Unreadable(what or "it is not YAML", line, code=code) from None


def _nodes(node: yaml.Node, above: tuple[yaml.Node, ...] = ()) -> Iterator[yaml.Node]:
    """A node and all that are in it, anchors expanded; raises Unreadable for what has no end."""
    if node in above:
        raise Unreadable("an anchor holds itself", _line(node), code="yaml_holds_itself")
    if len(above) >= DEEPEST:
        raise _too_deep(_line(node))
    yield node
    if isinstance(node, yaml.ScalarNode):
        return
    for child in node.value:
        for one in child if isinstance(child, tuple) else (child,):
            yield from _nodes(one, (*above, node))


def _too_deep(line: int | None) -> Unreadable:
    return Unreadable(f"nested deeper than {DEEPEST} levels", line, code="config_too_large")


def _check(node: yaml.Node) -> None:
    """Raises Unreadable for a key given twice, and for a text or number that nothing here means."""
    if isinstance(node, yaml.MappingNode):
        _check_keys([key for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
    if not isinstance(node, yaml.ScalarNode):
        return
    if node.tag.endswith(":int") and len(node.value) > MOST_DIGITS:
        raise Unreadable(
            "a whole number is too large for anything", _line(node), code="config_too_large"
        )
    if len(node.value) > LONGEST:
        raise Unreadable(
            f"a text of {len(node.value)} characters, more than {LONGEST}",
            _line(node),
            code="config_too_large",
        )
    if odd := control_character(node.value):
        raise Unreadable(
            f"a text holds the character {odd}: take it out", _line(node), code="control_character"
        )


def _check_keys(keys: list[yaml.ScalarNode]) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key in keys:
        if odd := control_character(key.value, allowed=""):
            raise Unreadable(
                f"a key holds the character {odd}: take it out",
                _line(key),
                code="control_character",
            )
        if (key.tag, key.value) in lines:
            raise Unreadable(
                f"the key '{key.value[:60]}' is there twice, first in line "
                f"{lines[key.tag, key.value]}: keep one of them",
                _line(key),
                code="duplicate_key",
            )
        lines[key.tag, key.value] = _line(key)


def control_character(
    text: str, categories: tuple[str, ...] = ("Cc", "Cs"), allowed: str = "\t\n\r"
) -> str:
    """The first character that belongs in no text, as U+001B, or ''.

    `categories`: those of Unicode that are refused, but for the characters `allowed`.
    """
    odd = (c for c in text if c not in allowed and unicodedata.category(c) in categories)
    return next(map(_spelled, odd), "")


def _spelled(character: str) -> str:
    return f"U+{ord(character):04X}"


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1
