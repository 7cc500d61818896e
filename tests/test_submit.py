"""submit: the sample's rows, order and columns, masks that read back, and one clear line for
everything that is wrong."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import refused
from test_evaluate import CLASSES, FEW, messy, perfect, world, write_table

from src.config.load import Config
from src.core.console import StageError
from src.core.paths import Paths
from src.core.settings import Classes, Competition, Experiment
from src.data.rle import decode
from src.parts.postprocess import Decision, apply
from src.pipeline.jobs import evaluate_job, submit_job
from src.stages import evaluate, submit
from src.submission import writer


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("evaluated") / "home"
    paths, labels, masks = world(home, tests=6)
    perfect(masks[:15], labels).save(paths.oof("exp"))
    messy([f"i{i}" for i in range(15, 21)]).save(paths.test("exp"))
    evaluate.run(evaluate_job(settings(), paths), settings(), paths)
    return home


@pytest.fixture
def ready(evaluated, tmp_path) -> Paths:
    """Predictions evaluated and ready to be submitted, to be spoilt."""
    home = Path(shutil.copytree(evaluated, tmp_path / "home"))
    return Paths(home, home / "data")


def settings(**competition) -> Config:
    return Config(
        "exp",
        Path("exp.yaml"),
        Competition(**({"evaluate": FEW} | competition)),
        experiment=Experiment(),
    )


def run(paths, **competition) -> list[dict]:
    config = settings(**competition)
    submit.run(submit_job(config, paths), config, paths)
    return list(csv.DictReader(open(paths.submission("exp"), newline="")))


@pytest.mark.parametrize("dialect", [{}, {"order": "row", "first_pixel": 0, "empty": "none"}])
def test_rows_decode_to_the_decided_masks(ready, dialect, capsys):
    Decision(min_area=0.05, agree="mask").save(ready.decision("exp"))
    rows = run(ready, submission=dialect)
    assert [r["id"] for r in rows] == [f"i{i}" for i in reversed(range(15, 21))]
    assert list(rows[0]) == ["id", "label", "rle"]
    predictions = messy([f"i{i}" for i in range(15, 21)])
    index = csv.DictReader(ready.index.read_text().splitlines())
    sizes = {r["id"]: (int(r["height"]), int(r["width"])) for r in index}
    counted = {"first" if k == "first_pixel" else k: v for k, v in dialect.items()}
    for row in rows:
        one = predictions.select([row["id"]])
        mask, label = apply(
            Decision(min_area=0.05, agree="mask"),
            one,
            0,
            sizes[row["id"]],
            Classes(CLASSES, "normal"),
        )
        assert np.array_equal(decode(row["rle"], *sizes[row["id"]], **counted), mask)
        assert row["label"] == CLASSES[label]
    out = capsys.readouterr().out
    assert "decision.json was edited" in out
    assert "CV score" in out.splitlines()[-1]
    assert "submissions/exp.csv" in out.splitlines()[-1]


def test_the_record_beside_it(ready):
    rows = run(ready)
    record = json.loads((ready.submissions / "exp.json").read_text())
    found = json.loads(ready.metrics("exp").read_text())
    assert record["score"] == found["nested"]["score"]
    assert record["interval"] == found["nested"]["intervals"]["score"]
    assert record["note"] == ""
    assert sum(record["labels"].values()) == record["rows"] == len(rows) == 6
    assert record["empty_masks"] == sum(r["rle"] == "-1" for r in rows)
    assert record["config"] == "exp"
    assert record["folds"] == ["0", "1", "2"]
    assert len(record["sha256"]) == 64
    assert submit_job(settings(), ready).state().done


def test_columns_in_another_order_with_other_names_and_fewer(ready):
    ids = [f"i{i}.png" for i in range(15, 21)]  # some contests write the file's name
    write_table(
        ready.data / "sample_submission.csv", ["mask", "image", "class"], [["", i, ""] for i in ids]
    )
    names = {"id": "image", "label": "class", "rle": "mask"}
    rows = run(ready, submission=names)
    assert list(rows[0]) == ["mask", "image", "class"] and [r["image"] for r in rows] == ids
    write_table(
        ready.data / "sample_submission.csv", ["image", "class"], [[i, ""] for i in ids[:3]]
    )
    with refused("no_column", "column mask", "image, class", "submission.rle"):
        run(ready, submission=names)
    assert [list(r) for r in run(ready)] == [["image", "class"]] * 3


@pytest.mark.parametrize(
    ("sample", "code", "words"),
    [
        ("id,label,rle,usage\ni15,normal,-1,x\n", "unknown_column", ("'usage'",)),
        ("id,finding,rle\ni15,?,-1\n", "unknown_column", ("'finding'", "label: finding")),
        (
            "id,label,rle\ni15,healthy,-1\n",
            "unknown_class",
            ("'label'", "healthy", "submission.labels"),
        ),
        ("id,label,class,rle\ni15,normal,normal,-1\n", "columns_alike", ("'label' and 'class'",)),
        ("", "empty_table", ()),
        ("id,label,rle\n", "empty_table", ("no rows",)),
        ("id\ni15\n", "odd_columns", ("are id ", "Expected")),
        ("id,label,rle\ni15,normal\n", "ragged_table", ("line 2 ",)),
        ("id,label,rle\ni15,normal,-1\ni15,normal,-1\n", "id_twice", ("i15",)),
        ("id,label,rle\ni15,normal,-1\nwho,normal,-1\n", "no_test_image", ("who",)),
    ],
)
def test_a_damaged_sample(ready, sample, code, words):
    (ready.data / "sample_submission.csv").write_text(sample)
    with refused(code, *words):
        run(ready)
    assert not ready.submission("exp").exists()


def test_what_is_missing_or_damaged_is_named(ready):
    def fails(code, *words):
        with refused(code, *words):
            run(ready)

    whole = ready.test("exp").read_bytes()
    ready.test("exp").write_bytes(whole[: len(whole) // 2])
    fails("predictions_damaged", "test.npz")
    ready.test("exp").unlink()
    fails("no_predictions", "./run.sh predict")
    only = messy([f"i{i}" for i in range(15, 21)])
    only.label = None
    only.save(ready.test("exp"))
    fails("no_such_answer", "'label'")
    messy([f"i{i}" for i in range(15, 20)]).save(ready.test("exp"))
    fails("predictions_ids_missing", "i20")
    ready.test("exp").write_bytes(whole)
    ready.metrics("exp").write_text("{}")
    fails("damaged_json", "metrics.json")
    ready.decision("exp").write_text('{"threshold": ')
    fails("damaged_json", "decision.json")
    (ready.data / "sample_submission.csv").unlink()
    fails("no_sample")


def test_no_test_set(tmp_path):
    paths, labels, masks = world(tmp_path)
    with refused("no_test_set"):
        run(paths)


def test_a_file_that_does_not_decode_to_what_was_meant_is_refused(ready, monkeypatch):
    monkeypatch.setattr(writer, "encode", lambda mask, *dialect: "1 7")
    with refused("not_as_meant", "do not decode", kind=StageError):
        run(ready)
    assert not ready.submission("exp").exists() and not list(ready.submissions.glob(".*"))
