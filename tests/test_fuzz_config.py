"""Whatever stands in a config or after --set: done, or one line that says what is wrong.

FUZZ=1 tries many more (FUZZ_EXAMPLES=n so many of each kind).
"""

from __future__ import annotations

import json
import os
import shutil
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import pytest
import yaml
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from zygote import Zygote

from src.config.overrides import leaves
from src.core.settings import Competition, Ensemble, Experiment, Study

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "1000")) if os.environ.get("FUZZ") else 25
PROFILE = settings(
    max_examples=EXAMPLES,
    derandomize=not os.environ.get("FUZZ"),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
MOST_SECONDS = 10 if os.environ.get("FUZZ") else 40  # the suite shares its cores
MOST_BYTES = 2 << 30

KINDS = {"competition": Competition, "ensemble": Ensemble, "experiment": Experiment, "study": Study}
GOOD = {
    "competition": (ROOT / "configs" / "competition.yaml").read_text(encoding="utf-8"),
    "experiment": "image_size: 64\nmodel: {encoder: resnet18, encoder_weights: none}\n",
    "ensemble": "members: [experiment, other]\nmethod: mean\n",
    "study": "question: Q\nbase: experiment\ntiny: {seeds: [1]}\n"
    "grid: {loss.mask_weight: [0.2, 0.7]}\n",
}

BOMB = (
    "{a: &a [x, x, x, x, x, x, x, x], "
    + ", ".join(
        f"{n}: &{n} [" + ", ".join(f"*{b}" for _ in range(8)) + "]"
        for b, n in zip("abcdefgh", "bcdefghi")
    )
    + "}"
)
SCALARS = [
    ".nan",
    ".inf",
    "-.inf",
    "nan",
    "1e400",
    "1e12",
    "-1",
    "0",
    "-0.0",
    "1e-400",
    "3.5",
    "9" * 30,
    "9" * 5000,
    "0x" + "f" * 5000,
    "0b" + "1" * 999,
    "1:59:59",
    "2024-13-45",
    "2024-01-01",
    "2024-01-01 10:00:00",
    "!!int abc",
    "!!int ''",
    "!!float x",
    "!!bool maybe",
    "!!timestamp x",
    "!!timestamp 2024-01-01",
    "!!binary aGk=",
    "!!binary '%'",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!pairs [a: 1]",
    "!!python/object:os.system x",
    "!!python/tuple [1]",
    "!mine x",
    "!!str 3",
    "!!null x",
    "~",
    "yes",
    "no",
    "true",
    "",
    "''",
    '"\\ud800"',
    '"\\x1b[31m"',
    '"a\\0b"',
    '"a\\nb"',
    '"\\u202e"',
    "''''",
    "'",
    '"',
    "[",
    "{",
    "]",
    "}",
    "*none",
    "&a [*a]",
    "&a {x: *a}",
    "{<<: 3}",
    "{<<: [3]}",
    "{<<: {a: 1}}",
    "{a: 1, a: 2}",
    "{[1]: 2}",
    "{1: 2}",
    "{? {a: 1} : 2}",
    "{true: 1}",
    "{.nan: 1}",
    "[]",
    "{}",
    "[[]]",
    "[null]",
    "[{}]",
    "[" * 30 + "]" * 30,
    "[" * 3000,
    "{a: " * 900,
    "- " * 500,
    BOMB,
    "=",
    "<<",
    "%",
    "@x",
    "`x`",
    "|",
    "> x",
    "? x",
    ": x",
    "# x",
    "--- x",
    "x: y: z",
    "a\tb",
    "١٢",
    "½",
    "é",
    "\u2028",
    "\ufeff",
    "😀",
    "../../x",
    "/etc/passwd",
    "/dev/zero",
    "~/x",
    "a/b",
    ".",
    "..",
    "-",
    "{id}",
    "{label}",
    "[{id}]",
    "{label}/{id}/{id}",
    "**/{label}/{id}",
    "[a, a]",
    "[yes, no]",
    "log",
    "x" * 300,
    "x" * 6000,
    "$(id)",
    "<b>",
    "a|b",
    "%s",
    "{0}",
    "\\",
    "null",
    "none",
    "auto",
    "[1, 2]",
    "[.nan]",
    "[1e999]",
    "{dice: .inf}",
    "{dice: 1e308, bce: 1e308}",
    "[experiment]",
    "[study]",
    "[ensemble]",
    "[competition]",
    "experiment",
    "study",
    "ensemble",
    "[0.1, 0.2]",
    "['a', 'b']",
    "{a: {b: {c: 1}}}",
]
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=8), st.integers()), inner, max_size=4),
    ),
    max_leaves=8,
)
dumped = plain.map(
    lambda v: yaml.safe_dump(v, default_flow_style=True, width=10**6).replace("\n...\n", "").strip()
)
values = st.one_of(st.sampled_from(SCALARS), st.sampled_from(SCALARS), dumped)


