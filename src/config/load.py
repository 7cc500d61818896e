"""Reading configs: an experiment, an ensemble or a study, with the competition that it belongs to, and what --set overrides."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from src.config import plain_yaml
from src.config.complaints import complaint, shortened
from src.config.names import check_name
from src.config.overrides import leaves, parse_override, set_in
from src.config.renames import refuse_both_names, with_current_names
from src.core.console import InputError, nearest
from src.core.disk import what_is
from src.core.paths import COMPETITION, CONFIGS
from src.core.settings import NEUTRAL, Competition, Ensemble, Evaluation, Experiment, Strict, Study

LONGEST_LABEL = 100  # bytes of a cell's name, which becomes a part of a folder's
MOST_CELLS = 500  # of a study, each seed counted


@dataclass
class Config:
    """One YAML, with the competition it belongs to: an experiment, an ensemble with its members, or a study with its cells."""

    name: str
    file: Path
    competition: Competition
    experiment: Experiment | None = None
    ensemble: Ensemble | None = None
    members: list[Config] = field(
        default_factory=list
    )  # those members of the ensemble that have a YAML beside it; every cell of a study
    study: Study | None = None
    cells: dict[str, list[Config]] = field(
        default_factory=dict
    )  # label -> the study's cell, once for each seed; the base comes first

    @property
    def experiments(self) -> list[Config]:
        return (
            [self]
            if self.experiment
            else list({e.name: e for m in self.members for e in m.experiments}.values())
        )

    def owner(self, name: str) -> Config:
        """The experiment, ensemble or study of this name, among this and what it is made of."""
        return next((c for c in (*self.members, *self.experiments) if c.name == name), self)

    def keys(self, *sections: str) -> dict[str, Any]:
        """The named sections' settings, flat: {'train.epochs': 20, …}, without those that cannot change a result."""
        flat: dict[str, Any] = {}
        for section in sections:
            holder = next(
                m
                for m in (self.competition, self.experiment, self.ensemble)
                if m is not None and section.split(".")[0] in type(m).model_fields
            )
            value: Any = holder
            for word in section.split("."):
                value = getattr(value, word)
            _flatten(section, value, flat)
        return {k: v for k, v in flat.items() if k not in NEUTRAL}


