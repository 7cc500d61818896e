"""Every error has a short name, and docs/errors.md has its sentence: the one place that tests hold
wording to. After rewording, `python tests/test_errors.py` writes that page anew."""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "errors.md"
ERRORS = {"InputError": 2, "StageError": 1}
BUILTINS = {"len", "map", "max", "sorted", "str", "sum", "type"}
PASSED_ON = "passed on"  # in place of a name: it is the one of another error
EITHER = {"several"}  # names that stand for other errors, and end with the code that those have
HEAD = """# Errors

A command that cannot do its work says so in one line on stderr,

    error: WHAT (WHERE). WHAT TO DO [name]

and ends with exit code 2 for what you can mend (wrong input, a wrong command, a full disk), 1 where
a stage, the machine or a service failed. The name stays the same when the words change. Braces
stand for what the line fills in, `…` for what is put together elsewhere, and `/` stands between
words of which one is said. `--traceback` shows where in the code it came up.

Folds that train side by side have one error between them: its name is the one that all of them
have, else `several`; `process_killed` where the system ended them, `fold_failed` where they had
none.

| name | exit code | what it says |
| --- | --- | --- |
"""


@dataclass
class Kind:
    """A way to make an error: a class, or a function of the source that returns or raises one.

    `made`: the constructions in it; their texts name its parameters.
    """

    name: str
    parameters: list[str]
    defaults: dict[str, ast.AST]
    exit_code: int = 0
    made: list[tuple[str, ast.Call, Scope]] = field(default_factory=list)


class Scope:
    """What the names in a text stand for: `given` to a function, or assigned in it."""

    def __init__(self, function: ast.AST | None = None, given: dict[str, object] | None = None):
        self.function, self.given = function, given or {}

    def texts(self, name: str, before: int) -> list[ast.AST]:
        """The values that the name is assigned, the last one before this line first."""
        found = []
        for node in ast.walk(self.function) if self.function is not None else []:
            if isinstance(node, ast.Assign):
                for target, value in pairs(node.targets[0], node.value):
                    if isinstance(target, ast.Name) and target.id == name:
                        found.append((node.lineno, value))
        found.sort(key=lambda pair: (pair[0] > before, abs(before - pair[0])))
        return [value for _, value in found]


def pairs(target: ast.AST, value: ast.AST):
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return list(zip(target.elts, value.elts, strict=False))
    return [(target, value)]


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def files() -> list[Path]:
    return sorted((ROOT / "src").rglob("*.py"))


def parameters(function: ast.FunctionDef) -> tuple[list[str], dict[str, ast.AST]]:
    a = function.args
    names = [p.arg for p in [*a.posonlyargs, *a.args] if p.arg != "self"]
    defaults = dict(zip(names[len(names) - len(a.defaults) :], a.defaults, strict=True))
    return [*names, *(p.arg for p in a.kwonlyargs)], defaults


