"""evaluate: how good are these out-of-fold predictions, and which decision makes the most of them?

READS   artifacts/predictions/<name>/oof.npz, artifacts/folds.csv, artifacts/prepared/index.csv and truth.npz, the images that it shows
WRITES  artifacts/predictions/<name>/metrics.json  per_image.csv  decision.json  report.html  confusion.png  typical.png  worst.png  reliability.png

Everything is measured per image at the image's original size. Three numbers: *untuned* (the first value of each list of `evaluate`), *tuned* (the
best decision on all images, which has seen what it is scored on), and *nested*: each fold answered by the decision that is best on the other folds.
The nested one is quoted everywhere; decision.json, which submit uses, is the tuned one. Distances between outlines are measured for untuned and nested
only: their masks must be drawn. Beside all this stand the same predictions' numbers as the lecture computes them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from src.config.load import Config
from src.core.console import InputError, command, counted, header, listing, say, short, warn
from src.core.disk import replacing, write_json
from src.core.freshness import Job
from src.core.paths import Paths
from src.core.settings import Competition
from src.data.images import read_image, resize
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
    """The images that some fold validates: a row of the index, the prediction, the true label and the fold of each, in the index's order."""

    index: pd.DataFrame
    predictions: Predictions
    truth: Truth
    labels: np.ndarray  # (N) int
    folds: np.ndarray  # (N) int
    parts: np.ndarray  # (N) int: what leave-one-fold-out leaves out
    by_folds: bool  # whether these parts are the folds
    competition: Competition


def run(job: Job, config: Config, paths: Paths) -> None:
    name, competition = config.name, config.competition
    header(
        "evaluate",
        name,
        [paths.oof(name), paths.folds],
        [paths.predictions(name) / "metrics.json, per_image.csv, decision.json, report.html"],
    )
    facts: dict = {}
    with job.running(facts):
        data = load(name, competition, paths)
        probs = data.predictions.label
        decisions = tuning.grid(competition, data.predictions.mask is not None, probs is not None)
        table = tuning.build_table(data.predictions, data.truth, decisions, competition.classes)
        untuned = Decision.untuned(competition.evaluate)
        tuned, without = tuning.tune(decisions, table, data.labels, data.parts, competition)
        counts, decided = tuning.apply_each(without, table, data.parts)
        distances, plain_distances = (
            outlines(data, [without[k] for k in data.parts.tolist()]),
            outlines(data, [untuned] * len(data.labels)),
        )
        results = {
            "untuned": {"decision": asdict(untuned)}
            | measure(data, *table.answer(untuned), plain_distances),
            "tuned": {"decision": asdict(tuned)} | measure(data, *table.answer(tuned)),
            "nested": {"decisions": {k: asdict(d) for k, d in without.items()}}
            | measure(data, counts, decided, distances),
        }
        images = per_image(data, counts, decided, distances)
        about = {
            "name": name,
            "images": len(data.labels),
            "groups": int(data.index.group.nunique()),
            "classes": competition.data.classes,
        }
        about |= {
            "score": competition.score,
            "left_out": "folds" if data.by_folds else "parts of the one validation fold",
            "tried": len(decisions),
        }
        about |= {
            "in_pixels": list(distances or {}),
            "lecture_by_fold": (folds := by_the_lecture(data)),
            "lecture": lecture.mean(folds.values()),
        }
        draw(data, about, results, images, without, paths)
        with replacing(paths.per_image(name)) as temporary:
            images.to_csv(temporary, index=False)
        write_json(paths.metrics(name), about | results)
        tuned.save(paths.decision(name))
        facts |= {"score": results["nested"]["score"], "summary": summary(results["nested"])}
    print_summary(data, results, tuned, name, paths)
    for member in config.members:
        try:
            found = read_metrics(paths, member.name)["nested"]
        except InputError:  # not there, or damaged: then there is nothing to compare with
            continue
        whole = all(
            name in found["metrics"] for name in competition.score
        )  # of one answer alone it would be another score
        if (
            whole
            and (alone := found["score"]) > results["nested"]["score"]
            and len(config.members) > 1
        ):  # of one alone, only the decision differs: that is a cell of a study
            warn(
                f"{member.name} alone scores {alone:.4f}, more than this ensemble: {command('submit', '--config', short(member.file.resolve()))}"
            )


def load(name: str, competition: Competition, paths: Paths) -> Validated:
    """Everything that is compared. Raises InputError where a validated image has no prediction or no truth."""
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
            short(paths.truth),
            f"Make it again with {command('prepare', '--force')}",
            code="no_true_mask",
        )
    labels = read_labels(paths, index, classes)
    apart = index.group.isin(
        [g for g, k in pd.Series(folds).groupby(index.group).nunique().items() if k > 1]
    )
    if apart.any() and competition.split.groups == "duplicates":
        warn(
            f"{int(apart.sum())} images have a near-duplicate in another fold (folds.csv was edited): their scores flatter"
        )
    parts, by_folds = cross_folds(folds, index.group.to_numpy())
    return Validated(index, predictions, truth, labels, folds, parts, by_folds, competition)


