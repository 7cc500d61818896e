"""Shells that are not as one would wish: locales, folders that are gone, low limits, a stdout that
takes nothing. One line each, and no traceback."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, folder_data, picture, save

from src.core.console import InputError, error_line, say, warn
from src.core.shortage import shortage

RUN = str(ROOT / "run.sh")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
FULL = Path("/dev/full")


def shell(line: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """A line of bash; $RUN is run.sh, with the interpreter of the tests."""
    env = os.environ | {"PYTHON": sys.executable, "RUN": RUN, "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(["bash", "-c", line], cwd=cwd, env=env, capture_output=True, timeout=120)


def one_error(done: subprocess.CompletedProcess, code: str) -> str:
    err = done.stderr.decode()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].endswith(f"[{code}]"), err
    assert "Traceback" not in err and "Exception ignored" not in err, err
    return errors[0]


def test_requirements_are_ascii():
    """pip reads them in the locale's encoding."""
    assert (ROOT / "requirements.txt").read_bytes().isascii()


def test_a_class_and_a_file_with_umlauts_under_an_ascii_locale(tmp_path):
    data = folder_data(tmp_path / "data")
    for file in list((data / "train" / "benign").iterdir()):
        target = data / "train" / "größe" / file.name.replace("benign", "größe")
        target.parent.mkdir(exist_ok=True)
        file.rename(target)
    (data / "train" / "benign").rmdir()
    save(data / "train" / "normal" / "ärger.png", picture(99))
    shutil.copy(ROOT / "configs" / "competition.yaml", tmp_path)
    (tmp_path / "small.yaml").write_text("image_size: 64\n")
    words = (
        "--config small.yaml --data data --work work --set split.folds=2 "
        "--set data.classes='[größe, malignant, normal]'"
    )
    for stage in ("status", "prepare", "split", "status"):
        done = shell(f'"$RUN" {stage} {words}', tmp_path, **ASCII)
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    words = "--config small.yaml --data data --work other"
    plain = shell(f'"$PYTHON" -m src status {words}', CALLED_FROM=str(tmp_path), **ASCII)
    assert plain.returncode in (0, 2), plain.stderr.decode()
    if plain.returncode:  # only run.sh sees to it that names are UTF-8
        one_error(plain, "locale_without_letters")
    index = (tmp_path / "work" / "artifacts" / "prepared" / "index.csv").read_bytes()
    assert "größe (1),".encode() in index and "ärger,".encode() in index
    assert "größe (1),".encode() in (tmp_path / "work" / "artifacts" / "folds.csv").read_bytes()


def test_a_good_python_is_not_taken_for_one_that_lacks_packages(tmp_path):
    """In a copy, so that nothing is installed into the project's own folder if it fails."""
    for name in ("run.sh", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    os.symlink(ROOT / "src", tmp_path / "src")
    os.symlink(ROOT / "configs", tmp_path / "configs")
    done = shell('"$RUN" --help', RUN=str(tmp_path / "run.sh"), **ASCII)
    assert done.returncode == 0 and b"installing" not in done.stdout, done.stderr.decode()


def test_a_python_that_cannot_run_is_no_reason_to_install(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'Fatal Python error: no memory' >&2\nexit 1\n")
    python.chmod(0o755)
    shutil.copy(ROOT / "run.sh", tmp_path)
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    (tmp_path / "src").mkdir()
    shutil.copy(ROOT / "src" / "environment.py", tmp_path / "src")
    done = shell('"$RUN" --help', RUN=str(tmp_path / "run.sh"), PYTHON=str(python))
    assert done.returncode == 2 and not done.stdout
    assert "Fatal Python error: no memory" in one_error(done, "python_does_not_run")
    assert not (tmp_path / ".venv").exists()


def test_a_working_folder_that_is_gone(tmp_path):
    (tmp_path / "gone").mkdir()
    done = shell('cd gone; rmdir ../gone; "$RUN" status', tmp_path)
    assert done.returncode == 2
    assert f"({tmp_path / 'gone'}). " in one_error(done, "working_folder_gone")
    called = shell('"$PYTHON" -m src status', CALLED_FROM=str(tmp_path / "gone"))
    assert called.returncode == 2 and one_error(called, "working_folder_gone")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["--help", "status --data configs"])
def test_a_stdout_that_takes_nothing(words, unbuffered):
    done = shell(f'"$RUN" {words} > /dev/full', PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert one_error(done, "stdout_full")


def test_closed_streams_and_a_reader_that_has_left():
    assert shell('"$RUN" --help >&- <&-').returncode == 0
    assert shell('"$RUN" no-such-word >&- 2>&-').returncode == 2
    done = shell('"$RUN" --help | sleep 0; exit ${PIPESTATUS[0]}')
    assert done.returncode in (0, 1) and not done.stderr, done.stderr.decode()


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no such limits")
def test_low_limits(tmp_path):
    assert shell('ulimit -n 20; "$RUN" --help').returncode == 0
    data = folder_data(tmp_path / "data")
    done = shell(f'ulimit -n 9; "$PYTHON" -m src prepare --data "{data}" --work "{tmp_path}"')
    assert done.returncode == 1
    assert "(this shell allows 9)" in one_error(done, "too_many_open_files")


def test_what_the_machine_lacks_is_told_from_faults():
    cases = {
        "too_many_open_files": OSError(errno.EMFILE, "Too many open files"),
        "too_many_processes": RuntimeError("can't start new thread"),
        "out_of_memory": MemoryError(),
    }
    assert {code: shortage(error).code for code, error in cases.items()} == {c: c for c in cases}
    assert shortage(BlockingIOError(errno.EAGAIN, "fork")).code == "too_many_processes"
    assert shortage(ImportError("x.so: cannot allocate memory")).code == "out_of_memory"
    assert shortage(ValueError("wrong")) is None and shortage(KeyError("k")) is None


ODD, SHOWN = "größe 模型 \x1b]0;pwned\x07\x00\udcff", r"größe 模型 \x1b]0;pwned\x07\x00\xff"


def test_nothing_that_a_terminal_obeys_is_printed(capsys):
    say(f"a\tb\n{ODD}")
    warn(ODD)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (f"a\tb\n{SHOWN}\n", f"warning: {SHOWN}\n")
    line = error_line(InputError(f"a\n{ODD}", "b\tc", code="odd"))
    assert line == rf"error: a {SHOWN} (b\tc). [odd]"
