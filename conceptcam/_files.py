"""Files written whole or not at all, and values as JSON wants them."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def nan_to_null(value: Any) -> Any:
    """The value with None for every number that is not finite, as JSON wants it."""
    if isinstance(value, Mapping):
        return {key: nan_to_null(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as JSON, whole or not at all; what is undefined is null."""
    write_text(path, as_json(content))


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all, and its folder if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def as_json(content: Mapping[str, Any]) -> str:
    """A mapping as the text of a JSON file; values that JSON does not know are written as texts."""
    return json.dumps(nan_to_null(dict(content)), indent=2, ensure_ascii=False, default=str) + "\n"
