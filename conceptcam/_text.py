"""What people see: tables as plain text, text and figures in a notebook, bars."""

import functools
import html
import importlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def text_table(rows: Sequence[Sequence[str]], *, between: str = "  ", numbers: bool = False) -> list[str]:
    """The lines of a table, each column as wide as its widest cell.

    Args:
        rows: Cells of each row, equally many, the titles first.
        between: What stands between two columns.
        numbers: Whether all columns but the first are aligned to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    formats = [f"{'>' if numbers and column else '<'}{width}" for column, width in enumerate(widths)]
    return [between.join(map(format, row, formats)) for row in rows]


def html_text(text: str) -> str:
    """Text as HTML in which columns stay below each other, and long lines do not wrap."""
    return f'<pre style="font-family: monospace; white-space: pre; overflow-x: auto">{html.escape(text)}</pre>'


def progress_bar(*, shown: bool, **options: Any) -> Any:
    """A bar of tqdm; in a notebook one of its own.

    A bar that is not shown does not import tqdm's part for notebooks, which warns where ipywidgets is missing.
    """
    return importlib.import_module("tqdm.auto" if shown else "tqdm").tqdm(disable=not shown, **options)


def new_figure(what: str, *, width: float, height: float, otherwise: str = "") -> "Figure":
    """An empty figure; as the last line of a notebook's cell, its picture.

    Args:
        what: Name of the function that draws, for the message.
        width: In inches.
        height: In inches.
        otherwise: What works without matplotlib, for the message.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        hint = f"; {otherwise} works without" if otherwise else ""
        raise ImportError(f"`{what}` needs matplotlib: pip install 'conceptcam[viz]'{hint}") from error
    return _shown_in_notebooks(Figure)(figsize=(width, height), layout="constrained")


@functools.cache
def _shown_in_notebooks(kind: "type[Figure]") -> "type[Figure]":
    class NotebookFigure(kind):  # type: ignore[misc, valid-type]
        """A figure that shows itself, without pyplot and its state."""

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png", dpi=100)
            return file.getvalue()

    return NotebookFigure
