"""submit --send with the real kaggle package against a server on this machine: what goes through,
what is refused, and that the log says nothing false."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest
from conftest import refused
from kaggle_server import KEY, ago
from test_submit import evaluated, settings  # noqa: F401
from test_submit import run as make_submission

from src.cli import parse
from src.core import console
from src.core.console import InputError, StageError
from src.core.paths import Paths
from src.kaggle_io import log, plot
from src.kaggle_io.client import Kaggle
from src.parts.postprocess import Decision
from src.tools import send, submissions

SLUG, DRAW = "aio-medical-image", plot.draw


@pytest.fixture(scope="module")
def written(evaluated) -> Path:  # noqa: F811
    """A home with a finished submission."""
    make_submission(Paths(evaluated, evaluated / "data"))
    return evaluated


@pytest.fixture
def paths(written, tmp_path) -> Paths:
    """A copy of it, to be sent and spoilt."""
    home = Path(shutil.copytree(written, tmp_path / "work"))
    return Paths(home, home / "data")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Minutes of waiting become parts of a second."""
    for name, value in {
        "PAUSES": (0.01, 0.02, 0.05),
        "LISTED_WITHIN": 0.3,
        "RECOVERED_WITHIN": 0.2,
        "SCORED_WITHIN": 0.5,
    }.items():
        monkeypatch.setattr(send, name, value)
    monkeypatch.setattr("src.kaggle_io.client.PAUSE", 0.01)
    monkeypatch.setattr("urllib3.util.retry.Retry.sleep", lambda *_: None)
    monkeypatch.setattr(plot, "draw", lambda *_: False)  # one test draws
    monkeypatch.setattr(
        console, "OF_CONTEST", ["--competition", SLUG]
    )  # as the command line leaves it


@pytest.fixture
def contest(server):
    return server.add(SLUG, title="AIO – Medical Image", scorer=lambda data: 0.8123)


def go(paths: Paths, *words: str, yes: bool = True) -> int:
    return send.run(
        parse(["submit", "--send", "--competition", SLUG, *(["--yes"] if yes else []), *words]),
        settings(),
        paths,
    )


def logged(paths: Paths) -> list[log.Row]:
    return log.read(paths.submission_log)


def spoil(paths: Paths, **changes) -> None:
    record = paths.record("submit", "exp")
    record.write_text(json.dumps(json.loads(record.read_text()) | changes))


def other_bytes(paths: Paths) -> None:
    """Another submission of the same name: somebody edited the decision."""
    Decision(threshold=0.6).save(paths.decision("exp"))
    make_submission(paths)


class Terminal:
    """Standard input with somebody at it."""

    def __init__(self, monkeypatch, answer: str):
        self.asked = []
        monkeypatch.setattr(sys, "stdin", self)
        monkeypatch.setattr("builtins.input", lambda text: self.asked.append(text) or answer)

    def isatty(self) -> bool:
        return True


# ---------------------------------------------------------------------------------- it goes through


def test_a_scored_submission_stands_in_the_log_beside_its_cv(paths, contest, monkeypatch, capsys):
    monkeypatch.setattr(plot, "draw", DRAW)
    contest.polls = 3
    contest.scorer = lambda data: (0.8123, 0.7001)
    assert go(paths, "-m", "first  try") == 0
    out, bytes_ = capsys.readouterr().out, paths.submission("exp").read_bytes()
    record = json.loads(paths.record("submit", "exp").read_text())
    assert [one["data"] for one in contest.submissions] == [bytes_]
    [row] = logged(paths)
    low, high = record["interval"]
    assert replace(row, time="") == log.Row(
        time="",
        competition=SLUG,
        file="exp.csv",
        sha256=hashlib.sha256(bytes_).hexdigest(),
        message="first try",
        cv=record["score"],
        cv_low=low,
        cv_high=high,
        public=0.8123,
        private=0.7001,
        status="complete",
        ref="41000000",
        commit=record["commit"] or "",
    )
    now = datetime.now(timezone.utc)
    assert abs((datetime.fromisoformat(row.time.replace("Z", "+00:00")) - now).total_seconds()) < 60
    lines = out.splitlines()
    assert "AIO – Medical Image" in out
    assert f"CV score {record['score']:.4f}" in out
    assert "5 of 5 submissions left today" in out
    assert "pending …" in out
    assert "closes at 2030-01-01" in out
    assert "public score 0.8123, private 0.7001, CV score" in lines[-2]
    assert "log.csv" in lines[-1]
    assert "log.png" in lines[-1]
    assert "submissions --competition" in lines[-1]
    assert paths.submission_plot.stat().st_size > 10_000
    assert KEY not in out + paths.submission_log.read_text()


