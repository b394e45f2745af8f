"""Tasks of a table: binary columns, or one column of class names."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from conceptcam._checks import brief, check_choice, check_names, did_you_mean, quoted, shorten
from conceptcam.config import TaskKind
from conceptcam.data.faults import Fault
from conceptcam.data.table_file import Table, is_unknown

# With more classes than this fraction of the rows, a column holds names or numbers of images, not classes.
_MOST_CLASSES = 0.5


class TableTasks(NamedTuple):
    """The tasks that columns hold."""

    names: tuple[str, ...]
    """Tasks, which are classes if the kind is `"multiclass"`."""
    labels: Tensor
    """(N, T) labels, -1 where uncertain, NaN where unknown."""
    kind: TaskKind
    """Whether any number of tasks can be true, or exactly one is."""
    notes: tuple[str, ...]
    """What was recognized, in sentences."""


def read_tasks(
    table: Table, columns: Sequence[str], kind: TaskKind | None, classes: Sequence[str] | None
) -> TableTasks:
    """The tasks of a table.

    Args:
        table: The rows.
        columns: Names of binary columns, of one column of class names, or, with the kind `"multiclass"`, of a column
            per class, of which one is 1 in each row.
        kind: None takes a single column for one of class names if `classes` are given or it holds more than labels.
        classes: Names of the classes, in the order wanted; None takes those of the column, numbers by size, else by
            letter.

    Raises:
        ValueError: If a column is missing, a cell is no label or no known class, or a column has too many classes.
    """
    if kind is not None:
        check_choice("task_kind", kind, TaskKind)
    if classes is not None:
        check_names("classes", classes, at_least=2)
        if kind == "multilabel" or len(columns) != 1:
            raise ValueError(f"`classes` are those of one column of class names, but the tasks are {list(columns)}")
    if len(columns) == 1 and kind != "multilabel" and (kind or classes or holds_classes(table, columns[0])):
        return _read_classes(table, columns[0], classes)
    if mixed := [name for name in columns if len(columns) > 1 and holds_classes(table, name)]:
        raise ValueError(
            f"column {mixed[0]!r} of {table.name} holds class names, so it must be the only task; got {list(columns)}"
        )
    labels = [table.labels(name) for name in columns]
    values = torch.tensor(labels).T if labels else torch.zeros(len(table), 0)
    if kind == "multiclass" and columns:
        values = _with_sums_checked(table, columns, values)
    return TableTasks(tuple(columns), values, kind or "multilabel", ())


def holds_classes(table: Table, column: str) -> bool:
    """Whether a column holds more than labels; refuses one that holds both labels and words."""
    different = Counter(table.column(column, "task column"))
    strange = [cell for cell in different if table.label(cell) is None]
    plain = [cell for cell in different if table.label(cell) is not None and not is_unknown(cell)]
    if strange and plain and any(table.number(cell) is None for cell in strange):
        text = (
            f"column {column!r} of {table.name} holds labels, such as {brief(plain[0])}, and words, such as "
            f"{brief(strange[0])} "
            f"in {table.where(table.column(column).index(strange[0]))}; write 0 or 1 in each row, or a class in each"
        )
        table.on_fault(Fault("labels and words in one column", text))
        return False
    return bool(strange)


def _read_classes(table: Table, column: str, classes: Sequence[str] | None) -> TableTasks:
    cells = table.column(column, "task column")
    counts = Counter(cell for cell in cells if not is_unknown(cell))
    if classes is None:
        if len(counts) < 2 or len(counts) > max(2, _MOST_CLASSES * counts.total()):
            raise ValueError(
                f"column {column!r} of {table.name} cannot be one of class names: it has {len(counts)} different "
                f"values in {counts.total()} rows, such as {shorten(map(brief, list(counts)[:3]))}"
            )
        classes = _sorted(table, counts)
    index = {name: number for number, name in enumerate(classes)}
    if unknown := [name for name in counts if name not in index]:
        row = cells.index(unknown[0])
        text = (
            f"column {column!r} of {table.name} holds {brief(unknown[0])} in {table.where(row)}, which is no known "
            f"class{did_you_mean(unknown[0], index)}; known: {quoted(index)}"
        )
        table.on_fault(Fault("unknown label", text))
    known = torch.tensor([index.get(cell, -1) for cell in cells])
    labels = (known[:, None] == torch.arange(len(index))).float()
    labels[known < 0] = torch.nan
    shown = ", ".join(f"{name} ({counts[name]})" for name in classes)
    return TableTasks(tuple(classes), labels, "multiclass", (f"{column!r} has {len(index)} classes: {shown}.",))


def _sorted(table: Table, names: Counter[str]) -> list[str]:
    numbers = {name: table.number(name) for name in names}
    if all(number is not None for number in numbers.values()):
        return sorted(names, key=lambda name: numbers[name] or 0.0)
    return sorted(names)


def _with_sums_checked(table: Table, columns: Sequence[str], labels: Tensor) -> Tensor:
    """Labels without those of rows whose classes do not sum to 1, which are refused by default."""
    known = (labels >= 0).all(dim=1)
    wrong = (known & ((labels.sum(dim=1) - 1).abs() > 1e-3)).nonzero()[:, 0].tolist()
    if wrong:
        text = (
            f"the classes {shorten(map(repr, columns))} of {table.name} do not sum to 1 in {table.where(wrong[0])}, "
            f"one of {len(wrong)} such rows; exactly one class is true of an image"
        )
        table.on_fault(Fault("classes that do not exclude each other", text))
        labels[wrong] = torch.nan
    return labels
