"""Validate every file, merge masks, find near-duplicates, decode, filter and resize once.

READS   the data folder: images, masks, tables (see src/data/dataset.py for the layouts)
WRITES  artifacts/prepared/
        index.csv                one row an image: train in natural order of ids, then test in the order of the sample submission
        report.json              classes, near-duplicates and what contradicts itself in them, what was left out
        truth.npz                the train masks at original size, as runs
        images_S.npy             (N,S,S) or (N,S,S,3) uint8; row i is train row i of the index; images_S_test.npy: the same for test rows
        masks_S.npy              (N,S,S) uint8, 0 or 1, train only
        Letterboxed or filtered images are stored apart, as in images_S_letterbox_clahe_test.npy. Near-duplicates are found in unfiltered images.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

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
    short,
    warn,
)
from src.core.disk import point, replacing, write_json
from src.core.freshness import Job
from src.core.paths import Paths
from src.core.settings import Experiment
from src.data import dataset, duplicates, rle
from src.data import rle_dialect as detect
from src.data.dataset import Item, Problems
from src.data.images import resize
from src.data.tables import COLUMNS, read_index
from src.data.train_table import empty_token
from src.parts import filters
from src.pipeline.jobs import plan
from src.submission.order import by_sample

BATCH = 8  # images a task: small, so that Ctrl+C ends at once


@dataclass
class Store:
    """A pixel store being written: temporary files by 'train', 'test' and 'masks'."""

    experiment: Experiment  # what it says of size, resize and filter
    files: dict[str, Path] = field(default_factory=dict)


@dataclass
class Seen:
    """What checking and decoding one image brought; `problems` as (kind, file name). Without problems the rest is there."""

    problems: list[tuple[str, str]]
    height: int = 0
    width: int = 0
    runs: np.ndarray | None = None
    thumb: np.ndarray | None = None
    mask_thumb: np.ndarray | None = None


def run(job: Job | None, config: Config, paths: Paths) -> bool:
    """Make what is missing or stale of the index and the stores of this config's experiments; False where all of it was up to date.

    `job` is there because every stage is called like this; all of prepare's jobs are done in one pass over the files, whichever is asked for.
    Raises InputError that names everything wrong with the data, and Stopped on Ctrl+C; neither leaves anything half-written.
    """
    index_job, *stores = _jobs(config, paths)
    with index_job.lock.held():
        return _make(index_job, stores, config, paths)


def _make(index_job: Job, stores: list[Job], config: Config, paths: Paths) -> bool:
    """`run`, under prepare's lock."""
    new_index = not index_job.state().done
    stores = [job for job in stores if new_index or not job.state().done]
    if not new_index and not stores:
        return False
    for store in stores:
        filters.check(store.details["experiment"])
    started, problems, skip = time.time(), Problems(), config.competition.data.on_error == "skip"
    header("prepare", "data" if new_index else "pixels", [paths.data], [paths.prepared])
    items = dataset.find(paths.data, config.competition, problems, by_sample)
    if not new_index:
        items, problems, skip = (
            _items_of_index(items, paths),
            Problems(),
            False,
        )  # the index has already decided which images there are
    with ExitStack() as cleanup:
        finish = {job.name: cleanup.enter_context(ExitStack()) for job in stores}
        made = (
            []
            if problems and not skip
            else [_open_store(job, items, config, finish[job.name]) for job in stores]
        )
        runs = _run_lengths(items, config, paths)
        seen = _pass_over_files(items, made, config, paths, runs)
        for kind, name in (p for s in seen for p in s.problems):
            problems.add(kind, name)
        if problems:
            _complain(problems, skip, paths)
        good = [i for i, s in enumerate(seen) if not s.problems]
        if not any(items[i].part == "train" for i in good):
            raise InputError(
                "no train image is left",
                short(paths.data),
                "Correct the files listed above",
                code="no_train_images",
            )
        if len(good) < len(items):
            for store in made:
                _drop_rows(store, items, set(good))
        if new_index:
            facts: dict = {}
            with index_job.running(facts):
                facts |= _write_index(
                    [items[i] for i in good], [seen[i] for i in good], problems, config, paths, runs
                )
                facts["seconds"] = round(time.time() - started, 1)
        for job in _jobs(config, paths)[
            1:
        ]:  # asked for anew: a store's record names the rows of the index, which only now is there
            if job.name in finish:
                with job.running({"seconds": round(time.time() - started, 1)}):
                    finish[job.name].close()  # the temporary files take their names
    return True


def _jobs(config: Config, paths: Paths) -> list[Job]:
    return [job for job in plan(config, paths) if job.stage == "prepare"]


def _items_of_index(items: list[Item], paths: Paths) -> list[Item]:
    there = {(i.part, i.id): i for i in items}
    rows = read_index(paths)
    if absent := [r.id for r in rows.itertuples() if (r.set, r.id) not in there]:
        raise InputError(
            f"images of the index are gone: {listing(absent)}",
            short(paths.data),
            f"Run {command('prepare', '--force')}",
            code="images_gone",
        )
    return [there[r.set, r.id] for r in rows.itertuples()]


