"""Which contest or data set is meant: SLUG, OWNER/NAME, or the address of a page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from src.core.console import InputError, short
from src.core.disk import read_json
from src.kaggle_io.errors import SITE

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from src.config.load import Config
    from src.core.paths import Paths

ADDRESS = re.compile(r"^(https?://)?(www\.)?kaggle\.com/", re.I)
OF_ADDRESS = f"the last word of its address, {SITE}/competitions/<slug>"


def slug_of(given: argparse.Namespace, config: Config, paths: Paths) -> str:
    """The contest: --competition, else slug in competition.yaml, else the one whose files are in
    the data folder. Raises InputError where none is named."""
    named = {
        "--competition": given.competition,
        "slug in competition.yaml": config.competition.slug,
        short(paths.fetched): _fetched_contest(paths.fetched),
    }
    for where, text in named.items():
        if text:
            return plain_slug(text, where)
    what = "no contest is named"
    places = (
        f"neither by --competition, nor by slug: in competition.yaml, nor by {short(paths.fetched)}"
    )
    raise InputError(
        what, places, f"Name it by --competition SLUG, {OF_ADDRESS}", code="no_contest_named"
    )


def _fetched_contest(file: Path) -> str:
    """The contest in fetched.json; '' where the file is missing or damaged."""
    try:
        found = read_json(file)["competition"]
    except (InputError, OSError, KeyError):
        return ""
    return found if isinstance(found, str) else ""


def plain_slug(text: str, where: str = "--competition") -> str:
    """'SLUG' of SLUG or of the address of a page; raises InputError for an invitation or anything
    else."""
    text = text.strip()
    path = ADDRESS.sub("", text)
    is_page = path != text
    word = re.sub(r"^(competitions|c)/", "", path) if is_page else path
    if re.match(r"(t|competitions/invite)/", path) or re.fullmatch(r"[0-9a-f]{32,}", word):
        raise InputError(
            f"an invitation is not a slug: {text}",
            where,
            f"Open it in a browser, join the contest, and take {OF_ADDRESS}",
            code="invitation",
        )
    if is_page:
        word = re.split(r"[/?#]", word)[0]
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", word, flags=re.I):
        raise InputError(
            f"'{text}' is not a contest's slug", where, f"It is {OF_ADDRESS}", code="not_a_slug"
        )
    return word.lower()


def plain_dataset(text: str) -> str:
    """'OWNER/NAME' of the same or of the address of its page; raises InputError for anything
    else."""
    path = re.sub(f"{ADDRESS.pattern}(datasets/)?", "", text.strip(), flags=re.I)
    form = r"([\w-]+)/([\w-]+)(/versions/\d+|/data)?/?([?#].*)?"
    found = re.fullmatch(form, path, flags=re.ASCII)
    if not found:
        raise InputError(
            f"'{text}' is not a data set",
            "--dataset",
            f"It is OWNER/NAME, the last two words of its address, {SITE}/datasets/OWNER/NAME",
            code="not_a_slug",
        )
    return f"{found[1]}/{found[2]}"
