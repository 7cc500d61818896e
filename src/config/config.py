"""A config: the YAML of an experiment or an ensemble, and the competition.yaml of its folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from src.config.complaints import validate
from src.config.names import check_name
from src.config.overrides import leaves, parse_override, set_in
from src.config.plain_yaml import read_yaml
from src.config.renames import with_current_names
from src.core.console import InputError, nearest
from src.core.paths import COMPETITION
from src.core.setting_types import Strict
from src.core.settings import NEVER_STALE, Competition, Ensemble, Experiment, Study


@dataclass
class Config:
    """An experiment, an ensemble with its members, or a study with its cells; and the competition
    that it belongs to."""

    name: str
    file: Path
    competition: Competition
    experiment: Experiment | None = None
    ensemble: Ensemble | None = None
    # those members of the ensemble that have a YAML beside it; every cell of a study
    members: list[Config] = field(default_factory=list)
    study: Study | None = None
    # label -> the study's cell, once for each seed; the base comes first
    cells: dict[str, list[Config]] = field(default_factory=dict)

    @property
    def experiments(self) -> list[Config]:
        """This experiment, or those that the members are made of, each once."""
        if self.experiment:
            return [self]
        return list({e.name: e for m in self.members for e in m.experiments}.values())

    def owner(self, name: str) -> Config:
        """The experiment, ensemble or study of this name, among this and what it is made of."""
        return next((c for c in (*self.members, *self.experiments) if c.name == name), self)

    def keys(self, *sections: str) -> dict[str, Any]:
        """The settings of the named sections, flat: {'train.epochs': 20, …}, without those that
        cannot change a result."""
        flat: dict[str, Any] = {}
        holders = [m for m in (self.competition, self.experiment, self.ensemble) if m is not None]
        for section in sections:
            first, *rest = section.split(".")
            value = next(getattr(m, first) for m in holders if first in type(m).model_fields)
            for word in rest:
                value = getattr(value, word)
            _flatten(section, value, flat)
        return {k: v for k, v in flat.items() if k not in NEVER_STALE}


def _flatten(prefix: str, value: Any, into: dict[str, Any]) -> None:
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            _flatten(f"{prefix}.{name}", getattr(value, name), into)
    else:
        into[prefix] = value


def is_study(tree: dict) -> bool:
    return "base" in tree or "question" in tree


def load_config(file: Path, tree: dict, overrides: list[str]) -> Config:
    """The experiment or ensemble that `file` holds as `tree`, with its competition.

    Raises InputError for anything wrong.
    """
    beside = next(
        (d / COMPETITION for d in (file.parent, file.parent.parent) if (d / COMPETITION).is_file()),
        None,
    )
    if beside is None:
        raise InputError(
            f"no {COMPETITION} beside this config",
            file,
            "It describes data, classes, score and submission: copy one from configs/",
            code="no_competition",
        )
    for key in tree:
        if key in Competition.model_fields:
            raise InputError(
                f"'{key}' is shared by all experiments",
                file,
                f"Move it to {beside}",
                code="shared_setting",
            )
    tree = with_current_names(tree, file)
    contest = with_current_names(read_yaml(beside), beside)
    kind = Ensemble if "members" in tree else Experiment
    of_members = []
    for text in overrides:
        key, value = parse_override(text)
        section = key.split(".")[0]
        if section in Competition.model_fields:
            set_in(contest, Competition, key, value)
            of_members.append(text)
        elif section in kind.model_fields:
            set_in(tree, kind, key, value)
        elif kind is Ensemble and section in Experiment.model_fields:
            of_members.append(text)
        else:
            raise _unknown(text, key, kind, file)
    config = Config(file.stem, file, validate(Competition, contest, beside, overrides))
    if kind is Experiment:
        config.experiment = validate(Experiment, tree, file, overrides)
    else:
        config.ensemble = validate(Ensemble, tree, file, overrides)
        config.members = _load_members(config.ensemble.members, file, of_members)
    return config


def _unknown(text: str, key: str, kind: type[Strict], file: Path) -> InputError:
    """An override that sets nothing in this kind of config."""
    if key.split(".")[0] in Ensemble.model_fields:
        return InputError(
            f"'{key[:60]}' is a setting of ensembles, and {file.name} is an experiment",
            f"--set {text[:120]}",
            "Name an ensemble, for example --config configs/ensemble.yaml",
            code="other_kind_of_config",
        )
    known = {leaf for model in (Competition, kind, Experiment) for leaf in leaves(model)}
    return InputError(
        f"unknown key '{key[:60]}'",
        f"--set {text[:120]}",
        nearest(key[:60], known),
        code="unknown_key",
    )


def _load_members(members: list[str], file: Path, overrides: list[str]) -> list[Config]:
    """The members that have a YAML beside the ensemble's `file`. Folders of predictions, and other
    ensembles, which are members by their predictions like a team mate's, have none to load."""
    twice = next((m for m in members if members.count(m) > 1), None)
    if twice is not None:
        raise InputError(
            f"the member '{twice}' is named twice", file, "Name each once", code="member_twice"
        )
    loaded = []
    for member in members:
        if "/" in member:
            continue
        check_name(member, file, "member")
        beside = file.parent / f"{member}.yaml"
        tree = read_yaml(beside) if beside.is_file() else None
        if tree is not None and is_study(tree):
            raise InputError(
                f"the member '{member}' is a study", file, "Name experiments", code="bad_member"
            )
        if tree is not None and "members" not in tree:
            loaded.append(load_config(beside, tree, overrides))
        elif member == file.stem:
            raise InputError(
                "an ensemble cannot be a member of itself",
                file,
                f"Take {member} out of members",
                code="bad_member",
            )
    return loaded
