"""Tensors in a safetensors file and in a module: all of them, or an error."""

import hashlib
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from conceptcam._checks import check_number, shorten
from conceptcam._files import parse_json

_Module = TypeVar("_Module", bound=nn.Module)

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Floating-point types that a model may have; all of its parts have one of them."""

# Types of a safetensors file, by its names for them.
_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64, "BOOL": torch.bool},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    **{"U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64},
}
_LONGEST_HEADER = 100_000_000  # bytes; as safetensors itself has it


def load_into(build: Callable[[], _Module], path: Path, *, sha256: str = "") -> _Module:
    """A module with the tensors of a file, built without first drawing the random weights they replace.

    The module is built on the meta device, where it takes neither time nor memory, and given the file's
    tensors, in the type the file has. A module that cannot be built so, or that keeps tensors in plain attributes
    or lists, is built as usual; the global random state stays as it was in both cases.

    Args:
        build: Makes the module; may be called twice.
        path: The safetensors file.
        sha256: What its SHA-256 must be; empty if that is not known.

    Raises:
        ValueError: If the file is no safetensors file or another than the SHA-256 says; if a tensor is missing, left
            over or of another shape or kind, where the message counts what matched and names the first that did not;
            if it holds numbers that are not finite, several floating-point types or one that no model computes in, or
            two values for one parameter of two names; or if the module has parameters that no file can hold.
    """
    weights, found = read_tensors(path)
    module = _built_on_meta(build)
    if module is not None:
        _check_fits(module, weights, path)
        _check_sha256(found, sha256, path)
        _assign(module, weights)
        _fill_buffers(module)
    if module is None or any(value.is_meta for value in _held(module)):
        with torch.random.fork_rng(devices=[]):
            module = build()
        if any(value.is_meta for value in _held(module)):
            raise ValueError(
                f"{type(module).__name__} takes tensors from one build to the next, as `functools.cache` does, and the "
                "first is without values here; make them anew in each build"
            )
        _check_fits(module, weights, path)
        _check_sha256(found, sha256, path)
        _copy(module, weights)
    _refuse_hidden(module)
    types = {value.dtype for value in module.state_dict().values() if value.is_floating_point()}
    # Buffers that are not saved follow the weights, as they did when the module was cast before it was saved.
    return module.to(types.pop()) if len(types) == 1 else module


def save_tensors(weights: Mapping[str, Tensor], path: Path, *, about: str | None = None) -> None:
    """Write a safetensors file: equal weights give equal bytes. Tied tensors are written twice.

    Args:
        weights: By their names.
        path: Of the file.
        about: A text that the file holds too; in its metadata, as `about`.

    Raises:
        OSError: If the disk is full or the file cannot be written.
    """
    try:
        path.touch()  # with the rights that any new file gets
        rights = path.stat().st_mode
        # Several entries of metadata would be written in any order.
        save_file(_separate(weights), path, metadata=None if about is None else {"about": about})
        path.chmod(rights)  # safetensors gives them to the owner alone
    except SafetensorError as error:
        raise OSError(str(error)) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a safetensors file, and the SHA-256 of the very bytes that they were made of, in hexadecimal.

    They are in memory of their own, which the file is read into once: whatever becomes of the file, they stay. For
    343 MB, that takes about 0.2 seconds and the SHA-256 another 0.25.

    Raises:
        ValueError: If it is no safetensors file, or a broken one.
    """
    digest, tensors = hashlib.sha256(), {}
    with path.open("rb") as file:
        try:
            start = file.read(8)
            header = file.read(min(int.from_bytes(start, "little"), _LONGEST_HEADER))
            digest.update(start + header)
            for name, value in _empty_tensors(parse_json(header, "its header"), path.stat().st_size - file.tell()):
                memory = memoryview(value.flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]  # a buffer
                if file.readinto(memory) != len(memory):
                    raise ValueError(f"it ends within {name!r}")
                digest.update(memory)
                tensors[name] = value
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path} is no readable safetensors file: {error}; if it was downloaded, remove {path.resolve()} and "
                "load again"
            ) from error
    return tensors, digest.hexdigest()


