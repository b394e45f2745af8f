"""Concept-bottleneck models for (medical) images: named findings, their places, and what they counted for."""

import importlib
import logging
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Public name -> module that defines it. Resolved on first use (PEP 562), so that importing the package is
# instant and whoever only wants a loss does not wait for timm.
_PUBLIC: dict[str, str] = {
    "ConceptBoxes": "conceptcam.boxes",
    "ConceptConfig": "conceptcam.config",
    "ModelRecord": "conceptcam.config",
    "ConceptOutput": "conceptcam.outputs",
}

if TYPE_CHECKING:
    from conceptcam.boxes import ConceptBoxes
    from conceptcam.config import ConceptConfig, ModelRecord
    from conceptcam.outputs import ConceptOutput

__all__ = ["ConceptBoxes", "ConceptConfig", "ConceptOutput", "ModelRecord", "__version__"]

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'conceptcam' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
