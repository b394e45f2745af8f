"""What a model is (`ConceptConfig`) and what it has been taught (`TrainingRecord`); together, `config.json`."""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, SupportsFloat, TypeVar

from conceptcam._checks import _MANY, brief, check_choice, check_names, check_not_str, check_number, shorten
from conceptcam._files import as_json, parse_json
from conceptcam._version import __version__

FORMAT_VERSION = 2

# Fields that version 1 of `config.json`, of conceptcam 0.1, has under other names.
_VERSION_1_NAMES = {
    "config": {"pooling_value": "pooling_param", "map_temperature": "attention_temperature"},
    "record": {"provenance": "thresholds_source"},
}

# What the numbers of a config may be, bounds included; wide enough for any model that can be trained.
_WHOLE = {"feature_level": (-100, 100), "embed_dim": (1, 2**16), "prototypes_per_concept": (1, 2**12)}
_REAL = {"attention_temperature": (1e-6, 1e6), "pooling_param": (-1e6, 1e6)}
_SERIES: dict[str, tuple[int, float, float]] = {
    "image_size": (2, 1, 2**14),
    "mean": (3, -1e3, 1e3),  # or 1, of a model of grey images
    "std": (3, 1e-6, 1e3),
}
_CHANNELS = (1, 3)

# What the numbers of a record may be; NaN is an undefined one.
_PROBABILITIES = ("thresholds", "typical_present", "typical_absent")
_WEIGHTS = ("concept_weights", "task_weights")
_EVIDENCE = ("evidence_present", "evidence_absent")
_CALIBRATION = ("calibration", "task_calibration")
_TEXTS = (
    *("thresholds_source", "calibration_source", "feature_statistics", "unlike_source"),
    *("training_data", "measured_on", "license", "weights_sha256"),
)

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
        return _build(cls, dict(fields))

    def __repr__(self) -> str:
        return _short(self)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        # A pickle by a version that had fewer fields: those it lacks have their defaults.
        self.__dict__.update(vars(_build(type(self), dict(state), source="the pickle")))


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What a model has been taught and how well it does, as far as anyone measured.

    An undefined number is NaN here and `null` in `config.json`.

    Attributes:
        stages: Names of the training stages done, in order.
        thresholds: Concept name -> probability above which the concept is called present, as the model gives it;
            `calibrated` makes it comparable with what `predict` reports.
        typical_present: Concept name -> median probability where the concept is present.
        typical_absent: Concept name -> median probability where it is absent.
        evidence_present: Concept name -> median evidence of each of its M prototypes where the concept is present;
            what an intervention takes for "present". Empty for a `"concepts"` bottleneck, where that is
            `typical_present`.
        evidence_absent: The same where the concept is absent.
        calibration: Concept name -> slope and intercept by which its logit is scaled, so that probabilities come true.
            What `predict` and `explain` report is scaled; other probabilities of this record are not.
        task_calibration: Task name -> the same of a task's logit.
        calibration_source: On which data they were fitted, and how.
        feature_statistics: Where pooled features of training images lie, as text; see `fit_novelty`. Empty if nobody
            looked.
        unlike_from: Distance of pooled features from which an image is unlike the training images; NaN if unknown.
        unlike_source: What that distance is, in words.
        thresholds_source: On which data thresholds and typical scores were chosen.
        training_data: The training data, as the user names it.
        concept_weights: Concept name -> weight of its positives against its negatives in training, 1 if both counted
            alike. They make uncalibrated probabilities of rare concepts too high. Empty if nobody stated them.
        task_weights: Task name -> the same, or the weight of the class for a multi-class task.
        metrics: Metric name -> value.
        measured_on: Which images `metrics` were measured on, in words.
        license: License of these weights, an identifier as in SPDX; empty if nobody stated one.
        weights_sha256: SHA-256 of the weights file, in hexadecimal.
    """

    stages: tuple[str, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    typical_present: Mapping[str, float] = field(default_factory=dict)
    typical_absent: Mapping[str, float] = field(default_factory=dict)
    evidence_present: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    evidence_absent: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    calibration: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    task_calibration: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    calibration_source: str = ""
    feature_statistics: str = ""
    unlike_from: float = math.nan
    unlike_source: str = ""
    thresholds_source: str = ""
    training_data: str = ""
    concept_weights: Mapping[str, float] = field(default_factory=dict)
    task_weights: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    measured_on: str = ""
    license: str = ""
    weights_sha256: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.stages, str) or not isinstance(self.stages, Sequence):
            raise ValueError(f"`stages` must be a sequence of names, got {brief(self.stages)}")
        object.__setattr__(self, "stages", tuple(self.stages))
        check_names("stages", self.stages, at_least=0)
        for name in (*_PROBABILITIES, *_WEIGHTS, *_EVIDENCE, *_CALIBRATION, "metrics"):
            object.__setattr__(self, name, _numbers_by_name(name, getattr(self, name)))
        for name in _TEXTS:
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"`{name}` must be text, got {brief(getattr(self, name))}")
        if not re.fullmatch("(?:[0-9a-f]{64})?", self.weights_sha256):
            raise ValueError(f"`weights_sha256` must be 64 hexadecimal digits, got {brief(self.weights_sha256)}")
        unlike_from = math.nan if self.unlike_from is None else _float("`unlike_from`", self.unlike_from)
        # One and the same NaN, so that records without the number are equal.
        object.__setattr__(self, "unlike_from", math.nan if math.isnan(unlike_from) else unlike_from)
        for name in _CALIBRATION:
            if wrong := [pair for pair in getattr(self, name).values() if len(pair) != 2 or not pair[0] > 0]:
                raise ValueError(f"`{name}` must hold a slope above 0 and an intercept for each name, got {wrong[0]}")

    def __repr__(self) -> str:
        return _short(self)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        # A pickle by a version that had fewer fields: those it lacks have their defaults.
        self.__dict__.update(vars(_build(type(self), dict(state), source="the pickle")))

    def calibrated(self, concept: str, probability: float) -> float:
        """A concept's probability as the model gives it, or a threshold, as `predict` and `explain` report it."""
        slope, intercept = self.calibration.get(concept, (1.0, 0.0))
        return probability if (slope, intercept) == (1, 0) else _sigmoid(slope * _logit(probability) + intercept)

    def uncalibrated(self, concept: str, probability: float) -> float:
        """The reverse of `calibrated`."""
        slope, intercept = self.calibration.get(concept, (1.0, 0.0))
        return probability if (slope, intercept) == (1, 0) else _sigmoid((_logit(probability) - intercept) / slope)

    def after(self, stage: str, parts: Collection[str]) -> "TrainingRecord":
        """The record after a stage has trained some parts: figures and thresholds that depend on these parts are gone.

        Call it at the end of a stage in a loop of your own:
        `model.record = model.record.after("concepts", ["backbone", "concept_head"])`.

        Args:
            stage: `"concepts"`, `"prototypes"`, `"task"`, or a name of your own.
            parts: Names of the parts of `ConceptModel` that learned.
        """
        record = self.without(parts)
        return dataclasses.replace(record, stages=(*(name for name in record.stages if name != stage), stage))

    def without(self, parts: Collection[str]) -> "TrainingRecord":
        """The record after some parts have changed: without figures, and without the stages that used those parts.

        The license does not stay either: what was learned since may come from data under other terms.
        """
        sees = bool({"backbone", "concept_head", "pool"} & set(parts))
        compares = sees or bool({"projector", "prototypes"} & set(parts))
        stale = {"task"} if parts else set()
        stale |= {"embedding", "prototypes"} if compares else set()
        stale |= {"concepts"} if sees else set()
        stages = tuple(name for name in self.stages if name not in stale)
        record = dataclasses.replace(self, stages=stages, metrics={}, measured_on="", license="", weights_sha256="")
        if compares:
            record = dataclasses.replace(record, evidence_present={}, evidence_absent={})
        if parts:
            record = dataclasses.replace(record, task_calibration={}, task_weights={})
        if "backbone" in parts:
            record = dataclasses.replace(record, feature_statistics="", unlike_from=math.nan, unlike_source="")
        if not sees:
            return record
        record = dataclasses.replace(record, calibration={}, calibration_source="", concept_weights={})
        return dataclasses.replace(record, thresholds={}, typical_present={}, typical_absent={}, thresholds_source="")


