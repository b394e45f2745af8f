"""Drawn chest radiographs of which findings, places and diseases are known exactly.

`Phantom` draws one image at a time and can leave a finding out; `PhantomDataset` keeps many on disk and gives
them as items. The order of reading: `concepts`, `diseases`, `config` say what can be; `anatomy`, `textures`,
`outlines`, `findings` draw it; `render` puts it together; `cache` and `dataset` keep it.
"""

import importlib
from typing import TYPE_CHECKING

from conceptcam.data.phantom.concepts import (
    ONE_SIDED,
    PHANTOM_CONCEPTS,
    PHANTOM_DISEASES,
    PHANTOM_VERSION,
    SIDED_CONCEPTS,
    SMALL_FINDINGS,
    UPRIGHT,
    expected_prevalence,
)
from conceptcam.data.phantom.config import PhantomConfig
from conceptcam.data.phantom.diseases import disease_ceiling, disease_posterior, disease_probability
from conceptcam.data.phantom.render import Phantom, PhantomCase, PhantomSample
from conceptcam.data.phantom.scene import Attributes

if TYPE_CHECKING:
    from conceptcam.data.phantom.dataset import PhantomDataset

__all__ = [
    "SIDED_CONCEPTS",
    "ONE_SIDED",
    "PHANTOM_CONCEPTS",
    "PHANTOM_DISEASES",
    "PHANTOM_VERSION",
    "SMALL_FINDINGS",
    "UPRIGHT",
    "Attributes",
    "Phantom",
    "PhantomCase",
    "PhantomDataset",
    "PhantomConfig",
    "PhantomSample",
    "disease_ceiling",
    "disease_posterior",
    "disease_probability",
    "expected_prevalence",
]


def __getattr__(name: str) -> object:
    # The data set alone needs torch, which the processes that only draw should not wait for.
    if name == "PhantomDataset":
        return importlib.import_module("conceptcam.data.phantom.dataset").PhantomDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
