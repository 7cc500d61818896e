"""submissions and its log: tables that spreadsheets touched, two writers at once, results that come
out later, and what is shown without Kaggle."""

from __future__ import annotations

import csv
import multiprocessing
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from conftest import refused
from PIL import Image
from scipy.stats import spearmanr

from src.cli import parse
from src.config.load import Config
from src.core.console import InputError, StageError
from src.core.paths import Paths
from src.core.settings import Competition, Experiment
from src.kaggle_io import log, plot
from src.kaggle_io.client import RemoteSubmission
from src.kaggle_io.log import COLUMNS, Row
from src.tools import submissions

SLUG = "aio-medical-image"


def row(n: int, cv: float | None = 0.8, public: float | None = 0.79, **more) -> Row:
    fields = {"competition": SLUG, "file": f"e{n}.csv", "sha256": f"{n:064x}", "cv": cv}
    fields |= {"time": f"2026-11-{n:02d}T10:00:00Z", "message": f"try {n}", "public": public}
    fields |= {"status": "complete", "ref": str(100 + n), "commit": "abc"}
    if cv is not None:
        fields |= {"cv_low": cv - 0.03, "cv_high": cv + 0.02}
    return Row(**(fields | more))


def sent(n: int, **more) -> RemoteSubmission:
    fields = {"ref": str(100 + n), "when": f"2026-11-{n:02d}T10:00:03Z", "file": f"e{n}.csv"}
    fields |= {"message": f"try {n}", "status": "complete", "public": 0.79}
    return RemoteSubmission(**(fields | more))


class Listing:
    """A Kaggle that only lists; an exception in place of the list is raised."""

    def __init__(self, answer):
        self.answer = answer

    def submissions(self, slug: str) -> list[RemoteSubmission]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def paths(tmp_path) -> Paths:
    return Paths(tmp_path, tmp_path / "data")


@pytest.fixture
def show(paths, monkeypatch, capsys):
    """show([…RemoteSubmission]) -> what `./run.sh submissions` prints when Kaggle lists this; an
    exception: when it cannot be asked."""

    def show(listed, *words: str, slug: str | None = SLUG) -> str:
        monkeypatch.setattr(submissions, "Kaggle", lambda: Listing(listed))
        assert (
            submissions.run(
                parse(["submissions", *words]),
                Config("exp", Path("exp.yaml"), Competition(slug=slug), experiment=Experiment()),
                paths,
            )
            == 0
        )
        return capsys.readouterr().out

    return show


def write(paths: Paths, *rows: Row) -> None:
    log.edit(paths.submission_log, lambda kept: kept.extend(rows))


# ----------------------------------------------------------------------------------------- the file


def test_what_is_written_is_read_again(paths):
    rows = [
        row(1),
        row(
            2,
            None,
            None,
            status="error",
            error="Submission must have 10 rows",
            message='a "quoted", message; ümläut',
        ),
        row(3, 1 / 3, public=0.1, private=0.2),
    ]
    write(paths, *rows)
    assert log.read(paths.submission_log) == rows
    head = paths.submission_log.read_text().split("\n")[0]
    assert (
        head
        == ",".join(COLUMNS)
        == (
            "time,competition,file,sha256,message,cv,cv_low,cv_high,public,private,status,ref,commit,error"
        )
    )


@pytest.mark.parametrize("delimiter, comma", [(",", False), (";", True), ("\t", False)])
def test_a_spreadsheet_may_have_had_it(paths, delimiter, comma):
    """A byte order mark, moved columns, one more, semicolons with decimal commas, CRLF and empty
    lines at the end."""
    rows = [row(1, message="one; two, three\tfour"), row(2, None)]
    columns = ["my notes", *reversed(COLUMNS)]
    paths.submissions.mkdir()
    with open(paths.submission_log, "w", newline="", encoding="utf-8-sig") as lines:
        table = csv.writer(lines, delimiter=delimiter)
        table.writerow(columns)
        for r in rows:
            cells = [
                "good one",
                *(
                    ""
                    if (v := getattr(r, c)) is None
                    else str(v).replace(".", ",")
                    if comma and isinstance(v, float)
                    else v
                    for c in reversed(COLUMNS)
                ),
            ]
            table.writerow(cells)
        table.writerows([[""] * len(columns)] * 2)
    assert [replace(r, extra={}) for r in log.read(paths.submission_log)] == rows
    log.edit(paths.submission_log, lambda rows: rows.append(row(3)))
    again = log.read(paths.submission_log)
    assert [r.extra for r in again] == [{"my notes": "good one"}] * 2 + [{"my notes": ""}] and [
        r.cv for r in again
    ] == [0.8, None, 0.8], "a user's own column is kept"


