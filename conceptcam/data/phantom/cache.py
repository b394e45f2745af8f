"""Many phantom images at once: drawn by several processes, and kept on disk for the next run.

A cache is two files named by a hash of all that decides their content: labels and boxes (`.npz`) and the raw
pixels (`.u8`). The labels hold a checksum of the pixels, so half a cache, or one that was cut short or
altered, is seen for what it is and made again. Both are written under another name and moved in one step.
"""

import hashlib
import json
import math
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from conceptcam._display.progress import progress_bar
from conceptcam.data.phantom.arrays import Floats, Ints
from conceptcam.data.phantom.concepts import PHANTOM_CONCEPTS, PHANTOM_DISEASES, PHANTOM_VERSION
from conceptcam.data.phantom.config import PhantomConfig
from conceptcam.data.phantom.render import Phantom

_PART = 250
"""Images drawn at a time, at least; fewer than two parts are not worth another process."""


class PhantomArrays(NamedTuple):
    """N phantom images with their labels and boxes."""

    images: Ints
    """(N, size, size) uint8, perhaps a read-only map of a file."""
    concepts: Ints
    """(N, 22), 0 or 1."""
    diseases: Ints
    """(N, 6), 0 or 1."""
    boxes: Floats
    """(n, 4) of all images, in order."""
    box_concepts: Ints
    """(n,)"""
    box_ends: Ints
    """(N,) how many boxes there are up to and including each image's."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which images: `count` from index `first` on."""

    config: PhantomConfig
    seed: int
    first: int
    count: int

    def __post_init__(self) -> None:
        if min(self.seed, self.first, self.count) < 0:
            raise ValueError(
                f"`seed`, `first` and `count` must not be negative, got {self.seed}, {self.first}, {self.count}"
            )

    def to_json(self) -> str:
        """The same text for the same images, whoever asks for them."""
        return json.dumps({"version": PHANTOM_VERSION, **asdict(self)}, sort_keys=True)


def render_part(request: Request) -> PhantomArrays:
    """Draw the images of a request, one after the other."""
    phantom = Phantom(request.config, request.seed)
    size = request.config.size
    images = np.empty((request.count, size, size), np.uint8)
    concepts = np.empty((request.count, len(PHANTOM_CONCEPTS)), np.uint8)
    diseases = np.empty((request.count, len(PHANTOM_DISEASES)), np.uint8)
    boxes, box_concepts, numbers = [np.zeros((0, 4), np.float32)], [np.zeros(0, np.int64)], [0]
    for row in range(request.count):
        sample = phantom.sample(request.first + row)
        images[row], concepts[row], diseases[row] = sample.image, sample.concepts, sample.diseases
        boxes.append(sample.boxes)
        box_concepts.append(sample.box_concepts)
        numbers.append(len(sample.boxes))
    ends = np.cumsum(numbers)[1:]
    return PhantomArrays(images, concepts, diseases, np.concatenate(boxes), np.concatenate(box_concepts), ends)


def render(request: Request, *, processes: int, progress: bool = False) -> PhantomArrays:
    """Draw the images of a request in several processes; the result is that of one.

    Args:
        request: Which images.
        processes: At most so many; a request too small for that takes fewer.
        progress: Whether to show a bar.
    """
    # A process takes a while to start, so each gets two large parts; one process alone starts none.
    share = math.ceil(request.count / (2 * processes)) if processes > 1 else 0
    parts = list(_split(request, max(_PART, share)))
    shape = (request.count, request.config.size, request.config.size)
    images = np.empty(shape, np.uint8)
    labels: list[PhantomArrays] = []
    workers = min(processes, len(parts))
    with (
        progress_bar(shown=progress, total=request.count, desc="drawing phantom images", unit="image") as bar,
        ThreadPoolExecutor(max(workers, 1)) as pool,
    ):
        drawn = pool.map(_render_elsewhere, parts) if workers > 1 else map(render_part, parts)
        for part, arrays in zip(parts, drawn, strict=True):
            start = part.first - request.first
            images[start : start + part.count] = arrays.images
            labels.append(arrays._replace(images=arrays.images[:0]))
            bar.update(part.count)
    return _join(images, labels)


