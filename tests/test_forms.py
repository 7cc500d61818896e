"""What a contestant may get wrong, or a contest may do otherwise, around the form of a submission:
one clear line, in time, and nothing decided in silence."""

from __future__ import annotations

import csv
import io
import zipfile

import cv2
import numpy as np
import pytest
from conftest import picture, refused, save
from dialects import SALT, STEMS, ellipse, kaggle, outline, world, written

from src.cli import parse
from src.config.load import load
from src.core.settings import Submission
from src.data.columns import find_id
from src.data.rle_dialect import detect
from src.parts.postprocess import Decision
from src.pipeline import jobs as stages
from src.submission import sample


def with_settings(w, text: str):
    """The world's config with other lines under submission."""
    file = w.config.file.parent / "competition.yaml"
    file.write_text(file.read_text().split("submission:")[0] + f"submission: {text}\n")
    return load(w.config.file)


# ------------------------------------------------------------------- run lengths of the train table


@pytest.mark.parametrize("order, first", [("column", 1), ("row", 0)])
def test_masks_of_one_size_that_is_smaller_than_the_images(tmp_path, order, first):
    """They fit into every image, so that only the lines tell."""
    files, texts = [], []
    for k in range(12):
        height, width = 180 + 7 * k, 230 - 9 * k
        big = ellipse((height, width), 0.3 + 0.03 * k, 0.7 - 0.04 * k, 0.2, 0.12)
        files.append(
            save(
                tmp_path / f"{k}.png",
                np.where(big, 200, picture(k, height, width) // 3).astype(np.uint8),
            )
        )
        small = cv2.resize(big.astype(np.uint8), (96, 96), interpolation=cv2.INTER_NEAREST)
        texts.append([written(small.astype(bool), order, first)])
    found = detect(texts, files, Submission(), several=False)
    assert (found["size"], found["order"], found["relative"]) == ([96, 96], order, False)
    assert found["first"] == first or "first" in found["assumed"]


@pytest.mark.parametrize("setting", ["order: row", "first_pixel: 0", "relative_starts: true"])
def test_a_setting_against_the_train_table_is_refused(tmp_path, setting):
    name, value = setting.split(": ")
    with refused("invalid_value", f"submission.{name}"):
        world(
            tmp_path,
            "id,rle\n{id},-1\n",
            SALT,
            "none",
            table={},
            **{name: {"row": "row", "0": 0, "true": True}[value]},
        )


def test_masks_are_handed_in_at_another_size_than_the_train_tables(tmp_path):
    w = world(tmp_path, "id,rle\n{id},-1\n", SALT, "none", table={}, size=[48, 64])
    assert w.facts() == {"order": "column", "first": 1, "relative": False}
    for stem, row in zip(STEMS, w.table()):
        mask, _ = w.meant(stem, (48, 64))
        assert (
            row["rle"] == "-1"
            and not mask.any()
            or np.array_equal(kaggle(row["rle"], 48, 64), mask)
        )


def test_the_train_tables_token_for_nothing_serves_a_sample_of_placeholders(tmp_path, capsys):
    w = world(tmp_path, "id,rle\n{id},1 1\n", SALT, "none", table={"token": "-1"})
    assert sum(r["rle"] == "-1" for r in w.table()) == 1
    assert "empty: -1 (as the train table's)" in capsys.readouterr().out


def test_more_rows_than_the_sample_are_said(tmp_path, capsys):
    w = world(tmp_path, "id,rle\n{id},-1\n", SALT, "none", table={"several": True})
    assert len(w.table()) > len(STEMS) and "more rows than the sample" in capsys.readouterr().out
    w.config = with_settings(w, "{row_per_component: false}")
    assert [r["id"] for r in w.table()] == STEMS


@pytest.mark.parametrize(
    "head, message", [("id,sex,diagnosis,rle", ""), ("id,kind,diagnosis,rle", "kind, diagnosis")]
)
def test_the_column_of_class_names_is_the_class(tmp_path, make_config, head, message):
    from test_bad_data import prepared

    data, config = tmp_path / "data", make_config()
    data.mkdir()
    with open(data / "train.csv", "w", newline="") as file:
        lines = csv.writer(file, delimiter=";")
        lines.writerow(head.split(","))
        for k, label in enumerate(("benign", "malignant", "benign")):
            save(data / "images" / f"i{k}.png", picture(k, 60, 80))
            lines.writerow(
                [f"i{k}", label if "kind" in head else k % 2, label, written(outline((60, 80), 0))]
            )
    if message:
        with refused("columns_alike", message, "table_columns"):
            prepared(data, tmp_path, config)
    else:
        index = prepared(data, tmp_path, config).index.read_text().splitlines()
        labels = [row["label"] for row in csv.DictReader(index)]
        assert labels == ["benign", "malignant", "benign"]


# --------------------------------------------------------------------------------------- the sample


def test_a_sample_that_is_not_understood_is_refused_before_anything_is_prepared(tmp_path):
    with refused("unknown_column", "label: severity"):
        world(tmp_path, "id,label,severity\n{id},normal,x\n")


def test_the_order_of_integers_is_said_to_be_assumed(tmp_path, capsys):
    world(tmp_path, "id,label\n{id},0\n").table()
    assert (
        "0 for benign, 1 for malignant, 2 for normal (assumed: in the order of data.classes)"
        in capsys.readouterr().out
    )
    world(tmp_path / "other", "id,label\n{id},1\n").table()
    assert "counted from 0" in capsys.readouterr().out


@pytest.mark.parametrize("column", ["Predicted", "prediction", "score"])
def test_zeros_may_be_classes_or_empty_masks(tmp_path, column):
    with refused("unknown_column", f"'{column}'"):
        world(tmp_path, f"Id,{column}\n{{id}},0\n", SALT, "none")
    w = world(tmp_path / "told", f"Id,{column}\n{{id}},0\n", SALT, "none", label=column)
    assert {r[column] for r in w.table()} == {"0", "1"}


@pytest.mark.parametrize(
    ("submission", "code", "word"),
    [
        ({"labels": {"benign": "0", "malignant": "1"}}, "invalid_value", "for normal"),
        (
            {"labels": {"benign": "0", "malignant": "1", "normal": "1"}},
            "invalid_value",
            "two classes",
        ),
        ({"rle": "id"}, "odd_columns", "submission.rle"),
        ({"boxes": "label", "box": "confidence xmin ymin"}, "invalid_value", "xmax or width"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, submission, code, word):
    with refused(code, word):
        world(tmp_path, "id,label\n{id},0\n", **submission)


def test_a_box_cannot_hold_a_label_of_two_words(tmp_path):
    classes = ["benign tumor", "normal"]
    with refused("invalid_value", "'benign tumor'", "submission.labels"):
        world(
            tmp_path,
            "id,PredictionString\n{id},\n",
            classes,
            box="label confidence xmin ymin xmax ymax",
        )


@pytest.mark.parametrize(
    "lines, alike", [("{id},1 1\n{id},1 1\n", True), ("{id},1 1\n{id},5 1\n", False)]
)
def test_an_id_twice_in_the_sample(tmp_path, lines, alike):
    if alike:
        with refused("id_twice", "submission.row_per_component: true"):
            world(tmp_path, f"id,rle\n{lines}", SALT, "none")
    w = world(tmp_path / "told", f"id,rle\n{lines}", SALT, "none", row_per_component=True)
    assert list(dict.fromkeys(r["id"] for r in w.table())) == STEMS


def test_run_lengths_of_a_large_image(tmp_path):
    """More than the 131,072 characters that csv allows a cell."""
    w = world(
        tmp_path,
        "id,rle\n{id},-1\n",
        SALT,
        "none",
        sizes=[(1400, 900)] * len(STEMS),
        decision=Decision(threshold=0.4),
    )
    noise = np.random.default_rng(0).random((len(STEMS), 384, 384)).astype(np.float16)
    w.predictions.mask = noise
    w.predictions.save(w.paths.test("exp"))
    found = w.table()
    assert max(len(r["rle"]) for r in found) > 131072
    assert np.array_equal(kaggle(found[0]["rle"], 1400, 900), w.meant(STEMS[0])[0])
    assert find_id(found[0]["rle"], set(STEMS)) is None


def test_two_files_that_look_like_the_sample(tmp_path):
    w = world(tmp_path, "id,label\n{id},normal\n", prepared=False)
    (w.paths.data / "sample_submission.csv").rename(w.paths.data / "stage1_sample_submission.csv")
    assert (
        sample.sample_file(w.config.competition, w.paths.data).name
        == "stage1_sample_submission.csv"
    )
    (w.paths.data / "SampleSubmission.zip").write_bytes(b"")
    found = sample.missing_sample_error(w.config.competition, w.paths.data)
    assert found.code == "several_samples" and "2 files" in str(found)
    assert "SampleSubmission.zip, stage1" in str(found)


@pytest.mark.parametrize("kind", ["cut", "spoilt", "utf16"])
def test_a_damaged_sample(tmp_path, kind):
    w = world(tmp_path, "id,label\n{id},normal\n", prepared=False)
    file = w.paths.data / "sample_submission.csv"
    text, code = file.read_text(), "not_a_table"
    if kind == "utf16":
        file.write_text(text, encoding="utf-16")
        code = "not_utf8"
    else:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("sample_submission.csv", text * 50)
        data = bytearray(packed.getvalue())
        data[60:100] = b"\xff" * 40
        file.unlink()
        file = file.with_suffix(".zip")
        file.write_bytes(data if kind == "spoilt" else packed.getvalue()[:-40])
    with refused(code, file.name):
        sample.read_sample(file, Submission())


# ---------------------------------------------------------------------------------------- freshness


def states(w, config=None) -> dict[str, stages.Job]:
    return {
        job.stage: job
        for job in stages.plan(config or w.config, w.paths)
        if job.stage in ("prepare", "submit") and not job.name.startswith("pixels")
    }


def test_how_masks_are_written_does_not_concern_prepare_where_they_are_files(tmp_path):
    w = world(tmp_path, "id,label,rle\n{id},normal,-1\n")
    w.run()
    assert states(w)["prepare"].state().done and states(w)["submit"].state().done
    other = with_settings(w, "{order: row}")
    assert states(w, other)["prepare"].state().done
    assert states(w, other)["submit"].state().why == "submission.order changed from None to row"


def test_a_zipped_sample_that_changed_is_noticed(tmp_path):
    w = world(tmp_path, "id,label\n{id},normal\n", prepared=False)
    text = (w.paths.data / "sample_submission.csv").read_text()
    (w.paths.data / "sample_submission.csv").unlink()

    def zipped(content: str) -> None:
        with zipfile.ZipFile(w.paths.data / "sample_submission.csv.zip", "w") as archive:
            archive.writestr("sample_submission.csv", content)

    from src.stages import prepare

    zipped(text)
    prepare.run(None, w.config, w.paths)
    assert states(w)["prepare"].state().done and [r["id"] for r in w.table()] == STEMS
    zipped("\n".join(text.split("\n")[:-3]) + "\n")
    assert states(w)["prepare"].state().why == "the sample of the submission changed"


def test_a_submission_of_the_other_kind_moves_away(tmp_path):
    w = world(tmp_path, "id,label\n{id},normal\n")
    w.run()
    assert w.file.is_file()
    w.config = with_settings(w, '{masks: "masks/{id}.png"}')
    w.run()
    assert w.paths.archive("exp").is_file()
    assert not w.file.exists()
    assert list(w.paths.old.rglob("exp.csv"))


def test_a_damaged_report_hinders_no_command(tmp_path):
    w = world(tmp_path, "id,rle\n{id},-1\n", SALT, "none", table={})
    w.paths.report.write_text("[]")
    assert states(w)["prepare"].state().kind == "damaged"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["predict", "--fold", "0"], "option_elsewhere"),
        (["status", "--parallel", "0"], "option_elsewhere"),
        (["train", "--parallel", "0"], "usage"),
        (["fetch", "--send"], "option_elsewhere"),
        (["submit", "--yes"], "option_elsewhere"),
        (["infer"], "usage"),
    ],
)
def test_options_that_mean_nothing_here(words, code):
    with refused(code):
        parse(words)


