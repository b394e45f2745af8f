"""Figures and tables of a run, written into its folder."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from conceptcam._checks import check_not_str
from conceptcam.analysis.explanation import _named
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.images import load_image
from conceptcam.metrics.map_scores import upsample
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.device import eval_mode
from conceptcam.runs.options import loader

if TYPE_CHECKING:
    pass


import importlib.util
from collections.abc import Iterable
from pathlib import Path

from conceptcam._files import write_json
from conceptcam.analysis.evaluation import Evaluation, evaluate
from conceptcam.analysis.explanation import explain
from conceptcam.analysis.figures import learning_figure, save_png
from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.runs.folder import FIGURES, HISTORY_FILE
from conceptcam.runs.options import RunOptions
from conceptcam.training.history import plot_learning_curves, read_history


class _Epoch(Protocol):
    """What `MapHistory` needs of a training record."""

    @property
    def stage(self) -> str: ...

    @property
    def epoch(self) -> int: ...


class MapHistory:
    """Keeps an image's concept maps epoch by epoch: a picture of learning.

    Pass it as a Trainer's `callbacks`, or call it from there; stages that do not change concept maps are left
    out.

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
    def __call__(self, model: ConceptModel, record: _Epoch) -> None:
        """Keep the (len(concepts), H, W) maps of this epoch."""
        if record.stage != "concepts":
            return
        with eval_mode(model) as device:
            seen = model.forward_concepts(model.preprocess(self.image)[None].to(device))
        known = {name: place for place, name in enumerate(model.config.concepts)}
        index = [_named(name, known, "concept") for name in self.concepts]
        self.epochs.append(record.epoch)
        self.heatmaps.append(upsample(seen.concept_maps[0, index], model.config.image_size).sigmoid().cpu())


METRICS_FILE = "metrics.json"


TABLE_FILE = "metrics.txt"


EXPLANATIONS = f"{FIGURES}/images"


def _draw_learning(folder: Path, model: ConceptModel, maps: MapHistory | None, watch: ConceptItem | None) -> None:
    """Draw what was learned epoch by epoch: the watched image's maps, and the curves if matplotlib is there."""
    if watch is not None and maps is not None and maps.epochs:
        save_learning(maps, watch, model, folder / FIGURES / "learning.png")
    if importlib.util.find_spec("matplotlib") is not None:
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
        plot_learning_curves(read_history(folder / HISTORY_FILE)).savefig(folder / FIGURES / "curves.png")


def measure(
    model: ConceptModel,
    dataset: ConceptDataset,
    folder: Path,
    options: RunOptions,
    *,
    sided_concepts: Sequence[str] = (),
) -> Evaluation:
    """Evaluate a model and write `metrics.json` and `metrics.txt` into a folder."""
    dataset.preprocess = model.preprocess
    result = evaluate(model, loader(dataset, options), sided_concepts=sided_concepts, device=options.device)
    write_json(folder / METRICS_FILE, result.as_dict())
    (folder / TABLE_FILE).write_text(result.table(), encoding="utf-8")
    return result


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
