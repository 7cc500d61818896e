"""Validate every file, merge masks, find near-duplicates, decode, filter and resize once.

READS   the data folder: images, masks, tables (see src/data/dataset.py for the layouts)
WRITES  artifacts/prepared/
        index.csv         one row an image: train in natural order of ids, then test in the order
                          of the sample submission
        report.json       classes, near-duplicates and the contradictions among them, what was
                          left out
        truth.npz         the train masks at original size, as runs
        images_S.npy      (N,S,S) or (N,S,S,3) uint8; row i is train row i of the index;
                          images_S_test.npy: the same for test rows
        masks_S.npy       (N,S,S) uint8, 0 or 1, train only

Letterboxed or filtered images are stored apart, as in images_S_letterbox_clahe_test.npy.
Near-duplicates are looked for in unfiltered images.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from joblib import cpu_count

from src.config.load import Config
from src.core.console import (
    InputError,
    StageError,
    Stopped,
    command,
    header,
    listing,
    progress,
    say,
    warn,
)
from src.core.disk import point, write_json
from src.core.freshness import Job
from src.core.paths import Paths
from src.core.settings import Data
from src.data import dataset, duplicates, rle, rle_dialect
from src.data.columns import RUN_SETTINGS
from src.data.dataset import Item
from src.data.images import resize
from src.data.problems import Problems
from src.data.tables import COLUMNS, read_index, write_table
from src.data.train_table import empty_token
from src.parts import filters
from src.pipeline.jobs import plan
from src.pipeline.store import PixelStore, creating
from src.submission.order import sample_order

BATCH = 8  # images a task: small, so that Ctrl+C ends at once


@dataclass
class Checked:
    """What checking and decoding one image found.

    `problems` as (kind, file name); where there are none, the rest is there: the mask at original
    size as runs, and thumbnails of image and mask.
    """

    problems: list[tuple[str, str]]
    height: int = 0
    width: int = 0
    runs: np.ndarray | None = None
    thumb: np.ndarray | None = None
    mask_thumb: np.ndarray | None = None


def run(job: Job | None, config: Config, paths: Paths) -> bool:
    """Make what is missing or stale of the index and of the stores of this config's experiments;
    False where everything was up to date.

    `job` is there because every stage is called like this: all of prepare's jobs are done in one
    pass over the files, whichever is asked for. Raises InputError that names everything wrong with
    the data, and Stopped on Ctrl+C; neither leaves anything half-written.
    """
    index_job, *stores = _jobs(config, paths)
    with index_job.lock.held():
        return _make(index_job, stores, config, paths)


def _jobs(config: Config, paths: Paths) -> list[Job]:
    """That of the index, then one for each store."""
    return [job for job in plan(config, paths) if job.stage == "prepare"]


def _make(index_job: Job, store_jobs: list[Job], config: Config, paths: Paths) -> bool:
    """`run`, under prepare's lock."""
    new_index = not index_job.state().done
    stale = [job for job in store_jobs if new_index or not job.state().done]
    if not new_index and not stale:
        return False
    for job in stale:
        filters.check(job.experiment)
    started = time.time()
    header("prepare", "data" if new_index else "pixels", [paths.data], [paths.prepared])
    problems = Problems()
    skip = config.competition.data.on_error == "skip"
    items = dataset.find(paths.data, config.competition, problems, sample_order)
    if not new_index:  # the index has already decided which images there are
        items, problems, skip = _items_of_index(items, paths), Problems(), False
    with ExitStack() as cleanup:
        # closed, a store's files take their names
        files = {job.name: cleanup.enter_context(ExitStack()) for job in stale}
        stores: list[PixelStore] = []
        for job in stale if skip or not problems else []:
            stores += _open_stores(job, items, config, files[job.name])
        rows = _rows(items)
        runs = _run_lengths(items, config, paths)
        check = partial(_check, stores, paths.data, config.competition.data, runs)
        checked = _pass_over_files(check, items, rows, paths)
        for result in checked:
            for kind, name in result.problems:
                problems.add(kind, name)
        problems.settle(skip, paths.data)
        good = [i for i, c in enumerate(checked) if not c.problems]
        if not any(items[i].part == "train" for i in good):
            what, todo = "no train image is left", "Correct the files listed above"
            raise InputError(what, paths.data, todo, code="no_train_images")
        if len(good) < len(items):
            for store in stores:
                store.keep([rows[i] for i in good if items[i].part == store.part])
        if new_index:
            facts: dict = {}
            with index_job.running(facts):
                items, checked = [items[i] for i in good], [checked[i] for i in good]
                facts |= _write_index(items, checked, problems, config, paths, runs)
                facts["seconds"] = round(time.time() - started, 1)
        # asked for again: a store's record names the rows of the index, which is there only now
        for job in _jobs(config, paths)[1:]:
            if job.name in files:
                with job.running({"seconds": round(time.time() - started, 1)}):
                    files[job.name].close()
    return True


