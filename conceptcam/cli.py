"""The command line: `conceptcam demo | train | evaluate | explain | models | verify | convert`."""

import argparse
import dataclasses
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptcam.arguments import build_parser
from conceptcam.config import did_you_mean

if TYPE_CHECKING:
    from conceptcam.config import ConceptConfig
    from conceptcam.data.coco import CocoDataset
    from conceptcam.runs import RunOptions

USER_ERRORS = (ValueError, OSError, FloatingPointError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, or 2 after an error of the user's, which is told in one sentence."""
    options = build_parser(_COMMANDS).parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(message)s")
    try:
        options.run(options)
    except USER_ERRORS as error:
        if options.verbose:
            raise
        print(f"conceptcam {options.command}: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def _demo(options: argparse.Namespace) -> None:
    from conceptcam.demo import phantom_data, run_demo

    start = time.perf_counter()
    folder, run = _folder(options, "demo"), _run_options(options)
    if options.size % 8:
        raise ValueError(f"--size must be a multiple of 8, the small backbone's stride, got {options.size}")
    print(f"Drawing {options.images} chest phantoms of {options.size} pixels (kept for the next time) ...")
    data = phantom_data(options.images, size=options.size, seed=options.seed, progress=_terminal())
    figures = run_demo(folder, data, run, bottleneck=options.bottleneck, say=print)
    for name, value in figures.items():
        print(f"{name:<50} {'-' if math.isnan(value) else f'{value:.3f}'}")
    print(f"\nMinutes taken: {(time.perf_counter() - start) / 60:.1f}")
    _where(folder)
    print(f"Look at {folder / 'figures'}, or: conceptcam explain {folder} IMAGE")


def _train(options: argparse.Namespace) -> None:
    from conceptcam import distributed

    run = _run_options(options)
    with distributed.joined(run.device):  # of `torchrun`'s processes the first one writes and talks
        first = distributed.is_first()
        folder = distributed.share(_folder(options, "train") if first else None)
        assert folder is not None
        _train_in(folder, options, run, say=print if first else _nothing)


def _train_in(folder: Path, options: argparse.Namespace, run: "RunOptions", *, say: Callable[[str], None]) -> None:
    from conceptcam import distributed
    from conceptcam.data.transforms import light_augmentation
    from conceptcam.runs import EXPLANATIONS, end_run, measure, save_explanations, train_run

    train = _read(options, options.train, uncertain=options.uncertain, task_kind=options.task_kind)
    val = _read(options, options.val, concepts=train.concepts, tasks=train.tasks)
    _refuse_shared(train, val)
    config = _config(options, train)
    if not config.tasks:
        say("No task labels in the data: the model learns concepts and prototypes, and will give no diagnosis.")
    say(f"Training on {len(train)} images, validating on {len(val)}; {len(config.concepts)} concepts ...")
    model = train_run(
        config, train, val, folder, run,
        training_data=f"{len(train)} images of {options.data.name}/{options.train}",
        watch=val.read(_fullest(val)), follow=config.concepts[:6],
        augment=None if options.no_augment else light_augmentation(config.image_size),
    )  # fmt: skip
    if not distributed.is_first():
        return
    result = measure(model, val, folder, run)
    model.record = dataclasses.replace(model.record, metrics=result.summary())
    model.save_pretrained(folder)
    save_explanations(model, [val.read(i) for i in range(min(options.figures, len(val)))], folder / EXPLANATIONS)
    end_run(folder)
    say(result.table())
    say("These figures are of the validation images, which also chose the epoch and the thresholds.")
    _where(folder)


def _nothing(line: str) -> None:
    """Say nothing."""


def _config(options: argparse.Namespace, train: "CocoDataset") -> "ConceptConfig":
    from conceptcam.backbones import expected_normalization
    from conceptcam.config import ConceptConfig

    mean, std = expected_normalization(options.backbone)
    return ConceptConfig(
        concepts=train.concepts,
        tasks=train.tasks,
        task_kind=options.task_kind,
        backbone=options.backbone,
        feature_level=options.feature_level,
        image_size=tuple(options.image_size),
        mean=tuple(options.mean or mean),
        std=tuple(options.std or std),
        bottleneck=options.bottleneck,
    )


def _evaluate(options: argparse.Namespace) -> None:
    from conceptcam.model import ConceptModel
    from conceptcam.runs import EXPLANATIONS, measure, save_explanations

    folder, run = _folder(options, "evaluate"), _run_options(options)
    model = ConceptModel.from_pretrained(options.model)
    dataset = _read(options, options.split, concepts=model.config.concepts)
    if dataset.tasks:  # in the model's order, and all of them
        dataset = _read(options, options.split, concepts=model.config.concepts, tasks=model.config.tasks)
    result = measure(model, dataset, folder, run, canaries=options.canary)
    save_explanations(
        model, [dataset.read(i) for i in range(min(options.figures, len(dataset)))], folder / EXPLANATIONS
    )
    print(result.table())
    _where(folder)


def _explain(options: argparse.Namespace) -> None:
    from conceptcam.draw import save_png
    from conceptcam.explanation import explain, refuse_untaught
    from conceptcam.model import ConceptModel

    model = ConceptModel.from_pretrained(options.model)
    refuse_untaught(model, task=options.task)
    for name in options.concept:
        if name not in model.config.concepts:
            known = model.config.concepts
            raise ValueError(f"unknown concept {name!r}{did_you_mean(name, known)}; known: {list(known)}")
    if missing := [str(path) for path in options.images if not path.is_file()]:
        raise FileNotFoundError(f"{len(missing)} of {len(options.images)} images are not there: {missing[:3]}")
    folder = _folder(options, "explain")
    for path, name in zip(options.images, _file_names(options.images), strict=True):
        explanation = explain(model, path, task=options.task)
        print(f"\n{path}")
        for finding in explanation.findings[: options.top]:
            verdict = ""
            if not math.isnan(finding.threshold):
                above = finding.probability > finding.threshold
                verdict = f"{'present' if above else 'absent'} (threshold {finding.threshold:.3f})"
            print(f"  {finding.concept:<28} {finding.probability:6.3f}  {verdict}")
        reasons = explanation.reasons if options.task is None else (explanation.reason(options.task),)
        for reason in reasons:
            more = ", ..." if len(reason.shares) > options.top else ""
            parts = ", ".join(f"{share.concept} {share.share:+.2f}" for share in reason.shares[: options.top])
            print(
                f"  {reason.task}: p = {reason.probability:.3f}, "
                f"logit {reason.logit:+.2f} = bias {reason.bias:+.2f}, {parts}{more}"
            )
        if not reasons:
            print("  (this model was taught no task)")
        save_png(explanation.figure(concepts=options.concept, top=options.top), folder / f"{name}.png")
        text = json.dumps(explanation.as_dict(), indent=2, ensure_ascii=False) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    _where(folder)


def _models(options: argparse.Namespace) -> None:
    from conceptcam.zoo import list_models, models_table

    if "*" not in options.pattern and "?" not in options.pattern:
        _show_record(options.pattern)
        return
    names = list_models(options.pattern, kind=options.kind, commercial_use=True if options.commercial else None)
    if not names:
        raise ValueError(f"nothing in the zoo matches {options.pattern!r} and these options")
    print(models_table(names), end="")


def _show_record(name: str) -> None:
    from conceptcam.zoo import licence_notice, model_info

    info = model_info(name)
    for field in dataclasses.fields(info):
        print(f"{field.name:<16} {getattr(info, field.name)}")
    if notice := licence_notice(name):
        print(f"\nNote: {notice}.")


def _verify(options: argparse.Namespace) -> None:
    from conceptcam.model import ConceptModel

    model = ConceptModel.from_pretrained(options.model, revision=options.revision, verify=True)
    tensors = model.state_dict()
    numbers = sum(tensor.numel() for tensor in tensors.values())
    print(f"{options.model}: whole; all {len(tensors)} tensors ({numbers:,} numbers) fit its config")
    print(f"SHA-256 as recorded: {model.record.weights_sha256}")


def _convert(options: argparse.Namespace) -> None:
    from conceptcam.conversion import convert_backbone, convert_concept_model

    fields = {name: tuple(given) for name in ("image_size", "mean", "std") if (given := getattr(options, name))}
    if options.concepts:
        print(
            convert_concept_model(
                options.source,
                options.target,
                concepts=options.concepts,
                tasks=options.tasks,
                backbone=options.backbone,
                stages=options.stages,
                **fields,
            )
        )
    elif options.tasks or options.stages or options.mean or options.std:
        raise ValueError("--tasks, --stages, --mean and --std are of a whole concept model, which needs --concepts too")
    else:
        size = fields.get("image_size")
        print(convert_backbone(options.source, options.target, backbone=options.backbone, image_size=size))


def _file_names(paths: Sequence[Path]) -> list[str]:
    """What to call what is written about each image: its stem, or its whole path where stems are not unique."""
    stems = [path.stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    wholes = ["-".join(path.with_suffix("").parts).lstrip("/-") for path in paths]
    return [f"{whole}-{k}" if wholes.count(whole) > 1 else whole for k, whole in enumerate(wholes)]


def _read(options: argparse.Namespace, annotations: str, **names: Any) -> "CocoDataset":
    from conceptcam.data.coco import CocoDataset

    images = options.images if options.images is not None else options.data / "images"
    try:
        return CocoDataset(options.data / annotations, images, bad_boxes=options.bad_boxes, **names)
    except ValueError as error:
        said = str(error).replace("pass bad_boxes='skip'", "add --bad-boxes skip")
        said = said.replace("pass uncertain='ignore'", "leave --uncertain out")
        raise ValueError(f"{options.data / annotations}: {said}") from error


def _refuse_shared(train: "CocoDataset", val: "CocoDataset") -> None:
    """Figures on images that were trained on say nothing."""
    if shared := sorted({*train.names} & {*val.names}):
        raise ValueError(
            f"{len(shared)} images are in both training and validation data: {shared[:3]}; take them out of one"
        )


def _fullest(dataset: "CocoDataset") -> int:
    """The image with the most concepts."""
    return int(dataset.concept_labels.nan_to_num().sum(dim=1).argmax())


def _run_options(options: argparse.Namespace) -> "RunOptions":
    from conceptcam.runs import RunOptions

    given = vars(options)
    names = {field.name for field in dataclasses.fields(RunOptions)} - {"epochs", "progress"}
    known = {name: given[name] for name in names & given.keys()}
    _check_device(given.get("device", "cpu"))
    epochs = {**given.get("default_epochs", {}), **dict(given.get("epochs", ()))}
    return RunOptions(**known, epochs=epochs, progress=_terminal())


def _check_device(name: str) -> None:
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise ValueError(f"cannot use --device {name}: {str(error).splitlines()[0]}") from error


def _sentence(error: Exception) -> str:
    """The error on one line; of one that crossed from a loader process, the line that says what was wrong."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.splitlines())


def _terminal() -> bool:
    return sys.stderr.isatty()


def _folder(options: argparse.Namespace, command: str) -> Path:
    folder: Path = options.out or Path("runs", f"{command}-{time.strftime('%Y%m%d-%H%M%S')}")
    if getattr(options, "resume", False):
        if options.out is None:
            raise ValueError("--resume needs --out with the folder of the run to go on with")
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and not an empty folder; choose another --out")
    return folder


def _where(folder: Path) -> None:
    print(f"Written to {folder}")


_COMMANDS = {
    "demo": _demo,
    "train": _train,
    "evaluate": _evaluate,
    "explain": _explain,
    "models": _models,
    "verify": _verify,
    "convert": _convert,
}

if __name__ == "__main__":
    sys.exit(main())
