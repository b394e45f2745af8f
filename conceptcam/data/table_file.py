"""What stands in a table of labels: its columns as text, from CSV, TSV, Parquet or a pandas DataFrame."""

import csv
import io
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import compress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptcam._checks import brief, did_you_mean, quoted, shorten
from conceptcam.data.faults import Fault, OnFault, refuse_fault

if TYPE_CHECKING:
    import pandas as pd

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
"""Files that are read as tables."""

UNKNOWN_CELLS = ("", "na", "n/a", "nan", "none", "null", "<na>")
"""What a cell holds, in any case, where nobody said."""

_SEPARATORS = (",", ";", "\t", "|")
_WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
_DATE = re.compile(r"\d{4}-\d\d?-\d\d?|\d\d?[./-]\d\d?[./-]\d{2,4}|\d\d?[.-]? ?[A-Za-z]{3,4}|[A-Za-z]{3,4}-\d\d")


class Table:
    """Rows of text cells by column.

    Attributes:
        name: What to call the table in messages.
        columns: For each column its cells, stripped of spaces; empty where nothing is written.
        lines: Where each row stands: its line in the file, or its number in the DataFrame, from 0.
        decimal_comma: Whether a comma in a number separates its fraction, as it may where cells are not
            separated by commas.
        on_fault: Is given a fault for cells and rows that cannot be used, which then count as unknown or are left out.

    Raises:
        ValueError: If there is no row.
    """

    def __init__(
        self,
        name: str,
        columns: Mapping[str, Sequence[str]],
        lines: Sequence[int],
        *,
        decimal_comma: bool = False,
        on_fault: OnFault = refuse_fault,
    ) -> None:
        if not lines:
            raise ValueError(f"{name} has no rows below its header {shorten(map(repr, columns))}")
        self.name, self.columns, self.lines = name, columns, lines
        self.decimal_comma, self.on_fault = decimal_comma, on_fault

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, name: str, what: str = "column") -> Sequence[str]:
        """The cells of a column.

        Raises:
            ValueError: If it is not there, with the columns that are.
        """
        if name not in self.columns:
            near = did_you_mean(name, self.columns)
            raise ValueError(f"{self.name} has no {what} {name!r}{near}; its columns are {quoted(self.columns)}")
        return self.columns[name]

    def find(self, names: Iterable[str]) -> list[str]:
        """The columns that are called one of the names, whatever their case, spaces and underscores, in their order."""
        wanted = set(names)
        return [column for column in self.columns if plain(column) in wanted]

    def select(self, kept: Sequence[bool]) -> "Table":
        """Some of the rows."""
        columns = {name: list(compress(cells, kept)) for name, cells in self.columns.items()}
        return self.derive(columns, list(compress(self.lines, kept)))

    def derive(self, columns: Mapping[str, Sequence[str]], lines: Sequence[int]) -> "Table":
        """Other columns and rows that were made of this table's."""
        return Table(self.name, columns, lines, decimal_comma=self.decimal_comma, on_fault=self.on_fault)

    def where(self, row: int) -> str:
        """Where a row stands, for messages."""
        return f"line {self.lines[row]}"

    def labels(self, name: str) -> list[float]:
        """A column as labels: 0 to 1, -1 for uncertain, NaN where unknown.

        Raises:
            ValueError: Naming the column, the line and what stands there.
        """
        return self._read(name, self.label, "0 to 1, -1 for uncertain, yes, no, true or false")

    def label(self, cell: str) -> float | None:
        """A cell as a label, NaN where unknown; None if it is none."""
        number = _WORDS.get(cell.lower(), self.number(cell))
        return number if number is not None and (number != number or 0 <= number <= 1 or number == -1) else None

    def numbers(self, name: str) -> list[float]:
        """A column as numbers, NaN where nothing is written.

        Raises:
            ValueError: Naming the column, the line and what stands there.
        """
        return self._read(name, self.number, "a number")

    def number(self, cell: str) -> float | None:
        """A cell as a finite number, NaN where unknown; None if it is none."""
        if is_unknown(cell):
            return math.nan
        try:
            number = float(cell.replace(",", ".") if self.decimal_comma else cell)
        except ValueError:
            return None
        return number if math.isfinite(number) else None

    def _read(self, name: str, parse: Callable[[str], float | None], expected: str) -> list[float]:
        cells = self.column(name)
        # A column of labels has few different cells, so each is read once.
        known = {cell: parse(cell) for cell in set(cells)}
        strange = {cell for cell, value in known.items() if value is None}
        if strange:
            row = next(row for row, cell in enumerate(cells) if cell in strange)
            count = sum(cell in strange for cell in cells)
            date = "; it looks like a date, which spreadsheets make of numbers" if _DATE.fullmatch(cells[row]) else ""
            text = (
                f"column {name!r} of {self.name} holds {brief(cells[row])} in {self.where(row)}, one of {count} such "
                f"cells; expected {expected}, or nothing where nobody said{date}"
            )
            self.on_fault(Fault("cell that cannot be read", text))
        values = {cell: math.nan if value is None else value for cell, value in known.items()}
        return [values[cell] for cell in cells]


def is_unknown(cell: str) -> bool:
    """Whether a cell says nothing."""
    return cell.lower() in UNKNOWN_CELLS


