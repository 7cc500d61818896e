"""How the code is written, and which room of src/ may import which (docs/architecture.md)."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"
# from the top; a room imports from rooms below its floor, and from its own files
FLOORS = [
    ["stages", "tools"],
    ["pipeline"],
    ["submission", "kaggle_io", "scoring"],
    ["training", "report", "parts"],
    ["data"],
    ["config"],
    ["core"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
LONGEST_FILE = 400  # lines: a longer one wants a noun of its own


def ruff(*words: str) -> None:
    command = [sys.executable, "-m", "ruff", *words, "--no-cache", "src", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing():
    ruff("check", "--output-format", "concise")


def test_everything_is_formatted():
    ruff("format", "--check")


def imported(file: Path) -> set[str]:
    """The modules of src/ that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return {name.removeprefix("src.") for name in found if name.startswith("src.")}


@pytest.mark.parametrize("room", FLOOR)
def test_arrows_point_down(room):
    upward = [
        f"{file.relative_to(ROOT)} imports {module}"
        for file in sorted((SRC / room).rglob("*.py"))
        for module in sorted(imported(file))
        if module.split(".")[0] != room and FLOOR.get(module.split(".")[0], -1) <= FLOOR[room]
    ]
    assert not upward


def test_a_stage_imports_no_stage():
    stages = {p.stem for p in (SRC / "stages").glob("*.py")} - {"__init__"}
    for name in stages:
        assert not {f"stages.{s}" for s in stages} & imported(SRC / "stages" / f"{name}.py")


def test_no_circle_within_a_room():
    """Floors rule out circles between rooms; graphlib finds those between a room's files."""
    from graphlib import TopologicalSorter

    files = {".".join(p.relative_to(SRC).with_suffix("").parts): p for p in SRC.rglob("*.py")}
    graph = {name: imported(path) & files.keys() for name, path in files.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_every_room_has_a_floor_and_says_what_lives_there():
    rooms = {p.name for p in SRC.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert rooms == FLOOR.keys()
    for room in rooms:
        text = ast.get_docstring(ast.parse((SRC / room / "__init__.py").read_text()))
        assert text and len(text.splitlines()) >= 2, room


def test_files_stay_short():
    long = {
        str(p.relative_to(ROOT)): lines
        for p in SRC.rglob("*.py")
        if (lines := len(p.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE
    }
    assert not long
    assert len(list((SRC / "core").glob("*.py"))) <= 10


def test_the_page_on_architecture_names_every_room_and_file():
    """One line a room: `| stages/ | prepare split … | what lives there |`."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown = {
        room: set(files.split())
        for room, files in re.findall(r"^\| `(\w+)/` \| ([\w ]+) \|", page, re.MULTILINE)
    }
    there = {room: {p.stem for p in (SRC / room).glob("*.py")} - {"__init__"} for room in FLOOR}
    assert list(shown) == list(FLOOR), "from the top floor down"
    assert shown == there
