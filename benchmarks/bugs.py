"""Would anybody notice? Plants known bugs in the training data or the loss, and shows which figure betrays each.

Each bug was found in real code, and each leaves a model that trains without complaint. The correct training is
repeated over seeds; a figure catches a bug if it lies more than three standard deviations of the correct ones, and
more than .05, from the correct one of the same seed. Finished trainings are kept in a file, as in `phantom.py`.
"""

import argparse
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import append, finished, machine_line, table, write_json
from phantom_rows import ROWS, Scale, build, prepare, stage_options
from torch import Tensor

from conceptcam import ConceptBatch, ConceptBoxes, ConceptItem, ConceptModel, ConceptPart, Stage, Trainer, evaluate
from conceptcam.data.phantom import ONE_SIDED, SIDED_CONCEPTS, SMALL_FINDINGS, UPRIGHT
from conceptcam.data.phantom.dataset import phantom_data
from conceptcam.losses import box_localization_loss, compute_pos_weight, multilabel_loss
from conceptcam.metrics.classification import macro_average
from conceptcam.metrics.localization import LocalizationMetrics, LocalizationScores
from conceptcam.runs.options import RunOptions, loader
from conceptcam.training.stages import Loss

BETA = 0.5  # weight of localization, as in the recommended preset
LEAST = 0.05  # a smaller move catches nothing, however small the standard deviation of a few seeds happens to be


# The bugs in the data.


def mirrored(item: ConceptItem) -> ConceptItem:
    assert item.boxes is not None
    x0, y0, x1, y1 = item.boxes.xyxy.unbind(1)
    return item._replace(boxes=dataclasses.replace(item.boxes, xyxy=torch.stack([1 - x1, y0, 1 - x0, y1], dim=1)))


def transposed(item: ConceptItem) -> ConceptItem:
    assert item.boxes is not None
    return item._replace(boxes=dataclasses.replace(item.boxes, xyxy=item.boxes.xyxy[:, [1, 0, 3, 2]]))


@dataclass(frozen=True)
class HalfFlipped:
    """Batches, every other one with its images mirrored and its boxes left where they were."""

    batches: Any

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[ConceptBatch]:
        for number, batch in enumerate(self.batches):
            yield batch._replace(images=batch.images.flip(-1)) if number % 2 else batch


# The bugs in the loss. Each is the recommended localization loss, but for one thing.


