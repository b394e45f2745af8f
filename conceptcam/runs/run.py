"""One training run as a folder: model, history, metrics and figures, all of which the command line writes."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from conceptcam._version import __version__
from conceptcam.analysis.evaluation import fit_thresholds
from conceptcam.config import ConceptConfig
from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.data.labels import digest
from conceptcam.model.concept_model import ConceptModel
from conceptcam.runs.folder import (
    CHECKPOINTS,
    HISTORY_FILE,
    TENSORBOARD,
    begin_run,
    finish_run,
    read_run,
    removed_unless_taught,
)
from conceptcam.runs.options import RunOptions, loader, refuse_changed, run_recipe, told_of
from conceptcam.runs.reports import MapHistory, _draw_learning
from conceptcam.training import distributed
from conceptcam.training.history import CSVLogger, EpochResult, TensorBoardLogger
from conceptcam.training.optimizer import checkpointing, parameter_groups
from conceptcam.training.precision import Precision, faster_precision
from conceptcam.training.presets import get_preset
from conceptcam.training.stages import Stage
from conceptcam.training.trainer import Trainer

log = logging.getLogger(__name__)


def train_run(
    config: ConceptConfig,
    train: ConceptDataset,
    val: ConceptDataset,
    folder: Path,
    options: RunOptions,
    *,
    training_data: str,
    data: Mapping[str, Any] | None = None,
    watch: ConceptItem | None = None,
    follow: Sequence[str] = (),
    augmentation: Callable[[ConceptItem], ConceptItem] | None = None,
    say: Callable[[str], None] = log.info,
) -> ConceptModel:
    """Train a model through the stages of a preset and write it into a folder.

    Writes `run.json` (all that is needed to repeat the run), `history.csv` (a row as each epoch ends), checkpoints
    (which `end_run` removes), `config.json` and `model.safetensors` (after the first stage and after the last),
    `figures/curves.png` if matplotlib is there and, if an image is watched, `figures/learning.png`, of the epochs since
    the run was last resumed. An error that comes before the first epoch is over leaves the folder as it was.

    Under `torchrun` every process calls this alike, and the first one writes.

    Args:
        config: What the model is; the preset's own fields are set on it.
        train: Training data; the first stage also applies its `augmentation`.
        val: Validation data: picks the best epoch and the thresholds.
        folder: Where to write.
        options: How to train.
        training_data: What to call the training data in the model's record.
        data: Where the data came from and how they were read, to be written down, and the same when resumed. Entries
            named `folder` and `images` may be others then; labels are always compared.
        watch: An image as read whose concept maps are drawn epoch by epoch.
        follow: Names of the concepts to draw.
        augmentation: Changes training images of the first stage in place of `train.augmentation`.
        say: Takes what a reader should know of how the run begins.

    Returns:
        The trained model.

    Raises:
        ValueError: If an option does not fit the data or the model, or a run to resume was begun with others.
        FileExistsError: If the folder holds a run and `options.resume` is off.
    """
    config = get_preset(options.preset).apply_to(config)
    stages = get_preset(options.preset).stages(config, **run_recipe(options, config, train))
    data = {**(data or {}), **_known_by(train, val), "training_data": training_data}
    with distributed.process_group(options.device):
        first = distributed.is_main_process()
        then = distributed.broadcast(read_run(folder) if first else {})
        if then and not options.resume:
            raise FileExistsError(_holds_a_run(folder, then))
        told = _told(config, options, stages, data)
        refuse_changed(folder, then, told)
        if then.get("finished"):
            model = ConceptModel.from_pretrained(folder, device=options.device)
            train.preprocess = val.preprocess = model.preprocess
            return model
        model = _built(config, options)
        say(_beginning(folder, config, options, then))
        train.preprocess = val.preprocess = model.preprocess
        _check_trainable(model, stages, options)
        options = _with_precision(options, then, model, stages[0], val, say)
        maps = MapHistory(watch.image, follow, model.config.concepts) if watch is not None else None
        phases = [(name, part, _trainer(folder, name, options, maps)) for name, part in _phases(stages)]
        with removed_unless_taught(folder) if first else contextlib.nullcontext():
            if first and not then:
                begin_run(folder, {**told, "precision": options.precision})
            own = train.augmentation
            try:
                # Only stage 1 learns what images look like and sees them changed. The others are run together: they
                # read what it made of the images, which is computed once for all of them.
                for name, part, trainer in phases:
                    train.augmentation = (augmentation or own) if name == "concepts" else None
                    batches = loader(train, options, shuffle=True)
                    trainer.fit(model, part, batches, loader(val, options), resume=options.resume)
                    if name == "concepts":
                        why = f"highest F1 on {len(val)} validation images"
                        fit_thresholds(model, loader(val, options), thresholds_source=why)
                    model.record = dataclasses.replace(model.record, training_data=training_data)
                    if first:
                        model.save_pretrained(folder)
            finally:
                train.augmentation = own
        if first:
            _draw_learning(folder, model, maps, watch)
    return model


def end_run(folder: Path) -> None:
    """Say in `run.json` that a run is finished, once everything that `resume` should still bring about is there.

    Checkpoints are removed.
    """
    finish_run(folder)


def _trainer(folder: Path, phase: str, options: RunOptions, maps: MapHistory | None) -> Trainer:
    hooks: list[Callable[[ConceptModel, EpochResult], None]] = [
        CSVLogger(folder / HISTORY_FILE, resume=options.resume or phase != "concepts")
    ]
    hooks += [maps] if maps is not None else []
    hooks += [TensorBoardLogger(folder / TENSORBOARD)] if options.tensorboard else []

    return Trainer(
        device=options.device,
        precision=cast(Precision, options.precision),
        seed=options.seed,
        progress_bar=options.progress_bar,
        callbacks=hooks,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        checkpoint_dir=folder / CHECKPOINTS / phase,
        compile=options.compile,
        gradient_checkpointing=options.gradient_checkpointing,
        feature_cache=options.feature_cache,
    )


def _phases(stages: Sequence[Stage]) -> list[tuple[str, list[Stage]]]:
    """The stages that look at images as they are read, and those that read what frozen parts made of them."""
    seeing = [stage for stage in stages if stage.name == "concepts"]
    rest = [stage for stage in stages if stage.name != "concepts"]
    return [(name, part) for name, part in (("concepts", seeing), ("rest", rest)) if part]


def _told(
    config: ConceptConfig, options: RunOptions, stages: Sequence[Stage], data: Mapping[str, Any]
) -> dict[str, Any]:
    """What `run.json` says: all that is needed to repeat a run, save the precision that is yet to be chosen."""
    return {
        **told_of(options, config.task_kind),
        "stages": {stage.name: stage.epochs for stage in stages},
        "data": dict(data),
        "model": dataclasses.asdict(config),
        "processes": distributed.world_size(),
        "conceptcam": __version__,
        "torch": str(torch.__version__),
    }


def _known_by(train: ConceptDataset, val: ConceptDataset) -> dict[str, Any]:
    """By what data are known again, wherever they are: their number, and SHA-256 of their labels."""
    known: dict[str, Any] = {}
    for part, dataset in (("train", train), ("val", val)):
        known |= {
            f"{part}_images": len(dataset),
            f"{part}_labels": digest(dataset.concept_labels, dataset.task_labels),
        }
    return known


def _holds_a_run(folder: Path, then: Mapping[str, Any]) -> str:
    if then.get("finished"):
        return f"{folder} holds a finished run; choose another folder"
    return f"{folder} holds an unfinished run; go on with it with `resume=True`, or choose another folder"


def _beginning(folder: Path, config: ConceptConfig, options: RunOptions, then: Mapping[str, Any]) -> str:
    if then:
        return f"Going on with the run in {folder}."
    weights = "published" if options.pretrained else "random" if options.weights is None else "given"
    return f"The backbone {config.backbone} starts from {weights} weights."


def _built(config: ConceptConfig, options: RunOptions) -> ConceptModel:
    """The model to train, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return ConceptModel.from_config(
            config, pretrained_backbone=options.pretrained, backbone_weights=options.weights
        )


def _check_trainable(model: ConceptModel, stages: Sequence[Stage], options: RunOptions) -> None:
    """Refuse at once what a later stage would refuse.

    Raises:
        ValueError: If a stage cannot teach this model as the options say.
    """
    learning = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for stage in stages:
        parameter_groups(model, stage)
        with checkpointing(model.backbone, stage, wanted=options.gradient_checkpointing):
            pass
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learning[name])
    model.eval()


def _with_precision(
    options: RunOptions,
    then: Mapping[str, Any],
    model: ConceptModel,
    stage: Stage,
    val: ConceptDataset,
    say: Callable[[str], None],
) -> RunOptions:
    """The options with a precision in place of `"auto"`: that of the run resumed, or the faster one."""
    if options.precision != "auto":
        return options
    if then:
        return dataclasses.replace(options, precision=then["precision"])
    batch = next(iter(loader(val, options)))
    chosen = distributed.broadcast(faster_precision(model, stage, batch, options.device))
    say(f"Training in {chosen}, in which a trial step was faster (of fp32 and bf16).")
    return dataclasses.replace(options, precision=chosen)
