"""Whether to believe a model, by measures that take much longer than one pass over the images."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from conceptcam._display.text import duration
from conceptcam.analysis.answers import Answers
from conceptcam.analysis.faithfulness import FaithfulnessMeasure, Fill
from conceptcam.analysis.intervention import Word, typical_evidence
from conceptcam.analysis.intervention_curves import InterventionCurve, Policy, curve_of_answers
from conceptcam.analysis.leakage import HardSoftFigures, figures_of_answers, leakage_of_answers
from conceptcam.analysis.randomization import RandomizationScores, randomization_check
from conceptcam.analysis.spatial_curves import Places, SpatialCurve, SpatialMeasure
from conceptcam.data.batch import ConceptBatch
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
from conceptcam.model.outputs import ConceptOutput
from conceptcam.model.taught import tasks_taught

WRONG = "ucp, wrong answers"
"""The control of the intervention curves: answers by the policy `"ucp"`, each the opposite of the label."""

_PER_CONCEPT = 20  # maps to measure faithfulness of, of each concept and fill


class SlowFigures(NamedTuple):
    """What slow measures found; None, or nothing in a mapping, where the model or the data have nothing to measure."""

    detection: DetectionScores
    """Boxes and pixels that maps find, and their peaks per false alarm (FROC)."""
    faithfulness: Mapping[str, FaithfulnessScores]
    """Insertion and deletion, by what deleted cells are filled with."""
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


class SlowMeasures:
    """Looks at each batch that passes, and computes `SlowFigures` at the end.

    Args:
        model: In eval mode while batches pass.
        images: How many images there will be; None if nobody knows.
        echo: Is given a line with an estimate of the time, after the first batch.
    """

    def __init__(self, model: ConceptModel, *, images: int | None, echo: Callable[[str], None]) -> None:
        concepts, each = len(model.config.concepts), model.config.prototypes_per_concept
        self._model, self._images, self._echo = model, images, echo
        self._tasks = False
        self._detection = DetectionMetrics(concepts)
        self._parts = PrototypeParts(concepts, each)
        for metric in (self._detection, self._parts):
            metric.distributed_available_fn = lambda: False  # of several processes, each that asks has all images
        self._usage = torch.zeros(concepts, each, dtype=torch.float64)
        self._faithfulness = {
            fill: FaithfulnessMeasure(model, fill=fill, per_concept=_PER_CONCEPT) for fill in get_args(Fill)
        }
        self._spatial: dict[str, SpatialMeasure] = {}
        self._drawn = False  # whether there is a box in any image
        self._first: ConceptBatch | None = None

    @property
    def _prototypes(self) -> bool:
        taught = self._tasks or "prototypes" in self._model.record.stages
        return taught and self._model.config.bottleneck == "prototypes"

    def __call__(self, batch: ConceptBatch, output: ConceptOutput) -> None:
        """Look at a batch; one of the `observers` of `collect_answers`."""
        first = self._first is None
        if self._first is None:
            self._first, config = batch, self._model.config
            labelled = batch.targets.shape[1] == len(config.tasks) > 0
            self._tasks = labelled and tasks_taught(config, self._model.record)
            if self._tasks:
                self._spatial = {places: SpatialMeasure(self._model, places=places) for places in get_args(Places)}
        began = time.perf_counter()
        self._pass(batch, output)
        passed = time.perf_counter()
        perturbed = sum(one.add(batch, output.concept_maps) for one in self._faithfulness.values())
        if first:
            self._estimate(batch, passed - began, time.perf_counter() - passed, perturbed)

    def _pass(self, batch: ConceptBatch, output: ConceptOutput) -> None:
        maps, boxes = output.concept_maps.cpu(), None if batch.boxes is None else batch.boxes.to("cpu")
        self._detection.update(maps, boxes, self._model.config.image_size)
        self._drawn |= boxes is not None and len(boxes) > 0
        for spatial in self._spatial.values():
            spatial.add(batch, output)
        if self._prototypes:
            noisy = self._model(add_noise(batch.images)).similarity_maps.cpu()
            self._parts.update(output.similarity_maps.cpu(), batch.concepts.cpu(), boxes, noisy)
            self._usage += prototype_usage(output.vector_similarity, batch.concepts).cpu()

    def compute(self, answers: Answers) -> SlowFigures:
        """The figures, given what the model said of all images, evidence included."""
        assert self._first is not None
        labels, uncorrected = self._correctable(answers.concepts)
        corrected = answers._replace(concepts=labels)
        return SlowFigures(
            self._detection.compute(),
            {fill: one.metric.compute() for fill, one in self._faithfulness.items()},
            randomization_check(self._model, [self._first]),
            figures_of_answers(self._model, answers) if self._tasks and not uncorrected else None,
            leakage_of_answers(answers) if self._tasks else None,
            self._curves(corrected) if self._tasks else {},
            {places: one.compute() for places, one in self._spatial.items()} if self._drawn else {},
            self._parts.compute() if self._prototypes else None,
            self._agreement(answers.evidence) if self._prototypes and self._tasks else float("nan"),
            uncorrected if self._tasks else (),
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

    def _estimate(self, batch: ConceptBatch, passing: float, perturbing: float, maps: int) -> None:
        """Say about how long it takes, by what the first batch took."""
        began = time.perf_counter()
        self._model(batch.images)
        forward = time.perf_counter() - began
        images = self._images if self._images is not None else 100
        present = (batch.concepts > 0.5).double().mean(dim=0) * images
        expected = float(present.clamp(max=_PER_CONCEPT).sum()) * len(self._faithfulness)
        seconds = (forward + passing) * images / len(batch.images) + (perturbing / maps * expected if maps else 0.0)
        seconds += 8 * forward  # of shuffled weights
        of = f"{images} images" if self._images is not None else "each 100 images"
        self._echo(f"Measuring everything takes about {duration(seconds)} for {of}.")
