"""Whether a probability of .8 means eight in ten, per label and with support, and what makes it so.

Labels count as everywhere in this room: y of a positive and 1 - y of a negative, NaN for unknown. A label without known
rows has no figure, NaN.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from conceptcam._checks import check_choice, check_number
from conceptcam.config import TaskKind
from conceptcam.metrics.base import RowMetric

ScalingMethod = Literal["platt", "temperature"]

_SMALLEST_SLOPE = 1e-3
_LARGEST_LOGIT = 1e4  # stands for infinity, with which nothing can be fitted


class CalibrationScores(NamedTuple):
    """How far probabilities of L labels are from what is true, each of shape (L,), float64 on the CPU."""

    ece: Tensor
    """Expected calibration error in bins of equal width (Guo et al., 2017)."""
    adaptive_ece: Tensor
    """The same in bins that hold equally many rows (Nixon et al., 2019)."""
    brier: Tensor
    """Mean squared distance of the probability from 1 for positives and from 0 for negatives (Brier, 1950)."""
    base_rate_brier: Tensor
    """`brier` of who always says how frequent the label is in these rows: the control."""
    mean_probability: Tensor
    """Mean probability over the known rows; their fraction of positives is what it should be."""
    positives: Tensor
    """Sum of the known labels."""
    negatives: Tensor
    """How many rows lack the label."""


class ReliabilityCurve(NamedTuple):
    """What is true in bins of equal width of the probability, each (L, J); NaN in an empty bin."""

    probability: Tensor
    """Mean probability."""
    fraction: Tensor
    """Fraction of positives."""
    rows: Tensor
    """How many rows there are."""


class Scaling(NamedTuple):
    """What makes logits of L labels probable: a slope and an intercept for each, (L,) float64; NaN where unknown."""

    slope: Tensor
    intercept: Tensor


def calibration_scores(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> CalibrationScores:
    """Calibration of each label on its own.

    With few rows the ECE of a perfect model is not 0, as each bin's fraction varies by chance: about .1 with 140 rows.

    Args:
        probabilities: (N, L) in [0, 1].
        labels: (N, L) in [0, 1]; NaN where unknown.
        bins: How many bins. A row belongs to the bin `floor(p * bins)`; for the adaptive error to the bin that the
            fraction of rows with a lower probability falls in, so that equal ones stay together.

    Raises:
        ValueError: If shapes differ, a number lies outside [0, 1], a probability is NaN, or there are no bins.
    """
    probabilities, labels = _checked(probabilities, labels, bins)
    columns = [_column(p[~y.isnan()], y[~y.isnan()], bins) for p, y in zip(probabilities.T, labels.T, strict=True)]
    if not columns:
        return CalibrationScores(*(torch.zeros(0, dtype=torch.float64),) * len(CalibrationScores._fields))
    return CalibrationScores(*torch.stack(columns).unbind(1))


def reliability_curve(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> ReliabilityCurve:
    """What is true where a model says .1, .2 and so on.

    Args:
        probabilities: As in `calibration_scores`.
        labels: As there.
        bins: J.

    Raises:
        ValueError: As there.
    """
    probabilities, labels = _checked(probabilities, labels, bins)
    sums = []
    for p, y in zip(probabilities.T, labels.T, strict=True):
        known = ~y.isnan()
        sums.append(_bin_sums(p[known], y[known], _equal_width(p[known], bins), bins))
    said, true, rows = torch.stack(sums).unbind(-1) if sums else torch.zeros(3, 0, bins, dtype=torch.float64)
    return ReliabilityCurve(said / rows, true / rows, rows)


def fit_scaling(
    logits: Tensor, labels: Tensor, *, method: ScalingMethod = "platt", kind: TaskKind = "multilabel"
) -> Scaling:
    """Slopes and intercepts that make probabilities come true; fit them on validation data.

    Args:
        logits: (N, L).
        labels: (N, L) in [0, 1]; NaN where unknown. For `"multiclass"` a row with a NaN is unknown as a whole.
        method: `"platt"`: a slope and an intercept for each label by logistic regression, with Platt's targets, which
            keep both finite where a score tells all rows apart (Platt, 1999). `"temperature"`: a slope alone (Guo et
            al., 2017).
        kind: `"multiclass"` has one temperature for all classes, whatever the method.

    Returns:
        NaN for a label whose known rows do not hold both positives and negatives. A slope is at least .001, so that
        the order of rows stays.

    Raises:
        ValueError: If shapes differ, a label is outside [0, 1], or a choice is unknown.
    """
    check_choice("method", method, ScalingMethod)
    check_choice("kind", kind, TaskKind)
    _check_shapes(logits, labels)
    logits, labels = (
        logits.detach().double().cpu().clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT),
        labels.detach().double().cpu(),
    )
    if kind == "multiclass":
        return _fit_classes(logits, labels)
    lines = [_fit_line(z[~y.isnan()], y[~y.isnan()], method) for z, y in zip(logits.T, labels.T, strict=True)]
    slope, intercept = torch.tensor(lines, dtype=torch.float64).reshape(-1, 2).unbind(1)
    return Scaling(slope, intercept)


def prior_correction(pos_weight: Tensor) -> Scaling:
    """The scaling that undoes class weights of training, (L,) of `compute_pos_weight`, exactly: σ(z - log w).

    Weighting positives by w moves the best possible logit up by log w.
    """
    weight = pos_weight.detach().double().cpu()
    return Scaling(torch.ones_like(weight), -weight.log())


def scale_logits(logits: Tensor, scaling: Scaling) -> Tensor:
    """Logits (..., L), scaled, in float64; those of a label whose scaling is NaN stay as they are."""
    slope, intercept = (part.to(logits.device) for part in scaling)
    return logits.double() * slope.nan_to_num(1.0) + intercept.nan_to_num(0.0)


class CalibrationMetrics(RowMetric):
    """`CalibrationScores` over all batches.

    Args:
        bins: As in `calibration_scores`.
    """

    plotted = ("ece", "brier", "base_rate_brier")

    def __init__(self, *, bins: int = 15) -> None:
        super().__init__()
        check_number("`bins`", bins, 1, whole=True)
        self.bins = bins

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add probabilities (N, L) and labels (N, L), NaN where unknown."""
        _check_shapes(probabilities, labels)
        self.keep(torch.stack([probabilities.double(), labels.double()], dim=-1))

    def compute(self) -> CalibrationScores:
        """The scores of each label; of no labels, if there was no batch."""
        return calibration_scores(*self.kept(0, 2).unbind(-1), bins=self.bins)


