"""Tensors in a safetensors file and in a module: all of them, or an error."""

import hashlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)


def load_tensors(module: nn.Module, path: Path, *, may_hold: Collection[str] = ()) -> None:
    """Fill a module with the tensors of a safetensors file that fit it exactly.

    Args:
        module: What to fill; untouched if anything does not fit.
        path: The safetensors file.
        may_hold: Names the file may hold beside the module's own, such as those of a classifier that
            was cut off.

    Raises:
        ValueError: If the file is no safetensors file, or a tensor is missing, left over or of another
            shape or kind. The message counts what matched and names the first that did not.
    """
    module.load_state_dict(_fitting(module, path, may_hold))


def build_filled(build: Callable[[], _Module], path: Path) -> _Module:
    """A module with the tensors of a file, built without first drawing the random weights they replace.

    The module is built on the meta device, where it takes neither time nor memory, and given the file's
    tensors, in the type the file has. A module that cannot be built so is built as usual; the global random
    state stays as it was in both cases.

    Args:
        build: Makes the module; may be called twice.
        path: The safetensors file, which must fit exactly, as for `load_tensors`.

    Raises:
        ValueError: As `load_tensors`.
    """
    module = _built_on_meta(build)
    if module is not None:
        _assign(module, _fitting(module, path))
        _fill_buffers(module)
    if module is None or _is_partly_meta(module):
        with torch.random.fork_rng(devices=[]):
            module = build()
        _assign(module, _fitting(module, path))
    types = {value.dtype for value in module.state_dict().values() if value.is_floating_point()}
    # Buffers that are not saved follow the weights, as they did when the module was cast before it was saved.
    return module.to(types.pop()) if len(types) == 1 else module


def save_tensors(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file: equal weights give equal bytes. Tied tensors are written twice.

    Raises:
        OSError: If the disk is full or the file cannot be written.
    """
    try:
        save_file(_separate(weights), path)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: If it is none, or a broken one.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}") from error


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fitting(module: nn.Module, path: Path, may_hold: Collection[str] = ()) -> dict[str, Tensor]:
    """The tensors of the file that the module wants, if those are all and fit."""
    weights, wanted = read_tensors(path), module.state_dict()
    missing = sorted(wanted.keys() - weights.keys())
    unexpected = sorted(weights.keys() - wanted.keys() - set(may_hold))
    common = sorted(wanted.keys() & weights.keys())
    reshaped = [
        f"{key} {tuple(weights[key].shape)} for {tuple(wanted[key].shape)}"
        for key in common
        if wanted[key].shape != weights[key].shape
    ]
    # Half precision for single is the same kind of number; whole numbers for real ones are not.
    retyped = [
        f"{key} {weights[key].dtype} for {wanted[key].dtype}"
        for key in common
        if weights[key].is_floating_point() != wanted[key].is_floating_point()
    ]
    if missing or unexpected or reshaped or retyped:
        matched = len(wanted) - len(missing) - len(reshaped)
        raise ValueError(
            f"{path} does not fit: {matched} of {len(wanted)} tensors match; {len(missing)} missing "
            f"{missing[:3]}, {len(unexpected)} left over {unexpected[:3]}, {len(reshaped)} of another shape "
            f"{reshaped[:3]}, {len(retyped)} of another type {retyped[:3]}"
        )
    return {key: weights[key] for key in wanted}


def _built_on_meta(build: Callable[[], _Module]) -> _Module | None:
    try:
        with torch.device("meta"):
            return build()
    except (NotImplementedError, RuntimeError, TypeError):
        return None  # it reads values while it is built, and meta has none; what else is wrong shows without meta


def _assign(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Make the tensors the module's own, without copying; what was one parameter under two names stays one."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    module.load_state_dict(weights, assign=True)
    for first, *others in names.values():
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


def _is_partly_meta(module: nn.Module) -> bool:
    """Whether anything is still without values: a parameter, a buffer, or a tensor kept as a plain attribute."""
    held = [value for part in module.modules() for value in vars(part).values()]
    return any(
        isinstance(value, Tensor) and value.is_meta for value in (*module.parameters(), *module.buffers(), *held)
    )


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
