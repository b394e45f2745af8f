"""One training run as a folder: model, history, metrics and figures, all of which the command line writes."""

import copy
import dataclasses
import importlib.util
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch.utils.data import DataLoader

from conceptcam import __version__, distributed
from conceptcam.boxes import ConceptBoxes
from conceptcam.config import ConceptConfig, nan_to_null
from conceptcam.data.batch import ConceptBatch, ConceptDataset, ConceptItem
from conceptcam.draw import learning_figure, save_png
from conceptcam.evaluation import Evaluation, choose_thresholds, evaluate
from conceptcam.explanation import MapHistory, explain
from conceptcam.frozen import Storage
from conceptcam.history import EpochRecord, HistoryFile, TensorBoardLog, learning_curves, read_history
from conceptcam.losses.imbalance import Imbalance, classification_loss
from conceptcam.model import ConceptModel
from conceptcam.stages import Preset, Recipe, Stage, preset
from conceptcam.steps import Precision
from conceptcam.trainer import Trainer

log = logging.getLogger(__name__)

HISTORY_FILE = "history.csv"
METRICS_FILE = "metrics.json"
TABLE_FILE = "metrics.txt"
FIGURES = "figures"
EXPLANATIONS = "figures/images"
RUN_FILE = "run.json"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"

# Options that may be others when a run is resumed, because what is learned does not follow from them.
_FREE = ("device", "gradient_checkpointing", "cache", "tensorboard", "resume", "workers", "progress")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run trains.

    Attributes:
        preset: Name of the training preset.
        epochs: Epochs of each stage by name; stages not named keep the preset's.
        batch_size: Images per step.
        seed: Of everything random.
        device: Where to train.
        precision: As `Trainer`'s, or `"auto"`: bf16 where a trial step shows it to be faster than fp32.
        pretrained: Whether to download the backbone's published weights.
        weights: A file or a place on the Hub to start the backbone from; see `create_backbone`. One that starts from
            trained weights moves slowly.
        freeze_backbone: Whether it should not move at all.
        layer_decay: Each layer of a backbone that starts from trained weights learns at this times the rate of the
            layer behind it; see `Stage`.
        accumulate: Batches per step.
        gradient_checkpointing: Whether to save memory by computing activations twice.
        compile: Whether to run training steps through `torch.compile`.
        cache: Where stages keep what frozen parts say of each image; see `Trainer`.
        tensorboard: Whether to log epochs for TensorBoard too, into the run's folder.
        resume: Whether to go on with a run that was killed, in the same folder and with the same options, save those
            that what is learned does not follow from.
        imbalance: What to do about rare labels, of concepts and tasks; see `classification_loss`. None is what the
            preset was made with: "ratio", save that multi-class tasks are not weighted, and nothing at all for
            `paper`, which takes no other choice.
        workers: Processes that load data.
        progress: Whether to show progress bars.
    """

    preset: str = "recommended"
    epochs: Mapping[str, int] = field(default_factory=dict)
    batch_size: int = 32
    seed: int = 0
    device: str = "cpu"
    precision: Precision | Literal["auto"] = "auto"
    pretrained: bool = False
    weights: str | Path | None = None
    freeze_backbone: bool = False
    layer_decay: float = 1.0
    accumulate: int = 1
    gradient_checkpointing: bool = False
    compile: bool = False
    cache: Storage = "auto"
    tensorboard: bool = False
    resume: bool = False
    imbalance: Imbalance | None = None
    workers: int = 0
    progress: bool = False


def loader(dataset: ConceptDataset, options: RunOptions, *, shuffle: bool = False) -> DataLoader[ConceptBatch]:
    """Batches of a data set, as the options say."""
    on_gpu = torch.device(options.device).type == "cuda"
    return dataset.batches(options.batch_size, shuffle=shuffle, workers=options.workers, pin_memory=on_gpu)


def train_run(
    config: ConceptConfig,
    train: ConceptDataset,
    val: ConceptDataset,
    folder: Path,
    options: RunOptions,
    *,
    training_data: str,
    watch: ConceptItem | None = None,
    follow: Sequence[str] = (),
    augment: Callable[[ConceptItem], ConceptItem] | None = None,
) -> ConceptModel:
    """Train a model through the stages of a preset and write it into a folder.

    Writes `run.json` (the options), `history.csv` (a row as each epoch ends), checkpoints (which `end_run` removes),
    `config.json` and `model.safetensors` (after the first stage and after the last), `figures/curves.png` if matplotlib
    is there and, if an image is watched, `figures/learning.png`, of the epochs since the run was last resumed.

    Under `torchrun` every process calls this alike, and the first one writes.

    Args:
        config: What the model is; the preset's own fields are set on it.
        train: Training data; the first stage also applies its `augment`.
        val: Validation data: picks the best epoch and the thresholds.
        folder: Where to write.
        options: How to train.
        training_data: What to call the training data in the model's record.
        watch: An image as read whose concept maps are drawn epoch by epoch.
        follow: Names of the concepts to draw.
        augment: Changes training images of the first stage in place of `train.augment`.

    Raises:
        ValueError: If there is nothing to resume in the folder, or it was begun with other options.
    """
    chosen = preset(options.preset)
    recipe = _recipe(config, train, options, chosen)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = ConceptModel.from_config(
            chosen.configure(config), pretrained_backbone=options.pretrained, backbone_weights=options.weights
        )
    train.preprocess = val.preprocess = model.preprocess
    stages = chosen.stages(model.config, recipe)
    with distributed.joined(options.device):
        options = _resumed(folder, options) if options.resume else _begun(folder, model, stages[0], val, options)
        maps = MapHistory(watch.image, follow, model.config.concepts) if watch is not None else None
        own = train.augment
        try:
            # Only stage 1 learns what images look like and sees them changed. The others are run together: they read
            # what it made of the images, which is computed once for all of them.
            for name, part in _phases(stages):
                train.augment = (augment or own) if name == "concepts" else None
                trainer = _trainer(folder, name, options, maps)
                trainer.fit(
                    model, part, loader(train, options, shuffle=True), loader(val, options), resume=options.resume
                )
                if name == "concepts":
                    why = f"highest F1 on {len(val)} validation images"
                    choose_thresholds(model, loader(val, options), provenance=why)
                model.record = dataclasses.replace(model.record, training_data=training_data)
                if distributed.is_first():
                    model.save_pretrained(folder)
        finally:
            train.augment = own
        if distributed.is_first():
            _draw_learning(folder, model, maps, watch)
    return model


def end_run(folder: Path) -> None:
    """Remove checkpoints, once everything that `resume` should still bring about is in the folder."""
    gone = folder / f".{CHECKPOINTS}"
    (folder / CHECKPOINTS).rename(gone)  # at once: half of them would look like a run to go on with
    shutil.rmtree(gone)


def _phases(stages: Sequence[Stage]) -> list[tuple[str, list[Stage]]]:
    """The stages that look at images as they are read, and those that read what frozen parts made of them."""
    seeing = [stage for stage in stages if stage.needs == "see"]
    rest = [stage for stage in stages if stage.needs != "see"]
    return [(name, part) for name, part in (("concepts", seeing), ("rest", rest)) if part]


def _begun(folder: Path, model: ConceptModel, stage: Stage, val: ConceptDataset, options: RunOptions) -> RunOptions:
    """The options of a run that begins, with its precision, written down."""
    options = dataclasses.replace(options, precision=distributed.share(_precision(model, stage, val, options)))
    if distributed.is_first():
        _write_json(folder / RUN_FILE, {**dataclasses.asdict(options), "conceptcam": __version__})
        (folder / CHECKPOINTS).mkdir()
    return options


def _resumed(folder: Path, options: RunOptions) -> RunOptions:
    """The options of a run that goes on, with the precision that it began with."""
    if not (folder / CHECKPOINTS).is_dir():
        raise ValueError(f"{folder} holds no unfinished run to resume; it is finished, or was never begun")
    then = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    if options.precision == "auto":
        options = dataclasses.replace(options, precision=then["precision"])
    now = json.loads(_as_json(dataclasses.asdict(options)))
    different = [name for name in now if name not in _FREE and now[name] != then.get(name)]
    if different:
        told = "; ".join(f"{name} was {then.get(name)!r} and is {now[name]!r}" for name in different)
        raise ValueError(f"cannot resume {folder} with other options than it began with: {told}")
    return options


def _trainer(folder: Path, phase: str, options: RunOptions, maps: MapHistory | None) -> Trainer:
    hooks: list[Callable[[ConceptModel, EpochRecord], None]] = [
        HistoryFile(folder / HISTORY_FILE, resume=options.resume or phase != "concepts")
    ]
    hooks += [maps] if maps is not None else []
    hooks += [TensorBoardLog(folder / TENSORBOARD)] if options.tensorboard else []

    def on_epoch(model: ConceptModel, record: EpochRecord) -> None:
        for hook in hooks:
            hook(model, record)

    return Trainer(
        device=options.device,
        precision=cast(Precision, options.precision),
        seed=options.seed,
        progress=options.progress,
        on_epoch=on_epoch,
        accumulate=options.accumulate,
        checkpoint_dir=folder / CHECKPOINTS / phase,
        compile=options.compile,
        gradient_checkpointing=options.gradient_checkpointing,
        cache=options.cache,
    )


def _draw_learning(folder: Path, model: ConceptModel, maps: MapHistory | None, watch: ConceptItem | None) -> None:
    """Draw what was learned epoch by epoch: the watched image's maps, and the curves if matplotlib is there."""
    if watch is not None and maps is not None and maps.epochs:
        save_learning(maps, watch, model, folder / FIGURES / "learning.png")
    if importlib.util.find_spec("matplotlib") is not None:
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
        learning_curves(read_history(folder / HISTORY_FILE)).savefig(folder / FIGURES / "curves.png")


