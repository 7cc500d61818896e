"""Studies: which cells they have, what is trained once for all, and when a difference is called one."""

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
from src.scoring.compare import Answers, paired

SMALL = "image_size: 64\nmodel: {arch: unet, encoder: tu-lcnet_035, encoder_weights: none, options: {decoder_channels: [32, 16, 16, 8, 8]}}\ntrain: {epochs: 1, lr: 2.0e-3, workers: 0}\n"
BALANCE = "question: Which balance?\nbase: small\nset: {split.folds: 2}\ngrid: {loss.mask_weight: [0.7, 0.2]}\n"
DECIDE = "question: Which threshold?\nbase: small\nset: {split.folds: 2, evaluate.threshold: [0.5], evaluate.min_area: [0.0]}\ncells: {low: {evaluate.threshold: [0.1]}, mask only: {task: mask}}\n"


@pytest.fixture
def configs(tmp_path) -> Path:
    folder = tmp_path / "configs"
    (folder / "studies").mkdir(parents=True)
    shutil.copy(ROOT / "configs" / "competition.yaml", folder)
    (folder / "small.yaml").write_text(SMALL)
    return folder


def study(configs: Path, text: str, name: str = "s", **options):
    (configs / "studies" / f"{name}.yaml").write_text(text)
    return load(configs / "studies" / f"{name}.yaml", **options)


def names(config) -> dict[str, list[str]]:
    return {label: [c.name for c in made] for label, made in config.cells.items()}


def test_a_cell_that_changes_nothing_is_the_base_and_comes_first(configs):
    assert names(
        study(configs, "question: Q\nbase: small\ngrid: {loss.mask_weight: [0.2, 0.7]}\n")
    ) == {"mask_weight 0.7": ["small"], "mask_weight 0.2": ["small-s-mask_weight_0.2"]}


def test_all_combinations_and_all_seeds(configs):
    made = names(
        study(
            configs,
            "question: Q\nbase: small\nseeds: [0, 7]\ngrid: {task: {both: both, masks: mask}, loss.mask_weight: [0.7, 0.2]}\n",
        )
    )
    assert list(made) == [
        "both, mask_weight 0.7",
        "both, mask_weight 0.2",
        "masks, mask_weight 0.7",
        "masks, mask_weight 0.2",
    ]
    assert made["both, mask_weight 0.7"] == ["small", "small-seed7"] and made[
        "masks, mask_weight 0.2"
    ] == [
        "small-s-masks_mask_weight_0.2",
        "small-s-masks_mask_weight_0.2-seed7",
    ]


def test_what_is_set_for_all_cells_gives_the_base_a_name_of_its_own(configs):
    config = study(
        configs,
        "question: Q\nbase: small\nset: {image_size: 96}\ngrid: {loss.mask_weight: [0.2]}\n",
    )
    assert names(config) == {
        "small": ["small-s"],
        "mask_weight 0.2": ["small-s-mask_weight_0.2"],
    } and {e.experiment.image_size for e in config.experiments} == {96}


def test_what_is_typed_wins_over_what_the_study_sets(configs):
    text = "question: Q\nbase: small\nset: {split.folds: 3, train.epochs: 6, evaluate.bootstrap: 100}\ngrid: {loss.mask_weight: [0.2]}\n"
    config = study(configs, text, overrides=["split.folds=2", "train.epochs=4"])
    assert config.competition.split.folds == 2 and {
        e.experiment.train.epochs for e in config.experiments
    } == {4}
    assert (
        names(config)["small"] == ["small-s-decided"]
        and config.cells["small"][0].members[0].name == "small-s"
    ), "other resamples of the same training"


def test_seeds_have_names_of_their_own_whatever_their_order(configs):
    text = "question: Q\nbase: small\nseeds: [3, 0]\ngrid: {loss.mask_weight: [0.2]}\n"
    assert names(study(configs, text))["small"] == ["small-seed3", "small"]
    with refused("shared_setting", "seeds: "):
        study(configs, text, overrides=["train.seed=1"])


def test_the_two_sizes_of_a_study_do_not_take_each_others_places(configs):
    text = "question: Q\nbase: small\ngrid: {loss.mask_weight: [0.2]}\ntiny: {set: {train.epochs: 1}}\n"
    assert not {n for made in names(study(configs, text)).values() for n in made} & {
        n for made in names(study(configs, text, tiny=True)).values() for n in made
    }


