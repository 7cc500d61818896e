"""The report of evaluate in one file: text, tables and pictures embedded, readable on a phone, in light and dark, without any script."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #66707a; --line: #dfe3e7; --back: #fff; --strong: #eef4f8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa4ad; --line: #343b42; --back: #16191d; --strong: #1f2a33 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 62rem; padding: 1.2rem 1rem 4rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back) }
h1 { font-size: 1.5rem; margin: 0 0 .2rem } h2 { font-size: 1.1rem; margin: 2.2rem 0 .4rem } p { margin: .3rem 0 .8rem; max-width: 46rem }
.soft { color: var(--soft); font-size: .9rem } .big { font-size: 2.6rem; line-height: 1.2; font-weight: 600; margin: .8rem 0 0 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .8rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; vertical-align: baseline }
th { font-weight: 500; color: var(--soft) } th:first-child, td:first-child { text-align: left; padding-left: .4rem }
tr.strong td { background: var(--strong); font-weight: 600 }
td small { display: block; font-weight: 400; color: var(--soft) }
.pair { display: flex; flex-wrap: wrap; gap: 1rem }
.pair img { flex: 1 1 20rem; min-width: 0; max-width: min(100%, 30rem); height: auto; background: #fff; border-radius: 6px }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: .9rem }
img { max-width: 100% } figure { margin: 0 } figure img { width: 100%; height: auto; border-radius: 4px; display: block }
figcaption { font-size: .78rem; line-height: 1.35; margin-top: .25rem; overflow-wrap: anywhere }
@media (max-width: 34rem) { table { font-size: .8rem } th, td { padding-right: .5rem } .grid { grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)) } }
"""


SHOWN = ["score", "dice", "iou", "accuracy", "macro_f1", "auc"]  # by fold, and on the console
LECTURE = {  # the lecture's numbers: what they are called on the page, and the metric that answers the same question
    "lecture_iou": ("IoU of pixels", "iou"),
    "lecture_f1": ("F1 of pixels", "dice"),
    "lecture_dice": ("Dice of pixels", "dice"),
    "lecture_precision": ("precision of pixels", "precision"),
    "lecture_recall": ("recall of pixels", "recall"),
    "lecture_accuracy": ("accuracy of labels", "accuracy"),
    "lecture_macro_f1": ("macro F1 of labels", "macro_f1"),
}


def report(
    about: dict,
    results: dict,
    drawn: dict[str, Path],
    error: float | None,
    typical: list[tuple[bytes, str]],
    worst: list[tuple[bytes, str]],
) -> str:
    """about and results: as in metrics.json. drawn: pictures of the classes by their names. typical, worst: PNGs with captions. The nested score comes first."""
    nested, weights = (
        results["nested"],
        " + ".join(f"{w:g} · {n}" for n, w in about["score"].items()),
    )
    names, (low, high) = (
        ["score", *(n for n in nested["metrics"] if n not in about["in_pixels"])],
        nested["intervals"]["score"],
    )
    one = "fold" if about["left_out"] == "folds" else "part"
    untuned, tuned = (results[way]["decision"] for way in ("untuned", "tuned"))
    decisions = {"untuned": untuned, "tuned, for submit": tuned} | {
        f"without {one} {k}": d for k, d in nested["decisions"].items()
    }
    lesion = {
        n: v for n, v in nested.get("lesion_images", {}).items() if n not in ("precision", "recall")
    }  # those of pixels, where the columns are of labels
    groups = nested["by_class"] | ({"with a lesion": lesion} if lesion else {})
    parts = [
        f"<h1>{escape(about['name'])}</h1>",
        f"<p class=soft>{about['images']} images in {about['groups']} duplicate groups, {len(nested['by_fold'])} validation folds, all at original size</p>",
        f"<p class=big>{nested['score']:.4f}</p>",
        f"<p class=soft>score = {escape(weights)}, cross-validated (leave-one-fold-out); 95 % interval {low:.3f} to {high:.3f}{spread_text(nested)}</p>",
        "<h2>Three ways of deciding</h2>",
        table(
            ["", *results], [(n, *(cell(r, n) for r in results.values())) for n in names], strong=0
        ),
        f"<p class=soft>Nested: each {one}{'' if one == 'fold' else ' of the one validation fold'} answered by the decision that is best on the others. ",
        "Below each value its 95 % bootstrap interval over duplicate groups.</p>",
        *distances(about["in_pixels"], results),
        *beside_the_lecture(about["lecture"], nested["metrics"]),
        "<h2>Decisions</h2>",
        table(["", *untuned], [(name, *map(str, d.values())) for name, d in decisions.items()]),
        "<h2>By class</h2>",
        by_group(
            groups,
            [
                "images",
                "dice",
                "iou",
                "hd95",
                *(["precision", "recall", "f1"] if "confusion" in nested else []),
            ],
        ),
        "<p class=soft>Dice, IoU and hd95 (pixels) of the masks; precision, recall and F1 of the label.</p>"
        if "confusion" in nested
        else "",
        "<h2>By fold</h2>",
        by_group(
            {f"fold {k}": row for k, row in nested["by_fold"].items()}, ["images", *SHOWN, "hd95"]
        ),
    ]
    if drawn:
        parts += [
            "<h2>Classes</h2><div class=pair>",
            *(picture(file, text) for text, file in drawn.items()),
            "</div>",
        ]
        parts += [
            "<p class=soft>First: the cross-validated labels, a row for each true class. Second: of the images that are given a probability, the share that is of the class "
        ]
        parts += [f"(on the grey line: as promised); calibration error {error:.3f}.</p>"]
    for title, shown in (
        (f"{len(typical)} typical images, from bad to good", typical),
        (f"The {len(worst)} worst images", worst),
    ):
        if shown:
            parts += [
                f"<h2>{title}</h2><p class=soft>True outline blue, predicted orange.</p><div class=grid>"
            ]
            parts += [*(captioned(png, caption) for png, caption in shown), "</div>"]
    return page(f"{about['name']}: {nested['score']:.4f}", parts)


