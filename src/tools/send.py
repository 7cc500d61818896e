"""send: submit to Kaggle and wait for the score. Proof is the new entry in Kaggle's own list, not
that the upload returned.

READS   submissions/<name>.csv (or .zip), <name>.json: its sha256 and cross-validated score,
        sample_submission.csv, submissions/log.csv
WRITES  submissions/log.csv: one row more, and log.png
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

from src.config.load import Config
from src.core.console import InputError, StageError, command, duration, header, say, short
from src.core.disk import read_json
from src.core.paths import Paths
from src.kaggle_io import log, plot
from src.kaggle_io.client import Contest, Kaggle, RemoteSubmission
from src.kaggle_io.errors import NotSubmitted, url
from src.kaggle_io.log import Row
from src.kaggle_io.slugs import slug_of

# seconds between two looks at Kaggle's list; the last one again and again
PAUSES = (2, 3, 5, 8, 13, 21, 34, 60)
LISTED_WITHIN = 60  # seconds until the list shows what was accepted
# the same after an upload that broke off: its last message may have come through
RECOVERED_WITHIN = 10
SCORED_WITHIN = 15 * 60
LAST = 5  # of the earlier submissions are shown


class Unconfirmed(StageError):
    """Uploaded, and it is not known whether Kaggle accepted it."""

    def __init__(self, what: str):
        super().__init__(what, code="unconfirmed")


def run(given: argparse.Namespace, config: Config, paths: Paths) -> int:
    """Exit code 0: submitted (or not, after a 'no'); 130: stopped while it was waiting. Raises
    InputError for what must not be submitted, StageError where Kaggle did not accept it, or
    rejected it."""
    file, row = read_submission(config, paths)
    recheck(config, paths)
    row.competition = slug = slug_of(given, config, paths)
    log.read(paths.submission_log)  # a damaged log must be known before anything is submitted
    if not given.yes and not (sys.stdin and sys.stdin.isatty()):
        raise InputError(
            "nobody is there to be asked whether to send it",
            "no terminal",
            "Add --yes",
            code="nobody_to_ask",
        )
    default = f"{config.name}, CV {row.cv:.4f}"
    default += f", commit {row.commit}" if row.commit else ""
    row.message = " ".join((given.message or "").split()) or default
    reads = [file, paths.record("submit", config.name)]
    header("send", config.name, reads, [paths.submission_log, paths.submission_plot])
    kaggle = Kaggle()
    contest = kaggle.contest(slug)
    check_entered(contest)
    before = kaggle.submissions(slug)
    rows = log.refresh(paths.submission_log, slug, before)
    check_new(row, rows, given.force)
    left = kaggle.remaining(slug)
    if left is not None and left <= 0:
        raise InputError(
            "no submission is left today",
            slug,
            f"The count begins again at midnight UTC, in {duration(seconds_to_midnight())}",
            code="none_left_today",
        )
    describe(contest, file, row, left)
    show_earlier(log.joined(rows, slug, before))
    try:
        if not given.yes and input("Send? [y/N] ").strip().lower() not in ("y", "yes"):
            say("not sent")
            return 0
    except KeyboardInterrupt:
        say("\nnot sent")
        return 130
    return submit(kaggle, contest, file, row, before, paths, given.force)


def submit(
    kaggle: Kaggle,
    contest: Contest,
    file: Path,
    row: Row,
    before: list[RemoteSubmission],
    paths: Paths,
    force: bool,
) -> int:
    """Upload it, log it, and wait for its score; returns the exit code. before: Kaggle's list."""
    slug, look = contest.slug, command("submissions")
    say(f"  sending {short(file)} ({file.stat().st_size / 1e3:,.0f} kB)")
    row.time = log.now()
    log_unconfirmed(paths, row, force)
    later = f"{look} finds out whether Kaggle has it; the log calls it unconfirmed until then"
    try:
        remote = upload(kaggle, slug, file, row.message, {s.ref for s in before})
    except (NotSubmitted, InputError):
        replace_row(paths, row, None)
        raise
    except Unconfirmed as error:  # it may be there, so the row is kept
        raise StageError(f"{error}. {later}", code=error.code) from None
    except KeyboardInterrupt:
        say(f"\nstopped while it was being sent. {later}")
        return 130
    replace_row(paths, row, log.result(row, remote))
    say(f"  Kaggle has it, as {remote.ref}")
    later = f"It was sent, and the log calls it pending; {look} will fill the score in"
    try:
        remote, trouble = wait(kaggle, slug, remote)
    except KeyboardInterrupt:
        say(f"\nstopped waiting for the score. {later}")
        return 130
    rows = log.refresh(paths.submission_log, slug, [remote, *before])
    if remote.status == "pending":
        say(f"no score yet{trouble}. {later}")
        return 0
    if remote.status == "error":
        raise StageError(
            f"Kaggle took {short(file)} and rejected it: {remote.error or 'no reason given'} "
            f"({short(paths.submission_log)}, {remote.ref})",
            code="rejected",
        )
    drawn = plot.draw(log.joined(rows, slug, [remote, *before]), slug, paths.submission_plot)
    say(f"  {describe_score(row, remote)}")
    picture = f"   picture: {short(paths.submission_plot)}" if drawn else ""
    say(f"log: {short(paths.submission_log)}{picture}   next: {look}")
    return 0


