"""What the README says is so: stages, files, names of registries, settings, and the example
config."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

from src.cli import TOOLS, parse
from src.config.load import load
from src.config.overrides import leaves
from src.core.paths import Paths
from src.core.settings import Competition, Ensemble, Experiment
from src.pipeline.jobs import STAGES, plan

README = (ROOT / "README.md").read_text()
TREE = README.split("## What lies where")[1].split("```")[1]
KNOWN = {*leaves(Competition), *leaves(Experiment), *leaves(Ensemble)}


def test_every_stage_is_shown_and_every_shown_command_is_understood():
    lines = re.findall(r"^\./run\.sh ([^#\n]*)", README, re.M)
    shown = {line.split()[0] for line in lines if line.strip() and not line.startswith("-")}
    assert {*STAGES, *TOOLS} <= shown <= {*STAGES, *TOOLS, "study", "demo", "test", "status"}
    for line in lines:
        if not line.startswith("test"):
            parse(shlex.split(line))


def test_the_tree_of_artifacts_is_the_map_of_names():
    paths, name = Paths(Path("w"), Path("d")), "x"
    written = [
        paths.index,
        paths.report,
        paths.truth,
        paths.images(Experiment(image_size=448, resize="stretch")),
        paths.masks(Experiment(image_size=448, resize="stretch")),
        paths.folds,
        paths.checkpoint(name, 0, "last"),
        paths.checkpoint(name, 0, "best"),
        paths.log(name, 0),
        paths.curves(name, 0),
        paths.oof(name),
        paths.test(name),
        paths.weights(name),
        paths.metrics(name),
        paths.per_image(name),
        paths.decision(name),
        paths.html(name),
        paths.submission_log,
        paths.submission_plot,
    ]
    assert set(re.findall(r"[\w]+\.(?:csv|json|npy|npz|pt|png|html)", TREE)) == {
        p.name for p in written
    }
    for folder in (
        paths.prepared,
        paths.bundle("<name>"),
        paths.fold("<experiment>", 0),
        paths.predictions("<ensemble>"),
    ):
        assert str(folder.relative_to("w")).replace("fold0", "fold<k>") in TREE
    assert all(re.search(rf"\b{stage}\b", TREE) for stage in STAGES)


def test_one_stage_at_a_time_works_as_typed_from_top_to_bottom(demo, tmp_path):
    """On a fresh folder each line finds what it reads, and nothing is left to do."""
    typed = README.split("## One stage")[1].split("## ")[0]
    lines = re.findall(r"^\./run\.sh ([^#\n]*)", typed, re.M)
    paths, done, everything = Paths(tmp_path, demo), set(), []
    for line in lines:
        given = parse(shlex.split(line))
        everything = plan(load(ROOT / given.config), paths)
        jobs = [j for j in everything if j.stage == given.stage]
        assert jobs, line
        for job in jobs:
            lacking = [m.title for m in job.makers(everything) if m.title not in done]
            assert [title for title in lacking if title not in {j.title for j in jobs}] == [], line
        done |= {j.title for j in jobs}
        if given.stage == "submit":
            assert [j.title for j in everything if j.title not in done] == []
    assert {"configs/cpu.yaml", "configs/ensemble.yaml"} == {line.split()[-1] for line in lines}


@pytest.mark.parametrize(
    "file, names", re.findall(r"\| `(src/parts/\w+\.py)`, (?:dict )?(`[^|]*`)", README)
)
def test_the_registries_are_where_the_readme_says(file, names):
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    for name in re.findall(r"`(\w+)`", names):
        assert isinstance(getattr(module, name), dict) and getattr(module, name)


def test_the_table_of_what_can_be_named_names_all_of_it():
    """Every entry of every registry, so that a new one is not forgotten."""
    from src.parts import augment, filters, heads, losses, metrics, models, sampling

    table = README.split("Possible values:")[1].split("## ")[0]
    for key, *registries in (
        ("model.arch", models.MODELS),
        ("model.head", heads.HEADS),
        ("loss.mask", losses.MASK_LOSSES, losses.MAP_LOSSES),
        ("loss.label", losses.LABEL_LOSSES),
        ("train.augment", augment.AUGMENTS, augment.MIXES, sampling.SAMPLINGS),
        ("filter", filters.FILTERS),
        ("score", metrics.MASK_METRICS, metrics.LABEL_METRICS),
    ):
        row = next(line for line in table.splitlines() if line.startswith(f"| `{key}`"))
        assert not (
            lacking := [
                name for registry in registries for name in registry if f"`{name}`" not in row
            ]
        ), f"{key}: {lacking}"


def test_every_file_and_setting_that_is_named_exists():
    for page in (
        README,
        (ROOT / "input" / "README.md").read_text(),
        *(p.read_text() for p in (ROOT / "docs").glob("*.md")),
    ):
        for file in re.findall(r"\b(?:src|configs|docs)/[\w/]+\.(?:py|yaml|md|png)\b", page):
            assert (ROOT / file).is_file() or file in (
                "configs/new.yaml",
                "configs/studies/new.yaml",
                "src/stages/verb.py",
            ), file
        for key in re.findall(r"--set ([a-z_.]+)=", page):
            assert key in KNOWN or key == "key", key


def test_the_example_config_is_valid(tmp_path):
    (tmp_path / "competition.yaml").write_text("")
    (tmp_path / "example.yaml").write_text(
        re.search(r"```yaml\n(.*?)```", README.split("## An experiment")[1], re.S)[1]
    )
    assert load(tmp_path / "example.yaml").experiment.train.epochs == 20


def test_requirements_give_a_reason_for_every_line_and_no_second_cv2():
    lines = [
        line
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert all("#" in line for line in lines)
    names = [re.match(r"[\w-]+", line)[0] for line in lines]
    assert "six" in names and "opencv-python" not in names and len(names) == len(set(names))


PROMISES = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file, test", re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", PROMISES))
def test_each_promise_has_its_test(file, test):
    text = (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert f"\ndef {test}(" in text if test else "\ndef test_" in text


def test_no_promise_is_without_a_test():
    kept = PROMISES.split("## Not promised")[0].split("\n- ")[1:]
    lacking = [p for p in kept if "test_" not in p and "same sweep" not in p]
    assert [p for p in lacking if "docs/errors.md" not in p] == []
