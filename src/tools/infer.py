"""infer: the submission from a bundle and test images alone: no network connection, no train
images, no labels.

READS   a bundle (see src/tools/bundle.py), the test images and the sample submission in --data
WRITES  submissions/<name>.csv (or .zip), and <name>.png: some answers drawn on their images; on the
        way artifacts/infer/<name>/, from which a stopped run goes on

Images, batches, folds and members are treated as by prepare, predict, ensemble and submit: on the
same device the file is the same, byte for byte.

--minutes M: what does not fit is skipped, test-time augmentation first, then networks
(training/time_budget.py). The plan is made again after every network, from what they took so far; a
network that would overrun in spite of it is stopped. Nothing of an earlier run is used then.
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
from pathlib import Path

import numpy as np
import pandas as pd
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
from src.core.device import pick_device
from src.core.disk import read_json, remove_folder, write_json
from src.core.freshness import LIBRARIES, fingerprint, versions
from src.core.locks import Lock
from src.core.paths import Paths
from src.core.settings import Experiment
from src.data.dataset import Item
from src.data.predictions import Predictions
from src.data.problems import Problems
from src.parts.network import Network
from src.parts.postprocess import Decision, apply
from src.pipeline.inputs import folder_fingerprint
from src.pipeline.jobs import train_runs
from src.pipeline.networks import load_network, member_times, predict_images
from src.pipeline.records import read_manifest
from src.pipeline.store import find_test_images, write_test_stores
from src.report import figures
from src.scoring import greedy
from src.submission import writer
from src.submission.infer_form import infer_form
from src.submission.sample import sample_file
from src.training.inference import mean_of_folds
from src.training.time_budget import NetworkRun, Pace, describe_skipped, select_runs

SHOWN = 8  # answers in the picture
PROBED = 8  # images that the first network is timed with, on a CPU
# time reserved for what follows the networks: averaging, masks at full size, writing
LAST_SECONDS, PER_IMAGE, BYTES_PER_SECOND = 15.0, 0.05, 150e6
REMAKE = "Make it again with ./run.sh bundle, and upload all of it"


@dataclass
class Work:
    """What a run of infer is made of, and what it has done so far."""

    config: Config
    home: Paths  # the bundle: it is laid out like a working folder
    scratch: Paths
    times: dict[str, dict[str, int]]  # 'mask', 'label' -> how often each member is counted
    items: list[Item]
    index: pd.DataFrame  # id, height and width of the items
    device: torch.device
    clock: Callable[[], float]
    pace: Pace
    done: list[NetworkRun] = field(default_factory=list)

    def part(self, run: NetworkRun) -> Path:
        return self.scratch.part(run.member, run.fold, "test")

    def experiment(self, run: NetworkRun) -> Experiment:
        return self.config.owner(run.member).experiment

    def load(self, run: NetworkRun) -> Network:
        """The weights are rounded already where predict did so."""
        started, which = self.clock(), self.experiment(run).predict.checkpoint
        checkpoint = self.home.checkpoint(run.member, run.fold, which)
        net = load_network(self.config.owner(run.member), checkpoint, self.device)
        self.pace.loading[run.member] = self.clock() - started
        return net

    def ask(self, run: NetworkRun, net: Network, count: int, advance=lambda n: None) -> Predictions:
        """The predictions of one network for the first `count` test images."""
        config, started = self.config.owner(run.member), self.clock()
        images = np.load(self.scratch.images(config.experiment, "test"), mmap_mode="r")
        predictions = predict_images(
            net, config, images, self.index, np.arange(count), self.device, run.tta, advance
        )
        self.pace.measured[run.member] = (self.clock() - started) / count / len(run.tta)
        return predictions

    def cost(self, run: NetworkRun) -> float:
        return self.pace.cost(run, len(self.items))


def run(
    given: argparse.Namespace, config: Config, paths: Paths, clock: Callable[[], float] = time.time
) -> int:
    # not below --work: a notebook shows every file there
    digest = hashlib.sha256(os.fsencode(paths.submission(config.name))).hexdigest()[:16]
    lock = Path(tempfile.gettempdir()) / f"infer-{digest}.lock"
    with Lock.of(lock, f"infer {config.name}").held():
        answer(given, config, paths, clock)
    return 0


def answer(
    given: argparse.Namespace, config: Config, paths: Paths, clock: Callable[[], float]
) -> None:
    started = min(STARTED, clock())  # the imports count too
    name, competition, minutes = config.name, config.competition, given.minutes
    home = Paths(given.bundle.expanduser().resolve(), paths.data)
    scratch = replace(paths, apart=f"infer/{name}")
    manifest = check(home)
    times = member_times(config, home)
    runs = list_runs(config, times, manifest, home)
    sample, problems = sample_file(competition, paths.data), Problems()
    if not sample.is_file():
        todo = "It lists the images to predict, and the format: name its folder with --data"
        what = "there is no sample submission"
        raise InputError(what, sample, todo, code="no_sample")
    items = find_test_images(paths.data, competition, problems)
    header("infer", name, [home.work, paths.data], [paths.submission(name)])
    try:
        clear_scratch(scratch, config, home, items, afresh=bool(minutes))
    except OSError as error:
        what = f"nothing can be written there: {error.strerror}"
        todo = "Name another folder with --work"
        raise InputError(what, paths.work, todo, code="not_writable") from None
    experiments = [config.owner(run.member).experiment for run in runs]
    stores = {scratch.images(e, "test"): e for e in experiments}
    items, sizes = write_test_stores(items, stores, paths.data, competition, problems)
    index = pd.DataFrame(sizes, columns=["height", "width"])
    index["id"] = [item.id for item in items]
    form = infer_form(sample, competition, [*index.id], train_runs(home))
    if form.missing_ids:
        warn(writer.describe_missing_images(form))
    device = pick_device(exact=True)
    pace = Pace({member: about.get("pace") for member, about in manifest["networks"].items()})
    work = Work(config, home, scratch, times, items, index, device, clock, pace)
    members = listing(dict.fromkeys(run.member for run in runs))
    say(f"  {len(runs)} networks of {members} on {len(items)} test images, {device}")
    if others := other_versions(manifest):
        warn(f"the bundle was made with {others}: the answers may differ in the last digits")
    predict(work, runs, started + 60 * minutes if minutes else None)
    if skipped := describe_skipped(runs, work.done):
        warn(
            f"skipped to stay within --minutes: {skipped}. The decision was tuned with all of it, "
            "and is used as it is"
        )
    predictions = mix(work, manifest.get("mask_size", 0))
    decision = Decision.load(home.decision(name))
    target = paths.archive(name) if form.masks else paths.submission(name)
    counts = writer.write(target, form, predictions, dict(zip(index.id, sizes)), decision)
    draw(work, predictions, decision, paths.submission(name).with_suffix(".png"))
    remove_folder(scratch.artifacts)
    for folder in (scratch.artifacts.parent, paths.artifacts):  # a notebook shows every folder
        if not any(folder.iterdir()):
            folder.rmdir()
    limit = f" of {minutes:g} min" if minutes else ""
    say(f"  {counts['rows']} rows, read back and equal; {duration(clock() - started)}{limit}")
    score = ""
    if manifest.get("score") is not None:
        score = f"   CV score {manifest['score']:.4f}"
        score += ", of all networks and views" if skipped else ""
    say(f"  {short(target)}{score}")


# ------------------------------------------------------------------------------ what there is to do


def check(home: Paths) -> dict:
    """The bundle's manifest. Raises InputError where one of its files is missing or changed."""
    manifest = read_manifest(home)
    for name, digest in manifest["files"].items():
        file = home.work / name
        if fingerprint(file, home) != digest:
            how = "not as it was made" if file.is_file() else "gone"
            what = f"the bundle is damaged: {name} is {how}"
            raise InputError(what, home.work, REMAKE, code="bundle_damaged")
    return manifest


