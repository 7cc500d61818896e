"""Files are written whole or not at all, damage is found before it is used, and hours are kept."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, command_line, write_configs

from src.__main__ import main
from src.config.load import load
from src.core import disk, freshness
from src.core.console import InputError, StageError
from src.core.disk import new_folder, read_json, replacing, write_json
from src.core.freshness import Fingerprints, Job
from src.core.paths import Paths
from src.core.settings import Experiment
from src.pipeline.jobs import plan
from src.tools import demo_data
from src.training import checkpoint

SMALL = """image_size: 32
predict: {tta: [identity]}
model: {arch: unet, encoder: tu-lcnet_035, encoder_weights: none,
        options: {decoder_channels: [32, 16, 16, 8, 8]}}
"""
SETTINGS = ("split.folds=2", "train.epochs=2", "train.workers=0", "evaluate.bootstrap=100")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """configs/, data/ and a finished run of two folds; read-only."""
    home = tmp_path_factory.mktemp("lost")
    write_configs(home, small=SMALL)
    demo_data.make(home / "data", n_train=24, n_test=4, size=(60, 90))
    assert main(line(home)) == 0
    return home


@pytest.fixture
def home(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "home"))


def line(home: Path, *words: str) -> list[str]:
    return command_line(home, *words, sets=SETTINGS)


def paths_of(home: Path) -> Paths:
    return Paths(home, home / "data")


def states(home: Path) -> dict[str, str]:
    config = load(home / "configs" / "small.yaml", list(SETTINGS))
    return {job.title: job.state().kind for job in plan(config, paths_of(home))}


# --------------------------------------------------------------------------------- writing a file


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "new" / "a.txt"
    with replacing(file) as temporary:
        temporary.write_text("one")
        assert not file.exists()
    with pytest.raises(ZeroDivisionError), replacing(file) as temporary:
        temporary.write_text("two")
        raise ZeroDivisionError
    assert file.read_text() == "one" and os.listdir(file.parent) == ["a.txt"]


def test_two_writers_have_two_temporary_files(tmp_path):
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "a") as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a").read_text() == "one", "the last one to end has the name"


def test_a_link_that_waits_at_a_temporary_name_is_not_followed(tmp_path, monkeypatch):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    monkeypatch.setattr(disk.secrets, "token_hex", lambda n: "00")
    name = f".a.{disk.HOST[:40]}-{os.getpid()}-00.part"
    (tmp_path / name).symlink_to(precious)
    with pytest.raises(FileExistsError), replacing(tmp_path / "a") as temporary:
        temporary.write_text("theirs")
    assert precious.read_text() == "mine"


def test_what_a_killed_run_left_goes_with_the_next_write(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = tmp_path / f".a.{disk.HOST[:40]}-{gone.pid}-12345678.part"
    living = tmp_path / f".a.{disk.HOST[:40]}-{os.getppid()}-12345678.part"
    elsewhere, other = tmp_path / ".a.elsewhere-1-12345678.part", tmp_path / ".ab.x-1-1.part"
    for file in (left, living, elsewhere, other):
        file.touch()
    write_json(tmp_path / "a", {})
    assert not left.exists() and living.exists() and elsewhere.exists() and other.exists()
    os.utime(elsewhere, (0, 0))
    write_json(tmp_path / "a", {})
    assert not elsewhere.exists(), "nobody writes one file for a day"


@pytest.mark.parametrize(
    "number, kind, code, said",
    [
        (errno.ENOSPC, InputError, "disk_full", "(a). Free some space"),
        (errno.EDQUOT, InputError, "disk_full", "(a)"),
        (errno.EFBIG, InputError, "file_too_large", "Raise `ulimit -f`"),
        (errno.EACCES, InputError, "no_permission", "(a)"),
        (errno.EROFS, InputError, "no_permission", "name another folder"),
        (errno.EMFILE, StageError, "too_many_open_files", "ulimit -n"),
        (errno.EIO, StageError, "system_error", "Input/output error (a)"),
    ],
)
def test_what_the_system_refuses_is_one_line(tmp_path, monkeypatch, number, kind, code, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as raised, replacing(Path("a")):
        raise OSError(number, os.strerror(number))
    assert raised.value.code == code and said in str(raised.value)


def test_a_disk_that_fills_up_inside_of_torch_is_one_line(tmp_path, monkeypatch):
    """torch raises a RuntimeError of its own, and the disk's error only stands behind it."""
    monkeypatch.chdir(tmp_path)
    code = (
        "import resource, torch\nfrom pathlib import Path\n"
        "from src.training import checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    checkpoint.save(Path('last.pt'), {'a': torch.zeros(1_000_000)})\n"
        "except Exception as error:\n    print(type(error).__name__, error.code, error)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith("InputError file_too_large"), done.stdout + done.stderr
    assert "last.pt" in done.stdout and os.listdir(tmp_path) == []


def test_two_runs_in_one_second_do_not_share_a_place_for_old_results(tmp_path):
    folders = [new_folder(tmp_path, "20260101-000000") for _ in range(3)]
    assert [f.name[15:] for f in folders] == ["", "-2", "-3"] and all(f.is_dir() for f in folders)


@pytest.mark.parametrize("text", ["[]", "3", '"x"', "null", "{", "\x00", "[" * 100_000])
def test_json_that_is_no_object_is_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError) as raised:
        read_json(tmp_path / "a.json")
    assert raised.value.code == "damaged_json"


