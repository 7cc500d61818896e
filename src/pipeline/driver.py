"""From a plan to finished work: which jobs are left, whether each can begin, and running them in
order; and `status`, which says all that without running anything.

Imports a stage, and torch with it, only when it has work.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from contextlib import contextmanager

from src.config.load import Config
from src.core import console
from src.core.console import InputError, command, duration, listing, say, short, warn
from src.core.freshness import Fingerprints, Job
from src.core.paths import Paths
from src.data.files import data_files
from src.data.tables import read_folds
from src.pipeline import parallel
from src.pipeline.inputs import has_test, index_ids, predictions, sample_of
from src.pipeline.jobs import form_of, member_folder, plan, submit_job, unanswered
from src.submission.sample import missing_sample_error

COSTLY = ("train", "predict", "ensemble", "evaluate")


def run_stages(config: Config, paths: Paths, stage: str | None, given: argparse.Namespace) -> bool:
    """Run what is not done, of one stage or of all, in order; False where nothing had to be done.

    The plan is made again after each job, since every job may change what follows. Raises
    InputError for what is missing, and whatever a stage raises.
    """
    force, checked = given.force, False
    finished: set[str] = set()  # titles of the jobs that this command has done
    while True:
        everything = plan(config, paths)
        jobs = [j for j in everything if stage in (None, j.stage) and given.fold in (None, j.fold)]
        if not jobs:
            raise _no_jobs(config, paths, stage, given.fold)
        left = [j for j in jobs if j.title not in finished]
        todo = left if force else [j for j in left if not j.state().done]
        if not todo:
            if stage and not finished:
                _say_up_to_date(jobs, everything)
            _warn_of_changed_sources(left)
            return bool(finished)
        if not checked and (stage is None or todo[0].stage in COSTLY):
            _check_before_hours_of_work(config, paths, stage)
            checked = True
        if force:
            _note_force(todo, everything)
            force = False
            continue
        done = _do_next(todo, everything, config, paths, given.parallel)
        if any(job.stage == "prepare" for job in done):  # it makes index and stores at once
            done = [job for job in jobs if job.stage == "prepare"]
        finished |= {job.title for job in done}


def _say_up_to_date(jobs: list[Job], everything: list[Job]) -> None:
    """Raises InputError where they rest on something stale."""
    for job in jobs:
        check_inputs(job, everything)
    outputs = ", ".join(map(short, jobs[-1].outputs[:2]))
    say(f"{jobs[-1].stage} is up to date ({outputs}). --force redoes it")


def _warn_of_changed_sources(jobs: list[Job]) -> None:
    older, files = [], []
    for job in jobs:
        changed = job.changed_sources()
        if changed:
            older.append(job.title)
            files += changed
    if older:
        were = "was" if len(older) == 1 else "were"
        files = listing(dict.fromkeys(files))
        warn(f"{files} changed since {listing(older, 3)} {were} made; --force redoes")


def _check_before_hours_of_work(config: Config, paths: Paths, stage: str | None) -> None:
    """Raises InputError for names that no registry has, for members that are nowhere, and for a
    sample submission that cannot be understood."""
    importlib.import_module("src.parts.check").check(config)
    _check_members(config, paths)
    will_submit = stage in (None, "submit") and paths.index.is_file() and has_test(paths)
    if will_submit and sample_of(config, paths).is_file():
        form_of(config, paths)


def _note_force(todo: list[Job], everything: list[Job]) -> None:
    """In the records, so that a run that is stopped goes on without --force."""
    check_inputs(todo[0], everything)
    for job in todo:
        job.redo()
    console.FORCED.append(True)


def _do_next(
    todo: list[Job], everything: list[Job], config: Config, paths: Paths, at_once: int | None
) -> list[Job]:
    """Do the first job that no other run is working on, or train all folds that are left side by
    side. Returns what was done: [] where something has changed that a new plan must know of."""
    maker = _maker_at_work(todo[0], everything)
    if maker is not None:
        with maker.lock.held():
            return []  # the other run has just made it
    with _lock_first_free(todo, everything) as job:
        if job is None:  # the other run may have done it
            return []
        check_inputs(job, everything)
        if not all(maker.verify(job.reads) for maker in job.makers(everything)):
            return []  # bytes changed on the disk: plan again
        job.announce()
        folds = [j for j in todo if j.stage == "train"]
        slots = parallel.count(at_once) if job.stage == "train" and len(folds) > 1 else 1
        if slots == 1:
            job.folds_left = len(folds)
            run = importlib.import_module(f"src.stages.{job.stage}").run
            run(job, config.owner(job.name), paths)
            return [job]
    for fold in folds[1:]:  # the lock is free again: each child takes its own
        check_inputs(fold, everything)
    parallel.run(folds, config, slots)
    return folds


@contextmanager
def _lock_first_free(todo: list[Job], everything: list[Job]) -> Iterator[Job | None]:
    """The first job that no other run is working on, and that could be done now, under its lock.
    Where there is none, the first one is waited for, and None is yielded."""
    for job in todo:
        if (job is todo[0] or _is_ready(job, everything)) and job.lock.acquire():
            try:
                yield job
            finally:
                job.lock.release()
            return
    with todo[0].lock.held() as waited:
        yield None if waited else todo[0]


def _maker_at_work(job: Job, everything: list[Job]) -> Job | None:
    """A job that another run is working on, and that this one cannot do without."""
    makers = [m for m in _above(job, everything) if m.stage != job.stage]
    return next((m for m in makers if m.lock.is_busy() and not m.state().done), None)


def _is_ready(job: Job, everything: list[Job]) -> bool:
    """Is everything there that it reads? prepare makes index and stores at once."""
    if job.stage == "prepare":
        return False
    try:
        check_inputs(job, everything)
    except InputError:
        return False
    return True


def check_inputs(job: Job, jobs: list[Job]) -> None:
    """Raises InputError, with the command that makes it, unless all that this job reads is there
    and finished. prepare looks for its files itself, and says where it looked."""
    if job.stage == "prepare":
        return
    if missing := [i for i in job.inputs if not i.exists()]:
        needed, makers = missing[0], {i.made_by for i in missing}
        words = needed.made_by.split()
        if len(makers) > 1 and words[:1] == ["train"]:  # several folds
            words = ["train"]
        todo = f"Make it with {command(*words)}" if words else "Put it there"
        what = f"{job.title} lacks {needed.name}"
        raise InputError(what, needed.file, todo, code="lacks_input")
    for maker in reversed(_above(job, jobs)):
        maker.require(job.title)


def _above(job: Job, jobs: list[Job]) -> list[Job]:
    """Everything that it rests on, the nearest first, not only what it reads: new folds make old
    predictions false."""
    above, wanted = [], set(job.makers(jobs))
    for maker in reversed(jobs):
        if maker in wanted:
            above.append(maker)
            wanted.update(maker.makers(jobs))
    return above


def _no_jobs(config: Config, paths: Paths, stage: str | None, fold: int | None) -> InputError:
    """Why the plan has nothing of this stage or fold."""
    if stage == "submit" and not has_test(paths):
        return InputError(
            "there is no test set, so there is nothing to submit",
            paths.data,
            "A test/ folder (and sample_submission.csv) makes one; the scores are in "
            + short(paths.metrics(config.name)),
            code="no_test_set",
        )
    if stage == "submit" and not sample_of(config, paths).is_file():
        return missing_sample_error(config.competition, paths.data)
    if stage == "submit":
        return InputError(
            f"the sample asks for '{unanswered(config, paths)}', and {config.name}, of one task, "
            "does not answer it",
            config.file,
            "An ensemble with members of both tasks does",
            code="no_such_answer",
        )
    if stage == "ensemble":
        return InputError(
            "this config is one experiment, not an ensemble",
            config.file,
            "An ensemble names its members: see configs/ensemble.yaml",
            code="other_kind_of_config",
        )
    folds = sorted({j.fold for j in plan(config, paths) if j.stage == "train"})
    if not folds:  # folds.csv is wrong: raises the reason
        read_folds(paths, index_ids(paths.index, "train"))
    known = ", ".join(map(str, folds))
    what = f"there is no fold {fold}"
    return InputError(what, "--fold", f"The folds are {known}", code="no_such_fold")


def _check_members(config: Config, paths: Paths) -> None:
    """Raises InputError for a member that is neither an experiment nor existing predictions."""
    for member in config.ensemble.members if config.ensemble else []:
        folder = member_folder(config, paths, member)
        files = predictions(paths, member)
        if any(c.name == member for c in config.members):
            continue
        if all((folder / file.name).is_file() for file in files):
            continue
        own = config.file.parent / f"{member}.yaml"
        if own.is_file():
            what = f"the ensemble '{member}' is a member, and its predictions are not there yet"
            todo = f"Make them with {command('--config', short(own))}"
            raise InputError(what, config.file, todo, code="lacks_input")
        raise InputError(
            f"member '{member}' has neither a config nor predictions",
            config.file,
            f"Expected {short(own)}, or a folder {short(paths.predictions(member))} with "
            + listing(file.name for file in files),
            code="no_such_member",
        )


# ---------------------------------------------------------------------------------------- status


def status(config: Config, paths: Paths) -> int:
    """Done, stale (and why) or missing; seconds and scores; the next command."""
    say(f"{short(config.file)}   data {short(paths.data)}   artifacts {short(paths.artifacts)}")
    if not data_files(paths.data):
        raise InputError(
            "no images here yet",
            paths.data,
            "Put them there, as input/README.md says, bring a contest with ./run.sh "
            "fetch --competition SLUG, name another folder with --data, or try "
            "./run.sh demo",
            code="no_images",
        )
    jobs = plan(config, paths)
    waiting: list[Job] = []
    for job in jobs:
        kind, took, detail = _status_of(job, jobs, waiting, config, paths)
        if kind != "done":
            waiting.append(job)
        say(f"  {job.title:<34} {kind:<8} {took:>12}  {detail}".rstrip())
    Fingerprints.of(paths).save()
    if not waiting:
        say(f"everything is up to date. {results(config, paths)}")
    elif config.study:
        say(f"next: {command()}")
    else:
        say(f"next: {command()}   (or only its first step: {command(waiting[0].stage)})")
    return 0


def _status_of(
    job: Job, jobs: list[Job], waiting: list[Job], config: Config, paths: Paths
) -> tuple[str, str, str]:
    """What `status` says of a job: done, stale, …; how long it took; why, or with what result."""
    state, record = job.state(), job.record() or {}
    kind, detail = state.kind, state.why or record.get("summary", "")
    if state.done:
        above = next((m for m in job.makers(jobs) if m in waiting), None)
        wrong = _folds_wrong(paths) if job.stage == "split" else ""
        if above is not None:
            kind, detail = "stale", f"waits for {above.title}"
        elif wrong:
            kind, detail = "damaged", wrong
    elif kind == "begun" and job.stage == "train":
        detail = f"{_epochs_logged(job)} of {job.keys['train.epochs']} epochs"
    if kind == "done":
        return kind, duration(record["seconds"]) if "seconds" in record else "", detail
    if job.stage == "submit":
        detail = _sample_wrong(config, paths) or detail
    if job.lock.is_busy():
        kind, detail = "running", "; ".join(filter(None, (detail, job.lock.holder())))
    return kind, "", detail


def _epochs_logged(job: Job) -> int:
    log = job.paths.log(job.name, job.fold)
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return max(0, len(lines) - 1)


def _sample_wrong(config: Config, paths: Paths) -> str:
    """Why the sample submission cannot be understood; ''."""
    try:
        if paths.index.is_file():  # before that, the names of the test images are not known
            form_of(config, paths)
    except InputError as error:
        return str(error)
    return ""


def _folds_wrong(paths: Paths) -> str:
    """What is wrong with a folds.csv that a user may have edited; ''."""
    try:
        read_folds(paths, index_ids(paths.index, "train"))
    except InputError as error:
        return str(error)
    return ""


def results(config: Config, paths: Paths) -> str:
    """Where the report and the submission are, or why there is no submission."""
    if config.study:
        table, html = paths.study_table(config.name), paths.study_html(config.name)
        return f"table: {short(table)}   report: {short(html)}"
    places = []
    html, submission = paths.html(config.name), submit_job(config, paths).outputs[0]
    if html.is_file():
        places.append(f"report: {short(html)}")
    if not has_test(paths):
        places.append("no test set, so no submission")
    elif not sample_of(config, paths).is_file():
        places.append("no sample submission, so no submission")
    elif column := unanswered(config, paths):
        places.append(f"the sample asks for '{column}', so no submission")
    elif submission.is_file():
        places.append(f"submission: {short(submission)}")
    return "   ".join(places)