# ----------------------------------------------------------------------------- a folder of contests


def test_several_fetched_contests_are_told_apart(tmp_path, monkeypatch):
    from src.core import paths

    monkeypatch.setattr(paths, "INPUT", tmp_path)
    assert paths.contest_folder(None) == tmp_path
    assert paths.contest_folder("one") == tmp_path / "one"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / paths.FETCHED).write_text("{}")
        if name == "one":
            assert paths.contest_folder(None) == tmp_path / "one"
    with refused("several_contests", "one, two", "--data", "slug:"):
        paths.contest_folder(None)
    (tmp_path / "train").mkdir()  # images of one's own
    assert paths.contest_folder(None) == tmp_path


def test_test_images_that_are_elsewhere(tmp_path):
    w = world(tmp_path, "id,label\n{id},normal\n", prepared=False)
    from src.stages import prepare

    (w.paths.data / "test").rename(w.paths.data / "test_images")
    prepare.run(None, w.config, w.paths)
    assert [r["id"] for r in w.table()] == STEMS
    (w.paths.data / "test_images").rename(w.paths.data / "holdout")
    for sets in ([], ["data.on_error=skip"]):
        with refused("no_test_images", "9 images", "test/{id}, test_images/{id}", "data.test"):
            afresh = load(w.config.file, sets)
            stages.prepare_job(afresh, w.paths).redo()
            prepare.run(None, afresh, w.paths)
    prepare.run(None, load(w.config.file, ["data.test=holdout/{id}"]), w.paths)


def test_an_edited_submission_is_kept(tmp_path):
    w = world(tmp_path, "id,label\n{id},normal\n")
    w.run()
    w.file.write_text("mine")
    w.run()
    assert [f.read_text() for f in w.paths.old.rglob("exp.csv")] == ["mine"]


def test_a_zip_of_masks_needs_nothing_said_before_prepare(tmp_path):
    w = world(tmp_path, "id,label\n{id},normal\n", prepared=False)
    table = w.paths.data / "sample_submission.csv"
    with zipfile.ZipFile(w.paths.data / "sample_submission.zip", "w") as archive:
        archive.writestr("sample_submission.csv", table.read_text())
        for stem in STEMS:
            archive.writestr(
                f"masks/{stem}.png", cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes()
            )
    table.unlink()
    from src.pipeline.driver import _sample_wrong
    from src.stages import prepare

    assert _sample_wrong(w.config, w.paths) == ""
    prepare.run(None, w.config, w.paths)
    w.run()
    assert w.paths.archive("exp").is_file()
    assert states(w)["submit"].outputs == [w.paths.archive("exp")]
