"""submissions/log.csv: what was sent to Kaggle from here, its cross-validated score beside the leaderboard's. Read, written under a lock, and shown as a table.

A row whose `status` is `unconfirmed` was handed over, but the connection (or the user) broke off before Kaggle's list showed it; it has no `ref` until
`refresh` finds it there, and is dropped where it does not. The other three are Kaggle's own.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from src.core.console import InputError, say, short, warn
from src.core.disk import replacing
from src.core.locks import Lock
from src.data.cells import as_meant, as_text

if TYPE_CHECKING:
    from src.kaggle_io.client import RemoteSubmission

STATUS = ("pending", "complete", "error", "unconfirmed")
SKEW = 120  # seconds that this clock and Kaggle's may differ
LISTED_BY = 600  # seconds after which Kaggle's list shows whatever it has accepted
WORDS = ("file", "message", "error")  # anybody's: a spreadsheet must not take them for formulas
SCORES = ("cv", "cv_low", "cv_high", "public", "private")


@dataclass
class Row:
    """One submission. Scores are None where they are not known; `extra` holds columns that a user added."""

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


# ------------------------------------------------------------------------------------------------------------------- the file


def read(file: Path) -> list[Row]:
    """The rows of log.csv, in its order; [] where there is none. A spreadsheet may have added a byte order mark, moved columns, or written semicolons
    and decimal commas. Raises InputError, with the line, for anything that cannot be read: nobody else has this file."""

    def fails(what: str, line: int) -> InputError:
        return InputError(
            f"line {line} {what}",
            short(file),
            "Correct it, or move the file away to begin a new one",
            code="log_damaged",
        )

    try:
        data = file.read_bytes()
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(
            f"not readable: {error.strerror}",
            short(file),
            "Move it away to begin a new one",
            code="log_damaged",
        ) from None
    except UnicodeDecodeError as error:
        raise fails("is not UTF-8 text", data[: error.start].count(b"\n") + 1) from None
    if not text.strip():
        return []
    head = text.lstrip().split("\n", 1)[0]
    lines = csv.reader(
        io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True
    )
    rows: list[Row] = []
    try:
        columns = [c.strip() for c in next(lines)]
        if missing := [c for c in COLUMNS if columns.count(c) != 1]:
            raise fails(f"should name each column once, and does not with {', '.join(missing)}", 1)
        for cells in lines:
            if not any(c.strip() for c in cells):
                continue  # spreadsheets leave such lines at the end
            if len(cells) != len(columns):
                raise fails(f"has {len(cells)} cells instead of {len(columns)}", lines.line_num)
            found = {c: cell.strip() for c, cell in zip(columns, cells)}
            found |= {c: as_meant(found[c]) for c in WORDS}
            for name in SCORES:
                try:
                    found[name] = float(found[name].replace(",", ".")) if found[name] else None
                    if found[name] is not None and not math.isfinite(found[name]):
                        found[name] = str(found[name])
                        raise ValueError
                except ValueError:
                    raise fails(
                        f"has '{found[name]}' under {name}, which is no number", lines.line_num
                    ) from None
            if found["status"] not in STATUS:
                raise fails(
                    f"has '{found['status']}' under status, which is none of {', '.join(STATUS)}",
                    lines.line_num,
                )
            if not found["time"] or not found["competition"]:
                raise fails("has no time or no competition", lines.line_num)
            rows.append(Row(**{c: found.pop(c) for c in COLUMNS}, extra=found))
    except csv.Error as error:
        raise fails(f"is not readable as a table: {error}", lines.line_num) from None
    return rows


def edit(file: Path, change: Callable[[list[Row]], bool | None]) -> list[Row]:
    """Read the log, let `change` alter the list in place, and write it whole or not at all, one process at a time; `change` returns False where nothing
    is to be written. Returns the rows. Raises InputError as `read` does, and then leaves the file as it was."""
    with Lock.of(file.with_name(".log.lock"), "the log of submissions").held():
        rows = read(file)
        if change(rows) is not False:
            added = list(dict.fromkeys(name for row in rows for name in row.extra))
            with (
                replacing(file) as temporary,
                open(temporary, "w", newline="", encoding="utf-8") as lines,
            ):
                table = csv.writer(lines, lineterminator="\n")
                table.writerow([*COLUMNS, *added])
                for row in rows:
                    safe = replace(row, **{c: as_text(getattr(row, c)) for c in WORDS})
                    table.writerow(
                        [
                            *map(_cell, (getattr(safe, c) for c in COLUMNS)),
                            *(row.extra.get(name, "") for name in added),
                        ]
                    )
    return rows


def _cell(value: str | float | None) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else value


# ------------------------------------------------------------------------------------------------------- the log and Kaggle's list


def is_same(sent: RemoteSubmission, file: str, message: str) -> bool:
    """Is this entry of Kaggle's list of that file and message? Kaggle may cut a message short and alters white space."""
    listed, meant = " ".join(sent.message.split()), " ".join(message.split())
    return sent.file == file and (
        listed == meant or len(listed) >= 40 and meant.startswith(listed.rstrip(".… "))
    )


