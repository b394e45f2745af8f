"""What a model concludes from an image before and after a person has told it that it is wrong."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from torch import Tensor

from conceptcam._files import nan_to_null
from conceptcam.analysis.explanation import Explanation, explain_output, image_outputs
from conceptcam.analysis.intervention import (
    Answer,
    Intervention,
    Word,
    apply_interventions,
    correction_doubts_of,
    typical_evidence,
)
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.outputs import ConceptOutput
from conceptcam.model.taught import check_taught

if TYPE_CHECKING:
    from PIL.Image import Image

_NOTABLE = 0.05
"""Change of a task's logit from which on its direction is worth a sentence."""

_SHOWN_TASKS = 4
"""Tasks that a picture names."""


class AnsweredConcept(NamedTuple):
    """One concept before and after an intervention."""

    concept: str
    before: float
    """Probability that the model gave."""
    answer: Answer | None
    """What was answered; None for a concept of which only places or prototypes were named."""
    after: float
    """Probability that counts now."""
    places: str = ""
    """What was said of places, in words such as "not here"; empty if nothing was."""

    def line(self) -> str:
        """All of it, as a line to read."""
        answered = "" if self.answer is None else f"answered {self.answer}"
        said = ", ".join(text for text in (answered, self.places) if text)
        same = ", which changes nothing" if said and self.answer is None and self.before == self.after else ""
        return f"{self.concept:<28} {self.before:6.3f} -> {self.after:6.3f}{', ' if said else ''}{said}{same}"


class InterventionResult(NamedTuple):
    """What a model said of one image, what was answered, and what it says now."""

    before: Explanation
    after: Explanation
    concepts: tuple[AnsweredConcept, ...]
    """The concepts that the intervention names, in the model's order."""
    rejected: tuple[str | tuple[str, int], ...]
    doubts: tuple[str, ...] = ()
    """A sentence for each reason why an answer may change nothing or go the wrong way: the evidence that is typical of
    presence hardly differs from that of absence, or this image's own lies beyond what is typical."""

    def as_dict(self) -> dict[str, Any]:
        """The explanations before and after, and what was answered, ready for JSON."""
        rows = [one._asdict() for one in self.concepts]
        named = {row.pop("concept"): row for row in rows}
        parts = {"concepts": named, "rejected": list(self.rejected), "doubts": list(self.doubts)}
        return {"before": self.before.as_dict(), "after": self.after.as_dict(), "intervention": nan_to_null(parts)}

    def lines(self) -> list[str]:
        """What was answered, and each task before and after, as lines to read."""
        lines = [f"  {one.line()}" for one in self.concepts]
        lines += [f"  rejected: {_rejected_text(one)}" for one in self.rejected]
        for before, after in zip(self.before.tasks, self.after.tasks, strict=True):
            change = f"logit {before.logit:+.2f} -> {after.logit:+.2f}"
            lines.append(f"  {before.task}: p = {before.probability:.3f} -> {after.probability:.3f}, {change}")
        return lines + [f"  {doubt}" for doubt in self.doubts]

    def figure(self, *, concepts: Sequence[str] = (), top: int = 3, say_unlike: bool = True) -> "Image":
        """The maps of some concepts before, and below them after, each with what the model concludes.

        Args:
            concepts: Which to show; if empty, those that were answered, or the `top` most probable before.
            top: How many to show if nothing was answered.
            say_unlike: Whether to say above all that the image is unlike the training images, if it is.
        """
        from conceptcam.analysis.figures import Tile, contact_sheet  # needs Pillow

        answered = [one.concept for one in self.concepts]
        names = concepts or answered or [one.concept for one in self.before.concepts[:top]]
        rows = [
            Tile(word, said.figure(concepts=names, heading=""), self._conclusion(said))
            for word, said in zip(("Before", "After"), self[:2], strict=True)
        ]
        return contact_sheet(rows, columns=1, heading=self.before._replace(tasks=()).heading(say_unlike=say_unlike))

    def _conclusion(self, said: Explanation) -> str:
        """The probabilities of the tasks: of many, of those that are the most probable before or after."""
        pairs = zip(self.before.tasks, self.after.tasks, strict=True)
        highest = [max(before.probability, after.probability) for before, after in pairs]
        shown = sorted(range(len(highest)), key=lambda task: -highest[task])[:_SHOWN_TASKS]
        return ", ".join(f"{said.tasks[task].task}: p = {said.tasks[task].probability:.3f}" for task in sorted(shown))