def outlines(data: Validated, decisions: list[Decision]) -> dict[str, np.ndarray] | None:
    """Every image answered by its own decision (N) -> the distances between its outlines (N) by name, None without masks."""
    return (
        None
        if data.predictions.mask is None
        else surfaces(data.predictions, data.truth, decisions, data.competition.classes)
    )


def by_the_lecture(data: Validated) -> dict[int, dict[str, float]]:
    mask = data.predictions.mask
    truths = (
        None
        if mask is None
        else (resize(data.truth.mask(i), mask.shape[1], is_mask=True) for i in data.index.id)
    )
    return lecture.by_fold(data.predictions, truths, data.labels, data.folds)


def measure(
    data: Validated,
    counts: np.ndarray | None,
    decided: np.ndarray | None,
    distances: dict[str, np.ndarray] | None = None,
) -> dict:
    """Pixel counts (4,N) and labels (N), None for an absent answer, and distances (N) by name -> the numbers of one way of deciding, ready for JSON."""
    images = None if counts is None else metrics.per_image(counts) | (distances or {})
    probs, weights = data.predictions.label, data.competition.score

    def over(rows) -> dict[str, float]:
        found = metrics.values(images, data.labels, decided, probs, rows)
        return {"score": metrics.score(weights, found)} | found

    found = over(slice(None))
    samples = [
        over(rows)
        for rows in bootstrap(data.index.group.to_numpy(), data.competition.evaluate.bootstrap)
    ]
    by_fold = {
        int(k): {"images": int((data.folds == k).sum())} | over(data.folds == k)
        for k in np.unique(data.folds)
    }
    spread = (
        float(np.std([f["score"] for f in by_fold.values()], ddof=1)) if len(by_fold) > 1 else None
    )
    intervals = {n: interval([s[n] for s in samples]) for n in samples[0]}
    result = {
        "score": found.pop("score"),
        "metrics": found,
        "intervals": intervals,
        "by_fold": by_fold,
        "spread": spread,
    }
    if counts is not None:
        lesion = counts[0] + counts[2] > 0
        result["lesion_images"] = {"images": int(lesion.sum())} | (
            {n: float(v[lesion].mean()) for n, v in images.items()} if lesion.any() else {}
        )
    if decided is not None:
        result["confusion"] = metrics.confusion(
            data.labels, decided, len(data.competition.data.classes)
        ).tolist()
    result["by_class"] = {}
    for c, name in enumerate(data.competition.data.classes):
        mine = data.labels == c
        if mine.any():
            row = {"images": int(mine.sum())} | {
                n: float(v[mine].mean())
                for n, v in (images or {}).items()
                if n in ("dice", "iou", "hd95")
            }
            if decided is not None:  # the class against the rest: the same counts as of pixels
                pairs = np.array(
                    [
                        (mine & (decided == c)).sum(),
                        (~mine & (decided == c)).sum(),
                        (mine & (decided != c)).sum(),
                        (~mine & (decided != c)).sum(),
                    ]
                )
                row |= {
                    "precision": float(metrics.precision(*pairs)),
                    "recall": float(metrics.recall(*pairs)),
                    "f1": float(metrics.dice(*pairs)),
                }
            result["by_class"][name] = row
    return result


def per_image(
    data: Validated,
    counts: np.ndarray | None,
    decided: np.ndarray | None,
    distances: dict[str, np.ndarray] | None,
) -> pd.DataFrame:
    """One row an image, by the decision tuned without its fold. Areas and distances in pixels of the original size."""
    classes = data.competition.data.classes
    table = pd.DataFrame(
        {
            "id": data.index.id,
            "fold": data.folds,
            "group": data.index.group,
            "label": data.index.label,
        }
    )
    if decided is not None:
        table["predicted"] = [classes[c] for c in decided]
        for c, name in enumerate(classes):
            table[f"p_{name}"] = data.predictions.label[:, c].astype(float).round(DIGITS)
    if counts is not None:
        for metric in ("dice", "iou"):
            table[metric] = metrics.MASK_METRICS[metric](*counts).round(DIGITS)
        table["area"], table["true_area"] = counts[0] + counts[1], counts[0] + counts[2]
        for metric, values in distances.items():
            table[metric] = values.round(DIGITS)
    return table


