"""submit: the sample's rows, order and columns, masks that read back, and one clear line for everything that is wrong."""
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_evaluate import CLASSES, FEW, messy, perfect, world, write_table

from src import evaluate, submit
from src.core.config import Config
from src.core.settings import Competition, Experiment
from src.core.console import InputError, StageError
from src.core.paths import Paths
from src.core.rle import decode
from src.core.stages import evaluate_job, submit_job
from src.parts import answers
from src.parts.postprocess import Decision, apply


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
    return Config("exp", Path("exp.yaml"), Competition(**({"evaluate": FEW} | competition)), experiment=Experiment())


def run(paths, **competition) -> list[dict]:
    config = settings(**competition)
    submit.run(submit_job(config, paths), config, paths)
    return list(csv.DictReader(open(paths.submission("exp"), newline="")))


@pytest.mark.parametrize("dialect", [{}, {"order": "row", "first": 0, "empty": "none"}])
def test_rows_decode_to_the_decided_masks(ready, dialect, capsys):
    Decision(min_area=0.05, agree="mask").save(ready.decision("exp"))
    rows = run(ready, submission=dialect)
    assert [r["id"] for r in rows] == [f"i{i}" for i in reversed(range(15, 21))] and list(rows[0]) == ["id", "label", "rle"]
    predictions = messy([f"i{i}" for i in range(15, 21)])
    sizes = {r["id"]: (int(r["height"]), int(r["width"])) for r in csv.DictReader(open(ready.index))}
    for row in rows:
        one = predictions.select([row["id"]])
        mask, label = apply(Decision(min_area=0.05, agree="mask"), one.mask[0], one.label[0], *sizes[row["id"]], CLASSES, "normal")
        assert np.array_equal(decode(row["rle"], *sizes[row["id"]], **dialect), mask) and row["label"] == CLASSES[label]
    out = capsys.readouterr().out
    assert "decision.json was edited" in out and "CV score" in out.splitlines()[-1] and "submissions/exp.csv" in out.splitlines()[-1]


def test_the_record_beside_it(ready):
    rows = run(ready)
    record = json.loads((ready.submissions / "exp.json").read_text())
    found = json.loads(ready.metrics("exp").read_text())
    assert record["score"] == found["honest"]["score"] and record["interval"] == found["honest"]["intervals"]["score"] and record["note"] == ""
    assert sum(record["labels"].values()) == record["rows"] == len(rows) == 6 and record["empty_masks"] == sum(r["rle"] == "-1" for r in rows)
    assert record["config"] == "exp" and record["folds"] == ["0", "1", "2"] and len(record["sha256"]) == 64
    assert submit_job(settings(), ready).state().done


def test_columns_in_another_order_with_other_names_and_fewer(ready):
    ids = [f"i{i}.png" for i in range(15, 21)]  # some contests write the file's name
    write_table(ready.data / "sample_submission.csv", ["mask", "image", "class"], [["", i, ""] for i in ids])
    names = {"id": "image", "label": "class", "rle": "mask"}
    rows = run(ready, submission=names)
    assert list(rows[0]) == ["mask", "image", "class"] and [r["image"] for r in rows] == ids
    write_table(ready.data / "sample_submission.csv", ["image", "class"], [[i, ""] for i in ids[:3]])
    with pytest.raises(InputError, match="no column mask; there are image, class.*submission.rle"):
        run(ready, submission=names)
    assert [list(r) for r in run(ready)] == [["image", "class"]] * 3


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ("id,label,rle,usage\ni15,normal,-1,x\n", "column 'usage' is not known"),
        ("id,finding,rle\ni15,?,-1\n", "column 'finding' is not known.*label: finding"),
        ("id,label,rle\ni15,healthy,-1\n", "column 'label' holds healthy, which is no class.*submission.labels"),
        ("id,label,class,rle\ni15,normal,normal,-1\n", "columns 'label' and 'class' both look like a class"),
        ("", "is empty"),
        ("id,label,rle\n", "has no rows"),
        ("id\ni15\n", "the columns are id.*Expected"),
        ("id,label,rle\ni15,normal\n", "line 2 has 2 cells instead of 3"),
        ("id,label,rle\ni15,normal,-1\ni15,normal,-1\n", "the same id twice: i15"),
        ("id,label,rle\ni15,normal,-1\nwho,normal,-1\n", "1 ids have no test image: who"),
    ],
)
def test_a_damaged_sample(ready, sample, message):
    (ready.data / "sample_submission.csv").write_text(sample)
    with pytest.raises(InputError, match=message):
        run(ready)
    assert not ready.submission("exp").exists()


def test_what_is_missing_or_damaged_is_named(ready):
    def fails(message):
        with pytest.raises(InputError, match=message):
            run(ready)

    whole = ready.test("exp").read_bytes()
    ready.test("exp").write_bytes(whole[: len(whole) // 2])
    fails("not readable as predictions.*test.npz|test.npz.*Expected an npz")
    ready.test("exp").unlink()
    fails("no predictions of the test images.*predict")
    only = messy([f"i{i}" for i in range(15, 21)])
    only.label = None
    only.save(ready.test("exp"))
    fails("column 'label' is asked for")
    messy([f"i{i}" for i in range(15, 20)]).save(ready.test("exp"))
    fails("1 ids have no prediction: i20")
    ready.test("exp").write_bytes(whole)
    ready.metrics("exp").write_text("{}")
    fails("not readable as metrics")
    ready.decision("exp").write_text('{"threshold": ')
    fails("decision.json")
    (ready.data / "sample_submission.csv").unlink()
    fails("no sample of the submission")


def test_no_test_set(tmp_path):
    paths, labels, masks = world(tmp_path)
    with pytest.raises(InputError, match="no test set"):
        run(paths)


def test_a_file_that_does_not_decode_to_what_was_meant_is_refused(ready, monkeypatch):
    monkeypatch.setattr(answers, "encode", lambda mask, *dialect: "1 7")
    with pytest.raises(StageError, match="do not decode"):
        run(ready)
    assert not ready.submission("exp").exists() and not list(ready.submissions.glob(".*"))
