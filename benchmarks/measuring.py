"""What the benchmarks share: interleaved timing, facts about the machine, tables, files of results."""

import dataclasses
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


def interleave(
    functions: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Time functions in turns, so that whatever slows the machine down slows all of them.

    Every round starts with another function, because the first of a round finds a colder cache. With the clock
    `time.process_time`, the time that other programs take does not count.
    """
    names = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(-warmup, repeats):
        first = round_number % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            functions[name]()
            taken = clock() - start
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


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """The rows as a table of a page."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replace_block(page: Path, name: str, content: str) -> None:
    """Put text between the marks `<!-- figures:NAME -->` and `<!-- /figures:NAME -->` of a page, in place of what is.

    Raises:
        ValueError: If the page does not have these marks, once each.
    """
    text = page.read_text(encoding="utf-8")
    opening, closing = f"<!-- figures:{name} -->\n", f"\n<!-- /figures:{name} -->"
    if (text.count(opening), text.count(closing)) != (1, 1):
        raise ValueError(f"{page} has no block of figures named {name!r}")
    before, rest = text.split(opening)
    page.write_text(f"{before}{opening}{content}{closing}{rest.split(closing)[1]}", encoding="utf-8")


# A file of results: a line for each finished training.


def append(path: Path, result: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")


def finished(path: Path, scale: Any) -> dict[tuple[str, int], dict[str, Any]]:
    """(row, seed) -> result, of those at this scale, a dataclass."""
    if not path.exists():
        return {}
    wanted = json.loads(json.dumps(dataclasses.asdict(scale)))  # as JSON spells it
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(line["row"], line["seed"]): line for line in lines if line["scale"] == wanted}


def arguments_told(arguments: Sequence[str], where: Sequence[str]) -> list[str]:
    """The arguments that say what was computed: all but those in `where`, their values, and `--table`."""
    kept, skip = [], False
    for one in arguments:
        skip = (skip and not one.startswith("--")) or one in where
        if not skip and one != "--table":
            kept.append(one)
    return kept


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write what was found, and on which machine."""
    whole = {"machine": machine(), **content}

    def plain(value: Any) -> Any:
        return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else str(value)

    path.write_text(json.dumps(whole, indent=2, ensure_ascii=False, default=plain) + "\n", encoding="utf-8")


def finish(rows: Sequence[Mapping[str, Any]], options: Mapping[str, Any], path: Path | None) -> None:
    """Print the table and the machine, and write both as JSON if a file is named."""
    if rows:
        print(table(list(rows[0]), [list(row.values()) for row in rows]))
    print(machine_line())
    if path is not None:
        write_json(path, {"options": dict(options), "rows": list(rows)})
