"""What do presets, bottlenecks and boxes buy? The phantom's tables, over several seeds.

A seed changes the weights at the start, the order of batches and the images. Every finished training is a line in
a file, and a line that is there is not computed again: stop and start as you like, and print the tables of whatever
is finished with `--table`.
"""

import argparse
import math
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import experiment
from experiment import RowSeed, experiment_parser, missing, publish, results_of, run_side_by_side
from measuring import machine_line, markdown, table
from phantom_rows import COMPLETENESS, DISEASE_FIGURES, ROWS, Scale, run_row

Result = Mapping[str, Any]
Table = list[dict[str, str]]

SEEN = ("AUROC", "AP", "pointing", "small", "mirror gap", "energy")
DISEASES = (*DISEASE_FIGURES, *(f"{name}, {one:g}" for one in COMPLETENESS[1:] for name in DISEASE_FIGURES))
PROTOTYPES = ("assigned right", "alive", "top share", "closest", "top-10 purity")


def seen_table(results: Sequence[Result], reach: float) -> Table:
    """What stage 1 learnt, once for all rows that share it."""
    rows = []
    for name, of_row in by_row(results):
        if ROWS[name].same_seen_as is None and not ROWS[name].black_box:
            figures = [next(iter(one["figures"].values())) for one in of_row]
            curves = [one["stage 1 AUROC by epoch"] for one in of_row]
            epochs = {f"epochs to {reach:.2f}": epochs_to(reach, curves)}
            rows.append({"row": name, "seeds": str(len(of_row)), **columns(figures, SEEN), **epochs})
    return rows


def diseases_table(results: Sequence[Result]) -> Table:
    """What each bottleneck makes of it, beside what can be had at all."""
    rows = []
    for name, of_row in by_row(results):
        for bottleneck in of_row[0]["figures"]:
            figures = [one["figures"][bottleneck] for one in of_row]
            rows.append(
                {"row": name, "bottleneck": bottleneck, "seeds": str(len(of_row)), **columns(figures, DISEASES)}
            )
    return rows


def prototypes_table(results: Sequence[Result]) -> Table:
    """What became of the prototypes."""
    rows = []
    for name, of_row in by_row(results):
        own = ROWS[name].same_seen_as is None or ROWS[name].second != "preset"  # a stage 2 of its own
        if "prototypes" in of_row[0]["figures"] and own:
            figures = [one["figures"]["prototypes"] for one in of_row]
            rows.append({"row": name, "seeds": str(len(of_row)), **columns(figures, PROTOTYPES)})
    return rows


def by_row(results: Sequence[Result]) -> Iterator[tuple[str, list[Result]]]:
    for name in dict.fromkeys(one["row"] for one in results):
        yield name, [one for one in results if one["row"] == name]


def columns(figures: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, str]:
    return {name: spread([one.get(name, math.nan) for one in figures]) for name in names}


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation: '.912 (.004)'; `-` of what is undefined."""
    if any(map(math.isnan, values)):
        return "-"
    mean = f"{statistics.fmean(values):.3f}"
    told = f"{mean} ({statistics.stdev(values):.3f})" if len(values) > 1 else mean
    return told.replace("0.", ".")


def epochs_to(reach: float, curves: Sequence[Sequence[float]]) -> str:
    """First epoch of each seed whose validation AUROC is high enough; `>8` if none of 8 is."""
    firsts = [
        next((str(e) for e, score in enumerate(curve, 1) if score >= reach), f">{len(curve)}") for curve in curves
    ]
    return " ".join(firsts)


def document(tables: Mapping[str, Table], scale: Scale, options: Sequence[str]) -> str:
    """The tables as a page has them, and the command that printed them."""
    command = shlex.join(["python", "benchmarks/phantom.py", *options])
    first, second, third = scale.epochs
    intro = (
        f"Printed by `{command}`: {scale.images:,} images of {scale.size} pixels, {first}, {second} and {third} epochs "
        f"of the three stages, in {scale.precision}; mean (standard deviation) over seeds."
    )
    return "\n\n".join([intro, *(f"**{title}**\n\n{markdown(rows)}" for title, rows in tables.items() if rows)])


def parser() -> argparse.ArgumentParser:
    usual = [name for name, row in ROWS.items() if not row.borrowed_rates]
    asked = experiment_parser(__doc__, ROWS, name="phantom", usual=usual)
    asked.set_defaults(block="presets")
    asked.add_argument("--images", type=int, default=Scale.images, help="to train on")
    asked.add_argument("--size", type=int, default=Scale.size, help="side of the images in pixels")
    asked.add_argument("--epochs", type=int, nargs=3, default=Scale.epochs, help="of the three stages")
    asked.add_argument("--precision", choices=["fp32", "bf16"], default=Scale.precision)
    asked.add_argument("--reach", type=float, default=0.9, help="AUROC to count the epochs to")
    asked.add_argument("--seen", type=Path, default=Path("phantom-seen"), help="keeps models after stage 1")
    asked.add_argument("--threads", type=int, help="threads of torch in each process; all cores if not given")
    return asked


WHERE = (*experiment.WHERE, "--seen", "--threads")
"""Options that figures do not depend on."""


def sharing_stage_1(wanted: Sequence[RowSeed]) -> list[list[RowSeed]]:
    """Rows of a seed that share a first stage, which are trained one after the other."""
    groups: dict[RowSeed, list[RowSeed]] = {}
    for name, seed in wanted:
        groups.setdefault((ROWS[name].same_seen_as or name, seed), []).append((name, seed))
    return list(groups.values())


def main() -> None:
    options = parser().parse_args()
    scale = Scale(
        images=options.images, size=options.size, epochs=tuple(options.epochs), precision=options.precision,
        device=options.device,
    )  # fmt: skip
    if not options.table:
        run_side_by_side(
            run_row, sharing_stage_1(missing(options, scale)), scale, options.seen, jobs=options.jobs,
            path=options.results, threads=options.threads,
        )  # fmt: skip
    results = results_of(options, scale)
    tables: dict[str, Table] = {
        "Stage 1: which findings, and where": seen_table(results, options.reach),
        "Diseases": diseases_table(results),
        "Prototypes": prototypes_table(results),
    }
    for title, rows in tables.items():
        print(
            f"{title}\n{table(list(rows[0]), [list(row.values()) for row in rows])}\n" if rows else f"{title}: none\n"
        )
    print(f"{scale}; {machine_line()}")
    publish(options, {"scale": scale, "tables": tables}, lambda told: document(tables, scale, told), WHERE)


if __name__ == "__main__":
    main()
