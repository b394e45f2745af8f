"""Data sets of other libraries, read as ours: torch, torchvision, MONAI, Hugging Face, or any list of samples."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from conceptcam._checks import brief, check_choice, check_names
from conceptcam.config import TaskKind
from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.images import load_image
from conceptcam.data.text_column import TextColumn

Key = str | int | tuple[str | int, ...]
"""Where a part of a sample is: a name in a dict, a place in a tuple, or several, one within the other."""


class Samples(Protocol):
    """Anything that has a length and gives a sample by its number."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class DatasetAdapter(ConceptDataset):
    """A data set of another library, whose samples are dicts or tuples.

    `image`, `labels`, `boxes` and the like say where the parts of a sample are: `"image"` in a dict, `0` in a tuple,
    `(1, "boxes")` in a dict in a tuple. Such are `(image, target)` of torchvision, with a `CocoDetection` wrapped by
    `wrap_dataset_for_transforms_v2`, MONAI's dicts, and rows of Hugging Face's `datasets`.

    All samples are read once as the adapter is made, for their labels. Where that costs too much, as it decodes images,
    give `labels_from`.

    Args:
        dataset: What to read; it should give images as stored, neither normalized nor augmented.
        concepts: Their names.
        tasks: Their names; those of the classes, if `task_kind` is `"multiclass"`.
        image: Where the image is, in a form that `load_image` takes.
        labels: Where the (K,) labels of concepts are: 0 to 1, NaN or None where unknown. None takes them from entries
            that are called like the concepts or, with `boxes`, calls a concept present where it has a box.
        targets: Where the (T,) labels of tasks are. For exclusive tasks it may be the number or name of the
            class, NaN or None where unknown. None takes the labels from entries that are called like the tasks.
        task_kind: As in `ConceptConfig`.
        boxes: Where the target of a detector is, `{"boxes": (N, 4), "labels": (N,)}` as `ConceptBoxes.from_dicts` reads
            one. One without boxes is of an image in which somebody looked and found none; None is of one in which
            nobody looked.
        box_classes: Which concept each label of a box is, such as `{3: "nodule"}`; boxes of others are left out. None
            counts concepts from 0, and refuses other labels.
        name: Where the name of the image is; None calls images by their number.
        patient: Where the patient is.
        labels_from: The same samples in the same order without images, such as `rows.remove_columns("image")`.
        augmentation: See `ConceptDataset`.
        preprocess: See `ConceptDataset`.

    Raises:
        ValueError: In one sentence with the number of the sample, if a part is not there, is no label, or has another
            shape, or `box_classes` has no concept.
    """

    def __init__(
        self,
        dataset: Samples,
        *,
        concepts: Sequence[str],
        tasks: Sequence[str] = (),
        image: Key = "image",
        labels: Key | None = None,
        targets: Key | None = None,
        task_kind: TaskKind = "multilabel",
        boxes: Key | None = None,
        box_classes: Mapping[int, str] | None = None,
        name: Key | None = None,
        patient: Key | None = None,
        labels_from: Samples | None = None,
        augmentation: Callable[[ConceptItem], ConceptItem] | None = None,
        preprocess: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        check_names("concepts", concepts, at_least=1)
        check_names("tasks", tasks, at_least=0)
        check_choice("task_kind", task_kind, TaskKind)
        self.dataset, self.concepts, self.tasks, self.task_kind = dataset, tuple(concepts), tuple(tasks), task_kind
        self.augmentation, self.preprocess = augmentation, preprocess
        self._image, self._labels, self._targets, self._boxes = image, labels, targets, boxes
        self._classes, self._leaves_out = self._concept_numbers(box_classes), box_classes is not None
        source = dataset if labels_from is None else labels_from
        if len(source) != len(dataset):
            raise ValueError(f"`labels_from` has {len(source)} samples, and the data set {len(dataset)}")
        concept_rows, task_rows, names, patients = [], [], [], []
        for index in range(len(source)):
            sample = source[index]
            concept_rows.append(self._concept_labels(sample, index))
            task_rows.append(self._task_labels(sample, index))
            names.append(str(index) if name is None else str(_part(sample, name, index)))
            patients.append("" if patient is None else str(_part(sample, patient, index)))
        self.concept_labels = torch.tensor(concept_rows).view(-1, len(self.concepts))
        self.task_labels = torch.tensor(task_rows).view(len(source), len(self.tasks))
        self._names = TextColumn(names)
        self.patients = None if patient is None else TextColumn(patients)

    @property
    def names(self) -> Sequence[str]:
        """What to call the images."""
        return self._names

    def load_item(self, index: int) -> ConceptItem:
        """The item as the data set gives it.

        Raises:
            ValueError: If the image or its boxes cannot be used.
        """
        index = range(len(self))[index]
        sample = self.dataset[index]
        stored = _part(sample, self._image, index)
        try:
            image = load_image(stored)
        except (ValueError, TypeError) as error:
            raise ValueError(f"the image of sample {index} cannot be used: {error}") from error
        boxes = None if self._boxes is None else self._read_boxes(sample, index)
        return ConceptItem(image, self.concept_labels[index], self.task_labels[index], boxes, self._names[index])

    def _concept_numbers(self, classes: Mapping[int, str] | None) -> dict[int, int]:
        """The number of the concept of each label that a box may have."""
        if classes is None:
            return {number: number for number in range(len(self.concepts))}
        number = {name: number for number, name in enumerate(self.concepts)}
        known = {label: number[name] for label, name in classes.items() if name in number}
        if not known:
            raise ValueError(
                f"`box_classes` names {list(classes.values())}, none of the concepts {list(self.concepts)}"
            )
        return known

    def _concept_labels(self, sample: Any, index: int) -> list[float]:
        if self._labels is not None:
            return _numbers(_part(sample, self._labels, index), self.concepts, "labels", index)
        if self._boxes is None or (isinstance(sample, Mapping) and self.concepts[0] in sample):
            return _numbers([_part(sample, name, index) for name in self.concepts], self.concepts, "labels", index)
        boxes = self._read_boxes(sample, index)
        held = set(() if boxes is None else boxes.concept.tolist())
        return [torch.nan if boxes is None else float(number in held) for number in range(len(self.concepts))]

    def _task_labels(self, sample: Any, index: int) -> list[float]:
        if not self.tasks:
            return []
        if self._targets is None:
            return _numbers([_part(sample, name, index) for name in self.tasks], self.tasks, "targets", index)
        value = _part(sample, self._targets, index)
        if self.task_kind == "multiclass" and np.ndim(value) == 0:
            return self._one_hot(value, index)
        return _numbers(value, self.tasks, "targets", index)

    def _one_hot(self, value: Any, index: int) -> list[float]:
        """Labels of classes from the number or name of one; unknown if it is None or NaN."""
        if value is None or value != value:
            return [torch.nan] * len(self.tasks)
        number = self.tasks.index(value) if value in self.tasks else value
        if isinstance(number, str) or int(number) != number or not 0 <= number < len(self.tasks):
            raise ValueError(
                f"the class of sample {index} is {brief(value)}; expected 0 to {len(self.tasks) - 1}, or one of "
                f"{list(self.tasks)}"
            )
        return [float(number == one) for one in range(len(self.tasks))]

    def _read_boxes(self, sample: Any, index: int) -> ConceptBoxes | None:
        """The boxes of a sample that are of a concept."""
        target = _part(sample, self._boxes, index)
        if target is None:
            return None
        if not isinstance(target, Mapping):
            raise ValueError(
                f"the boxes of sample {index} are {brief(target)}; expected a dict with 'boxes' and 'labels'"
            )
        boxes = target.get("boxes", ())
        if not len(boxes):
            return ConceptBoxes.empty()
        rows, concept = self._concepts_of_boxes(target, index)
        try:
            if type(boxes).__name__ == "BoundingBoxes":  # torchvision takes seconds to import
                size, form = boxes.canvas_size, boxes.format.name.lower()
                return ConceptBoxes.from_pixels(
                    torch.as_tensor(boxes)[rows].as_subclass(Tensor), concept, size, form=form
                )
            return ConceptBoxes.from_dicts([{"boxes": torch.as_tensor(boxes)[rows], "labels": concept}])
        except (ValueError, IndexError) as error:
            raise ValueError(f"the boxes of sample {index} cannot be used: {error}") from error

    def _concepts_of_boxes(self, target: Mapping[str, Any], index: int) -> tuple[list[int], Tensor]:
        """Which boxes of a target are of a concept, and of which (n,) each."""
        given = target.get("labels", ())
        labels = given.tolist() if isinstance(given, Tensor | np.ndarray) else list(given)
        if len(labels) != len(target["boxes"]):
            raise ValueError(
                f"sample {index} has {len(target['boxes'])} boxes and {len(labels)} labels of boxes; give one label "
                "for each box, under 'labels'"
            )
        unknown = [label for label in labels if label not in self._classes]
        if unknown and not self._leaves_out:
            raise ValueError(
                f"a box of sample {index} has the label {brief(unknown[0])}, but the {len(self.concepts)} concepts "
                "count from 0; say with `box_classes` which concept each label is"
            )
        rows = [row for row, label in enumerate(labels) if label in self._classes]
        return rows, torch.tensor([self._classes[labels[row]] for row in rows], dtype=torch.long)


def _part(sample: Any, key: Key | None, index: int) -> Any:
    """A part of a sample."""
    found = sample
    for one in key if isinstance(key, tuple) else (key,):
        try:
            found = found[one]
        except (KeyError, IndexError, TypeError) as error:
            held = f" with {list(found)}" if isinstance(found, Mapping) else ""
            held = f" of {len(found)}" if isinstance(found, list | tuple) else held
            raise ValueError(
                f"sample {index} has no {one!r} where {key!r} should be: there is a {type(found).__name__}{held}; say "
                "where each part of a sample is"
            ) from error
    return found


def _numbers(values: Any, names: Sequence[str], what: str, index: int) -> list[float]:
    """Labels in [0, 1], NaN where unknown; as many as there are names."""
    try:
        listed = values.tolist() if isinstance(values, Tensor | np.ndarray) else list(values)
        found = [torch.nan if value is None else float(value) for value in listed]
    except (TypeError, ValueError) as error:
        raise ValueError(f"the {what} of sample {index} are {brief(values)}; expected {len(names)} numbers") from error
    if len(found) != len(names) or any(not 0 <= value <= 1 for value in found if value == value):
        raise ValueError(
            f"the {what} of sample {index} are {brief(values)}; expected a number from 0 to 1, or NaN where nobody "
            f"knows, for each of {list(names)}"
        )
    return found
