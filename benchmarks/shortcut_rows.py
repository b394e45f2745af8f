"""Ways to keep a model from a shortcut: what each row of `shortcut.py`'s table is, how one is trained and tested."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import experiment
import torch
import torch.nn.functional as F
from measuring import machine
from torch import Tensor

from conceptcam import ConceptBoxes, ConceptItem, ConceptModel, Stage, Trainer, get_preset
from conceptcam.backbones.base import Backbone, BackboneOptions
from conceptcam.backbones.registry import register_backbone
from conceptcam.backbones.small_cnn import SmallCnn
from conceptcam.data.phantom import PHANTOM_CONCEPTS, Phantom, PhantomConfig, PhantomDataset
from conceptcam.data.transplant import FindingTransplant
from conceptcam.losses import BBoxGuidedConceptLoss, class_balanced_loss
from conceptcam.metrics.classification import LabelScores, macro_average, per_label_metrics
from conceptcam.metrics.localization import LocalizationMetrics
from conceptcam.runs.demo import demo_config
from conceptcam.runs.options import RunOptions, loader
from conceptcam.training.stages import concept_stage

CONCEPT = "Infiltration"
TIED = PHANTOM_CONCEPTS.index(CONCEPT)
OTHERS = [index for index in range(len(PHANTOM_CONCEPTS)) if index != TIED]
TESTS = ("aligned", "clean", "reversed")
CHEST = (0.03, 0.0, 0.895, 1.0)
"""Left, top, right and bottom of the part of every image that the chest lies in: all but a strip beside it."""

GREY = 250
"""Of the letter."""

Augmentation = Callable[[ConceptItem], ConceptItem]


@dataclass(frozen=True, kw_only=True)
class Scale(experiment.Scale):
    """How large an experiment is, and how often the letter goes with the finding."""

    strength: float = 0.95


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to train.

    Attributes:
        loss: Options of `BBoxGuidedConceptLoss`.
        model: Fields of `ConceptConfig`.
        augmentation: Makes what changes the training items, of the training data.
        changes_tests: Whether test images are changed too.
        doctor: Whether prototypes are learned, and a doctor who sees the letter drops those that look at it. What is
            measured is then the evidence of the others, not the concept map.
    """

    loss: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    augmentation: Callable[[PhantomDataset], Augmentation] | None = None
    changes_tests: bool = False
    doctor: bool = False


def without_boxes(data: PhantomDataset) -> Augmentation:
    """Nobody drew."""
    return lambda item: item._replace(boxes=None)


def chest_region(data: PhantomDataset) -> Augmentation:
    """Somebody drew one rectangle around the chest, for all images."""
    region = chest(data.config.size).to(torch.uint8)
    return lambda item: item._replace(region=region)


def chest_only(data: PhantomDataset) -> Augmentation:
    """Everything beside the chest is painted black."""
    seen = chest(data.config.size)
    return lambda item: item._replace(image=item.image * seen)


def negative_boxes(data: PhantomDataset, every: int = 1) -> Augmentation:
    """Somebody drew where nothing can be: around the letter, in each or in some of the images that have it."""
    marker = marker_of(data)

    def drawn(item: ConceptItem) -> ConceptItem:
        chosen = int(item.name.rsplit("-", 1)[1]) % every == 0
        has = chosen and bool((item.image[0][marker] == GREY).all())
        return item._replace(region=(~widened(marker)).to(torch.uint8)) if has else item

    return drawn


def erased(data: PhantomDataset) -> Augmentation:
    """A random patch of each image is covered by a random grey."""
    from torchvision.transforms import v2

    cover = v2.RandomErasing(p=0.5, scale=(0.02, 0.33), value=128)
    return lambda item: item._replace(image=cover(item.image))