def test_the_message_by_default_says_what_it_is(paths, contest):
    spoil(paths, commit="abc123+")
    go(paths)
    score = json.loads(paths.record("submit", "exp").read_text())["score"]
    message = f"exp, CV {score:.4f}, commit abc123+"
    assert contest.submissions[0]["description"] == message == logged(paths)[0].message


def test_a_zip_goes_where_the_record_says_so(paths, contest, monkeypatch):
    monkeypatch.setattr(send, "recheck", lambda *_: None)  # of the CSV's form, which this is not
    paths.archive("exp").write_bytes(b"PK a zip")
    spoil(paths, file="exp.zip", sha256=hashlib.sha256(b"PK a zip").hexdigest())
    assert go(paths) == 0
    assert contest.submissions[0]["data"] == b"PK a zip"
    assert contest.submissions[0]["fileName"] == "exp.zip" == logged(paths)[0].file


def test_what_was_sent_before_is_shown_with_its_cv(paths, contest, capsys):
    assert go(paths, "-m", "try 0") == 0
    [first], [entry] = logged(paths), contest.submissions
    log.edit(
        paths.submission_log,
        lambda rows: rows.extend(
            replace(first, ref=str(n), message=f"try {n}", sha256=f"{n:064x}", public=0.5 + n / 100)
            for n in range(1, 6)
        ),
    )
    contest.submissions[:0] = [
        entry | {"ref": n, "description": f"try {n}", "publicScore": f"{0.5 + n / 100}"}
        for n in range(1, 6)
    ]
    contest.submissions.append(
        entry
        | {"ref": 7, "fileName": "mate.csv", "description": "by a mate", "publicScore": "0.91"}
    )
    contest.daily = 20
    other_bytes(paths)
    capsys.readouterr()
    assert go(paths, "-m", "last") == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if "sent before, the last 5 of 7" in line)
    shown = lines[start + 2 : start + 7]
    assert ["try 2" in shown[0], "try 5" in shown[3], "mate.csv" in shown[4]] == [True] * 3
    assert "0.5500" in shown[3]
    assert f"{first.cv:.4f}" in shown[3]
    assert f"{first.cv:.4f}" not in shown[4]
    assert [line.split()[0] for line in shown] == list("34567") and "0.9100*" in shown[4], (
        "numbered and marked among all"
    )
    assert "13 of 20 submissions left" in "\n".join(lines), "six from here, one of a mate"


# ------------------------------------------------------------------------------------------- asking


@pytest.mark.parametrize(
    "answer, sent", [("y", True), ("Yes ", True), ("", False), ("n", False), ("what", False)]
)
def test_it_asks(paths, contest, monkeypatch, capsys, answer, sent):
    terminal = Terminal(monkeypatch, answer)
    assert go(paths, yes=False) == 0
    assert len(terminal.asked) == 1
    assert "[y/N]" in terminal.asked[0]
    assert len(contest.submissions) == sent
    assert len(logged(paths)) == sent
    assert ("not sent" in capsys.readouterr().out) != sent


