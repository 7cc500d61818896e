"""study: what do the cells of a study say, and is it more than chance?

READS   predictions/<cell>/ metrics.json per_image.csv oof.npz of every cell and seed, models/<cell>/fold<k>/log.csv, prepared/index.csv and truth.npz, some images
WRITES  results/<study>/ table.md table.csv plot.png report.html

All under artifacts/studies/<folds>/. The cells themselves are ordinary experiments: the driver has trained and evaluated them before this runs. Every number of a
cell is its nested one (the untuned decision, or one tuned leave-one-fold-out where the study lists values), ± the standard deviation over folds; the differences
are paired with the base's answers to the same images.
"""

from __future__ import annotations

import csv
import re
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from src.config.load import Config
from src.core.console import header, say, warn
from src.core.disk import replacing
from src.core.freshness import Job
from src.core.paths import Paths
from src.data.cells import as_text
from src.data.images import read_image
from src.data.predictions import Predictions
from src.data.rle import Truth
from src.data.tables import read_index
from src.parts.postprocess import Decision, apply
from src.pipeline.records import read_metrics
from src.report import figures, html
from src.scoring.compare import Answers, Difference, paired
from src.scoring.resample import cross_folds

NESTED = [
    "score",
    "dice",
    "iou",
    "hd95",
    "accuracy",
    "macro_f1",
]  # columns of the table, where a cell has them
LOWER_IS_BETTER = {"hd95"}
SHOWN = 6  # images under every cell


def run(job: Job, config: Config, paths: Paths) -> None:
    table, sheet, plot, page = job.outputs
    header(
        "study", config.name, [paths.predictions("*") / "metrics.json"], [paths.study(config.name)]
    )
    competition = config.competition
    with job.running(facts := {}):
        index = read_index(paths, "train")
        records = {
            label: [read_metrics(paths, c.name) for c in made]
            for label, made in config.cells.items()
        }
        answers = {
            label: [read_answers(c, index, paths) for c in made]
            for label, made in config.cells.items()
        }
        base, *others = config.cells
        against = {
            label: paired(
                answers[base], answers[label], competition.score, competition.evaluate.bootstrap
            )
            for label in others
        }
        rows = [
            cell_row(label, records[label], config.cells[label], paths)
            | difference_columns(against.get(label, {}))
            for label in config.cells
        ]
        with replacing(sheet) as temporary:
            cells = [{name: as_text(v) for name, v in row.items()} for row in rows]
            pd.DataFrame(cells).to_csv(temporary, index=False)  # for people alone
        text = markdown(config, rows, against)
        with replacing(table) as temporary:
            temporary.write_text(text, encoding="utf-8")
        figures.save(forest(base, records[base], against), plot)
        images = same_images(config, index, paths)
        with replacing(page) as temporary:
            text = report(config, table_cells(rows, against), plot, images)
            temporary.write_text(text, encoding="utf-8")
        facts["summary"] = f"{len(config.cells)} cells against {base}: " + (
            ", ".join(
                f"{label} {d['score'].verdict}" for label, d in against.items() if "score" in d
            )
            or "see the table"
        )
    say(short_table(rows, against))


def read_answers(cell: Config, index: pd.DataFrame, paths: Paths) -> Answers:
    table = read_per_image(cell, paths)
    return Answers.read(table, index[index.id.isin(table.id)], cell.competition.data.classes)


def read_per_image(cell: Config, paths: Paths) -> pd.DataFrame:
    return pd.read_csv(
        paths.per_image(cell.name), dtype={"id": str}, keep_default_na=False
    )  # an id or a class may be called None


# ------------------------------------------------------------------------------------------------------------------------------- the table


def cell_row(label: str, records: list[dict], cells: list[Config], paths: Paths) -> dict:
    """One row: the nested numbers ± their spread over folds, the lecture's, and the speed; each averaged over the seeds."""
    row: dict = {"cell": label, "experiment": " ".join(c.name for c in cells)}
    for name in NESTED:
        needed = (
            cells[0].competition.score if name == "score" else [name]
        )  # of one answer alone it would be another score
        if all(n in r["nested"]["metrics"] for r in records for n in needed):
            row[name] = np.mean([html.pick(r["nested"], name) for r in records])
            folds = [
                [f[name] for f in r["nested"]["by_fold"].values() if name in f] for r in records
            ]
            row[f"{name}_sd"] = np.mean(
                [np.std(f, ddof=1) if len(f) > 1 else np.nan for f in folds]
            )
    for name in records[0]["lecture"]:
        row[name] = np.mean([r["lecture"][name] for r in records])
        folds = [[f[name] for f in r["lecture_by_fold"].values()] for r in records]
        row[f"{name}_sd"] = np.mean([np.std(f, ddof=1) if len(f) > 1 else np.nan for f in folds])
    logs = [
        row_
        for c in cells
        for e in c.experiments
        for file in paths.fold(e.name, 0).parent.glob("fold*/log.csv")
        for row_ in csv.DictReader(file.open(encoding="utf-8"))
    ]
    for name, column in (
        ("images_per_second", "images_per_second"),
        ("seconds_per_epoch", "seconds"),
    ):
        values = [float(r[column]) for r in logs if r.get(column)]
        if values:
            row[name] = float(np.median(values))
    return row


