"""Studies: their cells, what is trained once for all, and when a difference is called one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, refused
from test_evaluate import counts_of

from src.__main__ import main
from src.config.load import load
from src.core.console import InputError
from src.core.paths import Paths
from src.parts import metrics
from src.scoring.compare import Answers, Difference, paired

SMALL = """
image_size: 64
model:
  arch: unet
  encoder: tu-lcnet_035
  encoder_weights: none
  options: {decoder_channels: [32, 16, 16, 8, 8]}
train: {epochs: 1, lr: 2.0e-3, workers: 0}
"""
OF_SMALL = "question: Q\nbase: small\n"
BALANCE = OF_SMALL + "set: {split.folds: 2}\ngrid: {loss.mask_weight: [0.7, 0.2]}\n"
DECIDE = (
    OF_SMALL
    + "set: {split.folds: 2, evaluate.threshold: [0.5], evaluate.min_area: [0.0]}\n"
    + "cells: {low: {evaluate.threshold: [0.1]}, mask only: {task: mask}}\n"
)


@pytest.fixture
def configs(tmp_path) -> Path:
    folder = tmp_path / "configs"
    (folder / "studies").mkdir(parents=True)
    shutil.copy(ROOT / "configs" / "competition.yaml", folder)
    (folder / "small.yaml").write_text(SMALL)
    return folder


def study(configs: Path, text: str, **options):
    """A study of `small`, unless the text names another base."""
    file = configs / "studies" / "s.yaml"
    file.write_text(text if "base:" in text or "question:" in text else OF_SMALL + text)
    return load(file, **options)


def names(config) -> dict[str, list[str]]:
    return {label: [c.name for c in made] for label, made in config.cells.items()}


def test_a_cell_that_changes_nothing_is_the_base_and_comes_first(configs):
    assert names(study(configs, "grid: {loss.mask_weight: [0.2, 0.7]}")) == {
        "mask_weight 0.7": ["small"],
        "mask_weight 0.2": ["small-s-mask_weight_0.2"],
    }


def test_all_combinations_and_all_seeds(configs):
    grid = "grid: {task: {both: both, masks: mask}, loss.mask_weight: [0.7, 0.2]}"
    made = names(study(configs, f"seeds: [0, 7]\n{grid}"))
    assert list(made) == [
        "both, mask_weight 0.7",
        "both, mask_weight 0.2",
        "masks, mask_weight 0.7",
        "masks, mask_weight 0.2",
    ]
    assert made["both, mask_weight 0.7"] == ["small", "small-seed7"]
    last = "small-s-masks_mask_weight_0.2"
    assert made["masks, mask_weight 0.2"] == [last, f"{last}-seed7"]


def test_what_is_set_for_all_cells_gives_the_base_a_name_of_its_own(configs):
    config = study(configs, "set: {image_size: 96}\ngrid: {loss.mask_weight: [0.2]}")
    assert names(config) == {
        "small": ["small-s"],
        "mask_weight 0.2": ["small-s-mask_weight_0.2"],
    }
    assert {e.experiment.image_size for e in config.experiments} == {96}


def test_what_is_typed_wins_over_what_the_study_sets(configs):
    settings = "set: {split.folds: 3, train.epochs: 6, evaluate.bootstrap: 100}"
    text = f"{settings}\ngrid: {{loss.mask_weight: [0.2]}}"
    config = study(configs, text, overrides=["split.folds=2", "train.epochs=4"])
    assert config.competition.split.folds == 2
    assert {e.experiment.train.epochs for e in config.experiments} == {4}
    # other resamples of the same training
    assert names(config)["small"] == ["small-s-decided"]
    assert config.cells["small"][0].members[0].name == "small-s"


def test_seeds_have_names_of_their_own_whatever_their_order(configs):
    text = "seeds: [3, 0]\ngrid: {loss.mask_weight: [0.2]}"
    assert names(study(configs, text))["small"] == ["small-seed3", "small"]
    with refused("shared_setting", "seeds: "):
        study(configs, text, overrides=["train.seed=1"])


def test_the_two_sizes_of_a_study_do_not_take_each_others_places(configs):
    text = "grid: {loss.mask_weight: [0.2]}\ntiny: {set: {train.epochs: 1}}"
    full, tiny = (names(study(configs, text, tiny=tiny)).values() for tiny in (False, True))
    assert not set(sum(full, [])) & set(sum(tiny, []))


def test_all_decide_untuned_unless_the_study_lists_values(configs):
    text = "cells: {low: {evaluate.threshold: [0.5, 0.1]}, masks: {task: mask}}"
    grids = {
        label: (made[0].competition.evaluate.threshold, made[0].competition.evaluate.agree)
        for label, made in study(configs, text).cells.items()
    }
    assert grids == {
        "small": ([0.5], ["no"]),
        "low": ([0.5, 0.1], ["no"]),
        "masks": ([0.5], ["no"]),
    }


def test_a_section_changes_only_what_it_names(configs):
    """As in every experiment; what stands in the base is kept."""
    config = study(configs, "cells: {slow: {train: {lr: 0.0001}, loss: {mask: {bce: 1}}}}")
    slow = config.cells["slow"][0].experiment
    assert (slow.train.lr, slow.train.epochs, slow.loss.mask) == (1e-4, 1, {"bce": 1})


def test_tiny_replaces_what_it_names(configs):
    text = "grid: {loss.mask_weight: [0.1, 0.2]}\ntiny: {grid: {loss.mask_weight: [0.4]}}"
    config = study(configs, text, tiny=True)
    assert list(config.cells) == ["small", "mask_weight 0.4"] and config.name == "s_tiny"


TWICE = "cells: {a b: {loss.mask_weight: 0.1}, a-b: {loss.mask_weight: 0.2}}"
GRID_AND_CELLS = "grid: {loss.mask_weight: {a: 0.1}}\ncells: {a: {task: mask}}"


@pytest.mark.parametrize(
    "text, code, word",
    [
        ("question: Q\nbase: absent\ncells: {a: {task: mask}}", "no_such_config", "'absent'"),
        ("question: Q\nbase: s\ncells: {a: {task: mask}}", "no_such_config", "'s'"),
        ("question: Q\ngrid: {loss.mask_weight: [0.1]}", "invalid_value", "base"),
        ("base: small", "invalid_value", "question"),
        ("", "no_cells", ""),
        ("grid: {loss.mask: [{dice: 1}]}", "value_without_name", "grid.loss.mask"),
        ("grid: {loss.mask_wieght: [0.1]}", "unknown_key", "Did you mean loss.mask_weight"),
        ("tiny: {bass: x}\ncells: {a: {task: mask}}", "unknown_key", "'bass'"),
        ("cells: {more folds: {split.folds: 9}}", "shared_setting", "more folds"),
        ("cells: {other: {score.dice: 1.0}}", "shared_setting", "'score'"),
        ("cells: {odd: {image_size: 100}}", "invalid_value", "See cell 'odd'"),
        (TWICE, "cell_twice", "two cells"),
        ("cells: {small: {task: mask}}", "cell_twice", "'small'"),
        (GRID_AND_CELLS, "cell_twice", "'a'"),
    ],
)
def test_a_wrong_study_is_refused(configs, text, code, word):
    with refused(code, word):
        study(configs, text, tiny="tiny" in text)


@pytest.mark.parametrize(
    "file",
    sorted(p for p in (ROOT / "configs" / "studies").glob("*.yaml") if p.stem != "tiny"),
    ids=lambda p: p.stem,
)
def test_every_ready_made_study_names_only_what_exists(file):
    from src.parts.check import check

    for tiny in (False, True):
        config = load(file, tiny=tiny)
        check(config)
        assert len(config.cells) >= 2
        assert len({c.name for c in config.members}) == len(config.members)


def test_a_study_is_checked_by_shapes_alone_where_that_will_do(monkeypatch):
    from src.parts import building, check

    real, asked = building.build_random, []

    def tried(experiment, classes, **how):
        asked.append((experiment.model.arch, experiment.image_size))
        return real(experiment, classes, **how)

    monkeypatch.setattr(building, "build_random", tried)
    config = load(ROOT / "configs" / "studies" / "transfer.yaml", tiny=True)
    check.check(config)
    assert not asked, "no network is computed, and no weights are drawn"

    def refuse(*_):
        raise ValueError("not so")

    monkeypatch.setattr(building, "try_out", refuse)
    with pytest.raises(InputError, match="not so"):
        check.check(config)
    assert len(asked) == 1, "what fails is tried in truth"


def test_a_study_from_images_to_the_table(configs, demo, capfd):
    home, folder = configs.parent, configs / "studies"
    (folder / "balance.yaml").write_text(BALANCE)
    (folder / "decide.yaml").write_text(DECIDE)

    def run(stage: str, config: Path, code: int = 0) -> str:
        """What the command says, on stderr where it fails."""
        words = [stage, "--config", config, "--data", demo, "--work", home]
        assert main([str(word) for word in words]) == code
        out, err = capfd.readouterr()
        return err if code else out

    said = run("study", folder / "balance.yaml")
    paths = Paths(home, demo).studies(load(folder / "balance.yaml").competition.split)
    table = pd.read_csv(paths.study_csv("balance"))
    assert list(table.cell) == ["mask_weight 0.7", "mask_weight 0.2"]
    assert table.dice_verdict[1] in ("better", "worse", "no evidence")
    assert "  mask_weight 0.2  " in said
    assert "| mask_weight 0.2 |" in paths.study_table("balance").read_text()
    assert paths.study_plot("balance").read_bytes()[:4] == b"\x89PNG"
    assert "under every cell" in paths.study_html("balance").read_text()
    touched = (home / "artifacts" / "folds.csv").exists() or list(home.rglob("submissions/*.csv"))
    assert not touched, "a study leaves the main work alone"

    said = run("study", folder / "decide.yaml")
    assert "[train] small fold" not in said, "the base is there already"
    assert "[train] small-decide-mask_only fold 0" in said
    assert "[train] small-decide-low" not in said, "another threshold needs no training"
    rows = pd.read_csv(paths.study_csv("decide")).set_index("cell")
    assert np.isnan(rows.macro_f1["mask only"]) and not np.isnan(rows.dice["mask only"])
    assert "everything is up to date" in run("study", folder / "decide.yaml")
    assert "study decide" in run("status", folder / "decide.yaml")
    assert "Run it whole" in run("train", folder / "decide.yaml", code=2)
    assert "it names no base" in run("study", configs / "small.yaml", code=2)


# ---------------------------------------------------------------------- differences


def answered(dice: np.ndarray, groups: np.ndarray) -> Answers:
    return Answers({"dice": dice}, None, None, np.zeros(len(dice), int), groups)


def difference(base: np.ndarray, cell: np.ndarray, groups: np.ndarray) -> Difference:
    return paired([answered(base, groups)], [answered(cell, groups)], {"dice": 1.0}, 300)["dice"]


def test_a_difference_is_one_when_every_resample_shows_it():
    random = np.random.default_rng(0)
    base, groups = random.uniform(0.2, 0.8, 60), np.arange(60)
    found = difference(base, base + 0.1, groups)
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert found.verdict == "better"
    assert difference(base, base, groups).verdict == "no evidence"
    assert difference(base, base - random.uniform(0, 0.1, 60), groups).verdict == "worse"


def test_near_duplicates_are_one_witness():
    """Sixty images that differ by the same lucky lesion: as one group they prove nothing, as sixty
    they would."""
    base, cell = np.full(63, 0.5), np.full(63, 0.5)
    cell[:60] += 0.2
    cell[60:] -= 0.1
    assert difference(base, cell, np.arange(63)).verdict == "better"
    assert difference(base, cell, np.maximum(np.arange(63) - 59, 0)).verdict == "no evidence"


def test_only_what_both_answer_is_compared():
    """A network without classes is compared by its masks, and has no score to compare."""
    random = np.random.default_rng(1)
    groups, dice, truth = np.arange(20), random.uniform(size=20), random.integers(0, 2, 20)
    both = Answers({"dice": dice}, truth, np.eye(2)[truth], truth, groups)
    masks, labels = answered(dice, groups), Answers(None, truth, np.eye(2)[truth], truth, groups)
    weights = {"dice": 0.5, "macro_f1": 0.5}
    assert set(paired([both], [both], weights, 20)) == {"score", "dice", "macro_f1"}
    assert set(paired([both], [masks], weights, 20)) == {"dice"}
    assert set(paired([both], [labels], weights, 20)) == {"macro_f1"}
    assert paired([masks], [labels], weights, 20) == {}


def test_per_image_answers_give_every_pixel_count_back():
    random = np.random.default_rng(2)
    true, pred = random.uniform(size=(5, 30, 40)) < 0.3, random.uniform(size=(5, 30, 40)) < 0.3
    true[0], pred[:2] = False, False
    counts = counts_of(pred, true)
    index = pd.DataFrame({"id": list("abcde"), "height": 30, "width": 40, "group": range(5)})
    table = pd.DataFrame({"id": list("edcba"), "label": "x"}).assign(
        dice=metrics.dice(*counts)[::-1].round(6),
        area=(counts[0] + counts[1])[::-1],
        true_area=(counts[0] + counts[2])[::-1],
    )
    images = Answers.read(table, index, ["x"]).images
    assert all(
        np.allclose(images[name], values) for name, values in metrics.per_image(counts).items()
    )


def test_a_luckier_seed_is_not_a_better_cell():
    """Two seeds of each, one of them lucky in the cell: seeds are drawn like images."""
    base, groups = np.full(50, 0.5), np.arange(50)
    plain, lucky = answered(base, groups), answered(base + 0.2, groups)
    found = paired([plain, plain], [plain, lucky], {"dice": 1.0}, 300)["dice"]
    assert found.value == pytest.approx(0.1) and found.low == 0 and found.verdict == "no evidence"
