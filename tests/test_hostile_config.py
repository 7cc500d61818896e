"""Configs and settings that would hang, overflow, be misread or reach into a page.

Each is answered in one line, or is harmless.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, refused
from torch import nn

from src.__main__ import main
from src.config import plain_yaml
from src.config.load import Config, load
from src.config.names import check_name
from src.config.study import check_size
from src.core.settings import Competition, Experiment, Model, Study
from src.parts import building
from src.parts.pretrained import find_weights, load_encoder
from src.report import figures as pictures
from src.report import html
from src.stages.evaluate import without_zero
from src.stages.study import legend, markdown

CPU = ROOT / "configs" / "cpu.yaml"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{n}: &{n} [{', '.join([f'*{b}'] * 10)}]\n" for b, n in zip("abcdefgh", "bcdefghi")
)
GOOD = "image_size: 64\n"


def folder(tmp_path: Path, text: str | bytes = GOOD, name: str = "mine.yaml") -> Path:
    (tmp_path / "competition.yaml").write_bytes(
        (ROOT / "configs" / "competition.yaml").read_bytes()
    )
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return tmp_path / name


def one_line(capfd, words: list[str]) -> str:
    """The one line of a command that is given wrong input."""
    began = time.monotonic()
    assert main(words) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert time.monotonic() - began < 10
    return err


# ------------------------------------------------------------ what --set may say


@pytest.mark.parametrize(
    "word, said, code",
    [
        ("evaluate.bootstrap=1e12", "evaluate.bootstrap: ", "invalid_value"),
        ("loss.mask.dice=nan", "loss.mask.dice: ", "invalid_value"),
        ("train.lr=inf", "train.lr: ", "invalid_value"),
        ("train.encoder_lr=-.inf", "train.encoder_lr: ", "invalid_value"),
        ("loss.mask_weight=nan", "'uncertainty'", "invalid_value"),
        ("loss.class_weights=[1, .nan]", "loss.class_weights.1: ", "invalid_value"),
        ("filter_options={clip: .inf}", "filter_options.clip: ", "invalid_value"),
        ("score={dice: .inf}", "score.dice: ", "invalid_value"),
        ("evaluate.threshold=[.nan]", "evaluate.threshold.0: ", "invalid_value"),
        ("model.options={drop: .nan}", "every number is finite", "invalid_value"),
        ("train.epochs=!!int abc", "'abc'", "invalid_yaml_value"),
        ("slug=!!python/object:os.system x", "constructor", "invalid_yaml_value"),
        ("train.seed=-1", "It is from 0 to 4 294 967 295", "invalid_value"),
        ("split.seed=-1", "It is from 0 to 4 294 967 295", "invalid_value"),
        ("image_size=3200000", "image_size: ", "invalid_value"),
        ("split.folds=1000000000", "split.folds: ", "invalid_value"),
        ("train.epochs=1000000000", "It is from 1 to 100 000", "invalid_value"),
        ("train.batch_size=1000000000", "It is from 1 to 65 536", "invalid_value"),
        ("train.workers=100000", "It is from 0 to 256", "invalid_value"),
        ("train.freeze=true", "train.freeze: ", "invalid_value"),
        ("score={dice: yes}", "score: ", "invalid_value"),
        ("evaluate.threshold=[true]", "evaluate.threshold: ", "invalid_value"),
        ("train.epochs=yes", "train.epochs: ", "invalid_value"),
        ("data.mask_suffix=", "data.mask_suffix: ", "invalid_value"),
        (f"data.table={'x' * 300}", "longer than a file's name can be", "invalid_value"),
        (f"model.encoder_weights={'x' * 300}", "longer than a file's name can be", "invalid_value"),
        ("filter=../x", "filter: a word of letters, digits and _", "invalid_value"),
        ("data.classes=[a, '', normal]", "a name that is empty", "invalid_value"),
        ("train=3", "train: ", "invalid_value"),
        ("predict.tta=hflip", "predict.tta: ", "invalid_value"),
        ("train.amp=no", "put the word in quotes", "invalid_value"),
        ("model.options=" + "[" * 5000, "40 levels", "config_too_large"),
        ("slug=\x1b[31m", "U+001B", "control_character"),
        ("train.lr=1:30", "should be a number, not '1:30'", "invalid_value"),
        ("train.lr=1_0", "should be a number, not '1_0'", "invalid_value"),
        ("train.epochs=1_0", "should be a number, not '1_0'", "invalid_value"),
        ("train.epochs=0o17", "not '0o17'", "invalid_value"),
        ("evaluate.threshold=[0_0.5]", "should be a number", "invalid_value"),
        ('submission.empty="a\\nb"', "submission.empty: text of one line", "invalid_value"),
        ('submission.labels={benign: "a\\tb"}', "text of one line", "invalid_value"),
        (
            "model.options={decoder_channels: [0, 0, 0, 0]}",
            "decoder_channels are whole numbers from 1",
            "invalid_value",
        ),
        ("model.options={decoder_channels: [1_0, 8, 8, 8]}", "whole numbers", "invalid_value"),
        (
            "members=[cpu]",
            "'members' is a setting of ensembles, and cpu.yaml is",
            "other_kind_of_config",
        ),
        ("rounds=3", "'rounds' is a setting of ensembles", "other_kind_of_config"),
        ("evaluate.smooth=[" + ", ".join(["0.1"] * 400) + "]", "", ""),
    ],
)
def test_a_hostile_setting_is_one_line(word, said, code, demo, tmp_path, capfd):
    words = ["status", "--config", str(CPU), "--data", str(demo), "--work", str(tmp_path)]
    words += ["--set", word]
    if not said:  # long lists are fine until they are multiplied with each other
        words += ["--set", word.replace("smooth", "min_area")]
        said, code = "1440000 decisions, more than 100000", "invalid_value"
    err = one_line(capfd, words)
    assert said in err and (not code or f"[{code}]" in err)


@pytest.mark.parametrize(
    "words, said, code",
    [
        (["--parallel", "0"], "--parallel 0", "usage"),
        (["--parallel", "9" * 50], "--parallel 999", "usage"),
        (["infer", "--minutes", "inf"], "--minutes inf", "usage"),
        (["infer", "--minutes", "nan"], "--minutes nan", "usage"),
        (["x" * 5000], "'xxx", "unknown_stage"),
        (["--fold", "x" * 5000], "--fold", "usage"),
    ],
)
def test_hostile_words_of_the_command_line(words, said, code, capfd):
    err = one_line(capfd, words)
    assert said in err and f"[{code}]" in err and len(err) < 1000


def test_a_section_of_a_config_that_is_none_is_said_and_not_a_fault(tmp_path):
    with refused("unknown_key", "'loss.mask.dice'", "loss has no settings"):
        load(folder(tmp_path, "loss: 3\n"), ["loss.mask.dice=1"])


# ------------------------------------------------------------ YAML files


@pytest.mark.parametrize(
    "text, said, code",
    [
        (BOMB, "20000 values", "config_too_large"),
        ("a: &a [*a]\n", "anchor", "yaml_holds_itself"),
        ("a: &a\n  <<: *a\n", "anchor", "yaml_holds_itself"),
        ("a: " + "[" * 50_000, "40 levels", "config_too_large"),
        (
            "image_size: 64\ntask: mask\nimage_size: 96\n",
            "'image_size' is there twice, first in line 1",
            "duplicate_key",
        ),
        (
            "train:\n  lr: 1\n  lr: 2\n",
            "the key 'lr' is there twice, first in line 2: keep one of them (*line 3)",
            "duplicate_key",
        ),
        ("train: {epochs: !!int abc}\n", "'abc'", "invalid_yaml_value"),
        ("train: {epochs: 2024-13-45}\n", "'2024-13-45'", "invalid_value"),
        ("image_size: 64\n\0\n", "U+0000: take it out (*line 2)", "control_character"),
        (b"image_size: 64\n# \xff\n", " (*line 2)", "not_utf8"),
        ("image_size: 64".encode("utf-16"), "", "not_utf8"),
        ("%YAML 9.9\n--- a\n", "incompatible YAML document", "invalid_yaml"),
        ("%x\n", "", "invalid_yaml"),
        ("a: 1\n---\nb: 1\n", "", "invalid_yaml"),
        ('task: "\\ud800"\n', "a text holds the character U+D800", "control_character"),
        ('"a\\nb": 1\n', "a key holds the character U+000A", "control_character"),
        (f"image_size: 0x{'f' * 6000}\n", "number", "config_too_large"),
        (f"task: {'x' * 6000}\n", "6000 characters", "config_too_large"),
    ],
    ids=range(18),
)
def test_a_hostile_file_is_one_line(text, said, code, tmp_path, capfd):
    err = one_line(
        capfd, ["status", "--config", str(folder(tmp_path, text)), "--data", str(tmp_path)]
    )
    what, _, line = said.partition(" (*")
    assert what in err and line.rstrip(")") in err and "mine.yaml" in err and f"[{code}]" in err


def test_a_file_of_100_mb_is_not_read(tmp_path, capfd):
    file = folder(tmp_path)
    with open(file, "r+b") as stream:
        stream.truncate(100 << 20)
    err = one_line(capfd, ["status", "--config", str(file), "--data", str(tmp_path)])
    assert "100 kB" in err and "[config_too_large]" in err


def test_what_only_yaml_1_1_takes_for_a_number_is_a_word(tmp_path):
    text = "[1:30, 1_0, 0b11, 017, 08, 190:20:30.15, 1_0.5, 0x10, 1.5, -3, 1.0e-3, .5]"
    words = ["1:30", "1_0", "0b11", "017", "08", "190:20:30.15", "1_0.5"]
    assert plain_yaml.parse(text) == [*words, 16, 1.5, -3, 0.001, 0.5]
    for number in ("1:30", "1_0"):
        with refused("invalid_value", "train.lr", number):
            load(folder(tmp_path, f"train: {{lr: {number}}}\n"))
    labels = load(CPU, ["submission.labels={benign: 017, malignant: 1:30, normal: 1_0}"])
    assert list(labels.competition.submission.labels.values()) == ["017", "1:30", "1_0"]
    assert load(CPU, ["train.lr=1e-3"]).experiment.train.lr == 0.001


@pytest.mark.parametrize("name", ["loop.yaml", "cpu.yaml"])
@pytest.mark.parametrize("target, kind", [(None, "a link to itself"), ("gone", "a broken link")])
def test_a_config_that_is_a_link_to_nothing_is_said_to_be_one(name, target, kind, tmp_path):
    (tmp_path / name).symlink_to(target or name)
    with refused("config_unreadable", f"this config is {kind}") as raised:
        load(tmp_path / name)
    assert "Did you mean" not in str(raised.value)


@pytest.mark.parametrize(
    "word, said, code",
    [
        ("", "folder", "config_unreadable"),
        ("/dev/null", "not a file", "config_unreadable"),
        ("x" * 400 + ".yaml", "File name too long", "config_unreadable"),
    ],
)
def test_what_is_no_file_is_no_config(word, said, code, tmp_path, capfd):
    err = one_line(capfd, ["status", "--config", str(tmp_path / word), "--data", str(tmp_path)])
    assert said in err and f"[{code}]" in err


def test_dates_and_what_begins_with_a_mark_are_words():
    assert plain_yaml.parse("[2024-01-01, =, 1e3, yes, 0x10, ~]") == [
        "2024-01-01",
        "=",
        "1e3",
        True,
        16,
        None,
    ]


def test_anchors_and_merges_within_bounds_still_work():
    assert plain_yaml.parse("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a\n") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": {"x": 1},
    }


# ------------------------------------------------------------ names


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "-x",
        "a/b",
        "a\\b",
        "a\nb",
        "a\x1bb",
        "a\u202eb",
        " a",
        "a ",
        "x" * 200,
        "log",
        "LOG",
        "Competition",
    ],
)
def test_a_name_that_misleads_or_is_taken_is_refused(name):
    with refused("bad_name", "no config"):
        check_name(name, "here")


@pytest.mark.parametrize("name", ["cpu", "fold 2", "größer", "模型", "a.b", "<b>x", "a|b", "x_$^$"])
def test_other_names_are_as_good_as_any(name):
    check_name(name, "here")


@pytest.mark.parametrize("name", ["-x.yaml", ".x.yaml", "a\nb.yaml", "LOG.yaml"])
def test_a_bad_name_is_one_line_of_a_command(name, tmp_path, capfd):
    assert "[bad_name]" in one_line(
        capfd, ["status", f"--config={folder(tmp_path, name=name)}", "--data", str(tmp_path)]
    )


@pytest.mark.parametrize(
    "text, said, code",
    [
        ("members: [-x]\n", "'-x'", "bad_name"),
        ("members: [a, a]\n", "'a'", "member_twice"),
        ("members: [s]\n", "'s'", "bad_member"),
        ("members: [mine]\n", "itself", "bad_member"),
    ],
)
def test_members_that_cannot_be(text, said, code, tmp_path):
    folder(tmp_path, "question: Q\nbase: a\n", "s.yaml")
    folder(tmp_path, GOOD, "a.yaml")
    with refused(code, said):
        load(folder(tmp_path, text))


# ------------------------------------------------------------ studies


def test_a_study_of_a_hundred_million_cells_is_refused_at_once(tmp_path, capfd):
    values = "[" + ", ".join(str(i / 100) for i in range(100)) + "]"
    keys = ("loss.mask_weight", "loss.label_smoothing", "train.warmup", "model.dropout")
    grid = ", ".join(f"{key}: {values}" for key in keys)
    file = folder(tmp_path, f"question: Q\nbase: mine\ngrid: {{{grid}}}\n", "s.yaml")
    folder(tmp_path)
    err = one_line(capfd, ["status", "--config", str(file), "--data", str(tmp_path)])
    assert "100000000 cells, more than 500" in err and "[too_many_cells]" in err


@pytest.mark.parametrize("label", ["''", "' '", "x" * 101])
def test_a_cell_has_a_name_that_a_folder_can_have(label, tmp_path):
    folder(tmp_path)
    text = f"question: Q\nbase: mine\ncells: {{{label}: {{task: mask}}}}\n"
    with refused("bad_name", "cell", "s.yaml"):
        load(folder(tmp_path, text, "s.yaml"))


def test_long_names_together_are_too_long_for_a_folder(tmp_path):
    folder(tmp_path, name=f"{'b' * 100}.yaml")
    text = f"question: Q\nbase: {'b' * 100}\ncells: {{{'c' * 90}: {{task: mask}}}}\n"
    with refused("bad_name") as raised:
        load(folder(tmp_path, text, f"{'s' * 100}.yaml"))
    assert re.search(r"cell .* 2\d\d bytes", str(raised.value))


def test_seeds_multiply_the_cells():
    study = Study(
        question="Q", base="b", cells={str(i): {} for i in range(6)}, seeds=list(range(100))
    )
    with refused("too_many_cells", "600 cells"):
        check_size(study, Path("s.yaml"))
    check_size(study.model_copy(update={"seeds": [1, 2]}), Path("s.yaml"))


@pytest.mark.parametrize(
    "base, code",
    [
        ("b", "other_kind_of_config"),
        ("s", "no_such_config"),
        ("../mine", "bad_name"),
        ("both", "other_kind_of_config"),
    ],
)
def test_studies_of_each_other_come_to_an_end(base, code, tmp_path):
    folder(tmp_path)
    folder(tmp_path, "members: [mine]\n", "both.yaml")
    folder(tmp_path, "question: Q\nbase: s\ncells: {x: {task: mask}}\n", "b.yaml")
    with refused(code):
        load(
            folder(tmp_path, f"question: Q\nbase: {base}\ncells: {{x: {{task: mask}}}}\n", "s.yaml")
        )


# ------------------------------------------------------------ options of networks


@pytest.mark.parametrize(
    "model, words",
    [
        (
            {"arch": "unet", "encoder": "resnet18", "options": {"nonsense": 1}},
            ("unet ", "'nonsense'", "Known: decoder_attention_type"),
        ),
        (
            {"arch": "unet", "encoder": "resnet18", "options": {"decoder_chanels": [1]}},
            ("Did you mean decoder_channels?",),
        ),
        (
            {"arch": "unet_half", "encoder": "mobilenet_v2", "options": {"decoder_channel": [1]}},
            ("Did you mean decoder_channels?",),
        ),
        (
            {"arch": "unet", "encoder": "resnet18", "options": {"activation": "sigmoid"}},
            ("'activation'",),
        ),
        (
            {"arch": "unet", "encoder": "tu-resnet18", "options": {"drop_path_rat": 0.1}},
            ("Did you mean drop_path_rate?",),
        ),
        (
            {"arch": "unet", "encoder": "tu-resnet18", "options": {"nonsense": None}},
            ("'nonsense'",),
        ),
        ({"arch": "monai_unet", "options": {"dropuot": 0.1}}, ("Did you mean dropout?",)),
        ({"arch": "dynunet", "options": {"res_blok": True}}, ("Did you mean res_block?",)),
        ({"arch": "vnet", "options": {"spatial_dims": 3}}, ("'spatial_dims'",)),
    ],
)
def test_a_misspelt_option_is_named(model, words):
    with refused("unknown_option", *words):
        building.check(Experiment(model=model, image_size=64))


@pytest.mark.parametrize(
    "model",
    [
        {
            "arch": "unet_half",
            "encoder": "mobilenet_v2",
            "options": {"decoder_channels": [128, 64, 32, 16]},
        },
        {"arch": "deeplabv3plus", "encoder": "resnet18", "options": {"encoder_output_stride": 16}},
        {"arch": "unet", "encoder": "tu-lcnet_035", "options": {"drop_rate": 0.1}},
        {"arch": "segresnet_vae", "options": {"vae_weight": 0.2}},
        {"arch": "dynunet", "options": {"res_block": True}},
        {"arch": "svm", "options": {"C": 1.0}},
    ],
)
def test_options_that_are_there_are_taken(model):
    building.check(Experiment(model=model, image_size=64))


def test_channels_that_no_memory_holds_are_not_tried():
    settings = {
        "arch": "unet",
        "encoder": "resnet18",
        "encoder_weights": "none",
        "options": {"decoder_channels": [16384] * 5},
    }
    with refused("network_too_large", "parameters"):
        building.build_random(Experiment(model=settings, image_size=64), 3)


# ------------------------------------------------------------ encoders' weights


@pytest.mark.parametrize("name", ["e.pth", "e.safetensors"])
def test_weights_of_zero_bytes_are_said_to_be_empty(name, tmp_path):
    (tmp_path / name).touch()
    with refused("weights_unreadable", "empty", name):
        load_encoder(nn.Conv2d(3, 4, 1), tmp_path / name)


@pytest.mark.parametrize("held", [os.system, nn.Linear(2, 2)])
def test_weights_that_hold_code_are_refused_without_advice_to_run_it(held, tmp_path):
    torch.save({"a": held}, tmp_path / "e.pth")
    with refused("weights_with_code", "not loaded", ".safetensors") as raised:
        load_encoder(nn.Linear(2, 2), tmp_path / "e.pth")
    assert "weights_only" not in str(raised.value) and "arbitrary" not in str(raised.value)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    torch.save(
        {"weight": torch.full((4, 3, 1, 1), torch.nan), "bias": torch.zeros(4), 3: 4},
        tmp_path / "e.pth",
    )
    with refused("weights_unreadable", "tensor weight", "finite"):
        load_encoder(nn.Conv2d(3, 4, 1), tmp_path / "e.pth")


@pytest.mark.parametrize(
    "text",
    [
        '{"mean": [0.5], "std": [0.5]}',
        '{"mean": 0.5, "std": 0.5}',
        '{"mean": "123", "std": "123"}',
        "3",
        "[]",
        "",
        "[" * 5000,
        '{"mean": [0, 0, NaN], "std": [1, 1, 1]}',
        '{"mean": [0, 0, 0], "std": [1, 0, 1]}',
        '{"mean": [0, 0, 1e999], "std": [1, 1, 1]}',
        '{"mean": [null, 0, 0], "std": [1, 1, 1]}',
    ],
    ids=range(11),
)
def test_statistics_are_three_numbers_each(text, tmp_path):
    encoder = nn.Conv2d(3, 4, 1)
    torch.save(encoder.state_dict(), tmp_path / "e.pth")
    (tmp_path / "e.json").write_text(text)
    with refused("bad_statistics", "e.json"):
        load_encoder(encoder, tmp_path / "e.pth")
    (tmp_path / "e.json").write_text(json.dumps({"mean": [0, 0.5, 1], "std": [1, 2, 3]}))
    assert load_encoder(encoder, tmp_path / "e.pth") == ([0, 0.5, 1], [1, 2, 3])


@pytest.mark.parametrize(
    "setting, folder_, code",
    [("x" * 400, "input/weights", "no_weights"), ("imagenet", "x" * 400, "no_weights")],
)
def test_a_path_that_no_file_can_have_is_not_there(setting, folder_, code):
    with refused(code) as raised:
        find_weights("resnet18", setting, folder_)
    assert len(str(raised.value)) < 400


# ------------------------------------------------------------ pages and tables

EVIL = "<img src=x onerror=alert(1)>"
TILE = np.zeros((9, 9, 3), np.uint8)


def hostile_study() -> Config:
    cell = Config(EVIL, Path("x.yaml"), Competition(), Experiment(model=Model()))
    study = Study(question=f"Q {EVIL}", base="b")
    return Config(
        EVIL, Path("x.yaml"), Competition(), study=study, cells={f"{EVIL}|x": [cell], "c": [cell]}
    )


def test_no_name_reaches_the_page_of_a_study_raw(tmp_path):
    pictures.save(pictures.canvas(1, 1), tmp_path / "plot.png")
    config = hostile_study()
    page = html.render(
        "study.html.j2",
        name=config.name,
        question=config.study.question,
        lines=[["cell", "Δ"], [f"{EVIL}|x", f"+1 {EVIL}"]],
        legend=legend(config),
        plot=tmp_path / "plot.png",
        images=[(f"{EVIL} ({EVIL})", [pictures.Tile(TILE, EVIL)])],
    )
    assert "<img src=x" not in page and page.count("&lt;img src=x onerror") == 10
    assert "onerror=alert(1)&gt;|x</td>" in page, "a name is no value with a note"


def test_no_name_reaches_the_report_of_evaluate_raw():
    numbers = {
        "score": 0.5,
        "metrics": {"dice": 0.5},
        "intervals": {"score": (0.4, 0.6), "dice": (0.4, 0.6)},
        "decision": {"threshold": 0.5},
    }
    nested = numbers | {
        "by_class": {EVIL: {"images": 1, "dice": 0.5}},
        "by_fold": {EVIL: {"images": 1, "score": 0.5}},
        "spread": None,
        "decisions": {EVIL: {"threshold": 0.5}},
    }
    about = {
        "name": EVIL,
        "score": {EVIL: 1.0},
        "in_pixels": [],
        "left_out": "folds",
        "images": 1,
        "groups": 1,
        "lecture": {},
    }
    page = html.render(
        "report.html.j2",
        about=about,
        results={"untuned": numbers, "tuned": numbers, "nested": nested},
        drawn={},
        error=None,
        typical=[pictures.Tile(TILE, EVIL)],
        worst=[pictures.Tile(TILE, f"{EVIL}\n{EVIL}")],
    )
    assert "<img src=x" not in page and page.count("&lt;img src=x") >= 9


def test_a_name_breaks_no_row_of_a_markdown_table():
    text = markdown(hostile_study(), [("cell", "score"), (f"{EVIL}|x", "0.5"), ("c", "0.5")])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {3} and "\\|x" in rows[2]
    assert "<img" not in text


def test_pictures_show_dollars_as_dollars(tmp_path):
    """matplotlib reads TeX between two of them, and fails where there is none."""
    names = ["x_$^$", "$\\frac{$"]
    pictures.save(pictures.confusion_matrix(np.eye(2, dtype=int), names), tmp_path / "a.png")
    figure, _ = pictures.reliability(np.array([0, 1]), np.eye(2), names)
    pictures.save(figure, tmp_path / "b.png")
    assert (tmp_path / "a.png").is_file() and (tmp_path / "b.png").is_file()


@pytest.mark.parametrize(
    "value, text",
    [
        (0.744, ".744"),
        (-0.05, "-.050"),
        (10.123, "10.123"),
        (20.5, "20.500"),
        (1.0, "1.000"),
        (0.0, ".000"),
    ],
)
def test_only_a_leading_zero_is_left_out(value, text):
    """10.123 was printed as 1.123."""
    assert without_zero(value) == text
