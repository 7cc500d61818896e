"""bundle: all that inference needs, in one folder, to upload as a Kaggle dataset: there a notebook without network makes the submission from it.

READS   what the chain has made for this config: checkpoints, decision.json, weights.json, metrics.json, report.json
WRITES  artifacts/bundles/<name>/ and <name>.zip, both the same:
        run.sh  src/  requirements.txt       the code, and what inference alone imports of requirements.txt
        configs/                             the config, its members and the competition, with every --set in them
        artifacts/models/<experiment>/fold<k>/  last.pt or best.pt: only the weights that predict uses, float16 for the folds whose scores that leaves as they are
        artifacts/predictions/<name>/        decision.json  weights.json;  artifacts/prepared/report.json: how run lengths count
        packages.txt  wheels/                what Kaggle's image lacks; its wheels, where you have put them there
        bundle.json  README.md               what is in it, and how to use it

The same artifacts give the same bytes. A working folder's names hold inside of it, so src/tools/infer.py reads it with the same core/paths.py.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from importlib import metadata
from pathlib import Path

import yaml
from packaging.requirements import Requirement

from src.config.load import Config, load
from src.core.console import (
    InputError,
    StageError,
    command,
    duration,
    header,
    listing,
    progress,
    say,
    short,
)
from src.core.disk import copy, point, read_json, replacing, replacing_folder, write_json
from src.core.freshness import Fingerprints, fingerprint
from src.core.locks import Lock
from src.core.paths import COMPETITION, ROOT, Paths
from src.data.images import read_image
from src.data.predictions import Predictions
from src.data.tables import read_index
from src.parts import building
from src.pipeline.jobs import (
    ensemble_job,
    evaluate_job,
    member_folder,
    plan,
    predict_job,
    weights_used,
)
from src.pipeline.jobs import folds as folds_to_use
from src.pipeline.records import read_metrics, read_runs, read_weights
from src.training.checkpoint import load_weights, round_weights, save

# What Kaggle's image has of all that inference may import, each with what it needs itself: installed_cpu_packages.txt of github.com/Kaggle/docker-python, May 2026
KAGGLE = {
    "einops",
    "filelock",
    "huggingface-hub",
    "matplotlib",
    "numpy",
    "opencv-python-headless",
    "pandas",
    "pillow",
    "pydantic",
    "pydicom",
    "pyyaml",
    "safetensors",
    "scikit-learn",
    "scipy",
    "timm",
    "torch",
    "torchvision",
    "tqdm",
}
PIP = "pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux2014_x86_64"  # of Kaggle's image, whatever this machine is
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file in the zip
README = """# {name}: a bundle for inference without network

{what}

1. {wheels}
2. Upload `{name}.zip` (or this folder) as a Kaggle dataset; add it and the contest's data to a notebook, and switch the network off.
3. In the notebook (notebooks/kaggle_infer.ipynb of the project is one that does it; the first line only where wheels/ is there):

       !pip install --no-index --no-deps --find-links BUNDLE/wheels -r BUNDLE/packages.txt
       !PYTHON=python bash BUNDLE/run.sh infer --bundle BUNDLE --data DATA --work /kaggle/working --minutes 60 --set data.on_error=skip

   BUNDLE and DATA are folders in /kaggle/input. --minutes M: test-time views, then networks, are left out to be done within M; without it all is done.
   data.on_error=skip: one bad file of a hidden test set is answered with nothing, rather than ending it all.
