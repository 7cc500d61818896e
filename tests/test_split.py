"""split: groups stay together, classes and sizes are spread, an edited folds.csv is checked."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import folder_data, refused

from src.core.paths import Paths
from src.core.settings import Split
from src.data.tables import COLUMNS, read_folds, read_index
from src.pipeline import jobs as stages
from src.stages import prepare, split

CLASSES = ["benign", "malignant", "normal"]


def synthetic(n: int = 300, seed: int = 0) -> pd.DataFrame:
    """An index like BUSI's: 30 % of the images in groups of two to four, areas of all sizes."""
    rng = np.random.default_rng(seed)
    label = rng.choice(CLASSES, n, p=[0.56, 0.27, 0.17])
    area = np.where(label == "normal", 0, rng.integers(50, 5000, n))
    group = np.arange(n)
    for start in range(0, n * 3 // 10, 3):  # neighbours become twins
        group[start : start + rng.integers(2, 5)] = start
    columns = {
        "id": [f"{i:03d}" for i in range(n)],
        "set": "train",
        "label": label,
        "image": "",
        "masks": 1,
    }
    return pd.DataFrame(
        columns | {"height": 100, "width": 100, "area": area.astype(float), "group": group}
    )


def test_duplicates_share_a_fold_and_classes_and_sizes_are_spread():
    index = synthetic()
    folds = split.make_folds(index, CLASSES, Split(folds=5))
    assert set(folds) == {0, 1, 2, 3, 4}
    assert (pd.Series(folds).groupby(index["group"].to_numpy()).nunique() == 1).all()
    assert split.twins_apart(index["group"].to_numpy(), folds) == 0
    lesions = index["area"] > 0
    large = index["area"] > index["area"][lesions].quantile(0.75)
    for kind in [index["label"] == c for c in CLASSES] + [large]:
        share = [kind[folds == k].mean() for k in range(5)]
        assert max(share) - min(share) < 0.08, share
    assert max(np.bincount(folds)) - min(np.bincount(folds)) <= 15


def test_the_same_seed_gives_the_same_folds():
    index = synthetic()
    folds = split.make_folds(index, CLASSES, Split(seed=3))
    assert np.array_equal(folds, split.make_folds(index, CLASSES, Split(seed=3)))
    assert not np.array_equal(folds, split.make_folds(index, CLASSES, Split(seed=4)))


def test_without_groups_twins_are_torn_apart():
    index = synthetic()
    folds = split.make_folds(index, CLASSES, Split(groups="none"))
    group = index["group"].to_numpy()
    assert split.twins_apart(group, folds) > 0.15
    assert (
        split.twins_apart(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1])) == 0.5
    )  # by hand: two of four


def test_holdout_keeps_the_fraction_and_the_groups():
    index = synthetic()
    folds = split.make_folds(index, CLASSES, Split(scheme="holdout", fraction=0.2))
    assert set(folds) == {-1, 0} and 0.16 < (folds == 0).mean() < 0.24
    assert split.twins_apart(index["group"].to_numpy(), folds) == 0
    assert set(index["label"][folds == 0]) == set(CLASSES)


def test_too_few_groups_of_a_class():
    index = synthetic()
    index = index[(index["label"] != "normal") | (index.index < 40)].reset_index(drop=True)
    index.loc[index["label"] == "normal", "group"] = (
        1000 + np.arange((index["label"] == "normal").sum()) % 4
    )  # many images, but four groups
    with refused("too_few_groups", "class normal has 4 groups", "split.folds"):
        split.make_folds(index, CLASSES, Split(folds=5))
    assert len(set(split.make_folds(index, CLASSES, Split(folds=4)))) == 4
    with refused("class_empty", "normal"):
        split.make_folds(
            index[index["label"] != "normal"].reset_index(drop=True),
            CLASSES,
            Split(scheme="holdout"),
        )


def test_the_stage_writes_folds_and_prints_their_balance(
    demo_prepared, tmp_path, make_config, capsys
):
    paths = Paths(tmp_path / "work", demo_prepared.data)
    config = make_config("split.folds=3")
    prepare.run(None, config, paths)
    capsys.readouterr()
    split.run(stages.split_job(config, paths), config, paths)
    said = capsys.readouterr().out
    index = read_index(paths, "train")
    folds = read_folds(paths, index["id"])
    assert stages.split_job(config, paths).state().done and stages.folds(config, paths) == [0, 1, 2]
    for k in range(3):
        inside = index["label"][folds == k]
        assert [str(k), str(len(inside)), *(str((inside == c).sum()) for c in CLASSES)] in [
            line.split()[:5] for line in said.splitlines()
        ]
    assert "0.0% of the images have a twin in another fold" in said
    assert (index.groupby("group")["id"].count() > 1).any(), "the demo data has near-duplicates"
    assert (pd.Series(folds).groupby(index["group"]).nunique() == 1).all()


