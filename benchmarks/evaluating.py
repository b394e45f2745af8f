"""What does measuring a model cost over running it? `evaluate` beside a bare forward pass over the same images.

Images are drawn once and handed over as batches, so that reading them does not count. The passes take turns; the ratio
is that of the medians. Peak memory is that of a process of its own, above what it holds before it evaluates: it should
not grow with the number of images times the size of their maps.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import finish, interleave

from conceptcam import ConceptConfig, ConceptModel, PhantomDataset, evaluate
from conceptcam.data.batch import ConceptBatch, collate
from conceptcam.data.phantom import PhantomConfig

TARGET = 1.25
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
BACKBONE = "small_cnn_s8"


def model_of(data: PhantomDataset, side: int, level: str) -> ConceptModel:
    """A model that counts as taught, of random weights: what it says takes no longer for being wrong."""
    config = ConceptConfig(concepts=data.concepts, tasks=data.tasks, backbone=level, image_size=(side, side))
    torch.manual_seed(0)
    model = ConceptModel.from_config(config).eval()
    for stage, part in (("concepts", "backbone"), ("prototypes", "prototypes"), ("task", "task_head")):
        model.record = model.record.after(stage, [part])
    return model


def drawn(images: int, side: int, backbone: str, batch_size: int) -> tuple[ConceptModel, list[ConceptBatch]]:
    """A model and batches of phantoms."""
    data = PhantomDataset(images, seed=0, config=PhantomConfig(size=side), cache_dir=False)
    model = model_of(data, side, backbone)
    data.preprocess = model.preprocess
    rows = [data[i] for i in range(images)]
    return model, [collate(rows[start : start + batch_size]) for start in range(0, images, batch_size)]


def ways(model: ConceptModel, batches: list[ConceptBatch]) -> dict[str, Callable[[], object]]:
    """What is timed."""

    @torch.inference_mode()
    def forward() -> None:
        for batch in batches:
            model(batch.images)

    return {
        "bare forward pass": forward,
        "evaluate": lambda: evaluate(model, batches),
        "evaluate, no intervals": lambda: evaluate(model, batches, draws=0),
    }


def cost(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of each way, and its ratio to the bare pass."""
    model, batches = drawn(options.images, options.side, options.backbone, options.batch_size)
    timed = interleave(ways(model, batches), repeats=options.repeats, warmup=1, clock=CLOCKS[options.clock])
    rows = []
    for name in timed.seconds:
        ratio = timed.ratio(name, "bare forward pass")
        low, high = timed.middle_half(name, "bare forward pass")
        rows.append({
            "what": f"{name}, {options.images} images", "seconds": timed.median(name), "over forward": ratio,
            "middle half": f"{low:.3f} to {high:.3f}", "target": TARGET if name == "evaluate" else None,
            "met": ratio <= TARGET if name == "evaluate" else None,
        })  # fmt: skip
    return rows


def memory(options: argparse.Namespace, images: int) -> float:
    """MB that evaluating takes at its peak, above what the process held before."""
    command = [sys.executable, __file__, "--child", "--images", str(images), "--side", str(options.side)]
    command += ["--backbone", options.backbone, "--batch-size", str(options.batch_size)]
    # Large blocks go back as they are freed; otherwise glibc keeps them, and the peak is that of its gaps.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**18)}
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return float(json.loads(said.splitlines()[-1]))


def child(options: argparse.Namespace) -> None:
    """Print the peak of this process's memory while it evaluates, in MB above what it held before."""
    torch.set_num_threads(1)
    # The same batch again and again, so that only what evaluating keeps of each can grow.
    model, (batch,) = drawn(options.batch_size, options.side, options.backbone, options.batch_size)
    evaluate(model, [batch], draws=0)  # what is imported and allocated once
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    evaluate(model, [batch] * -(-options.images // options.batch_size))
    print(json.dumps(resident("VmHWM") - before))


def resident(field: str) -> float:
    """A figure of the kernel's table of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--side", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of this process, beside other work")
    parser.add_argument(
        "--memory", type=int, nargs="*", default=[200, 800], help="numbers of images; none leaves it out"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    rows = cost(options)
    nothing = {"seconds": None, "middle half": "", "target": None, "met": None}
    for images in options.memory:
        rows.append({"what": f"peak memory in MB, {images} images", "over forward": memory(options, images), **nothing})
    finish(rows, vars(options), options.json)


if __name__ == "__main__":
    main()
