"""infer: the submission from a bundle and test images alone: no network, no train images, no labels.

READS   a bundle (see src/tools/bundle.py), the test images and the sample of the submission in --data
WRITES  submissions/<name>.csv (or .zip), and <name>.png: some answers drawn on their images; on the way artifacts/infer/<name>/, from which a stopped run goes on

Images, batches, folds and members go the way that prepare, predict, ensemble and submit go: on the same device the file is the same, byte for byte.
--minutes M: what does not fit is left out, test-time views first, then networks (training/time_budget.py). The plan is made anew after every network, from what
they took so far; a network that would overrun in spite of it is broken off. Nothing of an earlier run is used then.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from src.config.load import Config
from src.core.console import (
    STARTED,
    InputError,
    duration,
    header,
    listing,
    progress,
    say,
    short,
    warn,
)
from src.core.device import amp_dtype, pick_device
from src.core.disk import remove_folder, write_json
from src.core.freshness import LIBRARIES, fingerprint
from src.core.locks import Lock
from src.core.paths import Paths
from src.data.dataset import Item
from src.data.predictions import Predictions
from src.data.problems import Problems
from src.parts import models
from src.parts.postprocess import Decision, apply
from src.parts.tta import TTA
from src.pipeline import store as unlabelled
from src.pipeline.inputs import folder_fingerprint
from src.pipeline.jobs import train_runs
from src.pipeline.records import read_manifest, read_weights
from src.report import figures
from src.scoring import greedy
from src.submission import writer
from src.submission.form import infer as infer_form
from src.submission.sample import sample_file
from src.training.checkpoint import load_weights
from src.training.inference import enough_memory, infer, mean_of_folds, to_predictions
from src.training.time_budget import Pace, Unit, fit, given_up

SHOWN = 8  # answers in the picture
PROBED = 8  # images that the first network is timed with, on a CPU
LAST_SECONDS, PER_IMAGE, BYTES_PER_SECOND = (
    15.0,
    0.05,
    150e6,
)  # time kept back for what follows the networks: averaging, masks at full size, writing
ANSWERS = {"both": {"mask", "label"}, "mask": {"mask"}, "class": {"label"}}  # of a task


@dataclass
class Work:
    """One run: what it is made of, and what it has done so far."""

    config: Config
    home: Paths  # the bundle: weights, decision and facts lie in it where a working folder has them
    scratch: Paths
    manifest: dict
    items: list[Item]
    sizes: list[tuple[int, int]]  # height, width
    device: torch.device
    done: list[Unit] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        return self.config.competition.data.classes

    def part(self, unit: Unit) -> Path:
        return self.scratch.part(unit.member, unit.fold, "test")


def run(
    given: argparse.Namespace, config: Config, paths: Paths, clock: Callable[[], float] = time.time
) -> int:
    digest = hashlib.sha256(os.fsencode(paths.submission(config.name))).hexdigest()[:16]
    lock = Path(tempfile.gettempdir()) / f"infer-{digest}.lock"  # a notebook shows all of --work
    with Lock.of(lock, f"infer {config.name}").held():
        return answer(given, config, paths, clock)


def answer(
    given: argparse.Namespace, config: Config, paths: Paths, clock: Callable[[], float]
) -> int:
    """`run`, under its lock; returns the exit code."""
    begun, name, minutes, competition = (
        min(STARTED, clock()),
        config.name,
        given.minutes,
        config.competition,
    )  # the imports count too
    home, scratch = (
        Paths(given.bundle.expanduser().resolve(), paths.data),
        replace(paths, apart=f"infer/{name}"),
    )
    manifest = check(home)
    units = wanted(config, home, manifest)
    sample, problems = sample_file(competition, paths.data), Problems()
    if not sample.is_file():
        raise InputError(
            "there is no sample of the submission",
            short(sample),
            "It says which images are asked for, and how: name its folder with --data",
            code="no_sample",
        )
    items = unlabelled.find_test_images(paths.data, competition, problems)
    header("infer", name, [home.work, paths.data], [paths.submission(name)])
    try:
        go_on(
            scratch,
            scratch.record("predict", name),
            home,
            items,
            [
                c.model_dump(mode="json")
                for c in (competition, *(x.experiment for x in config.experiments))
            ],
            afresh=bool(minutes),
        )
    except OSError as error:
        raise InputError(
            f"nothing can be written there: {error.strerror}",
            short(paths.work),
            "Name another folder with --work",
            code="not_writable",
        ) from None
    items, sizes = unlabelled.write_test_stores(
        items,
        {store(config, u.member, scratch): config.owner(u.member).experiment for u in units},
        paths.data,
        competition,
        problems,
    )
    form = infer_form(sample, competition, [i.id for i in items], train_runs(home))
    if form.unknown:
        warn(writer.describe_missing_images(form, competition.data))
    work = Work(config, home, scratch, manifest, items, sizes, pick_device(exact=True))
    say(
        f"  {len(units)} networks of {listing(dict.fromkeys(u.member for u in units))} on {len(items)} test images, {work.device}"
    )
    if others := other_versions(manifest):
        warn(f"the bundle was made with {others}: the answers may differ in the last digits")
    predict(work, units, begun + 60 * minutes if minutes else None, clock)
    if lost := given_up(units, work.done):
        warn(
            f"left out for want of time: {lost}. The decision was tuned with all of it, and is used as it is"
        )
    predictions, decision = mix(work), Decision.load(home.decision(name))
    target = paths.archive(name) if form.masks else paths.submission(name)
    counts = writer.write(
        target,
        form,
        predictions,
        {i.id: size for i, size in zip(items, sizes)},
        decision,
        competition.classes,
    )
    draw(work, predictions, decision, paths.submission(name).with_suffix(".png"))
    remove_folder(scratch.artifacts)
    for folder in (
        scratch.artifacts.parent,
        paths.artifacts,
    ):  # a notebook's output shows every folder
        if not any(folder.iterdir()):
            folder.rmdir()
    say(
        f"  {counts['rows']} rows, read back and equal; {duration(clock() - begun)}"
        + (f" of {minutes:g} min" if minutes else "")
    )
    say(
        f"  {short(target)}"
        + (
            f"   CV score {manifest['score']:.4f}" + (", of all networks and views" if lost else "")
            if manifest.get("score") is not None
            else ""
        )
    )
    return 0


# --------------------------------------------------------------------------------------------------------------------- what there is to do


def check(home: Paths) -> dict:
    """The bundle's manifest. Raises InputError where one of its files is gone or is not as it was made."""
    manifest, todo = read_manifest(home), "Make it again with ./run.sh bundle, and upload all of it"
    for file, digest in manifest["files"].items():
        if fingerprint(home.work / file, home) != digest:
            raise InputError(
                f"the bundle is damaged: {file} is {'not as it was made' if (home.work / file).is_file() else 'gone'}",
                short(home.work),
                todo,
                code="bundle_damaged",
            )
    return manifest


