"""Figures and tables of a run, written into its folder."""

import importlib.util
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conceptcam._checks import check_not_str
from conceptcam._files import write_json, write_text
from conceptcam.analysis.evaluation import Evaluation, evaluate
from conceptcam.analysis.explanation import Explanation, _named, explain
from conceptcam.analysis.figures import learning_figure, save_png
from conceptcam.analysis.learning_curves import plot_learning_curves
from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.images import load_image
from conceptcam.metrics.map_scores import upsample
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.device import eval_mode
from conceptcam.runs.folder import RunFolder
from conceptcam.runs.options import RunOptions, loader
from conceptcam.training.history import EpochResult, read_history


class MapHistory:
    """Keeps an image's concept maps epoch by epoch: a picture of learning.

    Pass it in a Trainer's `callbacks`. Stages that do not change concept maps are left out.

    Args:
        image: As `explain` takes.
        concepts: Names of the concepts to follow.
        known: Names of all the model's concepts, if they are to be checked before any training.

    Raises:
        ValueError: If the image is impossible, or a concept is not among the known.
    """

    def __init__(self, image: Any, concepts: Sequence[str], known: Sequence[str] = ()) -> None:
        check_not_str("concepts", concepts)
        self.image = load_image(image)
        for name in concepts if known else ():
            _named(name, dict.fromkeys(known), "concept")
        self.concepts = tuple(concepts)
        self.epochs: list[int] = []
        self.heatmaps: list[Tensor] = []

    @torch.inference_mode()
    def __call__(self, model: ConceptModel, result: EpochResult) -> None:
        """Keep the (len(concepts), H, W) maps of this epoch."""
        if result.stage != "concepts":
            return
        with eval_mode(model) as device:
            seen = model.forward_concepts(model.preprocess(self.image)[None].to(device))
        known = {name: place for place, name in enumerate(model.config.concepts)}
        index = [_named(name, known, "concept") for name in self.concepts]
        self.epochs.append(result.epoch)
        self.heatmaps.append(upsample(seen.concept_maps[0, index], model.config.image_size).sigmoid().cpu())


def draw_learning(run: RunFolder, model: ConceptModel, maps: MapHistory | None, example: ConceptItem | None) -> None:
    """Draw what was learned epoch by epoch: the example's maps, and the curves if matplotlib is installed."""
    if example is not None and maps is not None and maps.epochs:
        save_learning(maps, example, model, run.figures / "learning.png")
    if importlib.util.find_spec("matplotlib") is not None:
        run.figures.mkdir(parents=True, exist_ok=True)
        plot_learning_curves(read_history(run.history)).savefig(run.figures / "curves.png")


def measure(
    model: ConceptModel,
    dataset: ConceptDataset,
    run: RunFolder,
    options: RunOptions,
    *,
    sided_concepts: Sequence[str] = (),
) -> Evaluation:
    """Evaluate a model and write `metrics.json` and `metrics.txt` into a folder."""
    dataset.preprocess = model.preprocess
    result = evaluate(model, loader(dataset, options), sided_concepts=sided_concepts, device=options.device)
    write_json(run.metrics, result.as_dict())
    write_text(run.table, result.table())
    return result


def explanation_lines(explanation: Explanation, *, top: int = 5, tasks: int | None = None) -> list[str]:
    """The most probable concepts, and each task logit as a sum, as lines to read.

    Args:
        explanation: Of one image.
        top: How many concepts to name, above and in each sum.
        tasks: How many tasks to show, the most probable ones; None shows all, in the model's order.
    """
    lines = []
    for prediction in explanation.concepts[:top]:
        known = not math.isnan(prediction.threshold)
        above = "present" if prediction.probability > prediction.threshold else "absent"
        verdict = f"{above} (threshold {prediction.threshold:.3f})" if known else ""
        lines.append(f"  {prediction.concept:<28} {prediction.probability:6.3f}  {verdict}".rstrip())
    chosen = explanation.tasks
    if tasks is not None:
        chosen = tuple(sorted(chosen, key=lambda task: -task.probability)[:tasks])
    for task in chosen:
        more = ", ..." if len(task.contributions) > top else ""
        parts = ", ".join(f"{part.concept} {part.value:+.2f}" for part in task.contributions[:top])
        lines.append(
            f"  {task.task}: p = {task.probability:.3f}, logit {task.logit:+.2f} = bias {task.bias:+.2f}, {parts}{more}"
        )
    return lines if chosen else [*lines, "  (this model was taught no task)"]


def save_explanations(model: ConceptModel, items: Iterable[ConceptItem], folder: Path) -> list[Path]:
    """Draw what a model sees in images as read: one figure each, of the concepts with boxes and the most probable.

    Returns:
        The files written, named after the items.
    """
    paths = []
    for item in items:
        explanation = explain(model, item.image)
        marked = [] if item.boxes is None else [model.config.concepts[k] for k in item.boxes.concept.unique().tolist()]
        probable = [one.concept for one in explanation.concepts if one.concept not in marked]
        picture = explanation.figure(boxes=item.boxes, concepts=[*marked, *probable][: max(4, len(marked))])
        # The whole name, so that a/1.png and b/1.png stay two files.
        paths.append(folder / (str(Path(item.name).with_suffix("")).replace("/", "-") + ".png"))
        save_png(picture, paths[-1])
    return paths


def save_learning(maps: MapHistory, item: ConceptItem, model: ConceptModel, path: Path) -> None:
    """Draw the picture of learning: the same image's maps, epoch by epoch, up to eight of them."""
    boxes = item.boxes or ConceptBoxes.empty()
    index = [model.config.concepts.index(name) for name in maps.concepts]
    shown = torch.linspace(0, len(maps.epochs) - 1, min(8, len(maps.epochs))).round().int().tolist()
    picture = learning_figure(
        model.preprocess.denormalize(model.preprocess(item.image)),
        maps.concepts,
        [maps.epochs[i] for i in shown],
        [maps.heatmaps[i] for i in shown],
        boxes=[boxes.xyxy[boxes.concept == k] for k in index],
    )
    save_png(picture, path)
