"""What are the best weights of a linear head on evidence that no longer changes?"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from conceptcam.data.splits import make_folds

L2_GRID = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Penalties that cross-validation chooses from."""

_FOLDS = 5
_MOST_TO_FOLD = 5000  # samples; with more than this, no penalty of the grid shows and the smallest is taken
_FOLD_STEPS = 50  # of L-BFGS, for each fold and penalty

_DRAWS = 4  # copies of each sample, each without other concepts, that stand for all that dropout could draw
_PROXIMAL = 20  # proximal steps that are given for one of L-BFGS, which knows of curvature


@dataclass(frozen=True, kw_only=True)
class LinearSolver:
    """Minimizes a convex loss over the weights of a linear head, on all samples at once.

    Evidence is standardized by its mean and standard deviation, so that penalties treat all of it alike, and this is
    then folded into weights and bias: the head is exactly linear in raw evidence.

    Attributes:
        l2: Of the squares of standardized weights, summed over evidence and averaged over tasks. None chooses the one
            of `L2_GRID` with the lowest loss in five-fold cross-validation on the samples given; of fewer than ten
            samples, 0.1; of more than 5,000, the smallest.
        l1: Of their absolute values, likewise; above 0, some weights are exactly 0.
        non_negative: Whether no weight is below 0.
        concept_dropout: Probability that all evidence of a concept is replaced by its mean while solving, so that
            the head learns to do without any one.
        steps: How long to look for the minimum at most.
    """

    l2: float | None = 0.03
    l1: float = 0.0
    non_negative: bool = False
    concept_dropout: float = 0.0
    steps: int = 200

    def __post_init__(self) -> None:
        if not (0 <= (self.l2 or 0) < math.inf and 0 <= self.l1 < math.inf):
            raise ValueError(f"`l2` and `l1` must be finite and at least 0, got {self.l2} and {self.l1}")
        if not 0 <= self.concept_dropout < 1:
            raise ValueError(f"`concept_dropout` must be in [0, 1), got {self.concept_dropout}")
        if self.steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {self.steps}")

    def solve(
        self,
        evidence: Tensor,
        targets: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        groups: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The best weights (T, K, M) and bias (T,), of the type of the evidence.

        Args:
            evidence: (N, K, M).
            targets: (N, T), handed to `loss` in double precision. To choose `l2`, rows that are held out are handed to
                it as NaN, which is unknown.
            loss: Of task logits and targets, both (N, T), or (4 N, T) with concept dropout; a scalar, convex.
            groups: (N,) such as the image that each row comes from: to choose `l2`, rows of a group are held out
                together. None holds out single rows.

        Raises:
            ValueError: If there are fewer than two samples.
            FloatingPointError: If evidence or the loss is not finite.
        """
        _check_evidence(evidence)
        l2 = self.l2
        if l2 is None:
            return self.with_best_l2(evidence, targets, loss, groups=groups).solve(evidence, targets, loss)
        raw = evidence.detach().double()
        mean, scale = raw.mean(dim=0), raw.std(dim=0).clamp(min=1e-6)
        standard, targets = self._drop((raw - mean) / scale), targets.detach().double()
        if self.concept_dropout:
            targets = targets.repeat(_DRAWS, 1)
        tasks, plain = targets.shape[1], not (self.l1 or self.non_negative)
        flat, span = _in_span(standard.flatten(1)) if plain else (standard.flatten(1), None)

        def smooth(weight: Tensor, bias: Tensor) -> Tensor:
            value = loss(flat @ weight.T + bias, targets) + l2 * weight.square().sum() / tasks
            if not value.isfinite():
                raise FloatingPointError(f"the loss of the task head to solve for is {value.item()}")
            return value

        start = flat.new_zeros(tasks, flat.shape[1]), flat.new_zeros(tasks)
        find = self._descend if plain else self._descend_edges
        with torch.inference_mode(False), torch.enable_grad():
            found, bias = find(smooth, *start)
        if span is not None:
            found = found @ span
        weight = found.unflatten(1, mean.shape) / scale
        return weight.to(evidence.dtype), (bias - (weight * mean).sum(dim=(-2, -1))).to(evidence.dtype)

    def with_best_l2(
        self,
        evidence: Tensor,
        targets: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        groups: Sequence[int] | None = None,
    ) -> "LinearSolver":
        """This solver with the penalty that cross-validation finds best; arguments are those of `solve`."""
        samples = len(evidence) if groups is None else len(set(groups))
        if not 2 * _FOLDS <= samples <= _MOST_TO_FOLD:
            return dataclasses.replace(self, l2=0.1 if samples < 2 * _FOLDS else min(L2_GRID))
        named = None if groups is None else [f"group {one}" for one in groups]  # an empty name is a group of its own
        fold = make_folds(targets.cpu(), _FOLDS, named).to(targets.device)[:, None]
        losses = dict.fromkeys(L2_GRID, 0.0)
        for l2 in L2_GRID:
            solver = dataclasses.replace(self, l2=l2, steps=min(self.steps, _FOLD_STEPS))
            for held_out in range(_FOLDS):
                weight, bias = solver.solve(evidence, targets.masked_fill(fold == held_out, torch.nan), loss)
                logits = evidence.flatten(1) @ weight.flatten(1).T + bias
                losses[l2] += loss(logits, targets.masked_fill(fold != held_out, torch.nan)).item()
        return dataclasses.replace(self, l2=min(losses, key=losses.__getitem__))

    def _drop(self, standard: Tensor) -> Tensor:
        """Standardized evidence (N, K, M), or copies of it without some concepts."""
        if not self.concept_dropout:
            return standard
        copies = standard.repeat(_DRAWS, 1, 1)
        drawn = torch.rand(*copies.shape[:2], 1, generator=torch.Generator().manual_seed(0))
        return copies * (drawn >= self.concept_dropout).to(copies)

    def _descend(self, smooth: Callable[[Tensor, Tensor], Tensor], *start: Tensor) -> list[Tensor]:
        """L-BFGS, for a loss without edges."""
        found = [one.clone().requires_grad_() for one in start]
        optimizer = torch.optim.LBFGS(
            found, max_iter=self.steps, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )

        def closure() -> float:
            optimizer.zero_grad()
            value = smooth(*found)
            value.backward()
            return value.item()

        optimizer.step(closure)
        return [one.detach() for one in found]

    def _descend_edges(self, smooth: Callable[[Tensor, Tensor], Tensor], *start: Tensor) -> list[Tensor]:
        """Accelerated proximal steps (FISTA, Beck and Teboulle 2009) that restart where they turn against progress."""
        shape, size = start[0].shape, start[0].numel()
        now = torch.cat([one.flatten() for one in start])

        def value_of(point: Tensor) -> Tensor:
            return smooth(point[:size].view(shape), point[size:])

        ahead, momentum, step = now, 1.0, 1.0
        for _ in range(self.steps * _PROXIMAL):
            at = ahead.clone().requires_grad_()
            value = value_of(at)
            (slope,) = torch.autograd.grad(value, at)
            step *= 1.2
            while True:
                new = self._prox(ahead - step * slope, size, step * self.l1 / shape[0])
                way = new - ahead
                with torch.no_grad():
                    bound = value + slope @ way + way @ way / (2 * step)
                    if value_of(new) <= bound + 1e-12 * value.abs():
                        break
                step /= 2
            if way.abs().max() <= 1e-10 * step:
                return [new[:size].view(shape), new[size:]]
            if (ahead - new) @ (new - now) > 0:
                momentum, ahead, now = 1.0, new, new
                continue
            after = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            ahead, now, momentum = new + (momentum - 1) / after * (new - now), new, after
        return [now[:size].view(shape), now[size:]]

    def _prox(self, point: Tensor, size: int, shrink: float) -> Tensor:
        """The first `size` numbers, weights, shrunk towards 0 and, if wanted, not below it; biases as they are."""
        weight = point[:size]
        weight = weight.sign() * (weight.abs() - shrink).clamp(min=0)
        return torch.cat([weight.clamp(min=0) if self.non_negative else weight, point[size:]])


def _check_evidence(evidence: Tensor) -> None:
    """Refuse evidence that no head can be solved from."""
    if len(evidence) < 2:
        raise ValueError(f"a task head is solved from at least two samples, got {len(evidence)}")
    if not evidence.isfinite().all():
        raise FloatingPointError("evidence to solve the task head from is not finite")


def _in_span(flat: Tensor) -> tuple[Tensor, Tensor | None]:
    """Samples (N, F) by their coordinates in what they span, (N, N), and the span (N, F); as they are where N >= F.

    The best weights are a mix of samples. Turned into their span, which leaves squares as they are, there are only as
    many weights to find as samples.
    """
    if flat.shape[1] <= len(flat):
        return flat, None
    span, coordinates = torch.linalg.qr(flat.T)
    return coordinates.T, span.T
