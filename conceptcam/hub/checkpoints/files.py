"""What a checkpoint file holds, found out without running anything in it."""

import argparse
import logging
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from conceptcam.hub.weights import read_tensors

_logger = logging.getLogger(__name__)

# MAE's training script saves its command line; the class holds values and runs nothing.
_ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [argparse.Namespace]

# What torch raises over a damaged pickle, found by damaging some.
_DAMAGED = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    LookupError,
    AssertionError,
    AttributeError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
    struct.error,
)

_BROKEN_ARCHIVE = (zipfile.BadZipFile, zlib.error, OSError, *_DAMAGED)

_DEEPEST = 8
# A state dict of a thousand tensors takes about 40,000 instructions to build; a million take a few seconds.
_MOST_INSTRUCTIONS = 1_000_000
_MOST_ENTRIES = 200_000
_CONTAINERS = ("model", "state_dict", "model_state_dict", "teacher")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint file holds: tensors by name, perhaps in dictionaries within dictionaries.

    The first bytes say whether a file is safetensors or a pickle. Of a pickle only tensors, plain
    Python values and `argparse.Namespace` are read, so that no code in the file can run, and no more of them than a
    checkpoint can hold. Tensors are on the CPU, in the type that the file has. The checksums of a PyTorch archive
    are compared, which takes about a second per GB; a legacy PyTorch file has none.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty, damaged, no checkpoint, or a pickle that asks for anything else; the message
            names what it asks for.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file {path}")
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise ValueError(f"{path} is empty; download it again")
    if start.startswith(b"PK\x03\x04") or (start.startswith(b"\x80") and start[8:9] != b"{"):
        # torch.load goes by the name, and would read it as what it is not.
        if path.suffix == ".safetensors":
            raise ValueError(f"{path} is a pickle under the name of a safetensors file; rename it to .pth")
        return _read_pickle(path, zipped=start.startswith(b"PK"))
    # A safetensors file starts with the length of its header in 8 bytes, then the header, in JSON.
    if start[8:9] == b"{" or (path.suffix == ".safetensors" and not _is_text(start)):
        return dict(read_tensors(path)[0])
    raise ValueError(f"{path} is neither a safetensors file nor a PyTorch checkpoint{_guess(start)}")


def tensors_within(
    content: Mapping[str, Any], source: str, containers: tuple[str, ...] = _CONTAINERS
) -> dict[str, Tensor]:
    """The tensors of what a file holds, by name, taken out of `{"model": {...}, "epoch": ...}` and the like.

    Dictionaries beside the weights, such as the state of an optimizer, are left alone; dictionaries of weights
    within the weights are joined to one, with dots.

    Raises:
        ValueError: If there is more than one place to take them from, or there are no tensors.
    """
    depth = 0
    while found := [name for name in containers if isinstance(content.get(name), Mapping)]:
        if len(found) > 1:
            raise ValueError(f"{source} holds several sets of weights, {found}; save the one you mean alone")
        content, depth = content[found[0]], depth + 1
        _check_depth(depth, source)
    tensors = dict(_flat(content, source, iter(range(_MOST_ENTRIES))))
    if not tensors:
        raise ValueError(f"{source} holds no tensors, but {[str(name) for name in content][:5]}")
    if odd := [name for name, value in tensors.items() if value.layout != torch.strided or value.is_meta]:
        raise ValueError(f"{source} holds tensors that are sparse or have no values: {odd[:3]}")
    if odd := [name for name, value in tensors.items() if value.nbytes > value.untyped_storage().nbytes()]:
        raise ValueError(f"{source} holds tensors that claim more numbers than the file has: {odd[:3]}")
    return tensors


def _flat(
    content: Mapping[Any, Any], source: str, budget: Iterator[int], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, Tensor]]:
    _check_depth(depth, source)
    for name, value in content.items():
        # One dictionary may stand in many places, so that a small file holds more entries than can be counted.
        if next(budget, None) is None:
            raise ValueError(f"{source} holds more than {_MOST_ENTRIES:,} entries, which no set of weights has")
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value.detach()
        elif isinstance(value, Mapping):
            yield from _flat(value, source, budget, f"{prefix}{name}.", depth + 1)


def _check_depth(depth: int, source: str) -> None:
    """Refuse a dictionary that holds itself, which a pickle may, as well as one nested beyond reason."""
    if depth > _DEEPEST:
        raise ValueError(f"{source} holds dictionaries within dictionaries, more than {_DEEPEST} deep")


