"""Every error has a short name, and docs/errors.md has its sentence: the one place that tests hold
wording to. After rewording, `python tests/test_errors.py` writes that page anew."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "errors.md"
ERRORS = {"InputError": 2, "StageError": 1}
HEAD = """# Errors

A command that cannot do its work says so in one line on stderr,

    error: WHAT (WHERE). WHAT TO DO [name]

and ends with exit code 2 where the input or the command is wrong, 1 where a stage failed. The name
stays the same when the words change. Braces stand for what the line fills in; `…` for what is put
together elsewhere. `--traceback` shows where in the code it came up.

| name | exit code | what it says |
| --- | --- | --- |
"""


def raised() -> list[tuple[str, int, str, str]]:
    """(name, exit code, sentence, file:line) of every error that src/ can raise."""
    found = []
    for file in sorted((ROOT / "src").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for function, call in calls(tree):
            where = f"{file.relative_to(ROOT).as_posix()}:{call.lineno}"
            name = next((k.value for k in call.keywords if k.arg == "code"), None)
            code = name.value if isinstance(name, ast.Constant) else ""
            texts = [spelled(a, function) for a in call.args]
            found.append((code, ERRORS[call.func.id], sentence(texts), where))
    return found


def calls(tree: ast.AST, function: ast.AST | None = None):
    """Every construction of an error, with the function that it stands in."""
    for node in ast.iter_child_nodes(tree):
        inner = node if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) in ERRORS:
            yield function, node
        yield from calls(node, inner)


def spelled(node: ast.AST, function: ast.AST | None) -> str:
    """A text in the source, with what it fills in left as braces; '…' where it is no text."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            v.value if isinstance(v, ast.Constant) else "{" + ast.unparse(v.value) + "}"
            for v in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return spelled(node.left, function) + spelled(node.right, function)
    if isinstance(node, ast.IfExp):
        return f"{spelled(node.body, function)} | {spelled(node.orelse, function)}"
    if isinstance(node, ast.Name) and function is not None:
        return assigned(node.id, function) or "…"
    return "{" + ast.unparse(node) + "}" if isinstance(node, ast.Call) else "…"


def assigned(name: str, function: ast.AST) -> str:
    """What the function gives this name, where that is a text."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target, value in pairs(node.targets[0], node.value):
                if isinstance(target, ast.Name) and target.id == name:
                    return spelled(value, None)
    return ""


def pairs(target: ast.AST, value: ast.AST):
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return list(zip(target.elts, value.elts, strict=False))
    return [(target, value)]


def sentence(texts: list[str]) -> str:
    what, where, todo = [*texts, "", "", ""][:3]
    where = f" ({where})" if where else ""
    return f"{what}{where}. {todo}".strip()


def page() -> str:
    rows = {(code, exit_code, text) for code, exit_code, text, _ in raised()}
    lines = [f"| `{c}` | {n} | {escaped(t)} |" for c, n, t in sorted(rows)]
    return HEAD + "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """As a cell of a table in Markdown."""
    text = " ".join(text.split()).replace("|", "\\|")
    return re.sub(r"([<>*_])", r"\\\1", text)


def test_every_error_has_a_name():
    lacking = [where for code, _, _, where in raised() if not re.fullmatch(r"[a-z][a-z0-9_]+", code)]
    assert not lacking, "these errors have no code=\"short_name\""


def test_a_name_has_one_exit_code():
    codes: dict[str, set[int]] = {}
    for code, exit_code, _, _ in raised():
        codes.setdefault(code, set()).add(exit_code)
    assert [code for code, found in codes.items() if len(found) > 1] == []


@pytest.mark.parametrize("row", page().splitlines()[len(HEAD.splitlines()) :])
def test_each_sentence_is_the_one_in_the_docs(row):
    assert row in PAGE.read_text(encoding="utf-8").splitlines(), "python tests/test_errors.py"


def test_the_docs_have_no_sentence_that_is_gone():
    assert PAGE.read_text(encoding="utf-8") == page(), "python tests/test_errors.py writes it anew"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.exit(0)