@cache
def classes() -> dict[str, Kind]:
    """The errors of src/: InputError, StageError and what is made of them."""
    kinds = {name: Kind(name, ["what", "where", "todo"], {}, n) for name, n in ERRORS.items()}
    kinds["StageError"].parameters = ["what"]
    kinds["Unreadable"] = Kind("Unreadable", ["what"], {}, 2)  # passed on by plain_yaml.py
    defined = [n for f in files() for n in ast.walk(parsed(f)) if isinstance(n, ast.ClassDef)]
    while True:
        new = [c for c in defined if c.name not in kinds and base(c) in kinds]
        if not new:
            return kinds
        for c in new:
            parent = kinds[base(c)]
            kind = Kind(c.name, parent.parameters, parent.defaults, parent.exit_code)
            inits = [n for n in c.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
            for init in inits:
                kind.parameters, kind.defaults = parameters(init)
                kind.made = [(parent.name, n, Scope(init)) for n in ast.walk(init) if is_super(n)]
            kind.made = kind.made or parent.made
            kinds[c.name] = kind


def base(c: ast.ClassDef) -> str:
    return c.bases[0].id if c.bases and isinstance(c.bases[0], ast.Name) else ""


def is_super(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__"


def raised() -> list[tuple[str, int, str, str]]:
    """(name, exit code, sentence, file:line) of every error that src/ and run.sh can end with."""
    found = []
    for file in files():
        within = makers(parsed(file))
        for function, call in calls(parsed(file)):
            name = called(call)
            where = f"{file.relative_to(ROOT).as_posix()}:{call.lineno}"
            if name in within:
                kind = within[name]
            elif name in classes() and function_name(function) not in within:
                kind = classes()[name]
            else:
                continue
            for code, exit_code, text in expanded(kind, call, Scope(function)):
                found.append((code, exit_code, text, where))
    return [row for row in found if row[0] != PASSED_ON] + of_data() + of_shell()


def of_shell() -> list[tuple[str, int, str, str]]:
    """What run.sh says before there is a Python to say it."""
    found = []
    for number, line in enumerate((ROOT / "run.sh").read_text(encoding="utf-8").splitlines(), 1):
        if text := re.search(r'\bfail "(.*?)(?: \[(\w+)\])?"', line):
            plain = re.sub(r"\$(\{\w+[^}]*\}|\w+)", shell_word, text[1])
            found.append((text[2] or "", 2, plain, f"run.sh:{number}"))
    return found


def shell_word(variable: re.Match) -> str:
    """{word} for what a shell variable holds; $1 is the Python that it tries."""
    name = re.search(r"\w+", variable[1])[0]
    return "{python}" if name.isdigit() else "{" + name + "}"


def of_data() -> list[tuple[str, int, str, str]]:
    """What prepare finds wrong with the data: src/data/problems.py."""
    file = ROOT / "src" / "data" / "problems.py"
    kinds = next(
        ast.literal_eval(node.value)
        for node in parsed(file).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "KINDS"
    )
    todo = "Correct them, or go on without them: --set data.on_error=skip"
    rows = {f"data_{k}": "{count} " + several + ": {names}" for k, (_, several) in kinds.items()}
    rows["data_several"] = "{count} problems of {count} kinds in the data, listed above"
    return [
        (c, 2, f"{what} ({{data}}). {todo}", "src/data/problems.py") for c, what in rows.items()
    ]


def makers(tree: ast.Module) -> dict[str, Kind]:
    """The functions of a file that make errors of a `code` that is handed to them."""
    found: dict[str, Kind] = {}
    for function, call in calls(tree):
        if called(call) in classes() and function is not None:
            names, defaults = parameters(function)
            if "code" in names and isinstance(keyword(call, "code"), ast.Name):
                kind = found.setdefault(function.name, Kind(function.name, names, defaults))
                kind.made.append((called(call), call, Scope(function)))
    return found


def calls(tree: ast.AST, function: ast.AST | None = None):
    """Every call, with the function that it stands in."""
    for node in ast.iter_child_nodes(tree):
        inner = node if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
        if isinstance(node, ast.Call):
            yield function, node
        yield from calls(node, inner)


def called(call: ast.Call) -> str:
    return getattr(call.func, "id", "")


def function_name(function: ast.AST | None) -> str:
    return getattr(function, "name", "")


def keyword(call: ast.Call, name: str) -> ast.AST | None:
    return next((k.value for k in call.keywords if k.arg == name), None)


def expanded(kind: Kind, call: ast.Call, scope: Scope) -> list[tuple[str, int, str]]:
    """(name, exit code, sentence) of what one call makes."""
    given = dict(kind.defaults)
    given = {name: (value, Scope()) for name, value in given.items()}
    given |= {name: (value, scope) for name, value in zip(kind.parameters, call.args, strict=False)}
    given |= {k.arg: (k.value, scope) for k in call.keywords}
    if not kind.made:  # InputError or StageError itself
        texts = [spelled(*given[n]) if n in given else "" for n in ("what", "where", "todo")]
        if kind.name == "Unreadable":
            texts = [f"not readable as YAML: {texts[0]}", "{file}", ""]
        names = codes(*given["code"]) if "code" in given else [""]
        return [(code, kind.exit_code, sentence(texts)) for code in names]
    return [
        row
        for parent, inner, there in kind.made
        for row in expanded(classes()[parent], inner, Scope(there.function, given))
    ]


def mentions(node: ast.AST, name: str) -> bool:
    return any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(node))


@cache
def constants() -> dict[str, ast.AST]:
    """The texts that src/ has names in capitals for."""
    return {
        node.targets[0].id: node.value
        for file in files()
        for node in parsed(file).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and (isinstance(node.value, ast.JoinedStr) or type(getattr(node.value, "value", 0)) is str)
    }


def codes(node: ast.AST, scope: Scope) -> list[str]:
    """The names that an expression can come to."""
    if isinstance(node, ast.Constant):
        return [node.value]
    if isinstance(node, ast.IfExp):
        return codes(node.body, scope) + codes(node.orelse, scope)
    if isinstance(node, ast.Name) and node.id in scope.given:
        return codes(*scope.given[node.id])
    if isinstance(node, ast.Name):
        return [c for text in scope.texts(node.id, node.lineno)[:1] for c in codes(text, scope)]
    return [PASSED_ON]  # another error's .code


def spelled(node: ast.AST, scope: Scope, depth: int = 0) -> str:
    """A text in the source; what it fills in is in braces, and '…' where it is no text."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(part(v, scope, depth) for v in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return spelled(node.left, scope, depth) + spelled(node.right, scope, depth)
    if isinstance(node, ast.IfExp):
        either = [spelled(n, scope, depth) for n in (node.body, node.orelse)]
        return " / ".join(text for text in either if text)
    if isinstance(node, ast.Name) and node.id in scope.given:
        text = spelled(*scope.given[node.id], depth + 1)
        return text if text != "…" else filled(node)
    if isinstance(node, ast.Name) and depth < 5:
        texts = [t for t in scope.texts(node.id, node.lineno) if not mentions(t, node.id)]
        texts += [constants()[node.id]] if node.id in constants() else []
        text = spelled(texts[0], scope, depth + 1) if texts else "…"
        return text if text != "…" else filled(node)
    if isinstance(node, ast.Call) and not node.args and called(node) in returned():
        return spelled(returned()[called(node)], scope, depth + 1)
    return filled(node)


@cache
def returned() -> dict[str, ast.AST]:
    """Functions of the project that give back one text, by name."""
    found = {}
    for file in files():
        for node in parsed(file).body:
            last = node.body[-1] if isinstance(node, ast.FunctionDef) else None
            if isinstance(last, ast.Return) and isinstance(last.value, ast.JoinedStr):
                found[node.name] = last.value
    return found


def part(value: ast.AST, scope: Scope, depth: int) -> str:
    if isinstance(value, ast.Constant):
        return value.value
    inner = value.value
    if isinstance(inner, ast.Name) and (inner.id in scope.given or inner.id in constants()):
        return spelled(inner, scope, depth)
    if isinstance(inner, ast.Name):
        texts = scope.texts(inner.id, inner.lineno)[:1]
        if texts and isinstance(texts[0], ast.Call) and called(texts[0]) == "counted":
            return filled(texts[0])
    return filled(inner)


def filled(node: ast.AST) -> str:
    """{word}: the last name in the expression that says something of what stands there."""
    if isinstance(node, ast.Call) and called(node) == "command":  # the command line itself
        words = [a.value if isinstance(a, ast.Constant) else filled(a) for a in node.args]
        return " ".join(["./run.sh", *words])
    if isinstance(node, ast.Call) and called(node) == "counted":
        return "{count} " + spelled(node.args[2], Scope())
    if isinstance(node, ast.Call) and called(node) == "nearest":
        return "Did you mean {nearest}?"
    word = told(node)
    return "{" + word + "}" if word else "…"


def told(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return "" if node.id in BUILTINS else node.id.strip("_")
    if isinstance(node, ast.Attribute):
        return told(node.value) if node.attr in ("name", "file") or "__" in node.attr else node.attr
    if isinstance(node, ast.Constant):
        return str(node.value) if re.fullmatch(r"[A-Za-z]\w*", str(node.value)) else ""
    if isinstance(node, (ast.ListComp, ast.GeneratorExp)):
        return told(node.generators[0].iter)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return told_by_method(node, node.func)
    children = node.args if isinstance(node, ast.Call) else ast.iter_child_nodes(node)
    words = [told(n) for n in children]
    words += [called(node)] if isinstance(node, ast.Call) else []
    return next((word for word in words if word), "")


def told_by_method(node: ast.Call, method: ast.Attribute) -> str:
    """paths.metrics(name) tells of metrics, time.replace(…) of a time, ", ".join(x) of x."""
    if isinstance(method.value, ast.Name) and method.value.id in ("paths", "self"):
        return method.attr
    words = [told(a) for a in node.args]
    first = isinstance(method.value, ast.Name) and method.attr != "relative_to"  # a module, mostly
    words = [*words, told(method.value)] if first else [told(method.value), *words]
    return next((word for word in words if word), method.attr)


def sentence(texts: list[str]) -> str:
    what, where, todo = texts
    where = f" ({where})" if where else ""
    return without_trifles(f"{what}{where}. {todo}".strip())


def without_trifles(text: str) -> str:
    """Without what is filled in right behind a word, a few words more or none, and without the same
    piece twice in a row."""
    text = re.sub(r"(?<=[A-Za-z0-9)\]}])\{\w+\}", "", text)
    return re.sub(r"(\{\w+\})( \1)+", r"\1", text)


def page() -> str:
    rows = {(code, exit_code, text) for code, exit_code, text, _ in raised()}
    lines = [f"| `{c}` | {n} | {escaped(t)} |" for c, n, t in sorted(rows)]
    return HEAD + "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """As a cell of a table in Markdown."""
    text = " ".join(text.split()).replace("|", "\\|")
    return re.sub(r"([<>*_])", r"\\\1", text)


def test_every_error_has_a_name():
    form = re.compile(r"[a-z][a-z0-9_]+")
    lacking = [where for code, _, _, where in raised() if not form.fullmatch(code)]
    assert not lacking, 'these errors have no code="short_name"'


def test_a_name_has_one_exit_code():
    found: dict[str, set[int]] = {}
    for code, exit_code, _, _ in raised():
        found.setdefault(code, set()).add(exit_code)
    assert {code for code, exits in found.items() if len(exits) > 1} <= EITHER


def test_the_docs_have_every_sentence_and_none_that_is_gone():
    assert PAGE.read_text(encoding="utf-8") == page(), "python tests/test_errors.py writes it anew"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.exit(0)
