"""Why a model said what it said: named concepts, their places, and what each contributed to each task logit."""

import base64
import io
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from conceptcam._checks import check_known, check_not_str
from conceptcam._display.text import html_text
from conceptcam._files import nan_to_null
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.metrics.map_scores import upsample
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.device import eval_mode
from conceptcam.model.novelty import unlike_sentence, unlikeness
from conceptcam.model.outputs import ConceptOutput
from conceptcam.model.predictions import check_finite, concept_probabilities, task_probabilities
from conceptcam.model.taught import check_taught, tasks_taught

if TYPE_CHECKING:
    from PIL.Image import Image


Verdict = Literal["present", "absent", "no threshold", "undefined"]

_SHOWN_TASKS = 3
"""Tasks that the heading of a picture names."""


class ConceptPrediction(NamedTuple):
    """What the model predicts about one concept."""

    concept: str
    probability: float
    """Calibrated if the model's record says how; see `fit_calibration`."""
    threshold: float
    """Probability from which the concept is called present, chosen on validation data; NaN if none was chosen."""
    heatmap: Tensor
    """(H, W) probability of the concept at each pixel of the model's input, never calibrated: a sigmoid of the map."""

    @property
    def verdict(self) -> Verdict:
        """What the concept is called; `"no threshold"` if nobody chose one, `"undefined"` if the probability is NaN."""
        if math.isnan(self.probability):
            return "undefined"
        if math.isnan(self.threshold):
            return "no threshold"
        return "present" if self.probability > self.threshold else "absent"

    def caption(self) -> str:
        """Probability, verdict and threshold, as they stand below the concept's name in a picture."""
        threshold = "" if math.isnan(self.threshold) else f" (threshold {self.threshold:.2f})"
        return f"p = {self.probability:.2f}, {self.verdict}{threshold}"

    def __repr__(self) -> str:
        return f"ConceptPrediction({self.concept!r}, probability {self.probability:.3f}, {self.verdict})"


class Contribution(NamedTuple):
    """How much one concept adds to one task logit, or takes from it."""

    concept: str
    value: float
    heatmap: Tensor
    """(H, W) in [0, 1]: similarity of each pixel to the prototype of the concept that contributed most; in a
    `"concepts"` bottleneck, the probability of the concept there."""

    def __repr__(self) -> str:
        return f"Contribution({self.concept!r}, {self.value:+.2f})"


class TaskExplanation(NamedTuple):
    """One task logit, split into a bias and the contributions of the concepts."""

    task: str
    probability: float
    """Of the logit, calibrated if the model's record says how."""
    logit: float
    bias: float
    contributions: tuple[Contribution, ...]
    """One per concept, the largest first. The bias and all contributions add up to the logit exactly."""


