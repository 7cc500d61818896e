"""What the user sees: stage headers, progress, warnings and errors. Imports nothing heavy."""

from __future__ import annotations

import difflib
import os
import shlex
import signal
import sys
import time
import unicodedata
from collections.abc import Iterable
from pathlib import Path


class InputError(Exception):
    """The user's input is wrong: one line on stderr, exit code 2.

    `where` names a file or key, `todo` says what to type or change. `code` is a short name such as
    no_credentials: the line ends with it, and tests match it, so that wording can change freely.
    """

    exit_code = 2

    def __init__(self, what: str, where: object = "", todo: str = "", *, code: str = ""):
        where = f" ({short(where)})" if str(where) else ""
        super().__init__(f"{what}{where}. {todo}".strip() if todo else f"{what}{where}.")
        self.code = code


class StageError(Exception):
    """A stage could not do its work although its input was right: exit code 1."""

    exit_code = 1

    def __init__(self, what: str, *, code: str = ""):
        super().__init__(what)
        self.code = code


def error_line(error: InputError | StageError) -> str:
    """One line, whatever a library's words contain; at its end the error's short name."""
    text = escaped(" ".join(line.strip() for line in str(error).splitlines()))
    return f"error: {text} [{error.code}]" if error.code else f"error: {text}"


class Stopped(Exception):
    """Ctrl+C or SIGTERM: what was done is saved; exit code 130."""


def escaped(text: str, kept: str = "") -> str:
    """What a terminal would obey (even a name in a table may hold it) is spelled out: \\x1b. That
    is control characters but those `kept`, surrogates, and ends of lines beyond ASCII's."""
    if text.isprintable():
        return text
    odd = ("Cc", "Cs", "Zl", "Zp")
    shown = [c if c in kept or unicodedata.category(c) not in odd else _spelled(c) for c in text]
    return "".join(shown)


def _spelled(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python represents a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def say(text: str = "") -> None:
    print(escaped(text, kept="\n\t"), flush=True)


def warn(text: str) -> None:
    text = escaped(text, kept="\n\t")
    print(f"warning: {text}", file=sys.stderr, flush=True)


def header(stage: str, name: str, reads: Iterable[object], writes: Iterable[object]) -> None:
    """One line a stage: what it reads and what it writes."""
    inputs, outputs = (", ".join(map(short, files)) for files in (reads, writes))
    say(f"[{stage}] {name}: reads {inputs} -> writes {outputs}")


def short(path: object) -> str:
    """A path as the user would type it: relative to the working directory where that is shorter."""
    if not isinstance(path, Path):
        return str(path)
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)


def duration(seconds: float) -> str:
    """3 s, 2 min 05 s or 1 h 12 min."""
    seconds = int(round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def nearest(name: str, known: Iterable[str]) -> str:
    """'Did you mean X?' or, where nothing is close, the known names; for error messages."""
    known = sorted(map(str, known))
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]}?"
    more = ", …" if len(known) > 40 else ""
    return f"Known: {', '.join(known[:40])}{more}."


def counted(count: int, one: str, several: str) -> str:
    """'1 id is', '2 ids are'."""
    return f"{count} {one if count == 1 else several}"


def listing(names: Iterable[object], most: int = 8) -> str:
    """'a, b, c and 4 more': file names or ids in a message."""
    names = list(map(str, names))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def progress(total: int, label: str):
    """A tqdm bar on a terminal, silent elsewhere. A context manager; `.update(n)` advances it."""
    from tqdm import tqdm

    return tqdm(
        total=total, desc=label, disable=not sys.stderr.isatty(), leave=False, dynamic_ncols=True
    )


# What every suggested command repeats: --config first, or the word demo. Filled by __main__
REPEATED: list[str] = []
# likewise --competition SLUG, for the commands that have to do with Kaggle
OF_CONTEST: list[str] = []
# not empty as soon as the records say what --force asked for
FORCED: list[bool] = []


def command(*words: str) -> str:
    """The command line that the user would type next: called as this run was, with its --config,
    --data, --work and --set repeated."""
    script = os.environ.get("RUN_AS", "./run.sh")
    if "demo" in REPEATED[:1]:  # its stages have no other name
        return shlex.join([script, *REPEATED])
    repeated = REPEATED[2:] if "--config" in words and "--config" in REPEATED[:1] else REPEATED
    if {"submissions", "--send"} & set(words) and "--competition" not in words:
        repeated = [*repeated, *OF_CONTEST]
    return shlex.join([script, *words, *repeated])


def again() -> str:
    """What to type after the cause was removed: --force would begin from the beginning."""
    same = "run the same command again"
    return f"{same}, without --force" if FORCED else same


STARTED = time.time()


def printable(text: object, most: int = 10_000) -> str:
    """On one line, and in letters that every terminal and file takes; anything else is escaped.
    What is longer than `most` is cut."""
    text = str(text)
    return escaped(text if len(text) <= most else f"{text[:most]}…")


class Interrupts:
    """A context manager: `asked` becomes true on the first Ctrl+C or SIGTERM, and the second one
    raises KeyboardInterrupt."""

    def __enter__(self) -> Interrupts:
        self.asked = False
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        say("\n  stopping after this step (once more: immediately)")
