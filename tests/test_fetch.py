"""fetch: from the stand-in server into a folder that the pipeline understands, and one line for
everything that is wrong. Breaks: test_fetch_breaks.py."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from kaggle_server import SECRETS, enter, make_zip

from src.__main__ import main
from src.core.console import short
from src.kaggle_io import client as kaggle
from src.kaggle_io import download, errors
from src.kaggle_io import unzip as archives
from src.tools import fetch

CONFIG = str(ROOT / "configs" / "cpu.yaml")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(kaggle, "PAUSE", 0.01)
    monkeypatch.setattr(download, "PAUSE", 0.01)


@pytest.fixture
def home(tmp_path) -> Path:
    return tmp_path / "in"


@pytest.fixture
def run(home, capfd):
    """run('--competition', 'a-contest', …) -> (exit code, stdout, stderr), which never hold
    credentials."""

    def fetching(*words: str) -> tuple[int, str, str]:
        code = main(["fetch", *words, "--data", str(home), "--config", CONFIG])
        out, err = capfd.readouterr()
        assert not [s for s in SECRETS if s in out + err]
        return code, out, err

    return fetching


def below(folder: Path) -> dict[str, bytes]:
    return {
        f.relative_to(folder).as_posix(): f.read_bytes()
        for f in sorted(folder.rglob("*"))
        if f.is_file()
        and ".fetch" not in f.parts
        and f.name != "fetched.json"
        and f.suffix != ".lock"
    }


def noise(count: int, seed: int = 0) -> bytes:
    """What does not compress."""
    import random

    return random.Random(seed).randbytes(count)


def test_a_contest_from_nothing_to_a_folder_that_the_pipeline_sees(server, demo, home, run):
    files = below(demo)
    server.add("a-contest", files)
    code, out, err = run("--competition", "https://www.kaggle.com/competitions/a-contest/overview")
    folder = home / "a-contest"
    assert code == 0 and err == "" and below(folder) == files
    record = json.loads((folder / "fetched.json").read_text())
    assert record["competition"] == "a-contest"
    assert record["dataset"] is None
    assert set(record["files"]) == set(files)
    assert not (folder / ".fetch").exists()
    assert all(
        f["bytes"] == len(files[n]) and int(f["crc"], 16) == archives.crc_of(folder / n)
        for n, f in record["files"].items()
    )
    assert not [s for s in SECRETS if s in (folder / "fetched.json").read_text()]
    lines = out.splitlines()
    assert (
        lines[1]
        == "  A contest; until 2030-01-01 00:00 UTC; Mean of Dice and macro F1; 5 submissions a day"
    )
    assert "the sample submission is sample_submission.csv" in out
    assert "the pipeline sees 24 train and 6 test images" in out
    config, data = short(Path(CONFIG)), short(folder)
    assert lines[-1] == f"next: ./run.sh --config {config} --data {data}"

    sent = len(server.asked("Storage"))
    code, out, err = run("--competition", "a-contest")
    assert code == 0
    assert "up to date since 20" in out
    assert len(server.asked("Storage")) == sent + 1
    assert below(folder) == files
    next(f for f in folder.rglob("*.png")).write_bytes(b"cut short")
    code, out, err = run("--competition", "a-contest")
    assert code == 0
    assert f"{len(files) - 1} of them were there already" in out
    assert below(folder) == files
    code, out, err = run("--competition", "a-contest", "--force")
    assert code == 0 and "the download is" in out and below(folder) == files


def test_the_slug_of_the_config_and_a_changed_contest(server, home, run):
    contest = server.add("a-contest", {"a.csv": b"1", "b.csv": b"2"})
    assert run("--set", "slug=a-contest")[0] == 0 and below(home / "a-contest") == contest.files
    contest.files, contest.archive = {"a.csv": b"1", "c.csv": b"33"}, None
    code, out, err = run("--set", "slug=a-contest")
    assert code == 0
    assert "1 files are no longer part of it, and are kept: b.csv" in err
    assert set(below(home / "a-contest")) == {"a.csv", "b.csv", "c.csv"}
    assert set(json.loads((home / "a-contest" / "fetched.json").read_text())["files"]) == {
        "a.csv",
        "c.csv",
    }
    code, out, err = run()
    assert code == 2 and "[no_contest_named]" in err


def test_a_data_set(server, demo, home, run):
    busi = {
        f"Dataset_BUSI_with_GT/{n.removeprefix('train/')}": d
        for n, d in below(demo).items()
        if n.startswith("train/")
    }
    server.add_dataset("aryashah2k/breast-ultrasound-images-dataset", busi)
    code, out, err = run(
        "--dataset", "https://www.kaggle.com/datasets/aryashah2k/breast-ultrasound-images-dataset"
    )
    folder = home / "breast-ultrasound-images-dataset"
    assert code == 0 and err == "" and below(folder) == busi
    assert "there is no sample submission" in out
    assert "sees 24 train and 0 test images" in out
    record = json.loads((folder / "fetched.json").read_text())
    assert record["dataset"] == "aryashah2k/breast-ultrasound-images-dataset"
    assert record["competition"] is None
    assert "up to date" in run("--dataset", "aryashah2k/breast-ultrasound-images-dataset")[1]


def test_a_single_file_that_is_no_zip(server, home, run):
    server.add("a-contest", archive=b"id,label\n", archive_name="train.csv")
    assert run("--competition", "a-contest")[0] == 0
    assert below(home / "a-contest") == {"train.csv": b"id,label\n"}
    assert "up to date" in run("--competition", "a-contest")[1]


@pytest.mark.parametrize(
    ("endpoint", "fault", "code", "name", "word"),
    [
        ("DownloadDataFiles", {"status": 403}, 2, "rules_not_accepted", "a-contest/rules"),
        ("ListDataFiles", {"hang": 0.6}, 1, "kaggle_silent", "0.2 s"),
        ("Storage", {"status": 500}, 1, "kaggle_trouble", "(500"),
    ],
)
def test_refusals(server, home, run, monkeypatch, endpoint, fault, code, name, word):
    server.add("a-contest", {"a.csv": b"1"})
    server.fault(endpoint, **fault)
    monkeypatch.setattr(errors, "TIMEOUT", (0.2, 0.2))
    ended, out, err = run("--competition", "a-contest")
    last = err.splitlines()[-1]
    assert ended == code
    assert last.startswith("error: ")
    assert last.endswith(f" [{name}]")
    assert word in last
    assert "Traceback" not in err
    assert below(home) == {}
    ended, out, err = run("--competition", "a-contest", "--traceback")
    assert ended == code and "Traceback" in err  # and `run` looks for credentials in it


def test_wrong_words(server, home, run, monkeypatch, tmp_path):
    for words, name in (
        (("--competition", "https://www.kaggle.com/t/0123456789abcdef"), "invitation"),
        (("--dataset", "busi"), "not_a_slug"),
        (("--dataset", "a/b", "--competition", "c"), "option_elsewhere"),
    ):
        code, out, err = run(*words)
        assert code == 2 and f"[{name}]" in err and len(err.splitlines()) == 1
    enter(monkeypatch, server, tmp_path / "home", "none")
    code, out, err = run("--competition", "a-contest")
    assert code == 2
    assert "[no_credentials]" in err
    assert len(err.splitlines()) == 1
    assert not home.exists()
    assert server.seen == []


@pytest.mark.parametrize(
    ("archive", "name", "word"),
    [({"../x": b"1"}, "archive_refused", "'../x'"), ({"x": bytes(5000)}, "archive_too_large", "")],
)
def test_what_must_not_be_unpacked(server, home, run, monkeypatch, archive, name, word):
    monkeypatch.setattr(fetch, "MOST", 1000)
    server.add("a-contest", archive=make_zip(archive))
    code, out, err = run("--competition", "a-contest")
    assert code == 2
    assert f"[{name}]" in err
    assert word in err
    assert "archive.part" in err
    assert below(home) == {}
    assert not (home / "a-contest" / "fetched.json").exists()


def test_zips_in_the_zip_through_fetch(server, home, run):
    server.add(
        "a-contest", {"train.zip": make_zip({"a.npy": b"1"}), "SampleSubmission_v2.csv": b"id\n"}
    )
    code, out, err = run("--competition", "a-contest")
    assert (
        code == 0
        and err == ""
        and below(home / "a-contest") == {"train/a.npy": b"1", "SampleSubmission_v2.csv": b"id\n"}
    )  # no word of a missing train.zip
    assert "the sample submission is SampleSubmission_v2.csv" in out
    assert "does not understand the folder yet: no images" in out
    assert "up to date" in run("--competition", "a-contest")[1]


def test_a_sample_of_another_name_is_named(server, home, run):
    server.add(
        "a-contest",
        {"stage_1_sample_submission.csv": b"id\n", "stage_2_sample_submission.csv": b"id\n"},
    )
    out = run("--competition", "a-contest")[1]
    assert "stage_1_sample_submission.csv or stage_2_sample_submission.csv: name it by" in out
    assert " --set data.sample_submission=stage_1_sample_submission.csv " in out.splitlines()[-1]


def test_the_disk_is_full(server, home, run, monkeypatch):
    files = {"a.bin": noise(300_000), "b.bin": noise(1000)}
    needed = len(server.add("a-contest", files).zipped()) + 301_000
    real = shutil.disk_usage
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: real(path)._replace(free=1000))
    code, out, err = run("--competition", "a-contest")
    assert code == 2
    assert "[disk_full]" in err
    assert download.size(needed) in err
    assert "1.0 kB" in err
    assert "--data" in err
    monkeypatch.undo()
    enter(monkeypatch, server, home.parent / "home")
    # the disk fills up while it downloads, and while it unpacks
    for module in (download, archives):
        monkeypatch.setattr(module, "open", full, raising=False)
        code, out, err = run("--competition", "a-contest")
        assert code == 2 and err.splitlines()[-1].endswith(" [disk_full]") and "is kept" in err
        assert below(home / "a-contest") == {}
        monkeypatch.delattr(module, "open")
    assert run("--competition", "a-contest")[0] == 0 and below(home / "a-contest") == files


def full(path, mode="r", *rest, **more):
    file = open(path, mode, *rest, **more)  # noqa: SIM115 (it stands in for open itself)
    if not set("wax") & set(mode):
        return file

    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            file.close()

        def write(self, data: bytes) -> None:
            raise OSError(28, "No space left on device", str(path))

    return Full()


def test_progress_where_there_is_no_terminal(server, home, run, monkeypatch):
    server.add("a-contest", {"a.bin": noise(400_000)})
    monkeypatch.setattr(download, "QUIET", 0)
    out = run("--competition", "a-contest")[1]
    lines = [line for line in out.splitlines() if line.startswith("  download: ")]
    assert len(lines) > 3
    assert lines[0].startswith("  download: 65.5 kB of 400.2 kB (16 %), about ")
    assert "(100 %)" in lines[-1]
    assert "  unpack: " in out


def test_what_is_listed_and_did_not_come(server, home, run):
    server.add("a-contest", {"a.csv": b"1", "b.csv": b"2"}, archive=make_zip({"a.csv": b"1"}))
    code, out, err = run("--competition", "a-contest")
    assert code == 0 and "1 files that Kaggle lists were not in the download: b.csv" in err


def test_a_folder_that_cannot_be_made(server, home, run):
    home.write_text("a file")
    server.add("a-contest", {"a.csv": b"1"})
    code, out, err = run("--competition", "a-contest")
    assert code == 2 and "[file_or_folder]" in err and "--data" in err
