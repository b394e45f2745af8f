"""How hard are the phantom's settings? What stage 1 learns under each, one at a time and together.

Every finished training is a line in a file, as in `phantom.py`.
"""

import argparse
import dataclasses
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from experiment import WHERE, Scale, experiment_parser, missing, publish, results_of, run_side_by_side
from measuring import machine, machine_line, markdown, table
from phantom import by_row, columns

from conceptcam import ConceptModel, Trainer, evaluate, get_preset
from conceptcam.data import ConceptDataset, SimulatedReaders
from conceptcam.data.phantom import PHANTOM_CONCEPTS, SMALL_FINDINGS, PhantomConfig, PhantomDataset
from conceptcam.losses import class_balanced_loss
from conceptcam.metrics.classification import macro_average
from conceptcam.runs.demo import demo_config
from conceptcam.runs.options import RunOptions, loader

Result = Mapping[str, Any]
Readers = Callable[[PhantomDataset, int], SimulatedReaders]

COLUMNS = ("AUROC", "AP", "pointing", "small", "ceiling")
SMALL = [PHANTOM_CONCEPTS.index(name) for name in SMALL_FINDINGS]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting.

    Attributes:
        config: Fields of `PhantomConfig`, for all images.
        readers: Whose labels and boxes training and validation images have; test images keep the truth.
        tested: Whether test images are read by them too.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    readers: Readers | None = None
    tested: bool = False


def three_readers(data: PhantomDataset, seed: int) -> SimulatedReaders:
    """Three readers who miss three findings of ten, and the label that most of them give."""
    return SimulatedReaders(data, sensitivity=0.7, specificity=0.98, seed=seed)


def one_reader(data: PhantomDataset, seed: int) -> SimulatedReaders:
    """One of them alone."""
    return SimulatedReaders(data, sensitivity=0.7, specificity=0.98, count=1, seed=seed)


HARD: dict[str, Any] = {"contrast": 0.5, "severity": 0.5, "confusers": 4.0, "anatomy": 1.5, "noise": 2.0}

ROWS: dict[str, Row] = {
    "as drawn": Row(),
    "contrast .5": Row(config={"contrast": 0.5}),
    "severity .5": Row(config={"severity": 0.5}),
    "confusers 4": Row(config={"confusers": 4.0}),
    "anatomy 1.5": Row(config={"anatomy": 1.5}),
    "noise 2": Row(config={"noise": 2.0}),
    "co-occurrence 0": Row(config={"co_occurrence": 0.0}),
    "co-occurrence 1.6": Row(config={"co_occurrence": 1.6}),
    "all five": Row(config=HARD),
    "three readers": Row(readers=three_readers),
    "one reader": Row(readers=one_reader),
    "one reader, tests too": Row(readers=one_reader, tested=True),
}


def draw(name: str, seed: int, scale: Scale) -> list[ConceptDataset]:
    """Images to train on, to choose the epoch by, and to test on."""
    row = ROWS[name]
    config = PhantomConfig(size=scale.size, **row.config)
    counts = (scale.images, max(200, scale.images // 10), scale.test_images)
    parts = [PhantomDataset(count, seed=3 * seed + part, config=config) for part, count in enumerate(counts)]
    if row.readers is None:
        return list(parts)
    return [row.readers(part, seed) if part is not parts[2] or row.tested else part for part in parts]


def run_row(name: str, seed: int, scale: Scale, device: str = "cpu") -> dict[str, Any]:
    """Train stage 1 under one setting and measure it."""
    start = time.perf_counter()
    train, val, test = parts = draw(name, seed, scale)
    torch.manual_seed(seed)
    model = ConceptModel.from_config(demo_config(scale.size, "concepts", backbone=scale.backbone))
    for part in parts:
        part.preprocess = model.preprocess
    options = RunOptions(batch_size=scale.batch_size, seed=seed, device=device)
    balanced = class_balanced_loss("ratio", train.concept_labels)
    first = get_preset().stages(model.config, concept_loss=balanced, epochs={"concepts": scale.epochs})[0]
    Trainer(seed=seed, device=device).fit(model, [first], loader(train, options, shuffle=True), loader(val, options))
    result = evaluate(model, loader(test, options))
    summary = result.summary()
    return {
        "row": name,
        "seed": seed,
        "scale": dataclasses.asdict(scale),
        "figures": {
            "AUROC": summary["concept_auroc"],
            "AP": summary["concept_ap"],
            "pointing": summary["pointing"],
            "small": float(macro_average(result.localization.pointing[SMALL])),
            "ceiling": float(macro_average(test.ceiling)) if isinstance(test, SimulatedReaders) else 1.0,
        },
        "seconds": round(time.perf_counter() - start),
        "machine": machine(),
    }


def rows_of(results: Sequence[Result]) -> list[dict[str, str]]:
    """A row per setting: mean (standard deviation) over seeds."""
    return [
        {"setting": name, "seeds": str(len(of_row)), **columns([one["figures"] for one in of_row], COLUMNS)}
        for name, of_row in by_row(results)
    ]


def document(rows: Sequence[Mapping[str, str]], scale: Scale, options: Sequence[str]) -> str:
    """The table as a page has it, and the command that printed it."""
    command = shlex.join(["python", "benchmarks/difficulty.py", *options])
    intro = (
        f"Printed by `{command}`: {scale.images:,} images of {scale.size} pixels, {scale.epochs} epochs of stage 1 of "
        f"`{scale.backbone}`, tested on {scale.test_images:,}; mean (standard deviation) over seeds."
    )
    return f"{intro}\n\n{markdown(rows)}"


def parser() -> argparse.ArgumentParser:
    asked = experiment_parser(__doc__, ROWS, name="difficulty")
    asked.add_argument("--images", type=int, default=Scale.images, help="to train on")
    asked.add_argument("--test-images", type=int, default=Scale.test_images)
    asked.add_argument("--size", type=int, default=Scale.size, help="side of the images in pixels")
    asked.add_argument("--epochs", type=int, default=Scale.epochs)
    asked.add_argument("--backbone", default=Scale.backbone, help="learns from scratch")
    return asked


def main() -> None:
    options = parser().parse_args()
    scale = Scale(**{name: getattr(options, name) for name in Scale.__dataclass_fields__ if hasattr(options, name)})
    if not options.table:
        run_side_by_side(
            run_row, [[one] for one in missing(options, scale)], scale, options.device, jobs=options.jobs,
            path=options.results,
        )  # fmt: skip
    rows = rows_of(results_of(options, scale))
    if rows:
        print(table(list(rows[0]), [list(row.values()) for row in rows]))
    print(f"{scale}; {machine_line()}")
    publish(options, {"scale": scale, "rows": rows}, lambda told: document(rows, scale, told), (*WHERE, "--device"))


if __name__ == "__main__":
    main()
