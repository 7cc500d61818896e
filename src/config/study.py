"""Studies: experiments that differ from one base in what is asked about."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from src.config.complaints import shortened, validate
from src.config.config import Config, is_study, load_config
from src.config.names import check_name
from src.config.overrides import parse_override
from src.config.plain_yaml import read_yaml
from src.config.renames import refuse_both_names
from src.core.console import InputError, nearest
from src.core.paths import COMPETITION, CONFIGS
from src.core.settings import Competition, Ensemble, Evaluation, Experiment, Study

LONGEST_LABEL = 100  # bytes of a cell's label, which becomes a part of a folder's name
LONGEST_NAME = 240  # bytes of that folder's name
MOST_CELLS = 500  # of a study, each seed counted
SHARED = Competition.model_fields.keys() - Evaluation.model_fields.keys()  # by all cells


def load_study(file: Path, tree: dict, overrides: list[str], tiny: bool) -> Config:
    """The study that `file` holds as `tree`; raises InputError for anything wrong.

    Every cell is the base with some settings changed: an experiment with a name of its own. A cell
    that changes nothing is the base itself, and one that only changes how predictions are evaluated
    is an ensemble of the base alone. All use the untuned decision, unless the study lists other
    values: tuning would add its own chance to every difference.
    """
    full = validate(Study, tree, file)
    study = validate(Study, tree | full.tiny, file) if tiny else full
    check_name(study.base, file, "base")
    check_size(study, file)
    size = "_tiny" if tiny else ""
    base_file = _find_base(study.base, file)
    # the two sizes of a study must not take each other's places
    prefix = f"{base_file.stem}-{file.stem}" + (size if study.base == full.base else "")
    maker = _CellMaker(study, file, base_file, prefix, overrides)

    asked = [*_combinations(study.grid, file), *study.cells.items()]
    _check_labels([label for label, _ in asked], file)
    first = maker.cell("", {})
    cells = {label: maker.cell(label, settings) for label, settings in asked}
    # where one of the cells asked for is the base itself, the base goes by that cell's label
    same = next((label for label, made in cells.items() if made[0].name == first[0].name), None)
    if same is None and study.base in cells:
        raise InputError(
            f"a cell is called '{study.base}', as the base is",
            file,
            "Give it another name",
            code="cell_twice",
        )
    cells.pop(same, None)
    cells = {same or study.base: first} | cells
    members = [made for seeds in cells.values() for made in seeds]
    _check_cells(cells, [m.name for m in members], file)
    return Config(
        file.stem + size, file, first[0].competition, members=members, study=study, cells=cells
    )


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


def _find_base(base: str, file: Path) -> Path:
    """The YAML of the base: beside the study's `file`, above it or in configs/."""
    folders = (file.parent, file.parent.parent, CONFIGS)
    found = [f for d in folders for f in d.glob("*.yaml") if f.is_file()]
    found = [f for f in found if f.resolve() != file.resolve()]
    base_file = next((f for f in found if f.stem == base), None)
    if base_file is None:
        raise InputError(
            f"no config called '{base}' beside this study, above it or in configs/",
            file,
            nearest(base, {f.stem for f in found if f.name != COMPETITION}),
            code="no_such_config",
        )
    tree = read_yaml(base_file)
    if is_study(tree) or "members" in tree:
        raise InputError(
            f"the base of a study is an experiment, and {base} is not",
            file,
            code="other_kind_of_config",
        )
    return base_file


