"""Whether corrections help: the tasks' figures once a person has answered 1, 2, 3 ... concepts of each image."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from conceptcam._checks import check_choice
from conceptcam.analysis.answers import Answers, collect_answers, label_check
from conceptcam.analysis.intervention import Word, typical_evidence
from conceptcam.data.batch import Batches
from conceptcam.metrics.classification import macro_average, task_scores, top_accuracy
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.corrections import TypicalEvidence, correct_evidence
from conceptcam.model.predictions import concept_probabilities, ranking_logits
from conceptcam.model.taught import check_taught

Policy = Literal["random", "ucp", "lcp", "cctp", "ectp", "eudtp"]
AnswerKind = Literal["right", "wrong", "self"]


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
    answers: AnswerKind = "right",
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
            `"cctp"`, the one that contributes most to the tasks, up or down; `"ectp"`, the one whose answer is
            expected to change the tasks most, and `"eudtp"`, the one whose answer is expected to leave the tasks least
            uncertain. The last two look anew after each answer, and evaluate the task head K times each time.
        answers: `"right"`; `"wrong"`, the opposite, to see how much harm is done; `"self"`, the model's own, the
            control, which changes nothing.
        counts: How many answers to measure after, ascending; None takes 0 to K.
        seed: Of the random order.

    Raises:
        ValueError: If the model was never taught its tasks, a choice is unknown, the record lacks typical scores, or
            there are no batches.
    """
    check_choice("policy", policy, Policy)
    check_choice("answers", answers, AnswerKind)
    check_taught(model.config, model.record, task=next(iter(model.config.tasks), "any"))
    found = collect_answers(model, batches, evidence=True, observers=[label_check(model.config)])
    return curve_of_answers(model, found, policy=policy, answers=answers, counts=counts, seed=seed)


@torch.no_grad()
def curve_of_answers(
    model: ConceptModel,
    found: Answers,
    *,
    policy: Policy = "ucp",
    answers: AnswerKind = "right",
    counts: Sequence[int] | None = None,
    seed: int = 0,
) -> InterventionCurve:
    """`intervention_curve` of what `collect_answers(..., evidence=True)` gave; the other arguments are the same.

    Raises:
        ValueError: If the data lack task labels, or the record lacks typical scores.
    """
    evidence, logits, labels, targets = found.evidence, found.concept_logits, found.concepts, found.targets
    config = model.config
    if targets.shape[1] != len(config.tasks):
        raise ValueError(f"the data has {targets.shape[1]} task labels, the model {len(config.tasks)} tasks")
    told = labels if answers == "right" else 1 - labels
    answered = evidence if answers == "self" else answered_evidence(model, evidence, told)
    steps = list(counts) if counts is not None else list(range(len(config.concepts) + 1))
    if policy in ("ectp", "eudtp"):
        rank = _expected_ranks(model, evidence, answered, logits, labels, policy, max(steps, default=0))
    else:
        order = _order(model, evidence, logits, labels, policy, seed)
        order = order.masked_fill(labels.isnan(), torch.inf)  # nobody knows the answer, so it is asked for last
        rank = order.argsort(dim=1, stable=True).argsort(dim=1)
    rows = [task_figures(model, torch.where((rank < count)[..., None], answered, evidence), targets) for count in steps]
    return InterventionCurve(torch.tensor(steps), *torch.stack(rows, dim=1))


def task_figures(model: ConceptModel, evidence: Tensor, targets: Tensor) -> Tensor:
    """(3,) macro AUROC, macro average precision and accuracy of the tasks, from evidence (N, K, M); float64.

    Accuracy is NaN unless tasks exclude each other.
    """
    task_logits = ranking_logits(model.task_head(evidence.to(model.device)).cpu(), model.config, model.record)
    scores = task_scores(task_logits, targets, model.config.task_kind)
    exclusive = model.config.task_kind == "multiclass"
    accuracy = top_accuracy(task_logits, targets) if exclusive else torch.tensor(torch.nan, dtype=torch.float64)
    return torch.stack([macro_average(scores.auroc), macro_average(scores.average_precision), accuracy])


