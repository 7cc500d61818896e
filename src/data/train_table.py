"""Train images, their classes and masks by a table, as contests write them.

One row an image, one a lesion, or one for every class of an image; run lengths in a column, or
none; classes in a column, in the ids, or known by which images have run lengths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from src.core.console import InputError, listing, printable, say
from src.core.settings import Competition, Data
from src.data.cells import cells_of, names_of, table_bytes, table_text
from src.data.columns import class_in_name, column_role, find_id, is_runs, spell

EMPTY_RUNS = {"", "-1", "-", "nan", "none"}  # what tables write for a mask without lesion
SEARCHED = 200  # rows in which ids are looked for

Table = dict[str, list[str]]  # column -> its cells


def read_rows(
    file: Path, images: Iterable[str], competition: Competition
) -> tuple[list[tuple[str, str, str]], bool]:
    """((id, class, run lengths or '') of each row; whether there are run lengths at all).

    images: ids of those on disk. Of an image's rows, as many as there are classes perhaps, those
    without run lengths say nothing: one of them stands for all where no other has any. Raises
    InputError for a table that is damaged or lacks a column.
    """
    cfg, table = competition.data, _read(file)
    columns = _columns(file, table, images, cfg)
    cells = {kind: table[name] for kind, name in columns.items()}
    parts = [find_id(text, images) for text in cells.get("id", [])]
    by_shape = {} if "label" in columns else _classes_in_ids(parts, cfg)
    _check_columns(file, table, columns, bool(by_shape), cfg)
    ids = [part[1] if part else text for part, text in zip(parts, cells["id"])]
    runs = [_plain_runs(text, competition) for text in cells.get("rle", [""] * len(ids))]
    if "label" in columns:
        labels = cells["label"]
    elif by_shape:
        labels = [by_shape.get((p[0], p[2]), "") if p else "" for p in parts]
    else:
        lesion = next(c for c in cfg.classes if c != cfg.empty_class)
        labels = [lesion if r else cfg.empty_class for r in runs]
    rows = list(zip(ids, labels, runs))
    if "rle" not in columns:
        return rows, False
    times, with_runs = Counter(ids), {id for id, r in zip(ids, runs) if r}
    kept = [row for row in rows if row[2] or times[row[0]] == 1]
    empty = {
        id: (id, cfg.empty_class or label, "")
        for id, label, _ in reversed(rows)
        if times[id] > 1 and id not in with_runs
    }
    return kept + list(empty.values()), True


def empty_token(file: Path, competition: Competition) -> str:
    """What the table most often writes for a mask without lesion."""
    cfg, table = competition.data, _read(file)
    roles = (n for n, cells in table.items() if column_role(n, cells, cfg.classes) == "rle")
    column = cfg.table_columns.get("rle")
    cells = table.get(column if column in table else next(roles, None), [])
    tokens = Counter(text for text in cells if not is_runs(text))
    return tokens.most_common(1)[0][0] if tokens else ""


def _plain_runs(text: str, competition: Competition) -> str:
    """'' for a mask without lesion, however it is written."""
    if not is_runs(text) and (text.lower() in EMPTY_RUNS or text == competition.submission.empty):
        return ""
    return text


def _classes_in_ids(parts: list, cfg: Data) -> dict[tuple[str, str], str]:
    """What stands around an id -> its class, where every image has a row of each; else {}."""
    shapes = Counter((p[0], p[2]) for p in parts if p)
    found = class_in_name(parts, shapes) if len(shapes) > 1 else None
    if found is None:
        return {}
    _, texts = found
    spelled = spell(texts.values(), cfg.classes, cfg.empty_class, whole=True) or {}
    by_text = {text: c for c, text in spelled.items()}
    return {shape: by_text[text] for shape, text in texts.items()} if by_text else {}


def _columns(file: Path, table: Table, images: Iterable[str], cfg: Data) -> dict[str, str]:
    """'id', 'label' and 'rle' -> their columns, as far as there are any: as data.table_columns has
    it, or else by what is in them."""
    columns = {kind: name for kind, name in cfg.table_columns.items() if name in table}
    if "id" not in columns:
        hits = {n: sum(find_id(c, images) is not None for c in table[n][:SEARCHED]) for n in table}
        if any(hits.values()):
            columns["id"] = max(hits, key=hits.get)
    free = [name for name in table if name not in columns.values()]
    for kind, what in (("label", "a class"), ("rle", "run lengths")):
        if kind in columns:
            continue
        alike = [n for n in free if column_role(n, table[n], cfg.classes) == kind]
        if kind == "label":
            exact = [n for n in alike if set(table[n]) - {""} <= set(cfg.classes)]
            alike = exact or alike
        if len(alike) > 1:
            raise InputError(
                f"columns {listing(alike)} all look like {what}",
                file,
                f"Name the right one: data.table_columns: {{{kind}: …}}",
                code="columns_alike",
            )
        if alike:
            columns[kind] = alike[0]
    return columns


def _check_columns(
    file: Path, table: Table, columns: dict[str, str], in_ids: bool, cfg: Data
) -> None:
    """Say what was inferred. Raises InputError where there are no ids or no classes; without
    labels, an image without run lengths is of the empty class, where there are two classes."""
    unlabelled = "rle" in columns and (in_ids or len(cfg.classes) == 2 and cfg.empty_class)
    needed = ["id"] if unlabelled else ["id", "label"]
    if absent := [cfg.table_columns.get(kind, kind) for kind in needed if kind not in columns]:
        what = f"no column {', '.join(absent)}; there are {names_of(table)}"
        raise InputError(what, file, "Name them by data.table_columns", code="no_column")
    inferred = [
        f"{kind} {printable(name)}"
        for kind, name in columns.items()
        if cfg.table_columns.get(kind) != name
    ]
    if inferred:
        say(f"  inferred of {file.name}: {', '.join(inferred)}")
    if "label" not in columns:
        why = "the class is in the id"
        if not in_ids:
            why = f"an image without run lengths is {cfg.empty_class}"
        say(f"  inferred of {file.name}: {why}")


def _read(file: Path) -> Table:
    """The columns of a CSV file; raises InputError where it is not one."""
    try:
        data = table_bytes(file)
    except (OSError, ValueError) as error:
        what = f"not readable as a table: {printable(error, 200)}"
        raise InputError(what, file, code="not_a_table") from None
    cells, *_ = cells_of(table_text(data, file), file)
    names, *rows = cells or [["none"]]
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        todo = "Every column needs a name of its own"
        raise InputError(f"columns twice: {names_of(twice)}", file, todo, code="odd_columns")
    return {name: [row[n].strip() for row in rows] for n, name in enumerate(names)}
