"""submit: the answers for the test images, in the form of sample_submission.csv. A pure writer:
nothing is chosen here.

READS   artifacts/predictions/<name>/test.npz, decision.json and metrics.json,
        artifacts/prepared/index.csv and report.json, sample_submission.csv
WRITES  submissions/<name>.csv (or .zip, where masks are submitted as PNG files), and <name>.json:
        what made it, its cross-validated score

What the sample does not leave open is inferred from it (submission/infer_form.py); the file is read
back (submission/verify.py) before it takes its name.
"""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from src.config.load import Config
from src.core.console import InputError, command, header, listing, say, short, warn
from src.core.freshness import Job, retire
from src.core.paths import ROOT, Paths
from src.data.predictions import Predictions
from src.parts.postprocess import Decision
from src.pipeline.inputs import sample_of
from src.pipeline.jobs import form_of
from src.pipeline.records import read_metrics, read_weights
from src.submission import writer
from src.submission.form import Form


def run(job: Job, config: Config, paths: Paths) -> None:
    name = config.name
    sizes = writer.read_sizes(paths)
    if not sizes:
        raise InputError(
            "there is no test set, so there is nothing to submit",
            paths.data,
            f"The scores are in {short(paths.metrics(name))}",
            code="no_test_set",
        )
    sample, target = sample_of(config, paths), job.outputs[0]
    header("submit", name, [paths.test(name), paths.decision(name), sample], job.outputs)
    facts: dict[str, Any] = {}
    with job.running(facts):
        form = form_of(config, paths)
        for line in form.inferred:
            say(f"  inferred {line}")
        _compare_images(form, list(sizes), sample, config.competition.data.on_error)
        decision = Decision.load(paths.decision(name))
        facts |= made_by(config, paths, decision)
        if not paths.test(name).is_file():
            raise InputError(
                "there are no predictions of the test images",
                paths.test(name),
                f"Make them with {command('predict')} (an ensemble: {command('ensemble')})",
                code="no_predictions",
            )
        predictions = Predictions.load(paths.test(name), config.competition.data.classes)
        facts |= writer.write(target, form, predictions, sizes, decision)
        facts |= {"file": target.name, "sha256": hashlib.sha256(target.read_bytes()).hexdigest()}
        # the record beside a file of another form is no longer its own
        others = {paths.submission(name), paths.archive(name)} - {target}
        retire([file for file in others if file.is_file()], paths)
        facts["summary"] = f"{facts['rows']} rows, CV score {facts['score']:.4f}"
    if facts["note"]:
        say(f"  {facts['note']}")
    counts = [f"{count} {label}" for label, count in facts.get("labels", {}).items()]
    if "empty_masks" in facts:
        counts.append(f"{facts['empty_masks']} empty masks")
    say(f"  {facts['rows']} rows ({', '.join(counts)}), read back and equal")
    low, high = facts["interval"]
    say(f"  {short(target)}   CV score {facts['score']:.4f} (95 % {low:.3f} to {high:.3f})")


def _compare_images(form: Form, ids: list[str], sample: Path, on_error: str) -> None:
    """Warn of images that only the sample, or only the disk, has. Raises InputError for the former
    unless they may be skipped."""
    if form.missing_ids:
        if on_error != "skip":
            raise InputError(
                f"{len(form.missing_ids)} ids have no test image: {listing(form.missing_ids)}",
                sample,
                "Put the images there, or answer these rows with nothing: --set data.on_error=skip",
                code="no_test_image",
            )
        warn(writer.describe_missing_images(form))
    asked = set(form.images)
    if unasked := [id for id in ids if id not in asked]:
        warn(
            f"{len(unasked)} test images are not in the sample, and so not in the submission: "
            f"{listing(unasked)}"
        )


def made_by(config: Config, paths: Paths, decision: Decision) -> dict[str, Any]:
    """For the record beside the submission: config, members, folds, decision, and the CV score with
    its interval."""
    found = read_metrics(paths, config.name)
    nested, members, note = found["nested"], None, ""
    if found["tuned"]["decision"] != asdict(decision):
        note = (
            "decision.json was edited since evaluate: the CV score is of the tuned decision, not "
            "of this one"
        )
    if config.ensemble and paths.weights(config.name).is_file():
        weights = read_weights(paths, config.name, config.ensemble.members)
        members = {a: weights[a]["weights"] for a in ("mask", "label") if weights[a]}
    keys = ("image_size", "resize", "model", "loss", "train", "predict")
    return {
        "score": float(nested["score"]),
        "interval": [float(v) for v in nested["intervals"]["score"]],
        "metrics": nested["metrics"],
        "note": note,
        "config": config.name,
        "commit": commit(),
        "settings": {c.name: c.keys(*keys) for c in config.experiments},
        "members": members,
        "decision": asdict(decision),
        "folds": sorted(nested.get("by_fold", {})),
    }


def commit() -> str | None:
    """The project's git commit, '+' for uncommitted changes; None outside a checkout."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        found = subprocess.run(words, capture_output=True, timeout=10, encoding="utf-8")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
