"""How fast are the losses? Forward and backward, each over the plain loop that says the same.

Every loop is checked to give the same value and the same gradient before anything is timed.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from measuring import finish, interleave
from torch import Tensor

from conceptcam import ConceptBoxes
from conceptcam.losses import (
    asymmetric_loss,
    box_localization_loss,
    focal_loss,
    multilabel_loss,
    prototype_contrastive_loss,
)

CONCEPTS, GRID, PROTOTYPES = 22, 14, 5
TARGET = 30.0
"""How many times as fast as the loop over boxes the box loss must be."""

Dicts = list[list[dict[str, Any]]]
Case = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor]


# The loops: what one would write first, box by box and vector by vector.


def coverage_mask(box: list[float]) -> Tensor:
    """(h, w) share of each cell that one box covers."""
    x0, y0, x1, y1 = (GRID * side for side in box)
    start = torch.arange(GRID)
    stop = start + 1
    rows = (stop.clamp(max=y1) - start.clamp(min=y0)).clamp(min=0)
    columns = (stop.clamp(max=x1) - start.clamp(min=x0)).clamp(min=0)
    return rows[:, None] * columns


def center_mask(box: list[float]) -> Tensor:
    """(h, w) 1 for the cells whose centre one box holds, and for the cell that holds the box's own."""
    x0, y0, x1, y1 = box
    center = (torch.arange(GRID) + 0.5) / GRID
    rows = (y0 <= center) & (center <= y1)
    columns = (x0 <= center) & (center <= x1)
    rows[int((y0 + y1) / 2 * GRID)] = True
    columns[int((x0 + x1) / 2 * GRID)] = True
    return (rows[:, None] & columns).float()


def loop_per_pair(maps: Tensor, boxes: Dicts) -> Tensor:
    """Binary cross-entropy by area, one term per (image, concept) on the union of its boxes."""
    terms = []
    for image, drawn in enumerate(boxes):
        masks: dict[int, Tensor] = {}
        for box in drawn:
            mask = coverage_mask(box["bbox"])
            concept = box["concept_idx"]
            masks[concept] = torch.maximum(masks[concept], mask) if concept in masks else mask
        for concept, inside in masks.items():
            z, outside = maps[image, concept], 1 - inside
            high = (F.softplus(-z) * inside).sum() / inside.sum()
            low = (F.softplus(z) * outside).sum() / outside.sum() if outside.sum() > 0 else 0.0
            terms.append(high + low)
    return torch.stack(terms).mean()


def loop_per_box(maps: Tensor, boxes: Dicts) -> Tensor:
    """The founding document's form: the hinge of each box on its own, averaged over the whole grid."""
    total, count = maps.new_zeros(()), 0
    for image, drawn in enumerate(boxes):
        for box in drawn:
            inside = center_mask(box["bbox"])
            cam = maps[image, box["concept_idx"]]
            total = total + torch.mean(F.relu(-cam * inside)) + torch.mean(F.relu(cam * (1 - inside)))
            count += 1
    return total / count


def loop_contrastive(similarity: Tensor, labels: Tensor, variant: str, temperature: float = 0.1) -> Tensor:
    """The contrastive losses, one present concept of one image at a time."""
    terms = []
    for image in range(len(labels)):
        for concept in range(CONCEPTS):
            if labels[image, concept] == 0:
                continue
            logits = similarity[image, concept] / temperature  # (K, M)
            own = logits[concept]
            others = torch.cat([logits[:concept], logits[concept + 1 :]]).flatten()
            if variant == "nearest":
                terms.append(-torch.log(own.exp().sum() / logits.exp().sum()))
            elif variant == "infonce":
                terms.append(torch.stack([-torch.log(o.exp() / (o.exp() + others.exp().sum())) for o in own]).mean())
            else:
                terms.append(torch.stack([-torch.log(o.exp() / logits.exp().sum()) for o in own]).mean())
    return torch.stack(terms).mean()


# What is compared.


def random_boxes(images: int, per_image: int, *, repeat_concepts: bool) -> Dicts:
    """Boxes of all sizes as lists of dicts; several of one concept in an image, or each of another one."""
    boxes = []
    for _ in range(images):
        if repeat_concepts:
            concepts = torch.randint(CONCEPTS, (per_image,)).tolist()
        else:
            concepts = torch.randperm(CONCEPTS)[:per_image].tolist()
        size = 0.03 + 0.5 * torch.rand(per_image, 2)
        corner = torch.rand(per_image, 2) * (1 - size)
        corners = torch.cat([corner, corner + size], dim=1).clamp(0, 1).tolist()
        boxes.append([{"concept_idx": k, "bbox": box} for k, box in zip(concepts, corners, strict=True)])
    return boxes