def _numbers_by_name(field_name: str, values: object) -> dict[str, Any]:
    """The numbers of a field of the record, or rows of them, checked."""
    rows = field_name in _EVIDENCE + _CALIBRATION
    if not isinstance(values, Mapping) or (rows and not all(isinstance(row, list | tuple) for row in values.values())):
        kind = "lists of numbers" if rows else "numbers"
        raise ValueError(f"`{field_name}` must map names to {kind}, got {brief(values)}")
    check_names(field_name, list(values), at_least=0)
    bounds = () if field_name in ("metrics", *_CALIBRATION) else (0,) if field_name in _WEIGHTS else (0, 1)
    found: dict[str, Any] = {}
    for key, value in values.items():
        what = f"`{field_name}` of {key!r}"
        found[key] = tuple(_float(what, one, *bounds) for one in value) if rows else _float(what, value, *bounds)
    return found


def _float(what: str, value: object, *bounds: float) -> float:
    """A number as a float; those of numpy and torch are no JSON types. What is undefined or infinite is NaN."""
    if isinstance(value, SupportsFloat) and not isinstance(value, int | float):
        value = float(value)
    if isinstance(value, float) and (math.isnan(value) or (not bounds and math.isinf(value))):
        return math.nan
    check_number(what, value, *bounds)
    return float(value)  # type: ignore[arg-type]  # it is a number


