"""Batches for training: which images, in which order, with which augmentation, all a function of seed, fold, epoch and step, so that a run can be
killed anywhere, go on, and end the same, whatever the number of workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

Batch = tuple[torch.Tensor, dict[str, torch.Tensor]]


class Images(Dataset):
    """Rows of the pixel store, augmented and mixed. An item is asked for as (row, seed).

    labels (N,C) float32: each image's share of the classes. maps: functions of a mask (S,S) that some losses need (parts/losses.py). mix: a function of a
    whole batch (parts/augment.py)."""

    def __init__(
        self,
        images: Path,
        masks: Path,
        rows: np.ndarray,
        labels: np.ndarray,
        augment: Callable | None,
        maps: dict[str, Callable] | None = None,
        mix: Callable | None = None,
    ):
        self.files, self.pixels = (
            (images, masks),
            None,
        )  # opened in the process that reads: a memory map sent to a worker would arrive as a copy
        self.rows, self.labels, self.augment, self.maps, self.mix = (
            rows,
            labels,
            augment,
            maps or {},
            mix,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, wanted: list[tuple[int, int]]) -> Batch:
        """One batch: images (B,C,S,S) uint8, and the target: mask (B,1,S,S) uint8 (float where mixed), label (B,C) float32, and each map (B,1,S,S) float32."""
        pairs = [self.one(i, seed) for i, seed in wanted]
        images, masks, labels = (
            np.stack([p[0] for p in pairs]),
            np.stack([p[1] for p in pairs]),
            self.labels[[i for i, _ in wanted]],
        )
        if self.mix is not None:
            images, masks, labels = self.mix(
                images, masks, labels, np.random.default_rng(wanted[0][1])
            )
        target = {"mask": masks[:, None], "label": labels} | {
            name: np.stack([to_map(m) for m in masks])[:, None]
            for name, to_map in self.maps.items()
        }
        return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))), {
            k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in target.items()
        }

    def one(self, i: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (S,S,C) and mask (S,S) of the i-th of these rows."""
        self.pixels = self.pixels or tuple(np.load(file, mmap_mode="r") for file in self.files)
        image, mask = (np.array(store[self.rows[i]]) for store in self.pixels)
        if image.ndim == 2:
            image = image[..., None]
        if self.augment is not None:
            self.augment.set_random_seed(seed)
            out = self.augment(image=image, mask=mask)
            image, mask = out["image"], out["mask"]
        return image, mask


class EpochSampler(Sampler):
    """The batches of one epoch from one step on; `set_epoch` sets which. It lives in the main process, so that persistent workers see no state."""

    def __init__(
        self,
        count: int,
        batch_size: int,
        accumulate: int,
        seed: int,
        fold: int,
        draw: Callable[[np.random.Generator, int], np.ndarray] | None = None,
    ):
        """draw: (generator, epoch) -> the `count` images of an epoch, in order (parts/sampling.py); by default each once."""
        self.count, self.size, self.seed, self.fold = count, min(batch_size, count), seed, fold
        self.draw = draw or (lambda random, epoch: random.permutation(count))
        batches = (
            count // self.size
        )  # an incomplete last batch is left out: it would carry more weight per image, and BatchNorm needs two
        self.accumulate = min(accumulate, batches)
        self.steps = batches // self.accumulate
        self.todo: list[list[tuple[int, int]]] = []

    def set_epoch(self, epoch: int, step: int) -> None:
        random = np.random.default_rng([self.seed, self.fold, epoch])
        order = self.draw(random, epoch)
        seeds = random.integers(0, 2**31, self.count)
        batches = [
            [(int(i), int(s)) for i, s in zip(order[b : b + self.size], seeds[b : b + self.size])]
            for b in range(0, self.steps * self.accumulate * self.size, self.size)
        ]
        self.todo = batches[step * self.accumulate :]

    def __len__(self) -> int:
        return len(self.todo)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.todo)


def loader(images: Images, plan: EpochSampler, workers: int, device: torch.device) -> DataLoader:
    # a generator of its own: each new iterator draws a number, which would shift dropout's in a run that goes on in the middle of an epoch
    return DataLoader(
        images,
        batch_sampler=plan,
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=_quiet,
        generator=torch.Generator(),
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
    )


def _as_it_is(batch):
    return batch


def _quiet(worker: int) -> None:
    """Ctrl+C, and a job scheduler's SIGTERM, reach every process of the group; only the main one answers them."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
