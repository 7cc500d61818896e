"""evaluate on synthetic predictions: numbers that are known, the search against the pixels, and
that leave-one-fold-out leaves out."""

import csv
import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from conftest import refused
from PIL import Image

from src.config.load import Config
from src.core.paths import Paths
from src.core.settings import Classes, Competition, Experiment
from src.data.predictions import Predictions
from src.data.rle import Truth, to_runs
from src.parts import metrics
from src.parts.postprocess import Decision, apply, stretch
from src.pipeline.jobs import evaluate_job
from src.pipeline.records import read_metrics
from src.scoring import tuning
from src.scoring.resample import bootstrap, cross_folds
from src.stages import evaluate

CLASSES = ["benign", "malignant", "normal"]
FEW = {
    "threshold": [0.5, 0.3, 0.7],
    "min_area": [0.0, 0.01, 0.05],
    "empty_above": [1.0, 0.3, 0.6],
    "fill_holes": [False, True],
    "agree": ["no", "mask", "label"],
    "bootstrap": 100,
}


def world(home: Path, n: int = 15, tests: int = 0, size: int = 32, seed: int = 0, folds: int = 3):
    """An index, truth, folds and images by hand, each image of its own size; returns paths, labels
    (N) and true masks. Images 0 and 1 are near-duplicates."""
    rng = np.random.default_rng(seed)
    paths = Paths(home, home / "data")
    paths.data.mkdir(parents=True)
    paths.prepared.mkdir(parents=True)
    labels, masks, rows = np.arange(n) % 3, [], []
    labels[1] = labels[0]
    for i in range(n + tests):
        height, width = int(rng.integers(40, 70)), int(rng.integers(40, 90))
        Image.fromarray(rng.integers(0, 255, (height, width), dtype=np.uint8)).save(
            paths.data / f"i{i}.png"
        )
        mask = np.zeros((height, width), dtype=bool)
        if i < n and labels[i] < 2:
            top, left = rng.integers(5, 20, 2)
            mask[top : top + 15, left : left + 18] = True
        masks.append(mask)
        part, label, area = ("train", CLASSES[labels[i]], mask.sum()) if i < n else ("test", "", "")
        rows.append(
            [f"i{i}", part, label, f"i{i}.png", int(i < n), height, width, area, 0 if i < 2 else i]
        )
    write_table(
        paths.index,
        ["id", "set", "label", "image", "masks", "height", "width", "area", "group"],
        rows,
    )
    write_table(
        paths.folds, ["id", "fold"], [[f"i{i}", 0 if i < 2 else i % folds] for i in range(n)]
    )
    Truth.build(
        [f"i{i}" for i in range(n)], [m.shape for m in masks[:n]], [to_runs(m) for m in masks[:n]]
    ).save(paths.truth)
    write_table(
        paths.data / "sample_submission.csv",
        ["id", "label", "rle"],
        [[f"i{i}", "normal", "-1"] for i in reversed(range(n, n + tests))],
    )
    return paths, labels, masks


def write_table(file: Path, head: list[str], rows: list[list]) -> None:
    with open(file, "w", newline="") as lines:
        csv.writer(lines).writerows([head, *rows])


def messy(ids, seed: int = 0, size: int = 32) -> Predictions:
    """Blobs with holes and specks, and soft labels."""
    rng = np.random.default_rng(seed)
    mask = np.stack([stretch(rng.random((9, 9)), size, size) for _ in ids]).astype(np.float16)
    return Predictions(ids, mask, rng.dirichlet([1, 1, 1], len(ids)).astype(np.float32), CLASSES)


def perfect(masks, labels, size: int = 32) -> Predictions:
    mask = np.stack([stretch(m, size, size) for m in masks]).astype(np.float16)
    return Predictions(
        [f"i{i}" for i in range(len(masks))],
        mask,
        (np.eye(3)[labels] * 0.85 + 0.05).astype(np.float32),
        CLASSES,
    )