# --------------------------------------------------------------------------- tables that users edit

IDS = ["001", "benign (2)", "NA", "1e3"]
GOOD = "id,fold\n001,0\nbenign (2),1\nNA,-1\n1e3,1\n"


@pytest.fixture
def folds_file(tmp_path):
    paths = Paths(tmp_path, tmp_path)
    paths.folds.parent.mkdir(parents=True)

    def write(text: str) -> Paths:
        paths.folds.write_text(text, encoding="utf-8")
        return paths

    return write


def test_folds_in_any_order_with_ids_that_look_like_numbers(folds_file):
    assert read_folds(folds_file(GOOD), IDS).tolist() == [0, 1, -1, 1]
    assert read_folds(
        folds_file("\ufeffnote,fold,id\n,1,1e3\n,-1,NA\nx, 1,benign (2)\n,0,001\n"), IDS
    ).tolist() == [0, 1, -1, 1]


@pytest.mark.parametrize(
    "text, code, word",
    [
        (GOOD.replace("001,", "1,"), "folds_id_unknown", "1 id is not a train image"),
        (GOOD.replace("NA,-1\n", ""), "folds_id_missing", "NA"),
        (GOOD + "001,1\n", "folds_id_twice", "001"),
        (GOOD.replace("001,0", "001,first"), "folds_damaged", "001 (first)"),
        (GOOD.replace("001,0", "001,0.5"), "folds_damaged", "001 (0.5)"),
        (GOOD.replace("001,0", "001,-2"), "folds_damaged", "001 (-2)"),
        (GOOD.replace("001,0", "001,"), "folds_damaged", "001 (nothing)"),
        (GOOD.replace("001,0", "001"), "folds_damaged", "001 (nothing)"),
        (GOOD.replace("id,fold", "id;fold"), "folds_damaged", "id;fold"),
        ("", "folds_damaged", "none"),
        ("id,fold\n001,0\nbenign (2),0\nNA,0\n1e3,0\n", "one_fold", ""),
    ],
)
def test_a_wrong_edit_is_one_error_that_names_the_file(folds_file, text, code, word):
    with refused(code, word, "folds.csv", "split --force"):
        read_folds(folds_file(text), IDS)


def test_tables_that_are_not_there_or_damaged(tmp_path):
    paths = Paths(tmp_path, tmp_path)
    with refused("no_folds", "run.sh split"):
        read_folds(paths, IDS)
    with refused("no_index", "run.sh prepare"):
        read_index(paths)
    paths.prepared.mkdir(parents=True)
    paths.index.write_text("id,set\n1,train\n")
    with refused("index_damaged", "prepare --force"):
        read_index(paths)


def test_ids_of_the_index_survive_as_text(tmp_path):
    paths = Paths(tmp_path, tmp_path)
    paths.prepared.mkdir(parents=True)
    rows = [f"{id},train,benign,x.png,1,10,20,5,{i}" for i, id in enumerate(IDS)] + [
        "007,test,,y.png,0,10,20,,4"
    ]
    paths.index.write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    index = read_index(paths)
    assert index["id"].tolist() == [*IDS, "007"] and read_index(paths, "test")["id"].tolist() == [
        "007"
    ]
    assert (
        index["height"].dtype.kind == "i"
        and index["area"].tolist()[:4] == [5.0] * 4
        and np.isnan(index["area"][4])
        and index["label"][4] == ""
    )


def test_folds_follow_the_index(tmp_path, make_config):
    data = folder_data(tmp_path / "data")
    config, paths = make_config("split.folds=3"), Paths(tmp_path / "work", data)
    prepare.run(None, config, paths)
    split.run(stages.split_job(config, paths), config, paths)
    (data / "train" / "benign" / "benign (3).png").unlink()
    (data / "train" / "benign" / "benign (3)_mask.png").unlink()
    prepare.run(None, config, paths)
    assert stages.split_job(config, paths).state().kind == "stale"
