"""What the data looks like before anything is trained: the tables and figures of
notebooks/explore.ipynb; and the results after training, for kaggle_train.ipynb.

READS   artifacts/prepared/ (index.csv, report.json, truth.npz) and the images in the data folder;
        `results`: artifacts/predictions/<name>/
WRITES  nothing: every function returns a pandas DataFrame or a matplotlib Figure

Grey levels are those of the files, 0 to 255, colour turned to grey. Lesions are at their original
size; positions are relative: (0, 0) is the upper left corner.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from src.core.console import InputError
from src.core.paths import Paths
from src.data.images import scaled
from src.parts import filters
from src.pipeline.records import read_metrics

# load: a notebook begins with it
from src.report.facts import Facts, light_of, load  # noqa: F401
from src.report.figures import LINES, canvas, plain, plain_lines
from src.report.html import SHOWN

SIDE = 64  # of the map of positions
TEST = "#888888"


# ------------------------------------------------------------------------------------------- counts


def classes(facts: Facts) -> pd.DataFrame:
    """A row a class: images, their share, how many have a near-duplicate, and how many have
    several mask files."""
    rows = facts.train
    twin = rows["group"].map(facts.index["group"].value_counts()) > 1
    rows = rows.assign(share=1, twin=twin, masks=rows["masks"] > 1)
    table = rows.groupby("label")[["share", "twin", "masks"]].sum()
    table = table.reindex(facts.classes, fill_value=0).rename_axis("class")
    table.insert(0, "images", table["share"])
    table["share"] = (table["share"] / len(rows)).map("{:.1%}".format)
    return table.rename(columns={"twin": "with a near-duplicate", "masks": "several mask files"})


def sizes(facts: Facts):
    """Heights and widths in pixels, and the aspect ratio (width / height), of all images."""
    height, width = facts.index["height"], facts.index["width"]
    ratio = width / height
    figure = canvas(12, 3.8)
    first, second, third = figure.subplots(1, 3)
    labels = [f"height, median {height.median():.0f}", f"width, median {width.median():.0f}"]
    first.hist([height, width], 30, histtype="step", linewidth=1.6, color=LINES[:2], label=labels)
    first.set(xlabel="pixels", ylabel="images", title="height and width")
    second.hist(ratio, 30, color=LINES[0], alpha=0.8)
    second.axvline(1, color="#444444", linewidth=1)
    title = f"aspect ratio, median {ratio.median():.2f} (line: square)"
    second.set(xlabel="width / height", ylabel="images", title=title)
    for label, rows, colour in reversed(_by_class(facts, facts.index)):
        _points(third, rows["width"], rows["height"], label, colour)
    third.set(xlabel="width", ylabel="height", title="every image")
    return _finished(figure, first, third)


# ------------------------------------------------------------------------------------------ lesions


def areas(facts: Facts) -> pd.DataFrame:
    """The lesion's share of the image in per cent, by class: quantiles over images with one."""
    share = _lesions(facts).groupby("label")["share"]
    table = 100 * share.quantile([0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]).unstack()
    table.columns = ["smallest", "5 %", "25 %", "median", "75 %", "95 %", "largest"]
    return _ordered(facts, table.round(2)).rename_axis("lesion, % of the image")


def parts(facts: Facts) -> pd.DataFrame:
    """How many connected components the lesions have (8-connected), by class."""
    names = {0: "no lesion", 1: "one part", 2: "two parts", 3: "three or more"}
    table = pd.crosstab(facts.train["label"], facts.train["parts"].clip(upper=3))
    table = table.rename(columns=names).rename_axis(columns=None)
    return _ordered(facts, table).rename_axis("class")


def area_histogram(facts: Facts):
    """The areas on a logarithmic axis: a small lesion is missed whole, a large one by its edge."""
    figure = canvas(8, 3.8)
    axes = figure.add_subplot()
    lesions = _lesions(facts)
    edges = np.geomspace(lesions["share"].min() * 90, lesions["share"].max() * 110, 31)
    for label, rows, colour in _by_class(facts, lesions):
        share = 100 * rows["share"]
        name = f"{plain(label)}, median {share.median():.1f} %"
        axes.hist(share, edges, histtype="stepfilled", fc=f"{colour}40", ec=colour, label=name)
    axes.set(xscale="log", xlabel="lesion, % of the image (logarithmic)", ylabel="images")
    axes.set_title("how large lesions are")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return _finished(figure, axes)


