"""Faults of data: a reader refuses them, or lists them and reads on without what is at fault."""

from collections.abc import Callable
from typing import NamedTuple


class Fault(NamedTuple):
    """Something that a person should look at."""

    kind: str
    """A short name, the same for all faults of a kind."""
    text: str
    """What was found where, as a sentence."""


OnFault = Callable[[Fault], None]
"""What a reader calls for each fault. If it returns, the reader leaves out what is at fault and goes on."""


def refuse_fault(fault: Fault) -> None:
    """Stop at the first fault, as readers do unless somebody asks for all.

    Raises:
        ValueError: With the fault's text.
    """
    raise ValueError(fault.text)