HEAD = ",".join(COLUMNS)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (
            f"{HEAD}\n2026,c,f,s,m,0.8,,,high,,complete,1,,\n".encode(),
            "line 2 has 'high' under public",
        ),
        (f"{HEAD}\n\n2026,c,f,s,m,0.8\n".encode(), "line 3 has 6 cells instead of 14"),
        (f"{HEAD}\n2026,c,f,s,m,,,,,,done,1,,\n".encode(), "line 2 has 'done' under status"),
        (f"{HEAD}\n,c,f,s,m,,,,,,pending,1,,\n".encode(), "line 2 has no time"),
        (b"time,competition\n2026,c\n", "file, sha256"),
        (f"{HEAD},time\n".encode(), "with time"),
        (f'{HEAD}\n2026,c,f,s,"m,,,,,,pending,1,,\n'.encode(), "line 2 "),
        (f"{HEAD}\n2026,c,f,s,über,,,,,,pending,1,,\n".encode("latin-1"), "line 2 is not UTF-8"),
        (b"PK\x03\x04\xff\xfe", "line 1 is not UTF-8"),
    ],
)
def test_a_damaged_log_is_named_with_its_line_and_never_overwritten(paths, show, text, word):
    paths.submissions.mkdir()
    paths.submission_log.write_bytes(text)
    for attempt in (
        lambda: log.edit(paths.submission_log, lambda rows: rows.append(row(1))),
        lambda: show([sent(1)]),
    ):
        with refused("log_damaged", word, "log.csv"):
            attempt()
    assert paths.submission_log.read_bytes() == text


def _append(file: Path, number: int, start) -> None:
    start.wait()
    for i in range(10):
        new = row(1, ref=f"{number}-{i}")
        log.edit(file, lambda rows, new=new: rows.append(new))


