"""Tables and times as plain text, and text in a notebook."""

import html
from collections.abc import Sequence


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


def duration(seconds: float) -> str:
    """Such as "40 seconds", "3 minutes" or "2.5 hours"."""
    if seconds < 90:
        return f"{whole} seconds" if (whole := max(1, round(seconds))) > 1 else "1 second"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
