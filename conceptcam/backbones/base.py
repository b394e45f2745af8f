"""What every backbone promises."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """Turns images (B, 3, H, W) into a grid of features (B, out_channels, h, w).

    A backbone of your own is a subclass with these two members; register it under a name with
    `register_backbone` to make it loadable, or hand it to `ConceptModel` as a part.
    """

    out_channels: int
    """Channels C of the feature grid."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalized -> features (B, out_channels, h, w), channels first."""