def answered_evidence(model: ConceptModel, evidence: Tensor, labels: Tensor) -> Tensor:
    """(N, K, M) evidence of each concept as it is once the concept is answered; its own where nobody knows.

    Args:
        model: Whose record has typical scores; see `fit_thresholds`.
        evidence: (N, K, M) as it is.
        labels: (N, K) answers in [0, 1]; NaN where nobody knows.

    Raises:
        ValueError: If the record lacks what is typical of an answered concept.
    """
    present, absent = (typical_evidence(model.config, model.record, word) for word in get_args(Word))
    told = correct_evidence(evidence, labels, TypicalEvidence(present, absent))
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


def _expected_ranks(
    model: ConceptModel,
    evidence: Tensor,
    answered: Tensor,
    logits: Tensor,
    labels: Tensor,
    policy: Policy,
    most: int,
) -> Tensor:
    """(N, K) when each concept is asked for, by what its answer is expected to do once the earlier ones are given."""
    said = concept_probabilities(logits, model.config, model.record).double()
    known = torch.where(labels.isnan(), torch.nan, 1.0)  # what nobody knows is never asked for
    present, absent = (answered_evidence(model, evidence, known * word) for word in (1.0, 0.0))
    now, rank = evidence.clone(), torch.full(labels.shape, labels.shape[1])
    waiting = ~labels.isnan()
    rows = torch.arange(len(now))
    for step in range(min(most, labels.shape[1])):
        gain = _expected_gain(model, now, present, absent, said, policy)
        chosen = gain.masked_fill(~waiting, -torch.inf).argmax(dim=1)
        asked = rows[waiting[rows, chosen]]  # of an image whose known answers are all given, nothing
        rank[asked, chosen[asked]] = step
        now[asked, chosen[asked]] = answered[asked, chosen[asked]]
        waiting[rows, chosen] = False
    return rank


def _expected_gain(
    model: ConceptModel, now: Tensor, present: Tensor, absent: Tensor, said: Tensor, policy: Policy
) -> Tensor:
    """(N, K) expected change of the tasks, or decrease of their uncertainty, by the answer to each concept."""
    exclusive = model.config.task_kind == "multiclass"

    def task_logits(told: Tensor) -> Tensor:
        return model.task_head(told.to(model.device)).cpu().double()

    before = task_logits(now)
    gains = []
    for k in range(now.shape[1]):
        expected = torch.zeros(len(now), dtype=torch.float64)
        for answer, chance in ((present, said[:, k]), (absent, 1 - said[:, k])):
            told = now.clone()
            told[:, k] = answer[:, k]
            after = task_logits(told)
            if policy == "ectp":
                gain = _divergence(after, before, exclusive)
            else:
                gain = _uncertainty(before, exclusive) - _uncertainty(after, exclusive)
            expected += chance * gain
        gains.append(expected)
    return torch.stack(gains, dim=1)


def _divergence(after: Tensor, before: Tensor, exclusive: bool) -> Tensor:
    """(N,) Kullback-Leibler divergence of the tasks after from those before, from logits (N, T)."""
    if exclusive:
        return F.kl_div(before.log_softmax(dim=1), after.log_softmax(dim=1), log_target=True, reduction="none").sum(1)
    sides = [(F.logsigmoid(sign * after), F.logsigmoid(sign * before)) for sign in (1, -1)]
    return sum(((new.exp() * (new - old)).sum(dim=1) for new, old in sides), torch.zeros(len(after)).double())


def _uncertainty(logits: Tensor, exclusive: bool) -> Tensor:
    """(N,) entropy of the tasks, summed over those that do not exclude each other, from logits (N, T)."""
    if exclusive:
        return torch.special.entr(logits.softmax(dim=1)).sum(dim=1)
    said = logits.sigmoid()
    return (torch.special.entr(said) + torch.special.entr(1 - said)).sum(dim=1)
