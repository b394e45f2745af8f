"""Whether maps and scores depend on the findings: delete cells, remove findings, or shuffle weights, and compare."""

import functools
from typing import Literal

import torch
from torch import Tensor

from conceptcam._checks import check_choice
from conceptcam.data.batch import Batches, as_batch
from conceptcam.metrics.faithfulness import (
    FaithfulnessMetrics,
    FaithfulnessScores,
    blurred,
    perturbation_curves,
)
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.device import eval_mode

Fill = Literal["blur", "mean"]


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
