"""What the benchmarks share: interleaved timing, facts about the machine, a plain table, a JSON file."""

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Timings:
    """Seconds of several functions, measured in turns.

    Attributes:
        seconds: Name -> one time per round.
    """

    seconds: Mapping[str, Sequence[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, over: str) -> float:
        """How many times as long one takes as the other, by medians."""
        return self.median(name) / self.median(over)

    def middle_half(self, name: str, over: str) -> tuple[float, float]:
        """Quartiles of the ratio within single rounds: how far to trust `ratio`."""
        pairs = sorted(a / b for a, b in zip(self.seconds[name], self.seconds[over], strict=True))
        return pairs[len(pairs) // 4], pairs[-1 - len(pairs) // 4]


def interleave(functions: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 2) -> Timings:
    """Time functions in turns, so that whatever slows the machine down slows all of them.

    Every round starts with another function, because the first of a round finds a colder cache.
    """
    names = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(-warmup, repeats):
        first = round_number % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            functions[name]()
            taken = time.perf_counter() - start
            if round_number >= 0:
                seconds[name].append(taken)
    return Timings(seconds)


def machine() -> dict[str, Any]:
    """What figures of speed depend on."""
    return {
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def machine_line() -> str:
    return ", ".join(f"{name} {value}" for name, value in machine().items())


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows as text: the first column left, the others right; a float with three decimals, NaN and None as `-`."""
    texts = [list(columns), *([text(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(columns))]
    lines = [
        "  ".join(cell.ljust(width) if not i else cell.rjust(width) for i, (cell, width) in enumerate(zipped)).rstrip()
        for zipped in (list(zip(row, widths, strict=True)) for row in texts)
    ]
    return "\n".join(lines)


def text(value: Any) -> str:
    if value is None or isinstance(value, float) and math.isnan(value):
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def finish(rows: Sequence[Mapping[str, Any]], options: Mapping[str, Any], path: Path | None) -> None:
    """Print the table and the machine, and write both as JSON if a file is named."""
    if rows:
        print(table(list(rows[0]), [list(row.values()) for row in rows]))
    print(machine_line())
    if path is not None:
        shown = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
        content = {"machine": machine(), "options": shown, "rows": list(rows)}
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
