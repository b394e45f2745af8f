"""What `conceptcam evaluate`, `explain`, `models`, `verify` and `convert` do."""

import argparse
import dataclasses
import json
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptcam._checks import did_you_mean
from conceptcam.cli.command_inputs import is_taken, output_folder, read_data, run_options

if TYPE_CHECKING:
    from conceptcam.analysis.explanation import Explanation

Say = Callable[[str], None]


def evaluate(options: argparse.Namespace, say: Say) -> None:
    """Measure a trained model."""
    from conceptcam.model.concept_model import ConceptModel
    from conceptcam.runs.reports import EXPLANATIONS, measure, save_explanations

    folder, run = output_folder(options), run_options(options)
    model = ConceptModel.from_pretrained(options.model)
    dataset = read_data(options, "split", concepts=model.config.concepts)
    if dataset.tasks:  # in the model's order, and all of them
        dataset = read_data(options, "split", concepts=model.config.concepts, tasks=model.config.tasks)
    result = measure(model, dataset, folder, run, sided_concepts=options.sided)
    save_explanations(
        model, [dataset.load_item(i) for i in range(min(options.figures, len(dataset)))], folder / EXPLANATIONS
    )
    say(result.table())
    say(f"Written to {folder}")


def explain(options: argparse.Namespace, say: Say) -> None:
    """Say what a model sees in images, and draw it."""
    from conceptcam.analysis.explanation import explain as explain_image
    from conceptcam.analysis.figures import save_png
    from conceptcam.model.concept_model import ConceptModel
    from conceptcam.model.taught import check_taught

    model = ConceptModel.from_pretrained(options.model)
    check_taught(model.config, model.record, task=options.task)
    for name in options.concept:
        if name not in model.config.concepts:
            known = model.config.concepts
            raise ValueError(f"unknown concept {name!r}{did_you_mean(name, known)}; known: {list(known)}")
    if missing := [str(path) for path in options.images if not path.is_file()]:
        raise FileNotFoundError(f"{len(missing)} of {len(options.images)} images are not there: {missing[:3]}")
    folder = output_folder(options)
    for path, name in zip(options.images, _file_names(options.images), strict=True):
        explanation = explain_image(model, path, task=options.task)
        say(f"\n{path}")
        for line in _lines(explanation, options):
            say(line)
        save_png(explanation.figure(concepts=options.concept, top=options.top), folder / f"{name}.png")
        text = json.dumps(explanation.as_dict(), indent=2, ensure_ascii=False) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    say(f"Written to {folder}")


def _lines(explanation: "Explanation", options: argparse.Namespace) -> Iterator[str]:
    """The foremost concepts, and each task as a sum."""
    for prediction in explanation.concepts[: options.top]:
        verdict = ""
        if not math.isnan(prediction.threshold):
            above = prediction.probability > prediction.threshold
            verdict = f"{'present' if above else 'absent'} (threshold {prediction.threshold:.3f})"
        yield f"  {prediction.concept:<28} {prediction.probability:6.3f}  {verdict}"
    tasks = explanation.tasks if options.task is None else (explanation.task(options.task),)
    for task in tasks:
        more = ", ..." if len(task.contributions) > options.top else ""
        parts = ", ".join(f"{part.concept} {part.value:+.2f}" for part in task.contributions[: options.top])
        yield (
            f"  {task.task}: p = {task.probability:.3f}, logit {task.logit:+.2f} = bias {task.bias:+.2f}, {parts}{more}"
        )
    if not tasks:
        yield "  (this model was taught no task)"


def _file_names(paths: Sequence[Path]) -> list[str]:
    """What to call what is written about each image: its stem, or its whole path where stems are not unique."""
    stems = [path.stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    wholes = ["-".join(path.with_suffix("").parts).lstrip("/-") for path in paths]
    return [f"{whole}-{k}" if wholes.count(whole) > 1 else whole for k, whole in enumerate(wholes)]


def models(options: argparse.Namespace, say: Say) -> None:
    """List what can be loaded by name, or say all that is known of one."""
    from conceptcam.hub.zoo import list_zoo, models_table

    if "*" not in options.pattern and "?" not in options.pattern:
        return _show(options.pattern, say)
    names = list_zoo(options.pattern, kind=options.kind, commercial_use=True if options.commercial else None)
    if not names:
        raise ValueError(f"nothing in the zoo matches {options.pattern!r} and these options")
    return say(models_table(names).rstrip())


def _show(name: str, say: Say) -> None:
    from conceptcam.hub.architectures import ARCHITECTURES
    from conceptcam.hub.published_backbones import backbone_info
    from conceptcam.hub.zoo import bundled_models, license_notice, model_info

    if (
        name not in bundled_models()
        and name not in ARCHITECTURES
        and backbone_info(name) is None
        and _is_backbone(name)
    ):
        return say(
            f"{name} is a backbone, not a model: train one on it with `conceptcam train DATA --backbone {name}`, or in "
            f"Python make it with `create_backbone({name!r})`"
        )
    for field, text in _facts(model_info(name)):
        say(textwrap.fill(f"{field:<22} {text}", width=110, subsequent_indent=" " * 23))
    return say(f"\nNote: {notice}.") if (notice := license_notice(name)) else None


def _is_backbone(name: str) -> bool:
    """Whether a backbone has that name that the zoo has no record of.

    Raises:
        ValueError: If the name is one of timm's, and timm has no such model.
    """
    from conceptcam.backbones import backbone_normalization, list_backbones  # torch takes a second to import

    if name.startswith("timm:"):
        backbone_normalization(name)
        return True
    return name in list_backbones()


def _facts(record: Any) -> list[tuple[str, str]]:
    """The fields of a record, those of records within it too, as texts."""
    facts = []
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        facts += _facts(value) if dataclasses.is_dataclass(value) else [(field.name, _as_text(value))]
    return list(dict.fromkeys(facts))


def _as_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_as_text(one)}" for name, one in value.items()) or "-"
    if isinstance(value, tuple):
        return ", ".join(map(_as_text, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    return "-" if value is None or value == "" else str(value)


def verify(options: argparse.Namespace, say: Say) -> None:
    """Check that a model is whole and unchanged."""
    from conceptcam.model.concept_model import ConceptModel

    model = ConceptModel.from_pretrained(options.model, revision=options.revision, verify=True)
    tensors = model.state_dict()
    numbers = sum(tensor.numel() for tensor in tensors.values())
    say(f"{options.model}: whole; all {len(tensors)} tensors ({numbers:,} numbers) fit its config")
    say(f"SHA-256 as recorded: {model.record.weights_sha256}")


def convert(options: argparse.Namespace, say: Say) -> None:
    """Turn a checkpoint of others into safetensors."""
    from conceptcam.model.convert import convert_backbone, convert_concept_model

    if is_taken(options.target.expanduser()) and not options.force:
        raise FileExistsError(f"{options.target} is there already; add --force to write over it, or choose another OUT")
    fields = {name: tuple(given) for name in ("image_size", "mean", "std") if (given := getattr(options, name))}
    if options.concepts:
        say(
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
        say(convert_backbone(options.source, options.target, backbone=options.backbone, image_size=size))
