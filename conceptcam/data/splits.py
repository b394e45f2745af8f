"""Which images learn and which ones test: parts and folds by patient, with rare labels in each of them."""

import csv
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from conceptcam._checks import shorten
from conceptcam._files import atomic_write
from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.text_column import TextColumn
from conceptcam.data.wrapped import WrappedDataset

TRAIN_AND_VAL: Mapping[str, float] = {"train": 0.8, "val": 0.2}
"""Four fifths to learn from, one fifth to choose epochs and thresholds by."""

_COLUMNS = ["image", "split"]


def make_folds(labels: Tensor, k: int, groups: Sequence[Hashable] | None = None, seed: int = 0) -> Tensor:
    """Divide images into k folds for cross-validation, alike in size and in labels.

    Labels are balanced by iterative stratification (Sechidis et al., 2011), which places the rarest label first. Here
    it places whole groups, looks at both sides of a label, and gives each fold at least one image of a side that
    enough groups have. The same arguments give the same folds, in every process.

    Args:
        labels: (N, L) labels in [0, 1], NaN where unknown; from 0.5 on a label counts as present. L may be 0.
        k: Number of folds, at least 2.
        groups: (N,) such as patient ids; images of one group are in one fold. None, or an entry that is None or empty,
            makes an image a group of its own.
        seed: Decides which of several equal choices is taken.

    Returns:
        (N,) fold of each image, 0 to k - 1.

    Raises:
        ValueError: If the shapes do not fit, or there are fewer groups than folds.
    """
    if k < 2:
        raise ValueError(f"cross-validation needs at least 2 folds, got k={k}")
    return torch.from_numpy(_stratify(labels, np.full(k, 1 / k), groups, seed))


def split_by_patient(
    labels: Tensor,
    patients: Sequence[Hashable] | None = None,
    *,
    fractions: Mapping[str, float] = TRAIN_AND_VAL,
    seed: int = 0,
) -> list[str]:
    """Divide images into named parts, alike in labels, with all images of a patient in one of them.

    Args:
        labels: As `make_folds` takes them.
        patients: (N,) patient ids; None, or an entry that is None or empty, makes an image a patient of its own.
        fractions: For each part, the fraction of images that it gets; they sum to 1.
        seed: Decides which of several equal choices is taken.

    Returns:
        (N,) name of the part that each image is in.

    Raises:
        ValueError: If the shapes do not fit, the fractions do not sum to 1, or there are fewer patients than parts.
    """
    parts, sizes = list(fractions), np.array(list(fractions.values()), dtype=np.float64)
    if not parts or not (sizes > 0).all() or abs(sizes.sum() - 1) > 1e-6:
        raise ValueError(f"`fractions` must be above 0 and sum to 1, got {dict(fractions)}")
    return [parts[part] for part in _stratify(labels, sizes, patients, seed)]


def shared_patients(patients: Sequence[Hashable], parts: Sequence[Hashable]) -> list[Hashable]:
    """Patients whose images are in more than one part, so that a model is tested on patients that it learned from.

    Args:
        patients: (N,) patient ids; None and empty ones are of nobody, and left out.
        parts: (N,) part or fold of each image.
    """
    seen: dict[Hashable, set[Hashable]] = {}
    for patient, part in zip(patients, parts, strict=True):
        seen.setdefault(patient, set()).add(part)
    return [patient for patient, where in seen.items() if len(where) > 1 and not _is_nobody(patient)]


def save_split(path: str | Path, names: Sequence[str], parts: Sequence[object] | Tensor) -> None:
    """Write which part each image is in, as CSV with the columns `image` and `split`.

    Args:
        path: The file to write.
        names: (N,) names of the images, each of them once.
        parts: (N,) part or fold of each image.

    Raises:
        ValueError: If the lengths differ or a name is repeated.
        OSError: If the file cannot be written.
    """
    written = parts.tolist() if isinstance(parts, Tensor) else parts
    if len(names) != len(written):
        raise ValueError(f"need a part for each image, got {len(written)} parts for {len(names)} images")
    _refuse_repeated(names, "a split")
    with atomic_write(path) as scratch, scratch.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([_COLUMNS, *zip(names, written, strict=True)])


def load_split(path: str | Path, names: Sequence[str]) -> list[str]:
    """Read which part each image is in, from a file of `save_split`.

    Args:
        path: The file.
        names: (N,) names of the images that the data set has, in its order; the file may have another order.

    Returns:
        (N,) name of the part of each image; a fold is its number as text.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no split, or is of other images.
    """
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    if not rows or rows[0] != _COLUMNS or any(len(row) != 2 for row in rows):
        raise ValueError(f"{path} is no split: expected CSV with the columns {_COLUMNS}, got {(rows or [[]])[0]}")
    _refuse_repeated([name for name, _ in rows[1:]], str(path))
    parts = dict(rows[1:])
    wanted = set(names)
    for what, lost in (
        ("images that the data do not have", [name for name in parts if name not in wanted]),
        ("no part for images of the data", [name for name in names if name not in parts]),
    ):
        if lost:
            raise ValueError(f"{path} has {what}: {shorten(map(repr, lost))}; split these data anew")
    return [parts[name] for name in names]


