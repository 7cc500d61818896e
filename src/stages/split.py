"""Divide the train images into folds: stratified, near-duplicates together.

READS   artifacts/prepared/index.csv
WRITES  artifacts/folds.csv      id,fold; with split.scheme: holdout, fold 0 is the validation set and -1 is trained on in any case.
                                 Made to be edited: what is trained on it goes stale then, nothing else does.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from src.config.load import Config
from src.core.console import InputError, header, say, short
from src.core.freshness import Job
from src.core.paths import Paths
from src.core.settings import Split
from src.data.tables import read_index, write_table

if TYPE_CHECKING:
    import pandas as pd


def run(job: Job, config: Config, paths: Paths) -> None:
    """Raises InputError where a class has too few groups of images for the folds."""
    split, classes = config.competition.split, config.competition.data.classes
    header(
        "split",
        f"{split.folds} folds" if split.scheme == "kfold" else f"holdout of {split.fraction:.0%}",
        [paths.index],
        job.outputs,
    )
    if paths.folds.is_dir():
        raise InputError(
            "a folder is where a table is needed",
            short(paths.folds),
            "Move it away",
            code="file_or_folder",
        )
    index = read_index(paths, "train")
    folds = make_folds(index, classes, split, config.competition.data.empty_class)
    facts: dict = {}
    with job.running(facts):
        write_table(paths.folds, ["id", "fold"], zip(index["id"], folds.tolist()))
        facts |= {"twins_apart": round(twins_apart(index["group"].to_numpy(), folds), 4)}
    say(balance_table(index, folds, classes))
    say(
        f"{facts['twins_apart']:.1%} of the images have a twin in another fold. The folds are yours to edit: {short(paths.folds)}"
    )


def make_folds(
    index: pd.DataFrame, classes: list[str], split: Split, empty_class: str | None = None
) -> np.ndarray:
    """The fold of each train image, (N) int, -1 for always trained on; same seed, same folds."""
    from iterstrat.ml_stratifiers import (
        MultilabelStratifiedKFold,
        MultilabelStratifiedShuffleSplit,
    )  # sklearn: a second that `--help` can do without

    group = index["group"].to_numpy() if split.groups == "duplicates" else np.arange(len(index))
    traits, member = group_traits(index, group, classes)
    need = split.folds if split.scheme == "kfold" else 2
    for c, label in enumerate(classes):
        if (there := int(traits[:, c].sum())) < need:
            if not there:
                empty = " --set data.empty_class=null" if label == empty_class else ""
                raise InputError(
                    f"class {label} has no images",
                    "split",
                    "Take it out: --set 'data.classes=["
                    f"{', '.join(c for c in classes if c != label)}]'{empty}",
                    code="class_empty",
                )
            wanted = f"{need} folds" if split.scheme == "kfold" else "a holdout"
            raise InputError(
                f"class {label} has {there} groups of near-duplicate images, too few for {wanted}",
                "split",
                "Use fewer folds (--set split.folds=N) or add images",
                code="too_few_groups",
            )
    of_group = np.full(len(traits), -1)
    blank = np.zeros(len(traits))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # iterstrat's own calls to numpy and sklearn
        if split.scheme == "kfold":
            for k, (_, held_out) in enumerate(
                MultilabelStratifiedKFold(split.folds, shuffle=True, random_state=split.seed).split(
                    blank, traits
                )
            ):
                of_group[held_out] = k
        else:
            _, held_out = next(
                MultilabelStratifiedShuffleSplit(
                    1, test_size=split.fraction, random_state=split.seed
                ).split(blank, traits)
            )
            of_group[held_out] = 0
    return of_group[member]


def group_traits(
    index: pd.DataFrame, group: np.ndarray, classes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """(traits (G, T) of 0 and 1 for each group, the group's row of each image (N)).

    The first C traits are the classes, then the quartiles of its lesions' share of the image. iterstrat knows no groups, so the groups themselves are
    stratified; a group whose images contradict each other has several classes. Groups of two and of more images of a class are traits of their
    own: without them, folds of equally many groups had 18 to 29 normal images in BUSI.
    """
    _, member = np.unique(group, return_inverse=True)
    share = (index["area"] / (index["height"] * index["width"])).to_numpy()
    has_lesion = share > 0
    traits = np.zeros((member.max() + 1, 3 * len(classes) + 4), int)
    for c, label in enumerate(classes):
        count = np.bincount(member[(index["label"] == label).to_numpy()], minlength=len(traits))
        traits[:, c] = count > 0
        traits[:, len(classes) + 4 + c] = count == 2
        traits[:, 2 * len(classes) + 4 + c] = count > 2
    if has_lesion.any():
        quartile = np.searchsorted(
            np.quantile(share[has_lesion], [0.25, 0.5, 0.75]), share[has_lesion]
        )
        traits[member[has_lesion], len(classes) + quartile] = 1
    return traits, member


def twins_apart(group: np.ndarray, folds: np.ndarray) -> float:
    """The share of images with a near-duplicate in another fold; group (N), folds (N)."""
    folds_of: dict[int, set[int]] = {}
    for g, fold in zip(group.tolist(), folds.tolist()):
        folds_of.setdefault(g, set()).add(fold)
    return float(np.mean([len(folds_of[g]) > 1 for g in group.tolist()]))


def balance_table(index: pd.DataFrame, folds: np.ndarray, classes: list[str]) -> str:
    """Images, images of each class and the lesions' median share of the image, a line a fold."""
    width = max(9, *(len(c) + 2 for c in classes))
    lines = ["fold   images" + "".join(c.rjust(width) for c in classes) + "   median lesion area"]
    labels, share = (
        index["label"].to_numpy(),
        (index["area"] / (index["height"] * index["width"])).to_numpy(),
    )
    for fold in np.unique(folds):
        inside = folds == fold
        lesions = share[inside & (share > 0)]
        area = f"{np.median(lesions):.1%}" if len(lesions) else "-"
        name = "train" if fold == -1 else str(fold)
        lines.append(
            f"{name:<5}{inside.sum():8d}"
            + "".join(f"{int((labels[inside] == c).sum()):{width}d}" for c in classes)
            + area.rjust(21)
        )
    return "\n".join(lines)