def _split(request: Request, size: int) -> Iterator[Request]:
    """Parts of a request, of `size` images each but for the last; one without images where there are none."""
    for start in range(0, max(request.count, 1), size):
        yield replace(request, first=request.first + start, count=min(size, request.count - start))


def _join(images: Ints, parts: list[PhantomArrays]) -> PhantomArrays:
    before = np.cumsum([0, *(len(part.boxes) for part in parts[:-1])])
    parts = [part._replace(box_ends=part.box_ends + start) for part, start in zip(parts, before, strict=True)]
    _, *labels = zip(*parts, strict=True)
    return PhantomArrays(images, *map(np.concatenate, labels))


def _render_elsewhere(request: Request) -> PhantomArrays:
    """Draw in another Python process, started by command.

    Not by `multiprocessing`: its spawn method runs the user's script again, which breaks every script
    that lacks a `__main__` guard, and its fork method is unsafe once torch has started threads.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "conceptcam.data.phantom.worker"]
    done = subprocess.run(command, input=pickle.dumps(request), env=environment, capture_output=True, check=False)
    if done.returncode:
        why = done.stderr.decode(errors="replace")
        raise RuntimeError(f"a process that draws phantom images ended with {done.returncode}: {why}")
    drawn: PhantomArrays = pickle.loads(done.stdout)
    return drawn


def cached(request: Request, folder: Path, *, processes: int, progress: bool = False) -> PhantomArrays:
    """The images of a request from a cache folder, drawn and kept there if they are not yet.

    Args:
        request: Which images.
        folder: Where caches are; made if missing.
        processes: Used if the images have to be drawn.
        progress: Whether to show a bar meanwhile.

    Returns:
        Arrays whose `images` are a read-only map of the file, so they take no memory until read.
    """
    name = f"phantom-{hashlib.sha256(request.to_json().encode()).hexdigest()[:16]}"
    pixels, labels = folder / f"{name}.u8", folder / f"{name}.npz"
    found = _open(request, pixels, labels)
    if found is not None:
        return found
    arrays = render(request, processes=processes, progress=progress)
    folder.mkdir(parents=True, exist_ok=True)
    # On the cache's own disk, because only there is a move one step.
    try:
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder) as scratch:
            _write(request, arrays, Path(scratch))
            os.replace(Path(scratch) / "labels.npz", labels)
            os.replace(Path(scratch) / "pixels.u8", pixels)
    except OSError as error:
        raise OSError(
            f"the drawn images cannot be kept in the cache {folder}: {error}; make room on its disk, or choose another "
            "place by the environment variable CONCEPTCAM_CACHE"
        ) from error
    written = _open(request, pixels, labels)
    if written is None:
        raise OSError(f"the cache just written to {folder} cannot be read back; is the disk full or failing?")
    return written


def _write(request: Request, arrays: PhantomArrays, folder: Path) -> None:
    arrays.images.tofile(folder / "pixels.u8")
    rest = {key: value for key, value in arrays._asdict().items() if key != "images"}
    checksum = zlib.crc32(np.ascontiguousarray(arrays.images).data)
    np.savez(folder / "labels.npz", request=request.to_json(), checksum=checksum, **rest)


def _open(request: Request, pixels: Path, labels: Path) -> PhantomArrays | None:
    """What a cache holds, or None if there is none that is whole."""
    shape = (request.count, request.config.size, request.config.size)
    try:
        # Opened here, because numpy leaves the file open when it finds it broken.
        with labels.open("rb") as file, np.load(file) as stored:
            parts = dict(stored)
        if parts.keys() != {"request", "checksum", *PhantomArrays._fields} - {"images"}:
            return None
        if pixels.stat().st_size != np.prod(shape):
            return None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, LookupError, TypeError, RuntimeError):
        return None  # what zipfile and numpy raise over a damaged file
    if str(parts.pop("request", "")) != request.to_json():
        return None
    # An empty file cannot be mapped.
    images = np.memmap(pixels, np.uint8, "r", shape=shape) if request.count else np.empty(shape, np.uint8)
    if zlib.crc32(images.data) != parts.pop("checksum"):
        return None
    return PhantomArrays(images, **parts)
