"""Run lengths: order and numbering against a hand-made case, there and back, and other text."""

import numpy as np
import pytest

from src.data.rle import Truth, decode, encode, from_runs, to_runs

#   columns:  0 1 2        numbered from 1, top to bottom, then left to right:  1 3 5
MASK = np.array([[0, 1, 1], [0, 1, 0]], dtype=bool)  # fmt: skip                            2 4 6


def test_order_and_first_pixel_against_a_hand_made_case():
    assert encode(MASK) == "3 3"  # pixels 3, 4 and 5
    assert encode(MASK, first=0) == "2 3"
    assert encode(MASK, order="row") == "2 2 5 1"  # left to right
    assert encode(np.array([[1, 0, 1], [1, 0, 0]], dtype=bool)) == "1 2 5 1"
    assert (
        encode(np.zeros((2, 3), dtype=bool)) == "-1"
        and encode(np.zeros((2, 3), dtype=bool), empty="") == ""
    )
    assert encode(np.ones((2, 3), dtype=bool)) == "1 6"


@pytest.mark.parametrize("order", ["column", "row"])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_there_and_back(order, first, share):
    mask = np.random.default_rng(1).random((23, 31)) < share
    assert np.array_equal(decode(encode(mask, order, first), 23, 31, order, first), mask)
    assert np.array_equal(from_runs(to_runs(mask), 23, 31), mask)


NO_RUNS = ["1", "1 2 3", "a b", "1.5 2", "-3 2", "6 2", "0 1", "3 2 1 1", "1 3 2 1", "2 0"]
NO_NUMBERS = ["5 -3", "٣ ٤", "² 3", "1e3 2", "0x1 2", "9" * 5000 + " 1", "1 2 9999999999 1"]
NO_NUMBERS += ["9223372036854775807 1", "1 9223372036854775807", "18446744073709551615 2"]


@pytest.mark.parametrize("text", NO_RUNS + NO_NUMBERS)
def test_text_that_is_not_run_lengths_of_a_2_by_3_image(text):
    with pytest.raises(ValueError):
        decode(text, 2, 3)


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_numbers_that_are_not_pixels_are_refused_in_relative_run_lengths_too(text):
    with pytest.raises(ValueError):
        decode(text, 60, 80, relative=True)


def test_masks_of_giant_sizes_are_refused():
    with pytest.raises(ValueError, match="larger than any image"):
        decode("1 1", 10**6, 10**6)


def test_the_empty_word_and_nothing_are_empty_masks():
    assert not decode("-1", 2, 3).any() and not decode("", 2, 3).any()


def test_truth_holds_every_mask_at_its_own_size(tmp_path):
    masks = {"a": MASK, "b": np.zeros((5, 4), dtype=bool), "c": np.ones((3, 3), dtype=bool)}
    Truth.build(
        masks, [m.shape for m in masks.values()], [to_runs(m) for m in masks.values()]
    ).save(tmp_path / "truth.npz")
    truth = Truth.load(tmp_path / "truth.npz")
    for id, mask in masks.items():
        assert np.array_equal(truth.mask(id), mask)
