"""What an epoch sees: which images, how they are distorted, how they are mixed."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from conftest import refused

from src.core.settings import Data, Experiment, Train
from src.parts import augment, losses, sampling
from src.training.batches import ImageDataset

SIDE = 64


def disc(radius: int = 18) -> np.ndarray:
    """A mask (S,S) uint8 of one round lesion beside the middle."""
    y, x = np.mgrid[:SIDE, :SIDE]
    return ((y - 30) ** 2 + (x - 36) ** 2 < radius**2).astype(np.uint8)


def noise(channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, channels), dtype=np.uint8)


# ------------------------------------------------------------------------------------ augmentations


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", augment.AUGMENTS)
def test_every_augmentation_keeps_shape_type_and_two_mask_values_and_repeats(name, channels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compose, again = augment.build(name), augment.build(name)
    image, mask, seen = noise(channels), disc(), set()
    for seed in range(30):
        compose.set_random_seed(seed)
        out = compose(image=image, mask=mask)
        assert out["image"].shape == image.shape and out["image"].dtype == np.uint8
        assert (
            out["mask"].shape == mask.shape
            and out["mask"].dtype == np.uint8
            and set(np.unique(out["mask"])) <= {0, 1}
        )
        seen.add(out["image"].tobytes())
        again.set_random_seed(seed)
        repeated = again(image=image, mask=mask)
        assert np.array_equal(out["image"], repeated["image"]) and np.array_equal(
            out["mask"], repeated["mask"]
        )
    assert len(seen) == 1 if name == "none" else len(seen) > 20
    assert np.array_equal(image, noise(channels)) and np.array_equal(mask, disc()), (
        "what went in stays as it was"
    )


@pytest.mark.parametrize("name", augment.AUGMENTS)
def test_image_and_mask_move_together(name):
    """An image that is its own mask: whatever bends it must bend both alike. Holes are cut into the
    image alone."""
    bending = [
        t
        for t in augment.AUGMENTS[name]()
        if isinstance(t, augment.A.DualTransform) and not isinstance(t, augment.A.CoarseDropout)
    ]
    for transform in bending:
        transform.p = 1.0
    compose, moved = augment.A.Compose(bending, strict=True), 0
    for seed in range(20):
        compose.set_random_seed(seed)
        out = compose(image=255 * disc()[..., None], mask=disc())
        seen, mask = out["image"][..., 0] > 127, out["mask"] > 0
        assert (seen & mask).sum() > 0.9 * (seen | mask).sum(), (
            "each transform rounds the mask once more"
        )
        moved += (mask & (disc() > 0)).sum() < 0.9 * (mask | (disc() > 0)).sum()
    assert moved > 10 or name == "none"


@pytest.mark.filterwarnings("ignore:Argument")
def test_a_set_with_an_unknown_argument_is_refused(monkeypatch):
    monkeypatch.setitem(
        augment.AUGMENTS, "broken", lambda: [augment.A.HorizontalFlip(probability=0.5)]
    )
    with pytest.raises(ValueError, match="probability"):
        augment.build("broken")


def test_a_shadow_falls_downwards():
    compose = augment.A.Compose([augment.Shadow(p=1.0)], strict=True)
    for seed in range(20):
        compose.set_random_seed(seed)
        out = compose(image=np.full((SIDE, SIDE, 1), 200, np.uint8), mask=disc())
        image = out["image"][..., 0].astype(int)
        assert np.array_equal(out["mask"], disc())
        assert (image[:6] == 200).all() and image.max() == 200, (
            "nothing above the point, nothing brighter"
        )
        assert (np.diff(image, axis=0) <= 0).all() and image[-1].min() < 0.75 * 200, (
            "darker and darker with depth"
        )
        dark = np.flatnonzero(image[-1] < 200)
        assert len(dark) < SIDE and (np.diff(dark) == 1).all(), "one column"
        assert (np.diff((image < 200).sum(1)) >= 0).all(), "that widens"


# ------------------------------------------------------------------------------------------- mixing


def batch(n: int = 6, channels: int = 1):
    random = np.random.default_rng(1)
    masks = np.stack([disc(3 * i) for i in range(n)])
    return (
        random.integers(0, 256, (n, SIDE, SIDE, channels), dtype=np.uint8),
        masks,
        np.eye(3, dtype=np.float32)[np.arange(n) % 3],
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", augment.MIXES)
def test_every_mix_keeps_shapes_types_and_sums_and_repeats(name, channels):
    images, masks, labels = given = batch(channels=channels)
    changed = 0
    for seed in range(10):
        out = augment.MIXES[name](given, np.random.default_rng(seed))
        again = augment.MIXES[name](given, np.random.default_rng(seed))
        assert all(np.array_equal(a, b) for a, b in zip(out, again))
        assert all(a.shape == b.shape for a, b in zip(out, given))
        assert (
            out[0].dtype == np.uint8
            and out[2].dtype == np.float32
            and out[1].dtype in (np.uint8, np.float32)
        )
        assert (
            out[1].min() >= 0
            and out[1].max() <= 1
            and out[2].sum(1) == pytest.approx(1)
            and out[2].min() >= 0
        )
        changed += not np.array_equal(out[0], images)
    assert changed == 10
    assert all(np.array_equal(a, b) for a, b in zip(given, batch(channels=channels))), (
        "what went in stays as it was"
    )


def test_mixup_mixes_pixels_mask_and_label_by_one_share():
    images, masks, labels = (
        np.zeros((2, 4, 4, 1), np.uint8),
        np.zeros((2, 4, 4), np.uint8),
        np.eye(2, dtype=np.float32),
    )
    images[1], masks[1] = 200, 1
    shares = []
    for seed in range(20):
        mixed, soft, of_class = augment.mixup((images, masks, labels), np.random.default_rng(seed))
        for i in range(2):
            share = of_class[i, 1]
            assert (mixed[i] == np.rint(200 * share)).all() and soft[i] == pytest.approx(share)
            shares.append(share)
    assert 0 < min(s for s in shares if s > 0.01) < 0.5 < max(s for s in shares if s < 0.99) < 1


class Drawn:
    """A generator that swaps two images and pastes a box of a quarter of the area, side 2 of 4,
    around `centre`."""

    def __init__(self, centre: tuple[float, float] = (1.0, 1.0)):
        self.centre = centre

    def permutation(self, n: int) -> np.ndarray:
        return np.array([1, 0])

    def uniform(self, low: float = 0.0, high: float = 1.0, size: int | None = None):
        return np.array(self.centre) if size else 0.25


@pytest.mark.parametrize(
    "own, other, of_other, why",
    [
        (
            [(3, 3)],
            [],
            0.0,
            "its lesion is still seen whole: normal tissue elsewhere changes no diagnosis",
        ),
        ([(3, 3)], [(2, 2)], 0.0, "the other's lesion is not in the box"),
        ([], [(0, 1)], 1.0, "the lesion came with the box"),
        ([], [(2, 3)], 0.0, "the box missed the lesion: as normal as before"),
        ([(1, 1)], [], 1.0, "its lesion is covered by normal tissue"),
        (
            [(2, 0), (2, 1), (3, 3), (0, 0)],
            [(1, 1), (3, 3)],
            0.25,
            "three of its pixels and one of the other's are seen",
        ),
        ([], [], 0.25, "no lesion anywhere: by area"),
    ],
)
def test_cutmix_labels_what_is_seen(own, other, of_other, why):
    images, masks, labels = (
        np.zeros((2, 4, 4, 1), np.uint8),
        np.zeros((2, 4, 4), np.uint8),
        np.eye(2, dtype=np.float32),
    )
    images[1] = 200
    for mask, pixels in zip(masks, (own, other)):
        for pixel in pixels:
            mask[pixel] = 1
    mixed, pasted, of_class = augment.cutmix((images, masks, labels), Drawn())
    inside = np.zeros((4, 4), bool)
    inside[:2, :2] = True
    assert np.array_equal(mixed[0, ..., 0], np.where(inside, 200, 0)) and np.array_equal(
        mixed[1, ..., 0], np.where(inside, 0, 200)
    )
    assert (
        np.array_equal(pasted[0], np.where(inside, masks[1], masks[0])) and pasted.dtype == np.uint8
    )
    assert of_class[0].tolist() == pytest.approx([1 - of_other, of_other]), why


def test_cutmix_never_hides_both_lesions():
    images, masks, labels = (
        np.zeros((2, 4, 4, 1), np.uint8),
        np.zeros((2, 4, 4), np.uint8),
        np.eye(2, dtype=np.float32),
    )
    images[1], masks[0, 0, 0], masks[1, 3, 3] = 200, 1, 1
    mixed, pasted, of_class = augment.cutmix((images, masks, labels), Drawn())
    assert (mixed[0] == 0).all() and pasted[0].sum() == 1 and of_class[0].tolist() == [1, 0]
    assert pasted[1].sum() == 2 and of_class[1].tolist() == [0.5, 0.5], (
        "the other way round, both are seen"
    )


def test_a_box_at_the_edge_is_cut_off():
    images, masks, labels = (
        np.zeros((2, 4, 4, 1), np.uint8),
        np.zeros((2, 4, 4), np.uint8),
        np.eye(2, dtype=np.float32),
    )
    images[1] = 200
    mixed, _, of_class = augment.cutmix((images, masks, labels), Drawn(centre=(4.0, 0.0)))
    assert (mixed[0] == 200).sum() == (mixed[0, 3, 0] == 200).sum() == 1 and of_class[
        0
    ].tolist() == pytest.approx([15 / 16, 1 / 16])


def test_the_share_of_mixed_batches():
    given, random = batch(), np.random.default_rng(0)
    assert augment.mix(Train()) is None
    for share in (0.0, 0.25, 1.0):
        mixed = augment.mix(Train(mix="mixup", mix_share=share))
        assert np.mean(
            [mixed(given, random)[1].dtype == np.float32 for _ in range(200)]
        ) == pytest.approx(share, abs=0.1)


@pytest.mark.parametrize("mix", ["none", *augment.MIXES])
def test_the_loader_makes_maps_of_mixed_masks(tmp_path, mix):
    images, masks, labels = batch()
    np.save(tmp_path / "images.npy", images[..., 0])
    np.save(tmp_path / "masks.npy", masks)
    maps = losses.maps(Experiment(loss={"mask": dict.fromkeys(("dice", *losses.MAP_LOSSES), 1.0)}))
    strength = augment.mix(Train(mix=mix, mix_share=1.0))
    seen = ImageDataset(
        tmp_path / "images.npy",
        tmp_path / "masks.npy",
        np.arange(6),
        labels,
        augment.build("ultrasound"),
        maps,
        strength,
    )
    pixels, target = seen.__getitems__([(i, 10 + i) for i in range(6)])
    assert (
        pixels.shape == (6, 1, SIDE, SIDE)
        and pixels.dtype == torch.uint8
        and target["label"].sum(1).tolist() == pytest.approx([1] * 6)
    )
    assert set(target) == {"mask", "label", *losses.MAP_LOSSES}
    assert all(
        target[name].shape == (6, 1, SIDE, SIDE)
        and torch.isfinite(target[name]).all()
        and target[name].dtype == torch.float32
        for name in losses.MAP_LOSSES
    )
    assert target["mask"].is_floating_point() == (mix == "mixup")
    assert torch.equal(pixels, seen.__getitems__([(i, 10 + i) for i in range(6)])[0])


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"augment": "ultrasond"}, ("train.augment", "ultrasound")),
        ({"mix": "mixap"}, ("train.mix", "mixup")),
    ],
)
def test_wrong_names_are_refused(settings, words):
    with refused("unknown_part", *words):
        augment.check(Train(**settings))


# ----------------------------------------------------------------------------------------- sampling


LABELS = np.random.default_rng(0).permutation(
    np.repeat([0, 1, 2], [437, 210, 133])
)  # BUSI's classes; 2 is the one without lesion


def drawn(
    name: str, epoch: int, seed: int = 0, data: Data | None = None, labels: np.ndarray = LABELS
) -> np.ndarray:
    return sampling.draw(Train(sampling=name, epochs=11), labels, data or Data())(
        np.random.default_rng(seed), epoch
    )


@pytest.mark.parametrize("name", sampling.SAMPLINGS)
def test_every_sampling_draws_as_many_images_and_repeats(name):
    for epoch in (0, 5, 10):
        rows = drawn(name, epoch)
        assert rows.shape == LABELS.shape and rows.min() >= 0 and rows.max() < len(LABELS)
        assert np.array_equal(rows, drawn(name, epoch)) and not np.array_equal(
            rows, drawn(name, epoch, seed=1)
        )
        assert len(np.unique(LABELS[rows[:40]])) == 3, "in random order, not class by class"
    assert len(drawn(name, 0, labels=np.array([0, 0, 0, 1]))) == 4, "a class may be missing"


def test_uniform_draws_every_image_once():
    assert np.array_equal(np.sort(drawn("uniform", 3)), np.arange(len(LABELS)))
    assert np.array_equal(
        np.sort(drawn("annealed", 3, data=Data(empty_class=None))), np.arange(len(LABELS))
    ), "where every image has a lesion there is nothing to anneal"


@pytest.mark.parametrize("seed", range(5))
def test_balanced_draws_every_class_and_every_image_of_it_equally_often(seed):
    rows = drawn("balanced", 0, seed)
    assert np.abs(np.bincount(LABELS[rows]) - len(LABELS) / 3).max() <= 1
    times = np.bincount(rows, minlength=len(LABELS))
    for label, size in enumerate((437, 210, 133)):
        assert np.abs(times[label == LABELS] - len(LABELS) / 3 / size).max() < 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("empty", ["normal", "malignant"])
def test_annealed_goes_from_many_lesions_to_fewer(seed, empty):
    data = Data(empty_class=empty)
    without = data.classes.index(empty)
    for epoch, share in (
        (0, sampling.FIRST_SHARE),
        (5, (sampling.FIRST_SHARE + sampling.LAST_SHARE) / 2),
        (10, sampling.LAST_SHARE),
    ):
        rows = drawn("annealed", epoch, seed, data)
        assert abs((LABELS[rows] != without).sum() - share * len(LABELS)) <= 1
        times = np.bincount(rows, minlength=len(LABELS))
        assert all(
            np.ptp(times[lesion]) <= 1 for lesion in (without == LABELS, without != LABELS)
        ), "within each kind, all equally often"


def test_no_image_is_always_the_one_left_out():
    often = sum(
        np.bincount(drawn("annealed", 10, seed), minlength=len(LABELS)) for seed in range(60)
    )
    assert often[LABELS != 2].min() > 20 and often[LABELS != 2].max() < 60


def test_a_wrong_sampling_is_refused():
    with refused("unknown_part", "train.sampling", "Did you mean balanced?"):
        sampling.check(Train(sampling="balancd"))


def test_what_mixes_a_batch_reaches_other_processes():
    """Where workers are spawned, as on macOS, everything that they use is pickled."""
    import pickle

    random = np.random.default_rng(0)
    images, masks, labels = (
        random.integers(0, 256, (4, 32, 32, 1), np.uint8),
        np.zeros((4, 32, 32), np.uint8),
        np.eye(4, dtype=np.float32),
    )
    mixed = pickle.loads(pickle.dumps(augment.mix(Train(mix="mixup", mix_share=1.0))))(
        (images, masks, labels), np.random.default_rng(1)
    )
    assert not np.array_equal(mixed[2], labels) and np.allclose(mixed[2].sum(1), 1)
    assert (
        augment.mix(Train(mix="mixup", mix_share=0.0))((images, masks, labels), random)[2] is labels
        and augment.mix(Train()) is None
    )
