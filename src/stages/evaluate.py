"""evaluate: how good are these out-of-fold predictions, and which decision makes the most of them?

READS   artifacts/predictions/<name>/oof.npz, artifacts/folds.csv, artifacts/prepared/index.csv and
        truth.npz, the images that it shows
WRITES  artifacts/predictions/<name>/ metrics.json  per_image.csv  decision.json  report.html
        confusion.png  typical.png  worst.png  reliability.png

Everything is measured per image at the image's original size, for three ways of deciding:
*untuned* (the first value of each list of `evaluate`), *tuned* (the best decision on all images,
which has seen what it is scored on), and *nested*: each fold answered by the decision that is best
on the other folds. The nested number is quoted everywhere; decision.json, which submit uses, is the
tuned one. Distances between outlines are measured for untuned and nested only, because their masks
must be drawn. Beside all this stand the same predictions' numbers as the lecture computes them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from src.config.load import Config
from src.core.console import InputError, command, counted, header, listing, say, short, warn
from src.core.disk import replacing, write_json
from src.core.freshness import Job
from src.core.paths import Paths
from src.core.settings import Competition
from src.data.images import resize
from src.data.predictions import Predictions
from src.data.rle import Truth
from src.data.tables import read_folds, read_index, read_labels
from src.parts import metrics
from src.parts.postprocess import Decision, apply
from src.pipeline.records import read_metrics
from src.report import figures, html
from src.scoring import lecture, tuning
from src.scoring.images import surfaces
from src.scoring.resample import bootstrap, cross_folds, interval

WORST = 24
TYPICAL = 8
DIGITS = 6  # of numbers in per_image.csv


@dataclass
class Validated:
    """The images that some fold validates: a row of the index, the prediction, the true label and
    the fold of each, in the index's order."""

    index: pd.DataFrame
    predictions: Predictions
    truth: Truth
    labels: np.ndarray  # (N) int
    folds: np.ndarray  # (N) int
    cv_folds: np.ndarray  # (N) int: what leave-one-fold-out leaves out
    by_folds: bool  # whether these are the folds themselves
    competition: Competition

    def __len__(self) -> int:
        return len(self.labels)


class Answers(NamedTuple):
    """What one way of deciding makes of N images; None for what is absent."""

    counts: np.ndarray | None  # (4,N), as of metrics.counts
    labels: np.ndarray | None  # (N) int
    distances: dict[str, np.ndarray] | None = None  # between the outlines: (N) by name


def run(job: Job, config: Config, paths: Paths) -> None:
    name, competition = config.name, config.competition
    writes = paths.predictions(name) / "metrics.json, per_image.csv, decision.json, report.html"
    header("evaluate", name, [paths.oof(name), paths.folds], [writes])
    facts: dict = {}
    with job.running(facts):
        data = load(name, competition, paths)
        has_mask, has_label = data.predictions.mask is not None, data.predictions.label is not None
        decisions = tuning.grid(competition, has_mask, has_label)
        table = tuning.build_table(data.predictions, data.truth, decisions, competition.classes)
        untuned = decisions[0]
        tuned, without = tuning.tune(decisions, table, data.labels, data.cv_folds, competition)
        by_own_fold = [without[k] for k in data.cv_folds.tolist()]
        plain = Answers(*table.answer(untuned), distances(data, [untuned] * len(data)))
        nested = Answers(
            *tuning.apply_each(without, table, data.cv_folds), distances(data, by_own_fold)
        )
        results = {
            "untuned": {"decision": asdict(untuned)} | measure(data, plain),
            "tuned": {"decision": asdict(tuned)} | measure(data, Answers(*table.answer(tuned))),
            "nested": {"decisions": {k: asdict(d) for k, d in without.items()}}
            | measure(data, nested),
        }
        images = per_image(data, nested)
        about = describe(name, data, len(decisions))
        draw(data, about, results, images, by_own_fold, paths)
        with replacing(paths.per_image(name)) as temporary:
            images.to_csv(temporary, index=False)
        write_json(paths.metrics(name), about | results)
        tuned.save(paths.decision(name))
        facts |= {"score": results["nested"]["score"], "summary": summary(results["nested"])}
    print_summary(data, results, tuned, name, paths)
    warn_of_better_members(config, results["nested"]["score"], paths)


def load(name: str, competition: Competition, paths: Paths) -> Validated:
    """Raises InputError where a validated image has no prediction or no truth."""
    metrics.check_score(competition.score)
    classes = competition.data.classes
    index = read_index(paths, "train")
    folds = read_folds(paths, index.id)
    truth = Truth.load(paths.truth)
    index, folds = index[folds >= 0].reset_index(drop=True), folds[folds >= 0]
    predictions = Predictions.load(paths.oof(name), classes).select(index.id)
    if lost := [i for i in index.id if i not in truth.row]:
        what = counted(len(lost), "image has no true mask", "images have no true mask")
        raise InputError(
            f"{what}: {listing(lost)}",
            paths.truth,
            f"Make it again with {command('prepare', '--force')}",
            code="no_true_mask",
        )
    labels = read_labels(paths, index, classes)
    apart = pd.Series(folds).groupby(index.group).transform("nunique") > 1
    if apart.any() and competition.split.groups == "duplicates":
        warn(
            f"{apart.sum()} images have a near-duplicate in another fold (folds.csv was edited): "
            "their scores are too high"
        )
    cv_folds, by_folds = cross_folds(folds, index.group.to_numpy())
    return Validated(index, predictions, truth, labels, folds, cv_folds, by_folds, competition)