def other_versions(manifest: dict) -> str:
    """Which of the libraries that the answers depend on are not those of the bundle."""
    here, packages = versions(), manifest.get("packages", {})
    return listing(
        f"{name} {packages[name]} (here {here.get(name, 'none')})"
        for name in LIBRARIES
        if name in packages and packages[name] != here.get(name)
    )


def list_runs(
    config: Config, times: dict[str, dict[str, int]], manifest: dict, home: Paths
) -> list[NetworkRun]:
    """Every network that counts, the heaviest members' first."""
    weights: dict[str, float] = {}
    for counted in times.values():
        for member, n in counted.items():
            weights[member] = weights.get(member, 0.0) + n / sum(counted.values())
    if lacking := [member for member in weights if member not in manifest["networks"]]:
        what = f"the bundle has no networks of {listing(lacking)}"
        raise InputError(what, home.manifest, REMAKE, code="bundle_damaged")
    runs = []
    for rank, member in enumerate(sorted(weights, key=lambda member: -weights[member])):
        tta = tuple(config.owner(member).experiment.predict.tta)
        answers = frozenset(answer for answer, counted in times.items() if member in counted)
        for fold in manifest["networks"][member]["folds"]:
            runs.append(NetworkRun(member, fold, tta, rank, answers))
    return runs


def clear_scratch(
    scratch: Paths, config: Config, home: Paths, items: list[Item], afresh: bool
) -> None:
    """Empty `scratch`, unless it is from a run of the same bundle and settings on the same images
    and device, with all the time it needed."""
    settings = [config.competition, *(one.experiment for one in config.experiments)]
    now = {
        "settings": [one.model_dump(mode="json") for one in settings],
        "in_full": not afresh,
        "device": str(pick_device()),
        "bundle": fingerprint(home.manifest, home),
        "images": folder_fingerprint([item.image for item in items], scratch.data, home),
        "ids": [item.id for item in items],
    }
    stamp = scratch.record("predict", config.name)
    try:
        same = read_json(stamp) == json.loads(json.dumps(now))
    except (OSError, InputError):
        same = False
    if scratch.artifacts.exists() and (afresh or not same):
        remove_folder(scratch.artifacts)
    write_json(stamp, now)


