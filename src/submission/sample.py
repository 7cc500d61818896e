"""sample_submission.csv as it is: a table, or a zip of one, with PNG masks or without."""

from __future__ import annotations

import io
import lzma
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from src.core.console import InputError, listing, printable
from src.core.disk import must_be_file
from src.core.settings import Competition, Data, Submission
from src.data.cells import BOM, cells_of, names_of, table_bytes, table_text
from src.data.files import MOST_BYTES, check_size

TABLES = (".csv", ".tsv", ".txt")
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    RuntimeError,
    NotImplementedError,
    ValueError,
)


@dataclass
class Sample:
    """The sample's table. `header`: its first line, character for character; `raw`: its cells;
    `cells`: the same without the spaces around them."""

    file: Path
    name: str  # of the table, inside a zip
    header: str
    delimiter: str
    columns: list[str]
    raw: list[list[str]]
    cells: list[list[str]]
    pngs: list[str] = field(default_factory=list)  # other members of the zip
    mask_value: int = 0  # the brightest value of these

    def column(self, name: str) -> list[str]:
        at = self.columns.index(name)
        return [row[at] for row in self.cells]


class SampleError(InputError):
    """The sample is not understood, or a setting does not fit it."""

    def __init__(self, what: str, sample: Sample, todo: str, *, code: str):
        super().__init__(what, sample.file, todo, code=code)


def sample_file(competition: Competition, data: Path) -> Path:
    """The sample submission: the one named, else the only file of the data folder that is called
    something like it."""
    named = data / competition.data.sample_submission
    must_be_file(named, "the sample submission")
    is_default = competition.data.sample_submission == Data().sample_submission
    alike = candidates(data) if is_default and not named.is_file() else []
    return alike[0] if len(alike) == 1 else named


def candidates(data: Path) -> list[Path]:
    """Files that are called something like sample_submission."""
    return [
        file
        for file in (sorted(data.iterdir()) if data.is_dir() else [])
        if "samplesub" in re.sub(r"[^a-z]", "", file.name.lower())
        and file.suffix.lower() in (*TABLES, ".zip")
        and file.is_file()
    ]


def missing_sample_error(competition: Competition, data: Path) -> InputError:
    """The error for a sample that is not there."""
    if alike := candidates(data):
        return InputError(
            f"{len(alike)} files look like the sample submission: "
            f"{listing(file.name for file in alike)}",
            data,
            "Name one with data.sample_submission",
            code="several_samples",
        )
    return _not_there(sample_file(competition, data))


def _not_there(file: Path) -> InputError:
    return InputError(
        "there is no sample submission",
        file,
        "Download it from the contest's page, or name another with data.sample_submission",
        code="no_sample",
    )


def read_sample(file: Path, submission: Submission) -> Sample:
    """Raises InputError for a sample that is missing or damaged, empty, or has rows of different
    lengths."""

    def fails(what: str, code: str, todo: str = "Download it again") -> InputError:
        return InputError(what, file, todo, code=code)

    must_be_file(file, "the sample submission")
    name, pngs, mask_value = file.name, [], 0
    try:
        data = table_bytes(file)
        if file.suffix.lower() == ".zip" or zipfile.is_zipfile(file):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                name, pngs = _members(archive, file)
                data = archive.read(name)
                mask_value = max((_brightest(archive.read(png)) for png in pngs[:20]), default=0)
    except FileNotFoundError:
        raise _not_there(file) from None
    except (OSError, *DAMAGED) as error:
        raise fails(
            f"not readable as a table: {printable(error, 200)}", code="not_a_table"
        ) from None
    delimiter = "\t" if submission.delimiter == "tab" else submission.delimiter
    raw, head, delimiter = cells_of(table_text(data, file), file, delimiter)
    if not raw:
        raise fails("the sample submission is empty", code="empty_table")
    if re.search(r"[\r\n]", head):
        raise fails("the name of a column has a line break in it", code="odd_columns")
    columns, *raw = raw
    columns = [c.strip().strip('"').strip() for c in columns]
    too_few = len(columns) < 2 and not pngs and not submission.masks
    if too_few or len(set(columns)) < len(columns):
        raise fails(
            f"the columns are {names_of(columns)}",
            code="odd_columns",
            todo="Expected one of ids and others of answers, each once",
        )
    if not raw:
        raise fails("the sample submission has no rows", code="empty_table")
    header = ("\ufeff" if data.startswith(BOM) else "") + head
    cells = [[c.strip() for c in row] for row in raw]
    return Sample(file, name, header, delimiter, columns, raw, cells, pngs, mask_value)


def _members(archive: zipfile.ZipFile, file: Path) -> tuple[str, list[str]]:
    """(the table, the PNG files). Raises ValueError for what unpacks to too much."""
    names = [n for n in archive.namelist() if not n.startswith("__MACOSX")]
    tables = [n for n in names if n.lower().endswith(TABLES)]
    pngs = [n for n in names if n.lower().endswith(".png")]
    if len(tables) != 1:
        raise InputError(
            f"{len(tables)} tables in the zip",
            file,
            "Expected one, with a row for each image",
            code="several_samples",
        )
    if any(archive.getinfo(n).file_size > MOST_BYTES for n in (*tables, *pngs[:20])):
        raise ValueError(f"a file in it unpacks to more than {MOST_BYTES:,} bytes")
    return tables[0], pngs


def _brightest(png: bytes) -> int:
    """The highest value of a PNG mask. Raises OSError or ValueError for anything else."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            check_size(*image.size)
            return image.convert("L").getextrema()[1]
    except (SyntaxError, struct.error, zlib.error) as error:
        raise ValueError(f"a damaged PNG: {error}") from None
