"""The words of the command line and what goes with which. Imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

from src.core.console import FORCED, InputError, listing, nearest
from src.pipeline.jobs import STAGES

TOOLS = [
    "fetch",
    "submissions",
    "bundle",
    "infer",
    "export",
]  # what is no stage: each src/<word>.py has run(given, config, paths) -> exit code
USAGE = (
    """  ./run.sh                                 everything not yet done, for configs/ensemble.yaml
  ./run.sh --config configs/cpu.yaml       the same for one experiment
  ./run.sh demo                            the same on generated images, on a CPU, in minutes, under artifacts/demo
  ./run.sh STAGE --config F [--fold K]     one stage: """
    + ", ".join(STAGES)
    + """
  ./run.sh study --config F [--tiny]       every cell of a study and the table that compares them: configs/studies/
  ./run.sh status                          what is done, stale (and why) or missing, and the next command
  ./run.sh fetch --competition SLUG        the contest's files from Kaggle into input/SLUG/; --dataset OWNER/NAME: a data set's
  ./run.sh submit --config F --send -m TEXT  hand the submission in and wait for its score
  ./run.sh submissions                     what was handed in, CV score beside leaderboard
  ./run.sh bundle --config F               code and weights in one folder, for a notebook without network
  ./run.sh infer --bundle DIR --data DIR --work DIR [--minutes M]   the submission from such a bundle
  ./run.sh export --config F [--fold K]    a fold's network as ONNX
  ./run.sh test [pytest arguments]         the test suite"""
)
DEMO_SETTINGS = ["split.folds=3"]  # the demo's time goes with the number of folds
MOST_PARALLEL = 1000  # as many as there can be folds
MOST_MINUTES = 525_600  # a year
GOES_WITH = {  # option -> the words it has a meaning for; "all" is no word at all
    "fold": ("train", "export"),
    "competition": ("fetch", "submit", "submissions"),
    "dataset": ("fetch",),
    "send": ("submit",),
    "message": ("submit",),
    "yes": ("submit",),
    "parallel": ("all", "train", "study", "demo"),
    "bundle": ("infer",),
    "minutes": ("infer",),
}


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise InputError(
            message[:200], "command line", "./run.sh --help shows the usage", code="usage"
        )

    def _print_message(self, message: str, file=None) -> None:
        """The help. argparse itself does not mind whether it can be written."""
        if message and file is not None:
            file.write(message)


def parse(words: list[str]) -> argparse.Namespace:
    """Raises InputError for unknown words and options, and for options that mean nothing with this word."""
    parser = Parser(
        "./run.sh",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="\n" + USAGE,
        add_help=True,
        allow_abbrev=False,
        description="From a folder of medical images to the best submission that this machine can train.",
    )
    add = parser.add_argument
    add(
        "stage",
        nargs="?",
        default="all",
        metavar="STAGE",
        help="one of the words above; none: all stages",
    )
    add(
        "--config",
        type=Path,
        metavar="F",
        help="an experiment, an ensemble or a study (default: configs/ensemble.yaml)",
    )
    add("--fold", type=int, metavar="K", help="with train and export: only this fold")
    add(
        "--set",
        dest="sets",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting, e.g. train.epochs=30; repeatable",
    )
    add(
        "--data",
        type=Path,
        metavar="DIR",
        help="the images (default: input/, or the contest's folder in it)",
    )
    add(
        "--work",
        type=Path,
        metavar="DIR",
        help="where artifacts/ and submissions/ go (default: the project's folder)",
    )
    add(
        "--parallel",
        type=int,
        metavar="N",
        help="folds trained side by side (default: one for each GPU)",
    )
    add("--tiny", action="store_true", help="with study: the size that two cores can train")
    add(
        "--force",
        action="store_true",
        help="redo although up to date; the old result moves to artifacts/old/",
    )
    add(
        "--competition",
        metavar="SLUG",
        help="with fetch, submit and submissions: the contest at Kaggle (default: slug in competition.yaml)",
    )
    add("--dataset", metavar="OWNER/NAME", help="with fetch: a data set at Kaggle")
    add("--send", action="store_true", help="with submit: hand it in")
    add(
        "-m",
        "--message",
        metavar="TEXT",
        help="with submit --send: what stands beside it at Kaggle",
    )
    add("--yes", action="store_true", help="with submit --send: do not ask")
    add("--bundle", type=Path, metavar="DIR", help="with infer: what `bundle` made")
    add("--minutes", type=float, metavar="M", help="with infer: how long it may take")
    add("--traceback", action="store_true", help="show where in the code an error came up")
    given = parser.parse_args(words)
    known = [*STAGES, *TOOLS, "all", "study", "demo", "status", "test"]
    if given.stage not in known:
        stage = given.stage[:60]
        raise InputError(
            f"unknown stage '{stage}'", "command line", nearest(stage, known), code="unknown_stage"
        )
    for option, good in GOES_WITH.items():
        if (
            (value := getattr(given, option)) is not None
            and value is not False
            and given.stage not in good
        ):
            word = listing([w for w in good if w != "all"])
            todo = f"./run.sh {good[0]} --{option} …" if good[0] != "all" else ""
            raise InputError(
                f"--{option} goes with {word}", "command line", todo, code="option_elsewhere"
            )
    for option in ("message", "yes"):
        if getattr(given, option) and not given.send:
            raise InputError(
                f"--{option} goes with --send",
                "command line",
                "./run.sh submit --send -m TEXT hands the submission in",
                code="option_elsewhere",
            )
    if given.parallel is not None and not 1 <= given.parallel <= MOST_PARALLEL:
        count = str(given.parallel)[:20]
        raise InputError(
            f"--parallel {count} is no number of folds",
            "command line",
            f"1 trains one after another, and {MOST_PARALLEL} is the most",
            code="usage",
        )
    if given.minutes is not None and not 0 < given.minutes <= MOST_MINUTES:
        raise InputError(
            f"--minutes {given.minutes:g} is no time",
            "command line",
            "For example --minutes 60",
            code="usage",
        )
    if given.stage == "infer" and not (given.bundle and given.data and given.work):
        what = "infer needs a bundle, images, and a folder for the answer"
        raise InputError(
            what, "command line", "./run.sh infer --bundle DIR --data DIR --work DIR", code="usage"
        )
    return given


def bare(words: list[str]) -> list[str]:
    """The command line less what `console.command` repeats by itself; and less --force as soon as
    what is to be done anew stands in the records: with it, the next run would begin again."""
    kept, skip = [], False
    left_out = {"--tiny", "--force"} if FORCED and "--send" not in words else {"--tiny"}
    for word in words:
        if word in left_out:
            continue
        if skip or word.split("=")[0] in ("--set", "--data", "--work", "--config"):
            skip = not skip and "=" not in word
            continue
        kept.append(word)
    return kept
