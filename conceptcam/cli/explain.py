"""Say what a model sees in images, and why.

Prints the most probable concepts of each image, and splits each task logit into the contributions of concepts.
Writes a figure of the maps and a JSON file per image.

Examples:
    conceptcam explain runs/demo-20260101-120000 chest.png
    conceptcam explain MODEL chest.png --task Pneumonia --concept Consolidation --concept Infiltration
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from conceptcam._checks import check_known
from conceptcam._files import write_json
from conceptcam.cli.inputs import list_images, load_model, make_options, output_folder, show
from conceptcam.cli.options import MODEL, add_flag, add_images, add_out, add_run_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `conceptcam explain`."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    add_images(parser)
    add_flag(parser, "task", None, "explain this task alone (default: all)")
    add_flag(
        parser, "concept", [], "draw this concept; may be repeated (default: the most probable ones)", action="append"
    )
    add_flag(parser, "top", 5, "how many concepts to print and draw", at_least=1, metavar="N")
    add_out(parser)
    add_run_options(parser, names=("batch_size", "device"))


def run(options: argparse.Namespace) -> None:
    """Print and draw what a model sees in images."""
    from conceptcam.analysis.explanation import explain_images
    from conceptcam.analysis.figures import save_png
    from conceptcam.model.taught import check_taught

    how = make_options(options)
    model = load_model(options)
    check_taught(model.config, model.record, task=options.task)
    for name in options.concept:
        check_known("concept", name, model.config.concepts)
    images = list_images(options.images)
    folder = output_folder(options)
    explanations = explain_images(model, images, task=options.task, batch_size=how.batch_size)
    for path, name, explanation in zip(images, _file_names(images), explanations, strict=True):
        show("\n".join([f"\n{path}", *explanation.lines(top=options.top)]))
        save_png(explanation.figure(concepts=options.concept, top=options.top), folder / f"{name}.png")
        write_json(folder / f"{name}.json", explanation.as_dict())
    show(f"Written to {folder}")


def _file_names(paths: Sequence[Path]) -> list[str]:
    """What to call what is written about each image: its stem, or its whole path where stems are not unique."""
    stems = [path.stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    wholes = ["-".join(path.with_suffix("").parts).lstrip("/-") for path in paths]
    return [f"{whole}-{k}" if wholes.count(whole) > 1 else whole for k, whole in enumerate(wholes)]
