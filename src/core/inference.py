"""From a network and rows of the pixel store to probabilities: the one loop that train's validation, predict and the benchmark share."""
from __future__ import annotations

from typing import Callable, Sequence

import numpy as np
import torch
from torch import nn

from src.core.device import autocast


@torch.inference_mode()
def infer(net: nn.Module, images: np.ndarray, rows: Sequence[int], views: Sequence, device: torch.device, dtype: torch.dtype, batch_size: int,
          advance: Callable[[int], None] = lambda n: None) -> tuple[np.ndarray, np.ndarray]:
    """images (N,S,S[,3]) uint8, memory-mapped -> mask probabilities (len(rows),S,S) float16 and class probabilities (len(rows),C) float32,
    averaged over the views. `advance` is told of finished images."""
    was_training = net.training
    net.eval()
    size = images.shape[1]
    mask: np.ndarray = np.empty((len(rows), size, size), np.float16)
    label: list[np.ndarray] = []
    waiting: tuple | None = None  # one batch is taken from the GPU while the next one computes
    gpu = device.type == "cuda"

    def fetch(start: int, masks: torch.Tensor, labels: torch.Tensor, copied) -> None:
        if copied:
            copied.synchronize()
        mask[start : start + len(masks)] = masks.numpy()
        label.append(labels.numpy())
        advance(len(masks))

    for start in range(0, len(rows), batch_size):
        batch = np.stack([images[r] for r in rows[start : start + batch_size]])
        batch = batch[:, None] if batch.ndim == 3 else batch.transpose(0, 3, 1, 2)
        inputs = torch.from_numpy(np.ascontiguousarray(batch))
        inputs = (inputs.pin_memory() if gpu else inputs).to(device, non_blocking=True)
        masks, labels = 0, 0
        for view in views:
            with autocast(device, dtype):
                output = net(view.do(inputs))
            masks = masks + view.undo(torch.sigmoid(output["mask"].float()), size)
            labels = labels + torch.softmax(output["label"].float(), 1)
        host = [x.to("cpu", non_blocking=gpu) for x in ((masks / len(views))[:, 0].half(), labels / len(views))]
        copied = torch.cuda.Event() if gpu else None
        if copied:
            copied.record()
        if waiting:
            fetch(*waiting)
        waiting = (start, *host, copied)
    if waiting:
        fetch(*waiting)
    net.train(was_training)
    return mask, np.concatenate(label)