class Explanation(NamedTuple):
    """What a model says about one image, and why."""

    image: Tensor
    """(3, H, W) uint8, the image as the model sees it."""
    concept_names: tuple[str, ...]
    """Names of all concepts, in the model's order."""
    concepts: tuple[ConceptPrediction, ...]
    """One per concept, the most probable first."""
    tasks: tuple[TaskExplanation, ...]
    """One per task, in the model's order, or the one that was asked for; empty if the model was taught no task."""
    unlikeness: float = math.nan
    """How far the image is from the training images: above 1 it is unlike them. NaN if the model cannot tell."""
    unlike: str = ""
    """A sentence that says so; empty if the image is not unlike, or the model cannot tell."""

    def concept(self, name: str) -> ConceptPrediction:
        """The prediction of one concept.

        Raises:
            ValueError: If the model has no such concept.
        """
        return _named(name, {prediction.concept: prediction for prediction in self.concepts}, "concept")

    def task(self, name: str) -> TaskExplanation:
        """The explanation of one task.

        Raises:
            ValueError: If the model was taught no such task.
        """
        if not self.tasks:
            raise ValueError(f"the model was taught no task, so it cannot explain {name!r}")
        return _named(name, {explained.task: explained for explained in self.tasks}, "task")

    def as_dict(self) -> dict[str, Any]:
        """Names and numbers, without maps, ready for JSON; an undefined number is None."""
        concepts = {
            one.concept: {"probability": one.probability, "threshold": one.threshold, "verdict": one.verdict}
            for one in self.concepts
        }
        tasks = {
            one.task: {
                "probability": one.probability,
                "logit": one.logit,
                "bias": one.bias,
                "contributions": {part.concept: part.value for part in one.contributions},
            }
            for one in self.tasks
        }
        return nan_to_null({"unlikeness": self.unlikeness, "concepts": concepts, "tasks": tasks})

    def lines(self, *, top: int = 5, tasks: int | None = None, say_unlike: bool = True) -> list[str]:
        """The most probable concepts, and each task logit as a sum, as lines to read.

        If the image is unlike the training images, the first line says so.

        Args:
            top: How many concepts to name, above and in each sum.
            tasks: How many tasks to show, the most probable ones; None shows all, in the model's order.
            say_unlike: Whether to say first that the image is unlike the training images, if it is.
        """
        lines = [f"  {self.unlike}"] if self.unlike and say_unlike else []
        for prediction in self.concepts[:top]:
            known = not math.isnan(prediction.threshold)
            threshold = f" (threshold {prediction.threshold:.3f})" if known else ""
            lines.append(f"  {prediction.concept:<28} {prediction.probability:6.3f}  {prediction.verdict}{threshold}")
        chosen = self.tasks
        if tasks is not None:
            chosen = tuple(sorted(chosen, key=lambda task: -task.probability)[:tasks])
        for task in chosen:
            more = ", ..." if len(task.contributions) > top else ""
            parts = ", ".join(f"{part.concept} {part.value:+.2f}" for part in task.contributions[:top])
            figures = f"p = {task.probability:.3f}, logit {task.logit:+.2f} = bias {task.bias:+.2f}"
            lines.append(f"  {task.task}: {figures}, {parts}{more}")
        return lines if chosen else [*lines, "  (this model was taught no task)"]

    def heading(self, *, say_unlike: bool = True) -> str:
        """What stands above a picture: whether the image is unlike the training images, and the most probable tasks.

        Args:
            say_unlike: Whether to say the first.

        Returns:
            One line; empty if there is nothing to say.
        """
        shown = sorted(self.tasks, key=lambda task: -task.probability)[:_SHOWN_TASKS]
        more = f" (the most probable of {len(self.tasks)} tasks)" if len(self.tasks) > len(shown) else ""
        tasks = ", ".join(f"{task.task}: p = {task.probability:.2f}" for task in shown) + more
        unlike = f"{self.unlike[0].upper()}{self.unlike[1:]}." if self.unlike and say_unlike else ""
        return " ".join(filter(None, [unlike, tasks]))

    def figure(
        self,
        *,
        boxes: ConceptBoxes | None = None,
        concepts: Sequence[str] = (),
        top: int = 5,
        heading: str | None = None,
    ) -> "Image":
        """The image beside the maps of its concepts, each below its probability and verdict.

        Args:
            boxes: Boxes of this image, each drawn on the map of its concept; concepts are numbered as in the model.
            concepts: Which concepts to show; if empty, the `top` most probable.
            top: How many to show if `concepts` is empty.
            heading: Line above all; None is `heading()`.

        Raises:
            ValueError: If the model has no such concept.
        """
        from conceptcam.analysis.figures import concept_panel  # needs Pillow

        check_not_str("concepts", concepts)
        shown = [self.concept(name) for name in concepts] or list(self.concepts[:top])
        names = [prediction.concept for prediction in shown]
        drawn = boxes or ConceptBoxes.empty()
        return concept_panel(
            self.image,
            names,
            [prediction.heatmap for prediction in shown],
            captions=[prediction.caption() for prediction in shown],
            boxes=[drawn.xyxy[drawn.concept == self.concept_names.index(name)] for name in names],
            heading=self.heading() if heading is None else heading,
        )

    def __repr__(self) -> str:
        """Names and numbers, without maps; a notebook shows the picture too."""
        head = f"Explanation of {len(self.concepts)} concepts and {len(self.tasks)} tasks"
        return "\n".join([head, *([self.unlike] if self.unlike else []), *self.lines(top=3, tasks=3)])

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.figure().save(file, format="PNG")
        return file.getvalue()

    def _repr_html_(self) -> str:
        picture = base64.b64encode(self._repr_png_()).decode()
        return f'<img src="data:image/png;base64,{picture}">{html_text(repr(self))}'


def explain(model: ConceptModel, image: Any, *, task: str | None = None) -> Explanation:
    """Which concepts a model sees in an image, where, and how much each contributes to every task.

    The model is left as it is, its mode included. If it was taught no task, the explanation holds only
    concepts and their maps.

    Args:
        model: A model that was taught concepts.
        image: A path, a PIL image, or an array or tensor as `conceptcam.data.images.load_image` takes; not yet
            normalized, of any size.
        task: The task to explain alone; None explains all tasks that the model was taught.

    Raises:
        ValueError: If the image has an impossible range or shape, the model was never taught concepts, or
            `task` is unknown or was never taught.
        FloatingPointError: If what the model says is not finite, as where half precision overflows.
    """
    return next(explain_images(model, [image], task=task))


