"""What a run's folder says of the run: how it was begun, and whether it goes on or is finished."""

import contextlib
import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from conceptcam._files import as_json, write_json
from conceptcam.hub.model_folder import WEIGHTS_FILE

RUN_FILE = "run.json"
HISTORY_FILE = "history.csv"
CHECKPOINTS = "checkpoints"
FIGURES = "figures"
TENSORBOARD = "tensorboard"

State = Literal["new", "unfinished", "finished"]

_FINISHED = "finished"
# Parts of `run.json` whose entries are compared, and named, one by one.
_SECTIONS = ("data", "model")
# What may be there before `run.json` is: a demonstration draws its data first.
_BEFORE_A_RUN = {CHECKPOINTS, FIGURES}
# Where each phase of a run keeps its checkpoints.
_CHECKPOINTED = (f"{CHECKPOINTS}/concepts", f"{CHECKPOINTS}/rest")
# What a run makes before its first epoch is over.
_BEGUN = (RUN_FILE, f".{RUN_FILE}.part", *_CHECKPOINTED, CHECKPOINTS, FIGURES, TENSORBOARD)


def read_run(folder: Path) -> dict[str, Any]:
    """What was told of the run in a folder when it began; empty if none was begun there.

    Raises:
        FileExistsError: If the folder is a file, or holds checkpoints of nobody knows what.
        ValueError: If `run.json` is none that a run has written.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; a run needs a folder of its own")
    path = folder / RUN_FILE
    if not path.is_file():
        if any((folder / CHECKPOINTS).rglob("*.pt")):
            raise FileExistsError(
                f"{folder / CHECKPOINTS} holds checkpoints, but there is no {RUN_FILE} that says of which run; choose "
                "another folder"
            )
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}; choose another folder") from error
    if not isinstance(told, dict) or not told:
        raise ValueError(f"{path} is not one that a run has written; choose another folder")
    return told


def run_state(folder: Path) -> State:
    """Whether a run is still to begin in a folder, goes on there, or is finished.

    Raises:
        FileExistsError: If the folder is a file, or holds something else than a run.
        ValueError: If its `run.json` is none that a run has written.
    """
    told = read_run(folder)
    if told:
        return "finished" if told.get(_FINISHED) else "unfinished"
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if strange := [name for name in names if name not in _BEFORE_A_RUN and not name.startswith(".")]:
        raise FileExistsError(f"{folder} holds {strange[:3]} but no {RUN_FILE}, so no run; choose another folder")
    return "new"


def begin_run(folder: Path, told: Mapping[str, Any]) -> None:
    """Write down how a run begins, whole or not at all."""
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    _write_run(folder, {**told, _FINISHED: False})


def finish_run(folder: Path) -> None:
    """Write down that a run is finished, and remove its checkpoints."""
    _write_run(folder, {**read_run(folder), _FINISHED: True})
    for part in _CHECKPOINTED:
        shutil.rmtree(folder / part, ignore_errors=True)  # what is left of them does no harm any more
    with contextlib.suppress(OSError):  # somebody keeps something else there
        (folder / CHECKPOINTS).rmdir()


def refuse_other(
    folder: Path, then: Mapping[str, Any], now: Mapping[str, Any], *, free: Mapping[str, Collection[str]]
) -> None:
    """Refuse to go on with a run in another way than it was begun.

    Args:
        folder: Where it is, for the message.
        then: What was told when it began.
        now: What is told now, or the part of it that is known; the rest is not compared.
        free: Names of what may differ: `"data"` and `"model"` -> of their entries, `""` -> of the rest.

    Raises:
        ValueError: Naming what differs.
    """
    before, after = _flat(then), _flat(json.loads(as_json(now)))
    different = [key for key in after if key[1] not in free.get(key[0], ()) and after[key] != before.get(key)]
    if different:
        told = "; ".join(f"`{key[1]}` was {_short(before.get(key))} and is {_short(after[key])}" for key in different)
        raise ValueError(
            f"cannot resume {folder} with other options than it began with: {told}. Set them as they were, or choose "
            "another folder"
        )


@contextlib.contextmanager
def removed_unless_taught(folder: Path) -> Iterator[None]:
    """Leave nothing of a run behind in a folder if an error comes before anything was learned; all else stays."""
    begun = [folder / name for name in _BEGUN if not (folder / name).exists()]
    with contextlib.ExitStack() as undo:
        undo.callback(_remove_untaught, folder, begun, is_new=not folder.exists())
        yield
        undo.pop_all()


def _write_run(folder: Path, told: Mapping[str, Any]) -> None:
    write_json(folder / RUN_FILE, told)


def _flat(told: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """(section, name) -> entry; the section of what is in none is empty."""
    rest = {("", name): value for name, value in told.items() if name not in _SECTIONS}
    return rest | {(one, name): value for one in _SECTIONS for name, value in (told.get(one) or {}).items()}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _remove_untaught(folder: Path, begun: Iterable[Path], *, is_new: bool) -> None:
    """Remove what a run has begun with, if nothing was learned, and the folder if it is new and then empty."""
    taught = (folder / HISTORY_FILE).exists() or (folder / WEIGHTS_FILE).exists()
    if not folder.exists() or taught or any(folder.glob(f"{CHECKPOINTS}/**/*.pt")):
        return
    for path in begun:
        if path.is_dir() and path.name != CHECKPOINTS:
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()
    with contextlib.suppress(OSError):  # somebody else keeps something there
        (folder / CHECKPOINTS).rmdir()
    if is_new:
        with contextlib.suppress(OSError):
            folder.rmdir()
