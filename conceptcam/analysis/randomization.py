"""Whether maps show what a model has learned: shuffle its weights, and compare them."""

import copy
import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from conceptcam.data.batch import Batches, as_batch
from conceptcam.metrics.classification import macro_average
from conceptcam.metrics.faithfulness import rank_correlation
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.device import eval_mode


class RandomizationScores(NamedTuple):
    """How similar the maps are to those of the same model with some of its weights shuffled; S steps of shuffling."""

    parts: tuple[str, ...]
    """(S,) the first part that each step shuffled, from the head down; parts shuffled by earlier steps stay so."""
    correlation: Tensor
    """(S, K) mean Spearman correlation of the maps; near 0 if maps depend on learned weights, as they should."""

    @property
    def means(self) -> list[float]:
        """Its mean over concepts, after each step."""
        return [float(macro_average(one)) for one in self.correlation]


@torch.no_grad()
def randomization_check(
    model: ConceptModel, batches: Batches, *, cascade: bool = True, steps: int = 4, seed: int = 0
) -> RandomizationScores:
    """Shuffle weights from the head down, and compare the maps before and after (Adebayo et al., 2018).

    Maps that stay the same do not show what the model has learned. The numbers in each weight tensor are permuted, so
    their distribution stays the same.

    Args:
        model: Any concept model; a copy of it is shuffled.
        batches: Images to compare maps on.
        cascade: Whether to shuffle the backbone too, after the concept head; False shuffles the head alone.
        steps: In how many steps the layers of the backbone are shuffled, the last layers first.
        seed: Of the shuffling.

    Raises:
        ValueError: If there are no batches.
    """
    random = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(model)
    layers = [
        (name or "backbone", part)
        for name, part in other.backbone.named_modules()
        if list(part.parameters(recurse=False))
    ]
    groups: list[list[tuple[str, nn.Module]]] = [[("concept_head", other.concept_head)]]
    if cascade:
        edges = [len(layers) * step // steps for step in range(steps, -1, -1)]
        groups += [layers[low:high] for high, low in itertools.pairwise(edges) if high > low]
    images = [as_batch(given).images for given in batches]
    if not images:
        raise ValueError("there are no batches to compare maps on")
    before = _maps(model, images)
    correlation = []
    for group in groups:
        for _, part in group:
            for weight in part.parameters():
                order = torch.randperm(weight.numel(), generator=random).to(weight.device)
                weight.copy_(weight.flatten()[order].view_as(weight))
        correlation.append(rank_correlation(before, _maps(other, images)).nanmean(dim=0))
    return RandomizationScores(tuple(group[0][0] for group in groups), torch.stack(correlation))


def _maps(model: ConceptModel, images: list[Tensor]) -> Tensor:
    """(N, K, h w) concept maps."""
    with eval_mode(model) as where:
        return torch.cat([model.forward_concepts(one.to(where)).concept_maps.flatten(2).cpu() for one in images])