4. The answer is /kaggle/working/submissions/{name}.csv; {name}.png beside it shows some of it.
"""


def run(given: argparse.Namespace, config: Config, paths: Paths) -> int:
    started, target, archive = time.time(), paths.bundle(config.name), paths.bundle_zip(config.name)
    used = finished(config, paths)
    folds = {one.name: folds_to_use(one, paths) for one in used}
    header(
        "bundle",
        config.name,
        [*(paths.fold(e, 0).parent for e in folds), paths.predictions(config.name)],
        [target, archive],
    )
    with (
        Lock.of(paths.lock("bundle", config.name), f"bundle {config.name}").held(),
        replacing_folder(target) as folder,
    ):
        lacking = fill(folder, used, folds, config, paths)
        have = take_wheels(target, folder, lacking)
        write_zip(folder, archive)
    Fingerprints.of(paths).save()
    if left_out := [
        m for m in (config.ensemble.members if config.ensemble else []) if m not in folds
    ]:
        say(f"  left out, since they weigh nothing: {listing(left_out)}")
    weights, kinds = (
        sum(f.stat().st_size for f in target.rglob("*.pt")),
        [
            k
            for one in used
            for k in read_json(Paths(target, target).manifest)["networks"][one.name][
                "weights"
            ].values()
        ],
    )
    say(
        f"  {sum(map(len, folds.values()))} networks of {listing(folds)}: {weights / 1e6:.1f} MB of weights, {kinds.count('float16')} in float16 and {kinds.count('float32')} in float32"
    )
    if missing := [p for p in lacking if p not in have]:
        say(f"  Kaggle's image lacks {listing(missing)}. With the network on, once:")
        say(
            f"    {PIP} -d {short(target / 'wheels')} -r {short(target / 'packages.txt')}\n    {command('bundle')}"
        )
    elif lacking:
        say(f"  with wheels of {listing(lacking)}, which Kaggle's image lacks")
    say(
        f"  {short(archive)}   {archive.stat().st_size / 1e6:.1f} MB, {duration(time.time() - started)}; {short(target / 'README.md')} says how to use it"
    )
    return 0


def fill(
    folder: Path, used: list[Config], folds: dict[str, list[int]], config: Config, paths: Paths
) -> dict[str, str]:
    """Write all but the wheels into `folder`; returns the packages that Kaggle's image lacks, and their versions."""
    inner, name = Paths(folder, folder), config.name
    write_code(folder)
    write_configs(config, folder / "configs")
    with progress(sum(map(len, folds.values())), "weights") as bar:
        for one in used:
            write_weights(one, folds[one.name], paths, inner, bar.update)
    copy(paths.decision(name), inner.decision(name))
    if config.ensemble:
        copy(paths.weights(name), inner.weights(name))
    write_json(inner.report, {"runs": read_runs(paths)})
    about = manifest(config, used, folds, paths, inner)
    write_json(inner.manifest, about)
    found = tried(folder, config, paths)
    lacking = write_packages(folder, found)
    write_json(inner.manifest, about | {"packages": found, "lacking_at_kaggle": lacking})
    what = f"{sum(map(len, folds.values()))} networks ({', '.join(f'{e}: {len(k)} folds' for e, k in folds.items())}), classes {', '.join(about['classes'])}; CV score {about['score']:.4f}."
    wheels = "Kaggle's image has all packages that it needs."
    if lacking:
        wheels = f"`{PIP} -d wheels -r packages.txt` adds the wheels of {listing(lacking)}, which Kaggle's image lacks; `./run.sh bundle` once more takes them into the zip."
    (folder / "README.md").write_text(
        README.format(name=name, what=what, wheels=wheels), encoding="utf-8"
    )
    return lacking


def finished(config: Config, paths: Paths) -> list[Config]:
    """The experiments that have a say. Raises InputError for what is not finished or stale, and for a member that is only predictions."""
    used = config.experiments
    if config.ensemble:
        ensemble_job(config, paths).require("a bundle")
        weights = read_weights(paths, config.name, config.ensemble.members)
        names = {
            m
            for answer in ("mask", "label")
            if weights[answer]
            for m, times in weights[answer]["times"].items()
            if times
        }
        used = [one for one in used if one.name in names]
        if only := [m for m in config.ensemble.members if m in names - {one.name for one in used}]:
            raise InputError(
                f"{listing(only)} {'is' if len(only) == 1 else 'are'} there only as "
                "predictions, and those of new images cannot be made",
                short(member_folder(config, paths, only[0])),
                "Leave them out of the ensemble, or put their config beside this one",
                code="only_predictions",
            )
    for job in plan(config, paths):
        own = job.name in (one.name for one in used)
        if (
            job.stage in ("prepare", "split", "ensemble")
            or job.stage in ("train", "predict")
            and own
            or job.stage == "evaluate"
            and job.name == config.name
        ):
            job.require("a bundle", verify=True)
    return used


