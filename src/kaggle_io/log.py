"""submissions/log.csv: what was sent to Kaggle from here, its cross-validated score beside the
leaderboard's. Read, written under a lock, and shown as a table.

A row's `status` is Kaggle's, or `unconfirmed`: it was uploaded, but the connection (or the user)
broke off before Kaggle's list showed it. Such a row has no `ref` until `refresh` finds it in the
list, and is dropped where the list does not have it.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path

from src.core.console import InputError, say, warn
from src.core.disk import replacing
from src.core.locks import Lock
from src.data.cells import as_meant, as_text
from src.kaggle_io.client import RemoteSubmission

STATUS = ("pending", "complete", "error", "unconfirmed")
CLOCK_SKEW = 120  # seconds that this clock and Kaggle's may differ
LISTED_BY = 600  # seconds after which Kaggle's list shows whatever it has accepted
LISTED = 100  # submissions that Kaggle's list has at most
TEXTS = ("file", "message", "error")  # anybody's: a spreadsheet must not take them for formulas
SCORES = ("cv", "cv_low", "cv_high", "public", "private")
TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass
class Row:
    """One submission. Scores are None where they are not known; `extra` holds the columns that a
    user added."""

    time: str  # UTC, ISO
    competition: str
    file: str
    sha256: str = ""
    message: str = ""
    cv: float | None = None  # leave-one-fold-out, with its 95 % interval
    cv_low: float | None = None
    cv_high: float | None = None
    public: float | None = None
    private: float | None = None
    status: str = "pending"
    ref: str = ""
    commit: str = ""
    error: str = ""
    extra: dict[str, str] = field(default_factory=dict)


COLUMNS = [f.name for f in fields(Row) if f.name != "extra"]


# ---------------------------------------------------------------------------------------- the file


def read(file: Path) -> list[Row]:
    """The rows of log.csv, in its order; [] where there is none.

    A spreadsheet may have added a byte order mark, moved or added columns, or written semicolons
    and decimal commas. Raises InputError, with the line, for anything that cannot be read: there
    is no other copy of this file.
    """
    try:
        data = file.read_bytes()
        text = data.decode("utf-8-sig")
        head = text.lstrip().split("\n", 1)[0]
        delimiter = max(",;\t", key=head.count)
        table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows, columns = [], []
        for cells in table:
            cells = [c.strip() for c in cells]
            if not any(cells):
                continue  # spreadsheets leave such lines at the end
            if columns:
                rows.append(_row(columns, cells))
            else:
                columns = _columns(cells)
        return rows
    except FileNotFoundError:
        return []
    except OSError as error:
        what = f"not readable: {error.strerror}"
    except UnicodeDecodeError as error:
        what = f"line {data[: error.start].count(10) + 1} is not UTF-8 text"
    except (ValueError, csv.Error) as error:
        what = f"line {table.line_num} {error}"
    raise InputError(
        what, file, "Correct it, or move the file away to begin a new one", code="log_damaged"
    )


def _columns(cells: list[str]) -> list[str]:
    if wrong := [c for c in COLUMNS if cells.count(c) != 1]:
        raise ValueError(f"should name each column once, and does not with {', '.join(wrong)}")
    return cells


def _row(columns: list[str], cells: list[str]) -> Row:
    """Raises ValueError."""
    if len(cells) != len(columns):
        raise ValueError(f"has {len(cells)} cells instead of {len(columns)}")
    found = dict(zip(columns, cells))
    values = {name: found.pop(name) for name in COLUMNS}
    if values["status"] not in STATUS:
        raise ValueError(
            f"has '{values['status']}' under status, which is none of {', '.join(STATUS)}"
        )
    if not values["time"] or not values["competition"]:
        raise ValueError("has no time or no competition")
    texts = {name: as_meant(values[name]) for name in TEXTS}
    scores = {name: _score(name, values[name]) for name in SCORES}
    return Row(**(values | texts | scores), extra=found)


def _score(column: str, cell: str) -> float | None:
    try:
        value = float(cell.replace(",", ".")) if cell else None
    except ValueError:
        value = math.nan
    if value is not None and not math.isfinite(value):
        raise ValueError(f"has '{cell}' under {column}, which is not a number")
    return value


def edit(file: Path, change: Callable[[list[Row]], bool | None]) -> list[Row]:
    """Read the log, let `change` alter the list in place, and write it whole or not at all, one
    process at a time; nothing is written where `change` returns False. Returns the rows. Raises
    InputError as `read` does, and then leaves the file as it was."""
    with Lock.of(file.with_name(".log.lock"), "the log of submissions").held():
        rows = read(file)
        if change(rows) is False:
            return rows
        names = dict.fromkeys([*COLUMNS, *(name for row in rows for name in row.extra)])
        with (
            replacing(file) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as lines,
        ):
            table = csv.DictWriter(lines, names, lineterminator="\n")
            table.writeheader()
            for row in rows:
                cells = {name: getattr(row, name) for name in COLUMNS} | row.extra
                table.writerow(cells | {name: as_text(cells[name]) for name in TEXTS})
    return rows


# ----------------------------------------------------------------------- the log and Kaggle's list


def is_same(remote: RemoteSubmission, file: str, message: str) -> bool:
    """Is this entry of Kaggle's list of that file and message? Kaggle may cut a message short and
    alters white space."""
    listed, meant = " ".join(remote.message.split()), " ".join(message.split())
    cut_short = len(listed) >= 40 and meant.startswith(listed.rstrip(".… "))
    return remote.file == file and (listed == meant or cut_short)


def refresh(file: Path, slug: str, listed: list[RemoteSubmission]) -> list[Row]:
    """Bring the log's rows of this contest up to date from Kaggle's list (its last hundred):
    results that came out since, and whether it has what was unconfirmed. A known score is kept
    where the list has none. Returns all rows; writes only where something changed."""
    by_ref = {s.ref: s for s in listed}

    def change(rows: list[Row]) -> bool:
        taken, before = {r.ref for r in rows}, list(rows)
        rows.clear()
        for row in before:
            found = by_ref.get(row.ref)
            if row.competition != slug:
                found = None
            elif row.status == "unconfirmed":
                found = find_unconfirmed(row, [s for s in listed if s.ref not in taken])
                if found:
                    taken.add(found.ref)
                elif _was_not_accepted(row, listed):
                    warn(
                        f"{row.file}, uploaded at {row.time} when the connection broke, is not in "
                        "Kaggle's list: it was not accepted, and its row is dropped"
                    )
                    continue
            rows.append(result(row, found) if found else row)
        return rows != before

    return edit(file, change) if file.is_file() else []


def find_unconfirmed(row: Row, listed: list[RemoteSubmission]) -> RemoteSubmission | None:
    """The entry of Kaggle's list that an unconfirmed row has become: of its file and message, and
    the first since then. The same file may have gone there before, from the web page or another
    machine: that one's score is not this one's. The two clocks may be CLOCK_SKEW apart."""
    began = _timestamp(row.time, default=-math.inf)
    found = [
        s
        for s in listed
        if is_same(s, row.file, row.message)
        and _timestamp(s.when, default=math.inf) >= began - CLOCK_SKEW
    ]
    return min(found, key=lambda s: s.when, default=None)


def _was_not_accepted(row: Row, listed: list[RemoteSubmission]) -> bool:
    """Whether the list, which does not have it, would show it by now."""
    age = datetime.now(timezone.utc).timestamp() - _timestamp(row.time, default=-math.inf)
    reaches_back = len(listed) < LISTED or row.time > min(s.when for s in listed)
    return age > LISTED_BY and reaches_back


def now() -> str:
    """The time of a row."""
    return datetime.now(timezone.utc).strftime(TIME)


def _timestamp(time: str, default: float) -> float:
    """Seconds since 1970, of a time as `now` writes it; `default` for anything else."""
    try:
        return datetime.strptime(time, TIME).replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return default


def result(row: Row, remote: RemoteSubmission) -> Row:
    """The row with Kaggle's result."""
    known = {name: getattr(remote, name) for name in ("public", "private")}
    return replace(
        row,
        ref=remote.ref,
        # a new word of Kaggle's must not make the log unreadable
        status=remote.status if remote.status in STATUS else "pending",
        error=remote.error,
        **{name: score for name, score in known.items() if score is not None},
    )


