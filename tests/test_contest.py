"""A whole contest as the README has it, five commands in an empty folder, against the stand-in for
Kaggle."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from kaggle_server import CLEARED, SECRETS, KaggleServer
from test_chain import SMALL

SLUG = "aio-medical-image"


def share_of_lesions(data: bytes) -> tuple[float, float]:
    """A score that depends on what was handed in, public and private."""
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    return round(sum(r["label"] != "normal" for r in rows) / len(rows), 4), round(
        sum(r["rle"] != "-1" for r in rows) / len(rows), 4
    )


@pytest.fixture
def clone(tmp_path) -> Path:
    """The project as a newcomer has it, with one small experiment more."""
    home = tmp_path / "clone"
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    (home / "input").mkdir()
    for name in ("run.sh", "requirements.txt", "input/README.md"):
        shutil.copy(ROOT / name, home / name)
    (home / "configs" / "small.yaml").write_text(SMALL)
    return home


def test_five_commands_from_an_empty_folder_to_the_leaderboard(clone, demo, tmp_path):
    files = {
        f.relative_to(demo).as_posix(): f.read_bytes()
        for f in demo.rglob("*")
        if f.is_file() and f.name != "demo.json"
    }
    with KaggleServer() as kaggle:
        contest = kaggle.add(SLUG, files, scorer=share_of_lesions, polls=1)
        environment = (
            {k: v for k, v in os.environ.items() if k not in CLEARED}
            | kaggle.environment(tmp_path / "home")
            | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
        )
        environment.pop("VIRTUAL_ENV", None)

        def run(*words: str) -> str:
            done = subprocess.run(
                ["./run.sh", *words],
                cwd=clone,
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
            said = done.stdout + done.stderr
            assert done.returncode == 0, said
            assert not any(secret in said for secret in SECRETS)
            return said

        config = (
            "--config",
            "configs/small.yaml",
            "--set",
            "split.folds=2",
            "--set",
            "train.epochs=2",
        )
        assert "24 train and 6 test images" in run("fetch", "--competition", SLUG)
        assert f"data input/{SLUG}" in run("status", *config)  # it is the only contest there
        assert "inferred" in (said := run(*config)) and "submission: submissions/small.csv" in said
        said = run("submit", *config, "--send", "--yes", "-m", "two folds")
        sent = (clone / "submissions" / "small.csv").read_bytes()
        assert [s["data"] for s in contest.submissions] == [sent]
        public, private = share_of_lesions(sent)
        assert f"{public:.4f}" in said
        table = run("submissions")
        assert "two folds" in table and f"{public:.4f}" in table
        [row] = csv.DictReader((clone / "submissions" / "log.csv").read_text().splitlines())
        assert row["status"] == "complete"
        assert float(row["public"]) == public
        assert float(row["private"]) == private
        assert row["competition"] == SLUG
        assert row["sha256"] == hashlib.sha256(sent).hexdigest()
        assert 0 < float(row["cv"]) < 1
        assert row["message"] == "two folds"
        assert (clone / "submissions" / "log.png").stat().st_size > 5000
        again = subprocess.run(
            ["./run.sh", "submit", *config, "--send", "--yes"],
            cwd=clone,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert again.returncode == 2 and "--force" in again.stderr and len(contest.submissions) == 1
    assert not any(
        secret in f.read_text(errors="replace")
        for f in (clone / "input").rglob("*.json")
        for secret in SECRETS
    )