def _logit(probability: float) -> float:
    if probability in (0, 1):
        return math.inf if probability else -math.inf
    return math.log(probability) - math.log1p(-probability)


def _sigmoid(logit: float) -> float:
    if logit < 0:
        return math.exp(logit) / (1 + math.exp(logit))
    return 1 / (1 + math.exp(-logit))


def _short(record: "ConceptConfig | TrainingRecord") -> str:
    """The record as Python writes it, unless it holds so many names that nothing else could be seen."""
    return f"{type(record).__name__}({', '.join(f'{name}={_few(value)}' for name, value in vars(record).items())})"


def _few(value: object) -> str:
    if isinstance(value, tuple) and len(value) > _MANY:
        return f"({shorten(map(repr, value))})"
    if isinstance(value, Mapping) and len(value) > _MANY:
        first = ", ".join(f"{key!r}: {inner!r}" for key, inner in list(value.items())[:3])
        return f"{{{first} and {len(value) - 3} more}}"
    return repr(value)


def to_json(config: ConceptConfig, record: TrainingRecord) -> str:
    """The text of `config.json`."""
    content = {
        "format_version": FORMAT_VERSION,
        "conceptcam": __version__,
        "config": config.to_dict(),
        "record": dataclasses.asdict(record),
    }
    return as_json(content)


def from_json(text: str) -> tuple[ConceptConfig, TrainingRecord]:
    """Read what `to_json` wrote.

    Raises:
        ValueError: If the text is no JSON object, was written by another format, holds a field or a concept this
            version or this model does not know, or a number that cannot be. Unknown fields are refused, because
            ignoring one would rebuild a different model from the one that was saved.
    """
    content = parse_json(text, "config.json")
    version = content.get("format_version") if isinstance(content, dict) else None
    if version not in (1, FORMAT_VERSION):
        raise ValueError(
            f"config.json has format_version {brief(version)}, this conceptcam reads 1 to {FORMAT_VERSION}; "
            "install the release that wrote it (its field 'conceptcam')"
        )
    if unknown := sorted(content.keys() - {"format_version", "conceptcam", "config", "record"}):
        raise ValueError(f"config.json has unknown fields {unknown}")
    config, record = (
        _renamed(content.get(part, {}), names if version == 1 else {}) for part, names in _VERSION_1_NAMES.items()
    )
    built = _build(ConceptConfig, config), _build(TrainingRecord, record)
    _check_together(*built)
    return built


def _check_together(config: ConceptConfig, record: TrainingRecord) -> None:
    """Refuse a record of another model's concepts or prototypes."""
    for name in (*_PROBABILITIES, *_EVIDENCE):
        values = getattr(record, name)
        if unknown := [repr(concept) for concept in values.keys() - {*config.concepts}]:
            raise ValueError(f"config.json has {name} of what are no concepts of its model: {shorten(sorted(unknown))}")
        wrong = [repr(key) for key in values if name in _EVIDENCE and len(values[key]) != config.prototypes_per_concept]
        if wrong:
            raise ValueError(
                f"`{name}` needs {config.prototypes_per_concept} numbers for each concept, one per prototype; it has "
                f"others for {shorten(wrong)}"
            )


def _renamed(values: object, names: Mapping[str, str]) -> object:
    """The fields under the names that they have now; what is under a new name already stays unknown to version 1."""
    if not isinstance(values, dict):
        return values
    if early := sorted(values.keys() & set(names.values())):
        raise ValueError(f"config.json has unknown fields {early} of format_version 1")
    return {names.get(name, name): value for name, value in values.items()}


_Record = TypeVar("_Record", ConceptConfig, TrainingRecord)


def _build(cls: type[_Record], values: object, *, source: str = "config.json") -> _Record:
    if not isinstance(values, dict):
        raise ValueError(f"{source} must hold the fields of {cls.__name__}, got {brief(values)}")
    fields = {known.name: known for known in dataclasses.fields(cls)}
    if unknown := sorted(values.keys() - fields.keys()):
        raise ValueError(f"{source} has unknown fields {unknown} of {cls.__name__}; known: {sorted(fields)}")
    if missing := [name for name, known in fields.items() if _required(known) and name not in values]:
        raise ValueError(f"{source} lacks the fields {missing} of {cls.__name__}")
    return cls(**{key: _null_to_nan(value) for key, value in values.items()})


def _required(known: "dataclasses.Field[Any]") -> bool:
    return known.default is dataclasses.MISSING and known.default_factory is dataclasses.MISSING


def _null_to_nan(value: Any) -> Any:
    """Inside a mapping of numbers `null` is an undefined number; elsewhere it is None."""
    if isinstance(value, dict):
        rows = {key: inner if isinstance(inner, list) else [inner] for key, inner in value.items()}
        numbers = {key: [math.nan if one is None else one for one in row] for key, row in rows.items()}
        return {key: row if isinstance(value[key], list) else row[0] for key, row in numbers.items()}
    return value