def counts_of(preds, trues) -> np.ndarray:
    """Pairs of masks -> (4,N) pixel counts."""
    return np.stack([metrics.counts(*pair) for pair in zip(preds, trues, strict=True)], 1)


def settings(name: str = "exp", **competition) -> Config:
    return Config(
        name,
        Path(f"{name}.yaml"),
        Competition(**({"evaluate": FEW} | competition)),
        experiment=Experiment(),
    )


def run(config: Config, paths: Paths) -> dict:
    evaluate.run(evaluate_job(config, paths), config, paths)
    return json.loads(paths.metrics(config.name).read_text())


# ---------------------------------------------------------------------- the search


@pytest.mark.parametrize("empty_class", ["normal", None])
def test_the_tables_say_exactly_what_the_pixels_say(tmp_path, empty_class):
    paths, labels, masks = world(tmp_path)
    competition, truth = Competition(data={"empty_class": empty_class}), Truth.load(paths.truth)
    predictions = messy(truth.ids)
    rng = np.random.default_rng(5)
    tried = {
        "threshold": [0.31, 0.4, 0.5, 0.62],
        "smooth": [0.0, 0.0, 0.06, 0.2],
        "fill_holes": [False, True],
        "convex": [False, False, True],
    }
    tried |= {
        "largest": [0, 1, 2, 3],
        "min_area": [0.0, 0.003, 0.02, 0.1, 0.3],
        "empty_above": [1.0, 0.2, 0.5],
        "agree": ["no", "mask", "label"],
    }
    assert list(tried) == [f.name for f in fields(Decision)]
    some = [
        Decision(**{name: of[rng.integers(len(of))] for name, of in tried.items()})
        for _ in range(150)
    ]
    table = tuning.build_table(predictions, truth, some, competition.classes)
    seen = set()
    for decision in some:
        counts, decided = table.answer(decision)
        drawn = [
            apply(
                decision,
                predictions,
                i,
                masks[i].shape,
                Classes(CLASSES, empty_class),
            )
            for i in range(len(masks))
        ]
        assert np.array_equal(counts, counts_of([m for m, _ in drawn], masks))
        assert decided.tolist() == [label for _, label in drawn]
        seen.add(counts.tobytes())
    assert len(seen) > 60  # the decisions do differ


def test_the_grid_starts_untuned_and_leaves_out_what_cannot_matter():
    competition = Competition(evaluate=FEW)
    full = tuning.grid(competition, True, True)
    assert full[0] == Decision() and len(full) == len(set(full)) == 3 * 3 * 3 * 2 * 3
    assert len(tuning.grid(competition, True, False)) == 3 * 3 * 2
    assert tuning.grid(competition, False, True) == [Decision()]
    more = Competition(
        evaluate=FEW | {"smooth": [0.0, 0.02], "convex": [False, True], "largest": [0, 1, 2]}
    )
    assert len(tuning.grid(more, True, True)) == 12 * len(full)


def test_how_far_a_decision_is_from_the_untuned_one():
    evaluate = Competition(
        evaluate=FEW | {"largest": [0, 1, 2]}
    ).evaluate  # thresholds from 0.3 to 0.7
    some = [
        Decision(),
        Decision(threshold=0.6),
        Decision(largest=1),
        Decision(largest=2),
        Decision(threshold=0.4, fill_holes=True, agree="mask"),
    ]
    assert tuning.distances(some, evaluate).tolist() == pytest.approx([0, 0.25, 1, 1, 2.25])