def keys(kind: str) -> list[str]:
    return [
        *leaves(KINDS[kind]),
        "loss.mask.dice",
        "model.options.x",
        "score.dice",
        "grid.train.lr",
        "cells.a",
        "x",
        "",
        ".",
    ]


TEXTS = [
    "x",
    "",
    " ",
    ".",
    "..",
    "/",
    "/etc/passwd",
    "/dev/zero",
    "~",
    "../../x",
    "a/b",
    "a\\b",
    "{id}",
    "x_{id}",
    "{id}{id}",
    "{label}/{id}",
    "{label}/../{id}",
    "**/{label}/{id}",
    "/{label}/{id}",
    "{id",
    "}",
    "{0}",
    "{x}{id}",
    "[a{id}",
    "(",
    "*",
    "a*{id}",
    "?{id}",
    "%s",
    "$x$",
    "a|b",
    "a,b",
    ";",
    '"',
    "x" * 300,
    "é",
    "e\u0301",
    "😀",
    "\u2028",
    "normal",
    "benign",
    "id",
    "label",
    "rle",
    "imagenet",
    "none",
    "unet",
    "resnet18",
    "dice",
    "experiment",
    "other",
    "study",
    "sample_submission.csv",
]
NUMBERS = [0, 1, 2, 3, 5, 32, 64, 96, 100, 255, 1000, 0.0, 0.2, 0.5, 0.95, 1.0, 1e-12, 1e3]


