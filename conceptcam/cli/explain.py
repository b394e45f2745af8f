"""Say what a model sees in images, and why.

Prints the most probable concepts of each image, and splits each task logit into the contributions of concepts.
Writes a figure of the maps and a JSON file per image. With --set, --here, --not-here and --reject you tell the model
that it is wrong: a concept is present, absent or of another probability, it is in a place or not there, or a prototype
does not count. What the model concludes before and after is then printed and drawn.

Examples:
    conceptcam explain runs/demo-20260101-120000 chest.png
    conceptcam explain MODEL chest.png --task Pneumonia --concept Consolidation --concept Infiltration
    conceptcam explain MODEL chest.png --set Consolidation=absent --set "Pleural effusion=0.3"
    conceptcam explain MODEL chest.png --here Edema=0.1,0.4,0.4,0.8 --reject Consolidation=2
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from conceptcam._checks import check_known
from conceptcam._files import file_names, write_json
from conceptcam.cli.flags import MODEL, UNLIKE, add_flag, add_images, add_out, add_run_options
from conceptcam.cli.inputs import list_images, load_model, make_options, output_folder, show, show_origin

if TYPE_CHECKING:
    from conceptcam.analysis.intervention import Intervention


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
    where = "left, top, right and bottom as fractions of the image; may be repeated"
    add_flag(parser, "here", [], f"the concept is in this box: {where}", metavar="NAME=BOX", action="append")
    add_flag(parser, "not_here", [], f"the concept is not in this box: {where}", metavar="NAME=BOX", action="append")
    number = "evidence that does not count: of a concept, NAME, or of one of its prototypes, NAME=N, counted from 0"
    add_flag(parser, "reject", [], f"{number}; may be repeated", metavar="NAME=N", action="append")
    add_flag(parser, "hide_unlike", False, UNLIKE)
    add_flag(parser, "top", 5, "how many concepts to print and draw", at_least=1, metavar="N")
    add_out(parser)
    add_run_options(parser, names=("batch_size", "device"))


def run(options: argparse.Namespace) -> None:
    """Print and draw what a model sees in images."""
    from conceptcam.analysis.figures import save_png
    from conceptcam.analysis.intervention_result import intervene_images
    from conceptcam.model.taught import check_taught

    how = make_options(options)
    intervention = _intervention(options)
    says = not options.hide_unlike
    answered = bool(options.set or options.here or options.not_here or options.reject)
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
        lines = explanation.lines(top=options.top, say_unlike=says)
        show("\n".join([f"\n{path}{written}", *lines]))
        heading = explanation.heading(say_unlike=says)
        save_png(explanation.figure(concepts=options.concept, top=options.top, heading=heading), folder / f"{name}.png")
        write_json(folder / f"{name}.json", result.as_dict() if answered else explanation.as_dict())
        if answered:
            show("\n".join(["  with these answers:", *result.lines()]))
            save_png(result.figure(say_unlike=says), folder / f"{name}-answered.png")
    show(f"Written to {folder}")


def _intervention(options: argparse.Namespace) -> "Intervention":
    """What the flags answer.

    Raises:
        ValueError: If one has another form.
    """
    from conceptcam.analysis.intervention import Intervention, parse_answer

    return Intervention(
        answers=dict(map(parse_answer, options.set)),
        here=_boxes(options.here, "--here"),
        not_here=_boxes(options.not_here, "--not-here"),
        rejected=list(map(_rejected, options.reject)),
    )


def _boxes(texts: Sequence[str], flag: str) -> dict[str, list[list[float]]]:
    """Concept -> its boxes, of texts such as "Edema=0.1,0.4,0.4,0.8"."""
    found: dict[str, list[list[float]]] = {}
    for text in texts:
        name, _, corners = text.rpartition("=")
        try:
            box = [float(one) for one in corners.split(",")]
        except ValueError:
            box = []
        if not name or len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            raise ValueError(
                f"{flag} expects NAME=LEFT,TOP,RIGHT,BOTTOM as fractions of the image, such as "
                f"'Edema=0.1,0.4,0.4,0.8'; got {text!r}"
            )
        found.setdefault(name, []).append(box)
    return found


def _rejected(text: str) -> str | tuple[str, int]:
    """A concept, or one of its prototypes, of a text such as "Edema" or "Edema=2"."""
    name, _, number = text.rpartition("=")
    return (name, int(number)) if name and number.isdecimal() else text