def _column(p: Tensor, y: Tensor, bins: int) -> Tensor:
    """(7,) the scores of one label, of its known rows."""
    below = torch.searchsorted(p.sort().values, p)  # how many rows have a lower probability
    adaptive = below * bins // max(len(p), 1)
    rate = y.mean()
    brier = (y * (1 - p) ** 2 + (1 - y) * p**2).mean()
    errors = [_calibration_error(p, y, which, bins) for which in (_equal_width(p, bins), adaptive)]
    return torch.stack([*errors, brier, rate * (1 - rate), p.mean(), y.sum(), (1 - y).sum()])


def _equal_width(p: Tensor, bins: int) -> Tensor:
    return (p * bins).long().clamp(max=bins - 1)


def _calibration_error(p: Tensor, y: Tensor, which: Tensor, bins: int) -> Tensor:
    """Mean distance of said and true fraction, rows counted alike; NaN without rows."""
    said, true, _ = _bin_sums(p, y, which, bins).unbind(-1)
    return (said - true).abs().sum() / len(p) if len(p) else p.new_tensor(torch.nan)


def _bin_sums(p: Tensor, y: Tensor, which: Tensor, bins: int) -> Tensor:
    """(J, 3) sums of probability, of labels and of rows of each bin."""
    return p.new_zeros(bins, 3).index_add(0, which, torch.stack([p, y, torch.ones_like(p)], dim=1))


