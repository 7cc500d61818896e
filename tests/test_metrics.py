"""Metrics against hand-made cases, per image, independent of how images are grouped."""

import cv2
import numpy as np
import pytest
from conftest import refused
from test_evaluate import counts_of

from src.core.settings import Competition
from src.data.predictions import Predictions
from src.data.rle import Truth, to_runs
from src.parts import metrics
from src.parts.postprocess import Decision, apply, stretch
from src.scoring.images import score_predictions, surfaces

# truth: 4 pixels on the left of a 2×4 image; prediction: 2 of them and 1 wrong
# -> tp 2, fp 1, fn 2, tn 3
TRUE = np.array([[1, 1, 0, 0], [1, 1, 0, 0]], dtype=bool)
PRED = np.array([[1, 0, 1, 0], [1, 0, 0, 0]], dtype=bool)
EMPTY = np.zeros((2, 4), dtype=bool)


def test_counts_and_every_mask_metric_of_a_hand_made_image():
    counts = counts_of([PRED], [TRUE])
    assert counts[:, 0].tolist() == [2, 1, 2, 3]
    found = {name: float(v[0]) for name, v in metrics.per_image(counts).items()}
    expected = {
        "dice": 4 / 7,
        "iou": 2 / 5,
        "precision": 2 / 3,
        "recall": 2 / 4,
        "specificity": 3 / 4,
        "pixel_accuracy": 5 / 8,
        "volume_similarity": 6 / 7,
    }
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("pred", "true", "overlap", "specificity", "accuracy"),
    [(EMPTY, EMPTY, 1, 1, 1), (PRED, EMPTY, 0, 5 / 8, 5 / 8), (EMPTY, TRUE, 0, 1, 4 / 8)]
    + [(~EMPTY, ~EMPTY, 1, 1, 1)],
)
def test_empty_masks(pred, true, overlap, specificity, accuracy):
    found = metrics.per_image(counts_of([pred], [true]))
    expected = dict.fromkeys(metrics.MASK_METRICS, overlap)
    expected |= {"specificity": specificity, "pixel_accuracy": accuracy}
    assert {name: float(values[0]) for name, values in found.items()} == pytest.approx(expected)


def test_masks_of_another_size_are_refused():
    with pytest.raises(ValueError, match="size"):
        metrics.counts(PRED, TRUE.T)


# ------------------------------------------------------------------ outlines


def blob(rng, height: int, width: int) -> np.ndarray:
    """A random mask, smooth or ragged, small or nearly the whole image."""
    field = cv2.GaussianBlur(
        rng.random((height, width)).astype(np.float32), (0, 0), rng.uniform(0.5, 8)
    )
    return field > np.quantile(field, rng.uniform(0.1, 0.99))


def test_an_outline_is_what_has_background_or_the_image_edge_on_one_of_four_sides():
    mask = np.zeros((6, 7), dtype=bool)
    mask[0:4, 1:5] = True
    expected = mask.copy()
    expected[1:3, 2:4] = False  # the first row lies at the image's edge
    assert np.array_equal(metrics.outline(mask), expected)
    mask[4:, 5:] = True  # meets the other at a corner: the four sides stay as they are
    assert (
        np.array_equal(metrics.outline(mask)[:4, :5], expected[:4, :5])
        and metrics.outline(mask)[4:, 5:].all()
    )


def test_distances_of_two_squares_by_hand():
    """3×3 against the same moved right by 4: of the 8 outline pixels of each, 3 are 4 pixels away
    from the other's nearest, 2 are 3, 3 are 2."""
    left, right = np.zeros((2, 5, 9), dtype=bool)
    left[1:4, 1:4] = True
    right[1:4, 5:8] = True
    there, back = metrics.outline_distances(left, right)
    assert sorted(there) == sorted(back) == [2, 2, 2, 3, 3, 4, 4, 4]
    assert metrics.hausdorff(there, back) == metrics.hd95(there, back) == 4
    assert metrics.assd(there, back) == pytest.approx(24 / 8)


def test_the_larger_percentile_and_the_mean_of_both_ways():
    # 95th percentiles: rank 19 of 0..20, and 1 + 0.95·4
    there, back = np.arange(21.0), np.array([1.0, 5.0])
    assert metrics.hausdorff(there, back) == 20
    assert metrics.hd95(there, back) == metrics.hd95(back, there) == pytest.approx(19)
    assert metrics.hd95(np.zeros(3), back) == pytest.approx(4.8)
    assert metrics.assd(there, back) == pytest.approx((210 + 6) / 23)


def test_distances_where_masks_are_empty():
    some = np.zeros((30, 40), dtype=bool)
    some[3:5, 6] = True
    empty = np.zeros_like(some)
    for name, metric in metrics.SURFACE_METRICS.items():
        assert metric(*metrics.outline_distances(empty, empty)) == 0, name
        assert metric(*metrics.outline_distances(some, empty)) == 50, name
        assert metric(*metrics.outline_distances(empty, some)) == 50, name


