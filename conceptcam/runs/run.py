"""One training run, from options to a folder with model, history, metrics and figures."""

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from conceptcam._files import write_json
from conceptcam._version import __version__
from conceptcam.analysis.doubts import untrained_doubts
from conceptcam.analysis.evaluation_result import Evaluation
from conceptcam.analysis.fitting import fit_calibration, fit_novelty, fit_thresholds
from conceptcam.config import ConceptConfig
from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.data.image_cache import ImageCache
from conceptcam.data.splits import save_split
from conceptcam.model.concept_model import ConceptModel
from conceptcam.runs.folder import RunFolder
from conceptcam.runs.options import RunOptions, class_weights, loader, make_plan, options_to_dict, trainer_options
from conceptcam.runs.reports import MapHistory, draw_learning, save_explanations
from conceptcam.runs.review import review
from conceptcam.training import distributed
from conceptcam.training.history import CSVLogger, EpochResult, TensorBoardLogger, write_history
from conceptcam.training.optimizer import checkpointing, frozen_as_before, parameter_groups
from conceptcam.training.precision import faster_precision, step_seconds
from conceptcam.training.seeding import seeded
from conceptcam.training.stages import Stage
from conceptcam.training.trainer import Trainer

log = logging.getLogger(__name__)

_TRIAL_IMAGES = 8
_LONG_WAIT = 0.2
"""Part of the time of training from which on waiting for images is worth a remedy."""

Echo = Callable[[str], None]


class RunResult(NamedTuple):
    """What a run gives."""

    model: ConceptModel
    """The trained model, in eval mode."""
    evaluation: Evaluation | None
    """Its metrics; None of a run that was finished before, and in processes other than the first."""
    warnings: tuple[str, ...] = ()
    """What a supervisor would doubt, a sentence each; also in `run.json`."""


def train_run(
    config: ConceptConfig,
    train: ConceptDataset,
    val: ConceptDataset,
    folder: str | Path,
    options: RunOptions,
    *,
    training_data: str,
    data: Mapping[str, Any] | None = None,
    split: tuple[Sequence[str], Sequence[str]] | None = None,
    test: ConceptDataset | None = None,
    measured_on: str = "the validation images, which also chose epochs and thresholds",
    sided_concepts: Sequence[str] = (),
    summarize: Callable[[ConceptModel, Evaluation], dict[str, Any]] | None = None,
    drawn: Sequence[int] = range(12),
    example_image: ConceptItem | None = None,
    example_concepts: Sequence[str] = (),
    augmentation: Callable[[ConceptItem], ConceptItem] | None = None,
    echo: Echo = log.info,
) -> RunResult:
    """Train a model through the stages of a preset, fit its thresholds, evaluate it, and write all into a folder.

    `RunFolder` lists the files. The model is written after the first stage and after the last. With `resume`, a run
    that was killed goes on from its newest checkpoint, and of a finished run the model comes back. An error that
    comes before the first epoch is over leaves the folder as it was.

    Under `torchrun` every process calls this alike; the first one writes and echoes.

    Args:
        config: What the model is; the preset's own fields are set on it.
        train: Training data; the first stage also applies its `augmentation`.
        val: Validation data: picks the best epoch and the thresholds.
        folder: Where to write.
        options: How to train.
        training_data: What to call the training data in the model's record.
        data: Where the data came from and how they were read, for `run.json`. When the run resumes, entries other than
            `folder` and `images` must be the same; labels are always compared.
        split: Names and parts of the images, if one set of data was divided; written to `split.csv` as the run begins.
        test: What to evaluate on; None is `val`.
        measured_on: What to call it in the model's record.
        sided_concepts: Names of concepts that have one place by nature; see `evaluate`.
        summarize: Gives the figures of the model's record, also written to `summary.json`; None is the summary of
            the evaluation, in the record alone.
        drawn: Indices of the images of `test` to draw with what the model sees; those beyond its end are left out.
        example_image: An image as read whose concept maps are drawn epoch by epoch.
        example_concepts: Names of the concepts to draw there.
        augmentation: Changes training images of the first stage in place of `train.augmentation`.
        echo: Is given lines for the reader: how the run begins, and one per epoch.

    Raises:
        ValueError: If an option does not fit the data or the model, or a run to resume was begun with others.
        FileExistsError: If the folder holds a run and `options.resume` is off.
    """
    config, stages, decided = make_plan(options, config, train)
    with distributed.process_group(options.device):
        first = distributed.is_main_process()
        echo = echo if first else (lambda line: None)
        run = distributed.broadcast(RunFolder(folder) if first else None)
        assert run is not None
        run.check_begin(resume=options.resume)
        identity = distributed.broadcast(_identity(train, val) if first else {})
        described = {**(data or {}), **identity, "training_data": training_data}
        content = _content(config, options, stages, described) | {"decided": decided}
        run.check_resume_options(content)
        finished = run.state == "finished"
        model = ConceptModel.from_pretrained(run.path, device=options.device) if finished else _create(config, options)
        train.preprocess = val.preprocess = model.preprocess
        if finished:
            if first:
                run.remove_checkpoints()
            return RunResult(model, None, tuple(run.saved.get("warnings", ())))
        echo(_beginning(run, config, options))
        if decided:
            echo(f"{decided}.")
        for doubt in untrained_doubts(len(train), trained=options.pretrained or options.weights is not None):
            echo(f"WARNING: {doubt}")
        _check_stages(model, stages, options)
        options = _with_precision(options, run, model, stages[0], val, echo)
        maps = []
        if example_image is not None:
            maps = [MapHistory(example_image.image, example_concepts, config.concepts, file=run.maps)]
        options = dataclasses.replace(options, callbacks=[EpochPrinter(stages, echo), *maps, *options.callbacks])
        with run.removed_unless_trained() if first else contextlib.nullcontext():
            if first and run.state == "new":
                run.begin({**content, "precision": options.precision})
                if split is not None:
                    save_split(run.split, *split)
            augmentation = augmentation or train.augmentation
            with _image_cache(options, config, (train, val)):
                if first and _learns_from_images(stages[0]):
                    echo(_loading_speed(model, stages[0], train, augmentation, options))
                _train(model, stages, train, val, run, options, augmentation, training_data)
    if not first:
        return RunResult(model, None)
    draw_learning(run, model, maps, example_image)
    test = val if test is None else test
    with _image_cache(options, config, (train, val, test)):
        evaluation, warnings = review(model, train, val, test, run, options, sided_concepts=sided_concepts)
    metrics = evaluation.summary() if summarize is None else summarize(model, evaluation)
    model.record = dataclasses.replace(model.record, metrics=metrics, measured_on=measured_on)
    model.save_pretrained(run.path)
    if summarize is not None:
        write_json(run.summary, metrics)
    save_explanations(model, [test.load_item(i) for i in drawn if i < len(test)], run.explanations)
    run.finish(warnings)
    return RunResult(model, evaluation, warnings)


