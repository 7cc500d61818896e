"""From a network and rows of the pixel store to probabilities: the one loop that train's
validation, predict, infer and bench share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from src.core.device import autocast
from src.data.predictions import Predictions
from src.training.batches import to_tensor


@torch.inference_mode()
def predict_proba(
    net: nn.Module,
    images: np.ndarray,
    rows: Sequence[int],
    tta: Sequence,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
    advance: Callable[[int], None] = lambda n: None,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """images (N,S,S[,3]) uint8, memory-mapped -> mask probabilities (len(rows),S,S) float16 and
    class probabilities (len(rows),C) float32, averaged over the views of `tta` (parts/tta.py); None
    for an answer that the network does not give. `advance` gets the number of images finished."""
    was_training = net.training
    net.eval()
    gpu = device.type == "cuda"
    answers: dict[str, list[np.ndarray]] = {"mask": [], "label": []}
    pending: tuple = ()  # a batch on its way from the GPU while the next one computes

    def collect(means: dict[str, torch.Tensor], count: int, copied: torch.cuda.Event) -> None:
        if gpu:
            copied.synchronize()
        for name, mean in means.items():
            answers[name].append(mean.numpy())
        advance(count)

    for start in range(0, len(rows), batch_size):
        inputs = to_tensor(np.stack([images[r] for r in rows[start : start + batch_size]]))
        inputs = (inputs.pin_memory() if gpu else inputs).to(device, non_blocking=True)
        means = mean_over_tta(net, inputs, tta, dtype)
        means = {name: mean.to("cpu", non_blocking=gpu) for name, mean in means.items()}
        copied = torch.cuda.Event() if gpu else None
        if gpu:
            copied.record()
        if pending:
            collect(*pending)
        pending = (means, len(inputs), copied)
    if pending:
        collect(*pending)
    net.train(was_training)
    mask, label = (np.concatenate(batches) if batches else None for batches in answers.values())
    return mask, label


def mean_over_tta(
    net: nn.Module, images: torch.Tensor, tta: Sequence, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """images (B,C,S,S) -> probabilities, "mask" (B,S,S) float16 and "label" (B,C) float32."""
    sums: dict[str, torch.Tensor] = {}
    for view in tta:
        with autocast(images.device, dtype):
            output = net(view.do(images))
        if "mask" in output:
            mask = view.undo(torch.sigmoid(output["mask"].float()), images.shape[-1])[:, 0]
            sums["mask"] = sums.get("mask", 0) + mask
        if "label" in output:
            sums["label"] = sums.get("label", 0) + torch.softmax(output["label"].float(), 1)
    formats = {"mask": torch.float16, "label": torch.float32}
    return {name: (total / len(tta)).to(formats[name]) for name, total in sums.items()}


def mean_of_folds(files: list[Path], classes: list[str]) -> Predictions:
    """One fold at a time: only the sum is held in memory."""
    mask = label = 0
    for file in files:
        fold = Predictions.load(file, classes)
        mask = None if fold.mask is None else mask + fold.mask.astype(np.float32)
        label = None if fold.label is None else label + fold.label
    mask = None if mask is None else (mask / len(files)).astype(np.float16)
    label = None if label is None else label / len(files)
    return Predictions(fold.ids, mask, label, classes)
