"""How far a figure could be from the truth by the luck of its images: bootstrap intervals, by image or by patient.

Images are drawn anew with replacement, as many as there are, and the figure is taken from each draw; the middle 95 % of
what comes out is the interval (Efron, 1979; the percentile method). Images of one patient are alike, so where patients
are known, whole patients are drawn: intervals by image would be too narrow. With a few tens of images, or of positives,
any such interval is rough.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from conceptcam.metrics.classification import per_label_metrics

_CHUNK = 2**22  # numbers of all draws handled at a time


class Interval(NamedTuple):
    """A figure and the interval that holds the truth in 95 of 100 data sets, all of the figure's shape."""

    value: Tensor
    low: Tensor
    high: Tensor


class LabelIntervals(NamedTuple):
    """Intervals of L labels, each (L,), and of their macro averages, each a scalar; float64 on the CPU.

    A macro average is over the labels for which it is defined, in a draw over those that are defined there.
    """

    auroc: Interval
    average_precision: Interval
    macro_auroc: Interval
    macro_average_precision: Interval


def resample_counts(rows: int, *, groups: Sequence[Hashable] | None = None, draws: int = 1000, seed: int = 0) -> Tensor:
    """How often each row is in each draw.

    Args:
        rows: N.
        groups: (N) the patient of each row; None draws rows on their own.
        draws: D.
        seed: Two calls with the same seed and rows draw the same, which is what makes differences paired.

    Returns:
        (D, N) float64; a row of it sums to N, or to about N if patients are drawn.

    Raises:
        ValueError: If there are no rows, no draws, or not one group per row.
    """
    if rows < 1 or draws < 1:
        raise ValueError(f"need at least one row and one draw, got {rows} and {draws}")
    if groups is not None and len(groups) != rows:
        raise ValueError(f"need one group per row, got {len(groups)} for {rows} rows")
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups or range(rows)))}
    random = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(numbers), (draws, len(numbers)), generator=random)
    counts = torch.zeros(draws, len(numbers), dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(counts))
    return counts if groups is None else counts[:, torch.tensor([numbers[group] for group in groups])]


