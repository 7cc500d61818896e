"""Batches of training images.

Which images, in which order and with which augmentation is a function of seed, fold, epoch and step
alone: a run can be killed anywhere, go on, and end the same, whatever the number of workers.
"""

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


class ImageDataset(Dataset):
    """Rows of the pixel store, augmented and mixed. An item is requested as (row, seed).

    labels (N,C) float32: each image's share of the classes. maps: functions of a mask (S,S) that
    some losses need (parts/losses.py). mix: a function of a whole batch (parts/augment.py).
    """

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
        self.files = images, masks
        self.rows, self.labels = rows, labels
        self.augment, self.maps, self.mix = augment, maps or {}, mix
        # opened in the process that reads: a memory map sent to a worker would arrive as a copy
        self.stores: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, batch: list[tuple[int, int]]) -> Batch:
        """Images (B,C,S,S) uint8 and their target: mask (B,1,S,S) uint8 (float where mixed), label
        (B,C) float32, and each map (B,1,S,S) float32."""
        pairs = [self.load(i, seed) for i, seed in batch]
        images = np.stack([image for image, _ in pairs])
        masks = np.stack([mask for _, mask in pairs])
        labels = self.labels[[i for i, _ in batch]]
        if self.mix is not None:
            random = np.random.default_rng(batch[0][1])
            images, masks, labels = self.mix((images, masks, labels), random)
        target = {"mask": to_tensor(masks), "label": torch.from_numpy(labels)}
        for name, to_map in self.maps.items():
            target[name] = to_tensor(np.stack([to_map(mask) for mask in masks]))
        return to_tensor(images), target

    def load(self, i: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (S,S,C) and mask (S,S) of the i-th of these rows."""
        self.stores = self.stores or [np.load(file, mmap_mode="r") for file in self.files]
        image, mask = (np.array(store[self.rows[i]]) for store in self.stores)
        if image.ndim == 2:
            image = image[..., None]
        if self.augment is not None:
            self.augment.set_random_seed(seed)
            out = self.augment(image=image, mask=mask)
            image, mask = out["image"], out["mask"]
        return image, mask


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """Images or masks as they are stored, (B,S,S) or (B,S,S,C), as a contiguous (B,C,S,S)."""
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(images))


class EpochSampler(Sampler):
    """The batches of one epoch from one step on; `set_epoch` chooses them.

    It lives in the main process, so that persistent workers hold no state.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        accumulate: int,
        seed: int,
        fold: int,
        draw: Callable[[np.random.Generator, int], np.ndarray] | None = None,
    ):
        """draw: (generator, epoch) -> the `count` images of an epoch, in order (parts/sampling.py);
        by default each once."""
        self.count, self.seed, self.fold = count, seed, fold
        self.draw = draw or (lambda random, epoch: random.permutation(count))
        self.batch_size = min(batch_size, count)
        # an incomplete last batch is dropped: its images would weigh more, and BatchNorm needs two
        whole_batches = count // self.batch_size
        self.accumulate = min(accumulate, whole_batches)
        self.steps = whole_batches // self.accumulate
        self.batches: list[list[tuple[int, int]]] = []

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        random = np.random.default_rng([self.seed, self.fold, epoch])
        order = self.draw(random, epoch).tolist()
        seeds = random.integers(0, 2**31, self.count).tolist()
        pairs = list(zip(order, seeds))
        per_step = self.accumulate * self.batch_size
        starts = range(first_step * per_step, self.steps * per_step, self.batch_size)
        self.batches = [pairs[start : start + self.batch_size] for start in starts]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)


def make_loader(
    dataset: ImageDataset, sampler: EpochSampler, workers: int, device: torch.device
) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=_collated_already,
        num_workers=workers,
        worker_init_fn=_start_worker,
        # its own: each new iterator draws a number, which would shift dropout's in a resumed epoch
        generator=torch.Generator(),
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
    )


def _collated_already(batch: Batch) -> Batch:
    return batch


def _start_worker(worker: int) -> None:
    """Ctrl+C, and a job scheduler's SIGTERM, reach every process of the group; only the main one
    answers them."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
