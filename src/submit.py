"""submit: the answers for the test images, in the shape of sample_submission.csv. A pure writer: nothing is chosen here.

READS   artifacts/predictions/<name>/test.npz, decision.json and metrics.json, artifacts/prepared/index.csv, sample_submission.csv
WRITES  submissions/<name>.csv, and <name>.json: what made it, its honest CV score

The file is read back by a reader of its own and must decode to the very masks that were meant before it takes its name.
"""
from __future__ import annotations

import csv
import hashlib
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np

from src.core.config import Config
from src.core.settings import Submission
from src.core.console import InputError, StageError, command, header, listing, say, short, warn
from src.core.freshness import Job, read_json, replacing
from src.core.paths import ROOT, Paths
from src.core.predictions import Predictions
from src.core.rle import encode
from src.core.stages import IMAGE_SUFFIXES
from src.core.tables import read_index
from src.parts.postprocess import Decision, apply


def run(job: Job, config: Config, paths: Paths, force: bool = False) -> None:
    name, data, dialect = config.name, config.competition.data, config.competition.submission
    index = read_index(paths, "test")
    if not len(index):
        raise InputError("there is no test set, so there is nothing to submit", short(paths.data), f"The scores are in {short(paths.metrics(name))}")
    target = paths.submission(name)
    header("submit", name, [paths.test(name), paths.decision(name), paths.data / data.sample_submission], [target])
    facts: dict = {}
    with job.running(facts, force):
        columns, sample_ids = read_sample(paths.data / data.sample_submission, dialect)
        known = set(index.id)
        ids = [match(i, known) for i in sample_ids]
        if unknown := [s for s, i in zip(sample_ids, ids) if i is None]:
            if data.on_error != "skip":
                raise InputError(f"{len(unknown)} ids have no test image: {listing(unknown)}", short(paths.data / data.sample_submission))
            warn(f"{len(unknown)} ids have no readable test image and are answered with {data.empty_class or data.classes[0]} and an empty mask: {listing(unknown)}")
        decision = Decision.load(paths.decision(name))
        facts |= made_by(config, paths, decision)
        there = [i for i in ids if i is not None]
        predictions = load(paths.test(name), columns, data.classes, dialect).select(there)
        row_of = {k: n for n, k in enumerate(there)}
        size_of = dict(zip(index.id, index[["height", "width"]].to_numpy()))
        sizes = [size_of.get(i, (1, 1)) for i in ids]
        rows, masks, labels = [], [], []
        for sample_id, i, size in zip(sample_ids, ids, sizes, strict=True):
            mask, label = np.zeros(size, bool), data.classes.index(data.empty_class or data.classes[0])
            if i is not None:
                mask, label = (None if p is None else p[row_of[i]] for p in (predictions.mask, predictions.label))
                mask, label = apply(decision, mask, label, *size, data.classes, data.empty_class)
            cells = {dialect.id: sample_id}
            if dialect.rle in columns:
                cells[dialect.rle] = encode(mask, dialect.order, dialect.first, dialect.empty)
                masks.append(np.packbits(mask))  # an eighth of the memory: thousands of test images may be large
            if dialect.label in columns:
                cells[dialect.label] = data.classes[label]
                labels.append(data.classes[label])
            rows.append([cells[c] for c in columns])
        with replacing(target) as temporary:
            with open(temporary, "w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([columns, *rows])
            prove(temporary, columns, sample_ids, masks, labels, sizes, dialect)
            digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
        facts |= {"sha256": digest, "rows": len(rows)}
        if labels:
            facts["labels"] = {c: labels.count(c) for c in data.classes}
        if masks:
            facts["empty_masks"] = sum(not m.any() for m in masks)
        facts["summary"] = f"{len(rows)} rows, CV score {facts['score']:.4f}"
    if facts["note"]:
        say(f"  {facts['note']}")
    counted = [f"{n} {c}" for c, n in facts.get("labels", {}).items()] + ([f"{facts['empty_masks']} empty masks"] if masks else [])
    say(f"  {len(rows)} rows ({', '.join(counted)}), read back and equal")
    low, high = facts["interval"]
    say(f"  {short(target)}   CV score {facts['score']:.4f} (95 % {low:.3f} to {high:.3f})")


def read_sample(file: Path, dialect: Submission) -> tuple[list[str], list[str]]:
    """Columns and ids of sample_submission.csv, in its order. Raises InputError for a file that is missing or damaged, or a column that is not known."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            table = [row for row in csv.reader(lines) if row]
    except FileNotFoundError:
        todo = "Download it from the contest's page, or name another with data.sample_submission"
        raise InputError("there is no sample of the submission", short(file), todo) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"not readable as a table: {error}", short(file), "Download it again") from None
    if not table:
        raise InputError("the sample of the submission is empty", short(file), "Download it again")
    columns, known = table[0], [dialect.id, dialect.label, dialect.rle]
    if unknown := [c for c in columns if c not in known]:
        todo = f"Known are {', '.join(known)}: name them in competition.yaml under submission, for example label: {unknown[0]}"
        raise InputError(f"column '{unknown[0]}' is not known", short(file), todo)
    if dialect.id not in columns or len(columns) < 2 or len(set(columns)) < len(columns):
        raise InputError(f"the columns are {', '.join(columns)}", short(file), f"Expected {dialect.id} with {dialect.label}, {dialect.rle} or both, each once")
    if ragged := [i for i, row in enumerate(table, 1) if len(row) != len(columns)]:
        raise InputError(f"line {ragged[0]} has {len(table[ragged[0] - 1])} cells instead of {len(columns)}", short(file), "Download it again")
    ids = [row[columns.index(dialect.id)] for row in table[1:]]
    if len(set(ids)) < len(ids):
        raise InputError(f"the same id twice: {listing(sorted({i for i in ids if ids.count(i) > 1}))}", short(file), "One row an image is expected")
    if not ids:
        raise InputError("the sample of the submission has no rows", short(file), "Download it again")
    return columns, ids


def match(sample_id: str, known: set[str]) -> str | None:
    """The index's id of a row: contests write x or x.png."""
    stem, dot, suffix = sample_id.rpartition(".")
    return sample_id if sample_id in known else stem if f".{suffix}".lower() in IMAGE_SUFFIXES and stem in known else None


def load(file: Path, columns: list[str], classes: list[str], dialect: Submission) -> Predictions:
    """The test predictions, which must hold what the columns ask for."""
    if not file.is_file():
        todo = f"Make them with {command('predict')} (an ensemble: {command('ensemble')})"
        raise InputError("there are no predictions of the test images", short(file), todo)
    predictions = Predictions.load(file, classes)
    for column, answer in ((dialect.rle, predictions.mask), (dialect.label, predictions.label)):
        if column in columns and answer is None:
            todo = "An ensemble with a member that has it makes both"
            raise InputError(f"column '{column}' is asked for, but these predictions have none", short(file), todo)
    return predictions


def made_by(config: Config, paths: Paths, decision: Decision) -> dict:
    """For the record beside the submission: config, members, folds, decision, and the CV score with its interval."""
    file = paths.metrics(config.name)
    if not file.is_file():
        raise InputError("there is no CV score to go with the submission", short(file), f"Make it with {command('evaluate')}")
    found = read_json(file)
    try:
        honest = found["honest"]
        facts = {"score": float(honest["score"]), "interval": [float(v) for v in honest["intervals"]["score"]], "metrics": honest["metrics"]}
        edited = found["tuned"]["decision"] != asdict(decision)
    except (KeyError, TypeError, ValueError):
        raise InputError("not readable as metrics", short(file), f"Make it again with {command('evaluate', '--force')}") from None
    members = read_json(paths.weights(config.name)) if config.ensemble and paths.weights(config.name).is_file() else None
    return facts | {
        "note": "decision.json was edited since evaluate: the CV score is of the tuned decision, not of this one" if edited else "",
        "config": config.name,
        "commit": commit(),
        "settings": {c.name: c.keys("image_size", "resize", "model", "loss", "train", "predict") for c in config.experiments},
        "members": {a: members[a]["weights"] for a in ("mask", "label") if members.get(a)} if members else None,
        "decision": asdict(decision),
        "folds": sorted(honest.get("by_fold", {})),
    }


def commit() -> str | None:
    """The project's git commit, '+' for uncommitted changes; None outside of a checkout."""
    try:
        found = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def prove(file: Path, columns: list[str], ids: list[str], masks: list[np.ndarray], labels: list[str], sizes: np.ndarray, dialect: Submission) -> None:
    """Raises StageError unless the file holds exactly these ids, labels and masks. Shares no code with the writer, so that it cannot share its faults."""
    lines = file.read_text(encoding="utf-8").split("\n")
    table = [dict(zip(columns, cells)) for cells in csv.reader(lines[1:]) if cells]
    if next(csv.reader(lines[:1])) != columns or [row[dialect.id] for row in table] != ids:
        raise StageError(f"{short(file)} does not read back with the sample's columns and ids")
    if any(len(row) != len(columns) or not all(v for c, v in row.items() if c != dialect.rle or dialect.empty) for row in table):
        raise StageError(f"{short(file)} has empty cells")
    if labels and [row[dialect.label] for row in table] != labels:
        raise StageError(f"{short(file)} does not read back with the same labels")
    for row, meant, (height, width) in zip(table, masks, sizes):
        drawn = np.zeros(height * width, dtype=bool)
        numbers = [] if row[dialect.rle] == dialect.empty else [int(n) for n in row[dialect.rle].split(" ")]
        for start, length in zip(numbers[::2], numbers[1::2], strict=True):
            drawn[start - dialect.first : start - dialect.first + length] = True
        drawn = drawn.reshape(width, height).T if dialect.order == "column" else drawn.reshape(height, width)
        if not np.array_equal(np.packbits(drawn), meant):
            raise StageError(f"the run lengths of {row[dialect.id]} do not decode to the mask that was meant")
