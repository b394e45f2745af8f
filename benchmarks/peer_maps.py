"""The maps of all concepts of one image: ours in one forward pass, and those that peers make of the same network."""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from measuring import interleave

from conceptcam import ConceptConfig, ConceptModel, ModelView

CONCEPTS = 22
Maps = Callable[[], object]


def compare_maps(backbone: str, *, size: int, repeats: int) -> list[dict[str, Any]]:
    """A row for each way that is installed: milliseconds, and how many times as long as ours it takes."""
    torch.manual_seed(0)
    config = ConceptConfig(
        concepts=tuple(f"concept {k}" for k in range(CONCEPTS)),
        backbone=backbone,
        image_size=(size, size),
        pooling="mean",
    )
    model = ConceptModel.from_config(config).eval()
    ways = dict(all_ways(model, torch.randn(1, 3, size, size)))
    timings = interleave(ways, repeats=repeats)
    rows = []
    for name in ways:
        low, high = timings.middle_half(name, "ours")
        rows.append(
            {
                "backbone": backbone,
                "maps of all 22 concepts": name,
                "ms": f"{1000 * timings.median(name):.1f}",
                "times ours": f"{timings.ratio(name, 'ours'):.2f}",
                "middle half": f"{low:.2f} to {high:.2f}",
            }
        )
    return rows


def all_ways(model: ConceptModel, image: torch.Tensor) -> Iterator[tuple[str, Maps]]:
    """Name and function of each way; a peer that is not installed is left out."""
    yield "ours", lambda: _ours(model, image)
    for package, ways in (("torchcam", _torchcam), ("pytorch_grad_cam", _grad_cam), ("captum", _captum)):
        if importlib.util.find_spec(package) is not None:
            yield from ways(ModelView(model), model.backbone, image)


def missing() -> list[str]:
    """What to install to measure every way."""
    peers = {"torchcam": "torchcam", "pytorch_grad_cam": "grad-cam", "captum": "captum"}
    return [name for package, name in peers.items() if importlib.util.find_spec(package) is None]


@torch.inference_mode()
def _ours(model: ConceptModel, image: torch.Tensor) -> torch.Tensor:
    return model.forward_concepts(image).concept_maps


def _torchcam(view: ModelView, layer: torch.nn.Module, image: torch.Tensor) -> Iterator[tuple[str, Maps]]:
    methods = importlib.import_module("torchcam.methods")
    needs_gradient = image.clone().requires_grad_()

    def kept() -> None:
        with methods.GradCAM(view, target_layer=view.backbone) as cam:
            scores = view(needs_gradient)
            for concept in range(CONCEPTS):
                cam(concept, scores, retain_graph=concept < CONCEPTS - 1)

    def anew() -> None:
        with methods.GradCAM(view, target_layer=view.backbone) as cam:
            for concept in range(CONCEPTS):
                cam(concept, view(needs_gradient))

    yield "torch-cam GradCAM, its graph kept", kept
    yield "torch-cam GradCAM, a forward pass for each", anew


def _grad_cam(view: ModelView, layer: torch.nn.Module, image: torch.Tensor) -> Iterator[tuple[str, Maps]]:
    grad_cam = importlib.import_module("pytorch_grad_cam")
    target = importlib.import_module("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    cam = grad_cam.GradCAM(model=view, target_layers=[layer])  # hooks stay, as where many images are explained

    def each() -> None:
        for concept in range(CONCEPTS):
            cam(input_tensor=image, targets=[target(concept)])

    def batch() -> None:
        cam(input_tensor=image.expand(CONCEPTS, -1, -1, -1), targets=[target(concept) for concept in range(CONCEPTS)])

    yield "pytorch-grad-cam GradCAM, a call for each", each
    yield "pytorch-grad-cam GradCAM, the image 22 times in a batch", batch


def _captum(view: ModelView, layer: torch.nn.Module, image: torch.Tensor) -> Iterator[tuple[str, Maps]]:
    cam = importlib.import_module("captum.attr").LayerGradCam(view, layer)

    def each() -> None:
        for concept in range(CONCEPTS):
            cam.attribute(image, target=concept, relu_attributions=True)

    yield "captum LayerGradCam, a call for each", each
