"""submit: the answers for the test images, in the form of sample_submission.csv. A pure writer: nothing is chosen here.

READS   artifacts/predictions/<name>/test.npz, decision.json and metrics.json, artifacts/prepared/index.csv and report.json, sample_submission.csv
WRITES  submissions/<name>.csv (or .zip, where masks are handed in as PNG files), and <name>.json: what made it, its cross-validated score

What the sample does not leave open is inferred from it (submission/form.py); the file is read back (submission/verify.py) before it takes its name.
"""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import asdict

from src.config.load import Config
from src.core.console import InputError, command, header, listing, say, short, warn
from src.core.freshness import Job, retire
from src.core.paths import ROOT, Paths
from src.data.predictions import Predictions
from src.data.tables import read_index
from src.parts.postprocess import Decision
from src.pipeline.inputs import sample_of
from src.pipeline.jobs import form_of
from src.pipeline.records import read_metrics, read_weights
from src.submission import writer


def run(job: Job, config: Config, paths: Paths) -> None:
    name, data = config.name, config.competition.data
    index = read_index(paths, "test")
    if not len(index):
        raise InputError(
            "there is no test set, so there is nothing to submit",
            short(paths.data),
            f"The scores are in {short(paths.metrics(name))}",
            code="no_test_set",
        )
    sample = sample_of(config, paths)
    header("submit", name, [paths.test(name), paths.decision(name), sample], job.outputs)
    facts: dict = {}
    with job.running(facts):
        form = form_of(config, paths)
        for line in form.said:
            say(f"  inferred {line}")
        if form.unknown:
            if data.on_error != "skip":
                raise InputError(
                    f"{len(form.unknown)} ids have no test image: {listing(form.unknown)}",
                    short(sample),
                    "Put the images there, or answer these rows with nothing: --set "
                    "data.on_error=skip",
                    code="no_test_image",
                )
            warn(writer.describe_missing_images(form, data))
        asked = set(form.images)
        if left_out := [i for i in index.id if i not in asked]:
            warn(
                f"{len(left_out)} test images are not in the sample, and so not in the submission: {listing(left_out)}"
            )
        decision = Decision.load(paths.decision(name))
        facts |= made_by(config, paths, decision)
        if not paths.test(name).is_file():
            todo = f"Make them with {command('predict')} (an ensemble: {command('ensemble')})"
            raise InputError(
                "there are no predictions of the test images",
                short(paths.test(name)),
                todo,
                code="no_predictions",
            )
        predictions = Predictions.load(paths.test(name), data.classes)
        sizes = dict(zip(index.id, index[["height", "width"]].to_numpy().tolist()))
        target = job.outputs[0]
        facts |= writer.write(
            target, form, predictions, sizes, decision, config.competition.classes
        )
        facts |= {"file": target.name, "sha256": hashlib.sha256(target.read_bytes()).hexdigest()}
        if (
            other := ({paths.submission(name), paths.archive(name)} - {target}).pop()
        ).is_file():  # of another form: the record beside it is no longer its own
            retire([other], paths)
        facts["summary"] = f"{facts['rows']} rows, CV score {facts['score']:.4f}"
    if facts["note"]:
        say(f"  {facts['note']}")
    counted = [f"{n} {c}" for c, n in facts.get("labels", {}).items()] + (
        [f"{facts['empty_masks']} empty masks"] if "empty_masks" in facts else []
    )
    say(f"  {facts['rows']} rows ({', '.join(counted)}), read back and equal")
    low, high = facts["interval"]
    say(f"  {short(target)}   CV score {facts['score']:.4f} (95 % {low:.3f} to {high:.3f})")


def made_by(config: Config, paths: Paths, decision: Decision) -> dict:
    """For the record beside the submission: config, members, folds, decision, and the CV score with its interval."""
    found = read_metrics(paths, config.name)
    nested = found["nested"]
    facts = {
        "score": float(nested["score"]),
        "interval": [float(v) for v in nested["intervals"]["score"]],
        "metrics": nested["metrics"],
    }
    edited = found["tuned"]["decision"] != asdict(decision)
    of_members = config.ensemble and paths.weights(config.name).is_file()
    members = read_weights(paths, config.name, config.ensemble.members) if of_members else None
    return facts | {
        "note": "decision.json was edited since evaluate: the CV score is of the tuned decision, not of this one"
        if edited
        else "",
        "config": config.name,
        "commit": commit(),
        "settings": {
            c.name: c.keys("image_size", "resize", "model", "loss", "train", "predict")
            for c in config.experiments
        },
        "members": {a: members[a]["weights"] for a in ("mask", "label") if members[a]}
        if members
        else None,
        "decision": asdict(decision),
        "folds": sorted(nested.get("by_fold", {})),
    }


def commit() -> str | None:
    """The project's git commit, '+' for uncommitted changes; None outside of a checkout."""
    try:
        found = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            encoding="utf-8",
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
