"""From probabilities to a mask and a class: every step and rule, and the file that users edit."""

import json
from dataclasses import fields

import cv2
import numpy as np
import pytest
from conftest import refused

from src.core.settings import Classes, Evaluate
from src.data.predictions import Predictions
from src.parts.postprocess import STEPS, Decision, apply, count_larger, drop_components

CLASSES = ["benign", "malignant", "normal"]
BENIGN, MALIGNANT, NORMAL = (
    np.array([0.7, 0.2, 0.1], np.float32),
    np.array([0.1, 0.8, 0.1], np.float32),
    np.array([0.1, 0.2, 0.7], np.float32),
)


def answer(prob, label=BENIGN, empty_class="normal", size=None, **decision):
    mask = None if prob is None else np.asarray(prob, dtype=np.float16)[None]
    labels = None if label is None else label[None]
    one = Predictions(["a"], mask, labels, CLASSES)
    size = size or mask.shape[1:]
    return apply(Decision(**decision), one, 0, size, Classes(CLASSES, empty_class))


def ring() -> np.ndarray:
    """A 10×10 map: a ring of 8 pixels with a hole at 0.9, and one lone pixel at 0.6."""
    prob = np.zeros((10, 10))
    prob[2:5, 2:5] = 0.9
    prob[3, 3] = 0.0
    prob[8, 8] = 0.6
    return prob


def test_threshold_is_exceeded_not_met():
    prob = np.array([[0.25, 0.5], [0.75, 0.5]])
    assert answer(prob)[0].tolist() == [[False, False], [True, False]]
    assert answer(prob, threshold=0.2)[0].all()


def test_small_parts_are_dropped_by_share_of_the_image():
    assert answer(ring())[0].sum() == 9
    assert answer(ring(), min_area=0.01)[0].sum() == 9  # one pixel of 100 is not smaller than 1 %
    assert answer(ring(), min_area=0.02)[0].sum() == 8
    assert answer(ring(), min_area=0.09)[0].sum() == 0


def drawn(step: str, mask: np.ndarray, pixels: int = 0, **decision) -> np.ndarray:
    return STEPS[step](mask, Decision(**decision), pixels or mask.size)


def rows(*lines: str) -> np.ndarray:
    return np.array([[c == "#" for c in line] for line in lines])


def blobs(rng, height: int, width: int) -> np.ndarray:
    """A few smooth or ragged parts, some with holes, some at the edge."""
    field = cv2.GaussianBlur(
        rng.random((height, width)).astype(np.float32), (0, 0), rng.uniform(0.5, 3)
    )
    return field > np.quantile(field, rng.uniform(0.3, 0.95))


def test_smoothing_is_a_majority_vote_with_background_outside():
    """Window 3: 0.3 of √100. A spike, a speck and the corners go, a pinhole closes; at the image's
    edge 5 of 9 are needed too."""
    mask = np.zeros((10, 10), dtype=bool)
    mask[1:6, 1:6] = True
    mask[3, 3] = mask[8, 8] = False
    mask[0, 3] = mask[7, 8] = True
    mask[9, 0:2] = True
    expected = np.zeros((10, 10), dtype=bool)
    expected[1:6, 1:6] = True
    expected[[1, 1, 5, 5], [1, 5, 1, 5]] = False
    assert np.array_equal(drawn("smooth", mask, smooth=0.3), expected)
    # a window of 1.9 pixels is nearest to 1
    assert np.array_equal(drawn("smooth", mask, smooth=0.19), mask)
    # 11 pixels, half of 121 is more than there is
    assert not drawn("smooth", mask, smooth=1.0).any()
    # the share is of the image, whatever part of it is given
    assert np.array_equal(drawn("smooth", mask, pixels=40000, smooth=0.015), expected)


