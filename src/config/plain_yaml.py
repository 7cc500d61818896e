"""YAML as configs use it: mappings, lists, words and numbers, each key once, in bounds.

What YAML has besides is refused with its line: anchors that multiply or hold themselves, tags of
other types, several documents. A date is a word like any other, and so is what only YAML 1.1 takes
for a number: 1:30 (90 there), 1_0, 0b11, 017 (15 there).
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 100_000  # of a file: pyyaml reads about 50 kB a second
MOST_VALUES = 20_000  # anchors expanded
DEEPEST = 40
MOST_BITS = 1000  # of a whole number: Python itself refuses to print some thousand digits
LONGEST = 5_000  # characters of one text

UNKNOWN = (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError)


class Unreadable(Exception):
    """`line`: from 1, or None. `code`: as InputError's; invalid_yaml where the form is wrong."""

    def __init__(self, what: str, line: int | None = None, *, code: str):
        super().__init__(what)
        self.line, self.code = line, code


class Loader(yaml.SafeLoader):
    """SafeLoader with fewer types, and with a bound on its recursion."""

    depth = 0

    def compose_node(self, parent, index):
        self.depth += 1
        if self.depth > DEEPEST:
            line = self.peek_event().start_mark.line + 1
            raise Unreadable(f"nested deeper than {DEEPEST} levels", line, code="config_too_large")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

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


def parse(text: str) -> Any:
    """The value of a YAML text: dict, list, str, int, float, bool or None; raises Unreadable."""
    if len(text) > MOST_BYTES:
        raise Unreadable(
            f"it is longer than {MOST_BYTES} characters, which no config is",
            code="config_too_large",
        )
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {})
        value = loader.construct_document(node)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Unreadable(
            f"it holds the character {_named(chr(error.character))}: take it out",
            line,
            code="control_character",
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        what = (
            getattr(error, "problem", None) or getattr(error, "context", None) or "it is not YAML"
        )
        typed = isinstance(error, yaml.constructor.ConstructorError)
        code = "invalid_yaml_value" if typed else "invalid_yaml"
        raise Unreadable(what, mark.line + 1 if mark else None, code=code) from None
    _check(value)
    return value


def read(file: Path) -> Any:
    """The same of a file; raises Unreadable, and OSError where it cannot be read."""
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


def strange(text: str, also: tuple[str, ...] = ()) -> str:
    """The first character that is no part of any text, as U+001B, or ''.

    `also`: more categories of Unicode that are refused.
    """
    bad = ("Cc", "Cs", *also)
    return next(
        (_named(c) for c in text if c not in "\t\n\r" and unicodedata.category(c) in bad), ""
    )


def _named(character: str) -> str:
    return f"U+{ord(character):04X}"


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _measure(node: yaml.Node, known: dict[yaml.Node, tuple[int, int] | None]) -> tuple[int, int]:
    """(values, levels) of a node with its anchors expanded, before anything is expanded.

    `known`: None while a node is being measured. An alias comes after its anchor, so that this
    recursion is as deep as the text alone. Raises Unreadable, also for a key given twice.
    """
    if node in known:
        if known[node] is None:
            raise Unreadable("an anchor holds itself", _line(node), code="yaml_holds_itself")
        return known[node]
    known[node] = None
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            children += [key, value]
            if not isinstance(key, yaml.ScalarNode):
                continue
            first = lines.setdefault((key.tag, key.value), _line(key))
            if len(lines) < len(children) // 2:
                raise Unreadable(
                    f"the key '{key.value[:60]}' is there twice, first in line {first}: "
                    "keep one of them",
                    _line(key),
                    code="duplicate_key",
                )
    sizes = [_measure(child, known) for child in children]
    values, levels = 1 + sum(s[0] for s in sizes), 1 + max((s[1] for s in sizes), default=0)
    if values > MOST_VALUES:
        raise Unreadable(
            f"it holds more than {MOST_VALUES} values", _line(node), code="config_too_large"
        )
    if levels > DEEPEST:
        raise Unreadable(
            f"nested deeper than {DEEPEST} levels", _line(node), code="config_too_large"
        )
    known[node] = values, levels
    return known[node]


def _check(value: Any) -> None:
    """Raises Unreadable for a text or number that nothing here can mean."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check(key)
            if isinstance(key, str) and (found := next((c for c in "\n\r\t" if c in key), "")):
                raise Unreadable(
                    f"a key holds the character {_named(found)}: take it out",
                    code="control_character",
                )
            _check(inner)
    elif isinstance(value, list):
        for inner in value:
            _check(inner)
    elif isinstance(value, str):
        if len(value) > LONGEST:
            raise Unreadable(
                f"a text of {len(value)} characters, more than {LONGEST}", code="config_too_large"
            )
        if found := strange(value):
            raise Unreadable(
                f"a text holds the character {found}: take it out", code="control_character"
            )
    elif isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise Unreadable("a whole number is too large for anything", code="config_too_large")