def _items_of_index(items: list[Item], paths: Paths) -> list[Item]:
    by_id = {(i.part, i.id): i for i in items}
    rows = read_index(paths)
    keys = list(zip(rows["set"], rows["id"]))
    if absent := [id for part, id in keys if (part, id) not in by_id]:
        raise InputError(
            f"images of the index are gone: {listing(absent)}",
            paths.data,
            f"Run {command('prepare', '--force')}",
            code="images_gone",
        )
    return [by_id[key] for key in keys]


def _run_lengths(items: list[Item], config: Config, paths: Paths) -> dict[str, Any] | None:
    """The dialect of the train table's run lengths; None where masks are files."""
    having = [i for i in items if i.runs]
    if not having:
        return None
    table, given = config.competition.data.table, config.competition.submission
    several = any(len(i.runs) > 1 for i in having)
    runs = rle_dialect.detect([i.runs for i in having], [i.image for i in having], given, several)
    runs["empty"] = empty_token(paths.data / table, config.competition)
    size = f", masks of {runs['size'][0]}x{runs['size'][1]}" if runs["size"] else ""
    say(
        f"run lengths of {table}: by {runs['order']}, first pixel {runs['first']}, "
        f"{'relative' if runs['relative'] else 'absolute'} starts{size} ({runs['why']})"
    )
    if runs["assumed"]:
        setting = RUN_SETTINGS[runs["assumed"][0]]
        warn(
            f"{listing(runs['assumed'])} of the run lengths cannot be known from the data and is "
            f"assumed, as usual; submission.{setting} in competition.yaml sets it"
        )
    return runs


# -------------------------------------------------------------------------- the pass over the files


def _rows(items: list[Item]) -> list[int]:
    """The row of each in its stores: train and test images are counted apart."""
    n_train = sum(i.part == "train" for i in items)
    return [row if item.part == "train" else row - n_train for row, item in enumerate(items)]


def _open_stores(job: Job, items: list[Item], config: Config, files: ExitStack) -> list[PixelStore]:
    """Those of one experiment. They take their names when `files` is closed, and vanish if an
    exception passes through it."""
    experiment, channels = job.experiment, config.competition.data.channels
    parts = [item.part for item in items]
    wanted = [
        (job.paths.images(experiment), "train", False),
        (job.paths.masks(experiment), "train", True),
        (job.paths.images(experiment, "test"), "test", False),
    ]
    return [
        files.enter_context(creating(path, experiment, part, parts.count(part), channels, is_mask))
        for path, part, is_mask in wanted
        if part in parts
    ]


def _pass_over_files(
    check: Callable[[Item, int], Checked], items: list[Item], rows: list[int], paths: Paths
) -> list[Checked]:
    """Check and decode every file once, on all cores; the workers write the rows themselves."""
    checked = []
    point("start", paths.prepared)
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(cpu_count(), context, _start_worker, (os.getpid(),))
    try:
        with progress(len(items), "prepare") as bar:
            for result in pool.map(check, items, rows, chunksize=BATCH):
                checked.append(result)
                bar.update()
    except KeyboardInterrupt:
        raise Stopped("prepare was stopped; nothing half-written is left") from None
    except BrokenProcessPool:
        what = "a process that decoded images was killed, probably for lack of memory"
        raise StageError(what, code="process_killed") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return checked


