"""Tell a model that it is wrong: answer concepts, point at places, reject prototypes, and see what changes.

An intervention acts on one forward pass, in three steps. Places weigh the maps, from which the evidence is taken anew
(CSR, Eq. 12 and 13). Answers take the place of the evidence of their concepts. Rejected prototypes count nothing. The
task head then reads the evidence as ever. What says nothing new changes nothing, to the bit.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from conceptcam._checks import check_known
from conceptcam.analysis.doubts import correction_doubts
from conceptcam.config import ConceptConfig, TrainingRecord
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.corrections import TypicalEvidence
from conceptcam.model.outputs import ConceptOutput
from conceptcam.model.predictions import concept_probabilities

Word = Literal["present", "absent"]
Answer = float | Word

_SAME = 1e-5
"""Relative distance within which an answer is the model's own probability, as written with six digits."""

_ELSEWHERE = 0.2
"""Weight of places that nobody pointed at, of CSR's study."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Intervention:
    """What a person answers to a model about one image; every part may be given alone or with others.

    Attributes:
        answers: Concept name -> `"present"`, `"absent"`, or a probability in [0, 1]. The words mean the typical scores
            in the model's record, so that the task head reads what it was trained on. A probability takes the place of
            the concept's own in a `"concepts"` bottleneck. With prototypes, evidence moves from where it is, which is
            the concept's own probability, in a straight line towards the typical evidence of presence at 1 and of
            absence at 0. It is a probability as `explain` shows it, calibrated if the model is.
        here: Concept name -> where the concept is: boxes (N, 4), left, top, right and bottom as fractions of the image,
            or a mask (H, W) of bools.
        not_here: Concept name -> where it is not, in the same form. Where both are drawn, `here` counts.
        weights: Concept name -> a map (H, W) in [0, 1] of your own that weighs places; 1 leaves a place as it is.
        rejected: Names of concepts, or (name, number) of single prototypes, whose evidence counts as 0.
        elsewhere: Weight in [0, 1) of places that neither `here` nor `not_here` names. None takes 0.2 for a concept
            that is somewhere, as CSR's study does, and 1 for one of which only is known where it is not.

    Raises:
        ValueError: If an answer, a place or a weight is impossible.
    """

    answers: Mapping[str, Answer] = field(default_factory=dict)
    here: Mapping[str, Any] = field(default_factory=dict)
    not_here: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    rejected: Sequence[str | tuple[str, int]] = ()
    elsewhere: float | None = None

    def __post_init__(self) -> None:
        for name, answer in self.answers.items():
            if answer not in get_args(Word) and not (_is_number(answer) and 0 <= float(answer) <= 1):
                raise ValueError(
                    f"the answer to {name!r} must be 'present', 'absent' or a probability in [0, 1]; got {answer!r}"
                )
        if self.elsewhere is not None and not 0 <= self.elsewhere < 1:
            raise ValueError(f"`elsewhere` must be in [0, 1), got {self.elsewhere}")
        for name, weights in self.weights.items():
            if weights.ndim != 2 or not ((weights >= 0) & (weights <= 1)).all():
                raise ValueError(f"the weights of {name!r} must be a map (H, W) in [0, 1]")
        if isinstance(self.rejected, str):
            raise ValueError(f"`rejected` must be a list; for one concept write [{self.rejected!r}]")

    def check_fits(self, config: ConceptConfig) -> None:
        """Refuse a concept or a prototype that a model does not have.

        Raises:
            ValueError: Naming it.
        """
        prototypes = [one for one in self.rejected if not isinstance(one, str)]
        names = [one if isinstance(one, str) else one[0] for one in self.rejected]
        for name in (*self.answers, *self.here, *self.not_here, *self.weights, *names):
            check_known("concept", name, config.concepts)
        if prototypes and config.bottleneck == "concepts":
            raise ValueError(
                f"a 'concepts' bottleneck has no prototypes to reject, got {prototypes}; reject the concept"
            )
        for name, number in prototypes:
            if not 0 <= number < config.prototypes_per_concept:
                raise ValueError(
                    f"{name!r} has {config.prototypes_per_concept} prototypes, counted from 0; cannot reject {number}"
                )


@torch.no_grad()
def apply_interventions(
    model: ConceptModel, output: ConceptOutput, interventions: Sequence[Intervention]
) -> ConceptOutput:
    """The output of a model for a batch, with the answers and places that are given for each image.

    Concept maps, concept logits, similarity maps, evidence and task logits change; what is not named stays as it is, to
    the bit.

    Args:
        model: The model that gave the output.
        output: A batch of B images, on any device.
        interventions: B of them.

    Raises:
        ValueError: As `intervene`.
    """
    if len(interventions) != len(output.concept_logits):
        raise ValueError(f"need one intervention per image, got {len(interventions)} of {len(output.concept_logits)}")
    for intervention in interventions:
        intervention.check_fits(model.config)
    output = weigh_places(model, output, _place_weights(model.config, output, interventions))
    output = _answer(model, output, interventions)
    evidence = output.evidence.clone()
    for image, intervention in enumerate(interventions):
        for one in intervention.rejected:
            name, number = (one, slice(None)) if isinstance(one, str) else one
            evidence[image, model.config.concepts.index(name), number] = 0
    head = model.task_head
    return output._replace(
        evidence=evidence, task_logits=head(evidence.to(head.weight.device)).to(output.task_logits.device)
    )


def weigh_logits(maps: Tensor, weights: Tensor) -> Tensor:
    """Maps of logits (B, K, h, w) whose probabilities are multiplied by weights (B, K, h, w) in [0, 1].

    A place counts at least as much as the map's lowest place, so that every logit stays finite and what is ruled out
    looks like a place without the concept. A weight of 1 leaves a logit as it is, to the bit.
    """
    floor = maps.amin(dim=(-2, -1), keepdim=True)
    # log(wp / (1 - wp)), of p = sigmoid(maps), without 1 - p where p rounds to 1.
    lowered = maps.sigmoid().mul(weights).log() - torch.log1p(-maps.sigmoid() * weights)
    return torch.where(weights == 1, maps, torch.maximum(torch.minimum(lowered, maps), floor))


def parse_answer(text: str) -> tuple[str, Answer]:
    """Concept and answer of a text such as `"Streaks=absent"` or `"Streaks=0.3"`.

    Raises:
        ValueError: If it has another form.
    """
    name, _, answer = text.rpartition("=")
    if name and answer in get_args(Word):
        return name, answer  # type: ignore[return-value]
    try:
        probability = float(answer)
    except ValueError:
        probability = math.nan
    if not name or not 0 <= probability <= 1:
        raise ValueError(
            f"expected NAME=present, NAME=absent or NAME=P with a probability P from 0 to 1, such as "
            f"'Streaks=absent'; got {text!r}"
        )
    return name, probability


def typical_evidence(config: ConceptConfig, record: TrainingRecord, word: Word) -> Tensor:
    """(K, M) evidence that is typical where each concept is present, or absent; NaN where the record does not say."""
    probabilities = record.typical_present if word == "present" else record.typical_absent
    rows = record.evidence_present if word == "present" else record.evidence_absent
    if config.bottleneck == "concepts":
        return torch.tensor([rows.get(name, (probabilities.get(name, math.nan),)) for name in config.concepts])
    unknown = (math.nan,) * config.prototypes_per_concept
    return torch.tensor([rows.get(name, unknown) for name in config.concepts])


def correction_doubts_of(config: ConceptConfig, record: TrainingRecord, concepts: Sequence[str] = ()) -> list[str]:
    """What is to be doubted of corrections by the evidence that a record calls typical, in sentences.

    Args:
        config: Of the model.
        record: Of the model.
        concepts: Which concepts are to be corrected; empty takes all.
    """
    typical = TypicalEvidence(*(typical_evidence(config, record, word) for word in get_args(Word)))
    chosen = [k for k, name in enumerate(config.concepts) if not concepts or name in concepts]
    return correction_doubts([config.concepts[k] for k in chosen], typical.rise[chosen])


def _place_weights(
    config: ConceptConfig, output: ConceptOutput, interventions: Sequence[Intervention]
) -> Tensor | None:
    """(B, K, h, w) weights of all places in [0, 1]; None if nobody spoke of places."""
    if not any(one.here or one.not_here or one.weights for one in interventions):
        return None
    weights = torch.ones_like(output.concept_maps)
    grid = (weights.shape[2], weights.shape[3])
    for image, one in enumerate(interventions):
        for name in config.concepts:
            place = weights[image, config.concepts.index(name)]
            if name in one.weights:
                place *= F.adaptive_avg_pool2d(one.weights[name].to(place)[None], grid)[0]
            if name not in one.here and name not in one.not_here:
                continue
            inside, outside = (
                _covered(one.here.get(name), grid).to(place),
                _covered(one.not_here.get(name), grid).to(place),
            )
            unnamed = one.elsewhere if one.elsewhere is not None else _ELSEWHERE if name in one.here else 1.0
            place *= inside + unnamed * (1 - inside - outside).clamp(min=0)
    return weights


def _covered(places: Any, grid: tuple[int, int]) -> Tensor:
    """(h, w) fraction of each cell that places cover."""
    if places is None:
        return torch.zeros(grid)
    drawn = torch.as_tensor(places)
    if drawn.dtype == torch.bool and drawn.ndim == 2:
        return F.adaptive_avg_pool2d(drawn[None].float(), grid)[0]
    if drawn.ndim != 2 or drawn.shape[1] != 4:
        raise ValueError(
            f"places must be boxes (N, 4) or a mask (H, W) of bools, got {drawn.dtype} {tuple(drawn.shape)}"
        )
    none = torch.zeros(len(drawn), dtype=torch.long)
    return ConceptBoxes(drawn.float(), none, none).coverage((1, 1, *grid))[0, 0]


def weigh_places(model: ConceptModel, output: ConceptOutput, weights: Tensor | None) -> ConceptOutput:
    """The output with maps weighted by (B, K, h, w) in [0, 1], and concept logits and evidence taken from them anew.

    A concept whose places all weigh 1 stays as it is, to the bit; so does everything if there are no weights.
    """
    if weights is None:
        return output
    maps = weigh_logits(output.concept_maps, weights)
    touched = (weights != 1).any(dim=-1).any(dim=-1)
    pooled = model.pool(maps.to(model.device)).to(maps.device)
    logits = torch.where(touched, pooled, output.concept_logits)
    if model.config.bottleneck == "concepts":
        evidence = torch.where(touched, logits.sigmoid(), output.evidence[..., 0])[..., None]
        return output._replace(concept_maps=maps, concept_logits=logits, evidence=evidence)
    # Similarities are clipped at 0 already, so a smaller weight never adds evidence (CSR, Eq. 13).
    similarity = output.similarity_maps * weights[:, :, None]
    return output._replace(
        concept_maps=maps,
        concept_logits=logits,
        similarity_maps=similarity,
        evidence=torch.where(touched[..., None], similarity.amax(dim=(-2, -1)), output.evidence),
    )


def _answer(model: ConceptModel, output: ConceptOutput, interventions: Sequence[Intervention]) -> ConceptOutput:
    """The output with the evidence of the answered concepts in place of the model's.

    Raises:
        ValueError: If the record lacks what is typical of an answered concept.
    """
    config, record = model.config, model.record
    logits, evidence = output.concept_logits.clone(), output.evidence.clone()
    typical = {word: typical_evidence(config, record, word).to(evidence) for word in get_args(Word)}
    shown_for: dict[str, Mapping[str, float]] = {"present": record.typical_present, "absent": record.typical_absent}
    if config.bottleneck == "concepts":  # the probability is the evidence
        pairs = {word: zip(config.concepts, rows[:, 0].tolist(), strict=True) for word, rows in typical.items()}
        shown_for = {word: dict(rows) for word, rows in pairs.items()}
    for image, intervention in enumerate(interventions):
        shown_before = concept_probabilities(logits[image], config, record).tolist()
        for name, told in intervention.answers.items():
            k = config.concepts.index(name)
            # As near as a number in a table is to the model's own: CPUs round a sigmoid by where it stands in a row.
            if not isinstance(told, str) and math.isclose(told, shown_before[k], rel_tol=_SAME):
                continue
            answer = told if isinstance(told, str) else record.uncalibrated(name, told)
            own = float(logits[image, k].sigmoid())
            # A word goes all the way to what is typical, a number as far as it lies between the own and certainty.
            word: Word = answer if isinstance(answer, str) else "present" if answer > own else "absent"
            shown = shown_for[answer].get(name, math.nan) if isinstance(answer, str) else float(answer)
            way = 1.0 if isinstance(answer, str) else abs(answer - own) / (1 - own if answer > own else own)
            new = evidence[image, k].lerp(typical[word][k], way) if config.bottleneck == "prototypes" else shown
            evidence[image, k], logits[image, k] = new, torch.tensor(shown, dtype=torch.float64).logit()
            if evidence[image, k].isnan().any() or math.isnan(shown):
                raise ValueError(
                    f"the record of this model does not say which scores are typical of {name!r}, so the answer cannot "
                    "be turned into evidence; call `fit_thresholds`, after the last stage, with validation data in "
                    "which some images have the concept and some lack it"
                )
    return output._replace(concept_logits=logits, evidence=evidence)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
