"""One output of a model, as a plain module that tools of others call: tensor in, tensor out."""

from collections.abc import Callable
from typing import Any, Literal, Self

from torch import Tensor, nn

from conceptcam._checks import check_choice
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.outputs import ConceptPart

ViewOutput = Literal["concept_logits", "concept_maps", "concepts", "task_logits"]

# What an output is computed by. A wrapper that waits for the gradient of every parameter must not see any other.
_PARTS: dict[str, tuple[str, ...]] = {
    "concept_logits": ("backbone", "concept_head", "pool"),
    "concept_maps": ("backbone", "concept_head"),
    "concepts": ("backbone", "concept_head", "pool"),
}
_TASK_PARTS = {
    "prototypes": ("backbone", "projector", "prototypes", "task_head"),
    "concepts": ("backbone", "concept_head", "pool", "task_head"),
}


class ModelView(nn.Module):
    """One output of a `ConceptModel`, for tools that expect a network with one input and one output.

    DistributedDataParallel, accelerate, Lightning, captum, pytorch-grad-cam and torch-cam take it unchanged. It shares
    the model's parts and copies nothing: what is trained through the view is trained in the model, and moving or
    casting the view moves or casts the whole model. Its parameters are those that the output depends on.

    Args:
        model: The model; also an attribute of the view.
        output: `"concept_logits"` (B, K), `"concept_maps"` (B, K, h, w), `"task_logits"` (B, T), or `"concepts"`, a
            `ConceptPart` with features, maps and logits, from which stage 1 learns.

    Raises:
        ValueError: If there is no such output, or the model has no tasks.
    """

    model: ConceptModel

    def __init__(self, model: ConceptModel, output: ViewOutput = "concept_logits") -> None:
        super().__init__()
        check_choice("output", output, ViewOutput)
        if output == "task_logits" and not model.config.tasks:
            raise ValueError("this model has no tasks, so it has no 'task_logits'; take 'concept_logits'")
        object.__setattr__(self, "model", model)  # not as a part, or all of the model's parameters were the view's
        self.output = output
        for name in _PARTS.get(output, _TASK_PARTS[model.config.bottleneck]):
            self.add_module(name, getattr(model, name))

    def forward(self, images: Tensor) -> Tensor | ConceptPart:
        """Images (B, 3, H, W), normalized -> the output.

        Raises:
            ValueError: As `ConceptModel.forward`.
        """
        # Only the view's own parts run: a trace knows no others.
        model = self.model
        if self.output == "concept_maps":
            maps: Tensor = model.concept_head(model.forward_features(images))
            return maps
        if self.output == "task_logits" and model.config.bottleneck == "prototypes":
            features = model.forward_features(images)
            without_concepts = ConceptPart(features, features[:, :0], features[:, :0, 0, 0])
            logits: Tensor = model.task_head(model.similarity_maps(without_concepts).amax(dim=(-2, -1)))
            return logits
        part = model.forward_concepts(images)
        if self.output == "task_logits":
            return model.forward_task(part).task_logits
        return part if self.output == "concepts" else part.concept_logits

    def no_weight_decay(self) -> set[str]:
        """Those of `ConceptModel.no_weight_decay` that the output depends on; timm's optimizers ask for them."""
        return self.model.no_weight_decay() & dict(self.named_parameters()).keys()

    def train(self, mode: bool = True) -> Self:
        """Set the training mode of the whole model, whose frozen parts stay in eval mode."""
        self.model.train(mode)
        self.training = mode
        return self

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        # `to`, `half` and the like: a model of which some parts are elsewhere could not be used.
        self.model._apply(fn, recurse)
        return self