def read_submission(config: Config, paths: Paths) -> tuple[Path, Row]:
    """The file, and its row in the log as far as its record knows it. Raises InputError where one
    is missing or the file is not the one that was written."""
    again = f"{command('submit', '--force')} writes it again"
    place, usual = paths.record("submit", config.name), paths.submission(config.name)
    if not place.is_file():
        raise InputError(
            "there is no submission yet",
            usual,
            f"Make it with {command('submit')}",
            code="no_submission",
        )
    record = read_json(place)
    try:
        file = paths.submissions / Path(record.get("file") or usual.name).name
        row = Row("", "", file.name, record["sha256"], status="unconfirmed")
        row.cv, row.commit = float(record["score"]), record.get("commit") or ""
        row.cv_low, row.cv_high = map(float, record["interval"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(
            "not readable as the record of a submission", place, again, code="damaged_json"
        ) from None
    if not file.is_file():
        raise InputError("the submission is gone", file, again, code="no_submission")
    if hashlib.sha256(file.read_bytes()).hexdigest() != row.sha256:
        raise InputError(
            "it was edited since it was written, so that neither its checks nor its CV score hold "
            "for it",
            file,
            f"{again}; upload a file that was changed on purpose at the contest's web page",
            code="submission_edited",
        )
    return file, row


def recheck(config: Config, paths: Paths) -> None:
    """The file against the sample, which may have changed since. Raises InputError."""
    from src.pipeline.jobs import form_of
    from src.submission import writer

    writer.recheck(form_of(config, paths), config, paths)


def check_entered(contest: Contest) -> None:
    """Raises InputError for a contest that was not entered. One that is over may still take late
    submissions, and says so itself where it does not."""
    if contest.entered is False:
        raise InputError(
            "you have not entered this contest",
            contest.slug,
            f"Accept its rules at {url(contest.slug)}/rules, then run the same command again",
            code="rules_not_accepted",
        )


def check_new(row: Row, rows: list[Row], force: bool) -> None:
    """Raises InputError where these bytes were submitted to this contest before."""
    key = (row.competition, row.sha256)
    same = [r for r in rows if (r.competition, r.sha256) == key]
    if force or not same:
        return
    last = same[-1]
    words = {"error": "rejected", "unconfirmed": "not confirmed by Kaggle yet"}
    outcome = words.get(last.status, last.status)
    if last.public is not None:
        outcome = f"public {last.public:.4f}"
    raise InputError(
        f"the same bytes were sent on {last.time[:16].replace('T', ' ')} UTC "
        f"as '{last.message}', {outcome}",
        row.file,
        f"Change something first, or send them again with {command('submit', '--send', '--force')}",
        code="sent_before",
    )


def describe(contest: Contest, file: Path, row: Row, left: int | None) -> None:
    """Say what would be submitted, and where."""
    line = f"  to {contest.title} ({url(contest.slug)})"
    line += f", scored by {contest.metric}" if contest.metric else ""
    if contest.deadline:
        late = contest.deadline < datetime.now(timezone.utc)
        when = f"{contest.deadline:%Y-%m-%d %H:%M} UTC"
        line += (
            f"; it closed at {when}, so this is a late submission"
            if late
            else f"; it closes at {when}"
        )
    say(line)
    say(f"  {short(file)}   {describe_cv(row)}")
    say(f"  message: {row.message}")
    limit = f" of {contest.daily}" if contest.daily else ""
    if left is None:
        say("  Kaggle does not tell how many submissions are left today")
    else:
        say(f"  {left}{limit} submissions left today")


def show_earlier(rows: list[Row]) -> None:
    if rows:
        many = f", the last {LAST} of {len(rows)}" if len(rows) > LAST else ""
        say(f"  sent before{many}:")
        log.show(rows, LAST)


def log_unconfirmed(paths: Paths, row: Row, force: bool) -> None:
    """Into the log before anything is uploaded: whatever happens then, the same bytes are not
    submitted again by accident."""

    def change(rows: list[Row]) -> None:
        check_new(row, rows, force)
        rows.append(row)

    log.edit(paths.submission_log, change)


def replace_row(paths: Paths, row: Row, known: Row | None) -> None:
    """In place of the row that `log_unconfirmed` wrote, what is known of it now; None: it was not
    submitted."""

    def change(rows: list[Row]) -> None:
        # a `submissions` at the same time may have found it, or dropped it
        same = [i for i, r in enumerate(rows) if (r.time, r.sha256) == (row.time, row.sha256)]
        at = slice(same[-1], same[-1] + 1) if same else slice(len(rows), None)
        rows[at] = [known] if known else []

    log.edit(paths.submission_log, change)


def upload(
    kaggle: Kaggle, slug: str, file: Path, message: str, known: set[str]
) -> RemoteSubmission:
    """Upload, and find the entry in Kaggle's list that was not `known` and has this file and
    message. Raises Unconfirmed where the list does not show it (yet) or cannot be had, and what the
    client raises where nothing was submitted."""
    came = "the upload came to an end without an error, but"
    within = LISTED_WITHIN
    try:
        kaggle.submit(slug, file, message)
    except NotSubmitted:
        raise
    except StageError as error:  # it is not known how far it came
        came, within = f"{reason(error)}, and", RECOVERED_WITHIN
    for _ in poll(within):
        failed, new = None, []
        try:
            new = [s for s in kaggle.submissions(slug) if s.ref not in known]
        except (StageError, InputError) as error:
            failed = error
        for remote in new:
            if log.is_same(remote, file.name, message):
                return remote
    if failed:
        raise Unconfirmed(f"{came} then Kaggle's list could not be had: {reason(failed)}")
    shown = ", ".join(f"{s.file} {s.message!r}" for s in new[:3])
    others = f" (new in it, but not this one: {shown})" if new else ""
    raise Unconfirmed(
        f"{came} Kaggle's list of submissions does not show it{others}; if it never does, it was "
        f"not accepted, and the contest's page takes files too: {url(slug)}"
    )


def wait(kaggle: Kaggle, slug: str, remote: RemoteSubmission) -> tuple[RemoteSubmission, str]:
    """Until it is scored or rejected, or time is up: (what is known then, in words what else went
    wrong)."""
    trouble, on_terminal = f" after {duration(SCORED_WITHIN)}", sys.stdout.isatty()
    waited = False
    for seconds in poll(SCORED_WITHIN):
        if remote.status != "pending":
            break
        line, waited = f"  pending … {duration(seconds)}", True
        # one line that changes on a terminal, lines elsewhere
        print(f"\r{line}" if on_terminal else line, end="" if on_terminal else "\n", flush=True)
        trouble = f" after {duration(SCORED_WITHIN)}"
        try:
            found = kaggle.submissions(slug)
            remote = next((s for s in found if s.ref == remote.ref), remote)
        except (StageError, InputError) as error:  # a network that comes and goes
            trouble = f": {reason(error)}"
            if isinstance(error, InputError):  # asking again does not help
                break
    if waited and on_terminal:
        say()
    return remote, trouble


def reason(error: Exception) -> str:
    """What went wrong, without the client's advice, which knows only its own part."""
    return getattr(error, "what", str(error)).rstrip(".")


def poll(within: float) -> Iterator[float]:
    """Times to look, in seconds since the first: at once, then after longer and longer pauses, and
    a last time when `within` seconds are over."""
    started, pauses = time.monotonic(), itertools.chain(PAUSES, itertools.repeat(PAUSES[-1]))
    for pause in pauses:
        passed = time.monotonic() - started
        yield passed
        left = within - (time.monotonic() - started)
        if left <= 0:
            return
        time.sleep(min(pause, left))


def describe_cv(row: Row) -> str:
    return f"CV score {row.cv:.4f} (95 % {row.cv_low:.3f} to {row.cv_high:.3f})"


def describe_score(row: Row, remote: RemoteSubmission) -> str:
    private = f", private {remote.private:.4f}" if remote.private is not None else ""
    if remote.public is None:
        return f"accepted; Kaggle shows no public score{private}, {describe_cv(row)}"
    place = "within"
    if remote.public > row.cv_high:
        place = "above"
    elif remote.public < row.cv_low:
        place = "below"
    return (
        f"public score {remote.public:.4f}{private}, {describe_cv(row)}: public - CV "
        f"{remote.public - row.cv:+.4f}, {place} the interval"
    )


def seconds_to_midnight() -> float:
    """Until Kaggle begins its count again."""
    now = datetime.now(timezone.utc)
    tomorrow = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    return (tomorrow - now).total_seconds()
