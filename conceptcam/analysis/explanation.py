"""Why a model said what it said: named concepts, their places, and their shares in each task logit."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from conceptcam._checks import check_not_str, did_you_mean
from conceptcam.config import ConceptConfig
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.images import load_image
from conceptcam.metrics.map_scores import upsample
from conceptcam.model.concept_model import ConceptModel, evaluating
from conceptcam.model.outputs import ConceptOutput

if TYPE_CHECKING:
    from PIL.Image import Image


class ConceptPrediction(NamedTuple):
    """What the model says of one concept."""

    concept: str
    probability: float
    threshold: float
    """Probability from which the concept is called present, chosen on validation data; NaN if none was."""
    heatmap: Tensor
    """(H, W) probability of the concept at each pixel of the model's input."""


class Contribution(NamedTuple):
    """One concept's share in one task logit."""

    concept: str
    share: float
    heatmap: Tensor
    """(H, W) in [0, 1]: similarity of each pixel with the prototype that counted most, or, in a
    `"concepts"` bottleneck, the probability of the concept there."""


class TaskExplanation(NamedTuple):
    """One task logit, split."""

    task: str
    probability: float
    logit: float
    bias: float
    shares: tuple[Contribution, ...]
    """One per concept, the largest first. `bias` and all shares add up to `logit` exactly."""


class Explanation(NamedTuple):
    """What a model says about one image, and why."""

    image: Tensor
    """(3, H, W) uint8, what the model saw."""
    concepts: tuple[str, ...]
    """Names of all concepts, in the model's order."""
    findings: tuple[ConceptPrediction, ...]
    """One per concept, the most probable first."""
    reasons: tuple[TaskExplanation, ...]
    """One per task, in the model's order; empty if the model was taught no task."""

    def finding(self, concept: str) -> ConceptPrediction:
        """The finding of a concept.

        Raises:
            ValueError: If the model has no such concept.
        """
        return _named(concept, {finding.concept: finding for finding in self.findings}, "concept")

    def reason(self, task: str) -> TaskExplanation:
        """The reason of a task.

        Raises:
            ValueError: If the model was taught no such task.
        """
        if not self.reasons:
            raise ValueError(f"the model was taught no task, so there is no reason for {task!r}")
        return _named(task, {reason.task: reason for reason in self.reasons}, "task")

    def as_dict(self) -> dict[str, Any]:
        """Names and numbers, without maps, ready for JSON."""
        return {
            "concepts": {
                finding.concept: {
                    "probability": finding.probability,
                    "threshold": None if math.isnan(finding.threshold) else finding.threshold,
                }
                for finding in self.findings
            },
            "tasks": {
                reason.task: {
                    "probability": reason.probability,
                    "logit": reason.logit,
                    "bias": reason.bias,
                    "shares": {share.concept: share.share for share in reason.shares},
                }
                for reason in self.reasons
            },
        }

    def figure(self, *, boxes: ConceptBoxes | None = None, concepts: Sequence[str] = (), top: int = 5) -> "Image":
        """The image beside the maps of its foremost concepts.

        Args:
            boxes: Boxes of this image, drawn on the map of their concept; indices count as in the model.
            concepts: Which concepts to show; none named shows the `top` most probable.
            top: How many to show.

        Raises:
            ValueError: If the model has no such concept.
        """
        from conceptcam.analysis.figures import concept_panel  # needs Pillow

        check_not_str("concepts", concepts)
        shown = [self.finding(name) for name in concepts] or self.findings[:top]
        drawn = boxes or ConceptBoxes.empty()
        return concept_panel(
            self.image,
            [finding.concept for finding in shown],
            [finding.heatmap for finding in shown],
            captions=[f"p = {finding.probability:.2f}" for finding in shown],
            boxes=[drawn.xyxy[drawn.concept == self.concepts.index(finding.concept)] for finding in shown],
        )