def test_without_a_terminal_it_must_be_told(paths, contest, server, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with refused("nobody_to_ask", "--yes"):
        go(paths, yes=False)
    assert not contest.submissions and not server.seen


# ---------------------------------------------------------------------------- what must not be sent


def refuses(paths: Paths, contest, code: str, *words: str, kind=InputError, names=()) -> str:
    """`names`: what must stand in the error, besides its short name."""

    def file() -> bytes:
        return paths.submission_log.read_bytes() if paths.submission_log.is_file() else b""

    before, there = file(), len(contest.submissions)
    with refused(code, *names, kind=kind) as caught:
        go(paths, *words)
    new = file()[len(before) :].decode().splitlines()
    unsure = "the log calls it unconfirmed" in str(caught.value)
    assert (
        file().startswith(before)
        and sum("unconfirmed" in line for line in new) == unsure
        and len(new) <= unsure + (not before)
    ), "nothing is logged but what may be there"
    assert len(contest.submissions) == there, "nothing sent"
    return str(caught.value)


def test_only_the_file_that_was_written_and_checked(paths, contest, monkeypatch):
    whole = paths.submission("exp").read_bytes()
    paths.submission("exp").write_bytes(whole.replace(b"\n", b"\r\n"))
    refuses(paths, contest, "submission_edited", names=("exp.csv", "submit --force"))
    paths.submission("exp").unlink()
    refuses(paths, contest, "no_submission", names=("exp.csv", "submit --force"))
    paths.submission("exp").write_bytes(whole)
    spoil(paths, interval=None)
    refuses(paths, contest, "damaged_json", names=("exp.json",))
    paths.record("submit", "exp").unlink()
    refuses(paths, contest, "no_submission", names=("./run.sh submit",))


def test_it_is_checked_against_the_sample_again(paths, contest):
    """A contest's sample may have been replaced since the submission was written."""
    sample = paths.data / "sample_submission.csv"
    sample.write_text(sample.read_text().replace("i17", "i99"))
    refuses(paths, contest, "ids_missing", names=("i99",))


def test_the_same_bytes_twice_need_force(paths, contest):
    assert go(paths, "-m", "first") == 0
    assert "public 0.8123" in refuses(
        paths, contest, "sent_before", names=("'first'", "submit --send --force")
    )
    assert go(paths, "-m", "second", "--force") == 0
    assert [r.message for r in logged(paths)] == ["first", "second"]
    assert len({r.ref for r in logged(paths)}) == 2
    other_bytes(paths)
    assert go(paths, "-m", "third") == 0


def test_closed_full_or_not_entered(paths, contest):
    contest.deadline = ago(days=1)
    refuses(
        paths, contest, "kaggle_refuses", names=("400", "deadline has passed")
    )  # this one takes no late ones
    assert logged(paths) == []
    contest.deadline, contest.entered = datetime(2030, 1, 1), False
    refuses(paths, contest, "rules_not_accepted", names=(f"competitions/{SLUG}/rules",))
    contest.entered, contest.used = True, 5
    refuses(paths, contest, "none_left_today", names=("midnight UTC, in ",))
    contest.limits, contest.used = False, 0
    assert go(paths) == 0, "a server that does not say how many are left"


def test_a_damaged_log_stops_it_before_anything_is_sent(paths, contest, server):
    paths.submission_log.write_text("time,competition\n")
    refuses(paths, contest, "log_damaged", names=("line 1 ", "log.csv"))
    assert not server.seen


# ------------------------------------------------------------------------- what does not go through


@pytest.mark.parametrize(
    ("endpoint", "status", "kind", "code", "word"),
    [
        ("CreateSubmission", 403, InputError, "rules_not_accepted", "/rules"),
        ("GetCompetition", 404, InputError, "no_such_contest", SLUG),
        ("StartSubmissionUpload", 500, StageError, "unconfirmed", "500"),
    ],
)
def test_each_refusal_of_the_server_is_one_clear_line(
    paths, contest, server, endpoint, status, kind, code, word
):
    server.fault(endpoint, status)
    assert "\n" not in refuses(paths, contest, code, kind=kind, names=(word,))


def test_no_credentials(paths, contest, server, monkeypatch):
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name)
    assert "\n" not in refuses(paths, contest, "no_credentials")
    assert not server.seen


def test_an_upload_that_succeeds_and_is_not_listed_was_not_accepted(paths, contest):
    contest.lost = True
    assert "unconfirmed" in refuses(paths, contest, "unconfirmed", "-m", "mine", kind=StageError)
    contest.lost = False
    refuses(
        paths, contest, "sent_before", "-m", "mine", names=("not confirmed by Kaggle",)
    )  # it may be there, and the list late
    assert go(paths, "-m", "mine", "--force") == 0
    contest.lost = True
    refuses(
        paths, contest, "unconfirmed", "-m", "mine", "--force", kind=StageError
    )  # an older entry of the same file and message is no proof


def test_an_entry_of_a_mate_that_came_meanwhile_is_not_taken_for_ours(paths, contest, monkeypatch):
    contest.lost, real = True, Kaggle.submit

    def submit(self, *arguments):
        real(self, *arguments)
        contest.lost = False
        contest.submissions.append(
            {
                "ref": 5,
                "date": "2026-11-20T10:00:00.000Z",
                "fileName": "mate.csv",
                "description": "mine",
                "status": "COMPLETE",
                "publicScore": "0.9",
            }
        )

    monkeypatch.setattr(Kaggle, "submit", submit)
    with refused("unconfirmed", "mate.csv", kind=StageError):
        go(paths)
    assert [r.status for r in logged(paths)] == ["unconfirmed"]


@pytest.mark.parametrize("meanwhile", ["found", "dropped"])
def test_submissions_beside_it_may_have_touched_the_row(paths, contest, monkeypatch, meanwhile):
    real = send.upload

    def upload(*arguments):
        sent = real(*arguments)
        log.edit(
            paths.submission_log,
            lambda rows: (
                rows.__setitem__(-1, log.result(rows[-1], sent))
                if meanwhile == "found"
                else rows.clear()
            ),
        )
        return sent

    monkeypatch.setattr(send, "upload", upload)
    assert go(paths) == 0
    assert [(r.status, r.public) for r in logged(paths)] == [("complete", 0.8123)]


def test_an_upload_cut_off(paths, contest, server):
    """Once: the package sends the whole file anew. Always: nothing was handed in, and so it
    says."""
    server.fault("Upload", cut=3000, times=1)
    assert go(paths) == 0 and contest.submissions[0]["data"] == paths.submission("exp").read_bytes()
    server.fault("Upload", cut=20)
    refuses(
        paths,
        contest,
        "upload_failed",
        "--force",
        kind=StageError,
        names=("Nothing was submitted",),
    )


