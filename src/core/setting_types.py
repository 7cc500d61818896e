"""What a setting can be: a share, a seed, a path, … and Strict, a section of settings."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

Share = Annotated[float, Field(ge=0, le=1)]
ShareBelow1 = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=-1e6, le=1e6)]
Distance = Annotated[float, Field(gt=0, le=1e6)]  # pixels
Side = Annotated[int, Field(ge=1, le=65_535)]  # pixels
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # scikit-learn's range; torch gets 1000 times it

T = TypeVar("T")
NonEmpty = Annotated[list[T], Field(min_length=1)]


def _short_enough(path: str) -> str:
    if len(path) > 1000 or any(len(p.encode(errors="replace")) > 200 for p in path.split("/")):
        raise ValueError("longer than a file's name can be")
    return path


def _plain_word(word: str) -> str:
    if not word.isidentifier() or not word.isascii() or len(word) > 20:
        raise ValueError("a word of letters, digits and _, at most 20 of them")
    return word


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("text of one line, without tabs or control characters")
    return text


def _within_bounds(options: dict) -> dict:
    for name, value in options.items():
        numbers = _leaves(value)
        if not all(abs(n) <= 16_384 for n in numbers if isinstance(n, (int, float))):
            raise ValueError("every number is finite, and at most 16384")
        counts = [n for n in numbers if n is not None]
        if name.endswith("channels") and not all(type(n) is int and n >= 1 for n in counts):
            raise ValueError(f"{name} are whole numbers from 1")
    return options


def _leaves(value: Any) -> list[Any]:
    if not isinstance(value, (dict, list)):
        return [value]
    inner = value.values() if isinstance(value, dict) else value
    return [leaf for v in inner for leaf in _leaves(v)]


Options = Annotated[dict[str, Any], AfterValidator(_within_bounds)]  # of an architecture
Cell = Annotated[str, AfterValidator(_one_line)]  # is written into the submission
Word = Annotated[str, AfterValidator(_plain_word)]  # goes into a file's name
PathText = Annotated[str, AfterValidator(_short_enough)]
Patterns = list[PathText]  # of files' names


class Strict(BaseModel):
    """A section of settings: unknown keys, infinite numbers and true for 1 are refused."""

    model_config = ConfigDict(
        extra="forbid", protected_namespaces=(), coerce_numbers_to_str=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_as_they_look(cls, value, info):
        """pydantic would take true for 1, and 1_0 for 10."""
        annotation = cls.model_fields[info.field_name].annotation
        kind = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        kind = re.sub(r"'.*?'", "", kind)  # without literal words
        if ("int" in kind or "float" in kind) and "bool" not in kind:
            held = list(value.values()) if isinstance(value, dict) else value
            held = held if isinstance(held, list) else [held]
            if any(isinstance(v, bool) or _is_grouped(v) for v in held):
                raise PydanticCustomError("number", "should be a number")
        return value


def _is_grouped(value: object) -> bool:
    return isinstance(value, str) and "_" in value and any(c.isdigit() for c in value)