def load(file: Path, overrides: list[str] = (), tiny: bool = False) -> Config:
    """Read an experiment, an ensemble or a study (at its tiny size) with the competition.yaml of its folder (or the folder above); raises InputError
    for anything wrong."""
    file = Path(file)
    if not _is_file(file) and not os.path.islink(file):  # a name alone is one of the project's
        places = (file.parent, CONFIGS, CONFIGS / "studies")
        named = (f for d in places for f in (d / file.name, d / f"{file.name}.yaml"))
        file = next((f for f in named if _is_file(f)), file)
    if file.name == COMPETITION:
        raise InputError(
            "this describes the competition, it is no experiment",
            file,
            "Name one of the others, for example configs/cpu.yaml",
            code="other_kind_of_config",
        )
    tree = read_yaml(file)
    check_name(file.stem, file)
    refuse_both_names([text.partition("=")[0].strip() for text in overrides], "--set")
    if "base" in tree or "question" in tree:
        return _load_study(file, tree, list(overrides), tiny)
    if tiny:
        raise InputError(
            "only a study has a tiny size", file, "Leave out --tiny", code="other_kind_of_config"
        )
    home = next((d for d in (file.parent, file.parent.parent) if (d / COMPETITION).is_file()), None)
    if home is None:
        raise InputError(
            f"no {COMPETITION} beside this config",
            file,
            "It describes data, classes, score and submission: copy one from configs/",
            code="no_competition",
        )
    tree = {k: with_current_names(k, v, file) for k, v in tree.items()}
    contest = read_yaml(home / COMPETITION)
    contest = {k: with_current_names(k, v, home / COMPETITION) for k, v in contest.items()}
    kind: type[Strict] = Ensemble if "members" in tree else Experiment
    for key in [k for k in tree if k in Competition.model_fields]:
        raise InputError(
            f"'{key}' is shared by all experiments",
            file,
            f"Move it to {home / COMPETITION}",
            code="shared_setting",
        )
    member_overrides = []
    for text in overrides:
        key, value = parse_override(text)
        top = key.split(".")[0]
        if top in Competition.model_fields:
            set_in(contest, Competition, key, value)
        elif top in kind.model_fields:
            set_in(tree, kind, key, value)
        elif kind is Ensemble and top in Experiment.model_fields:
            member_overrides.append(text)
        elif top in Ensemble.model_fields:
            raise InputError(
                f"'{key[:60]}' is an ensemble's, and {file.name} is an experiment",
                f"--set {text[:120]}",
                "Name an ensemble, for example --config configs/ensemble.yaml",
                code="other_kind_of_config",
            )
        else:
            known = [*leaves(Competition), *leaves(kind)]
            known += leaves(Experiment) if kind is Ensemble else []
            raise InputError(
                f"unknown key '{key[:60]}'",
                f"--set {text[:120]}",
                nearest(key[:60], known),
                code="unknown_key",
            )
    config = Config(file.stem, file, _validate(Competition, contest, home / COMPETITION, overrides))
    if kind is Experiment:
        config.experiment = _validate(Experiment, tree, file, overrides)
        return config
    config.ensemble = _validate(Ensemble, tree, file, overrides)
    tops = {text: parse_override(text)[0].split(".")[0] for text in overrides}
    passed_on = [text for text in overrides if tops[text] in Competition.model_fields]
    passed_on += member_overrides
    members = config.ensemble.members
    if len(set(members)) < len(members):
        twice = next(m for m in members if members.count(m) > 1)
        raise InputError(
            f"the member '{twice}' is named twice", file, "Name each once", code="member_twice"
        )
    for member in members:
        if "/" in member:  # a folder of predictions
            continue
        check_name(member, file, "member")
        beside = file.parent / f"{member}.yaml"
        there = read_yaml(beside) if beside.is_file() else {}
        if "base" in there or "question" in there:
            raise InputError(
                f"the member '{member}' is a study", file, "Name experiments", code="bad_member"
            )
        # another ensemble is a member by its predictions, like a team mate's
        if beside.is_file() and "members" not in there:
            config.members.append(load(beside, passed_on))
        elif member == file.stem:
            raise InputError(
                "an ensemble cannot be a member of itself",
                file,
                f"Take {member} out of members",
                code="bad_member",
            )
    return config


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _load_study(file: Path, tree: dict, overrides: list[str], tiny: bool) -> Config:
    """Every cell is the base with some settings changed: an experiment with a name of its own, made of the base's and the cell's; a cell that changes
    nothing is the base itself, and one that changes only how predictions are evaluated is an ensemble of the base alone. All decide by the untuned decision,
    unless the study lists other values: a tuned one would add its own chance to every difference."""
    full = _validate(Study, tree, file)
    study = _validate(Study, tree | full.tiny, file) if tiny else full
    check_name(study.base, file, "base")
    check_size(study, file)
    base_file = next(
        (
            f
            for d in (file.parent, file.parent.parent, CONFIGS)
            if (f := d / f"{study.base}.yaml").is_file() and f.resolve() != file.resolve()
        ),
        None,
    )
    if base_file is None:
        there = [
            f.stem
            for d in (file.parent, file.parent.parent, CONFIGS)
            for f in d.glob("*.yaml")
            if f.name != COMPETITION and f.resolve() != file.resolve()
        ]
        what = f"no config called '{study.base}' beside this study, above it or in configs/"
        raise InputError(
            what, file, nearest(study.base, dict.fromkeys(there)), code="no_such_config"
        )
    if {"base", "question", "members"} & read_yaml(base_file).keys():
        raise InputError(
            f"the base of a study is an experiment, and {study.base} is not",
            file,
            code="other_kind_of_config",
        )
    own = f"{base_file.stem}-{file.stem}" + (
        "_tiny" if tiny and study.base == full.base else ""
    )  # the two sizes of a study must not take each other's places
    alters = any(key.split(".")[0] in Experiment.model_fields for key in study.set)
    of_all = {k: v for k, v in study.set.items() if k.split(".")[0] not in Evaluation.model_fields}

    def load_cell(common: dict[str, Any], settings: dict[str, Any], label: str = "") -> Config:
        try:
            found = load(base_file, [*untuned, *_typed(common), *overrides, *_typed(settings)])
        except InputError as error:
            see = f"See cell '{label}'" if label else "See set:"
            raise InputError(
                str(error).replace("(--set ", "("), file, see, code=error.code
            ) from None
        return found

    load(
        base_file, overrides
    )  # what is wrong with these was typed, and is said so; what is wrong below stands in the study
    untuned: list[str] = []
    plain = load_cell(of_all, {})
    untuned = _typed(
        {
            f"evaluate.{name}": tried[:1]
            for name, tried in plain.competition.evaluate
            if isinstance(tried, list)
        }
    )
    own_seed = plain.experiment.train.seed
    seeds = study.seeds or [own_seed]
    if study.seeds and any(parse_override(t)[0] == "train.seed" for t in overrides):
        raise InputError(
            "this study has its own seeds",
            "--set train.seed",
            f"Change seeds: in {file}",
            code="shared_setting",
        )

    def named(name: str, seed: int) -> str:
        return name if seed == own_seed else f"{name}-seed{seed}"

    bases = {seed: load_cell(of_all, {"train.seed": seed}) for seed in seeds}
    for seed, base in bases.items():
        base.name = named(
            own if alters else base_file.stem, seed
        )  # studies that set nothing for all their cells share the base's training

    def cell(label: str, settings: dict[str, Any], seed: int) -> Config:
        made, base = load_cell(study.set, {"train.seed": seed} | settings, label), bases[seed]
        made.name = named(
            f"{own}-{re.sub(r'[^a-zA-Z0-9_.+]+', '_', label)}"
            if label
            else own + ("-decided" if alters else ""),
            seed,
        )
        if apart := [
            k
            for k in Competition.model_fields
            if k not in Evaluation.model_fields
            and getattr(made.competition, k) != getattr(base.competition, k)
        ]:
            what = f"cell '{label}' changes '{apart[0]}', which all cells of a study share"
            raise InputError(what, file, "Put it under set:", code="shared_setting")
        if any(key.split(".")[0] == "score" for key in settings):
            raise InputError(
                f"cell '{label}' changes 'score', which all cells of a study share",
                file,
                "Put it under set:",
                code="shared_setting",
            )
        if made.experiment != base.experiment:
            return made
        return (
            base
            if made.competition == base.competition
            else Config(
                made.name,
                file,
                made.competition,
                ensemble=Ensemble(members=[base.name]),
                members=[base],
            )
        )

    first, asked = (
        {seed: cell("", {}, seed) for seed in seeds},
        [*_combinations(study.grid, file), *study.cells.items()],
    )
    labels = [label for label, _ in asked]
    for label in labels:
        if not label.strip() or len(label.encode()) > LONGEST_LABEL:
            raise InputError(
                f"a cell is called '{label[:60]}'",
                file,
                f"Give it a name of 1 to {LONGEST_LABEL} bytes",
                code="bad_name",
            )
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise InputError(
            f"two cells are called '{twice}'",
            file,
            "Give one of them another name",
            code="cell_twice",
        )
    cells = {label: [cell(label, settings, seed) for seed in seeds] for label, settings in asked}
    same = next(
        (label for label, made in cells.items() if made[0].name == first[seeds[0]].name), None
    )
    if not same and study.base in cells:
        raise InputError(
            f"a cell is called '{study.base}', as the base is",
            file,
            "Give it another name",
            code="cell_twice",
        )
    cells = {same or study.base: list(first.values())} | {
        label: made for label, made in cells.items() if label != same
    }
    names = [c.name for made in cells.values() for c in made]
    if len(cells) < 2:
        raise InputError(
            "a study needs a cell that differs from its base",
            file,
            "List values under grid:, or name cells under cells:",
            code="no_cells",
        )
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise InputError(
            f"two cells come to the same name, {twice}",
            file,
            "Give them names that differ in letters or digits",
            code="cell_twice",
        )
    if long := next((n for n in names if len(n.encode()) > 240), None):
        raise InputError(
            f"a cell comes to a name of {len(long.encode())} bytes",
            file,
            "Shorten the names of the study, its base or its cell",
            code="bad_name",
        )
    name, members = (
        file.stem + ("_tiny" if tiny else ""),
        [c for made in cells.values() for c in made],
    )
    return Config(name, file, members[0].competition, members=members, study=study, cells=cells)


