"""explore: every table and picture of the notebook, against numbers counted another way."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
from conftest import box, folder_data, picture, prepared, refused, save
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage

from src.parts import filters
from src.report.facts import light_of
from src.tools import explore

FIGURES = [
    "sizes",
    "area_histogram",
    "places",
    "outlines",
    "light_figure",
    "histograms",
    "equalised",
    "contradictions",
    "drift",
]


@pytest.fixture(scope="module")
def facts(demo_prepared) -> explore.Facts:
    return explore.load(demo_prepared.work, demo_prepared.data)


@pytest.fixture
def twins(tmp_path, make_config) -> explore.Facts:
    """'benign (1)' once more as 'malignant (9)', and 'benign (2)' as 'benign (9)' with its lesion
    elsewhere."""
    data = folder_data(tmp_path / "data")
    for source, copy, mask in (
        ("benign (1)", "malignant (9)", box()),
        ("benign (2)", "benign (9)", box(top=2, left=2, side=10)),
    ):
        label = copy.split()[0]
        shutil.copy(
            data / "train" / "benign" / f"{source}.png", data / "train" / label / f"{copy}.png"
        )
        save(data / "train" / label / f"{copy}_mask.png", mask)
    return explore.load(prepared(data, tmp_path, make_config()).work, data)


def masks(facts) -> dict[str, np.ndarray]:
    """Every train image's mask, from the files themselves."""
    found = {}
    for row in facts.train.itertuples():
        image = facts.paths.data / row.image
        files = sorted(image.parent.glob(f"{image.stem}_mask*.png"))
        found[row.id] = np.any(
            [np.asarray(Image.open(f).convert("RGB")).max(2) > 0 for f in files], axis=0
        )
    return found


@pytest.mark.parametrize("name", FIGURES)
def test_every_picture_can_be_drawn_and_says_what_it_shows(name, facts):
    figure = getattr(explore, name)(facts)
    assert isinstance(figure, Figure)
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=40)
    assert len(np.unique(np.asarray(Image.open(target).convert("L")))) > 20, "an empty picture"
    titled = bool(figure.get_suptitle())
    for axes in figure.axes:
        assert axes.get_title() or axes.get_xlabel() or axes.get_ylabel() or titled


def test_light_is_mean_standard_deviation_and_michelson():
    image = picture(3)
    low, high = float(image.min()), float(image.max())
    assert light_of(np.bincount(image.ravel(), minlength=256)) == pytest.approx(
        (image.mean(), image.std(), (high - low) / (high + low))
    )
    assert light_of(np.bincount([0] * 9, minlength=256)) == (0, 0, 0), "a black image"
    assert light_of(np.bincount([40, 120], minlength=256)) == (80, 40, 0.5)


def test_light_of_a_class_is_the_mean_over_its_images(facts):
    images = [
        np.asarray(Image.open(f).convert("L"), float)
        for f in (facts.paths.data / "train" / "malignant").glob("*).png")
    ]
    said = explore.light(facts).loc["malignant"]
    assert said["images"] == str(len(images))
    assert float(said["brightness"].split(" ± ")[0]) == pytest.approx(
        np.mean([i.mean() for i in images]), rel=6e-3
    )
    assert float(said["RMS contrast"].split(" ± ")[0]) == pytest.approx(
        np.mean([i.std() for i in images]), rel=6e-3
    )
    assert explore.light(facts).loc["test", "images"] == "6"
    assert np.allclose(facts.light[1].sum(1), 1)


def test_classes_and_parts_are_counted_right(facts):
    table, true = explore.classes(facts), masks(facts)
    assert table["images"].to_dict() == {
        c: len(list((facts.paths.data / "train" / c).glob("*).png")))
        for c in ("benign", "malignant", "normal")
    }
    assert table.loc["benign", "share"] == f"{table.loc['benign', 'images'] / 24:.1%}"
    assert (
        table["several mask files"].sum()
        == len(
            {f.name.split("_mask")[0] for f in (facts.paths.data / "train").rglob("*_mask_1.png")}
        )
        > 0
    )
    parts = {i: ndimage.label(m, np.ones((3, 3)))[1] for i, m in true.items()}
    found = explore.parts(facts)
    for column, number in (("no lesion", 0), ("one part", 1), ("two parts", 2)):
        assert found[column].sum() == sum(n == number for n in parts.values()), column
    assert (
        found.loc["normal", "no lesion"] == table.loc["normal", "images"]
        and found.to_numpy().sum() == 24
    )


def test_areas_are_shares_of_the_image_in_per_cent(facts):
    true, label = masks(facts), facts.train.set_index("id")["label"]
    shares = [100 * m.mean() for i, m in true.items() if label[i] == "benign"]
    said = explore.areas(facts)
    assert list(said.index) == ["benign", "malignant"], "normal images have no lesion"
    assert said.loc["benign", ["smallest", "median", "largest"]].tolist() == pytest.approx(
        [min(shares), np.median(shares), max(shares)], abs=6e-3
    )


