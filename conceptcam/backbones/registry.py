"""Backbones by name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from conceptcam.backbones.base import Backbone
from conceptcam.config import did_you_mean


@dataclass(frozen=True, kw_only=True)
class BackboneRequest:
    """What a backbone's factory is asked for.

    Attributes:
        image_size: (H, W) of the images in pixels.
        feature_level: Which feature grid to give, counted as in a Python list; -1 is the last.
        pretrained: Whether to load the published weights.
        weights: A safetensors file to load, strictly by name; None loads none.
    """

    image_size: tuple[int, int] = (224, 224)
    feature_level: int = -1
    pretrained: bool = False
    weights: Path | None = None


Factory = Callable[[BackboneRequest], Backbone]
_FACTORIES: dict[str, Factory] = {}


def register_backbone(name: str) -> Callable[[Factory], Factory]:
    """Make `create_backbone(name)` call the decorated function.

    The function takes a `BackboneRequest` and returns a `Backbone`. Import what it needs inside it:
    registering must stay cheap.

    Raises:
        ValueError: If the name is taken or holds a colon, which marks a source such as `timm:`.
    """
    if name in _FACTORIES or ":" in name:
        raise ValueError(f"cannot register backbone {name!r}: the name is taken or holds a colon")

    def register(factory: Factory) -> Factory:
        _FACTORIES[name] = factory
        return factory

    return register


def create_backbone(
    name: str,
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    image_size: tuple[int, int] = (224, 224),
    feature_level: int = -1,
) -> Backbone:
    """Build a backbone by name.

    Args:
        name: A registered name, or `"timm:"` followed by any timm model name.
        pretrained: Whether to start from the published weights, downloaded, instead of random ones.
        weights: A safetensors file to start from, under the backbone's own parameter names. Loading is
            strict: a tensor that is missing, left over or of another shape is an error.
        image_size: (H, W) of the images in pixels.
        feature_level: Which of the backbone's feature grids to give, counted as in a Python list; the
            last, -1, is the coarsest. What lies behind an earlier one is cut off.

    Raises:
        ValueError: If the name, the level, the size or the weights do not fit.
        FileNotFoundError: If the weights file is not there.
    """
    if pretrained and weights is not None:
        raise ValueError("give either `pretrained=True` or a `weights` file, not both")
    path = Path(weights) if weights is not None else None
    if path is not None and not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    # Loading leaves the global random state as it was: what is random at first is overwritten.
    with torch.random.fork_rng(devices=[], enabled=pretrained or path is not None):
        return _build(
            name,
            BackboneRequest(image_size=image_size, feature_level=feature_level, pretrained=pretrained, weights=path),
        )


def _build(name: str, request: BackboneRequest) -> Backbone:
    source, colon, model = name.partition(":")
    if colon and source == "timm":
        from conceptcam.backbones.timm import TimmBackbone  # timm takes seconds to import

        return TimmBackbone(model, request)
    if name not in _FACTORIES:
        raise ValueError(
            f"unknown backbone {name!r}{did_you_mean(name, list_backbones())}; registered: "
            f"{list_backbones()}. For a timm model write 'timm:{name}'; for your own, use `register_backbone`."
        )
    return _FACTORIES[name](request)


def expected_normalization(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation per channel, of images in [0, 1], that a backbone expects.

    Those that timm publishes with a model, and ImageNet's, which MedMAE uses too, for a registered name.

    Raises:
        ValueError: If timm has no such model.
    """
    source, colon, model = name.partition(":")
    if colon and source == "timm":
        from conceptcam.backbones.timm import normalization  # timm takes seconds to import

        return normalization(model)
    return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def list_backbones() -> list[str]:
    """Registered names, sorted. Names under `timm:` are not listed; ask `timm.list_models()`."""
    return sorted(_FACTORIES)