# -------------------------------------------------------------------------------- damage is found


def flip(file: Path, at: float = 0.5) -> None:
    """One bit changed, and neither length nor times."""
    before, data = file.stat(), bytearray(file.read_bytes())
    data[int(len(data) * at)] ^= 4
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def forget() -> None:
    """As a new process would begin."""
    Fingerprints._loaded.clear()


def test_a_flipped_bit_is_mended_by_the_run_that_meets_it(home):
    good = paths_of(home).images(Experiment(image_size=32, resize="stretch")).read_bytes()
    flip(paths_of(home).images(Experiment(image_size=32, resize="stretch")))
    forget()
    assert main(line(home, "--force")) == 0
    assert paths_of(home).images(Experiment(image_size=32, resize="stretch")).read_bytes() == good


def test_every_flipped_bit_of_a_checkpoint_is_found_or_harmless(tmp_path):
    file, net = tmp_path / "a.pt", torch.nn.Conv2d(2, 3, 3)
    checkpoint.save(file, {"ema": net.state_dict(), "epoch": 3, "score": 0.5})
    good, data, found = checkpoint.read(file), file.read_bytes(), 0
    for place in range(0, len(data), 7):
        spoilt = bytearray(data)
        spoilt[place] ^= 1 << place % 8
        file.write_bytes(spoilt)
        try:
            read = checkpoint.read(file)
        except ValueError:
            found += 1
            continue
        assert read["epoch"] == 3 and read["score"] == 0.5
        assert all(torch.equal(read["ema"][k], v) for k, v in good["ema"].items())
    assert found > len(data) / 7 / 2


def test_a_stopped_fold_does_not_go_on_from_a_flipped_bit(home, capfd, monkeypatch):
    paths = paths_of(home)
    record = json.loads(paths.record("train", "small", 0).read_text())
    record["ended"] = None  # as if it had been killed after its last epoch
    write_json(paths.record("train", "small", 0), record)
    good = paths.checkpoint("small", 0, "best").read_bytes()
    flip(paths.checkpoint("small", 0, "last"))
    assert main(line(home, "train", "--fold", "0")) == 0
    told = capfd.readouterr()
    assert "last.pt is damaged (its content does not match its checksums)" in told.err
    assert "epoch   1/2" in told.out and paths.checkpoint("small", 0, "best").read_bytes() == good


@pytest.mark.parametrize("spoil", ["other", "history", "random", "step", "list", "empty"])
def test_a_checkpoint_of_something_else_is_one_line(home, spoil, capfd):
    paths = paths_of(home)
    last = paths.checkpoint("small", 0, "last")
    record = json.loads(paths.record("train", "small", 0).read_text())
    write_json(paths.record("train", "small", 0), record | {"ended": None})
    content = torch.load(last, weights_only=True)
    if spoil == "other":
        content["net"] = torch.nn.Conv2d(2, 3, 3).state_dict()
    elif spoil == "history":
        content["history"] = 3
    elif spoil == "random":
        content["random"] = {"cpu": torch.zeros(3), "cuda": []}
    elif spoil == "step":
        content["step"] = "one"
    content = {"list": [1], "empty": {}}.get(spoil, content)
    torch.save(content, last)
    code = main(line(home, "train", "--fold", "0"))
    err = capfd.readouterr().err
    if spoil in ("list", "empty"):
        assert code == 0, err
    else:
        assert code == 2 and "[foreign_checkpoint]" in err and err.count("error: ") == 1
    assert "Traceback" not in err and "fault of" not in err and "weights_only" not in err