def plain(name: str) -> str:
    """A column's name in small letters and digits alone: `Image ID` and `image_id` are the same."""
    return re.sub(r"[\W_]+", "", name).lower()


def is_table(path: str | PathLike[str]) -> bool:
    """Whether a file is read as a table, by its suffix."""
    return Path(path).suffix.lower() in TABLE_SUFFIXES


def read_table(source: "str | PathLike[str] | pd.DataFrame", on_fault: OnFault = refuse_fault) -> Table:
    """The columns of a table.

    CSV may be separated by commas, semicolons, tabs or bars; the header tells which. Text is UTF-8, with or without a
    byte order mark, or UTF-16 with one.

    Args:
        source: A CSV, TSV or Parquet file, or a pandas DataFrame. Parquet needs the extra `table`.
        on_fault: Is given a fault for rows and cells that cannot be used; see `Table`.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If a Parquet file is read without the extra.
        TypeError: If it is none of these.
        ValueError: If a file cannot be read, has no rows, repeats a column, or has rows of several lengths.
    """
    if isinstance(source, str | PathLike):
        path = Path(source)
        return _from_parquet(path, on_fault) if path.suffix.lower() == ".parquet" else _from_text(path, on_fault)
    pandas = sys.modules.get("pandas")  # who holds a DataFrame has imported it
    if pandas is not None and isinstance(source, pandas.DataFrame):
        return _from_frame("the DataFrame", source, on_fault)
    raise TypeError(f"expected a path or a pandas DataFrame as table, got {type(source).__name__}")


def _from_text(path: Path, on_fault: OnFault) -> Table:
    text = _decode(path)
    separator = _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        for row in reader:
            if any(row):  # spreadsheets leave rows of nothing but separators at the end
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as CSV at line {reader.line_num}: {error}") from error
    if not rows:
        raise ValueError(f"{path} is empty")
    header = [name.strip() for name in rows.pop(0)]
    lines.pop(0)
    if rows and len(rows[0]) < len(header) and not any(header[len(rows[0]) :]):
        del header[len(rows[0]) :]  # separators at the end of the header alone, as in a table of NIH
    kept = [len(row) == len(header) for row in rows]
    if not all(kept):
        first = kept.index(False)
        more = f" (and {kept.count(False) - 1} other lines)" if kept.count(False) > 1 else ""
        text = (
            f"line {lines[first]} of {path}{more} has {len(rows[first])} cells, but the header has {len(header)}, "
            f"separated by {separator!r}; put cells that hold the separator in double quotes"
        )
        on_fault(Fault("row of another length", text))
        rows, lines = list(compress(rows, kept)), list(compress(lines, kept))
    cells = [[*map(str.strip, column)] for column in zip(*rows, strict=True)] or [[] for _ in header]
    return Table(path.name, _named(path.name, header, cells), lines, decimal_comma=separator != ",", on_fault=on_fault)


def _decode(path: Path) -> str:
    content = path.read_bytes()
    if content.startswith(b"PK") or path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        raise ValueError(f"{path} is a spreadsheet, not a text table; save it as CSV UTF-8")
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise ValueError(f"{path} is not read as a table; expected a file ending in {', '.join(TABLE_SUFFIXES)}")
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path} is not in UTF-8: byte 0x{content[error.start]:02x} in line {line}; save it as CSV UTF-8 (in a "
            "spreadsheet), or convert it with `iconv -f LATIN1 -t UTF-8`"
        ) from error
    if "\0" in text:
        raise ValueError(f"{path} is no text: it holds zero bytes")
    return text


def _separator(text: str) -> str:
    """The separator that the first line has most of, outside quotes; a comma if it has none."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    bare = re.sub(r'"[^"]*"', "", first)
    return max(_SEPARATORS, key=bare.count)


def _named(table: str, header: Sequence[str], cells: Sequence[Sequence[str]]) -> dict[str, Sequence[str]]:
    """Columns by name; those without a name are left out if they are empty."""
    if nameless := [number for number, name in enumerate(header, 1) if not name and any(cells[number - 1])]:
        raise ValueError(f"columns {nameless} of {table} have no name; its header is {quoted(header)}")
    named = [name for name in header if name]
    if repeated := sorted({name for name in named if named.count(name) > 1}):
        raise ValueError(f"{table} has several columns of the name {shorten(map(repr, repeated))}; rename all but one")
    return {name: column for name, column in zip(header, cells, strict=True) if name}


def _from_parquet(path: Path, on_fault: OnFault) -> Table:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        import pandas as pd
        import pyarrow as pa
    except ImportError as error:
        raise ImportError(f"Parquet needs pandas and pyarrow ({error}): pip install 'conceptcam[table]'") from error
    try:
        frame = pd.read_parquet(path, engine="pyarrow")
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error
    return _from_frame(path.name, frame, on_fault)


def _from_frame(name: str, frame: "pd.DataFrame", on_fault: OnFault) -> Table:
    header = [str(column).strip() for column in frame.columns]
    cells = [_texts(frame.iloc[:, number]) for number in range(len(header))]
    return Table(name, _named(name, header, cells), range(len(frame)), on_fault=on_fault)


def _texts(column: "pd.Series[Any]") -> list[str]:
    """Cells as CSV would hold them; a whole number that pandas keeps as a float has no fraction."""
    missing = column.isna().tolist()
    return ["" if lost else _text(value) for value, lost in zip(column.tolist(), missing, strict=True)]


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