def places(facts: Facts):
    """Where lesions lie: by class the share of images whose lesion covers a position, and the
    centroids of all lesions."""
    found = _by_class(facts, _lesions(facts))
    figure = canvas(3.6 * (len(found) + 1) + 0.6, 3.9)
    *upper, last = figure.subplots(1, len(found) + 1, sharey=True)
    shown, grid = [], (np.arange(SIDE) + 0.5) / SIDE
    for axes, (label, rows, colour) in zip(upper, found):
        masks = (facts.truth.mask(id).astype(np.float32) for id in rows["id"])
        small = np.stack([scaled(mask, SIDE, SIDE) for mask in masks])
        weight = small.sum((1, 2))
        shown.append(axes.imshow(small.mean(0), extent=(0, 1, 1, 0), cmap="magma"))
        axes.set(title=f"{plain(label)}, {len(rows)} images", xlabel="from left to right")
        _points(last, small.sum(1) @ grid / weight, small.sum(2) @ grid / weight, label, colour)
    highest = max(image.get_array().max() for image in shown)
    for image in shown:
        image.set_clim(0, highest)
    upper[0].set_ylabel("from top to bottom")
    figure.colorbar(shown[-1], ax=upper, label="share of images with lesion here", shrink=0.85)
    last.set(title="centres of the lesions", xlabel="from left to right")
    last.set(xlim=(0, 1), ylim=(1, 0), aspect="equal")
    return _finished(figure, last)


def outlines(facts: Facts, each: int = 6):
    """Images with the outline of their lesion: a row a class, from its smallest lesion to its
    largest."""
    figure = canvas(2.3 * each, 2.15 * len(facts.classes))
    grid = figure.subplots(len(facts.classes), each, squeeze=False)
    for row, label in zip(grid, facts.classes):
        rows = facts.train[facts.train["label"] == label].sort_values("share", kind="stable")
        for axes, image in zip(row, _evenly(rows, each).itertuples()):
            share = f"{image.share:.1%}" if image.area else "no lesion"
            _show(axes, facts.outlined(image.id), f"{image.id}\n{share}")
    return _bare(figure)


# -------------------------------------------------------------------------------------------- light


def light(facts: Facts) -> pd.DataFrame:
    """Brightness and contrast by class, test images apart: mean ± standard deviation over images.
    The formulas: `light_of`."""
    shown = {"brightness": "brightness", "rms": "RMS contrast", "michelson": "Michelson contrast"}
    table = {}
    for label, rows, _ in _by_class(facts, facts.light[0]):
        table[label] = {"images": str(len(rows))}
        for name, title in shown.items():
            table[label][title] = f"{rows[name].mean():.3g} ± {rows[name].std():.2g}"
    return pd.DataFrame(table).T.rename_axis("class")


def light_figure(facts: Facts):
    """The same as distributions over images: a box holds the middle half, the line is the median,
    whiskers reach 1.5 boxes, points lie beyond."""
    groups = _by_class(facts, facts.light[0])
    panels = {
        "brightness": ("brightness (mean)", "grey levels, 0 to 255"),
        "rms": ("RMS contrast (standard deviation)", "grey levels, 0 to 255"),
        "michelson": ("Michelson contrast (1: with pure black)", "0 to 1"),
    }
    figure = canvas(12, 3.6)
    for axes, (name, (title, unit)) in zip(figure.subplots(1, 3), panels.items()):
        drawn = axes.boxplot(
            [rows[name] for _, rows, _ in groups],
            widths=0.6,
            patch_artist=True,
            medianprops={"color": "#222222"},
            flierprops={"markersize": 3, "alpha": 0.5},
        )
        for box, (_, _, colour) in zip(drawn["boxes"], groups):
            box.set(facecolor=colour, alpha=0.55)
        axes.set_xticks(range(1, len(groups) + 1), [plain(label) for label, _, _ in groups])
        axes.set(title=title, ylabel=unit)
    return _finished(figure)