def _check(
    stores: list[PixelStore],
    data: Path,
    cfg: Data,
    runs: dict[str, Any] | None,
    item: Item,
    row: int,
) -> Checked:
    """Check, decode and store one image, in a worker."""
    image, mask, problems = dataset.load(item, data, cfg, runs)
    if image is None:
        return Checked(problems)
    for store in stores:
        if store.part == item.part:
            store.write(row, mask if store.is_mask else image)
    small = resize(mask, duplicates.SIDE, is_mask=True).astype(bool)
    return Checked([], *mask.shape, rle.to_runs(mask), duplicates.thumbnail(image), small)


def _start_worker(parent: int) -> None:
    """Ctrl+C is the parent's to handle; and a worker must not outlive a parent that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# --------------------------------------------------------------------------------- what is written


def _write_index(
    items: list[Item],
    checked: list[Checked],
    problems: Problems,
    config: Config,
    paths: Paths,
    runs: dict[str, Any] | None,
) -> dict:
    """index.csv, truth.npz and report.json; returns the report's counts."""
    cfg = config.competition.data
    n_train = sum(i.part == "train" for i in items)
    thumbs = np.stack([c.thumb for c in checked])
    pairs = duplicates.find_pairs(thumbs, n_train, cfg.duplicate_correlation)
    group = duplicates.groups(len(items), pairs)
    rows = []
    for item, c, g in zip(items, checked, group):
        image = item.image.relative_to(paths.data).as_posix()
        masks = len(item.masks) or len(item.runs)
        area = int(c.runs[:, 1].sum()) if item.part == "train" else ""
        rows.append((item.id, item.part, item.label, image, masks, c.height, c.width, area, g))
    write_table(paths.index, COLUMNS, rows)
    train = checked[:n_train]
    ids, sizes = [i.id for i in items[:n_train]], [(c.height, c.width) for c in train]
    rle.Truth.build(ids, sizes, [c.runs for c in train]).save(paths.truth)
    report = _report(items, train, pairs, group, cfg.classes)
    write_json(paths.report, report | {"left_out": problems.found, "runs": runs})
    counts = report["counts"]
    classes = ", ".join(f"{n} {c}" for c, n in report["classes"].items())
    say(
        f"{counts['train']} train images: {classes}; {counts['test']} test images; "
        f"{counts['several_masks']} images with several masks"
    )
    say(
        f"near-duplicates (correlation over {cfg.duplicate_correlation:g}): "
        f"{counts['duplicate_groups']} groups with {counts['surplus']} surplus images; "
        f"{counts['contradicting_labels']} pairs contradict each other in class, "
        f"{counts['contradicting_masks']} in masks; "
        f"{counts['test_twins']} test images have a twin in train"
    )
    for label, n in report["classes"].items():
        if not n:
            warn(f"there is no image of the class {label}")
    return {"counts": counts}


def _report(
    items: list[Item],
    train: list[Checked],
    pairs: duplicates.Pairs,
    group: np.ndarray,
    classes: list[str],
) -> dict:
    """Counts, and the ids of near-duplicates that contradict each other."""
    n_train, sizes = len(train), np.bincount(group)
    labels = np.array([item.label for item in items])
    in_test = pairs.second >= n_train
    other_label = labels[pairs.first] != labels[pairs.second]
    masks = np.stack([c.mask_thumb for c in train])
    rows = {
        "contradicting_labels": np.flatnonzero(other_label & ~in_test),
        "contradicting_masks": duplicates.contradicting_masks(masks, pairs),
        "test_twins": np.flatnonzero(in_test),
    }
    ids = [(items[a].id, items[b].id) for a, b in zip(pairs.first, pairs.second)]
    named = {kind: [ids[row] for row in found] for kind, found in rows.items()}
    counts = {
        "train": n_train,
        "test": len(items) - n_train,
        "several_masks": sum(max(len(i.masks), len(i.runs)) > 1 for i in items),
        "duplicate_groups": int((sizes > 1).sum()),
        "surplus": int((sizes - 1).sum()),
        "twins": len(pairs),
        "contradicting_labels": len(named["contradicting_labels"]),
        "contradicting_masks": len(named["contradicting_masks"]),
        "test_twins": len({test for _, test in named["test_twins"]}),
    }
    return {"counts": counts, "classes": {c: int((labels == c).sum()) for c in classes}} | named
