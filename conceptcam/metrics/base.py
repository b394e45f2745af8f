"""What torchmetrics classes gather from all batches and ranks: rows, or how many were right; and their plot."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from conceptcam._display.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")  # of Okabe and Ito: distinct to everybody


class PlottedMetric(Metric):
    """Base of metrics that can draw what they computed."""

    plotted: tuple[str, ...] = ()
    """Fields of the result that `plot` draws, of a metric with several."""

    def plot(
        self, val: Any = None, ax: "Axes | None" = None, *, labels: Sequence[str] | None = None
    ) -> "tuple[Figure, Axes]":
        """A figure of the result: bars of each label, or of a single number its course over the values given.

        Args:
            val: What `compute` or `forward` gave, or of a single number several of these, in order; None computes it.
            ax: Where to draw; None makes a figure of its own, of which pyplot does not know.
            labels: Names of the labels; None numbers them.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If there is nothing to draw: several results of many numbers, no label, or other names.
        """
        value = self.compute() if val is None else val
        rows = self._rows(value)
        bars = sum(map(len, rows.values()))
        axes = new_figure("plot", width=7, height=2 + 0.12 * bars).subplots() if ax is None else ax
        if rows:
            _draw_bars(axes, rows, labels)
        else:
            numbers = [float(one) for one in (value if isinstance(value, list | tuple) else [value])]
            axes.plot(range(len(numbers)), numbers, marker="o", color=_COLORS[0])
            axes.set(ylabel=type(self).__name__, xlabel="value")
        return cast("Figure", axes.figure), axes

    def _rows(self, value: Any) -> Mapping[str, Tensor]:
        """Name -> one number per label; empty of single numbers."""
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return {name: getattr(value, name) for name in self.plotted}
        if isinstance(value, Tensor) and value.ndim == 2:
            return {f"{number}": column for number, column in enumerate(value.unbind(1))}
        parts = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(one, int | float) or (isinstance(one, Tensor) and one.numel() == 1) for one in parts):
            raise ValueError(
                f"{type(self).__name__} has many numbers in each result, so several results make no plot; draw one of "
                "them, or `macro_average` of each"
            )
        return {}


def _draw_bars(axes: "Axes", rows: Mapping[str, Tensor], labels: Sequence[str] | None) -> None:
    count = len(next(iter(rows.values())))
    names = [str(number) for number in range(count)] if labels is None else list(labels)
    if not count or len(names) != count:
        raise ValueError(f"there are results of {count} labels and {len(names)} names; a plot needs a name for each")
    width = 0.8 / len(rows)
    for number, (name, values) in enumerate(rows.items()):
        places = [place + number * width for place in range(count)]
        axes.barh(places, values.tolist(), width, color=_COLORS[number % len(_COLORS)], label=name.replace("_", " "))
    axes.set_yticks([place + 0.4 - width / 2 for place in range(count)], names)
    axes.invert_yaxis()
    drawn = torch.cat([values.float().flatten() for values in rows.values()]).nan_to_num(0)
    axes.set_xlim(min(0.0, float(drawn.min())), max(1.0, float(drawn.max())))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


class RowMetric(PlottedMetric):
    """Base of metrics that need all rows at once, such as AUROC.

    Rows are gathered over ranks by concatenation, so ranks may hold different numbers of them (but each
    must have called `update`, if only with an empty batch).
    """

    is_differentiable = False
    full_state_update = False

    rows: list[Tensor] | Tensor
    """A list while it grows; one tensor after a gather."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", [], dist_reduce_fx="cat")

    def keep(self, rows: Tensor) -> None:
        """Remember rows (N, ...), from within `update`; all calls must agree in the other sizes."""
        cast(list[Tensor], self.rows).append(rows)

    def kept(self, *row_shape: int) -> Tensor:
        """All rows (N, ...), in order; `row_shape` is the shape of a row where there are none."""
        if isinstance(self.rows, list) and not self.rows:
            return torch.zeros(0, *row_shape)
        return dim_zero_cat(self.rows)

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = super()._wrap_compute(compute)

        # torchmetrics squeezes every tensor of one element; scores per label stay (1,) for one label.
        @functools.wraps(compute)
        def unsqueezed() -> Any:
            value = wrapped()
            return type(value)(*map(torch.atleast_1d, value)) if isinstance(value, tuple) else value

        return unsqueezed


class FractionMetric(PlottedMetric):
    """Base of metrics that are a fraction: how many were right, of how many, soft cases counted in part."""

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    right: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("right", "total"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def count(self, right: Tensor, weight: Tensor) -> None:
        """Add cases (N,), from within `update`: how far each is right, in [0, 1], and how much it counts."""
        self.right += (right.double() * weight.double()).sum()
        self.total += weight.double().sum()

    def compute(self) -> Tensor:
        """The fraction, a float64 scalar; NaN if there was no case."""
        return self.right / self.total
