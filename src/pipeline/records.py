"""Reading the records that cross from one stage to another, and from a bundle to infer: metrics.json, weights.json, bundle.json.

They are text, and text is edited, merged and cut short: what is read here has the form that its readers go by, or there is an InputError that names the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from src.core.console import InputError, command, short
from src.core.disk import read_json
from src.core.paths import Paths


def read_metrics(paths: Paths, name: str) -> dict:
    """metrics.json of evaluate. Raises InputError where it is missing, damaged or of another kind."""
    file = paths.metrics(name)
    if not file.is_file():
        todo = f"Make it with {command('evaluate')}"
        raise InputError("there is no CV score yet", short(file), todo, code="no_metrics")

    def form(found: Any) -> None:
        if "honest" in found:  # as it was called before "nested"
            found["nested"] = found.pop("honest")
        nested = found["nested"]
        low, high = nested["intervals"]["score"]
        _numbers(nested["score"], low, high, *nested["metrics"].values())
        _dicts(found["tuned"]["decision"], *nested.get("decisions", {}).values())
        _numbers(*found.get("lecture", {}).values())
        for by_fold in (nested.get("by_fold", {}), found.get("lecture_by_fold", {})):
            for of_fold in by_fold.values():
                _numbers(*of_fold.values())

    remedy = f"Make it again with {command('evaluate', '--force')}"
    return _checked(file, form, "metrics", "damaged_json", remedy)


def read_runs(paths: Paths) -> dict | None:
    """What report.json of prepare (or of a bundle) says of the train table's run lengths; None
    where there are none. Raises InputError likewise: without it masks would be written in an order
    that is only assumed."""

    def form(found: Any) -> None:
        runs = found["runs"]
        if runs is None:
            return
        if runs["order"] not in ("column", "row") or runs["first"] not in (0, 1):
            raise ValueError("no such order or first pixel")
        if not isinstance(runs["relative"], bool) or not isinstance(
            runs.get("several"), (bool, type(None))
        ):
            raise ValueError("a yes or no is missing")
        if not isinstance(runs.get("empty"), (str, type(None))) or not isinstance(
            runs.get("why", ""), str
        ):
            raise ValueError("a word is missing")
        if not isinstance(runs.get("assumed", []), list):
            raise ValueError("a list is missing")
        if (size := runs.get("size")) is not None:
            if len(size) != 2 or not all(type(s) is int and 0 < s <= 2**16 for s in size):
                raise ValueError("its size is none")

    remedy = f"Make it again with {command('prepare', '--force')}"
    return _checked(paths.report, form, "the report on the images", "damaged_json", remedy)["runs"]


def read_weights(paths: Paths, name: str, members: list[str]) -> dict:
    """weights.json of an ensemble of these members: 'mask' and 'label' -> None, or how often each
    member is counted ('times', once at least) and its 'weights'. Raises InputError likewise."""

    def form(found: Any) -> None:
        for answer in ("mask", "label"):
            if found[answer] is None:
                continue
            times, weights = found[answer]["times"], found[answer]["weights"]
            _numbers(*weights.values())
            if not set(times) == set(weights) <= set(members):
                raise ValueError("its members are not those of the ensemble")
            if not all(type(t) is int and 0 <= t < 10**6 for t in times.values()):
                raise ValueError("times are whole numbers")
            if not any(times.values()):
                raise ValueError("no member is counted")

    remedy = f"Make it again with {command('ensemble', '--force')}"
    return _checked(paths.weights(name), form, "the weights of an ensemble", "damaged_json", remedy)


def read_manifest(home: Paths) -> dict:
    """bundle.json, in the folder of a bundle. Raises InputError likewise."""

    def form(found: Any) -> None:
        name = found["name"]
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise ValueError("its name is no name of a config")
        for file, digest in found["files"].items():
            if not isinstance(digest, str) or Path(file).is_absolute() or ".." in Path(file).parts:
                raise ValueError("a file of it lies outside of the bundle")
        for network in found["networks"].values():
            folds = network["folds"]
            if not folds or not all(type(k) is int and 0 <= k < 10**6 for k in folds):
                raise ValueError("a network without folds")
            _dicts(network.get("weights", {}), network.get("versions", {}))
            if network.get("pace") is not None:
                _numbers(network["pace"])
        size = found.get("mask_size", 0)
        if type(size) is not int or not 0 <= size < 2**15:
            raise ValueError("mask_size is no size")
        if found.get("score") is not None:
            _numbers(found["score"])
        if not all(isinstance(v, str) for v in found.get("packages", {}).values()):
            raise ValueError("versions are words")

    remedy = "Make it again with ./run.sh bundle, and upload all of it"
    return _checked(home.manifest, form, "the manifest of a bundle", "damaged_json", remedy)


def _checked(file: Path, form: Callable[[Any], None], kind: str, code: str, remedy: str) -> dict:
    try:
        found = read_json(file)
    except FileNotFoundError:
        raise InputError("no such file", short(file), remedy, code=code) from None
    except (OSError, RecursionError) as error:
        why = f"not readable: {getattr(error, 'strerror', None) or error}"
        raise InputError(why, short(file), remedy, code=code) from None
    except InputError:
        raise InputError(
            f"damaged: not readable as {kind}", short(file), remedy, code=code
        ) from None
    try:
        form(found)
    except KeyError as error:
        what = f"not readable as {kind}: {error.args[0]} is missing"
    except ValueError as error:
        what = f"not readable as {kind}: {error}"
    except (TypeError, AttributeError, OverflowError, IndexError):
        what = f"not readable as {kind}: something in it is of another kind"
    else:
        return found
    raise InputError(what, short(file), remedy, code=code)


def _numbers(*values: Any) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError("a number is missing")
        if not math.isfinite(value):
            raise ValueError("a number is not finite")


def _dicts(*values: Any) -> None:
    if not all(isinstance(v, dict) for v in values):
        raise ValueError("a list of keys and values is missing")