def _run_lengths(items: list[Item], config: Config, paths: Paths) -> dict[str, Any] | None:
    """How the run lengths of the train table count; None where masks are files."""
    having = [i for i in items if i.runs]
    if not having:
        return None
    runs = detect.detect(
        [i.runs for i in having],
        [i.image for i in having],
        config.competition.submission,
        any(len(i.runs) > 1 for i in having),
    )
    runs["empty"] = empty_token(paths.data / config.competition.data.table, config.competition)
    size = f", masks of {runs['size'][0]}x{runs['size'][1]}" if runs["size"] else ""
    say(
        f"run lengths of {config.competition.data.table}: by {runs['order']}, first pixel {runs['first']}, {'relative' if runs['relative'] else 'absolute'} starts{size} ({runs['why']})"
    )
    if runs["assumed"]:
        warn(
            f"{listing(runs['assumed'])} of the run lengths cannot be known from the data and is assumed, as usual; submission.{detect.SETTING[runs['assumed'][0]]} in competition.yaml sets it"
        )
    return runs


# ---------------------------------------------------------------------------------------------------------------- the pass over the files


def _open_store(job: Job, items: list[Item], config: Config, stack: ExitStack) -> Store:
    """Temporary .npy files of full length; they get their names when `stack` is closed, and vanish if an exception passes through it."""
    e = job.details["experiment"]
    store = Store(e)
    colour = (3,) if config.competition.data.channels == 3 else ()
    count = {part: sum(i.part == part for i in items) for part in ("train", "test")}
    wanted = {
        "train": job.paths.images(e),
        "masks": job.paths.masks(e),
    }
    if count["test"]:
        wanted["test"] = job.paths.images(e, "test")
    for part, path in wanted.items():
        store.files[part] = stack.enter_context(replacing(path))
        shape = (
            count["test" if part == "test" else "train"],
            e.image_size,
            e.image_size,
            *(colour if part != "masks" else ()),
        )
        np.lib.format.open_memmap(store.files[part], mode="w+", dtype=np.uint8, shape=shape)
    return store


