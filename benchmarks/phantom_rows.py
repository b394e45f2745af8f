"""Ways to train on the phantom: what each row of `phantom.py`'s table is, and how one is trained and measured."""

import copy
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from measuring import machine

from conceptcam import ConceptItem, ConceptModel, Stage, Trainer, evaluate, get_preset
from conceptcam.config import Bottleneck
from conceptcam.data.phantom import PHANTOM_VERSION, SIDED_CONCEPTS
from conceptcam.data.phantom.dataset import PhantomData, phantom_data
from conceptcam.losses import PrototypeContrastiveLoss, class_balanced_loss
from conceptcam.metrics.classification import macro_average, per_label_metrics
from conceptcam.metrics.prototypes import PrototypeAccuracy, prototype_health, prototype_usage
from conceptcam.model.linear_solver import LinearSolver
from conceptcam.runs.demo import demo_config, headline
from conceptcam.runs.options import RunOptions, loader
from conceptcam.training.precision import Precision
from conceptcam.training.stages import PROTOTYPE_FORWARD, prototype_stage

SEEING = ("backbone", "concept_head", "pool")
COMPLETENESS = (0.0, 1.0)
"""How much of the diseases only pixels tell. Images and concepts are the same at all of them."""
DISEASE_FIGURES = ("disease", "linear", "ceiling")
"""What depends on the completeness; named with it from the second on."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to train.

    Attributes:
        preset: Name of the preset.
        borrowed_rates: Whether learning rates and schedule are the recommended preset's. Those of the other two are
            made for pretrained backbones; with these, what differs is the losses.
        boxes: Whether anybody drew boxes in the training images.
        pooling: In place of the preset's.
        second: What stage 2 is, in place of the preset's: `"nearest"` is one row with the contrastive loss alone,
            `"random"` leaves prototypes where they started, `"present"` has no loss for absent concepts.
        solver: Of the task head, in place of epochs.
        same_seen_as: The row whose stage 1 this one goes on from; None has its own.
        bottlenecks: What the task head reads, one model each.
        backbone: Learns from scratch.
        black_box: Whether the model learns diseases straight from images: a classifier with the same backbone whose
            classes are the diseases, and no concepts.
    """

    preset: str
    borrowed_rates: bool = False
    boxes: bool = True
    pooling: str | None = None
    second: Literal["preset", "nearest", "random", "present"] = "preset"
    solver: LinearSolver | None = None
    same_seen_as: str | None = None
    bottlenecks: tuple[Bottleneck, ...] = ("prototypes", "concepts")
    backbone: str = "small_cnn_s8"
    black_box: bool = False

    def stages(self, model: ConceptModel, **options: Any) -> tuple[Stage, ...]:
        if self.solver is not None:
            epochs = {name: count for name, count in options["epochs"].items() if name != "task"}
            options = {**options, "epochs": epochs, "task_solver": self.solver}
        own = get_preset(self.preset).stages(model.config, **options)
        if self.second != "preset" and model.config.bottleneck == "prototypes":
            own = tuple(_changed(own, self.second))
        if not self.borrowed_rates:
            return own
        lenders = {stage.name: stage for stage in get_preset("recommended").stages(model.config, **options)}
        if "embedding" in lenders:  # the row of stage 2 in which prototypes learn too
            lenders["prototypes"] = lenders["embedding"]
        return tuple(
            dataclasses.replace(stage, lr=lenders[stage.name].lr, schedule=lenders[stage.name].schedule)
            for stage in own
        )


def _changed(stages: Sequence[Stage], second: str) -> Iterator[Stage]:
    """The stages with another stage 2."""
    contrastive = PrototypeContrastiveLoss("nearest", temperature=0.1)
    for stage in stages:
        if stage.forward is not PROTOTYPE_FORWARD:
            yield stage
        elif second == "random":
            yield dataclasses.replace(stage, on_start=None, lr={"projector": stage.lr["projector"], "prototypes": 3e-4})
        elif second == "present" or stage.on_start is None:
            old = prototype_stage(contrastive, lr=stage.lr)
            whole = sum(one.epochs for one in stages if one.forward is PROTOTYPE_FORWARD)
            epochs = whole if second == "nearest" else stage.epochs
            called = "prototypes" if second == "nearest" else stage.name
            yield dataclasses.replace(stage, name=called, loss_fn=old.loss_fn, compared="present", epochs=epochs)


_SECOND: dict[str, Any] = {"preset": "recommended", "same_seen_as": "recommended", "bottlenecks": ("prototypes",)}

