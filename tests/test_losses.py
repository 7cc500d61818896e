"""Losses: every name in every registry on every kind of mask, each by hand, and how they are
summed."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import refused

from src.core.settings import Experiment, Loss, Model
from src.parts import building, losses

ALIKE = losses.Frequencies(torch.tensor([1.0, 1.0, 1.0]) / 3)
LOGITS = torch.tensor([0.0, math.log(3)]).view(1, 1, 1, 2)  # probabilities 1/2 and 3/4
TARGET = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
SIDE = 32


def lesion(top: int = 8, side: int = 12) -> torch.Tensor:
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., top : top + side, 10 : 10 + side] = 1
    return mask


EMPTY, FULL = torch.zeros(1, 1, SIDE, SIDE), torch.ones(1, 1, SIDE, SIDE)
MASKS = {
    "lesions": torch.cat([lesion(), lesion(3, 2)]),
    "empty": torch.cat([EMPTY, EMPTY]),
    "full": torch.cat([FULL, FULL]),
    "some empty": torch.cat([lesion(), EMPTY]),
}
SOFT = torch.cat([0.3 * lesion() + 0.7 * lesion(14, 9), 0.5 * lesion()])


def of_masks(name: str, logits: torch.Tensor, mask: torch.Tensor, **settings) -> torch.Tensor:
    """The loss with its map, made as the loader makes it."""
    experiment = Experiment(loss={"mask": {name: 1.0}} | settings)
    made = {
        n: torch.from_numpy(np.stack([to_map(m[0].numpy()) for m in mask]))[:, None]
        for n, to_map in losses.maps(experiment).items()
    }
    assert all(m.shape == mask.shape and m.dtype == torch.float32 for m in made.values())
    return losses.of_masks(logits, {"mask": mask} | made, experiment.loss)


def finite_with_gradients(loss, logits: torch.Tensor) -> float:
    logits = logits.clone().requires_grad_()
    value = loss(logits)
    value.backward()
    assert value.ndim == 0 and torch.isfinite(value) and torch.isfinite(logits.grad).all()
    return value.item()


# --------------------------------------------------------------------------------------- every name


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("name", [*losses.MASK_LOSSES, *losses.MAP_LOSSES])
def test_every_mask_loss_is_finite_and_lower_for_the_right_answer(name, pooled):
    random = torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    settings = {"pooled": pooled, "focal_gamma": 0.5}
    for kind, mask in MASKS.items():
        loss = partial(of_masks, name, mask=mask, **settings)
        right, wrong = (finite_with_gradients(loss, k * (2 * mask - 1)) for k in (12, -12))
        assert 0 <= right < 0.25 * wrong, f"{kind}: {right} {wrong}"
        usual = partial(of_masks, name, mask=mask, pooled=pooled)
        assert right < finite_with_gradients(usual, random) < wrong
        for far in (200.0, -200.0):  # sigmoid is exactly 0 or 1 there
            finite_with_gradients(loss, far * (2 * mask - 1))
    for logits in (random, 200 * random, -200 * (2 * SOFT - 1)):
        finite_with_gradients(partial(of_masks, name, mask=SOFT, **settings), logits)


@pytest.mark.parametrize("name", [*losses.MASK_LOSSES, *losses.MAP_LOSSES])
def test_a_false_positive_on_a_normal_image_costs_and_is_taken_back(name):
    mask = MASKS["some empty"]
    right, spot = 10 * (2 * mask - 1), torch.zeros_like(mask)
    spot[1, :, :3, :3] = 1
    logits = (right + 11 * spot).requires_grad_()
    loss = of_masks(name, logits, mask)
    assert loss > 1.001 * of_masks(name, right, mask) + 1e-4
    loss.backward()
    assert logits.grad[1].sum() > 0 and (logits.grad[1] >= 0).all()


@pytest.mark.parametrize(
    "name", ["dice", "jaccard", "tversky", "focal_tversky", "bce", "focal", "border"]
)
def test_a_mixed_mask_is_best_answered_by_itself(name):
    mask = torch.full((1, 1, 4, 4), 0.3)
    values = {
        p: of_masks(
            name, torch.full_like(mask, math.log(p / (1 - p))), mask, tversky=[0.5, 0.5]
        ).item()
        for p in (0.01, 0.2, 0.3, 0.4, 0.99)
    }
    assert min(values, key=values.get) == 0.3


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0, 0.1])])
@pytest.mark.parametrize("name", losses.LABEL_LOSSES)
def test_every_label_loss_is_finite_and_lower_for_the_right_answer(name, weight):
    classes = losses.Frequencies(torch.tensor([0.7, 0.3, 0.0]), weight)
    for target in (
        torch.eye(3)[[0, 1]],
        torch.tensor([[0.2, 0.8, 0.0], [0.5, 0.25, 0.25]]),
        torch.eye(3)[[2, 2]],
    ):
        for smooth in (0.0, 0.1):
            loss = partial(
                losses.LABEL_LOSSES[name],
                target=target,
                classes=classes,
                settings=Loss(focal_gamma=0.5, label_smoothing=smooth),
            )
            right, wrong, _, _ = (
                finite_with_gradients(loss, scale * (target - target.mean(1, keepdim=True)))
                for scale in (4.0, -4.0, 200.0, -200.0)
            )
            assert 0 <= right < wrong


# ------------------------------------------------------------------------------------ masks by hand


def test_overlap_losses_by_hand():
    """TP 1/2, FP 3/4, FN 1/2, and half a pixel for TP."""
    assert losses.dice(LOGITS, TARGET, Loss()).item() == pytest.approx(
        1 - (2 * 0.5 + 1) / (1.25 + 1 + 1)
    )
    assert losses.jaccard(LOGITS, TARGET, Loss()).item() == pytest.approx(
        1 - (0.5 + 0.5) / (1.75 + 0.5)
    )
    expected = 1 - (0.5 + 0.5) / (0.5 + 0.2 * 0.75 + 0.8 * 0.5 + 0.5)
    assert losses.tversky(LOGITS, TARGET, Loss(tversky=(0.2, 0.8))).item() == pytest.approx(
        expected
    )
    assert losses.focal_tversky(
        LOGITS, TARGET, Loss(tversky=(0.2, 0.8), tversky_gamma=0.5)
    ).item() == pytest.approx(expected**0.5)


def test_overlap_with_a_mixed_mask_by_hand():
    """TP is the smaller of p and t, 1/2; FP the difference, 1/4."""
    half = torch.full((1, 1, 1, 1), 0.5)
    assert losses.dice(LOGITS[..., 1:], half, Loss()).item() == pytest.approx(
        1 - (2 * 0.5 + 1) / (0.75 + 0.5 + 1)
    )


@pytest.mark.parametrize(
    "name", ["dice", "jaccard", "tversky", "focal_tversky", "generalised_dice", "lovasz"]
)
def test_overlap_is_averaged_over_images_or_pooled(name):
    loss, empty = losses.MASK_LOSSES[name], torch.zeros_like(TARGET)
    logits, target = torch.cat([LOGITS, LOGITS]), torch.cat([TARGET, empty])
    each = [loss(LOGITS, t, Loss()).item() for t in (TARGET, empty)]
    assert loss(logits, target, Loss()).item() == pytest.approx(sum(each) / 2)
    as_one = loss(logits.view(1, 1, 2, 2), target.view(1, 1, 2, 2), Loss()).item()
    assert (
        loss(logits, target, Loss(pooled=True)).item()
        == pytest.approx(as_one)
        != pytest.approx(sum(each) / 2)
    )


def test_an_empty_image_left_empty_costs_nothing_and_a_false_positive_nearly_one():
    empty = torch.zeros(1, 1, 10, 10)
    for name in ("dice", "jaccard"):
        assert losses.MASK_LOSSES[name](empty - 50, empty, Loss()).item() == pytest.approx(0)
        assert losses.MASK_LOSSES[name](empty + 50, empty, Loss()).item() > 0.98


def test_pooled_dice_is_that_of_smp():
    from segmentation_models_pytorch.losses import DiceLoss

    logits, mask = (
        torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1)),
        MASKS["some empty"],
    )
    assert losses.dice(logits, mask, Loss(pooled=True)).item() == pytest.approx(
        DiceLoss("binary")(logits, mask).item(), abs=2e-3
    )
    one_false_square = 20 * (2 * torch.cat([lesion(), lesion(3, 2)]) - 1)
    assert DiceLoss("binary")(one_false_square, mask).item() == pytest.approx(
        1 - 2 * 144 / (2 * 144 + 4), abs=1e-4
    )
    assert losses.dice(one_false_square, mask, Loss()).item() == pytest.approx(
        0.5 * (1 - 1 / (4 + 1)), abs=1e-4
    ), "per image, the normal one counts as much as the other"


def test_generalised_dice_by_hand():
    p, truth = (
        torch.tensor([0.5, 0.75, 0.5, 0.5]).view(1, 1, 2, 2),
        torch.tensor([1.0, 0, 0, 0]).view(1, 1, 2, 2),
    )
    logits, w = torch.logit(p), (1 / 1**2, 1 / 3**2)
    expected = 1 - 2 * (w[0] * 0.5 + w[1] * (0.25 + 0.5 + 0.5)) / (
        w[0] * (2.25 + 1) + w[1] * (1.75 + 3)
    )
    assert losses.generalised_dice(logits, truth, Loss()).item() == pytest.approx(expected)
    assert losses.generalised_dice(logits, torch.zeros_like(truth), Loss()).item() == pytest.approx(
        2.25 / 4
    ), "of an empty image: the share said to be lesion"
    assert losses.generalised_dice(logits, torch.ones_like(truth), Loss()).item() == pytest.approx(
        1.75 / 4
    )


def test_lovasz_by_hand():
    """Errors 1 + ln 3 (background) and 1 (lesion); the Jaccard loss of the first one wrong is 1/2,
    of both 1."""
    assert losses.lovasz(LOGITS, TARGET, Loss()).item() == pytest.approx(
        0.5 * (1 + math.log(3)) + 0.5 * 1
    )
    assert losses.lovasz(LOGITS, torch.zeros_like(TARGET), Loss()).item() == pytest.approx(
        1 + math.log(3)
    )
    assert losses.lovasz(2 * (2 * TARGET - 1), TARGET, Loss()).item() == 0


def test_bce_and_focal_by_hand():
    assert losses.bce(LOGITS, TARGET, Loss()).item() == pytest.approx(
        (math.log(2) + math.log(4)) / 2
    )
    by_hand = (0.5**2 * math.log(2) + 0.75**2 * math.log(4)) / 2
    assert losses.focal(LOGITS, TARGET, Loss(focal_gamma=2)).item() == pytest.approx(by_hand)
    assert losses.focal(LOGITS, TARGET, Loss(focal_gamma=0)).item() == pytest.approx(
        losses.bce(LOGITS, TARGET, Loss()).item()
    )


def test_losses_with_maps_by_hand():
    a_map = torch.tensor([0.25, 0.5]).view(1, 1, 1, 2)
    assert losses.border(LOGITS, TARGET, a_map, Loss()).item() == pytest.approx(
        (0.25 * math.log(2) + 0.5 * math.log(4)) / 2
    )
    assert losses.boundary(LOGITS, TARGET, a_map, Loss()).item() == pytest.approx(
        (0.25 * 0.5 + 0.5 * 0.75) / 2
    )
    assert losses.hausdorff(LOGITS, TARGET, a_map, Loss()).item() == pytest.approx(
        ((0.25 * 0.5) ** 2 + (0.5 * 0.75) ** 2) / 2
    )


def test_boundary_is_the_sum_of_signed_distances_but_for_a_constant():
    mask, logits = (
        lesion(),
        torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).requires_grad_(),
    )
    distance = torch.from_numpy(losses.contour_distance(mask[0, 0].numpy(), Loss())).view_as(mask)
    signed = distance * (1 - 2 * mask)
    published = (torch.sigmoid(logits) * signed).mean()
    ours = losses.boundary(logits, mask, distance, Loss())
    assert torch.allclose(*(torch.autograd.grad(x, logits)[0] for x in (ours, published)))
    assert (ours - published).item() == pytest.approx(-(mask * signed).mean().item())


# ----------------------------------------------------------------------------------- labels by hand


def test_label_losses_by_hand():
    logits, target = (
        torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]),
        torch.eye(2)[[1, 0]],
    )  # p_t: 3/4 and 1/2
    a, b = math.log(4 / 3), math.log(2)
    assert losses.cross_entropy(logits, target, ALIKE, Loss()).item() == pytest.approx((a + b) / 2)
    assert losses.cross_entropy(
        logits, target, ALIKE, Loss(label_smoothing=0.2)
    ).item() == pytest.approx((0.9 * a + 0.1 * math.log(4) + b) / 2)
    weight = losses.Frequencies(torch.tensor([0.5, 0.5]), torch.tensor([3.0, 1.0]))
    assert losses.cross_entropy(logits, target, weight, Loss()).item() == pytest.approx(
        (a + 3 * b) / 4
    )
    assert losses.label_focal(logits, target, weight, Loss(focal_gamma=1)).item() == pytest.approx(
        (0.25 * a + 3 * 0.5 * b) / 4
    )


def test_shares_of_classes_by_hand():
    logits, shares = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[0.25, 0.75]])
    weight = losses.Frequencies(torch.tensor([0.5, 0.5]), torch.tensor([3.0, 1.0]))
    a, b = math.log(4), math.log(4 / 3)
    assert losses.cross_entropy(logits, shares, ALIKE, Loss()).item() == pytest.approx(
        0.25 * a + 0.75 * b
    )
    assert losses.cross_entropy(logits, shares, weight, Loss()).item() == pytest.approx(
        (0.75 * a + 0.75 * b) / 1.5
    )
    assert losses.label_focal(logits, shares, weight, Loss(focal_gamma=1)).item() == pytest.approx(
        (0.75 * 0.75 * a + 0.75 * 0.25 * b) / 1.5
    )


@pytest.mark.parametrize("smooth", [0.0, 0.3])
def test_cross_entropy_is_torchs(smooth):
    logits, labels = (
        torch.randn(6, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2, 2, 0, 0]),
    )
    for weight in (None, torch.tensor([0.5, 2.0, 1.0])):
        expected = F.cross_entropy(logits, labels, weight, label_smoothing=smooth)
        found = losses.cross_entropy(
            logits,
            torch.eye(3)[labels],
            losses.Frequencies(torch.ones(3) / 3, weight),
            Loss(label_smoothing=smooth),
        )
        assert found.item() == pytest.approx(expected.item())


def test_balanced_softmax_by_hand():
    """Equal logits answer with the class shares; a rare class must be said louder."""
    classes = losses.Frequencies(torch.tensor([0.75, 0.25]))
    for label, p in ((0, 0.75), (1, 0.25)):
        assert losses.balanced_softmax(
            torch.zeros(1, 2), torch.eye(2)[[label]], classes, Loss()
        ).item() == pytest.approx(-math.log(p))
    louder = torch.tensor([[0.0, math.log(3)]])
    assert losses.balanced_softmax(
        louder, torch.eye(2)[[1]], classes, Loss()
    ).item() == pytest.approx(math.log(2))


def test_class_weights():
    labels, device = torch.tensor([0, 0, 0, 1]), torch.device("cpu")
    balanced = losses.Frequencies.of(labels, 2, Loss(class_weights="balanced"), device)
    assert balanced.weight.tolist() == pytest.approx([4 / 6, 2.0]) and balanced.share.tolist() == [
        0.75,
        0.25,
    ]
    assert losses.Frequencies.of(
        labels, 3, Loss(), device
    ).weight is None and losses.Frequencies.of(labels, 3, Loss(), device).share.tolist() == [
        0.75,
        0.25,
        0,
    ]
    assert losses.Frequencies.of(
        labels, 2, Loss(class_weights=[1.0, 3.0]), device
    ).weight.tolist() == [1, 3]
    with refused("invalid_value", "loss.class_weights", "2 values for 3 classes"):
        losses.Frequencies.of(labels, 3, Loss(class_weights=[1.0, 2.0]), device)


# ------------------------------------------------------------------------------------------ the sum


OUTPUT = {"mask": LOGITS, "label": torch.tensor([[0.0, 0.0]])}
TRUTH = {
    "mask": torch.tensor([1, 0], dtype=torch.uint8).view(1, 1, 1, 2),
    "label": torch.eye(2)[[1]],
}
SETTINGS = {"mask": {"bce": 2.0}, "label": {"cross_entropy": 3.0}}
MASK_LOSS, LABEL_LOSS = math.log(2) + math.log(4), 3 * math.log(2)


def test_the_balance_weighs_mask_and_label():
    parts = losses.total(OUTPUT, TRUTH, ALIKE, Loss(mask_weight=0.25, **SETTINGS))
    assert parts["mask_loss"].item() == pytest.approx(MASK_LOSS) and parts[
        "label_loss"
    ].item() == pytest.approx(LABEL_LOSS)
    assert parts["loss"].item() == pytest.approx(0.25 * MASK_LOSS + 0.75 * LABEL_LOSS)


@pytest.mark.parametrize("mask_weight", [0.25, "uncertainty"])
def test_one_answer_alone_is_not_weighed(mask_weight):
    for answer, expected in (("mask", MASK_LOSS), ("label", LABEL_LOSS)):
        parts = losses.total(
            {answer: OUTPUT[answer]}, TRUTH, ALIKE, Loss(mask_weight=mask_weight, **SETTINGS)
        )
        assert parts["loss"].item() == pytest.approx(expected) and set(parts) == {
            "loss",
            f"{answer}_loss",
        }


def test_learned_balance_by_hand():
    s = torch.tensor([math.log(2), math.log(4)], requires_grad=True)
    loss = losses.total(
        OUTPUT | {"log_variance": s, "extra_loss": torch.tensor(0.5)},
        TRUTH,
        ALIKE,
        Loss(mask_weight="uncertainty", **SETTINGS),
    )["loss"]
    assert loss.item() == pytest.approx(MASK_LOSS / 2 + LABEL_LOSS / 4 + 0.5 * math.log(8) + 0.5)
    loss.backward()
    assert s.grad.tolist() == pytest.approx([0.5 - MASK_LOSS / 2, 0.5 - LABEL_LOSS / 4])


def test_a_network_learns_its_balance():
    experiment = Experiment(
        loss={"mask_weight": "uncertainty"},
        model=Model(arch="unet", encoder="mobilenet_v2", encoder_weights="none"),
    )
    net = building.build(experiment, 3, pretrained=False).train()
    target = {"mask": torch.cat([lesion(), EMPTY]), "label": torch.eye(3)[[0, 2]]}
    parts = losses.total(
        net(torch.randint(0, 256, (2, 1, SIDE, SIDE), dtype=torch.uint8)),
        target,
        ALIKE,
        experiment.loss,
    )
    parts["loss"].backward()
    (learned,) = (p for n, p in net.named_parameters() if n.endswith("log_variance"))
    assert learned.grad.tolist() == pytest.approx(
        [0.5 - parts["mask_loss"].item(), 0.5 - parts["label_loss"].item()], rel=1e-4
    )
    assert parts["loss"].item() == pytest.approx(
        parts["mask_loss"].item() + parts["label_loss"].item(), rel=1e-5
    ), "at first both count alike"


def test_lower_resolutions_count_half_each_and_see_their_own_maps():
    """Logits 0 everywhere: the boundary loss is half the mean distance, at every resolution that of
    the enlarged pixels' corners."""
    distance = torch.arange(16.0).view(1, 1, 4, 4)
    target = {"mask": torch.zeros(1, 1, 4, 4), "label": torch.eye(2)[[0]], "boundary": distance}
    output = {
        "mask": torch.zeros(1, 1, 4, 4),
        "deep": [torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 1)],
    }
    expected = 0.5 * (7.5 + 0.5 * (0 + 2 + 8 + 10) / 4 + 0.25 * 0) / 1.75
    assert losses.deep(output, target, Loss(mask={"boundary": 1.0})).item() == pytest.approx(
        expected
    )
    assert losses.deep(
        {"mask": output["mask"]}, target, Loss(mask={"boundary": 1.0})
    ).item() == pytest.approx(3.75)


def test_maps_are_made_only_for_what_is_used():
    both = Experiment(loss={"mask": {"dice": 1.0, "hausdorff": 1.0}})
    assert set(losses.maps(both)) == {"hausdorff"}
    assert (
        losses.maps(both.model_copy(update={"task": "class"})) == {}
        and losses.maps(Experiment()) == {}
    )


@pytest.mark.parametrize(
    "settings, code, words",
    [
        ({"mask": {"dise": 1}}, "unknown_part", ("'dise'", "Did you mean dice?")),
        ({"mask": {"boundry": 1}}, "unknown_part", ("Did you mean boundary?",)),
        ({"label": {"cross_entrop": 1}}, "unknown_part", ("Did you mean cross_entropy?",)),
        ({"label": {}}, "invalid_value", ("loss.label",)),
        ({"mask": {"dice": 0}}, "invalid_value", ("loss.mask",)),
        ({"class_weights": [1, 0, 1]}, "invalid_value", ("loss.class_weights", "above 0")),
    ],
)
def test_wrong_names_are_refused(settings, code, words):
    with refused(code, *words):
        losses.check(Experiment(loss=settings))
