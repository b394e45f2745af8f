"""Say what a model sees in images, and why.

Prints the most probable concepts of each image, and splits each task logit into the contributions of concepts.
Writes a figure of the maps and a JSON file per image. With --set it also says what changes if a concept is present,
absent or of another probability than the model thinks.

Examples:
    conceptcam explain runs/demo-20260101-120000 chest.png
    conceptcam explain MODEL chest.png --task Pneumonia --concept Consolidation --concept Infiltration
    conceptcam explain MODEL chest.png --set Consolidation=absent --set "Pleural effusion=0.3"
"""

import argparse

from conceptcam._checks import check_known
from conceptcam._files import file_names, write_json
from conceptcam.cli.inputs import list_images, load_model, make_options, output_folder, show, show_origin
from conceptcam.cli.options import MODEL, UNLIKE, add_flag, add_images, add_out, add_run_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `conceptcam explain`."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    add_images(parser)
    add_flag(parser, "task", None, "explain this task alone (default: all)")
    add_flag(
        parser, "concept", [], "draw this concept; may be repeated (default: the most probable ones)", action="append"
    )
    answer = "a concept as you see it: NAME=present, NAME=absent or NAME=P with a probability P; may be repeated"
    add_flag(parser, "set", [], answer, metavar="NAME=ANSWER", action="append")
    add_flag(parser, "hide_unlike", False, UNLIKE)
    add_flag(parser, "top", 5, "how many concepts to print and draw", at_least=1, metavar="N")
    add_out(parser)
    add_run_options(parser, names=("batch_size", "device"))


def run(options: argparse.Namespace) -> None:
    """Print and draw what a model sees in images."""
    from conceptcam.analysis.figures import save_png
    from conceptcam.analysis.intervention import Intervention, intervene_images, parse_answer
    from conceptcam.model.taught import check_taught

    how = make_options(options)
    intervention = Intervention(answers=dict(map(parse_answer, options.set)))
    model = load_model(options)
    intervention.check_fits(model.config)
    check_taught(model.config, model.record, task=options.task)
    for name in options.concept:
        check_known("concept", name, model.config.concepts)
    images = list_images(options.images)
    show_origin(model.record)
    folder = output_folder(options)
    results = intervene_images(model, images, intervention, task=options.task, batch_size=how.batch_size)
    for path, name, result in zip(images, file_names(images), results, strict=True):
        explanation = result.before
        written = "" if name == path.stem else f" (written as {name})"
        lines = explanation.lines(top=options.top, say_unlike=not options.hide_unlike)
        show("\n".join([f"\n{path}{written}", *lines]))
        save_png(explanation.figure(concepts=options.concept, top=options.top), folder / f"{name}.png")
        write_json(folder / f"{name}.json", result.as_dict() if options.set else explanation.as_dict())
        if options.set:
            show("\n".join(["  told otherwise:", *result.lines()]))
            save_png(result.figure(), folder / f"{name}-told.png")
    show(f"Written to {folder}")
