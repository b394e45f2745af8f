"""Does a model look at a finding or at the mark that goes with it, and what cures it?

In the training images a letter on the film goes with one finding (95 % of those with it, 5 % of those without). Each
row of the table is a way to train. It is tested on the same images with the letter as in training, without any, and
with the letter on the others. Every finished training is a line in a file, as in `phantom.py`.
"""

import argparse
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from experiment import WHERE, experiment_parser, missing, publish, results_of, run_side_by_side
from measuring import machine_line, markdown, table
from phantom import by_row, columns
from shortcut_rows import CONCEPT, ROWS, Scale, draw, run_row

Result = Mapping[str, Any]

COLUMNS = (
    "on marker",
    "near marker",
    "aligned",
    "clean",
    "reversed",
    "pull",
    "pointing",
    "others AUROC",
    "others AP",
    "others pointing",
)
BARS = {"on marker": 0.2, "reversed": 0.75}
"""A cure has the map's peak on the letter less often than this, and a higher AUROC than this where it is reversed."""


def rows_of(results: Sequence[Result]) -> list[dict[str, str]]:
    """A row per way to train: mean (standard deviation) over seeds, and whether each seed meets the bars."""
    rows = []
    for name, of_row in by_row(results):
        figures = [one["figures"] for one in of_row]
        rows.append(
            {
                "row": name,
                "seeds": str(len(of_row)),
                **columns(figures, COLUMNS),
                "cured": f"{sum(map(cured, figures))} of {len(figures)}",
                "seconds": str(round(sum(one["seconds"] for one in of_row) / len(of_row))),
            }
        )
    return rows


def cured(figures: Mapping[str, float]) -> bool:
    """Whether one training meets both bars."""
    known = not any(math.isnan(figures[name]) for name in BARS)
    return known and figures["on marker"] < BARS["on marker"] and figures["reversed"] > BARS["reversed"]


def document(rows: Sequence[Mapping[str, str]], scale: Scale, options: Sequence[str]) -> str:
    """The table as a page has it, and the command that printed it."""
    command = shlex.join(["python", "benchmarks/shortcut.py", *options])
    intro = (
        f"Printed by `{command}`: {scale.images:,} images of {scale.size} pixels, {scale.epochs} epochs of stage 1 of "
        f"`{scale.backbone}`, tested on {scale.test_images:,}; mean (standard deviation) over seeds."
    )
    shown = [{key: value for key, value in row.items() if key not in ("near marker", "seconds")} for row in rows]
    return f"{intro}\n\n{markdown(shown)}"


def parser() -> argparse.ArgumentParser:
    asked = experiment_parser(__doc__, ROWS, name="shortcut")
    asked.add_argument("--images", type=int, default=Scale.images, help="to train on")
    asked.add_argument("--test-images", type=int, default=Scale.test_images)
    asked.add_argument("--size", type=int, default=Scale.size, help="side of the images in pixels")
    asked.add_argument("--epochs", type=int, default=Scale.epochs)
    asked.add_argument("--backbone", default=Scale.backbone, help="learns from scratch")
    asked.add_argument("--batch-size", type=int, default=Scale.batch_size)
    return asked


def main() -> None:
    options = parser().parse_args()
    scale = Scale(**{name: getattr(options, name) for name in Scale.__dataclass_fields__ if hasattr(options, name)})
    if not options.table:
        wanted = missing(options, scale)
        for seed in sorted({seed for _, seed in wanted}):
            draw(seed, scale)  # into the cache, before several processes need it
        run_side_by_side(
            run_row, [[one] for one in wanted], scale, options.device, jobs=options.jobs, path=options.results
        )
    rows = rows_of(results_of(options, scale))
    if rows:
        print(f"{CONCEPT}\n{table(list(rows[0]), [list(row.values()) for row in rows])}")
    print(f"{scale}; {machine_line()}")
    publish(options, {"scale": scale, "rows": rows}, lambda told: document(rows, scale, told), (*WHERE, "--device"))


if __name__ == "__main__":
    main()