def check_size(study: Study, file: Path) -> None:
    """Before any cell is made: raises InputError for more cells than anybody can train."""
    count = math.prod(len(values) for values in study.grid.values()) if study.grid else 0
    count = (count + len(study.cells)) * max(1, len(study.seeds))
    if count > MOST_CELLS:
        raise InputError(
            f"a study of {count} cells, more than {MOST_CELLS}",
            file,
            "List fewer values under grid:, or fewer seeds",
            code="too_many_cells",
        )


def _typed(settings: dict[str, Any]) -> list[str]:
    """As one would type them after --set."""
    return [
        f"{key}={yaml.safe_dump([value], default_flow_style=True, width=10**9).strip()[1:-1]}"
        for key, value in settings.items()
    ]


def _combinations(grid: dict[str, list | dict], file: Path) -> list[tuple[str, dict[str, Any]]]:
    """All combinations of the grid's values, each with a label made of their names."""
    axes = []
    for key, values in grid.items():
        if isinstance(values, list):
            if long := next((v for v in values if isinstance(v, (dict, list))), None):
                raise InputError(
                    f"grid.{key}: {shortened(long)} has no short name",
                    file,
                    "Write name: value pairs in place of the list",
                    code="value_without_name",
                )
            values = {
                f"{key.split('.')[-1]} {json.dumps(v) if isinstance(v, bool) else v}": v
                for v in values
            }
        axes.append([(label, {key: value}) for label, value in values.items()])
    return (
        [
            (
                ", ".join(label for label, _ in chosen),
                {k: v for _, one in chosen for k, v in one.items()},
            )
            for chosen in itertools.product(*axes)
        ]
        if axes
        else []
    )


