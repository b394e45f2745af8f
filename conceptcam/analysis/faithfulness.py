"""Whether scores rest on what maps show: delete cells of an image, the most important first, and compare."""

import functools
from typing import Literal

import torch
from torch import Tensor

from conceptcam._checks import check_choice
from conceptcam.data.batch import Batches, ConceptBatch, as_batch
from conceptcam.metrics.faithfulness import FaithfulnessMetrics, FaithfulnessScores, blurred, perturbation_curves
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
    measure = FaithfulnessMeasure(model, fill=fill, per_concept=per_concept, steps=steps, seed=seed)
    with eval_mode(model) as where, torch.no_grad(), torch.random.fork_rng(devices=[]):
        for given in batches:
            batch = as_batch(given).to(where)
            if measure.wanted(batch).any():
                measure.add(batch, model.forward_concepts(batch.images).concept_maps)
    return measure.metric.compute()


class FaithfulnessMeasure:
    """`measure_faithfulness` of batches that pass one by one; arguments are those of that function.

    Args:
        model: As there; in eval mode while batches are added.
        fill: As there.
        per_concept: As there.
        steps: As there.
        seed: As there.

    Attributes:
        metric: Computes the scores.

    Raises:
        ValueError: If `fill` is unknown.
    """

    def __init__(
        self, model: ConceptModel, *, fill: Fill = "blur", per_concept: int = 20, steps: int = 14, seed: int = 0
    ) -> None:
        check_choice("fill", fill, Fill)
        self.metric = FaithfulnessMetrics(len(model.config.concepts))
        self.metric.distributed_available_fn = lambda: False  # of several processes, each that asks has all images
        self._model, self._fill, self._per_concept = model, fill, per_concept
        self._curves = functools.partial(perturbation_curves, steps=steps, seed=seed)
        self._seen = torch.zeros(len(model.config.concepts), dtype=torch.long)

    def wanted(self, batch: ConceptBatch) -> Tensor:
        """(B, K) bool, which maps of a batch are to be measured: those of present concepts, while there are too few."""
        present = batch.concepts.cpu() > 0.5
        return present & (self._seen + present.cumsum(dim=0) <= self._per_concept)

    def add(self, batch: ConceptBatch, concept_maps: Tensor) -> int:
        """Measure the maps (B, K, h, w) of a batch that are wanted; returns how many these are."""
        wanted = self.wanted(batch)
        self._seen += wanted.sum(dim=0)
        image, concept = (one.to(concept_maps.device) for one in wanted.nonzero(as_tuple=True))
        if len(image):
            images = batch.images[image]
            put = blurred(images) if self._fill == "blur" else torch.zeros((), device=images.device)
            score = functools.partial(_probability, self._model, concept)
            self.metric.update(concept, self._curves(score, images, concept_maps[image, concept], put))
        return len(image)


def _probability(model: ConceptModel, concept: Tensor, images: Tensor) -> Tensor:
    logits = model.forward_concepts(images).concept_logits
    return logits.gather(1, concept[:, None])[:, 0].sigmoid()
