"""Whether scores and maps depend on the findings: draw images anew without each of them, and compare."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from conceptcam.data.phantom.dataset import PhantomDataset
from conceptcam.data.phantom.render import Phantom
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.device import eval_mode


class RemovalScores(NamedTuple):
    """What changes when a finding is removed from drawn images.

    Each is (K,) float64 on the CPU, a mean over the images that have the finding; NaN if no image has it.
    """

    drop: Tensor
    """By how much the logit of the concept falls."""
    falls: Tensor
    """Fraction of images in which it falls; 1/2 is chance."""
    largest: Tensor
    """Fraction of images in which no other concept's logit changes more; 1/K is chance."""
    others: Tensor
    """Absolute change of the logits of the other concepts."""
    inside: Tensor
    """Fraction of the absolute change of the concept's map that lies where the finding was."""
    area: Tensor
    """Fraction of the image that the finding covered: what `inside` is by chance."""
    support: Tensor
    """How many images had it."""


@torch.no_grad()
def removal_effects(model: ConceptModel, data: PhantomDataset, *, images: int = 100) -> RemovalScores:
    """Draw phantom images once more without each of their findings, and measure how logits and maps change.

    All other pixels stay as they are, which no deletion in a real image can promise. Hesse et al. (2023) remove parts
    of drawn birds in this way.

    Args:
        model: A model of the phantom's concepts; it is not changed.
        data: The phantom whose first images are drawn.
        images: How many of them at most.

    Raises:
        ValueError: If the model's concepts are not the phantom's.
    """
    if model.config.concepts != data.concepts:
        raise ValueError("removal needs a model of the phantom's concepts, in their order; this one has others")
    phantom, count = Phantom(data.config, data.seed), len(data.concepts)
    sums, support = torch.zeros(count, 6, dtype=torch.float64), torch.zeros(count, dtype=torch.long)
    with eval_mode(model) as where:
        for index in range(data.first, data.first + min(images, len(data))):
            found = torch.as_tensor(phantom.case(index).concepts).nonzero()[:, 0].tolist()
            names = [data.concepts[k] for k in found]
            drawn = [phantom.sample(index, without=without).image for without in ([], *([name] for name in names))]
            pixels = torch.stack([model.preprocess(image) for image in drawn]).to(where)
            output = model.forward_concepts(pixels)
            masks = phantom.masks(index)
            for number, (k, name) in enumerate(zip(found, names, strict=True), start=1):
                change = (output.concept_logits[number] - output.concept_logits[0]).double().cpu()
                moved = (output.concept_maps[number, k] - output.concept_maps[0, k]).abs().double().cpu()
                sums[k] += _removal(change, moved, torch.from_numpy(masks[name]), k)
                support[k] += 1
    return RemovalScores._make((*(sums / support[:, None]).unbind(1), support))


def _removal(change: Tensor, moved: Tensor, mask: Tensor, k: int) -> Tensor:
    """(6,) the fields of `RemovalScores` of one image, from changes of all logits (K,) and of one map (h, w)."""
    others = torch.cat([change[:k], change[k + 1 :]]).abs()
    inside = nn.functional.adaptive_avg_pool2d(mask[None].double(), (moved.shape[0], moved.shape[1]))[0]
    return torch.stack(
        [
            -change[k],
            (change[k] < 0).double(),
            (change[k].abs() >= others.max()).double(),
            others.mean(),
            (moved * inside).sum() / moved.sum().clamp(min=1e-12),
            inside.mean(),
        ]
    )
