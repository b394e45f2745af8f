"""Write a model as a file that runs without conceptcam.

OUT is a file of ONNX, for onnxruntime and many other programs, or of torch's own format pt2, as its name ends. It takes
batches of any size. Its outputs have names: concept_maps, concept_logits and, if tasks were taught, evidence,
similarity_maps (with prototypes), contributions and task_logits. It holds names, thresholds, calibration, license
and preprocessing as a JSON text.

What it says about random images is compared with the model, and printed; a file that differs is not written.

Examples:
    conceptcam export phantom-csr model.onnx
    conceptcam export runs/demo-20260101-120000 model.pt2
"""

import argparse
from pathlib import Path

from conceptcam.cli.flags import MODEL, add_flag
from conceptcam.cli.inputs import is_taken, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `conceptcam export`."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("target", type=Path, metavar="OUT", help="file to write")
    kinds = "what to write (default: as OUT ends)"
    add_flag(parser, "format", None, kinds, choices=("onnx", "pt2"))
    add_flag(parser, "any_size", False, "let the file take images of any height and width, if the backbone does")
    add_flag(parser, "force", False, "write over OUT if it is there")


def run(options: argparse.Namespace) -> None:
    """Write a model as a file that runs elsewhere."""
    from conceptcam.analysis.export import export_model
    from conceptcam.model.concept_model import ConceptModel

    if is_taken(options.target.expanduser()) and not options.force:
        raise FileExistsError(f"{options.target} is there already; add --force to write over it, or choose another OUT")
    model = ConceptModel.from_pretrained(options.model)
    report = export_model(model, options.target, format=options.format, any_size=options.any_size)
    show("\n".join(report.lines()))
