"""send: hand the submission to Kaggle and wait for its score. Proof is the new entry in Kaggle's own list, not that the upload returned.

READS   submissions/<name>.csv (or .zip), <name>.json: its sha256 and cross-validated score, sample_submission.csv, submissions/log.csv
WRITES  submissions/log.csv: one row more, and log.png
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
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

PAUSES = (
    2,
    3,
    5,
    8,
    13,
    21,
    34,
    60,
)  # seconds between two looks at Kaggle's list; the last one again and again
LISTED_WITHIN = 60  # seconds until what was accepted stands in the list
RECOVERED_WITHIN = (
    10  # the same after an upload that broke off: its last message may have come through
)
SCORED_WITHIN = 15 * 60
LAST = 5  # of the earlier submissions are shown


class Unconfirmed(StageError):
    """Handed over, and it is not known whether Kaggle took it."""

    def __init__(self, what: str):
        super().__init__(what, code="unconfirmed")


@dataclass(frozen=True)
class Entry:
    """What is sent: a file and what its record says."""

    file: Path
    sha256: str
    score: float
    low: float
    high: float
    commit: str

    @property
    def cv(self) -> str:
        return f"CV score {self.score:.4f} (95 % {self.low:.3f} to {self.high:.3f})"


def run(given: argparse.Namespace, config: Config, paths: Paths) -> int:
    """Exit code 0: sent (or not, on a 'no'); 130: stopped while it was waiting. Raises InputError for what must not be sent, StageError where Kaggle
    did not accept or rejected it."""
    entry = load(config, paths)
    recheck(config, paths)
    slug = slug_of(given, config, paths)
    log.read(
        paths.submission_log
    )  # what is wrong with it must be known before something is sent, not after
    if not given.yes and not (sys.stdin and sys.stdin.isatty()):
        raise InputError(
            "nobody is there to be asked whether to send it",
            "no terminal",
            "Add --yes",
            code="nobody_to_ask",
        )
    message = " ".join((given.message or "").split()) or ", ".join(
        [
            config.name,
            f"CV {entry.score:.4f}",
            *([f"commit {entry.commit}"] if entry.commit else []),
        ]
    )
    header(
        "send",
        config.name,
        [entry.file, paths.record("submit", config.name)],
        [paths.submission_log, paths.submission_plot],
    )
    kaggle = Kaggle()
    contest = kaggle.contest(slug)
    check_open(contest)
    before = kaggle.submissions(slug)
    rows = log.refresh(paths.submission_log, slug, before)
    check_new(entry, [r for r in rows if r.competition == slug], given.force)
    left = kaggle.remaining(slug)
    if left is not None and left <= 0:
        raise InputError(
            "no submission is left today",
            slug,
            f"The count begins anew at midnight UTC, in {duration(to_midnight())}",
            code="none_left_today",
        )
    show(contest, entry, message, left, log.joined(rows, slug, before))
    try:
        if not given.yes and input("Send? [y/N] ").strip().lower() not in ("y", "yes"):
            say("not sent")
            return 0
    except KeyboardInterrupt:
        say("\nnot sent")
        return 130

    look = command("submissions")
    row = Row(
        log.now(),
        slug,
        entry.file.name,
        entry.sha256,
        message,
        entry.score,
        entry.low,
        entry.high,
        status="unconfirmed",
        commit=entry.commit,
    )
    say(f"  sending {short(entry.file)} ({entry.file.stat().st_size / 1e3:,.0f} kB)")
    begin(paths, entry, row, given.force)
    try:
        sent = upload(kaggle, contest, entry.file, message, {s.ref for s in before})
    except (NotSubmitted, InputError):
        settle(paths, row, None)
        raise
    except (KeyboardInterrupt, Unconfirmed) as stopped:  # it may be there, so that the row stays
        later = f"Whether Kaggle has it, {look} finds out; the log calls it unconfirmed until then"
        if isinstance(stopped, Unconfirmed):
            raise StageError(f"{stopped}. {later}", code=stopped.code) from None
        say(f"\nstopped while it was being sent. {later}")
        return 130
    row = log.result(row, sent)
    settle(paths, row, row)
    say(f"  Kaggle has it, as {sent.ref}")
    try:
        sent, trouble = wait(kaggle, slug, sent)
    except KeyboardInterrupt:
        say(
            f"\nstopped waiting for the score. It was sent, and the log calls it pending; {look} will fill the score in"
        )
        return 130
    rows = log.refresh(paths.submission_log, slug, [sent, *before])
    if sent.status == "pending":
        say(
            f"no score yet{trouble}. It was sent, and the log ({short(paths.submission_log)}) calls it pending; {look} will fill the score in"
        )
        return 0
    if sent.status == "error":
        raise StageError(
            f"Kaggle took {short(entry.file)} and rejected it: "
            f"{sent.error or 'without saying why'} ({short(paths.submission_log)}, {sent.ref})",
            code="rejected",
        )
    drawn = plot.draw(log.joined(rows, slug, [sent, *before]), slug, paths.submission_plot)
    say("  " + verdict(entry, sent))
    say(
        f"log: {short(paths.submission_log)}"
        + (f"   picture: {short(paths.submission_plot)}" if drawn else "")
        + f"   next: {look}"
    )
    return 0


def load(config: Config, paths: Paths) -> Entry:
    """The file and its record. Raises InputError where one is missing or the file is not the one that was written."""
    again = f"{command('submit', '--force')} writes it anew"
    place = paths.record("submit", config.name)
    if not place.is_file():
        raise InputError(
            "there is no submission yet",
            short(paths.submission(config.name)),
            f"Make it with {command('submit')}",
            code="no_submission",
        )
    record = read_json(place)
    try:
        file = (
            paths.submissions / Path(record.get("file") or paths.submission(config.name).name).name
        )
        low, high = map(float, record["interval"])
        entry = Entry(
            file, record["sha256"], float(record["score"]), low, high, record.get("commit") or ""
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(
            "not readable as the record of a submission", short(place), again, code="damaged_json"
        ) from None
    if not file.is_file():
        raise InputError("the submission is gone", short(file), again, code="no_submission")
    if hashlib.sha256(file.read_bytes()).hexdigest() != entry.sha256:
        raise InputError(
            "it was edited since it was written, so that neither its checks nor its "
            "CV score hold for it",
            short(file),
            f"{again}; a file that was changed on purpose goes in at the contest's web page",
            code="submission_edited",
        )
    return entry


def recheck(config: Config, paths: Paths) -> None:
    """The file against the sample, which may be another one by now. Raises InputError."""
    from src.pipeline.jobs import form_of
    from src.submission import writer

    writer.recheck(form_of(config, paths), config, paths)


def check_open(contest: Contest) -> None:
    """Raises InputError for a contest that was not entered; one that is over may still take late submissions, and says so itself where it does not."""
    if contest.entered is False:
        raise InputError(
            "you have not entered this contest",
            contest.slug,
            f"Accept its rules at {url(contest.slug)}/rules, then run the same command again",
            code="rules_not_accepted",
        )


def check_new(entry: Entry, rows: list[Row], force: bool) -> None:
    """Raises InputError where these bytes went to this contest before."""
    if not force and (
        earlier := next((r for r in reversed(rows) if r.sha256 == entry.sha256), None)
    ):
        said = {
            "error": "rejected",
            "unconfirmed": "not confirmed by Kaggle yet",
            "complete": "scored",
        }.get(earlier.status, earlier.status)
        outcome = f"public {earlier.public:.4f}" if earlier.public is not None else said
        raise InputError(
            f"the same bytes were sent on {earlier.time[:16].replace('T', ' ')} UTC "
            f"as '{earlier.message}', {outcome}",
            short(entry.file),
            "Change something first, or send them again with "
            f"{command('submit', '--send', '--force')}",
            code="sent_before",
        )


def show(
    contest: Contest, entry: Entry, message: str, left: int | None, earlier: list[Row]
) -> None:
    """What would be sent, and what went before it."""
    deadline = contest.deadline and utc(contest.deadline)
    late = deadline and deadline < datetime.now(timezone.utc)
    closes = (
        ""
        if not deadline
        else f"; it {'closed' if late else 'closes'} at {deadline:%Y-%m-%d %H:%M} UTC"
        + (", so this is a late submission" if late else "")
    )
    say(
        f"  to {contest.title} ({url(contest.slug)}){f', scored by {contest.metric}' if contest.metric else ''}{closes}"
    )
    say(f"  {short(entry.file)}   {entry.cv}")
    say(f"  message: {message}")
    many = f"{left} of {contest.daily}" if contest.daily else left
    say(
        "  Kaggle does not say how many submissions are left today"
        if left is None
        else f"  {many} submissions left today"
    )
    if earlier:
        say(
            f"  sent before{f', the last {LAST} of {len(earlier)}' if len(earlier) > LAST else ''}:"
        )
        log.show(earlier, LAST)


def begin(paths: Paths, entry: Entry, row: Row, force: bool) -> None:
    """Into the log before anything is sent: whatever happens then, the same bytes are not sent again unasked."""

    def change(rows: list[Row]) -> None:
        check_new(entry, [r for r in rows if r.competition == row.competition], force)
        rows.append(row)

    log.edit(paths.submission_log, change)


def settle(paths: Paths, row: Row, known: Row | None) -> None:
    """In place of the row that `begin` wrote, what is known of it now; None: it was not sent."""

    def change(rows: list[Row]) -> None:
        mine = [
            i for i, r in enumerate(rows) if (r.time, r.sha256) == (row.time, row.sha256)
        ]  # `submissions` beside it may have found it, or dropped it
        at = mine[-1] if mine else len(rows)
        rows[at : at + len(mine[-1:])] = [known] if known else []

    log.edit(paths.submission_log, change)


def upload(
    kaggle: Kaggle, contest: Contest, file: Path, message: str, known: set[str]
) -> RemoteSubmission:
    """Upload, and find the entry in Kaggle's list that was not `known` and has this file and message. Raises Unconfirmed where the list does not show it
    (yet) or cannot be had, and what the client raises where nothing was handed over."""
    broken: StageError | None = None
    try:
        kaggle.submit(contest.slug, file, message)
    except NotSubmitted:
        raise
    except StageError as error:  # it is not known how far it came
        broken = error
    for _ in looks(RECOVERED_WITHIN if broken else LISTED_WITHIN):
        unheard, new = None, []
        try:
            new = [s for s in kaggle.submissions(contest.slug) if s.ref not in known]
        except (StageError, InputError) as error:
            unheard = error
        if mine := next((s for s in new if log.is_same(s, file.name, message)), None):
            return mine
    if unheard:
        raise Unconfirmed(
            f"{what(broken) if broken else f'{short(file)} was uploaded'}; then Kaggle's list could not be had: {what(unheard)}"
        )
    others = (
        f" (new in it, but not this one: {', '.join(f'{s.file} {s.message!r}' for s in new[:3])})"
        if new
        else ""
    )
    came = f"{what(broken)}, and" if broken else "the upload came to an end without an error, but"
    raise Unconfirmed(
        f"{came} Kaggle's list of submissions does not show it{others}; where that stays so, it was not accepted, and the contest's page takes files too: {url(contest.slug)}"
    )


def wait(kaggle: Kaggle, slug: str, sent: RemoteSubmission) -> tuple[RemoteSubmission, str]:
    """Until it is scored or rejected, or time is up: then what is known, and in words what else went wrong ('' for nothing)."""
    trouble, told = "", False
    for seconds in looks(SCORED_WITHIN):
        if sent.status != "pending":
            break
        told = tell(f"  pending … {duration(seconds)}")
        try:
            sent, trouble = (
                next((s for s in kaggle.submissions(slug) if s.ref == sent.ref), sent),
                "",
            )
        except (StageError, InputError) as error:  # a network that comes and goes
            trouble = f": {what(error)}"
            if isinstance(error, InputError):  # asking again does not help
                break
    if told:
        say()
    return sent, trouble or f" after {duration(SCORED_WITHIN)}"


def what(error: Exception) -> str:
    """What went wrong, without the advice of the client, which knows only its own part."""
    return getattr(error, "what", str(error)).rstrip(".")


def looks(within: float) -> Iterator[float]:
    """Times to look, in seconds since the first: at once, then after longer and longer pauses, and a last time when `within` seconds are over."""
    started, pauses = time.monotonic(), itertools.chain(PAUSES, itertools.repeat(PAUSES[-1]))
    while True:
        yield time.monotonic() - started
        if (left := within - (time.monotonic() - started)) <= 0:
            return
        time.sleep(min(next(pauses), left))


def tell(text: str) -> bool:
    """Progress: one line that changes on a terminal (then True: it needs an end), lines elsewhere."""
    terminal = sys.stdout.isatty()
    print(f"\r{text}" if terminal else text, end="" if terminal else "\n", flush=True)
    return terminal


def verdict(entry: Entry, sent: RemoteSubmission) -> str:
    private = f", private {sent.private:.4f}" if sent.private is not None else ""
    if sent.public is None:
        return f"accepted; Kaggle shows no public score{private}, {entry.cv}"
    place = (
        "within"
        if entry.low <= sent.public <= entry.high
        else "above"
        if sent.public > entry.high
        else "below"
    )
    return f"public score {sent.public:.4f}{private}, {entry.cv}: public - CV {sent.public - entry.score:+.4f}, {place} the interval"


def utc(time: datetime) -> datetime:
    return (
        time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time.astimezone(timezone.utc)
    )


def to_midnight() -> float:
    """Seconds until Kaggle counts anew."""
    now = datetime.now(timezone.utc)
    return (
        (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0) - now
    ).total_seconds()