def test_distances_agree_with_monai():
    torch, monai = pytest.importorskip("torch"), pytest.importorskip("monai.metrics")
    rng = np.random.default_rng(0)
    for _ in range(25):
        shape = rng.integers(8, 80, 2)
        pred, true = blob(rng, *shape), blob(rng, *shape)
        found = {
            name: metric(*metrics.outline_distances(pred, true))
            for name, metric in metrics.SURFACE_METRICS.items()
        }
        pair = [torch.from_numpy(mask)[None, None].float() for mask in (pred, true)]
        hausdorff, assd = monai.compute_hausdorff_distance, monai.compute_average_surface_distance
        theirs = {
            "hausdorff": hausdorff(*pair, include_background=True).item(),
            "hd95": hausdorff(*pair, include_background=True, percentile=95).item(),
            "assd": assd(*pair, include_background=True, symmetric=True).item(),
        }
        assert found == pytest.approx(theirs, rel=1e-5)


# ------------------------------------------------------------------ every entry of every list


@pytest.mark.parametrize("name", metrics.MASK_METRICS)
def test_every_mask_metric_is_a_share_and_1_where_all_is_right(name):
    rng = np.random.default_rng(1)
    masks = [blob(rng, 20, 30) for _ in range(20)]
    masks += [np.zeros((20, 30), bool), np.ones((20, 30), bool)]
    others = masks[1:] + masks[:1]
    found = metrics.MASK_METRICS[name](*counts_of(others, masks))
    assert found.shape == (22,)
    assert (found >= 0).all() and (found <= 1).all() and len(set(found.tolist())) > 10
    assert (metrics.MASK_METRICS[name](*counts_of(masks, masks)) == 1).all()


@pytest.mark.parametrize("name", metrics.SURFACE_METRICS)
def test_every_distance_is_finite_and_0_where_all_is_right(name):
    rng = np.random.default_rng(2)
    masks = [blob(rng, 20, 30) for _ in range(20)]
    masks += [np.zeros((20, 30), bool), np.ones((20, 30), bool)]
    metric = metrics.SURFACE_METRICS[name]
    found = [
        metric(*metrics.outline_distances(*pair)) for pair in zip(masks[1:] + masks[:1], masks)
    ]
    assert all(0 < value <= np.hypot(20, 30) for value in found)
    assert all(metric(*metrics.outline_distances(mask, mask.copy())) == 0 for mask in masks)
    with refused("invalid_value", name, "distance"):
        metrics.check_score({"dice": 0.5, name: 0.5})


@pytest.mark.parametrize("name", metrics.LABEL_METRICS)
def test_every_label_metric_is_a_share_and_1_where_all_is_right(name):
    rng = np.random.default_rng(3)
    metric = metrics.LABEL_METRICS[name]
    for n in (1, 2, 40):
        truth, probs = rng.integers(0, 3, n), rng.dirichlet([1, 1, 1], n)
        assert 0 <= metric(truth, probs.argmax(1), probs) <= 1
    assert metric(truth, truth, np.eye(3)[truth]) == 1


def test_distances_of_predictions_are_those_of_the_decided_masks():
    predictions, _, truths = images()
    truth = Truth.build(predictions.ids, [t.shape for t in truths], [to_runs(t) for t in truths])
    data = Competition().classes
    thresholds = 0.4 + 0.05 * np.arange(7)
    decisions = [Decision(threshold=t, empty_above=0.5, min_area=0.01) for t in thresholds]
    found = surfaces(predictions, truth, decisions, data)
    assert list(found) == list(metrics.SURFACE_METRICS)
    for i, decision in enumerate(decisions):
        mask, _ = apply(decision, predictions, i, truths[i].shape, data)
        assert found["hd95"][i] == metrics.hd95(*metrics.outline_distances(mask, truths[i]))
    assert len(set(found["hd95"].tolist())) > 4
    # without labels there is no gate
    alone = Predictions(predictions.ids, predictions.mask, None, predictions.classes)
    assert (surfaces(alone, truth, decisions, data)["assd"] != found["assd"]).any()


# ------------------------------------------------------------------ labels


