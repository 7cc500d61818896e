"""From probabilities to a mask and a class: every step and rule, and the file that users edit."""
import json

import numpy as np
import pytest

from src.core.config import Evaluate
from src.core.console import InputError
from src.parts.postprocess import Decision, apply

CLASSES = ["benign", "malignant", "normal"]
BENIGN, MALIGNANT, NORMAL = np.array([0.7, 0.2, 0.1], np.float32), np.array([0.1, 0.8, 0.1], np.float32), np.array([0.1, 0.2, 0.7], np.float32)


def answer(prob, label=BENIGN, empty_class="normal", size=None, **decision):
    prob = None if prob is None else np.asarray(prob, dtype=np.float16)
    return apply(Decision(**decision), prob, label, *(size or prob.shape), CLASSES, empty_class)


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
    assert answer(prob, min_area=4 / 25)[0].sum() == 4 and answer(prob, fill_holes=True)[0].sum() == 5


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
    assert answer(ring(), None, empty_above=0.1, agree="label")[1] is None and answer(ring(), None, agree="label")[0].any()
    assert answer(None, MALIGNANT, size=(5, 5), agree="label") == (None, 1)


def test_the_mask_has_the_image_size():
    mask, _ = answer(ring(), size=(30, 45))
    assert mask.shape == (30, 45) and mask.dtype == bool and mask[9, 12]


def test_decision_file_there_and_back(tmp_path):
    decision = Decision(0.35, True, 0.002, 0.6, "label")
    decision.save(tmp_path / "decision.json")
    assert Decision.load(tmp_path / "decision.json") == decision
    assert Decision.untuned(Evaluate()) == Decision()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 1.5}, "threshold is a number from 0 to 1, not 1.5"),
        ({"threshold": "0.5"}, "threshold is a number"),
        ({"min_area": True}, "min_area is a number"),
        ({"fill_holes": 1}, "fill_holes is true or false"),
        ({"agree": "labels"}, "agree is one of no, mask, label"),
        ({"treshold": 0.5}, "unknown key 'treshold'.*Did you mean threshold"),
        ({"agree": None}, "agree is one of"),
    ],
)
def test_an_edited_decision_is_checked(tmp_path, change, message):
    file = tmp_path / "decision.json"
    Decision().save(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=message):
        Decision.load(file)


def test_a_missing_key_a_damaged_and_a_missing_file(tmp_path):
    file = tmp_path / "decision.json"
    with pytest.raises(InputError, match="evaluate"):
        Decision.load(file)
    file.write_text('{"threshold": 0.5}')
    with pytest.raises(InputError, match="fill_holes is missing"):
        Decision.load(file)
    for text in ('{"threshold": 0.', "[1]"):
        file.write_text(text)
        with pytest.raises(InputError):
            Decision.load(file)
