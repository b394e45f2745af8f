"""Whether to believe a model, by measures that take much longer than one pass over the images."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar, get_args

import torch
from torch import Tensor

from conceptcam._display.text import duration
from conceptcam.analysis.answers import Answers, collect_answers
from conceptcam.analysis.faithfulness import chunk_size, count_forward_passes, measure_sample, sample_maps
from conceptcam.analysis.intervention import Word, typical_evidence
from conceptcam.analysis.intervention_curves import InterventionCurve, Policy, curve_of_answers
from conceptcam.analysis.leakage import HardSoftFigures, figures_of_answers, leakage_of_answers
from conceptcam.analysis.randomization import RandomizationScores, randomization_check
from conceptcam.analysis.spatial_curves import Places, SpatialCurve, SpatialMeasure
from conceptcam.data.batch import Batches, ConceptBatch, as_batch
from conceptcam.metrics.detection import DetectionMetrics, DetectionScores
from conceptcam.metrics.faithfulness import FaithfulnessScores
from conceptcam.metrics.leakage import LeakageScores
from conceptcam.metrics.prototype_parts import (
    PrototypeParts,
    PrototypePartScores,
    add_noise,
    prototype_reliance,
    relevance_agreement,
)
from conceptcam.metrics.prototypes import prototype_usage
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.device import eval_mode
from conceptcam.model.outputs import ConceptOutput
from conceptcam.model.taught import tasks_taught

WRONG = "ucp, wrong answers"
"""The control of the intervention curves: answers by the policy `"ucp"`, each the opposite of the label."""

MOST_MAPS = 16
"""Of each concept, maps whose insertion and deletion are measured, in a random sample of the images."""

STEPS = 7
"""Of insertion and deletion."""

_Found = TypeVar("_Found")


class SlowFigures(NamedTuple):
    """What slow measures found; None, or nothing in a mapping, where the model or the data have nothing to measure."""

    detection: DetectionScores
    """Boxes and pixels that maps find, and their peaks per false alarm (FROC)."""
    faithfulness: Mapping[str, FaithfulnessScores]
    """Insertion and deletion of `MOST_MAPS` maps of each concept at most, by what deleted cells are filled with."""
    faithfulness_images: int
    """How many images these maps are of."""
    randomization: RandomizationScores
    """How alike maps are to those of shuffled weights, in the first batch."""
    hard_soft: HardSoftFigures | None
    """What the tasks lose if concepts can say yes and no alone; None also if some concepts are `uncorrected`."""
    leakage: LeakageScores | None
    """What scores carry beyond their concepts."""
    interventions: Mapping[str, InterventionCurve]
    """What corrections do to the tasks, by policy, and `WRONG` answers."""
    spatial: Mapping[str, SpatialCurve]
    """What pointing does to the tasks, by whose boxes; empty without boxes."""
    parts: PrototypePartScores | None
    """Whether each prototype means one thing."""
    agreement: float
    """Whether the tasks rest on the prototypes that are nearest; see `relevance_agreement`. NaN without tasks or
    prototypes."""
    uncorrected: tuple[str, ...]
    """Concepts that no curve corrects, because the record does not say what is typical of them."""


@torch.inference_mode()
def measure_slow(
    model: ConceptModel,
    batches: Batches,
    labels: Tensor,
    *,
    device: torch.device | str | None = None,
    echo: Callable[[str], None] = lambda line: None,
) -> SlowFigures:
    """Measure what takes long; `evaluate(..., everything=True)` does, once it has the usual figures.

    Insertion and deletion are measured on a random sample of the images, always the same of the same labels. They take
    at most 864 forward passes for each concept, however many images there are (`count_forward_passes`); that many are
    reached where each concept is present in `MOST_MAPS` images of its own. All else passes once over the images, or
    twice with prototypes.

    Args:
        model: As `evaluate` takes.
        batches: As there; they are passed over more than once, so not an iterator.
        labels: (N, K) of the concepts of all images, in the order of the batches.
        device: As there.
        echo: Is given a line with an estimate of the time, and then a line as each measure ends.
    """
    wanted = sample_maps(labels, per_concept=MOST_MAPS)
    with eval_mode(model, device) as where, torch.random.fork_rng(devices=[]):
        first = as_batch(next(iter(batches))).to(where)
        observer = SlowMeasures(model, first)
        echo(_estimate(model, first, wanted, passes=2 if observer.prototypes else 1))
        told = "boxes, places and prototypes"
        answers = _timed(echo, told, lambda: collect_answers(model, batches, evidence=True, observers=[observer]))
        told = f"insertion and deletion of {int(wanted.sum())} maps"
        areas = _timed(echo, told, lambda: measure_sample(model, batches, wanted, steps=STEPS))
        shuffled = _timed(echo, "shuffled weights", lambda: randomization_check(model, [first]))
        found = observer.compute(answers, echo)
    images = int(wanted.any(dim=1).sum())
    return found._replace(faithfulness=areas, faithfulness_images=images, randomization=shuffled)


class SlowMeasures:
    """Looks at each batch that passes, and computes most of `SlowFigures` at the end.

    Args:
        model: In eval mode while batches pass.
        first: The first batch, to see what is labelled.

    Attributes:
        prototypes: Whether there are prototypes to measure, which takes a second forward pass of each batch.
    """

    def __init__(self, model: ConceptModel, first: ConceptBatch) -> None:
        config, record = model.config, model.record
        concepts, each = len(config.concepts), config.prototypes_per_concept
        self._model = model
        self._tasks = first.targets.shape[1] == len(config.tasks) > 0 and tasks_taught(config, record)
        self.prototypes = config.bottleneck == "prototypes" and (self._tasks or "prototypes" in record.stages)
        self._detection = DetectionMetrics(concepts)
        self._parts = PrototypeParts(concepts, each)
        for metric in (self._detection, self._parts):
            metric.distributed_available_fn = lambda: False  # of several processes, each that asks has all images
        self._usage = torch.zeros(concepts, each, dtype=torch.float64)
        every = get_args(Places) if self._tasks else ()
        self._spatial = {places: SpatialMeasure(model, places=places) for places in every}
        self._drawn = False  # whether there is a box in any image

    def __call__(self, batch: ConceptBatch, output: ConceptOutput) -> None:
        """Look at a batch; one of the `observers` of `collect_answers`."""
        maps, boxes = output.concept_maps.cpu(), None if batch.boxes is None else batch.boxes.to("cpu")
        self._detection.update(maps, boxes, self._model.config.image_size)
        self._drawn |= boxes is not None and len(boxes) > 0
        for spatial in self._spatial.values():
            spatial.add(batch, output)
        if self.prototypes:
            noisy = self._model(add_noise(batch.images)).similarity_maps.cpu()
            self._parts.update(output.similarity_maps.cpu(), batch.concepts.cpu(), boxes, noisy)
            self._usage += prototype_usage(output.vector_similarity, batch.concepts).cpu()

    def compute(self, answers: Answers, echo: Callable[[str], None]) -> SlowFigures:
        """The figures, but those of faithfulness and of shuffled weights, given what the model said of all images.

        Args:
            answers: With evidence.
            echo: Is given a line as each measure ends.
        """
        labels, uncorrected = self._correctable(answers.concepts)
        corrected = answers._replace(concepts=labels)
        model = self._model
        leakage = _timed(echo, "leakage", lambda: leakage_of_answers(answers)) if self._tasks else None
        curves = _timed(echo, "corrections", lambda: self._curves(corrected)) if self._tasks else {}
        return SlowFigures(
            detection=self._detection.compute(),
            faithfulness={},
            faithfulness_images=0,
            randomization=RandomizationScores((), torch.zeros(0, len(model.config.concepts))),
            hard_soft=figures_of_answers(model, answers) if self._tasks and not uncorrected else None,
            leakage=leakage,
            interventions=curves,
            spatial={places: one.compute() for places, one in self._spatial.items()} if self._drawn else {},
            parts=self._parts.compute() if self.prototypes else None,
            agreement=self._agreement(answers.evidence) if self.prototypes and self._tasks else float("nan"),
            uncorrected=uncorrected if self._tasks else (),
        )

    def _curves(self, answers: Answers) -> dict[str, InterventionCurve]:
        curves = {policy: curve_of_answers(self._model, answers, policy=policy) for policy in get_args(Policy)}
        return curves | {WRONG: curve_of_answers(self._model, answers, policy="ucp", answers="wrong")}

    def _agreement(self, evidence: Tensor) -> float:
        weight = self._model.task_head.weight
        return relevance_agreement(self._usage, prototype_reliance(evidence, weight))

    def _correctable(self, labels: Tensor) -> tuple[Tensor, tuple[str, ...]]:
        """Labels (N, K), unknown for concepts of which nothing is typical, and the names of these."""
        config, record = self._model.config, self._model.record
        typical = torch.stack([typical_evidence(config, record, word) for word in get_args(Word)])
        lacks = typical.isnan().any(dim=-1).any(dim=0)
        names = tuple(name for name, lacking in zip(config.concepts, lacks.tolist(), strict=True) if lacking)
        return labels.masked_fill(lacks, torch.nan), names


def _estimate(model: ConceptModel, first: ConceptBatch, wanted: Tensor, *, passes: int) -> str:
    """A sentence of how long it takes, by a timed forward pass and how many there will be.

    Args:
        model: On its device.
        first: The first batch, of which a few images are looked at twice, the first time to warm up.
        wanted: (N, K), which maps are measured.
        passes: How often each of the N images is looked at.
    """
    few = first.images[: chunk_size(first)]
    for _ in range(2):
        began = time.perf_counter()
        model.forward_concepts(few).concept_logits.cpu()
        each = (time.perf_counter() - began) / len(few)
    shuffled = 6 * len(first.images)  # of the model as it is, its head, and four parts of its backbone
    count = passes * len(wanted) + count_forward_passes(wanted, steps=STEPS) + shuffled
    return (
        f"Measuring the rest takes about {duration(each * count)}: {count:,} forward passes of an image, for "
        f"insertion and deletion of {int(wanted.sum())} maps of {int(wanted.any(dim=1).sum())} images above all."
    )


def _timed(echo: Callable[[str], None], what: str, measure: Callable[[], _Found]) -> _Found:
    """What a measure gives, after a line of how long it took."""
    began = time.perf_counter()
    found = measure()
    echo(f"{what}: {duration(time.perf_counter() - began)}")
    return found
