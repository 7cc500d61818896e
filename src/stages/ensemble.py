"""ensemble: several predictions become one, of the same kind.

READS   each member's oof.npz (and test.npz): artifacts/predictions/<member>/ or any folder;
        artifacts/folds.csv, artifacts/prepared/index.csv and truth.npz
WRITES  artifacts/predictions/<name>/oof.npz  test.npz  weights.json

method mean: all members count alike. greedy: weights chosen on the score, for mask and label apart.
What either gains over the best single member is measured leave-one-fold-out: weights (and the best
member) are chosen without the fold that they are measured on. oof.npz is mixed in this way too,
each fold by weights that did not see it, so that what evaluate calls nested is; test.npz is mixed
by the weights chosen on all folds.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from src.config.load import Config
from src.core.console import InputError, command, counted, header, listing, say, short
from src.core.disk import write_json
from src.core.freshness import Job
from src.core.paths import Paths
from src.data.predictions import Predictions
from src.data.rle import Truth
from src.data.tables import read_folds, read_index, read_labels
from src.parts import metrics
from src.pipeline.inputs import has_test
from src.pipeline.jobs import member_folder
from src.scoring import greedy
from src.scoring.resample import cross_folds


def run(job: Job, config: Config, paths: Paths) -> None:
    names, classes = config.ensemble.members, config.competition.data.classes
    if twice := {n for n in names if names.count(n) > 1}:
        raise InputError(
            f"members named twice: {listing(sorted(twice))}",
            config.file,
            "Greedy selection gives weights; the mean counts each once",
            code="member_twice",
        )
    metrics.check_score(config.competition.score)
    reads = [f"{short(member_folder(config, paths, name))}/" for name in names]
    header("ensemble", config.name, reads, job.outputs)
    facts: dict = {}
    with job.running(facts):
        index = read_index(paths, "train")
        members = load(config, paths, "oof")
        ids = members[names[0]].ids
        rows = pd.Index(index.id).get_indexer(ids)
        if (rows < 0).any():
            foreign = ids[rows < 0].tolist()
            what = counted(len(foreign), "id is not a train image", "ids are not train images")
            raise InputError(
                f"{what}: {listing(foreign)}",
                f"member {names[0]}",
                "Take the member out, or have it predicted for these images",
                code="predictions_ids_differ",
            )
        labels = read_labels(paths, index, classes)[rows]
        groups, cv_folds = index.group.to_numpy()[rows], read_folds(paths, index.id)[rows]
        validated = cv_folds >= 0
        cv_folds[validated], by_folds = cross_folds(cv_folds[validated], groups[validated])

        weights = {}
        for answer in ("mask", "label"):
            weights[answer] = weigh(answer, members, labels, cv_folds, config, paths)
        combine(members, weights, classes, cv_folds).save(paths.oof(config.name))
        if has_test(paths):
            # 1.5 GB for six members of 624 masks of 448 px: gone before the next are read
            del members
            combine(load(config, paths, "test"), weights, classes).save(paths.test(config.name))
        about = {
            "method": config.ensemble.method,
            "left_out": "folds" if by_folds else "parts of the one validation fold",
        }
        write_json(paths.weights(config.name), about | weights)
        gains = [
            f"{answer} {found['nested']['gain_over_best_single']:+.4f}"
            for answer, found in weights.items()
            if found and found["nested"]
        ]
        facts["summary"] = f"{config.ensemble.method} of {len(names)}"
        if gains:
            facts["summary"] += f", over the best member {', '.join(gains)}"
    if not by_folds:
        say("  one validation fold: gains are cross-fitted over 5 parts of its duplicate groups")
    for answer, found in weights.items():
        print_weights(answer, found)
    say(f"  weights -> {short(paths.weights(config.name))}")


def load(config: Config, paths: Paths, part: str) -> dict[str, Predictions]:
    """Every member's oof or test predictions, all with the first one's ids in its order. Raises
    InputError for a member that is missing or does not fit."""
    members: dict[str, Predictions] = {}
    first_name = config.ensemble.members[0]
    for name in config.ensemble.members:
        artifact = paths.oof(name) if part == "oof" else paths.test(name)
        file = member_folder(config, paths, name) / artifact.name
        if not file.is_file():
            todo = "Put oof.npz and test.npz there"
            if any(c.name == name for c in config.members):
                predict = command("predict", "--config", short(config.file.parent / f"{name}.yaml"))
                todo = f"Make it with {predict}, or put oof.npz and test.npz there"
            what = f"member '{name}' has no {file.name}"
            raise InputError(what, file.parent, todo, code="no_such_member")
        found = Predictions.load(file, config.competition.data.classes)
        first = members.get(first_name, found)
        only_in = {first_name: set(first.ids) - set(found.ids)}
        only_in |= {name: set(found.ids) - set(first.ids)}
        differ = [
            f"{len(ids)} only in {who}: {listing(sorted(ids), 4)}"
            for who, ids in only_in.items()
            if ids
        ]
        if differ:
            raise InputError(
                f"the members' ids differ, {'; '.join(differ)}",
                file,
                "All members must predict the same images: run predict again for the one that is "
                "behind",
                code="predictions_ids_differ",
            )
        members[name] = found if np.array_equal(found.ids, first.ids) else found.select(first.ids)
    lacking = [
        f"{name} has no {answer} and only counts for the other"
        for name, member in members.items()
        for answer in ("mask", "label")
        if getattr(member, answer) is None
    ]
    if lacking and part == "oof":
        say(f"  {'; '.join(lacking)}")
    greedy.same_size([m for m in members.values() if m.mask is not None])
    return members


def weigh(
    answer: str,
    members: dict[str, Predictions],
    labels: np.ndarray,
    cv_folds: np.ndarray,
    config: Config,
    paths: Paths,
) -> dict | None:
    """The members' weights for 'mask' or 'label', how each member does alone, and the nested
    scores; None where no member has that answer. All count alike where the score names no metric of
    that answer."""
    having = {n: m for n, m in members.items() if getattr(m, answer) is not None}
    if not having:
        return None
    method, score = config.ensemble.method, config.competition.score
    known = metrics.MASK_METRICS if answer == "mask" else metrics.LABEL_METRICS
    measured = {name: weight for name, weight in score.items() if name in known}
    mixture, times_without, alone, nested = (1,) * len(having), {}, {}, {}
    if measured:
        if answer == "mask":
            threshold = config.competition.evaluate.threshold[0]
            truth = Truth.load(paths.truth)
            scored = greedy.Masks(list(having.values()), truth, score, threshold)
        else:
            scored = greedy.Labels(list(having.values()), labels, score)
        choosers = {"best_single": greedy.single, "mean": greedy.mean}
        if method == "greedy":
            choosers["greedy"] = partial(greedy.greedy, rounds=config.ensemble.rounds)
        validated = np.flatnonzero(cv_folds >= 0)
        mixture = choosers[method](scored, validated)
        for name, choose in choosers.items():
            without = greedy.left_out(scored, cv_folds, choose)
            nested[name] = greedy.nested(scored, cv_folds, without)
            if name == method:  # for the images of each fold
                times_without = {k: dict(zip(having, times)) for k, times in without.items()}
        for base in ("best_single", "mean"):
            nested[f"gain_over_{base}"] = nested[method] - nested[base]
        for name, one in zip(having, np.eye(len(having), dtype=int).tolist()):
            alone[name] = scored.score(tuple(one), validated)
    return {
        "weights": {name: times / sum(mixture) for name, times in zip(having, mixture)},
        "times": dict(zip(having, mixture)),
        "times_without": times_without,
        "measured": measured,
        "alone": alone,
        "nested": nested,
    }


def combine(
    members: dict[str, Predictions],
    weights: dict[str, dict | None],
    classes: list[str],
    cv_folds: np.ndarray | None = None,
) -> Predictions:
    """One prediction of several. cv_folds (N): mix each image by the weights chosen without its
    fold."""
    ids = next(iter(members.values())).ids
    answers: dict[str, np.ndarray | None] = dict.fromkeys(weights)
    for answer, found in weights.items():
        if found is None:
            continue
        per_image = [found["times"]] * len(ids)
        if cv_folds is not None:
            per_image = [found["times_without"].get(int(k), found["times"]) for k in cv_folds]
        used = [name for name in found["times"] if any(times[name] for times in per_image)]
        if absent := [name for name in used if getattr(members[name], answer) is None]:
            raise InputError(
                f"{listing(absent)}: {answer} is in oof.npz but not in test.npz",
                "members",
                "Both must hold the same answers",
                code="no_such_answer",
            )
        mixtures = [tuple(times[name] for name in used) for times in per_image]
        answers[answer] = greedy.mix([members[name] for name in used], mixtures, answer)
    return Predictions(ids, answers["mask"], answers["label"], classes)


def print_weights(answer: str, found: dict | None) -> None:
    """Each member alone and its weight, then what mixing them gains."""
    if found is None:
        say(f"  {answer}: no member has it")
        return
    measured = " + ".join(f"{weight:g} · {name}" for name, weight in found["measured"].items())
    if measured and answer == "mask":
        measured += ", at the predictions' own resolution"
    say(f"  {answer} ({measured or 'not in the score, so all alike'})")
    for name, weight in found["weights"].items():
        alone = f"   alone {found['alone'][name]:.4f}" if found["alone"] else ""
        say(f"    {name:<28} weight {weight:.3f}{alone}")
    if nested := found["nested"]:
        scores = [
            f"{name.replace('_', ' ')} {value:.4f}"
            for name, value in nested.items()
            if not name.startswith("gain")
        ]
        say(
            f"    leave-one-fold-out: {', '.join(scores)}; "
            f"gain over the best single {nested['gain_over_best_single']:+.4f}, "
            f"over the mean {nested['gain_over_mean']:+.4f}"
        )