def test_damaged_records_are_as_good_as_none(home):
    paths = paths_of(home)
    paths.fingerprints.write_text("[1, 2]")
    forget()
    assert set(states(home).values()) == {"done"}
    record = paths.record("evaluate", "small")
    content = json.loads(record.read_text())
    other = ({"outputs": [1]}, {"digests": "x"}, {"seconds": "long"})
    for spoilt in ([], {"keys": 3}, *(content | o for o in other)):
        record.write_text(json.dumps(spoilt))
        assert states(home)["evaluate small"] == "missing", spoilt
    paths.fingerprints.write_text(json.dumps({"x": 3, str(paths.folds): [1, 2, 3]}))
    forget()
    assert states(home)["train small fold 0"] == "done"


def test_what_is_suggested_for_a_flipped_bit_mends_it(home, capfd):
    """The memory of fingerprints is of before the flip, and another command wrote it."""
    paths = paths_of(home)
    assert main(line(home, "status")) == 0
    for file, words, mending in (
        (paths.checkpoint("small", 0, "last"), ["predict", "--force"], ["train", "--fold", "0"]),
        (paths.checkpoint("small", 1, "last"), ["bundle"], ["train", "--fold", "1"]),
        (paths.images(Experiment(image_size=32)), ["train", "--set", "train.lr=0.1"], ["prepare"]),
        (paths.oof("small"), ["evaluate", "--force"], ["predict"]),
    ):
        flip(file)
        for _ in range(2):  # the first refusal must not make the second one forget
            forget()
            capfd.readouterr()
            assert main(line(home, *words)) == 2
            err = capfd.readouterr().err
            assert f"{file.name} is not as it was written" in err and " ".join(mending) in err
        forget()
        assert main(line(home, *mending)) == 0
        assert "up to date" not in capfd.readouterr().out
        assert main(line(home)) == 0


def test_a_damaged_best_checkpoint_is_found_when_a_fold_goes_on(home, capfd):
    paths = paths_of(home)
    record = json.loads(paths.record("train", "small", 0).read_text())
    write_json(paths.record("train", "small", 0), record | {"ended": None})
    flip(paths.checkpoint("small", 0, "best"))
    assert main(line(home, "train", "--fold", "0")) == 0
    told = capfd.readouterr()
    assert "best.pt is damaged: this fold starts over" in told.err and "epoch   1/2" in told.out


# --------------------------------------------------------------------------------- hours are kept


def test_force_is_remembered_and_not_suggested(home, capfd, monkeypatch):
    """`--force` stopped in the second fold: the suggested command keeps the first one, goes on
    with the second and still does the rest anew."""
    paths, stopped = paths_of(home), []

    def stop_in_fold_1(clock):
        if clock.job.fold == 1 and not stopped:
            stopped.append(os.kill(os.getpid(), signal.SIGINT))

    with monkeypatch.context() as patched:
        patched.setattr("src.training.runlog.Clock.tick", stop_in_fold_1)
        assert main(line(home, "--force")) == 130
    said = capfd.readouterr().err
    assert "--force" not in said and "Go on with: ./run.sh --config" in said
    first = paths.record("train", "small", 0).stat().st_mtime_ns
    kinds = states(home)
    assert kinds["train small fold 0"] == "done" and kinds["train small fold 1"] == "begun"
    assert kinds["predict small"] == kinds["submit small"] == "stale"
    assert main(line(home)) == 0
    out = capfd.readouterr().out
    assert "goes on from epoch 0, step 1" in out and "[submit]" in out
    assert paths.record("train", "small", 0).stat().st_mtime_ns == first
    assert set(states(home).values()) == {"done"}


