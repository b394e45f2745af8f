"""Training in stages: what each stage computes, which parts learn how fast, from which loss, judged by which metric.

`presets` has whole tables of stages.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from conceptcam._checks import check_choice, did_you_mean
from conceptcam.config import ConceptConfig
from conceptcam.data.batch import ConceptBatch
from conceptcam.losses.classification import multiclass_loss, multilabel_loss
from conceptcam.losses.prototypes import prototype_contrastive_loss, prototype_presence_loss
from conceptcam.losses.regions import region_loss
from conceptcam.metrics.classification import MacroAUROC
from conceptcam.metrics.prototypes import PrototypeAccuracy
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.concept_solver import ConceptSolver
from conceptcam.model.heads import Prototypes, project_grid
from conceptcam.model.linear_solver import LinearSolver
from conceptcam.model.outputs import ConceptPart, PrototypePart, TaskPart
from conceptcam.training.prototype_init import PrototypePlacement, init_prototypes

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of logits and labels, both (B, L), to a scalar."""

PrototypeLoss = Callable[[Tensor, Tensor], Tensor]
"""Of similarities (B, K, K, M) and labels (B, K), to a scalar; see `losses.prototypes`."""

Labels = Literal["concepts", "targets"]
Compared = Literal["present", "known"]
Schedule = Literal["constant", "cosine"]

MIN_SUPPORT = 5
"""Positives and negatives that a label needs on validation data to have a say in which epoch is best."""


@dataclass(frozen=True, kw_only=True)
class SplitForward:
    """A forward pass in two halves: what the frozen half gives can be computed once and read in every epoch.

    Attributes:
        frozen_half: Of the model and what its `forward_concepts` gives: a tensor (B, ...) with a row per image.
        learning_half: Of the model, that tensor and the stage's concept mask (B, K): what loss and metric read.
        frozen_parts: Parts of the model that the frozen half runs. If one of them learns, both halves run each time.
    """

    frozen_half: Callable[[ConceptModel, ConceptPart], Tensor]
    learning_half: Callable[[ConceptModel, Tensor, Tensor], Any]
    frozen_parts: Callable[[ConceptConfig], tuple[str, ...]]

    def __call__(self, model: ConceptModel, images: Tensor, concept_mask: Tensor) -> Any:
        """Run both halves on images (B, 3, H, W)."""
        inputs = self.frozen_half(model, model.forward_concepts(images))
        return self.learning_half(model, inputs, concept_mask)


def _project_first(config: ConceptConfig) -> bool:
    return config.pooling_order == "project_then_pool"


def concept_vectors(model: ConceptModel, part: ConceptPart) -> Tensor:
    """(B, K, C) vector of each concept; (B, K, D) where places are projected before they are pooled."""
    if _project_first(model.config):
        assert model.projector is not None
        part = part._replace(features=project_grid(model.projector, part.features))
    return model.concept_vectors(part)


def embed_vectors(model: ConceptModel, vectors: Tensor, concept_mask: Tensor) -> Tensor:
    """What `concept_vectors` gives -> the P vectors that the mask (B, K) is true for, projected, (P, D).

    The projector sees these vectors and no others, so batch norm in it counts them alone.
    """
    chosen = vectors[concept_mask]
    if _project_first(model.config):
        return chosen
    assert model.projector is not None
    return model.projector(chosen[None])[0]


def compare_vectors(model: ConceptModel, vectors: Tensor, concept_mask: Tensor) -> PrototypePart:
    """What `concept_vectors` gives -> the similarity of those under the mask to the prototypes."""
    assert model.prototypes is not None
    similarity = model.prototypes(embed_vectors(model, vectors, concept_mask)[None])[0]
    return PrototypePart(scatter_rows(similarity, concept_mask))


def scatter_rows(rows: Tensor, mask: Tensor) -> Tensor:
    """The rows, in order, in the places where the mask is true, and zeros elsewhere.

    Writing under a mask would have a gradient whose size depends on the data, and `torch.compile` makes no code for
    that, so rows are taken by number.

    Args:
        rows: (P, ...), one for each place where the mask is true.
        mask: (B, K) bool.

    Returns:
        (B, K, ...).
    """
    chosen = mask.flatten()
    zero_first = torch.cat([rows.new_zeros(1, *rows.shape[1:]), rows])
    return zero_first[chosen.cumsum(0) * chosen].unflatten(0, mask.shape)