def test_all_decide_untuned_unless_the_study_lists_values(configs):
    config = study(
        configs,
        "question: Q\nbase: small\ncells: {low: {evaluate.threshold: [0.5, 0.1]}, masks: {task: mask}}\n",
    )
    grids = {
        label: (made[0].competition.evaluate.threshold, made[0].competition.evaluate.agree)
        for label, made in config.cells.items()
    }
    assert grids == {
        "small": ([0.5], ["no"]),
        "low": ([0.5, 0.1], ["no"]),
        "masks": ([0.5], ["no"]),
    }


def test_a_section_changes_only_what_it_names(configs):
    """As every experiment is written; what stands in the base stays."""
    config = study(
        configs,
        "question: Q\nbase: small\ncells: {slow: {train: {lr: 0.0001}, loss: {mask: {bce: 1}}}}\n",
    )
    slow = config.cells["slow"][0].experiment
    assert (slow.train.lr, slow.train.epochs, slow.loss.mask) == (1e-4, 1, {"bce": 1})


def test_tiny_replaces_what_it_names(configs):
    text = "question: Q\nbase: small\ngrid: {loss.mask_weight: [0.1, 0.2]}\ntiny: {grid: {loss.mask_weight: [0.4]}}\n"
    assert (
        list(study(configs, text, tiny=True).cells) == ["small", "mask_weight 0.4"]
        and study(configs, text, tiny=True).name == "s_tiny"
    )


@pytest.mark.parametrize(
    "text, code, word",
    [
        (
            "question: Q\nbase: absent\ngrid: {loss.mask_weight: [0.1]}\n",
            "no_such_config",
            "'absent'",
        ),
        ("question: Q\nbase: small\n", "no_cells", ""),
        (
            "question: Q\nbase: small\ngrid: {loss.mask: [{dice: 1}]}\n",
            "value_without_name",
            "grid.loss.mask",
        ),
        (
            "question: Q\nbase: small\ngrid: {loss.mask_wieght: [0.1]}\n",
            "unknown_key",
            "Did you mean loss.mask_weight",
        ),
        (
            "question: Q\nbase: small\ncells: {a b: {loss.mask_weight: 0.1}, a-b: {loss.mask_weight: 0.2}}\n",
            "cell_twice",
            "two cells",
        ),
        (
            "question: Q\nbase: small\ncells: {more folds: {split.folds: 9}}\n",
            "shared_setting",
            "more folds",
        ),
        (
            "question: Q\nbase: small\ntiny: {bass: x}\ncells: {a: {task: mask}}\n",
            "unknown_key",
            "'bass'",
        ),
        ("base: small\n", "invalid_value", "question"),
        ("question: Q\ngrid: {loss.mask_weight: [0.1]}\n", "invalid_value", "base"),
        (
            "question: Q\nbase: small\ncells: {other: {score.dice: 1.0}}\n",
            "shared_setting",
            "'score'",
        ),
        (
            "question: Q\nbase: small\ncells: {odd: {image_size: 100}}\n",
            "invalid_value",
            "See cell 'odd'",
        ),
        ("question: Q\nbase: s\ncells: {a: {task: mask}}\n", "no_such_config", "'s'"),
        ("question: Q\nbase: small\ncells: {small: {task: mask}}\n", "cell_twice", "'small'"),
        (
            "question: Q\nbase: small\ngrid: {loss.mask_weight: {a: 0.1}}\ncells: {a: {task: mask}}\n",
            "cell_twice",
            "'a'",
        ),
    ],
)
def test_what_is_wrong_with_a_study_is_said(configs, text, code, word):
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
        assert len(config.cells) >= 2 and len({c.name for c in config.members}) == len(
            config.members
        )


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
    home = configs.parent
    (configs / "studies" / "balance.yaml").write_text(BALANCE)
    (configs / "studies" / "decide.yaml").write_text(DECIDE)

    def run(name: str) -> str:
        assert (
            main(
                [
                    "study",
                    "--config",
                    str(configs / "studies" / f"{name}.yaml"),
                    "--data",
                    str(demo),
                    "--work",
                    str(home),
                ]
            )
            == 0
        )
        return capfd.readouterr().out

    said = run("balance")
    paths = Paths(home, demo).studies(load(configs / "studies" / "balance.yaml").competition.split)
    table = pd.read_csv(paths.study_csv("balance"))
    assert (
        list(table.cell) == ["mask_weight 0.7", "mask_weight 0.2"]
        and table.dice_verdict.isin(["better", "worse", "no evidence"])[1]
    )
    assert (
        "  mask_weight 0.2  " in said
        and "| mask_weight 0.2 |" in paths.study_table("balance").read_text()
    )
    assert (
        paths.study_plot("balance").read_bytes()[:4] == b"\x89PNG"
        and "under every cell" in paths.study_html("balance").read_text()
    )
    assert not (home / "artifacts" / "folds.csv").exists() and not list(
        home.rglob("submissions/*.csv")
    ), "a study leaves the main work alone"

    said = run("decide")
    assert "[train] small fold" not in said, "the base is there already"
    assert (
        "[train] small-decide-mask_only fold 0" in said and "[train] small-decide-low" not in said
    ), "another threshold needs no training"
    rows = pd.read_csv(paths.study_csv("decide")).set_index("cell")
    assert np.isnan(rows.macro_f1["mask only"]) and not np.isnan(rows.dice["mask only"])
    assert "everything is up to date" in run("decide")
    assert (
        main(
            [
                "status",
                "--config",
                str(configs / "studies" / "decide.yaml"),
                "--data",
                str(demo),
                "--work",
                str(home),
            ]
        )
        == 0
    )
    assert "study decide" in capfd.readouterr().out
    for words, todo in (
        (["train"], "Run it whole"),
        (["study", "--config", str(configs / "small.yaml")], "it names no base"),
    ):
        assert (
            main(
                [
                    *words,
                    *(
                        []
                        if "--config" in words
                        else ["--config", str(configs / "studies" / "decide.yaml")]
                    ),
                    "--data",
                    str(demo),
                    "--work",
                    str(home),
                ]
            )
            == 2
        )
        assert todo in capfd.readouterr().err