@torch.inference_mode()
def explain(model: ConceptModel, image: Any, *, task: str | None = None) -> Explanation:
    """Say which concepts a model sees in an image, where, and what each counted for in every task.

    The model is left as it is, its mode included. If it was taught no task, the explanation holds concepts
    and maps alone.

    Args:
        model: A model that was taught concepts.
        image: A path, a PIL image, or an array or tensor as `conceptcam.data.images.load_image` takes; not yet
            normalized, of any size.
        task: A task that must be explained; None explains those there are.

    Raises:
        ValueError: If the image has an impossible range or shape, the model was never taught concepts, or
            `task` is unknown or was never taught.
    """
    refuse_untaught(model, task=task)
    pixels = model.preprocess(load_image(image))
    with evaluating(model) as device:
        output = ConceptOutput(*(field.cpu() for field in model(pixels[None].to(device))))
    heatmaps = upsample(output.concept_maps[0], model.config.image_size).sigmoid()
    findings = [
        ConceptPrediction(name, float(probability), model.record.thresholds.get(name, math.nan), heatmap)
        for name, probability, heatmap in zip(
            model.config.concepts, output.concept_logits[0].sigmoid(), heatmaps, strict=True
        )
    ]
    findings.sort(key=lambda finding: -finding.probability)
    reasons = _reasons(model, output, heatmaps) if taught_tasks(model) else ()
    return Explanation(model.preprocess.denormalize(pixels), model.config.concepts, tuple(findings), reasons)


def refuse_untaught(model: ConceptModel, *, task: str | None = None) -> None:
    """Refuse to report what a model was never taught.

    Raises:
        ValueError: If the model has no taught concepts, or `task` is no name of a task, or not taught.
    """
    stages = list(model.record.stages)
    if "concepts" not in stages:
        raise ValueError(
            f"this model was never taught concepts (stages done: {stages}), so what it says means nothing; train it, "
            "or, after a training loop of your own, set `model.record = model.record.after('concepts', parts)`"
        )
    if task is None:
        return
    if not model.config.tasks:
        raise ValueError(f"this model has no tasks, so none called {task!r}; train with task labels to have some")
    _named(task, dict.fromkeys(model.config.tasks), "task")
    if not taught_tasks(model):
        raise ValueError(
            f"this model was never taught the task {task!r} (stages done: {stages}); train what is missing"
        )


def taught_tasks(model: ConceptModel) -> bool:
    """Whether the model was taught its tasks, and everything the task head reads."""
    needed = {"concepts", "task"} if model.config.bottleneck == "concepts" else {"concepts", "prototypes", "task"}
    return bool(model.config.tasks) and needed <= set(model.record.stages)


def _reasons(model: ConceptModel, output: ConceptOutput, heatmaps: Tensor) -> tuple[TaskExplanation, ...]:
    config = model.config
    # Python floats, summed without rounding, so that the parts add up to the logit that is shown.
    shares = model.task_head.shares(output.evidence.to(model.task_head.weight.device)).cpu()[0].double()
    biases = model.task_head.bias.detach().cpu().double().tolist()
    per_concept = shares.sum(dim=-1).tolist()
    logits = [math.fsum([bias, *parts]) for bias, parts in zip(biases, per_concept, strict=True)]
    probabilities = _probabilities(torch.tensor(logits), config)
    reasons = []
    for task, name in enumerate(config.tasks):
        maps = heatmaps
        if config.bottleneck == "prototypes":
            strongest = shares[task].abs().argmax(dim=-1)
            chosen = output.similarity_maps[0, torch.arange(len(config.concepts)), strongest]
            maps = upsample(chosen, config.image_size)
        parts = [Contribution(*row) for row in zip(config.concepts, per_concept[task], maps, strict=True)]
        parts.sort(key=lambda part: -abs(part.share))
        reasons.append(TaskExplanation(name, probabilities[task], logits[task], biases[task], tuple(parts)))
    return tuple(reasons)


def _probabilities(logits: Tensor, config: ConceptConfig) -> list[float]:
    return (logits.softmax(dim=-1) if config.task_kind == "multiclass" else logits.sigmoid()).tolist()


def _named(name: str, known: dict[str, Any], what: str) -> Any:
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}{did_you_mean(name, known)}; known: {list(known)}")
    return known[name]
