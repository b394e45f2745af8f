"""What torch records of a model says what the model says: traces, and programs of torch.export."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conceptcam import ConceptModel, ModelView
from tests.worlds import tiny_model

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "small cnn": {},
    "resnet": {"backbone": "timm:resnet18", "image_size": (64, 64)},
    "vit": {"backbone": "timm:test_vit", "image_size": (64, 96)},
    "pooling with weights": {"pooling": "attention"},
}
VIEWS = ("concept_logits", "concept_maps", "task_logits", "concepts")
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}  # of two computations that add up in another order
# torch now recommends torch.export in place of traces; a trace also says which Python values it keeps.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore:torch.searchsorted"
)


def model_of(architecture: str, bottleneck: str) -> ConceptModel:
    """A model in eval mode whose outputs are far from 0."""
    model = tiny_model(bottleneck=bottleneck, **ARCHITECTURES[architecture]).eval()
    for weight in (model.concept_head.score.weight, model.task_head.weight):
        nn.init.normal_(weight)
    return model


def images_for(model: ConceptModel, *, seed: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *model.config.image_size, generator=torch.Generator().manual_seed(seed))


def parts(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)


def assert_same(got: Any, wanted: Any) -> None:
    assert [part.shape for part in parts(got)] == [part.shape for part in parts(wanted)]
    for one, other in zip(parts(got), parts(wanted), strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE)


def traced(module: nn.Module, images: Tensor) -> nn.Module:
    """A module as it was traced, written and read again."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(module, images), file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.mark.parametrize("bottleneck", ["prototypes", "concepts"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_trace_of_the_model_says_what_it_says(architecture, bottleneck):
    model = model_of(architecture, bottleneck)
    trace = traced(model, images_for(model, seed=0))
    others = images_for(model, seed=1)
    with torch.no_grad():
        assert_same(trace(others), model(others))


@pytest.mark.parametrize("output", VIEWS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_trace_of_a_view_says_what_it_says(architecture, output):
    model = model_of(architecture, "prototypes")
    view = ModelView(model, output)
    trace = traced(view, images_for(model, seed=0))
    others = images_for(model, seed=1)
    with torch.no_grad():
        assert_same(trace(others), view(others))


@pytest.mark.parametrize("bottleneck", ["prototypes", "concepts"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_exported_program_says_what_the_model_says(architecture, bottleneck):
    model = model_of(architecture, bottleneck)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images_for(model, seed=0),), dynamic_shapes=({0: batch},)).module()
    for count in (1, 5):
        others = images_for(model, seed=1, count=count)
        with torch.no_grad():
            assert_same(program(others), model(others))
