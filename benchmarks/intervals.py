"""How often do the 95 % intervals hold the truth? Simulated data sets, whose AUROC and average precision are known."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from conceptcam._display.text import text_table
from conceptcam.metrics.intervals import _areas_of_draws, label_intervals

DRAWS = 500  # of each data set; so many leave a limit uncertain by a tenth of the width
NORMAL = torch.distributions.Normal(0.0, 1.0)
WORLDS = [(200, 0.5, 1.0), (200, 0.3, 1.0), (200, 0.3, 2.0), (200, 0.1, 1.0), (200, 0.1, 2.0), (200, 0.05, 1.0)]
WORLDS += [(200, 0.5, 3.0), (500, 0.3, 1.0), (500, 0.05, 2.0), (1000, 0.1, 1.5)]


def truths(positives: float, distance: float) -> tuple[float, float]:
    """AUROC and average precision of endlessly many scores: normal, those of positives higher by the distance."""
    cut = torch.linspace(-9, 9 + distance, 200_001, dtype=torch.float64)
    recall, alarms = 1 - NORMAL.cdf(cut - distance), 1 - NORMAL.cdf(cut)
    precision = (positives * recall / (positives * recall + (1 - positives) * alarms)).nan_to_num(1.0)
    auroc = float(NORMAL.cdf(torch.tensor(distance / 2**0.5)))
    return auroc, float(-torch.trapezoid(precision, recall))


def percentile(logits: Tensor, labels: Tensor, seed: int) -> list[tuple[float, float]]:
    """The middle 95 % of the draws: the method that `label_intervals` had before."""
    drawn = _areas_of_draws(logits, labels, None, DRAWS, seed)[1][..., 0]
    limits = torch.tensor([0.025, 0.975], dtype=torch.float64)
    return [tuple(one.nanquantile(limits).tolist()) for one in drawn]


def chosen(logits: Tensor, labels: Tensor, seed: int) -> list[tuple[float, float]]:
    found = label_intervals(logits, labels, seed=seed, draws=DRAWS)
    return [(float(one.low), float(one.high)) for one in (found.auroc, found.average_precision)]


def coverage(world: tuple[int, float, float], method: Callable, sets: int) -> list[tuple[float, float]]:
    """Of AUROC and average precision, how often the interval holds the truth, and its mean width."""
    rows, positives, distance = world
    held, width, used = [0, 0], [0.0, 0.0], 0
    for seed in range(sets):
        random = torch.Generator().manual_seed(seed + 10**6)
        labels = (torch.rand(rows, 1, generator=random) < positives).double()
        logits = torch.randn(rows, 1, generator=random).double() + distance * labels
        if not 2 <= labels.sum() <= rows - 2:
            continue
        used += 1
        for figure, (truth, (low, high)) in enumerate(zip(truths_of(world), method(logits, labels, seed), strict=True)):
            held[figure] += low <= truth <= high
            width[figure] += high - low
    return [(held[figure] / used, width[figure] / used) for figure in range(2)]


TRUTHS: dict[tuple[int, float, float], tuple[float, float]] = {}


def truths_of(world: tuple[int, float, float]) -> tuple[float, float]:
    if world not in TRUTHS:
        TRUTHS[world] = truths(*world[1:])
    return TRUTHS[world]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=2000, help="data sets of each kind")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = [["images", "positives", "figure", "truth", "percentile held", "width", "chosen held", "width"]]
    for world in WORLDS:
        old, new = (coverage(world, method, arguments.sets) for method in (percentile, chosen))
        for name, truth, before, after in zip(("AUROC", "AP"), truths_of(world), old, new, strict=True):
            cells = [f"{number:.3f}" for number in (truth, *before, *after)]
            table.append([str(world[0]), f"{world[1]:.0%}", name, *cells])
            print(" ".join(table[-1]), flush=True)
    print("\n".join(text_table(table, numbers=True)))
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
