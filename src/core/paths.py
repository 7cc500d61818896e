"""The map of names: the only place that spells where an artifact lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from src.core.console import InputError, listing, short

if TYPE_CHECKING:
    from src.core.settings import Experiment, Split

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
INPUT = ROOT / "input"
COMPETITION = "competition.yaml"
FETCHED = "fetched.json"


@dataclass(frozen=True)
class Paths:
    """`work`: where artifacts/ and submissions/ go. `data`: the read-only input folder."""

    work: Path
    data: Path
    apart: str = ""  # a folder of artifacts/ for what is never mixed with real work

    @property
    def artifacts(self) -> Path:
        return self.work / "artifacts" / self.apart

    def demo(self) -> Paths:
        """The same, for generated images."""
        return Paths(self.work, self.work / "artifacts" / "demo" / "input", "demo")

    def studies(self, split: Split) -> Paths:
        """The same, for the cells of all studies with these folds: they share what they have in common, and leave the main folds alone."""
        share = f"kfold{split.folds}" if split.scheme == "kfold" else f"holdout{split.fraction:g}"
        return Paths(
            self.work,
            self.data,
            f"studies/{share}"
            + ("_ungrouped" if split.groups == "none" else "")
            + (f"_seed{split.seed}" if split.seed else ""),
        )

    @property
    def old(self) -> Path:
        return self.artifacts / "old"

    def lock(self, stage: str, name: str = "", fold: int | None = None) -> Path:
        """Held by the one run that writes what this stage writes; prepare and split have no name."""
        words = [stage, *([name] if name and stage != "prepare" else [])]
        words += [f"fold{fold}"] if fold is not None else []
        return self.artifacts / "locks" / ("-".join(words) + ".lock")

    @property
    def fingerprints(self) -> Path:
        return self.artifacts / "fingerprints.json"

    # prepare
    @property
    def prepared(self) -> Path:
        return self.artifacts / "prepared"

    @property
    def index(self) -> Path:
        return self.prepared / "index.csv"

    @property
    def report(self) -> Path:
        return self.prepared / "report.json"

    @property
    def truth(self) -> Path:
        """Train masks at original size, as runs."""
        return self.prepared / "truth.npz"

    def images(self, experiment: Experiment, part: str = "train") -> Path:
        """The pixel store of an experiment. `part`: 'train' or 'test'."""
        suffix = "" if part == "train" else f"_{part}"
        return self.prepared / f"images_{store_name(experiment)}{suffix}.npy"

    def masks(self, experiment: Experiment) -> Path:
        """No filter changes them, but images and masks of a store are made and set aside together."""
        return self.prepared / f"masks_{store_name(experiment)}.npy"

    # split
    @property
    def folds(self) -> Path:
        return self.artifacts / "folds.csv"

    # train
    def fold(self, experiment: str, fold: int) -> Path:
        return self.artifacts / "models" / experiment / f"fold{fold}"

    def checkpoint(self, experiment: str, fold: int, which: str) -> Path:
        """`which`: 'last' or 'best'."""
        return self.fold(experiment, fold) / f"{which}.pt"

    def log(self, experiment: str, fold: int) -> Path:
        return self.fold(experiment, fold) / "log.csv"

    def curves(self, experiment: str, fold: int) -> Path:
        return self.fold(experiment, fold) / "curves.png"

    # predictions
    def predictions(self, name: str) -> Path:
        return self.artifacts / "predictions" / name

    def oof(self, name: str) -> Path:
        return self.predictions(name) / "oof.npz"

    def test(self, name: str) -> Path:
        return self.predictions(name) / "test.npz"

    def part(self, name: str, fold: int, of: str) -> Path:
        """What one fold has predicted so far; gone when predict has finished. `of`: 'oof' or 'test'."""
        return self.predictions(name) / f"part_{of}_fold{fold}.npz"

    def rounding(self, name: str, fold: int) -> Path:
        """Whether predict uses this fold's weights in float16; gone when it has finished, and then in its record."""
        return self.predictions(name) / f"weights_fold{fold}.json"

    def weights(self, name: str) -> Path:
        return self.predictions(name) / "weights.json"

    def metrics(self, name: str) -> Path:
        return self.predictions(name) / "metrics.json"

    def per_image(self, name: str) -> Path:
        return self.predictions(name) / "per_image.csv"

    def decision(self, name: str) -> Path:
        return self.predictions(name) / "decision.json"

    def picture(self, name: str, picture: str) -> Path:
        """`picture`: 'confusion', 'typical', 'worst' or 'reliability'."""
        return self.predictions(name) / f"{picture}.png"

    def html(self, name: str) -> Path:
        return self.predictions(name) / "report.html"

    # study
    def study(self, name: str, file: str = "") -> Path:
        """`file`: 'table.md', 'table.csv', 'plot.png' or 'report.html'."""
        return self.artifacts / "results" / name / file

    # submit
    @property
    def submissions(self) -> Path:
        """Of generated images apart, like all else: it is never mixed with real work."""
        return (self.artifacts if self.apart else self.work) / "submissions"

    def submission(self, name: str) -> Path:
        return self.submissions / f"{name}.csv"

    def archive(self, name: str) -> Path:
        """In place of the CSV where masks are handed in as PNG files."""
        return self.submissions / f"{name}.zip"

    # Kaggle
    @property
    def fetched(self) -> Path:
        """In a contest's folder: which contest, and what was downloaded."""
        return self.data / FETCHED

    @property
    def submission_log(self) -> Path:
        return self.submissions / "log.csv"

    @property
    def submission_plot(self) -> Path:
        return self.submissions / "log.png"

    # bundle, export
    def bundle(self, name: str) -> Path:
        return self.artifacts / "bundles" / name

    def bundle_zip(self, name: str) -> Path:
        return self.artifacts / "bundles" / f"{name}.zip"

    @property
    def manifest(self) -> Path:
        """Of a bundle, where that is `work`."""
        return self.work / "bundle.json"

    def onnx(self, experiment: str, fold: int) -> Path:
        return self.fold(experiment, fold) / "model.onnx"

    # the record that a finished stage leaves
    def record(self, stage: str, name: str = "", fold: int | None = None) -> Path:
        return {
            "prepare": self.prepared / (f"stage_{name}.json" if name else "stage.json"),
            "split": self.artifacts / "stage_split.json",
            "train": self.fold(name, fold or 0) / "stage.json",
            "predict": self.predictions(name) / "stage.json",
            "ensemble": self.predictions(name) / "stage.json",
            "evaluate": self.predictions(name) / "stage_evaluate.json",
            "submit": self.submissions / f"{name}.json",
            "study": self.study(name, "stage.json"),
        }[stage]


