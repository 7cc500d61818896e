"""The notebooks: committed bare, without logic of their own, and run on a tiny generated data set
as Kaggle would run them."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_chain import SMALL

from src.__main__ import main
from src.config.load import load
from src.core.paths import Paths
from src.pipeline.jobs import plan

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LOGIC = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.Lambda,
    ast.ClassDef,
    ast.For,
    ast.While,
    ast.If,
    ast.IfExp,
    ast.Try,
    ast.ListComp,
    ast.DictComp,
    ast.SetComp,
    ast.GeneratorExp,
)
TINY = "train: {epochs: 1, lr: 2.0e-3, workers: 0, batch_size: 4}"


def code_of(file: Path) -> list[str]:
    return [
        "".join(cell["source"])
        for cell in json.loads(file.read_text())["cells"]
        if cell["cell_type"] == "code"
    ]


def execute(name: str, folder: Path, monkeypatch, **environment: object):
    """Run a notebook of the project in `folder`; returns it with its outputs. Fails with the cell's
    own error."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for key, value in (
        {"CODE": ROOT, "PYTHON": sys.executable, "OMP_NUM_THREADS": 1} | environment
    ).items():
        monkeypatch.setenv(key, str(value))
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return notebook


def texts(notebook) -> list[str]:
    """What each code cell printed, stdout and stderr together."""
    return [
        "".join(o.get("text", "") for o in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def shown(cell) -> set[str]:
    return {kind for output in cell.outputs for kind in output.get("data", {})}


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.name)
def test_a_notebook_is_committed_without_outputs(file):
    book = json.loads(file.read_text())
    assert book["nbformat"] == 4 and any(cell["cell_type"] == "markdown" for cell in book["cells"])
    for cell in book["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None, "".join(
            cell["source"]
        )[:60]
        assert not {"execution", "ExecuteTime", "trusted"} & cell["metadata"].keys()
    assert "widgets" not in book["metadata"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.name)
def test_a_notebook_holds_no_logic_of_its_own(file):
    for source in code_of(file):
        if source.startswith("%%"):
            assert "run.sh" in source or "pip install" in source, source
            continue
        python = "\n".join(
            line for line in source.splitlines() if not line.lstrip().startswith(("!", "%"))
        )
        assert not [node for node in ast.walk(ast.parse(python)) if isinstance(node, LOGIC)], source


def test_explore_shows_a_table_or_a_picture_in_every_cell(demo, tmp_path, monkeypatch):
    work = tmp_path / "my work"  # a name with a space
    book = execute(
        "explore.ipynb", tmp_path, monkeypatch, DATA=demo, WORK=work, CONFIG="configs/demo.yaml"
    )
    cells = [c for c in book.cells if c.cell_type == "code"]
    assert "24 train images" in texts(book)[1]
    asked = [c for c in cells if c.source.startswith("explore.")]
    assert len(asked) == len(cells) - 3 >= 14
    for cell in asked:
        assert shown(cell) & {"image/png", "text/html"}, cell.source
    assert sum("image/png" in shown(c) for c in asked) >= 9
    assert not any(o.get("name") == "stderr" for c in asked for o in c.outputs), (
        "no warnings of the drawing"
    )
    assert [p.name for p in work.iterdir()] == ["artifacts"] and not list(tmp_path.glob("*.ipynb"))


def test_kaggle_train_goes_on_from_an_earlier_versions_output_to_a_submission_and_a_bundle(
    demo, tmp_path, monkeypatch
):
    """The earlier version has trained one of two folds. It is not trained again, and once more
    nothing of the new version is, wherever it is copied to."""
    configs, earlier, work = (
        tmp_path / "configs",
        tmp_path / "input" / "earlier",
        tmp_path / "working",
    )
    configs.mkdir()
    (configs / "small.yaml").write_text(SMALL.replace("train: {lr: 2.0e-3}", TINY))
    text = (ROOT / "configs" / "competition.yaml").read_text()
    (configs / "competition.yaml").write_text(
        text.replace("folds: 5", "folds: 2") + "\nevaluate: {bootstrap: 100}\n"
    )
    words = ["--config", str(configs / "small.yaml"), "--data", str(demo)]
    for stage in (["prepare"], ["split"], ["train", "--fold", "0"]):
        assert main([*stage, *words, "--work", str(earlier)]) == 0
    for path in (earlier, *earlier.rglob("*")):
        path.chmod(path.stat().st_mode & 0o555)  # Kaggle's input is for reading
    python = (
        tmp_path / "python"
    )  # everything is installed, and pip would take ten seconds to say so
    python.write_text(
        f'#!/bin/sh\n[ "$2" != pip ] || exec echo "$@"\nexec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    try:
        book = execute(
            "kaggle_train.ipynb",
            tmp_path,
            monkeypatch,
            PYTHON=python,
            DATA=demo,
            WORK=work,
            CONFIG=configs / "small.yaml",
            PREVIOUS=earlier,
            HOURS=1,
            REPOSITORY=tmp_path / "none",
        )
    finally:
        for path in (earlier, *earlier.rglob("*")):
            path.chmod(path.stat().st_mode | 0o200)
    _, installed, before, run, after, _, bundle = texts(book)
    assert installed.startswith("-m pip install ") and installed.endswith(
        f" -r {ROOT}/requirements.txt\n"
    )
    state = {
        line[2:34].strip(): line[36:].split()[0]
        for line in before.splitlines()
        if line.startswith("  ")
    }
    assert (
        state["train small fold 0"] == "done"
        and state["train small fold 1"] == "missing"
        and state["prepare"] == state["split"] == "done"
    )
    assert (
        "[train] small fold 1" in run
        and "[train] small fold 0" not in run
        and "[prepare]" not in run
        and "exit code" not in run
    )
    assert "everything is up to date" in after
    old, new = Paths(earlier, demo), Paths(work, demo)
    assert new.submission("small").is_file() and new.html("small").is_file()
    assert (
        new.checkpoint("small", 0, "last").read_bytes()
        == old.checkpoint("small", 0, "last").read_bytes()
        and not new.old.exists()
    )
    results = [c for c in book.cells if "explore.results" in c.source][0]
    assert [sorted(o.data)[0] for o in results.outputs] == [
        "text/html",
        *["image/png"] * 4,
    ] and "nested" in results.outputs[0].data["text/html"]
    assert "no bundle yet" not in bundle and new.bundle("small").is_dir(), bundle

    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(
        work / "artifacts", elsewhere / "artifacts", copy_function=shutil.copyfile
    )  # new times
    states = {
        job.title: job.state().kind
        for job in plan(load(configs / "small.yaml"), Paths(elsewhere, demo))
    }
    assert {title for title, kind in states.items() if kind != "done"} == {"submit small"}, (
        "which is not below artifacts/"
    )


# what stands in for run.sh below, in the cell of kaggle_train that trains
FAILS = "#!/bin/bash\necho 'error: out of memory' >&2\nexit 1\n"
SAVES = "#!/bin/bash\ntrap 'echo saved; kill $!' TERM\nsleep 60 &\nwait\nexit 130\n"


@pytest.mark.parametrize(
    "script, hours, told",
    [
        (FAILS, "1", "error: out of memory\nended with exit code 1 "),
        (SAVES, "0.0003", "saved\nended with exit code 124 "),
    ],
)
def test_the_training_cell_ends_well_where_it_fails_and_where_the_time_is_up(
    script, hours, told, tmp_path
):
    """Kaggle keeps nothing of a version that failed. SIGTERM comes once, as the run needs it to
    save."""
    (tmp_path / "run.sh").write_text(script)
    cell = next(
        c for c in code_of(ROOT / "notebooks" / "kaggle_train.ipynb") if "timeout" in c
    ).removeprefix("%%bash\n")
    environment = os.environ | {
        "CODE": str(tmp_path),
        "CONFIG": "c",
        "DATA": "d",
        "WORK": "w",
        "HOURS": hours,
    }
    done = subprocess.run(
        ["bash", "-c", cell],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and done.stdout.startswith(told), done.stdout


def test_the_cell_that_copies_an_earlier_version_keeps_what_is_newer_and_does_without(tmp_path):
    (tmp_path / "run.sh").write_text("#!/bin/bash\necho status\n")
    cell = next(
        c
        for c in code_of(ROOT / "notebooks" / "kaggle_train.ipynb")
        if "PREVIOUS" in c and "cp " in c
    ).removeprefix("%%bash\n")
    for folder, text in (("earlier", "old"), ("work", "new")):
        (tmp_path / folder / "artifacts").mkdir(parents=True)
        (tmp_path / folder / "artifacts" / "both").write_text(text)
    (tmp_path / "earlier" / "artifacts" / "only").write_text("old")
    for previous in ("none", "earlier"):
        environment = os.environ | {
            "CODE": str(tmp_path),
            "CONFIG": "c",
            "DATA": "d",
            "WORK": str(tmp_path / "work"),
            "PREVIOUS": str(tmp_path / previous),
        }
        done = subprocess.run(
            ["bash", "-c", cell], env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 and done.stdout == "status\n" and not done.stderr
    assert {f.name: f.read_text() for f in (tmp_path / "work" / "artifacts").iterdir()} == {
        "both": "new",
        "only": "old",
    }
