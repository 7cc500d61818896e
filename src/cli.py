"""The words of the command line, and which options go with which. Imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

from src.core.console import FORCED, InputError, listing, nearest
from src.pipeline.jobs import STAGES

# each src/tools/<word>.py has run(given, config, paths) -> exit code
TOOLS = ["fetch", "submissions", "bundle", "infer", "export", "bench"]
WORDS = [*STAGES, *TOOLS, "all", "study", "demo", "status", "test"]
BENCHMARKS = ["train", "predict", "stages", "greedy"]
USAGE = f"""\
  ./run.sh                                 everything not yet done, for configs/ensemble.yaml
  ./run.sh --config configs/cpu.yaml       the same for one experiment
  ./run.sh demo                            the whole pipeline on generated images: a CPU, minutes, under artifacts/demo
  ./run.sh STAGE --config F [--fold K]     one stage: {", ".join(STAGES)}
  ./run.sh study --config F [--tiny]       every cell of a study and the table that compares them: configs/studies/
  ./run.sh status                          what is done, stale (and why) or missing, and the next command
  ./run.sh fetch --competition SLUG        the contest's files from Kaggle into input/SLUG/; --dataset OWNER/NAME: a data set's
  ./run.sh submit --config F --send -m TEXT  upload the submission and wait for its score
  ./run.sh submissions                     what was submitted, CV score beside leaderboard
  ./run.sh bundle --config F               code and weights in one folder, for a notebook without internet
  ./run.sh infer --bundle DIR --data DIR --work DIR [--minutes M]   the submission from such a bundle
  ./run.sh export --config F [--fold K]    a fold's network as ONNX
  ./run.sh bench WHAT … [--config F]       how fast this machine is: {", ".join(BENCHMARKS)}
  ./run.sh test [pytest arguments]         the test suite"""  # noqa: E501 - as the terminal shows it
DEMO_SETTINGS = ["split.folds=3"]  # the demo's time goes with the number of folds
MOST_PARALLEL = 1000  # as many as there can be folds
MOST_MINUTES = 525_600  # a year


class Parser(argparse.ArgumentParser):
    """`word`: what is asked for, if anything; the help then leaves out what does not go with it."""

    def __init__(self, word: str | None):
        shown = [line for line in USAGE.splitlines() if f"./run.sh {word} " in line]
        if word in STAGES and not shown:
            shown = [line for line in USAGE.splitlines() if " STAGE " in line]
        super().__init__(
            "./run.sh",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            usage="\n" + ("\n".join(shown) or USAGE),
            allow_abbrev=False,
            description="From a folder of medical images to the best submission that this machine "
            "can train.",
        )
        self.word = word
        self.goes_with: dict[str, list[str]] = {}  # option -> the only words it has a meaning for

    def option(self, name: str, help: str, kind=str, only: str = "", **settings) -> None:
        """`name`: such as '--fold K'; without a value it is a switch. `kind`: of the value.
        `only`: the words that it goes with; 'all' is to give none."""
        names = [n for n in name.split() if n.startswith("-")]
        value = name.split()[len(names) :]
        words = only.split()
        if words and self.word is None:
            help = f"with {listing(w for w in words if w != 'all')}: {help}"
        elif words and self.word not in words:
            help = argparse.SUPPRESS
        if value:
            settings |= {"metavar": value[0], "type": kind}
        else:
            settings["action"] = "store_true"
        option = self.add_argument(*names, help=help, **settings).dest
        if words:
            self.goes_with[option] = words

    def error(self, message: str):
        todo = "./run.sh --help shows the usage"
        raise InputError(message[:200], "command line", todo, code="usage")

    def _print_message(self, message: str, file=None) -> None:
        """The help. argparse itself does not mind whether it can be written."""
        if message and file is not None:
            file.write(message)


def parse(words: list[str]) -> argparse.Namespace:
    """Raises InputError for unknown words and options, and for options that mean nothing with
    this word."""
    parser = Parser(next((w for w in words if w in WORDS), None))
    add = parser.add_argument
    add("stage", nargs="?", default="all", metavar="STAGE", help="a word; none: all stages")
    benchmarks = (
        "with bench: what to measure" if parser.word in (None, "bench") else argparse.SUPPRESS
    )
    add("what", nargs="*", metavar="WHAT", help=benchmarks)
    add = parser.option
    add(
        "--config F", "an experiment, an ensemble or a study (default: configs/ensemble.yaml)", Path
    )
    add("--fold K", "only this fold", int, "train export")
    add(
        "--set KEY=VALUE",
        "override a setting, e.g. train.epochs=30; repeatable",
        dest="sets",
        action="append",
        default=[],
    )
    add("--data DIR", "the images (default: input/, or the contest's folder in it)", Path)
    add("--work DIR", "where artifacts/ and submissions/ go (default: the project's folder)", Path)
    parallel = "all train study demo"
    add("--parallel N", "folds trained side by side (default: one for each GPU)", int, parallel)
    add("--tiny", "with a study: the size that two cores can train")
    add("--force", "redo although up to date; the old result moves to artifacts/old/")
    contest = "the contest at Kaggle (default: slug in competition.yaml)"
    add("--competition SLUG", contest, only="fetch submit submissions")
    add("--dataset OWNER/NAME", "a data set at Kaggle", only="fetch")
    add("--send", "upload it to Kaggle", only="submit")
    add("-m --message TEXT", "its description at Kaggle (with --send)", only="submit")
    add("--yes", "do not ask (with --send)", only="submit")
    add("--bundle DIR", "what `bundle` made", Path, "infer")
    add("--minutes M", "how long it may take", float, "infer")
    add("--steps N", "batches of one repeat (default: 12)", int, "bench")
    add("--repeats N", "of each measurement (default: 5)", int, "bench")
    add("--traceback", "show where in the code an error was raised")
    given = parser.parse_intermixed_args(words)
    _check(given, parser)
    return given


def _check(given: argparse.Namespace, parser: Parser) -> None:
    """Do word and options go together? Raises InputError."""
    word = given.stage
    if word not in WORDS:
        what = f"unknown stage '{word[:60]}'"
        raise InputError(what, "command line", nearest(word[:60], WORDS), code="unknown_stage")
    if given.what and word != "bench":
        parser.error(f"unrecognized arguments: {' '.join(given.what)}")
    if word == "bench" and not (given.what and set(given.what) <= set(BENCHMARKS)):
        parser.error(f"bench measures one or more of {', '.join(BENCHMARKS)}")
    for option, words in parser.goes_with.items():
        value = getattr(given, option)
        if value is not None and value is not False and word not in words:
            raise InputError(
                f"--{option} goes with {listing(w for w in words if w != 'all')}",
                "command line",
                f"./run.sh {words[0]} --{option} …" if words[0] != "all" else "",
                code="option_elsewhere",
            )
    for option in ("message", "yes"):
        if getattr(given, option) and not given.send:
            raise InputError(
                f"--{option} goes with --send",
                "command line",
                "./run.sh submit --send -m TEXT uploads the submission",
                code="option_elsewhere",
            )
    for option in ("steps", "repeats"):
        if getattr(given, option) is not None and getattr(given, option) < 1:
            parser.error(f"--{option} is at least 1")
    if given.parallel is not None and not 1 <= given.parallel <= MOST_PARALLEL:
        count = str(given.parallel)[:20]
        raise InputError(
            f"--parallel {count} is not a number of folds",
            "command line",
            f"1 trains one after another, and {MOST_PARALLEL} is the most",
            code="usage",
        )
    if given.minutes is not None and not 0 < given.minutes <= MOST_MINUTES:
        raise InputError(
            f"--minutes {given.minutes:g} is not a time limit",
            "command line",
            "For example --minutes 60",
            code="usage",
        )
    if word == "infer" and not (given.bundle and given.data and given.work):
        what = "infer needs a bundle, images, and a folder for the answer"
        todo = "./run.sh infer --bundle DIR --data DIR --work DIR"
        raise InputError(what, "command line", todo, code="usage")


def bare(words: list[str]) -> list[str]:
    """The command line without what `console.command` repeats by itself; and without --force as
    soon as the records say what to redo: with it, the next run would begin again."""
    kept, is_value = [], False
    left_out = {"--tiny", "--force"} if FORCED and "--send" not in words else {"--tiny"}
    for word in words:
        if is_value:
            is_value = False
        elif word.split("=")[0] in ("--set", "--data", "--work", "--config"):
            is_value = "=" not in word
        elif word not in left_out:
            kept.append(word)
    return kept