def store_name(experiment: Experiment) -> str:
    """By size, resizing and filter: '448', '224_letterbox', '448_clahe_clip4_tiles8'."""
    words = [str(experiment.image_size)]
    words += [experiment.resize] if experiment.resize != "stretch" else []
    if experiment.filter != "none":
        words.append(experiment.filter)
        words += [f"{name}{value:g}" for name, value in sorted(experiment.filter_options.items())]
    return "_".join(words)


def contest_folder(slug: str | None) -> Path:
    """Where the images are when nobody says: the contest's folder in input/, else the only contest that was fetched, else input/ itself. Raises InputError
    where several were fetched and nothing else is there."""
    if slug:
        return INPUT / slug
    own = (
        [
            p
            for p in INPUT.iterdir()
            if p.name not in ("README.md", "weights") and not p.name.startswith(".")
        ]
        if INPUT.is_dir()
        else []
    )
    fetched = sorted(p.name for p in own if (p / FETCHED).is_file())
    if len(fetched) > 1 and len(fetched) == len(own):
        raise InputError(
            f"several were fetched: {listing(fetched)}",
            short(INPUT),
            f"Say which: --data {short(INPUT / fetched[0])}, or slug: in configs/competition.yaml",
            code="several_contests",
        )
    return INPUT / fetched[0] if len(fetched) == len(own) == 1 else INPUT


def anchored(path: str) -> Path:
    """A relative path is the user's, from the working directory; where nothing is there, the project's."""
    given = Path(path).expanduser()
    try:
        own = given.is_absolute() or given.exists()
    except OSError:  # a name too long for any file
        own = False
    return given if own else ROOT / given
