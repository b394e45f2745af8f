"""The text of `config.json`: what a model is and what it was taught, together, in every format version so far."""

import dataclasses
from collections.abc import Mapping

from conceptcam._checks import brief, shorten
from conceptcam._files import as_json, parse_json
from conceptcam._version import __version__
from conceptcam.config.concept_config import ConceptConfig
from conceptcam.config.fields import from_fields
from conceptcam.config.training_record import EVIDENCE, PROBABILITIES, TrainingRecord

FORMAT_VERSION = 2

# Fields that version 1 of `config.json`, of conceptcam 0.1, has under other names.
_VERSION_1_NAMES = {
    "config": {"pooling_value": "pooling_param", "map_temperature": "attention_temperature"},
    "record": {"provenance": "thresholds_source"},
}


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
    built = from_fields(ConceptConfig, config), from_fields(TrainingRecord, record)
    _check_together(*built)
    return built


def _check_together(config: ConceptConfig, record: TrainingRecord) -> None:
    """Refuse a record of another model's concepts or prototypes."""
    each = config.prototypes_per_concept if config.bottleneck == "prototypes" else 1
    for name in (*PROBABILITIES, *EVIDENCE):
        values = getattr(record, name)
        if unknown := [repr(concept) for concept in values.keys() - {*config.concepts}]:
            raise ValueError(f"config.json has {name} of what are no concepts of its model: {shorten(sorted(unknown))}")
        wrong = [repr(key) for key in values if name in EVIDENCE and len(values[key]) != each]
        if wrong:
            raise ValueError(
                f"`{name}` needs {f'{each} numbers' if each > 1 else 'one number'} for each concept, one per prototype "
                f"or the concept's probability; it has others for {shorten(wrong)}"
            )


def _renamed(values: object, names: Mapping[str, str]) -> object:
    """The fields under the names that they have now; what is under a new name already stays unknown to version 1."""
    if not isinstance(values, dict):
        return values
    if early := sorted(values.keys() & set(names.values())):
        raise ValueError(f"config.json has unknown fields {early} of format_version 1")
    return {names.get(name, name): value for name, value in values.items()}
