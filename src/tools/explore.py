"""What the data looks like, before anything is trained: the tables and pictures of notebooks/explore.ipynb; and what has come of it, for kaggle_train.ipynb.

READS   artifacts/prepared/ (index.csv, report.json, truth.npz) and the images in the data folder; `results`: artifacts/predictions/<name>/
WRITES  nothing: every function returns a pandas DataFrame or a matplotlib Figure

Grey levels are those of the files, 0 to 255, colour turned to grey. Lesions are at their original size; places are relative: (0, 0) is the upper left corner.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from src.core.console import InputError, listing, short
from src.core.paths import Paths
from src.data.images import scaled
from src.parts import filters
from src.pipeline.records import read_metrics
from src.report.facts import Facts, light_of, load  # noqa: F401  load: a notebook begins with it
from src.report.figures import LINES, canvas, plain, plain_lines
from src.report.html import SHOWN

SIDE = 64  # of the map of places
TEST = "#888888"


# ------------------------------------------------------------------------------------------------------------------------------ counts


def classes(facts: Facts) -> pd.DataFrame:
    """A row a class: images, their share, how many belong to a group of near-duplicates, and how many have several mask files."""
    twins = facts.train["group"].map(facts.index["group"].value_counts()) > 1
    rows = {
        c: (chosen := facts.train[facts.train["label"] == c], twins[chosen.index])
        for c in facts.classes
    }
    table = pd.DataFrame(
        [
            {
                "class": c,
                "images": len(r),
                "share": f"{len(r) / len(facts.train):.1%}",
                "with a near-duplicate": int(t.sum()),
                "several mask files": int((r["masks"] > 1).sum()),
            }
            for c, (r, t) in rows.items()
        ]
    )
    return table.set_index("class")


def sizes(facts: Facts):
    """Heights and widths in pixels, and the aspect ratio (width / height), of all images."""
    figure = canvas(12, 3.8)
    first, second, third = figure.subplots(1, 3)
    for name, colour in (("height", LINES[0]), ("width", LINES[1])):
        first.hist(
            facts.index[name],
            bins=30,
            histtype="step",
            linewidth=1.6,
            color=colour,
            label=f"{name}, median {facts.index[name].median():.0f}",
        )
    first.set(xlabel="pixels", ylabel="images", title="height and width")
    ratio = facts.index["width"] / facts.index["height"]
    second.hist(ratio, bins=30, color=LINES[0], alpha=0.8)
    second.axvline(1, color="#444444", linewidth=1)
    second.set(
        xlabel="width / height",
        ylabel="images",
        title=f"aspect ratio, median {ratio.median():.2f} (line: square)",
    )
    for label, rows, colour in _by_class(facts, facts.index):
        third.scatter(
            rows["width"],
            rows["height"],
            s=9,
            alpha=0.6,
            linewidth=0,
            color=colour,
            label=plain(label),
            zorder=1 if label == "test" else 2,
        )
    third.set(xlabel="width", ylabel="height", title="every image")
    return _finished(figure, first, third)


# ----------------------------------------------------------------------------------------------------------------------------- lesions


def areas(facts: Facts) -> pd.DataFrame:
    """The lesion's share of the image in per cent, by class: quantiles over the images that have one."""
    rows = _lesions(facts)
    table = (
        rows.groupby("label")["share"]
        .quantile([0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])
        .mul(100)
        .unstack()
    )
    table.columns = ["smallest", "5 %", "25 %", "median", "75 %", "95 %", "largest"]
    return (
        table.round(2)
        .reindex([c for c in facts.classes if c in table.index])
        .rename_axis("lesion, % of the image")
    )


def parts(facts: Facts) -> pd.DataFrame:
    """In how many separate parts the lesions are (pixels that touch at a corner belong together), by class."""
    table = pd.crosstab(facts.train["label"], facts.train["parts"].clip(upper=3))
    table.columns = [
        {0: "no lesion", 1: "one part", 2: "two parts", 3: "three or more"}[n]
        for n in table.columns
    ]
    return table.reindex([c for c in facts.classes if c in table.index]).rename_axis("class")


