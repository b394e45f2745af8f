"""What do the heads cost? Forward passes of the whole model, and of its first half, over the bare backbone."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import finish, interleave

from conceptcam import ConceptConfig, ConceptModel
from conceptcam.config import Bottleneck

TARGETS = {"forward_concepts": 1.01, "forward": 1.03}
"""Highest ratio to the bare backbone, for ViT-B/16."""

VIT = "medmae_vit_b16"


def heads_cost(
    backbone: str, *, size: int, batch: int, repeats: int, bottleneck: Bottleneck = "prototypes"
) -> list[dict[str, Any]]:
    """One row each for the backbone, `forward_concepts`, the whole forward pass, and what the latter two add."""
    config = ConceptConfig(
        concepts=tuple(f"concept {k}" for k in range(22)),
        tasks=tuple(f"task {t}" for t in range(6)),
        backbone=backbone,
        image_size=(size, size),
        bottleneck=bottleneck,
    )
    torch.manual_seed(0)
    model = ConceptModel.from_config(config).eval()
    images = torch.randn(batch, 3, size, size)
    with torch.inference_mode():
        part = model.forward_concepts(images)
        passes: dict[str, Callable[[], object]] = {
            "backbone": lambda: model.backbone(images),
            "forward_concepts": lambda: model.forward_concepts(images),
            "forward": lambda: model(images),
            # Alone, so that what they cost shows even where the backbone's own times vary by more than that.
            "concept head and pooling alone": lambda: model.pool(model.concept_head(part.features)),
            "forward_task alone": lambda: model.forward_task(part),
        }
        timings = interleave(passes, repeats=repeats)
    rows = []
    for name in passes:
        low, high = timings.middle_half(name, "backbone")
        target = TARGETS.get(name) if backbone == VIT else None
        rows.append(
            {
                "backbone": backbone,
                "pass": name,
                "ms": round(1000 * timings.median(name), 1),
                "ratio": round(timings.ratio(name, "backbone"), 4),
                "middle half": f"{low:.3f}..{high:.3f}",
                "target": target,
                "met": None if target is None else timings.ratio(name, "backbone") <= target,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", nargs="+", default=[VIT, "timm:resnet50"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--bottleneck", choices=["prototypes", "concepts"], default="prototypes")
    parser.add_argument("--threads", type=int, help="threads of torch; all cores if not given")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = []
    for backbone in options.backbones:
        rows += heads_cost(
            backbone,
            size=options.size,
            batch=options.batch,
            repeats=options.repeats,
            bottleneck=options.bottleneck,
        )
    finish(rows, vars(options), options.json)


if __name__ == "__main__":
    main()
