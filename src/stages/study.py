"""study: what do the cells of a study show, and is it more than chance?

READS   predictions/<cell>/ metrics.json per_image.csv oof.npz of every cell and seed,
        models/<cell>/fold<k>/log.csv, prepared/index.csv and truth.npz, some images
WRITES  results/<study>/ table.md table.csv plot.png report.html

All under artifacts/studies/<folds>/. The cells themselves are ordinary experiments: the driver has
trained and evaluated them before this runs. Every number of a cell is its nested one (the untuned
decision, or one tuned leave-one-fold-out where the study lists values), ± the standard deviation
over folds; the differences are paired with the base's answers to the same images.
"""

from __future__ import annotations

import csv
import re
from dataclasses import asdict, dataclass, field
from html import escape

import numpy as np
import pandas as pd

from src.config.load import Config
from src.core.console import header, say
from src.core.disk import replacing
from src.core.freshness import Job
from src.core.paths import Paths
from src.data.cells import as_text
from src.data.predictions import Predictions
from src.data.rle import Truth
from src.data.tables import read_index
from src.parts.postprocess import Decision, apply
from src.pipeline.records import read_metrics
from src.report import figures, html
from src.scoring.compare import Answers, Difference, paired
from src.scoring.resample import cross_folds

# columns of the table, where a cell has them
NESTED = ["score", "dice", "iou", "hd95", "accuracy", "macro_f1"]
COLOURS = {"better": figures.LINES[0], "worse": figures.LINES[1], "no evidence": "#888888"}
SHOWN = 6  # images under every cell


@dataclass
class Cell:
    """What evaluate made of one cell's experiments, one for each seed, and how the cell differs
    from the base by each metric."""

    configs: list[Config]
    records: list[dict]  # metrics.json
    tables: list[pd.DataFrame]  # per_image.csv
    answers: list[Answers]
    differences: dict[str, Difference] = field(default_factory=dict)


def run(job: Job, config: Config, paths: Paths) -> None:
    markdown_file, csv_file, plot, page = job.outputs
    reads = paths.predictions("*") / "metrics.json"
    header("study", config.name, [reads], [paths.study(config.name)])
    competition = config.competition
    with job.running(facts := {}):
        index = read_index(paths, "train")
        cells = {label: read_cell(made, index, paths) for label, made in config.cells.items()}
        base, *others = cells
        for label in others:
            cells[label].differences = paired(
                cells[base].answers,
                cells[label].answers,
                competition.score,
                competition.evaluate.bootstrap,
            )
        rows = {label: cell_row(label, cell, paths) for label, cell in cells.items()}
        with replacing(csv_file) as temporary:
            # for people alone: no cell may be taken for a formula
            texts = [{name: as_text(v) for name, v in row.items()} for row in rows.values()]
            pd.DataFrame(texts).to_csv(temporary, index=False)
        lines = text_table(cells, rows)
        with replacing(markdown_file) as temporary:
            temporary.write_text(markdown(config, lines), encoding="utf-8")
        figures.save(forest(cells), plot)
        html.save(
            page,
            "study.html.j2",
            name=config.name,
            question=config.study.question,
            lines=lines,
            legend=legend(config),
            plot=plot,
            images=same_images(cells, index, paths),
        )
        verdicts = [
            f"{label} {cell.differences['score'].verdict}"
            for label, cell in cells.items()
            if "score" in cell.differences
        ]
        found = ", ".join(verdicts) or "see the table"
        facts["summary"] = f"{len(cells)} cells against {base}: {found}"
    for label, cell in cells.items():
        score = f"score {rows[label]['score']:.4f}" if "score" in rows[label] else ""
        texts = [f"{name} {difference_text(d)}" for name, d in cell.differences.items()]
        texts += ["base"] if label == base else []
        say(f"  {label:<24.24} {score:<13} {'   '.join(texts)}".rstrip())


def read_cell(configs: list[Config], index: pd.DataFrame, paths: Paths) -> Cell:
    cell = Cell(configs, [read_metrics(paths, c.name) for c in configs], [], [])
    for config in configs:
        # an id or a class may be called None
        table = pd.read_csv(paths.per_image(config.name), dtype={"id": str}, keep_default_na=False)
        rows, classes = index[index.id.isin(table.id)], config.competition.data.classes
        cell.tables.append(table)
        cell.answers.append(Answers.read(table, rows, classes))
    return cell