def histograms(facts: Facts):
    """How often each grey level occurs: the mean over a class's images; on the right,
    cumulative."""
    rows, counts = facts.light
    figure = canvas(12, 3.8)
    left, right = figure.subplots(1, 2)
    highest, black = 0.0, []
    for label, chosen, colour in _by_class(facts, rows):
        share = 100 * counts[chosen.index].mean(0)
        left.plot(share, color=colour, linewidth=1.4, label=plain(label))
        right.plot(share.cumsum(), color=colour, linewidth=1.4, label=plain(label))
        highest = max(highest, share[1:].max())
        black.append(f"{share[0]:.1f} % of {plain(label)}")
    left.set(title="histogram, mean of the images", ylim=(0, 1.15 * highest))
    left.set(xlabel="grey level", ylabel="% of the pixels")
    note = {"ha": "right", "va": "top", "fontsize": 8, "color": "#555555"}
    left.text(0.98, 0.97, f"pure black: {', '.join(black)}", transform=left.transAxes, **note)
    right.set(title="added up", ylim=(0, 100))
    right.set(xlabel="grey level", ylabel="% of the pixels at most so bright")
    return _finished(figure, right)


def equalised(facts: Facts, each: int = 1):
    """Images as they are, equalised as a whole, and by CLAHE (src/parts/filters.py), each above its
    histogram: of every class those of middle brightness."""
    rows = facts.light[0].sort_values("brightness")
    halves = [r.iloc[len(r) // 2 :] for _, r, _ in _by_class(facts, rows[rows["set"] == "train"])]
    chosen = pd.concat([half[:each] for half in halves])
    names = {"none": "as it is", "equalise": "equalised", "clahe": "CLAHE"}
    figure = canvas(10.5, 3.7 * len(chosen))
    grid = figure.subplots(2 * len(chosen), 3, height_ratios=[3, 1] * len(chosen), squeeze=False)
    for upper, lower, row in zip(grid[::2], grid[1::2], chosen.itertuples()):
        image = facts.pixels(row.image)
        for axes, below, (name, text) in zip(upper, lower, names.items()):
            made = filters.apply(image, name, {})
            counts = np.bincount(made.ravel(), minlength=256)
            brightness, rms, _ = light_of(counts)
            _show(axes, made, f"{row.id}: {text}", cmap="gray", vmin=0, vmax=255)
            below.stairs(100 * counts / made.size, np.arange(257) - 0.5, fill=True, color="#555555")
            title = f"brightness {brightness:.0f}, RMS contrast {rms:.0f}"
            below.set_title(title, fontsize=8, color="#555555")
            below.set(xlim=(-1, 256), xticks=[0, 64, 128, 192, 255])
        # pure black alone may be as high as all the rest
        shares = [below.patches[0].get_data().values[1:].max() for below in lower]
        for below in lower:
            below.set_ylim(0, 1.1 * max(shares))
        lower[0].set_ylabel("% of pixels")
    return _finished(figure)


# -------------------------------------------------------------- near-duplicates, test against train


def duplicates(facts: Facts) -> pd.DataFrame:
    """What prepare counted: groups of near-duplicates, and where their members contradict each
    other. A lesion that is in both folds flatters the score."""
    counts, group = facts.report["counts"], facts.index["group"].value_counts()
    table = {
        "groups of near-duplicates": counts["duplicate_groups"],
        "images in them": int(group[group > 1].sum()),
        "largest group": int(group.max()),
        "pairs": counts["twins"],
        "pairs of different class": counts["contradicting_labels"],
        "pairs of different masks (Dice under 0.5)": counts["contradicting_masks"],
        "test images with a twin in train": counts["test_twins"],
    }
    return pd.DataFrame({"count": table})


def contradictions(facts: Facts, most: int = 9):
    """Near-duplicates that contradict each other in class or masks, side by side with their
    outlines; where there are none, near-duplicates that agree."""
    pairs: dict[tuple[str, str], list[str]] = {}
    for kind, text in (("contradicting_labels", "class"), ("contradicting_masks", "mask")):
        for pair in facts.report[kind]:
            pairs.setdefault(tuple(pair), []).append(text)
    note = "that contradict each other" if pairs else "(none contradicts another)"
    if not pairs:
        twins = facts.train[facts.train["group"].duplicated(keep=False)]
        pairs = {tuple(ids.iloc[:2]): [] for _, ids in twins.groupby("group")["id"]}
    if not pairs:
        what, todo = "there are no near-duplicates", "Leave this cell out"
        raise InputError(what, facts.paths.report, todo, code="nothing_to_show")
    shown, label = list(pairs.items())[:most], facts.train.set_index("id")["label"]
    wide, high = min(3, len(shown)), -(-len(shown) // 3)
    figure = canvas(4.4 * wide, 2.5 * high + 0.4)
    figure.suptitle(f"{len(shown)} of {len(pairs)} pairs of near-duplicates {note}", fontsize=11)
    boxes = figure.subfigures(high, wide, squeeze=False)
    for box, (pair, kinds) in zip(boxes.flat, shown):
        if kinds:
            box.suptitle(f"different {' and '.join(kinds)}", fontsize=9, color="#b0305c")
        for axes, id in zip(box.subplots(1, 2), pair):
            _show(axes, facts.outlined(id), id if label[id] in id else f"{id}\n{label[id]}")
    return _bare(figure)


def drift(facts: Facts):
    """Test against train: what differs here was not learned. Size, brightness and contrast, each
    as the share of images up to a value."""
    rows, _ = facts.light
    panels = (
        (facts.index, "width", "width in pixels"),
        (facts.index, "height", "height in pixels"),
        (rows, "brightness", "brightness"),
        (rows, "rms", "RMS contrast"),
    )
    figure = canvas(12, 3.4)
    for axes, (table, name, title) in zip(figure.subplots(1, 4, sharey=True), panels):
        for part, colour in zip(("train", "test"), LINES):
            values = table.loc[table["set"] == part, name].sort_values()
            share = 100 * np.arange(1, len(values) + 1) / len(values)
            label = f"{part}, median {values.median():.0f}"
            if len(values):
                axes.step(values, share, where="post", color=colour, label=label)
        axes.set(xlabel=title)
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.axes[0].set_ylabel("% of the images up to here")
    return _finished(figure)


# ----------------------------------------------------------------------------------- after training


def results(work: Path | str, config: Path | str) -> list:
    """What a notebook displays of a finished evaluate, as report.html has it: the metrics of the
    three decisions with their 95 % intervals, and the pictures. Nothing where it is not evaluated
    yet: `status` says what is missing."""
    from IPython.display import Image  # only a notebook asks

    paths, name = Paths(Path(work).expanduser().resolve(), Path(work)), Path(config).stem
    if not paths.metrics(name).is_file():
        return []
    found = read_metrics(paths, name)
    table = {}
    for decision in ("untuned", "tuned", "nested"):
        values = {"score": found[decision]["score"], **found[decision]["metrics"]}
        table[decision] = {
            metric: "{:.4f}  ({:.3f} – {:.3f})".format(value, *found[decision]["intervals"][metric])
            for metric, value in values.items()
            if metric in SHOWN
        }
    pictures = (paths.picture(name, p) for p in ("confusion", "reliability", "typical", "worst"))
    return [
        pd.DataFrame(table).rename_axis(f"{name}: nested is what to believe"),
        *(Image(filename=str(file)) for file in pictures if file.is_file()),
    ]


# ------------------------------------------------------------------------------------------ drawing


def _by_class(facts: Facts, rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame, str]]:
    """(class, its train rows, its colour) for each class that has any, and at the end the test
    rows, in grey."""
    train, test = rows[rows["set"] == "train"], rows[rows["set"] == "test"]
    found = [
        (label, train[train["label"] == label], LINES[n % len(LINES)])
        for n, label in enumerate(facts.classes)
    ]
    return [f for f in [*found, ("test", test, TEST)] if len(f[1])]


def _ordered(facts: Facts, table: pd.DataFrame) -> pd.DataFrame:
    """Its rows, one a class, in the order of the classes."""
    return table.loc[[label for label in facts.classes if label in table.index]]


def _lesions(facts: Facts) -> pd.DataFrame:
    """The train rows with a lesion. Raises InputError where there is none: a contest of classes
    alone."""
    rows = facts.train[facts.train["area"] > 0]
    if rows.empty:
        what, todo = "no train image has a lesion", "Leave the cells on lesions out"
        raise InputError(what, facts.paths.index, todo, code="nothing_to_show")
    return rows


def _evenly(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    return rows.iloc[
        np.unique(np.linspace(0, max(0, len(rows) - 1), count).astype(int))[: len(rows)]
    ]


def _points(axes, x: np.ndarray, y: np.ndarray, label: str, colour: str) -> None:
    axes.scatter(x, y, s=9, alpha=0.6, linewidth=0, color=colour, label=plain(label))


def _show(axes, image: np.ndarray, title: str, **options) -> None:
    axes.imshow(image, **options)
    axes.set_title(plain_lines(title), fontsize=8)
    axes.axis("off")


def _bare(figure):
    for axes in figure.axes:
        axes.axis("off")
    return figure


def _finished(figure, *with_legend):
    for axes in with_legend:
        axes.legend(frameon=False, fontsize=9)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure
