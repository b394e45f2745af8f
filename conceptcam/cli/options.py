"""Flags of commands: those of a dataclass of options, those of several commands, and their table in the docs."""

import argparse
import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from conceptcam._checks import did_you_mean

MODEL = "folder written by train, demo or save_pretrained, a name of `conceptcam models`, or organization/name"

BOTTLENECK: dict[str, Any] = {
    "choices": ("prototypes", "concepts"),
    "default": "prototypes",
    "metavar": "NAME",
    "help": "what the task head reads: evidence from prototypes, or concepts (default: prototypes)",
}
"""The flag `--bottleneck`."""


def add_options(
    parser: argparse.ArgumentParser, defaults: Any, *, names: Collection[str] = (), leave_out: Collection[str] = ()
) -> None:
    """A flag for each option of a dataclass.

    Args:
        parser: Gets the flags.
        defaults: An instance, whose values are the defaults.
        names: Options to give a flag; empty gives one to all that are meant to have one.
        leave_out: Options without a flag.
    """
    for field in dataclasses.fields(defaults):
        metadata, default = field.metadata, getattr(defaults, field.name)
        if (names and field.name not in names) or field.name in leave_out or not metadata.get("flag", True):
            continue
        known = metadata.get("choices")
        more: dict[str, Any] = {"default": default, "help": _with_default(metadata["help"], default)}
        if isinstance(default, bool):
            more["action"] = "store_true"
        elif isinstance(default, Mapping):
            more |= {"action": _Named, "nargs": "+", "metavar": metadata["metavar"], "default": {}}
        elif known:
            more |= {"type": _one_of(field.name, known), "metavar": "NAME"}
        else:
            more |= {"type": _reader(default, metadata), "metavar": metadata.get("metavar") or "VALUE"}
        parser.add_argument(f"--{field.name.replace('_', '-')}", **more)


def _one_of(name: str, known: Sequence[str]) -> Callable[[str], str]:
    """Reads a value that is among the known ones; the error names those that are near."""

    def read(text: str) -> str:
        if text not in known:
            near = did_you_mean(text, known)
            raise argparse.ArgumentTypeError(f"unknown {name.replace('_', ' ')} {text!r}{near}; known: {list(known)}")
        return text

    return read


def given_options(kind: type, options: argparse.Namespace) -> dict[str, Any]:
    """What flags gave of the fields of a dataclass."""
    return {field.name: vars(options)[field.name] for field in dataclasses.fields(kind) if field.name in vars(options)}


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Which annotated images a command reads, and how."""
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with the annotations and images/")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images (default: DATA/images)")
    parser.add_argument(
        "--invalid-boxes", choices=("error", "skip"), default="error", metavar="NAME",
        help="what to do with a box that is empty or far outside its image: error refuses the file, skip leaves the "
        "box out (default: error)",
    )  # fmt: skip


def add_out(parser: argparse.ArgumentParser) -> None:
    """Which folder a command writes."""
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write (default: a new one in runs/)")


def add_figures(parser: argparse.ArgumentParser) -> None:
    """How many images a command draws."""
    parser.add_argument("--figures", type=count, default=12, metavar="N", help="images to draw (default: 12)")


def count(text: str, *, least: int = 0) -> int:
    """A whole number that is not too small."""
    if not text.isdecimal() or int(text) < least:
        bound = "above 0" if least else "0 or above"
        raise argparse.ArgumentTypeError(f"expected a whole number, {bound}, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """A whole number above 0."""
    return count(text, least=1)


def option_table(parser: argparse.ArgumentParser) -> str:
    """The flags of a command as a table of the docs."""
    rows = []
    for action in parser._actions:
        if action.option_strings and action.dest not in ("help", "verbose"):
            name = f"--{action.dest.replace('_', '-')}"
            value = action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar or ())
            known = ", ".join(f"`{one}`" for one in action.choices or ())
            text, _, default = (action.help or "").partition(" (default: ")
            text = text.replace("|", "\\|") + (f": {known}" if known else "")
            dots = " ..." if action.nargs == "+" else ""
            rows.append(f"| `{name}{f' {value}' if value else ''}{dots}` | {text} | {default.removesuffix(')')} |")
    return "\n".join(["| option | meaning | default |", "|---|---|---|", *rows])


class _Named(argparse.Action):
    """Reads STAGE=N, perhaps several times; the last of a stage counts."""

    def __call__(self, parser: Any, options: argparse.Namespace, values: Any, flag: str | None = None) -> None:
        for text in values:
            name, _, number = text.partition("=")
            if name not in ("concepts", "prototypes", "task") or not re.fullmatch(r"0*[1-9]\d*", number):
                parser.error(f"argument {flag}: expected concepts=N, prototypes=N or task=N, got {text!r}")
            setattr(options, self.dest, {**getattr(options, self.dest), name: int(number)})


def _reader(default: Any, metadata: Mapping[str, Any]) -> Any:
    least = metadata.get("at_least")
    if least is not None:
        return positive if least else count
    return type(default) if isinstance(default, int | float) else str


def _with_default(text: str, default: Any) -> str:
    if isinstance(default, Mapping):
        default = " ".join(f"{name}={number}" for name, number in default.items()) or None
    return text if default is None or default is False else f"{text} (default: {default})"
