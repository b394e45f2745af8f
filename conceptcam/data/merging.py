"""One label from the opinions of several readers, by a stated rule."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from conceptcam._checks import check_choice
from conceptcam.data.table_file import Table, is_unknown

ReaderRule = Literal["any", "majority", "all", "soft", "unanimous"]

_UNCERTAIN = -1.0


def merge_readers(labels: Tensor, images: Tensor, count: int, rule: ReaderRule) -> Tensor:
    """The labels of images that several readers labelled.

    Who did not say (NaN) has no vote. Who was uncertain (-1) has none either, unless nobody was certain: then the label
    is uncertain.

    Args:
        labels: (R, L) labels of each reader of each image: 0 to 1, -1 where uncertain, NaN where unknown.
        images: (R,) index of the image of each row.
        count: How many images there are, N.
        rule: What is made of the R votes on a label:

            - `"any"`: the highest, so present if anybody says so.
            - `"majority"`: present or absent as most say, uncertain (-1) if they are evenly split.
            - `"all"`: the lowest, so present if everybody says so.
            - `"soft"`: the mean.
            - `"unanimous"`: present or absent if all agree, else uncertain (-1).

    Returns:
        (N, L) labels.

    Raises:
        ValueError: If the rule is unknown.
    """
    check_choice("readers", rule, ReaderRule)
    certain = labels >= 0
    votes = torch.zeros(count, labels.shape[1]).index_add_(0, images, certain.float())
    total = torch.zeros_like(votes).index_add_(0, images, labels.where(certain, 0))
    place = images[:, None].expand_as(labels)
    high = torch.full_like(votes, -torch.inf).scatter_reduce_(0, place, labels.where(certain, -torch.inf), "amax")
    low = torch.full_like(votes, torch.inf).scatter_reduce_(0, place, labels.where(certain, torch.inf), "amin")
    mean = total / votes
    uncertain = torch.full_like(votes, _UNCERTAIN)
    merged = {
        "any": high,
        "all": low,
        "soft": mean,
        "majority": torch.where(mean == 0.5, uncertain, (mean > 0.5).float()),
        "unanimous": torch.where(high == low, high, uncertain),
    }[rule]
    hedged = torch.zeros_like(votes).index_add_(0, images, (labels == _UNCERTAIN).float()) > 0
    return torch.where(votes > 0, merged, torch.where(hedged, uncertain, torch.nan))


def merge_rows(table: Table, image_column: str, labels: Sequence[str], rule: ReaderRule) -> Table:
    """A table with one row per image, from one with a row per image and reader.

    Args:
        table: The rows.
        image_column: The column that names the images.
        labels: Columns of labels, which the rule merges. Of other columns, what all rows of an image agree on is kept.
        rule: As in `merge_readers`.

    Raises:
        ValueError: If a cell is no label, or the rule is unknown.
    """
    first: dict[str, int] = {}
    cells = table.column(image_column, "image column")
    images = [first.setdefault(cell, len(first)) for cell in cells]
    columns = {name: _agreed(column, images, len(first)) for name, column in table.columns.items()}
    if labels:
        values = torch.tensor([table.labels(name) for name in labels]).T
        merged = merge_readers(values, torch.tensor(images), len(first), rule)
        texts = [["" if value != value else f"{value:.6g}" for value in column] for column in merged.T.tolist()]
        columns |= dict(zip(labels, texts, strict=True))
    line = {image: table.lines[row] for row, image in reversed(list(enumerate(images)))}
    return table.derive(columns, [line[image] for image in range(len(first))])


def _agreed(cells: Sequence[str], images: Sequence[int], count: int) -> list[str]:
    """What the rows of each image that say anything agree on; empty where they do not."""
    said: list[set[str]] = [set() for _ in range(count)]
    for cell, image in zip(cells, images, strict=True):
        if not is_unknown(cell):
            said[image].add(cell)
    return [next(iter(one)) if len(one) == 1 else "" for one in said]
