"""From a network and rows of the pixel store to probabilities: the one loop that train's validation, predict, infer and the benchmark share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from src.core.console import StageError
from src.core.device import autocast, out_of_memory
from src.data.images import restore
from src.data.predictions import Predictions


@torch.inference_mode()
def infer(
    net: nn.Module,
    images: np.ndarray,
    rows: Sequence[int],
    views: Sequence,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
    advance: Callable[[int], None] = lambda n: None,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """images (N,S,S[,3]) uint8, memory-mapped -> mask probabilities (len(rows),S,S) float16 and class probabilities (len(rows),C) float32,
    averaged over the views; None for an answer that the network does not give. `advance` is told of finished images."""
    was_training = net.training
    net.eval()
    size = images.shape[1]
    found: dict[str, list[np.ndarray]] = {"mask": [], "label": []}
    waiting: tuple | None = None  # one batch is taken from the GPU while the next one computes
    gpu = device.type == "cuda"

    def fetch(answers: dict[str, torch.Tensor], count: int, copied) -> None:
        if copied:
            copied.synchronize()
        for name, answer in answers.items():
            found[name].append(answer.numpy())
        advance(count)

    for start in range(0, len(rows), batch_size):
        batch = np.stack([images[r] for r in rows[start : start + batch_size]])
        batch = batch[:, None] if batch.ndim == 3 else batch.transpose(0, 3, 1, 2)
        inputs = torch.from_numpy(np.ascontiguousarray(batch))
        inputs = (inputs.pin_memory() if gpu else inputs).to(device, non_blocking=True)
        sums: dict[str, torch.Tensor] = {}
        for view in views:
            with autocast(device, dtype):
                output = net(view.do(inputs))
            if "mask" in output:
                sums["mask"] = (
                    sums.get("mask", 0)
                    + view.undo(torch.sigmoid(output["mask"].float()), size)[:, 0]
                )
            if "label" in output:
                sums["label"] = sums.get("label", 0) + torch.softmax(output["label"].float(), 1)
        means = {
            k: (v / len(views)).to(torch.float16 if k == "mask" else torch.float32)
            for k, v in sums.items()
        }
        host = {k: v.to("cpu", non_blocking=gpu) for k, v in means.items()}
        copied = torch.cuda.Event() if gpu else None
        if copied:
            copied.record()
        if waiting:
            fetch(*waiting)
        waiting = (host, len(batch), copied)
    if waiting:
        fetch(*waiting)
    net.train(was_training)
    mask, label = (np.concatenate(v) if v else None for v in found.values())
    return mask, label


@contextmanager
def enough_memory(batch: int, size: int) -> Iterator[None]:
    """Around `infer`: out of memory becomes a StageError that names the setting which takes less."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise StageError(
                f"out of memory at {batch} images of {size} px. --set "
                f"predict.batch_size={max(1, batch // 4)} takes a quarter of it",
                code="out_of_memory",
            ) from error
        raise


def to_predictions(
    mask: np.ndarray | None,
    label: np.ndarray | None,
    ids: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    resize: str,
    classes: list[str],
) -> Predictions:
    """What `infer` gave for these images of these sizes (height, width), with masks over the whole image."""
    if resize == "letterbox" and mask is not None:
        mask = np.stack(
            [restore(m, h, w, "letterbox") for m, (h, w) in zip(mask, sizes, strict=True)]
        ).astype(np.float16)
    return Predictions(np.asarray(ids), mask, label, classes)


def mean_of_folds(parts: list[Path], classes: list[str]) -> Predictions:
    """One fold at a time: the sum is all that is held."""
    mask = label = 0
    for part in parts:
        found = Predictions.load(part, classes)
        mask = None if found.mask is None else mask + found.mask.astype(np.float32)
        label = None if found.label is None else label + found.label
    return Predictions(
        found.ids,
        None if mask is None else (mask / len(parts)).astype(np.float16),
        None if label is None else label / len(parts),
        classes,
    )
