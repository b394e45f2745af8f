"""Figures and tables of a run, written into its folder."""

import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from conceptcam._checks import check_known, check_not_str
from conceptcam._files import atomic_write, file_names, write_json, write_text
from conceptcam.analysis.baselines import Baselines
from conceptcam.analysis.evaluation import evaluate
from conceptcam.analysis.evaluation_result import Evaluation
from conceptcam.analysis.explanation import explain
from conceptcam.analysis.figures import learning_figure, save_png
from conceptcam.analysis.learning_curves import has_curve, plot_learning_curves
from conceptcam.analysis.slow_measures import measure_slow
from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.images import load_image
from conceptcam.hub.weights import save_tensors
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
        file: Where to keep the maps too, so that a run which was killed goes on with those of its earlier epochs.

    Attributes:
        maps: Epoch -> (len(concepts), h, w) logits.

    Raises:
        ValueError: If the image is impossible, or a concept is not among the known.
    """

    def __init__(
        self, image: Any, concepts: Sequence[str], known: Sequence[str] = (), *, file: Path | None = None
    ) -> None:
        check_not_str("concepts", concepts)
        self.image = load_image(image)
        for name in concepts if known else ():
            check_known("concept", name, known)
        self.concepts = tuple(concepts)
        self.maps: dict[int, Tensor] = {}
        self._file = file
        if file is not None and file.exists():
            with contextlib.suppress(SafetensorError):  # it is a picture alone
                self.maps = {int(epoch): maps for epoch, maps in load_file(file).items()}

    @torch.inference_mode()
    def __call__(self, model: ConceptModel, result: EpochResult) -> None:
        """Keep the maps of this epoch, in place of those of this and later ones that a killed run has seen."""
        if result.stage != "concepts":
            return
        for name in self.concepts:
            check_known("concept", name, model.config.concepts)
        with eval_mode(model) as device:
            part = model.forward_concepts(model.preprocess(self.image)[None].to(device))
        index = [model.config.concepts.index(name) for name in self.concepts]
        self.maps = {epoch: maps for epoch, maps in self.maps.items() if epoch < result.epoch}
        self.maps[result.epoch] = part.concept_maps[0, index].cpu()
        if self._file is not None:
            with atomic_write(self._file) as scratch:
                save_tensors({str(epoch): maps for epoch, maps in self.maps.items()}, scratch)

    def figure(self, model: ConceptModel, boxes: ConceptBoxes | None) -> Image:
        """The image's maps with its boxes, a column per epoch, up to eight of them."""
        drawn = boxes or ConceptBoxes.empty()
        epochs = sorted(self.maps)
        shown = [epochs[i] for i in torch.linspace(0, len(epochs) - 1, min(8, len(epochs))).round().int().tolist()]
        return learning_figure(
            model.preprocess.denormalize(model.preprocess(self.image)),
            self.concepts,
            shown,
            [upsample(self.maps[epoch], model.config.image_size).sigmoid() for epoch in shown],
            boxes=[drawn.xyxy[drawn.concept == model.config.concepts.index(name)] for name in self.concepts],
        )


def draw_learning(run: RunFolder, model: ConceptModel, maps: Iterable[MapHistory], example: ConceptItem | None) -> None:
    """Draw what was learned epoch by epoch: the example's maps, and the curves if matplotlib is installed.

    Stages of one epoch, such as those that were solved for, have neither.
    """
    for kept in maps:
        if example is not None and len(kept.maps) > 1:
            save_png(kept.figure(model, example.boxes), run.figures / "learning.png")
    history = read_history(run.history)
    if has_curve(history) and importlib.util.find_spec("matplotlib") is not None:
        with atomic_write(run.figures / "curves.png") as scratch:
            plot_learning_curves(history).savefig(scratch, format="png")


def measure(
    model: ConceptModel,
    dataset: ConceptDataset,
    run: RunFolder,
    options: RunOptions,
    *,
    sided_concepts: Sequence[str] = (),
    baselines: Baselines | None = None,
) -> Evaluation:
    """Evaluate a model, beside baselines if any are given; writes `metrics.json` and `metrics.txt` into a folder."""
    dataset.preprocess = model.preprocess
    result = evaluate(
        model,
        loader(dataset, options),
        sided_concepts=sided_concepts,
        baselines=baselines,
        device=options.device,
        patients=dataset.patients,
    )
    write_json(run.metrics, result.as_dict())
    write_text(run.metrics_table, result.table())
    return result


def measure_rest(
    model: ConceptModel,
    dataset: ConceptDataset,
    result: Evaluation,
    run: RunFolder,
    options: RunOptions,
    *,
    echo: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """What `measure` gave, and what takes long besides; writes both files anew. `echo` is as in `measure_slow`."""
    dataset.preprocess = model.preprocess
    labels = result.per_image.concepts
    slow = measure_slow(model, loader(dataset, options), labels, device=options.device, echo=echo)
    result = dataclasses.replace(result, slow=slow)
    write_json(run.metrics, result.as_dict())
    write_text(run.metrics_table, result.table())
    return result


def save_explanations(model: ConceptModel, items: Iterable[ConceptItem], folder: Path) -> list[Path]:
    """Draw what a model sees in images as read: one figure each, of the concepts with boxes and the most probable.

    Returns:
        The files written, named after the items; see `file_names`.
    """
    items, paths = list(items), []
    for item, name in zip(items, file_names([item.name for item in items]), strict=True):
        explanation = explain(model, item.image)
        marked = [] if item.boxes is None else [model.config.concepts[k] for k in item.boxes.concept.unique().tolist()]
        probable = [one.concept for one in explanation.concepts if one.concept not in marked]
        picture = explanation.figure(boxes=item.boxes, concepts=[*marked, *probable][: max(4, len(marked))])
        paths.append(folder / f"{name}.png")
        save_png(picture, paths[-1])
    return paths
