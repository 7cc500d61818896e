"""ensemble: several predictions become one, of the same kind.

READS   each member's oof.npz (and test.npz): artifacts/predictions/<member>/ or any folder; artifacts/folds.csv, artifacts/prepared/index.csv and truth.npz
WRITES  artifacts/predictions/<name>/oof.npz  test.npz  weights.json

method mean: all members alike. greedy: weights chosen on the score, for mask and label apart. What either gains over the best single member is
measured leave-one-fold-out: weights (and the best member) are chosen without the fold that they are measured on. oof.npz is mixed in this way too, each
fold by weights that did not see it, so that what evaluate calls nested is; test.npz is mixed by the weights chosen on all folds.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

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
    if doubled := {n for n in names if names.count(n) > 1}:
        raise InputError(
            f"members named twice: {listing(sorted(doubled))}",
            short(config.file),
            "Greedy selection gives weights; the mean counts each once",
            code="member_twice",
        )
    metrics.check_score(config.competition.score)
    test = has_test(paths)
    writes = [
        paths.oof(config.name),
        *([paths.test(config.name)] if test else []),
        paths.weights(config.name),
    ]
    header(
        "ensemble",
        config.name,
        [f"{short(member_folder(config, paths, n))}/" for n in names],
        writes,
    )
    facts: dict = {}
    with job.running(facts):
        index = read_index(paths, "train")
        members = load(config, paths, "oof")
        known = dict(zip(index.id, range(len(index))))
        if foreign := [i for i in members[names[0]].ids if i not in known]:
            what = counted(len(foreign), "id is no train image", "ids are no train images")
            raise InputError(
                f"{what}: {listing(foreign)}",
                f"member {names[0]}",
                "Take the member out, or have it predicted for these images",
                code="predictions_ids_differ",
            )
        rows = np.array([known[i] for i in members[names[0]].ids])
        parts = read_folds(paths, index.id)[rows]
        parts[parts >= 0], by_folds = cross_folds(
            parts[parts >= 0], index.group.to_numpy()[rows][parts >= 0]
        )
        labels = read_labels(paths, index, classes)[rows]
        weights = {
            answer: weigh(answer, members, labels, parts, config, paths)
            for answer in ("mask", "label")
        }
        combine(members, weights, classes, parts).save(paths.oof(config.name))
        if test:
            del (
                members
            )  # 1.5 GB for six members of 624 masks of 448 px: gone before the next are read
            combine(load(config, paths, "test"), weights, classes).save(paths.test(config.name))
        about = {
            "method": config.ensemble.method,
            "left_out": "folds" if by_folds else "parts of the one validation fold",
        }
        write_json(paths.weights(config.name), about | weights)
        gains = [
            f"{answer} {w['nested']['gain_over_best_single']:+.4f}"
            for answer, w in weights.items()
            if w and w["nested"]
        ]
        facts["summary"] = f"{config.ensemble.method} of {len(names)}" + (
            f", over the best member {', '.join(gains)}" if gains else ""
        )
    print_summary(weights, by_folds, paths.weights(config.name))


def load(config: Config, paths: Paths, part: str) -> dict[str, Predictions]:
    """Every member's oof or test predictions, all with the first one's ids in its order. Raises InputError for a member that is missing or does not fit."""
    members: dict[str, Predictions] = {}
    for name in config.ensemble.members:
        folder = member_folder(config, paths, name)
        file: Path = folder / (paths.oof if part == "oof" else paths.test)(name).name
        if not file.is_file():
            todo = "Put oof.npz and test.npz there"
            if any(c.name == name for c in config.members):
                todo = f"Make it with {command('predict', '--config', short(config.file.parent / f'{name}.yaml'))}, or put oof.npz and test.npz there"
            raise InputError(
                f"member '{name}' has no {file.name}", short(folder), todo, code="no_such_member"
            )
        found = Predictions.load(file, config.competition.data.classes)
        first = next(iter(members.values()), found)
        only_first, only_here = (
            sorted(set(first.ids) - set(found.ids)),
            sorted(set(found.ids) - set(first.ids)),
        )
        if only_first or only_here:
            differ = [
                f"{len(ids)} only in {who}: {listing(ids, 4)}"
                for who, ids in ((next(iter(members)), only_first), (name, only_here))
                if ids
            ]
            todo = "All members must predict the same images: run predict again for the one that is behind"
            raise InputError(
                f"the members' ids differ, {'; '.join(differ)}",
                short(file),
                todo,
                code="predictions_ids_differ",
            )
        members[name] = found if np.array_equal(found.ids, first.ids) else found.select(first.ids)
    if part == "oof" and (
        without := [n for n, m in members.items() if m.mask is None or m.label is None]
    ):
        say(
            "  "
            + "; ".join(
                f"{n} has no {'mask' if members[n].mask is None else 'label'} and only counts for the other"
                for n in without
            )
        )
    greedy.same_size([m for m in members.values() if m.mask is not None])
    return members


def weigh(
    answer: str,
    members: dict[str, Predictions],
    labels: np.ndarray,
    parts: np.ndarray,
    config: Config,
    paths: Paths,
) -> dict | None:
    """The members' weights for 'mask' or 'label', how each member does alone, and the nested scores; None where no member has that answer."""
    having = {n: m for n, m in members.items() if getattr(m, answer) is not None}
    if not having:
        return None
    score = config.competition.score
    wanted = {
        m: w
        for m, w in score.items()
        if m in (metrics.MASK_METRICS if answer == "mask" else metrics.LABEL_METRICS)
    }
    if not wanted:  # nothing to choose by
        return {
            "weights": {n: 1 / len(having) for n in having},
            "times": dict.fromkeys(having, 1),
            "times_without": {},
            "measured": {},
            "alone": {},
            "nested": {},
        }
    scored = (
        greedy.Masks(
            list(having.values()),
            Truth.load(paths.truth),
            score,
            config.competition.evaluate.threshold[0],
        )
        if answer == "mask"
        else greedy.Labels(list(having.values()), labels, score)
    )
    choose = (
        partial(greedy.greedy, rounds=config.ensemble.rounds)
        if config.ensemble.method == "greedy"
        else greedy.mean
    )
    validated = np.flatnonzero(parts >= 0)
    mixture = choose(scored, validated)
    ways = {"best_single": greedy.single, "mean": greedy.mean} | (
        {"greedy": choose} if config.ensemble.method == "greedy" else {}
    )
    without = {way: greedy.left_out(scored, parts, chooser) for way, chooser in ways.items()}
    nested = {way: greedy.nested(scored, parts, mixtures) for way, mixtures in without.items()}
    chosen = nested[config.ensemble.method]
    return {
        "weights": {n: times / sum(mixture) for n, times in zip(having, mixture)},
        "times": dict(zip(having, mixture)),
        "times_without": {
            k: dict(zip(having, m)) for k, m in without[config.ensemble.method].items()
        },  # for the images of each fold
        "measured": wanted,
        "alone": {n: scored.score(tuple(int(n == m) for m in having), validated) for n in having},
        "nested": nested
        | {
            "gain_over_best_single": chosen - nested["best_single"],
            "gain_over_mean": chosen - nested["mean"],
        },
    }