def _pass_over_files(
    items: list[Item],
    stores: list[Store],
    config: Config,
    paths: Paths,
    runs: dict[str, Any] | None,
) -> list[Seen]:
    """Check and decode every file once, on all cores; the workers write their rows into the stores' files themselves."""
    first_test = sum(i.part == "train" for i in items)
    rows = [
        number - (first_test if item.part == "test" else 0) for number, item in enumerate(items)
    ]
    work = partial(_work, stores=stores, config=config, data=paths.data, runs=runs)
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    seen: list[Seen | None] = [None] * len(items)
    point("start", paths.prepared)
    pool = ProcessPoolExecutor(_cores(), context, _start_worker, (os.getpid(),))
    try:
        tasks = {
            pool.submit(work, items[i : i + BATCH], rows[i : i + BATCH]): i
            for i in range(0, len(items), BATCH)
        }
        with progress(len(items), "prepare") as bar:
            for task in as_completed(tasks):
                result = task.result()
                seen[tasks[task] : tasks[task] + len(result)] = result
                bar.update(len(result))
    except KeyboardInterrupt:
        raise Stopped("prepare was stopped; nothing half-written is left") from None
    except BrokenProcessPool:
        raise StageError(
            "a process that decoded images was killed, probably for lack of memory",
            code="process_killed",
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return seen


def _work(
    items: list[Item],
    rows: list[int],
    stores: list[Store],
    config: Config,
    data: Path,
    runs: dict[str, Any] | None,
) -> list[Seen]:
    cfg, seen = config.competition.data, []
    for item, row in zip(items, rows):
        image, mask, problems = dataset.load(item, data, cfg.channels, cfg.empty_class, runs)
        if image is None:
            seen.append(Seen(problems))
            continue
        for store in stores:
            e = store.experiment
            _write_row(
                store.files[item.part],
                row,
                resize(filters.apply(image, e.filter, e.filter_options), e.image_size, e.resize),
            )
            if item.part == "train":
                _write_row(
                    store.files["masks"], row, resize(mask, e.image_size, e.resize, is_mask=True)
                )
        small_mask = (
            resize(mask, duplicates.SIDE, is_mask=True).astype(bool)
            if item.part == "train"
            else None
        )
        seen.append(
            Seen([], *mask.shape, rle.to_runs(mask), duplicates.thumbnail(image), small_mask)
        )
    return seen


def _write_row(file: Path, row: int, pixels: np.ndarray) -> None:
    """Rows lie at the end of the file. Written, not mapped: a full disk is an error then, and not a crash; and no process grows with the data."""
    with open(file, "r+b") as store:
        np.lib.format.read_magic(store)
        np.lib.format.read_array_header_1_0(store)
        store.seek(store.tell() + row * pixels.nbytes)
        store.write(pixels.tobytes())


def _drop_rows(store: Store, items: list[Item], good: set[int]) -> None:
    """Leave out the rows of bad images, so that row i of the store is row i of the index again."""
    for part, file in store.files.items():
        rows = [
            n
            for n, i in enumerate(
                i
                for i in range(len(items))
                if items[i].part == ("test" if part == "test" else "train")
            )
            if i in good
        ]
        with replacing(file) as shorter:
            full = np.load(file, mmap_mode="r")
            kept = np.lib.format.open_memmap(
                shorter, mode="w+", dtype=np.uint8, shape=(len(rows), *full.shape[1:])
            )
            for new, old in enumerate(rows):
                kept[new] = full[old]
            del full, kept


def _start_worker(parent: int) -> None:
    """Ctrl+C is the parent's to handle; and a worker must not outlive a parent that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _complain(problems: Problems, skip: bool, paths: Paths) -> None:
    """Everything wrong, a line a kind; then one error, unless data.on_error is skip."""
    lines = problems.lines()
    if skip:
        for line in lines:
            warn(f"left out: {line}")
        return
    remedy = "Correct them, or go on without them: --set data.on_error=skip"
    if len(lines) == 1:
        raise InputError(lines[0], short(paths.data), remedy, code=problems.code)
    print(*(f"  {line}" for line in lines), sep="\n", file=sys.stderr, flush=True)
    raise InputError(
        f"{sum(map(len, problems.found.values()))} problems of {len(lines)} kinds in "
        "the data, listed above",
        short(paths.data),
        remedy,
        code=problems.code,
    )


# ------------------------------------------------------------------------------------------------------------------------ what is written


def _write_index(
    items: list[Item],
    seen: list[Seen],
    problems: Problems,
    config: Config,
    paths: Paths,
    runs: dict[str, Any] | None,
) -> dict:
    """index.csv, truth.npz and report.json; returns the report's counts."""
    cfg = config.competition.data
    n_train = sum(i.part == "train" for i in items)
    pairs = duplicates.find_pairs(
        np.stack([s.thumb for s in seen]), n_train, cfg.duplicate_correlation
    )
    group = duplicates.groups(len(items), pairs)
    with (
        replacing(paths.index) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for item, s, g in zip(items, seen, group):
            area = int(s.runs[:, 1].sum()) if item.part == "train" else ""
            image = item.image.relative_to(paths.data).as_posix()
            table.writerow(
                [
                    item.id,
                    item.part,
                    item.label,
                    image,
                    len(item.masks) or len(item.runs),
                    s.height,
                    s.width,
                    area,
                    g,
                ]
            )
    train = seen[:n_train]
    rle.Truth.build(
        [i.id for i in items[:n_train]],
        [(s.height, s.width) for s in train],
        [s.runs for s in train],
    ).save(paths.truth)
    report = _report(items, train, pairs, group, problems, cfg.classes) | {"runs": runs}
    write_json(paths.report, report)
    counts = report["counts"]
    classes = ", ".join(f"{n} {c}" for c, n in report["classes"].items())
    say(
        f"{counts['train']} train images: {classes}; {counts['test']} test images; {counts['several_masks']} images with several masks"
    )
    say(
        f"near-duplicates (correlation over {cfg.duplicate_correlation:g}): {counts['duplicate_groups']} groups with {counts['surplus']} surplus images; "
        f"{counts['contradicting_labels']} pairs contradict each other in class, {counts['contradicting_masks']} in masks; "
        f"{counts['test_twins']} test images have a twin in train"
    )
    for label, n in report["classes"].items():
        if not n:
            warn(f"there is no image of the class {label}")
    return {"counts": counts}


def _report(
    items: list[Item],
    train: list[Seen],
    pairs: duplicates.Pairs,
    group: np.ndarray,
    problems: Problems,
    classes: list[str],
) -> dict:
    n_train, sizes = len(train), np.bincount(group)
    named = [(items[a].id, items[b].id) for a, b in zip(pairs.first, pairs.second)]
    both = [k for k, b in enumerate(pairs.second) if b < n_train]
    labels = [named[k] for k in both if items[pairs.first[k]].label != items[pairs.second[k]].label]
    masks = [
        named[k]
        for k in duplicates.contradicting_masks(np.stack([s.mask_thumb for s in train]), pairs)
    ]
    twins = [named[k] for k, b in enumerate(pairs.second) if b >= n_train]
    return {
        "counts": {
            "train": n_train,
            "test": len(items) - n_train,
            "several_masks": sum(max(len(i.masks), len(i.runs)) > 1 for i in items),
            "duplicate_groups": int((sizes > 1).sum()),
            "surplus": int((sizes - 1).sum()),
            "twins": len(named),
            "contradicting_labels": len(labels),
            "contradicting_masks": len(masks),
            "test_twins": len({b for _, b in twins}),
        },
        "classes": {c: sum(i.label == c for i in items) for c in classes},
        "contradicting_labels": labels,
        "contradicting_masks": masks,
        "test_twins": twins,
        "left_out": problems.found,
    }