# ------------------------------------------------------------------------------ the numbers


def distances(data: Validated, decisions: list[Decision]) -> dict[str, np.ndarray] | None:
    return surfaces(data.predictions, data.truth, decisions, data.competition.classes)


def measure(data: Validated, answers: Answers) -> dict:
    """The numbers of one way of deciding, ready for JSON."""
    probs, score = data.predictions.label, data.competition.score
    images = None
    if answers.counts is not None:
        images = metrics.per_image(answers.counts) | (answers.distances or {})

    def over(rows) -> dict[str, float]:
        found = metrics.values(images, data.labels, answers.labels, probs, rows)
        return {"score": metrics.score(score, found)} | found

    found = over(slice(None))
    resamples = bootstrap(data.index.group.to_numpy(), data.competition.evaluate.bootstrap)
    samples = [over(rows) for rows in resamples]
    by_fold = {}
    for k in np.unique(data.folds):
        rows = data.folds == k
        by_fold[int(k)] = {"images": int(rows.sum())} | over(rows)
    scores = [of_fold["score"] for of_fold in by_fold.values()]
    result = {
        "score": found.pop("score"),
        "metrics": found,
        "intervals": {name: interval([s[name] for s in samples]) for name in samples[0]},
        "by_fold": by_fold,
        "spread": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
    }
    if images is not None:
        lesion = answers.counts[0] + answers.counts[2] > 0
        result["lesion_images"] = {"images": int(lesion.sum())}
        if lesion.any():
            result["lesion_images"] |= metrics.values(images, data.labels, None, None, lesion)
    confusion = None
    if answers.labels is not None:
        n = len(data.competition.data.classes)
        confusion = metrics.confusion(data.labels, answers.labels, n)
        result["confusion"] = confusion.tolist()
    result["by_class"] = by_class(data, images or {}, confusion)
    return result


def by_class(
    data: Validated, images: dict[str, np.ndarray], confusion: np.ndarray | None
) -> dict[str, dict]:
    """Means of the masks' metrics over the images of each class; precision, recall and F1 of the
    label, the class against the rest."""
    shown = {m: images[m] for m in ("dice", "iou", "hd95") if m in images}
    found = {}
    for c, name in enumerate(data.competition.data.classes):
        rows = data.labels == c
        if not rows.any():
            continue
        found[name] = {"images": int(rows.sum())}
        found[name] |= metrics.values(shown, data.labels, None, None, rows)
        if confusion is not None:
            answered, true = confusion[:, c].sum(), confusion[c].sum()
            counts = metrics.from_areas(confusion[c, c], answered, true, confusion.sum())
            found[name]["precision"] = float(metrics.precision(*counts))
            found[name]["recall"] = float(metrics.recall(*counts))
            found[name]["f1"] = float(metrics.dice(*counts))
    return found


def per_image(data: Validated, answers: Answers) -> pd.DataFrame:
    """One row an image, by the decision tuned without its fold. Areas and distances in pixels of
    the original size."""
    classes, index = data.competition.data.classes, data.index
    table = pd.DataFrame(
        {"id": index.id, "fold": data.folds, "group": index.group, "label": index.label}
    )
    if answers.labels is not None:
        table["predicted"] = [classes[c] for c in answers.labels]
        for c, name in enumerate(classes):
            table[f"p_{name}"] = data.predictions.label[:, c].astype(float).round(DIGITS)
    if answers.counts is not None:
        tp, fp, fn, _ = answers.counts
        for metric in ("dice", "iou"):
            table[metric] = metrics.MASK_METRICS[metric](*answers.counts).round(DIGITS)
        table["area"], table["true_area"] = tp + fp, tp + fn
        for metric, values in answers.distances.items():
            table[metric] = values.round(DIGITS)
    return table


def describe(name: str, data: Validated, tried: int) -> dict:
    """The head of metrics.json: what was measured, and the lecture's numbers."""
    mask, truths = data.predictions.mask, None
    if mask is not None:
        truths = (resize(data.truth.mask(i), mask.shape[1], is_mask=True) for i in data.index.id)
    lecture_by_fold = lecture.by_fold(data.predictions, truths, data.labels, data.folds)
    return {
        "name": name,
        "images": len(data),
        "groups": int(data.index.group.nunique()),
        "classes": data.competition.data.classes,
        "score": data.competition.score,
        "left_out": "folds" if data.by_folds else "parts of the one validation fold",
        "tried": tried,
        "in_pixels": [] if mask is None else list(metrics.SURFACE_METRICS),
        "lecture_by_fold": lecture_by_fold,
        "lecture": lecture.mean(lecture_by_fold.values()),
    }


# ----------------------------------------------------------------------------- the pictures


