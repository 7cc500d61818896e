"""A tiny chain, from prepare to submit, with everything that can go wrong at every place.

    python tests/test_failpoints.py            # every place × every kind; an hour on two cores
    python tests/test_failpoints.py kills 100  # SIGKILL at random moments of everything

At each call of src/core/disk.py's hook the process is killed, the machine loses power, the disk is
full, broken, or refuses. Then the same command, given once more, must end with the same bytes, and
nothing may be left behind. The suite runs a part of it: one case of thirty-two.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import command_line, write_configs
from failpoints import KINDS
from zygote import Answer, Zygote

from src.pipeline.jobs import STAGES
from src.tools import demo_data

IMPORTS = ("torch", "segmentation_models_pytorch", "timm", "albumentations", "pandas", "sklearn")
IMPORTS += ("matplotlib.figure", "iterstrat.ml_stratifiers", "scipy.ndimage", "cv2", "pydantic")
IMPORTS += tuple(f"src.stages.{stage}" for stage in (*STAGES, "study")) + ("src.tools.bundle",)
CONFIGS = {
    "one": "image_size: 32\npredict: {tta: [identity]}\nmodel: {arch: unet, "
    "encoder: tu-lcnet_035, encoder_weights: none, "
    "options: {decoder_channels: [32, 16, 16, 8, 8]}}\n",
    "both": "members: [one]\nmethod: greedy\nrounds: 2\n",
    "question": "question: Does it matter?\nbase: one\n"
    "cells: {other: {evaluate.threshold: [0.4]}}\n",
}
SETTINGS = ("split.folds=2", "train.epochs=1", "train.workers=0", "evaluate.bootstrap=100")
# in the order of the chain; a step stands on what those above it left
STEPS = {
    "prepare": ["prepare", "one"],
    "split": ["split", "one"],
    "train": ["train", "one", "--fold", "0"],
    "predict": ["predict", "one"],  # after all folds
    "evaluate": ["evaluate", "one"],
    "ensemble": ["ensemble", "both"],
    "submit": ["submit", "both"],  # after the ensemble's evaluate
    "bundle": ["bundle", "both"],
    "redo": ["train", "one", "--fold", "0", "--force"],
    "study": ["study", "question"],
}
# done, but not swept: of a study only its own part, since its cells are experiments like the others
BEFORE = {
    "predict": ["train", "one"],
    "submit": ["evaluate", "both"],
    "study": ["study", "question"],
}
TIMES = {"started", "ended", "seconds", "train_seconds", "pace", "images_per_second"}
ABOUT_FILES = {"outputs", "digests", "inputs"}  # of files that hold times, in their turn


@dataclass
class Chain:
    """home: where the commands run, always the same place; before, after: what it held then."""

    zygote: Zygote
    home: Path
    kept: Path

    def words(self, step: list[str]) -> list[str]:
        word, config, *more = step
        return command_line(self.home, word, *more, config=config, sets=SETTINGS)

    def run(self, step: list[str], **more) -> Answer:
        return self.zygote.run(self.words(step), self.home, timeout=120, **more)

    def keep(self, name: str) -> None:
        shutil.copytree(self.home, self.kept / name)

    def restore(self, name: str) -> None:
        shutil.rmtree(self.home)
        shutil.copytree(self.kept / name, self.home)

    def count(self, name: str) -> list[str]:
        """Run a step to its end; the calls of the hook on the way."""
        note = self.kept / f"{name}.calls"
        note.touch()
        more = {"failpoint": {"kind": "count", "at": 0, "note": str(note)}}
        done = self.run(STEPS[name], **more)
        assert done.code == 0, f"{name}: {done.err}"
        return note.read_text().splitlines()

    def suffer(self, name: str, kind: str, at: int) -> str:
        """One case: what is wrong with how it ended; ''."""
        self.restore(f"before {name}")
        failpoint = {"kind": kind, "at": at, "home": str(self.home)}
        broken = self.run(STEPS[name], failpoint=failpoint)
        if kind in ("kill", "power"):
            if broken.code != -9:
                return f"it was to die and ended with {broken.code}: {broken.err}"
        elif not is_told(broken):
            return f"exit code {broken.code}: {broken.err}"
        again = self.run(STEPS[name])
        if again.code != 0:
            return f"the same command again: exit code {again.code}: {again.err}"
        return difference(self.kept / f"after {name}", self.home)


def places(calls: list[str]) -> list[int]:
    """The calls to fail at, from 1: of a bundle's hundred copies of source files the first two."""
    copies = [at for at, call in enumerate(calls, 1) if call.endswith(".py")]
    return [at for at in range(1, len(calls) + 1) if at not in copies[4:]]


def is_told(answer: Answer) -> bool:
    """Done all the same, or one line that does not blame the program."""
    text = answer.out + answer.err
    if "Traceback" in text or "fault of the program" in text:
        return False
    return answer.code == 0 or answer.code in (1, 2) and len(answer.errors) == 1


def difference(good: Path, other: Path) -> str:
    """Which files differ, or are too many or too few; '' for none."""
    left, right = dict(contents(good)), dict(contents(other))
    if wrong := sorted(left.keys() ^ right.keys()):
        return f"only in one of both: {wrong}"
    differs = [name for name in left if left[name] != right[name]]
    return f"other bytes: {differs}" if differs else ""