def _recipe(config: ConceptConfig, train: ConceptDataset, options: RunOptions, chosen: Preset) -> Recipe:
    asked, kind = options.imbalance, config.task_kind
    if asked not in (None, "none") and not chosen.weighs:
        raise ValueError(
            f"the preset {options.preset!r} leaves rare labels as they are, so imbalance {asked!r} would do nothing; "
            "leave it out or choose another preset"
        )
    for_tasks = asked or ("ratio" if kind == "multilabel" else "none")
    return Recipe(
        concept_loss=classification_loss(asked or "ratio", train.concept_labels),
        task_loss=classification_loss(for_tasks, train.task_labels, kind=kind) if train.tasks else None,
        epochs=options.epochs,
        backbone_pretrained=options.pretrained or options.weights is not None,
        freeze_backbone=options.freeze_backbone,
        layer_decay=options.layer_decay,
    )


def measure(
    model: ConceptModel, dataset: ConceptDataset, folder: Path, options: RunOptions, *, canaries: Sequence[str] = ()
) -> Evaluation:
    """Evaluate a model and write `metrics.json` and `metrics.txt` into a folder."""
    dataset.preprocess = model.preprocess
    result = evaluate(model, loader(dataset, options), canaries=canaries, device=options.device)
    _write_json(folder / METRICS_FILE, result.as_dict())
    (folder / TABLE_FILE).write_text(result.table(), encoding="utf-8")
    return result