def _features(model: ConceptModel, part: ConceptPart) -> Tensor:
    return part.features


def _see(model: ConceptModel, features: Tensor) -> ConceptPart:
    maps = model.concept_head(features)
    return ConceptPart(features, maps, model.pool(maps))


def _compare_features(model: ConceptModel, features: Tensor, concept_mask: Tensor) -> PrototypePart:
    return compare_vectors(model, concept_vectors(model, _see(model, features)), concept_mask)


_SEEING = ("backbone", "concept_head", "pool")

CONCEPT_FORWARD = SplitForward(
    frozen_half=_features,
    learning_half=lambda model, features, concept_mask: _see(model, features),
    frozen_parts=lambda config: ("backbone",),
)
"""Stage 1 on a frozen backbone: images -> features (B, C, h, w) -> `ConceptPart`."""

PLACEMENT_FORWARD = SplitForward(
    frozen_half=_features, learning_half=_compare_features, frozen_parts=lambda config: _SEEING
)
"""Stage 2 where prototypes are placed: images -> features (B, C, h, w) -> `PrototypePart`."""

PROTOTYPE_FORWARD = SplitForward(
    frozen_half=concept_vectors,
    learning_half=compare_vectors,
    frozen_parts=lambda config: (*_SEEING, "projector") if _project_first(config) else _SEEING,
)
"""Stage 2: images -> vectors of concepts (B, K, C) -> `PrototypePart`."""

