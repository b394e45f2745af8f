"""Drawn chest radiographs of which findings, places and diseases are known exactly.

`Phantom` draws one image at a time and can leave a finding out; `PhantomDataset` keeps many on disk and gives
them as items. The order of reading: `concepts`, `diseases`, `config` say what can be; `anatomy`, `textures`,
`outlines`, `findings` draw it; `render` puts it together; `cache` and `dataset` keep it.
"""

from typing import TYPE_CHECKING

from conceptcam._lazy import hand_on

if TYPE_CHECKING:
    from conceptcam.data.phantom.concepts import (
        ONE_SIDED as ONE_SIDED,
        PHANTOM_CONCEPTS as PHANTOM_CONCEPTS,
        PHANTOM_DISEASES as PHANTOM_DISEASES,
        PHANTOM_VERSION as PHANTOM_VERSION,
        SIDED_CONCEPTS as SIDED_CONCEPTS,
        SMALL_FINDINGS as SMALL_FINDINGS,
        UPRIGHT as UPRIGHT,
        expected_prevalence as expected_prevalence,
    )
    from conceptcam.data.phantom.config import PhantomConfig as PhantomConfig
    from conceptcam.data.phantom.dataset import PhantomDataset as PhantomDataset
    from conceptcam.data.phantom.diseases import (
        disease_ceiling as disease_ceiling,
        disease_posterior as disease_posterior,
        disease_probability as disease_probability,
    )
    from conceptcam.data.phantom.render import (
        Phantom as Phantom,
        PhantomCase as PhantomCase,
        PhantomSample as PhantomSample,
    )
    from conceptcam.data.phantom.scene import Attributes as Attributes

__getattr__, __dir__ = hand_on(__name__)
