"""A record of named fields, from JSON types and as a short text."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any, TypeVar

from conceptcam._checks import brief, short_value

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Record = TypeVar("_Record", bound="DataclassInstance")


def from_fields(cls: type[_Record], values: object, *, source: str = "config.json") -> _Record:
    """The dataclass with these fields; those that have a default may be missing.

    Args:
        cls: A dataclass that checks its values itself.
        values: Field -> value of JSON types.
        source: What to call them in messages.

    Raises:
        ValueError: If they are no dict, or a field is unknown, missing without a default or impossible.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{source} must hold the fields of {cls.__name__}, got {brief(values)}")
    fields = {known.name: known for known in dataclasses.fields(cls)}
    if unknown := sorted(values.keys() - fields.keys()):
        raise ValueError(f"{source} has unknown fields {unknown} of {cls.__name__}; known: {sorted(fields)}")
    if missing := [name for name, known in fields.items() if _required(known) and name not in values]:
        raise ValueError(f"{source} lacks the fields {missing} of {cls.__name__}")
    return cls(**{key: _null_to_nan(value) for key, value in values.items()})


def _required(known: "dataclasses.Field[Any]") -> bool:
    return known.default is dataclasses.MISSING and known.default_factory is dataclasses.MISSING


def _null_to_nan(value: Any) -> Any:
    """Inside a mapping of numbers `null` is an undefined number; elsewhere it is None."""
    if isinstance(value, dict):
        rows = {key: inner if isinstance(inner, list) else [inner] for key, inner in value.items()}
        numbers = {key: [math.nan if one is None else one for one in row] for key, row in rows.items()}
        return {key: row if isinstance(value[key], list) else row[0] for key, row in numbers.items()}
    return value


def short_repr(record: object) -> str:
    """The record as Python writes it, unless it holds so many names that nothing else could be seen."""
    return (
        f"{type(record).__name__}({', '.join(f'{name}={short_value(value)}' for name, value in vars(record).items())})"
    )