def test_processes_that_write_at_once_lose_no_row(paths):
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    writers = [
        context.Process(target=_append, args=(paths.submission_log, n, start)) for n in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    assert sorted(r.ref for r in log.read(paths.submission_log)) == sorted(
        f"{n}-{i}" for n in range(4) for i in range(10)
    )


# ------------------------------------------------------------------------------------ Kaggle's list


def test_pending_rows_and_private_scores_are_filled_in(paths, show):
    write(
        paths,
        row(1, public=0.7),
        row(2, public=None, status="pending"),
        row(3, public=None, status="pending"),
        row(4, public=None, status="pending", competition="other"),
    )
    out = show(
        [
            sent(3, status="error", public=None, error="Submission must have 10 rows"),
            sent(2, public=0.81),
            sent(1, public=None, private=0.69),
            sent(4, public=0.1),
        ]
    )
    rows = log.read(paths.submission_log)
    assert [(r.status, r.public, r.private, r.error) for r in rows] == [
        ("complete", 0.7, 0.69, ""),
        ("complete", 0.81, None, ""),
        ("error", None, None, "Submission must have 10 rows"),
        ("pending", None, None, ""),
    ], "a known score stays, another contest's row too"
    assert "brought up to date from Kaggle: 3 rows" in out
    assert "rejected" in out
    assert "other (1)" in out
    assert log.result(row(5), sent(5, status="queued")).status == "pending", (
        "a word that nobody knows yet"
    )
    before = paths.submission_log.stat().st_mtime_ns
    assert (
        "brought up to date" not in show([sent(2, public=0.81)])
        and paths.submission_log.stat().st_mtime_ns == before
    ), "nothing new, nothing written"


def test_what_was_unconfirmed_is_found_by_file_and_message_or_dropped(paths, show, capsys):
    long = "a message that Kaggle cuts short because it is longer than what it has room for"
    recent = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    lost = {"public": None, "status": "unconfirmed", "ref": ""}
    write(
        paths,
        row(1),
        row(2, message=long, file="e1.csv", **lost),
        row(3, **lost),
        row(4, time=recent, **lost),
        row(5, file="e1.csv", message="try 1", **lost),
        row(6, file="e3.csv", message="another try", competition="other", **lost),
    )
    show(
        [
            sent(9, file="e1.csv", message=long[:60] + "…", public=0.83),
            sent(8, file="e3.csv", message="another try"),
            sent(1),
        ]
    )
    rows = {r.message: r for r in log.read(paths.submission_log)}
    assert rows.pop("another try").status == "unconfirmed", "of another contest"
    assert rows.keys() == {"try 1", long, "try 4"} and len(log.read(paths.submission_log)) == 4, (
        "a try that the list does not have is dropped, and one just made may still come"
    )
    assert (rows[long].ref, rows[long].public, rows[long].status) == ("109", 0.83, "complete")
    assert rows["try 4"].status == "unconfirmed"
    assert rows["try 1"].ref == "101", "an entry that another row has is not taken twice"


def test_what_was_sent_from_elsewhere_is_shown_without_cv(paths, show):
    write(paths, row(1, 0.8, 0.79), row(3, 0.82, 0.80))
    out = show(
        [sent(3, public=0.80), sent(2, file="mate.csv", message="by a mate", public=0.9), sent(1)]
    ).splitlines()
    lines = [line for line in out if line.startswith("  ") and ".csv" in line]
    assert [line.split()[3] for line in lines] == ["e1.csv", "mate.csv", "e3.csv"], "newest last"
    assert "0.9000*" in lines[1]
    assert "0.8200*" in lines[2]
    assert "-0.0200" in lines[2]
    assert "by a mate" in lines[1]
    assert any("1 without CV score" in line for line in out)
    assert len(log.read(paths.submission_log)) == 2


@pytest.mark.parametrize(
    "error", [InputError("no credentials", "~/.kaggle", "Put them there"), StageError("no network")]
)
def test_without_kaggle_the_log_is_shown_and_one_line_says_so(paths, monkeypatch, capsys, error):
    write(paths, row(1), row(2, public=None, status="pending"))
    monkeypatch.setattr(submissions, "Kaggle", lambda: Listing(error))
    config = Config("exp", Path("exp.yaml"), Competition(), experiment=Experiment())
    assert submissions.run(parse(["submissions"]), config, paths) == 0
    out, err = capsys.readouterr()
    assert f"{SLUG}: 2 submissions" in out, "the newest row's contest where nobody names it"
    assert all(word in out for word in ("e1.csv", "0.7900", "pending"))
    assert "submissions again" in out.splitlines()[-1]
    assert err.count("\n") == 1 and "log alone" in err and str(error)[:10] in err


def test_nothing_sent_yet(paths, show):
    assert "nothing was sent yet" in show([], slug=None) and "submit --send" in show([], slug=None)
    assert f"nothing was sent to {SLUG} yet" in show([])
    assert "nothing was sent to another yet" in show([], "--competition", "another")
    assert not paths.submissions.exists(), "looking leaves nothing behind"


# -------------------------------------------------------------------------------- table and picture


def test_the_rank_agreement_is_spearmans(paths):
    rng = np.random.default_rng(0)
    cv, public = rng.integers(70, 76, 9) / 100, rng.integers(70, 76, 9) / 100
    rows = [row(n + 1, c, p) for n, (c, p) in enumerate(zip(cv, public))]
    assert f"{spearmanr(cv, public).statistic:+.2f}, from n = 9" in log.agreement(rows), "with ties"
    assert log.agreement(rows[:2]) == "" and log.agreement([row(n, 0.8) for n in range(1, 5)]) == ""
    twice = [*rows[:2], replace(rows[0], ref="999")]
    assert log.agreement(twice) == "", "the same bytes sent again are no third observation"
    assert "few" in log.agreement(rows)
    assert "few" not in log.agreement([row(n, 0.7 + n / 100, 0.6 + n / 100) for n in range(1, 13)])


@pytest.mark.parametrize(
    "rows",
    [
        [row(1)],
        [row(n, 0.7 + n / 100, 0.5 - n / 500, private=0.6 if n % 2 else None) for n in range(1, 7)],
        [row(n, 0.8, 0.8, cv_low=None, cv_high=None) for n in range(1, 29)],
    ],
    ids=["one", "far from the line", "all the same"],
)
def test_the_picture_shows_every_scored_row(paths, rows, monkeypatch):
    """Whatever the log holds, it can be drawn, with each number of the table at its point."""
    figures = []
    real = plot.canvas
    monkeypatch.setattr(plot, "canvas", lambda *size: figures.append(real(*size)) or figures[-1])
    rows = [row(30, None, 0.9), *rows, row(29, 0.8, None)]
    assert plot.draw(rows, SLUG, paths.submission_plot)
    axes = figures[0].axes[0]
    marks = {t.get_text(): t.xy for t in axes.texts if hasattr(t, "xy")}
    assert marks == {
        str(n): (r.cv, r.public) for n, r in enumerate(rows, 1) if None not in (r.cv, r.public)
    }
    low, high = axes.get_ylim()
    assert all(low < r.public < high for r in rows[1:-1])
    assert min(Image.open(paths.submission_plot).size) > 300
    assert not plot.draw([row(1, None), row(2, 0.8, None)], SLUG, paths.submission_plot)
