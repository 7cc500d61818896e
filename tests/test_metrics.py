"""Metrics against hand-made cases, per image, independent of how images are grouped."""
import numpy as np
import pytest

from src.core.config import Competition
from src.core.console import InputError
from src.core.predictions import Predictions
from src.parts import metrics
from src.parts.postprocess import Decision, stretch

# truth: 4 pixels on the left of a 2×4 image; prediction: 2 of them and 1 wrong -> tp 2, fp 1, fn 2, tn 3
TRUE = np.array([[1, 1, 0, 0], [1, 1, 0, 0]], dtype=bool)
PRED = np.array([[1, 0, 1, 0], [1, 0, 0, 0]], dtype=bool)
EMPTY = np.zeros((2, 4), dtype=bool)


def test_counts_and_every_mask_metric_of_a_hand_made_image():
    counts = metrics.counts([PRED], [TRUE])
    assert counts[:, 0].tolist() == [2, 1, 2, 3]
    found = {name: float(v[0]) for name, v in metrics.per_image(counts).items()}
    assert found == pytest.approx({"dice": 4 / 7, "iou": 2 / 5, "precision": 2 / 3, "recall": 2 / 4, "specificity": 3 / 4})


@pytest.mark.parametrize(
    ("pred", "true", "expected"),
    [
        (EMPTY, EMPTY, {"dice": 1, "iou": 1, "precision": 1, "recall": 1, "specificity": 1}),
        (PRED, EMPTY, {"dice": 0, "iou": 0, "precision": 0, "recall": 0, "specificity": 5 / 8}),
        (EMPTY, TRUE, {"dice": 0, "iou": 0, "precision": 0, "recall": 0, "specificity": 1}),
        (~EMPTY, ~EMPTY, {"dice": 1, "iou": 1, "precision": 1, "recall": 1, "specificity": 1}),
    ],
)
def test_empty_masks(pred, true, expected):
    assert {n: float(v[0]) for n, v in metrics.per_image(metrics.counts([pred], [true])).items()} == pytest.approx(expected)


def test_masks_of_another_size_are_refused():
    with pytest.raises(ValueError, match="size"):
        metrics.counts([PRED], [TRUE.T])


def test_every_label_metric_of_a_hand_made_case():
    truth, decided = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 2])
    probs = np.eye(3)[decided] * 0.8 + 0.1
    found = {name: f(truth, decided, probs) for name, f in metrics.LABEL_METRICS.items()}
    # recall 2/3, 1/2, 1; precision 1, 1/2, 1/2; F1 0.8, 0.5, 2/3; AUC: right pairs + half of the ties
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["balanced_accuracy"] == found["macro_recall"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found["macro_precision"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert found["macro_f1"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    assert found["auc"] == pytest.approx((7.5 / 9 + 5 / 8 + 4.5 / 5) / 3)


def test_label_metrics_agree_with_scikit_learn():
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    truth, probs = rng.integers(0, 3, 200), rng.dirichlet([1, 1, 1], 200).round(2)  # rounded: ties
    probs /= probs.sum(1, keepdims=True)
    decided = probs.argmax(1)
    assert metrics.macro_f1(truth, decided, probs) == pytest.approx(sk.f1_score(truth, decided, average="macro"))
    assert metrics.balanced_accuracy(truth, decided, probs) == pytest.approx(sk.balanced_accuracy_score(truth, decided))
    assert metrics.auc(truth, decided, probs) == pytest.approx(sk.roc_auc_score(truth, probs, multi_class="ovr"))


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
    assert metrics.score({"dice": 0.25, "accuracy": 0.75}, {"dice": 0.8, "accuracy": 0.4, "iou": 1.0}) == pytest.approx(0.5)
    with pytest.raises(InputError, match="unknown metric 'macro_f'.*macro_f1"):
        metrics.score({"macro_f": 1.0}, {"macro_f1": 1.0})
    with pytest.raises(InputError, match="weight of dice"):
        metrics.check_score({"dice": -1.0})


def test_an_absent_answer_gives_its_weight_to_the_other_and_says_so_once(capsys):
    metrics._say_once.cache_clear()
    for _ in range(3):
        assert metrics.score({"dice": 0.5, "macro_f1": 0.5}, {"macro_f1": 0.7}) == pytest.approx(0.7)
    assert capsys.readouterr().out.count("no dice in these predictions") == 1
    with pytest.raises(InputError, match="neither"):
        metrics.score({"dice": 1.0}, {"macro_f1": 0.7})


def images(n: int = 7):
    rng = np.random.default_rng(3)
    sizes = [(int(rng.integers(20, 60)), int(rng.integers(20, 60))) for _ in range(n)]
    truths = [stretch(rng.random((4, 4)), *s) > 0.6 for s in sizes]
    truths[0] = np.zeros(sizes[0], dtype=bool)
    mask = rng.random((n, 16, 16)).astype(np.float16)
    label = rng.dirichlet([1, 1, 1], n).astype(np.float32)
    return Predictions([f"i{k}" for k in range(n)], mask, label, ["benign", "malignant", "normal"]), rng.integers(0, 3, n), truths


def test_numbers_do_not_depend_on_how_images_are_grouped():
    predictions, labels, truths = images()
    whole = metrics.score_predictions(predictions, labels, truths, Competition())
    for batch in (1, 2, 5):
        groups = [slice(i, i + batch) for i in range(0, 7, batch)]
        parts = [metrics.score_predictions(predictions.select(predictions.ids[g]), labels[g], truths[g], Competition()) for g in groups]
        for name in ("dice", "iou", "area", "label"):
            assert np.array_equal(np.concatenate([p["per_image"][name] for p in parts]), whole["per_image"][name])
    assert whole["dice"] == pytest.approx(np.mean(whole["per_image"]["dice"]))
    assert whole["score"] == pytest.approx(0.5 * whole["dice"] + 0.5 * whole["macro_f1"])


def test_masks_are_compared_at_the_image_size_and_not_at_the_predictions():
    truth = np.zeros((80, 40), dtype=bool)
    truth[:40] = True
    prob = np.zeros((1, 2, 2), dtype=np.float16)
    prob[0, 0] = 1
    one = Predictions(["a"], prob, None, ["benign", "malignant", "normal"])
    found = metrics.score_predictions(one, np.array([0]), [truth], Competition(score={"dice": 1.0}), Decision())
    assert found["per_image"]["true_area"][0] == 1600 and found["dice"] == 1 and "accuracy" not in found


def test_class_only_predictions():
    predictions, labels, truths = images()
    found = metrics.score_predictions(Predictions(predictions.ids, None, predictions.label, predictions.classes), labels, truths, Competition())
    assert found["score"] == found["macro_f1"] and "dice" not in found