# ------------------------------------------------------------------------------------------------------------------- differences


def answered(dice: np.ndarray, groups: np.ndarray) -> Answers:
    return Answers({"dice": dice}, None, None, np.zeros(len(dice), int), groups)


def test_a_difference_is_one_when_every_resample_shows_it():
    random = np.random.default_rng(0)
    base, groups = random.uniform(0.2, 0.8, 60), np.arange(60)
    found = paired([answered(base, groups)], [answered(base + 0.1, groups)], {"dice": 1.0}, 200)[
        "dice"
    ]
    assert (found.value, found.low, found.high) == pytest.approx(
        (0.1, 0.1, 0.1)
    ) and found.verdict == "better"
    assert (
        paired([answered(base, groups)], [answered(base, groups)], {"dice": 1.0}, 200)[
            "dice"
        ].verdict
        == "no evidence"
    )
    assert (
        paired(
            [answered(base, groups)],
            [answered(base - random.uniform(0, 0.1, 60), groups)],
            {"dice": 1.0},
            200,
        )["dice"].verdict
        == "worse"
    )


def test_near_duplicates_are_one_witness():
    """Sixty images that differ by the same lucky lesion: as one group they prove nothing, as sixty they would."""
    base, cell = np.full(63, 0.5), np.full(63, 0.5)
    cell[:60] += 0.2
    cell[60:] -= 0.1
    apart = paired(
        [answered(base, np.arange(63))], [answered(cell, np.arange(63))], {"dice": 1.0}, 400
    )["dice"]
    together = paired(
        [answered(base, np.minimum(np.maximum(np.arange(63) - 59, 0), 3))],
        [answered(cell, np.minimum(np.maximum(np.arange(63) - 59, 0), 3))],
        {"dice": 1.0},
        400,
    )["dice"]
    assert apart.verdict == "better" and together.verdict == "no evidence"


def test_only_what_both_answer_is_compared():
    """A network without classes is compared by its masks, and has no score to compare."""
    random = np.random.default_rng(1)
    groups, dice, truth = np.arange(20), random.uniform(size=20), random.integers(0, 2, 20)
    both = Answers({"dice": dice}, truth, np.eye(2)[truth], truth, groups)
    masks, labels = answered(dice, groups), Answers(None, truth, np.eye(2)[truth], truth, groups)
    weights = {"dice": 0.5, "macro_f1": 0.5}
    assert set(paired([both], [both], weights, 20)) == {"score", "dice", "macro_f1"}
    assert set(paired([both], [masks], weights, 20)) == {"dice"} and set(
        paired([both], [labels], weights, 20)
    ) == {"macro_f1"}
    assert paired([masks], [labels], weights, 20) == {}


def test_per_image_answers_give_every_pixel_count_back():
    from src.parts import metrics

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
    found = paired(
        [answered(base, groups), answered(base, groups)],
        [answered(base, groups), answered(base + 0.2, groups)],
        {"dice": 1.0},
        300,
    )["dice"]
    assert found.value == pytest.approx(0.1) and found.low == 0 and found.verdict == "no evidence"
