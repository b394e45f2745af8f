"""What does training cost? Steps over the bare backbone's, memory, precision, processes, loading, and how it grows.

A step is forward, loss, backward, clipping and optimizer. Seconds and MB are this machine's; ratios are of medians
within one run, by turns. What stages 2 and 3 save by reading frozen parts' outputs is measured by `stages.py`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Timings, finish, interleave
from PIL import Image
from training_steps import WAYS, Size, Step, Way, compare_alone, library_step, plain_step, see_alone

from conceptcam import CocoDataset, ConceptDataset, ConceptModel, PhantomDataset
from conceptcam.data.phantom import PhantomConfig
from conceptcam.training.batches import BatchLoader

Rows = list[dict[str, Any]]

TARGET = 1.05
"""Highest ratio of a stage 1 step, and of its peak memory, to the same backbone with a plain head."""

CHILD = Path(__file__).with_name("training_steps.py")
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""Makes glibc give back what is freed at once; by default its holes alone move a peak by a tenth from run to run."""
GROWTH = {"concepts": (5, 22, 100), "prototypes": (1, 5, 100), "boxes": (0, 8, 64)}


def step(size: Size, repeats: int) -> Rows:
    """Stage 1 over the same backbone with a plain head: the limit of what can be saved."""
    ways = {"plain head": plain_step(size), "stage 1": library_step(size), "its head and loss alone": see_alone(size)}
    return compare("step", size, interleave(ways, repeats=repeats, warmup=1), target={"stage 1": TARGET})


def memory(size: Size, repeats: int) -> Rows:
    """Peaks of resident memory, each in a fresh process; see `peak_memory`."""
    found: dict[Way, list[float]] = {way: [] for way in WAYS}
    for _ in range(min(repeats, 2)):  # peaks of two runs differ by less than a thousandth
        for way, peaks in found.items():
            peaks.append(child("memory", size, "--way", way, "--threads", str(torch.get_num_threads())))
    return compare("memory", size, Timings(found), unit="MB", target={"stage 1": TARGET})


def precision(size: Size, repeats: int) -> Rows:
    """Autocast over full precision."""
    ways = {"fp32": library_step(size), "bf16": library_step(size, precision="bf16")}
    return compare("precision", size, interleave(ways, repeats=repeats, warmup=1))


def checkpointing(size: Size, repeats: int) -> Rows:
    """What computing activations again costs; `memory` says what it saves."""
    ways = {"activations kept": library_step(size), "computed again": library_step(size, saves_memory=True)}
    return compare("checkpointing", size, interleave(ways, repeats=repeats, warmup=1))


def accumulation(size: Size, repeats: int) -> Rows:
    """Several batches per step over one that is as large."""
    large = replace(size, batch=4 * size.batch)
    ways = {
        f"1 x {large.batch} images": library_step(large),
        f"4 x {size.batch} images": library_step(size, gradient_accumulation_steps=4),
    }
    return compare("accumulation", size, interleave(ways, repeats=repeats, warmup=1))


def compiled(size: Size, repeats: int) -> Rows:
    """`torch.compile` over eager execution, or why it does not run here."""
    ways = {"eager": library_step(size), "torch.compile": library_step(size, backend="inductor")}
    start = time.perf_counter()
    with _empty_compile_cache():
        try:
            ways["torch.compile"]()
        except RuntimeError as error:  # what torch's compiler raises
            return [row("compile", size, f"does not run: {str(error).strip().splitlines()[0][:60]}")]
        first = time.perf_counter() - start
        rows = compare("compile", size, interleave(ways, repeats=repeats, warmup=1))
    return [*rows, row("compile", size, "first step, which compiles", value=round(first, 1), unit="s")]


def processes(size: Size, repeats: int) -> Rows:
    """Two processes of one thread each over one, on the same batches."""
    return compare("processes", size, Timings(child("processes", size, "--repeats", str(repeats), processes=2)))


def loading(size: Size, repeats: int, *, images: int = 256, file_side: int = 1024) -> Rows:
    """Images per second of two data sets over those of a training step; from 1 on, loading need not be waited for."""
    preprocess = ConceptModel.from_config(replace(size, backbone="small_cnn_s8").config).preprocess
    with tempfile.TemporaryDirectory() as folder:
        phantom = PhantomDataset(images, seed=0, config=PhantomConfig(size=max(64, size.side)), cache_dir=folder)
        phantom.preprocess = preprocess
        files = coco_of(phantom, Path(folder), file_side)
        files.preprocess = preprocess
        names = {"phantom": phantom, f"COCO, PNG of {file_side}": files}
        ways: dict[str, Step] = {"stage 1 step": library_step(size)}
        ways |= {
            f"{name}, {workers} workers": _pass(dataset, size.batch, workers)
            for name, dataset in names.items()
            for workers in (0, 1, 2)
        }
        timings = interleave(ways, repeats=repeats, warmup=1)
    counts = {name: size.batch if name == "stage 1 step" else images for name in ways}
    speeds = {name: [counts[name] / one for one in seconds] for name, seconds in timings.seconds.items()}
    return compare("loading", size, Timings(speeds), unit="images/s")


