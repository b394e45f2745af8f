"""Train, look at and check a model of a drawn chest, in minutes.

Shows what a trained model sees in a drawn chest. Then draws a data set of such chests, on which every finding and
its place is known exactly; trains a three-stage concept model on them from scratch; measures it on images it has
never seen; and draws what it sees.

Writes config.json and model.safetensors (load the folder with ConceptModel.from_pretrained), history.csv,
run.json, metrics.json, metrics.txt, summary.json and figures/: first.png is the first look, phantom.png shows every
finding, learning.png the maps epoch by epoch, images/ what the model sees in test images.

Examples:
    conceptcam demo                          the whole demonstration
    conceptcam demo --full                   more images and epochs, for the figures of the docs
    conceptcam demo --images 1000 --epochs concepts=3 prototypes=2 task=2 --out runs/quick
    conceptcam demo --bottleneck concepts    the classic bottleneck
"""

import argparse
import math
import sys
import time

from conceptcam.cli.flags import add_bottleneck, add_flag, add_out, add_run_options
from conceptcam.cli.inputs import FINISHED, make_options, output_folder, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `conceptcam demo`."""
    from conceptcam.runs.demo import FULL, QUICK

    add_flag(parser, "full", False, f"{FULL.images} images and the larger {FULL.backbone}")
    images = f"training images to draw; validation and test images follow in number (default: {QUICK.images})"
    add_flag(parser, "images", None, images, at_least=1, metavar="N")
    add_flag(parser, "size", 112, "side of the images, a multiple of 8", at_least=1, metavar="PX")
    add_bottleneck(parser)
    add_out(parser)
    add_run_options(parser, QUICK.options, leave_out=("pretrained", "weights", "freeze_backbone", "image_cache"))


def run(options: argparse.Namespace) -> None:
    """Train, look at and check a model of a drawn chest."""
    from conceptcam.data.phantom.dataset import phantom_data
    from conceptcam.runs.demo import FULL, QUICK, demo_config, first_look, run_demo
    from conceptcam.runs.folder import RunFolder
    from conceptcam.runs.options import options_to_dict

    start = time.perf_counter()
    settings = FULL if options.full else QUICK
    images = options.images or settings.images
    how, place = make_options(options, settings.options), output_folder(options, resume=options.resume)
    if options.size % 8:
        raise ValueError(f"--size must be a multiple of 8, the small backbone's stride, got {options.size}")
    config = demo_config(options.size, options.bottleneck, backbone=settings.backbone)
    folder = RunFolder(place)
    if folder.state == "finished":
        model = {name: getattr(config, name) for name in ("image_size", "bottleneck", "backbone")}
        known = {"data": {"train_images": images}, "model": model}
        folder.check_resume_options({**options_to_dict(how), **known})
        folder.remove_checkpoints()
        return show(FINISHED.format(place))
    with folder.removed_unless_trained():
        first_look(place, show, seed=how.seed)
        show(f"Drawing {images} chest phantoms of {options.size} pixels (kept for the next time) ...")
        part = images / settings.images
        data = phantom_data(
            images, val_count=max(200, round(part * settings.val_images)),
            test_count=max(300, round(part * settings.test_images)),
            size=options.size, seed=how.seed, progress=sys.stderr.isatty(),
        )  # fmt: skip
        figures = run_demo(place, config, data, how, echo=show)
    for name, value in figures.items():
        show(f"{name:<50} {'-' if math.isnan(value) else f'{value:.3f}'}")
    show(f"\nMinutes taken: {(time.perf_counter() - start) / 60:.1f}\nWritten to {place}")
    return show(f"Look at {place / 'figures'}, or: conceptcam explain {place} IMAGE")