def joined(rows: list[Row], slug: str, listed: list[RemoteSubmission]) -> list[Row]:
    """This contest's rows, oldest first, and those of Kaggle's list that the log does not know (a
    team mate's, or sent from the web page): without CV."""
    own = [r for r in rows if r.competition == slug]
    refs = {r.ref for r in own}
    for s in listed:
        if s.ref not in refs:
            message = f"{s.message} (by {s.user})" if s.user else s.message
            own.append(result(Row(s.when, slug, s.file, message=message), s))
    return sorted(own, key=lambda r: r.time[:19])


# ------------------------------------------------------------------------------------- for people


def table(rows: list[Row], last: int = 0) -> list[str]:
    """Lines of a table, one a row (only the `last` rows, where given): CV beside leaderboard. *
    marks the highest of a column, of all rows."""
    marked = ("cv", "public", "private")
    values = {name: {getattr(r, name) for r in rows} - {None} for name in marked}
    highest = {name: max(found) for name, found in values.items() if len(found) > 1}

    def score(row: Row, name: str) -> str:
        value = getattr(row, name)
        mark = "*" if value == highest.get(name, math.nan) else " "
        return "" if value is None else f"{value:.4f}{mark}"

    def interval(row: Row) -> str:
        return "" if None in (row.cv_low, row.cv_high) else f"{row.cv_low:.3f} to {row.cv_high:.3f}"

    def gap(row: Row) -> str:
        return f"{row.public - row.cv:+.4f}" if is_scored(row) else ""

    def note(row: Row) -> str:
        is_rejected = row.error and row.status == "error"
        return f"{row.message} [{row.error}]" if is_rejected else row.message

    status = {"error": "rejected", "complete": ""}
    columns = [
        ("", str.rjust, [str(n + 1) for n in range(len(rows))]),
        ("sent (UTC)", str.rjust, [r.time[:16].replace("T", " ") for r in rows]),
        ("file", str.ljust, [r.file for r in rows]),
        ("CV ", str.rjust, [score(r, "cv") for r in rows]),
        ("95 %", str.rjust, [interval(r) for r in rows]),
        ("public ", str.rjust, [score(r, "public") for r in rows]),
        ("private ", str.rjust, [score(r, "private") for r in rows]),
        ("public - CV", str.rjust, [gap(r) for r in rows]),
        ("", str.ljust, [status.get(r.status, r.status) for r in rows]),
        ("message", str.ljust, [note(r) for r in rows]),
    ]
    shown = []
    for title, align, cells in columns:
        cells = cells[-last:]
        if any(cells):
            width = max(map(len, [title, *cells]))
            shown.append([align(cell, width) for cell in [title, *cells]])
    return ["  " + "  ".join(line).rstrip() for line in zip(*shown)]


def is_scored(row: Row) -> bool:
    return row.cv is not None and row.public is not None


def agreement(rows: list[Row]) -> str:
    """Spearman's rank correlation of CV and public score in words; '' for fewer than three scored
    files, or where all of either are equal. Of each file's bytes only the last row counts: sending
    the same twice is not a second observation."""
    files = {r.sha256 or r.ref: r for r in rows if is_scored(r)}.values()
    cv, public = [r.cv for r in files], [r.public for r in files]
    if len(files) < 3 or len(set(cv)) < 2 or len(set(public)) < 2:
        return ""
    from scipy.stats import spearmanr

    few = ": few, so take it as a hint" if len(files) < 10 else ""
    return (
        f"rank agreement of CV and public score (Spearman): {spearmanr(cv, public)[0]:+.2f}, "
        f"from n = {len(files)} files{few}"
    )


def show(rows: list[Row], last: int = 0) -> None:
    for line in table(rows, last):
        say(line)