def test_components_of_equal_area_are_the_same_to_tables_and_pixels(tmp_path):
    """Four equal components and a larger one, at even and odd places: cv2 numbers components by
    blocks of 2×2, in a crop differently than in the whole image."""
    paths, labels, masks = world(tmp_path)
    truth = Truth.load(paths.truth)
    predictions = perfect(masks, labels)
    mask = np.zeros((32, 32), dtype=np.float16)
    for top, left in ((3, 20), (4, 9), (5, 2), (17, 11), (17, 20)):
        mask[top : top + 3, left : left + 3] = 1
    mask[17:20, 23] = 1
    predictions.mask[:] = mask
    some = [Decision(largest=k) for k in (1, 2, 4, 5, 6)]
    table = tuning.build_table(predictions, truth, some, Classes(CLASSES))
    for decision in some:
        drawn = [
            apply(decision, predictions, i, m.shape, Classes(CLASSES))[0]
            for i, m in enumerate(masks)
        ]
        assert np.array_equal(table.answer(decision)[0], counts_of(drawn, masks))


def test_equals_stay_untuned():
    far = np.array([0.0, 0.5, 0.1, 0.9])
    assert tuning._nearest_of_best(np.array([0.8, 0.8, 0.8, 0.8]), far) == 0
    hardly_better = 0.8 + tuning.SCORE_TOLERANCE / 2
    assert tuning._nearest_of_best(np.array([0.8, hardly_better, 0.7, 0.7]), far) == 0
    assert tuning._nearest_of_best(np.array([0.8, 0.82, 0.82, 0.8]), far) == 2


# ---------------------------------------------------------------------- the stage


def image_rows(paths: Paths) -> list[dict[str, str]]:
    return list(csv.DictReader(paths.per_image("exp").read_text().splitlines()))


def test_perfect_predictions_score_one_and_stay_untuned(tmp_path, capsys):
    paths, labels, masks = world(tmp_path)
    perfect(masks, labels, size=128).save(paths.oof("exp"))
    found = run(settings(), paths)
    nested = found["nested"]
    assert Decision.load(paths.decision("exp")) == Decision()
    assert nested["metrics"]["accuracy"] == nested["metrics"]["auc"] == 1
    assert nested["metrics"]["dice"] > 0.97
    assert nested["confusion"] == [[6, 0, 0], [0, 4, 0], [0, 0, 5]]
    assert nested["by_class"]["normal"]["dice"] == 1
    assert nested["lesion_images"]["images"] == 10
    assert "nested" in capsys.readouterr().out
    html = paths.html("exp").read_text()
    assert html.count("data:image/png;base64,") == 2 + 8 + len(masks)
    assert "http" not in html
    for picture in ("confusion", "typical", "worst", "reliability"):
        assert Image.open(paths.picture("exp", picture)).size[0] > 300
    job = evaluate_job(settings(), paths)
    assert job.state().done and job.record()["score"] == nested["score"]
    # as it was called in records that are older
    text = paths.metrics("exp").read_text().replace('"nested"', '"honest"')
    paths.metrics("exp").write_text(text)
    assert read_metrics(paths, "exp") == found


def test_known_numbers(tmp_path):
    """No lesion is found, so that only the normal images have Dice 1; one label of 15 is wrong."""
    paths, labels, masks = world(tmp_path)
    predictions = perfect(masks, labels, size=128)
    predictions.mask[:] = 0
    predictions.label[3] = [0.1, 0.8, 0.1]
    predictions.save(paths.oof("exp"))
    found = run(settings(), paths)["untuned"]
    dice, accuracy, f1 = (found["metrics"][n] for n in ("dice", "accuracy", "macro_f1"))
    assert (dice, accuracy) == pytest.approx(((labels == 2).sum() / 15, 14 / 15))
    assert found["score"] == pytest.approx(0.5 * dice + 0.5 * f1)
    assert found["confusion"][0] == [5, 1, 0]
    low, high = found["intervals"]["accuracy"]
    assert low <= 14 / 15 <= high == 1


