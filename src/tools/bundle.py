"""bundle: all that inference needs, in one folder, to upload as a Kaggle dataset: there a notebook
without a network connection makes the submission from it.

READS   what the chain has made for this config: checkpoints, decision.json, weights.json,
        metrics.json, report.json
WRITES  artifacts/bundles/<name>/ and <name>.zip, both the same:
        run.sh  src/  requirements.txt       the code, and what inference alone imports of
                                             requirements.txt
        configs/                             the config, its members and the competition, with every
                                             --set in them
        artifacts/models/<experiment>/fold<k>/  last.pt or best.pt: only the weights that predict
                                             uses, float16 for the folds whose scores that leaves as
                                             they are
        artifacts/predictions/<name>/        decision.json  weights.json
        artifacts/prepared/report.json       how run lengths count
        packages.txt  wheels/                what Kaggle's image lacks; its wheels, where you have
                                             put them there
        bundle.json  README.md               what is in it, and how to use it

The same artifacts give the same bytes. The names of a working folder hold inside of it, so
src/tools/infer.py reads it with the same core/paths.py.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from importlib import metadata
from pathlib import Path

import torch
import yaml
from packaging.utils import canonicalize_name

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
from src.pipeline.networks import load_network, member_times
from src.pipeline.records import read_metrics, read_runs
from src.report import figures
from src.tools.kaggle_packages import PIP, keep_wheels, write_packages
from src.training.checkpoint import load_weights, round_weights, save

EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file in the zip
INFER = (
    "!PYTHON=python bash BUNDLE/run.sh infer --bundle BUNDLE --data DATA --work /kaggle/working "
    "--minutes 60 --set data.on_error=skip"
)
README = """# {name}: a bundle for inference without network

{what}

1. {wheels}
2. Upload `{name}.zip` (or this folder) as a Kaggle dataset; add it and the contest's data to a
   notebook, and switch the network off.
3. In the notebook (notebooks/kaggle_infer.ipynb of the project is one that does it; the first line
   only where wheels/ is there):

       !pip install --no-index --no-deps --find-links BUNDLE/wheels -r BUNDLE/packages.txt
       {infer}

   BUNDLE and DATA are folders in /kaggle/input. --minutes M: test-time views, then networks, are
   skipped to be done within M minutes; without it all is done. data.on_error=skip: one bad file of
   a hidden test set is answered with nothing, rather than ending it all.
