"""Whether scores of a concept carry more information than the concept: impurity of single scores and of all others.

How well scores predict another concept is measured by naive Bayes: each score falls into one of ten bins, and its
log-likelihood ratio is that of the bin in the other half of the images. The published measures train a small network
instead. Naive Bayes needs no training and follows any curve of a score, but misses interactions between scores.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from conceptcam._checks import check_number
from conceptcam.metrics.base import RowMetric
from conceptcam.metrics.classification import per_label_metrics
from conceptcam.metrics.information import concept_task_leakage, exchange_within_labels, interconcept_leakage

_BINS = 10
_THRESHOLDS = 21  # of correlation, from 0 to 1


class LeakageScores(NamedTuple):
    """How much the scores of K concepts carry beyond the concepts; each (K,), float64, NaN where undefined."""

    ctl: Tensor
    """Information of a score about tasks beyond its concept (`concept_task_leakage`), mean over tasks; 0 is none."""
    ctl_control: Tensor
    """The same of scores exchanged among images that agree on the concept: what noise alone gives."""
    icl: Tensor
    """Information of a score about the scores of other concepts (`interconcept_leakage`), mean over them; 0 is none."""
    icl_control: Tensor
    """The same of exchanged scores."""
    ois: Tensor
    """Oracle impurity: how differently a score and its true concept predict all concepts; 0 is pure."""
    ois_control: Tensor
    """The same of exchanged scores: what noise and inaccurate scores alone give."""
    nis: Tensor
    """Niche impurity: AUROC with which the scores of unrelated concepts predict a concept; .5 is pure."""
    nis_truth: Tensor
    """The same of the true labels of other concepts, which are never completely unrelated."""
    support: Tensor
    """How many images have a known label of the concept."""


def oracle_impurity(scores: Tensor, concepts: Tensor) -> Tensor:
    """Oracle impurity score (OIS; Espinosa Zarlenga et al., AAAI 2023) of each concept.

    For each pair of a score and a concept, the AUROC with which the score predicts the concept is compared with the
    AUROC with which the score's own true concept does. The result is twice the root mean square of the differences for
    each score; the published number is the same over all pairs of a model.

    Args:
        scores: (N, K), or (N, K, M).
        concepts: (N, K) labels in [0, 1]; NaN where unknown.

    Returns:
        (K,) float64 in [0, 1]; 0 is pure. NaN where nothing can be compared.
    """
    found, true = (_auroc(_ratios(one, concepts), concepts) for one in (scores, concepts))
    return 2 * (found - true).square().nanmean(dim=1).sqrt()


def niche_impurity(scores: Tensor, concepts: Tensor) -> Tensor:
    """Niche impurity score (NIS; Espinosa Zarlenga et al., AAAI 2023) of each concept.

    Concepts whose scores correlate with a concept by more than a threshold are its niche. The scores of all others
    should not predict it: their AUROC is averaged over thresholds from 0 to 1. The concept's own score never counts;
    otherwise a rare concept, which correlates little with its own score, would look impure.

    Args:
        scores: (N, K), or (N, K, M).
        concepts: (N, K) labels in [0, 1]; NaN where unknown.

    Returns:
        (K,) float64 in [0, 1]; .5 is pure. NaN where all known labels of the concept are alike.
    """
    ratios = _ratios(scores, concepts)  # (N, K, L)
    count = concepts.shape[1]
    related = _correlation(scores, concepts)
    related = related.masked_fill(torch.eye(count, dtype=torch.bool), torch.inf)
    thresholds = torch.linspace(0, 1, _THRESHOLDS, dtype=torch.float64)
    outside = (related <= thresholds[:, None, None]).double()  # (thresholds, K, L)
    left = torch.einsum("nkl,tkl->ntl", ratios, outside).round(decimals=9)  # equal sums tie, in whatever order
    return torch.trapezoid(_auroc(left, concepts).T, thresholds, dim=1)


def completeness(score: float | Tensor, full: float | Tensor, chance: float | Tensor = 0.5) -> Tensor:
    """How much of what a black box gains over chance is reached through the concepts (Yeh et al., 2020).

    Args:
        score: Of a task from concepts, such as its AUROC.
        full: The same from the features themselves, of a black box.
        chance: What it is by chance: .5 for AUROC.

    Returns:
        1 if nothing is lost, 0 if concepts are no better than chance; above 1 if the black box is worse. NaN where the
        black box is no better than chance.
    """
    score, full, chance = (torch.as_tensor(one, dtype=torch.float64) for one in (score, full, chance))
    return ((score - chance) / (full - chance)).masked_fill(~(full > chance), torch.nan)


class LeakageMetrics(RowMetric):
    """`LeakageScores` over all batches.

    Args:
        num_concepts: K.
        num_tasks: T; may be 0.
        per_concept: M, how many scores each concept has.
        most_rows: Of how many images, evenly spread, information is estimated; time grows with their square.
    """

    def __init__(self, num_concepts: int, num_tasks: int, *, per_concept: int = 1, most_rows: int = 1000) -> None:
        super().__init__()
        check_number("`num_concepts`", num_concepts, 1, whole=True)
        check_number("`num_tasks`", num_tasks, 0, whole=True)
        check_number("`per_concept`", per_concept, 1, whole=True)
        check_number("`most_rows`", most_rows, 1, whole=True)
        self.most_rows = most_rows
        self._sizes = (num_concepts, num_tasks, num_concepts * per_concept)

    def update(self, scores: Tensor, concepts: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            scores: (B, K) as they reach the tasks, or (B, K, M).
            concepts: (B, K) labels; NaN where unknown.
            targets: (B, T) task labels, likewise.

        Raises:
            ValueError: If the shapes do not fit.
        """
        num_concepts, num_tasks, num_scores = self._sizes
        wide = scores.detach().double().flatten(1)
        expected = [(len(wide), size) for size in self._sizes]
        shapes = [tuple(concepts.shape), tuple(targets.shape), tuple(wide.shape)]
        if shapes != expected or scores.ndim not in (2, 3) or scores.shape[1] != num_concepts:
            found = [tuple(one.shape) for one in (scores, concepts, targets)]
            each = num_scores // num_concepts
            raise ValueError(
                f"need scores (B, {num_concepts}, {each}), or (B, {num_concepts}) if each concept has one, labels "
                f"(B, {num_concepts}) and targets (B, {num_tasks}), got {found}"
            )
        self.keep(torch.cat([concepts.double(), targets.double(), wide], dim=1))

    def compute(self) -> LeakageScores:
        """The scores of each concept."""
        rows = _sorted(self.kept(sum(self._sizes)).cpu())
        concepts, targets, flat = rows.split(self._sizes, dim=1)
        scores = flat.unflatten(1, (concepts.shape[1], -1))
        some = [row * len(flat) // min(len(flat), self.most_rows) for row in range(min(len(flat), self.most_rows))]
        few, true = scores[some], concepts[some]
        nothing = exchange_within_labels(few, true)
        return LeakageScores(
            ctl=concept_task_leakage(few, true, targets[some]).nanmean(dim=1),
            ctl_control=concept_task_leakage(nothing, true, targets[some]).nanmean(dim=1),
            icl=interconcept_leakage(few, true).nanmean(dim=1),
            icl_control=interconcept_leakage(nothing, true).nanmean(dim=1),
            ois=oracle_impurity(scores, concepts),
            ois_control=oracle_impurity(exchange_within_labels(scores, concepts), concepts),
            nis=niche_impurity(scores, concepts),
            nis_truth=niche_impurity(concepts, concepts),
            support=(~concepts.isnan()).sum(dim=0),
        )


def _sorted(rows: Tensor) -> Tensor:
    """Rows (N, ...) sorted by their values, so that results do not depend on which process gave which row."""
    place = rows.nan_to_num(nan=-1e300).unique(dim=0, return_inverse=True)[1]
    return rows[place.argsort(stable=True)]


def _halves(count: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[: count // 2].sort().values, order[count // 2 :].sort().values


def _ratios(scores: Tensor, concepts: Tensor) -> Tensor:
    """(N, K, L) log-likelihood ratios of each concept given each score, learned from the other half of the rows."""
    values = scores.detach().double().cpu()
    values = values[..., None] if values.ndim == 2 else values
    labels = concepts.detach().double().cpu()
    ratios = torch.zeros(*values.shape[:2], labels.shape[1], dtype=torch.float64)
    for learn, apply in (_halves(len(values)), _halves(len(values))[::-1]):
        for k in range(values.shape[1]):
            for m in range(values.shape[2]):
                ratios[apply, k] += _ratio(values[:, k, m], labels, learn, apply)
    return ratios


def _ratio(values: Tensor, labels: Tensor, learn: Tensor, apply: Tensor) -> Tensor:
    """(A, L) log-likelihood ratios of rows `apply` of a column (N,), from its bins in rows `learn`; NaN counts 0."""
    known = values[learn][~values[learn].isnan()]
    if not len(known):
        return torch.zeros(len(apply), labels.shape[1], dtype=torch.float64)
    edges = known.quantile(torch.linspace(0, 1, _BINS + 1, dtype=torch.float64)[1:-1]).unique()
    bins = torch.bucketize(values.nan_to_num().contiguous(), edges)  # of values at most an edge, below it
    here = values[learn].isnan().logical_not()
    chosen = torch.nn.functional.one_hot(bins[learn], len(edges) + 1).double() * here[:, None]
    sides = torch.stack([labels[learn], 1 - labels[learn]]).nan_to_num()  # (2, A, L)
    counts = torch.einsum("ab,sal->sbl", chosen, sides) + 1  # one image more in each bin
    logs = (counts / counts.sum(dim=1, keepdim=True)).log()
    return torch.where(values[apply].isnan()[:, None], 0, (logs[0] - logs[1])[bins[apply]])


def _auroc(ratios: Tensor, concepts: Tensor) -> Tensor:
    """(J, L) AUROC of each concept from ratios (N, J, L), mean over both halves."""
    labels = concepts.detach().double().cpu()[:, None].expand(ratios.shape)
    found = [
        per_label_metrics(ratios[rows].flatten(1), labels[rows].flatten(1)).auroc.view(ratios.shape[1:])
        for rows in _halves(len(ratios))
    ]
    return torch.stack(found).nanmean(dim=0)


def _correlation(scores: Tensor, concepts: Tensor) -> Tensor:
    """(K, L) largest correlation, up or down, of a concept's scores with each concept; 0 where it is undefined."""
    values = scores.detach().double().cpu()
    values = values[..., None] if values.ndim == 2 else values
    found = []
    for label in concepts.detach().double().cpu().unbind(1):
        known = ~label.isnan() & ~values.flatten(1).isnan().any(dim=1)
        x, y = values[known] - values[known].mean(dim=0), label[known] - label[known].mean()
        shared = torch.einsum("nkm,n->km", x, y)
        found.append((shared / (x.square().sum(dim=0) * y.square().sum()).sqrt()).abs().nan_to_num().amax(dim=1))
    return torch.stack(found, dim=1)