def divide_dataset(dataset: ConceptDataset, parts: Sequence[Hashable] | Tensor) -> dict[Hashable, "ConceptSubset"]:
    """Each part of a data set as a data set, by its name.

    Args:
        dataset: What to divide.
        parts: (N,) part or fold of each image, such as `split_by_patient` or `make_folds` gives.

    Raises:
        ValueError: If there is not a part for each image.
    """
    names = parts.tolist() if isinstance(parts, Tensor) else parts
    if len(names) != len(dataset):
        raise ValueError(f"need a part for each image, got {len(names)} for {len(dataset)} images")
    rows: dict[Hashable, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return {name: ConceptSubset(dataset, own) for name, own in rows.items()}


class ConceptSubset(WrappedDataset):
    """Some images of a data set, as a data set.

    Args:
        dataset: Where the images come from; its augmentation and preprocessing are taken over, once.
        rows: Indices into it, in the order wanted.

    Raises:
        IndexError: If a row is not there.
        ValueError: If `rows` is a mask.
    """

    def __init__(self, dataset: ConceptDataset, rows: Sequence[int] | Tensor) -> None:
        index = torch.as_tensor(rows)
        if index.dtype == torch.bool:
            raise ValueError("`rows` must be indices, got a mask; pass mask.nonzero()[:, 0]")
        super().__init__(dataset)
        self._rows, self.notes = index.long(), ()
        self.concept_labels, self.task_labels = dataset.concept_labels[self._rows], dataset.task_labels[self._rows]
        rows, names = self.rows, list(dataset.names)
        if dataset.patients is not None:
            patients = list(dataset.patients)
            own = [patients[row] for row in rows]
            self.patients = TextColumn(own) if isinstance(dataset.patients, TextColumn) else own
        self._names = TextColumn([names[row] for row in rows])

    @property
    def rows(self) -> list[int]:
        """Indices into the data set."""
        return self._rows.tolist()

    @property
    def names(self) -> Sequence[str]:
        """What to call the images."""
        return self._names

    @property
    def all_boxes(self) -> ConceptBoxes | None:
        """The boxes of all images of this part, numbered as they are here."""
        boxes = self.dataset.all_boxes
        if boxes is None:
            return None
        place = torch.full((len(self.dataset),), -1)
        place[self._rows] = torch.arange(len(self._rows))
        own = place[boxes.image] >= 0
        return ConceptBoxes(boxes.xyxy[own], boxes.concept[own], place[boxes.image[own]])

    def load_item(self, index: int) -> ConceptItem:
        """The item as it is stored in the data set that this is a part of."""
        return self.dataset.load_item(int(self._rows[index]))


def _stratify(
    labels: Tensor, fractions: np.ndarray, groups: Sequence[Hashable] | None, seed: int
) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """(N,) part of each image, each part with about its fraction of the images and of both sides of each label."""
    if labels.ndim != 2:
        raise ValueError(f"`labels` must have the shape (N, L), got {tuple(labels.shape)}")
    group = _number(groups, len(labels))
    held = _count(labels, group)
    if len(held) < len(fractions):
        raise ValueError(f"cannot divide {len(held)} patients or groups into {len(fractions)} parts; take fewer parts")
    wanted = fractions[:, None] * held.sum(axis=0)
    enough = (held > 0).sum(axis=0) >= len(fractions)
    wanted[:, enough] = np.maximum(wanted[:, enough], 1)
    random = np.random.default_rng(seed)
    part = np.full(len(held), -1)
    while (free := part < 0).any():
        left = held[free].sum(axis=0)
        rarest = np.where(left > 0, left, np.inf).argmin()
        members = random.permutation(np.flatnonzero(free & (held[:, rarest] > 0)))
        for member in members[np.argsort(-held[members, rarest], kind="stable")]:
            part[member] = _most_wanting(wanted[:, rarest], wanted[:, -1], random)
            wanted[part[member]] -= held[member]
    return part[group]


def _number(groups: Sequence[Hashable] | None, count: int) -> np.ndarray:
    """(N,) number of the group of each image, in the order in which groups appear."""
    if groups is None:
        return np.arange(count)
    if len(groups) != count:
        raise ValueError(f"need a patient or group for each image, got {len(groups)} for {count} images")
    plain = groups.tolist() if isinstance(groups, Tensor | np.ndarray) else groups
    own: dict[Hashable, int] = {}
    keys = (("", row) if _is_nobody(name) else (name,) for row, name in enumerate(plain))
    return np.array([own.setdefault(key, len(own)) for key in keys], dtype=np.int64)


def _is_nobody(name: Hashable) -> bool:
    """Whether an id says nothing: None, empty, or NaN, which is not equal to itself."""
    return name is None or name == "" or name != name


def _count(labels: Tensor, group: np.ndarray) -> np.ndarray:
    """(G, 2 L + 1) images of each group in which each label is present, in which it is absent, and at all."""
    values = labels.detach().cpu().numpy()
    sides = np.concatenate([values >= 0.5, values < 0.5, np.ones((len(values), 1))], axis=1)
    held = np.zeros((group.max(initial=-1) + 1, sides.shape[1]))
    np.add.at(held, group, sides)
    return held


def _most_wanting(wanted: np.ndarray, images: np.ndarray, random: np.random.Generator) -> int:
    """The part that lacks most of a label; of several, the one that lacks most images; of these, any."""
    best = np.flatnonzero(wanted >= wanted.max() - 1e-9)
    if len(best) > 1:
        best = best[images[best] >= images[best].max() - 1e-9]
    return int(best[0] if len(best) == 1 else random.choice(best))


def _refuse_repeated(names: Sequence[str], where: str) -> None:
    if repeated := [repr(name) for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{where} names images more than once: {shorten(repeated)}")
