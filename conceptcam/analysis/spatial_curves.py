"""Whether pointing helps: the tasks' figures once a person has drawn boxes, as less and less counts of other places."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from conceptcam._checks import check_choice
from conceptcam.analysis.intervention import weigh_places
from conceptcam.analysis.intervention_curves import task_figures
from conceptcam.data.batch import Batches, ConceptBatch, as_batch
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.metrics.classification import macro_average, per_label_metrics
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.device import eval_mode
from conceptcam.model.outputs import ConceptOutput
from conceptcam.model.taught import check_taught

Places = Literal["oracle", "jittered", "mirrored"]
Scope = Literal["image", "concept"]

_JITTER = 0.15  # standard deviation of each edge, of the box's own width or height


class SpatialCurve(NamedTuple):
    """Figures at J weights of the places outside the boxes; (J,) float64 each."""

    elsewhere: Tensor
    """The weights; at 1 nothing changes, to the bit."""
    auroc: Tensor
    """Macro AUROC of the tasks."""
    average_precision: Tensor
    """Macro average precision of the tasks."""
    accuracy: Tensor
    """Accuracy of tasks that exclude each other, else NaN."""
    concept_auroc: Tensor
    """Macro AUROC of the concepts."""


@torch.no_grad()
def spatial_curve(
    model: ConceptModel,
    batches: Batches,
    *,
    places: Places = "oracle",
    scope: Scope = "image",
    elsewhere: Sequence[float] = (1.0, 0.5, 0.2, 0.0),
    seed: int = 0,
) -> SpatialCurve:
    """Weigh places outside the boxes of each image less and less, and measure the tasks (CSR, Eq. 12 and 13).

    An image without boxes stays as it is.

    Args:
        model: A model that was taught a task.
        batches: As `evaluate` takes, with boxes.
        places: `"oracle"`, the boxes as they are drawn; `"jittered"`, as of a less careful reader, their edges moved by
            a standard deviation of .15 of their width or height; `"mirrored"`, left for right, to see how much harm a
            wrong place does.
        scope: `"image"`: the boxes of all concepts together weigh the maps of all concepts, as in CSR, so that a
            concept that is nowhere loses what it saw elsewhere; `"concept"`: the boxes of each concept weigh its own
            map alone.
        elsewhere: Weights in [0, 1] of places outside.
        seed: Of the jitter.

    Raises:
        ValueError: If the model was never taught its tasks, a choice is unknown, a weight is out of range, or there are
            no batches.
    """
    measure = SpatialMeasure(model, places=places, scope=scope, elsewhere=elsewhere, seed=seed)
    with eval_mode(model) as where, torch.random.fork_rng(devices=[]):
        for given in batches:
            batch = as_batch(given).to(where)
            measure.add(batch, model(batch.images))
    return measure.compute()


class SpatialMeasure:
    """`spatial_curve` of batches that pass one by one; arguments are those of that function.

    Args:
        model: As there; in eval mode while batches are added.
        places: As there.
        scope: As there.
        elsewhere: As there.
        seed: As there.

    Raises:
        ValueError: As there.
    """

    def __init__(
        self,
        model: ConceptModel,
        *,
        places: Places = "oracle",
        scope: Scope = "image",
        elsewhere: Sequence[float] = (1.0, 0.5, 0.2, 0.0),
        seed: int = 0,
    ) -> None:
        check_choice("places", places, Places)
        check_choice("scope", scope, Scope)
        if not all(0 <= weight <= 1 for weight in elsewhere):
            raise ValueError(f"`elsewhere` must hold weights in [0, 1], got {list(elsewhere)}")
        check_taught(model.config, model.record, task=next(iter(model.config.tasks), "any"))
        self._model, self._elsewhere = model, tuple(elsewhere)
        self._places: Places = places
        self._scope: Scope = scope
        self._random = torch.Generator().manual_seed(seed)
        self._rows: list[tuple[Tensor, ...]] = []

    def add(self, batch: ConceptBatch, output: ConceptOutput) -> None:
        """Weigh the places of a batch, and keep evidence and concept logits at each weight."""
        boxes = batch.boxes
        drawn = ConceptBoxes.empty() if boxes is None else move_boxes(boxes.to("cpu"), self._places, self._random)
        inside = _inside(drawn.to(output.concept_maps.device), output.concept_maps, self._scope)
        changed = [
            weigh_places(self._model, output, inside.lerp(torch.ones_like(inside), weight))
            for weight in self._elsewhere
        ]
        names = ("evidence", "concept_logits")
        parts = [torch.stack([getattr(one, name) for one in changed], dim=1) for name in names]
        self._rows.append(tuple(part.cpu() for part in (*parts, batch.concepts, batch.targets)))

    def compute(self) -> SpatialCurve:
        """The curve.

        Raises:
            ValueError: If there were no batches.
        """
        if not self._rows:
            raise ValueError("there are no batches to point in")
        evidence, logits, labels, targets = map(torch.cat, zip(*self._rows, strict=True))
        tasks = torch.stack([task_figures(self._model, one, targets) for one in evidence.unbind(1)], dim=1)
        concepts = [macro_average(per_label_metrics(one, labels).auroc) for one in logits.unbind(1)]
        return SpatialCurve._make((torch.tensor(self._elsewhere, dtype=torch.float64), *tasks, torch.stack(concepts)))


def move_boxes(boxes: ConceptBoxes, places: Places, random: torch.Generator) -> ConceptBoxes:
    """Boxes as they are, jittered, or mirrored left for right.

    Args:
        boxes: On the CPU.
        places: As in `spatial_curve`.
        random: Of the jitter.

    Returns:
        As many boxes, all inside the image; a jittered one is at least a thousandth of the image wide and high.
    """
    left, top, right, bottom = boxes.xyxy.unbind(1)
    if places == "mirrored":
        xyxy = torch.stack([1 - right, top, 1 - left, bottom], dim=1)
    elif places == "jittered" and len(boxes):
        size = torch.stack([right - left, bottom - top] * 2, dim=1)
        xyxy = boxes.xyxy + _JITTER * size * torch.randn(size.shape, generator=random)
        low, high = torch.minimum(xyxy[:, :2], xyxy[:, 2:]), torch.maximum(xyxy[:, :2], xyxy[:, 2:])
        low = low.clamp(0, 1 - 1e-3)
        xyxy = torch.cat([low, torch.maximum(high.clamp(max=1), low + 1e-3)], dim=1)
    else:
        return boxes
    return ConceptBoxes(xyxy, boxes.concept, boxes.image)


def _inside(boxes: ConceptBoxes, maps: Tensor, scope: Scope) -> Tensor:
    """(B, K, h, w) in [0, 1], how much of each cell is in boxes; 1 everywhere if there are none."""
    inside = boxes.coverage(maps.shape).to(maps)
    if scope == "image":
        inside = inside.amax(dim=1, keepdim=True).expand_as(inside)
    nowhere = (inside == 0).all(dim=-1).all(dim=-1)
    return inside.masked_fill(nowhere[..., None, None], 1.0)