class EpochPrinter:
    """Echoes a line per epoch and, after the first one, about how long the rest takes; one of `Trainer`'s callbacks."""

    def __init__(self, stages: Sequence[Stage], echo: Echo) -> None:
        self.epochs = {stage.name: stage.epochs for stage in stages}
        self.echo = echo
        self._estimated = False

    def __call__(self, model: ConceptModel, result: EpochResult) -> None:
        """Echo an epoch."""
        total = self.epochs.get(result.stage, result.epoch)
        self.echo(
            f"{result.stage:<10} epoch {result.epoch:>2} of {total}: loss {result.train_loss:.4f}, "
            f"validation loss {result.val_loss:.4f}, score {result.score:.4f}, {result.seconds:.1f} s"
        )
        if result.stage == "concepts" and total > 1 and not self._estimated:
            self._estimated = True
            # The first epoch of a later stage runs the frozen parts forward, at a third of a training epoch's cost.
            later = sum(0.35 + 0.01 * epochs for name, epochs in self.epochs.items() if name != result.stage)
            self.echo(f"The rest takes about {duration((total - result.epoch + later) * result.seconds)}.")


def duration(seconds: float) -> str:
    """Such as "40 seconds", "3 minutes" or "2.5 hours"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _train(
    model: ConceptModel,
    stages: Sequence[Stage],
    train: ConceptDataset,
    val: ConceptDataset,
    run: RunFolder,
    options: RunOptions,
    augmentation: Callable[[ConceptItem], ConceptItem] | None,
    training_data: str,
) -> None:
    """Run the stages; the model is written after the first one and after the last."""
    own, results = train.augmentation, []
    try:
        # A stage 1 that learns in steps sees images augmented. All others run together: they read what frozen parts
        # make of the images, which is computed once for all of them.
        for phase in ("concepts", "rest"):
            part = [stage for stage in stages if _learns_from_images(stage) == (phase == "concepts")]
            if not part:
                continue
            history = CSVLogger(run.history, resume=options.resume or part[0] is not stages[0])
            boards = [TensorBoardLogger(run.tensorboard)] if options.tensorboard else []
            callbacks = (history, *boards, *options.callbacks)
            trainer = Trainer(**trainer_options(options, callbacks=callbacks, checkpoint_dir=run.checkpoints / phase))
            train.augmentation = augmentation if phase == "concepts" else None
            batches, val_batches = loader(train, options, shuffle=True), loader(val, options)
            results += trainer.fit(model, part, batches, val_batches, resume=options.resume)
            # Once more at the end, when there are prototypes whose typical evidence can be recorded.
            fit_thresholds(model, loader(val, options), thresholds_source=f"highest F1 on {len(val)} validation images")
            fit_calibration(model, loader(val, options), calibration_source=f"platt on {len(val)} validation images")
            if part[0] is stages[0] and len(train) >= 8:  # the backbone stays as it is from now on
                train.augmentation = None
                with seeded(options.seed):  # a table may be sorted
                    fit_novelty(model, loader(train, options, shuffle=True), loader(val, options))
            concept_weights, task_weights = class_weights(options, model.config, train)
            model.record = dataclasses.replace(
                model.record, training_data=training_data, concept_weights=concept_weights, task_weights=task_weights
            )
            if distributed.is_main_process():
                write_history(run.history, results)  # a resumed run may have found it gone
                model.save_pretrained(run.path)
    finally:
        train.augmentation = own


@contextlib.contextmanager
def _image_cache(options: RunOptions, config: ConceptConfig, parts: Sequence[ConceptDataset]) -> Iterator[None]:
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


def _loading_speed(
    model: ConceptModel,
    stage: Stage,
    train: ConceptDataset,
    augmentation: Callable[[ConceptItem], ConceptItem] | None,
    options: RunOptions,
) -> str:
    """How fast images are read and learned from, by a trial of a few, and what to do if reading is the slower one."""
    rows = torch.linspace(0, len(train) - 1, min(len(train), _TRIAL_IMAGES)).long().tolist()
    own, train.augmentation = train.augmentation, augmentation
    try:
        with seeded(options.seed or 0):
            for _ in range(1 if options.image_cache is None else 2):  # the first time fills the cache
                start = time.perf_counter()
                images = torch.stack([train[row].image for row in rows])
                reading = (time.perf_counter() - start) / len(rows)
            precision: Any = options.precision  # "auto" has become one of the others
            learning = step_seconds(model, stage, images, options.device, precision) / len(images)
    finally:
        train.augmentation = own
    processes = min(options.num_workers, os.cpu_count() or 1)
    # Processes read while the model learns; without them, one waits for the other.
    waiting = max(0, 1 - learning * processes / reading) if processes else reading / (reading + learning)
    speeds = f"{max(1, processes) / reading:.0f} images a second are read and {1 / learning:.0f} learned from"
    advice = (
        "; `num_workers` (--num-workers) or `image_cache` (--image-cache) shorten that" if waiting > _LONG_WAIT else ""
    )
    return f"About {speeds}, so {waiting:.0%} of the time is waiting for images{advice}."


def _learns_from_images(stage: Stage) -> bool:
    """Whether a stage learns what images look like, step by step."""
    return stage.name == "concepts" and stage.solver is None


def _identity(train: ConceptDataset, val: ConceptDataset) -> dict[str, Any]:
    """What identifies data wherever they are: the number of images, and SHA-256 of labels, names, boxes and files."""
    parts = {"train": train, "val": val}
    sizes = {f"{name}_images": len(part) for name, part in parts.items()}
    digests = {name: part.digests() for name, part in parts.items()}
    return sizes | {f"{name}_{what}": value for name, found in digests.items() for what, value in found.items()}


def _content(
    config: ConceptConfig, options: RunOptions, stages: Sequence[Stage], data: Mapping[str, Any]
) -> dict[str, Any]:
    """What `run.json` says from the beginning on."""
    return {
        **options_to_dict(options),
        "stages": {stage.name: stage.epochs for stage in stages},
        "data": dict(data),
        "model": dataclasses.asdict(config),
        "processes": distributed.world_size(),
        "conceptcam": __version__,
        "torch": str(torch.__version__),
    }


def _beginning(run: RunFolder, config: ConceptConfig, options: RunOptions) -> str:
    if run.state != "new":
        return f"Going on with the run in {run.path}."
    weights = "published" if options.pretrained else "random" if options.weights is None else "given"
    return f"The backbone {config.backbone} starts from {weights} weights."


def _create(config: ConceptConfig, options: RunOptions) -> ConceptModel:
    """The model to train, the same for the same seed."""
    with seeded(options.seed):
        return ConceptModel.from_config(
            config, pretrained_backbone=options.pretrained, backbone_weights=options.weights
        )


def _check_stages(model: ConceptModel, stages: Sequence[Stage], options: RunOptions) -> None:
    """Refuse at once what a later stage would refuse.

    Raises:
        ValueError: If a stage cannot teach this model with these options.
    """
    with frozen_as_before(model):
        for stage in stages:
            parameter_groups(model, stage)
            with checkpointing(model.backbone, stage, wanted=options.gradient_checkpointing):
                pass


def _with_precision(
    options: RunOptions, run: RunFolder, model: ConceptModel, stage: Stage, val: ConceptDataset, echo: Echo
) -> RunOptions:
    """The options with a precision in place of `"auto"`: that of the run to resume, or the faster one."""
    if options.precision != "auto":
        return options
    if run.saved:
        return dataclasses.replace(options, precision=run.saved["precision"])
    if stage.solver is not None:  # one forward pass is not worth a trial
        return dataclasses.replace(options, precision="fp32")
    batch = next(iter(loader(val, options)))
    chosen = distributed.broadcast(faster_precision(model, stage, batch, options.device, echo=echo))
    echo(f"Training in {chosen}.")
    return dataclasses.replace(options, precision=chosen)
