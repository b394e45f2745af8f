"""What can be loaded by name: backbones, recipes, models in the package; whence, how normalized, under which licence.

Records only: nothing here imports a network or touches the Hub.
"""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from conceptcam._checks import did_you_mean
from conceptcam.config import ConceptConfig, TrainingRecord, from_json
from conceptcam.hub.architectures import RECIPES, ModelRecipe
from conceptcam.hub.published_backbones import BACKBONES, BackboneInfo, backbone_info, forbids_commercial_use

Kind = Literal["model", "recipe", "backbone"]

MODELS = Path(__file__).parent / "bundled"
"""Folder of the models that come with the package."""


@dataclass(frozen=True, kw_only=True)
class BundledModel:
    """A taught model that comes with the package.

    Attributes:
        name: What `ConceptModel.from_pretrained` takes.
        folder: Where it is.
        config: What it is.
        record: What it has been taught.
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


def list_models(
    pattern: str = "*",
    *,
    kind: Kind | None = None,
    commercial_use: bool | None = None,
    downloadable: bool | None = None,
) -> list[str]:
    """Names of what the zoo has: models of the package, then recipes, then backbones.

    Args:
        pattern: What the name looks like, with `*` for anything, as for files.
        kind: `"model"`: taught concept models. `"recipe"`: architectures for your names. `"backbone"`: image models.
        commercial_use: Whether the licence of the weights, of a recipe its backbone's, allows commercial use.
        downloadable: Whether a program can get the weights, from the package or from the Hub.

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind is not None and kind not in get_args(Kind):
        raise ValueError(f"unknown kind {kind!r}; known: {list(get_args(Kind))}")
    names = {"model": bundled_models(), "recipe": RECIPES, "backbone": BACKBONES}
    found = [name for each in names if kind in (None, each) for name in fnmatch.filter(names[each], pattern)]
    if commercial_use is not None:
        found = [name for name in found if _allows_commercial_use(name) == commercial_use]
    if downloadable is not None:
        found = [name for name in found if _is_downloadable(name) == downloadable]
    return found


def model_info(name: str) -> BundledModel | ModelRecipe | BackboneInfo:
    """The record of anything in the zoo.

    Raises:
        ValueError: If nothing has that name.
    """
    if name in (models := bundled_models()):
        config, record = from_json((models[name] / "config.json").read_text(encoding="utf-8"))
        return BundledModel(name=name, folder=models[name], config=config, record=record)
    found = RECIPES.get(name) or backbone_info(name)
    if found is None:
        raise ValueError(
            f"the zoo has no {name!r}{did_you_mean(name, list_models())}; `list_models()` says what it has"
        )
    return found


def license_notice(name: str) -> str:
    """The sentence to show before weights are downloaded whose licence forbids commercial use.

    Args:
        name: A backbone, recipe or model.

    Returns:
        The sentence; empty if the licence allows commercial use, and also if the zoo does not know the name.
    """
    record = _weights_of(name)
    return "" if record is None or record.commercial_use else forbids_commercial_use(record.name, record.license)


def models_table(names: Iterable[str] | None = None) -> str:
    """A Markdown table of what the zoo has, aligned so that it reads well as plain text too.

    Args:
        names: As `list_models` gives them; None is all.
    """
    rows = [_COLUMNS, *(_row(name) for name in (list_models() if names is None else names))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    rows.insert(1, tuple("-" * width for width in widths))
    return "".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |\n" for row in rows
    )


_COLUMNS = ("name", "kind", "grid @ size", "licence", "commercial use", "weights")


def _row(name: str) -> tuple[str, ...]:
    info = model_info(name)
    if isinstance(info, BundledModel):
        return (name, "model", f"- @ {_times(info.config.image_size)}", info.license, "yes", "in the package")
    record = info if isinstance(info, BackboneInfo) else BACKBONES[info.backbone]
    where = f"{_times(record.grid)} @ {_times(record.image_size)}"
    kind = "backbone" if info is record else "recipe"
    return (name, kind, where, record.license, "yes" if record.commercial_use else "no", record.repository or "yours")


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _weights_of(name: str) -> BackboneInfo | None:
    """The record of the published weights that a backbone or recipe starts from."""
    return backbone_info(RECIPES[name].backbone if name in RECIPES else name)


def _allows_commercial_use(name: str) -> bool:
    record = _weights_of(name)
    return record is None or record.commercial_use


def _is_downloadable(name: str) -> bool:
    record = _weights_of(name)
    return record is None or record.downloadable
