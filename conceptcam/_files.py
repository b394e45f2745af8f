"""Files that are written completely or not at all, and JSON, read and written."""

import contextlib
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

_LONG_NAME = 100  # bytes; file systems take 255, and names grow by endings and marks


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[Path]:
    """A hidden path beside `path` to write to, which takes the place of `path` at the end.

    Until then a file that is there stays as it is. If writing fails, the hidden file is removed. The folder is made.

    Args:
        path: Of the file.
        durable: Whether the file must be found after a power cut, which takes longer.

    Raises:
        OSError: If the file cannot be written; it names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    try:
        yield scratch
        if durable:
            _sync(scratch, os.O_RDWR)
        os.replace(scratch, path)
        if durable and os.name == "posix":  # other systems cannot open a folder
            _sync(path.parent, os.O_RDONLY)
    except BaseException as error:
        with contextlib.suppress(OSError):  # of a disk that has turned read-only
            scratch.unlink(missing_ok=True)
        if isinstance(error, OSError):
            _name(error, path, scratch)
        raise


@contextlib.contextmanager
def named_in_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Within it, an error of the system that names no file, as of a disk that is full, names this one."""
    try:
        yield
    except OSError as error:
        _name(error, path)
        raise


def _name(error: OSError, path: str | os.PathLike[str], scratch: Path | None = None) -> None:
    if error.errno is not None and error.filename in (None, scratch, str(scratch)):
        error.filename = os.fspath(path)


def _sync(path: Path, flags: int) -> None:
    """Force a file, or the names in a folder, to the disk."""
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_names(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """What to call what is written about each file: a short name without ending, of which no two are alike.

    It is the file's own name or, where several have one name, its path with `-` for `/`. One that is long or still
    not unique, in a folder that ignores case too, ends with eight digits of the SHA-256 of the path.
    """
    pure = [PurePath(path) for path in paths]
    names = [path.stem for path in pure]
    if len({name.casefold() for name in names}) < len(names):
        names = ["-".join(path.with_suffix("").parts).lstrip("/-") for path in pure]
    counts, seen = Counter(name.casefold() for name in names), set[PurePath]()
    for number, (name, path) in enumerate(zip(names, pure, strict=True)):
        if counts[name.casefold()] > 1 or len(name.encode()) > _LONG_NAME:
            known = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
            again = f"-{number}" if path in seen else ""  # one file, asked for twice
            seen.add(path)
            names[number] = f"{name.encode()[: _LONG_NAME - 20].decode(errors='ignore')}-{known}{again}"
    return names


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, completely or not at all."""
    with atomic_write(path) as scratch:
        scratch.write_text(text, encoding="utf-8", newline="")


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as JSON, completely or not at all; a number that is not finite becomes null."""
    write_text(path, as_json(content))


def as_json(content: Mapping[str, Any]) -> str:
    """A mapping as the text of a JSON file; values that JSON does not know are written as texts."""
    return json.dumps(nan_to_null(dict(content)), indent=2, ensure_ascii=False, default=str) + "\n"


def parse_json(text: str | bytes, source: str) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: If it is no JSON in UTF-8, is nested too deeply, or an object in it holds one name twice, of which
            all but the last would be lost. The message begins with `source`.
    """
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _unrepeated(pairs, source))
    except RecursionError as error:
        raise ValueError(f"{source} is nested too deeply") from error
    except _Repeated:
        raise
    except ValueError as error:
        raise ValueError(f"{source} is no JSON: {error}") from error


class _Repeated(ValueError):
    """An object in JSON that holds one name twice."""


def _unrepeated(pairs: list[tuple[str, Any]], source: str) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = sorted({name for name in names if names.count(name) > 1} if len(names) < 100 else set())
        raise _Repeated(f"{source} holds a name twice in one object {repeated[:3]}; keep one of them")
    return content


def nan_to_null(value: Any) -> Any:
    """The value with None for every number that is not finite, as JSON wants it."""
    if isinstance(value, Mapping):
        return {key: nan_to_null(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
