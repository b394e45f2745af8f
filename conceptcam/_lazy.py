"""Names that a room hands on and loads when they are first used (PEP 562)."""

import importlib
from collections.abc import Callable, Mapping, Sequence


def hand_on(
    room: str, names: Mapping[str, Sequence[str]]
) -> tuple[list[str], Callable[[str], object], Callable[[], list[str]]]:
    """`__all__`, `__getattr__` and `__dir__` of a room.

    Type checkers cannot follow this, so a room imports the same names for them, each as itself, under `TYPE_CHECKING`.

    Args:
        room: Its module's name.
        names: For each file of the room, the names that it defines and the room hands on.
    """
    homes = {name: f"{room}.{file}" for file, defined in names.items() for name in defined}

    def load(name: str) -> object:
        if name in homes:
            return getattr(importlib.import_module(homes[name]), name)
        raise AttributeError(f"module {room!r} has no attribute {name!r}")

    return sorted(homes), load, lambda: sorted(homes)
