"""What every backbone promises."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """Turns images (B, 3, H, W), or (B, 1, H, W) of grey ones, into a grid of features (B, out_channels, h, w).

    A backbone of your own is a subclass with `out_channels` and `forward`; register it under a name with
    `register_backbone` to make it loadable, or hand it to `ConceptModel` as a part. The other methods may stay as
    they are.
    """

    out_channels: int
    """Channels C of the feature grid."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalized -> features (B, out_channels, h, w), channels first."""

    def layer_ids(self) -> dict[str, int]:
        """The layer of each parameter, by the parameter's name: 0 at the image, 1 more for each layer behind.

        A stage's `layer_decay` lets layers near the image learn more slowly. Empty: the layers are not known.
        """
        return {}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay would harm, such as position embeddings, biases and norms aside."""
        return set()


@dataclass(frozen=True, kw_only=True)
class BackboneOptions:
    """What a backbone's factory is asked for.

    Attributes:
        image_size: (H, W) of the images in pixels.
        feature_level: Which feature grid to give, counted as in a Python list; -1 is the last.
        pretrained: Whether to load the published weights.
        weights: A checkpoint to load, of which every tensor must fit; None loads none.
        in_chans: Channels of the images, 3 or 1.
    """

    image_size: tuple[int, int] = (224, 224)
    feature_level: int = -1
    pretrained: bool = False
    weights: Path | None = None
    in_chans: int = 3
