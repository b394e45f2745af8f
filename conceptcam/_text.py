"""Tables as plain text."""

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
