"""Training a task head for corrections: some rows have true concepts in place of what the model saw.

A head that has only seen evidence as the model gives it may conclude less well once a person corrects concepts. So a
third of the rows it learns from are as they are, in a third each known concept is corrected with probability one half,
and in a third all are. A correction is what an `Intervention` would do: the median evidence of the training images
that have the concept, or lack it. The idea is RandInt of Espinosa Zarlenga et al. (NeurIPS 2022).
"""

from collections.abc import Iterator

import torch

from conceptcam.model.corrections import PROBABILITIES, TypicalEvidence, mix_corrections, typical_evidence_of
from conceptcam.training import distributed
from conceptcam.training.batches import EpochPlan
from conceptcam.training.inputs import Source, StepInput
from conceptcam.training.passes import no_batches


def collect_typical(source: Source, plan: EpochPlan) -> TypicalEvidence:
    """What is typical of each concept in the evidence that a task stage's source gives.

    Args:
        source: Inputs of a stage whose forward pass is `TASK_FORWARD`.
        plan: Of all training data.

    Raises:
        ValueError: If there are no batches.
    """
    rows = [(one.inputs[0].float().cpu(), one.batch.concepts.cpu()) for one in source.load(plan)]
    if not rows:
        raise no_batches("train_batches")
    return typical_evidence_of(*map(torch.cat, zip(*rows, strict=True)))


class CorrectedInputs:
    """The inputs of a task stage, with some concepts corrected in each batch, alike in every process.

    Args:
        source: Gives evidence (B, K, M) and labels.
        typical: What corrections put in the place of evidence.
    """

    divided = False

    def __init__(self, source: Source, typical: TypicalEvidence) -> None:
        assert not source.divided
        self._source, self._typical, self.forward = source, typical, source.forward

    @property
    def cached(self) -> bool:
        """As the source is."""
        return self._source.cached

    def load(self, plan: EpochPlan, start: int = 0) -> Iterator[StepInput]:
        """The inputs of each batch of a plan, from the batch numbered `start` on."""
        seed = distributed.broadcast(plan.seed)
        step_inputs = self._source.load(plan, start)
        return (self._corrected(one, seed + start + number) for number, one in enumerate(step_inputs))

    def _corrected(self, step_input: StepInput, seed: int) -> StepInput:
        evidence, labels = step_input.inputs[0], step_input.batch.concepts
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(PROBABILITIES), (len(labels), 1), generator=generator)
        probability = torch.tensor(PROBABILITIES)[chosen]
        mixed = mix_corrections(evidence, labels, self._typical, probability, generator)
        return step_input._replace(inputs=(mixed, *step_input.inputs[1:]))
