"""What several test files share. Everything is made in temporary folders; nothing here trains."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from kaggle_server import server  # noqa: F401 (a fixture)
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# before torch: a machine with a GPU gives the same answers
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
for variable in ("CONDA_PREFIX", "COLUMNS", "GIT_DIR", "GIT_WORK_TREE", "KAGGLE_KERNEL_RUN_TYPE"):
    os.environ.pop(variable, None)

# below what they need: the path and the environment
from src.config import load as configs  # noqa: E402
from src.core.console import InputError  # noqa: E402
from src.core.paths import Paths  # noqa: E402
from src.stages import prepare  # noqa: E402
from src.tools import demo_data  # noqa: E402


@pytest.fixture(autouse=True)
def no_words_of_another_run(monkeypatch):
    """main() leaves its command line behind, for messages to repeat; and ./run.sh test leaves its
    own way of being called."""
    from src.core import console

    console.REPEATED.clear()
    for name in ("RUN_AS", "CALLED_FROM"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def refused(code: str, *words: str, kind: type[Exception] = InputError):
    """What is called raises an error of this short name, and its sentence has these words: those
    that tell of the case, since the rest of the sentence is for docs/errors.md."""
    with pytest.raises(kind) as raised:
        yield raised
    told = f"{raised.value} [{raised.value.code}]"
    assert raised.value.code == code, told
    assert [word for word in words if word not in str(raised.value)] == [], told


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """A tiny generated data set, 24 train and 6 test images; read-only."""
    return demo_data.make(
        tmp_path_factory.mktemp("demo") / "data", n_train=24, n_test=6, size=(90, 150)
    )


@pytest.fixture
def demo_copy(demo, tmp_path) -> Path:
    """The same, to be spoilt."""
    return Path(shutil.copytree(demo, tmp_path / "data"))


@pytest.fixture(scope="session")
def demo_prepared(demo, tmp_path_factory) -> Paths:
    """The tiny data set, prepared at 64 px; read-only."""
    home = tmp_path_factory.mktemp("prepared")
    paths = Paths(home, demo)
    prepare.run(None, write_config(home), paths)
    return paths


@pytest.fixture
def shared() -> Path:
    """The real images beside the project."""
    folder = ROOT.parent / "shared" / "data" / "aio_busi"
    if not folder.is_dir():
        pytest.skip(f"the real images are not there: {folder}")
    return folder


@pytest.fixture
def make_config(tmp_path):
    """make_config('split.folds=3', …): the config of a 64-pixel experiment with the repository's
    competition.yaml."""
    return lambda *overrides, yaml="image_size: 64\n": write_config(tmp_path, *overrides, yaml=yaml)


def write_config(folder: Path, *overrides: str, yaml: str = "image_size: 64\n") -> configs.Config:
    return configs.load(write_configs(folder, small=yaml) / "small.yaml", list(overrides))


def write_configs(home: Path, **texts: str) -> Path:
    """configs/ with these YAMLs, by name, and the repository's competition.yaml."""
    folder = home / "configs"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "configs" / "competition.yaml", folder)
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def command_line(
    home: Path, *words: str, config: str = "small", sets: Iterable[str] = ()
) -> list[str]:
    """A command on the configs/, data/ and artifacts/ of `home`, with --set for each of `sets`."""
    file = home / "configs" / f"{config}.yaml"
    where = ["--config", str(file), "--data", str(home / "data"), "--work", str(home)]
    return [*words, *where, *(w for s in sets for w in ("--set", s))]


def save(file: Path, pixels: np.ndarray) -> Path:
    """Write an image; bool becomes 1 bit."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8) * 255).convert("1").save(
        file
    ) if pixels.dtype == bool else Image.fromarray(pixels).save(file)
    return file


def picture(seed: int, height: int = 60, width: int = 80) -> np.ndarray:
    """Grey noise (H,W) with coarse structure, so that no two seeds look alike to the search for
    duplicates."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(0, 200, (6, 8)), np.ones((height // 6 + 1, width // 8 + 1)))[
        :height, :width
    ]
    return (coarse + rng.integers(0, 40, (height, width))).astype(np.uint8)


def box(
    height: int = 60, width: int = 80, top: int = 20, left: int = 30, side: int = 15
) -> np.ndarray:
    """A bool mask (H,W) with one square."""
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def folder_data(data: Path, per_class: int = 3) -> Path:
    """A minimal data set of the first layout: 3 classes, 2 test images, a sample submission."""
    for c, label in enumerate(("benign", "malignant", "normal")):
        for i in range(per_class):
            save(data / "train" / label / f"{label} ({i + 1}).png", picture(100 * c + i))
            if label != "normal":
                save(data / "train" / label / f"{label} ({i + 1})_mask.png", box())
    for i in range(2):
        save(data / "test" / f"t{i}.png", picture(1000 + i))
    (data / "sample_submission.csv").write_text("id,label,rle\nt1,normal,-1\nt0,normal,-1\n")
    return data


def prepared(data: Path, tmp_path: Path, config: configs.Config, **options) -> Paths:
    paths = Paths(tmp_path / "work", data)
    prepare.run(None, config, paths, **options)
    return paths


def leftovers(paths: Paths) -> list[Path]:
    """Temporary files that nobody took away."""
    return [f for f in paths.work.rglob("*") if f.name.endswith(".part")]