TASK_FORWARD = SplitForward(
    frozen_half=lambda model, part: model.forward_task(part).evidence,
    learning_half=lambda model, evidence, concept_mask: TaskPart(evidence, model.task_head(evidence)),
    frozen_parts=lambda config: (*_SEEING, "projector", "prototypes"),
)
"""Stage 3: images -> evidence (B, K, M) -> `TaskPart`."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One row of the training table.

    Attributes:
        name: Short name, used in records and file names.
        lr: Learning rate of each part that learns, by its attribute name in `ConceptModel`. Parts not
            named, or named with 0, are frozen: not a bit of them changes.
        loss_fn: The scalar to minimize, of what `forward` gives and the batch. It never sees the
            model, so it works under `DistributedDataParallel` and `torch.compile`.
        metric: Makes the metric that picks the best epoch.
        metric_inputs: What the metric's `update` is given for one batch.
        forward: What the stage computes: any callable of the model and images (B, 3, H, W) that gives a NamedTuple
            of tensors (B, ...), such as `ConceptModel.forward_concepts`, or a `SplitForward`.
        labels: Which labels of a batch the loss reads. Where none of them is known, the loss is undefined.
        compared: Whose vectors stage 2 compares with the prototypes: those of `"present"` concepts, or of all
            `"known"` ones.
        on_start: Called once before the first epoch of a stage whose `forward` is `PROTOTYPE_FORWARD`, with the
            model, the projected vectors (N, D) of all present concepts in the training data, and the index (N,) of
            each vector's concept.
        solver: Finds the best weights at once, from all training data, in place of many small steps: a
            `LinearSolver` those of the task head in a stage with `TASK_FORWARD`, whose `loss_fn` is called with all
            samples as one batch, without images and boxes; a `ConceptSolver` those of the concept head in a stage
            with `CONCEPT_FORWARD`; a `PrototypePlacement` projector and prototypes in a stage with
            `PLACEMENT_FORWARD`. `lr`, schedule and decay are not used.
        corrections: Whether a stage with `TASK_FORWARD` also learns from rows in which true concepts take the place of
            what the model saw; see `conceptcam.model.corrections`. Its loss in `history.csv` is of the same rows.
        epochs: Passes over the training data; 1 if there is a solver.
        schedule: `"cosine"`: a linear warm-up, then half a cosine down to 0.
            `"constant"`: no change.
        warmup: Fraction of the steps of a cosine schedule in which the rate rises.
        weight_decay: AdamW's, of weights; biases, norms, position embeddings and prototypes are not decayed.
        layer_decay: Each layer of the backbone learns at this times the rate of the layer behind it, for
            backbones that know their layers; 1 is one rate for all. Fine-tuned ViTs take .65 to .75.
        patience: Stop after this many epochs without a better score; None never stops early.
        score_epochs: An epoch's score, for choosing the best one, is the mean over it and those before it, so many in
            all. More than 1 is steadier where validation images are few.
    """

    name: str
    lr: Mapping[str, float]
    loss_fn: Callable[[Any, ConceptBatch], Tensor]
    metric: Callable[[], Metric]
    metric_inputs: Callable[[Any, ConceptBatch], tuple[Tensor, ...]]
    forward: Callable[..., Any] = ConceptModel.forward
    labels: tuple[Labels, ...] = ("concepts", "targets")
    compared: Compared = "present"
    on_start: Callable[[ConceptModel, Tensor, Tensor], None] | None = None
    solver: LinearSolver | ConceptSolver | PrototypePlacement | None = None
    corrections: bool = False
    epochs: int = 10
    schedule: Schedule = "constant"
    warmup: float = 0.05
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    patience: int | None = None
    score_epochs: int = 1

    def __post_init__(self) -> None:
        check_choice("compared", self.compared, Compared)
        check_choice("schedule", self.schedule, Schedule)
        if self.epochs < 1 or not self.parts:
            raise ValueError(f"stage {self.name!r} needs an epoch and a part with a learning rate above 0")
        if self.score_epochs < 1:
            raise ValueError(f"`score_epochs` of stage {self.name!r} must be at least 1, got {self.score_epochs}")
        if self.on_start is not None and self.forward is not PROTOTYPE_FORWARD:
            raise ValueError(f"stage {self.name!r} has `on_start`, so its `forward` must be `PROTOTYPE_FORWARD`")
        if self.corrections and (
            self.forward is not TASK_FORWARD or set(self.parts) & {*_SEEING, "projector", "prototypes"}
        ):
            raise ValueError(
                f"stage {self.name!r} has `corrections`, so it must teach the task head alone, with `TASK_FORWARD`; it "
                f"teaches {list(self.parts)}"
            )
        if self.solver is not None:
            forward, parts = _SOLVED[type(self.solver)]
            if self.forward is not forward or not set(self.parts) <= set(parts) or self.epochs != 1:
                raise ValueError(
                    f"stage {self.name!r} has a {type(self.solver).__name__}, so it must be one epoch of {list(parts)} "
                    f"alone, with their forward pass; it teaches {list(self.parts)} and has {self.epochs} epochs"
                )
        for name, value in (("warmup", self.warmup), ("layer_decay", self.layer_decay)):
            if not 0 <= value <= 1 or (name == "layer_decay" and value == 0):
                raise ValueError(f"`{name}` of stage {self.name!r} must be in [0, 1], got {value}")

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that learn."""
        return tuple(name for name, lr in self.lr.items() if lr > 0)

    def split_forward(self, model: ConceptModel) -> SplitForward | None:
        """The forward pass in two halves, if nothing learns in its frozen half; None otherwise."""
        forward = self.forward
        if not isinstance(forward, SplitForward) or set(self.parts) & set(forward.frozen_parts(model.config)):
            return None
        return forward

    def concept_mask(self, batch: ConceptBatch) -> Tensor:
        """(B, K) bool, true for the concepts whose vectors stage 2 compares; false for unknown labels."""
        return batch.concepts > 0 if self.compared == "present" else ~batch.concepts.isnan()

    def any_label_known(self, batch: ConceptBatch) -> bool:
        """Whether a batch has any label that this stage learns from."""
        if self.forward in (PROTOTYPE_FORWARD, PLACEMENT_FORWARD):
            return bool(self.concept_mask(batch).any())
        return any(bool((~getattr(batch, name).isnan()).any()) for name in self.labels)

    def freeze(self, model: ConceptModel) -> list[dict[str, Any]]:
        """Freeze every part but this stage's, and return parameter groups for an optimizer.

        Raises:
            ValueError: If `lr` names a part the model does not have.
        """
        parts = dict(model.named_children())
        for name in self.lr:
            if name not in parts:
                raise ValueError(
                    f"stage {self.name!r} names an unknown part {name!r}"
                    f"{did_you_mean(name, parts)}; parts: {sorted(parts)}"
                )
        for name, part in parts.items():
            part.requires_grad_(name in self.parts)
        model.train()
        groups = [{"params": list(parts[name].parameters()), "lr": self.lr[name]} for name in self.parts]
        return [group for group in groups if group["params"]]


_SOLVED: Mapping[type, tuple[SplitForward, tuple[str, ...]]] = {
    LinearSolver: (TASK_FORWARD, ("task_head",)),
    ConceptSolver: (CONCEPT_FORWARD, ("concept_head", "pool")),
    PrototypePlacement: (PLACEMENT_FORWARD, ("projector", "prototypes")),
}
"""What each solver finds, and in which forward pass."""


def concept_stage(loss: nn.Module, *, lr: Mapping[str, float], **options: Any) -> Stage:
    """Stage 1: backbone and concept head learn which concepts are there, and where.

    Where images have regions, what maps show outside of them is added to the loss (`region_loss`). Where the backbone
    does not learn, its features are computed once, if images are not augmented.
    """

    def loss_fn(part: ConceptPart, batch: ConceptBatch) -> Tensor:
        value: Tensor = loss(part.concept_maps, batch.concepts, batch.boxes, concept_logits=part.concept_logits)
        return value if batch.regions is None else value + region_loss(part.concept_maps, batch.regions)

    return Stage(
        name="concepts",
        lr=lr,
        forward=ConceptModel.forward_concepts if lr.get("backbone") else CONCEPT_FORWARD,
        loss_fn=loss_fn,
        labels=("concepts",),
        metric=functools.partial(MacroAUROC, min_support=MIN_SUPPORT),
        metric_inputs=lambda part, batch: (part.concept_logits, batch.concepts),
        **options,
    )


def prototype_stage(loss: PrototypeLoss, *, lr: Mapping[str, float], name: str = "prototypes", **options: Any) -> Stage:
    """Stage 2: projector and prototypes learn what each concept looks like."""
    return Stage(
        name=name,
        lr=lr,
        forward=PROTOTYPE_FORWARD if options.get("solver") is None else PLACEMENT_FORWARD,
        loss_fn=lambda part, batch: loss(part.vector_similarity, batch.concepts),
        labels=("concepts",),
        metric=PrototypeAccuracy,
        metric_inputs=lambda part, batch: (part.vector_similarity, batch.concepts),
        **options,
    )


def clustered_prototype_stages(config: ConceptConfig, *, lr: float, epochs: int, **options: Any) -> list[Stage]:
    """Stage 2 in two rows: a space in which concepts lie apart, then prototypes at the centres of clusters in it.

    The first row moves the projector and random prototypes. Then each concept's prototypes are put at the centres
    of clusters of its vectors (`prototype_init.init_prototypes`), and in the second row only the projector learns.
    Each row has half of the epochs, and at least one.
    """

    def place(model: ConceptModel, vectors: Tensor, concept: Tensor) -> None:
        assert isinstance(model.prototypes, Prototypes)
        init_prototypes(model.prototypes.vectors, vectors, concept, names=config.concepts)

    first = max(1, epochs // 2)
    both = {"projector": lr, "prototypes": lr}
    rows = {**options, "compared": "known"}
    return [
        prototype_stage(recommended_prototype_loss, lr=both, name="embedding", epochs=first, **rows),
        prototype_stage(
            recommended_prototype_loss, lr={"projector": lr}, epochs=max(1, epochs - first), on_start=place, **rows
        ),
    ]


def placed_prototype_stage(placement: PrototypePlacement) -> Stage:
    """Stage 2 without a step: prototypes are put where each concept's vectors lie; see `PrototypePlacement`."""
    both = {"projector": 1.0, "prototypes": 1.0}
    return prototype_stage(recommended_prototype_loss, lr=both, epochs=1, solver=placement, compared="known")


def recommended_prototype_loss(similarity: Tensor, labels: Tensor) -> Tensor:
    """The loss of stage 2 that measured best: vectors are near their own prototypes, those of absent concepts far."""
    return prototype_contrastive_loss(similarity, labels) + prototype_presence_loss(similarity, labels)


def task_stage(config: ConceptConfig, loss: Loss | None = None, *, lr: Mapping[str, float], **options: Any) -> Stage:
    """Stage 3: the task head learns to tell tasks from evidence, by default with plain cross-entropy.

    With a `solver` among the options, its weights are solved for, in one epoch.
    """
    if options.get("solver") is not None:
        options = {"epochs": 1, **options}
    chosen = loss or (multiclass_loss if config.task_kind == "multiclass" else multilabel_loss)
    return Stage(
        name="task",
        lr=lr,
        forward=TASK_FORWARD,
        loss_fn=lambda part, batch: chosen(part.task_logits, batch.targets),
        labels=("targets",),
        metric=functools.partial(MacroAUROC, config.task_kind, min_support=MIN_SUPPORT),
        metric_inputs=lambda part, batch: (part.task_logits, batch.targets),
        **options,
    )
