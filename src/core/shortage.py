"""When the machine, not the program, is at its limits: one line that says what there is too little
of. Imports nothing heavy."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from src.core.console import InputError, StageError, error_line

try:
    import resource
except ImportError:  # not on Windows
    resource = None

NO_MEMORY = ("cannot allocate memory", "failed to map segment", "can only be initialized once")
NO_THREADS = ("can't start new thread", "resource temporarily unavailable")
NO_FILES = ("too many open files",)
PRINTING = ("say", "pass_on", "_print_message")  # the functions that write to stdout


def shortage(error: BaseException) -> InputError | StageError | None:
    """What the machine lacks, as an error line; None where the error is about something else.

    Libraries turn the system's refusals into errors of all kinds, so that the words count as well.
    The last of NO_MEMORY is torch's, after a first try to import it that had too little memory; it
    is believed only where the memory is limited at all.
    """
    if stdout_fails(error):
        to_nowhere(sys.stdout)
        return stdout_full(error)
    encoding = sys.getfilesystemencoding()
    if isinstance(error, UnicodeEncodeError) and encoding != "utf-8":
        what = f"this locale ({encoding}) lacks letters of a name"
        todo = "Use ./run.sh, or set PYTHONUTF8=1"
        return InputError(what, "", todo, code="locale_without_letters")
    number, text = getattr(error, "errno", None), str(error).lower()
    if number in (errno.EMFILE, errno.ENFILE) or any(words in text for words in NO_FILES):
        return StageError(
            f"too many open files{_limit('RLIMIT_NOFILE')}. Allow more with ulimit -n 1024",
            code="too_many_open_files",
        )
    if number == errno.EAGAIN or any(words in text for words in NO_THREADS):
        return StageError(
            f"no more processes or threads can be started{_limit('RLIMIT_NPROC')}. "
            "End others, or allow more with ulimit -u",
            code="too_many_processes",
        )
    limit = _limit("RLIMIT_AS")
    words = NO_MEMORY if limit else NO_MEMORY[:1]
    if number == errno.ENOMEM or isinstance(error, MemoryError) or any(w in text for w in words):
        return StageError(
            f"out of memory{limit}. End other programs, or allow more with ulimit -v unlimited",
            code="out_of_memory",
        )
    return None


def _limit(name: str) -> str:
    """' (this shell allows 20)', or '' where there is no limit."""
    if not hasattr(resource, name):
        return ""
    soft = resource.getrlimit(getattr(resource, name))[0]
    if soft == resource.RLIM_INFINITY:
        return ""
    amount = f"{soft // 2**20} MB" if name == "RLIMIT_AS" else str(soft)
    return f" (this shell allows {amount})"


def stdout_fails(error: BaseException) -> bool:
    """Whether this is about what was printed last: it was raised where something is printed (the
    system names no file for it), or stdout still holds what it cannot write."""
    if not isinstance(error, OSError):
        return False
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    if at is not None and at.tb_frame.f_code.co_name in PRINTING:
        return True
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        return True
    return False


def stdout_full(error: BaseException) -> StageError:
    text = f"stdout takes no more ({error}). Write it elsewhere, or make room"
    return StageError(text, code="stdout_full")


def to_nowhere(stream) -> None:
    """Let a stream that takes no more take everything, or the interpreter complains at its end."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()
    except (AttributeError, OSError, ValueError):
        pass


def to_the_end(run: Callable[[], int]) -> int:
    """Run a command until stdout has written all that was printed, and not only buffered it.
    Returns the exit code."""
    if sys.stdout is not None and sys.stdout.encoding.lower() not in ("utf-8", "utf8"):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every locale has an ellipsis
    try:
        code = run()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    # the interpreter would wait for children, forever where a pool was only half made
    if "multiprocessing" in sys.modules:
        for child in sys.modules["multiprocessing"].active_children():
            child.kill()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        to_nowhere(sys.stdout)
        if not isinstance(error, BrokenPipeError):  # … | head
            complain(error_line(stdout_full(error)))
        code = code or 1
    return code


def complain(line: str) -> None:
    """A line on stderr, where that takes it; elsewhere the exit code alone has to do."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        to_nowhere(sys.stderr)


def enter_working_folder() -> None:
    """Go to where the command was called from. Raises InputError where that folder is gone."""
    folder = os.environ.get("CALLED_FROM", ".")
    try:
        os.chdir(folder)
        os.getcwd()  # a folder that is gone can still be called "."
    except OSError as error:
        raise InputError(
            f"the folder that this was called from cannot be entered: {error.strerror}",
            "" if folder == "." else folder,
            "Change to another one (cd)",
            code="working_folder_gone",
        ) from None