def combine(
    members: dict[str, Predictions],
    weights: dict,
    classes: list[str],
    parts: np.ndarray | None = None,
) -> Predictions:
    """One prediction of several. parts (N): mix each image by the weights chosen without its part."""
    answers: dict[str, np.ndarray | None] = {}
    for answer, found in weights.items():
        if found is None:
            answers[answer] = None
            continue
        n = len(next(iter(members.values())))
        per_image = [
            found["times"] if parts is None else found["times_without"].get(int(k), found["times"])
            for k in (range(n) if parts is None else parts)
        ]
        used = [m for m in found["times"] if any(times[m] for times in per_image)]
        if absent := [m for m in used if getattr(members[m], answer) is None]:
            raise InputError(
                f"{listing(absent)}: {answer} is in oof.npz but not in test.npz",
                "members",
                "Both must hold the same answers",
                code="no_such_answer",
            )
        answers[answer] = greedy.mix(
            [members[m] for m in used],
            [tuple(times[m] for m in used) for times in per_image],
            answer,
        )
    return Predictions(next(iter(members.values())).ids, answers["mask"], answers["label"], classes)


def print_summary(weights: dict, by_folds: bool, file: Path) -> None:
    """Each member alone and its weight, then what mixing them gains."""
    if not by_folds:
        say(
            "  one validation fold only: gains are cross-fitted over 5 parts of its duplicate groups"
        )
    for answer, found in weights.items():
        if found is None:
            say(f"  {answer}: no member has it")
            continue
        measured = (
            " + ".join(f"{w:g} · {m}" for m, w in found["measured"].items())
            or "not in the score, so all alike"
        )
        say(
            f"  {answer} ({measured}{', at the predictions own resolution' if answer == 'mask' and found['measured'] else ''})"
        )
        for name, weight in found["weights"].items():
            say(
                f"    {name:<28} weight {weight:.3f}"
                + (f"   alone {found['alone'][name]:.4f}" if found["alone"] else "")
            )
        if nested := found["nested"]:
            ways = [
                f"{way.replace('_', ' ')} {value:.4f}"
                for way, value in nested.items()
                if not way.startswith("gain")
            ]
            gains = f"gain over the best single {nested['gain_over_best_single']:+.4f}, over the mean {nested['gain_over_mean']:+.4f}"
            say(f"    leave-one-fold-out: {', '.join(ways)}; {gains}")
    say(f"  weights -> {short(file)}")
