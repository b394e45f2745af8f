"""The prototypes of a model, each bound to the image that shows it best: look at them, and drop or merge what is wrong.

A prototype that looks at the wrong thing is dropped: its vector becomes 0, so that it is like nothing and its evidence
is 0 in every image. Two that show the same are merged. Afterwards the task head, and nothing else, is solved for anew.
An atlas holds names of images and places, no pixels: `Atlas.figure` draws from the images while they are at hand.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from conceptcam._checks import check_known
from conceptcam._display.text import text_table
from conceptcam._files import nan_to_null
from conceptcam.analysis.answers import collect_answers, label_check
from conceptcam.config import ConceptConfig
from conceptcam.data.batch import Batches, as_batch
from conceptcam.losses.classification import multiclass_loss, multilabel_loss
from conceptcam.metrics.prototypes import PrototypePurity
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.corrections import corrected_copies, record_corrections, typical_evidence_of
from conceptcam.model.device import eval_mode
from conceptcam.model.heads import Prototypes, TaskHead
from conceptcam.model.linear_solver import LinearSolver

Prototype = tuple[str, int]
"""The name of a concept and the number of one of its prototypes, from 0."""


class AtlasEntry(NamedTuple):
    """One prototype and the image that shows it best."""

    concept: str
    number: int
    image: str
    """Name of the image with the concept that is most similar to it; its number if images have no names. Empty if it is
    dropped, or no image has the concept."""
    place: tuple[float, float, float, float]
    """The most similar cell there: left, top, right and bottom as fractions of the image; zeros without an image."""
    similarity: float
    """Cosine there, in [0, 1]; NaN without an image."""
    usage: float
    """Fraction of the images with the concept in which it is the most similar of the concept's prototypes."""
    used: int
    """How many images that is; a prototype of which it is 0 is not alive."""
    purity: float
    """Of the ten images most like it, the fraction in which the most similar place lies in a box of its concept; NaN
    without boxes."""
    twin: float
    """Highest cosine with another prototype of the concept: 1 is a duplicate; NaN if it is dropped or alone."""
    weight: float
    """Largest weight in the task head, up or down: how much a task can rest on it; NaN without tasks."""
    dropped: bool
    name: str = ""
    """What a person calls it."""

    @property
    def title(self) -> str:
        """Concept, number and name, as they stand above its picture."""
        return f"{self.concept} {self.number}{f': {self.name}' if self.name else ''}"

    @property
    def health(self) -> str:
        """Whether it lives, and how much it is used, as it stands below its title in a picture."""
        if self.dropped:
            return "dropped"
        return (
            f"similarity {self.similarity:.2f}, {f'usage {self.usage:.0%}' if self.used else 'dead: used by no image'}"
        )


