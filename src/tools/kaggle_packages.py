"""Which packages a bundle needs that Kaggle's image lacks, and their wheels."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from src.core.disk import copy
from src.core.paths import ROOT

# What Kaggle's image has of all that inference may import, each with what it needs itself:
# installed_cpu_packages.txt of github.com/Kaggle/docker-python, May 2026
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
# of Kaggle's image, whatever this machine is
PIP = (
    "pip download --no-deps --only-binary=:all: --python-version 3.12 "
    "--platform manylinux2014_x86_64"
)


def write_packages(folder: Path, packages: dict[str, str]) -> dict[str, str]:
    """requirements.txt, with only those lines that inference needs, and packages.txt; returns what
    Kaggle's image lacks, and its versions."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    needed = {}
    for line in lines:
        need = line.partition("#")[0].strip()
        if need and canonicalize_name(Requirement(need).name) in packages:
            needed[line] = need
    (folder / "requirements.txt").write_text("\n".join(needed) + "\n", encoding="utf-8")
    lacking, queue = {}, [*needed.values()]
    while queue:  # a package that the image has comes with what it needs
        requirement = Requirement(queue.pop())
        name = canonicalize_name(requirement.name)
        if name in packages and name not in lacking and name not in KAGGLE:
            lacking[name] = packages[name]
            queue += [
                needs
                for needs in metadata.requires(name) or []
                if _applies(Requirement(needs), requirement.extras)
            ]
    text = [
        "# What inference imports and Kaggle's image lacks. Wheels, with the network on:",
        f"#   {PIP} -d wheels -r packages.txt",
        "# In the notebook, with the network off:",
        "#   pip install --no-index --no-deps --find-links wheels -r packages.txt",
        *(f"{name}=={version}" for name, version in sorted(lacking.items())),
    ]
    (folder / "packages.txt").write_text("\n".join(text) + "\n", encoding="utf-8")
    return lacking


def _applies(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def keep_wheels(old: Path, folder: Path, lacking: dict[str, str]) -> list[str]:
    """Copy the wheels that were put into the last bundle, as far as they are still the right ones;
    returns whose they are."""
    kept = []
    for wheel in sorted((old / "wheels").glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        name = canonicalize_name(name)
        if lacking.get(name) == version:
            copy(wheel, folder / "wheels" / wheel.name)
            kept.append(name)
    return kept