def explain_images(
    model: ConceptModel, images: Sequence[Any], *, task: str | None = None, batch_size: int = 32
) -> Iterator[Explanation]:
    """The explanation of each image, in order, computed in batches as they are asked for.

    Args:
        model: As in `explain`.
        images: Each as in `explain`.
        task: As in `explain`.
        batch_size: Images per forward pass.

    Raises:
        ValueError: As `explain`, once the first explanation is asked for, or that of an image that cannot be used.
    """
    check_taught(model.config, model.record, task=task)
    for pixels, output in image_outputs(model, images, batch_size=batch_size):
        yield explain_output(model, pixels, output, task=task)


def image_outputs(
    model: ConceptModel, images: Sequence[Any], *, batch_size: int = 32
) -> Iterator[tuple[Tensor, ConceptOutput]]:
    """Of each image what the model takes, (3, H, W), and what it says, a batch of one, both on the CPU.

    Args:
        model: Left as it is, its mode included.
        images: Each as in `explain`.
        batch_size: Images per forward pass.

    Raises:
        ValueError: If an image cannot be used.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` (--batch-size) must be at least 1, got {batch_size}")
    for start in range(0, len(images), batch_size):
        pixels = torch.stack([model.preprocess(image).cpu() for image in images[start : start + batch_size]])
        with torch.inference_mode(), eval_mode(model) as device:
            output = ConceptOutput(*(field.cpu() for field in model(pixels.to(device))))
        check_finite(output.concept_logits, output.task_logits, output.concept_maps)
        for row in range(len(pixels)):
            yield pixels[row], ConceptOutput(*(field[row : row + 1] for field in output))


@torch.inference_mode()
def explain_output(
    model: ConceptModel, pixels: Tensor, output: ConceptOutput, *, task: str | None = None
) -> Explanation:
    """The explanation of one image, from what the model says about it.

    Args:
        model: As in `explain`.
        pixels: (3, H, W), normalized, as `model.preprocess` gives it.
        output: A batch of one, on the CPU.
        task: As in `explain`.
    """
    heatmaps = upsample(output.concept_maps[0], model.config.image_size).sigmoid()
    record = model.record
    probabilities = concept_probabilities(output.concept_logits[0], model.config, record).tolist()
    predictions = [
        ConceptPrediction(name, probability, record.calibrated(name, record.thresholds.get(name, math.nan)), heatmap)
        for name, probability, heatmap in zip(model.config.concepts, probabilities, heatmaps, strict=True)
    ]
    predictions.sort(key=lambda prediction: -prediction.probability)
    tasks = _explain_tasks(model, output, heatmaps) if tasks_taught(model.config, model.record) else ()
    tasks = tuple(one for one in tasks if task in (None, one.task))
    distance = float(unlikeness(record, output.features)[0])
    return Explanation(
        model.preprocess.denormalize(pixels),
        model.config.concepts,
        tuple(predictions),
        tasks,
        distance,
        unlike_sentence(record, distance),
    )


def _explain_tasks(model: ConceptModel, output: ConceptOutput, heatmaps: Tensor) -> tuple[TaskExplanation, ...]:
    config = model.config
    # Python floats, summed without rounding, so that the contributions add up to the logit that is shown.
    contributions = model.task_head.contributions(output.evidence.to(model.task_head.weight.device)).cpu()[0].double()
    biases = model.task_head.bias.detach().cpu().double().tolist()
    per_concept = contributions.sum(dim=-1).tolist()
    logits = [math.fsum([bias, *values]) for bias, values in zip(biases, per_concept, strict=True)]
    probabilities = task_probabilities(torch.tensor(logits), config, model.record).tolist()
    explained = []
    for task, name in enumerate(config.tasks):
        maps = heatmaps
        if config.bottleneck == "prototypes":
            strongest = contributions[task].abs().argmax(dim=-1)
            chosen = output.similarity_maps[0, torch.arange(len(config.concepts)), strongest]
            maps = upsample(chosen, config.image_size)
        parts = [Contribution(*row) for row in zip(config.concepts, per_concept[task], maps, strict=True)]
        parts.sort(key=lambda part: -abs(part.value))
        explained.append(TaskExplanation(name, probabilities[task], logits[task], biases[task], tuple(parts)))
    return tuple(explained)


def _named(name: str, known: dict[str, Any], what: str) -> Any:
    check_known(what, name, known)
    return known[name]