def fitting(kind) -> st.SearchStrategy[object]:
    """Values of an annotation's type, odd ones among them, for what comes after pydantic."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return st.sampled_from(inside)
    if origin is Annotated:
        return fitting(inside[0])
    if origin in (Union, UnionType):
        return st.one_of(*map(fitting, inside))
    if origin is list:
        return st.lists(fitting(inside[0]), max_size=3)
    if origin is tuple:
        return st.tuples(*map(fitting, inside)).map(list)
    if origin is dict:
        return st.dictionaries(fitting(inside[0]), fitting(inside[1]), max_size=3)
    if kind is bool:
        return st.booleans()
    if kind in (int, float):
        return st.sampled_from([n for n in NUMBERS if isinstance(n, kind)])
    return (
        st.sampled_from(TEXTS)
        if kind is str
        else st.one_of(st.none(), st.sampled_from(TEXTS + NUMBERS))
    )


def annotation(kind: str, key: str):
    section = KINDS[kind]
    for word in key.split("."):
        section = (
            section.model_fields[word].annotation
            if word in getattr(section, "model_fields", {})
            else str
        )
    return section


@st.composite
def value(draw, kind: str, key: str) -> str:
    """One line of YAML, in brackets where it is long, for this key."""
    of_type = annotation(kind, key)
    if hasattr(of_type, "model_fields") or draw(st.integers(0, 3)) == 0:
        return draw(values)
    return json.dumps(draw(fitting(of_type)), ensure_ascii=False)


def nested(tree: dict) -> str:
    return (
        "{"
        + ", ".join(f"{k}: {nested(v) if isinstance(v, dict) else v}" for k, v in tree.items())
        + "}"
    )


@st.composite
def structured(draw, kind: str) -> str:
    """A good config in which some keys have odd or hostile values."""
    chosen = draw(st.lists(st.sampled_from(keys(kind)), min_size=1, max_size=4, unique=True))
    tree: dict = {}
    for key in chosen:
        *outer, last = key.split(".")
        inner = tree
        for word in outer:
            inner = inner.setdefault(word, {})
            if not isinstance(inner, dict):
                break
        else:
            inner[last] = draw(value(kind, key))
    kept = (
        []
        if kind == "competition"
        else [t for t in GOOD[kind].splitlines() if t.split(":")[0] not in tree]
    )
    made = [f"{top}: {nested(v) if isinstance(v, dict) else v}" for top, v in tree.items()]
    return "\n".join([*kept, *made]) + "\n"


raw = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")),
    st.text(alphabet="abc01:-?[]{},&*!|>'\"%@`#~ \n\t=.<", max_size=80).map(str.encode),
    st.sampled_from(
        [
            b"",
            b"\0",
            b"\xff\xfe\0",
            "a: 1".encode("utf-16"),
            b"\xef\xbb\xbfimage_size: 64\n",
            b"%YAML 9.9\n--- a",
            b"%TAG ! x\n",
            b"%x",
            b"a: 1\r\nb: 2\r\n",
            b"---\n---\n",
            b"image_size: 64\nimage_size: 96\n",
            b"\x85",
            b"x: " * 5000,
            b"- " * 20000,
            b"[" * 90000,
            b"a: 1\n" * 15000,
            b"x" * 300000,
            b"#" * 150000,
            b"? " * 9000,
            b"&a " * 9000,
            b"!" * 9000,
            b"'" * 9000,
            BOMB.encode(),
            b"image_size: 64\n\0",
            b"<<: {image_size: 64}\n",
        ]
    ),
)
named = st.sampled_from([(kind, key) for kind in KINDS if kind != "study" for key in keys(kind)])
words = st.one_of(
    named.flatmap(lambda pair: value(*pair).map(lambda v: f"{pair[1]}={v}")),
    st.text(max_size=40),
    st.sampled_from(["=", "a", "=1", ".=1", "a..b=1", "train.=1", "a=b=c", " train.lr = 1"]),
).map(lambda word: word.replace("\0", ""))  # which no command line can hold


@pytest.fixture(scope="module")
def fuzz(demo, tmp_path_factory):
    """fuzz(kind, text, words, …): the status of a folder of configs, one of them with this text."""
    home = tmp_path_factory.mktemp("fuzz")

    with Zygote("src.config.load", "src.pipeline.jobs") as zygote:

        def attempt(kind: str, text: bytes | None, *more: str) -> None:
            folder = home / "configs"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for name, good in GOOD.items():
                (folder / f"{name}.yaml").write_text(good, encoding="utf-8")
            (folder / "other.yaml").write_text(GOOD["experiment"], encoding="utf-8")
            if text is not None:
                (folder / f"{kind}.yaml").write_bytes(text)
            asked = "experiment" if kind == "competition" else kind
            command = [
                "status",
                "--config",
                str(folder / f"{asked}.yaml"),
                "--data",
                str(demo),
                "--work",
                str(home / "w"),
                *more,
            ]
            answer = zygote.run(command, home, timeout=60)
            assert answer.is_civil(), f"{answer.code} {answer.err[-2000:]}"
            assert answer.seconds < MOST_SECONDS and answer.peak < MOST_BYTES, (
                f"{answer.seconds} s, {answer.peak} bytes"
            )

        yield attempt


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_values_in_a_config(kind, fuzz):
    @PROFILE
    @given(structured(kind), st.booleans())
    def attempt(text, tiny):
        fuzz(
            kind,
            text.encode("utf-8", "surrogatepass"),
            *(["--tiny"] if tiny and kind == "study" else []),
        )

    attempt()


@pytest.mark.parametrize("kind", KINDS)
def test_any_bytes_as_a_config(kind, fuzz):
    @PROFILE
    @given(raw)
    def attempt(data):
        fuzz(kind, data)

    attempt()


@pytest.mark.parametrize("kind", ["ensemble", "experiment", "study"])
def test_any_words_after_set(kind, fuzz):
    @PROFILE
    @given(st.lists(words, min_size=1, max_size=2))
    def attempt(given_words):
        usable = [
            w.encode(
                "utf-8",
                "surrogateescape" if not any(0xD800 <= ord(c) < 0xDC80 for c in w) else "replace",
            ).decode("utf-8", "surrogateescape")
            for w in given_words
        ]
        fuzz(kind, None, *(part for word in usable for part in ("--set", word)))

    attempt()


def test_odd_names_of_parts(tmp_path):
    """What is checked before any work, with torch: options, losses, views, filters, …"""
    from src.config.load import Config
    from src.core.console import InputError
    from src.parts.check import check

    options = ["decoder_channels", "encoder_depth", "drop_rate", "channels", "strides", "nonsense"]
    options += ["img_size", "C", "features"]
    archs = ["unet", "unet_half", "fpn", "dpt", "monai_unet", "dynunet", "vnet", "svm", "otsu"]
    model = st.fixed_dictionaries(
        {},
        optional={
            "arch": st.sampled_from([*archs, *TEXTS]),
            "encoder": st.sampled_from(
                ["resnet18", "tu-lcnet_035", "tu-", "tu-x", "mit_b0", *TEXTS]
            ),
            "options": st.dictionaries(
                st.sampled_from(options),
                st.one_of(
                    *[st.sampled_from(TEXTS + NUMBERS)] * 2,
                    st.lists(st.sampled_from(NUMBERS), max_size=5),
                ),
                max_size=2,
            ),
            "head": st.sampled_from(["linear", *TEXTS]),
        },
    )
    sections = {
        name: Experiment.model_fields[name].annotation.model_fields
        for name in ("loss", "train", "predict")
    }
    parts = {
        name: st.fixed_dictionaries(
            {}, optional={k: fitting(v.annotation) for k, v in settings.items()}
        )
        for name, settings in sections.items()
    }
    filters = {
        "filter": st.sampled_from(["clahe", "despeckle", *TEXTS]),
        "filter_options": fitting(dict[str, float]),
    }

    @PROFILE
    @given(
        st.fixed_dictionaries({}, optional={"model": model, **parts, **filters}),
        fitting(dict[str, float]),
    )
    def attempt(tree, score):
        try:
            experiment = Experiment.model_validate(tree)
            contest = Competition(score=score)
        except ValidationError:
            return
        try:
            check(Config("x", tmp_path / "x.yaml", contest, experiment))
        except InputError as error:
            assert len(str(error)) < 2000

    attempt()