def draw(
    data: Validated,
    about: dict,
    results: dict,
    images: pd.DataFrame,
    without: dict[int, Decision],
    paths: Paths,
) -> None:
    """The three pictures, and the page that shows them with the numbers."""
    name, classes, probs = about["name"], about["classes"], data.predictions.label
    drawn, error = {}, None
    if probs is not None:
        figures.save(
            figures.confusion_matrix(np.array(results["nested"]["confusion"]), classes),
            paths.picture(name, "confusion"),
        )
        figure, error = figures.reliability(data.labels, probs, classes)
        figures.save(figure, paths.picture(name, "reliability"))
        drawn = {
            "Confusion matrix": paths.picture(name, "confusion"),
            "Reliability of the class probabilities": paths.picture(name, "reliability"),
        }
    order = from_worst(data, images)
    shown, captions = shown_with_outlines(order[:WORST], data, images, without, paths)
    if shown:
        figures.save(figures.tiles(shown, captions), paths.picture(name, "worst"))
    ranks = np.linspace(0, len(order) - 1, 2 * TYPICAL + 1).astype(int)[
        1::2
    ]  # the middles of eight equal shares: good and bad as they come
    typical = shown_with_outlines(order[ranks], data, images, without, paths)
    if typical[0]:
        figures.save(figures.tiles(*typical), paths.picture(name, "typical"))
    with replacing(paths.html(name)) as temporary:
        temporary.write_text(
            html.report(
                about,
                results,
                drawn,
                error,
                *(
                    [(figures.png(p), c) for p, c in zip(*sheet)]
                    for sheet in (typical, (shown, captions))
                ),
            ),
            encoding="utf-8",
        )


def from_worst(data: Validated, images: pd.DataFrame) -> np.ndarray:
    """Rows from the lowest Dice to the highest (where equal: the largest wrong area first; without masks: by the probability of the true class)."""
    if data.predictions.mask is None:
        probs = data.predictions.label
        return np.argsort(probs[np.arange(len(probs)), data.labels], kind="stable")
    wrong = (
        (images.area + images.true_area)
        * (1 - images.dice)
        / (data.index.height * data.index.width)
    )
    return np.lexsort((-wrong, images.dice))


def shown_with_outlines(
    rows: np.ndarray,
    data: Validated,
    images: pd.DataFrame,
    without: dict[int, Decision],
    paths: Paths,
) -> tuple[list[np.ndarray], list[str]]:
    """These images with true and predicted outlines, and their captions."""
    masks, probs, settings = data.predictions.mask, data.predictions.label, data.competition.data
    shown, captions = [], []
    for i in rows:
        row, file = images.iloc[i], paths.data / data.index.image[i]
        true = None if masks is None else data.truth.mask(row.id)
        try:
            pixels = read_image(file, settings.channels)
        except (OSError, ValueError) as problem:  # a report without one picture is better than none
            warn(f"{short(file)} is not shown: {problem}")
            continue
        pred, _ = apply(
            without[int(data.parts[i])],
            data.predictions,
            i,
            pixels.shape[:2],
            data.competition.classes,
        )
        shown.append(figures.tile(pixels, true, pred))
        said = (
            ""
            if probs is None
            else f"{'' if row.predicted == row.label else f', predicted {row.predicted}'} ({row[f'p_{row.predicted}']:.2f})"
        )
        captions.append(
            f"{row.id}\n{row.label}{said}" + ("" if masks is None else f"\nDice {row.dice:.3f}")
        )
    return shown, captions


def print_summary(data: Validated, results: dict, tuned: Decision, name: str, paths: Paths) -> None:
    """The console's table of the three numbers."""
    nested = results["nested"]
    columns = [c for c in html.SHOWN if c == "score" or c in nested["metrics"]]
    if not data.by_folds:
        say(
            "  one validation fold only: the nested number is cross-fitted over 5 parts of its duplicate groups"
        )
    say("  " + " " * 9 + "".join(f"{c:>13}" for c in columns))
    for way, result in results.items():
        say(f"  {way:9}" + "".join(f"{html.pick(result, c):13.4f}" for c in columns))
    ranges = ["-".join(without_zero(end) for end in nested["intervals"][c]) for c in columns]
    say(
        "  95 %     "
        + "".join(f"{text:>13}" for text in ranges)
        + f"   (nested{html.spread_text(nested)})"
    )
    say(
        f"  decision {', '.join(f'{k} {v}' for k, v in asdict(tuned).items())} -> {short(paths.decision(name))}"
    )
    say(f"  see {short(paths.html(name))}")


def without_zero(value: float) -> str:
    """.123, and -.123, so that a column is narrow; 10.123 stays as it is."""
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def summary(nested: dict) -> str:
    low, high = nested["intervals"]["score"]
    others = [n for n in ("dice", "accuracy", "macro_f1") if n in nested["metrics"]]
    return f"score {nested['score']:.4f} [{low:.3f}, {high:.3f}]" + "".join(
        f" · {n} {nested['metrics'][n]:.4f}" for n in others
    )
