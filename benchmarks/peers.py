"""Beside peers: all maps of one image, and bottlenecks on one phantom. Peers that are not installed are left out.

Every finished training is a line in a file, and a line that is there is not computed again.
"""

import argparse
import multiprocessing
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from measuring import append, finished, machine_line, markdown, replace_block, table, write_json
from peer_bottlenecks import PEERS, PeerScale, draw, installed, run_peer
from peer_maps import compare_maps, missing

INSTALL = "pip install torchcam grad-cam captum; pip install --no-deps --pre pytorch-concepts"
WHERE = ("--results", "--page", "--json", "--threads", "--jobs")


def bottleneck_table(results: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row for each model: mean and standard deviation over seeds."""
    rows = []
    for name in dict.fromkeys(one["row"] for one in results):
        figures = [one["figures"] for one in results if one["row"] == name]
        rows.append({"model": name, "seeds": str(len(figures)), **{key: _spread(figures, key) for key in figures[0]}})
    return rows


def _spread(figures: Sequence[Mapping[str, float]], key: str) -> str:
    values = [one[key] for one in figures]
    told = f"{statistics.fmean(values):.3f}"
    return (told + (f" ({statistics.stdev(values):.3f})" if len(values) > 1 else "")).replace("0.", ".")


def document(kind: str, rows: Sequence[Mapping[str, str]], scale: PeerScale, arguments: Sequence[str]) -> str:
    """One of the tables as a page has it, and the command that printed it."""
    command = shlex.join(["python", "benchmarks/peers.py", *arguments])
    if kind == "peer_maps":
        return f"Printed by `{command}`, on {machine_line()}.\n\n{markdown(rows)}"
    return (
        f"Printed by `{command}`: {scale.images:,} images of {scale.size} pixels, {sum(scale.epochs)} epochs in all, "
        f"completeness {scale.completeness:g}; mean (standard deviation) over seeds.\n\n{markdown(rows)}"
    )


def parser() -> argparse.ArgumentParser:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--only", choices=["maps", "bottlenecks"], help="one half of the comparison")
    asked.add_argument("--backbones", nargs="+", default=["small_cnn_s8", "timm:resnet18"], help="of the maps")
    asked.add_argument("--side", type=int, default=224, help="side of the image whose maps are timed, in pixels")
    asked.add_argument("--repeats", type=int, default=11)
    asked.add_argument("--rows", nargs="+", choices=list(PEERS), default=list(PEERS))
    asked.add_argument("--seeds", type=int, default=3, help="how many")
    asked.add_argument("--images", type=int, default=PeerScale.images, help="to train on")
    asked.add_argument("--size", type=int, default=PeerScale.size, help="side of the phantom's images in pixels")
    asked.add_argument(
        "--epochs", type=int, nargs=3, default=PeerScale.epochs, help="of our stages; a peer's: their sum"
    )
    asked.add_argument("--backbone", default=PeerScale.backbone, help="of every bottleneck")
    asked.add_argument(
        "--completeness", type=float, default=PeerScale.completeness, help="of the diseases in pixels only"
    )
    asked.add_argument("--results", type=Path, default=Path("peers-results.jsonl"), help="a line per training")
    asked.add_argument("--jobs", type=int, default=1, help="trainings at a time, each a process")
    asked.add_argument("--table", action="store_true", help="train nothing; print what is finished")
    asked.add_argument("--threads", type=int, help="threads of torch; all cores if not given")
    asked.add_argument("--json", type=Path, help="also write the tables here")
    asked.add_argument("--page", type=Path, help="also write the tables between the marks in this Markdown page")
    return asked


def told(arguments: Sequence[str]) -> list[str]:
    """The arguments that say what was computed."""
    kept, skip = [], False
    for one in arguments:
        skip = (skip and not one.startswith("--")) or one in WHERE
        if not skip and one != "--table":
            kept.append(one)
    return kept


def main() -> None:
    options = parser().parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    scale = PeerScale(
        images=options.images,
        size=options.size,
        epochs=tuple(options.epochs),
        backbone=options.backbone,
        completeness=options.completeness,
    )
    tables: dict[str, list[dict[str, str]]] = {}
    if options.only != "bottlenecks":
        tables["peer_maps"] = [
            row for name in options.backbones for row in compare_maps(name, size=options.side, repeats=options.repeats)
        ]
        if names := missing():
            print(f"left out, as not installed: {', '.join(names)}; all peers: {INSTALL}")
    if options.only != "maps":
        tables["peer_bottlenecks"] = bottleneck_table(train(options, scale))
    for kind, rows in tables.items():
        if rows:
            print(table(list(rows[0]), [list(row.values()) for row in rows]))
            if options.page is not None:
                replace_block(options.page, kind, document(kind, rows, scale, told(sys.argv[1:])))
    print(machine_line())
    if options.json is not None:
        write_json(options.json, tables)


def train(options: argparse.Namespace, scale: PeerScale) -> list[dict[str, Any]]:
    """The results of all rows and seeds that are finished, after training those that are not."""
    wanted = [(name, seed) for seed in range(options.seeds) for name in options.rows]
    if not options.table:
        for name in options.rows:
            if not installed(name):
                print(f"left out, as not installed: {name}; all peers: {INSTALL}")
        done = finished(options.results, scale)
        _train([one for one in wanted if one not in done and installed(one[0])], options, scale)
    done = finished(options.results, scale)
    return [done[one] for one in sorted(wanted, key=lambda one: options.rows.index(one[0])) if one in done]


def _train(waiting: Sequence[tuple[str, int]], options: argparse.Namespace, scale: PeerScale) -> None:
    """Train rows, several at a time if asked, and note each as it is finished."""
    for seed in sorted({seed for _, seed in waiting}):
        draw(seed, scale)  # into the cache, once for all processes
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, spawn, torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        running = [pool.submit(run_peer, name, seed, scale) for name, seed in waiting]
        for one in as_completed(running):
            result = one.result()
            append(options.results, result)
            print(f"{result['row']}, seed {result['seed']}: {result['seconds']} s", file=sys.stderr)


if __name__ == "__main__":
    main()
