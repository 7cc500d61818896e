"""The other way in which train images come with their classes and masks: a table, as contests write them.

One row an image, one a lesion, or one for every class of an image; run lengths in a column, or none; classes in a column, in the ids, or told by which
images have run lengths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from src.core.console import InputError, listing, printable, say, short
from src.core.settings import Competition, Data
from src.data.cells import cells_of, names_of, table_bytes, table_text
from src.data.columns import class_in_name, find_id, is_runs, role, spell

EMPTY_RUNS = {"", "-1", "-", "nan", "none"}  # what tables write for a mask without lesion


def read_rows(
    file: Path, images: Iterable[str], competition: Competition
) -> tuple[list[tuple[str, str, str]], bool]:
    """(id, class, run lengths or '') of each row, and whether there are run lengths at all; images: ids of those on disk. Of an image's rows, as many as
    there are classes perhaps, those without run lengths say nothing: one of them stands for all where no other has any. Raises InputError for a table
    that is damaged or lacks a column."""
    rows, names = _read(file)
    columns, cfg = _columns(file, rows, names, images, competition), competition.data
    has_runs = "rle" in columns
    texts = [row[columns["id"]].strip() for row in rows]
    parts = [find_id(t, images) for t in texts]
    ids = [p[1] if p else t for p, t in zip(parts, texts)]
    runs = [row[columns["rle"]].strip() if has_runs else "" for row in rows]
    runs = [
        ""
        if not is_runs(r) and (r.lower() in EMPTY_RUNS or r == competition.submission.empty)
        else r
        for r in runs
    ]
    if "label" in columns:
        labels = [row[columns["label"]].strip() for row in rows]
    elif keys := _classes_in_ids(parts, cfg):
        labels = [keys.get((p[0], p[2]), "") if p else "" for p in parts]
    else:
        labels = [next(c for c in cfg.classes if (c == cfg.empty_class) != bool(r)) for r in runs]
    found = list(zip(ids, labels, runs))
    if not has_runs:
        return found, False
    having, single = {i for i, _, r in found if r}, {i for i, n in Counter(ids).items() if n == 1}
    empty = {
        i: (i, cfg.empty_class or label, "")
        for i, label, r in reversed(found)
        if i not in having | single and not r
    }
    return [(i, label, r) for i, label, r in found if r or i in single] + list(empty.values()), True


def empty_token(file: Path, competition: Competition) -> str:
    """What the table most often writes for a mask without lesion."""
    rows, names = _read(file)
    column = competition.data.table_columns.get("rle")
    column = (
        column
        if column in names
        else next(
            (
                n
                for n in names
                if role(n, [row[n].strip() for row in rows], competition.data.classes) == "rle"
            ),
            None,
        )
    )
    tokens = Counter(text for row in rows if column and not is_runs(text := row[column].strip()))
    return tokens.most_common(1)[0][0] if tokens else ""


def _classes_in_ids(parts: list, cfg: Data) -> dict[tuple[str, str], str]:
    """What stands around an id -> its class, where every image has a row of each: x.jpg_1, x.jpg_2, …"""
    shapes = Counter((p[0], p[2]) for p in parts if p)
    made = class_in_name(parts, shapes) if len(shapes) > 1 else None
    spelled = (
        spell(set(made[1].values()), cfg.classes, cfg.empty_class, whole=True) if made else None
    )
    back = {text: c for c, text in (spelled or {}).items()}
    return {shape: back[text] for shape, text in made[1].items()} if made and spelled else {}


def _columns(
    file: Path,
    rows: list[dict[str, str]],
    names: list[str],
    images: Iterable[str],
    competition: Competition,
) -> dict[str, str]:
    """id, label and rle -> their columns: as data.table_columns has it, or else by what is in them. Without labels, an image without a mask is of the empty
    class, where there are two classes."""
    cfg = competition.data
    columns = {what: name for what, name in cfg.table_columns.items() if name in names}
    if "id" not in columns:
        hits = {
            n: sum(find_id(row[n].strip(), images) is not None for row in rows[:200]) for n in names
        }
        columns |= {"id": max(hits, key=hits.get)} if max(hits.values(), default=0) else {}
    cells = {n: [row[n].strip() for row in rows] for n in names if n not in columns.values()}
    for kind in ("label", "rle"):
        alike = [n for n, its in cells.items() if role(n, its, cfg.classes) == kind]
        alike = (
            [n for n in alike if set(cells[n]) - {""} <= set(cfg.classes)] or alike
            if kind == "label"
            else alike
        )
        if kind not in columns and len(alike) > 1:
            raise InputError(
                f"columns {listing(alike)} all look like "
                f"{'a class' if kind == 'label' else 'run lengths'}",
                short(file),
                f"Name the right one: data.table_columns: {{{kind}: …}}",
                code="columns_alike",
            )
        if kind not in columns and alike:
            columns[kind] = alike[0]
    in_ids = "id" in columns and _classes_in_ids(
        [find_id(row[columns["id"]].strip(), images) for row in rows], cfg
    )
    unlabelled = "rle" in columns and (in_ids or len(cfg.classes) == 2 and cfg.empty_class)
    if absent := [
        cfg.table_columns.get(c, c)
        for c in ("id", "label")
        if c not in columns and not (c == "label" and unlabelled)
    ]:
        what = f"no column {', '.join(absent)}; there are {names_of(names)}"
        raise InputError(what, short(file), "Name them by data.table_columns", code="no_column")
    if guessed := {
        what: name for what, name in columns.items() if cfg.table_columns.get(what) != name
    }:
        say(
            f"  inferred of {file.name}: "
            + ", ".join(f"{what} {printable(name)}" for what, name in guessed.items())
        )
    if "label" not in columns:
        say(
            f"  inferred of {file.name}: "
            + (
                "the class is in the id"
                if in_ids
                else f"an image without run lengths is {cfg.empty_class}"
            )
        )
    return columns


def _read(file: Path) -> tuple[list[dict[str, str]], list[str]]:
    """(rows, column names) of a CSV file, all as text; raises InputError where it is none."""
    try:
        data = table_bytes(file)
    except (OSError, ValueError) as error:
        what = f"not readable as a table: {printable(error, 200)}"
        raise InputError(what, short(file), code="not_a_table") from None
    cells, *_ = cells_of(table_text(data, file), file)
    names, *rows = cells or [["none"]]
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        todo = "Every column needs a name of its own"
        raise InputError(f"columns twice: {names_of(twice)}", short(file), todo, code="odd_columns")
    return [dict(zip(names, row)) for row in rows], names