def box_cases(batch: int, per_image: int) -> dict[str, Case]:
    maps = torch.randn(batch, CONCEPTS, GRID, GRID)
    shared = random_boxes(batch, per_image, repeat_concepts=True)
    distinct = random_boxes(batch, min(per_image, CONCEPTS), repeat_concepts=False)
    read_shared, read_distinct = ConceptBoxes.from_dicts(shared), ConceptBoxes.from_dicts(distinct)
    seed_form = partial(box_localization_loss, penalty="hinge", normalize="grid", mask="center")
    return {
        "box loss, recommended, per pair": (
            lambda z: box_localization_loss(z, read_shared),
            lambda z: loop_per_pair(z, shared),
            maps,
        ),
        "same, boxes as dicts": (
            lambda z: box_localization_loss(z, shared),
            lambda z: loop_per_pair(z, shared),
            maps,
        ),
        "box loss, seed, per box": (
            lambda z: seed_form(z, read_distinct),
            lambda z: loop_per_box(z, distinct),
            maps,
        ),
    }


def contrastive_cases(batch: int) -> dict[str, Case]:
    similarity = torch.rand(batch, CONCEPTS, CONCEPTS, PROTOTYPES) * 2 - 1
    labels = (torch.rand(batch, CONCEPTS) < 0.15).float()
    labels[0, 0] = 1
    forms: tuple[Literal["nearest", "infonce", "supcon"], ...] = ("nearest", "infonce", "supcon")
    return {
        f"contrastive, {form}": (
            partial(prototype_contrastive_loss, labels=labels, variant=form),
            partial(loop_contrastive, labels=labels, variant=form),
            similarity,
        )
        for form in forms
    }


def label_cases(batch: int) -> dict[str, Case]:
    """No loops here: the label losses over torch's own binary cross-entropy, so the ratio shows their cost."""
    logits, labels = torch.randn(batch, CONCEPTS), (torch.rand(batch, CONCEPTS) < 0.15).float()
    losses: dict[str, Callable[..., Tensor]] = {
        "multilabel": multilabel_loss,
        "focal": focal_loss,
        "asymmetric": asymmetric_loss,
    }
    return {
        name: (
            partial(loss, labels=labels),
            partial(F.binary_cross_entropy_with_logits, target=labels),
            logits,
        )
        for name, loss in losses.items()
    }


def differentiate(loss: Callable[[Tensor], Tensor], given: Tensor) -> tuple[float, Tensor]:
    """Value and gradient."""
    leaf = given.clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    assert leaf.grad is not None
    return value.item(), leaf.grad


def check_same(name: str, case: Case) -> float:
    """How far the values of both forms are apart; refuses two forms that differ."""
    ours, loop, given = case
    (value, gradient), (expected, expected_gradient) = differentiate(ours, given), differentiate(loop, given)
    scale = expected_gradient.abs().max()
    if not math.isclose(value, expected, rel_tol=1e-5) or (gradient - expected_gradient).abs().max() > 1e-4 * scale:
        raise AssertionError(f"{name}: {value} with one gradient and {expected} with another are not the same loss")
    return abs(value - expected)


def measure(cases: dict[str, Case], *, repeats: int, check: bool, target: str = "") -> list[dict[str, Any]]:
    rows = []
    for name, case in cases.items():
        difference = check_same(name, case) if check else math.nan
        ours, loop, given = case
        timings = interleave(
            {"ours": partial(differentiate, ours, given), "loop": partial(differentiate, loop, given)}, repeats=repeats
        )
        speedup = timings.ratio("loop", "ours")
        aimed = TARGET if name.startswith(target) and target else None
        rows.append(
            {
                "loss": name,
                "ours ms": 1000 * timings.median("ours"),
                "loop ms": 1000 * timings.median("loop"),
                "times faster": round(speedup, 1),
                "target": aimed,
                "met": None if aimed is None else speedup >= aimed,
                "values differ by": f"{difference:.0e}" if check else None,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--boxes", type=int, default=8, help="boxes per image")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, help="threads of torch; all cores if not given")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = measure(box_cases(options.batch, options.boxes), repeats=options.repeats, check=True, target="box loss")
    rows += measure(contrastive_cases(options.batch), repeats=options.repeats, check=True)
    # Here the "loop" is torch's own loss, so a figure below 1 says how much slower ours is.
    rows += measure(label_cases(options.batch), repeats=10 * options.repeats, check=False)
    finish(rows, vars(options), options.json)


if __name__ == "__main__":
    main()
