"""Several data sets as one, such as training and validation data that are looked at together."""

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from conceptcam._checks import shorten
from conceptcam.config import TaskKind
from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.faults import Fault
from conceptcam.data.image_cache import ImageCache
from conceptcam.data.text_column import TextColumn


class JoinedDataset(ConceptDataset):
    """The images of several data sets, one after the other.

    Labels are matched by their names: one that a data set does not have is unknown (NaN) in all of its images.

    Args:
        datasets: At least one; concepts and tasks come in the order in which they are met. Augmentations and
            preprocessing are left out. Those with tasks have tasks of one kind.

    Raises:
        ValueError: If there is no data set, or tasks of one exclude each other and those of another do not.
    """

    def __init__(self, datasets: Sequence[ConceptDataset]) -> None:
        if not datasets:
            raise ValueError("`datasets` is empty; expected at least one data set to join")
        self.datasets = tuple(datasets)
        self.concepts = tuple(dict.fromkeys(chain.from_iterable(one.concepts for one in datasets)))
        self.tasks = tuple(dict.fromkeys(chain.from_iterable(one.tasks for one in datasets)))
        self.task_kind = _one_kind(datasets)
        folders = {one.folder for one in datasets}
        self.folder = folders.pop() if len(folders) == 1 else None
        self.concept_labels = torch.cat([_spread(one.concept_labels, one.concepts, self.concepts) for one in datasets])
        self.task_labels = torch.cat([_spread(one.task_labels, one.tasks, self.tasks) for one in datasets])
        self.notes = tuple(dict.fromkeys(chain.from_iterable(one.notes for one in datasets)))
        if any(one.patients is not None for one in datasets):
            ids = chain.from_iterable([""] * len(one) if one.patients is None else one.patients for one in datasets)
            self.patients = TextColumn(list(ids))
        self._names = TextColumn(list(chain.from_iterable(one.names for one in datasets)))
        self._ends = torch.tensor([len(one) for one in datasets]).cumsum(0)

    @property
    def names(self) -> Sequence[str]:
        """What to call the images; a file that two data sets hold is there twice."""
        return self._names

    @property
    def all_boxes(self) -> ConceptBoxes | None:
        """The boxes of all images, numbered as the images; None if a data set knows them image by image alone."""
        found = []
        for one, end in zip(self.datasets, self._ends.tolist(), strict=True):
            boxes = one.all_boxes
            if boxes is None:
                return None
            concept = self._places(one)[boxes.concept]
            found.append(ConceptBoxes(boxes.xyxy, concept, boxes.image + (end - len(one))))
        parts = [(boxes.xyxy, boxes.concept, boxes.image) for boxes in found]
        return ConceptBoxes(*map(torch.cat, zip(*parts, strict=True)))

    @property
    def image_cache(self) -> ImageCache | None:
        """The cache that all of the data sets read images through, if they do."""
        caches = [one.image_cache for one in self.datasets]
        return caches[0] if all(one is caches[0] for one in caches) else None

    def cache_images(self, cache: ImageCache | None) -> None:
        """Read the images of all data sets through a cache from now on; None ends that."""
        for one in self.datasets:
            one.cache_images(cache)

    def load_item(self, index: int) -> ConceptItem:
        """The item as its data set stores it, with the labels of all of them."""
        index = range(len(self))[index]
        number = int(torch.searchsorted(self._ends, index, right=True))
        one = self.datasets[number]
        item = one.load_item(index - int(self._ends[number]) + len(one))
        boxes = item.boxes
        if boxes is not None:
            boxes = ConceptBoxes(boxes.xyxy, self._places(one)[boxes.concept], boxes.image)
        return item._replace(concepts=self.concept_labels[index], targets=self.task_labels[index], boxes=boxes)

    def _places(self, one: ConceptDataset) -> Tensor:
        """Where the concepts of a data set are among those of all."""
        return torch.tensor([self.concepts.index(name) for name in one.concepts], dtype=torch.long)


def _one_kind(datasets: Sequence[ConceptDataset]) -> TaskKind:
    """The kind of the tasks of all data sets that have any."""
    kinds: dict[TaskKind, Sequence[str]] = {one.task_kind: one.tasks for one in reversed(datasets) if one.tasks}
    if len(kinds) > 1:
        raise ValueError(
            f"tasks that exclude each other ('multiclass': {shorten(kinds['multiclass'])}) and tasks that do not "
            f"('multilabel': {shorten(kinds['multilabel'])}) cannot be joined; give all data sets one `task_kind` "
            "(--task-kind), or leave the tasks of one out"
        )
    return next(iter(kinds), datasets[0].task_kind)


def _spread(labels: Tensor, names: Sequence[str], wanted: Sequence[str]) -> Tensor:
    """(N, len(wanted)) labels, NaN where a name is not among `names`."""
    spread = torch.full((len(labels), len(wanted)), torch.nan)
    spread[:, [wanted.index(name) for name in names]] = labels.float()
    return spread


def compare_labels(parts: Mapping[str, ConceptDataset]) -> list[Fault]:
    """Concepts and tasks that some parts of the data have and others lack, so that they cannot be measured there.

    Args:
        parts: Data sets by what to call them.
    """
    faults = []
    for what, named in (
        ("concept", {part: one.concepts for part, one in parts.items()}),
        ("task", {part: one.tasks for part, one in parts.items()}),
    ):
        known = dict.fromkeys(chain.from_iterable(named.values()))
        for part, own in named.items():
            if lacking := [repr(name) for name in known if name not in own]:
                text = f"{part} does not have the {what}s {shorten(lacking)}, which another part has"
                faults.append(Fault("label that a part lacks", text))
    return faults
