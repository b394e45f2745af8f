"""Simulated readers: labels and boxes as several people, who make mistakes, would give them."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from conceptcam._checks import check_known, check_number
from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.labels import Uncertain, resolve_uncertain
from conceptcam.data.merging import ReaderRule, merge_readers
from conceptcam.data.wrapped import WrappedDataset

PerConcept = float | Mapping[str, float]
"""One number for all concepts, or one for each by name."""


class SimulatedReaders(WrappedDataset):
    """A data set with labels and boxes of simulated readers in place of the true ones.

    Each reader calls each concept present or absent independently, by sensitivity and specificity, and draws boxes of
    what they call present: the true ones, with edges moved at random; if the concept is absent in truth, those of
    another image that has it. Then the readings are merged. Images and tasks stay, and `dataset` keeps the truth. So a
    model can be trained on labels that are noisy in a known way, and tested on the truth.

    Args:
        dataset: With the truth: concept labels 0, 1 or, where unknown, NaN, which stays unknown. Its augmentation and
            preprocessing are taken over, once.
        count: How many readers.
        sensitivity: Probability that a reader calls a concept present that is present.
        specificity: Probability that a reader calls a concept absent that is absent.
        uncertainty: Probability that a reader says "uncertain" in place of yes or no.
        box_jitter: Standard deviation of each edge of a box, as a fraction of the box's side.
        rule: How the readings of an image are merged, as in `merge_readers`.
        uncertain: What a label becomes if the readers disagree or all say "uncertain", as in `resolve_uncertain`.
        seed: Of the readings. The readings of an image do not depend on how many images follow it.

    Attributes:
        readings: (N, R, K) what each reader says: 1, 0, -1 where uncertain, NaN where the truth is unknown.
        ceiling: (K,) the expected AUROC, against these labels, of a model that knows the truth; no model has a higher
            one on average. It is exact: all answers of the readers are enumerated, at the prevalence of the data.

    Raises:
        ValueError: If an option is out of range, a name unknown, or the true labels are soft.
    """

    def __init__(
        self,
        dataset: ConceptDataset,
        *,
        count: int = 3,
        sensitivity: PerConcept = 0.85,
        specificity: PerConcept = 0.98,
        uncertainty: PerConcept = 0.0,
        box_jitter: float = 0.15,
        rule: ReaderRule = "majority",
        uncertain: Uncertain = "ignore",
        seed: int = 0,
    ) -> None:
        truth = dataset.concept_labels
        if not (truth.isnan() | (truth == 0) | (truth == 1)).all():
            raise ValueError("simulated readers need true labels, 0 or 1 or NaN; some are in between")
        if count < 1:
            raise ValueError(f"`count` must be at least 1 reader, got {count}")
        check_number("`box_jitter`", box_jitter, 0, 1)
        super().__init__(dataset)
        options = {"sensitivity": sensitivity, "specificity": specificity, "uncertainty": uncertainty}
        chances = [_per_concept(name, value, dataset.concepts) for name, value in options.items()]
        self._votes = _vote_chances(*chances)
        self.readings = _read(truth, self._votes, count, np.random.default_rng((seed, 0)))
        self.concept_labels = _merged(self.readings, rule, uncertain)
        self.ceiling = _ceiling(truth, self._votes, count, rule, uncertain)
        self._boxes = self._drawn(box_jitter, np.random.default_rng((seed, 1)))
        self.notes = [*dataset.notes, f"Labels and boxes are those of {count} simulated readers, merged by {rule!r}."]

    @property
    def all_boxes(self) -> ConceptBoxes | None:
        """The boxes that readers drew of what the merged labels say is there, numbered as the images."""
        return self._boxes

    def load_item(self, index: int) -> ConceptItem:
        """The item as the data set gives it, with the readers' labels and boxes; None where nobody drew."""
        item, index = self.dataset.load_item(index), range(len(self))[index]
        boxes = item.boxes
        if boxes is not None and self._boxes is not None:
            own = self._boxes.image == index
            concept = self._boxes.concept[own]
            boxes = ConceptBoxes(self._boxes.xyxy[own], concept, torch.zeros_like(concept))
        return item._replace(concepts=self.concept_labels[index], boxes=boxes)

    def _drawn(self, jitter: float, rng: np.random.Generator) -> ConceptBoxes | None:
        true = self.dataset.all_boxes
        if true is None:
            return None
        by_pair: dict[tuple[int, int], list[int]] = {}
        by_concept: dict[int, list[tuple[int, int]]] = {}
        for row, pair in enumerate(zip(true.image.tolist(), true.concept.tolist(), strict=True)):
            if pair not in by_pair:
                by_concept.setdefault(pair[1], []).append(pair)
            by_pair.setdefault(pair, []).append(row)
        called = (self.readings == 1) & (self.concept_labels > 0)[:, None]
        rows: list[int] = []
        images: list[int] = []
        concepts: list[int] = []
        for image, _, concept in called.nonzero().tolist():
            pair = (image, concept)
            if pair not in by_pair and self.dataset.concept_labels[image, concept] == 0 and concept in by_concept:
                pair = by_concept[concept][int(rng.integers(len(by_concept[concept])))]  # a false positive needs boxes
            own = by_pair.get(pair, [])
            rows, images = rows + own, images + [image] * len(own)
            concepts += [concept] * len(own)
        xyxy = _jittered(true.xyxy[rows], jitter, rng)
        return ConceptBoxes(xyxy, torch.tensor(concepts).long(), torch.tensor(images).long())