def difference_columns(found: dict[str, Difference]) -> dict:
    return {
        f"{name}_{what}": getattr(d, what)
        for name, d in found.items()
        for what in ("value", "low", "high", "verdict")
    }


def table_cells(rows: list[dict], against: dict[str, dict[str, Difference]]) -> list[list[str]]:
    """Head and rows, as text: the table that is printed, written and shown."""
    nested = [n for n in NESTED if any(n in r for r in rows)]
    lecture = [
        n
        for n in dict.fromkeys(k for r in rows for k in r)
        if n.startswith("lecture_") and not n.endswith("_sd")
    ]
    lecture = [
        n for n in lecture if len({r.get(n) for r in rows}) > 1
    ]  # it knows no decisions: a study of these changes nothing there
    compared = list(dict.fromkeys(n for found in against.values() for n in found))
    speed = ["seconds_per_epoch"] if any("seconds_per_epoch" in r for r in rows) else []
    lines = [
        [
            "cell",
            *(f"Δ {n}" for n in compared),
            *nested,
            *(n.replace("lecture_", "lecture ") for n in lecture),
            *("s/epoch" for _ in speed),
        ]
    ]
    for row in rows:
        found = against.get(row["cell"], {})
        values = [spread(row, n) for n in nested]
        deltas = [
            difference(found[n]) if n in found else "base" if row["cell"] not in against else ""
            for n in compared
        ]
        lines.append(
            [
                row["cell"],
                *deltas,
                *values,
                *(spread(row, n) for n in lecture),
                *(f"{row[n]:.1f}" if n in row else "" for n in speed),
            ]
        )
    return lines


def short_table(rows: list[dict], against: dict[str, dict[str, Difference]]) -> str:
    """For the console: the score and the differences."""
    lines = []
    for row in rows:
        score = f"score {row['score']:.4f}" if "score" in row else ""
        told = [f"{n} {difference(d)}" for n, d in against.get(row["cell"], {}).items()] or [
            "base"
        ] * (row["cell"] not in against)
        lines.append(f"  {row['cell']:<24.24} {score:<13} {'   '.join(told)}".rstrip())
    return "\n".join(lines)


def spread(row: dict, name: str) -> str:
    if name not in row:
        return ""
    digits = 1 if name in LOWER_IS_BETTER else 3 if name.startswith("lecture_") else 4
    return f"{row[name]:.{digits}f}" + (
        "" if np.isnan(row[f"{name}_sd"]) else f" ± {row[f'{name}_sd']:.{min(3, digits)}f}"
    )


def difference(d: Difference) -> str:
    return f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}] {d.verdict}"


