"""Tensors and config, to and from a folder. This file knows tensors, not models."""

import dataclasses
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from conceptcam.config import ConceptConfig, ModelRecord, from_json, to_json

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_SCRATCH = ".saving-"
_SAVED = ".saved"


def load_tensors(module: nn.Module, path: Path, *, may_hold: Collection[str] = ()) -> None:
    """Fill a module with the tensors of a safetensors file that fit it exactly.

    Args:
        module: What to fill; untouched if anything does not fit.
        path: The safetensors file.
        may_hold: Names the file may hold beside the module's own, such as those of a classifier that
            was cut off.

    Raises:
        ValueError: If the file is no safetensors file, or a tensor is missing, left over or of another
            shape. The message counts what matched and names the first that did not.
    """
    weights, wanted = _read_file(path), module.state_dict()
    missing = sorted(wanted.keys() - weights.keys())
    unexpected = sorted(weights.keys() - wanted.keys() - set(may_hold))
    reshaped = sorted(
        f"{key} {tuple(weights[key].shape)} for {tuple(wanted[key].shape)}"
        for key in wanted.keys() & weights.keys()
        if wanted[key].shape != weights[key].shape
    )
    if missing or unexpected or reshaped:
        matched = len(wanted) - len(missing) - len(reshaped)
        raise ValueError(
            f"{path} does not fit: {matched} of {len(wanted)} tensors match; {len(missing)} missing "
            f"{missing[:3]}, {len(unexpected)} left over {unexpected[:3]}, {len(reshaped)} of another shape "
            f"{reshaped[:3]}"
        )
    module.load_state_dict({key: weights[key] for key in wanted})


def save_folder(folder: Path, config: ConceptConfig, record: ModelRecord, weights: Mapping[str, Tensor]) -> None:
    """Write `config.json` and `model.safetensors`, making the folder if needed.

    Both files are written whole, beside their places, before either is moved there: a run that is killed or
    out of disk leaves a whole model, the one before or this one. The config records the SHA-256 of the weights.

    Raises:
        OSError: If the disk is full or the folder cannot be written; the message names the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _settle(folder)
    for left_by_a_killed_run in folder.glob(f"{_SCRATCH}*"):
        shutil.rmtree(left_by_a_killed_run)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_SCRATCH) as scratch:
        whole = Path(scratch, "whole")
        weights_file, config_file = whole / WEIGHTS_FILE, whole / CONFIG_FILE
        try:
            whole.mkdir()
            save_file(_separate(weights), weights_file)
            record = dataclasses.replace(record, weights_sha256=sha256(weights_file))
            config_file.write_text(to_json(config, record), encoding="utf-8")
        except (OSError, SafetensorError) as error:
            raise OSError(f"could not save the model to {folder}, which is left as it was: {error}") from error
        # One rename takes the pair from not saved to saved: two could leave new weights with an old config.
        os.rename(whole, folder / _SAVED)
    _settle(folder)


def read_folder(folder: Path) -> tuple[ConceptConfig, ModelRecord, Path]:
    """The config, the record and the weights file of a model folder.

    Raises:
        FileNotFoundError: If the folder, its config or its weights are not there.
        ValueError: If the config cannot be read by this version of conceptcam.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no model folder {folder}")
    config_file, weights_file = _find(folder, CONFIG_FILE), _find(folder, WEIGHTS_FILE)
    if missing := [file.name for file in (config_file, weights_file) if not file.is_file()]:
        raise FileNotFoundError(f"{folder} holds no {' and no '.join(missing)}; was it written by `save_pretrained`?")
    try:
        config, record = from_json(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return config, record, weights_file


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


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _settle(folder: Path) -> None:
    """Move the files of a finished save to their places."""
    saved = folder / _SAVED
    if not saved.is_dir():
        return
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        if (saved / name).is_file():
            os.replace(saved / name, folder / name)
    saved.rmdir()


def _find(folder: Path, name: str) -> Path:
    """Where a file of the last finished save is: a run killed while settling leaves some in `_SAVED`."""
    return folder / _SAVED / name if (folder / _SAVED / name).is_file() else folder / name


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}") from error
