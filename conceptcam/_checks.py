"""Checks of arguments, and hints in error messages."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, get_args

_MANY = 8  # names that a line can still show


def check_names(what: str, names: Sequence[str], *, at_least: int) -> None:
    """Refuse names that are empty, repeated, no strings, or too few, or one string in place of a list.

    Raises:
        ValueError: Naming the offenders.
    """
    check_not_str(what, names)
    strange = [name for name in names if not isinstance(name, str) or not name.strip()]
    repeated = sorted({name for name in names if list(names).count(name) > 1}, key=str)
    if strange or repeated or len(names) < at_least:
        raise ValueError(
            f"`{what}` needs at least {at_least} name(s), none empty and none repeated; "
            f"got {len(names)}, empty or not text: {strange}, repeated: {repeated}"
        )


def check_not_str(what: str, names: object) -> None:
    """Refuse a string where names are expected: each of its letters would count as one.

    Raises:
        ValueError: If it is a string.
    """
    if isinstance(names, str):
        raise ValueError(f"`{what}` must be a list of names, got the text {names!r}; for one name write [{names!r}]")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean ['resnet']"` if known names are near, else nothing: a part of an error message."""
    near = difflib.get_close_matches(name, list(known))
    return f"; did you mean {near}" if near else ""


def check_known(what: str, name: str, known: Iterable[str]) -> None:
    """Refuse a name that is not among those known.

    Raises:
        ValueError: With the near names and all names.
    """
    if name not in (names := list(known)):
        raise ValueError(f"unknown {what} {name!r}{did_you_mean(str(name), names)}; known: {names}")


def shorten(texts: Iterable[str]) -> str:
    """Texts joined by commas; of more than eight, the first three and how many more there are."""
    shown = list(texts)
    return ", ".join(shown) if len(shown) <= _MANY else f"{', '.join(shown[:3])} and {len(shown) - 3} more"


def check_choice(option: str, value: Any, known: Any) -> None:
    """Refuse a value of an option that is not among those of a `Literal`, or of a list."""
    check_known(f"`{option}`", value, get_args(known) or known)