ROWS: dict[str, Row] = {
    "recommended": Row(preset="recommended", solver=LinearSolver(l2=None)),
    "recommended-stepped": Row(preset="recommended", same_seen_as="recommended"),
    "recommended-nearest": Row(second="nearest", **_SECOND),
    "recommended-random": Row(second="random", **_SECOND),
    "recommended-present": Row(second="present", **_SECOND),
    "recommended-mean-pooling": Row(preset="recommended", pooling="mean"),
    "recommended-no-boxes": Row(preset="recommended", boxes=False),
    "recommended-fine": Row(preset="recommended", backbone="small_cnn_s4", solver=LinearSolver(l2=None)),
    "black-box": Row(preset="recommended", boxes=False, pooling="mean", black_box=True),
    "original": Row(preset="original"),
    "original-rates": Row(preset="original", borrowed_rates=True),
    "paper": Row(preset="paper"),
    "paper-rates": Row(preset="paper", borrowed_rates=True),
}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large an experiment is; results of one scale are not compared with those of another."""

    images: int = 8000
    size: int = 112
    epochs: tuple[int, ...] = (8, 10, 10)
    batch_size: int = 32
    precision: Precision = "fp32"
    phantom: int = PHANTOM_VERSION
    device: str = "cpu"

    @property
    def epochs_by_stage(self) -> dict[str, int]:
        return dict(zip(("concepts", "prototypes", "task"), self.epochs, strict=False))


def run_row(name: str, seed: int, scale: Scale, seen: Path | None = None) -> dict[str, Any]:
    """Train one row and measure it; a folder keeps what stage 1 taught.

    Stage 1 knows nothing of the bottleneck, and stages 1 and 2 nothing of diseases: what is shared is trained once.
    """
    row, start = ROWS[name], time.perf_counter()
    drawn = {one: phantom_data(scale.images, size=scale.size, seed=seed, completeness=one) for one in COMPLETENESS}
    if row.black_box:
        figures, curve = {"none": run_black_box(row, drawn, seed, scale)}, []
    else:
        first = drawn[COMPLETENESS[0]]
        seer, curve = taught_to_see(name, first, seed, scale, seen)
        figures = {kind: run_later_stages(row, seer, kind, drawn, seed, scale) for kind in row.bottlenecks}
    return {
        "row": name,
        "seed": seed,
        "scale": dataclasses.asdict(scale),
        "stage 1 AUROC by epoch": list(curve),
        "figures": figures,
        "seconds": round(time.perf_counter() - start),
        "machine": machine(),
    }


def taught_to_see(
    name: str, data: PhantomData, seed: int, scale: Scale, folder: Path | None
) -> tuple[ConceptModel, list[float]]:
    """A model after stage 1, and its score at each epoch."""
    shared = ROWS[name].same_seen_as or name
    row = ROWS[shared]
    kept = None
    if folder is not None:
        kept = folder / f"{shared}-{seed}-{scale.images}-{scale.size}-{scale.epochs[0]}-{scale.precision}"
        if (kept / "curve.json").exists():
            curve = json.loads((kept / "curve.json").read_text(encoding="utf-8"))
            return ConceptModel.from_pretrained(kept), curve
    model = build(row, scale, seed, row.bottlenecks[0])
    batches = prepare(data, model, scale, seed)
    data.train.augmentation = None if row.boxes else forget_boxes
    stages = row.stages(model, **stage_options(data, scale))[:1]
    curve = [
        record.score
        for record in Trainer(seed=seed, precision=scale.precision, device=scale.device).fit(model, stages, *batches)
    ]
    data.train.augmentation = None  # later stages do not look at boxes, and go on from what is computed once
    if kept is not None:
        model.save_pretrained(kept)
        (kept / "curve.json").write_text(json.dumps(curve), encoding="utf-8")
    return model, curve


def run_later_stages(
    row: Row, seer: ConceptModel, bottleneck: Bottleneck, drawn: dict[float, PhantomData], seed: int, scale: Scale
) -> dict[str, float]:
    """Stage 2 once, and stage 3 for the diseases of each completeness."""
    model = build(row, scale, seed, bottleneck)
    for part in SEEING:
        setattr(model, part, getattr(seer, part))  # frozen from here on, so all can share it
    model.record = seer.record
    trainer, figures = Trainer(seed=seed, precision=scale.precision, device=scale.device), {}
    for number, (completeness, data) in enumerate(drawn.items()):
        batches = prepare(data, model, scale, seed)
        _, *second, third = row.stages(model, **stage_options(data, scale))
        if second and not number:
            trainer.fit(model, second, *batches)
        answering = copy.deepcopy(model)
        trainer.fit(answering, [third], *batches)
        found = measure(answering, data, scale)
        if number:
            found = {f"{name}, {completeness:g}": found[name] for name in DISEASE_FIGURES}
        figures.update(found)
    return figures


def run_black_box(row: Row, drawn: dict[float, PhantomData], seed: int, scale: Scale) -> dict[str, float]:
    """Teach the same backbone the diseases themselves, through one linear layer on its pooled features."""
    figures = {}
    for number, (completeness, data) in enumerate(drawn.items()):
        torch.manual_seed(seed)
        config = dataclasses.replace(
            demo_config(scale.size, "concepts", backbone=row.backbone),
            concepts=data.train.tasks,
            tasks=(),
            pooling=row.pooling,
        )
        model = ConceptModel.from_config(config)
        batches = prepare(data, model, scale, seed)
        for part in (data.train, data.val, data.test):
            part.augmentation = ask_for_diseases
        loss = class_balanced_loss("ratio", data.train.task_labels)
        stages = row.stages(model, concept_loss=loss, epochs=scale.epochs_by_stage)
        Trainer(seed=seed, precision=scale.precision, device=scale.device).fit(model, stages, *batches)
        with torch.inference_mode():
            said = torch.cat(
                [
                    model.forward_concepts(batch.images.to(model.device)).concept_logits.cpu()
                    for batch in loader(data.test, RunOptions())
                ]
            )
        name = f"disease, {completeness:g}" if number else "disease"
        figures[name] = float(macro_average(per_label_metrics(said, data.test.task_labels).auroc))
    return figures


def ask_for_diseases(item: ConceptItem) -> ConceptItem:
    """The item with its diseases for concepts."""
    return item._replace(concepts=item.targets, targets=item.targets[:0], boxes=None)


def forget_boxes(item: ConceptItem) -> ConceptItem:
    """The item as if nobody had drawn."""
    return item._replace(boxes=None)


def build(row: Row, scale: Scale, seed: int, bottleneck: Bottleneck) -> ConceptModel:
    torch.manual_seed(seed)
    config = get_preset(row.preset).apply_to(demo_config(scale.size, bottleneck, backbone=row.backbone))
    if row.pooling is not None:
        config = dataclasses.replace(config, pooling=row.pooling)
    return ConceptModel.from_config(config)


def stage_options(data: PhantomData, scale: Scale) -> dict[str, Any]:
    return dict(
        concept_loss=class_balanced_loss("ratio", data.train.concept_labels),
        task_loss=class_balanced_loss("ratio", data.train.task_labels),
        epochs=scale.epochs_by_stage,
    )


def prepare(data: PhantomData, model: ConceptModel, scale: Scale, seed: int) -> tuple[Any, Any]:
    """Batches to train on and to validate on."""
    data.train.preprocess = data.val.preprocess = data.test.preprocess = model.preprocess
    options = RunOptions(batch_size=scale.batch_size, seed=seed)
    return loader(data.train, options, shuffle=True), loader(data.val, options)


def measure(model: ConceptModel, data: PhantomData, scale: Scale) -> dict[str, float]:
    """The figures of a trained model on test images."""
    result = evaluate(model, loader(data.test, RunOptions(batch_size=scale.batch_size)), sided_concepts=SIDED_CONCEPTS)
    first = headline(model, result, data)
    return {
        "AUROC": first["concept AUROC"],
        "AP": first["concept AP"],
        "pointing": first["pointing"],
        "small": first["pointing, five small findings"],
        "mirror gap": first["mirror gap of the one-sided findings"],
        "energy": result.summary()["energy_in_box"],
        "disease": first[f"disease AUROC, {model.config.bottleneck} bottleneck"],
        "linear": first["disease AUROC, linear head on the true concepts"],
        "ceiling": first["disease AUROC, ceiling by enumeration"],
        "random map": first["pointing of a random map"],
        **(health(model, data, scale) if model.config.bottleneck == "prototypes" else {}),
    }


@torch.inference_mode()
def health(model: ConceptModel, data: PhantomData, scale: Scale) -> dict[str, float]:
    """What became of the prototypes, on test images."""
    accuracy, usage, evidence = PrototypeAccuracy().to(model.device), torch.zeros((), device=model.device), []
    for batch in loader(data.test, RunOptions(batch_size=scale.batch_size)):
        batch = batch.to(model.device)
        output = model(batch.images)
        accuracy.update(output.vector_similarity, batch.concepts)
        usage = usage + prototype_usage(output.vector_similarity, batch.concepts)
        evidence.append(output.evidence)
    found = prototype_health(model.prototypes.vectors, usage)
    # Of the ten images in which a prototype's evidence is highest, the share that shows its concept.
    foremost = torch.cat(evidence).topk(10, dim=0).indices.cpu()  # (10, K, M)
    shown = data.test.concept_labels[foremost, torch.arange(foremost.shape[1])[None, :, None]]
    return {
        "assigned right": float(accuracy.compute()),
        "alive": float(found.alive.nanmean()),
        "top share": float(found.top_share.nanmean()),
        "closest": float(found.closest_cosine.max()),
        "top-10 purity": float(shown.mean()),
    }