def test_force_stopped_before_it_is_noted_is_suggested_again(home, capfd, monkeypatch):
    def stop(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("src.parts.check.check", stop)
    assert main(line(home, "train", "--force")) == 130
    assert "go on with: ./run.sh train --force" in capfd.readouterr().err


def test_force_stopped_before_anything_is_written_is_not_forgotten(home, capfd, monkeypatch):
    oof = paths_of(home).oof("small").stat().st_mtime_ns

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("src.stages.predict.predict_fold", stop)
        assert main(line(home, "predict", "--force")) == 130
    assert paths_of(home).oof("small").stat().st_mtime_ns == oof, "the old one is back"
    assert states(home)["predict small"] == "stale" and "--force" not in capfd.readouterr().err
    assert main(line(home, "predict")) == 0
    assert paths_of(home).oof("small").stat().st_mtime_ns > oof


def test_a_full_disk_under_force_does_not_suggest_force(home, capfd, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("src.training.checkpoint.torch.save", full)
    assert main(line(home, "train", "--fold", "0", "--force")) == 2
    assert "then run the same command again, without --force [disk_full]" in capfd.readouterr().err
    assert states(home)["train small fold 0"] == "stale", "and the wish stands"


def test_what_force_asked_for_is_said_by_status(home, capfd):
    record = paths_of(home).record("predict", "small")
    write_json(record, json.loads(record.read_text()) | {"redo": True})
    assert main(line(home, "status")) == 0
    assert "stale    " in (out := capfd.readouterr().out) and freshness.FORCED in out


def test_a_forced_stage_that_fails_leaves_the_old_result(home, monkeypatch, capfd):
    oof = paths_of(home).oof("small").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("src.stages.predict.predict_fold", lambda *_, **__: 1 / 0)
        assert main(line(home, "predict", "--force")) == 1
    assert paths_of(home).oof("small").read_bytes() == oof
    assert set(states(home).values()) == {"done"}


def test_a_setting_that_came_later_counts_as_its_default(home):
    paths = paths_of(home)
    record = paths.record("train", "small", 0)
    content = json.loads(record.read_text())
    assert content["keys"].pop("train.momentum") == freshness.defaults()["train.momentum"]
    write_json(record, content)
    assert states(home)["train small fold 0"] == "done"
    del content["keys"]["train.epochs"]  # 40 by default, 2 here
    write_json(record, content)
    config = load(home / "configs" / "small.yaml", list(SETTINGS))
    job: Job = next(j for j in plan(config, paths) if j.fold == 0)
    assert job.state().why == "train.epochs changed from unset to 2"


@pytest.mark.parametrize("dropped", ["train.gone", "train.workers"])
def test_a_setting_that_no_longer_counts_makes_nothing_stale(home, dropped):
    """Removed in a later version, or since known to change no result."""
    file = paths_of(home).record("train", "small", 0)
    record = json.loads(file.read_text())
    write_json(file, record | {"keys": record["keys"] | {dropped: 3}})
    assert states(home)["train small fold 0"] == "done"
    write_json(file, record | {"keys": record["keys"] | {"split.folds": 3}})
    assert states(home)["train small fold 0"] == "stale"


def test_generated_images_leave_the_submissions_alone(tmp_path):
    real, demo = paths_of(tmp_path), paths_of(tmp_path).demo()
    assert real.submission("demo") != demo.submission("demo")
    assert demo.submissions.is_relative_to(demo.artifacts)


def test_a_record_says_done_only_after_its_files_are_on_the_disk(tmp_path, monkeypatch):
    """Every file is synced before it has its name, every name before the next file is begun."""
    events: list[str] = []
    names: dict[int, str] = {}
    fsync, replace = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        events.append(f"sync {names.get(os.fstat(descriptor).st_ino, 'folder')}")
        fsync(descriptor)

    def note_replace(source, target) -> None:
        events.append(f"name {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    for name in ("a", "record"):
        with replacing(tmp_path / name) as temporary:
            temporary.write_text(name)
            names[temporary.stat().st_ino] = name
    one = ["sync a", "name a", "sync folder"]
    assert events == [*one, *(e.replace(" a", " record") for e in one)]
