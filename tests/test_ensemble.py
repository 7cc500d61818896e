"""ensemble: the right weights, a nested gain, members of every kind."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import refused
from test_evaluate import CLASSES, counts_of, messy, perfect, world

from src.config.load import Config
from src.core.settings import Competition, Ensemble
from src.data.images import resize
from src.data.predictions import Predictions
from src.data.rle import Truth
from src.parts import metrics
from src.parts.postprocess import stretch
from src.pipeline.jobs import ensemble_job
from src.scoring import greedy
from src.stages import ensemble


def run(paths, members, method="greedy", score=None) -> dict:
    config = Config(
        "ens",
        Path("ens.yaml"),
        Competition(**({"score": score} if score else {})),
        ensemble=Ensemble(members=members, method=method),
    )
    ensemble.run(ensemble_job(config, paths), config, paths)
    return json.loads(paths.weights("ens").read_text())


def save(paths, name, oof, test=None):
    oof.save(paths.oof(name))
    if test is not None:
        test.save(paths.test(name))


def result(paths, part="oof") -> Predictions:
    return Predictions.load((paths.oof if part == "oof" else paths.test)("ens"), CLASSES)


def test_greedy_finds_the_good_member(tmp_path, capsys):
    paths, labels, masks = world(tmp_path, n=30, tests=2)
    ids = [f"i{i}" for i in range(30)]
    for name, oof in (
        ("bad", messy(ids, 1)),
        ("good", perfect(masks[:30], labels)),
        ("worse", messy(ids, 2)),
    ):
        save(paths, name, oof, messy(["i30", "i31"], 3))
    found = run(paths, ["bad", "good", "worse"])
    for answer in ("mask", "label"):
        assert found[answer]["weights"] == {"bad": 0, "good": 1, "worse": 0}
        assert found[answer]["nested"]["gain_over_best_single"] == 0
        assert found[answer]["nested"]["gain_over_mean"] > 0.02
    assert np.array_equal(result(paths).mask, perfect(masks[:30], labels).mask)
    assert result(paths, "test").ids.tolist() == ["i30", "i31"]
    assert "leave-one-fold-out" in capsys.readouterr().out


def test_members_that_err_in_different_places_are_mixed_and_the_gain_is_nested(tmp_path):
    """Each member misses another third of the images: no member is best, the mixture is, in every
    fold."""
    paths, labels, masks = world(tmp_path, n=30)
    third = (np.arange(30) // 3) % 3
    for k in range(3):
        one = perfect(masks, labels)
        one.mask[third == k] = np.float16(0.45)
        one.mask[third != k] = one.mask[third != k] * np.float16(0.6) + np.float16(0.3)
        save(paths, f"m{k}", one)
    found = run(paths, ["m0", "m1", "m2"])["mask"]
    nested = found["nested"]
    assert nested["greedy"] > nested["best_single"] + 0.1
    gain = nested["greedy"] - nested["best_single"]
    assert nested["gain_over_best_single"] == pytest.approx(gain)
    assert sum(w > 0 for w in found["weights"].values()) >= 2


def test_the_gain_is_measured_without_the_fold_that_it_is_measured_on():
    """One member is right in the first half alone, the other in the second."""

    class Scored:
        members = 2

        def score(self, mixture, rows, base=None):
            right = np.where(np.arange(6) < 3, mixture[0], mixture[1]) / sum(mixture)
            return float(right[rows].mean())

        def pooled(self, mixtures):
            return float(sum(self.score(m, rows) * len(rows) for m, rows in mixtures) / 6)

    def nested(choose) -> float:
        folds = np.array([0, 0, 0, 1, 1, 1])
        return greedy.nested(Scored(), folds, greedy.left_out(Scored(), folds, choose))

    assert nested(greedy.single) == 0  # each half's best is wrong on the other
    assert nested(greedy.mean) == 0.5


def test_the_fast_scores_are_those_of_the_pixels(tmp_path):
    paths, labels, masks = world(tmp_path)
    truth, ids = Truth.load(paths.truth), [f"i{i}" for i in range(15)]
    members = [messy(ids, s) for s in range(3)]
    scored = greedy.Masks(members, truth, {"dice": 0.3, "recall": 0.7, "auc": 1.0})
    small = [resize(m, 32, is_mask=True).astype(bool) for m in masks]
    for mixture, base in (
        ((1, 0, 0), None),
        ((1, 1, 0), (1, 0, 0)),
        ((2, 1, 3), (2, 1, 2)),
        ((2, 1, 3), None),
        ((1, 1, 1), None),
    ):
        mean = sum(t * m.mask.astype(np.float32) for t, m in zip(mixture, members)) / sum(mixture)
        each = metrics.per_image(counts_of(mean > 0.5, small))
        expected = 0.3 * each["dice"] + 0.7 * each["recall"]
        assert scored.per_image(mixture, base) == pytest.approx(expected)


def test_mean_of_members_of_different_size_and_answers(tmp_path):
    paths, labels, masks = world(tmp_path)
    ids = [f"i{i}" for i in range(15)]
    a, b, c = messy(ids, 1, size=32), messy(ids, 2, size=48), messy(ids, 3)
    c.mask = None
    b.label = None
    for name, member in {"a": a, "b": b, "c": c}.items():
        save(paths, name, member)
    found = run(paths, ["a", "b", "c"], "mean")
    both = result(paths)
    assert both.mask.shape == (15, 48, 48)
    assert found["mask"]["weights"] == {"a": 0.5, "b": 0.5}
    assert found["label"]["weights"] == {"a": 0.5, "c": 0.5}
    assert both.label == pytest.approx((a.label + c.label) / 2, abs=1e-6)
    mean = (stretch(a.mask[4], 48, 48) + b.mask[4].astype(np.float32)) / 2
    assert both.mask[4].astype(float) == pytest.approx(mean, abs=2e-3)


def test_a_single_member_and_a_score_without_labels(tmp_path):
    paths, labels, masks = world(tmp_path)
    save(paths, "only", perfect(masks, labels))
    found = run(paths, ["only"], score={"dice": 1.0})
    assert found["mask"]["weights"] == found["label"]["weights"] == {"only": 1}
    assert np.array_equal(result(paths).label, perfect(masks, labels).label)


def test_a_folder_of_a_team_mate_in_another_order(tmp_path):
    paths, labels, masks = world(tmp_path / "work")
    save(paths, "mine", messy([f"i{i}" for i in range(15)]))
    theirs, mate = perfect(masks, labels), tmp_path / "mate"
    mate.mkdir()
    theirs.select(theirs.ids[::-1]).save(mate / "oof.npz")
    found = run(paths, ["mine", str(mate)])
    assert found["mask"]["weights"][str(mate)] == 1
    assert result(paths).ids.tolist() == [f"i{i}" for i in range(15)]
    assert np.array_equal(result(paths).mask, theirs.mask)


def test_wrong_members_are_named(tmp_path):
    paths, labels, masks = world(tmp_path, tests=1)
    good = perfect(masks[:15], labels)
    save(paths, "good", good)
    save(paths, "short", good.select(good.ids[:13]))
    with refused("predictions_ids_differ", "2 only in good: i13, i14"):
        run(paths, ["good", "short"])
    with refused("no_such_member", "'nobody'", "oof.npz and test.npz"):
        run(paths, ["good", "nobody"])
    with refused("no_such_member", "'good'", "no test.npz"):
        run(paths, ["good"])
    with refused("member_twice", "good"):
        run(paths, ["good", "good"])
