"""Mutual information of scores with labels beyond that of the true concepts, over the entropy: CTL and ICL.

The score of a concept can carry information that the concept itself does not have, and a task can use it. Concepts-task
leakage (CTL) is the information of a score about a task, less that of its concept; inter-concept leakage (ICL) that of
the scores of two concepts about each other, less that of the concepts (Parisini et al., 2025). Mutual information of
continuous values is estimated from nearest neighbours (Kraskov et al., 2004; Ross, 2014). Estimates are noisy, and here
at least 0, so compare each with its control: scores exchanged among images with the same label of the concept, which
carry the concept and nothing else.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

NEIGHBOURS = 3
"""Neighbours to look at, of Parisini et al."""

_MOST_VALUES = 10  # a column with no more values than this is discrete


def mutual_information(first: Tensor, second: Tensor, *, neighbours: int = NEIGHBOURS) -> float:
    """Mutual information of two columns, in nats; at least 0.

    A column of at most ten different values is discrete. Between two such columns it is the information of their
    frequencies, otherwise an estimate from distances to nearest neighbours, which may fall below 0 and is then 0. Time
    and memory grow with the square of the rows.

    Args:
        first: (N,) or (N, M), without NaN; M values of a row are compared by the largest difference.
        second: The same.
        neighbours: How many to look at.
    """
    return _information(_variable(first), _variable(second), neighbours)


def entropy(column: Tensor) -> float:
    """Entropy in nats of the frequencies of the values of a column (N,)."""
    counts = column.unique(return_counts=True)[1].double()
    return float(torch.special.entr(counts / counts.sum()).sum())


def concept_task_leakage(scores: Tensor, concepts: Tensor, targets: Tensor) -> Tensor:
    """Information of each concept's score about each task beyond the concept's own, over the entropy of the task.

    Args:
        scores: (N, K), or (N, K, M) if M values of each concept reach the tasks.
        concepts: (N, K) true labels; NaN where unknown, which leaves the row out for that concept.
        targets: (N, T) task labels, likewise.

    Returns:
        (K, T) float64, at least 0; NaN where all known labels of the task are alike. CTL is the mean over concepts.
    """
    columns = [_variable(score) for score in _columns(scores)]
    return torch.tensor(
        [
            [_excess(columns[k], concepts[:, k], None, targets[:, t]) for t in range(targets.shape[1])]
            for k in range(len(columns))
        ],
        dtype=torch.float64,
    ).view(len(columns), targets.shape[1])


def interconcept_leakage(scores: Tensor, concepts: Tensor) -> Tensor:
    """Mutual information of the scores of two concepts, less that of the concepts, over the concepts' entropies.

    The source divides scores by an entropy of scores that grows with the number of images. Here both sides are divided
    by the geometric mean of the true concepts' entropies, so that they have one unit.

    Args:
        scores: As in `concept_task_leakage`.
        concepts: As there.

    Returns:
        (K, K) float64, at least 0, symmetric; NaN on the diagonal and where all known labels of a concept are alike.
        ICL is the mean over pairs.
    """
    columns = [_variable(score) for score in _columns(scores)]
    found = torch.full((len(columns), len(columns)), torch.nan, dtype=torch.float64)
    for i, j in itertools.combinations(range(len(columns)), 2):
        found[i, j] = found[j, i] = _excess(columns[i], concepts[:, i], columns[j], concepts[:, j])
    return found


def exchange_within_labels(scores: Tensor, concepts: Tensor, *, seed: int = 0) -> Tensor:
    """Scores (N, K) or (N, K, M) of each concept exchanged among images with the same label (N, K): a control."""
    random = torch.Generator().manual_seed(seed)
    exchanged = scores.clone()
    for k in range(concepts.shape[1]):
        for label in concepts[:, k].unique():
            rows = (concepts[:, k].isnan() if label.isnan() else concepts[:, k] == label).nonzero()[:, 0]
            exchanged[rows, k] = scores[rows[torch.randperm(len(rows), generator=random)], k]
    return exchanged


class _Variable(NamedTuple):
    """A column, as codes of its values, or as all distances between its rows."""

    codes: Tensor | None
    distance: Tensor | None

    def only(self, rows: Tensor) -> "_Variable":
        if rows.all():
            return self
        return _Variable(
            None if self.codes is None else self.codes[rows],
            None if self.distance is None else self.distance[rows][:, rows],
        )


def _columns(scores: Tensor) -> tuple[Tensor, ...]:
    return scores.detach().double().cpu().unbind(1)


def _variable(column: Tensor) -> _Variable:
    values = column.detach().double().cpu()
    values = values[:, None] if values.ndim == 1 else values
    different, codes = values.unique(dim=0, return_inverse=True)
    if len(different) <= _MOST_VALUES:
        return _Variable(codes, None)
    values = values / values.std(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    return _Variable(None, torch.cdist(values, values, p=torch.inf))


def _excess(score: _Variable, concept: Tensor, other: _Variable | None, other_label: Tensor) -> float:
    """max(0, information of a score and another, less that of their labels), over the entropy; NaN if that is 0."""
    concept, other_label = concept.double().cpu(), other_label.double().cpu()
    known = ~(concept.isnan() | other_label.isnan())
    concept, other_label = concept[known], other_label[known]
    scale = entropy(other_label) if other is None else (entropy(concept) * entropy(other_label)) ** 0.5
    if not scale or not known.any():
        return torch.nan
    truth = _variable(other_label)
    right = _information(_variable(concept), truth, NEIGHBOURS)
    told = _information(score.only(known), truth if other is None else other.only(known), NEIGHBOURS)
    return max(0.0, told - right) / scale


def _information(first: _Variable, second: _Variable, neighbours: int) -> float:
    if first.codes is not None and second.codes is not None:
        return _of_codes(first.codes, second.codes)
    if first.distance is not None and second.distance is not None:
        return _of_distances(first.distance, second.distance, neighbours)
    codes = first.codes if first.codes is not None else second.codes
    distance = first.distance if first.distance is not None else second.distance
    assert codes is not None and distance is not None
    return _of_both(distance, codes, neighbours)


def _of_codes(first: Tensor, second: Tensor) -> float:
    """Information of the frequencies of two discrete columns."""
    if not len(first):
        return 0.0
    wide = int(second.max()) + 1
    both = torch.bincount(first * wide + second, minlength=(int(first.max()) + 1) * wide).double().view(-1, wide)
    both /= both.sum()
    apart = torch.special.entr(both.sum(dim=0)).sum() + torch.special.entr(both.sum(dim=1)).sum()
    return max(0.0, float(apart - torch.special.entr(both).sum()))


def _of_distances(first: Tensor, second: Tensor, neighbours: int) -> float:
    """Information of two continuous columns (Kraskov et al., 2004, their first estimate)."""
    count = len(first)
    near = min(neighbours, count - 1)
    if near < 1:
        return 0.0
    radius = torch.maximum(first, second).kthvalue(near + 1, dim=1, keepdim=True).values  # a row is its own neighbour
    inner = torch.nextafter(radius, torch.zeros_like(radius))
    alike = sum(torch.digamma((one <= inner).sum(dim=1).double()).mean() for one in (first, second))
    return max(0.0, float(_digamma(count) + _digamma(near) - alike))


def _of_both(distance: Tensor, codes: Tensor, neighbours: int) -> float:
    """Information of a continuous and a discrete column (Ross, 2014)."""
    counts = torch.bincount(codes)
    several = counts[codes] > 1  # a value that occurs once has no neighbour
    distance, codes = distance[several][:, several], codes[several]
    if not len(codes):
        return 0.0
    radius, near = torch.zeros(len(codes), 1).double(), torch.zeros(len(codes)).double()
    for value in codes.unique():
        own = (codes == value).nonzero()[:, 0]
        near[own] = min(neighbours, len(own) - 1)
        radius[own] = distance[own][:, own].kthvalue(min(neighbours + 1, len(own)), dim=1, keepdim=True).values
    within = (distance <= torch.nextafter(radius, torch.zeros_like(radius))).sum(dim=1).double()
    own_counts = torch.bincount(codes)[codes].double()
    told = torch.digamma(near).mean() - torch.digamma(own_counts).mean() - torch.digamma(within).mean()
    return max(0.0, float(_digamma(len(codes)) + told))


def _digamma(count: int) -> Tensor:
    return torch.digamma(torch.tensor(float(count), dtype=torch.float64))