# ------------------------------------------------------------------------------------------------------------------------ what is written


def write_code(folder: Path) -> None:
    for file in sorted(ROOT.glob("src/**/*.py")):
        copy(file, folder / file.relative_to(ROOT))
    copy(ROOT / "run.sh", folder / "run.sh")


def write_configs(config: Config, folder: Path) -> None:
    """The config, its members and the competition as they are after --set. Raises StageError unless they load as the same."""
    folder.mkdir(parents=True)
    for name, holder in (
        (COMPETITION, config.competition),
        *((f"{c.name}.yaml", c.experiment or c.ensemble) for c in (config, *config.members)),
    ):
        (folder / name).write_text(
            yaml.safe_dump(
                holder.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=160
            ),
            encoding="utf-8",
        )
    again = load(folder / f"{config.name}.yaml")
    then, now = (
        [(c.name, c.competition, c.experiment, c.ensemble) for c in (whole, *whole.members)]
        for whole in (config, again)
    )
    if then != now:
        raise StageError(
            f"{short(config.file)} does not read back as the same config", code="config_differs"
        )


def write_weights(config: Config, folds: list[int], paths: Paths, inner: Paths, advance) -> None:
    e = config.experiment
    net = building.build(e, len(config.competition.data.classes), pretrained=False)
    for k in folds:
        load_weights(paths.checkpoint(config.name, k, e.predict.checkpoint), net, fold=k)
        weights = round_weights(net.state_dict(), net, weights_used(config, paths, k))
        save(inner.checkpoint(config.name, k, e.predict.checkpoint), {"ema": weights})
        advance(1)


def manifest(
    config: Config, used: list[Config], folds: dict[str, list[int]], paths: Paths, inner: Paths
) -> dict:
    """bundle.json: what infer goes by, and what people may want to know."""
    nested = read_metrics(paths, config.name)["nested"]
    mask = Predictions.load(paths.oof(config.name), config.competition.data.classes).mask
    mask_size = 0 if mask is None else mask.shape[1]
    networks = {}
    for one in used:
        record = predict_job(one, paths).record()
        networks[one.name] = {
            "folds": folds[one.name],
            "views": one.experiment.predict.tta,
            "image_size": one.experiment.image_size,
            "weights": {k: weights_used(one, paths, k) for k in folds[one.name]},
            "pace": record.get("pace"),
            "versions": record["versions"],
        }
    files = sorted(
        f for d in ("artifacts", "configs") for f in (inner.work / d).rglob("*") if f.is_file()
    )
    return {
        "name": config.name,
        "version": 1,
        "finished": evaluate_job(config, paths).record()["ended"],
        "classes": config.competition.data.classes,
        "score": nested["score"],
        "metrics": nested["metrics"],
        "mask_size": mask_size,
        "networks": networks,
        "files": {f.relative_to(inner.work).as_posix(): fingerprint(f, inner) for f in files},
    }


def tried(folder: Path, config: Config, paths: Paths) -> dict[str, str]:
    """Load every experiment by the bundle's own code in a process of its own; returns what that has imported: distribution -> version."""
    image = paths.data / read_index(paths).image.iloc[-1]  # its kind may need a package of its own
    words = [
        sys.executable,
        "-m",
        "src.tools.bundle",
        str(folder),
        str(folder / "configs" / f"{config.name}.yaml"),
        str(image),
    ]
    point("start", folder)
    done = subprocess.run(
        words,
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": "-1"},
        encoding="utf-8",
    )
    if done.returncode:
        raise StageError(
            "the bundle does not load: "
            + (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1],
            code="bundle_fails",
        )
    return json.loads(done.stdout.splitlines()[-1])


