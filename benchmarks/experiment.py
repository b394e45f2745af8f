"""An experiment of rows times seeds: its command line, its trainings side by side, and where it is told.

Every finished training is a line in a file, and a line that is there is not computed again.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from measuring import append, arguments_told, finished, replace_block, write_json

from conceptcam.data.phantom import PHANTOM_VERSION

RowSeed = tuple[str, int]

WHERE = ("--results", "--page", "--block", "--json", "--jobs")
"""Options that figures do not depend on, of every experiment."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large an experiment with stage 1 is; results of one scale are not compared with those of another."""

    images: int = 4000
    test_images: int = 1500
    size: int = 112
    epochs: int = 8
    backbone: str = "small_cnn_s8"
    batch_size: int = 32
    phantom: int = PHANTOM_VERSION


def experiment_parser(
    doc: str | None, rows: Iterable[str], *, name: str, usual: Sequence[str] | None = None
) -> argparse.ArgumentParser:
    """The options of every experiment.

    Args:
        doc: What the experiment asks.
        rows: Names of its rows.
        name: Of its file of results and of its marks in a page.
        usual: Rows that are trained where none are named; None is all.
    """
    known = list(rows)
    asked = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rows", nargs="+", choices=known, default=usual or known, help="all of the usual if not given")
    asked.add_argument("--seeds", type=int, default=3, help="how many")
    asked.add_argument("--device", default="cpu", help="where to train: cpu, cuda")
    asked.add_argument("--jobs", type=int, default=1, help="processes side by side")
    asked.add_argument("--results", type=Path, default=Path(f"{name}-results.jsonl"), help="a line per training")
    asked.add_argument("--table", action="store_true", help="train nothing; print what is finished")
    asked.add_argument("--json", type=Path, help="also write the tables here")
    asked.add_argument("--page", type=Path, help="also write the tables between the marks in this Markdown page")
    asked.add_argument("--block", default=name, help="the name of these marks")
    return asked


def missing(options: argparse.Namespace, scale: Any) -> list[RowSeed]:
    """Rows and seeds that are still to be trained, seed by seed, so that a table is there early."""
    there = finished(options.results, scale)
    everything = [(name, seed) for seed in range(options.seeds) for name in options.rows]
    return [one for one in everything if one not in there]


def results_of(options: argparse.Namespace, scale: Any) -> list[dict[str, Any]]:
    """What is finished of the rows and seeds asked for, row by row."""
    done = finished(options.results, scale)
    return [done[name, seed] for name in options.rows for seed in range(options.seeds) if (name, seed) in done]


def run_side_by_side(
    run: Callable[..., dict[str, Any]],
    groups: Iterable[Sequence[RowSeed]],
    *given: Any,
    jobs: int,
    path: Path,
    threads: int | None = 1,
) -> None:
    """Call `run(row, seed, *given)` for each row and seed, `jobs` groups at a time, each in a process of its own.

    Each result is appended to the file as it comes; a group that fails is reported and does not stop the others.

    Args:
        run: Gives a result with its `row`, `seed` and `seconds`.
        groups: What is trained one after the other, because it shares something.
        *given: What `run` needs besides.
        jobs: How many processes.
        path: File of results.
        threads: Of torch in each process; None leaves them as they are.
    """
    start = None if threads is None else torch.set_num_threads
    pool = ProcessPoolExecutor(
        jobs, get_context("spawn"), initializer=start, initargs=() if threads is None else (threads,)
    )
    with pool:
        running = {pool.submit(_run_group, run, group, given): group for group in groups}
        for done in as_completed(running):
            if (error := done.exception()) is not None:
                name, seed = running[done][0]
                print(f"{name}, seed {seed}: {type(error).__name__}: {error}", flush=True)
                continue
            for result in done.result():
                append(path, result)
                print(f"{result['row']}, seed {result['seed']}: {result['seconds']} s", flush=True)


def _run_group(
    run: Callable[..., dict[str, Any]], group: Sequence[RowSeed], given: tuple[Any, ...]
) -> list[dict[str, Any]]:
    return [run(name, seed, *given) for name, seed in group]


def publish(
    options: argparse.Namespace,
    content: Mapping[str, Any],
    document: Callable[[Sequence[str]], str],
    where: Sequence[str] = WHERE,
) -> None:
    """Write what was found into the page and the file that the options name, if they do.

    Args:
        options: Of the command.
        content: For the JSON file.
        document: Makes the text for the page, of the arguments that say what was computed.
        where: Options that figures do not depend on, which the page does not name.
    """
    if options.page is not None:
        replace_block(options.page, options.block, document(arguments_told(sys.argv[1:], where)))
    if options.json is not None:
        write_json(options.json, content)
