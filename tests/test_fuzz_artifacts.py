"""Artifacts mutated at random: whatever stands in them, a command is done or says in one line what
is wrong.

FUZZ=1 FUZZ_EXAMPLES=3000 python -m pytest tests/test_fuzz_artifacts.py
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_hostile_artifacts import home, line, loaded  # noqa: F401
from zygote import Zygote

from src.core.console import InputError
from src.core.paths import Paths
from src.core.settings import Experiment
from src.data import tables
from src.data.predictions import Predictions
from src.data.rle import Truth
from src.kaggle_io import log
from src.parts.postprocess import Decision
from src.pipeline import records
from src.tools import infer

MANY = bool(os.environ.get("FUZZ"))
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 300))
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
CLASSES = ["benign", "malignant", "normal"]
MEMORY = 2 * 10**9


def profile(few: int):
    return settings(max_examples=EXAMPLES if MANY else few, derandomize=not MANY, **QUIET)


# -------------------------------------------------------------------------------------- mutations

VALUES = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        1,
        -1,
        10**30,
        -(10**400),
        0.5,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        "../../x",
        "\0",
        "é" * 300,
        [],
        {},
        [1],
        [[]],
        {"a": 1},
        [None, "a", 2],
        {"mask": {}, "label": 1},
    ]
)


def places(value, at: tuple = ()) -> list[tuple]:
    """The way to every value within a JSON value."""
    found = [at]
    pairs = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in pairs:
        found += places(inner, (*at, key))
    return found


def put(value, at: tuple, new):
    """The value with another one at that place; `...`: with nothing there."""
    if not at:
        return {} if new is ... else new
    changed = dict(value) if isinstance(value, dict) else list(value)
    if len(at) == 1 and new is ...:
        del changed[at[0]]
    else:
        changed[at[0]] = put(changed[at[0]], at[1:], new)
    return changed


@st.composite
def other_json(draw, text: str) -> bytes:
    value = json.loads(text)
    for _ in range(draw(st.integers(1, 2))):
        value = put(value, draw(st.sampled_from(places(value))), draw(VALUES | st.just(...)))
    return json.dumps(value).encode()


@st.composite
def other_bytes(draw, data: bytes) -> bytes:
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        much = draw(st.integers(0, 12))
        way = draw(st.sampled_from(["cut", "put", "drop", "insert", "double"]))
        if way == "cut":
            del data[at:]
        elif way == "put":
            data[at : at + much] = draw(st.binary(min_size=much, max_size=much))
        elif way == "drop":
            del data[at : at + much]
        elif way == "insert":
            data[at:at] = draw(
                st.binary(max_size=12)
                | st.sampled_from(
                    [b"[" * 10**5, b'"', b"\0", b",", b"\n", b"9" * 5000, b"-", b"e999"]
                )
            )
        else:
            data[at:at] = bytes(data[at : at + 40 * much])
    return bytes(data)


@st.composite
def other_table(draw, text: str) -> bytes:
    rows = [row.split(",") for row in text.splitlines()]
    for _ in range(draw(st.integers(1, 3))):
        row = rows[draw(st.integers(0, len(rows) - 1))]
        way = draw(st.sampled_from(["cell", "cell", "cell", "add", "drop", "row"]))
        at = draw(st.integers(0, max(0, len(row) - 1)))
        if way == "cell" and row:
            row[at] = draw(
                st.sampled_from(
                    [
                        "",
                        "-1",
                        "-2",
                        "0",
                        "7",
                        "9" * 30,
                        "1.5",
                        "nan",
                        "inf",
                        "x",
                        '"',
                        "\0",
                        "é",
                        "٣",
                        " 1 ",
                        "test",
                        "train",
                        "1e5",
                    ]
                )
            )
        elif way == "add":
            row.insert(at, "1")
        elif way == "drop" and row:
            del row[at]
        elif way == "row":
            rows.insert(draw(st.integers(0, len(rows))), list(row))
    return "\n".join(map(",".join, rows)).encode()


def spoilt(file: Path):
    """A strategy for other contents of this file, of its own kind or any."""
    data = file.read_bytes()
    kinds = [other_bytes(data)]
    if file.suffix == ".json":
        kinds += [other_json(data.decode())] * 3
    elif file.suffix == ".csv":
        kinds += [other_table(data.decode())] * 3
    return st.one_of(*kinds)


# ------------------------------------------------------------------------------ the readers alone

READERS = {
    "artifacts/predictions/both/oof.npz": lambda p: Predictions.load(p.oof("both"), CLASSES),
    "artifacts/prepared/truth.npz": lambda p: Truth.load(p.truth),
    "artifacts/prepared/images_64.npy": lambda p: tables.open_store(
        p.images(Experiment(image_size=64, resize="stretch")), 24, 64
    ),
    "artifacts/prepared/index.csv": lambda p: tables.read_index(p),
    "artifacts/folds.csv": lambda p: tables.read_folds(p, tables.read_index(p, "train")["id"]),
    "artifacts/predictions/both/metrics.json": lambda p: records.read_metrics(p, "both"),
    "artifacts/predictions/both/weights.json": lambda p: records.read_weights(
        p, "both", ["small", "otsu"]
    ),
    "artifacts/predictions/both/decision.json": lambda p: Decision.load(p.decision("both")),
    "bundle.json": infer.check,
    "submissions/log.csv": lambda p: log.read(p.submission_log),
}


@pytest.fixture(scope="module")
def spare(home, tmp_path_factory) -> Path:  # noqa: F811
    """The finished run, with a manifest and a log; whatever is spoilt in it is put back."""
    spare = Path(shutil.copytree(home, tmp_path_factory.mktemp("spare") / "home"))
    network = {
        "folds": [0, 1],
        "views": ["identity"],
        "image_size": 64,
        "weights": {"0": "float16"},
        "pace": 0.1,
        "versions": {"torch": "2"},
    }
    about = {
        "name": "both",
        "version": 1,
        "classes": CLASSES,
        "score": 0.5,
        "metrics": {"dice": 0.5},
        "mask_size": 64,
        "networks": {"small": network},
        "files": {},
    }
    (spare / "bundle.json").write_text(json.dumps(about))
    log.edit(
        spare / "submissions" / "log.csv",
        lambda rows: rows.extend(
            [log.Row("2026-11-20T10:00:00Z", "s", "a.csv", cv=0.5, public=0.4)] * 3
        ),
    )
    return spare


@pytest.mark.parametrize("name", READERS)
def test_a_reader_gives_what_it_promises_or_an_input_error(spare, name):
    file, paths = spare / name, Paths(spare, spare / "data")
    whole = file.read_bytes()

    @profile(25)
    @given(spoilt(file))
    def fuzz(data: bytes) -> None:
        file.write_bytes(data)
        try:
            READERS[name](paths)
        except InputError as error:
            assert error.code, error

    try:
        fuzz()
    finally:
        file.write_bytes(whole)


# --------------------------------------------------------------------------------- whole commands

ALL = "artifacts/predictions/both"
FILES = {  # what is spoilt, and commands that read it
    "artifacts/folds.csv": ("train", "split"),
    "artifacts/prepared/index.csv": ("split", "submit"),
    "artifacts/prepared/truth.npz": ("evaluate", "ensemble"),
    "artifacts/prepared/report.json": ("submit", "prepare"),
    "artifacts/prepared/images_64.npy": ("predict", "export"),
    f"{ALL}/oof.npz": ("evaluate",),
    f"{ALL}/test.npz": ("submit",),
    f"{ALL}/metrics.json": ("submit", "bundle"),
    f"{ALL}/decision.json": ("submit",),
    f"{ALL}/weights.json": ("submit", "bundle"),
    "artifacts/predictions/small/oof.npz": ("ensemble",),
    "submissions/both.json": ("submit",),
    "submissions/log.csv": ("submissions",),
    "artifacts/models/small/fold0/log.csv": ("train",),
    "artifacts/models/small/fold0/last.pt": ("predict", "export"),
}
RECORDS = {  # those by which src/core/freshness.py knows what is up to date
    "artifacts/fingerprints.json": ("submit",),
    "artifacts/prepared/stage.json": ("prepare",),
    "artifacts/prepared/stage_pixels_64.json": ("prepare",),
    "artifacts/stage_split.json": ("split",),
    "artifacts/models/small/fold0/stage.json": ("train",),
    "artifacts/predictions/small/stage.json": ("predict", "bundle"),
    f"{ALL}/stage.json": ("ensemble",),
    f"{ALL}/stage_evaluate.json": ("evaluate", "bundle"),
}


QUICK = {"submit", "submissions", "split", "export"}  # what the suite has time for; FUZZ takes all


@pytest.fixture(scope="module")
def zygote():
    slow = ["pandas", "cv2", "src.stages.submit", "src.stages.split", "src.tools.submissions"]
    slow += (
        [
            "src.stages.train",
            "src.stages.predict",
            "src.stages.evaluate",
            "src.stages.ensemble",
            "src.stages.prepare",
            "src.tools.bundle",
            "src.tools.export",
        ]
        if MANY
        else []
    )
    with Zygote(*slow) as running:
        yield running


@pytest.mark.parametrize("files", [FILES, RECORDS], ids=["artifacts", "records"])
def test_a_command_is_done_or_says_in_one_line_what_is_wrong(spare, zygote, tmp_path, files):
    asked = sorted(
        (name, word) for name, words in files.items() for word in words if MANY or word in QUICK
    )

    @profile(6)
    @given(st.data())
    def fuzz(data) -> None:
        name, word = data.draw(st.sampled_from(asked))
        work = tmp_path / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(spare, work)
        content = data.draw(spoilt(work / name))
        if data.draw(st.booleans()) and len(content) < (size := (work / name).stat().st_size):
            content = content.ljust(size)  # so that its length does not betray it
        (work / name).write_bytes(content)
        more = (
            data.draw(st.sampled_from([[], ["--force"]]))
            if word not in ("submissions", "export", "bundle")
            else []
        )
        for words in (["status"], [word, *more]):
            answer = zygote.run(
                line(
                    work,
                    *words,
                    config="both"
                    if word in ("ensemble", "submit", "evaluate", "bundle", "submissions")
                    else "small",
                ),
                cwd=work,
                timeout=60,
            )
            assert answer.is_civil() and not answer.timed_out and answer.peak < MEMORY, (
                name,
                words,
                answer,
            )

    fuzz()
