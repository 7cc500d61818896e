"""Every setting: its name, default, bounds and meaning.

Defaults <- competition.yaml and the experiment's YAML <- --set (config/load.py reads them). A
competition describes data, classes, score and submission, shared by all experiments of a folder of
configs; an experiment describes one network and its training; an ensemble names experiments; a
study varies one. The names of architectures, losses, views, … are checked in parts/, not here: this
module must import in milliseconds.

The comment above a setting says what it means. Whatever is beyond an upper bound can only be a
mistake, and would hang, overflow or fill the memory.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from src.core.setting_types import (
    Cell,
    Distance,
    NonEmpty,
    Options,
    PathText,
    Patterns,
    Seed,
    Share,
    ShareBelow1,
    Side,
    Strict,
    Weight,
    Word,
)

# --------------------------------------------------------------------------------- the competition


Column = Literal["id", "label", "rle"]


class Data(Strict):
    """Where images, masks and classes are, below input/ or --data."""

    # the classes, in the order of their probabilities
    classes: list[PathText] = ["benign", "malignant", "normal"]
    # the class without a lesion: its mask is empty; null where every class has a lesion
    empty_class: str | None = "normal"
    # {label} and {id} stand for the class and the file's stem; the first pattern that finds an
    # image is used; masks lie beside the image
    train: Patterns = ["train/{label}/{id}", "Dataset_BUSI_with_GT/{label}/{id}", "{label}/{id}"]
    # x.png has the masks x_mask.png, x_mask_1.png, …
    mask_suffix: PathText = Field("_mask", min_length=1)
    # patterns of the test images; one may be given without brackets
    test: Patterns = ["test/{id}", "test_images/{id}", "test/images/{id}"]
    # the other layout: a table of id and label, with folders of images and masks, or with masks as
    # run lengths in a column
    table: PathText = "train.csv"
    # what the columns of that table are called
    table_columns: dict[Column, str] = {"id": "id", "label": "label", "rle": "rle"}
    # patterns of the table's images and masks
    table_images: Patterns = ["train_images/{id}", "train/images/{id}", "images/{id}", "train/{id}"]
    table_masks: Patterns = ["train_masks/{id}", "train/masks/{id}", "masks/{id}"]
    # the contest's sample of a submission
    sample_submission: PathText = "sample_submission.csv"
    # what prepare does about a file that is damaged or does not fit: stop, or leave the image out
    on_error: Literal["stop", "skip"] = "stop"
    # grey or RGB
    channels: Literal[1, 3] = 1
    # near-duplicates: images whose 64×64 thumbnails correlate by more than this
    duplicate_correlation: float = Field(0.95, gt=0, le=1)

    @field_validator("test", mode="before")
    @classmethod
    def _one(cls, value):
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _classes_and_patterns(self):
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise ValueError("data.classes needs two or more different names")
        if not all(c.strip() == c != "" and c.isprintable() for c in self.classes):
            raise ValueError(
                "data.classes holds a name that is empty, or has a space at its end "
                "or a line break in it"
            )
        if "/" in self.mask_suffix:
            raise ValueError("data.mask_suffix is the end of a file's name, without a slash")
        for key in ("train", "table_images", "table_masks", "test"):
            needed = ("{label}", "{id}") if key == "train" else ("{id}",)
            for pattern in getattr(self, key):
                if any(pattern.count(word) != 1 for word in needed):
                    raise ValueError(f"data.{key} needs {' and '.join(needed)} once in '{pattern}'")
        if self.empty_class is not None and self.empty_class not in self.classes:
            raise ValueError(
                f"data.empty_class is {self.empty_class}, which is not one of data.classes; "
                "use null where every class has a lesion"
            )
        return self


class Split(Strict):
    """Which images validate which network."""

    # holdout: one fold, of a share of the images
    scheme: Literal["kfold", "holdout"] = "kfold"
    # of kfold
    folds: int = Field(5, ge=2, le=1000)
    # of holdout: the share of images kept for validation
    fraction: float = Field(0.2, gt=0, lt=1)
    # duplicates: near-duplicates are in one fold together
    groups: Literal["duplicates", "none"] = "duplicates"
    seed: Seed = 0


MOST_DECISIONS = 100_000


class Evaluate(Strict):
    """The grid of decisions tried on out-of-fold predictions; the first value of each list is the
    untuned decision. By default only what gained leave-one-fold-out is searched
    (docs/results.md): on some hundred images every further list finds more chance than truth."""

    # a pixel is lesion where its probability exceeds this
    threshold: NonEmpty[Share] = [0.5]
    # share of the image's area: smaller connected components are dropped
    min_area: NonEmpty[Share] = [0.0]
    # the mask is emptied where P(empty class) exceeds this
    empty_above: NonEmpty[Share] = [1.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    # window of a majority filter, as a share of the image's side; 0: off
    smooth: NonEmpty[Share] = [0.0]
    fill_holes: NonEmpty[bool] = [False]
    # every connected component becomes its convex hull
    convex: NonEmpty[bool] = [False]
    # only the largest so many connected components are kept; 0: all
    largest: NonEmpty[Annotated[int, Field(ge=0, le=1_000_000)]] = [0]
    # which answer gives way where mask and class contradict each other
    agree: NonEmpty[Literal["no", "mask", "label"]] = ["no"]
    # resamples of images for the confidence intervals
    bootstrap: int = Field(1000, ge=100, le=100_000)

    @model_validator(mode="after")
    def _grid(self):
        count = math.prod(len(tried) for _, tried in self if isinstance(tried, list))
        if count > MOST_DECISIONS:
            raise ValueError(
                f"its lists make {count} decisions, more than {MOST_DECISIONS}; list fewer values"
            )
        return self


class Submission(Strict):
    """The form of the submission. Whatever is absent here is inferred from sample_submission.csv
    and the data, and printed."""

    # the column of ids
    id: str | None = None
    # how a row's id is made of the image's: {id}, {id}.png, {id}_segmentation, test/{id}.png;
    # {id}_{class} where a row is one image and class
    name: PathText | None = None
    # the column that names the class of a row: one row per image and class
    key: str | None = None
    # the column of the class
    label: str | None = None
    # class -> what is written for it, here, in `key` and for {class}
    labels: dict[str, Cell] | None = None
    # class -> the column of its probability
    probabilities: dict[str, str] | None = None
    # the column of run lengths
    rle: str | None = None
    # of pixels; column: top to bottom, then left to right
    order: Literal["column", "row"] | None = None
    # the number of the first pixel
    first_pixel: Literal[0, 1] | None = None
    # whether starts are counted from the end of the run before
    relative_starts: bool | None = None
    # what stands for an empty mask
    empty: Cell | None = None
    # height, width of submitted masks; absent: each image's own
    size: tuple[Side, Side] | None = None
    # whether every connected component of a mask has a row
    row_per_component: bool | None = None
    # the column of boxes around connected components
    boxes: str | None = None
    # one box: some of label, confidence, xmin, ymin, xmax, ymax, width, height, in this order; in
    # pixels, xmax and ymax are the last column and row + 1
    box: str | None = None
    # PNG files in a zip beside the table: masks/{id}.png
    masks: PathText | None = None
    # the value of a lesion in these
    mask_value: Annotated[int, Field(ge=1, le=255)] | None = None
    # columns copied from the sample
    passthrough: list[str] | None = None
    delimiter: Literal[",", ";", "|", " ", "\t", "tab"] | None = None


class Evaluation(Strict):
    """What can differ without training or predicting again."""

    # the one number that counts: a weighted sum of metrics
    score: dict[str, Weight] = {"dice": 0.5, "macro_f1": 0.5}
    evaluate: Evaluate = Evaluate()


class Classes(NamedTuple):
    """The classes in their order, and the one without a lesion (None: each of them has one)."""

    names: list[str]
    empty: str | None = None


class Competition(Evaluation):
    """competition.yaml."""

    # the contest at Kaggle: the last word of its address
    slug: PathText | None = None
    data: Data = Data()
    split: Split = Split()
    submission: Submission = Submission()

    @property
    def classes(self) -> Classes:
        return Classes(self.data.classes, self.data.empty_class)


# ---------------------------------------------------------------------------------- the experiment


class Model(Strict):
    """The network: parts/models.py."""

    arch: str = "unet"
    encoder: str = "resnet50"
    # imagenet, none, or a file
    encoder_weights: PathText = "imagenet"
    # where `imagenet` looks for <encoder>.pth before it downloads
    weights_dir: PathText = "input/weights"
    # from the deepest features to the classes: linear, mlp, attention
    head: str = "linear"
    # before the class head
    dropout: ShareBelow1 = 0.2
    # passed on to the architecture, e.g. {decoder_channels: [128, 64, 32, 16, 8]}
    options: Options = {}


class Loss(Strict):
    """What training minimises: λ·mask + (1−λ)·label, parts/losses.py."""

    # λ of the lecture; uncertainty: learned (Kendall et al. 2018)
    mask_weight: Share | Literal["uncertainty"] = 0.7
    # losses of masks and of labels, each with its weight
    mask: dict[str, Weight] = {"dice": 1.0, "bce": 1.0}
    label: dict[str, Weight] = {"cross_entropy": 1.0}
    # balanced: inverse class frequency; or a weight for each class
    class_weights: Literal["none", "balanced"] | list[Weight] = "none"
    label_smoothing: ShareBelow1 = 0.0
    # γ of the focal losses
    focal_gamma: float = Field(2.0, ge=0, le=100)
    # overlap losses (dice, jaccard, …) over the whole batch as if it were one image, as in the
    # lecture
    pooled: bool = False
    # weights of false positives and false negatives
    tversky: tuple[Share, Share] = (0.3, 0.7)
    # exponent of the focal Tversky loss
    tversky_gamma: float = Field(0.75, gt=0, le=100)
    # w_0 and σ (pixels) of U-Net's border weights
    border: tuple[Annotated[float, Field(ge=0, le=1e6)], Distance] = (10.0, 5.0)


class Train(Strict):
    """How a fold is trained."""

    epochs: int = Field(40, ge=1, le=100_000)
    batch_size: int = Field(16, ge=1, le=65_536)
    # batches per optimiser step
    accumulate: int = Field(1, ge=1, le=65_536)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    # Nesterov momentum of sgd
    momentum: ShareBelow1 = 0.99
    # how the learning rate falls; poly: (1 − step/steps)^0.9, as nnU-Net has it
    schedule: Literal["cosine", "poly"] = "cosine"
    lr: float = Field(1e-3, gt=0, le=1000)
    # default: a third of lr
    encoder_lr: float | None = Field(None, ge=0, le=1000)
    weight_decay: float = Field(1e-2, ge=0, le=1000)
    # share of all steps in which the learning rate rises
    warmup: ShareBelow1 = 0.05
    # largest norm of the gradient; 0: off
    clip: float = Field(1.0, ge=0, le=1e9)
    # decay of the averaged weights; 0: off
    ema: ShareBelow1 = 0.99
    # parts/augment.py: none, light, medium, strong, ultrasound
    augment: str = "medium"
    # images of a batch mixed with each other: none, mixup, cutmix
    mix: str = "none"
    # share of the batches that are mixed
    mix_share: Share = 0.5
    # which images an epoch draws: uniform, balanced, annealed
    sampling: str = "uniform"
    # what keeps its pre-trained weights: the encoder, or its first n stages
    freeze: Literal["none", "encoder"] | Annotated[int, Field(ge=1, le=1000)] = "none"
    # the epoch (from 0) from which all is trained
    unfreeze_at: int | None = Field(None, ge=1, le=100_000)
    # number format of the forward pass; auto: what the device is fast at
    amp: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    # torch.compile
    compile: bool = False
    # processes that load images; default: by the machine's cores
    workers: int | None = Field(None, ge=0, le=256)
    # epochs without a better score before training stops; 0: off
    patience: int = Field(0, ge=0, le=100_000)
    seed: Seed = 0

    @model_validator(mode="after")
    def _freezing(self):
        if self.unfreeze_at is not None and self.freeze == "none":
            raise ValueError("train.unfreeze_at needs train.freeze: nothing is frozen")
        return self


class Predict(Strict):
    """How trained networks predict."""

    # test-time augmentation: views whose answers are averaged, parts/tta.py
    tta: NonEmpty[str] = ["identity", "hflip"]
    # of each fold: the last epoch, or the one with the best score
    checkpoint: Literal["last", "best"] = "last"
    # float16: half the bytes in a bundle; auto: for the folds whose scores it leaves unchanged
    weights: Literal["auto", "float16", "float32"] = "auto"
    # default: twice train.batch_size
    batch_size: int | None = Field(None, ge=1, le=65_536)


class Experiment(Strict):
    """One network, trained in folds."""

    # which answers it gives: mask and class, or one of them
    task: Literal["both", "mask", "class"] = "both"
    # pixels of a side; what every encoder can halve five times
    image_size: int = Field(448, ge=32, le=4096, multiple_of=32)
    # how an image becomes square: stretch, or letterbox: a border keeps its proportions
    resize: Literal["stretch", "letterbox"] = "stretch"
    # of every image, once, before it is resized: none, equalise, clahe, despeckle
    filter: Word = "none"
    # of clahe: clip, tiles; of despeckle: window, noise
    filter_options: dict[Word, float] = Field({}, max_length=5)
    model: Model = Model()
    loss: Loss = Loss()
    train: Train = Train()
    predict: Predict = Predict()

    @property
    def predict_batch_size(self) -> int:
        """Images that are predicted at a time."""
        return self.predict.batch_size or 2 * self.train.batch_size


class Ensemble(Strict):
    """Experiments, or other predictions, whose answers are averaged."""

    # names of experiments or ensembles, or folders with oof.npz and test.npz
    members: list[str] = Field(min_length=1, max_length=1000)
    # greedy: members are added, with replacement, while the score gains (Caruana et al. 2004)
    method: Literal["mean", "greedy"] = "mean"
    # of greedy: how many members are drawn
    rounds: int = Field(12, ge=1, le=10_000)


class Study(Strict):
    """A question, answered by experiments, its cells, that differ from one base."""

    question: str
    # the experiment that every cell differs from
    base: str
    # settings of all cells, the base's too
    set: dict[str, Any] = {}
    # key -> its values, or name -> value; the cells are all combinations
    grid: dict[str, list[Any] | dict[str, Any]] = {}
    # more cells: name -> {key: value, …}
    cells: dict[str, dict[str, Any]] = {}
    # each cell is trained once for every seed; default: the base's own
    seeds: list[Seed] = []
    # what is different at the size that two cores can train: ./run.sh study --tiny
    tiny: dict[str, Any] = {}


# a setting's name in earlier versions -> its name now; configs and records may still have the old
RENAMED = {
    "loss.balance": "loss.mask_weight",
    "predict.views": "predict.tta",
    "submission.first": "submission.first_pixel",
    "submission.several": "submission.row_per_component",
    "submission.relative": "submission.relative_starts",
    "submission.lesion": "submission.mask_value",
    "submission.copied": "submission.passthrough",
}

# settings that change how fast a result comes but not, beyond rounding, the result: another value
# is no reason to do a stage again
NEVER_STALE = {"model.weights_dir", "train.workers", "train.compile", "predict.batch_size"}
