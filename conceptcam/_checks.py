"""Checks of arguments, and hints in error messages."""

import difflib
import re
import reprlib
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

_MANY = 8  # names that a line can still show
_LARGEST = sys.float_info.max
_shortened = reprlib.Repr()
_shortened.maxlevel, _shortened.maxdict, _shortened.maxlist, _shortened.maxstring, _shortened.maxother = (
    4,
    8,
    8,
    120,
    120,
)
# What no name may hold, besides tabs and ends of lines: it steers a terminal, or cannot be written in UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def check_number(
    what: str, value: object, low: float = -_LARGEST, high: float = _LARGEST, *, whole: bool = False
) -> None:
    """Refuse what is no finite number from `low` to `high`. True and False are no numbers, nor is text.

    Args:
        what: What to call it in the message.
        value: Anything.
        low: The least that it may be.
        high: The most that it may be.
        whole: Whether it must be an int.

    Raises:
        ValueError: With the value and the range.
    """
    # Comparing refuses NaN and infinity, and an int of any size: turned into a float, a large one would be an error.
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not low <= value <= high:
        bounds = "" if (low, high) == (-_LARGEST, _LARGEST) else f" from {low:g}{f' to {high:g}' * (high < _LARGEST)}"
        raise ValueError(f"{what} must be {'an int' if whole else 'a finite int or float'}{bounds}, got {brief(value)}")


def brief(value: object) -> str:
    """A value as Python writes it, cut short if it is long or deep."""
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of more than 60 digits"
    return _shortened.repr(value)


def check_names(what: str, names: Sequence[str], *, at_least: int) -> None:
    """Refuse names that are empty, repeated, no strings, unprintable or too few, or one string in place of a list.

    Raises:
        ValueError: Naming the offenders.
    """
    check_not_str(what, names)
    texts = [name for name in names if isinstance(name, str) and name.strip()]
    strange = [brief(name) for name in names if not isinstance(name, str) or not name.strip()]
    repeated = sorted(name for name, count in Counter(texts).items() if count > 1)
    if strange or repeated or len(names) < at_least:
        raise ValueError(
            f"`{what}` needs at least {at_least} name(s), none empty and none repeated; got {len(names)}, "
            f"empty or not text: [{shorten(strange)}], repeated: [{shorten(map(repr, repeated))}]"
        )
    if odd := [ascii(name) for name in texts if _UNPRINTABLE.search(name)]:
        raise ValueError(f"`{what}` has names with characters that cannot be printed: {shorten(odd)}; take them out")


def check_not_str(what: str, names: object) -> None:
    """Refuse a string where names are expected: each of its letters would count as one.

    Raises:
        ValueError: If it is a string.
    """
    if isinstance(names, str):
        raise ValueError(
            f"`{what}` must be a list of names, got the text {brief(names)}; for one name write [{brief(names)}]"
        )


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
        near = did_you_mean(name, names) if isinstance(name, str) else ""
        raise ValueError(f"unknown {what} {brief(name)}{near}; known: {names}")


def shorten(texts: Iterable[str]) -> str:
    """Texts joined by commas; of more than eight, the first three and how many more there are; long ones are cut."""
    shown = [text if len(text) <= 200 else f"{text[:197]}..." for text in texts]
    return ", ".join(shown) if len(shown) <= _MANY else f"{', '.join(shown[:3])} and {len(shown) - 3} more"


def short_value(value: object) -> str:
    """A value as Python writes it; of a tuple or mapping of more than eight, the first three and how many more."""
    if isinstance(value, tuple) and len(value) > _MANY:
        return f"({shorten(map(repr, value))})"
    if isinstance(value, Mapping) and len(value) > _MANY:
        first = ", ".join(f"{key!r}: {inner!r}" for key, inner in list(value.items())[:3])
        return f"{{{first} and {len(value) - 3} more}}"
    return repr(value)


def quoted(names: Iterable[str]) -> str:
    """All names as a list in Python is written, but long ones cut."""
    return f"[{', '.join(map(brief, names))}]"


def check_choice(option: str, value: Any, known: Any) -> None:
    """Refuse a value of an option that is not among those of a `Literal`, or of a list."""
    check_known(f"`{option}`", value, get_args(known) or known)