def draw(
    data: Validated,
    about: dict,
    results: dict,
    images: pd.DataFrame,
    decisions: list[Decision],
    paths: Paths,
) -> None:
    """The pictures, and the page that shows them with the numbers."""
    name, classes, probs = about["name"], about["classes"], data.predictions.label
    drawn, error = {}, None
    if probs is not None:
        drawn = {
            "Confusion matrix": paths.picture(name, "confusion"),
            "Reliability of the class probabilities": paths.picture(name, "reliability"),
        }
        confusion = figures.confusion_matrix(np.array(results["nested"]["confusion"]), classes)
        reliability, error = figures.reliability(data.labels, probs, classes)
        for figure, file in zip((confusion, reliability), drawn.values()):
            figures.save(figure, file)
    order = from_worst(data, images)
    typical = order[figures.middles(len(order), TYPICAL)]
    sheets = {
        "worst": tiles(order[:WORST], data, images, decisions, paths),
        "typical": tiles(typical, data, images, decisions, paths),
    }
    for sheet, shown in sheets.items():
        if shown:
            figures.save(figures.sheet(shown), paths.picture(name, sheet))
    page = {"about": about, "results": results, "drawn": drawn, "error": error} | sheets
    html.save(paths.html(name), "report.html.j2", **page)


def from_worst(data: Validated, images: pd.DataFrame) -> np.ndarray:
    """Rows from the lowest Dice to the highest (where equal: the largest wrong area first; without
    masks: by the probability of the true class)."""
    if data.predictions.mask is None:
        probs = data.predictions.label
        return np.argsort(probs[np.arange(len(probs)), data.labels], kind="stable")
    areas = images.area + images.true_area
    wrong = areas * (1 - images.dice) / (data.index.height * data.index.width)
    return np.lexsort((-wrong, images.dice))


def tiles(
    rows: np.ndarray,
    data: Validated,
    images: pd.DataFrame,
    decisions: list[Decision],
    paths: Paths,
) -> list[figures.Tile]:
    """These images with true and predicted outlines."""
    shown = []
    for i in rows:
        row, of_index = images.iloc[i], data.index.iloc[i]
        true = None if data.predictions.mask is None else data.truth.mask(row.id)
        size = of_index.height, of_index.width
        pred, _ = apply(decisions[i], data.predictions, i, size, data.competition.classes)
        file, channels = paths.data / of_index.image, data.competition.data.channels
        shown += figures.tiles(file, channels, [(true, pred, caption(row))])
    return shown


def caption(row: pd.Series) -> str:
    """Of a row of per_image.csv."""
    lines = [row.id, row.label]
    if "predicted" in row:
        wrong = "" if row.predicted == row.label else f", predicted {row.predicted}"
        lines[1] += f"{wrong} ({row[f'p_{row.predicted}']:.2f})"
    if "dice" in row:
        lines.append(f"Dice {row.dice:.3f}")
    return "\n".join(lines)


# ------------------------------------------------------------------------------ the console


def print_summary(data: Validated, results: dict, tuned: Decision, name: str, paths: Paths) -> None:
    """The table of the three ways of deciding."""
    nested = results["nested"]
    columns = [c for c in html.SHOWN if c == "score" or c in nested["metrics"]]
    if not data.by_folds:
        say(
            "  one validation fold only: the nested number is cross-fitted over 5 parts of its "
            "duplicate groups"
        )
    rows = {"": columns}
    for way, result in results.items():
        rows[way] = [f"{html.pick(result, c):.4f}" for c in columns]
    rows["95 %"] = ["-".join(map(without_zero, nested["intervals"][c])) for c in columns]
    lines = [f"  {head:9}" + "".join(f"{cell:>13}" for cell in row) for head, row in rows.items()]
    say("\n".join(lines) + f"   (nested{html.spread_text(nested)})")
    decision = ", ".join(f"{field} {value}" for field, value in asdict(tuned).items())
    say(f"  decision {decision} -> {short(paths.decision(name))}")
    say(f"  see {short(paths.html(name))}")


def without_zero(value: float) -> str:
    """.123, and -.123, so that a column is narrow; 10.123 keeps its zero."""
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def summary(nested: dict) -> str:
    low, high = nested["intervals"]["score"]
    others = [n for n in ("dice", "accuracy", "macro_f1") if n in nested["metrics"]]
    return f"score {nested['score']:.4f} [{low:.3f}, {high:.3f}]" + "".join(
        f" · {n} {nested['metrics'][n]:.4f}" for n in others
    )


def warn_of_better_members(config: Config, score: float, paths: Paths) -> None:
    if len(config.members) < 2:
        return  # where there is one, only the decision differs: that is a cell of a study
    for member in config.members:
        try:
            alone = read_metrics(paths, member.name)["nested"]
        except InputError:  # missing or damaged: then there is nothing to compare with
            continue
        # of one answer alone it would be another score
        is_comparable = all(name in alone["metrics"] for name in config.competition.score)
        if is_comparable and alone["score"] > score:
            todo = command("submit", "--config", short(member.file.resolve()))
            warn(
                f"{member.name} alone scores {alone['score']:.4f}, more than this ensemble: {todo}"
            )