def _fit_line(z: Tensor, y: Tensor, method: ScalingMethod) -> tuple[float, float]:
    """Slope and intercept of one label, of its known rows."""
    positives, negatives = float(y.sum()), float((1 - y).sum())
    if not positives or not negatives:
        return torch.nan, torch.nan
    # Platt's targets: the Bayes estimate of a label that was seen so often, in place of 1 and 0.
    target = y * (positives + 1) / (positives + 2) + (1 - y) / (negatives + 2)
    columns = z[:, None] if method == "temperature" else torch.stack([z, torch.ones_like(z)], dim=1)
    weights = _newton(columns, target)
    slope = float(weights[0])
    if slope >= _SMALLEST_SLOPE:
        return slope, float(weights[1]) if len(weights) > 1 else 0.0
    # The score ranks backwards, or not at all: all that is left is how frequent the label is.
    rest = _newton(torch.ones_like(z)[:, None], target, _SMALLEST_SLOPE * z) if method == "platt" else z.new_zeros(1)
    return _SMALLEST_SLOPE, float(rest[0])


def _newton(columns: Tensor, target: Tensor, offset: Tensor | float = 0.0) -> Tensor:
    """(D,) weights of columns (N, D) of least cross-entropy; a step that makes it worse is halved."""

    def loss(weights: Tensor) -> Tensor:
        logits = columns @ weights + offset
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, target)

    weights = columns.new_zeros(columns.shape[1])
    for _ in range(100):
        p = (columns @ weights + offset).sigmoid()
        gradient = columns.T @ (p - target) / len(target)
        curvature = columns.T @ (columns * (p * (1 - p))[:, None]) / len(target)
        curvature += (
            1e-12 * curvature.diagonal().amax().clamp(min=1e-12) * torch.eye(len(weights), dtype=curvature.dtype)
        )
        step = torch.linalg.solve(curvature, gradient)
        while loss(weights - step) > loss(weights) and step.abs().max() > 1e-12:
            step = step / 2
        weights = weights - step
        if step.abs().max() <= 1e-10 * weights.abs().max().clamp(min=1):
            break
    return weights


def _fit_classes(logits: Tensor, targets: Tensor) -> Scaling:
    """One temperature for all classes: the slope of least cross-entropy, by golden section on its logarithm."""
    known = ~targets.isnan().any(dim=1)
    logits, targets = logits[known], targets[known]
    if not len(logits):
        return Scaling(*torch.full((2, targets.shape[1]), torch.nan, dtype=torch.float64))

    def loss(log_slope: float) -> float:
        return float(-(targets * (logits * 2.0**log_slope).log_softmax(dim=1)).sum(dim=1).mean())

    low, high, ratio = -10.0, 10.0, (5**0.5 - 1) / 2
    for _ in range(60):  # the loss is convex in the slope, so it has one valley
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    slope = torch.full((targets.shape[1],), max(2.0 ** ((low + high) / 2), _SMALLEST_SLOPE), dtype=torch.float64)
    return Scaling(slope, torch.zeros_like(slope))


def _check_shapes(scores: Tensor, labels: Tensor) -> None:
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(f"scores and labels must both be (N, L), got {tuple(scores.shape)} and {tuple(labels.shape)}")


def _checked(probabilities: Tensor, labels: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Both in float64 on the CPU."""
    _check_shapes(probabilities, labels)
    if bins < 1:
        raise ValueError(f"`bins` must be at least 1, got {bins}")
    probabilities, labels = probabilities.detach().double().cpu(), labels.detach().double().cpu()
    if len(strange := probabilities[~((probabilities >= 0) & (probabilities <= 1))]):
        raise ValueError(f"probabilities must lie in [0, 1], got {strange[0]:g}; logits need a sigmoid first")
    if len(strange := labels[(labels < 0) | (labels > 1)]):
        raise ValueError(f"labels must lie in [0, 1], with NaN for unknown; got {strange[0]:g}")
    return probabilities, labels