def _read_pickle(path: Path, *, zipped: bool) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of texts in a damaged pickle
        if zipped:
            _check_archive(path)
        else:
            _logger.info("%s is of PyTorch's old kind, which has no checksums: damage to numbers does not show", path)
            with path.open("rb") as file:
                _check_instructions(file, path)
    try:
        # torch warns of pickle protocols that it may not know; an error follows below if it does not.
        with warnings.catch_warnings(), torch.serialization.safe_globals(_ALLOWED):
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except _DAMAGED as error:
        if wants := _asked_for(error, path, zipped=zipped):
            raise ValueError(
                f"{path} is refused: beside tensors it asks for {wants}, which could run any code; nothing in it was "
                "run. Ask its authors for safetensors, or, if you trust them, load it yourself and save its weights"
            ) from error
        raise ValueError(f"{path} is a damaged or unknown kind of PyTorch checkpoint; download it again") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold weights by name, it holds a {type(content).__name__}")
    return dict(content)


def _check_archive(path: Path) -> None:
    """Refuse a zip archive that PyTorch did not write, or that is damaged, before anything of it is unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            foreign = _foreign(entries)
            if not foreign and sum(entry.file_size for entry in entries) > path.stat().st_size:
                foreign = "an archive that claims more bytes than it has"
            if foreign is None:
                for entry in entries:
                    if entry.filename.endswith(".pkl"):
                        with archive.open(entry) as file:
                            _check_instructions(file, path)
                if archive.testzip() is None:
                    return
    except _TooLong:
        raise
    except _BROKEN_ARCHIVE as error:
        raise ValueError(f"{path} is a damaged or unknown kind of PyTorch checkpoint; download it again") from error
    if foreign:
        raise ValueError(f"{path} is {foreign}")
    raise ValueError(f"{path} is a damaged PyTorch checkpoint, its checksums differ; download it again")


def _foreign(entries: list[zipfile.ZipInfo]) -> str | None:
    """What an archive is if it is no checkpoint, and what to do; None if it may be one."""
    names = [entry.filename for entry in entries]
    if any(name.endswith("constants.pkl") or "/code/" in name for name in names):
        return "TorchScript, a program; open it where you trust it with `torch.jit.load`, and save its `state_dict()`"
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive; make tensors of its arrays, and save them as safetensors"
    if not any(name.endswith("data.pkl") for name in names):
        return f"a zip archive of {names[:3]}, no PyTorch checkpoint; unpack it and give the file that is meant"
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        return "a compressed archive, which PyTorch does not read; unpack it, and save the weights with `torch.save`"
    return None


class _TooLong(ValueError):
    """A pickle with more instructions than a checkpoint needs."""


def _check_instructions(file: IO[bytes], path: Path) -> None:
    """Refuse pickles that take more instructions than weights need; they are counted, not followed."""
    count = 0
    try:
        for _ in range(5):  # a legacy file begins with as many pickles, the numbers follow them
            for _ in pickletools.genops(file):
                count += 1
                if count > _MOST_INSTRUCTIONS:
                    raise _TooLong(
                        f"{path} is refused: it takes more than {_MOST_INSTRUCTIONS:,} instructions to build, which no "
                        "set of weights does"
                    )
    except _TooLong:
        raise
    except (ValueError, struct.error, OverflowError, EOFError, MemoryError):
        return  # damaged, or no more pickles


def _asked_for(error: BaseException, path: Path, *, zipped: bool) -> str | None:
    """The class or function that a pickle was refused for, such as `posix.system`; None if it was not for one."""
    if not isinstance(error, pickle.UnpicklingError):
        return None
    if named := re.search(r"GLOBAL (\S+)", str(error)):
        return named[1]
    return None if zipped else _first_global(path)


def _first_global(path: Path) -> str | None:
    """The first class or function a pickle of any protocol names. Its instructions are listed, not followed."""
    strings: list[str] = []
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            for instruction, argument, _ in pickletools.genops(file):
                if instruction.name == "GLOBAL":
                    return str(argument).replace(" ", ".")
                if instruction.name == "STACK_GLOBAL":
                    return ".".join(strings[-2:])
                if isinstance(argument, str):
                    strings.append(argument)
    except (ValueError, struct.error, OverflowError, MemoryError):
        return None
    return None


def _is_text(start: bytes) -> bool:
    return not start.translate(None, delete=bytes(range(32, 127)) + b"\t\r\n")


def _guess(start: bytes) -> str:
    if start.startswith(b"version https://git-lfs"):
        return ", but a Git LFS pointer to one: fetch it with `git lfs pull`"
    if start.lstrip()[:1] == b"<":
        return ", but a web page: the download may have wanted a login or a confirmation"
    return ", but text" if _is_text(start) else ""