def distances(names: list[str], results: dict) -> list[str]:
    """The section on distances between outlines, of the ways of deciding that have them; nothing where masks are absent."""
    ways = {
        way: result for way, result in results.items() if names and names[0] in result["metrics"]
    }
    if not ways:
        return []
    lesion = results["nested"].get("lesion_images", {})
    rows = [
        (
            n,
            *(cell(r, n, 1) for r in reversed(ways.values())),
            *([f"{lesion[n]:.1f}"] if n in lesion else []),
        )
        for n in names
    ]
    return [
        "<h2>Distances between the outlines</h2>",
        table(
            ["pixels", *reversed(ways), *(["nested, with a lesion"] if names[0] in lesion else [])],
            rows,
        ),
        "<p class=soft>In pixels of the original image, 0 is best: the longest, the 95th percentile and the mean of an outline's distances from the other. ",
        "Where both masks are empty 0, where one is empty the image's diagonal.</p>",
    ]


def beside_the_lecture(lecture: dict[str, float], nested: dict[str, float]) -> list[str]:
    """The section that shows the lecture's numbers beside the nested ones, and says why they differ."""
    said = [
        "The same predictions: the lecture averages over batches of eight images in the order of the classes."
    ]
    if "lecture_iou" in lecture:
        said += [
            "The pixels of a batch are pooled, so that a large lesion outweighs small ones; background, nearly always right, is half of every number;"
        ]
        said += [
            "and a pixel is lesion from a probability of 0.62 on, at the network's resolution."
        ]
    if "lecture_accuracy" in lecture:
        said += [
            "A batch holds one class or two, so that a single wrong label can halve its macro F1."
        ]
    return [
        "<h2>As the lecture counts</h2>",
        table(
            ["", "lecture", "nested"],
            [
                (text, f"{lecture[n]:.4f}", f"{nested[m]:.4f}")
                for n, (text, m) in LECTURE.items()
                if n in lecture
            ],
        ),
        f"<p class=soft>{' '.join(said)} Nested: each image by itself, by the decision of its fold, at original size, lesion alone; labels all together.</p>",
    ]


def by_group(rows: dict[str, dict], columns: list[str]) -> str:
    """A table of numbers by class or fold; columns that no row has are left out."""
    there = [c for c in columns if any(c in row for row in rows.values())]

    def text(value: float | int | None) -> str:
        return (
            ""
            if value is None
            else str(value)
            if isinstance(value, int)
            else f"{value:.3f}"
            if value <= 1
            else f"{value:.1f}"
        )

    return table(
        ["", *there], [(name, *(text(row.get(c)) for c in there)) for name, row in rows.items()]
    )


def pick(result: dict, name: str) -> float:
    return result["score"] if name == "score" else result["metrics"][name]


def cell(result: dict, name: str, digits: int = 4) -> str:
    low, high = result["intervals"][name]
    return f"{pick(result, name):.{digits}f}|{low:.{min(digits, 3)}f} – {high:.{min(digits, 3)}f}"


def spread_text(result: dict) -> str:
    scores = [f["score"] for f in result["by_fold"].values()]
    return (
        ""
        if result["spread"] is None
        else f"; folds {min(scores):.3f} to {max(scores):.3f}, standard deviation {result['spread']:.3f}"
    )


def table(head: Iterable[str], rows: Iterable[tuple[str, ...]], strong: int | None = None) -> str:
    """The first column is text, the others numbers; 'value|note' puts a note below a value.

    `strong`: the row to be seen first. All is escaped here.
    """
    body = []
    for i, row in enumerate(rows):
        cells = f"<td>{escape(str(row[0]))}</td>"
        for value, _, note in (str(cell).partition("|") for cell in row[1:]):
            below = f"<small>{escape(note)}</small>" if note else ""
            cells += f"<td>{escape(value)}{below}</td>"
        body.append(f"<tr{' class=strong' if i == strong else ''}>{cells}</tr>")
    return f"<div class=wide><table><thead><tr>{''.join(f'<th>{escape(h)}</th>' for h in head)}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"


def picture(png: bytes | Path, text: str) -> str:
    data = png.read_bytes() if isinstance(png, Path) else png
    return (
        f'<img alt="{escape(text)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
    )


def captioned(png: bytes, caption: str) -> str:
    return f"<figure>{picture(png, caption)}<figcaption>{escape(caption).replace(chr(10), '<br>')}</figcaption></figure>"


def page(title: str, parts: Iterable[str]) -> str:
    return (
        f'<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )
