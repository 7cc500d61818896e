"""Reading configs: an experiment, an ensemble or a study, with the competition that it belongs to, and what --set overrides."""
from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from src.core.console import InputError, nearest
from src.core.paths import COMPETITION, CONFIGS
from src.core.settings import NEUTRAL, Competition, Ensemble, Evaluation, Experiment, Strict, Study


@dataclass
class Config:
    """One YAML, with the competition it belongs to: an experiment, an ensemble with its members, or a study with its cells."""

    name: str
    file: Path
    competition: Competition
    experiment: Experiment | None = None
    ensemble: Ensemble | None = None
    members: list["Config"] = field(default_factory=list)  # those members of the ensemble that have a YAML beside it; every cell of a study
    study: Study | None = None
    cells: dict[str, list["Config"]] = field(default_factory=dict)  # label -> the study's cell, once for each seed; the base comes first

    @property
    def experiments(self) -> list["Config"]:
        return [self] if self.experiment else list({e.name: e for m in self.members for e in m.experiments}.values())

    def owner(self, name: str) -> "Config":
        """The experiment, ensemble or study of this name, among this and what it is made of."""
        return next((c for c in (*self.members, *self.experiments) if c.name == name), self)

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


def load(file: Path, overrides: list[str] = (), tiny: bool = False) -> Config:
    """Read an experiment, an ensemble or a study (at its tiny size) with the competition.yaml of its folder (or the folder above); raises InputError
    for anything wrong."""
    file = Path(file)
    if not file.exists():  # a name alone is one of the project's
        places = (file.parent, CONFIGS, CONFIGS / "studies")
        file = next((f for d in places for f in (d / file.name, d / f"{file.name}.yaml") if f.is_file()), file)
    if file.name == COMPETITION:
        raise InputError("this describes the competition, it is no experiment", file, "Name one of the others, for example configs/cpu.yaml")
    if file.stem == "log":
        raise InputError("no config may be called log: submissions/log.csv is the list of what was sent", file, "Rename it")
    tree = read_yaml(file)
    if "base" in tree or "question" in tree:
        return _load_study(file, tree, list(overrides), tiny)
    if tiny:
        raise InputError("only a study has a tiny size", file, "Leave out --tiny")
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