def trial(folder: Path, file: Path, image: Path) -> dict[str, str]:
    """Import what infer imports, load one network of each experiment, read one image and draw; distribution -> version of all that was imported by then."""
    import importlib

    from src.report import figures as pictures

    importlib.import_module("src.tools.infer")
    config, home = load(file), Paths(folder, folder)
    read_image(image, config.competition.data.channels)
    pictures.canvas(1, 1)
    for one in config.experiments:
        if about := read_json(home.manifest)["networks"].get(one.name):
            net = building.build(
                one.experiment, len(config.competition.data.classes), pretrained=False
            )
            load_weights(
                home.checkpoint(one.name, about["folds"][0], one.experiment.predict.checkpoint), net
            )
            building.try_out(net, len(config.competition.data.classes))
    owners = metadata.packages_distributions()
    names = {
        owner
        for module in list(sys.modules)
        if "." not in module
        for owner in owners.get(module, [])
    }
    return {_plain(n): metadata.version(n) for n in sorted(names, key=_plain)}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def write_packages(folder: Path, found: dict[str, str]) -> dict[str, str]:
    """requirements.txt, with only those lines that inference needs, and packages.txt; returns what Kaggle's image lacks, and its versions."""
    lines = [
        line
        for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
        if (need := line.partition("#")[0].strip()) and _plain(Requirement(need).name) in found
    ]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lacking, asked = {}, [line.partition("#")[0] for line in lines]
    while asked:  # a package that the image has comes with what it needs
        need = Requirement(asked.pop())
        if (name := _plain(need.name)) in found and name not in lacking and name not in KAGGLE:
            lacking[name] = found[name]
            asked += [
                r
                for r in metadata.requires(name) or []
                if (m := Requirement(r).marker) is None
                or any(m.evaluate({"extra": e}) for e in ("", *need.extras))
            ]
    text = [
        "# What inference imports and Kaggle's image lacks. Wheels, with the network on:",
        f"#   {PIP} -d wheels -r packages.txt",
        "# In the notebook, with the network off:",
        "#   pip install --no-index --no-deps --find-links wheels -r packages.txt",
        *(f"{n}=={v}" for n, v in sorted(lacking.items())),
    ]
    (folder / "packages.txt").write_text("\n".join(text) + "\n", encoding="utf-8")
    return lacking


def take_wheels(old: Path, folder: Path, lacking: dict[str, str]) -> list[str]:
    """Keep the wheels that were put into the bundle before this one, as far as they are still the right ones; returns whose there are."""
    have = []
    for wheel in sorted((old / "wheels").glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        if lacking.get(_plain(name)) == version:
            copy(wheel, folder / "wheels" / wheel.name)
            have.append(_plain(name))
    return have


def write_zip(folder: Path, target: Path) -> None:
    """Always in the same order and with the same times; weights are stored as they are, they hardly shrink."""
    with replacing(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for file in sorted(f for f in folder.rglob("*") if f.is_file()):
            info = zipfile.ZipInfo(file.relative_to(folder).as_posix(), EPOCH)
            info.compress_type = (
                zipfile.ZIP_STORED if file.suffix in (".pt", ".whl") else zipfile.ZIP_DEFLATED
            )
            info.external_attr = (0o755 if file.suffix == ".sh" else 0o644) << 16
            with open(file, "rb") as source, archive.open(info, "w", force_zip64=True) as copy:
                shutil.copyfileobj(source, copy, 2**20)


if __name__ == "__main__":  # the bundle's own code, by `tried`
    print(json.dumps(trial(*map(Path, sys.argv[1:]))))
