"""Training in stages: which parts learn, how fast, from which loss, judged by which metric.

`presets` has whole tables of them.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torchmetrics import Metric

from conceptcam._checks import did_you_mean
from conceptcam.config import ConceptConfig
from conceptcam.data.batch import ConceptBatch
from conceptcam.losses.classification import multiclass_loss, multilabel_loss
from conceptcam.losses.prototypes import (
    prototype_contrastive_loss,
    prototype_presence_loss,
)
from conceptcam.metrics.classification import MacroAUROC
from conceptcam.metrics.prototypes import PrototypeAccuracy
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.heads import Prototypes
from conceptcam.model.linear_solver import LinearSolver
from conceptcam.model.outputs import ConceptPart, PrototypePart, TaskPart
from conceptcam.training.prototype_init import place_prototypes

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of logits and labels, both (B, L), to a scalar."""

Needs = Literal["see", "compare", "decide", "forward"]
Asks = Literal["present", "known"]
Schedule = Literal["constant", "cosine"]

MIN_SUPPORT = 5
"""Positives and negatives that a label needs on validation data to have a say in which epoch is best."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One row of the training table.

    Attributes:
        name: Short name, used in records and file names.
        lr: Learning rate of each part that learns, by its attribute name in `ConceptModel`. Parts not
            named, or named with 0, are frozen to the bit.
        objective: The scalar to minimize, of what the model said and what is true. It never sees the
            model, so it works under `DistributedDataParallel` and `torch.compile`.
        metric: Makes the metric that picks the best epoch.
        metric_inputs: What the metric's `update` is given for one batch.
        needs: The least of the model's methods that gives what the objective reads: `"see"` concepts and maps,
            `"compare"` the similarities of present concepts to prototypes, `"decide"` evidence and task logits,
            `"forward"` everything.
        asks: Whose vectors a stage that needs `"compare"` looks at: `"present"` concepts or all `"known"` ones.
        begin: Called once before the first epoch of a stage that needs `"compare"`, with the model, the vectors of all
            concepts present in the training data, in the prototypes' space (N, D), and whose each is (N,).
        solver: Finds the best weights of a task head at once, from the evidence of all training data, in place of
            descending in epochs; for a stage in which the task head alone learns. Its objective is given one batch of
            everything, without images and boxes. `lr`, schedule and decay then say nothing about how far weights move.
        epochs: Passes over the training data; 1 if there is a solver.
        schedule: `"cosine"`: a linear warm-up, then half a cosine down to 0.
            `"constant"`: no change.
        warmup: Fraction of the steps of a cosine schedule in which the rate rises.
        weight_decay: AdamW's, of weights; biases, norms, position embeddings and prototypes are not decayed.
        layer_decay: Each layer of the backbone learns at this times the rate of the layer behind it, for
            backbones that say what their layers are; 1 is one rate for all. Fine-tuned ViTs take .65 to .75.
        patience: Stop after this many epochs without a better score; None never stops early.
    """

    name: str
    lr: Mapping[str, float]
    objective: Callable[[Any, ConceptBatch], Tensor]
    metric: Callable[[], Metric]
    metric_inputs: Callable[[Any, ConceptBatch], tuple[Tensor, ...]]
    needs: Needs = "forward"
    asks: Asks = "present"
    begin: Callable[[ConceptModel, Tensor, Tensor], None] | None = None
    solver: LinearSolver | None = None
    epochs: int = 10
    schedule: Schedule = "constant"
    warmup: float = 0.05
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    patience: int | None = None

    def __post_init__(self) -> None:
        for name, known in (("needs", Needs), ("asks", Asks), ("schedule", Schedule)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"unknown `{name}` {getattr(self, name)!r}; known: {list(get_args(known))}")
        if self.epochs < 1 or not any(rate > 0 for rate in self.lr.values()):
            raise ValueError(f"stage {self.name!r} needs an epoch and a part with a learning rate above 0")
        if self.begin is not None and self.needs != "compare":
            raise ValueError(f"stage {self.name!r} has a `begin`, which is for stages that need 'compare'")
        if self.solver is not None and (self.needs, self.parts, self.epochs) != ("decide", ("task_head",), 1):
            raise ValueError(
                f"stage {self.name!r} has a `solver`, for one epoch of 'task_head' alone of a stage that needs "
                f"'decide'; this one needs {self.needs!r}, teaches {list(self.parts)} and has {self.epochs} epochs"
            )
        for name, value in (("warmup", self.warmup), ("layer_decay", self.layer_decay)):
            if not 0 <= value <= 1 or (name == "layer_decay" and value == 0):
                raise ValueError(f"`{name}` of stage {self.name!r} must be in [0, 1], got {value}")

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that learn."""
        return tuple(name for name, lr in self.lr.items() if lr > 0)

    def asked(self, batch: ConceptBatch) -> Tensor:
        """(B, K) bool, whose vectors a stage that needs `"compare"` looks at; never those of unknown concepts."""
        return batch.concepts > 0 if self.asks == "present" else ~batch.concepts.isnan()

    def prepare(self, model: ConceptModel) -> list[dict[str, Any]]:
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


def concept_stage(loss: nn.Module, *, lr: Mapping[str, float], **options: Any) -> Stage:
    """Stage 1: backbone and concept head learn which concepts are there, and where."""

    def objective(seen: ConceptPart, batch: ConceptBatch) -> Tensor:
        return loss(seen.concept_maps, batch.concepts, batch.boxes, concept_logits=seen.concept_logits)

    return Stage(
        name="concepts",
        lr=lr,
        objective=objective,
        metric=functools.partial(MacroAUROC, min_support=MIN_SUPPORT),
        metric_inputs=lambda seen, batch: (seen.concept_logits, batch.concepts),
        needs="see",
        **options,
    )


PrototypeLoss = Callable[[Tensor, Tensor], Tensor]
"""Of similarities (B, K, K, M) and labels (B, K), a scalar; see `losses.prototypes`."""


def prototype_stage(loss: PrototypeLoss, *, lr: Mapping[str, float], name: str = "prototypes", **options: Any) -> Stage:
    """Stage 2: projector and prototypes learn what each concept looks like."""

    def objective(output: PrototypePart, batch: ConceptBatch) -> Tensor:
        return loss(output.vector_similarity, batch.concepts)

    return Stage(
        name=name,
        lr=lr,
        objective=objective,
        metric=PrototypeAccuracy,
        metric_inputs=lambda output, batch: (output.vector_similarity, batch.concepts),
        needs="compare",
        **options,
    )


def placed_prototype_stages(config: ConceptConfig, *, lr: float, epochs: int, **options: Any) -> list[Stage]:
    """Stage 2 in two rows: a space in which concepts lie apart, then prototypes at the centres of what is in it.

    The first row moves the projector and random prototypes. Then each concept's prototypes are placed at the centres
    of clusters of its vectors (`clusters.place_prototypes`), and in the second row the projector alone learns on.
    Each row has half of the epochs, and at least one.
    """

    def loss(similarity: Tensor, labels: Tensor) -> Tensor:
        return prototype_contrastive_loss(similarity, labels) + prototype_presence_loss(similarity, labels)

    def place(model: ConceptModel, embeddings: Tensor, concept: Tensor) -> None:
        assert isinstance(model.prototypes, Prototypes)
        place_prototypes(model.prototypes.vectors, embeddings, concept, names=config.concepts)

    first = max(1, epochs // 2)
    both = {"projector": lr, "prototypes": lr}
    rows = {**options, "asks": "known"}
    return [
        prototype_stage(loss, lr=both, name="embedding", epochs=first, **rows),
        prototype_stage(loss, lr={"projector": lr}, epochs=max(1, epochs - first), begin=place, **rows),
    ]


def task_stage(config: ConceptConfig, loss: Loss | None = None, *, lr: Mapping[str, float], **options: Any) -> Stage:
    """Stage 3: the task head learns to read tasks off the evidence, by default from plain cross-entropy.

    With a `solver` among the options, its weights are solved for, in one epoch.
    """
    if options.get("solver") is not None:
        options = {"epochs": 1, **options}
    chosen = loss or (multiclass_loss if config.task_kind == "multiclass" else multilabel_loss)

    def objective(output: TaskPart, batch: ConceptBatch) -> Tensor:
        return chosen(output.task_logits, batch.targets)

    return Stage(
        name="task",
        lr=lr,
        objective=objective,
        metric=functools.partial(MacroAUROC, config.task_kind, min_support=MIN_SUPPORT),
        metric_inputs=lambda output, batch: (output.task_logits, batch.targets),
        needs="decide",
        **options,
    )