4. The answer is /kaggle/working/submissions/{name}.csv; {name}.png beside it shows some of it.
"""


def run(given: argparse.Namespace, config: Config, paths: Paths) -> int:
    started, name = time.time(), config.name
    target, archive = paths.bundle(name), paths.bundle_zip(name)
    used = require_finished(config, paths)
    folds = {one.name: folds_to_use(one, paths) for one in used}
    reads = [*(paths.fold(e, 0).parent for e in folds), paths.predictions(name)]
    header("bundle", name, reads, [target, archive])
    with (
        Lock.of(paths.lock("bundle", name), f"bundle {name}").held(),
        replacing_folder(target) as folder,
    ):
        about = fill(folder, used, folds, config, paths)
        lacking = about["lacking_at_kaggle"]
        wheels = keep_wheels(target, folder, lacking)
        write_zip(folder, archive)
    Fingerprints.of(paths).save()
    members = config.ensemble.members if config.ensemble else []
    if left_out := [member for member in members if member not in folds]:
        say(f"  left out, since they weigh nothing: {listing(left_out)}")
    kinds = [kind for network in about["networks"].values() for kind in network["weights"].values()]
    size = sum(file.stat().st_size for file in target.rglob("*.pt")) / 1e6
    say(
        f"  {len(kinds)} networks of {listing(folds)}: {size:.1f} MB of weights, "
        f"{kinds.count('float16')} in float16 and {kinds.count('float32')} in float32"
    )
    if missing := [package for package in lacking if package not in wheels]:
        say(f"  Kaggle's image lacks {listing(missing)}. With the network on, once:")
        say(f"    {PIP} -d {short(target / 'wheels')} -r {short(target / 'packages.txt')}")
        say(f"    {command('bundle')}")
    elif lacking:
        say(f"  with wheels of {listing(lacking)}, which Kaggle's image lacks")
    say(
        f"  {short(archive)}   {archive.stat().st_size / 1e6:.1f} MB, "
        f"{duration(time.time() - started)}; {short(target / 'README.md')} says how to use it"
    )
    return 0


def require_finished(config: Config, paths: Paths) -> list[Config]:
    """The experiments that count. Raises InputError for what is not finished or stale, and for a
    member that is only predictions."""
    used = config.experiments
    if config.ensemble:
        ensemble_job(config, paths).require("a bundle")
        names = set().union(*member_times(config, paths).values())
        used = [one for one in used if one.name in names]
        names -= {one.name for one in used}
        if foreign := [member for member in config.ensemble.members if member in names]:
            raise InputError(
                f"{listing(foreign)} {'is' if len(foreign) == 1 else 'are'} there only as "
                "predictions, and those of new images cannot be made",
                member_folder(config, paths, foreign[0]),
                "Leave them out of the ensemble, or put their config beside this one",
                code="only_predictions",
            )
    experiments = [one.name for one in used]
    needed = {"train": experiments, "predict": experiments, "evaluate": [config.name]}
    for job in plan(config, paths):
        if job.stage != "submit" and job.name in needed.get(job.stage, [job.name]):
            job.require("a bundle", verify=True)
    return used


# ---------------------------------------------------------------------------------- what is written


def fill(
    folder: Path, used: list[Config], folds: dict[str, list[int]], config: Config, paths: Paths
) -> dict:
    """Write all but the wheels into `folder`; returns the manifest."""
    inner, name = Paths(folder, folder), config.name
    write_code(folder)
    write_configs(config, folder / "configs")
    count = sum(map(len, folds.values()))
    with progress(count, "weights") as bar:
        for one in used:
            write_weights(one, folds[one.name], paths, inner, bar.update)
    copy(paths.decision(name), inner.decision(name))
    if config.ensemble:
        copy(paths.weights(name), inner.weights(name))
    write_json(inner.report, {"runs": read_runs(paths)})
    about = manifest(config, used, folds, paths, inner)
    write_json(inner.manifest, about)
    packages = imported_packages(folder, config, paths)
    lacking = write_packages(folder, packages)
    about |= {"packages": packages, "lacking_at_kaggle": lacking}
    write_json(inner.manifest, about)
    networks = ", ".join(f"{e}: {len(k)} folds" for e, k in folds.items())
    what = (
        f"{count} networks ({networks}), classes {', '.join(about['classes'])}; "
        f"CV score {about['score']:.4f}."
    )
    wheels = "Kaggle's image has all packages that it needs."
    if lacking:
        wheels = (
            f"`{PIP} -d wheels -r packages.txt` adds the wheels of {listing(lacking)}, which "
            "Kaggle's image lacks; `./run.sh bundle` once more takes them into the zip."
        )
    text = README.format(name=name, what=what, wheels=wheels, infer=INFER)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return about


def write_code(folder: Path) -> None:
    for file in [ROOT / "run.sh", *sorted(ROOT.glob("src/**/*.py"))]:
        copy(file, folder / file.relative_to(ROOT))


def write_configs(config: Config, folder: Path) -> None:
    """The config, its members and the competition as they are after --set. Raises StageError unless
    they load as the same."""
    files = {COMPETITION: config.competition}
    files |= {f"{c.name}.yaml": c.experiment or c.ensemble for c in (config, *config.members)}
    folder.mkdir(parents=True)
    for name, model in files.items():
        content = model.model_dump(mode="json")
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=160)
        (folder / name).write_text(text, encoding="utf-8")
    again = load(folder / f"{config.name}.yaml")
    before, after = (
        [(c.name, c.competition, c.experiment, c.ensemble) for c in (one, *one.members)]
        for one in (config, again)
    )
    if before != after:
        what = f"{short(config.file)} does not read back as the same config"
        raise StageError(what, code="config_differs")


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
    folders = [inner.work / "artifacts", inner.work / "configs"]
    files = sorted(file for f in folders for file in f.rglob("*") if file.is_file())
    return {
        "name": config.name,
        "version": 1,
        "finished": evaluate_job(config, paths).record()["ended"],
        "classes": config.competition.data.classes,
        "score": nested["score"],
        "metrics": nested["metrics"],
        "mask_size": 0 if mask is None else mask.shape[1],
        "networks": networks,
        "files": {f.relative_to(inner.work).as_posix(): fingerprint(f, inner) for f in files},
    }


def write_zip(folder: Path, target: Path) -> None:
    """Always in the same order and with the same times; weights hardly shrink and are stored."""
    with replacing(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for file in sorted(f for f in folder.rglob("*") if f.is_file()):
            info = zipfile.ZipInfo(file.relative_to(folder).as_posix(), EPOCH)
            stored = file.suffix in (".pt", ".whl")
            info.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
            info.external_attr = (0o755 if file.suffix == ".sh" else 0o644) << 16
            with open(file, "rb") as source, archive.open(info, "w", force_zip64=True) as member:
                shutil.copyfileobj(source, member, 2**20)


# ------------------------------------------------------------------------------- what it depends on


def imported_packages(folder: Path, config: Config, paths: Paths) -> dict[str, str]:
    """Do what infer does with the bundle's own code, in a process of its own; returns what that has
    imported: distribution -> version."""
    image = paths.data / read_index(paths).image.iloc[-1]  # its kind may need a package of its own
    config_file = folder / "configs" / f"{config.name}.yaml"
    words = [sys.executable, "-m", "src.tools.bundle", *map(str, (folder, config_file, image))]
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": "-1"}
    point("start", folder)
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, env=env, encoding="utf-8"
    )
    if done.returncode:
        why = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise StageError(f"the bundle does not load: {why}", code="bundle_fails")
    return json.loads(done.stdout.splitlines()[-1])


def dry_run(folder: Path, file: Path, image: Path) -> dict[str, str]:
    """Import what infer imports, load one network of each experiment, read one image and draw;
    distribution -> version of all that was imported by then."""
    importlib.import_module("src.tools.infer")
    config, home = load(file), Paths(folder, folder)
    read_image(image, config.competition.data.channels)
    figures.canvas(1, 1)
    networks = read_json(home.manifest)["networks"]
    for one in (one for one in config.experiments if one.name in networks):
        fold, which = networks[one.name]["folds"][0], one.experiment.predict.checkpoint
        net = load_network(one, home.checkpoint(one.name, fold, which), torch.device("cpu"))
        building.try_out(net, len(config.competition.data.classes))
    owners = metadata.packages_distributions()
    names = {name for module in [*sys.modules] for name in owners.get(module, [])}
    return dict(sorted((canonicalize_name(name), metadata.version(name)) for name in names))


if __name__ == "__main__":  # the bundle's own code, by `imported_packages`
    print(json.dumps(dry_run(*map(Path, sys.argv[1:]))))
