"""The zoo: what can be loaded or built by name. Its entries say from where, how normalized and under which license.

Nothing here imports torch, opens a connection or asks the Hub.
"""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from conceptcam._checks import check_choice, did_you_mean
from conceptcam._display.text import text_table
from conceptcam.config import ConceptConfig, TrainingRecord, from_json
from conceptcam.hub.architectures import ARCHITECTURES, Architecture
from conceptcam.hub.published_backbones import BACKBONES, BackboneInfo, backbone_info, forbids_commercial_use

Kind = Literal["model", "architecture", "backbone"]

MODELS = Path(__file__).parent / "bundled"
"""Folder of the models that come with the package."""

_COLUMNS = ("name", "kind", "grid @ size", "license", "commercial use", "weights")


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A trained model that comes with the package.

    Attributes:
        name: What `ConceptModel.from_pretrained` takes.
        folder: The model folder.
        config: What the model is.
        record: What it was taught.
        license: Identifier as in SPDX; the package's own.
    """

    name: str
    folder: Path
    config: ConceptConfig
    record: TrainingRecord = field(default_factory=TrainingRecord)
    license: str = "Apache-2.0"


def bundled_models() -> dict[str, Path]:
    """The models that come with the package: name -> folder."""
    return {file.parent.name: file.parent for file in sorted(MODELS.glob("*/config.json"))}


def list_models(pattern: str = "*") -> list[str]:
    """Names of the trained models that `ConceptModel.from_pretrained` loads without a download.

    Args:
        pattern: What the name looks like, with `*` for anything, as for files.
    """
    return list_zoo(pattern, kind="model")


def list_architectures(pattern: str = "*") -> list[str]:
    """Names of the architectures that `create_model` builds for your concepts and tasks.

    Args:
        pattern: What the name looks like, with `*` for anything, as for files.
    """
    return list_zoo(pattern, kind="architecture")


def list_zoo(
    pattern: str = "*",
    *,
    kind: Kind | None = None,
    commercial_use: bool | None = None,
    downloadable: bool | None = None,
) -> list[str]:
    """Names of everything in the zoo: models, then architectures, then backbones with published weights.

    Args:
        pattern: What the name looks like, with `*` for anything, as for files.
        kind: Only this kind; None is all of them.
        commercial_use: Whether the license of the weights allows commercial use; for an architecture, the weights
            of its backbone.
        downloadable: Whether a program can get the weights, from the package or from the Hub.

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind is not None:
        check_choice("kind", kind, Kind)
    names = {"model": bundled_models(), "architecture": ARCHITECTURES, "backbone": BACKBONES}
    found = [name for each in names if kind in (None, each) for name in fnmatch.filter(names[each], pattern)]
    weights = {name: _weights_of(name) for name in found}
    return [
        name
        for name, info in weights.items()
        if commercial_use in (None, info is None or info.commercial_use)
        and downloadable in (None, info is None or info.downloadable)
    ]


def model_info(name: str) -> ModelInfo | Architecture | BackboneInfo:
    """All that is known of a model, an architecture or a backbone of the zoo.

    Raises:
        ValueError: If nothing in the zoo has that name.
    """
    if name in (models := bundled_models()):
        config, record = from_json((models[name] / "config.json").read_text(encoding="utf-8"))
        return ModelInfo(name=name, folder=models[name], config=config, record=record)
    found = ARCHITECTURES.get(name) or backbone_info(name)
    if found is None:
        hint = did_you_mean(name, list_zoo())
        raise ValueError(
            f"the zoo has no {name!r}{hint}; `list_models`, `list_architectures` and "
            "`list_backbones` list what there is"
        )
    return found


def license_notice(name: str) -> str:
    """The sentence to show before weights are downloaded whose license forbids commercial use.

    Args:
        name: A backbone, an architecture or a model.

    Returns:
        The sentence; empty if the license allows commercial use, and also if the zoo does not know the name.
    """
    info = _weights_of(name)
    return "" if info is None or info.commercial_use else forbids_commercial_use(info.name, info.license)


def models_table(names: Iterable[str] | None = None) -> str:
    """A Markdown table of entries of the zoo, aligned so that it reads well as plain text too.

    Args:
        names: As `list_zoo` gives them; None is all.
    """
    rows = [_COLUMNS, *(_row(name) for name in (list_zoo() if names is None else names))]
    head, *body = text_table(rows, between=" | ")
    rule = " | ".join("-" * len(cell) for cell in head.split(" | "))
    return "".join(f"| {line} |\n" for line in (head, rule, *body))


def _row(name: str) -> tuple[str, ...]:
    info = model_info(name)
    if isinstance(info, ModelInfo):
        return (name, "model", f"- @ {_times(info.config.image_size)}", info.license, "yes", "in the package")
    kind, weights = ("backbone", info) if isinstance(info, BackboneInfo) else ("architecture", BACKBONES[info.backbone])
    where = f"{_times(weights.grid)} @ {_times(weights.image_size)}"
    use = "yes" if weights.commercial_use else "no"
    return (name, kind, where, weights.license, use, weights.repository or "yours")


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _weights_of(name: str) -> BackboneInfo | None:
    """The published weights that a backbone or an architecture starts from; None if the zoo knows none."""
    return backbone_info(ARCHITECTURES[name].backbone if name in ARCHITECTURES else name)