# ------------------------------------------------------------------------------- the table


def cell_row(label: str, cell: Cell, paths: Paths) -> dict:
    """One row: the nested numbers ± their standard deviation over folds, the lecture's, the speed
    (each averaged over the seeds), and the differences from the base."""
    row: dict = {"cell": label, "experiment": " ".join(c.name for c in cell.configs)}
    nested = [record["nested"] for record in cell.records]
    for name in NESTED:
        # of one answer alone it would be another score
        needed = cell.configs[0].competition.score if name == "score" else [name]
        if all(n in of_seed["metrics"] for of_seed in nested for n in needed):
            values = [html.pick(of_seed, name) for of_seed in nested]
            row |= averaged(name, values, [of_seed["by_fold"] for of_seed in nested])
    for name in cell.records[0]["lecture"]:
        values = [record["lecture"][name] for record in cell.records]
        row |= averaged(name, values, [record["lecture_by_fold"] for record in cell.records])
    folders = [paths.fold(e.name, 0).parent for c in cell.configs for e in c.experiments]
    epochs = []
    for file in (file for folder in folders for file in folder.glob("fold*/log.csv")):
        epochs += csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    speeds = {"images_per_second": "images_per_second", "seconds_per_epoch": "seconds"}
    for name, column in speeds.items():
        if values := [float(epoch[column]) for epoch in epochs if epoch.get(column)]:
            row[name] = float(np.median(values))
    for name, difference in cell.differences.items():
        values = asdict(difference) | {"verdict": difference.verdict}
        row |= {f"{name}_{what}": value for what, value in values.items()}
    return row


def averaged(name: str, values: list[float], by_fold: list[dict[str, dict]]) -> dict:
    """The mean over seeds, and the mean over seeds of the standard deviation over folds."""
    deviations = []
    for folds in by_fold:
        of_folds = [fold[name] for fold in folds.values() if name in fold]
        deviations.append(np.std(of_folds, ddof=1) if len(of_folds) > 1 else np.nan)
    return {name: np.mean(values), f"{name}_sd": np.mean(deviations)}


def text_table(cells: dict[str, Cell], rows: dict[str, dict]) -> list[tuple[str, ...]]:
    """Head and rows, as text: the table that is written and shown."""
    known = dict.fromkeys(name for row in rows.values() for name in row)
    # the lecture knows no decisions: a study of these changes nothing there
    lecture = [
        name
        for name in known
        if name in html.LECTURE and len({row.get(name) for row in rows.values()}) > 1
    ]
    columns: dict[str, list[str]] = {"cell": list(cells)}
    for name in compared(cells):
        columns[f"Δ {name}"] = ["base"] + [
            difference_text(cell.differences.get(name)) for cell in list(cells.values())[1:]
        ]
    for name in [name for name in NESTED if name in known] + lecture:
        title = name.replace("lecture_", "lecture ")
        columns[title] = [number_text(row, name) for row in rows.values()]
    if "seconds_per_epoch" in known:
        seconds = [row.get("seconds_per_epoch") for row in rows.values()]
        columns["s/epoch"] = ["" if value is None else f"{value:.1f}" for value in seconds]
    return [tuple(columns), *zip(*columns.values())]


def compared(cells: dict[str, Cell]) -> list[str]:
    """What some cell is compared with the base by: the score, metrics."""
    return list(dict.fromkeys(name for cell in cells.values() for name in cell.differences))


def number_text(row: dict, name: str) -> str:
    """A number ± its standard deviation."""
    if name not in row:
        return ""
    digits = 3 if name in html.LECTURE else 4
    if name == "hd95":
        digits = 1
    text, deviation = f"{row[name]:.{digits}f}", row[f"{name}_sd"]
    return text if np.isnan(deviation) else f"{text} ± {deviation:.{min(3, digits)}f}"


def difference_text(d: Difference | None) -> str:
    return "" if d is None else f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}] {d.verdict}"


