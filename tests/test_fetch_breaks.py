"""fetch goes on where it was broken off, by the network, by Kaggle or by the user, asks only for
the rest, and trusts nothing that is damaged."""

import os
import signal
import subprocess
import sys
import time
import zipfile

import pytest
from conftest import ROOT
from kaggle_server import CLEARED, SECRETS, make_zip
from test_fetch import CONFIG, below, home, noise, quick, run  # noqa: F401

from src.kaggle_io import download
from src.kaggle_io import unzip as archives


def test_it_goes_on_after_every_break(server, home, run):  # noqa: F811
    files = {"a.bin": noise(600_000)}
    total = len(server.add("a-contest", files).zipped())
    server.fault("Storage", cut=200_000, times=2)
    server.fault("Storage", slow=0.001, times=1)
    code, out, err = run("--competition", "a-contest")
    asked = server.asked("Storage")
    assert code == 0 and below(home / "a-contest") == files and err.count("trying again") == 2
    starts = [int((s.headers.get("Range") or "bytes=0-")[6:-1]) for s in asked]
    assert starts[0] == 0 < starts[1] <= 200_000 < starts[2] <= 400_000
    assert "Range" not in asked[0].headers
    assert (
        all(s.headers["If-Range"].startswith('"') for s in asked[1:])
        and asked[2].sent == total - starts[2]
    )  # only the rest


def test_it_gives_up_and_goes_on_in_the_next_run(server, home, run):  # noqa: F811
    files = {"a.bin": noise(600_000)}
    total = len(server.add("a-contest", files).zipped())
    server.fault("Storage", cut=150_000, times=1)
    broken = server.fault("Storage", cut=0)
    code, out, err = run("--competition", "a-contest")
    last = err.splitlines()[-1]
    assert code == 1 and last.endswith(" [connection_lost]")
    assert f"131.1 kB of {download.size(total)}, 5 times in a row" in last and "is kept" in last
    assert below(home / "a-contest") == {} and not (home / "a-contest" / "fetched.json").exists()
    broken.times = 0
    code, out, err = run("--competition", "a-contest")
    assert code == 0 and below(home / "a-contest") == files
    assert server.asked("Storage")[-1].headers["Range"] == "bytes=131072-"
    assert server.asked("Storage")[-1].sent == total - 131072


def test_what_arrived_of_another_version_is_not_gone_on_with(server, home, run):  # noqa: F811
    contest = server.add("a-contest", {"a.bin": noise(400_000)})
    server.fault("Storage", cut=150_000, times=1)
    server.fault("Storage", cut=0, times=download.BREAKS)
    assert run("--competition", "a-contest")[0] == 1
    contest.files, contest.archive = {"a.bin": noise(400_000, seed=1)}, None
    assert run("--competition", "a-contest")[0] == 0 and below(home / "a-contest") == contest.files


def test_stopped_at_any_moment(server, home, run, tmp_path):  # noqa: F811
    """Ctrl+C in the middle of the download, in a process of its own; the same command goes on."""
    files = {"a.bin": noise(900_000)}
    total = len(server.add("a-contest", files).zipped())
    slow = server.fault("Storage", slow=0.05)
    env = {k: v for k, v in os.environ.items() if k not in CLEARED} | server.environment(
        tmp_path / "home"
    )
    words = [
        sys.executable,
        "-m",
        "src",
        "fetch",
        "--competition",
        "a-contest",
        "--data",
        str(home),
        "--config",
        CONFIG,
    ]
    running = subprocess.Popen(
        words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    part = home / "a-contest" / ".fetch" / "archive.part"
    deadline = time.monotonic() + 60
    while not (part.is_file() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    kept = part.stat().st_size
    assert running.returncode == 130
    assert "go on with: ./run.sh fetch --competition a-contest" in err
    assert 0 < kept < total
    assert below(home / "a-contest") == {} and not [s for s in SECRETS if s in out + err]
    slow.times = 0
    assert run("--competition", "a-contest")[0] == 0 and below(home / "a-contest") == files
    assert server.asked("Storage")[-1].headers["Range"] == f"bytes={kept}-"


def test_stopped_while_it_unpacks(server, home, run, monkeypatch):  # noqa: F811
    files = {f"{i}.bin": noise(1000, i) for i in range(9)}
    server.add("a-contest", files)
    original, left = archives.Unpacked._write, iter(range(4))

    def stopping(*given) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        original(*given)

    monkeypatch.setattr(archives.Unpacked, "_write", stopping)
    assert run("--competition", "a-contest")[0] == 130
    assert len(below(home / "a-contest")) == 4
    assert not (home / "a-contest" / "fetched.json").exists()
    monkeypatch.setattr(archives.Unpacked, "_write", original)
    server.fault("Storage", cut=0)  # not a byte of it is needed again
    code, out, err = run("--competition", "a-contest")
    assert code == 0
    assert "4 of them were there already" in out
    assert below(home / "a-contest") == files


@pytest.mark.parametrize(
    ("fault", "code", "word"),
    [
        ({"longer": 500}, "connection_lost", "5 times in a row"),
        ({"damage": True}, "download_damaged", "MD5"),
    ],
)
def test_another_size_or_content_than_kaggle_says(server, home, run, fault, code, word):  # noqa: F811
    files = {"a.bin": noise(300_000)}
    server.add("a-contest", files)
    wrong = server.fault("Storage", **fault)
    ended, out, err = run("--competition", "a-contest")
    assert ended == 1
    assert err.splitlines()[-1].endswith(f" [{code}]") and word in err
    assert below(home / "a-contest") == {}
    wrong.times = 0
    assert run("--competition", "a-contest")[0] == 0 and below(home / "a-contest") == files


def test_a_damaged_zip_whose_md5_is_right(server, home, run):  # noqa: F811
    data = bytearray(
        make_zip({"good.bin": noise(5000), "bad.bin": noise(5000, 1)}, zipfile.ZIP_STORED)
    )
    data[8000] ^= 255
    contest = server.add("a-contest", archive=bytes(data))
    code, out, err = run("--competition", "a-contest")
    assert code == 1
    assert "[download_damaged]" in err
    assert "'bad.bin'" in err
    assert set(below(home / "a-contest")) == {"good.bin"}
    contest.archive = b"<html>sign in</html>"
    code, out, err = run("--competition", "a-contest")
    assert code == 1 and "[download_damaged]" in err and "archive.zip is not a zip" in err
