"""How far the models of a cross-validation may be believed, and what corrections do to them; read out of fold."""

from pathlib import Path
from typing import NamedTuple

import torch
from corrections import Part, figures, of, order, part_of
from torch import Tensor
from torch.nn import functional as F

from conceptcam import ConceptModel
from conceptcam.analysis.intervention import typical_evidence
from conceptcam.config import TaskKind
from conceptcam.data.batch import ConceptDataset
from conceptcam.metrics.calibration import calibration_scores, fit_scaling, scale_logits
from conceptcam.model.corrections import TypicalEvidence, correct_evidence
from conceptcam.runs.cross_validation import OutOfFold

POLICIES = ("random", "ucp", "cctp")
DRAWS = 10  # of the random policy


class Calibration(NamedTuple):
    """Of the concepts' probabilities."""

    raw: float
    """Expected calibration error of all probabilities of all concepts together, as the models give them."""
    calibrated: float
    """The same, calibrated on what models said of the other folds, which they had not seen either."""
    worse: dict[str, tuple[float, float]]
    """Concepts whose calibrated Brier score is above that of how frequent they are in the other folds: by how much, and
    the half-width of its 95 % interval."""


def calibration(answers: OutOfFold, concepts: tuple[str, ...]) -> Calibration:
    """How far probabilities come true, raw and calibrated."""
    said = answers.concept_logits.double().sigmoid()
    calibrated, frequency = said.clone(), torch.zeros_like(said)
    for fold in answers.fold.unique():
        others, own = answers.fold != fold, answers.fold == fold
        scaling = fit_scaling(answers.concept_logits[others], answers.concepts[others])
        calibrated[own] = scale_logits(answers.concept_logits[own], scaling).sigmoid()
        frequency[own] = answers.concepts[others].double().mean(dim=0)
    squares = [(one - answers.concepts).square() for one in (calibrated, frequency)]
    excess = squares[0] - squares[1]
    mean, half = excess.mean(dim=0), 1.96 * excess.std(dim=0) / len(excess) ** 0.5
    worse = {name: (float(mean[k]), float(half[k])) for k, name in enumerate(concepts) if float(mean[k]) > 0}
    return Calibration(pooled_error(said, answers.concepts), pooled_error(calibrated, answers.concepts), worse)


def pooled_error(said: Tensor, labels: Tensor) -> float:
    """Expected calibration error of (N, K) probabilities, all concepts in the same bins."""
    return float(calibration_scores(said.reshape(-1, 1), labels.reshape(-1, 1)).ece)


def corrected_figures(images: ConceptDataset, place: Path, fold: Tensor, kind: TaskKind) -> dict[str, dict[str, float]]:
    """Figures of the diagnoses by what is corrected in each image: nothing, one concept by a policy, or all."""
    logits: dict[str, list[Tensor]] = {}
    targets = []
    for number in fold.unique().tolist():
        model = ConceptModel.from_pretrained(place / f"fold-{number + 1}")
        images.preprocess = model.preprocess
        part = part_of(model, images.dataloader(28)).rows(fold == number)
        targets.append(part.targets)
        for name, one in corrected_logits(model, part).items():
            logits.setdefault(name, []).append(one)
    found = {name: figures(torch.cat(parts), torch.cat(targets), kind) for name, parts in logits.items()}
    random = [found.pop(f"random {draw}") for draw in range(DRAWS)]
    return found | {"one, random": {name: sum(one[name] for one in random) / DRAWS for name in random[0]}}


def corrected_logits(model: ConceptModel, part: Part) -> dict[str, Tensor]:
    """Task logits after each correction, which puts in what the model's record calls typical."""
    head = (model.task_head.weight.detach(), model.task_head.bias.detach())
    typical = TypicalEvidence(*(typical_evidence(model.config, model.record, word) for word in ("present", "absent")))
    corrected = correct_evidence(part.evidence, part.concepts, typical)
    # Of few images, some concept is never present: nothing is typical of it, and it stays as it is.
    corrected = torch.where(corrected.isnan(), part.evidence, corrected)
    found = {"none": of(head, part.evidence), "all": of(head, corrected)}
    for policy in POLICIES:
        for draw in range(DRAWS if policy == "random" else 1):
            first = order(policy, part, head[0], draw).argmin(dim=1)
            chosen = F.one_hot(first, part.concepts.shape[1]).bool()[..., None]
            name = f"random {draw}" if policy == "random" else f"one, {policy}"
            found[name] = of(head, torch.where(chosen, corrected, part.evidence))
    return found
