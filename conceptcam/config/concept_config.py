"""What a model is: everything that is needed to rebuild it, except its weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from conceptcam._checks import brief, check_choice, check_names, check_not_str, check_number
from conceptcam.config.fields import from_fields, short_repr

# What the numbers of a config may be, bounds included; wide enough for any model that can be trained.
_WHOLE = {"feature_level": (-100, 100), "embed_dim": (1, 2**16), "prototypes_per_concept": (1, 2**12)}
_REAL = {"attention_temperature": (1e-6, 1e6), "pooling_param": (-1e6, 1e6)}
_SERIES: dict[str, tuple[int, float, float]] = {
    "image_size": (2, 1, 2**14),
    "mean": (3, -1e3, 1e3),  # or 1, of a model of grey images
    "std": (3, 1e-6, 1e3),
}
_CHANNELS = (1, 3)

TaskKind = Literal["multilabel", "multiclass"]
Bottleneck = Literal["prototypes", "concepts"]
PoolingOrder = Literal["pool_then_project", "project_then_pool"]
ProjectorKind = Literal["mlp", "linear", "ibn"]


@dataclass(frozen=True, kw_only=True)
class ConceptConfig:
    """Everything needed to rebuild a `ConceptModel`, except its weights.

    The config travels as `config.json` beside the weights. It says what the model *is*; how it was
    trained (learning rates, epochs, losses) belongs to `Stage` and `Trainer`, never here.

    Attributes:
        concepts: Concept names; their order is the channel order of every concept tensor.
        tasks: Task names, in the order of the task logits. Empty for a model that names concepts only.
        task_kind: `"multilabel"`: any number of tasks can be true. `"multiclass"`: exactly one is.
        backbone: Name known to `create_backbone`, such as `"medmae_vit_b16"` or `"timm:resnet50"`.
        feature_level: Which of the backbone's feature grids is used, counted as in a Python list; -1 is
            the last and coarsest. An earlier level has more, smaller cells.
        image_size: (H, W) of the input in pixels.
        in_chans: Channels of the input: 3, or 1 for a model of grey images.
        mean: Per-channel mean subtracted from images in [0, 1]. Three numbers for a model of one channel become their
            mean.
        std: Per-channel standard deviation that images are divided by; as `mean`.
        pooling: Name known to `create_pooling`; turns a concept map into one logit.
        pooling_param: `k` of `topk` (a number of places, or below 1 a fraction of the grid) or `r` of `lse`; None
            takes their default.
        head_bias: Whether the concept head has a bias.
        attention_temperature: Concept maps are divided by it before the softmax over places that weighs
            features into concept vectors; below 1 looks at fewer places.
        projector: `"mlp"` (the default), `"linear"` (one linear layer, for few images) or `"ibn"` (CSR's residual
            blocks).
        pooling_order: `"pool_then_project"` projects each concept's pooled feature vector (CSR, Eq. 2);
            `"project_then_pool"` pools projected features.
        embed_dim: Size D of the space in which prototypes live.
        prototypes_per_concept: Number M of prototypes each concept has.
        bottleneck: `"prototypes"`: the task head reads similarities to prototypes. `"concepts"`: it reads
            concept probabilities (the classic bottleneck), and there are no prototypes.

    Raises:
        ValueError: If a name is empty or repeated, a choice is unknown or a number is out of range.
    """

    concepts: tuple[str, ...]
    backbone: str
    tasks: tuple[str, ...] = ()
    task_kind: TaskKind = "multilabel"
    feature_level: int = -1
    image_size: tuple[int, int] = (224, 224)
    in_chans: int = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    pooling: str = "max"
    pooling_param: float | None = None
    head_bias: bool = True
    attention_temperature: float = 1.0
    projector: ProjectorKind = "mlp"
    pooling_order: PoolingOrder = "pool_then_project"
    embed_dim: int = 128
    prototypes_per_concept: int = 5
    bottleneck: Bottleneck = "prototypes"

    def __post_init__(self) -> None:
        check_not_str("concepts", self.concepts)
        check_not_str("tasks", self.tasks)
        for name in ("concepts", "tasks", "image_size", "mean", "std"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise ValueError(f"`{name}` must be a sequence, got {brief(value)}")
            object.__setattr__(self, name, tuple(value))
        check_names("concepts", self.concepts, at_least=1)
        check_names("tasks", self.tasks, at_least=0)
        check_choice("task_kind", self.task_kind, TaskKind)
        check_choice("bottleneck", self.bottleneck, Bottleneck)
        check_choice("pooling_order", self.pooling_order, PoolingOrder)
        check_choice("projector", self.projector, ProjectorKind)
        self._check_numbers()
        for name, kind in (("head_bias", bool), ("backbone", str), ("pooling", str)):
            if type(getattr(self, name)) is not kind:
                raise ValueError(f"`{name}` must be a {kind.__name__}, got {brief(getattr(self, name))}")

    def _check_numbers(self) -> None:
        """Refuse numbers that no model can have, or that JSON does not know, before the model is trained."""
        if type(self.in_chans) is not int or self.in_chans not in _CHANNELS:
            raise ValueError(f"`in_chans` must be 1, for grey images, or 3, got {brief(self.in_chans)}")
        for name, (length, low, high) in _SERIES.items():
            values = getattr(self, name)
            wanted = length if name == "image_size" else self.in_chans
            if len(values) not in (wanted, length):
                raise ValueError(f"`{name}` needs {wanted} number{'s' * (wanted > 1)}, got {brief(values)}")
            for i, value in enumerate(values):
                check_number(f"`{name}[{i}]`", value, low, high, whole=name == "image_size")
            if len(values) > wanted:
                object.__setattr__(self, name, (sum(values) / len(values),))
        for name, bounds in _WHOLE.items():
            check_number(f"`{name}`", getattr(self, name), *bounds, whole=True)
        for name, limits in _REAL.items():
            if name != "pooling_param" or self.pooling_param is not None:
                check_number(f"`{name}`", getattr(self, name), *limits)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types, as `config.json` and `run.json` hold them; `from_dict` reads them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ConceptConfig":
        """The config with these fields; those that have a default may be missing.

        Raises:
            ValueError: If a field is unknown, is missing without a default, or has an impossible value.
        """
        return from_fields(cls, dict(fields))

    def __repr__(self) -> str:
        return short_repr(self)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        # A pickle by a version that had fewer fields: those it lacks have their defaults.
        self.__dict__.update(vars(from_fields(type(self), dict(state), source="the pickle")))
