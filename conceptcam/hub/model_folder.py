"""A model as a folder: config, record, weights and card, whole or not at all."""

import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from conceptcam.config import ConceptConfig, TrainingRecord, from_json, to_json
from conceptcam.hub.card import is_generated, model_card
from conceptcam.hub.weights import save_tensors, sha256

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
_SCRATCH = ".saving-"
_SAVED = ".saved"


def save_folder(
    folder: Path,
    config: ConceptConfig,
    record: TrainingRecord,
    weights: Mapping[str, Tensor],
    *,
    card: str | None = None,
    title: str = "",
) -> None:
    """Write `config.json`, `model.safetensors` and the card, making the folder if needed.

    All are written whole, beside their places, before one is moved there: a run that is killed or out of disk
    leaves a whole model, the one before or this one. The config records the SHA-256 of the weights.

    Args:
        folder: Where to write.
        config: What the model is.
        record: What it has been taught.
        weights: Its tensors.
        card: Text of the card; None generates one, unless the folder holds one that was written by hand.
        title: Title of a generated card; by default the folder's name.

    Raises:
        OSError: If the disk is full or the folder cannot be written; the message names the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _settle(folder)
        for left_by_a_killed_run in folder.glob(f"{_SCRATCH}*"):
            shutil.rmtree(left_by_a_killed_run)
        with tempfile.TemporaryDirectory(dir=folder, prefix=_SCRATCH) as scratch:
            whole = Path(scratch, "whole")
            whole.mkdir()
            save_tensors(weights, whole / WEIGHTS_FILE)
            record = dataclasses.replace(record, weights_sha256=sha256(whole / WEIGHTS_FILE))
            (whole / CONFIG_FILE).write_text(to_json(config, record), encoding="utf-8")
            if card is not None or not is_hand_written(folder / CARD_FILE):
                if card is None:
                    card = model_card(config, record, title=title or folder.resolve().name)
                (whole / CARD_FILE).write_text(card, encoding="utf-8")
            # One rename takes the pair from not saved to saved: two could leave new weights with an old config.
            os.rename(whole, folder / _SAVED)
    except OSError as error:
        raise OSError(
            f"could not save the model to {folder}, which is left as it was: {error}. Make room there or change its "
            "rights, and save again"
        ) from error
    _settle(folder)


def read_folder(folder: Path) -> tuple[ConceptConfig, TrainingRecord, Path]:
    """The config, the record and the weights file of a model folder.

    Raises:
        FileNotFoundError: If the folder, its config or its weights are not there.
        ValueError: If the config cannot be read by this version of conceptcam, or a file is a link to elsewhere.
    """
    if folder.is_file():
        raise FileNotFoundError(_no_folder(folder))
    if not folder.is_dir():
        raise FileNotFoundError(f"no model folder {folder}")
    config_file, weights_file = _find(folder, CONFIG_FILE), _find(folder, WEIGHTS_FILE)
    if missing := [file.name for file in (config_file, weights_file) if not file.is_file()]:
        raise FileNotFoundError(f"{folder} holds no {' and no '.join(missing)}; was it written by `save_pretrained`?")
    for file in (config_file, weights_file):
        if not any(file.resolve().is_relative_to(home) for home in _homes(folder)):
            remedy = f"remove {_cached(folder)} and load again" if _cached(folder) else "put the file itself there"
            raise ValueError(f"{file} is a link out of its folder, to {file.resolve()}; {remedy}")
    try:
        config, record = from_json(config_file.read_bytes().decode("utf-8"))
    except ValueError as error:
        remedy = f"; if the download was damaged, remove {config_file.resolve()} and load again"
        raise ValueError(f"{folder}: {error}{remedy if _cached(folder) else ''}") from error
    return config, record, weights_file


def known_sha256(weights: Path, record: TrainingRecord | None = None) -> str:
    """The SHA-256 that a weights file must have: as its record says, or the Hub; empty if neither does."""
    # In the client's cache, a large file has the name that the Hub gives it, its SHA-256.
    blob = weights.resolve()
    by_hub = blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name) is not None
    return (record.weights_sha256 if record else "") or (blob.name if by_hub else "")


def _no_folder(file: Path) -> str:
    """What to pass in place of a file."""
    said = f"{file} is a file; a model is the folder of its files"
    if (file.parent / CONFIG_FILE).is_file():
        return f"{said}: pass {str(file.parent)!r}"
    return (
        f"{said}, and no {CONFIG_FILE} lies beside this one; a backbone starts from it with `create_backbone(name, "
        "weights=...)`, and `conceptcam convert` makes a folder of a whole model"
    )


def is_hand_written(card: Path) -> bool:
    """Whether a card is there that was not generated, so that it must not be overwritten."""
    # Those that were generated are UTF-8; what people write need not be.
    return card.is_file() and not is_generated(card.read_text(encoding="utf-8", errors="replace"))


def _homes(folder: Path) -> tuple[Path, ...]:
    """Where the files of a folder may be: in it, or in the store of the client's cache if it lies there."""
    cached = _cached(folder)
    return (folder.resolve(), cached / "blobs") if cached else (folder.resolve(),)


def _cached(folder: Path) -> Path | None:
    """What the client's cache keeps of a repository, if a folder is one of its snapshots."""
    repository = folder.resolve().parent.parent
    return repository if folder.resolve().parent.name == "snapshots" and (repository / "blobs").is_dir() else None


def _settle(folder: Path) -> None:
    """Move the files of a finished save to their places."""
    saved = folder / _SAVED
    if not saved.is_dir():
        return
    for name in (CARD_FILE, WEIGHTS_FILE, CONFIG_FILE):
        if (saved / name).is_file():
            os.replace(saved / name, folder / name)
    saved.rmdir()


def _find(folder: Path, name: str) -> Path:
    """Where a file of the last finished save is: a run killed while settling leaves some in `_SAVED`."""
    return folder / _SAVED / name if (folder / _SAVED / name).is_file() else folder / name