def refresh(file: Path, slug: str, listed: list[RemoteSubmission]) -> list[Row]:
    """Bring the log's rows of this contest up to date from Kaggle's list (its last hundred): results that came out since, and whether it has what
    was unconfirmed. A score that is known stays where the list says none. Returns all rows; writes only where something changed."""

    def change(rows: list[Row]) -> bool:
        by_ref, taken, before = {s.ref: s for s in listed}, {r.ref for r in rows}, list(rows)
        rows.clear()
        for row in before:
            found = by_ref.get(row.ref) if row.competition == slug else None
            if row.competition == slug and row.status == "unconfirmed":
                found = find_unconfirmed(row, [s for s in listed if s.ref not in taken])
                taken |= {found.ref} if found else set()
                if (
                    not found
                    and _age(row) > LISTED_BY
                    and (len(listed) < 100 or row.time > min(s.when for s in listed))
                ):
                    warn(
                        f"{row.file}, handed over at {row.time} when the connection broke, is not in Kaggle's list: it was not accepted, and its row is dropped"
                    )
                    continue
            rows.append(result(row, found) if found else row)
        return rows != before

    return edit(file, change) if file.is_file() else []


def find_unconfirmed(row: Row, listed: list[RemoteSubmission]) -> RemoteSubmission | None:
    """The entry of Kaggle's list that an unconfirmed row has become: of its file and message, and
    the first since then. The same file may have gone there before, from the web page or another
    machine: that one's score is not this one's. The two clocks may be SKEW apart."""
    began = _seconds(row.time)
    alike = [s for s in listed if is_same(s, row.file, row.message)]
    if began is not None:
        alike = [s for s in alike if (when := _seconds(s.when)) is None or when >= began - SKEW]
    return min(alike, key=lambda s: s.when, default=None)


