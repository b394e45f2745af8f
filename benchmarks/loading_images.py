"""How much faster are images read from a cache than decoded? In turns, by processor time."""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import finish, interleave
from PIL import Image

from conceptcam.data.image_cache import ImageCache
from conceptcam.data.images import load_image, resize_image

TARGET = 20
"""Least number of times that reading from the cache is as fast as decoding."""

AGAIN = 10
"""Times that the cache is read in a round: one is over too soon to be timed well."""


def draw(folder: Path, count: int) -> list[Path]:
    """Images as a radiograph compresses: smooth, with a little noise; half of them JPEG in colour, half grey PNG."""
    random, files = np.random.default_rng(0), []
    for number in range(count):
        coarse = Image.fromarray(random.integers(40, 220, (24, 32, 3)).astype(np.uint8)).resize((1024, 768))
        pixels = np.asarray(coarse) + random.normal(0, 4, (768, 1024, 3))
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        files.append(folder / f"{number}.{'jpg' if number % 2 else 'png'}")
        (image if number % 2 else image.convert("L")).save(files[-1])
    return files


def read(reader: Callable[[Path], object], files: list[Path]) -> None:
    """Read images and drop them, as what becomes of them in a batch does; keeping them all would time the allocator."""
    for path in files:
        reader(path)


def measure(name: str, files: list[Path], size: tuple[int, int], folder: Path, *, repeats: int) -> dict[str, Any]:
    """One row: milliseconds per image of decoding, of decoding and resizing, and of reading what is kept."""
    with ImageCache(folder, size) as cache:
        for path in files:
            assert torch.equal(cache.load(path).image, resize_image(load_image(path), size)), path
        times = interleave(
            {
                "decode": lambda: read(load_image, files),
                "resize": lambda: read(lambda path: resize_image(load_image(path), size), files),
                "cache": lambda: read(cache.load, files * AGAIN),
            },
            repeats=repeats,
            clock=time.process_time,
        )
        kept = sum(file.stat().st_size for file in folder.iterdir()) / len(files)
    milliseconds = {what: 1000 * times.median(what) / len(files) for what in times.seconds}
    milliseconds["cache"] /= AGAIN
    ratio = milliseconds["decode"] / milliseconds["cache"]
    return {
        "images": f"{len(files)} of {name}",
        "decode ms": round(milliseconds["decode"], 2),
        "and resize ms": round(milliseconds["resize"], 2),
        "from the cache ms": round(milliseconds["cache"], 3),
        "times as fast": round(ratio, 1),
        "kB kept": round(kept / 1000),
        "target": TARGET,
        "met": ratio >= TARGET,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, action="append", help="folder of images, besides the drawn ones")
    parser.add_argument("--count", type=int, default=48, help="images of each kind")
    parser.add_argument("--size", type=int, nargs=2, default=(224, 224), metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kinds = {"drawn": draw(Path(folder), options.count)}
        for place in options.images or ():
            kinds["/".join(place.parts[-2:])] = sorted(path for path in place.iterdir() if path.is_file())[
                : options.count
            ]
        rows = [
            measure(name, files, tuple(options.size), Path(folder) / f"cache {number}", repeats=options.repeats)
            for number, (name, files) in enumerate(kinds.items())
        ]
    finish(rows, vars(options), options.json)


if __name__ == "__main__":
    main()