def contents(home: Path) -> Iterator[tuple[str, object]]:
    """Every file that a command left, in a form without times; what it set aside, its locks and
    its memory of fingerprints are no results."""
    for file in sorted(f for f in home.rglob("*") if f.is_file()):
        name = file.relative_to(home).as_posix()
        if "/old/" in name or file.suffix == ".lock" or file.name == "fingerprints.json":
            continue
        if file.suffix == ".pt":
            yield name, tensors(file)
        elif file.suffix == ".json":
            yield name, timeless(json.loads(file.read_text()))
        elif file.suffix == ".zip":
            continue  # of the bundle's folder, whose files are compared
        elif file.name == "log.csv":
            rows = csv.DictReader(file.read_text().splitlines())
            yield name, [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
        else:
            yield name, file.read_bytes()


def tensors(file: Path) -> bytes:
    """A checkpoint's content, again as bytes."""
    import torch

    content = torch.load(file, weights_only=True)
    buffer = io.BytesIO()
    torch.save(timeless(content), buffer)
    return buffer.getvalue()


def timeless(value):
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMES | ABOUT_FILES}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def start(zygote: Zygote, folder: Path) -> Chain:
    """Configs and images, and nothing done yet."""
    chain = Chain(zygote, folder / "home", folder / "kept")
    chain.kept.mkdir(parents=True)
    write_configs(chain.home, **CONFIGS)
    demo_data.make(chain.home / "data", n_train=24, n_test=4, size=(60, 90))
    return chain


def build(zygote: Zygote, folder: Path) -> tuple[Chain, dict[str, list[str]]]:
    """The chain run once in full, with what each step found and left; and each step's calls."""
    chain = start(zygote, folder)
    calls = {}
    for name in STEPS:
        if name in BEFORE:
            done = chain.run(BEFORE[name])
            assert done.code == 0, done.err
        for results in chain.home.glob("artifacts/studies/*/results"):
            shutil.rmtree(results)
        chain.keep(f"before {name}")
        calls[name] = chain.count(name)
        chain.keep(f"after {name}")
    return chain, calls


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    with Zygote(*IMPORTS) as zygote:
        yield build(zygote, tmp_path_factory.mktemp("failpoints"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", STEPS)
def test_whatever_fails_the_same_command_ends_with_the_same_bytes(swept, name, kind):
    chain, calls = swept
    share = int(os.environ.get("FAILPOINTS_SHARE", "32"))  # of the places: one in so many
    begin = 5 * list(STEPS).index(name) + KINDS.index(kind)
    for at in places(calls[name])[begin % share :: share]:
        wrong = chain.suffer(name, kind, at)
        assert not wrong, f"{name}, {kind} at call {at} ({calls[name][at - 1]}): {wrong}"


def kill_at_random(zygote: Zygote, folder: Path, kills: int, seed: int) -> list[str]:
    """Everything, from prepare to the ensemble's submission, killed at random moments and begun
    again until it ends, as often as it takes for so many kills; what differed in the ends."""
    chain, wrong, done = start(zygote, folder), [], 0
    chain.keep("before")
    whole = chain.run(["all", "both"])
    assert whole.code == 0, whole.err
    chain.keep("after")
    rng = random.Random(seed)
    while done < kills:
        chain.restore("before")
        begun = done
        while (answer := chain.run(["all", "both"], kill_after=rng.uniform(0, whole.seconds))).code:
            if answer.code != -9:
                wrong.append(f"seed {seed}, after {done} kills: {answer.code}: {answer.err}")
                break
            done += 1
        if answer.code == 0 and (text := difference(chain.kept / "after", chain.home)):
            wrong.append(f"seed {seed}, kills {begun + 1} to {done}: {text}")
    return wrong


def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path):
    with Zygote(*IMPORTS) as zygote:
        assert kill_at_random(zygote, tmp_path, kills=4, seed=0) == []


def main() -> int:
    import tempfile

    if sys.argv[1:2] == ["kills"]:
        kills = int(sys.argv[2])
        with tempfile.TemporaryDirectory() as folder, Zygote(*IMPORTS) as zygote:
            wrong = kill_at_random(zygote, Path(folder), kills, seed=1)
        print(*wrong, f"{kills} kills or more, {len(wrong)} ends that differ", sep="\n")
        return int(bool(wrong))
    names = sys.argv[1:] or list(STEPS)
    survived: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder, Zygote(*IMPORTS) as zygote:
        chain, calls = build(zygote, Path(folder))
        for name in names:
            for at in places(calls[name]):
                call = calls[name][at - 1]
                for kind in KINDS:
                    wrong = chain.suffer(name, kind, at)
                    survived[name, not wrong] += 1
                    if wrong:
                        print(f"{name}, {kind} at call {at} ({call}): {wrong}", flush=True)
            good, bad = survived[name, True], survived[name, False]
            text = f"{name}: {len(places(calls[name]))} places × {len(KINDS)} kinds"
            print(f"{text}: {good} survived, {bad} not", flush=True)
    return int(any(not ok for _, ok in survived))


if __name__ == "__main__":
    sys.exit(main())
