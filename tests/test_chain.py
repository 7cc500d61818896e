"""The chain end to end on a tiny generated data set, and what makes which stage stale."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import command_line, write_configs

from src.__main__ import main
from src.config.load import load
from src.core.paths import Paths
from src.core.settings import Experiment
from src.data import rle
from src.data.predictions import Predictions
from src.data.tables import read_folds, read_index
from src.pipeline import jobs as stages

SETTINGS = ["split.folds=2", "train.epochs=2", "train.workers=0"]
CLASSES = ["benign", "malignant", "normal"]
ENSEMBLE = "members: [small, other]\nmethod: greedy\n"
SMALL = """image_size: 64
model: {arch: unet, encoder: tu-lcnet_035, encoder_weights: none,
        options: {decoder_channels: [32, 16, 16, 8, 8]}}
train: {lr: 2.0e-3}
"""
OTHER = """image_size: 96
resize: letterbox
model: {arch: linknet, encoder: tu-lcnet_035, encoder_weights: none}
predict: {views: [identity], checkpoint: best}
"""


@pytest.fixture(scope="module")
def home(demo, tmp_path_factory) -> Path:
    """configs/, the data, and artifacts/ of a finished run of an ensemble of two."""
    home = tmp_path_factory.mktemp("chain")
    write_configs(home, ensemble=ENSEMBLE, small=SMALL, other=OTHER)
    shutil.copytree(demo, home / "data")
    assert run(home) == 0 and run(home, config="small") == 0
    return home


def line(home: Path, *more: str, config: str = "ensemble") -> list[str]:
    return command_line(home, *more, config=config, sets=SETTINGS)


def run(home: Path, *more: str, config: str = "ensemble") -> int:
    return main(line(home, *more, config=config))


def states(home: Path, *overrides: str, config: str = "small") -> dict[str, str]:
    loaded = load(home / "configs" / f"{config}.yaml", [*SETTINGS, *overrides])
    return {job.title: job.state().kind for job in stages.plan(loaded, Paths(home, home / "data"))}


def not_done(home: Path, *overrides: str, config: str = "small") -> set[str]:
    """The stages that are not up to date, by name."""
    return {
        title.split()[0]
        for title, kind in states(home, *overrides, config=config).items()
        if kind != "done"
    }


@pytest.fixture
def copy(home, tmp_path) -> Path:
    return Path(shutil.copytree(home, tmp_path / "home"))


def snapshot(home: Path) -> dict[str, int]:
    return {
        str(p.relative_to(home)): p.stat().st_mtime_ns
        for folder in ("artifacts", "submissions")
        for p in (home / folder).rglob("*")
        if p.is_file()
    }


def test_the_chain_ends_in_a_submission_that_decodes_to_what_was_decided(home):
    paths = Paths(home, home / "data")
    index = read_index(paths, "test").set_index("id")
    with open(paths.submission("ensemble"), newline="") as file:
        rows = list(csv.DictReader(file))
    with open(home / "data" / "sample_submission.csv", newline="") as file:
        sample = list(csv.DictReader(file))
    assert [r["id"] for r in rows] == [r["id"] for r in sample] and list(rows[0]) == list(sample[0])
    for row in rows:
        assert row["label"] in CLASSES
        rle.decode(row["rle"], index.loc[row["id"], "height"], index.loc[row["id"], "width"])
    for name in ("small", "other", "ensemble"):
        assert paths.html(name).is_file() and paths.per_image(name).is_file()
    assert not list(home.rglob("*.part")) and not list(home.rglob("part_*")), (
        "nothing half-written and no parts are left"
    )


def test_out_of_fold_means_out_of_fold(home):
    """Fold 0's answers come from the network that did not train on fold 0: another checkpoint gives
    others."""
    import torch

    from src.parts import building
    from src.parts.tta import TTA
    from src.training.checkpoint import load_weights
    from src.training.inference import predict_proba

    paths, config = Paths(home, home / "data"), load(home / "configs" / "small.yaml", SETTINGS)
    index = read_index(paths, "train")
    folds = read_folds(paths, index["id"])
    oof = Predictions.load(paths.oof("small"), CLASSES).select(index["id"])
    net = building.build(config.experiment, 3, pretrained=False)
    rows = np.flatnonzero(folds == 0)
    agree = []
    for fold in (0, 1):
        load_weights(
            paths.checkpoint("small", fold, "last"), net, stages.weights_used(config, paths, fold)
        )
        views = [TTA[v] for v in config.experiment.predict.tta]
        _, label = predict_proba(
            net,
            np.load(paths.images(Experiment(image_size=64, resize="stretch")), mmap_mode="r"),
            rows,
            views,
            torch.device("cpu"),
            torch.float32,
            8,
        )
        agree.append(np.abs(label - oof.label[rows]).max())
    assert agree[0] < 0.05 < agree[1] or agree[0] < agree[1] / 3, agree


def test_a_second_run_does_nothing(home, capfd):
    before = snapshot(home)
    assert run(home) == 0
    assert "everything is up to date" in capfd.readouterr().out
    assert {k: v for k, v in snapshot(home).items() if "fingerprints" not in k} == {
        k: v for k, v in before.items() if "fingerprints" not in k
    }
    assert run(home, "status") == 0
    out = capfd.readouterr().out
    assert "missing" not in out and "stale" not in out and "train small fold 1" in out


@pytest.mark.parametrize(
    "override, stale",
    [
        ("data.duplicate_correlation=0.9", {"prepare"}),
        ("split.seed=1", {"split"}),
        ("split.folds=3", {"split", "train", "predict"}),
        ("image_size=96", {"prepare", "train", "predict"}),
        ("train.lr=0.1", {"train"}),
        ("loss.mask_weight=0.1", {"train"}),
        ("train.workers=2", set()),
        ("predict.tta=[identity]", {"predict"}),
        ("predict.checkpoint=best", {"predict"}),
        ("evaluate.bootstrap=200", {"evaluate"}),
        ("score={dice: 1}", {"evaluate"}),  # and no training: predict uses the last checkpoint
        ("predict.weights=float16", {"predict"}),
        ("submission.empty=none", {"submit"}),
        ("submission.id=id", {"prepare", "submit"}),
    ],
)
def test_which_setting_makes_which_stage_stale(home, override, stale):
    """Only what reads the setting; what lies below goes stale once its own input has changed."""
    assert not_done(home, override) == stale


def test_status_calls_what_lies_below_stale_too(home, capfd):
    assert run(home, "status", "--set", "train.lr=0.1", config="small") == 0
    out = capfd.readouterr().out
    rows = {line.split("  ")[1].strip(): line for line in out.splitlines() if line.startswith("  ")}
    assert "train.lr changed from 0.002 to 0.1" in rows["train small fold 0"]
    for title in ("predict small", "evaluate small", "submit small"):
        assert "stale" in rows[title] and "waits for" in rows[title]
    assert " done " in rows["split"] and "next: ./run.sh" in out and "train.lr=0.1" in out


def test_a_stage_alone_does_not_work_on_what_is_stale(home, capfd):
    for stage, maker in (("predict", "train small fold 0"), ("submit", "evaluate small")):
        setting = "train.lr=0.1" if stage == "predict" else "evaluate.bootstrap=200"
        assert run(home, stage, "--force", "--set", setting, config="small") == 2
        err = capfd.readouterr().err
        assert "[not_finished]" in err and maker in err and "stale" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "text", [b"id,fold\nx\n", "id,fold\nx,0\n".encode("utf-16"), b"fold,id\n0\n", b"nonsense"]
)
def test_folds_edited_into_nonsense_are_named_and_status_still_answers(copy, text, capfd):
    folds = Paths(copy, copy / "data").folds
    whole = folds.read_bytes()
    folds.write_bytes(text)
    assert run(copy, "status", config="small") == 0
    assert [
        line
        for line in capfd.readouterr().out.splitlines()
        if line.startswith("  split") and "damaged" in line
    ]
    assert run(copy, "train", config="small") == 2
    err = capfd.readouterr().err
    assert "folds.csv" in err and err.count("\n") == 1 and "split --force --config" in err
    folds.write_bytes(whole)
    assert not_done(copy) == set(), "a typo costs no training"


def test_edited_folds_make_everything_below_stale_and_nothing_above(copy, capfd):
    paths = Paths(copy, copy / "data")
    rows = paths.folds.read_text().splitlines()
    first, rest = rows[1].rsplit(",", 1)
    paths.folds.write_text("\n".join([rows[0], f"{first},{1 - int(rest)}", *rows[2:]]) + "\n")
    assert not_done(copy) == {"train", "evaluate"}
    assert run(copy, config="small") == 0
    assert "folds.csv changed" in capfd.readouterr().out
    assert not_done(copy) == set()
    assert paths.folds.read_text().splitlines()[1] == f"{first},{1 - int(rest)}", (
        "the user's folds are kept"
    )


def test_an_edited_decision_is_kept_and_changes_the_submission_only(copy):
    paths = Paths(copy, copy / "data")
    text = paths.decision("small").read_text()
    decision = json.loads(text) | {"threshold": 0.99}
    assert run(copy, config="small") == 0
    paths.decision("small").write_text(json.dumps(decision))
    assert not_done(copy) == {"submit"}
    assert run(copy, config="small") == 0
    assert json.loads(paths.decision("small").read_text())["threshold"] == 0.99


def test_a_changed_image_is_noticed_and_a_touched_one_is_not(copy):
    image = next((copy / "data" / "train" / "normal").glob("normal*[0-9)].png"))
    assert run(copy, config="small") == 0
    os.utime(image)
    assert not_done(copy) == set(), "copying a data folder is no reason to train again"
    image.write_bytes(next((copy / "data" / "train" / "benign").glob("*).png")).read_bytes())
    assert "prepare" in not_done(copy)


@pytest.mark.parametrize(
    "artifact, stage",
    [
        (lambda p: p.images(Experiment(image_size=64, resize="stretch")), "prepare"),
        (lambda p: p.oof("small"), "predict"),
        (lambda p: p.checkpoint("small", 1, "last"), "train"),
        (lambda p: p.submission("small"), "submit"),
        (lambda p: p.truth, "prepare"),
    ],
)
def test_a_truncated_or_absent_artifact_is_not_taken_for_done(copy, artifact, stage):
    assert run(copy, config="small") == 0
    path = artifact(Paths(copy, copy / "data"))
    whole = path.read_bytes()
    os.truncate(path, len(whole) // 2) if stage != "submit" else path.unlink()
    assert stage in not_done(copy)
    path.unlink(missing_ok=True)
    assert stage in not_done(copy)
    assert run(copy, config="small") == 0
    assert not_done(copy) == set()


def test_a_stage_that_began_and_did_not_end_is_not_taken_for_done(copy):
    paths = Paths(copy, copy / "data")
    record = paths.record("predict", "small")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"ended": None}))
    assert states(copy)["predict small"] == "begun"
    record.write_text(record.read_text()[:40])
    assert states(copy)["predict small"] == "missing"
    assert run(copy, config="small") == 0 and not_done(copy) == set()


def test_parts_of_an_unfinished_predict_are_used_again_only_under_the_same_settings(
    copy, monkeypatch
):
    """Stopped after one fold: the same command goes on with the other; another checkpoint or view
    starts anew."""
    from src.pipeline import networks

    paths, asked, real = Paths(copy, copy / "data"), [], networks.predict_proba
    assert run(copy, config="small") == 0

    def stopped(*arguments):
        asked.append(1)
        # a fold asks three times: held-out images, these again with rounded weights, test images
        if len(asked) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(networks, "predict_proba", stopped)
    views = ("--set", "predict.tta=[identity]")
    assert main(line(copy, "predict", config="small") + list(views)) == 130
    assert len(list(paths.predictions("small").glob("part_*"))) == 2
    assert main(line(copy, "predict", config="small") + list(views)) == 0
    assert len(asked) == 7, "two parts were there, two were made"
    del asked[:]
    assert main(line(copy, "predict", config="small")) == 130
    monkeypatch.setattr(networks, "predict_proba", lambda *given: asked.append(1) or real(*given))
    del asked[:]
    assert main(line(copy, "predict", config="small") + list(views)) == 0
    assert len(asked) == 6, "the parts of other views are not used"


def test_force_redoes_one_stage_and_keeps_the_old_result(copy):
    assert run(copy, config="small") == 0
    paths = Paths(copy, copy / "data")
    before = paths.oof("small").stat().st_mtime_ns
    assert run(copy, "predict", "--force", config="small") == 0
    assert paths.oof("small").stat().st_mtime_ns > before and list(paths.old.rglob("oof.npz"))


def test_without_a_sample_everything_but_the_submission_works(copy, capfd):
    (copy / "data" / "sample_submission.csv").unlink()
    assert run(copy, config="small") == 0
    out, err = capfd.readouterr()
    assert (
        "no sample submission, so no submission" in out
        and "everything but the submission works" in err
    )
    assert run(copy, "submit", config="small") == 2
    assert "[no_sample]" in capfd.readouterr().err


def test_predicting_never_asks_for_weights(copy):
    """The file that the training started from is gone."""
    import torch

    from src.parts import building

    small = load(copy / "configs" / "small.yaml")
    file = copy / "lcnet_035.pth"
    torch.save(
        building.build(small.experiment, 3, pretrained=False).body.encoder.state_dict(), file
    )
    weights = ["--set", f"model.encoder_weights={file}", "--set", "train.epochs=1"]
    assert main(line(copy, "train", config="small") + weights) == 0
    from src.pipeline.jobs import predict_job
    from src.stages import predict

    config, paths = (
        load(
            copy / "configs" / "small.yaml",
            [*SETTINGS, f"model.encoder_weights={file}", "train.epochs=1"],
        ),
        Paths(copy, copy / "data"),
    )
    file.unlink()
    predict.run(predict_job(config, paths), config, paths)


def test_twins_that_were_torn_apart_by_hand_are_told(copy, capfd):
    paths = Paths(copy, copy / "data")
    index = read_index(paths, "train")
    twin = index[index["group"].duplicated()]["id"].iloc[0]
    lines = paths.folds.read_text().splitlines()
    paths.folds.write_text(
        "\n".join(
            f"{twin},{1 - int(line[-1])}" if line.rsplit(",", 1)[0] == twin else line
            for line in lines
        )
        + "\n"
    )
    assert run(copy, config="small") == 0
    assert "have a near-duplicate in another fold" in capfd.readouterr().err


def test_the_record_beside_the_submission_says_what_made_it(home):
    record = json.loads(Paths(home, home / "data").record("submit", "ensemble").read_text())
    assert record["settings"]["other"]["model.arch"] == "linknet" and record[
        "score"
    ] == pytest.approx(
        json.loads(Paths(home, home / "data").metrics("ensemble").read_text())["nested"]["score"]
    )
    assert {"decision", "members", "sha256", "commit", "versions"} <= record.keys()


def test_no_test_set_is_no_hindrance_until_the_submission(copy, capfd):
    shutil.rmtree(copy / "data" / "test")
    (copy / "data" / "sample_submission.csv").unlink()
    assert run(copy, config="small") == 0
    assert "no test set, so no submission" in capfd.readouterr().out
    assert run(copy, "submit", config="small") == 2
    assert "[no_test_set]" in capfd.readouterr().err


def test_a_bad_test_image_is_skipped_and_still_has_its_row(copy, capfd):
    bad = next((copy / "data" / "test").glob("*.png"))
    os.truncate(bad, 200)
    assert run(copy, config="small") == 2
    err = capfd.readouterr().err
    assert bad.name in err and "[data_unreadable]" in err
    assert main(line(copy, config="small") + ["--set", "data.on_error=skip"]) == 0
    with open(Paths(copy, copy / "data").submission("small"), newline="") as file:
        rows = {r["id"]: r for r in csv.DictReader(file)}
    with open(copy / "data" / "sample_submission.csv", newline="") as file:
        assert list(rows) == [r["id"] for r in csv.DictReader(file)]
    assert (
        rows[bad.stem] == {"id": bad.stem, "label": "normal", "rle": "-1"}
        and bad.stem in capfd.readouterr().err
    )


def test_a_holdout_is_one_fold(copy, capfd):
    assert main(line(copy, config="small") + ["--set", "split.scheme=holdout"]) == 0
    paths = Paths(copy, copy / "data")
    assert len(Predictions.load(paths.oof("small"), CLASSES)) < len(read_index(paths, "train"))


def test_another_ensemble_is_a_member_by_its_predictions(copy, capfd):
    (copy / "configs" / "outer.yaml").write_text("members: [small, ensemble]\n")
    assert run(copy, config="outer") == 0, capfd.readouterr().err
    assert Paths(copy, copy / "data").submission("outer").is_file()
    (copy / "configs" / "itself.yaml").write_text("members: [small, itself]\n")
    assert run(copy, config="itself") == 2
    assert "[bad_member]" in capfd.readouterr().err


def test_evaluate_calls_a_greedy_ensemble_no_better_than_its_left_out_score(copy):
    """oof.npz holds each fold mixed by weights that did not see it."""
    paths = Paths(copy, copy / "data")
    found = json.loads(paths.weights("ensemble").read_text())["label"]
    index = read_index(paths, "train")
    folds = read_folds(paths, index["id"])
    oof = Predictions.load(paths.oof("ensemble"), CLASSES).select(index["id"])
    members = {
        m: Predictions.load(paths.oof(m), CLASSES).select(index["id"]) for m in ("small", "other")
    }
    for k in (0, 1):
        times = found["times_without"][str(k)]
        mean = sum(times[m] * members[m].label[folds == k] for m in members) / sum(times.values())
        assert np.allclose(oof.label[folds == k], mean, atol=1e-6)


def test_a_letterboxed_networks_masks_come_back_to_the_whole_image(copy, monkeypatch):
    """A network that answers with the true letterboxed mask is right at original size, in predict
    and in train's validation."""
    import torch

    from src.data.rle import Truth
    from src.pipeline import networks
    from src.scoring.images import score_predictions
    from src.stages import train

    config, paths = load(copy / "configs" / "other.yaml", SETTINGS), Paths(copy, copy / "data")
    index = read_index(paths, "train")
    masks = np.load(paths.masks(Experiment(image_size=96, resize="letterbox"))).astype(np.float16)
    label = np.full((len(index), 3), 1 / 3, np.float32)
    monkeypatch.setattr(networks, "predict_proba", lambda *_: (masks, label))
    predictions = networks.predict_images(
        None,
        config,
        masks,
        index,
        np.arange(len(index)),
        torch.device("cpu"),
        [],
    )
    truth = Truth.load(paths.truth).subset(index["id"])
    score = score_predictions(
        predictions,
        np.zeros(len(index), int),
        truth,
        config.competition,
    )
    lesion = score["per_image"]["true_area"] > 0
    assert score["per_image"]["dice"][lesion].mean() > 0.9
    data = train.FoldData.load(config, paths, 0)
    answers = masks[data.held_out], label[data.held_out]
    monkeypatch.setattr(networks, "predict_proba", lambda *_: answers)
    assert train.validate(None, data, config, torch.device("cpu"))["dice"] > 0.9


def test_a_team_mates_folder_is_a_member(copy, tmp_path, capfd):
    paths = Paths(copy, copy / "data")
    friend = tmp_path / "friend"
    friend.mkdir()
    shutil.copy(paths.oof("small"), friend)
    shutil.copy(paths.test("small"), friend)
    (copy / "configs" / "team.yaml").write_text(f"members: [small, {friend}]\n")
    assert run(copy, config="team") == 0, capfd.readouterr().err
    assert paths.submission("team").is_file()