def markdown(config: Config, lines: list[tuple[str, ...]]) -> str:
    head, *body = ["| " + " | ".join(map(plain, line)) + " |" for line in lines]
    title, question = f"# {plain(config.name)}", plain(config.study.question)
    rule = f"|{' --- |' * len(lines[0])}"
    return "\n".join([title, "", question, "", head, rule, *body, "", plain(legend(config)), ""])


def plain(text: str) -> str:
    """Text that Markdown shows as it is, in one line, where it would read HTML and | otherwise."""
    return re.sub(r"([\\|])", r"\\\1", escape(" ".join(text.split()), quote=False))


def legend(config: Config) -> str:
    weights = " + ".join(f"{w:g}·{name}" for name, w in config.competition.score.items())
    return (
        f"Score = {weights}. Out-of-fold at original size, decided untuned (where the study lists "
        "values of evaluate: tuned on the other folds), ± standard deviation over folds. Δ: "
        f"against {next(iter(config.cells))}, with the 95 % interval of a paired bootstrap over "
        "duplicate groups; better or worse where it leaves 0 out. Many cells compared at once make "
        "some differ by chance, and with one seed the interval does not hold the chance of the "
        "training itself (configs/studies/noise.yaml shows it). lecture: the lecture's own way of "
        "counting (README)."
    )


# ----------------------------------------------------------------------------- the pictures


def forest(cells: dict[str, Cell]):
    """Differences from the base with their intervals, one panel a metric."""
    base, *others = cells
    names = compared(cells)
    panels = max(1, len(names))
    figure = figures.canvas(1.6 + 3.4 * panels, 0.9 + 0.36 * len(others))
    for axes, name in zip(np.ravel(figure.subplots(1, panels, sharey=True)), names):
        axes.axvline(0, color="#999999", linewidth=1)
        for y, label in enumerate(others):
            if d := cells[label].differences.get(name):
                colour = COLOURS[d.verdict]
                axes.plot([100 * d.low, 100 * d.high], [y, y], color=colour, linewidth=1.6)
                axes.plot(100 * d.value, y, "o", color=colour, markersize=5)
        of_base = np.mean([html.pick(record["nested"], name) for record in cells[base].records])
        title = f"{name.replace('_', ' ')}\n{figures.plain(base)}: {of_base:.3f}"
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("points against the base", fontsize=8)
        axes.set_yticks(range(len(others)), [figures.plain(label) for label in others], fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    if names:
        figure.axes[0].invert_yaxis()
    return figure


def same_images(
    cells: dict[str, Cell], index: pd.DataFrame, paths: Paths
) -> list[tuple[str, list[figures.Tile]]]:
    """Images evenly from the base's worst to its best: what each is, and how every cell with masks
    answers it (of its first seed)."""
    masked = {label: cell for label, cell in cells.items() if "dice" in cell.tables[0]}
    if not masked:
        return []
    tables = {label: cell.tables[0].set_index("id") for label, cell in masked.items()}
    first = next(iter(tables.values()))
    order = first.sort_values("dice", kind="stable").index
    chosen = order[figures.middles(len(order), SHOWN)]
    # whose decision answered each image
    cv_folds, _ = cross_folds(first.fold.to_numpy(), first.group.to_numpy())
    left_out = dict(zip(first.index, cv_folds))
    truth, images, predictions = Truth.load(paths.truth), index.set_index("id"), {}
    for label, cell in masked.items():
        config = cell.configs[0]
        found = Predictions.load(paths.oof(config.name), config.competition.data.classes)
        predictions[label] = found.select(chosen)
    shown = []
    for i, id in enumerate(chosen):
        true, answers = truth.mask(id), []
        for label, cell in masked.items():
            config, row = cell.configs[0], tables[label].loc[id]
            decisions = cell.records[0]["nested"]["decisions"]
            decision = Decision.from_dict(decisions[str(left_out[id])], paths.metrics(config.name))
            classes = config.competition.classes
            pred, _ = apply(decision, predictions[label], i, true.shape, classes)
            caption = f"{label}\nDice {row.dice:.3f}"
            caption += f", {row.predicted}" if "predicted" in row else ""
            answers.append((true, pred, caption))
        file, channels = paths.data / images.image[id], config.competition.data.channels
        if tiles := figures.tiles(file, channels, answers, 240):
            shown.append((f"{id} ({images.label[id]})", tiles))
    return shown
