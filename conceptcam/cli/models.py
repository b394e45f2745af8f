"""List what can be loaded by name.

Lists taught models that come with the package, architectures that become a model once concepts and tasks are named,
and backbones with published weights: grid, license, and where the weights come from. A full name shows everything
that is known of it. Nothing is downloaded.

Examples:
    conceptcam models
    conceptcam models "*vit*" --kind backbone --commercial
    conceptcam models rad_dino_vit_b14
"""

import argparse
import dataclasses
import math
import textwrap
from collections.abc import Mapping
from typing import Any

from conceptcam.cli.flags import add_flag
from conceptcam.cli.inputs import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `conceptcam models`."""
    parser.add_argument("pattern", nargs="?", default="*", metavar="NAME", help="a name, or a pattern such as '*vit*'")
    add_flag(parser, "kind", None, "only this kind", choices=("model", "architecture", "backbone"), metavar="KIND")
    add_flag(parser, "commercial", False, "only what may be used commercially")


def run(options: argparse.Namespace) -> None:
    """List what can be loaded by name, or show all that is known of one."""
    from conceptcam.hub.zoo import list_zoo, models_table

    if "*" not in options.pattern and "?" not in options.pattern:
        return _show(options.pattern)
    names = list_zoo(options.pattern, kind=options.kind, commercial_use=True if options.commercial else None)
    if not names:
        raise ValueError(f"nothing in the zoo matches {options.pattern!r} and these options")
    return show(models_table(names).rstrip())


def _show(name: str) -> None:
    from conceptcam.hub.zoo import license_notice, model_info

    try:
        info = model_info(name)
    except ValueError:
        if not _is_backbone(name):
            raise
        train = f"train one on it with `conceptcam train DATA --backbone {name}`"
        make = f"in Python make it with `create_backbone({name!r})`"
        return show(f"{name} is a backbone, not a model: {train}, or {make}")
    for field, text in _facts(info):
        show(textwrap.fill(f"{field:<22} {text}", width=110, subsequent_indent=" " * 23))
    return show(f"\nNote: {notice}.") if (notice := license_notice(name)) else None


def _is_backbone(name: str) -> bool:
    """Whether a backbone has that name that the zoo has no record of.

    Raises:
        ValueError: If the name is one of timm's, and timm has no such model.
    """
    from conceptcam.backbones import backbone_normalization, list_backbones  # torch takes a second to import

    if name.startswith("timm:"):
        backbone_normalization(name)
        return True
    return name in list_backbones()


def _facts(record: Any) -> list[tuple[str, str]]:
    """The fields of a record, those of records within it too, as texts."""
    facts: list[tuple[str, str]] = []
    for name, value in vars(record).items():
        facts += _facts(value) if dataclasses.is_dataclass(value) else [(name, _as_text(value))]
    return list(dict.fromkeys(facts))


def _as_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_as_text(one)}" for name, one in value.items()) or "-"
    if isinstance(value, tuple):
        return ", ".join(map(_as_text, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    return "-" if value is None or value == "" else str(value)