def test_smoothing_is_counted_pixel_by_pixel():
    rng = np.random.default_rng(4)
    for share, side in ((0.1, 5), (0.2, 9), (0.5, 23)):  # of √(40·50) = 44.7
        mask = blobs(rng, 40, 50)
        padded = np.pad(mask, side // 2)
        votes = np.array(
            [[padded[y : y + side, x : x + side].sum() for x in range(50)] for y in range(40)]
        )
        assert np.array_equal(drawn("smooth", mask, smooth=share), votes > side * side / 2)


def test_convex_hulls_of_parts_by_hand():
    mask = rows("#....", "#...#", "###.#", ".....", ".#...")
    expected = rows("#....", "##..#", "###.#", ".....", ".#...")
    assert np.array_equal(drawn("convex", mask, convex=True), expected)
    ring = rows("###", "#.#", "###")
    assert drawn("convex", ring, convex=True).all()
    # the hull of the outer component swallows the speck
    cup = rows("#...#", "#.#.#", "#...#", "#####")
    assert drawn("convex", cup, convex=True).all()


def test_a_hull_covers_its_part_and_reaches_at_most_a_pixel_further():
    """Beside the exact hull, all pixels whose centre is within or on the polygon through the
    component's centres."""
    rng = np.random.default_rng(8)
    y, x = np.mgrid[:30, :40]
    for _ in range(20):
        mask = cv2.connectedComponents(blobs(rng, 30, 40).astype(np.uint8))[1] == 1
        corners = cv2.convexHull(np.argwhere(mask)[:, ::-1].astype(np.int32))[:, 0]
        sides = [
            (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])
            for a, b in zip(corners, np.roll(corners, -1, 0))
        ]
        box = (
            (x >= corners[:, 0].min())
            & (x <= corners[:, 0].max())
            & (y >= corners[:, 1].min())
            & (y <= corners[:, 1].max())
        )
        exact = (np.all(np.array(sides) >= 0, 0) | np.all(np.array(sides) <= 0, 0)) & box
        found = drawn("convex", mask, convex=True)
        assert found[exact].all() and exact[mask].all()
        assert not found[cv2.dilate(exact.astype(np.uint8), np.ones((3, 3), np.uint8)) == 0].any()


def test_the_largest_parts_stay_and_equals_stay_together():
    mask = rows("##..#", "##..#", ".....", "#..##", "#...#")  # areas 4, 2, 2, 3
    for k, area in ((0, 11), (1, 4), (2, 7), (3, 11), (4, 11)):
        assert drop_components(mask, Decision(largest=k), 25).sum() == area, k
    assert drop_components(mask, Decision(largest=3, min_area=3 / 25), 25).sum() == 7
    assert count_larger(np.array([4, 2, 2, 3])).tolist() == [0, 2, 2, 1]
    assert answer(ring(), largest=1)[0].sum() == 8
    assert answer(ring(), largest=1, min_area=0.09)[0].sum() == 0


def test_the_steps_follow_the_order_of_the_fields():
    names = [f.name for f in fields(Decision)]
    assert names[: 1 + len(STEPS)] == ["threshold", *STEPS]
    assert set(names) == set(Evaluate.model_fields) - {"bootstrap"}
    # a U with a speck inside, and a block that is larger than the U and smaller than its hull
    two = np.zeros((12, 12))
    two[1:8, [1, 5]] = two[7, 1:6] = two[3, 3] = 0.9
    two[1:6, 8:12] = 0.9
    assert answer(two, largest=1)[0].sum() == 20
    assert answer(two, convex=True, largest=1)[0].sum() == 35
    # 3 of 12 pixels: the thin U is gone
    assert answer(two, smooth=0.25, largest=1)[0][2:5, 9:11].all()


@pytest.mark.parametrize("name", STEPS)
def test_every_step_is_off_untuned_stays_in_the_box_and_does_not_see_the_crop(name):
    rng, step, changed = np.random.default_rng(6), STEPS[name], 0
    on = Decision(**{name: {"smooth": 0.15, "fill_holes": True, "convex": True}[name]})
    off = Decision.untuned(Evaluate(fill_holes=[False]))
    for _ in range(30):
        mask, pixels = blobs(rng, *rng.integers(8, 60, 2)), int(rng.integers(100, 2000))
        before = mask.copy()
        assert np.array_equal(step(mask, off, pixels), before)
        left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
        box = np.s_[top : top + height, left : left + width]
        whole, crop = step(mask, on, pixels), step(np.ascontiguousarray(mask[box]), on, pixels)
        assert whole.dtype == bool and np.array_equal(mask, before)
        assert np.array_equal(whole[box], crop) and whole.sum() == crop.sum()
        padded = step(np.pad(mask, ((3, 5), (7, 2))), on, pixels)
        assert np.array_equal(padded[3:-5, 7:-2], whole)
        changed += not np.array_equal(whole, mask)
        assert not step(np.zeros_like(mask), on, pixels).any()
    assert changed > 5


def test_holes_are_filled_before_parts_are_measured():
    assert answer(ring(), fill_holes=True)[0][3, 3]
    assert answer(ring(), fill_holes=True, min_area=0.09)[0].sum() == 9


