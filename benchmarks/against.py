"""Is this version as fast as another one? Importing it and its box loss, by processor time, in turns.

The other version is a folder with its `conceptcam`, such as `git worktree add ../before v0.1` makes:

    python benchmarks/against.py ../before
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from measuring import finish

TARGET = 1.03
"""Highest ratio of this version's time to the other's."""

HERE = Path(__file__).parents[1]

IMPORT = """
import time
start = time.process_time()
import conceptcam
print(time.process_time() - start)
"""

LOSS = """
import statistics, time
import torch
from conceptcam import BBoxGuidedConceptLoss, ConceptBoxes
torch.set_num_threads(1)
random = torch.Generator().manual_seed(0)
maps = torch.randn(32, 22, 14, 14, generator=random).requires_grad_()
labels = (torch.rand(32, 22, generator=random) < 0.3).float()
low = torch.rand(256, 2, generator=random) * 0.5
concept, image = (torch.randint(0, count, (256,), generator=random) for count in (22, 32))
boxes, loss, seconds = ConceptBoxes(torch.cat([low, low + 0.3], dim=1), concept, image), BBoxGuidedConceptLoss(), []
for _ in range(120):
    start = time.process_time()
    loss(maps, labels, boxes).backward()
    seconds.append(time.process_time() - start)
print(statistics.median(seconds[20:]))
"""

PROGRAMS = {"import conceptcam": IMPORT, "box loss, forward and backward": LOSS}


def measure(other: Path, *, repeats: int) -> list[dict[str, Any]]:
    """One row for each program: medians of both versions in milliseconds, and their ratio."""
    rows = []
    for what, program in PROGRAMS.items():
        seconds: dict[Path, list[float]] = {HERE: [], other: []}
        for number in range(-1, repeats):
            for tree, found in seconds.items():
                value = seconds_of(program, tree)
                if number >= 0:  # the first round compiles to bytecode and warms the disk's cache
                    found.append(value)
        this, before = (1000 * statistics.median(found) for found in seconds.values())
        rows.append(
            {
                "what": what,
                "this ms": round(this, 3),
                "other ms": round(before, 3),
                "ratio": round(this / before, 3),
                "target": TARGET,
                "met": this <= TARGET * before,
            }
        )
    return rows


def seconds_of(program: str, tree: Path) -> float:
    """What a program prints that runs with the package of a folder."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
    )  # fmt: skip
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="folder that holds the other version")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    if not (options.other / "conceptcam" / "__init__.py").is_file():
        parser.error(f"there is no conceptcam in {options.other}; name the folder that holds the package")
    finish(measure(options.other.resolve(), repeats=options.repeats), vars(options), options.json)


if __name__ == "__main__":
    main()
