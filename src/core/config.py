"""Every setting and its default, once. Defaults <- competition.yaml and the experiment's YAML <- --set.

A competition describes data, classes, metric and submission, shared by all experiments of a folder of configs; an experiment describes one
network and its training; an ensemble names experiments. The names of architectures, losses, views, … are checked by `parts`, not here:
this module must import in milliseconds.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from src.core.console import InputError, nearest
from src.core.paths import COMPETITION, CONFIGS

Share = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), coerce_numbers_to_str=True)


# ---------------------------------------------------------------------------------------------------------------- the competition


class Data(Strict):
    classes: list[str] = ["benign", "malignant", "normal"]
    empty_class: str | None = "normal"  # the class without a lesion: its mask is empty
    # {label} and {id} stand for the class and the file's stem; the first pattern that finds an image is used; masks lie beside the image
    train: list[str] = ["train/{label}/{id}", "Dataset_BUSI_with_GT/{label}/{id}", "{label}/{id}"]
    mask_suffix: str = "_mask"  # x.png has the masks x_mask.png, x_mask_1.png, …
    test: str = "test/{id}"
    # the other layout: a table of id and label, with folders of images and masks, or masks as run lengths in a column
    table: str = "train.csv"
    table_columns: dict[Literal["id", "label", "rle"], str] = {"id": "id", "label": "label", "rle": "rle"}
    table_images: list[str] = ["train_images/{id}", "train/images/{id}", "images/{id}", "train/{id}"]
    table_masks: list[str] = ["train_masks/{id}", "train/masks/{id}", "masks/{id}"]
    sample_submission: str = "sample_submission.csv"
    on_error: Literal["stop", "skip"] = "stop"
    channels: Literal[1, 3] = 1
    duplicate_correlation: float = Field(0.95, gt=0, le=1)

    @model_validator(mode="after")
    def _classes(self):
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise ValueError("data.classes needs two or more different names")
        for key, needed in (("train", ("{label}", "{id}")), ("table_images", ("{id}",)), ("table_masks", ("{id}",)), ("test", ("{id}",))):
            for pattern in [getattr(self, key)] if key == "test" else getattr(self, key):
                if any(pattern.count(word) != 1 for word in needed):
                    raise ValueError(f"data.{key} needs {' and '.join(needed)} once in '{pattern}'")
        if self.empty_class is not None and self.empty_class not in self.classes:
            raise ValueError(f"data.empty_class is {self.empty_class}, which is not one of data.classes; use null where every class has a lesion")
        return self


class Split(Strict):
    scheme: Literal["kfold", "holdout"] = "kfold"
    folds: int = Field(5, ge=2)
    fraction: float = Field(0.2, gt=0, lt=1)  # holdout: the share of images kept for validation
    groups: Literal["duplicates", "none"] = "duplicates"
    seed: int = 0


class Evaluate(Strict):
    """The grid of decisions tried on out-of-fold predictions; the first value of each is the untuned decision."""
    threshold: list[Share] = Field([0.5, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.55, 0.6, 0.65, 0.7, 0.75], min_length=1)
    min_area: list[Share] = Field([0.0, 0.001, 0.002, 0.004, 0.008, 0.016], min_length=1)  # share of the image's area: smaller parts are dropped
    empty_above: list[Share] = Field([1.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], min_length=1)  # the mask is emptied where P(empty class) exceeds this
    fill_holes: list[bool] = Field([False, True], min_length=1)
    agree: list[Literal["no", "mask", "label"]] = Field(["no", "mask", "label"], min_length=1)  # which answer gives way where mask and class contradict each other
    bootstrap: int = Field(1000, ge=100)


class Submission(Strict):
    id: str = "id"
    label: str = "label"
    rle: str = "rle"
    order: Literal["column", "row"] = "column"  # column: top to bottom, then left to right
    first: Literal[0, 1] = 1
    empty: str = "-1"


class Competition(Strict):
    data: Data = Data()
    split: Split = Split()
    score: dict[str, float] = {"dice": 0.5, "macro_f1": 0.5}  # the one number: a weighted sum of metrics
    evaluate: Evaluate = Evaluate()
    submission: Submission = Submission()


# ----------------------------------------------------------------------------------------------------------------- the experiment


class Model(Strict):
    arch: str = "unet"
    encoder: str = "resnet50"
    encoder_weights: str = "imagenet"  # imagenet, none, or a file
    weights_dir: str = "input/weights"  # where `imagenet` looks for <encoder>.pth before it downloads
    dropout: float = Field(0.2, ge=0, lt=1)  # before the class head
    options: dict[str, Any] = {}  # passed on to the architecture, e.g. {decoder_channels: [128, 64, 32, 16, 8]}


class Loss(Strict):
    balance: float = Field(0.7, ge=0, le=1)  # λ of the lecture: λ·mask + (1−λ)·label
    mask: dict[str, float] = {"dice": 1.0, "bce": 1.0}
    label: dict[str, float] = {"cross_entropy": 1.0}
    class_weights: Literal["none", "balanced"] | list[float] = "none"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    focal_gamma: float = Field(2.0, ge=0)


class Train(Strict):
    epochs: int = Field(40, ge=1)
    batch_size: int = Field(16, ge=1)
    accumulate: int = Field(1, ge=1)  # batches per optimiser step
    lr: float = Field(1e-3, gt=0)
    encoder_lr: float | None = Field(None, ge=0)  # default: a third of lr
    weight_decay: float = Field(1e-2, ge=0)
    warmup: float = Field(0.05, ge=0, lt=1)  # share of all steps
    clip: float = Field(1.0, ge=0)  # gradient norm; 0: off
    ema: float = Field(0.99, ge=0, lt=1)  # 0: off
    augment: str = "medium"
    amp: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    compile: bool = False
    workers: int | None = Field(None, ge=0)  # default: by the machine's cores
    patience: int = Field(0, ge=0)  # epochs without a better score before it stops; 0: off
    seed: int = 0


class Predict(Strict):
    views: list[str] = Field(["identity", "hflip"], min_length=1)
    checkpoint: Literal["last", "best"] = "last"
    batch_size: int | None = Field(None, ge=1)  # default: twice train.batch_size


class Experiment(Strict):
    image_size: int = Field(448, ge=32, multiple_of=32)  # what every encoder can halve five times
    resize: Literal["stretch", "letterbox"] = "stretch"
    model: Model = Model()
    loss: Loss = Loss()
    train: Train = Train()
    predict: Predict = Predict()


class Ensemble(Strict):
    members: list[str] = Field(min_length=1)
    method: Literal["mean", "greedy"] = "mean"
    rounds: int = Field(12, ge=1)  # greedy: how many members are drawn, with replacement


# settings that change how fast a result comes, not the result: no reason to do a stage again
NEUTRAL = {"model.weights_dir", "train.workers", "train.compile", "predict.batch_size"}


@dataclass
class Config:
    """One YAML, with the competition it belongs to: an experiment, or an ensemble with its members."""

    name: str
    file: Path
    competition: Competition
    experiment: Experiment | None = None
    ensemble: Ensemble | None = None
    members: list["Config"] = field(default_factory=list)  # those members of the ensemble that have a YAML beside it

    @property
    def experiments(self) -> list["Config"]:
        return [self] if self.experiment else self.members

    def keys(self, *sections: str) -> dict[str, Any]:
        """The named sections' settings, flat: {'train.epochs': 20, …}, without those that cannot change a result."""
        flat: dict[str, Any] = {}
        for section in sections:
            holder = next(m for m in (self.competition, self.experiment, self.ensemble) if m is not None and section.split(".")[0] in type(m).model_fields)
            value: Any = holder
            for word in section.split("."):
                value = getattr(value, word)
            _flatten(section, value, flat)
        return {k: v for k, v in flat.items() if k not in NEUTRAL}


