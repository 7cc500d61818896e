"""From the name of a config to a Config.

`load` finds the file; plain_yaml.py reads it as a tree of keys and values; config.py makes an
experiment or an ensemble of that, study.py a study. On the way renames.py brings old names of
settings up to date, overrides.py puts in what --set gives, and complaints.py checks the values.
"""

from __future__ import annotations

import os
from pathlib import Path

from src.config.config import Config, is_study, load_config
from src.config.names import check_name
from src.config.plain_yaml import read_yaml
from src.config.renames import refuse_both_names
from src.config.study import load_study
from src.core.console import InputError
from src.core.paths import COMPETITION, CONFIGS


def load(file: Path, overrides: list[str] = (), tiny: bool = False) -> Config:
    """An experiment, an ensemble or a study (`tiny`: at its tiny size), with the competition.yaml
    of its folder or of the folder above; raises InputError for anything wrong."""
    file = _find(Path(file))
    if file.name == COMPETITION:
        raise InputError(
            "this describes the competition, it is not an experiment",
            file,
            "Name one of the others, for example configs/cpu.yaml",
            code="other_kind_of_config",
        )
    tree = read_yaml(file)
    check_name(file.stem, file)
    refuse_both_names([text.partition("=")[0].strip() for text in overrides], "--set")
    if is_study(tree):
        return load_study(file, tree, list(overrides), tiny)
    if tiny:
        raise InputError(
            "only a study has a tiny size", file, "Leave out --tiny", code="other_kind_of_config"
        )
    return load_config(file, tree, list(overrides))


def _find(file: Path) -> Path:
    """`file` itself, or the config of that name in its folder or in configs/."""
    if _is_file(file) or os.path.islink(file):
        return file
    folders = (file.parent, CONFIGS, CONFIGS / "studies")
    named = (f for d in folders for f in (d / file.name, d / f"{file.name}.yaml"))
    return next((f for f in named if _is_file(f)), file)


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False
