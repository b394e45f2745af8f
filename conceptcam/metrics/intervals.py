"""How far a figure could be from the truth by the luck of its images: bootstrap intervals, by image or by patient.

Images are drawn anew with replacement, as many as there are, and the figure is taken from each draw (Efron, 1979). The
middle 95 % of what comes out would do for the mean of many images. An AUROC near 1 is skewed, and a bootstrap is too
narrow by about the square root of (n - 1) / n, with n the positives if they are few. So the limits are moved by BCa
(Efron, 1987), from how the figure changes as images are left out, and taken further out as Student's distribution is
wider than the normal (Hesterberg, 2015). `benchmarks/intervals.py` counts how often they hold the truth.

Images of one patient are alike, so where patients are known, whole patients are drawn: intervals by image would be too
narrow. With a few tens of images, or of positives, any such interval is rough; a figure that is the same in all draws,
such as an AUROC of exactly 1, has an interval without width.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from conceptcam.metrics.classification import per_label_metrics

_CHUNK = 2**22  # numbers of all draws handled at a time
_PARTS = 200  # parts of the rows that are left out in turn, at most


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


def _left_out_counts(rows: int, *, groups: Sequence[Hashable] | None = None) -> Tensor:
    """As `resample_counts`, of data sets that lack one part of the rows each, which tell BCa how skewed a figure is.

    Args:
        rows: N.
        groups: (N) the patient of each row, all of whose rows are left out together.

    Returns:
        (J, N) float64, 0 or 1; J is the number of rows or patients, or 200 if there are more.
    """
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups or range(rows)))}
    parts = min(len(numbers), _PARTS)
    part = torch.tensor([numbers[group] % parts for group in (groups or range(rows))])
    return (part != torch.arange(parts)[:, None]).double()


def bootstrap_interval(
    figure: Callable[[Tensor], Tensor],
    rows: int,
    *,
    groups: Sequence[Hashable] | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    support: Tensor | float | None = None,
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
        support: How many rows or patients the figure rests on, of the rarer kind, one for all or of the figure's shape;
            None takes all.

    Raises:
        ValueError: As `resample_counts`, or if the level is not between 0 and 1.
    """
    counts = resample_counts(rows, groups=groups, draws=draws, seed=seed)
    lacking = _left_out_counts(rows, groups=groups)
    everything = torch.arange(rows)
    drawn, left_out = (
        torch.stack([figure(everything.repeat_interleave(one.long())) for one in some]) for some in (counts, lacking)
    )
    if support is None:
        support = float(len(set(groups)) if groups is not None else rows)
    return _interval(figure(everything), drawn, left_out, torch.as_tensor(support), level)


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
    values, drawn, left_out = _areas_of_draws(logits, labels, groups, draws, seed)
    if minus is not None:
        other = _areas_of_draws(minus, labels, groups, draws, seed)
        values, drawn, left_out = (ours - theirs for ours, theirs in zip((values, drawn, left_out), other, strict=True))
    support = _rarer_side(labels.detach().double().cpu(), groups)
    in_all = (support * ~values[0].isnan()).sum()
    found = [_interval(values[i], drawn[i], left_out[i], support, level) for i in range(2)]
    found += [
        _interval(values[i].nanmean(), drawn[i].nanmean(dim=-1), left_out[i].nanmean(dim=-1), in_all, level)
        for i in range(2)
    ]
    return LabelIntervals(*found)


def _rarer_side(labels: Tensor, groups: Sequence[Hashable] | None) -> Tensor:
    """(L,) on how many rows, or patients, the rarer side of each label rests; a soft label counts in part on both."""
    sides = torch.stack([labels, 1 - labels]).nan_to_num()
    if groups is not None:
        numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        patient = torch.tensor([numbers[group] for group in groups])[None, :, None].expand_as(sides)
        sides = torch.zeros(2, len(numbers), labels.shape[1]).double().scatter_reduce(1, patient, sides, reduce="amax")
    return sides.sum(dim=1).amin(dim=0)


def _areas_of_draws(
    logits: Tensor, labels: Tensor, groups: Sequence[Hashable] | None, draws: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(2, L) AUROC and average precision, (2, D, L) those of each draw, and (2, J, L) with rows left out."""
    scores = per_label_metrics(logits, labels)  # checks both
    drawn = resample_counts(len(logits), groups=groups, draws=draws, seed=seed)
    counts = torch.cat([drawn, _left_out_counts(len(logits), groups=groups)])
    logits, labels = logits.detach().double().cpu(), labels.detach().double().cpu()
    found = torch.full((2, len(counts), labels.shape[1]), torch.nan, dtype=torch.float64)
    for label in range(labels.shape[1]):
        known = ~labels[:, label].isnan()
        if not known.any():
            continue
        for rows in torch.arange(len(counts)).split(max(1, _CHUNK // max(1, int(known.sum())))):
            areas = _weighted_areas(logits[known, label], labels[known, label], counts[rows][:, known])
            found[0, rows, label], found[1, rows, label] = areas
    return torch.stack([scores.auroc, scores.average_precision]), found[:, :draws], found[:, draws:]


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


def _interval(value: Tensor, drawn: Tensor, left_out: Tensor, support: Tensor, level: float) -> Interval:
    """The interval of a value (...) from those of the draws (D, ...) and with rows left out (J, ...), where defined."""
    if not 0 < level < 1:
        raise ValueError(f"`level` must be between 0 and 1, got {level}")
    value, drawn, missing = value.double(), drawn.double(), value.isnan()
    known = ~drawn.isnan()
    below = ((drawn < value).double() + 0.5 * (drawn == value)).masked_fill(~known, 0).sum(dim=0) / known.sum(dim=0)
    bias = torch.special.ndtri(below.clamp(0.5 / len(drawn), 1 - 0.5 / len(drawn)))
    change = (left_out.double().nanmean(dim=0) - left_out.double()).nan_to_num()
    skew = ((change**3).sum(dim=0) / (6 * (change**2).sum(dim=0) ** 1.5)).nan_to_num()
    out = _student(torch.tensor((1 + level) / 2, dtype=torch.float64), (support.double() - 1).clamp(min=3))
    out = out * (support.double() / (support.double() - 1).clamp(min=1)).sqrt()
    limits = []
    for shift in (bias - out, bias + out):
        at = torch.special.ndtr(bias + shift / (1 - skew * shift).clamp(min=1e-3))
        limits.append(_quantile(drawn, at.nan_to_num(0.5)).masked_fill(missing, torch.nan))
    return Interval(value, *limits)


def _student(probability: Tensor, freedom: Tensor) -> Tensor:
    """Quantiles of Student's distribution within 1 %, from 3 degrees of freedom on (Abramowitz and Stegun, 26.7.5)."""
    z = torch.special.ndtri(probability)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def _quantile(drawn: Tensor, at: Tensor) -> Tensor:
    """(...) the quantiles (...) of what is defined of draws (D, ...), each column its own."""
    ranked = drawn.sort(dim=0).values  # NaN last
    place = at * ((~drawn.isnan()).sum(dim=0) - 1).clamp(min=0)
    low, high = place.floor().long()[None], place.ceil().long()[None]
    return ranked.gather(0, low)[0].lerp(ranked.gather(0, high)[0], place - low[0])
