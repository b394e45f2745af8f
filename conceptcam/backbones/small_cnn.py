"""A small convolutional backbone of our own, made to train from scratch on images of 112 to 128 pixels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conceptcam.backbones.base import Backbone, BackboneOptions
from conceptcam.backbones.registry import register_backbone
from conceptcam.hub.checkpoints import read_encoder

STRIDE = 8


class SmallCnn(Backbone):
    """Features (B, width, H / 8, W / 8), or (B, width, H / 4, W / 4) if `fine`.

    Three strided convolutions, a learned map of where a cell is (anatomy has places), and residual blocks, some of
    them dilated, so that a cell of 8 pixels sees most of a small image. A fine grid adds what these cells know to the
    features of 4 pixels before them, as a feature pyramid does (Lin et al., CVPR 2017): a finding smaller than a cell
    of 8 pixels often has no cell whose centre it covers.

    Args:
        image_size: (H, W) in pixels, multiples of 8.
        widths: Channels after each of the three strided convolutions; the last is the width of the features.
        dilations: Of the residual blocks, one number each.
        convolutions: Of each block.
        fine: Whether the grid has a cell for each 4 pixels.
        in_chans: Channels of the images.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        widths: tuple[int, int, int] = (24, 48, 96),
        dilations: Sequence[int] = (1, 1, 2, 4),
        convolutions: int = 2,
        fine: bool = False,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        rows, columns = image_size[0] // STRIDE, image_size[1] // STRIDE
        first, second, width = widths
        self.out_channels = width
        self.stem = nn.Sequential(_conv(in_chans, first, 2), _conv(first, second, 2), _conv(second, width, 2))
        self.position = nn.Parameter(torch.zeros(1, width, rows, columns))
        self.blocks = nn.Sequential(*(_Residual(width, dilation, convolutions) for dilation in dilations))
        self.fine = _Fine(second, width) if fine else None

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalized -> features (B, width, h, w)."""
        before = self.stem[1](self.stem[0](images))  # a cell for each 4 pixels
        features = self.blocks(self.stem[2](before) + self.position)
        return features if self.fine is None else self.fine(before, features)

    def no_weight_decay(self) -> set[str]:
        """The map of where a cell is."""
        return {"position"}


class _Residual(nn.Module):
    def __init__(self, width: int, dilation: int, convolutions: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(_conv(width, width, 1) for _ in range(convolutions - 1)),
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, features: Tensor) -> Tensor:
        return (features + self.layers(features)).relu()


class _Fine(nn.Module):
    """Adds features to those of a grid twice as fine."""

    def __init__(self, inside: int, width: int) -> None:
        super().__init__()
        self.lateral = nn.Conv2d(inside, width, 1)
        self.mix = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))

    def forward(self, before: Tensor, features: Tensor) -> Tensor:
        finer = F.interpolate(features, size=before.shape[-2:], mode="bilinear", align_corners=False)
        return self.mix(finer + self.lateral(before))


def _conv(inside: int, outside: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
    )


@register_backbone("small_cnn_s8")
def small_cnn_s8(request: BackboneOptions) -> Backbone:
    """A `SmallCnn` of 0.7 million parameters for images whose sides are multiples of 8."""
    return _small_cnn("small_cnn_s8", request)


@register_backbone("small_cnn_s8_w64")
def small_cnn_s8_w64(request: BackboneOptions) -> Backbone:
    """`small_cnn_s8` with 64 channels in place of 96: half the arithmetic."""
    return _small_cnn("small_cnn_s8_w64", request, widths=(24, 48, 64))


@register_backbone("tiny_cnn_s8")
def tiny_cnn_s8(request: BackboneOptions) -> Backbone:
    """A quarter of the arithmetic of `small_cnn_s8`: fewer channels, and one convolution per block."""
    return _small_cnn("tiny_cnn_s8", request, widths=(16, 32, 64), dilations=(1, 2, 4, 1), convolutions=1)


@register_backbone("small_cnn_s4")
def small_cnn_s4(request: BackboneOptions) -> Backbone:
    """`small_cnn_s8` with a cell for each 4 pixels, for small findings."""
    return _small_cnn("small_cnn_s4", request, fine=True)


@register_backbone("small_cnn_s4_w64")
def small_cnn_s4_w64(request: BackboneOptions) -> Backbone:
    """`small_cnn_s8_w64` with a cell for each 4 pixels."""
    return _small_cnn("small_cnn_s4_w64", request, widths=(24, 48, 64), fine=True)


@register_backbone("tiny_cnn_s4")
def tiny_cnn_s4(request: BackboneOptions) -> Backbone:
    """`tiny_cnn_s8` with a cell for each 4 pixels."""
    return _small_cnn("tiny_cnn_s4", request, widths=(16, 32, 64), dilations=(1, 2, 4, 1), convolutions=1, fine=True)


def _small_cnn(name: str, request: BackboneOptions, **shape: Any) -> Backbone:
    if request.pretrained:
        raise ValueError(f"{name} has no published weights; it is made to train from scratch")
    if request.feature_level not in (-1, 0):
        raise ValueError(f"{name} has one feature level, got {request.feature_level}")
    if any(side % STRIDE for side in request.image_size):
        raise ValueError(f"{name} needs sides that are multiples of {STRIDE}, got {request.image_size}")
    backbone = SmallCnn(request.image_size, in_chans=request.in_chans, **shape)
    if request.weights is not None:
        backbone.load_state_dict(read_encoder(request.weights, backbone.state_dict()).tensors)
    return backbone
