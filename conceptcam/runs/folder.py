"""The folder of a training run: its files, whether it is finished, and the options that it began with."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from conceptcam._checks import brief
from conceptcam._files import as_json, parse_json, write_json
from conceptcam.hub.model_folder import WEIGHTS_FILE
from conceptcam.runs.options import MAY_CHANGE

FORMAT_VERSION = 2
"""Of `run.json`; conceptcam 0.1 wrote it without a number."""

BASELINES_FILE = "baselines.safetensors"
"""Simpler models of a run's training images, which `conceptcam evaluate` measures beside the model."""

State = Literal["new", "unfinished", "finished"]

_HELD = {"finished": "a finished run;", "unfinished": "an unfinished run; resume it with `resume=True` (--resume), or"}

# Sections of `run.json` whose entries are compared, and named, one by one.
_SECTIONS = ("data", "model")


class RunFolder:
    """The folder of a run, with `run.json` as it was when this object was made.

    | file | what it holds | who writes it |
    |---|---|---|
    | `run.json` | options, data, what was decided | `begin`, `finish` |
    | `split.csv` | which image is for what, if the data were divided | `train_run` |
    | `history.csv`, `tensorboard/` | a row per epoch | `CSVLogger`, `TensorBoardLogger` |
    | `checkpoints/` | what a killed run goes on from, until it is finished | the training loop |
    | `config.json`, `model.safetensors`, `README.md` | the model and its card | `ConceptModel.save_pretrained` |
    | `metrics.json`, `metrics.txt`, `summary.json` | figures | `reports.measure`, `train_run` |
    | `figures/` | curves, maps epoch by epoch, images with what the model sees | `reports` |

    Attributes:
        path: The folder.
        saved: What `run.json` holds; empty if no run has begun here.

    Raises:
        FileExistsError: If the path is a file, or the folder holds checkpoints without a `run.json`.
        ValueError: If `run.json` was not written by a run, or by one of conceptcam 0.1 that is not finished.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.run_file = self.path / "run.json"
        self.split = self.path / "split.csv"
        self.history = self.path / "history.csv"
        self.metrics = self.path / "metrics.json"
        self.metrics_table = self.path / "metrics.txt"
        self.summary = self.path / "summary.json"
        self.baselines = self.path / BASELINES_FILE
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.maps = self.checkpoints / "maps" / "learning.safetensors"
        self.figures = self.path / "figures"
        self.explanations = self.figures / "images"
        self.saved = self._read()

    @property
    def state(self) -> State:
        """Whether a run is still to begin here, has begun, or is finished."""
        if not self.saved:
            return "new"
        return "finished" if self.saved.get("finished") else "unfinished"

    def check_begin(self, *, resume: bool) -> None:
        """Check that the folder holds no run, or one to resume.

        Raises:
            FileExistsError: If it holds a run that is not to be resumed.
        """
        if self.state != "new" and not resume:
            raise FileExistsError(f"{self.path} holds {_HELD[self.state]} choose another folder")

    def check_only_a_run(self) -> None:
        """Check that the folder holds nothing but a run, or nothing.

        Raises:
            FileExistsError: If it holds something else.
        """
        # A demo draws figures before its run begins, and makes the folder of the checkpoints.
        known = {self.checkpoints.name, self.figures.name}
        names = sorted(path.name for path in self.path.iterdir()) if self.path.exists() else []
        strange = [name for name in names if name not in known and not name.startswith(".")]
        if self.state == "new" and strange:
            raise FileExistsError(f"{self.path} holds {strange[:3]} but no {self.run_file.name}; choose another folder")

    def check_resume_options(self, current: Mapping[str, Any]) -> None:
        """Check that a run, if it has begun, is resumed with options that teach the same; see `MAY_CHANGE`.

        A finished run of conceptcam 0.1 is not checked, because its options had other names.

        Args:
            current: Today's content of `run.json`, or the part that is known; the rest is not compared.

        Raises:
            ValueError: Naming what differs.
        """
        if not self.saved or self.saved.get("format_version") != FORMAT_VERSION:
            return
        before, after = _flat(self.saved), _flat(json.loads(as_json(current)))
        if current.get("precision") == "auto":
            after.pop(("", "precision"))  # the choice that the run began with stays
        different = [key for key in after if key[1] not in MAY_CHANGE.get(key[0], ()) and after[key] != before.get(key)]
        if different:
            changes = "; ".join(
                f"`{key[1]}` was {_short(before.get(key))} and is {_short(after[key])}" for key in different
            )
            raise ValueError(
                f"cannot resume {self.path} with other options than it began with: {changes}. Set them as they were, "
                "or choose another folder"
            )

    def begin(self, content: Mapping[str, Any]) -> None:
        """Write `run.json`."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._write({"format_version": FORMAT_VERSION, **content, "finished": False})

    def finish(self, warnings: Sequence[str] = ()) -> None:
        """Write that the run is finished, and with what warnings, and remove its checkpoints."""
        self._write({**self.saved, "warnings": list(warnings), "finished": True})
        self.remove_checkpoints()

    def remove_checkpoints(self) -> None:
        """Remove the checkpoints of a finished run, also of one that was killed before it could."""
        for phase in self._made_to_resume():
            shutil.rmtree(phase, ignore_errors=True)  # what is left of them does no harm any more
        with contextlib.suppress(OSError):  # somebody keeps something else there
            self.checkpoints.rmdir()

    @contextlib.contextmanager
    def removed_unless_trained(self) -> Iterator[None]:
        """Remove what a run has made here if an error comes before anything was learned; all else stays."""
        made = (self.run_file, self.split, *self._made_to_resume(), self.figures, self.tensorboard)
        new, own = not self.path.exists(), [path for path in made if not path.exists()]
        try:
            yield
        except BaseException:
            trained = self.history.exists() or (self.path / WEIGHTS_FILE).exists()
            if self.path.exists() and not trained and not any(self.checkpoints.rglob("*.pt")):
                for path in own:
                    with contextlib.suppress(OSError):  # the disk has turned read-only
                        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                for folder in (self.checkpoints, *([self.path] if new else [])):
                    with contextlib.suppress(OSError):  # somebody else keeps something there
                        folder.rmdir()
            raise

    def _made_to_resume(self) -> tuple[Path, ...]:
        return self.checkpoints / "concepts", self.checkpoints / "rest", self.maps.parent

    def _write(self, content: dict[str, Any]) -> None:
        write_json(self.run_file, content)
        self.saved = content

    def _read(self) -> dict[str, Any]:
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} is a file; a run needs a folder of its own")
        if not self.run_file.is_file():
            if any(self.checkpoints.rglob("*.pt")):
                raise FileExistsError(
                    f"{self.checkpoints} holds checkpoints, but there is no {self.run_file.name} that tells of which "
                    "run; choose another folder"
                )
            return {}
        try:
            saved = parse_json(self.run_file.read_bytes(), "it")
        except ValueError as error:
            raise ValueError(f"{self.run_file} cannot be read: {error}; choose another folder") from error
        sane = isinstance(saved, dict) and all(isinstance(saved.get(section, {}), dict) for section in _SECTIONS)
        if not sane or not saved:
            raise ValueError(f"{self.run_file} was not written by a run; choose another folder")
        version = saved.get("format_version", 1)
        if version not in (1, FORMAT_VERSION):
            raise ValueError(
                f"{self.run_file} has format version {brief(version)}, of a newer conceptcam; update conceptcam"
            )
        if version == 1 and not saved.get("finished"):
            raise ValueError(
                f"the run in {self.path} was begun by conceptcam {saved.get('conceptcam', '0.1')}, which alone can go "
                "on with it; finish it there, or choose another folder and begin anew"
            )
        return saved


def _flat(content: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """(section, name) -> entry; the section of what is in none is empty."""
    rest = {("", name): value for name, value in content.items() if name not in _SECTIONS}
    return rest | {(one, name): value for one in _SECTIONS for name, value in (content.get(one) or {}).items()}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
