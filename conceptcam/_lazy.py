"""Names that a room hands on and loads when they are first used (PEP 562)."""

import functools
import importlib
import re
import sys
from collections.abc import Callable


def hand_on(room: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a room, which hand on what the room imports for type checkers.

    So a name is written once: a room imports it from the file that defines it, as itself, under `TYPE_CHECKING`.
    The imports are read from the room's source when a name is first used, and each is made when its name is used.

    Args:
        room: Its module's name.
    """

    def load(name: str) -> object:
        if name == "__all__":
            return names()
        if name not in (homes := _homes(room)):
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    def names() -> list[str]:
        return sorted(_homes(room))

    return load, names


@functools.cache
def _homes(room: str) -> dict[str, str]:
    """Name -> the module that the room imports it from for type checkers."""
    with open(str(sys.modules[room].__file__), encoding="utf-8") as file:
        source = file.read()
    # By patterns, since Python's own parser takes longer to import than a name does.
    imports = re.findall(r"from (\S+) import (\([^)]*\)|.*)", source)
    return {name: module for module, names in imports for name in re.findall(r"(\w+) as \1\b", names)}