def test_a_slow_upload_goes_through(paths, contest, server):
    server.chunk = 100
    server.fault("Upload", slow=0.02)
    server.fault("ListSubmissions", hang=0.1)
    assert go(paths) == 0 and logged(paths)[0].status == "complete"


def test_accepted_although_the_answer_broke_off(paths, contest, server, capsys):
    """The list is the proof, in this direction too."""
    server.fault("CreateSubmission", cut=5)
    assert go(paths) == 0
    assert len(contest.submissions) == 1 == len(logged(paths)) and logged(paths)[0].public == 0.8123


def test_a_rejected_file_is_an_error_and_stands_in_the_log(paths, contest):
    contest.scorer = rejects
    with refused("rejected", "Submission must have 10 rows", kind=StageError):
        go(paths)
    [row] = logged(paths)
    assert (row.status, row.public, row.ref) == ("error", None, "41000000")
    assert "must have 10 rows" in row.error
    contest.scorer = lambda data: 0.5
    refuses(paths, contest, "sent_before", names=("rejected",))


def rejects(data: bytes) -> float:
    raise ValueError("Submission must have 10 rows")


# ------------------------------------------------------------------------------------------ waiting


def completed_later(paths: Paths, contest, capsys) -> None:
    """`submissions` fills in what was pending or unconfirmed."""
    [row] = logged(paths)
    assert row.public is None and row.cv is not None
    contest.polls = 0
    for one in contest.submissions:
        one["left"] = 0
    capsys.readouterr()
    assert submissions.run(parse(["submissions", "--competition", SLUG]), settings(), paths) == 0
    [now] = logged(paths)
    assert (now.status, now.public, now.ref, now.cv, now.time) == (
        "complete",
        0.8123,
        "41000000",
        row.cv,
        row.time,
    )
    assert "brought up to date" in capsys.readouterr().out


def test_a_score_that_takes_too_long_is_filled_in_later(paths, contest, capsys):
    contest.polls = 10**6
    assert go(paths) == 0
    out = capsys.readouterr().out
    assert "no score yet" in out
    assert "will fill the score in" in out
    assert logged(paths)[0].status == "pending"
    assert out.count("pending …") >= 3
    completed_later(paths, contest, capsys)


def stop_at(monkeypatch, name: str, count: int, error=KeyboardInterrupt) -> None:
    """The client's method does its work, and Ctrl+C comes when it was called for the `count`th
    time."""
    real, calls = getattr(Kaggle, name), []

    def stopped(self, *arguments):
        found = real(self, *arguments)
        calls.append(1)
        if len(calls) >= count:
            raise error
        return found

    monkeypatch.setattr(Kaggle, name, stopped)


@pytest.mark.parametrize(
    "name, count, status",
    [
        ("submissions", 4, "pending"),
        ("submissions", 2, "unconfirmed"),
        ("submit", 1, "unconfirmed"),
    ],
)
def test_ctrl_c_after_it_was_handed_over_loses_nothing(
    paths, contest, monkeypatch, capsys, name, count, status
):
    contest.polls = 10
    with monkeypatch.context() as patch:
        stop_at(patch, name, count)
        assert go(paths) == 130
    assert "submissions --competition" in capsys.readouterr().out
    assert logged(paths)[0].status == status
    completed_later(paths, contest, capsys)


def test_a_network_that_goes_after_the_upload_leaves_it_unconfirmed(
    paths, contest, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        stop_at(patch, "submissions", 2, StageError("no network."))
        with refused("unconfirmed", "no network", kind=StageError):
            go(paths)
    assert logged(paths)[0].status == "unconfirmed" and logged(paths)[0].ref == ""
    completed_later(paths, contest, capsys)


def test_a_network_that_comes_and_goes_while_waiting_does_no_harm(
    paths, contest, monkeypatch, capsys
):
    contest.polls, real, calls = 4, Kaggle.submissions, []

    def flickering(self, slug):
        calls.append(1)
        if len(calls) > 1 and len(calls) % 2:
            raise StageError("no network.")
        return real(self, slug)

    monkeypatch.setattr(Kaggle, "submissions", flickering)
    assert go(paths) == 0
    assert logged(paths)[0].status == "complete"


def test_the_pauses_grow_and_the_waiting_ends():
    looked, slept = [], []
    clock = lambda: sum(slept)
    send_time, send.time = (
        send.time,
        type("Time", (), {"monotonic": staticmethod(clock), "sleep": staticmethod(slept.append)}),
    )
    try:
        send.PAUSES = (2, 3, 5, 8, 60)
        looked = list(send.poll(200))
    finally:
        send.time = send_time
    assert slept == [2, 3, 5, 8, 60, 60, 60, 2] and looked[-1] == 200
