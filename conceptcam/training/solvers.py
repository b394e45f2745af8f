"""Stages whose best weights are found at once, from all training data, in place of many small steps."""

import copy
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from conceptcam.data.batch import ConceptBatch
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.concept_solver import ConceptSolver
from conceptcam.model.corrections import TypicalEvidence, corrected_copies, typical_evidence_of
from conceptcam.model.heads import ConceptHead, LinearProjector, Prototypes, TaskHead
from conceptcam.model.linear_solver import LinearSolver
from conceptcam.model.outputs import ConceptPart, TaskPart
from conceptcam.training import distributed
from conceptcam.training.batches import BatchLoader
from conceptcam.training.inputs import Source, StepInput
from conceptcam.training.passes import no_batches, plan_without_drawing
from conceptcam.training.prototype_init import PrototypePlacement, fit_projector, init_prototypes
from conceptcam.training.stages import PLACEMENT_FORWARD, Stage, concept_vectors, embed_vectors


class Solved(NamedTuple):
    """What a stage found."""

    loss: float
    """Of the best weights on the training data."""
    typical: TypicalEvidence | None
    """What corrections put in the place of evidence; None for a stage without corrections."""


def solve_stage(model: ConceptModel, stage: Stage, loader: BatchLoader, source: Source) -> Solved:
    """Give the parts that a stage teaches their best weights.

    Args:
        model: On its device; changed in place, alike in every process.
        stage: Its `solver` says how.
        loader: The training data.
        source: The stage's inputs, those of the learning half of its forward pass.

    Raises:
        ValueError: If there are no batches, or a part is of another kind than the solver finds, or is frozen.
        FloatingPointError: If features, evidence or the loss are not finite.
    """
    learning = [one for name in stage.parts for one in model.get_submodule(name).parameters()]
    if not all(parameter.requires_grad for parameter in learning):
        raise ValueError(f"stage {stage.name!r} finds all weights of {list(stage.parts)}, and some were frozen before")
    inputs = _Inputs(loader, source)
    model.eval()
    typical = None
    with torch.no_grad():
        if isinstance(stage.solver, LinearSolver):
            loss, typical = _solve_task_head(model, stage, stage.solver, inputs)
        elif isinstance(stage.solver, ConceptSolver):
            loss = _solve_concept_head(model, stage, stage.solver, inputs)
        else:
            assert stage.solver is not None
            loss = _place_prototypes(model, stage, stage.solver, inputs)
        distributed.broadcast_tensors(model.parameters())
    return Solved(loss, typical)


class _Inputs:
    """All training data as inputs of a stage, anew each time; kept in memory if no cache does that."""

    def __init__(self, loader: BatchLoader, source: Source) -> None:
        self.source, self.plan = source, plan_without_drawing(loader)
        first = next(iter(source.load(self.plan)), None)
        if first is None:
            raise no_batches("train_batches")
        self.kept = None if source.cached else list(source.load(self.plan))

    def __call__(self) -> Iterable[StepInput]:
        return self.source.load(self.plan) if self.kept is None else self.kept

    def features(self) -> Iterable[tuple[Tensor, ConceptBatch]]:
        """What the frozen half gives for each batch, in single precision, and the batch it is of."""
        return ((step_input.inputs[0].float(), step_input.batch) for step_input in self())


def _solve_task_head(model: ConceptModel, stage: Stage, solver: LinearSolver, inputs: _Inputs) -> Solved:
    head = model.task_head
    if not isinstance(head, TaskHead):
        raise ValueError(f"stage {stage.name!r} solves for the weights of a `TaskHead`, not of {type(head).__name__}")
    # A small problem in many small steps, each of which a GPU would wait for.
    rows = [(one.cpu(), batch.without_images().to("cpu")) for one, batch in inputs.features()]
    evidence = torch.cat([one for one, _ in rows])
    concepts = torch.cat([batch.concepts for _, batch in rows])
    targets = torch.cat([batch.targets for _, batch in rows])
    loss_fn = copy.deepcopy(stage.loss_fn).cpu() if isinstance(stage.loss_fn, nn.Module) else stage.loss_fn
    learned = corrected_copies(evidence, concepts) if stage.corrections else evidence

    def loss(task_logits: Tensor, truth: Tensor) -> Tensor:
        copies = len(truth) // len(targets)
        read = learned.repeat(len(truth) // len(learned), 1, 1)
        everything = ConceptBatch(read.new_empty(len(truth), 0), concepts.repeat(copies, 1), truth)
        return loss_fn(TaskPart(read.to(task_logits), task_logits), everything)

    copies = len(learned) // len(evidence)
    images = list(range(len(evidence))) * copies
    weight, bias = solver.solve(learned, targets.repeat(copies, 1), loss, groups=images)
    head.weight.copy_(weight)
    head.bias.copy_(bias)
    typical = typical_evidence_of(evidence, concepts) if stage.corrections else None
    return Solved(loss(copy.deepcopy(head).cpu()(learned), targets.repeat(copies, 1)).item(), typical)


def _solve_concept_head(model: ConceptModel, stage: Stage, solver: ConceptSolver, inputs: _Inputs) -> float:
    head = model.concept_head
    if not isinstance(head, ConceptHead):
        raise ValueError(
            f"stage {stage.name!r} solves for the weights of a `ConceptHead`, not of {type(head).__name__}"
        )
    return solver.solve(head, model.pool, inputs.features, stage.loss_fn)


def _place_prototypes(model: ConceptModel, stage: Stage, placement: PrototypePlacement, inputs: _Inputs) -> float:
    projector, prototypes = model.projector, model.prototypes
    if projector is None or not isinstance(prototypes, Prototypes):
        raise ValueError(f"stage {stage.name!r} places `Prototypes`, and the model has none of that kind")
    if isinstance(projector, LinearProjector):
        fit_projector(projector, (features for features, _ in inputs.features()))
    vectors, concepts = [], []
    for features, batch in inputs.features():
        maps = model.concept_head(features)
        part = ConceptPart(features, maps, model.pool(maps))
        present = batch.concepts > 0.5
        vectors.append(embed_vectors(model, concept_vectors(model, part), present).cpu())
        concepts.append(present.nonzero()[:, 1].cpu())
    init_prototypes(
        prototypes.vectors, torch.cat(vectors), torch.cat(concepts),
        names=model.config.concepts, limit=placement.limit, seed=placement.seed,
    )  # fmt: skip
    total, images = 0.0, 0
    for step_input in inputs():
        output = PLACEMENT_FORWARD.learning_half(model, step_input.inputs[0].float(), step_input.inputs[1])
        images += len(step_input.batch.concepts)
        total += stage.loss_fn(output, step_input.batch).item() * len(step_input.batch.concepts)
    return total / images
