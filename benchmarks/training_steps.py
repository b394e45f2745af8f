"""Single steps of training: of a backbone with a plain head, and of the library's stages, as its `Trainer` takes them.

`training.py` times them. What needs a process of its own (peak memory; several processes, by `torchrun`) is measured by
running this file, which prints one line of JSON.
"""

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from measuring import interleave
from torch import Tensor, nn

from conceptcam import ConceptBatch, ConceptBoxes, ConceptConfig, ConceptModel
from conceptcam.model.outputs import ConceptPart
from conceptcam.training import distributed
from conceptcam.training.batches import BatchLoader
from conceptcam.training.feature_cache import FeatureCache
from conceptcam.training.inputs import Images
from conceptcam.training.optimizer import StageOptimizer, checkpointing
from conceptcam.training.options import TrainerOptions
from conceptcam.training.precision import Precision
from conceptcam.training.presets import get_preset
from conceptcam.training.stages import Stage

CLIP = 1.0
CPU = torch.device("cpu")
STEPS = 10_000
"""Of the schedule: more than are ever taken."""

Step = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large the model and its batches are.

    Attributes:
        backbone: Name as `create_backbone` takes it.
        side: Of the images, in pixels.
        batch: Images per batch.
        concepts: K.
        prototypes: M.
        boxes: Per image.
    """

    backbone: str = "timm:resnet50"
    side: int = 224
    batch: int = 8
    concepts: int = 22
    prototypes: int = 5
    boxes: int = 4

    @property
    def config(self) -> ConceptConfig:
        return ConceptConfig(
            concepts=tuple(f"concept {k}" for k in range(self.concepts)),
            tasks=("task",),
            backbone=self.backbone,
            image_size=(self.side, self.side),
            prototypes_per_concept=self.prototypes,
        )


def random_batch(size: Size) -> ConceptBatch:
    """Noise with labels and boxes; a concept with a box is present, and so are some without."""
    count, boxes = size.batch, size.batch * size.boxes
    image, concept = torch.arange(count).repeat_interleave(size.boxes), torch.randint(size.concepts, (boxes,))
    labels = (torch.rand(count, size.concepts) < 0.15).float()
    labels[image, concept] = 1
    labels[:, 0] = 1  # stage 2 learns from present concepts
    extent = 0.03 + 0.5 * torch.rand(boxes, 2)
    corner = torch.rand(boxes, 2) * (1 - extent)
    drawn = ConceptBoxes(torch.cat([corner, corner + extent], dim=1).clamp(0, 1), concept, image)
    images = torch.randn(count, 3, size.side, size.side)
    return ConceptBatch(images, labels, torch.rand(count, 1).round(), drawn)


class PlainModel(nn.Module):
    """What anybody would train without this library: a backbone, the mean over places, a linear layer."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.backbone = ConceptModel.from_config(size.config).backbone
        self.head = nn.Linear(self.backbone.out_channels, size.concepts)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images).mean(dim=(-2, -1)))


def plain_step(size: Size) -> Step:
    """Forward, binary cross-entropy, backward, clipping and AdamW."""
    model, batch = PlainModel(size).train(), random_batch(size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(batch.images), batch.concepts)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    return step


def library_step(
    size: Size,
    *,
    stage: str = "concepts",
    precision: Precision = "fp32",
    gradient_accumulation_steps: int = 1,
    backend: str | None = None,
    saves_memory: bool = False,
    divided: bool = False,
) -> Step:
    """A step of a stage.

    Args:
        size: Of the model, and of the batches of all processes together.
        stage: Name of the stage of the `recommended` preset.
        precision: Of the forward pass.
        gradient_accumulation_steps: Batches per step.
        backend: Of `torch.compile`; None does not compile.
        saves_memory: Whether the backbone computes its activations again in the backward pass.
        divided: Whether all processes take part.
    """
    model, row = ConceptModel.from_config(size.config), _stage(size, stage)
    feed = BatchLoader(
        [random_batch(size) for _ in range(gradient_accumulation_steps)],
        rank=distributed.rank(),
        world=distributed.world_size(),
    )
    source = Images(feed, row, CPU)
    options = TrainerOptions(precision=precision, max_grad_norm=CLIP, compile=backend or False)
    optimizer = StageOptimizer(model, row, source, options, steps=STEPS)
    kept = list(source.load(feed.draw(seed=0)))

    def step() -> None:
        with checkpointing(model.backbone, row, wanted=saves_memory):
            # What is true of the whole batch is gathered from all processes each time.
            optimizer.step(list(source.load(feed.draw(seed=0))) if divided else kept)

    return step