def load(file: Path, overrides: list[str] = ()) -> Config:
    """Read an experiment or an ensemble with the competition.yaml of its folder (or the folder above); raises InputError for anything wrong."""
    file = Path(file)
    if not file.exists():  # a name alone is one of the project's
        file = next((f for f in (file.with_name(f"{file.name}.yaml"), CONFIGS / file.name, CONFIGS / f"{file.name}.yaml") if f.is_file()), file)
    if file.name == COMPETITION:
        raise InputError("this describes the competition, it is no experiment", file, "Name one of the others, for example configs/cpu.yaml")
    tree = read_yaml(file)
    home = next((d for d in (file.parent, file.parent.parent) if (d / COMPETITION).is_file()), None)
    if home is None:
        raise InputError(f"no {COMPETITION} beside this config", file, "It describes data, classes, score and submission: copy one from configs/")
    contest = read_yaml(home / COMPETITION)
    kind: type[Strict] = Ensemble if "members" in tree else Experiment
    for key in [k for k in tree if k in Competition.model_fields]:
        raise InputError(f"'{key}' is shared by all experiments", file, f"Move it to {home / COMPETITION}")
    member_overrides = []
    for text in overrides:
        key, value = _parse_override(text)
        top = key.split(".")[0]
        if top in Competition.model_fields:
            _set(contest, Competition, key, value)
        elif top in kind.model_fields:
            _set(tree, kind, key, value)
        elif kind is Ensemble and top in Experiment.model_fields:
            member_overrides.append(text)
        else:
            known = [*leaves(Competition), *leaves(Ensemble), *leaves(Experiment)]
            raise InputError(f"unknown key '{key}'", f"--set {text}", nearest(key, known))
    config = Config(file.stem, file, _validate(Competition, contest, home / COMPETITION, overrides))
    if kind is Experiment:
        config.experiment = _validate(Experiment, tree, file, overrides)
        return config
    config.ensemble = _validate(Ensemble, tree, file, overrides)
    passed_on = [t for t in overrides if _parse_override(t)[0].split(".")[0] in Competition.model_fields] + member_overrides
    for member in config.ensemble.members:
        beside = file.parent / f"{member}.yaml"
        if beside.is_file() and "members" not in read_yaml(beside):  # another ensemble is a member by its predictions, like a team mate's
            config.members.append(load(beside, passed_on))
        elif member == file.stem:
            raise InputError("an ensemble cannot be a member of itself", file)
    return config


