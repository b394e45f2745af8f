"""Whether maps and scores depend on the findings: delete cells, remove findings, or shuffle weights, and compare."""

import copy
import functools
import itertools
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

    The score is the sigmoid of the concept's logit, without calibration (RISE; Petsiuk et al., 2018).

    Args:
        model: Any concept model; it is not changed.
        batches: As `evaluate` takes.
        fill: What replaces a cell: `"blur"`, the image without detail; `"mean"`, the mean of training images.
        per_concept: How many maps of each concept to measure at most, in the order of the batches.
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