def save_explanations(model: ConceptModel, items: Iterable[ConceptItem], folder: Path) -> list[Path]:
    """Draw what a model sees in images as read: one figure each, of the concepts with boxes and the most probable.

    Returns:
        The files written, named after the items.
    """
    paths = []
    for item in items:
        explanation = explain(model, item.image)
        marked = [] if item.boxes is None else [model.config.concepts[k] for k in item.boxes.concept.unique().tolist()]
        probable = [finding.concept for finding in explanation.findings if finding.concept not in marked]
        picture = explanation.figure(boxes=item.boxes, concepts=[*marked, *probable][: max(4, len(marked))])
        # The whole name, so that a/1.png and b/1.png stay two files.
        paths.append(folder / (str(Path(item.name).with_suffix("")).replace("/", "-") + ".png"))
        save_png(picture, paths[-1])
    return paths


def save_learning(maps: MapHistory, item: ConceptItem, model: ConceptModel, path: Path) -> None:
    """Draw the picture of learning: the same image's maps, epoch by epoch, up to eight of them."""
    boxes = item.boxes or ConceptBoxes.empty()
    index = [model.config.concepts.index(name) for name in maps.concepts]
    shown = torch.linspace(0, len(maps.epochs) - 1, min(8, len(maps.epochs))).round().int().tolist()
    picture = learning_figure(
        model.preprocess.undo(model.preprocess(item.image)),
        maps.concepts,
        [maps.epochs[i] for i in shown],
        [maps.heatmaps[i] for i in shown],
        boxes=[boxes.xyxy[boxes.concept == k] for k in index],
    )
    save_png(picture, path)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_as_json(content), encoding="utf-8")


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(nan_to_null(dict(content)), indent=2, ensure_ascii=False, default=str) + "\n"


def _precision(model: ConceptModel, stage: Stage, dataset: ConceptDataset, options: RunOptions) -> Precision:
    """The precision asked for; `"auto"` times a step of each, because not every machine is fast in bf16."""
    if options.precision != "auto":
        return options.precision
    batch = next(iter(loader(dataset, options))).to(options.device)
    seconds: dict[Precision, float] = {"fp32": math.inf, "bf16": math.inf}
    trial = copy.deepcopy(model).to(options.device)
    stage.prepare(trial)
    for _ in range(3):
        for precision in seconds:
            start = time.perf_counter()
            with torch.autocast(torch.device(options.device).type, torch.bfloat16, enabled=precision == "bf16"):
                output = trial.see(batch.images)
            output.concept_logits.float().mean().backward()
            output.concept_logits.detach().sum().item()  # waits for a GPU
            seconds[precision] = min(seconds[precision], time.perf_counter() - start)
    fastest = min(seconds, key=lambda precision: seconds[precision])
    log.info("a step takes %.3f s in fp32 and %.3f s in bf16: training in %s", *seconds.values(), fastest)
    return fastest