def _per_concept(name: str, value: PerConcept, concepts: Sequence[str]) -> Tensor:
    """(K,) a chance for each concept."""
    if isinstance(value, Mapping):
        for concept in value:
            check_known("concept", concept, concepts)
        if missing := [concept for concept in concepts if concept not in value]:
            raise ValueError(f"`{name}` has no number for {missing}; give one for each concept, or one for all")
        chances = [value[concept] for concept in concepts]
    else:
        chances = [value] * len(concepts)
    for chance in chances:
        check_number(f"`{name}`", chance, 0, 1)
    return torch.tensor(chances, dtype=torch.float64)


def _vote_chances(sensitivity: Tensor, specificity: Tensor, uncertainty: Tensor) -> Tensor:
    """(2, K, 3) chance that a reader says no, yes and uncertain, where the truth is 0 and where it is 1."""
    yes = torch.stack([1 - specificity, sensitivity])
    sure = 1 - uncertainty
    return torch.stack([(1 - yes) * sure, yes * sure, uncertainty.expand_as(yes)], dim=-1)


_ANSWERS = torch.tensor([0.0, 1.0, -1.0])


def _read(truth: Tensor, votes: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """(N, R, K) answers."""
    images, concepts = truth.shape
    luck = torch.from_numpy(rng.random((images, count, concepts)))
    bounds = votes[truth.nan_to_num().long(), torch.arange(concepts)].cumsum(dim=-1)  # (N, K, 3)
    which = (luck[..., None] >= bounds[:, None, :, :2]).sum(dim=-1)
    return torch.where(truth.isnan()[:, None], torch.nan, _ANSWERS[which])


def _merged(readings: Tensor, rule: ReaderRule, uncertain: Uncertain) -> Tensor:
    """(N, K) labels from (N, R, K) readings."""
    images, count, concepts = readings.shape
    image = torch.arange(images).repeat_interleave(count)
    merged = merge_readers(readings.reshape(-1, concepts), image, images, rule)
    return resolve_uncertain(merged, uncertain)


def _ceiling(truth: Tensor, votes: Tensor, count: int, rule: ReaderRule, uncertain: Uncertain) -> Tensor:
    """(K,) AUROC of the truth against merged labels, over all that the readers may say."""
    # In how many ways can R readers be divided into those who say no, yes and uncertain?
    splits = [(no, yes, count - no - yes) for no in range(count + 1) for yes in range(count + 1 - no)]
    outcomes = torch.tensor([[0.0] * no + [1.0] * yes + [-1.0] * rest for no, yes, rest in splits])
    labels = _merged(outcomes[..., None], rule, uncertain)[:, 0].double()  # (S,) what each gives
    ways = torch.tensor([math.factorial(count) / math.prod(map(math.factorial, one)) for one in splits])
    powers = (votes[:, :, None] ** torch.tensor(splits)).prod(dim=-1)  # (2, K, S)
    known = ~labels.isnan()
    chance = ways.double() * powers * known
    share = torch.stack([(truth == value).double().mean(dim=0) for value in (0, 1)])  # (2, K)
    label = labels.nan_to_num()
    negative, positive = ((chance * weight).sum(dim=-1) * share for weight in (1 - label, label))
    # The truth is 0 or 1, so pairs are right, wrong or tied.
    right = positive[1] * negative[0] + 0.5 * (positive[0] * negative[0] + positive[1] * negative[1])
    pairs = positive.sum(dim=0) * negative.sum(dim=0)
    return torch.where(pairs > 0, right / pairs, torch.nan)


def _jittered(xyxy: Tensor, jitter: float, rng: np.random.Generator) -> Tensor:
    """(n, 4) boxes with each edge moved by `jitter` of the side it ends; those that would vanish stay."""
    sides = (xyxy[:, 2:] - xyxy[:, :2]).repeat(1, 2)
    moved = (xyxy + jitter * sides * torch.from_numpy(rng.standard_normal(tuple(xyxy.shape))).to(xyxy)).clamp(0, 1)
    good = (moved[:, 2:] - moved[:, :2] > 0.2 * sides[:, :2]).all(dim=1, keepdim=True)
    return torch.where(good, moved, xyxy)