def area_histogram(facts: Facts):
    """The same as a histogram on a logarithmic axis: a small lesion is missed whole, a large one by its edge."""
    figure = canvas(8, 3.8)
    axes = figure.add_subplot()
    share = _lesions(facts)["share"] * 100
    edges = np.geomspace(share.min() * 0.9, share.max() * 1.1, 31)
    for label, rows, colour in _by_class(facts, _lesions(facts)):
        axes.hist(rows["share"] * 100, bins=edges, histtype="stepfilled", alpha=0.25, color=colour)
        axes.hist(
            rows["share"] * 100,
            bins=edges,
            histtype="step",
            linewidth=1.6,
            color=colour,
            label=f"{plain(label)}, median {100 * rows['share'].median():.1f} %",
        )
    axes.set(
        xscale="log",
        xlabel="lesion, % of the image (logarithmic)",
        ylabel="images",
        title="how large lesions are",
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return _finished(figure, axes)


def places(facts: Facts):
    """Where lesions lie: by class the share of images whose lesion covers a place, and the centres of gravity of all lesions."""
    found = [(label, rows, colour) for label, rows, colour in _by_class(facts, _lesions(facts))]
    maps, centres = [], []
    for _, rows, _ in found:
        small = np.stack(
            [
                scaled(mask.astype(np.float32), SIDE, SIDE)
                for mask in map(facts.truth.mask, rows["id"])
            ]
        )
        grid, weight = (np.arange(SIDE) + 0.5) / SIDE, small.sum((1, 2))
        maps.append(small.mean(0))
        centres.append((small.sum(1) @ grid / weight, small.sum(2) @ grid / weight))
    figure = canvas(3.6 * (len(found) + 1) + 0.6, 3.9)
    *upper, last = figure.subplots(1, len(found) + 1, sharey=True)
    for axes, shown, (label, rows, colour), (x, y) in zip(upper, maps, found, centres):
        drawn = axes.imshow(
            shown, extent=(0, 1, 1, 0), cmap="magma", vmin=0, vmax=max(m.max() for m in maps)
        )
        axes.set(title=f"{plain(label)}, {len(rows)} images", xlabel="from left to right")
        last.scatter(x, y, s=9, alpha=0.6, linewidth=0, color=colour, label=plain(label))
    upper[0].set_ylabel("from top to bottom")
    figure.colorbar(drawn, ax=upper, label="share of images with lesion here", shrink=0.85)
    last.set(
        title="centres of the lesions",
        xlabel="from left to right",
        xlim=(0, 1),
        ylim=(1, 0),
        aspect="equal",
    )
    return _finished(figure, last)


def outlines(facts: Facts, each: int = 6):
    """Images with the outline of their lesion: a row a class, from its smallest lesion to its largest."""
    figure = canvas(2.3 * each, 2.15 * len(facts.classes))
    for row, (label, rows, _) in zip(
        figure.subplots(len(facts.classes), each, squeeze=False),
        _by_class(facts, facts.train, empty=True),
    ):
        chosen = (
            rows.sort_values("share", kind="stable").iloc[
                np.unique(np.linspace(0, len(rows) - 1, each).astype(int))
            ]
            if len(rows)
            else rows
        )
        for axes, image in zip(row, chosen.itertuples()):
            _show(
                axes,
                facts.outlined(image.id),
                f"{image.id}\n{image.share:.1%}" if image.area else f"{image.id}\nno lesion",
            )
    return _bare(figure)


# ------------------------------------------------------------------------------------------------------------------------------- light


def light(facts: Facts) -> pd.DataFrame:
    """Brightness and contrast by class, test images apart: mean ± standard deviation over images. The formulas: `light_of`."""
    rows, _ = facts.light
    shown = {"brightness": "brightness", "rms": "RMS contrast", "michelson": "Michelson contrast"}
    table = {
        label: {"images": str(len(r))}
        | {text: f"{r[name].mean():.3g} ± {r[name].std():.2g}" for name, text in shown.items()}
        for label, r, _ in _by_class(facts, rows)
    }
    return pd.DataFrame(table).T.rename_axis("class")


def light_figure(facts: Facts):
    """The same as distributions over images: a box holds the middle half, the line is the median, whiskers reach 1.5 boxes, points lie beyond."""
    rows, _ = facts.light
    figure = canvas(12, 3.6)
    groups = [(label, chosen, colour) for label, chosen, colour in _by_class(facts, rows)]
    titles = {
        "brightness": "brightness (mean)",
        "rms": "RMS contrast (standard deviation)",
        "michelson": "Michelson contrast (1: with pure black)",
    }
    for axes, (name, title) in zip(figure.subplots(1, 3), titles.items()):
        drawn = axes.boxplot(
            [chosen[name] for _, chosen, _ in groups],
            widths=0.6,
            patch_artist=True,
            medianprops={"color": "#222222"},
            flierprops={"markersize": 3, "alpha": 0.5},
        )
        for box, (_, _, colour) in zip(drawn["boxes"], groups):
            box.set(facecolor=colour, alpha=0.55)
        axes.set_xticks(range(1, len(groups) + 1), [plain(label) for label, _, _ in groups])
        axes.set(title=title, ylabel="grey levels, 0 to 255" if name != "michelson" else "0 to 1")
    return _finished(figure)


def histograms(facts: Facts):
    """How often each grey level occurs: the mean over a class's images, on the right added up from black."""
    rows, counts = facts.light
    figure = canvas(12, 3.8)
    left, right = figure.subplots(1, 2)
    for label, chosen, colour in _by_class(facts, rows):
        mean = counts[chosen.index].mean(0)
        left.plot(mean * 100, color=colour, linewidth=1.4, label=plain(label))
        right.plot(mean.cumsum() * 100, color=colour, linewidth=1.4, label=plain(label))
    highest = 100 * max(
        counts[chosen.index].mean(0)[1:].max() for _, chosen, _ in _by_class(facts, rows)
    )
    left.set(
        xlabel="grey level",
        ylabel="% of the pixels",
        title="histogram, mean of the images",
        ylim=(0, 1.15 * highest),
    )
    black = {
        label: 100 * counts[chosen.index, 0].mean() for label, chosen, _ in _by_class(facts, rows)
    }
    left.text(
        0.98,
        0.97,
        "pure black: " + ", ".join(f"{v:.1f} % of {plain(k)}" for k, v in black.items()),
        transform=left.transAxes,
        ha="right",
        va="top",
        fontsize=8,
        color="#555555",
    )
    right.set(
        xlabel="grey level",
        ylabel="% of the pixels at most so bright",
        title="added up",
        ylim=(0, 100),
    )
    return _finished(figure, right)


def equalised(facts: Facts, each: int = 1):
    """Images as they are, equalised as a whole, and by CLAHE (src/parts/filters.py), each above its histogram: of every class those of middle brightness."""
    rows, _ = facts.light
    chosen = [
        i
        for _, r, _ in _by_class(facts, rows[rows["set"] == "train"])
        for i in r.sort_values("brightness")["id"].iloc[len(r) // 2 :][:each]
    ]
    named, names = (
        facts.train.set_index("id"),
        {"none": "as it is", "equalise": "equalised", "clahe": "CLAHE"},
    )
    figure = canvas(10.5, 3.7 * len(chosen))
    grid = figure.subplots(2 * len(chosen), 3, height_ratios=[3, 1] * len(chosen), squeeze=False)
    for upper, lower, id in zip(grid[::2], grid[1::2], chosen):
        image, highest = facts.pixels(named.loc[id, "image"]), 0.0
        for axes, below, (name, text) in zip(upper, lower, names.items()):
            made = filters.apply(image, name, {})
            counts = np.bincount(made.ravel(), minlength=256)
            brightness, rms, _ = light_of(counts)
            _show(axes, made, f"{id}: {text}", cmap="gray", vmin=0, vmax=255)
            below.stairs(100 * counts / made.size, np.arange(257) - 0.5, fill=True, color="#555555")
            below.set_title(
                f"brightness {brightness:.0f}, RMS contrast {rms:.0f}", fontsize=8, color="#555555"
            )
            highest = max(highest, 110 * counts[1:].max() / made.size)
        for below in lower:
            below.set(xlim=(-1, 256), xticks=[0, 64, 128, 192, 255], ylim=(0, highest))
        lower[0].set_ylabel("% of pixels")
    return _finished(figure)


# ------------------------------------------------------------------------------------------------------- near-duplicates, test against train


def duplicates(facts: Facts) -> pd.DataFrame:
    """What prepare counted: groups of near-duplicates, and where their members contradict each other. Whoever appears in both folds flatters the score."""
    counts, group = facts.report["counts"], facts.index["group"].value_counts()
    said = {
        "groups of near-duplicates": counts["duplicate_groups"],
        "images in them": int(group[group > 1].sum()),
        "largest group": int(group.max()),
        "pairs": counts["twins"],
        "pairs of different class": counts["contradicting_labels"],
        "pairs of different masks (Dice under 0.5)": counts["contradicting_masks"],
        "test images with a twin in train": counts["test_twins"],
    }
    return pd.DataFrame({"count": said})


def contradictions(facts: Facts, most: int = 9):
    """Near-duplicates that contradict each other in class or masks, side by side with their outlines; where there are none, near-duplicates that agree."""
    pairs: dict[tuple[str, str], list[str]] = {}
    for kind, text in (("contradicting_labels", "class"), ("contradicting_masks", "mask")):
        for pair in facts.report[kind]:
            pairs.setdefault(tuple(pair), []).append(text)
    if not pairs:
        groups = facts.train[facts.train["group"].duplicated(keep=False)].groupby("group")["id"]
        pairs = {tuple(ids.iloc[:2]): [] for _, ids in groups}
    shown, label = list(pairs.items())[:most], facts.train.set_index("id")["label"]
    if not shown:
        raise InputError(
            "there are no near-duplicates",
            short(facts.paths.report),
            "Leave this cell out",
            code="nothing_to_show",
        )
    wide = min(3, len(shown))
    figure = canvas(4.4 * wide, 2.5 * -(-len(shown) // wide) + 0.4)
    figure.suptitle(
        f"{len(shown)} of {len(pairs)} pairs of near-duplicates "
        + ("that contradict each other" if shown[0][1] else "(none contradicts another)"),
        fontsize=11,
    )
    boxes = figure.subfigures(-(-len(shown) // wide), wide, squeeze=False)
    for box, (pair, kinds) in zip(boxes.flat, shown):
        box.suptitle(
            f"different {listing(kinds).replace(', ', ' and ')}" if kinds else "",
            fontsize=9,
            color="#b0305c",
        )
        for axes, id in zip(box.subplots(1, 2), pair):
            _show(axes, facts.outlined(id), id if label[id] in id else f"{id}\n{label[id]}")
    return _bare(figure)


def drift(facts: Facts):
    """Test against train: what differs here was not learned. Width and height, brightness and contrast, each as the share of images up to a value."""
    rows, _ = facts.light
    figure = canvas(12, 3.4)
    sources = (
        (facts.index, "width", "width in pixels"),
        (facts.index, "height", "height in pixels"),
        (rows, "brightness", "brightness"),
        (rows, "rms", "RMS contrast"),
    )
    for axes, (table, name, text) in zip(figure.subplots(1, 4, sharey=True), sources):
        for part, colour in (("train", LINES[0]), ("test", LINES[1])):
            if len(values := np.sort(table.loc[table["set"] == part, name])):
                axes.step(
                    values,
                    100 * np.arange(1, len(values) + 1) / len(values),
                    where="post",
                    color=colour,
                    label=f"{part}, median {np.median(values):.0f}",
                )
        axes.set(xlabel=text)
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.axes[0].set_ylabel("% of the images up to here")
    return _finished(figure)


# --------------------------------------------------------------------------------------------------------------------- after training


def results(work: Path | str, config: Path | str) -> list:
    """What a notebook displays of a finished evaluate, as report.html has it: the numbers of the three ways of deciding with their 95 % intervals, and the
    pictures. Nothing where it is not evaluated yet: `status` says what is missing."""
    from IPython.display import Image  # only a notebook asks

    paths, name = Paths(Path(work).expanduser().resolve(), Path(work)), Path(config).stem
    if not paths.metrics(name).is_file():
        return []
    found = read_metrics(paths, name)
    ways = {way: found[way] for way in ("untuned", "tuned", "nested")}
    cells = {
        n: {
            way: f"{r['score'] if n == 'score' else r['metrics'][n]:.4f}  ({r['intervals'][n][0]:.3f} – {r['intervals'][n][1]:.3f})"
            for way, r in ways.items()
        }
        for n in ("score", *(m for m in ways["nested"]["metrics"] if m in SHOWN))
    }
    pictures = [
        file
        for p in ("confusion", "reliability", "typical", "worst")
        if (file := paths.picture(name, p)).is_file()
    ]
    return [
        pd.DataFrame(cells).T.rename_axis(f"{name}: nested is what to believe"),
        *(Image(filename=str(file)) for file in pictures),
    ]


# ----------------------------------------------------------------------------------------------------------------------------- drawing


def _by_class(
    facts: Facts, rows: pd.DataFrame, empty: bool = False
) -> list[tuple[str, pd.DataFrame, str]]:
    """(class, its train rows, its colour) for each class that has any, and at the end the test rows, in grey."""
    found = [
        (c, rows[(rows["label"] == c) & (rows["set"] == "train")], LINES[n % len(LINES)])
        for n, c in enumerate(facts.classes)
    ]
    return [f for f in found if len(f[1]) or empty] + [
        ("test", r, TEST) for r in [rows[rows["set"] == "test"]] if len(r)
    ]


def _lesions(facts: Facts) -> pd.DataFrame:
    """The train rows with a lesion. Raises InputError where there is none: a contest of classes alone."""
    if not len(rows := facts.train[facts.train["area"] > 0]):
        raise InputError(
            "no train image has a lesion",
            short(facts.paths.index),
            "Leave the cells on lesions out",
            code="nothing_to_show",
        )
    return rows


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
