"""Figures of matplotlib, if it is installed, that show themselves in a notebook."""

import functools
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
