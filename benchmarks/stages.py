"""What do stages 2 and 3 of the recommended preset cost, with and without keeping what frozen parts say?

Over one plain pass: the bare backbone, over all images once.
"""

import argparse
import functools
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import finish, interleave
from torch import Tensor

from conceptcam import ConceptConfig, ConceptModel, Trainer, get_preset
from conceptcam.data.batch import ConceptBatch
from conceptcam.training.tensor_store import Storage

VIT = "timm:vit_base_patch16_224"
TARGETS = {"kept": 1.3, "gain": 12.0}
"""For ViT-B/16 and 10 epochs each: highest ratio to one plain pass; lowest ratio to it of the way without."""
EPOCHS = 10
ANEW = 2
"""Epochs that stand for all where images are looked at anew: one of each row of stage 2."""
CONCEPTS, TASKS, PRESENT = 22, 6, 0.15


def random_batches(count: int, batch: int, size: int, seed: int) -> list[ConceptBatch]:
    """Noise with random labels: how long it takes does not depend on what is in the images."""
    random = torch.Generator().manual_seed(seed)
    whole = ConceptBatch(
        torch.randn(count, 3, size, size, generator=random),
        (torch.rand(count, CONCEPTS, generator=random) < PRESENT).float(),
        (torch.rand(count, TASKS, generator=random) < 0.5).float(),
    )
    parts = zip(*(part.split(batch) for part in whole[:3]), strict=True)
    return [ConceptBatch(*part) for part in parts]


class Race:
    """One model and its data, and the ways to take them through stages 2 and 3."""

    def __init__(self, backbone: str, *, size: int, images: int, batch: int, epochs: int) -> None:
        config = ConceptConfig(
            concepts=tuple(f"concept {k}" for k in range(CONCEPTS)),
            tasks=tuple(f"task {t}" for t in range(TASKS)),
            backbone=backbone,
            image_size=(size, size),
        )
        torch.manual_seed(0)
        self.model = ConceptModel.from_config(get_preset().apply_to(config))
        self.untaught = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.train, self.val = random_batches(images, batch, size, 0), random_batches(images // 4, batch, size, 1)
        self.epochs = epochs

    def plain_pass(self) -> None:
        """The backbone alone, over all images once."""
        self.model.eval()
        with torch.inference_mode():
            for batch in self.train + self.val:
                self.model.backbone(batch.images)

    def fit(self, feature_cache: Storage, epochs: int) -> dict[str, Tensor]:
        """Stages 2 and 3 from the start; gives the weights they end with."""
        self.model.load_state_dict(self.untaught)
        _, *stages = get_preset().stages(self.model.config, epochs={"prototypes": epochs, "task": epochs})
        Trainer(seed=0, feature_cache=feature_cache).fit(self.model, stages, self.train, self.val)
        return {name: value.clone() for name, value in self.model.state_dict().items()}


def stages_cost(
    backbone: str, *, size: int = 224, images: int = 64, batch: int = 16, epochs: int = EPOCHS, repeats: int = 1
) -> list[dict[str, Any]]:
    """One row each for the plain pass and the ways to train; without keeping, few epochs stand for all."""
    race = Race(backbone, size=size, images=images, batch=batch, epochs=epochs)
    ways: dict[str, Callable[[], object]] = {
        "plain pass": race.plain_pass,
        "kept in memory": lambda: race.fit("memory", epochs),
        "kept on disk": lambda: race.fit("disk", epochs),
        "anew in each epoch": lambda: race.fit("off", ANEW),
    }
    equal = _equal(race.fit("memory", ANEW), race.fit("off", ANEW))
    work: dict[str, list[float]] = {name: [] for name in ways}
    timed = {name: functools.partial(_count_work, way, work[name]) for name, way in ways.items()}
    timings = interleave(timed, repeats=repeats, warmup=0)
    plain = timings.median("plain pass")
    seconds = {name: timings.median(name) for name in ways}
    processor = {name: statistics.median(taken) for name, taken in work.items()}
    for times in (seconds, processor):
        times["anew in each epoch"] *= epochs / ANEW
    judged = backbone == VIT and epochs == EPOCHS
    rows = []
    for name, taken in seconds.items():
        ratio, gain = taken / plain, seconds["anew in each epoch"] / taken
        kept = name.startswith("kept")
        rows.append(
            {
                "backbone": backbone,
                "stages 2 and 3": name,
                "s": round(taken, 2),
                "of a plain pass": round(ratio, 3),
                "in processor time": round(processor[name] / processor["plain pass"], 3),
                "target": TARGETS["kept"] if kept and judged else None,
                "times faster": round(gain, 1) if kept else None,
                "target of that": TARGETS["gain"] if kept and judged else None,
                "met": ratio <= TARGETS["kept"] and gain >= TARGETS["gain"] if kept and judged else None,
                "same weights": equal if kept else None,
            }
        )
    return rows


def _count_work(way: Callable[[], object], taken: list[float]) -> None:
    """Also count processor time, which other work on the machine adds little to."""
    start = time.process_time()
    way()
    taken.append(time.process_time() - start)


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", nargs="+", default=[VIT, "timm:resnet50"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=64, help="for training; a quarter more for validation")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of each of both stages")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, help="threads of torch; all cores if not given")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.getLogger("conceptcam").setLevel(logging.ERROR)  # nothing can be learned of noise, as the loop would say
    rows = []
    for backbone in options.backbones:
        rows += stages_cost(
            backbone,
            size=options.size,
            images=options.images,
            batch=options.batch,
            epochs=options.epochs,
            repeats=options.repeats,
        )
    finish(rows, vars(options), options.json)


if __name__ == "__main__":
    main()