def see_alone(size: Size) -> Step:
    """Concept head, pooling and loss of stage 1, forward and backward, from features that are there."""
    model, batch, row = ConceptModel.from_config(size.config), random_batch(size), _stage(size, "concepts")
    with torch.no_grad():
        features = model.backbone(batch.images)
    features.requires_grad_()

    def step() -> None:
        features.grad = None
        model.zero_grad()
        maps = model.concept_head(features)
        row.loss_fn(ConceptPart(features, maps, model.pool(maps)), batch).backward()

    return step


def compare_alone(size: Size) -> Step:
    """A step of stage 2 from vectors that are there, as in every epoch that is read from the cache."""
    model, batch, row = ConceptModel.from_config(size.config), random_batch(size), _stage(size, "prototypes")
    loader = BatchLoader([batch])
    with FeatureCache("memory") as cache:
        source = cache.source(model, row, loader)
        optimizer = StageOptimizer(model, row, source, TrainerOptions(max_grad_norm=CLIP), steps=STEPS)
        step_inputs = list(source.load(loader.draw(seed=0)))
    return lambda: optimizer.step(step_inputs)


def _stage(size: Size, name: str) -> Stage:
    return next(stage for stage in get_preset("recommended").stages(size.config) if stage.name == name)


# What a child process measures.

Way = Literal["plain head", "stage 1", "stage 1, bf16", "stage 1, checkpointing"]

WAYS: dict[Way, Callable[[Size], Step]] = {
    "plain head": plain_step,
    "stage 1": library_step,
    "stage 1, bf16": lambda size: library_step(size, precision="bf16"),
    "stage 1, checkpointing": lambda size: library_step(size, saves_memory=True),
}


def peak_memory(size: Size, way: Way, steps: int = 2) -> float:
    """MB that training takes at its highest beyond what this process had before the model was built.

    Weights, gradients, the optimizer's moments, activations and the scratch space of kernels, as the system counts
    what is resident. The second step has all of them at once. Not by
    `ru_maxrss`, which a process takes over from the one that started it.
    """
    import conceptcam.backbones.timm  # noqa: F401  so that it is not counted as part of a model

    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    before = _status("VmRSS")
    step = WAYS[way](size)
    for _ in range(steps):
        step()
    return (_status("VmHWM") - before) / 1e6


def _status(name: str) -> int:
    """Bytes from the kernel's table about this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def of_processes(size: Size, repeats: int) -> dict[str, list[float]] | None:
    """Seconds of stage 1 steps on the same batch: of one process, of it with more threads, and of all processes.

    Called by each process that `torchrun` started; gives nothing but in the first.
    """
    torch.set_num_threads(1)
    alone = library_step(size)  # made while each process is alone
    with distributed.process_group(CPU):
        world, first = distributed.world_size(), distributed.is_main_process()
        together = library_step(size, divided=True)

        def take(step: Step | None, threads: int = 1) -> None:
            with _threads(threads):
                if step is not None:
                    step()
            torch.distributed.barrier()  # processes without a step wait here, and leave their cores to the others

        ways: dict[str, Step] = {
            "1 process": lambda: take(alone if first else None),
            f"1 process, {world} threads": lambda: take(alone if first else None, world),
            f"{world} processes": lambda: take(together),
        }
        timings = interleave(ways, repeats=repeats, warmup=1)
        return {name: list(seconds) for name, seconds in timings.seconds.items()} if first else None


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measure", choices=["memory", "processes"])
    parser.add_argument("size", type=json.loads, help="fields of `Size`")
    parser.add_argument("--way", choices=list(WAYS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    size = Size(**options.size)
    result = peak_memory(size, options.way) if options.measure == "memory" else of_processes(size, options.repeats)
    if result is not None:
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
