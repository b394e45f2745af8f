"""One training run, from options to a folder with model, history, metrics and figures."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from conceptcam._display.text import duration
from conceptcam._files import write_json
from conceptcam._version import __version__
from conceptcam.analysis.doubts import untrained_doubts
from conceptcam.analysis.evaluation_result import Evaluation
from conceptcam.config import ConceptConfig
from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.data.splits import save_split
from conceptcam.model.concept_model import ConceptModel
from conceptcam.runs.folder import RunFolder
from conceptcam.runs.options import RunOptions, RunPlan, loader, make_plan, options_to_dict
from conceptcam.runs.reports import MapHistory, draw_learning, save_explanations
from conceptcam.runs.teaching import Teaching
from conceptcam.training import distributed
from conceptcam.training.history import EpochResult
from conceptcam.training.optimizer import checkpointing, frozen_as_before, parameter_groups
from conceptcam.training.precision import faster_precision
from conceptcam.training.seeding import seeded
from conceptcam.training.stages import Stage

log = logging.getLogger(__name__)

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
    fitted: bool = True,
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
        fitted: Whether thresholds, calibration and what tells unlike images are fitted to `val`. Without, the figures
            are of the model's own probabilities, and those at thresholds are undefined.
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
    plan = make_plan(options, config, train)
    with distributed.process_group(options.device):
        run = _open_run(folder, options)
        content = _content(plan, options, (train, val), {**(data or {}), "training_data": training_data})
        run.check_resume_options(content)
        if run.state == "finished":
            return _finished(run, train, val, options)
        teaching = _prepare(run, plan, train, val, options, augmentation, training_data, echo, fitted=fitted)
        maps = _map_histories(example_image, example_concepts, plan.config, run)
        with _begun(run, {**content, "precision": teaching.options.precision}, split):
            teaching.teach(maps)
        if not distributed.is_main_process():
            return RunResult(teaching.model, None)
    draw_learning(run, teaching.model, maps, example_image)
    test = val if test is None else test
    result = _measured(run, teaching, test, sided_concepts, measured_on, summarize)
    save_explanations(result.model, [test.load_item(i) for i in drawn if i < len(test)], run.explanations)
    run.finish(result.warnings)
    return result


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


def _open_run(folder: str | Path, options: RunOptions) -> RunFolder:
    """The folder of a run, as the first process sees it.

    Raises:
        FileExistsError: If it holds a run that is not to be resumed.
    """
    run = distributed.broadcast(RunFolder(folder) if distributed.is_main_process() else None)
    assert run is not None
    run.check_begin(resume=options.resume)
    return run


def _content(
    plan: RunPlan, options: RunOptions, parts: tuple[ConceptDataset, ConceptDataset], data: Mapping[str, Any]
) -> dict[str, Any]:
    """What `run.json` says from the beginning on, the same in every process."""
    identity = distributed.broadcast(_identity(*parts) if distributed.is_main_process() else {})
    return {
        **options_to_dict(options),
        "stages": {stage.name: stage.epochs for stage in plan.stages},
        "data": {**data, **identity},
        "model": dataclasses.asdict(plan.config),
        "processes": distributed.world_size(),
        "conceptcam": __version__,
        "torch": str(torch.__version__),
        "decided": plan.reason,
    }


def _identity(train: ConceptDataset, val: ConceptDataset) -> dict[str, Any]:
    """What identifies data wherever they are: the number of images, and SHA-256 of labels, names, boxes and files."""
    parts = {"train": train, "val": val}
    sizes = {f"{name}_images": len(part) for name, part in parts.items()}
    digests = {name: part.digests() for name, part in parts.items()}
    return sizes | {f"{name}_{what}": value for name, found in digests.items() for what, value in found.items()}


def _finished(run: RunFolder, train: ConceptDataset, val: ConceptDataset, options: RunOptions) -> RunResult:
    """What a run gives that was finished before, its data sets ready to be read by its model."""
    model = ConceptModel.from_pretrained(run.path, device=options.device)
    train.preprocess = val.preprocess = model.preprocess
    if distributed.is_main_process():
        run.remove_checkpoints()
    return RunResult(model, None, tuple(run.saved.get("warnings", ())))


def _prepare(
    run: RunFolder,
    plan: RunPlan,
    train: ConceptDataset,
    val: ConceptDataset,
    options: RunOptions,
    augmentation: Callable[[ConceptItem], ConceptItem] | None,
    training_data: str,
    echo: Echo,
    *,
    fitted: bool,
) -> Teaching:
    """The model with random heads, the same for the same seed, and how it will be taught.

    Raises:
        ValueError: If a stage cannot teach this model with these options.
    """
    if not distributed.is_main_process():
        echo = _silence
    with seeded(options.seed):
        model = ConceptModel.from_config(
            plan.config, pretrained_backbone=options.pretrained, backbone_weights=options.weights
        )
    train.preprocess = val.preprocess = model.preprocess
    echo(_beginning(run, plan.config, options))
    if plan.reason:
        echo(f"{plan.reason}.")
    for doubt in untrained_doubts(len(train), trained=options.pretrained or options.weights is not None):
        echo(f"WARNING: {doubt}")
    _check_stages(model, plan.stages, options)
    options = _with_precision(options, run, model, plan.stages[0], val, echo)
    return Teaching(
        model=model, stages=plan.stages, train=train, val=val, run=run, training_data=training_data, echo=echo,
        fitted=fitted, augmentation=augmentation or train.augmentation,
        options=dataclasses.replace(options, callbacks=[EpochPrinter(plan.stages, echo), *options.callbacks]),
    )  # fmt: skip


def _silence(line: str) -> None:
    """What processes other than the first one echo."""


def _beginning(run: RunFolder, config: ConceptConfig, options: RunOptions) -> str:
    if run.state != "new":
        return f"Going on with the run in {run.path}."
    weights = "published" if options.pretrained else "random" if options.weights is None else "given"
    return f"The backbone {config.backbone} starts from {weights} weights."


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


def _map_histories(
    image: ConceptItem | None, concepts: Sequence[str], config: ConceptConfig, run: RunFolder
) -> list[MapHistory]:
    """What keeps the maps of an image epoch by epoch, if there is one."""
    return [] if image is None else [MapHistory(image.image, concepts, config.concepts, file=run.maps)]


@contextlib.contextmanager
def _begun(
    run: RunFolder, content: Mapping[str, Any], split: tuple[Sequence[str], Sequence[str]] | None
) -> Iterator[None]:
    """Begin a new run in its folder; if an error comes before anything was learned, the folder is as it was."""
    if not distributed.is_main_process():
        yield
        return
    with run.removed_unless_trained():
        if run.state == "new":
            run.begin(content)
            if split is not None:
                save_split(run.split, *split)
        yield


def _measured(
    run: RunFolder,
    teaching: Teaching,
    test: ConceptDataset,
    sided_concepts: Sequence[str],
    measured_on: str,
    summarize: Callable[[ConceptModel, Evaluation], dict[str, Any]] | None,
) -> RunResult:
    """Measure the model, and write it with its figures in its record."""
    model = teaching.model
    evaluation, warnings = teaching.judge(test, sided_concepts=sided_concepts)
    metrics = evaluation.summary() if summarize is None else summarize(model, evaluation)
    model.record = dataclasses.replace(model.record, metrics=metrics, measured_on=measured_on)
    model.save_pretrained(run.path)
    if summarize is not None:
        write_json(run.summary, metrics)
    return RunResult(model, evaluation, warnings)
