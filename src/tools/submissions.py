"""submissions: what was sent to a contest, CV score beside leaderboard, as a table and a picture.

READS   submissions/log.csv and, where credentials and network are there, Kaggle's list of submissions
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
    """Exit code 0, also where nothing was sent or Kaggle cannot be asked. Raises InputError for a damaged log.csv."""
    rows = log.read(paths.submission_log)
    first = f"Send the first with {command('submit', '--send')} -m TEXT"
    try:
        slug = slug_of(given, config, paths)
    except InputError:
        if not rows:
            say(f"nothing was sent yet: there is no {short(paths.submission_log)}. {first}")
            return 0
        slug = rows[-1].competition
    listed = ask(slug)
    if listed is not None:
        before, rows = rows, log.refresh(paths.submission_log, slug, listed)
        if news := sum(r not in before for r in rows):
            say(
                f"brought up to date from Kaggle: {news} row{'s' if news > 1 else ''} of {short(paths.submission_log)}"
            )
    shown = log.joined(rows, slug, listed or [])
    if elsewhere := Counter(r.competition for r in rows if r.competition != slug):
        say(
            f"sent elsewhere, shown with --competition: {', '.join(f'{name} ({n})' for name, n in elsewhere.items())}"
        )
    if not shown:
        say(f"nothing was sent to {slug} yet. {first}")
        return 0
    say(f"{slug}: {len(shown)} submission{'s' if len(shown) > 1 else ''}, * highest of its column")
    log.show(shown)
    if foreign := sum(r.cv is None for r in shown):
        say(
            f"  {foreign} without CV score: sent by a team mate or from the web page, not from here"
        )
    if agreement := log.agreement(shown):
        say("  " + agreement)
    drawn = plot.draw(shown, slug, paths.submission_plot)
    pending = any(r.status in ("pending", "unconfirmed") for r in shown)
    say(
        "   ".join(
            [
                *([f"log: {short(paths.submission_log)}"] if rows else []),
                *([f"picture: {short(paths.submission_plot)}"] if drawn else []),
                f"next: {command('submissions') + ' again, for what is pending' if pending else command('submit', '--send')}",
            ]
        )
    )
    return 0


def ask(slug: str) -> list[RemoteSubmission] | None:
    """Kaggle's list, or None with a warning: the log answers without it."""
    try:
        return Kaggle().submissions(slug)
    except (InputError, StageError) as error:
        warn(f"this is the log alone, without Kaggle's list: {getattr(error, 'what', error)}")
        return None
