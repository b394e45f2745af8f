"""The demonstration: a three-stage concept model of a drawn chest, trained, looked at and checked."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conceptcam.analysis.evaluation import Evaluation
from conceptcam.analysis.explanation import explain
from conceptcam.analysis.figures import Tile, blend, contact_sheet, save_png
from conceptcam.config import Bottleneck, ConceptConfig
from conceptcam.data.batch import ConceptDataset
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.phantom import (
    ONE_SIDED,
    PHANTOM_CONCEPTS,
    PHANTOM_DISEASES,
    SIDED_CONCEPTS,
    SMALL_FINDINGS,
    PhantomConfig,
)
from conceptcam.data.phantom.dataset import PhantomDataset
from conceptcam.data.phantom.diseases import disease_ceiling
from conceptcam.losses.classification import multilabel_loss
from conceptcam.metrics.classification import macro_average, per_label_metrics
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.heads import TaskHead
from conceptcam.runs.folder import RunFolder
from conceptcam.runs.options import RunOptions
from conceptcam.runs.reports import explanation_lines
from conceptcam.runs.run import train_run

EXAMPLE_CONCEPTS = ("Cardiomegaly", "Nodule/Mass", "Pleural effusion", "Consolidation")
"""Concepts whose maps are drawn epoch by epoch."""


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """How large a demonstration is.

    Attributes:
        images: To train on.
        val_images: To choose epochs and thresholds by.
        test_images: To evaluate on.
        backbone: Learns from scratch.
        options: How to train.
    """

    images: int
    val_images: int
    test_images: int
    backbone: str
    options: RunOptions


QUICK = DemoSettings(
    images=5600,
    val_images=400,
    test_images=1600,
    backbone="tiny_cnn_s8",
    options=RunOptions(epochs={"concepts": 8, "prototypes": 10, "task": 10}, batch_size=32),
)
"""What `conceptcam demo` trains."""

FULL = DemoSettings(
    images=8000,
    val_images=1000,
    test_images=1600,
    backbone="small_cnn_s8",
    options=RunOptions(epochs={"concepts": 8, "prototypes": 10, "task": 10}, batch_size=64),
)
"""What `conceptcam demo --full` trains, and the bundled models were."""


@dataclass(frozen=True, kw_only=True)
class DemoData:
    """Three disjoint draws of the phantom."""

    train: ConceptDataset
    val: ConceptDataset
    test: ConceptDataset
    phantom_config: PhantomConfig


def phantom_data(
    count: int,
    *,
    val_count: int | None = None,
    test_count: int | None = None,
    size: int = 112,
    seed: int = 0,
    completeness: float = 0.0,
    progress: bool = False,
) -> DemoData:
    """Drawn images to train on, to validate and to test.

    Args:
        count: Training images.
        val_count: Validation images; None is an eighth of `count`, and 200 at least.
        test_count: Test images; None is a fifth of `count`, and 300 at least.
        size: Side of the images in pixels.
        seed: Of the training images; validation and test images come from seeds of their own, so another
            `seed` draws all of them afresh.
        completeness: Of `PhantomConfig`: how much of the diseases is in the pixels only.
        progress: Whether to show a bar while drawing.
    """
    phantom_config = PhantomConfig(size=size, completeness=completeness)
    parts = [
        PhantomDataset(number, seed=3 * seed + part, config=phantom_config, progress=progress)
        for part, number in enumerate((count, val_count or max(200, count // 8), test_count or max(300, count // 5)))
    ]
    return DemoData(train=parts[0], val=parts[1], test=parts[2], phantom_config=phantom_config)


def demo_config(size: int, bottleneck: Bottleneck = "prototypes", *, backbone: str = "small_cnn_s8") -> ConceptConfig:
    """The model of the demonstration: the small backbone, from scratch, on the phantom's concepts and diseases."""
    return ConceptConfig(
        concepts=PHANTOM_CONCEPTS,
        tasks=PHANTOM_DISEASES,
        backbone=backbone,
        image_size=(size, size),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        bottleneck=bottleneck,
    )


