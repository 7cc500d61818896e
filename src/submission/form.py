"""The form of a submission: every field of `submission:` decided."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from src.core.console import printable
from src.core.settings import Classes, Submission
from src.submission.rows import Row
from src.submission.sample import Sample

BOX = "confidence xmin ymin xmax ymax"


@dataclass
class Form:
    """`submission:` with nothing left open. Columns are names in `sample.columns`; None: the sample
    does not ask for it."""

    sample: Sample
    rows: list[Row]
    classes: Classes
    given: Submission
    id: str
    name: str
    key: str | None = None
    label: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)  # class -> how `key` writes it
    probabilities: dict[str, str] = field(default_factory=dict)
    rle: str | None = None
    order: str = "column"
    first_pixel: int = 1
    relative_starts: bool = False
    empty: str = ""
    size: tuple[int, int] | None = None
    row_per_component: bool = False
    boxes: str | None = None
    box: str = BOX
    masks: str | None = None
    mask_value: int = 255
    passthrough: list[str] = field(default_factory=list)
    inferred: list[str] = field(default_factory=list)  # in words: what, and from what

    @property
    def requested(self) -> dict[str, str]:
        """'mask' and 'label', as far as the sample asks for them -> the column that does."""
        found = {
            "mask": self.rle or self.boxes or self.masks,
            "label": self.label or next(iter(self.probabilities.values()), None),
        }
        if len(self.keys) > 1:
            found["label"] = found["label"] or self.key or self.id
        if self.boxes and "label" in self.box.split():
            found["label"] = found["label"] or "label"
        return {answer: column for answer, column in found.items() if column}

    @property
    def images(self) -> list[str]:
        """Those on disk, each once, in the order of the rows."""
        return list(dict.fromkeys(row.image for row in self.rows if row.image is not None))

    @property
    def missing_ids(self) -> list[str]:
        """The ids of rows without an image on disk."""
        at = self.sample.columns.index(self.id)
        return [row.cells[at].strip() for row in self.rows if row.image is None]

    def decide(self, name: str, found: Any, why: str = "") -> None:
        """A field: as given, else as found. The latter is noted, unless it is a plain no."""
        given = getattr(self.given, name)
        setattr(self, name, found if given is None else given)
        if found is not False:
            self.note(name, found, why)

    def note(self, name: str, value: object, why: str = "") -> None:
        """What was inferred rather than given, in words."""
        if getattr(self.given, name) is None:
            if isinstance(value, dict):
                value = ", ".join(f"{text} for {label}" for label, text in value.items())
            value = "yes" if value is True else printable(value) or "an empty cell"
            self.inferred.append(f"{name}: {value}{why and f' ({why})'}")
