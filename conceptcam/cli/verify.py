"""Check that a model is whole and unchanged.

Loads a model strictly, every tensor of it, and compares its weights with the SHA-256 that was recorded when they
were saved. Loading a model does the same; here a model without a recorded SHA-256 is refused too.

Examples:
    conceptcam verify runs/demo-20260101-120000
    conceptcam verify phantom-csr
    conceptcam verify organization/name --revision v1
"""

import argparse

from conceptcam.cli.flags import MODEL, add_flag
from conceptcam.cli.inputs import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `conceptcam verify`."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    add_flag(parser, "revision", None, "branch, tag or commit on the Hub (default: the main branch)")


def run(options: argparse.Namespace) -> None:
    """Check that a model is whole and unchanged."""
    from conceptcam.model.concept_model import ConceptModel

    model = ConceptModel.from_pretrained(options.model, revision=options.revision, verify=True)
    tensors = model.state_dict()
    numbers = sum(tensor.numel() for tensor in tensors.values())
    show(f"{options.model}: whole; all {len(tensors)} tensors ({numbers:,} numbers) fit its config")
    show(f"SHA-256 as recorded: {model.record.weights_sha256}")
