"""Bad input on the command line and in configs: one line, what to do, exit code 2, nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, refused

from src.__main__ import main
from src.config import renames
from src.config.load import load
from src.config.overrides import leaves
from src.core.freshness import Job
from src.core.paths import Paths
from src.core.settings import NEVER_STALE, RENAMED, Competition, Experiment

CPU = str(ROOT / "configs" / "cpu.yaml")


def config_with(text: str, tmp_path: Path, name: str = "mine.yaml") -> Path:
    (tmp_path / "competition.yaml").write_text((ROOT / "configs" / "competition.yaml").read_text())
    (tmp_path / name).write_text(text)
    return tmp_path / name


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["--config", CPU, "--set", "train.epohs=3"], "unknown_key", "Did you mean train.epochs?"),
        (["--config", CPU, "--set", "train.epochs=many"], "invalid_value", "train.epochs"),
        (
            ["--config", CPU, "--set", "train.epochs=0"],
            "invalid_value",
            "1, not 0 (--set train.epochs=0)",
        ),
        (["--set", "trian.epochs=3"], "unknown_key", "Did you mean train.epochs?"),
        (["--config", "configs/competition.yaml"], "other_kind_of_config", "competition.yaml"),
        (["status", "--config", CPU, "--data", str(ROOT / "src")], "no_images", "src"),
        (
            ["--config", CPU, "--data", str(ROOT / "src"), "--work", "/proc/nowhere"],
            "not_writable",
            "/proc/nowhere",
        ),
        (["--config", CPU, "--set", "epochs"], "usage", "key=value"),
        (["--config", CPU, "--set", "image_size.x=3"], "unknown_key", "image_size"),
        (["--config", CPU, "--set", "split.folds=1"], "invalid_value", "split.folds"),
        (
            ["--config", CPU, "--set", "data.train=[train/x]"],
            "invalid_value",
            "data.train needs {label} and {id}",
        ),
        (
            ["--config", CPU, "--set", "evaluate.threshold=[0.5,1.5]"],
            "invalid_value",
            "evaluate.threshold",
        ),
        (
            ["--config", CPU, "--set", "train.freeze=decoder"],
            "invalid_value",
            "error: train.freeze: ",
        ),
        (["--config", "configs/cpuu.yaml"], "no_such_config", "Did you mean cpu?"),
        (["--config", CPU, "--data", "/no/such/folder"], "no_such_folder", "/no/such/folder"),
        (["evalute", "--config", CPU], "unknown_stage", "Did you mean evaluate?"),
        (["--colour"], "usage", "--colour"),
        (["--config"], "usage", "--config"),
        (["predict", "--config", CPU, "--fold", "1"], "option_elsewhere", "--fold goes with train"),
        (["demo", "--config", CPU], "option_elsewhere", "--config"),
    ],
)
def test_one_line_and_exit_code_2(words, code, said, capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(words) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and said in err and err.endswith(f" [{code}]\n")
    assert err.count("\n") == 1 and "Traceback" not in err


@pytest.mark.parametrize(
    "text, code, said",
    [
        (
            "image_size: 224\nmodle: {arch: unet}\n",
            "unknown_key",
            ("'modle'", "Did you mean model?"),
        ),
        ("image_size: [1\n", "invalid_yaml", ("line 2",)),
        ("- a\n", "config_unreadable", ()),
        ("split: {folds: 3}\n", "shared_setting", ("'split'",)),
        ("loss: {mask_weight: 1.5}\n", "invalid_value", ("loss.mask_weight",)),
        ("members: []\n", "invalid_value", ("members",)),
        ("image_size: 100\n", "invalid_value", ("multiple of 32",)),
        ("members: [a]\nimage_size: 3\n", "unknown_key", ("image_size",)),
    ],
)
def test_a_bad_config_names_the_key_and_the_file(text, code, said, tmp_path):
    with refused(code, "mine.yaml", *said):
        load(config_with(text, tmp_path))


@pytest.mark.parametrize(
    "key, value, code, said",
    [
        ("model.arch", "unett", "unknown_part", "Did you mean unet?"),
        ("model.encoder", "resnet5", "unknown_part", "Did you mean"),
        ("loss.mask", "{dise: 1}", "unknown_part", "Did you mean dice?"),
        ("loss.label.focl", "1", "unknown_part", "Did you mean focal?"),
        ("loss.mask", "{}", "invalid_value", "loss.mask"),
        ("train.augment", "medum", "unknown_part", "Did you mean medium?"),
        ("predict.tta", "[hflp]", "unknown_part", "Did you mean hflip?"),
        ("score", "{dise: 1}", "unknown_part", "Did you mean dice?"),
    ],
)
def test_an_unknown_part_is_named_before_any_work(key, value, code, said, demo, tmp_path, capfd):
    assert (
        main(
            [
                "--config",
                CPU,
                "--data",
                str(demo),
                "--work",
                str(tmp_path),
                "--set",
                f"{key}={value}",
            ]
        )
        == 2
    )
    out, err = capfd.readouterr()
    assert said in err and f"[{code}]" in err and err.count("\n") == 1
    assert not (tmp_path / "artifacts" / "prepared").exists(), "nothing was begun"


def test_an_absent_member_is_named_before_any_work(demo, tmp_path, capfd):
    file = config_with("members: [cpu, friend]\n", tmp_path, "both.yaml")
    config_with(
        "image_size: 64\nmodel: {encoder: resnet18, encoder_weights: none}\n", tmp_path, "cpu.yaml"
    )
    assert main(["--config", str(file), "--data", str(demo), "--work", str(tmp_path)]) == 2
    err = capfd.readouterr().err
    assert "[no_such_member]" in err and "'friend'" in err


@pytest.mark.parametrize(
    "stage, needs, makes",
    [
        ("split", "the train images", "prepare"),
        ("train", "the train images", "prepare"),
        ("predict", "the train images", "prepare"),
        ("evaluate", "oof.npz", "predict"),
        ("submit", "test.npz", "predict"),
    ],
)
def test_a_stage_names_the_command_that_makes_what_is_missing(
    stage, needs, makes, demo, tmp_path, capfd
):
    assert main([stage, "--config", CPU, "--data", str(demo), "--work", str(tmp_path)]) == 2
    err = capfd.readouterr().err
    assert (
        "[lacks_input]" in err
        and needs in err
        and f"./run.sh {makes}" in err
        and f"--data {demo}" in err
        and err.count("\n") == 1
    )


def test_an_empty_data_folder_names_the_ways_out(tmp_path, capfd):
    (tmp_path / "data").mkdir()
    assert main(["--config", CPU, "--data", str(tmp_path / "data"), "--work", str(tmp_path)]) == 2
    err = capfd.readouterr().err
    assert "./run.sh demo" in err and "--data" in err and "[no_images]" in err


def test_a_name_alone_is_one_of_the_projects_configs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load(Path("cpu")).name == load(Path("cpu.yaml")).name == "cpu"


def test_a_mistyped_weights_folder_is_no_download(tmp_path):
    from src.parts.pretrained import find_weights

    with refused("no_weights", "weigths"):
        find_weights("mobilenet_v2", "imagenet", str(tmp_path / "weigths"))


def test_set_reads_numbers_lists_and_single_entries():
    config = load(
        Path(CPU),
        [
            "train.lr=1e-4",
            "predict.tta=[identity]",
            "loss.mask.focal=2",
            "split.folds=3",
            "model.encoder_lr=1",
        ][:4],
    )
    e = config.experiment
    assert (
        e.train.lr == 1e-4
        and e.predict.tta == ["identity"]
        and e.loss.mask["focal"] == 2
        and "dice" in e.loss.mask
        and config.competition.split.folds == 3
    )


@pytest.fixture
def warned_anew():
    """As in a run of its own: no old name was used before."""
    renames._warn.cache_clear()


OLD_NAMES = [
    ("loss", "balance: 0.2", ("mask_weight", 0.2)),
    ("predict", "views: [vflip]", ("tta", ["vflip"])),
    ("submission", "first: 0", ("first_pixel", 0)),
    ("submission", "several: true", ("row_per_component", True)),
    ("submission", "relative: true", ("relative_starts", True)),
    ("submission", "lesion: 7", ("mask_value", 7)),
    ("submission", "copied: [height]", ("passthrough", ["height"])),
]


@pytest.mark.parametrize("section, written, meant", OLD_NAMES)
@pytest.mark.parametrize("typed", ["yaml", "key", "section"])
def test_a_setting_can_be_given_under_its_old_name(
    section, written, meant, typed, tmp_path, warned_anew, capfd
):
    file, overrides = config_with("image_size: 64\n", tmp_path), []
    key, value = written.split(": ")
    if typed == "yaml":
        into = tmp_path / "competition.yaml" if section == "submission" else file
        into.write_text(f"{section}: {{{written}}}\n")
    else:
        overrides = [f"{section}.{key}={value}" if typed == "key" else f"{section}={{{written}}}"]
    for _ in range(2):
        config = load(file, overrides)
        holder = config.competition if section == "submission" else config.experiment
        assert getattr(getattr(holder, section), meant[0]) == meant[1]
    name = f"{section}.{key}"
    assert capfd.readouterr().err == f"warning: {name} is now called {section}.{meant[0]}\n"


def test_every_old_name_is_held_and_leads_to_a_setting():
    assert [f"{s}.{w.split(':')[0]}" for s, w, _ in OLD_NAMES] == list(RENAMED)
    known = {*leaves(Experiment), *leaves(Competition)}
    assert set(RENAMED.values()) <= known and not RENAMED.keys() & known


@pytest.mark.parametrize("overrides", [[], ["loss.balance=0.1", "loss.mask_weight=0.2"]])
def test_an_old_and_a_new_name_at_once_are_refused(overrides, tmp_path):
    text = "image_size: 64\n" if overrides else "loss: {balance: 0.1, mask_weight: 0.2}\n"
    with refused("renamed_twice", "loss.balance", "Keep loss.mask_weight"):
        load(config_with(text, tmp_path), overrides)


def test_a_new_name_overrides_what_the_file_gives_under_the_old_one(tmp_path, warned_anew):
    file = config_with("loss: {balance: 0.1}\n", tmp_path)
    assert load(file, ["loss.mask_weight=0.3"]).experiment.loss.mask_weight == 0.3
    assert load(file, ["loss.balance=0.4"]).experiment.loss.mask_weight == 0.4
    with refused("invalid_value", "loss.mask_weight", "--set loss.balance=2"):
        load(file, ["loss.balance=2"])


def test_a_study_under_an_old_name_keeps_the_names_of_its_cells(tmp_path, warned_anew, capfd):
    config_with("image_size: 64\n", tmp_path, "small.yaml")
    text = "question: Q\nbase: small\ngrid: {loss.balance: [0.2, 0.4]}\n"
    study = load(config_with(text, tmp_path, "weights.yaml"))
    assert {label: made[0].name for label, made in study.cells.items()} == {
        "small": "small",
        "balance 0.2": "small-weights-balance_0.2",
        "balance 0.4": "small-weights-balance_0.4",
    }
    assert [c.experiment.loss.mask_weight for c in study.members] == [0.7, 0.2, 0.4]
    assert capfd.readouterr().err.count("warning") == 1


def test_what_was_made_under_old_names_is_not_made_again(tmp_path):
    keys = load(Path(CPU)).keys("loss", "predict", "submission")
    old = {new: old for old, new in RENAMED.items()}
    record = {"keys": {old.get(k, k): v for k, v in keys.items()}, "inputs": {}}
    assert record["keys"].keys() >= RENAMED.keys()
    paths = Paths(tmp_path, tmp_path)
    file = paths.record("train", "cpu", 0)
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(record | {"ended": "2026-01-01T00:00:00", "outputs": {}}))

    def job(keys: dict) -> Job:
        return Job("train", "cpu", paths, keys, [], [], fold=0)

    assert job(keys).state().done
    changed = job(keys | {"loss.mask_weight": 0.35}).state()
    assert changed.why == "loss.mask_weight changed from 0.9 to 0.35"


@pytest.mark.parametrize("text, empty", [("-1", "-1"), ('"0"', "0"), ("", ""), ("-", "-")])
def test_set_keeps_text_as_text(text, empty):
    assert load(Path(CPU), [f"submission.empty={text}"]).competition.submission.empty == empty


def test_settings_of_an_ensemble_reach_its_members():
    config = load(ROOT / "configs" / "ensemble.yaml", ["train.epochs=3", "split.folds=2"])
    assert [m.experiment.train.epochs for m in config.members] == [3] * 4 and all(
        m.competition.split.folds == 2 for m in config.members
    )


def test_neutral_settings_exist_and_are_left_out_of_the_record():
    known = leaves(Experiment)
    assert all(k in known for k in NEVER_STALE)
    keys = load(Path(CPU)).keys("model", "train", "predict")
    assert not NEVER_STALE & keys.keys() and "train.lr" in keys


def test_run_sh_works_from_anywhere_and_resolves_the_users_paths(demo, tmp_path):
    """In a path with spaces, through a copy of the script's folder, with the interpreter that runs
    the tests."""
    project = tmp_path / "a project"
    project.mkdir()
    for name in ("src", "configs"):
        os.symlink(ROOT / name, project / name)
    for name in ("run.sh", "requirements.txt"):
        (project / name).write_bytes((ROOT / name).read_bytes())
    os.symlink(demo, tmp_path / "my images")
    env = os.environ | {"PYTHON": sys.executable}
    line = [
        "bash",
        str(project / "run.sh"),
        "status",
        "--config",
        "a project/configs/cpu.yaml",
        "--data",
        "my images",
        "--work",
        "out",
    ]
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    words = "--config 'a project/configs/cpu.yaml' --data 'my images' --work out"
    assert "prepare" in done.stdout and f"next: '{project}/run.sh' {words}" in done.stdout
    missing = subprocess.run(
        ["bash", str(project / "run.sh"), "status"],
        env=env | {"PYTHON": "/no/python"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert missing.returncode == 2 and missing.stderr.endswith(" [no_python]\n")


def test_help_and_status_import_nothing_heavy(demo, tmp_path):
    code = (
        "import sys; from src.__main__ import main; code = main(sys.argv[1:]); "
        "heavy = ('torch', 'timm', 'albumentations', 'pandas', 'sklearn'); "
        "print([m for m in heavy if m in sys.modules], code)"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "status",
            "--config",
            CPU,
            "--data",
            str(demo),
            "--work",
            str(tmp_path),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.rstrip().endswith("[] 0"), done.stdout + done.stderr