def test_every_label_metric_of_a_hand_made_case():
    truth, decided = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 2])
    probs = np.eye(3)[decided] * 0.8 + 0.1
    found = {name: f(truth, decided, probs) for name, f in metrics.LABEL_METRICS.items()}
    # recall 2/3, 1/2, 1; precision 1, 1/2, 1/2; F1 0.8, 0.5, 2/3
    # AUC: right pairs + half of the ties
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["macro_recall"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found["balanced_accuracy"] == found["macro_recall"]
    assert found["macro_precision"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert found["macro_f1"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    assert found["auc"] == pytest.approx((7.5 / 9 + 5 / 8 + 4.5 / 5) / 3)


def test_label_metrics_agree_with_scikit_learn():
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    truth, probs = rng.integers(0, 3, 200), rng.dirichlet([1, 1, 1], 200).round(2)  # rounded: ties
    probs /= probs.sum(1, keepdims=True)
    decided = probs.argmax(1)
    theirs = {
        "macro_f1": sk.f1_score(truth, decided, average="macro"),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, decided),
        "auc": sk.roc_auc_score(truth, probs, multi_class="ovr"),
    }
    found = metrics.values(None, truth, decided, probs)
    assert {name: found[name] for name in theirs} == pytest.approx(theirs)


def test_decided_labels_override_the_probabilities_but_not_the_auc():
    truth, probs = np.array([0, 1, 2]), np.eye(3)
    wrong = np.array([1, 2, 0])
    found = metrics.values(None, truth, wrong, probs)
    assert found["accuracy"] == 0 and found["macro_f1"] == 0 and found["auc"] == 1


def test_a_class_that_is_absent_does_not_count():
    truth = np.array([0, 0, 1])
    assert metrics.macro_f1(truth, truth, np.eye(3)[truth]) == 1
    assert metrics.auc(np.array([1, 1]), np.array([1, 1]), np.eye(3)[[1, 1]]) == 0.5


def test_score_is_the_weighted_sum_and_unknown_names_are_refused():
    found = {"dice": 0.8, "accuracy": 0.4, "iou": 1.0}
    assert metrics.score({"dice": 0.25, "accuracy": 0.75}, found) == pytest.approx(0.5)
    with refused("unknown_part", "'macro_f'", "macro_f1"):
        metrics.score({"macro_f": 1.0}, {"macro_f1": 1.0})
    with refused("invalid_value", "dice"):
        metrics.check_score({"dice": -1.0})


def test_an_absent_answer_gives_its_weight_to_the_other_and_says_so_once(capsys):
    metrics._say_once.cache_clear()
    for _ in range(3):
        score = metrics.score({"dice": 0.5, "macro_f1": 0.5}, {"macro_f1": 0.7})
        assert score == pytest.approx(0.7)
    assert capsys.readouterr().out.count("no dice in these predictions") == 1
    with refused("no_such_answer", "dice"):
        metrics.score({"dice": 1.0}, {"macro_f1": 0.7})


def images(n: int = 7):
    rng = np.random.default_rng(3)
    sizes = [(int(rng.integers(20, 60)), int(rng.integers(20, 60))) for _ in range(n)]
    truths = [stretch(rng.random((4, 4)), *s) > 0.6 for s in sizes]
    truths[0] = np.zeros(sizes[0], dtype=bool)
    mask = rng.random((n, 16, 16)).astype(np.float16)
    label = rng.dirichlet([1, 1, 1], n).astype(np.float32)
    return (
        Predictions([f"i{k}" for k in range(n)], mask, label, ["benign", "malignant", "normal"]),
        rng.integers(0, 3, n),
        truths,
    )


def test_numbers_do_not_depend_on_how_images_are_grouped():
    predictions, labels, truths = images()
    whole = score_predictions(predictions, labels, truths, Competition())
    for batch in (1, 2, 5):
        groups = [slice(i, i + batch) for i in range(0, 7, batch)]
        parts = []
        for g in groups:
            some = predictions.select(predictions.ids[g])
            parts.append(score_predictions(some, labels[g], truths[g], Competition())["per_image"])
        for name in ("dice", "iou", "area", "label"):
            values = np.concatenate([part[name] for part in parts])
            assert np.array_equal(values, whole["per_image"][name])
    assert whole["dice"] == pytest.approx(np.mean(whole["per_image"]["dice"]))
    assert whole["score"] == pytest.approx(0.5 * whole["dice"] + 0.5 * whole["macro_f1"])


def test_masks_are_compared_at_the_image_size_and_not_at_the_predictions():
    truth = np.zeros((80, 40), dtype=bool)
    truth[:40] = True
    prob = np.zeros((1, 2, 2), dtype=np.float16)
    prob[0, 0] = 1
    one = Predictions(["a"], prob, None, ["benign", "malignant", "normal"])
    found = score_predictions(one, np.array([0]), [truth], Competition(score={"dice": 1.0}))
    assert found["per_image"]["true_area"][0] == 1600
    assert found["dice"] == 1 and "accuracy" not in found


def test_class_only_predictions():
    predictions, labels, truths = images()
    predictions.mask = None
    found = score_predictions(predictions, labels, truths, Competition())
    assert found["score"] == found["macro_f1"] and "dice" not in found