def test_places_hold_as_much_lesion_as_the_masks_and_its_centres(facts):
    figure = explore.places(facts)
    true, rows = masks(facts), facts.train[facts.train["label"] == "malignant"]
    shown = figure.axes[1].images[0].get_array()
    assert "malignant" in figure.axes[1].get_title() and shown.mean() == pytest.approx(
        np.mean([true[i].mean() for i in rows["id"]]), rel=0.01
    )
    centres = figure.axes[2].collections[1].get_offsets()
    for (x, y), i in zip(centres, rows["id"]):
        row, column = ndimage.center_of_mass(true[i])
        assert (x, y) == pytest.approx(
            ((column + 0.5) / true[i].shape[1], (row + 0.5) / true[i].shape[0]), abs=0.02
        )


def test_outlines_go_from_the_smallest_lesion_to_the_largest(facts):
    titles = [a.get_title() for a in explore.outlines(facts, each=3).axes]
    true = masks(facts)
    by_size = sorted((i for i in true if i.startswith("benign")), key=lambda i: true[i].mean())
    assert (
        titles[0].startswith(by_size[0])
        and titles[2].startswith(by_size[-1])
        and f"{true[by_size[-1]].mean():.1%}" in titles[2]
    )
    assert titles[6].endswith("no lesion")


def test_equalised_shows_the_filters_of_the_configs(facts):
    figure = explore.equalised(facts)
    original, equalised, clahe = (a.images[0].get_array() for a in figure.axes[:3])
    assert (
        (equalised == filters.equalise(np.asarray(original))).all()
        and (clahe == filters.clahe(np.asarray(original))).all()
        and (equalised != original).any()
    )
    drawn = figure.axes[5].patches[0].get_data().values
    assert drawn.tolist() == pytest.approx(
        (100 * np.bincount(clahe.ravel(), minlength=256) / clahe.size).tolist()
    )


def test_contradicting_twins_stand_side_by_side_with_their_labels_and_masks(twins):
    assert explore.duplicates(twins)["count"].to_dict() == {
        "groups of near-duplicates": 2,
        "images in them": 4,
        "largest group": 2,
        "pairs": 2,
        "pairs of different class": 1,
        "pairs of different masks (Dice under 0.5)": 1,
        "test images with a twin in train": 0,
    }
    figure = explore.contradictions(twins)
    shown = [(box.get_suptitle(), *(a.get_title() for a in box.axes)) for box in figure.subfigs]
    assert shown == [
        ("different class", "benign (1)", "malignant (9)"),
        ("different mask", "benign (2)", "benign (9)"),
    ]
    left, right = (a.images[0].get_array() for a in figure.subfigs[1].axes)
    assert (left != right).any(), "the same pixels, other outlines"
    assert "2 of 2 pairs" in figure.get_suptitle()


def test_without_contradictions_near_duplicates_are_shown_and_said_to_agree(facts):
    assert (
        "none contradicts" in explore.contradictions(facts, most=2).get_suptitle()
        and facts.report["contradicting_labels"] == []
    )


def test_drift_compares_train_with_test(facts):
    legends = [text.get_text() for text in explore.drift(facts).axes[0].get_legend().get_texts()]
    assert legends == [
        f"{part}, median {facts.index.loc[facts.index['set'] == part, 'width'].median():.0f}"
        for part in ("train", "test")
    ]


def test_only_so_many_images_are_read(demo_prepared):
    few = explore.load(demo_prepared.work, demo_prepared.data, most=10)
    assert len(few.light[0]) == 10 and set(few.light[0]["set"]) == {"train", "test"}


def test_what_is_not_there_is_said_in_a_sentence(tmp_path, demo_prepared, make_config):
    with refused("no_index"):
        explore.load(tmp_path, demo_prepared.data)
    with refused("images_gone", "Name the folder"):
        explore.light(explore.load(demo_prepared.work, tmp_path))
    data = folder_data(tmp_path / "data", per_class=2)
    for label in ("benign", "malignant"):
        shutil.rmtree(data / "train" / label)
    nothing = explore.load(prepared(data, tmp_path, make_config()).work, data)
    assert explore.classes(nothing)["images"].tolist() == [0, 0, 2]
    with refused("nothing_to_show", "lesion"):
        explore.areas(nothing)
    with refused("nothing_to_show", "duplicates"):
        explore.contradictions(nothing)


def test_results_are_those_of_the_report_and_nothing_before(tmp_path):
    assert explore.results(tmp_path, "configs/small.yaml") == []
    folder = tmp_path / "artifacts" / "predictions" / "small"
    way = {
        "score": 0.5,
        "metrics": {"dice": 0.25, "hd95": 3.0},
        "intervals": {"score": [0.4, 0.6], "dice": [0.2, 0.3]},
        "decision": {},
    }
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(
        json.dumps({"untuned": way, "tuned": way, "nested": way | {"score": 0.125}})
    )
    Image.fromarray(picture(1)).save(folder / "typical.png")
    table, image = explore.results(tmp_path, "configs/small.yaml")
    assert (
        table.loc["score", "nested"].startswith("0.1250")
        and table.loc["dice", "tuned"] == "0.2500  (0.200 – 0.300)"
        and "hd95" not in table.index
    )
    assert image.data == (folder / "typical.png").read_bytes()