def other_versions(manifest: dict) -> str:
    """Which of the libraries that the answers depend on are not those that the bundle was made with."""
    then = {
        name: version for name, version in manifest.get("packages", {}).items() if name in LIBRARIES
    }
    return listing(
        f"{name} {version} (here {now})"
        for name, version in then.items()
        if (now := _version(name)) != version
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def shares(config: Config, home: Paths) -> dict[str, dict[str, int]]:
    """'mask' and 'label' -> how often each member is counted, in the order in which they are added up."""
    if config.experiment:
        return {answer: {config.name: 1} for answer in ANSWERS[config.experiment.task]}
    weights = read_weights(home, config.name, config.ensemble.members)
    return {
        answer: {m: t for m, t in weights[answer]["times"].items() if t}
        for answer in ("mask", "label")
        if weights[answer]
    }


def wanted(config: Config, home: Paths, manifest: dict) -> list[Unit]:
    """Every network that has a say, the heaviest members' first."""
    weights = {}
    for answer, times in shares(config, home).items():
        for member, t in times.items():
            weights.setdefault(member, {})[answer] = t / sum(times.values())
    if lacking := [m for m in weights if m not in manifest["networks"]]:
        todo = "Make it again with ./run.sh bundle, and upload all of it"
        raise InputError(
            f"the bundle has no networks of {listing(lacking)}",
            short(home.manifest),
            todo,
            code="bundle_damaged",
        )
    ranked = sorted(weights, key=lambda m: -sum(weights[m].values()))
    return [
        Unit(m, k, tuple(config.owner(m).experiment.predict.tta), rank, frozenset(weights[m]))
        for rank, m in enumerate(ranked)
        for k in manifest["networks"][m]["folds"]
    ]


def store(config: Config, member: str, scratch: Paths) -> Path:
    e = config.owner(member).experiment
    return scratch.images(e, "test")


def go_on(
    scratch: Paths, stamp: Path, home: Paths, items: list[Item], settings: list, afresh: bool
) -> None:
    """Empty `scratch`, unless it is from a run of the same bundle and settings on the same images and device, with all the time it needed."""
    now = {
        "settings": settings,
        "in_full": not afresh,
        "device": str(pick_device()),
        "bundle": fingerprint(home.manifest, home),
        "images": folder_fingerprint([i.image for i in items], scratch.data, home),
        "ids": [i.id for i in items],
    }
    if scratch.artifacts.exists() and (afresh or _stamped(stamp) != json.loads(json.dumps(now))):
        remove_folder(scratch.artifacts)
    write_json(stamp, now)


def _stamped(stamp: Path) -> object:
    """What an earlier run was made of; None where that is not there, or damaged."""
    try:
        return json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


# -------------------------------------------------------------------------------------------------------------------------- the networks


class Late(Exception):
    """A network that would not be done in time."""


def predict(
    work: Work, units: list[Unit], deadline: float | None, clock: Callable[[], float]
) -> None:
    """Every network's answers to scratch, as far as time allows; work.done says whose."""
    work.done += [u for u in units if work.part(u).is_file()]
    waiting, images, said = [u for u in units if u not in work.done], len(work.items), ""
    pace, loaded, net = (
        Pace({n: about.get("pace") for n, about in work.manifest["networks"].items()}),
        None,
        None,
    )

    def load(unit: Unit) -> None:
        nonlocal loaded, net
        started, e = clock(), work.config.owner(unit.member).experiment
        net = models.build(e, len(work.classes), pretrained=False)
        load_weights(
            work.home.checkpoint(unit.member, unit.fold, e.predict.checkpoint), net
        )  # rounded already where predict did
        loaded, net = unit, net.to(work.device, memory_format=torch.channels_last)
        pace.loading[unit.member] = clock() - started

    if deadline:
        waiting.sort(
            key=lambda u: u.fold
        )  # a fold of every member first: then it is known what each of them takes
        written = sum(
            2 * images * work.config.owner(u.member).experiment.image_size ** 2 for u in units
        )
        deadline -= LAST_SECONDS + images * PER_IMAGE + written / BYTES_PER_SECOND
        load(waiting[0])
        load(waiting[0])  # the first time imports what it needs
        pace.measured[waiting[0].member] = probe(work, waiting[0], net, clock)
    with progress(len(waiting) * images, "infer") as bar:
        while waiting:
            todo = waiting
            if deadline:
                left = deadline - clock()
                todo = fit(waiting, work.done, lambda u: pace.cost(u, images), left)
                if not todo:
                    break
                short_of = sum(u not in waiting for u in todo)
                room = (
                    f"room for {len(todo)}, {short_of} of them with fewer views"
                    if short_of
                    else f"room for {len(todo)}"
                    if len(todo) < len(waiting)
                    else ""
                )
                if room != said:
                    say(
                        f"  {duration(max(0, left))} for {len(waiting)} networks: {room or 'room for all'}"
                    )
                said = room
                if not work.done and sum(pace.cost(u, images) for u in todo) > left:
                    warn(
                        f"that is too short even for {listing(u.title for u in todo)} with one view; it is done all the same"
                    )
            unit = todo[0]
            waiting = [u for u in waiting if (u.member, u.fold) != (unit.member, unit.fold)]
            if not loaded or (loaded.member, loaded.fold) != (unit.member, unit.fold):
                load(unit)
            spare = any(unit.answers <= u.answers for u in work.done)

            def advance(count: int) -> None:
                bar.update(count)
                if deadline and spare and clock() > deadline:
                    raise Late

            started = clock()
            try:
                ask(work, unit, net, advance).save(work.part(unit))
            except Late:
                warn(f"{unit.title} takes longer than was to be expected: broken off")
                continue
            pace.measured[unit.member] = (clock() - started) / images / len(unit.views)
            work.done.append(unit)


def ask(
    work: Work,
    unit: Unit,
    net: models.Network,
    advance: Callable[[int], None] = lambda n: None,
    first: int | None = None,
) -> Predictions:
    """What one network says of all test images, or of the first so many."""
    e = work.config.owner(unit.member).experiment
    images, ids, views = (
        np.load(store(work.config, unit.member, work.scratch), mmap_mode="r"),
        [i.id for i in work.items[:first]],
        [TTA[v] for v in unit.views],
    )
    with enough_memory(batch_size(work, unit), e.image_size):
        mask, label = infer(
            net,
            images,
            np.arange(len(ids)),
            views,
            work.device,
            amp_dtype(e.train.amp, work.device),
            batch_size(work, unit),
            advance,
        )
    return to_predictions(mask, label, ids, work.sizes[:first], e.resize, work.classes)


def batch_size(work: Work, unit: Unit) -> int:
    e = work.config.owner(unit.member).experiment
    return e.predict.batch_size or 2 * e.train.batch_size


def probe(work: Work, unit: Unit, net: models.Network, clock: Callable[[], float]) -> float:
    """Seconds per image and view: one view of a few images, twice, since the first time is slower."""
    count = min(len(work.items), batch_size(work, unit) if work.device.type == "cuda" else PROBED)
    for _ in range(2):
        started = clock()
        ask(work, replace(unit, views=unit.views[:1]), net, first=count)
    return (clock() - started) / count


# --------------------------------------------------------------------------------------------------------------------------- the answers


def mix(work: Work) -> Predictions:
    """The mean of each member's folds, and of the members by their weights: of those that are there."""
    folds = sorted(work.done, key=lambda u: u.fold)
    members = {
        m: mean_of_folds([work.part(u) for u in folds if u.member == m], work.classes)
        for m in dict.fromkeys(u.member for u in folds)
    }
    if work.config.experiment:
        return members[work.config.name]
    size = work.manifest["mask_size"]
    if size:  # as large as all members together had it, those too that are not here
        greedy.same_size(
            [
                *(m for m in members.values() if m.mask is not None),
                Predictions(
                    np.array([]), np.empty((0, size, size), np.float16), None, work.classes
                ),
            ]
        )
    found: dict[str, np.ndarray | None] = {"mask": None, "label": None}
    for answer, times in shares(work.config, work.home).items():
        if used := {m: t for m, t in times.items() if m in members}:
            found[answer] = greedy.mix(
                [members[m] for m in used], [tuple(used.values())] * len(work.items), answer
            )
    return Predictions(
        np.array([i.id for i in work.items]), found["mask"], found["label"], work.classes
    )


def draw(work: Work, predictions: Predictions, decision: Decision, target: Path) -> None:
    """Some answers, evenly over the test images."""
    shown, data = [], work.config.competition.data
    for i in np.unique(np.linspace(0, len(work.items) - 1, SHOWN).round().astype(int)):
        item = work.items[i]
        mask, label = apply(
            decision, predictions, i, work.sizes[i], work.config.competition.classes
        )
        caption = item.id[:40]
        if label is not None:
            caption += f"\n{data.classes[label]} {predictions.label[i, label]:.2f}"
        shown += figures.tiles(item.image, data.channels, [(None, mask, caption)])
    title = f"{figures.plain(work.config.name)}: predicted outlines"
    figures.save(figures.sheet(shown, title), target)