def test_per_image_table(tmp_path):
    """Each image is answered by the decision of its own fold; the order of the file does not
    matter."""
    paths, labels, masks = world(tmp_path)
    predictions = messy([f"i{i}" for i in range(15)])
    predictions.select(predictions.ids[::-1]).save(paths.oof("exp"))
    found, rows = run(settings(), paths)["nested"], image_rows(paths)
    assert [r["id"] for r in rows] == [f"i{i}" for i in range(15)]
    assert [int(r["true_area"]) for r in rows] == [int(m.sum()) for m in masks]
    for name in ("dice", *metrics.SURFACE_METRICS):
        mean = np.mean([float(r[name]) for r in rows])
        assert mean == pytest.approx(found["metrics"][name], abs=1e-5)
    for i, row in enumerate(rows):
        decision, classes = Decision(**found["decisions"][row["fold"]]), Classes(CLASSES, "normal")
        mask, label = apply(decision, predictions, i, masks[i].shape, classes)
        assert int(row["area"]) == mask.sum() and row["predicted"] == CLASSES[label]
        distance = metrics.hd95(*metrics.outline_distances(mask, masks[i]))
        assert float(row["hd95"]) == pytest.approx(distance, abs=1e-5)


def test_distances_and_the_lectures_numbers_stand_beside_the_nested_ones(tmp_path):
    paths, labels, masks = world(tmp_path)
    perfect(masks, labels).save(paths.oof("exp"))  # 32 pixels: not quite perfect at original size
    found = run(settings(), paths)
    nested, lecture, mean = found["nested"], found["lecture"], found["nested"]["metrics"]
    assert found["in_pixels"] == list(metrics.SURFACE_METRICS)
    assert 0 < mean["assd"] < 1 and mean["assd"] < mean["hd95"] <= mean["hausdorff"] < 3
    assert nested["by_class"]["normal"]["hd95"] == 0
    assert nested["lesion_images"]["hd95"] == pytest.approx(mean["hd95"] * 15 / 10)
    assert all("hd95" in fold for fold in nested["by_fold"].values())
    assert "hd95" in found["untuned"]["metrics"] and "hd95" not in found["tuned"]["metrics"]
    assert lecture["lecture_accuracy"] == lecture["lecture_macro_f1"] == 1
    assert 0.9 < lecture["lecture_iou"] < lecture["lecture_f1"] < 1
    # one of the folds is one batch of normal images
    assert lecture["lecture_dice"] == pytest.approx(lecture["lecture_f1"] - 0.5 / 3)
    html = paths.html("exp").read_text()
    assert "Distances between the outlines" in html and f"{lecture['lecture_iou']:.4f}" in html


def test_the_new_steps_can_be_tuned(tmp_path):
    """Specks beside every lesion: only the largest component stays, where that is tried."""
    paths, labels, masks = world(tmp_path)
    predictions = perfect(masks, labels, size=128)
    predictions.mask[labels < 2, 90:115, 90:115] = 1
    predictions.save(paths.oof("exp"))
    plain = FEW | {"threshold": [0.5], "min_area": [0.0], "fill_holes": [False]}
    assert run(settings(evaluate=plain), paths)["nested"]["metrics"]["dice"] < 0.95
    more = plain | {"largest": [0, 1], "smooth": [0.0, 0.5], "convex": [False, True]}
    found = run(settings(evaluate=more), paths)
    assert Decision.load(paths.decision("exp")) == Decision(largest=1)
    assert found["nested"]["metrics"]["dice"] > 0.97


