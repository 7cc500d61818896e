"""The command line: words to a config and a folder, dispatch, and errors to exit codes."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import signal
import sys
import traceback
from functools import partial
from pathlib import Path

from src.cli import DEMO_SETTINGS, TOOLS, bare, parse
from src.config.load import Config, load
from src.core import console
from src.core.console import InputError, StageError, Stopped, command, error_line, say, short
from src.core.disk import make_folder, recognised
from src.core.freshness import Fingerprints
from src.core.paths import CONFIGS, INPUT, ROOT, Paths, contest_folder
from src.core.shortage import complain, enter_working_folder, to_nowhere, to_the_end
from src.pipeline.driver import results, run_stages, status
from src.pipeline.records import read_manifest

DEFAULT_CONFIGS = {"demo": "demo.yaml", "bench": "cpu.yaml"}
WITHOUT_IMAGES = ("fetch", "submissions", "bench")
OF_A_STUDY = ("study", "all", "status")


def main(words: list[str]) -> int:
    """Run one command; returns its exit code."""
    show = "--traceback" in words
    if words[:2] == ["--traceback", "test"]:
        words = words[1:]
    if words[:1] == ["test"]:
        run_tests(words[1:])
    signal.signal(signal.SIGTERM, partial(_terminated, os.getpid()))
    console.FORCED.clear()
    try:
        enter_working_folder()
        return work(parse(words))
    except Stopped as stopped:
        return _fail(f"stopped: {stopped}. Go on with: {command(*bare(words))}", 130, show)
    except KeyboardInterrupt:
        kept = "stopped. What was finished is kept"
        return _fail(f"\n{kept}; go on with: {command(*bare(words))}", 130, show)
    except BrokenPipeError:  # … | head
        to_nowhere(sys.stdout)
        return 1
    except Exception as error:
        known = recognised(error)
        if known is None:
            what = f"{type(error).__name__}: {error}. This is a fault of the program: "
            known = StageError(f"{what}--traceback shows where", code="fault_of_the_program")
        return _fail(error_line(known), known.exit_code, show)


def run_tests(words: list[str]) -> None:
    """Become pytest: of all files, side by side, each with its share of the cores."""
    os.chdir(ROOT)
    if not any(Path(word.split("::")[0]).exists() for word in words):
        words = [*words, "tests"]
        if importlib.util.find_spec("xdist"):
            from joblib import cpu_count

            workers = min(4, cpu_count())
            words += ["-n", str(workers), "--dist", "loadfile"]
            os.environ.setdefault("OMP_NUM_THREADS", str(cpu_count() // workers))
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *words])


def work(given: argparse.Namespace) -> int:
    """Find config and folders, and hand over to whom the word belongs."""
    word = given.stage
    if word == "demo" and (given.data or given.config):
        raise InputError(
            "demo makes its own images and has its own config",
            "command line",
            "Leave out --data and --config",
            code="option_elsewhere",
        )
    if given.bundle:
        given.config = _config_of_bundle(given)
    file = given.config or CONFIGS / DEFAULT_CONFIGS.get(word, "ensemble.yaml")
    if word == "demo":
        given.sets = DEMO_SETTINGS + given.sets
    config = load(file, given.sets, given.tiny)
    paths = _paths(given, config)
    _remember(given, file)
    if config.study:
        paths = paths.studies(config.competition.split)
    _check_kind(word, config)

    if word == "demo":
        importlib.import_module("src.tools.demo_data").make(paths.data)
    if word == "status":
        return status(config, paths)
    if word in TOOLS:
        return importlib.import_module(f"src.tools.{word}").run(given, config, paths)
    make_folder(paths.artifacts)
    stage = None if word in ("all", "demo", "study") else word
    has_run = run_stages(config, paths, stage, given)
    Fingerprints.of(paths).save()
    if stage is None:
        say(("" if has_run else "everything is up to date. ") + results(config, paths))
    return importlib.import_module("src.tools.send").run(given, config, paths) if given.send else 0


def _paths(given: argparse.Namespace, config: Config) -> Paths:
    """Where images are read and artifacts written; raises InputError where there are no images."""
    home = (given.work or ROOT).expanduser().resolve()
    if given.stage == "demo":
        return Paths(home, INPUT).demo()
    if given.data:
        paths = Paths(home, given.data.expanduser().resolve())
    elif given.stage == "fetch":
        paths = Paths(home, INPUT)
    else:
        paths = Paths(home, _contest_folder(given, config))
    if paths.data.is_dir() or given.stage in WITHOUT_IMAGES:
        return paths
    slug = None if given.data else config.competition.slug
    todo = (
        f"Bring it with {command('fetch', '--competition', slug)}"
        if slug
        else "Put the images there, as input/README.md says, or try ./run.sh demo"
    )
    where = f"--data {given.data or short(paths.data)}"
    raise InputError("no such folder", where, todo, code="no_such_folder")


def _contest_folder(given: argparse.Namespace, config: Config) -> Path:
    """The folder of --competition, where its files are here, else as paths.py has it. Whatever
    else is given there is for Kaggle to judge."""
    slug = (given.competition or "").rstrip("/").rsplit("/", 1)[-1]
    try:
        fetched = slug and (INPUT / slug).is_dir()
        return contest_folder(slug if fetched else config.competition.slug)
    except InputError:
        if given.stage in WITHOUT_IMAGES:
            return INPUT
        raise


def _config_of_bundle(given: argparse.Namespace) -> Path:
    """The config that a bundle was made for."""
    if given.config:
        raise InputError(
            "a bundle has its own config",
            "command line",
            "Leave out --config",
            code="option_elsewhere",
        )
    bundle = Paths(given.bundle.expanduser().resolve(), given.data)
    if not bundle.manifest.is_file():
        raise InputError(
            "no bundle there",
            bundle.manifest,
            "Make one with ./run.sh bundle, and name the folder that holds this file",
            code="no_bundle",
        )
    return bundle.work / "configs" / f"{read_manifest(bundle)['name']}.yaml"


def _check_kind(word: str, config: Config) -> None:
    """Raises InputError where the word is for studies alone and this is none, or the reverse."""
    if config.study and word not in OF_A_STUDY:
        raise InputError(
            f"{word} is for one experiment or ensemble, and this is a study of several",
            config.file,
            f"Run it whole: {command('study')}",
            code="other_kind_of_config",
        )
    if word == "study" and not config.study:
        raise InputError(
            "this is not a study: it names no base",
            config.file,
            "See configs/studies/, for example --config configs/studies/lambda.yaml",
            code="other_kind_of_config",
        )


def _remember(given: argparse.Namespace, file: Path) -> None:
    """What every suggested command repeats."""
    demo = given.stage == "demo"
    repeated = ["demo"] if demo else []
    if given.config and not given.bundle:
        repeated += ["--config", short(Path(os.path.abspath(file)))]
    if given.tiny:
        repeated.append("--tiny")
    for option, folder in (("--data", given.data), ("--work", given.work)):
        if folder:
            repeated += [option, str(folder)]
    for setting in given.sets:
        if not (demo and setting in DEMO_SETTINGS):
            repeated += ["--set", setting]
    console.REPEATED[:] = repeated
    console.OF_CONTEST[:] = ["--competition", given.competition] if given.competition else []


def _terminated(main: int, *_) -> None:
    if os.getpid() != main:  # a process forked a moment ago: its parent reports the end
        os._exit(143)
    raise KeyboardInterrupt


def _fail(message: str, code: int, show: bool) -> int:
    if show:
        traceback.print_exc()
    complain(message)
    return code


if __name__ == "__main__":
    sys.exit(to_the_end(lambda: main(sys.argv[1:])))