def markdown(config: Config, rows: list[dict], against: dict) -> str:
    head, *body = [[plain(cell) for cell in line] for line in table_cells(rows, against)]
    lines = [f"# {plain(config.name)}", "", plain(config.study.question), ""]
    lines += [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines += [*(f"| {' | '.join(line)} |" for line in body), ""]
    base = plain(next(iter(config.cells)))
    return "\n".join([*lines, legend(base, config.competition.score), ""])


def report(config: Config, lines: list[list[str]], plot: Path, images: str) -> str:
    """The page. `lines`: head and rows of the table; `images`: HTML of same_images.

    All else is escaped here.
    """
    head, *body = lines
    return html.page(
        f"study {config.name}",
        [
            f"<h1>{escape(config.name)}</h1><p>{escape(config.study.question)}</p>",
            html.table(head, body, strong=0),
            f"<p class=soft>{escape(legend(next(iter(config.cells)), config.competition.score))}</p>",
            html.picture(plot, "differences from the base"),
            images,
        ],
    )


def plain(text: str) -> str:
    """Text that Markdown shows as it is, in one line, where it would read HTML and | otherwise."""
    return re.sub(r"([\\|])", r"\\\1", escape(" ".join(text.split()), quote=False))


def legend(base: str, weights: dict[str, float]) -> str:
    return (
        f"Score = {' + '.join(f'{w:g}·{n}' for n, w in weights.items())}. Out-of-fold at original size, decided untuned (where the study lists values of evaluate: tuned on "
        f"the other folds), ± standard deviation over folds. Δ: against {base}, with the 95 % interval of a paired bootstrap over duplicate groups; better or worse where it leaves 0 out. "
        "Many cells compared at once make some differ by chance, and with one seed the interval does not hold the chance of the training itself (configs/studies/noise.yaml shows it). lecture: the lecture's own way of counting (README)."
    )


# -------------------------------------------------------------------------------------------------------------------------------- pictures


def forest(base: str, records: list[dict], against: dict[str, dict[str, Difference]]):
    """Differences from the base with their intervals, one panel a metric."""
    names = list(dict.fromkeys(n for found in against.values() for n in found))
    labels = list(against)
    figure = figures.canvas(1.6 + 3.4 * max(1, len(names)), 0.9 + 0.36 * len(labels))
    for i, (axes, name) in enumerate(
        zip(np.ravel(figure.subplots(1, max(1, len(names)), sharey=True)), names)
    ):
        axes.axvline(0, color="#999999", linewidth=1)
        for y, label in enumerate(labels):
            if d := against[label].get(name):
                colour = {"better": figures.LINES[0], "worse": figures.LINES[1]}.get(
                    d.verdict, "#888888"
                )
                axes.plot([100 * d.low, 100 * d.high], [y, y], color=colour, linewidth=1.6)
                axes.plot(100 * d.value, y, "o", color=colour, markersize=5)
        own = [
            html.pick(r["nested"], name)
            for r in records
            if name == "score" or name in r["nested"]["metrics"]
        ]
        of_base = f"\n{figures.plain(base)}: {np.mean(own):.3f}" if own else ""
        axes.set_title(name.replace("_", " ") + of_base, fontsize=9)
        axes.set_xlabel("points against the base", fontsize=8)
        axes.set_yticks(range(len(labels)), [figures.plain(label) for label in labels], fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if not i:
            axes.invert_yaxis()
    return figure


def same_images(config: Config, index: pd.DataFrame, paths: Paths) -> str:
    """A row an image, a column a cell: true and predicted contours. The images are evenly from the base's worst to its best."""
    firsts = {label: made[0] for label, made in config.cells.items()}
    tables = {label: read_per_image(c, paths).set_index("id") for label, c in firsts.items()}
    masked = [label for label, t in tables.items() if "dice" in t]
    if not masked:
        return ""
    order = tables[masked[0]].sort_values("dice", kind="stable").index
    chosen = order[np.linspace(0, len(order) - 1, 2 * SHOWN + 1).astype(int)[1::2]]
    truth, parts = (
        Truth.load(paths.truth),
        [
            "<h2>The same images under every cell</h2><p class=soft>True outline blue, predicted orange.</p>"
        ],
    )
    predictions = {
        label: Predictions.load(
            paths.oof(firsts[label].name), firsts[label].competition.data.classes
        ).select(chosen)
        for label in masked
    }
    decisions = {
        label: read_metrics(paths, firsts[label].name)["nested"]["decisions"] for label in masked
    }
    images, some = index.set_index("id"), tables[masked[0]]
    left_out = dict(
        zip(some.index, cross_folds(some.fold.to_numpy(), some.group.to_numpy())[0])
    )  # whose decision answered each image
    for i, name in enumerate(chosen):
        try:
            pixels = read_image(
                Path(paths.data) / images.image[name], config.competition.data.channels
            )
        except (OSError, ValueError) as problem:
            warn(f"{name} is not shown: {problem}")
            continue
        shown = []
        for label in masked:
            row, made = (
                tables[label].loc[name],
                predictions[label],
            )
            pred, _ = apply(
                Decision(**decisions[label][str(left_out[name])]),
                made,
                i,
                pixels.shape[:2],
                firsts[label].competition.classes,
            )
            shown.append(
                html.captioned(
                    figures.png(figures.tile(pixels, truth.mask(name), pred, 240)),
                    f"{label}\nDice {row.dice:.3f}"
                    + (f", {row.predicted}" if "predicted" in row else ""),
                )
            )
        parts.append(image_row(f"{name} ({images.label[name]})", shown))
    return "".join(parts)


def image_row(about: str, shown: list[str]) -> str:
    """`about`: text; `shown`: HTML of the pictures."""
    return f"<p class=soft>{escape(about)}</p><div class=grid>{''.join(shown)}</div>"