def integer_masks(maps: Tensor, boxes: ConceptBoxes, labels: Tensor) -> Tensor:
    """Both ends of a box go through int(), so that a box within one row or column of cells vanishes."""
    height, width = maps.shape[-2:]
    corners = (boxes.xyxy * torch.tensor([width, height, width, height])).long()
    pair, member = torch.unique(boxes.image * maps.shape[1] + boxes.concept, return_inverse=True)
    inside = maps.new_zeros(len(pair), height, width)
    for number, (x0, y0, x1, y1) in zip(member.tolist(), corners.tolist(), strict=True):
        inside[number, y0:y1, x0:x1] = 1
    z = maps[pair // maps.shape[1], pair % maps.shape[1]]
    high = (F.softplus(-z) * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp(min=1)
    low = (F.softplus(z) * (1 - inside)).sum(dim=(1, 2)) / (1 - inside).sum(dim=(1, 2)).clamp(min=1)
    return (high + low).sum() / max(1, len(pair))


def outside_per_box(maps: Tensor, boxes: ConceptBoxes, labels: Tensor) -> Tensor:
    """Each box is a term of its own, so that a second box of the same concept lies outside of the first."""
    alone = dataclasses.replace(boxes, image=torch.arange(len(boxes)))
    return box_localization_loss(maps[boxes.image], alone, labels[boxes.image])


Localization = Callable[[Tensor, ConceptBoxes, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Bug:
    """What is done wrong, and the figures that should tell."""

    telltales: tuple[str, ...]
    item: Callable[[ConceptItem], ConceptItem] | None = None
    batches: Callable[[Any], Iterable[ConceptBatch]] | None = None
    pos_weight: Callable[[Tensor], Tensor] | None = None
    localization: Localization | None = None


CORRECT = "correct"
BUGS: dict[str, Bug] = {
    CORRECT: Bug(telltales=()),
    "boxes mirrored": Bug(item=mirrored, telltales=("mirror gap", "Enlarged PA")),
    "boxes transposed": Bug(item=transposed, telltales=("transpose gap", *UPRIGHT)),
    "images flipped, boxes not": Bug(batches=HalfFlipped, telltales=("energy", "IoU", "AP")),
    "pos_weight inverted": Bug(pos_weight=lambda weight: 1 / weight, telltales=("first loss", "mean p")),
    "integer masks": Bug(localization=integer_masks, telltales=("small", "Other lesion")),
    "outside per box": Bug(localization=outside_per_box, telltales=("IoU, several", "energy, several")),
}


def run_bug(name: str, seed: int, scale: Scale) -> dict[str, Any]:
    """Train stage 1 with a bug and measure it on data without."""
    bug, start = BUGS[name], time.perf_counter()
    data = phantom_data(scale.images, size=scale.size, seed=seed)
    data.train.augmentation = bug.item
    weight = compute_pos_weight(data.train.concept_labels)
    if bug.pos_weight is not None:
        weight = bug.pos_weight(weight)
    concept_loss = functools.partial(multilabel_loss, pos_weight=weight)
    options = {**stage_options(data, scale), "concept_loss": concept_loss}
    row = ROWS["recommended"]
    model = build(row, scale, seed, "prototypes")
    train, val = prepare(data, model, scale, seed)
    stage = row.stages(model, **options)[0]
    if bug.localization is not None:
        stage = with_localization(stage, bug.localization, concept_loss)
    trainer = Trainer(seed=seed, precision=scale.precision)
    first_loss, _ = trainer.validate(model, stage, val)
    trainer.fit(model, [stage], train if bug.batches is None else bug.dataloader(train), val)
    return {
        "row": name,
        "seed": seed,
        "scale": dataclasses.asdict(scale),
        "figures": {"first loss": first_loss, **measure(model, loader(data.test, RunOptions()))},
        "seconds": round(time.perf_counter() - start),
    }


def with_localization(stage: Stage, localization: Localization, concept_loss: Loss) -> Stage:
    """The stage with another localization loss."""

    def loss_fn(seen: ConceptPart, batch: ConceptBatch) -> Tensor:
        loss = concept_loss(seen.concept_logits, batch.concepts)
        if batch.boxes is None or not len(batch.boxes):
            return loss
        return loss + BETA * localization(seen.concept_maps, batch.boxes, batch.concepts)

    return dataclasses.replace(stage, loss_fn=loss_fn)


def measure(model: ConceptModel, batches: Any) -> dict[str, float]:
    """Every figure that some bug could move."""
    result = evaluate(model, batches, sided_concepts=SIDED_CONCEPTS)
    place, order = result.localization, result.concepts
    several = score_several(model, batches)

    def of(values: Tensor, *names: str) -> float:
        return float(macro_average(values[[order.index(name) for name in names]]))

    return {
        "AUROC": result.summary()["concept_auroc"],
        "AP": result.summary()["concept_ap"],
        "F1@.5": result.summary()["concept_f1"],
        "pointing": result.summary()["pointing"],
        "small": of(place.pointing, *SMALL_FINDINGS),
        **{name: of(place.pointing, name) for name in SIDED_CONCEPTS},
        "mirror gap": of(place.mirror_gap, *ONE_SIDED),
        "transpose gap": of(place.transpose_gap, *UPRIGHT),
        "energy": result.summary()["energy_in_box"],
        "IoU": result.summary()["iou"],
        "energy, several": float(macro_average(several.energy)),
        "IoU, several": float(macro_average(several.iou)),
        "mean p": float(macro_average(result.mean_probability)),
    }


@torch.inference_mode()
def score_several(model: ConceptModel, batches: Any) -> LocalizationScores:
    """Localization in the images and concepts that have several boxes."""
    metric = LocalizationMetrics(len(model.config.concepts))
    for batch in batches:
        _, pair, count = torch.unique(
            torch.stack([batch.boxes.image, batch.boxes.concept]), dim=1, return_inverse=True, return_counts=True
        )
        chosen = count[pair] > 1
        boxes = ConceptBoxes(batch.boxes.xyxy[chosen], batch.boxes.concept[chosen], batch.boxes.image[chosen])
        metric.update(model.forward_concepts(batch.images).concept_maps, boxes, model.config.image_size)
    return metric.compute()


def verdicts(results: Mapping[tuple[str, int], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per bug and telltale: the figure, the correct one of the same seed, and whether they differ enough."""
    correct = [result["figures"] for (name, _), result in sorted(results.items()) if name == CORRECT]
    rows = []
    for name, bug in BUGS.items():
        for telltale in bug.telltales if (name, 0) in results and correct else ():
            figure, expected = results[name, 0]["figures"][telltale], results[CORRECT, 0]["figures"][telltale]
            sd = statistics.stdev(one[telltale] for one in correct) if len(correct) > 1 else math.nan
            moved = abs(figure - expected)
            rows.append(
                {
                    "bug": name,
                    "told by": telltale,
                    "correct": expected,
                    "with bug": figure,
                    "sd of correct": sd,
                    "caught": None if math.isnan(sd) else moved > max(3 * sd, LEAST),
                }
            )
    return rows


def figures_table(results: Mapping[tuple[str, int], Mapping[str, Any]]) -> str:
    """A column per training, a row per figure."""
    titles = {key: key[0] if key[0] != CORRECT else f"{CORRECT}, seed {key[1]}" for key in results}
    names: Sequence[str] = list(next(iter(results.values()))["figures"])
    rows = [[name, *(result["figures"][name] for result in results.values())] for name in names]
    return table(["figure", *titles.values()], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(BUGS), default=list(BUGS))
    parser.add_argument("--seeds", type=int, default=3, help="of the correct training; bugs are planted with seed 0")
    parser.add_argument("--images", type=int, default=3000, help="to train on")
    parser.add_argument("--size", type=int, default=Scale.size, help="side of the images in pixels")
    parser.add_argument("--epochs", type=int, default=5, help="of stage 1, the only one that is run")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default=Scale.precision)
    parser.add_argument("--results", type=Path, default=Path("bugs-results.jsonl"), help="a line per training")
    parser.add_argument("--table", action="store_true", help="train nothing; print what is finished")
    parser.add_argument("--threads", type=int, help="threads of torch; all cores if not given")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    scale = Scale(images=options.images, size=options.size, epochs=(options.epochs,), precision=options.precision)
    keys = [(name, seed) for name in options.rows for seed in range(options.seeds if name == CORRECT else 1)]
    for name, seed in keys:
        if not options.table and (name, seed) not in finished(options.results, scale):
            result = run_bug(name, seed, scale)
            append(options.results, result)
            print(f"{name}, seed {seed}: {result['seconds']} s", flush=True)
    done = finished(options.results, scale)
    results = {key: done[key] for key in keys if key in done}
    rows = verdicts(results)
    if results:
        print(figures_table(results), end="\n\n")
    if rows:
        print(table(list(rows[0]), [list(row.values()) for row in rows]))
    print(f"{scale}; {machine_line()}")
    if options.json is not None:
        write_json(options.json, {"verdicts": rows, "trainings": list(results.values())})


if __name__ == "__main__":
    main()