def read_yaml(file: Path) -> dict:
    try:
        tree = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        there = [p.stem for p in sorted(file.parent.glob("*.yaml")) if p.name != COMPETITION]
        raise InputError("no such config", file, nearest(file.stem, there) if there else "Try ./run.sh --config configs/cpu.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        line = getattr(error, "problem_mark", None)
        raise InputError(f"not readable as YAML: {getattr(error, 'problem', error)}", f"{file}{f', line {line.line + 1}' if line else ''}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError("a config is a list of key: value lines", file)
    return tree


def leaves(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key of a config model, dotted."""
    found = []
    for name, info in model.model_fields.items():
        found.append(prefix + name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found += leaves(info.annotation, f"{prefix}{name}.")
    return found


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set takes key=value, not '{text}'", "", "For example --set train.epochs=30")
    quoted, bare = value[:1] in ("'", '"'), value in ("", "-")  # YAML reads these two as nothing and as a list of nothing
    try:
        value = value if bare else yaml.safe_load(value)
    except yaml.YAMLError:
        pass  # a plain string that YAML cannot read, such as a path with a colon
    if isinstance(value, str) and not quoted:
        try:
            value = float(value)  # YAML reads 1e-3 as a string
        except ValueError:
            pass
    return key.strip(), value


def _set(tree: dict, model: type[BaseModel], key: str, value: Any) -> None:
    words = key.split(".")
    if words[0] in model.model_fields and len(words) > 1:  # a mapping such as loss.mask starts from its default, so that one entry can be added
        parent = model.model_fields[words[0]].annotation
        field_ = getattr(parent, "model_fields", {}).get(words[1])
        if len(words) > 2 and field_ is not None and isinstance(field_.default, dict):
            tree.setdefault(words[0], {}).setdefault(words[1], dict(field_.default))
    for word in words[:-1]:
        tree = tree.setdefault(word, {})
        if not isinstance(tree, dict):
            raise InputError(f"'{key}' is not a key: {word} has no parts", "--set")
    tree[words[-1]] = value


def _validate(model: type[Strict], tree: dict, file: Path, overrides: list[str] = ()):
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        typed = [t for t in overrides if where.startswith(t.partition("=")[0].strip())]
        file = f"--set {typed[-1]}" if typed else file
        if first["type"] == "extra_forbidden":
            raise InputError(f"unknown key '{where}'", file, nearest(where, leaves(model))) from None
        message = first["msg"].removeprefix("Value error, ")
        shown = "" if where == "" or first["type"] == "missing" or isinstance(first["input"], dict) else f", not {first['input']!r}"
        raise InputError(f"{where + ': ' if where else ''}{message}{shown}", file) from None


def _flatten(prefix: str, value: Any, into: dict[str, Any]) -> None:
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            _flatten(f"{prefix}.{name}", getattr(value, name), into)
    else:
        into[prefix] = value
