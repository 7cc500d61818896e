"""submissions: what was sent to a contest, CV score beside leaderboard, as a table and a picture.

READS   submissions/log.csv and, where credentials and network are there, Kaggle's list
WRITES  submissions/log.csv: results that came out since; log.png
"""

from __future__ import annotations

import argparse
from collections import Counter

from src.config.load import Config
from src.core.console import InputError, StageError, command, say, short, warn
from src.core.paths import Paths
from src.kaggle_io import log, plot
from src.kaggle_io.client import Kaggle, RemoteSubmission
from src.kaggle_io.slugs import slug_of


def run(given: argparse.Namespace, config: Config, paths: Paths) -> int:
    """Exit code 0, also where nothing was sent or Kaggle cannot be asked. Raises InputError for a
    damaged log.csv."""
    file = paths.submission_log
    rows = log.read(file)
    first = f"Send the first with {command('submit', '--send')} -m TEXT"
    try:
        slug = slug_of(given, config, paths)
    except InputError:
        if not rows:
            say(f"nothing was sent yet: there is no {short(file)}. {first}")
            return 0
        slug = rows[-1].competition
    listed = list_submissions(slug)
    if listed is not None:
        before, rows = rows, log.refresh(file, slug, listed)
        if news := sum(row not in before for row in rows):
            plural = "s" if news > 1 else ""
            say(f"brought up to date from Kaggle: {news} row{plural} of {short(file)}")
    if others := Counter(row.competition for row in rows if row.competition != slug):
        names = ", ".join(f"{name} ({count})" for name, count in others.items())
        say(f"sent elsewhere, shown with --competition: {names}")
    shown = log.joined(rows, slug, listed or [])
    if not shown:
        say(f"nothing was sent to {slug} yet. {first}")
        return 0
    say(f"{slug}: {len(shown)} submission{'s' if len(shown) > 1 else ''}, * highest of its column")
    log.show(shown)
    if foreign := sum(row.cv is None for row in shown):
        say(
            f"  {foreign} without CV score: sent by a team mate or from the web page, not from here"
        )
    if agreement := log.agreement(shown):
        say(f"  {agreement}")
    words = [f"log: {short(file)}"] if rows else []
    if plot.draw(shown, slug, paths.submission_plot):
        words.append(f"picture: {short(paths.submission_plot)}")
    following = command("submit", "--send")
    if any(row.status in ("pending", "unconfirmed") for row in shown):
        following = f"{command('submissions')} again, for what is pending"
    say("   ".join([*words, f"next: {following}"]))
    return 0


def list_submissions(slug: str) -> list[RemoteSubmission] | None:
    """Kaggle's list, or None with a warning: the log answers without it."""
    try:
        return Kaggle().submissions(slug)
    except (InputError, StageError) as error:
        warn(f"this is the log alone, without Kaggle's list: {getattr(error, 'what', error)}")
        return None
