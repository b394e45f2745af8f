"""What a model has been taught, and how well it does, as far as anyone measured."""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsFloat

from conceptcam._checks import brief, check_names, check_number
from conceptcam.config.fields import from_fields, short_repr

# What the numbers of a record may be; NaN is an undefined one.
PROBABILITIES = ("thresholds", "typical_present", "typical_absent")
_WEIGHTS = ("concept_weights", "task_weights")
EVIDENCE = ("evidence_present", "evidence_absent")
_CALIBRATION = ("calibration", "task_calibration")
_TEXTS = (
    *("thresholds_source", "evidence_source", "calibration_source", "feature_statistics", "unlike_source"),
    *("training_data", "derived_from", "measured_on", "license", "weights_sha256"),
)


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
            what an intervention takes for "present". Of a `"concepts"` bottleneck, its one median probability;
            where it is missing there, `typical_present` stands for it.
        evidence_absent: The same where the concept is absent.
        evidence_source: Which images that evidence is of, if the task head was taught corrections with it. Empty if it
            was not; `fit_thresholds` then takes evidence from the images of `thresholds_source`.
        calibration: Concept name -> slope and intercept by which its logit is scaled, so that probabilities come true.
            What `predict` and `explain` report is scaled; other probabilities of this record are not.
        task_calibration: Task name -> the same of a task's logit.
        calibration_source: On which data they were fitted, and how.
        feature_statistics: Where pooled features of training images lie, as text; see `fit_novelty`. Empty if nobody
            looked.
        unlike_from: Distance of pooled features from which an image is unlike the training images; None if unknown.
        unlike_source: What that distance is, in words.
        thresholds_source: On which data thresholds and typical scores were chosen.
        training_data: The training data, as the user names it.
        derived_from: Which model this one was made from by changing it, such as dropping prototypes, and how; by the
            SHA-256 of its weights, and a name if one is known. Empty if it was not.
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
    evidence_source: str = ""
    calibration: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    task_calibration: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    calibration_source: str = ""
    feature_statistics: str = ""
    unlike_from: float | None = None
    unlike_source: str = ""
    thresholds_source: str = ""
    training_data: str = ""
    derived_from: str = ""
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
        for name in (*PROBABILITIES, *_WEIGHTS, *EVIDENCE, *_CALIBRATION, "metrics"):
            object.__setattr__(self, name, _numbers_by_name(name, getattr(self, name)))
        for name in _TEXTS:
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"`{name}` must be text, got {brief(getattr(self, name))}")
        if not re.fullmatch("(?:[0-9a-f]{64})?", self.weights_sha256):
            raise ValueError(f"`weights_sha256` must be 64 hexadecimal digits, got {brief(self.weights_sha256)}")
        if self.unlike_from is not None:
            unlike_from = _float("`unlike_from`", self.unlike_from)
            object.__setattr__(self, "unlike_from", None if math.isnan(unlike_from) else unlike_from)
        for name in _CALIBRATION:
            if wrong := [pair for pair in getattr(self, name).values() if len(pair) != 2 or not pair[0] > 0]:
                raise ValueError(f"`{name}` must hold a slope above 0 and an intercept for each name, got {wrong[0]}")

    def __repr__(self) -> str:
        return short_repr(self)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        # A pickle by a version that had fewer fields: those it lacks have their defaults.
        self.__dict__.update(vars(from_fields(type(self), dict(state), source="the pickle")))

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
        if compares or (parts and self.evidence_source):  # what one head was taught says nothing of another
            record = dataclasses.replace(record, evidence_present={}, evidence_absent={})
        if parts:
            record = dataclasses.replace(record, task_calibration={}, task_weights={}, evidence_source="")
        if "backbone" in parts:
            record = dataclasses.replace(record, feature_statistics="", unlike_from=None, unlike_source="")
        if not sees:
            return record
        record = dataclasses.replace(record, calibration={}, calibration_source="", concept_weights={})
        return dataclasses.replace(record, thresholds={}, typical_present={}, typical_absent={}, thresholds_source="")


def _numbers_by_name(field_name: str, values: object) -> dict[str, Any]:
    """The numbers of a field of the record, or rows of them, checked."""
    rows = field_name in EVIDENCE + _CALIBRATION
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
