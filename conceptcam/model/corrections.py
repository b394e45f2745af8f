"""What a correction by a person puts in the place of evidence, and rows that teach a task head to profit from it.

A correction gives a concept the median evidence of the images that have it, or lack it, as an `Intervention` does. A
head that has only seen evidence as the model gives it may conclude less well once a person corrects concepts. So where
a stage has `corrections`, a third of the rows that the head learns from are as they are, in a third each known concept
is corrected with probability one half, and in a third all are. The idea is RandInt of Espinosa Zarlenga et al.
(NeurIPS 2022).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from conceptcam.config import TrainingRecord
from conceptcam.metrics.thresholds import typical_values

PROBABILITIES = (0.0, 0.5, 1.0)
"""With which a concept is corrected, in each third of the rows."""

TAUGHT_EVIDENCE = "the training images, as the task head was taught"
"""`TrainingRecord.evidence_source` of a head that was taught corrections."""


class TypicalEvidence(NamedTuple):
    """Evidence that is typical of each concept; (K, M) each, NaN where no image has, or lacks, the concept."""

    present: Tensor
    """Of images that have the concept."""
    absent: Tensor
    """Of images that lack it."""

    @property
    def rise(self) -> Tensor:
        """(K,) by how much presence exceeds absence, mean over prototypes; NaN where one of them is unknown.

        Near 0 the evidence cannot tell the concept, and a correction does next to nothing; below 0 it goes the wrong
        way. `correction_doubts` of `conceptcam.analysis.doubts` says so in words.
        """
        return (self.present - self.absent).mean(dim=-1)

    def as_fields(self, concepts: Sequence[str]) -> dict[str, Any]:
        """The fields `evidence_present` and `evidence_absent` of a `TrainingRecord`, given the names of K concepts."""
        present, absent = (
            {name: tuple(row) for name, row in zip(concepts, part.tolist(), strict=True)} for part in self
        )
        return {"evidence_present": present, "evidence_absent": absent}


def typical_evidence_of(evidence: Tensor, labels: Tensor) -> TypicalEvidence:
    """The median evidence of images that have and that lack each concept.

    Args:
        evidence: (N, K, M).
        labels: (N, K) in [0, 1], NaN where unknown.
    """
    each = labels[..., None].expand(evidence.shape).flatten(1)  # a column per prototype
    present, absent = typical_values(evidence.flatten(1), each)
    return TypicalEvidence(present.view(evidence.shape[1:]), absent.view(evidence.shape[1:]))


def record_corrections(record: TrainingRecord, concepts: Sequence[str], typical: TypicalEvidence) -> TrainingRecord:
    """The record of a model whose task head was taught corrections with this evidence, by K concepts.

    An `Intervention` then takes it for "present" and "absent", because the head knows no other.
    """
    return dataclasses.replace(record, **typical.as_fields(concepts), evidence_source=TAUGHT_EVIDENCE)


def correct_evidence(evidence: Tensor, labels: Tensor, typical: TypicalEvidence) -> Tensor:
    """Evidence after every concept with a known label is corrected.

    Args:
        evidence: (N, K, M).
        labels: (N, K) in [0, 1]; NaN where unknown.
        typical: What takes the place of evidence. Look at `typical.rise` before you trust the result.

    Returns:
        (N, K, M): typical evidence of the label, between both for a soft one; as it was where the label is unknown. NaN
        where a label is known and what is typical of it is NaN.
    """
    present, absent = (part.to(evidence).expand_as(evidence) for part in typical)
    true = labels[..., None]
    told = absent.lerp(present, true.nan_to_num().to(evidence))
    told = torch.where(true == 1, present, torch.where(true == 0, absent, told))  # one side may be unknown
    return torch.where(true.isnan(), evidence, told)


def corrected_copies(evidence: Tensor, labels: Tensor, *, seed: int = 0) -> Tensor:
    """Evidence (N, K, M) three times over, one copy for each of `PROBABILITIES`: (3 N, K, M)."""
    typical = typical_evidence_of(evidence, labels)
    generator = torch.Generator().manual_seed(seed)
    copies = [
        mix_corrections(evidence, labels, typical, torch.full((len(labels), 1), one), generator)
        for one in PROBABILITIES
    ]
    return torch.cat(copies)


def mix_corrections(
    evidence: Tensor, labels: Tensor, typical: TypicalEvidence, probability: Tensor, generator: torch.Generator
) -> Tensor:
    """Evidence (N, K, M) in which each known concept is corrected with a probability (N, 1) of its row."""
    corrected = correct_evidence(evidence, labels, typical)
    drawn = torch.rand(labels.shape, generator=generator) < probability
    # A concept that no training image has, or lacks, has nothing typical: it stays.
    return torch.where(drawn.to(labels.device)[..., None] & ~corrected.isnan(), corrected, evidence)