def intervene(
    model: ConceptModel, image: Any, intervention: Intervention, *, task: str | None = None
) -> InterventionResult:
    """What a model concludes from an image, before and after a person has answered or pointed.

    Args:
        model: A model that was taught concepts; it is left as it is.
        image: As `explain` takes.
        intervention: What is answered.
        task: As in `explain`.

    Raises:
        ValueError: As `explain`, or if the intervention does not fit the model, or the record of the model does not say
            what is typical of a concept that is answered.
    """
    return next(intervene_images(model, [image], [intervention], task=task))


def intervene_images(
    model: ConceptModel,
    images: Sequence[Any],
    interventions: Intervention | Sequence[Intervention],
    *,
    task: str | None = None,
    batch_size: int = 32,
) -> Iterator[InterventionResult]:
    """`intervene` for each image, in order, computed in batches.

    Args:
        model: As in `intervene`.
        images: Each as in `explain`.
        interventions: One for all images, or one for each.
        task: As in `explain`.
        batch_size: Images per forward pass.

    Raises:
        ValueError: As `intervene`, once the first result is asked for.
    """
    check_taught(model.config, model.record, task=task)
    each = [interventions] * len(images) if isinstance(interventions, Intervention) else list(interventions)
    if len(each) != len(images):
        raise ValueError(f"need one intervention for all images or one each, got {len(each)} for {len(images)} images")
    said = image_outputs(model, images, batch_size=batch_size)
    for (pixels, output), intervention in zip(said, each, strict=True):
        changed = apply_interventions(model, output, [intervention])
        before = explain_output(model, pixels, output, task=task)
        after = explain_output(model, pixels, changed, task=task) if _says_something(intervention) else before
        yield _result(model, before, after, (output, changed), intervention)


def _result(
    model: ConceptModel,
    before: Explanation,
    after: Explanation,
    outputs: tuple[ConceptOutput, ConceptOutput],
    intervention: Intervention,
) -> InterventionResult:
    rejected = [one if isinstance(one, str) else one[0] for one in intervention.rejected]
    named = {*intervention.answers, *intervention.here, *intervention.not_here, *intervention.weights, *rejected}
    concepts = tuple(
        AnsweredConcept(
            name,
            before.concept(name).probability,
            intervention.answers.get(name),
            after.concept(name).probability,
            _places_text(intervention, name),
        )  # fmt: skip
        for name in model.config.concepts
        if name in named
    )
    answered = tuple(intervention.answers)
    doubts = correction_doubts_of(model.config, model.record, answered) if answered else []
    doubts += _doubts_of_direction(model, outputs[0].evidence[0], outputs[1].evidence[0], intervention)
    return InterventionResult(before, after, concepts, tuple(intervention.rejected), tuple(doubts))


def _doubts_of_direction(model: ConceptModel, before: Tensor, after: Tensor, intervention: Intervention) -> list[str]:
    """A sentence for each answered word by which a task moves against its usual direction; evidence is (K, M)."""
    config, weight, found = model.config, model.task_head.weight.detach().to(before), []
    present, absent = (typical_evidence(config, model.record, word).to(before) for word in get_args(Word))
    for name, answer in intervention.answers.items():
        if answer not in get_args(Word) or not config.tasks:
            continue
        k = config.concepts.index(name)
        usual = weight[:, k] @ (present[k] - absent[k]) * (1 if answer == "present" else -1)
        moved = weight[:, k] @ (after[k] - before[k])
        against = (usual * moved < 0) & (moved.abs() > _NOTABLE)
        if against.any():
            rows = against.nonzero()[:, 0].tolist()
            tasks = ", ".join(f"{config.tasks[row]!r} ({moved[row]:+.2f})" for row in rows)
            found.append(
                f"{answer!r} moves {tasks} the other way than usual: what the model saw of {name!r} in this image lies "
                "beyond what is typical."
            )
    return found


def _places_text(one: Intervention, name: str) -> str:
    """What an intervention says of places of a concept."""
    parts = (("here", one.here), ("not here", one.not_here), ("places weighed", one.weights))
    return ", ".join(text for text, named in parts if name in named)


def _says_something(one: Intervention) -> bool:
    return bool(one.answers or one.here or one.not_here or one.weights or one.rejected)


def _rejected_text(one: str | tuple[str, int]) -> str:
    return one if isinstance(one, str) else f"prototype {one[1]} of {one[0]}"
