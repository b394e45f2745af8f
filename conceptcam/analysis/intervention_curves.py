"""Whether corrections help: the tasks' figures once a person has answered 1, 2, 3 ... concepts of each image."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from conceptcam._checks import check_choice
from conceptcam.analysis.intervention import Word, typical_evidence
from conceptcam.data.batch import Batches, as_batch
from conceptcam.metrics.classification import macro_average, task_scores, top_accuracy
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.corrections import TypicalEvidence, correct_evidence
from conceptcam.model.device import eval_mode
from conceptcam.model.predictions import concept_probabilities
from conceptcam.model.taught import check_taught

Policy = Literal["random", "ucp", "lcp", "cctp"]
Answers = Literal["right", "wrong", "self"]


class InterventionCurve(NamedTuple):
    """Figures of the tasks after J numbers of answers; (J,) float64 each."""

    counts: Tensor
    """How many concepts of each image were answered, int64; unknown ones are skipped."""
    auroc: Tensor
    """Macro AUROC of the tasks."""
    average_precision: Tensor
    """Macro average precision of the tasks."""
    accuracy: Tensor
    """Accuracy of tasks that exclude each other, else NaN."""

    @property
    def mean_auroc(self) -> float:
        """The mean height of the AUROC curve between no and all answers: what a policy is judged by."""
        return float(torch.trapezoid(self.auroc, self.counts.double()) / (self.counts[-1] - self.counts[0]))


@torch.no_grad()
def intervention_curve(
    model: ConceptModel,
    batches: Batches,
    *,
    policy: Policy = "ucp",
    answers: Answers = "right",
    counts: Sequence[int] | None = None,
    seed: int = 0,
) -> InterventionCurve:
    """Answer more and more concepts of each image, in the order of a policy, and measure the tasks.

    An answer is "present" or "absent", as the labels say, and means typical scores, as in an `Intervention`.

    Args:
        model: A model that was taught a task, whose record has typical scores; see `fit_thresholds`.
        batches: As `evaluate` takes; images without a task label are left out of the figures.
        policy: Which concept to ask about next, by Shin et al. (2023): `"random"`; `"ucp"`, the one whose probability,
            as reported, is nearest to .5; `"lcp"`, the one that is wrong by the most, which only an oracle knows;
            `"cctp"`, the one that contributes most to the tasks, up or down.
        answers: `"right"`; `"wrong"`, the opposite, to see how much harm is done; `"self"`, the model's own, the
            control, which changes nothing.
        counts: How many answers to measure after, ascending; None takes 0 to K.
        seed: Of the random order.

    Raises:
        ValueError: If the model was never taught its tasks, a choice is unknown, the record lacks typical scores, or
            there are no batches.
    """
    check_choice("policy", policy, Policy)
    check_choice("answers", answers, Answers)
    config = model.config
    check_taught(config, model.record, task=next(iter(config.tasks), "any"))
    evidence, logits, labels, targets = _collect(model, batches)
    answered = _answered_evidence(model, evidence, labels, answers)
    order = _order(model, evidence, logits, labels, policy, seed)
    order = order.masked_fill(labels.isnan(), torch.inf)  # nobody knows the answer, so it is asked for last
    rank = order.argsort(dim=1, stable=True).argsort(dim=1)
    steps = list(counts) if counts is not None else list(range(len(config.concepts) + 1))
    rows = []
    for count in steps:
        told = torch.where((rank < count)[..., None], answered, evidence)
        task_logits = model.task_head(told.to(model.device)).cpu()
        scores = task_scores(task_logits, targets, config.task_kind)
        exclusive = config.task_kind == "multiclass"
        accuracy = top_accuracy(task_logits, targets) if exclusive else torch.tensor(torch.nan, dtype=torch.float64)
        rows.append(torch.stack([macro_average(scores.auroc), macro_average(scores.average_precision), accuracy]))
    return InterventionCurve(torch.tensor(steps), *torch.stack(rows, dim=1))


def _collect(model: ConceptModel, batches: Batches) -> tuple[Tensor, ...]:
    """(N, K, M) evidence, (N, K) concept logits, and labels (N, K) and (N, T)."""
    rows = []
    with eval_mode(model) as where, torch.random.fork_rng(devices=[]):
        for given in batches:
            batch = as_batch(given).to(where)
            output = model(batch.images)
            parts = (output.evidence, output.concept_logits, batch.concepts, batch.targets)
            rows.append(tuple(part.cpu() for part in parts))
    if not rows:
        raise ValueError("there are no batches to intervene on")
    evidence, logits, labels, targets = map(torch.cat, zip(*rows, strict=True))
    if targets.shape[1] != len(model.config.tasks):
        raise ValueError(f"the data has {targets.shape[1]} task labels, the model {len(model.config.tasks)} tasks")
    return evidence, logits, labels, targets


def _answered_evidence(model: ConceptModel, evidence: Tensor, labels: Tensor, answers: Answers) -> Tensor:
    """(N, K, M) evidence of each concept as it is once the concept is answered; its own where nobody knows."""
    if answers == "self":
        return evidence
    present, absent = (typical_evidence(model.config, model.record, word) for word in get_args(Word))
    told = correct_evidence(evidence, labels if answers == "right" else 1 - labels, TypicalEvidence(present, absent))
    if lacking := told.isnan().any(dim=-1).any(dim=0).nonzero()[:, 0].tolist():
        names = [model.config.concepts[k] for k in lacking]
        raise ValueError(
            f"the record of this model does not say which scores are typical of {names}; call `fit_thresholds`, after "
            "the last stage, with validation data in which some images have them and some lack them"
        )
    return told


def _order(model: ConceptModel, evidence: Tensor, logits: Tensor, labels: Tensor, policy: Policy, seed: int) -> Tensor:
    """(N, K) what concepts are asked for by, the smallest first."""
    if policy == "random":
        return torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    said = concept_probabilities(logits, model.config, model.record).double()
    if policy == "ucp":
        return (said - 0.5).abs()
    if policy == "lcp":
        return -(said - labels.double()).abs()
    contributions = model.task_head.contributions(evidence.to(model.device)).cpu()  # (N, T, K, M)
    return -contributions.sum(dim=-1).abs().sum(dim=1).double()