@dataclass
class _CellMaker:
    """Makes the cells of one study, each once for every seed."""

    study: Study
    file: Path
    base_file: Path
    prefix: str  # of the names of all cells
    overrides: list[str]
    untuned: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # What is wrong with these is wrong on the command line; what is wrong later, in the study.
        load_config(self.base_file, read_yaml(self.base_file), self.overrides)
        self.alters = any(_section(key) in Experiment.model_fields for key in self.study.set)
        of_bases = {
            k: v for k, v in self.study.set.items() if _section(k) not in Evaluation.model_fields
        }
        plain = self._load(of_bases, {})
        self.untuned = {
            f"evaluate.{name}": values[:1]
            for name, values in plain.competition.evaluate
            if isinstance(values, list)
        }
        self.own_seed = plain.experiment.train.seed
        if self.study.seeds and any(parse_override(t)[0] == "train.seed" for t in self.overrides):
            raise InputError(
                "this study has its own seeds",
                "--set train.seed",
                f"Change seeds: in {self.file}",
                code="shared_setting",
            )
        # studies that set nothing for all their cells share the training of their base
        name = self.prefix if self.alters else self.base_file.stem
        self.bases = {}
        for seed in self.study.seeds or [self.own_seed]:
            self.bases[seed] = self._load(of_bases, {"train.seed": seed})
            self.bases[seed].name = self._with_seed(name, seed)

    def cell(self, label: str, settings: dict[str, Any]) -> list[Config]:
        """One cell, once for every seed; '' is the label of the base as this study evaluates it."""
        if label:
            name = f"{self.prefix}-{re.sub(r'[^a-zA-Z0-9_.+]+', '_', label)}"
        else:
            name = self.prefix + ("-decided" if self.alters else "")
        made = []
        for seed, base in self.bases.items():
            one = self._load(self.study.set, {"train.seed": seed} | settings, label)
            one.name = self._with_seed(name, seed)
            self._check_shared(label, settings, one.competition, base.competition)
            if one.experiment == base.experiment:
                one = base if one.competition == base.competition else self._evaluated(one, base)
            made.append(one)
        return made

    def _evaluated(self, one: Config, base: Config) -> Config:
        """The predictions of the base under another evaluation."""
        alone = Ensemble(members=[base.name])
        return Config(one.name, self.file, one.competition, ensemble=alone, members=[base])

    def _check_shared(
        self, label: str, settings: dict[str, Any], own: Competition, base: Competition
    ) -> None:
        changed = [key for key in Competition.model_fields if key in SHARED]
        changed = [key for key in changed if getattr(own, key) != getattr(base, key)]
        changed += [key for key in map(_section, settings) if key == "score"]
        if changed:
            raise InputError(
                f"cell '{label}' changes '{changed[0]}', which all cells of a study share",
                self.file,
                "Put it under set:",
                code="shared_setting",
            )

    def _load(self, common: dict[str, Any], settings: dict[str, Any], label: str = "") -> Config:
        for given in (common, settings):
            refuse_both_names(given, self.file)
        typed = [*_typed(self.untuned | common), *self.overrides, *_typed(settings)]
        try:
            return load_config(self.base_file, read_yaml(self.base_file), typed)
        except InputError as error:
            see = f"See cell '{label}'" if label else "See set:"
            what = str(error).replace("(--set ", "(")
            raise InputError(what, self.file, see, code=error.code) from None

    def _with_seed(self, name: str, seed: int) -> str:
        return name if seed == self.own_seed else f"{name}-seed{seed}"


def _section(key: str) -> str:
    return key.split(".")[0]


def _typed(settings: dict[str, Any]) -> list[str]:
    """As one would type them after --set."""
    return [
        f"{key}={yaml.safe_dump([value], default_flow_style=True, width=10**9).strip()[1:-1]}"
        for key, value in settings.items()
    ]


def _combinations(grid: dict[str, list | dict], file: Path) -> list[tuple[str, dict[str, Any]]]:
    """All combinations of the grid's values, each with a label made of their names."""
    if not grid:
        return []
    axes = []
    for key, values in grid.items():
        named = values if isinstance(values, dict) else _named(key, values, file)
        axes.append([(name, {key: value}) for name, value in named.items()])
    combinations = []
    for chosen in itertools.product(*axes):
        settings: dict[str, Any] = {}
        for _, setting in chosen:
            settings |= setting
        combinations.append((", ".join(name for name, _ in chosen), settings))
    return combinations


def _named(key: str, values: list, file: Path) -> dict[str, Any]:
    """{'mask_weight 0.4': 0.4, …}: the names of a grid's values that are only listed."""
    named = {}
    for value in values:
        if isinstance(value, (dict, list)):
            raise InputError(
                f"grid.{key}: {shortened(value)} has no short name",
                file,
                "Write name: value pairs in place of the list",
                code="value_without_name",
            )
        written = json.dumps(value) if isinstance(value, bool) else value
        named[f"{key.split('.')[-1]} {written}"] = value
    return named


def _check_labels(labels: list[str], file: Path) -> None:
    for label in labels:
        if not label.strip() or len(label.encode()) > LONGEST_LABEL:
            raise InputError(
                f"a cell is called '{label[:60]}'",
                file,
                f"Give it a name of 1 to {LONGEST_LABEL} bytes",
                code="bad_name",
            )
        if labels.count(label) > 1:
            raise InputError(
                f"two cells are called '{label}'",
                file,
                "Give one of them another name",
                code="cell_twice",
            )


def _check_cells(cells: dict[str, list[Config]], names: list[str], file: Path) -> None:
    if len(cells) < 2:
        raise InputError(
            "a study needs a cell that differs from its base",
            file,
            "List values under grid:, or name cells under cells:",
            code="no_cells",
        )
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"two cells come to the same name, {name}",
                file,
                "Give them names that differ in letters or digits",
                code="cell_twice",
            )
        if len(name.encode()) > LONGEST_NAME:
            raise InputError(
                f"a cell comes to a name of {len(name.encode())} bytes",
                file,
                "Shorten the names of the study, its base or its cell",
                code="bad_name",
            )
