"""Flags of commands: how one is made, those of a dataclass of options, and those that several commands have."""

import argparse
import functools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from conceptcam._checks import check_known

UNLIKE = "do not say which images are unlike those the model was trained on"
MODEL = "folder written by train, demo or save_pretrained, a name of `conceptcam models`, or organization/name"


def add_flag(
    parser: argparse.ArgumentParser, name: str, default: Any, help: str, *, at_least: int | None = None, **kind: Any
) -> None:
    """Add the flag of an option, whose default stands behind its help and says of what type its value is.

    Args:
        parser: Gets the flag.
        name: Of the option, such as `batch_size`.
        default: Its value without the flag. False makes a switch, and a mapping a flag that takes STAGE=N
            several times and gives pairs.
        help: What it is for, in a phrase.
        at_least: The smallest whole number it takes, 0 or 1.
        **kind: As `add_argument` takes.
    """
    if kind.pop("yes_no", False):
        parser.add_argument(f"--{name.replace('_', '-')}", action=argparse.BooleanOptionalAction, help=help)
        return
    kind = {"metavar": "NAME", "type": type(default) if isinstance(default, int | float) else str, **kind}
    if at_least is not None:
        kind["type"] = functools.partial(_whole_number, at_least=at_least)
    if "choices" in kind:
        kind["type"] = functools.partial(_choice, what=name.replace("_", " "), known=kind["choices"])
    shown = f" (default: {text})" if (text := _as_text(default)) else ""
    if isinstance(default, bool):
        kind = {"action": "store_true"}
    if isinstance(default, Mapping):
        kind |= {"action": "extend", "nargs": "+", "type": _stage_number}
        default = None
    parser.add_argument(f"--{name.replace('_', '-')}", default=default, help=help + shown, **kind)


def _choice(text: str, *, what: str, known: Sequence[str]) -> str:
    try:
        check_known(what, text, known)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _whole_number(text: str, *, at_least: int) -> int:
    """A whole number that is not too small."""
    if not text.isdecimal() or int(text) < at_least:
        bound = "above 0" if at_least else "0 or above"
        raise argparse.ArgumentTypeError(f"expected a whole number, {bound}, got {text!r}")
    return int(text)


def fraction(text: str) -> float:
    """A number between 0 and 1."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text!r}")
    return number


def _as_text(default: Any) -> str:
    """A default as one types it; empty if there is none."""
    if default is None or isinstance(default, bool):
        return ""
    if isinstance(default, Mapping):
        default = [f"{name}={number}" for name, number in default.items()]
    return " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)


def _stage_number(text: str) -> tuple[str, int]:
    """What STAGE=N says."""
    name, _, number = text.partition("=")
    if name not in ("concepts", "prototypes", "task") or not re.fullmatch(r"0*[1-9]\d*", number):
        raise argparse.ArgumentTypeError(f"expected concepts=N, prototypes=N or task=N, got {text!r}")
    return name, int(number)


def add_run_options(
    parser: argparse.ArgumentParser,
    defaults: Any = None,
    *,
    names: Collection[str] = (),
    leave_out: Collection[str] = (),
) -> None:
    """A flag for each option of a run.

    Args:
        parser: Gets the flags.
        defaults: The `RunOptions` that have the defaults; None takes `RunOptions()`.
        names: Options to give a flag; empty gives one to all that are meant to have one.
        leave_out: Options without a flag.
    """
    from conceptcam.runs.options import RunOptions  # torch takes a second to import

    defaults = RunOptions() if defaults is None else defaults
    for field in fields(defaults):
        kind = {key: value for key, value in field.metadata.items() if value or value == 0}
        if kind.pop("flag", True) and (field.name in names or not names) and field.name not in leave_out:
            add_flag(parser, field.name, getattr(defaults, field.name), **kind)


def add_images(parser: argparse.ArgumentParser) -> None:
    """Which images a command reads that need no labels."""
    text = "image files, DICOM among them, or folders of them"
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help=text)
    add_bit_depth(parser)


def add_bit_depth(parser: argparse.ArgumentParser) -> None:
    """How many bits the values of images use."""
    text = "bits that 16-bit images really use, such as 12 (default: all)"
    add_flag(parser, "bit_depth", None, text, type=int, metavar="N")


def add_preprocessing(parser: argparse.ArgumentParser) -> None:
    """Size and normalization of the images that a model takes; `preprocessing` reads them."""
    size = "size in pixels that images are resized to"
    add_flag(parser, "image_size", (224, 224), size, at_least=1, nargs=2, metavar=("H", "W"))
    for name in ("mean", "std"):
        text = f"{name} of each channel of images in [0, 1] (default: what the backbone expects)"
        add_flag(parser, name, None, text, type=float, nargs="+", metavar=name[0].upper())
    add_flag(parser, "grey", False, "let the model see grey images, of one channel")


def preprocessing(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a model's config that the flags of `add_preprocessing` give."""
    fields = {name: tuple(given) for name in ("image_size", "mean", "std") if (given := getattr(options, name))}
    return fields | ({"in_chans": 1} if options.grey else {})


def add_bottleneck(parser: argparse.ArgumentParser) -> None:
    """Which kind of bottleneck a new model has."""
    text = "what the task head reads: evidence from prototypes, or concepts"
    add_flag(parser, "bottleneck", "prototypes", text, choices=("prototypes", "concepts"))


def add_out(parser: argparse.ArgumentParser, *, figures: bool = False) -> None:
    """Which folder a command writes, and how many images it draws into it if it does."""
    if figures:
        add_flag(parser, "figures", 12, "images to draw", at_least=0, metavar="N")
    add_flag(parser, "out", None, "folder to write (default: a new one in runs/)", type=Path, metavar="DIR")
