"""What are the best weights of a concept head on features that no longer change?"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conceptcam.data.batch import ConceptBatch
from conceptcam.model.heads import ConceptHead
from conceptcam.model.outputs import ConceptPart


@dataclass(frozen=True, kw_only=True)
class ConceptSolver:
    """Finds the weights of a concept head, and of its pooling, on features that no longer change, from all images.

    Channels are standardized by their mean and standard deviation over all places, so that the penalty treats all of
    them alike, and this is then folded into weights and bias. The loss is convex for no pooling but the mean, so what
    is found is the minimum that is nearest to the head's first weights.

    Attributes:
        l2: Of the squares of weights of standardized channels, summed over channels and averaged over concepts. On a
            hundred images, .01 to .1 measured alike.
        steps: Of L-BFGS, at most. Each one reads all features about once.
    """

    l2: float = 0.03
    steps: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.l2 < math.inf:
            raise ValueError(f"`l2` must be finite and at least 0, got {self.l2}")
        if self.steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {self.steps}")

    def solve(
        self,
        head: ConceptHead,
        pool: nn.Module,
        batches: Callable[[], Iterable[tuple[Tensor, ConceptBatch]]],
        loss: Callable[[ConceptPart, ConceptBatch], Tensor],
    ) -> float:
        """Give a head its weights, in place; returns the mean loss on all images, without the penalty.

        Args:
            head: Its weights are where the search begins.
            pool: Turns concept maps into concept logits; what it learns is found too.
            batches: Gives all images anew each time it is called: features (B, C, h, w) and the batch they are of.
            loss: Of what the head says of a batch, a scalar; averaged over images.

        Raises:
            FloatingPointError: If features or the loss are not finite.
        """
        search = _Search(self.l2, head, pool, batches, loss)
        optimizer = torch.optim.LBFGS(
            search.learned, max_iter=self.steps, history_size=20, line_search_fn="strong_wolfe"
        )

        def closure() -> float:
            optimizer.zero_grad()
            return search.penalty_backward() + sum(search.terms(backward=True))

        with torch.inference_mode(False), torch.enable_grad():
            optimizer.step(closure)
        with torch.no_grad():
            search.write()
            return sum(search.terms(backward=False))


class _Search:
    """Where the search for a head's weights is: in weights of standardized channels, which are folded into the head's.

    Attributes:
        learned: Tensors to be found.
    """

    def __init__(
        self,
        l2: float,
        head: ConceptHead,
        pool: nn.Module,
        batches: Callable[[], Iterable[tuple[Tensor, ConceptBatch]]],
        loss: Callable[[ConceptPart, ConceptBatch], Tensor],
    ) -> None:
        self.l2, self.head, self.pool, self.batches, self.loss = l2, head, pool, batches, loss
        self.mean, self.scale = channel_statistics(features for features, _ in batches())
        if head.score.bias is None:
            self.mean = torch.zeros_like(self.mean)  # there is nothing to fold it into
        self.standard = (head.score.weight.detach()[:, :, 0, 0] * self.scale).requires_grad_()
        self.bias = torch.zeros_like(self.standard[:, 0]).requires_grad_()
        self.learned = [self.standard, *([] if head.score.bias is None else [self.bias]), *pool.parameters()]
        self.images = sum(len(batch.concepts) for _, batch in batches())

    def penalty_backward(self) -> float:
        """The penalty, whose gradient is added up."""
        penalty = self.l2 * self.standard.square().sum() / len(self.standard)
        penalty.backward()
        return penalty.item()

    def terms(self, *, backward: bool) -> Iterator[float]:
        """The part of each batch in the mean loss; with `backward`, gradients are added up."""
        for features, batch in self.batches():
            weight, offset = self.folded()
            maps = F.conv2d(features, weight[:, :, None, None], offset)
            part = ConceptPart(features, maps, self.pool(maps))
            value = self.loss(part, batch) * len(batch.concepts) / self.images
            if not value.isfinite():
                raise FloatingPointError(f"the loss of the concept head to solve for is {value.item()}")
            if backward:
                value.backward()
            yield value.item()

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight (K, C) and bias (K,) of the head, of channels as they are."""
        weight = self.standard / self.scale
        return weight, self.bias - weight @ self.mean

    def write(self) -> None:
        """Give the head what was found."""
        weight, offset = self.folded()
        self.head.score.weight.copy_(weight[:, :, None, None])
        if self.head.score.bias is not None:
            self.head.score.bias.copy_(offset)


def channel_statistics(features: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of each channel over all images and places of features (B, C, h, w).

    A channel that never changes has a deviation of 1e-6 of the largest one, or of 1 if none changes.
    """
    mean, covariance = channel_covariance(features)
    scale = covariance.diagonal().clamp(min=0).sqrt()
    least = scale.max() * 1e-6
    return mean.float(), (scale.clamp(min=least) if least > 0 else torch.ones_like(scale)).float()


def channel_covariance(features: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean (C,) and covariance (C, C) of the channels over all images and places of features (B, C, h, w), float64.

    Raises:
        ValueError: If there are no features.
        FloatingPointError: If they are not finite.
    """
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for part in features:
        places = part.detach().transpose(0, 1).flatten(1).double()  # (C, B h w)
        count += places.shape[1]
        total, products = total + places.sum(dim=1), products + places @ places.T
    if not count:
        raise ValueError("there are no features to learn a head from")
    if not products.isfinite().all():
        raise FloatingPointError("features to learn a head from are not finite")
    mean = total / count
    return mean, products / count - mean[:, None] * mean