@dataclasses.dataclass(frozen=True)
class Atlas:
    """All prototypes of a model, concept by concept.

    Attributes:
        entries: K times M of them.
    """

    entries: tuple[AtlasEntry, ...]

    def __getitem__(self, prototype: Prototype) -> AtlasEntry:
        """The entry of a concept's prototype."""
        return next(one for one in self.entries if (one.concept, one.number) == prototype)

    def renamed(self, names: Mapping[Prototype, str]) -> "Atlas":
        """The atlas in which some prototypes have names of your own."""
        entries = (one._replace(name=names.get((one.concept, one.number), one.name)) for one in self.entries)
        return Atlas(tuple(entries))

    @property
    def names(self) -> dict[Prototype, str]:
        """What a person calls prototypes, of those that have a name."""
        return {(one.concept, one.number): one.name for one in self.entries if one.name}

    @property
    def drawable(self) -> list[AtlasEntry]:
        """Entries that have an image."""
        return [one for one in self.entries if one.image]

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; an undefined figure is None."""
        return {"schema_version": 1, "prototypes": nan_to_null([one._asdict() for one in self.entries])}

    def table(self) -> str:
        """A line per prototype, with its health."""
        rows = [["prototype", "name", "image", "similarity", "used", "usage", "purity", "twin", "weight"]]
        for one in self.entries:
            figures = (one.similarity, one.used, one.usage, one.purity, one.twin, one.weight)
            shown = ["-" if math.isnan(value) else f"{value:.3f}" for value in figures]
            shown[1] = str(one.used) if one.used else "dead"
            rows.append([f"{one.concept} {one.number}", one.name, one.image, *(["dropped"] if one.dropped else shown)])
        width = max(map(len, rows))
        rows = [row + [""] * (width - len(row)) for row in rows]
        return "\n".join(text_table(rows)) + "\n"

    def figure(self, load: Callable[[str], Any], *, concepts: Sequence[str] = ()) -> Any:
        """The images that show the prototypes best, with a box around the place, as a Pillow image.

        A dropped prototype is like no image: its tile is empty, and says so.

        Args:
            load: Gives the picture of an image's name, as `explain` takes: a path, an array, a tensor.
            concepts: Whose prototypes to draw; empty draws all. Those of concepts that no image has cannot be drawn.

        Raises:
            ValueError: If there is nothing to draw.
        """
        from conceptcam.analysis.figures import Tile, blank, blend, contact_sheet  # needs Pillow
        from conceptcam.data.images import load_image

        asked = [one for one in self.entries if not concepts or one.concept in concepts]
        pictures = {
            (one.concept, one.number): blend(load_image(load(one.image)), boxes=[one.place])
            for one in asked
            if one.image
        }
        if not pictures:
            raise ValueError("no prototype can be drawn: all are dropped, or no image has their concepts")
        empty = blank(next(iter(pictures.values())).size)
        return contact_sheet(
            [
                Tile(one.title, pictures.get((one.concept, one.number), empty), one.health)
                for one in asked
                if one.image or one.dropped
            ]
        )


@torch.inference_mode()
def build_atlas(model: ConceptModel, batches: Batches) -> Atlas:
    """Bind each prototype to the image, and the place in it, that is most like it among those with its concept.

    Args:
        model: With prototypes.
        batches: Images with concept labels, such as the training data, not augmented; named ones are found again.

    Raises:
        ValueError: If the model has no prototypes, or there are no batches.
    """
    vectors = _vectors(model)
    concepts, each = vectors.shape[:2]
    best = torch.full((concepts, each), -1.0)
    where = torch.zeros(concepts, each, dtype=torch.long)
    row, wins, present, seen = torch.zeros_like(where), torch.zeros(concepts, each), torch.zeros(concepts), 0
    purity = PrototypePurity()
    purity.distributed_available_fn = lambda: False  # of several processes, each that asks has all images
    names: list[str] = []
    grid = (1, 1)
    with eval_mode(model) as device, torch.random.fork_rng(devices=[]):
        for given in batches:
            batch = as_batch(given).to(device)
            similarity = model(batch.images).similarity_maps.cpu()
            purity.update(similarity, None if batch.boxes is None else batch.boxes.to("cpu"))
            grid = (similarity.shape[-2], similarity.shape[-1])
            shows = batch.concepts.cpu() > 0.5
            top, place = similarity.flatten(3).max(dim=-1)  # (B, K, M)
            nearest = F.one_hot(top.argmax(dim=-1), each) * shows[..., None] * (top.amax(dim=-1) > 0)[..., None]
            wins, present = wins + nearest.sum(dim=0), present + shows.sum(dim=0)
            value, image = top.masked_fill(~shows[..., None], -1.0).max(dim=0)
            better = value > best
            best, row = torch.where(better, value, best), torch.where(better, image + seen, row)
            where = torch.where(better, place.gather(0, image[None])[0], where)
            names += batch.names or map(str, range(seen, seen + len(shows)))
            seen += len(shows)
    if not seen:
        raise ValueError("there are no batches to look for prototypes in")
    pure = purity.compute()
    pure = pure if len(pure) else torch.full_like(wins, torch.nan)
    return _atlas(model, best, where, row, wins, wins / present[:, None], pure, names, grid)


def _atlas(
    model: ConceptModel, best: Tensor, where: Tensor, row: Tensor, used: Tensor, usage: Tensor, purity: Tensor,
    names: Sequence[str], grid: tuple[int, int],
) -> Atlas:  # fmt: skip
    vectors = F.normalize(_vectors(model).detach().float().cpu(), dim=-1)
    dropped = vectors.norm(dim=-1) == 0
    cosines = (vectors @ vectors.mT).masked_fill(torch.eye(vectors.shape[1], dtype=torch.bool), -torch.inf)
    twin = cosines.masked_fill(dropped[:, None, :], -torch.inf).amax(dim=-1)
    twin = twin.masked_fill(dropped | twin.isinf(), torch.nan)
    head = model.task_head
    weight = torch.full_like(twin, torch.nan)
    if isinstance(head, TaskHead) and len(head.weight):
        weight = head.weight.detach().float().cpu().abs().amax(dim=0)
    height, width = grid
    entries = []
    for k, concept in enumerate(model.config.concepts):
        for m in range(vectors.shape[1]):
            y, x = divmod(int(where[k, m]), width)
            known = float(best[k, m]) >= 0 and not dropped[k, m]  # a dropped one is like all images, by 0
            place = (x / width, y / height, (x + 1) / width, (y + 1) / height)
            entries.append(
                AtlasEntry(
                    concept, m, names[int(row[k, m])] if known else "", place if known else (0.0,) * 4,
                    float(best[k, m]) if known else math.nan, float(usage[k, m]), int(used[k, m]),
                    float(purity[k, m]), float(twin[k, m]), float(weight[k, m]), bool(dropped[k, m]),
                )
            )  # fmt: skip
    return Atlas(tuple(entries))


def check_prototypes(model: ConceptModel, prototypes: Iterable[Prototype]) -> None:
    """Refuse a prototype that a model does not have.

    Raises:
        ValueError: Naming it; or if the model has no prototypes at all.
    """
    _vectors(model)
    for concept, number in prototypes:
        _index(model.config, concept, number)


@torch.no_grad()
def drop_prototypes(model: ConceptModel, prototypes: Iterable[Prototype]) -> None:
    """Make prototypes like nothing, for good: their evidence is 0 in every image from now on.

    The model counts as untaught in its tasks until `refit_task_head`. It stays as it is if none is given, or one is
    refused.

    Raises:
        ValueError: If the model has no such prototype.
    """
    vectors, dropped = _vectors(model), [*prototypes]
    if not dropped:
        return
    for row in [_index(model.config, concept, number) for concept, number in dropped]:  # all are checked first
        vectors[row] = 0
    _record_change(model, f"dropped {', '.join(f'{concept} {number}' for concept, number in dropped)}")


@torch.no_grad()
def merge_prototypes(model: ConceptModel, concept: str, numbers: Sequence[int]) -> None:
    """Put the mean direction of some prototypes of a concept in the place of the first, and drop the others.

    The model counts as untaught in its tasks until `refit_task_head`.

    Raises:
        ValueError: If the model has no such prototype, or fewer than two are given.
    """
    if len(set(numbers)) < 2:
        raise ValueError(f"at least two prototypes can be merged, got {list(numbers)}")
    vectors = _vectors(model)
    rows = [_index(model.config, concept, number) for number in dict.fromkeys(numbers)]
    vectors[rows[0]] = torch.stack([F.normalize(vectors[one], dim=-1) for one in rows]).mean(dim=0)
    for row in rows[1:]:
        vectors[row] = 0
    _record_change(model, f"merged {concept} {', '.join(str(number) for _, number in rows)}")


def refit_task_head(model: ConceptModel, batches: Batches, *, corrections: bool = True) -> None:
    """Solve for the task head anew, and for nothing else, after prototypes were dropped or merged.

    Class weights are those that the record keeps of training. With corrections, what is typical of a concept's evidence
    is taken from the same images; without, `fit_thresholds` takes it from validation data. `fit_calibration` brings
    back the calibration of tasks.

    Args:
        model: With tasks.
        batches: Training data, not augmented.
        corrections: As in `conceptcam.training.stages.Stage`.

    Raises:
        ValueError: If the model has no tasks, its head is of another kind than `TaskHead`, or the data lack its tasks.
    """
    head, config = model.task_head, model.config
    if not isinstance(head, TaskHead) or not config.tasks:
        raise ValueError("there is no linear task head to solve for in this model")
    weights = model.record.task_weights
    answers = collect_answers(model, batches, evidence=True, observers=[label_check(config)])
    if answers.targets.shape[1] != len(config.tasks):
        raise ValueError(
            f"the data have {answers.targets.shape[1]} task labels, and the model {len(config.tasks)} tasks to solve "
            "for; take data with their labels"
        )
    weight = torch.tensor([weights.get(name, 1.0) for name in config.tasks])
    loss = multiclass_loss if config.task_kind == "multiclass" else multilabel_loss
    evidence = answers.evidence.clone()
    rows = corrected_copies(evidence, answers.concepts) if corrections else evidence
    copies = len(rows) // len(evidence)
    solved = LinearSolver(l2=None).solve(
        rows, answers.targets.clone().repeat(copies, 1), lambda logits, true: loss(logits, true, weight),
        groups=list(range(len(evidence))) * copies,
    )  # fmt: skip
    with torch.no_grad():
        head.weight.copy_(solved[0])
        head.bias.copy_(solved[1])
    model.record = dataclasses.replace(model.record.after("task", ["task_head"]), task_weights=dict(weights))
    if corrections:
        typical = typical_evidence_of(evidence, answers.concepts)
        model.record = record_corrections(model.record, config.concepts, typical)


def _record_change(model: ConceptModel, change: str) -> None:
    """Forget what rests on the prototypes, and record from which saved model, and how, this one was made."""
    parent = model.record.weights_sha256  # gone once the model differs from its file
    start = f"the model whose weights have the SHA-256 {parent}" if parent else model.record.derived_from
    record = model.record.after("prototypes", ["prototypes"])
    model.record = dataclasses.replace(record, derived_from="; ".join(filter(None, [start, change])))


def _vectors(model: ConceptModel) -> Tensor:
    if not isinstance(model.prototypes, Prototypes):
        raise ValueError("a 'concepts' bottleneck has no prototypes, so there is no atlas of it")
    return model.prototypes.vectors


def _index(config: ConceptConfig, concept: str, number: int) -> tuple[int, int]:
    check_known("concept", concept, config.concepts)
    if not 0 <= number < config.prototypes_per_concept:
        raise ValueError(
            f"{concept!r} has {config.prototypes_per_concept} prototypes, counted from 0; there is no {number}"
        )
    return config.concepts.index(concept), number
