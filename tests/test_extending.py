"""docs/extending.md tells the truth: its diffs apply, are short, and what they add passes the tests
that walk the registries."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

DIFFS = re.findall(r"```diff\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.S)
WALKS = {
    "models": ("test_models.py", "dilated"),
    "losses": ("test_losses.py", "log_cosh_dice"),
    "metrics": ("test_metrics.py", "youden"),
}


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the project with all three diffs."""
    if not shutil.which("git"):
        pytest.skip("git is not installed, and it applies the diffs")
    copy = tmp_path_factory.mktemp("extended")
    for folder in ("src", "tests", "configs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for diff in DIFFS:
        done = subprocess.run(
            ["git", "apply", "-"], input=diff, cwd=copy, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    return copy


def test_there_is_one_of_each_and_each_is_short():
    assert [re.search(r"\+\+\+ b/src/parts/(\w+)\.py", d)[1] for d in DIFFS] == list(WALKS)
    for diff in DIFFS:
        assert (
            sum(
                line[0] in "+-" and not line.startswith(("+++", "---"))
                for line in diff.splitlines()
            )
            <= 15
        )


@pytest.mark.parametrize("file, name", WALKS.values())
def test_what_is_added_is_tested_without_a_new_test(extended, file, name):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", f"tests/{file}", "-k", name],
        cwd=extended,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and re.search(r"\d+ passed", done.stdout), done.stdout[-2000:]
