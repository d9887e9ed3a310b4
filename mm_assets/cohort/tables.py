"""Reading of delimited text tables: CSV, tab-separated text, or a zip with one such file."""

import csv
import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Literal

import pandas as pd

from mm_assets.cohort.problems import CohortError, Problem

SHOWN = 10
_TABLES = (".csv", ".tsv", ".txt")
# Beside pandas' own, what TCGA and cBioPortal write for "no value".
_MISSING = ["[Not Available]", "[Not Applicable]", "[Discrepancy]", "[Unknown]", "[Pending]"]
_UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_table(
    path: str | Path,
    *,
    wanted: Callable[[str], bool] | None = None,
    text: Collection[str] = (),
) -> pd.DataFrame:
    """Read a table with a header line.

    Parameters
    ----------
    path
        ``.csv`` (commas) or ``.tsv``/``.txt`` (tabs, no quotes; leading ``#`` lines are skipped),
        or a zip that holds one of these.
    wanted
        Tells from its name whether a column is read. Columns without a name never are.
    text
        Columns kept as text, so that ``007`` stays ``007``.

    Returns
    -------
    DataFrame
        Indexed by the line number in the file. Blank lines are left out.

    Raises
    ------
    CohortError
        When the file is missing, is no such table, or names a wanted column twice.
    """
    path = Path(path)
    if not path.is_file():
        raise _refusal(path, "no such file", "check the path")
    try:
        name, header, comments = _header(path)
        _refuse_long_rows(path, len(header), comments)
        with _opened(path) as (_, handle):
            frame = pd.read_csv(
                handle,
                sep=_separator(name),
                quoting=_quoting(name),
                encoding="utf-8-sig",
                skiprows=comments,
                skip_blank_lines=False,
                index_col=False,
                usecols=_positions(path, header, wanted),
                dtype={column: str for column in header if column.strip() in text},
                na_values=_MISSING,
                low_memory=False,
            )
    except CohortError:
        raise
    except UnicodeDecodeError as error:
        raise _refusal(path, f"is not UTF-8 text ({error})", "save it as UTF-8") from error
    except _UNREADABLE as error:
        raise _refusal(path, f"cannot be read as a table: {error}", "check the file") from error
    frame.columns = frame.columns.str.strip()
    frame.index = pd.RangeIndex(comments + 2, comments + 2 + len(frame), name="line")
    return frame.dropna(how="all")


def table_columns(path: str | Path) -> list[str]:
    """Column names of a table that `read_table` reads.

    Raises
    ------
    CohortError
        When the file is missing or unreadable.
    """
    path = Path(path)
    if not path.is_file():
        raise _refusal(path, "no such file", "check the path")
    try:
        return [column.strip() for column in _header(path)[1] if column.strip()]
    except _UNREADABLE as error:
        raise _refusal(path, f"cannot be read as a table: {error}", "check the file") from error


def non_numeric(column: pd.Series) -> pd.Series:
    """The cells of `column` that hold something, but no number."""
    return column[column.notna() & pd.to_numeric(column, errors="coerce").isna()]


def clean_text(column: pd.Series) -> "pd.Series[str]":
    """Text without surrounding spaces; empty text is missing."""
    stripped = column.astype("str").str.strip()
    return stripped.mask(stripped == "")


def listing(names: Collection[object]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(str(name) for name in list(names)[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _refusal(path: Path, what: str, fix: str) -> CohortError:
    return CohortError([Problem(str(path), what, fix)])


def _separator(name: str) -> str:
    return "\t" if name.endswith((".tsv", ".txt")) else ","


def _quoting(name: str) -> Literal[0, 3]:
    # Tab-separated files of cBioPortal may hold single quotation marks.
    return csv.QUOTE_NONE if _separator(name) == "\t" else csv.QUOTE_MINIMAL


@contextmanager
def _opened(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and bytes of the table, lower-cased and unpacked."""
    if path.suffix.lower() != ".zip":
        with path.open("rb") as handle:
            yield path.name.lower(), handle
        return
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if not _is_junk(name)]
        # PORPOISE's zips hold one CSV that is itself named *.csv.zip: go by suffix only if needed.
        if len(members) > 1:
            members = [name for name in members if name.lower().endswith(_TABLES)]
        if len(members) != 1:
            held = listing(members) or "none"
            raise _refusal(path, f"must hold exactly one table, holds: {held}", "repack it")
        with archive.open(members[0]) as member:
            yield members[0].lower(), member


def _is_junk(member: str) -> bool:
    """Whether a zip's member is a folder or what macOS adds (``__MACOSX/``, ``._name``)."""
    path = PurePosixPath(member)
    return member.endswith("/") or "__MACOSX" in path.parts or path.name.startswith(".")


def _header(path: Path) -> tuple[str, list[str], int]:
    """Name of the table, its column names, and how many comment lines precede them."""
    with _opened(path) as (name, handle):
        lines = io.TextIOWrapper(handle, encoding="utf-8-sig", newline=None)
        for comments, line in enumerate(lines):
            if not line.startswith("#"):
                reader = csv.reader([line], delimiter=_separator(name), quoting=_quoting(name))
                return name, next(reader, []), comments
    raise _refusal(path, "is empty", "it needs a header line and rows")


def _refuse_long_rows(path: Path, width: int, comments: int) -> None:
    """Refuse rows with more cells than there are columns: pandas would cut them off silently."""
    with _opened(path) as (name, handle):
        separator = _separator(name).encode()
        for number, line in enumerate(handle, 1):
            # A quoted cell may hold separators: such rows are left to pandas.
            quoted = separator == b"," and b'"' in line
            cells = line.rstrip(separator + b"\r\n").count(separator) + 1
            if cells > width and number > comments and not quoted:
                what = f"line {number} has {cells} cells, the header {width}"
                raise _refusal(path, what, "quote cells that hold a comma")


def _positions(
    path: Path, header: Sequence[str], wanted: Callable[[str], bool] | None
) -> list[int]:
    """Positions of the columns to read."""
    names = [column.strip() for column in header]
    chosen = [i for i, name in enumerate(names) if name and (wanted is None or wanted(name))]
    repeated = [name for name, n in Counter(names[i] for i in chosen).items() if n > 1]
    if repeated:
        raise _refusal(
            path, f"columns are there more than once: {listing(repeated)}", "keep one of each"
        )
    return chosen
