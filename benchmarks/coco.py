"""What do trained weights buy on real images with boxes, and what does it buy to fine-tune them?

One backbone, with trained weights frozen, with the same weights fine-tuned, and learning from nothing, each trained by
`train_run` as `conceptcam train` does, on a folder with train.json, val.json and images/, and measured on the
validation images, which also choose the epoch: the figures compare, they do not promise. Each model's folder, with
pictures of what it sees, stays in `--out`.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from measuring import finish

from conceptcam import CocoDataset
from conceptcam.analysis.evaluation_result import Evaluation
from conceptcam.data.transforms import default_augmentation
from conceptcam.model.data_config import config_for_data
from conceptcam.runs.options import RunOptions
from conceptcam.runs.run import train_run

COLUMNS = (
    "start",
    "seconds",
    "concept",
    "pos",
    "neg",
    "AUROC",
    "AP",
    "share of pos",
    "boxes",
    "pointing",
    "random map",
    "centre",
)


STARTS = {
    "frozen": {"freeze_backbone": True},
    "fine-tuned": {"freeze_backbone": False},
    "random": {"freeze_backbone": False},
}
"""How the backbone starts and whether it learns: options of `RunOptions`."""


def run(options: argparse.Namespace, start: str) -> Evaluation:
    """Train and measure one model."""
    train, val = (
        CocoDataset(options.data / file, options.data / "images", invalid_boxes=options.invalid_boxes)
        for file in ("train.json", "val.json")
    )
    size = tuple(options.image_size)
    config = config_for_data(train, options.backbone, feature_level=options.feature_level, image_size=size)
    how = RunOptions(
        epochs={} if start == "frozen" else {"concepts": options.epochs, "prototypes": 2, "task": 2},
        batch_size=options.batch_size,
        precision=options.precision,
        seed=options.seed,
        weights=None if start == "random" else options.weights,
        **STARTS[start],
    )
    augmentation = default_augmentation(config.image_size)
    result = train_run(
        config, train, val, options.out / start, how,
        training_data=options.data.name, drawn=range(options.figures), augmentation=augmentation, echo=print,
    )  # fmt: skip
    assert result.evaluation is not None
    return result.evaluation


def rows_of(start: str, seconds: float, result: Evaluation) -> list[list[Any]]:
    """One row per concept: what the model says of it, beside what chance would."""
    scores, place = result.concept_scores, result.localization
    counts = list(zip(scores.positives.tolist(), scores.negatives.tolist(), strict=True))
    return [
        [
            start,
            round(seconds),
            concept,
            *counts[k],
            scores.auroc[k].item(),
            scores.average_precision[k].item(),
            counts[k][0] / max(1, sum(counts[k])),
            int(place.support[k]),
            place.pointing[k].item(),
            place.random_pointing[k].item(),
            place.center_pointing[k].item(),
        ]
        for k, concept in enumerate(result.concepts)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.json, val.json and images/")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file of the backbone")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--backbone", default="timm:tf_efficientnet_lite0")
    parser.add_argument("--feature-level", type=int, default=-2)
    parser.add_argument("--image-size", type=int, nargs=2, default=(240, 320))
    parser.add_argument("--epochs", type=int, default=12, help="of stage 1, where the backbone learns")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--invalid-boxes", choices=("refuse", "skip"), default="refuse")
    parser.add_argument("--figures", type=int, default=12, help="validation images to draw")
    parser.add_argument("--out", type=Path, default=Path("runs/coco"), help="where the models go")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    rows = []
    for start in options.starts:
        begun = time.perf_counter()
        result = run(options, start)
        rows += rows_of(start, time.perf_counter() - begun, result)
    finish([dict(zip(COLUMNS, row, strict=True)) for row in rows], vars(options), options.json)


if __name__ == "__main__":
    main()
