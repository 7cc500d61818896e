"""The map of names: the only place that spells where an artifact lies."""

from __future__ import annotations

from collections.abc import Callable
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


def once(place: str) -> property:
    """A path in artifacts/."""
    return property(lambda paths: paths.artifacts / place)


def of_each(place: str) -> Callable[[Paths, str], Path]:
    """Of each experiment or ensemble, by its name."""
    return lambda paths, name: paths.artifacts / place.format(name=name)


def of_fold(place: str) -> Callable[..., Path]:
    """Of each fold of an experiment, by its name, the fold and, where there are two, which."""
    return lambda paths, name, fold, which="": (
        paths.artifacts / place.format(name=name, fold=fold, which=which)
    )


@dataclass(frozen=True)
class Paths:
    """`work`: where artifacts/ and submissions/ go. `data`: the read-only input folder. `apart`: a
    folder of artifacts/ for what is never mixed with real work."""

    work: Path
    data: Path
    apart: str = ""

    @property
    def artifacts(self) -> Path:
        return self.work / "artifacts" / self.apart

    def demo(self) -> Paths:
        """The same, for generated images."""
        return Paths(self.work, self.work / "artifacts" / "demo" / "input", "demo")

    def studies(self, split: Split) -> Paths:
        """The same, for the cells of all studies with these folds: they share what they have in
        common, and leave the main folds alone."""
        share = f"kfold{split.folds}" if split.scheme == "kfold" else f"holdout{split.fraction:g}"
        share += "_ungrouped" if split.groups == "none" else ""
        share += f"_seed{split.seed}" if split.seed else ""
        return Paths(self.work, self.data, f"studies/{share}")

    old = once("old")
    fingerprints = once("fingerprints.json")

    # prepare; truth: the train masks at original size, as runs
    prepared = once("prepared")
    index = once("prepared/index.csv")
    report = once("prepared/report.json")
    truth = once("prepared/truth.npz")

    def images(self, experiment: Experiment, part: str = "train") -> Path:
        """The pixel store of an experiment. `part`: 'train' or 'test'."""
        suffix = "" if part == "train" else f"_{part}"
        return self.prepared / f"images_{store_name(experiment)}{suffix}.npy"

    def masks(self, experiment: Experiment) -> Path:
        """No filter changes them, but images and masks are made and set aside together."""
        return self.prepared / f"masks_{store_name(experiment)}.npy"

    # split
    folds = once("folds.csv")

    # train; which: 'last' or 'best'
    fold = of_fold("models/{name}/fold{fold}")
    checkpoint = of_fold("models/{name}/fold{fold}/{which}.pt")
    log = of_fold("models/{name}/fold{fold}/log.csv")
    curves = of_fold("models/{name}/fold{fold}/curves.png")
    onnx = of_fold("models/{name}/fold{fold}/model.onnx")

    # predict and ensemble; part: what one fold has predicted so far, of 'oof' or 'test'; rounding:
    # whether its weights are used in float16. Both are removed when predict has finished
    predictions = of_each("predictions/{name}")
    oof = of_each("predictions/{name}/oof.npz")
    test = of_each("predictions/{name}/test.npz")
    part = of_fold("predictions/{name}/part_{which}_fold{fold}.npz")
    rounding = of_fold("predictions/{name}/weights_fold{fold}.json")
    weights = of_each("predictions/{name}/weights.json")

    # evaluate
    metrics = of_each("predictions/{name}/metrics.json")
    per_image = of_each("predictions/{name}/per_image.csv")
    decision = of_each("predictions/{name}/decision.json")
    html = of_each("predictions/{name}/report.html")

    def picture(self, name: str, picture: str) -> Path:
        """`picture`: 'confusion', 'typical', 'worst' or 'reliability'."""
        return self.predictions(name) / f"{picture}.png"

    # study
    study = of_each("results/{name}")
    study_table = of_each("results/{name}/table.md")
    study_csv = of_each("results/{name}/table.csv")
    study_plot = of_each("results/{name}/plot.png")
    study_html = of_each("results/{name}/report.html")

    # submit; of generated images apart, like all else
    @property
    def submissions(self) -> Path:
        return (self.artifacts if self.apart else self.work) / "submissions"

    def submission(self, name: str) -> Path:
        return self.submissions / f"{name}.csv"

    def archive(self, name: str) -> Path:
        """In place of the CSV where masks are submitted as PNG files."""
        return self.submissions / f"{name}.zip"

    @property
    def submission_log(self) -> Path:
        return self.submissions / "log.csv"

    @property
    def submission_plot(self) -> Path:
        return self.submissions / "log.png"

    # fetch: which contest it is, and what was downloaded
    @property
    def fetched(self) -> Path:
        return self.data / FETCHED

    # bundle; manifest: of the bundle that `work` is
    bundle = of_each("bundles/{name}")
    bundle_zip = of_each("bundles/{name}.zip")

    @property
    def manifest(self) -> Path:
        return self.work / "bundle.json"

    def record(self, stage: str, name: str = "", fold: int | None = None) -> Path:
        """What a finished stage leaves. Only prepare has one with a name, of a pixel store, and
        one without, of the index."""
        if stage == "submit":
            return self.submissions / f"{name}.json"
        place = {
            "prepare": f"prepared/stage_{name}.json" if name else "prepared/stage.json",
            "split": "stage_split.json",
            "train": f"models/{name}/fold{fold}/stage.json",
            "predict": f"predictions/{name}/stage.json",
            "ensemble": f"predictions/{name}/stage.json",
            "evaluate": f"predictions/{name}/stage_evaluate.json",
            "study": f"results/{name}/stage.json",
        }
        return self.artifacts / place[stage]

    def lock(self, stage: str, name: str = "", fold: int | None = None) -> Path:
        """Held by the one run that writes what this stage writes; prepare has one for all."""
        words = [stage]
        if name and stage != "prepare":
            words.append(name)
        if fold is not None:
            words.append(f"fold{fold}")
        return self.artifacts / "locks" / f"{'-'.join(words)}.lock"


def store_name(experiment: Experiment) -> str:
    """By size, resizing and filter: '448', '224_letterbox', '448_clahe_clip4_tiles8'."""
    words = [str(experiment.image_size)]
    if experiment.resize != "stretch":
        words.append(experiment.resize)
    if experiment.filter != "none":
        words.append(experiment.filter)
        words += [f"{name}{value:g}" for name, value in sorted(experiment.filter_options.items())]
    return "_".join(words)


def contest_folder(slug: str | None) -> Path:
    """Where the images are by default: the contest's folder in input/, else the only contest that
    was fetched, else input/ itself. Raises InputError where several were fetched and nothing else
    is there."""
    if slug:
        return INPUT / slug
    own = []
    for path in INPUT.iterdir() if INPUT.is_dir() else []:
        if path.name not in ("README.md", "weights") and not path.name.startswith("."):
            own.append(path)
    fetched = sorted(p.name for p in own if (p / FETCHED).is_file())
    if not fetched or len(fetched) < len(own):
        return INPUT
    if len(fetched) == 1:
        return INPUT / fetched[0]
    raise InputError(
        f"several were fetched: {listing(fetched)}",
        INPUT,
        f"Name one: --data {short(INPUT / fetched[0])}, or slug: in configs/competition.yaml",
        code="several_contests",
    )


def anchored(path: str) -> Path:
    """A relative path is the user's, from the working directory; where nothing is there, the
    project's."""
    given = Path(path).expanduser()
    try:
        own = given.is_absolute() or given.exists()
    except OSError:  # a name too long for any file
        own = False
    return given if own else ROOT / given