def read_yaml(file: Path) -> dict:
    try:
        if file.is_symlink() and not file.exists():
            raise InputError(
                f"this config is {what_is(file)}",
                file,
                "Mend the link, or name the file itself",
                code="config_unreadable",
            )
        if not file.exists():
            there = [p.stem for p in sorted(file.parent.glob("*.yaml")) if p.name != COMPETITION]
            todo = nearest(file.stem, there) if there else "Try ./run.sh --config configs/cpu.yaml"
            raise InputError("no such config", file, todo, code="no_such_config")
        if not file.is_file():
            what = "a folder" if file.is_dir() else "no file"
            raise InputError(
                f"a config is a YAML file, and this is {what}", file, code="config_unreadable"
            )
        tree = plain_yaml.read(file)
    except plain_yaml.Unreadable as error:
        line = f", line {error.line}" if error.line else ""
        raise InputError(
            f"not readable as YAML: {error}", f"{file}{line}", code=error.code
        ) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"this config cannot be read: {why}", str(file)[:160], code="config_unreadable"
        ) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError("a config is a list of key: value lines", file, code="config_unreadable")
    return tree


def _validate(model: type[Strict], tree: dict, file: Path, overrides: list[str] = ()):
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise complaint(error, model, file, overrides, leaves(model)) from None


def _flatten(prefix: str, value: Any, into: dict[str, Any]) -> None:
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            _flatten(f"{prefix}.{name}", getattr(value, name), into)
    else:
        into[prefix] = value