def chest(size: int) -> Tensor:
    """(size, size) bool, the rectangle `CHEST`."""
    left, top, right, bottom = (round(edge * size) for edge in CHEST)
    inside = torch.zeros(size, size, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    return inside


def marker_of(data: PhantomDataset) -> Tensor:
    """(size, size) bool, the letter's strokes."""
    return torch.from_numpy(Phantom(data.config).marker_mask(0))


def widened(mask: Tensor) -> Tensor:
    """The rectangle around a mask."""
    rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
    whole = torch.zeros_like(mask)
    whole[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return whole


@register_backbone("short_sight_s8")
def short_sight_s8(options: BackboneOptions) -> Backbone:
    """A `small_cnn_s8` of which a cell sees 47 pixels: from most places in the lungs the letter is out of sight."""
    return SmallCnn(options.image_size, dilations=(1,))


SHORT_SIGHT: dict[str, Any] = {"backbone": "short_sight_s8"}
IN_BOX: dict[str, Any] = {"presence": "in_box"}
PEAK: dict[str, Any] = {"outside": "max"}

ROWS: dict[str, Row] = {
    "no boxes": Row(augmentation=without_boxes),
    "boxes": Row(),
    "boxes, beta 5": Row(loss={"beta": 5.0}),
    "boxes, beta 50": Row(loss={"beta": 50.0}),
    "mean pooling": Row(model={"pooling": "mean"}),
    "top tenth": Row(model={"pooling": "topk", "pooling_param": 0.1}),
    "peak outside": Row(loss=PEAK),
    "in box": Row(loss=IN_BOX),
    "in box, peak outside": Row(loss=IN_BOX | PEAK),
    "in box, peak, beta 5": Row(loss=IN_BOX | PEAK | {"beta": 5.0}),
    "short sight": Row(model=SHORT_SIGHT),
    "short sight, in box": Row(model=SHORT_SIGHT, loss=IN_BOX),
    "chest drawn": Row(augmentation=chest_region),
    "letter drawn": Row(augmentation=negative_boxes),
    "tenth of letters drawn": Row(augmentation=lambda data: negative_boxes(data, every=10)),
    "erasing": Row(augmentation=erased),
    "transplants": Row(augmentation=FindingTransplant),
    "transplants, in box": Row(augmentation=FindingTransplant, loss=IN_BOX),
    "transplants, peak": Row(augmentation=FindingTransplant, loss=PEAK),
    "prototypes, doctor": Row(doctor=True),
    "chest cut out": Row(augmentation=chest_only, changes_tests=True),
}


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Images to train on, to choose the epoch by, and to test on: the same three times but for the letter."""

    train: PhantomDataset
    val: PhantomDataset
    tests: Mapping[str, PhantomDataset]


def draw(seed: int, scale: Scale) -> Drawn:
    """The images of a seed, from the cache if they are there."""

    def one(part: int, count: int, shortcut: str) -> PhantomDataset:
        config = PhantomConfig(
            size=scale.size, shortcut=shortcut, shortcut_concept=CONCEPT, shortcut_strength=scale.strength
        )
        return PhantomDataset(count, seed=3 * seed + part, config=config)

    val = max(200, scale.images // 10)
    tests = {name: one(2, scale.test_images, name) for name in TESTS}
    return Drawn(train=one(0, scale.images, "aligned"), val=one(1, val, "aligned"), tests=tests)


def run_row(name: str, seed: int, scale: Scale, device: str = "cpu") -> dict[str, Any]:
    """Train one row on one seed and measure it."""
    row, start = ROWS[name], time.perf_counter()
    data = draw(seed, scale)
    torch.manual_seed(seed)
    config = demo_config(scale.size, "prototypes" if row.doctor else "concepts", backbone=scale.backbone)
    model = ConceptModel.from_config(dataclasses.replace(config, **row.model))
    options = RunOptions(batch_size=scale.batch_size, seed=seed, device=device)
    for part in (data.train, data.val, *data.tests.values()):
        part.preprocess = model.preprocess
        if row.augmentation is not None and (row.changes_tests or part is data.train):
            part.augmentation = row.augmentation(part)
    trainer = Trainer(seed=seed, device=device)
    batches = loader(data.train, options, shuffle=True), loader(data.val, options)
    trainer.fit(model, stages(row, model, data.train, scale), *batches)
    tests = {kind: loader(part, options) for kind, part in data.tests.items()}
    seen = {kind: look(model, batches) for kind, batches in tests.items()}
    letter = letter_cells(data.train, seen["clean"].maps.shape[2:])
    if row.doctor:
        kept = kept_prototypes(model, loader(data.train, options), letter)
        seen = {kind: one.through(kept) for kind, one in seen.items()}
    return {
        "row": name,
        "seed": seed,
        "scale": dataclasses.asdict(scale),
        "figures": measure(seen, data, letter),
        "seconds": round(time.perf_counter() - start),
        "machine": machine(),
    }


def stages(row: Row, model: ConceptModel, train: PhantomDataset, scale: Scale) -> list[Stage]:
    """Stage 1 as the row says, and stage 2 where there are prototypes."""
    balanced = class_balanced_loss("ratio", train.concept_labels)
    counts = {"concepts": scale.epochs, "prototypes": scale.epochs}
    first, *later = get_preset().stages(model.config, concept_loss=balanced, epochs=counts)
    own = concept_stage(
        BBoxGuidedConceptLoss(classification=balanced, **row.loss),
        lr=first.lr, epochs=first.epochs, schedule=first.schedule,
    )  # fmt: skip
    return [own, *later[:-1]]  # the task is not learned


@dataclass(frozen=True)
class Seen:
    """What a model shows on a data set: on the CPU, in the order of the images."""

    logits: Tensor
    """(N, K)"""
    maps: Tensor
    """(N, K, h, w)"""
    evidence: Tensor | None = None
    """(N, M) of the tied concept's prototypes."""
    similarity: Tensor | None = None
    """(N, M, h, w) their maps."""

    def through(self, kept: Tensor) -> "Seen":
        """The tied concept as the prototypes show it that are kept: the nearest of them decides."""
        if self.evidence is None or self.similarity is None or not kept.any():
            return self
        highest, which = self.evidence[:, kept].max(dim=1)
        logits, maps = self.logits.clone(), self.maps.clone()
        logits[:, TIED] = highest
        maps[:, TIED] = self.similarity[:, kept][torch.arange(len(which)), which]
        return Seen(logits, maps)


@torch.inference_mode()
def look(model: ConceptModel, batches: Any) -> Seen:
    parts: list[tuple[Tensor, ...]] = []
    for batch in batches:
        if model.config.bottleneck == "concepts":
            part = model.forward_concepts(batch.images.to(model.device))
            parts.append((part.concept_logits.cpu(), part.concept_maps.cpu()))
        else:
            output = model(batch.images.to(model.device))
            own = (output.evidence[:, TIED], output.similarity_maps[:, TIED])
            parts.append(tuple(one.cpu() for one in (output.concept_logits, output.concept_maps, *own)))
    return Seen(*map(torch.cat, zip(*parts, strict=True)))


def letter_cells(data: PhantomDataset, grid: Sequence[int]) -> Tensor:
    """(h, w) bool, the cells of the grid that the rectangle around the letter touches."""
    return F.adaptive_max_pool2d(widened(marker_of(data)).float()[None], tuple(grid))[0] > 0


def kept_prototypes(model: ConceptModel, batches: Any, letter: Tensor) -> Tensor:
    """(M,) which of the tied concept's prototypes a doctor keeps who looks at the ten training images nearest to each.

    One is dropped if its map peaks on the letter in most of them.
    """
    seen = look(model, batches)
    assert seen.evidence is not None and seen.similarity is not None
    nearest = seen.evidence.topk(10, dim=0).indices  # (10, M)
    peaks = seen.similarity[nearest, torch.arange(nearest.shape[1])].flatten(-2).argmax(dim=-1)
    return letter.flatten()[peaks].float().mean(dim=0) <= 0.5


def measure(seen: Mapping[str, Seen], data: Drawn, letter: Tensor) -> dict[str, float]:
    """The figures of one training; see the page for what they mean."""
    labels = data.tests["clean"].concept_labels
    marked = {kind: has_letter(part) for kind, part in data.tests.items()}
    scores = {kind: per_label_metrics(one.logits, labels) for kind, one in seen.items()}
    present = labels[:, TIED] > 0
    both = marked["aligned"] & present
    peaks = seen["aligned"].maps[both, TIED].flatten(1).argmax(dim=1)
    places = {kind: pointing(one, data.tests[kind]) for kind, one in seen.items() if kind != "reversed"}
    return {
        "on marker": float(letter.flatten()[peaks].float().mean()),
        "near marker": float(grown(letter).flatten()[peaks].float().mean()),
        **{kind: float(one.auroc[TIED]) for kind, one in scores.items()},
        "pull": pull(seen, marked),
        "pointing": float(places["aligned"][TIED]),
        "pointing, clean": float(places["clean"][TIED]),
        **others(scores["clean"]),
        "others pointing": float(macro_average(places["clean"][OTHERS])),
    }


def others(scores: LabelScores) -> dict[str, float]:
    """What the cure costs: the other concepts, where there is no letter."""
    return {
        "others AUROC": float(macro_average(scores.auroc[OTHERS])),
        "others AP": float(macro_average(scores.average_precision[OTHERS])),
    }


def pull(seen: Mapping[str, Seen], marked: Mapping[str, Tensor]) -> float:
    """How far the letter alone moves the logit of the same image, in standard deviations of the clean logits."""
    clean = seen["clean"].logits[:, TIED]
    moved = torch.cat([(seen[kind].logits[:, TIED] - clean)[marked[kind]] for kind in ("aligned", "reversed")])
    return float(moved.mean() / clean.std())


def pointing(seen: Seen, data: PhantomDataset) -> Tensor:
    """(K,) how often each concept's map peaks in its box."""
    metric = LocalizationMetrics(len(PHANTOM_CONCEPTS))
    boxes, size = data.all_boxes, (data.config.size,) * 2
    for start in range(0, len(data), 250):
        own = (boxes.image >= start) & (boxes.image < start + 250)
        some = ConceptBoxes(boxes.xyxy[own], boxes.concept[own], boxes.image[own] - start)
        metric.update(seen.maps[start : start + 250], some, size)
    return metric.compute().pointing


def has_letter(data: PhantomDataset) -> Tensor:
    """(N,) which images have the letter."""
    phantom = Phantom(data.config, data.seed)
    return torch.tensor([phantom.case(data.first + index).marker for index in range(len(data))])


def grown(cells: Tensor) -> Tensor:
    """The cells and their neighbours."""
    return F.max_pool2d(cells[None].float(), 3, stride=1, padding=1)[0] > 0
