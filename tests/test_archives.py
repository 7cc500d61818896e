"""Unpacking: everything arrives, nothing lands outside of the folder, nothing beyond the bound,
nothing half-written."""

import io
import stat
import warnings
import zipfile
from pathlib import Path

import pytest
from conftest import refused
from kaggle_server import make_zip

from src.kaggle_io import unzip as archives
from src.kaggle_io.unzip import Damaged, FileRecord, unpack

LINK, PIPE, BLOCK = stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o666, stat.S_IFBLK | 0o666


def below(folder: Path) -> dict[str, bytes]:
    return {
        f.relative_to(folder).as_posix(): f.read_bytes()
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    }


def with_one(name: str, mode: int = 0, data: bytes = b"x") -> bytes:
    """A zip of a good file and another one, as Unix writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a doubled name
        archive.writestr("good.txt", "good")
        info = zipfile.ZipInfo(name)
        info.external_attr, info.create_system = mode << 16, 3
        archive.writestr(info, data)
    return buffer.getvalue()


def packed(tmp_path: Path, data: bytes) -> Path:
    (tmp_path / "all.zip").write_bytes(data)
    (tmp_path / "out").mkdir(exist_ok=True)
    return tmp_path / "all.zip"


def encrypted() -> bytes:
    data = bytearray(with_one("secret.txt"))
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (with_one("../x"), "a path that leads out of its folder: '../x'"),
        (with_one("a/../../x"), "a path that leads out of its folder"),
        (with_one("..\\x"), "a path that leads out of its folder"),
        (with_one("/etc/x"), "a path that leads out of its folder: '/etc/x'"),
        (with_one("C:\\x"), "a path that leads out of its folder"),
        (with_one("link", LINK, b"/etc/passwd"), "a link: 'link'"),
        (with_one("pipe", PIPE), "a device: 'pipe'"),
        (with_one("device", BLOCK), "a device"),
        (with_one("good.txt"), "the same name twice: 'good.txt'"),
        (encrypted(), "an encrypted file: 'secret.txt'"),
        (
            make_zip({"inner.zip": with_one("../../x")}),
            "a path that leads out of its folder: '../../x'",
        ),
        (make_zip({"inner.zip": with_one("link", LINK, b"/etc")}), "a link"),
    ],
)
def test_what_must_not_be_unpacked(tmp_path, data, message):
    file = packed(tmp_path, data)
    before = set(tmp_path.rglob("*"))
    with refused("archive_refused") as caught:
        unpack(file, tmp_path / "out", 10**6)
    assert (
        message in str(caught.value) and set(tmp_path.rglob("*")) == before
    )  # not even the good one


def test_more_than_is_allowed(tmp_path):
    bomb = make_zip({"zeros": bytes(30_000_000)})
    assert len(bomb) < 40_000
    for data in (
        bomb,
        make_zip({"in.zip": make_zip({f"{i}": bytes(4_000_000) for i in range(4)})}),
        make_zip({"a": bytes(6_000_000), "in.zip": make_zip({"b": bytes(6_000_000)})}),
    ):
        with refused("archive_too_large"):
            unpack(packed(tmp_path, data), tmp_path / "out", 10_000_000)
        assert sum(f.stat().st_size for f in (tmp_path / "out").rglob("*")) <= 10_000_000
        for file in (tmp_path / "out").iterdir():
            file.unlink()
    two = {
        f"{i}.zip": make_zip({f"{i}": bytes(3_000_000)}, zipfile.ZIP_STORED) for i in range(2)
    }  # each takes its room twice, until it is unpacked
    assert unpack(packed(tmp_path, make_zip(two)), tmp_path / "out", 10_000_000).new == 2


def test_a_member_that_says_a_smaller_size_than_it_has(tmp_path):
    data = bytearray(make_zip({"zeros": bytes(30_000_000)}))
    for at in (data.index(b"PK\x03\x04") + 22, data.rindex(b"PK\x01\x02") + 24):
        data[at : at + 4] = (100).to_bytes(4, "little")
    with pytest.raises(Damaged):
        unpack(packed(tmp_path, bytes(data)), tmp_path / "out", 10_000_000)
    assert below(tmp_path / "out") == {}


def test_a_damaged_member_leaves_no_file(tmp_path):
    data = bytearray(
        make_zip(
            {"good.bin": bytes(range(250)) * 20, "bad.bin": bytes(range(250)) * 20},
            zipfile.ZIP_STORED,
        )
    )
    data[8000] ^= 255
    with refused("download_damaged", "'bad.bin'", kind=Damaged):
        unpack(packed(tmp_path, bytes(data)), tmp_path / "out", 10**6)
    assert set(below(tmp_path / "out")) == {"good.bin"}
    with refused("download_damaged", "in.zip: ", "'bad.bin'", kind=Damaged):
        unpack(packed(tmp_path, make_zip({"in.zip": bytes(data)})), tmp_path / "out", 10**6)
    with pytest.raises(Damaged):
        unpack(packed(tmp_path, bytes(data[:9000])), tmp_path / "out", 10**6)


def test_a_link_in_the_folder_is_not_followed_out_of_it(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    file = packed(tmp_path, make_zip({"train/x.txt": b"x", "y.txt": b"new"}))
    (tmp_path / "out" / "train").symlink_to(tmp_path / "elsewhere")
    with refused("archive_refused", "Remove that link"):
        unpack(file, tmp_path / "out", 10**6)
    (tmp_path / "out" / "train").unlink()
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "out" / "y.txt").symlink_to(tmp_path / "mine.txt")
    unpack(file, tmp_path / "out", 10**6)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert (tmp_path / "out" / "y.txt").read_text() == "new"
    assert not (tmp_path / "out" / "y.txt").is_symlink()


def test_a_file_where_a_folder_should_be(tmp_path):
    file = packed(tmp_path, make_zip({"train/x.txt": b"x"}))
    (tmp_path / "out" / "train").write_text("a file")
    with refused("file_or_folder"):
        unpack(file, tmp_path / "out", 10**6)


def test_what_is_there_is_left_as_it_is(tmp_path):
    file = packed(
        tmp_path, make_zip({"same": b"12345", "changed": b"12345", "new/": b"", "new/one": b"1"})
    )
    (tmp_path / "out" / "same").write_bytes(b"12345")
    (tmp_path / "out" / "changed").write_bytes(b"12346")
    before, ticks = (tmp_path / "out" / "same").stat().st_mtime_ns, []
    done = unpack(file, tmp_path / "out", 10**6, ticks.append)
    assert done.new == 2
    assert below(tmp_path / "out") == {"same": b"12345", "changed": b"12345", "new/one": b"1"}
    assert sum(ticks) == 11
    assert (tmp_path / "out" / "same").stat().st_mtime_ns == before
    assert done.files == {
        name: FileRecord.of(tmp_path / "out" / name) for name in below(tmp_path / "out")
    }


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    original = open

    def full(path, mode="r", **options):
        file = original(path, mode, **options)
        if "x" in mode:
            file.close()
            file = original("/dev/full", "wb", buffering=0)
        return file

    monkeypatch.setattr(archives, "open", full, raising=False)
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is Linux's")
    with pytest.raises(OSError, match="No space left"):
        unpack(packed(tmp_path, make_zip({"a": b"12345"})), tmp_path / "out", 10**6)
    assert below(tmp_path / "out") == {}


def test_zips_in_the_zip(tmp_path):
    inner = {
        "train.zip": make_zip({"train/a.png": b"1", "train/b/c.png": b"2"}),
        "test.zip": make_zip({"a.png": b"3", "b.png": b"4"}),
        "train.csv.zip": make_zip({"train.csv": b"id"}),
        "masks.zip": make_zip({"images/a.png": b"5", "__MACOSX/._a": b"6"}),
        "more/deep.zip": make_zip({"again.zip": make_zip({"x": b"7"}), "y": b"8"}),
        "broken.zip": b"no zip",
        "sample_submission.zip": make_zip({"masks/a.png": b"9", "s.csv": b"10"}),
        ".DS_Store": b"",
    }
    file = packed(tmp_path, make_zip(inner))
    done = unpack(file, tmp_path / "out", 10**6)
    expected = {
        "train/a.png": b"1",
        "train/b/c.png": b"2",
        "test/a.png": b"3",
        "test/b.png": b"4",
        "train.csv": b"id",
        "masks/images/a.png": b"5",
        "more/deep/again.zip": make_zip({"x": b"7"}),
        "more/deep/y": b"8",
        "broken.zip": b"no zip",
        "sample_submission.zip": inner["sample_submission.zip"],
    }
    assert below(tmp_path / "out") == expected
    assert set(done.files) == set(expected)
    assert done.new == len(expected)
    assert set(done.opened) == {
        "train.zip",
        "test.zip",
        "train.csv.zip",
        "masks.zip",
        "more/deep.zip",
    }
    assert unpack(file, tmp_path / "out", 10**6).new == 0
