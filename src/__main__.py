"""The command line: which stages are stale, and running them in order. Imports a stage, and torch with it, only when it has work."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from src.cli import DEMO_SETTINGS, TOOLS, bare, parse
from src.config.load import Config, load
from src.core import console
from src.core.console import (
    InputError,
    StageError,
    Stopped,
    command,
    duration,
    error_line,
    say,
    short,
)
from src.core.disk import explained, make_folder
from src.core.freshness import Fingerprints, Job, index_ids
from src.core.paths import CONFIGS, INPUT, ROOT, Paths, contest_folder
from src.core.shortage import complain, heard, here, shortage, to_nowhere
from src.pipeline.jobs import (
    data_files,
    form_of,
    has_test,
    member_folder,
    plan,
    sample_of,
    submit_job,
    unanswered,
)
from src.pipeline.records import read_manifest
from src.submission.sample import missing_sample_error


def main(words: list[str]) -> int:
    words = sorted(words, key=lambda w: w != "test") if words[:1] == ["--traceback"] else words
    if words[:1] == ["test"]:
        os.chdir(ROOT)
        workers = min(4, os.cpu_count() or 1)
        where = (
            []
            if any(Path(w.split("::")[0]).exists() for w in words[1:])
            else [
                "tests",
                *(
                    ["-n", str(workers), "--dist", "loadfile"]
                    if importlib.util.find_spec("xdist")
                    else []
                ),
            ]
        )
        if "-n" in where:  # files side by side, each with its share of the cores
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
        os.execv(sys.executable, [sys.executable, "-m", "pytest", *words[1:], *where])
    signal.signal(signal.SIGTERM, partial(_terminated, os.getpid()))
    show = "--traceback" in words
    console.FORCED.clear()
    try:
        here()
        return work(parse(words))
    except InputError as error:
        return _fail(error_line(error), 2, show)
    except StageError as error:
        return _fail(error_line(error), 1, show)
    except Stopped as stopped:
        return _fail(f"stopped: {stopped}. Go on with: {command(*bare(words))}", 130, show)
    except KeyboardInterrupt:
        return _fail(
            f"\nstopped. What was finished is kept; go on with: {command(*bare(words))}", 130, show
        )
    except BrokenPipeError:  # … | head
        to_nowhere(sys.stdout)
        return 1
    except Exception as error:
        told = shortage(error)
        if told is None and isinstance(error, OSError) and error.errno is not None:
            told = explained(error)
        if told is not None:
            return _fail(error_line(told), 2 if isinstance(told, InputError) else 1, show)
        what = f"{type(error).__name__}: {error}. This is a fault of the program: "
        told = StageError(f"{what}--traceback shows where", code="fault_of_the_program")
        return _fail(error_line(told), 1, show)


def work(given: argparse.Namespace) -> int:
    demo, tool = given.stage == "demo", given.stage in TOOLS
    if demo and (given.data or given.config):
        raise InputError(
            "demo makes its own images and has its own config",
            "command line",
            "Leave out --data and --config",
            code="option_elsewhere",
        )
    if given.bundle:
        given.config = _of_bundle(given)
    file = given.config or CONFIGS / ("demo.yaml" if demo else "ensemble.yaml")
    if demo:
        given.sets = DEMO_SETTINGS + given.sets
    config = load(file, given.sets, given.tiny)
    home = (given.work or ROOT).expanduser().resolve()
    paths = Paths(
        home,
        given.data.expanduser().resolve()
        if given.data
        else INPUT
        if demo or given.stage == "fetch"
        else _contest_folder(given, config),
    )
    if demo:
        paths = paths.demo()
    elif not paths.data.is_dir() and given.stage not in ("fetch", "submissions"):
        todo = (
            f"Bring it with {command('fetch', '--competition', config.competition.slug)}"
            if config.competition.slug and not given.data
            else "Put the images there, as input/README.md says, or try ./run.sh demo"
        )
        raise InputError(
            "no such folder",
            f"--data {given.data or short(paths.data)}",
            todo,
            code="no_such_folder",
        )
    _remember(given, file, demo)
    if config.study:
        paths = paths.studies(config.competition.split)
        if given.stage not in ("study", "all", "status"):
            raise InputError(
                f"{given.stage} is for one experiment or ensemble, and this is a study of several",
                short(config.file),
                f"Run it whole: {command('study')}",
                code="other_kind_of_config",
            )
    elif given.stage == "study":
        raise InputError(
            "this is no study: it names no base",
            short(config.file),
            "See configs/studies/, for example --config configs/studies/lambda.yaml",
            code="other_kind_of_config",
        )
    if demo:
        importlib.import_module("src.tools.demo_data").make(paths.data)
    if given.stage == "status":
        return status(config, paths)
    if tool:
        return importlib.import_module(f"src.tools.{given.stage}").run(given, config, paths)
    make_folder(paths.artifacts)
    stage = None if given.stage in ("all", "demo", "study") else given.stage
    ran = run_stages(config, paths, stage, given)
    Fingerprints.of(paths).save()
    if stage is None:
        say(("" if ran else "everything is up to date. ") + _last_line(config, paths))
    return importlib.import_module("src.tools.send").run(given, config, paths) if given.send else 0


def _contest_folder(given: argparse.Namespace, config: Config) -> Path:
    """Where the images are: of --competition, where its files are here (whatever else stands there is for Kaggle to judge), else as paths.py has it."""
    word = (given.competition or "").rstrip("/").rsplit("/", 1)[-1]
    try:
        return contest_folder(word if word and (INPUT / word).is_dir() else config.competition.slug)
    except InputError:
        if given.stage == "submissions":  # it can do without
            return INPUT
        raise


def _of_bundle(given: argparse.Namespace) -> Path:
    """The config that a bundle was made for."""
    paths = Paths(given.bundle.expanduser().resolve(), given.data)
    if given.config:
        raise InputError(
            "a bundle has its own config",
            "command line",
            "Leave out --config",
            code="option_elsewhere",
        )
    if not paths.manifest.is_file():
        raise InputError(
            "no bundle there",
            short(paths.manifest),
            "Make one with ./run.sh bundle, and name the folder that holds this file",
            code="no_bundle",
        )
    return paths.work / "configs" / f"{read_manifest(paths)['name']}.yaml"


def run_stages(config: Config, paths: Paths, stage: str | None, given: argparse.Namespace) -> int:
    """Run what is not done, in order; the plan is made anew after each job, since every job may change what follows. Returns how many ran."""
    fold, force = given.fold, given.force
    handled: list[str] = []
    ran = 0
    checked = False
    while True:
        everything = plan(config, paths)
        jobs = [j for j in everything if stage in (None, j.stage) and fold in (None, j.fold)]
        if not jobs:
            raise _no_jobs(config, paths, stage, fold)
        todo = [j for j in jobs if j.title not in handled and (force or not j.state().done)]
        if stage and not ran and not todo and stage != "prepare":
            for job in jobs:
                _check_inputs(job, everything)  # what rests on something stale is not up to date
        if not todo:
            if stage and not ran:
                say(
                    f"{stage} is up to date ({', '.join(short(p) for p in jobs[-1].outputs[:2])}). --force redoes it"
                )
            if older := {
                j.title: changed
                for j in jobs
                if j.title not in handled and (changed := j.changed_sources())
            }:
                files = dict.fromkeys(f for changed in older.values() for f in changed)
                console.warn(
                    f"{console.listing(files)} changed since {console.listing(older, 3)} {'was' if len(older) == 1 else 'were'} made; --force redoes"
                )
            return ran
        if not checked and (
            stage is None or todo[0].stage in ("train", "predict", "ensemble", "evaluate")
        ):
            importlib.import_module("src.parts.check").check(config)
            _check_members(config, paths)
            if (
                paths.index.is_file()
                and has_test(paths)
                and sample_of(config, paths).is_file()
                and stage in (None, "submit")
            ):
                form_of(
                    config, paths
                )  # a sample that is not understood need not wait for hours of training to be refused
            checked = True
        if force:  # in the records, so that a run that is stopped goes on without it
            if todo[0].stage != "prepare":
                _check_inputs(todo[0], everything)
            for job in todo:
                job.redo()
            console.FORCED.append(True)
            force = False
            continue
        if maker := _at_work(todo[0], everything):
            with maker.lock.held():
                continue  # the other run has made it meanwhile
        with _alone(todo, everything) as (job, waited):
            if waited:  # the other run may have done it
                continue
            if (
                job.stage != "prepare"
            ):  # that one looks for its files itself, and says what it looked for
                _check_inputs(job, everything)
            read = [
                p
                for p in (*job.inputs.values(), *job.details.get("reads", []))
                if isinstance(p, Path)
            ]
            if not all(maker.verify(read) for maker in job.makers(everything)):
                continue  # bytes that changed on the disk: the plan has it now
            state = job.state()
            if state.kind in ("stale", "damaged"):
                say(
                    f"{job.title}: {state.why}"
                    + ("; the old result moves to artifacts/old/" if state.kind == "stale" else "")
                )
            waiting = [j for j in todo if j.stage == "train"]
            job.details["left"] = len(waiting)
            side_by_side = (
                importlib.import_module("src.pipeline.parallel")
                if job.stage == "train" and len(waiting) > 1
                else None
            )
            count = side_by_side.count(given.parallel) if side_by_side else 1
            if count == 1:
                importlib.import_module(f"src.stages.{job.stage}").run(
                    job, config.owner(job.name), paths
                )
                handled += [
                    j.title for j in jobs if j is job or j.stage == job.stage == "prepare"
                ]  # prepare makes everything of its own in one pass
                ran += 1
                continue
        for other in waiting[1:]:  # the lock is free again: each child takes its own
            _check_inputs(other, everything)
        ran += side_by_side.run(waiting, config, count)
        handled += [j.title for j in waiting]


@contextmanager
def _alone(todo: list[Job], everything: list[Job]) -> Iterator[tuple[Job, bool]]:
    """The first job that no other run is at, under its lock; where there is none that could be done
    now, the first one, after waiting for it. Yields the job, and whether it waited."""
    for job in todo:
        if job is not todo[0] and not _is_ready(job, everything):
            continue
        if job.lock.acquire():
            try:
                yield job, False
            finally:
                job.lock.release()
            return
    with todo[0].lock.held() as waited:
        yield todo[0], waited


def _at_work(job: Job, everything: list[Job]) -> Job | None:
    """A job that another run is at, and that this one cannot do without."""
    makers = [m for m in _above(job, everything) if m.stage != job.stage]
    return next((m for m in makers if m.lock.is_busy() and not m.state().done), None)


def _is_ready(job: Job, everything: list[Job]) -> bool:
    """Is everything there that it reads? What prepare makes is made in one piece."""
    if job.stage == "prepare":
        return False
    try:
        _check_inputs(job, everything)
    except InputError:
        return False
    return True


def status(config: Config, paths: Paths) -> int:
    """Done, stale (and why), missing; seconds and scores; the next command."""
    say(f"{short(config.file)}   data {short(paths.data)}   artifacts {short(paths.artifacts)}")
    if not data_files(paths.data):
        raise InputError(
            "no images here yet",
            short(paths.data),
            "Put them there, as input/README.md says, bring a contest with ./run.sh "
            "fetch --competition SLUG, name another folder with --data, or try "
            "./run.sh demo",
            code="no_images",
        )
    waiting: list[Job] = []
    for job in (jobs := plan(config, paths)):
        state, record = job.state(), job.record() or {}
        kind = state.kind if state.kind != "partial" else "begun"
        extra = state.why or record.get("summary", "")
        if state.done and (above := next((m for m in job.makers(jobs) if m in waiting), None)):
            kind, extra = "stale", f"{above.title} comes first"
        if kind == "done" and job.stage == "split" and (wrong := _folds_wrong(paths)):
            kind, extra = "damaged", wrong
        if kind != "done":
            waiting.append(job)
        if state.kind == "partial" and job.stage == "train":
            log = paths.log(job.name, job.fold)
            epochs = (
                max(0, len(log.read_text(encoding="utf-8").splitlines()) - 1)
                if log.is_file()
                else 0
            )
            extra = f"{epochs} of {job.keys['train.epochs']} epochs"
        if job.stage == "submit" and kind != "done" and (wrong := _sample_wrong(config, paths)):
            extra = wrong
        if kind != "done" and job.lock.is_busy():
            kind, extra = "running", "; ".join(filter(None, (extra, job.lock.holder())))
        took = duration(record["seconds"]) if kind == "done" and "seconds" in record else ""
        say(f"  {job.title:<34} {kind:<8} {took:>12}  {extra}".rstrip())
    Fingerprints.of(paths).save()
    if not waiting:
        say("everything is up to date. " + _last_line(config, paths))
    else:
        say(
            f"next: {command()}"
            if config.study
            else f"next: {command()}   (or only its first step: {command(waiting[0].stage)})"
        )
    return 0


def _sample_wrong(config: Config, paths: Paths) -> str:
    """Why the sample of the submission is not understood; ''."""
    try:
        if paths.index.is_file():  # before that, nobody knows the test images' names
            form_of(config, paths)
    except InputError as error:
        return str(error)
    return ""


def _folds_wrong(paths: Paths) -> str:
    """What is wrong with a folds.csv that a user may have edited; ''."""
    from src.data.tables import read_folds

    with open(paths.index, newline="", encoding="utf-8") as lines:
        ids = [row["id"] for row in csv.DictReader(lines) if row["set"] == "train"]
    try:
        read_folds(paths, ids)
    except InputError as error:
        return str(error)
    return ""


# -------------------------------------------------------------------------------------------------------------------- messages


def _remember(given: argparse.Namespace, file: Path, demo: bool) -> None:
    """What every suggested command repeats."""
    console.REPEATED[:] = (
        ["demo"]
        if demo
        else ["--config", short(Path(os.path.abspath(file)))]
        if given.config and not given.bundle
        else []
    )
    console.REPEATED += ["--tiny"] if given.tiny else []
    console.OF_CONTEST[:] = ["--competition", given.competition] if given.competition else []
    console.REPEATED += [
        w for k in ("data", "work") if (v := getattr(given, k)) for w in (f"--{k}", str(v))
    ]
    console.REPEATED += [
        w for s in given.sets if not (demo and s in DEMO_SETTINGS) for w in ("--set", s)
    ]


def _check_inputs(job: Job, jobs: list[Job]) -> None:
    """Everything that this job reads is there, and finished; else an InputError that names the command which makes it."""
    if names := job.missing_inputs():
        value = job.inputs[names[0]]
        makers = list(dict.fromkeys(job.made_by.get(n, "") for n in names))
        words = makers[0].split()
        if len(makers) > 1 and words[:1] == ["train"]:  # several folds
            words = ["train"]
        todo = f"Make it with {command(*words)}" if words else "Put it there"
        where = short(value) if isinstance(value, Path) else ""
        what = f"{job.title} lacks {names[0]}"
        raise InputError(what, where, todo, code="lacks_input")
    for maker in reversed(_above(job, jobs)):
        maker.require(job.title)


def _above(job: Job, jobs: list[Job]) -> list[Job]:
    """Everything that it rests on, the nearest first, not only what it reads: new folds make old
    predictions false."""
    above: list[Job] = []
    for maker in reversed(jobs):
        if any(maker in j.makers(jobs) for j in (job, *above)):
            above.append(maker)
    return above


def _no_jobs(config: Config, paths: Paths, stage: str, fold: int | None) -> InputError:
    if (
        stage == "submit"
        and has_test(paths)
        and sample_of(config, paths).is_file()
        and (column := unanswered(config, paths))
    ):
        return InputError(
            f"the sample asks for '{column}', and {config.name}, of one task, does not answer it",
            short(config.file),
            "An ensemble with members of both tasks does",
            code="no_such_answer",
        )
    if stage == "submit" and has_test(paths):
        return missing_sample_error(config.competition, paths.data)
    if stage == "submit":
        return InputError(
            "there is no test set, so there is nothing to submit",
            short(paths.data),
            "A test/ folder (and sample_submission.csv) makes one; the scores are in "
            + short(paths.metrics(config.name)),
            code="no_test_set",
        )
    if stage == "ensemble":
        return InputError(
            "this config is one experiment, not an ensemble",
            short(config.file),
            "An ensemble names its members: see configs/ensemble.yaml",
            code="other_kind_of_config",
        )
    folds = sorted({j.fold for j in plan(config, paths) if j.stage == "train"})
    if not folds:  # by folds.csv, which says why
        from src.data.tables import read_folds

        read_folds(paths, index_ids(paths.index, "train"))
    return InputError(
        f"there is no fold {fold}",
        "--fold",
        f"The folds are {', '.join(map(str, folds))}",
        code="no_such_fold",
    )


def _check_members(config: Config, paths: Paths) -> None:
    """Before hours of training: is every member an experiment, or predictions that are already there?"""
    for member in config.ensemble.members if config.ensemble else []:
        folder = member_folder(config, paths, member)
        if not any(c.name == member for c in config.members) and not all(
            (folder / p.name).is_file()
            for p in (paths.oof(member), *([paths.test(member)] if has_test(paths) else []))
        ):
            own = config.file.parent / f"{member}.yaml"
            if own.is_file():
                what = f"the ensemble '{member}' is a member, and its predictions are not there yet"
                todo = f"Make them with {command('--config', short(own))}"
                raise InputError(what, short(config.file), todo, code="lacks_input")
            raise InputError(
                f"member '{member}' has neither a config nor predictions",
                short(config.file),
                f"Expected {short(config.file.parent / (member + '.yaml'))}, or a "
                f"folder {short(paths.predictions(member))} with oof.npz and test.npz",
                code="no_such_member",
            )


def _last_line(config: Config, paths: Paths) -> str:
    if config.study:
        return f"table: {short(paths.study(config.name, 'table.md'))}   report: {short(paths.study(config.name, 'report.html'))}"
    html, table, sample = (
        paths.html(config.name),
        submit_job(config, paths).outputs[0],
        sample_of(config, paths).is_file(),
    )
    found = [f"report: {short(html)}"] if html.is_file() else []
    lacks = (
        "no test set"
        if not has_test(paths)
        else "no sample of the submission"
        if not sample
        else f"the sample asks for '{column}'"
        if (column := unanswered(config, paths))
        else ""
    )
    found += (
        [f"{lacks}, so no submission"]
        if lacks
        else [f"submission: {short(table)}"]
        if table.is_file()
        else []
    )
    return "   ".join(found)


def _terminated(main: int, *_) -> None:
    if (
        os.getpid() != main
    ):  # a process that was forked off a moment ago: its parent tells of the end
        os._exit(143)
    raise KeyboardInterrupt


def _fail(message: str, code: int, show: bool) -> int:
    if show:
        traceback.print_exc()
    complain(message)
    return code


if __name__ == "__main__":
    sys.exit(heard(lambda: main(sys.argv[1:])))
