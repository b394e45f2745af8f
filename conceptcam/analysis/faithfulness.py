"""Whether scores rest on what maps show: delete cells of an image, the most important first, and compare."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from conceptcam._checks import check_choice
from conceptcam.data.batch import Batches, ConceptBatch, as_batch
from conceptcam.metrics.faithfulness import (
    FaithfulnessMetrics,
    FaithfulnessScores,
    PerturbationCurves,
    blurred,
    map_order,
    order_curves,
    random_order,
)
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.device import eval_mode

Fill = Literal["blur", "mean"]

_AT_ONCE = 8  # images in a forward pass on the CPU, which is slower on more


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
    measure = FaithfulnessMeasure(model, fill=fill, steps=steps, seed=seed)
    seen = torch.zeros(len(model.config.concepts), dtype=torch.long)
    with eval_mode(model) as where, torch.no_grad(), torch.random.fork_rng(devices=[]):
        for given in batches:
            batch = as_batch(given)
            present = batch.concepts.cpu() > 0.5
            wanted = present & (seen + present.cumsum(dim=0) <= per_concept)
            seen += wanted.sum(dim=0)
            if wanted.any():
                measure.add(batch.to(where), wanted)
    return measure.metric.compute()


def measure_sample(
    model: ConceptModel, batches: Batches, wanted: Tensor, *, steps: int = 14, seed: int = 0
) -> dict[str, FaithfulnessScores]:
    """`measure_faithfulness` of the maps that a sample names, for every filling, in one pass over the images.

    Args:
        model: As there.
        batches: As there, in the order of the sample's rows.
        wanted: (N, K) bool, which maps to measure, such as of `sample_maps`; must be of as many images as pass.
        steps: As there.
        seed: As there.
    """
    fills: tuple[Fill, ...] = get_args(Fill)
    measures = {str(fill): FaithfulnessMeasure(model, fill=fill, steps=steps, seed=seed) for fill in fills}
    first = 0
    with eval_mode(model) as where, torch.no_grad(), torch.random.fork_rng(devices=[]):
        for given in batches:
            batch = as_batch(given)
            rows = wanted[first : first + len(batch.images)]
            first += len(batch.images)
            if rows.any():
                batch = batch.to(where)
                for measure in measures.values():
                    measure.add(batch, rows)
            if not wanted[first:].any():
                break
    return {fill: measure.metric.compute() for fill, measure in measures.items()}


def sample_maps(labels: Tensor, *, per_concept: int, seed: int = 0) -> Tensor:
    """(N, K) bool, at most so many images of each concept in which it is present, drawn at random.

    The images are put in one random order, and each concept takes the first that have it, so that concepts share images
    where they can, and controls that do not depend on the concept cost no more.

    Args:
        labels: (N, K) in [0, 1]; NaN where unknown.
        per_concept: How many at most.
        seed: Of the order.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    present = labels[order].cpu() > 0.5
    wanted = torch.zeros_like(present)
    wanted[order] = present & (present.cumsum(dim=0) <= per_concept)
    return wanted


def count_forward_passes(wanted: Tensor, *, steps: int) -> int:
    """How many images a model sees in `measure_sample` of a sample (N, K), maps and controls of every filling."""
    maps, images = int(wanted.sum()), int(wanted.any(dim=1).sum())
    return len(get_args(Fill)) * (2 * (steps - 1) * maps + (2 * steps + 1) * images)


def chunk_size(batch: ConceptBatch) -> int:
    """How many images of a batch to look at in one forward pass."""
    return _AT_ONCE if batch.images.device.type == "cpu" else len(batch.images)


class FaithfulnessMeasure:
    """`measure_faithfulness` of batches that pass one by one; arguments are those of that function.

    Args:
        model: As there; in eval mode while batches are added.
        fill: As there.
        steps: As there.
        seed: As there.

    Attributes:
        metric: Computes the scores.

    Raises:
        ValueError: If `fill` is unknown.
    """

    def __init__(self, model: ConceptModel, *, fill: Fill = "blur", steps: int = 14, seed: int = 0) -> None:
        check_choice("fill", fill, Fill)
        self.metric = FaithfulnessMetrics(len(model.config.concepts))
        self.metric.distributed_available_fn = lambda: False  # of several processes, each that asks has all images
        self._model, self._fill, self._steps, self._seed = model, fill, steps, seed

    def add(self, batch: ConceptBatch, wanted: Tensor) -> None:
        """Measure the maps (B, K) of a batch that are wanted."""
        used = wanted.any(dim=1).nonzero()[:, 0]
        for rows in used.split(chunk_size(batch)):
            self._add(batch.images[rows.to(batch.images.device)], wanted[rows], chunk_size(batch))

    def _add(self, images: Tensor, wanted: Tensor, most: int) -> None:
        """The same of few images, of each of which a map is wanted."""
        maps = self._model.forward_concepts(images).concept_maps
        fill = blurred(images) if self._fill == "blur" else torch.zeros_like(images)
        # The random order is the same for all concepts, so an image answers for all of them at once.
        order = random_order(maps[:, 0], seed=self._seed)
        control = order_curves(self._probabilities, images, order, fill, steps=self._steps)  # two (U, S + 1, K)
        pairs = [one.to(images.device) for one in wanted.nonzero(as_tuple=True)]
        for image, concept in zip(*(one.split(most) for one in pairs), strict=True):
            ends = tuple(one[image, :, concept] for one in control)
            self.metric.update(concept, self._curves(images[image], maps[image, concept], fill[image], concept, ends))

    def _curves(
        self, images: Tensor, maps: Tensor, fill: Tensor, concept: Tensor, control: Sequence[Tensor]
    ) -> PerturbationCurves:
        """Curves of P maps (P, h, w), given those of the random order, (P, S + 1) each."""
        random_deletion, random_insertion = control

        def score(seen: Tensor) -> Tensor:
            return self._probabilities(seen).gather(1, concept[:, None])[:, 0]

        ends = random_deletion[:, 0], random_insertion[:, 0]
        deletion, insertion = order_curves(score, images, map_order(maps), fill, steps=self._steps, ends=ends)
        return PerturbationCurves(deletion, insertion, random_deletion, random_insertion)

    def _probabilities(self, images: Tensor) -> Tensor:
        return self._model.forward_concepts(images).concept_logits.sigmoid()