# ------------------------------------------------------------------------------------- the networks


class Late(Exception):
    """A network that would not be done in time."""


def predict(work: Work, runs: list[NetworkRun], deadline: float | None) -> None:
    """Predict with each network, as far as time allows; work.done says with which."""
    work.done += [run for run in runs if work.part(run).is_file()]
    waiting, images, plan = [run for run in runs if run not in work.done], len(work.items), ""
    if deadline:
        waiting.sort(key=lambda run: run.fold)  # a fold of every member first: so each is measured
        written = images * sum(2 * work.experiment(run).image_size ** 2 for run in runs)
        deadline -= LAST_SECONDS + images * PER_IMAGE + written / BYTES_PER_SECOND
        probe(work, waiting[0])
    with progress(len(waiting) * images, "infer") as bar:
        while waiting:
            todo = waiting
            if deadline:
                left = deadline - work.clock()
                todo = select_runs(waiting, work.done, work.cost, left)
                if not todo:
                    break
                plan = announce(todo, waiting, left, plan)
                if not work.done and sum(map(work.cost, todo)) > left:
                    titles = listing(run.title for run in todo)
                    warn(f"that is too short even for {titles} with one view; it is done anyway")
            run = todo[0]
            waiting = [other for other in waiting if other.key != run.key]
            spare = any(run.answers <= other.answers for other in work.done)

            def advance(count: int, may_stop: bool = spare) -> None:
                bar.update(count)
                if deadline and may_stop and work.clock() > deadline:
                    raise Late

            try:
                work.ask(run, work.load(run), images, advance).save(work.part(run))
                work.done.append(run)
            except Late:
                warn(f"{run.title} exceeded its time estimate and was stopped")


def announce(todo: list[NetworkRun], waiting: list[NetworkRun], left: float, before: str) -> str:
    """Say how many networks there is time for, unless `before` was the same; returns it."""
    fewer_views = sum(run not in waiting for run in todo)
    plan = "room for all"
    if fewer_views:
        plan = f"room for {len(todo)}, {fewer_views} of them with fewer views"
    elif len(todo) < len(waiting):
        plan = f"room for {len(todo)}"
    if plan != (before or "room for all"):
        say(f"  {duration(max(0, left))} for {len(waiting)} networks: {plan}")
    return plan


def probe(work: Work, run: NetworkRun) -> None:
    """Measure one view of a few images. Twice, since the first time is slower: it imports what it
    needs."""
    on_gpu, count = work.device.type == "cuda", len(work.items)
    count = min(count, work.experiment(run).predict_batch_size if on_gpu else PROBED)
    for _ in range(2):
        work.ask(replace(run, tta=run.tta[:1]), work.load(run), count)


# -------------------------------------------------------------------------------------- the answers


def mix(work: Work, mask_size: int) -> Predictions:
    """The mean of each member's folds, and of the members by their weights: of those predicted."""
    classes = work.config.competition.data.classes
    files: dict[str, list[Path]] = {}
    for run in sorted(work.done, key=lambda run: run.fold):
        files.setdefault(run.member, []).append(work.part(run))
    members = {member: mean_of_folds(parts, classes) for member, parts in files.items()}
    # as large as all members together had it, those too that are skipped here
    with_mask = [m for m in members.values() if m.mask is not None]
    greedy.same_size(with_mask, mask_size)
    mixed: dict[str, np.ndarray | None] = {"mask": None, "label": None}
    for answer, times in work.times.items():
        used = [member for member in times if member in members]
        if used:
            mixture = tuple(times[member] for member in used)
            mixed[answer] = greedy.mix(
                [members[member] for member in used], [mixture] * len(work.items), answer
            )
    return Predictions(work.index.id.to_numpy(), mixed["mask"], mixed["label"], classes)


def draw(work: Work, predictions: Predictions, decision: Decision, target: Path) -> None:
    """Some answers, evenly over the test images."""
    shown, competition = [], work.config.competition
    for i in np.unique(np.linspace(0, len(work.items) - 1, SHOWN).round().astype(int)):
        item, classes = work.items[i], competition.classes
        size = tuple(map(int, work.index.loc[i, ["height", "width"]]))
        mask, label = apply(decision, predictions, i, size, classes)
        caption = item.id[:40]
        if label is not None:
            caption += f"\n{classes.names[label]} {predictions.label[i, label]:.2f}"
        shown += figures.tiles(item.image, competition.data.channels, [(None, mask, caption)])
    title = f"{figures.plain(work.config.name)}: predicted outlines"
    figures.save(figures.sheet(shown, title), target)
