"""What a run does with the stages of its plan: in which phases they are taught, and what is kept after each."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from conceptcam.analysis.fitting import fit_calibration, fit_novelty, fit_thresholds
from conceptcam.config import ConceptConfig
from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.data.image_cache import ImageCache
from conceptcam.model.concept_model import ConceptModel
from conceptcam.runs.folder import RunFolder
from conceptcam.runs.options import RunOptions, class_weights, loader, trainer_options
from conceptcam.runs.review import Review, review
from conceptcam.training import distributed
from conceptcam.training.history import CSVLogger, EpochResult, TensorBoardLogger, write_history
from conceptcam.training.precision import step_seconds
from conceptcam.training.seeding import seeded
from conceptcam.training.stages import Stage
from conceptcam.training.trainer import Trainer

_TRIAL_IMAGES = 8
_LONG_WAIT = 0.2
"""Part of the time of training from which on waiting for images is worth a remedy."""

Phase = Literal["concepts", "rest"]


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """A model, its stages and the images that teach it.

    A stage 1 that learns in steps is a phase of its own: it sees images augmented. All other stages are the other
    phase: they read what frozen parts make of the images, which is computed once for all of them.

    Attributes:
        model: As it is to be taught.
        stages: In order.
        train: What it learns from.
        val: What chooses epochs, and what thresholds and calibration are fitted to.
        fitted: Whether thresholds, calibration and what tells unlike images are fitted at all.
        augmentation: Changes training images of the first phase; None changes none.
        training_data: What to call the training data in the model's record.
        options: How to train.
        run: Where history, checkpoints and model are written.
        echo: Is given a line about how fast images are read, where that matters.
    """

    model: ConceptModel
    stages: Sequence[Stage]
    train: ConceptDataset
    val: ConceptDataset
    fitted: bool
    augmentation: Callable[[ConceptItem], ConceptItem] | None
    training_data: str
    options: RunOptions
    run: RunFolder
    echo: Callable[[str], None]

    def teach(self, callbacks: Sequence[Callable[[ConceptModel, EpochResult], None]] = ()) -> None:
        """Run the stages; the model is written after the first phase and after the last.

        Args:
            callbacks: Called as an epoch ends, besides those of the options.
        """
        own, results = self.train.augmentation, []
        first = distributed.is_main_process()
        try:
            with cached_images(self.options, self.model.config, (self.train, self.val)):
                if first and _learns_from_images(self.stages[0]):
                    self.echo(self._loading_speed())
                for phase, stages in self._phases().items():
                    results += self._teach_phase(phase, stages, callbacks)
                    self._take_stock(backbone_is_done=stages[0] is self.stages[0])
                    if first:
                        write_history(self.run.history, results)  # a resumed run may have found it gone
                        self.model.save_pretrained(self.run.path)
        finally:
            self.train.augmentation = own

    def judge(self, test: ConceptDataset, *, sided_concepts: Sequence[str] = ()) -> Review:
        """Measure the model on images, beside simpler models of its training images; see `review`.

        Args:
            test: What to measure it on; may be `val`.
            sided_concepts: See `evaluate`.
        """
        with cached_images(self.options, self.model.config, (self.train, self.val, test)):
            return review(self.model, self.train, self.val, test, self.run, self.options, sided_concepts=sided_concepts)

    def _phases(self) -> dict[Phase, list[Stage]]:
        """The stages of each phase that has any."""
        concepts = [stage for stage in self.stages if _learns_from_images(stage)]
        rest = [stage for stage in self.stages if not _learns_from_images(stage)]
        phases: dict[Phase, list[Stage]] = {"concepts": concepts, "rest": rest}
        return {phase: stages for phase, stages in phases.items() if stages}

    def _teach_phase(
        self, phase: Phase, stages: Sequence[Stage], callbacks: Sequence[Callable[[ConceptModel, EpochResult], None]]
    ) -> list[EpochResult]:
        """Run the stages of a phase, from its checkpoints if there are any to resume from."""
        options, run = self.options, self.run
        history = CSVLogger(run.history, resume=options.resume or stages[0] is not self.stages[0])
        boards = [TensorBoardLogger(run.tensorboard)] if options.tensorboard else []
        changes = {
            "callbacks": (history, *boards, *callbacks, *options.callbacks),
            "checkpoint_dir": run.checkpoints / phase,
        }
        trainer = Trainer(**trainer_options(options, **changes))
        self.train.augmentation = self.augmentation if phase == "concepts" else None
        batches, val_batches = loader(self.train, options, shuffle=True), loader(self.val, options)
        return trainer.fit(self.model, stages, batches, val_batches, resume=options.resume)

    def _take_stock(self, *, backbone_is_done: bool) -> None:
        """Fit thresholds, calibration and novelty statistics, and keep them and class weights in the record.

        After the last phase again, when there are prototypes whose typical evidence can be recorded.
        """
        if self.fitted:
            self._fit(backbone_is_done=backbone_is_done)
        concept_weights, task_weights = class_weights(self.options, self.model.config, self.train)
        self.model.record = dataclasses.replace(
            self.model.record,
            training_data=self.training_data,
            concept_weights=concept_weights,
            task_weights=task_weights,
        )

    def _fit(self, *, backbone_is_done: bool) -> None:
        """Fit to the validation images what a record keeps of them."""
        model, options, images = self.model, self.options, len(self.val)
        fit_thresholds(model, loader(self.val, options), thresholds_source=f"highest F1 on {images} validation images")
        fit_calibration(model, loader(self.val, options), calibration_source=f"platt on {images} validation images")
        if backbone_is_done and len(self.train) >= 8:
            self.train.augmentation = None
            with seeded(options.seed):  # a table may be sorted
                fit_novelty(model, loader(self.train, options, shuffle=True), loader(self.val, options))

    def _loading_speed(self) -> str:
        """How fast images are read and learned from, by a trial of a few, and what to do if reading is slower."""
        train, options = self.train, self.options
        rows = torch.linspace(0, len(train) - 1, min(len(train), _TRIAL_IMAGES)).long().tolist()
        own, train.augmentation = train.augmentation, self.augmentation
        try:
            with seeded(options.seed or 0):
                for _ in range(1 if options.image_cache is None else 2):  # the first time fills the cache
                    start = time.perf_counter()
                    images = torch.stack([train[row].image for row in rows])
                    reading = (time.perf_counter() - start) / len(rows)
                precision: Any = options.precision  # "auto" has become one of the others
                seconds = step_seconds(self.model, self.stages[0], images, options.device, precision)
        finally:
            train.augmentation = own
        return _speed_line(reading, seconds / len(images), min(options.num_workers, os.cpu_count() or 1))


def _learns_from_images(stage: Stage) -> bool:
    """Whether a stage learns what images look like, step by step."""
    return stage.name == "concepts" and stage.solver is None


def _speed_line(reading: float, learning: float, processes: int) -> str:
    """A sentence about seconds per image, of reading and of learning, with so many processes that read."""
    # Processes read while the model learns; without them, one waits for the other.
    waiting = max(0, 1 - learning * processes / reading) if processes else reading / (reading + learning)
    speeds = f"{max(1, processes) / reading:.0f} images a second are read and {1 / learning:.0f} learned from"
    advice = (
        "; `num_workers` (--num-workers) or `image_cache` (--image-cache) shorten that" if waiting > _LONG_WAIT else ""
    )
    return f"About {speeds}, so {waiting:.0%} of the time is waiting for images{advice}."


@contextlib.contextmanager
def cached_images(options: RunOptions, config: ConceptConfig, parts: Sequence[ConceptDataset]) -> Iterator[None]:
    """Within it, data sets read their images through the cache that the options name, if they name one.

    Afterwards they have the cache again that they had before.

    Raises:
        ValueError: If a data set does not read its images from files.
    """
    if options.image_cache is None:
        yield
        return
    limit = options.image_cache_limit * 1e9
    with contextlib.ExitStack() as undone:
        cache = undone.enter_context(ImageCache(Path(options.image_cache).expanduser(), config.image_size, limit=limit))
        for part in parts:
            before = part.image_cache
            part.cache_images(cache)
            undone.callback(part.cache_images, before)
        yield