def test_a_bay_at_the_edge_is_no_hole():
    prob = np.ones((6, 6))
    prob[0:3, 2] = 0
    assert np.array_equal(answer(prob, fill_holes=True)[0], prob > 0.5)


def test_a_diagonal_holds_parts_together_and_holes_closed():
    prob = np.zeros((5, 5))
    prob[[0, 1, 1, 2], [1, 0, 2, 1]] = 1  # a diamond around (1,1)
    assert (
        answer(prob, min_area=4 / 25)[0].sum() == 4 and answer(prob, fill_holes=True)[0].sum() == 5
    )


def test_empty_above_is_a_gate_on_the_empty_class():
    assert answer(ring(), NORMAL)[0].any() and answer(ring(), NORMAL, empty_above=0.75)[0].any()
    assert not answer(ring(), NORMAL, empty_above=0.65)[0].any()
    certain = np.array([0, 0, 1.0005], np.float32)  # rounding: 1 means never
    assert answer(ring(), certain, empty_above=1.0)[0].any()


def test_agreement():
    nothing = np.zeros((4, 4))
    assert answer(ring(), NORMAL)[1] == 2 and answer(nothing, BENIGN)[1] == 0  # no: both stand
    mask, label = answer(ring(), NORMAL, agree="mask")
    assert not mask.any() and label == 2
    assert answer(nothing, BENIGN, agree="mask")[1] == 0  # a mask cannot be made up
    mask, label = answer(ring(), NORMAL, agree="label")
    assert mask.any() and label == 1  # the more probable of the two lesion classes
    assert answer(nothing, MALIGNANT, agree="label")[1] == 2
    mask, label = answer(ring(), BENIGN, agree="label", empty_above=0.05)  # the gate comes first
    assert not mask.any() and label == 2


def test_no_empty_class_or_one_answer_alone():
    mask, label = answer(ring(), NORMAL, empty_class=None, empty_above=0.1, agree="mask")
    assert mask.any() and label == 2
    assert (
        answer(ring(), None, empty_above=0.1, agree="label")[1] is None
        and answer(ring(), None, agree="label")[0].any()
    )
    assert answer(None, MALIGNANT, size=(5, 5), agree="label") == (None, 1)


def test_the_mask_has_the_image_size():
    mask, _ = answer(ring(), size=(30, 45))
    assert mask.shape == (30, 45) and mask.dtype == bool and mask[9, 12]


def test_decision_file_there_and_back(tmp_path):
    decision = Decision(0.35, 0.02, True, True, 2, 0.002, 0.6, "label")
    decision.save(tmp_path / "decision.json")
    assert Decision.load(tmp_path / "decision.json") == decision
    assert Decision.untuned(Evaluate()) == Decision()


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"threshold": 1.5}, "invalid_value", ("threshold", "1.5")),
        ({"threshold": "0.5"}, "invalid_value", ("threshold", "'0.5'")),
        ({"min_area": True}, "invalid_value", ("min_area",)),
        ({"fill_holes": 1}, "invalid_value", ("fill_holes",)),
        ({"convex": 0}, "invalid_value", ("convex",)),
        ({"smooth": 2}, "invalid_value", ("smooth",)),
        ({"largest": 1.0}, "invalid_value", ("largest", "1.0")),
        ({"largest": -1}, "invalid_value", ("largest",)),
        ({"largest": True}, "invalid_value", ("largest",)),
        ({"agree": "labels"}, "invalid_value", ("agree", "'no', 'mask' or 'label'")),
        ({"treshold": 0.5}, "decision_key", ("'treshold'", "Did you mean threshold?")),
        ({"agree": None}, "invalid_value", ("agree",)),
    ],
)
def test_an_edited_decision_is_checked(tmp_path, change, code, words):
    file = tmp_path / "decision.json"
    Decision().save(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with refused(code, *words):
        Decision.load(file)


def test_a_missing_key_a_damaged_and_a_missing_file(tmp_path):
    file = tmp_path / "decision.json"
    with refused("no_decision", "./run.sh evaluate"):
        Decision.load(file)
    file.write_text('{"threshold": 0.5}')
    with refused("decision_key", "smooth"):
        Decision.load(file)
    for text in ('{"threshold": 0.', "[1]"):
        file.write_text(text)
        with refused("damaged_json", "decision.json"):
            Decision.load(file)
