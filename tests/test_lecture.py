"""The lecture's numbers against a plain loop over batches of raw logits, and against the library
that has the same definitions."""

import math

import numpy as np
import pytest

from src.data.predictions import Predictions
from src.report import html
from src.scoring import lecture

CLASSES = ["benign", "malignant", "normal"]
torch = pytest.importorskip("torch")


def made(n: int = 67, size: int = 12, seed: int = 0):
    """Raw logits (N,S,S), true masks (N,S,S), class logits (N,C), labels and folds (N): some masks
    empty, some pairs empty together, classes in no order."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-0.5, 2, (n, size, size)).astype(np.float32)
    # what float16 probabilities cannot tell from 0.5 has a test of its own
    logits[(logits > 0.499) & (logits <= 0.5)] = 0.49
    truths = rng.random((n, size, size)) < rng.random((n, 1, 1)) * 0.6
    labels = rng.choice([0, 0, 1, 2, 2, 2], n)
    # 4, 5 and 2 images more than whole batches
    folds = rng.permutation(np.repeat([0, 1, 2], [28, 21, 18])[:n])
    truths[labels == 2] = False
    logits[(labels == 2) & (rng.random(n) < 0.95)] = -3
    class_logits = rng.normal(0, 1, (n, 3)).astype(np.float32)
    class_logits += 1.5 * np.eye(3, dtype=np.float32)[labels]
    return logits, truths.astype(np.uint8), class_logits, labels, folds


def predicted(logits, class_logits) -> Predictions:
    mask = label = None
    if logits is not None:
        mask = torch.sigmoid(torch.from_numpy(logits)).numpy().astype(np.float16)
    if class_logits is not None:
        label = torch.softmax(torch.from_numpy(class_logits), 1).numpy()
    ids = [f"i{i}" for i in range(len(label if mask is None else mask))]
    return Predictions(ids, mask, label, CLASSES)


def numbers(*of) -> dict[str, float]:
    return lecture.mean(lecture.by_fold(*of).values())


def plainly(logits, truths, class_logits, labels, folds) -> dict[str, float]:
    """The definitions once more: tensors of raw logits, one loop over folds, one over batches,
    nothing shared with src/."""
    by_fold = []
    for fold in sorted(set(folds.tolist())):
        order = [
            i for c in range(3) for i in range(len(labels)) if folds[i] == fold and labels[i] == c
        ]
        rows = []
        for batch in (order[k : k + 8] for k in range(0, len(order), 8)):
            pred, true = torch.from_numpy(logits[batch]) > 0.5, torch.from_numpy(truths[batch]) == 1
            row = {n: [] for n in ("iou", "f1", "dice", "precision", "recall")}
            for p, t in ((~pred, ~true), (pred, true)):
                tp, fp, fn = (x.sum().item() for x in (p & t, p & ~t, ~p & t))
                row["iou"].append(tp / (tp + fp + fn) if tp + fp + fn else 1.0)
                row["f1"].append(2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 1.0)
                row["dice"].append(
                    2 * tp / (p.sum() + t.sum()).item() if p.any() or t.any() else 0.0
                )
                row["precision"].append(tp / (tp + fp) if tp + fp else 1.0)
                row["recall"].append(tp / (tp + fn) if tp + fn else 1.0)
            row = {n: (a + b) / 2 for n, (a, b) in row.items()}
            decided, truth = class_logits[batch].argmax(1).tolist(), labels[batch].tolist()
            row["accuracy"] = sum(d == t for d, t in zip(decided, truth)) / len(batch)
            pairs = list(zip(decided, truth))
            f1 = [
                2 * pairs.count((c, c)) / (decided.count(c) + truth.count(c))
                for c in sorted({*decided, *truth})
            ]
            row["macro_f1"] = float(np.mean(f1))
            rows.append(row)
        assert len(rows) > 1 and len(batch) < 8, "the last batch should be incomplete"
        by_fold.append({n: math.fsum(r[n] for r in rows) / len(rows) for n in rows[0]})
    return {f"lecture_{n}": math.fsum(f[n] for f in by_fold) / len(by_fold) for n in by_fold[0]}


@pytest.mark.parametrize("seed", range(4))
def test_they_are_the_plain_loop_to_the_last_bit(seed):
    logits, truths, class_logits, labels, folds = made(seed=seed)
    found = numbers(predicted(logits, class_logits), truths, labels, folds)
    assert found == plainly(logits, truths, class_logits, labels, folds)
    assert found.keys() == html.LECTURE.keys()
    assert found["lecture_dice"] < found["lecture_f1"], (
        "some batches should be empty and rightly so"
    )


def test_the_masks_numbers_are_those_of_smp():
    """segmentation_models_pytorch pools a batch with reduction='macro', and gives 1 where a class
    is absent."""
    smp = pytest.importorskip("segmentation_models_pytorch").metrics
    logits, truths, _, labels, _ = made(seed=9)
    order = np.argsort(labels, kind="stable")
    rows = []
    for start in range(0, len(order), 8):
        batch = order[start : start + 8]
        stats = smp.get_stats(
            torch.from_numpy(logits[batch] > 0.5).long(),
            torch.from_numpy(truths[batch]).long(),
            mode="multiclass",
            num_classes=2,
        )
        theirs = (smp.iou_score, smp.f1_score, smp.precision, smp.recall)
        rows.append([metric(*stats, reduction="macro").item() for metric in theirs])
    found = numbers(predicted(logits, None), truths, labels, np.zeros(len(labels), int))
    names = [f"lecture_{n}" for n in ("iou", "f1", "precision", "recall")]
    assert [found[n] for n in names] == pytest.approx(np.mean(rows, 0).tolist(), abs=1e-6)
    assert found.keys() == {*names, "lecture_dice"}


def test_one_batch_by_hand():
    """tp 2, fp 1, fn 2, tn 3: lesion IoU 2/5, F1 4/7, precision 2/3, recall 1/2; background 3/6,
    6/9, 3/5, 3/4."""
    found = lecture.of_pixels(2, 1, 2, 3)
    pairs = {
        "iou": (2 / 5, 3 / 6),
        "f1": (4 / 7, 6 / 9),
        "dice": (4 / 7, 6 / 9),
        "precision": (2 / 3, 3 / 5),
        "recall": (1 / 2, 3 / 4),
    }
    expected = {f"lecture_{n}": sum(pair) / 2 for n, pair in pairs.items()}
    assert found == pytest.approx(expected, abs=1e-15)
    nothing = lecture.of_pixels(0, 0, 0, 64)  # a batch of normal images, none of them wrong
    assert nothing.pop("lecture_dice") == 0.5
    assert set(nothing.values()) == {1}


def test_a_small_last_batch_weighs_as_much_as_a_full_one():
    truths = np.zeros((9, 2, 2), np.uint8)
    truths[:, 0] = 1
    mask = truths.astype(np.float16)
    mask[8] = 1 - mask[8]  # the only wrong image is alone in the second batch
    found = numbers(
        Predictions(range(9), mask, None, CLASSES), truths, np.zeros(9, int), np.zeros(9, int)
    )
    assert found["lecture_iou"] == found["lecture_f1"] == 0.5


def test_batches_go_through_the_classes_in_order_and_through_the_folds_apart():
    labels, folds = np.array([2, 1, 0] * 6), np.repeat([0, 1], 9)
    decided = np.eye(3, dtype=np.float32)[labels]
    decided[17] = decided[8] = np.eye(3)[1]  # the last benign image of both folds
    found = numbers(Predictions(range(18), None, decided, CLASSES), None, labels, folds)
    assert list(found) == ["lecture_accuracy", "lecture_macro_f1"]
    # per fold: batch 1 has 3 benign (one wrong), 3 malignant, 2 normal; batch 2 one normal
    assert found["lecture_accuracy"] == (7 / 8 + 1) / 2
    assert found["lecture_macro_f1"] == pytest.approx(((4 / 5 + 6 / 7 + 1) / 3 + 1) / 2)


def test_what_float16_rounds_is_as_documented():
    logits = np.array([[[0.4992, 0.4996, 0.5, 0.5008]]], np.float32)  # only the last exceeds 0.5
    pred = predicted(logits, None).mask[0].astype(np.float32) > lecture.THRESHOLD
    assert pred.tolist() == [[False, True, True, True]]
    assert torch.sigmoid(torch.tensor(0.5)).item() == lecture.THRESHOLD