def _load_study(file: Path, tree: dict, overrides: list[str], tiny: bool) -> Config:
    """Every cell is the base with some settings changed: an experiment with a name of its own, made of the base's and the cell's; a cell that changes
    nothing is the base itself, and one that changes only how predictions are evaluated is an ensemble of the base alone. All decide by the untuned decision,
    unless the study lists other values: a tuned one would add its own chance to every difference."""
    full = _validate(Study, tree, file)
    study = _validate(Study, tree | full.tiny, file) if tiny else full
    base_file = next((f for d in (file.parent, file.parent.parent, CONFIGS) if (f := d / f"{study.base}.yaml").is_file() and f.resolve() != file.resolve()), None)
    if base_file is None:
        there = [f.stem for d in (file.parent, file.parent.parent, CONFIGS) for f in d.glob("*.yaml") if f.name != COMPETITION and f.resolve() != file.resolve()]
        raise InputError(f"no config called '{study.base}' beside this study, above it or in configs/", file, nearest(study.base, dict.fromkeys(there)))
    own = f"{base_file.stem}-{file.stem}" + ("_tiny" if tiny and study.base == full.base else "")  # the two sizes of a study must not take each other's places
    alters = any(key.split(".")[0] in Experiment.model_fields for key in study.set)
    of_all = {k: v for k, v in study.set.items() if k.split(".")[0] not in Evaluation.model_fields}

    def load_cell(common: dict[str, Any], settings: dict[str, Any], label: str = "") -> Config:
        try:
            found = load(base_file, [*untuned, *_typed(common), *overrides, *_typed(settings)])
        except InputError as error:
            raise InputError(str(error).replace("(--set ", "("), file, f"See cell '{label}'" if label else "See set:") from None
        if found.experiment is None:
            raise InputError(f"the base of a study is an experiment, and {study.base} is not", file)
        return found

    load(base_file, overrides)  # what is wrong with these was typed, and is said so; what is wrong below stands in the study
    untuned: list[str] = []
    plain = load_cell(of_all, {})
    untuned = _typed({f"evaluate.{name}": tried[:1] for name, tried in plain.competition.evaluate if isinstance(tried, list)})
    own_seed = plain.experiment.train.seed
    seeds = study.seeds or [own_seed]
    if study.seeds and any(_parse_override(t)[0] == "train.seed" for t in overrides):
        raise InputError("this study has its own seeds", "--set train.seed", f"Change seeds: in {file}")

    def named(name: str, seed: int) -> str:
        return name if seed == own_seed else f"{name}-seed{seed}"

    bases = {seed: load_cell(of_all, {"train.seed": seed}) for seed in seeds}
    for seed, base in bases.items():
        base.name = named(own if alters else base_file.stem, seed)  # studies that set nothing for all their cells share the base's training

    def cell(label: str, settings: dict[str, Any], seed: int) -> Config:
        made, base = load_cell(study.set, {"train.seed": seed} | settings, label), bases[seed]
        made.name = named(f"{own}-{re.sub(r'[^a-zA-Z0-9_.+]+', '_', label)}" if label else own + ("-decided" if alters else ""), seed)
        if apart := [k for k in Competition.model_fields if k not in Evaluation.model_fields and getattr(made.competition, k) != getattr(base.competition, k)]:
            raise InputError(f"cell '{label}' changes '{apart[0]}', which all cells of a study share", file, "Put it under set:")
        if any(key.split(".")[0] == "score" for key in settings):
            raise InputError(f"cell '{label}' changes 'score', which all cells of a study share", file, "Put it under set:")
        if made.experiment != base.experiment:
            return made
        return base if made.competition == base.competition else Config(made.name, file, made.competition, ensemble=Ensemble(members=[base.name]), members=[base])

    first, asked = {seed: cell("", {}, seed) for seed in seeds}, [*_combinations(study.grid, file), *study.cells.items()]
    labels = [label for label, _ in asked]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise InputError(f"two cells are called '{twice}'", file, "Give one of them another name")
    cells = {label: [cell(label, settings, seed) for seed in seeds] for label, settings in asked}
    same = next((label for label, made in cells.items() if made[0].name == first[seeds[0]].name), None)
    if not same and study.base in cells:
        raise InputError(f"a cell is called '{study.base}', as the base is", file, "Give it another name")
    cells = {same or study.base: list(first.values())} | {label: made for label, made in cells.items() if label != same}
    names = [c.name for made in cells.values() for c in made]
    if len(cells) < 2:
        raise InputError("a study needs a cell that differs from its base", file, "List values under grid:, or name cells under cells:")
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise InputError(f"two cells come to the same name, {twice}", file, "Give them names that differ in letters or digits")
    name, members = file.stem + ("_tiny" if tiny else ""), [c for made in cells.values() for c in made]
    return Config(name, file, members[0].competition, members=members, study=study, cells=cells)


def _typed(settings: dict[str, Any]) -> list[str]:
    """As one would type them after --set."""
    return [f"{key}={yaml.safe_dump([value], default_flow_style=True, width=10**9).strip()[1:-1]}" for key, value in settings.items()]


def _combinations(grid: dict[str, list | dict], file: Path) -> list[tuple[str, dict[str, Any]]]:
    """All combinations of the grid's values, each with a label made of their names."""
    axes = []
    for key, values in grid.items():
        if isinstance(values, list):
            if long := next((v for v in values if isinstance(v, (dict, list))), None):
                raise InputError(f"grid.{key}: {long} has no short name", file, "Write name: value pairs in place of the list")
            values = {f"{key.split('.')[-1]} {json.dumps(v) if isinstance(v, bool) else v}": v for v in values}
        axes.append([(label, {key: value}) for label, value in values.items()])
    return [(", ".join(label for label, _ in chosen), {k: v for _, one in chosen for k, v in one.items()}) for chosen in itertools.product(*axes)] if axes else []


def read_yaml(file: Path) -> dict:
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
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
    section = model
    for word in words:
        section = getattr(getattr(section, "model_fields", {}).get(word), "annotation", None)
    if isinstance(value, dict) and isinstance(section, type) and issubclass(section, BaseModel):  # a section: what it does not name stays as it is
        for name, inner in value.items():
            _set(tree, model, f"{key}.{name}", inner)
        return
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
        where = ".".join(p for p in map(str, first["loc"]) if "[" not in p and not p.startswith("constrained-"))  # without the names of a union's branches
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