def _empty_tensors(header: Any, size: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a header describes, yet to be filled, in the order in which `size` bytes hold them.

    Raises:
        ValueError: If it does not describe all bytes, each once.
    """
    if not isinstance(header, dict):
        raise ValueError("its header holds no names")
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    end, found = 0, []
    for name, entry in sorted(entries, key=lambda pair: pair[1]["data_offsets"]):
        kind, shape, (begin, stop) = _DTYPES.get(entry["dtype"]), entry["shape"], entry["data_offsets"]
        if kind is None:
            raise ValueError(f"{name!r} is of the type {entry['dtype']}, which is not read")
        for number in (*shape, begin, stop):
            check_number(f"a number of {name!r}", number, 0, 2**50, whole=True)
        if begin != end or stop - begin != math.prod(shape) * kind.itemsize:
            raise ValueError(f"the bytes of {name!r} are not those of its shape")
        end = stop
        found.append((name, shape, kind))
    if end != size:
        raise ValueError(f"it describes {end} bytes and holds {size}")
    for name, shape, kind in found:
        yield name, torch.empty(shape, dtype=kind)


def refuse_not_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors that hold NaN or infinity: one pass over them, about 0.02 seconds for 343 MB.

    Raises:
        ValueError: Naming the first ones.
    """
    # The least and the largest are NaN if any number is.
    broken = [
        name
        for name, value in tensors.items()
        if value.is_floating_point() and value.numel() and not torch.stack(value.aminmax()).isfinite().all()
    ]
    if broken:
        raise ValueError(f"{source} holds numbers that are not finite, in {len(broken)} tensors: {broken[:3]}")


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def misfit(
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    left_over: Collection[str],
    fits: Callable[[str, Tensor, Tensor], bool] | None = None,
) -> str:
    """What keeps tensors from being all that are wanted: counts and the first names. Empty if nothing does.

    Args:
        found: Tensors by name.
        wanted: Those that there should be, of which shape and kind count.
        left_over: Names of tensors that have no place.
        fits: Whether, for a name, a tensor found may stand for one wanted; by default `is_alike`.
    """
    missing = sorted(wanted.keys() - found.keys())
    unlike = [
        f"{name} {_kind(found[name])} for {_kind(wanted[name])}"
        for name in sorted(wanted.keys() & found.keys())
        if not (fits(name, found[name], wanted[name]) if fits else is_alike(found[name], wanted[name]))
    ]
    if not (missing or left_over or unlike):
        return ""
    matched = len(wanted) - len(missing) - len(unlike)
    return (
        f"{matched} of {len(wanted)} tensors match; {len(missing)} missing {missing[:3]}, {len(left_over)} left over "
        f"{sorted(left_over)[:3]}, {len(unlike)} of another shape or kind {unlike[:3]}"
    )


def is_alike(found: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors have one shape and one kind: half precision for single is the same, whole numbers are not."""
    return found.shape == wanted.shape and found.is_floating_point() == wanted.is_floating_point()


def _kind(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{tuple(tensor.shape)}{kind}"


def _check_sha256(found: str, wanted: str, path: Path) -> None:
    if wanted and found != wanted:
        raise ValueError(
            f"{path} is not the file that its config was saved with: the SHA-256 differs; save the model anew with "
            f"`save_pretrained` or, if it was downloaded, remove {path.resolve()} and load again"
        )


def _check_fits(module: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Check that the tensors of a file are those of a module, and such that can be computed with."""
    wanted = module.state_dict()
    if what := misfit(weights, wanted, weights.keys() - wanted.keys()):
        raise ValueError(f"{path} does not fit: {what}")
    kinds = {value.dtype: name for name, value in weights.items() if value.is_floating_point()}
    if len(kinds) > 1 or not kinds.keys() <= {*DTYPES}:
        found = shorten(sorted(f"{str(dtype).removeprefix('torch.')} ({name})" for dtype, name in kinds.items()))
        raise ValueError(f"{path} holds {found}; a model has one type: float32, float16, bfloat16 or float64")
    refuse_not_finite(weights, str(path))
    for first, *others in _tied(module):
        if different := [other for other in others if not _equal(weights[first], weights[other])]:
            raise ValueError(
                f"{path} holds different values for {first!r} and {different[0]!r}, which are one parameter of this "
                "model under two names; which of them it should have cannot be known"
            )


def _tied(module: nn.Module) -> list[list[str]]:
    """All names of each parameter, in the order of the module."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return list(names.values())


def _equal(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first.double(), second.double(), rtol=0, atol=0, equal_nan=True)


def _built_on_meta(build: Callable[[], _Module]) -> _Module | None:
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            # Of a module that reads a file of its own while it is built: what it read is given to it anew.
            warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")
            return build()
    except (NotImplementedError, RuntimeError, TypeError):
        return None  # it reads values while it is built, and meta has none; what else is wrong shows without meta


def _assign(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Make the tensors the module's own, without copying; what was one parameter under two names stays one."""
    names = _tied(module)  # assigning parts them
    module.load_state_dict(weights, assign=True)
    for first, *others in names:
        for other in others:
            owner, _, leaf = other.rpartition(".")
            setattr(module.get_submodule(owner), leaf, module.get_parameter(first))


def _fill_buffers(module: nn.Module) -> None:
    """Compute the buffers that are no part of a file, where a module says how (timm's do)."""
    for part in module.modules():
        empty = {name for name, buffer in part.named_buffers(recurse=False) if buffer.is_meta}
        compute = getattr(part, "init_non_persistent_buffers", None)
        if empty and compute is not None:
            for name in empty:
                setattr(part, name, torch.empty_like(getattr(part, name), device="cpu"))
            compute()


def _copy(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put the numbers into the module's own tensors, which plain lists may hold too, in the types of the file."""
    for name, value in module.state_dict(keep_vars=True).items():
        value.data = value.data.to(weights[name].dtype)
    module.load_state_dict(weights)


def _refuse_hidden(module: nn.Module) -> None:
    """Refuse a module with parameters that are not its own to torch: no file has them, so they would stay random."""
    known = {id(parameter) for parameter in module.parameters()}
    hidden = [value for value in _held(module) if isinstance(value, nn.Parameter) and id(value) not in known]
    if hidden:
        raise ValueError(
            f"{type(module).__name__} keeps {len(hidden)} parameters in plain lists or dictionaries, the first of "
            f"shape {tuple(hidden[0].shape)}; they are neither saved nor loaded: use nn.ModuleList or nn.ParameterList"
        )


def _held(module: nn.Module) -> Iterator[Tensor]:
    """The tensors of a module, those in plain attributes, lists and dictionaries included."""
    waiting: list[object] = [module]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, nn.Module):
            waiting += vars(value).values()
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value


def _separate(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each with memory of its own: safetensors refuses tied ones, of which one is then a copy."""
    separate: dict[str, Tensor] = {}
    places: set[int] = set()
    for key, value in weights.items():
        value = value.detach().contiguous()
        place = value.untyped_storage().data_ptr()
        separate[key] = value.clone() if place in places else value
        places.add(place)
    return separate