def test_leave_one_fold_out_leaves_out(tmp_path):
    """Only a low threshold finds the lesions of fold 0; in the other folds it finds specks that are
    not lesions. Fold 0 must get what the others want."""
    paths, labels, masks = world(tmp_path, n=30)
    predictions = perfect(masks, labels, size=128)
    folds = np.array([0 if i < 2 else i % 3 for i in range(30)])
    predictions.mask[folds == 0] *= 0.4
    specks = np.zeros((128, 128), dtype=np.float16)
    specks[110:120, 110:120] = 0.32
    for i in np.flatnonzero((folds != 0) & (labels < 2)):
        predictions.mask[i] = np.maximum(predictions.mask[i], specks)
    predictions.save(paths.oof("exp"))
    grid = {"threshold": [0.5, 0.25], "empty_above": [1.0], "bootstrap": 100}
    found = run(settings(evaluate=grid, score={"dice": 1.0}), paths)
    nested, of_fold_0 = found["nested"], found["nested"]["by_fold"]["0"]["dice"]
    # on all images fold 0 outweighs the specks
    assert found["tuned"]["decision"]["threshold"] == 0.25
    assert Decision.load(paths.decision("exp")).threshold == 0.25
    assert [nested["decisions"][k]["threshold"] for k in "012"] == [0.5, 0.25, 0.25]
    assert found["tuned"]["score"] > nested["score"] + 0.1
    # only its empty masks are right
    assert of_fold_0 == pytest.approx(np.mean(labels[folds == 0] == 2)) and of_fold_0 < 0.6


def test_holdout_is_cross_fitted_over_groups_and_unvalidated_images_stay_out(tmp_path, capsys):
    paths, labels, masks = world(tmp_path, n=30)
    write_table(paths.folds, ["id", "fold"], [[f"i{i}", 0 if i < 20 else -1] for i in range(30)])
    predictions = perfect(masks, labels)
    predictions.select(predictions.ids[:20]).save(paths.oof("exp"))
    found = run(settings(), paths)
    assert found["images"] == 20
    assert len(found["nested"]["decisions"]) == 5 and found["nested"]["spread"] is None
    assert "one validation fold" in capsys.readouterr().out


def test_parts_of_a_holdout_keep_groups_together():
    cv_folds, by_folds = cross_folds(np.zeros(80, dtype=int), np.repeat(np.arange(40), 2))
    assert not by_folds
    assert set(cv_folds) == set(range(5)) and (cv_folds[::2] == cv_folds[1::2]).all()
    assert cross_folds(np.array([0, 1, 1]), np.arange(3))[1] is True


def test_bootstrap_draws_whole_groups():
    groups = np.array([7, 3, 7, 9, 3, 7])
    for rows in bootstrap(groups, 50):
        for group in (3, 7, 9):
            times = np.bincount(rows, minlength=6)[groups == group]
            assert (times == times[0]).all()
    assert len({tuple(r) for r in bootstrap(groups, 50)}) > 10


@pytest.mark.parametrize("keep", ["mask", "label"])
def test_mask_only_and_class_only(tmp_path, keep):
    paths, labels, masks = world(tmp_path)
    predictions = perfect(masks, labels)
    setattr(predictions, "label" if keep == "mask" else "mask", None)
    predictions.save(paths.oof("exp"))
    found, html = run(settings(), paths), paths.html("exp").read_text()
    columns = image_rows(paths)[0].keys()
    of_masks = [
        "dice" in found["nested"]["metrics"],
        "hd95" in found["untuned"]["metrics"],
        "dice" in columns,
        "hd95" in columns,
        "Distances between the outlines" in html,
        "IoU of pixels" in html,
    ]
    of_labels = [
        "confusion" in found["nested"],
        "predicted" in columns,
        "accuracy of labels" in html,
        len(found["lecture"]) == 2,
    ]
    assert of_masks == [keep == "mask"] * 6
    assert of_labels == [keep == "label"] * 4
    assert "As the lecture counts" in html


def test_missing_predictions_are_named(tmp_path):
    paths, labels, masks = world(tmp_path)
    predictions = perfect(masks, labels)
    predictions.select(predictions.ids[:10]).save(paths.oof("exp"))
    with refused("predictions_ids_missing", "5 ids", "i10, i11"):
        run(settings(), paths)
    with refused("unknown_part", "'dise'"):
        run(settings(score={"dise": 1.0}), paths)
