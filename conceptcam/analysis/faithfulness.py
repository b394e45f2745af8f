"""Whether a model's maps and scores rest on the findings: cells deleted, findings taken away, weights shuffled."""

import copy
import functools
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from conceptcam._checks import check_choice
from conceptcam.data.batch import Batches, as_batch
from conceptcam.data.phantom.dataset import PhantomDataset
from conceptcam.data.phantom.render import Phantom
from conceptcam.metrics.classification import macro_average
from conceptcam.metrics.faithfulness import (
    FaithfulnessMetrics,
    FaithfulnessScores,
    blurred,
    perturbation_curves,
    rank_correlation,
)
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.device import eval_mode

Fill = Literal["blur", "mean"]


class RemovalScores(NamedTuple):
    """What happens as a finding is taken out of drawn images; (K,) float64 each, NaN for a finding that none has."""

    drop: Tensor
    """By how much the logit of the concept falls, on average."""
    falls: Tensor
    """Share of images in which it falls; 1/2 is chance."""
    largest: Tensor
    """Share of images in which no other concept's logit changes more; 1/K is chance."""
    others: Tensor
    """By how much the logits of other concepts change, up or down, on average."""
    inside: Tensor
    """Share of the change of the concept's map that lies where the finding was."""
    area: Tensor
    """Share of the image in which it was: what `inside` would be by chance."""
    support: Tensor
    """How many images had it."""


class RandomizationScores(NamedTuple):
    """How alike the maps are to those of the same model with some of its weights shuffled."""

    parts: tuple[str, ...]
    """What was shuffled last, from the head down; each step keeps what was shuffled before."""
    correlation: Tensor
    """(S, K) mean rank correlation of the maps; near 0, as it should be, if maps depend on what was learned."""

    @property
    def means(self) -> list[float]:
        """Its mean over concepts, after each step."""
        return [float(macro_average(one)) for one in self.correlation]


def measure_faithfulness(
    model: ConceptModel,
    batches: Batches,
    *,
    fill: Fill = "blur",
    per_concept: int = 20,
    steps: int = 14,
    seed: int = 0,
) -> FaithfulnessScores:
    """Insertion and deletion of each concept's map, where the concept is present, beside a random order.

    The score is the probability of the concept, as the model's own logit has it.

    Args:
        model: Any; it is left as it is.
        batches: As `evaluate` takes.
        fill: What replaces a cell: `"blur"`, the image without detail; `"mean"`, the mean of training images.
        per_concept: How many maps of each concept to look at, the first that come.
        steps: As in `perturbation_curves`.
        seed: Of the random order.

    Raises:
        ValueError: If `fill` is unknown.
    """
    check_choice("fill", fill, Fill)
    metric = FaithfulnessMetrics(len(model.config.concepts))
    seen = torch.zeros(len(model.config.concepts), dtype=torch.long)
    with eval_mode(model) as where, torch.no_grad(), torch.random.fork_rng(devices=[]):
        for given in batches:
            batch = as_batch(given).to(where)
            present = batch.concepts.cpu() > 0.5
            wanted = present & (seen + present.cumsum(dim=0) <= per_concept)
            seen += wanted.sum(dim=0)
            image, concept = wanted.nonzero(as_tuple=True)
            if not len(image):
                continue
            image, concept = image.to(where), concept.to(where)
            maps = model.forward_concepts(batch.images).concept_maps[image, concept]
            images = batch.images[image]
            put = blurred(images) if fill == "blur" else torch.zeros((), device=where)
            score = functools.partial(_probability, model, concept)
            metric.update(concept, perturbation_curves(score, images, maps, put, steps=steps, seed=seed))
    return metric.compute()


def _probability(model: ConceptModel, concept: Tensor, images: Tensor) -> Tensor:
    logits = model.forward_concepts(images).concept_logits
    return logits.gather(1, concept[:, None])[:, 0].sigmoid()


@torch.no_grad()
def removal_effects(model: ConceptModel, data: PhantomDataset, *, images: int = 100) -> RemovalScores:
    """Draw the same images without each finding that they have, and see what changes.

    Nothing else moves in such an image, which no deletion in a real image can promise.

    Args:
        model: A model of the phantom's concepts; it is left as it is.
        data: Whose images to draw anew, the first of them.
        images: How many.

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


@torch.no_grad()
def randomization_check(
    model: ConceptModel, batches: Batches, *, cascade: bool = True, steps: int = 4, seed: int = 0
) -> RandomizationScores:
    """Shuffle weights from the head down, and see whether the maps notice (Adebayo et al., 2018).

    Maps that stay as they are do not show what the model has learned. The entries of each weight are exchanged among
    each other, so that their spread stays.

    Args:
        model: Any; it is left as it is.
        batches: Images to compare maps on.
        cascade: Whether to go on from the concept head through the backbone; False shuffles the head alone.
        steps: In how many steps to go through the backbone.
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
        groups += [layers[low:high] for high, low in zip(edges, edges[1:], strict=False) if high > low]
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
