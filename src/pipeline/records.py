"""The records that cross from one stage to another, and from a bundle to infer: metrics.json,
report.json, weights.json and bundle.json.

They are text, and text is edited, merged and truncated: what is returned from here has the form
that its readers rely on, or there is an InputError that names the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from src.core.console import InputError, command
from src.core.disk import read_json
from src.core.paths import Paths

Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=10**6)]
Side = Annotated[int, Field(gt=0, le=2**16)]


class Record(BaseModel):
    """What readers rely on; a record may hold more than that."""

    model_config = ConfigDict(strict=True)


class Intervals(Record):
    score: Annotated[list[Number], Field(min_length=2, max_length=2)]


class Nested(Record):
    score: Number
    intervals: Intervals
    metrics: dict[str, Number]
    decisions: dict[str, dict] = {}
    by_fold: dict[str, dict[str, Number]] = {}


class Tuned(Record):
    decision: dict


class Metrics(Record):
    nested: Nested
    tuned: Tuned
    lecture: dict[str, Number] = {}
    lecture_by_fold: dict[str, dict[str, Number]] = {}

    @model_validator(mode="before")
    def _renamed(cls, record: dict) -> dict:
        if "honest" in record:  # as older versions call it
            record["nested"] = record.pop("honest")
        return record


class Runs(Record):
    order: Literal["column", "row"]
    first: Literal[0, 1]
    relative: bool
    several: bool | None = None
    empty: str | None = None
    why: str = ""
    assumed: list = []
    size: Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None


class Report(Record):
    runs: Runs | None


class Members(Record):
    """`times`: how often each member is counted."""

    times: dict[str, Count]
    weights: dict[str, Number]

    @model_validator(mode="after")
    def _of_the_ensemble(self, info: ValidationInfo) -> Members:
        if not set(self.times) == set(self.weights) <= set(info.context):
            raise ValueError("its members are not those of the ensemble")
        if not any(self.times.values()):
            raise ValueError("no member is counted")
        return self


class Weights(Record):
    mask: Members | None
    label: Members | None


class Network(Record):
    folds: Annotated[list[Count], Field(min_length=1)]
    weights: dict = {}
    versions: dict = {}
    pace: Number | None = None


class Manifest(Record):
    name: str
    files: dict[str, str]
    networks: dict[str, Network]
    mask_size: Annotated[int, Field(ge=0, lt=2**15)] = 0
    score: Number | None = None
    packages: dict[str, str] = {}

    @field_validator("name")
    def _of_a_config(cls, name: str) -> str:
        if not name or Path(name).name != name:
            raise ValueError("this is not the name of a config")
        return name

    @field_validator("files")
    def _inside(cls, files: dict[str, str]) -> dict[str, str]:
        if any(Path(file).is_absolute() or ".." in Path(file).parts for file in files):
            raise ValueError("a file of it lies outside of the bundle")
        return files


def read_metrics(paths: Paths, name: str) -> dict:
    """metrics.json of evaluate. Raises InputError where it is missing, damaged or incomplete."""
    file = paths.metrics(name)
    if not file.is_file():
        todo = f"Make it with {command('evaluate')}"
        raise InputError("there is no CV score yet", file, todo, code="no_metrics")
    remedy = f"Make it again with {command('evaluate', '--force')}"
    return _read(file, Metrics, "metrics", remedy, code="damaged_json")


def read_runs(paths: Paths) -> dict | None:
    """What report.json of prepare (or of a bundle) says of the train table's run lengths; None
    where there are none. Raises InputError likewise: without it masks would be written in an order
    that is only assumed."""
    remedy = f"Make it again with {command('prepare', '--force')}"
    report = _read(paths.report, Report, "the report on the images", remedy, code="damaged_json")
    return report["runs"]


def read_weights(paths: Paths, name: str, members: list[str]) -> dict:
    """weights.json of an ensemble of these members: 'mask' and 'label' -> None, or how often each
    member is counted ('times', once at least) and its 'weights'. Raises InputError likewise."""
    remedy, file = f"Make it again with {command('ensemble', '--force')}", paths.weights(name)
    kind = "the weights of an ensemble"
    return _read(file, Weights, kind, remedy, members, code="damaged_json")


def read_manifest(home: Paths) -> dict:
    """bundle.json, in the folder of a bundle. Raises InputError likewise."""
    remedy = "Make it again with ./run.sh bundle, and upload all of it"
    return _read(home.manifest, Manifest, "the manifest of a bundle", remedy, code="damaged_json")


def _read(
    file: Path, form: type[Record], kind: str, remedy: str, members: Any = None, *, code: str
) -> dict:
    try:
        record = read_json(file)
        form.model_validate(record, context=members)
        return record
    except FileNotFoundError:
        raise InputError("no such file", file, remedy, code=code) from None
    except (OSError, RecursionError) as error:
        what = f"not readable: {getattr(error, 'strerror', None) or error}"
        raise InputError(what, file, remedy, code=code) from None
    except InputError:
        what = f"damaged: not readable as {kind}"
        raise InputError(what, file, remedy, code=code) from None
    except ValidationError as error:
        first = error.errors()[0]
        place, why = ".".join(map(str, first["loc"]))[:100], first["msg"]
        what = f"not readable as {kind}: {place}: {why}"
        raise InputError(what, file, remedy, code=code) from None