def run_demo(
    folder: Path,
    data: DemoData,
    options: RunOptions,
    *,
    bottleneck: Bottleneck = "prototypes",
    backbone: str = "small_cnn_s8",
    echo: Callable[[str], None],
) -> dict[str, Any]:
    """Train, evaluate and draw, and write everything into a folder.

    Args:
        folder: Where to write.
        data: What to train and test on.
        options: How to train.
        bottleneck: What the task head reads.
        backbone: Name of the backbone, which learns from scratch.
        echo: Is given lines for the reader.

    Returns:
        The headline figures.
    """
    save_png(finding_sheet(data.test), RunFolder(folder).figures / "phantom.png")
    example = next(i for i in range(len(data.val)) if _has(data.val, i, EXAMPLE_CONCEPTS, at_least=2))
    echo("Training ...")
    result = train_run(
        demo_config(data.phantom_config.size, bottleneck, backbone=backbone),
        data.train,
        data.val,
        folder,
        options,
        training_data=f"{len(data.train)} drawn chest radiographs (conceptcam phantom)",
        test=data.test,
        measured_on=f"{len(data.test)} drawn chest radiographs of another seed (conceptcam phantom)",
        sided_concepts=SIDED_CONCEPTS,
        summarize=lambda model, evaluation: headline(model, evaluation, data),
        drawn=_interesting(data.test, 12),
        example_image=data.val.load_item(example),
        example_concepts=EXAMPLE_CONCEPTS,
        echo=echo,
    )
    if result.evaluation is not None:
        echo(result.evaluation.table())
    return dict(result.model.record.metrics)


def first_look(folder: Path, echo: Callable[[str], None], *, seed: int = 0) -> None:
    """Draw one phantom and echo what the bundled model `phantom-csr` sees in it and concludes; writes a figure."""
    model = ConceptModel.from_pretrained("phantom-csr")
    candidates = PhantomDataset(8, seed=1_000_003 + seed, config=PhantomConfig(), cache_dir=False)
    item = candidates.load_item(int(candidates.task_labels.sum(dim=1).argmax()))
    explanation = explain(model, item.image)
    path = RunFolder(folder).figures / "first.png"
    save_png(explanation.figure(boxes=item.boxes), path)
    echo(f"A first look, by the bundled model phantom-csr at a chest drawn just now: {path}")
    for line in explanation_lines(explanation, top=3, tasks=1):
        echo(line)


def headline(model: ConceptModel, result: Evaluation, data: DemoData) -> dict[str, Any]:
    """The figures a reader should see first, each disease figure beside what can be had at all."""
    summary = result.summary()
    small, one_sided = ([result.concepts.index(name) for name in names] for names in (SMALL_FINDINGS, ONE_SIDED))
    targets = data.test.task_labels
    true_head = fit_linear(data.train.concept_labels, data.train.task_labels)(data.test.concept_labels)
    ceiling = disease_ceiling(data.test.concept_labels.numpy(), targets.numpy(), data.phantom_config)
    return {
        "concept AUROC": summary["concept_auroc"],
        "concept AP": summary["concept_ap"],
        "pointing": summary["pointing"],
        "pointing, five small findings": float(macro_average(result.localization.pointing[small])),
        "pointing of a random map": summary["pointing_random_map"],
        "pointing of the image centre": summary["pointing_center_prior"],
        "mirror gap of the one-sided findings": float(macro_average(result.localization.mirror_gap[one_sided])),
        f"disease AUROC, {model.config.bottleneck} bottleneck": summary["task_auroc"],
        "disease AUROC, linear head on the true concepts": float(
            macro_average(per_label_metrics(true_head, targets).auroc)
        ),
        "disease AUROC, ceiling by enumeration": float(np.nanmean(list(ceiling.values()))),
    }


def fit_linear(inputs: Tensor, targets: Tensor, *, steps: int = 100) -> Callable[[Tensor], Tensor]:
    """A logistic regression of targets (N, T) on inputs (N, K): the most a linear task head can make of them."""
    head = TaskHead(inputs.shape[1], 1, targets.shape[1])  # starts at 0
    # A touch of weight decay, since some diseases follow from the concepts for sure and weights would grow forever.
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = multilabel_loss(head(inputs[..., None]), targets) + 1e-4 * head.weight.square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    return lambda rows: head(rows[..., None]).detach()


def finding_sheet(dataset: ConceptDataset, columns: int = 6) -> Any:
    """A contact sheet with one image of each concept, its boxes drawn."""
    tiles = []
    for k, name in enumerate(dataset.concepts):
        rows = (dataset.concept_labels[:, k] > 0).nonzero()[:, 0]
        if len(rows):
            # The image with the fewest other findings shows this one best.
            item = dataset.load_item(int(rows[dataset.concept_labels[rows].sum(dim=1).argmin()]))
            boxes = item.boxes or ConceptBoxes.empty()
            tiles.append(Tile(name, blend(item.image, boxes=boxes.xyxy[boxes.concept == k])))
    return contact_sheet(tiles, columns=columns)


def _has(dataset: ConceptDataset, index: int, names: tuple[str, ...], at_least: int) -> bool:
    row = dataset.concept_labels[index]
    return int(sum(row[dataset.concepts.index(name)] for name in names)) >= at_least


def _interesting(dataset: ConceptDataset, count: int) -> list[int]:
    """Images with two to four findings, the first few."""
    findings = dataset.concept_labels.sum(dim=1)
    return ((findings >= 2) & (findings <= 4)).nonzero()[:count, 0].tolist()
