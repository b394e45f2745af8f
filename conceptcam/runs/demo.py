"""The demonstration: a three-stage concept model of a drawn chest, trained, looked at and checked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from conceptcam.analysis.evaluation_result import Evaluation
from conceptcam.analysis.explanation import explain
from conceptcam.analysis.figures import concept_sheet, save_png
from conceptcam.config import Bottleneck, ConceptConfig
from conceptcam.data.phantom import (
    ONE_SIDED,
    PHANTOM_CONCEPTS,
    PHANTOM_DISEASES,
    SIDED_CONCEPTS,
    SMALL_FINDINGS,
    PhantomConfig,
)
from conceptcam.data.phantom.dataset import PhantomData, PhantomDataset
from conceptcam.data.phantom.diseases import disease_ceiling
from conceptcam.losses.classification import multilabel_loss
from conceptcam.metrics.classification import macro_average, per_label_metrics
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.linear_solver import LinearSolver
from conceptcam.runs.folder import RunFolder
from conceptcam.runs.options import RunOptions
from conceptcam.runs.run import train_run

EXAMPLE_CONCEPTS = ("Cardiomegaly", "Nodule/Mass", "Pleural effusion", "Consolidation")
"""Concepts whose maps are drawn epoch by epoch."""


class DemoSettings(NamedTuple):
    """How large a demonstration is."""

    images: int
    """To train on."""
    val_images: int
    """To choose epochs and thresholds by."""
    test_images: int
    """To evaluate on."""
    backbone: str
    """Learns from scratch."""
    options: RunOptions
    """How to train."""


_EPOCHS = {"concepts": 8, "prototypes": 10}

QUICK = DemoSettings(
    images=5000, val_images=400, test_images=1600, backbone="tiny_cnn_s4",
    options=RunOptions(epochs=_EPOCHS, batch_size=32),
)  # fmt: skip
"""What `conceptcam demo` trains."""

FULL = DemoSettings(
    images=8000, val_images=1000, test_images=1600, backbone="small_cnn_s4",
    options=RunOptions(epochs=_EPOCHS, batch_size=64),
)  # fmt: skip
"""What `conceptcam demo --full` trains, and the bundled models were."""


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
    folder: Path, config: ConceptConfig, data: PhantomData, options: RunOptions, *, echo: Callable[[str], None]
) -> dict[str, Any]:
    """Train, evaluate and draw, and write everything into a folder.

    Args:
        folder: Where to write.
        config: What the model is; see `demo_config`.
        data: What to train and test on.
        options: How to train.
        echo: Is given lines for the reader.

    Returns:
        The headline figures.
    """
    save_png(concept_sheet(data.test), RunFolder(folder).figures / "phantom.png")
    examples = data.val.concept_labels[:, [data.val.concepts.index(name) for name in EXAMPLE_CONCEPTS]]
    echo("Training ...")
    result = train_run(
        config,
        data.train,
        data.val,
        folder,
        options,
        training_data=f"{len(data.train)} drawn chest radiographs (conceptcam phantom)",
        test=data.test,
        measured_on=f"{len(data.test)} drawn chest radiographs of another seed (conceptcam phantom)",
        sided_concepts=SIDED_CONCEPTS,
        summarize=lambda model, evaluation: headline(model, evaluation, data),
        drawn=_with_findings(data.test.concept_labels, 2, 4)[:12],
        example_image=data.val.load_item(_with_findings(examples, 2, 4)[0]),
        example_concepts=EXAMPLE_CONCEPTS,
        echo=echo,
    )
    if result.evaluation is not None:
        echo(result.evaluation.table())
    for warning in result.warnings:
        echo(f"WARNING: {warning}")
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
    for line in explanation.lines(top=3, tasks=1):
        echo(line)


def headline(model: ConceptModel, result: Evaluation, data: PhantomData) -> dict[str, Any]:
    """The figures a reader should see first, each disease figure beside what can be had at all."""
    summary = result.summary()
    small, one_sided = ([result.concepts.index(name) for name in names] for names in (SMALL_FINDINGS, ONE_SIDED))
    targets = data.test.task_labels
    # The most that a linear head can tell: one on the true concepts. Some diseases follow from the concepts for sure,
    # so without a touch of weight decay its weights would grow forever.
    solver = LinearSolver(l2=1e-5)
    weight, bias = solver.solve(data.train.concept_labels[..., None], data.train.task_labels, multilabel_loss)
    linear = per_label_metrics(data.test.concept_labels @ weight[..., 0].T + bias, targets).auroc
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
        "disease AUROC, linear head on the true concepts": float(macro_average(linear)),
        "disease AUROC, ceiling by enumeration": float(np.nanmean(list(ceiling.values()))),
    }


def _with_findings(labels: Tensor, least: int, most: int) -> list[int]:
    """Images with so many findings, by their labels (N, K)."""
    findings = labels.sum(dim=1)
    return ((findings >= least) & (findings <= most)).nonzero()[:, 0].tolist()
