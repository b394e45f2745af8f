"""What our torchmetrics classes gather from every batch and rank: rows of numbers, or how many were right."""

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class RowMetric(Metric):
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


class FractionMetric(Metric):
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
