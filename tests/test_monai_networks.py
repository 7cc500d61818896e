"""MONAI's networks: what had to be changed for two dimensions, one mask and this loop."""

from __future__ import annotations

import pytest
import torch

from src.core.settings import Model
from src.parts.monai_networks import MonaiNetwork


def network(arch: str, size: int, **options) -> MonaiNetwork:
    torch.manual_seed(0)
    return MonaiNetwork(Model(arch=arch, dropout=0.0, options=options), 3, image_size=size)


@pytest.mark.parametrize(
    "size, halved, deep", [(64, 4, [32, 16]), (96, 4, [48, 24]), (32, 3, [16])]
)
def test_nnunet_halves_while_four_positions_are_left(size, halved, deep):
    """All resolutions but the lowest two have a mask, in training."""
    net = network("dynunet", size)
    shapes = []
    net.net.get_submodule(net.anatomy.features).register_forward_hook(
        lambda module, given, output: shapes.append(tuple(output.shape))
    )
    output = net.train()(torch.randn(2, 3, size, size))
    assert shapes == [(2, min(512, 32 * 2**halved), size >> halved, size >> halved)]
    assert [tuple(d.shape) for d in output["deep"]] == [(2, 1, s, s) for s in deep]
    assert "deep" not in net.eval()(torch.randn(1, 3, size, size)) and "deep" not in network(
        "dynunet", size, deep_supervision=False
    ).train()(torch.randn(1, 3, size, size))


def test_nnunet_pads_another_size():
    """224 pixels are no multiple of 64, to which a network for 256 halves; without padding, its
    skip connections do not fit."""
    net = network("dynunet", 256, filters=[4] * 7).eval()
    small = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        found = net(small)
        padded = net(torch.nn.functional.pad(small, (0, 32, 0, 32)))
    assert torch.equal(found["mask"], padded["mask"][..., :224, :224]) and torch.equal(
        found["label"], padded["label"]
    )


def test_the_autoencoders_loss_is_weighed_and_for_training_only():
    images, losses = torch.randn(2, 3, 64, 64), []
    for options in ({}, {"vae_weight": 0.3}):
        net = network("segresnet_vae", 64, **options).train()
        torch.manual_seed(1)
        losses.append(net(images)["extra_loss"].item())
        assert set(net.eval()(images)) == {"mask", "label"}
    assert losses[0] > 0 and losses[1] == pytest.approx(3 * losses[0])


def test_vnet_drops_channels_not_images():
    net = network("vnet", 32, dropout_prob_down=0.5).train()
    kept = []
    net.net.get_submodule("1.down_tr128.dropout").register_forward_hook(
        lambda module, given, output: kept.append((output != 0).flatten(2).any(2))
    )
    net(torch.randn(8, 3, 32, 32))
    assert kept[0].any(1).all() and not kept[0].all(1).any(), (
        "every image keeps some of its 128 channels and loses some"
    )


def test_highresnet_can_say_no():
    net = network("highresnet", 32).eval()
    with torch.inference_mode():
        assert (net(torch.randn(2, 3, 32, 32))["mask"] < 0).any(), (
            "a ReLU at the end would leave every probability at one half or more"
        )


def test_every_position_of_a_transformers_tokens_goes_where_it_came_from():
    pytest.importorskip("einops")
    net = network("unetr", 64, hidden_size=48, num_heads=2, mlp_dim=96).eval()
    seen = []
    net.classification_head.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    net.net.decoder5.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    net(torch.randn(2, 3, 64, 64))
    assert seen[0].shape == (2, 48, 4, 4) and torch.equal(seen[0], seen[1]), (
        "as UNETR itself lays them out"
    )
