"""Divide the train images into folds: stratified, near-duplicates together.

READS   artifacts/prepared/index.csv
WRITES  artifacts/folds.csv      id,fold; with split.scheme: holdout, fold 0 is the validation set
                                 and -1 is trained on in any case. Made to be edited: what is
                                 trained on it goes stale then, nothing else does.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd

from src.config.load import Config
from src.core.console import InputError, header, say, short
from src.core.freshness import Job
from src.core.paths import Paths
from src.core.settings import Split
from src.data.tables import read_index, write_table


def run(job: Job, config: Config, paths: Paths) -> None:
    """Raises InputError where a class has too few groups of images for the folds."""
    split, data = config.competition.split, config.competition.data
    what = f"{split.folds} folds"
    if split.scheme == "holdout":
        what = f"holdout of {split.fraction:.0%}"
    header("split", what, [paths.index], job.outputs)
    if paths.folds.is_dir():
        what = "a folder is where a table is needed"
        raise InputError(what, paths.folds, "Move it away", code="file_or_folder")
    index = read_index(paths, "train")
    folds = make_folds(index, data.classes, split, data.empty_class)
    facts: dict = {}
    with job.running(facts):
        write_table(paths.folds, ["id", "fold"], zip(index["id"], folds.tolist()))
        facts["twins_apart"] = round(twins_apart(index["group"].to_numpy(), folds), 4)
    say(balance_table(index, folds, data.classes))
    say(
        f"{facts['twins_apart']:.1%} of the images have a twin in another fold. "
        f"The folds are yours to edit: {short(paths.folds)}"
    )


def make_folds(
    index: pd.DataFrame, classes: list[str], split: Split, empty_class: str | None = None
) -> np.ndarray:
    """The fold of each train image, (N) int, -1 for always trained on; same seed, same folds.

    Raises InputError for a class with fewer groups than folds.
    """
    from iterstrat import ml_stratifiers  # sklearn: a second that `--help` can do without

    group = index["group"].to_numpy() if split.groups == "duplicates" else np.arange(len(index))
    traits, member = group_traits(index, group, classes)
    for label, groups in zip(classes, traits.sum(0)):
        _check_groups(label, int(groups), classes, split, empty_class)
    if split.scheme == "kfold":
        splitter = ml_stratifiers.MultilabelStratifiedKFold(
            split.folds, shuffle=True, random_state=split.seed
        )
    else:
        splitter = ml_stratifiers.MultilabelStratifiedShuffleSplit(
            1, test_size=split.fraction, random_state=split.seed
        )
    fold_of_group = np.full(len(traits), -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # iterstrat's own calls to numpy and sklearn
        for k, (_, held_out) in enumerate(splitter.split(np.zeros(len(traits)), traits)):
            fold_of_group[held_out] = k
    return fold_of_group[member]


def _check_groups(
    label: str, groups: int, classes: list[str], split: Split, empty_class: str | None
) -> None:
    """Raises InputError where the folds need more groups of this class."""
    if not groups:
        others = ", ".join(c for c in classes if c != label)
        empty = " --set data.empty_class=null" if label == empty_class else ""
        todo = f"Take it out: --set 'data.classes=[{others}]'{empty}"
        raise InputError(f"class {label} has no images", "split", todo, code="class_empty")
    if groups < (split.folds if split.scheme == "kfold" else 2):
        wanted = f"{split.folds} folds" if split.scheme == "kfold" else "a holdout"
        raise InputError(
            f"class {label} has {groups} groups of near-duplicate images, too few for {wanted}",
            "split",
            "Use fewer folds (--set split.folds=N) or add images",
            code="too_few_groups",
        )


def group_traits(
    index: pd.DataFrame, group: np.ndarray, classes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """(traits (G, T) of 0 and 1 for each group, the group's row of each image (N)).

    The first C traits are the classes, then the quartiles of its lesions' share of the image.
    iterstrat knows no groups, so the groups themselves are stratified; a group whose images
    contradict each other has several classes. Groups of two and of more images of a class are
    traits of their own: without them, folds of equally many groups had 18 to 29 normal images in
    BUSI.
    """
    _, member = np.unique(group, return_inverse=True)
    count = pd.crosstab(member, index["label"]).reindex(columns=classes, fill_value=0).to_numpy()
    quartiles = np.zeros((len(count), 4), int)
    share = _share(index).to_numpy()
    lesion = share > 0
    if lesion.any():
        edges = np.quantile(share[lesion], [0.25, 0.5, 0.75])
        quartiles[member[lesion], np.searchsorted(edges, share[lesion])] = 1
    return np.hstack([count > 0, quartiles, count == 2, count > 2]).astype(int), member


def _share(index: pd.DataFrame) -> pd.Series:
    """The lesion's share of each image."""
    return index["area"] / (index["height"] * index["width"])


def twins_apart(group: np.ndarray, folds: np.ndarray) -> float:
    """The share of images with a near-duplicate in another fold; group (N), folds (N)."""
    return float((pd.Series(folds).groupby(group).transform("nunique") > 1).mean())


def balance_table(index: pd.DataFrame, folds: np.ndarray, classes: list[str]) -> str:
    """Images, images of each class and the lesions' median share of the image, a line a fold."""
    table = pd.crosstab(folds, index["label"]).reindex(columns=classes, fill_value=0)
    table.insert(0, "images", np.unique(folds, return_counts=True)[1])
    lesion = _share(index)[index["area"] > 0]
    median = lesion.groupby(folds[lesion.index]).median()
    table["median lesion area"] = median.map("{:.1%}".format)
    table = table.fillna("-").rename(index={-1: "train"}).rename_axis("fold").reset_index()
    return table.to_string(index=False)