def bootstrap_interval(
    figure: Callable[[Tensor], Tensor],
    rows: int,
    *,
    groups: Sequence[Hashable] | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The interval of any figure; for the difference of two models, let the figure be the difference.

    Args:
        figure: Takes the numbers of some rows (R,), repeated as drawn, and gives a value of any shape; NaN where it is
            undefined, which leaves the draw out.
        rows: How many rows there are.
        groups: As in `resample_counts`.
        draws: As there. A thousand leave a limit uncertain by a tenth of the interval's width.
        level: How often the interval is to hold the truth.
        seed: As in `resample_counts`.

    Raises:
        ValueError: As `resample_counts`, or if the level is not between 0 and 1.
    """
    counts = resample_counts(rows, groups=groups, draws=draws, seed=seed)
    everything = torch.arange(rows)
    drawn = torch.stack([figure(everything.repeat_interleave(one.long())) for one in counts])
    return _interval(figure(everything), drawn, level)


def label_intervals(
    logits: Tensor,
    labels: Tensor,
    *,
    minus: Tensor | None = None,
    groups: Sequence[Hashable] | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> LabelIntervals:
    """Intervals of AUROC and average precision of each label, all draws at once.

    Args:
        logits: (N, L), as in `per_label_metrics`.
        labels: (N, L) in [0, 1]; NaN where unknown.
        minus: (N, L) logits of another model of the same images: intervals are then of the difference of both, paired,
            which is narrower than two intervals side by side show.
        groups: As in `resample_counts`.
        draws: As in `bootstrap_interval`.
        level: As there.
        seed: As there.

    Raises:
        ValueError: As `per_label_metrics` and `bootstrap_interval`.
    """
    values, drawn = _areas_of_draws(logits, labels, groups, draws, seed)
    if minus is not None:
        other_values, other_drawn = _areas_of_draws(minus, labels, groups, draws, seed)
        values, drawn = values - other_values, drawn - other_drawn
    figures = [*zip(values, drawn, strict=True), *zip(values.nanmean(dim=-1), drawn.nanmean(dim=-1), strict=True)]
    return LabelIntervals(*(_interval(value, of_draws, level) for value, of_draws in figures))


def _areas_of_draws(
    logits: Tensor, labels: Tensor, groups: Sequence[Hashable] | None, draws: int, seed: int
) -> tuple[Tensor, Tensor]:
    """(2, L) AUROC and average precision, and (2, D, L) those of each draw."""
    scores = per_label_metrics(logits, labels)  # checks both
    counts = resample_counts(len(logits), groups=groups, draws=draws, seed=seed)
    logits, labels = logits.detach().double().cpu(), labels.detach().double().cpu()
    drawn = torch.full((2, draws, labels.shape[1]), torch.nan, dtype=torch.float64)
    for label in range(labels.shape[1]):
        known = ~labels[:, label].isnan()
        for rows in torch.arange(draws).split(max(1, _CHUNK // max(1, int(known.sum())))):
            areas = _weighted_areas(logits[known, label], labels[known, label], counts[rows][:, known])
            drawn[0, rows, label], drawn[1, rows, label] = areas
    return torch.stack([scores.auroc, scores.average_precision]), drawn


def _weighted_areas(logits: Tensor, truth: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """(D,) AUROC and (D,) average precision of rows (n,) that count (D, n) times; NaN where all truths are alike."""
    ranked, order = logits.sort(descending=True)
    truth, counts = truth[order], counts[:, order]
    # Rows that tie are a group, from `start` to before `end`. Only groups with positives add to either figure.
    new = torch.cat([torch.ones(len(ranked[:1]), dtype=torch.bool), ranked[1:] != ranked[:-1]])
    start = new.nonzero()[:, 0]
    end = torch.cat([start[1:], torch.tensor([len(ranked)])])
    some = truth > 0
    before = F.pad(some.cumsum(dim=0), (1, 0))  # how many rows with positives there are above each row
    mixed = before[end] > before[start]
    start, end = start[mixed], end[mixed]
    seen, found = F.pad(counts.cumsum(dim=1), (1, 0)), F.pad((counts[:, some] * truth[some]).cumsum(dim=1), (1, 0))
    seen_before, seen_after = seen[:, start], seen[:, end]
    right_before, right_after = found[:, before[start]], found[:, before[end]]
    here, right, rows = right_after - right_before, found[:, -1], seen[:, -1]
    # Each positive loses to the negatives above it, and half to those that it ties with.
    lost = here * ((seen_before - right_before) + (seen_after - right_after)) / 2
    auroc = 1 - lost.sum(dim=1) / (right * (rows - right))
    average = (here * (right_after / seen_after).nan_to_num()).sum(dim=1) / right
    # As in `per_label_metrics`: where truths do not differ, no order is better than another.
    alike = (right <= 0) | (right >= rows)
    if not ((truth == 0) | (truth == 1)).all():
        drawn = counts > 0
        low = torch.where(drawn, truth, torch.inf).amin(dim=1)
        alike = ~(low < torch.where(drawn, truth, -torch.inf).amax(dim=1))
    return auroc.masked_fill(alike, torch.nan), average.masked_fill(alike, torch.nan)


def _interval(value: Tensor, drawn: Tensor, level: float) -> Interval:
    """The interval of a value (...) from those of the draws (D, ...), of those that are defined."""
    if not 0 < level < 1:
        raise ValueError(f"`level` must be between 0 and 1, got {level}")
    limits = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = drawn.double().nanquantile(limits, dim=0)
    missing = value.isnan()
    return Interval(value.double(), low.masked_fill(missing, torch.nan), high.masked_fill(missing, torch.nan))