def growth(size: Size, repeats: int) -> Rows:
    """Steps with more concepts, prototypes and boxes, over the fewest; and what of them is not the backbone's."""
    rows = []
    for name, counts in GROWTH.items():
        sizes = {count: replace(size, **{name: count}) for count in counts}
        kinds: dict[str, Callable[[Size], Step]] = {"stage 1 step": library_step, "its head and loss alone": see_alone}
        if name == "prototypes":
            kinds = {
                "stage 2 step": lambda one: library_step(one, stage="prototypes"),
                "the same without the backbone": compare_alone,
            }
        for kind, build in kinds.items():
            ways = {f"{kind}, {count} {name}": build(one) for count, one in sizes.items()}
            rows += compare(f"growth of {name}", size, interleave(ways, repeats=repeats, warmup=1))
    return rows


EVERY_BACKBONE: dict[str, Callable[[Size, int], Rows]] = {"step": step, "memory": memory}
FIRST_BACKBONE: dict[str, Callable[[Size, int], Rows]] = {
    "precision": precision,
    "checkpointing": checkpointing,
    "accumulation": accumulation,
    "compile": compiled,
    "processes": processes,
    "loading": loading,
    "growth": growth,
}


# How rows are made.


def compare(
    section: str,
    size: Size,
    measured: Timings,
    *,
    unit: str = "ms",
    target: Mapping[str, float] | None = None,
) -> Rows:
    """A row for each way, over the first of them."""
    names = list(measured.seconds)
    scale = 1000 if unit == "ms" else 1
    rows = []
    for name in names:
        low, high = measured.middle_half(name, names[0])
        ratio, aimed = measured.ratio(name, names[0]), (target or {}).get(name)
        rows.append(
            row(
                section,
                size,
                name,
                value=round(scale * measured.median(name), 1),
                unit=unit,
                ratio=round(ratio, 4),
                spread=f"{low:.3f}..{high:.3f}",
                target=aimed,
                met=None if aimed is None else ratio <= aimed,
            )
        )
    return rows


def row(
    section: str,
    size: Size,
    what: str,
    *,
    value: float | None = None,
    unit: str = "",
    ratio: float | None = None,
    spread: str | None = None,
    target: float | None = None,
    met: bool | None = None,
) -> dict[str, Any]:
    """One row of the table; `ratio` is over the first row that was timed with it."""
    return {
        "section": section,
        "backbone": size.backbone,
        "what": what,
        "median": value,
        "unit": unit,
        "over first": ratio,
        "middle half": spread,
        "target": target,
        "met": met,
    }


def child(measure: str, size: Size, *arguments: str, processes: int = 1) -> Any:
    """What `training_steps.py` measures in a process of its own, or in several."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, str(CHILD), measure, json.dumps(asdict(size)), *arguments]
    threads = {"OMP_NUM_THREADS": "1"} if processes > 1 else {}
    environment = {**os.environ, **threads, **(RETURNED if measure == "memory" else {})}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def _empty_compile_cache() -> Iterator[None]:
    """A while in which nothing that was compiled earlier is found."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            del os.environ[name]
            if before is not None:
                os.environ[name] = before


def coco_of(dataset: ConceptDataset, folder: Path, side: int) -> CocoDataset:
    """The same images as grey PNG files of another size, with their boxes in a COCO file."""
    images: Rows = []
    annotations: Rows = []
    for number in range(len(dataset)):
        item = dataset.load_item(number)
        name = f"{number}.png"
        Image.fromarray(np.asarray(item.image[0])).resize((side, side)).save(folder / name)
        images.append({"id": number, "file_name": name, "width": side, "height": side})
        assert item.boxes is not None
        for xyxy, concept in zip((side * item.boxes.xyxy).tolist(), item.boxes.concept.tolist(), strict=True):
            left, top, right, bottom = xyxy
            box = [left, top, right - left, bottom - top]
            annotations.append({"id": len(annotations), "image_id": number, "category_id": concept, "bbox": box})
    categories = [{"id": number, "name": name} for number, name in enumerate(dataset.concepts)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(content))
    return CocoDataset(folder / "boxes.json", folder)


def _pass(dataset: ConceptDataset, batch: int, workers: int) -> Step:
    """Load every image once, in an order drawn anew and with workers started anew, as each epoch does."""
    feed = BatchLoader(dataset.dataloader(batch, shuffle=True, num_workers=workers))
    return lambda: [len(share.batch.images) for share in feed.load(feed.draw())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    sections = {**EVERY_BACKBONE, **FIRST_BACKBONE}
    parser.add_argument("--only", nargs="+", choices=list(sections), default=list(sections), metavar="SECTION")
    parser.add_argument(
        "--backbones",
        nargs="+",
        default=["timm:resnet50", "timm:vit_base_patch16_224"],
        help=f"sections other than {' and '.join(EVERY_BACKBONE)} take the first alone",
    )
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7, help="of steps; other sections take about half as many")
    parser.add_argument("--threads", type=int, help="threads of torch; all cores if not given")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows: Rows = []
    for name in options.only:
        for backbone in options.backbones if name in EVERY_BACKBONE else options.backbones[:1]:
            repeats = options.repeats if name == "step" else (options.repeats + 1) // 2
            size = Size(backbone=backbone, side=options.size, batch=options.batch)
            rows += sections[name](size, repeats)
    finish(rows, vars(options), options.json)


if __name__ == "__main__":
    main()