def now() -> str:
    """The time of a row."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _age(row: Row) -> float:
    """Seconds since then; endless for a time that was edited into something else."""
    began = _seconds(row.time)
    return math.inf if began is None else datetime.now(timezone.utc).timestamp() - began


def _seconds(time: str) -> float | None:
    """Since 1970, of a time as `now` writes it; None for anything else."""
    try:
        return (
            datetime.strptime(time, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc).timestamp()
        )
    except ValueError:
        return None


def result(row: Row, sent: RemoteSubmission) -> Row:
    """The row with what Kaggle says of it."""
    public, private = (
        old if new is None else new
        for old, new in ((row.public, sent.public), (row.private, sent.private))
    )
    status = (
        sent.status if sent.status in STATUS else "pending"
    )  # a word of a later Kaggle must not make the log unreadable
    return replace(
        row, ref=sent.ref, status=status, public=public, private=private, error=sent.error
    )


def joined(rows: list[Row], slug: str, listed: list[RemoteSubmission]) -> list[Row]:
    """This contest's rows, oldest first, and those of Kaggle's list that the log does not know (a team mate's, or sent from the web page): without CV."""
    own = [r for r in rows if r.competition == slug]
    known = {r.ref for r in own}
    others = [
        result(
            Row(
                s.when, slug, s.file, message=f"{s.message} (by {s.user})" if s.user else s.message
            ),
            s,
        )
        for s in listed
        if s.ref not in known
    ]
    return sorted([*own, *others], key=lambda r: r.time[:19])


# ------------------------------------------------------------------------------------------------------------------- for the eye


def table(rows: list[Row], last: int = 0) -> list[str]:
    """Lines of a table, one a row, or only the `last` so many: CV beside leaderboard. * marks the highest of a column of all rows."""

    def best(name: str) -> float:
        values = {v for r in rows if (v := getattr(r, name)) is not None}
        return max(values) if len(values) > 1 else math.nan

    def score(row: Row, name: str) -> str:
        value = getattr(row, name)
        return "" if value is None else f"{value:.4f}" + ("*" if value == tops[name] else " ")

    tops = {name: best(name) for name in ("cv", "public", "private")}
    cells = [
        [
            "",
            "sent (UTC)",
            "file",
            "CV ",
            "95 %",
            "public ",
            "private ",
            "public - CV",
            "",
            "message",
        ]
    ]
    for n, r in enumerate(rows, 1):
        interval = f"{r.cv_low:.3f} to {r.cv_high:.3f}" if None not in (r.cv_low, r.cv_high) else ""
        gap = f"{r.public - r.cv:+.4f}" if None not in (r.public, r.cv) else ""
        note = f"{r.message} [{r.error}]" if r.error and r.status == "error" else r.message
        status = "rejected" if r.status == "error" else "" if r.status == "complete" else r.status
        cells.append(
            [
                str(n),
                r.time[:16].replace("T", " "),
                r.file,
                score(r, "cv"),
                interval,
                score(r, "public"),
                score(r, "private"),
                gap,
                status,
                note,
            ]
        )
    cells[1:] = cells[1:][-last:]
    used = [i for i in range(len(cells[0])) if any(row[i] for row in cells[1:])]
    widths = {i: max(len(row[i]) for row in cells) for i in used}
    left = {2, 8, 9}
    return [
        "  "
        + "  ".join(
            row[i].ljust(widths[i]) if i in left else row[i].rjust(widths[i]) for i in used
        ).rstrip()
        for row in cells
    ]


def scored(rows: list[Row]) -> list[Row]:
    """Rows with a CV and a public score, of each file's bytes the last only: sending the same twice is no second observation."""
    return list(
        {r.sha256 or r.ref: r for r in rows if r.cv is not None and r.public is not None}.values()
    )


def agreement(rows: list[Row]) -> str:
    """Spearman's rank correlation of CV and public score in words; '' for fewer than three scored files, or where all of either are equal."""
    both = scored(rows)
    if len(both) < 3:
        return ""
    cv, public = (_ranks(np.array([getattr(r, name) for r in both])) for name in ("cv", "public"))
    if not cv.std() or not public.std():
        return ""
    few = ": few, so take it as a hint" if len(both) < 10 else ""
    return f"rank agreement of CV and public score (Spearman): {np.corrcoef(cv, public)[0, 1]:+.2f}, from n = {len(both)} files{few}"


def _ranks(values: np.ndarray) -> np.ndarray:
    """(N) -> ranks from 0, equal values share the mean of theirs."""
    return (values[:, None] > values).sum(1) + ((values[:, None] == values).sum(1) - 1) / 2


def show(rows: list[Row], last: int = 0) -> None:
    for line in table(rows, last):
        say(line)
