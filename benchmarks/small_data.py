"""Does `recommended` learn from a hundred real images? Cross-validation on dermoscopy beside plain baselines.

The data are a folder with labels.csv (PH2: 140 images, 13 concepts, three diagnoses) and a file of ImageNet weights;
neither is part of the project. Each row is trained by `cross_validate` with the preset's own decisions, and read on
images that no model had seen: pooled over the folds, mean and standard deviation over seeds of the division. Energy is
the share of a map's probability that lies on the lesion, over that of a map that is the same everywhere; the lesion is
what is darker than Otsu's threshold inside the central disc. The difference from logistic regression on pooled
features is paired: both on the same images, with a 95 % interval over draws of images, means over seeds. Folds that are
finished are not trained again, and one process per seed may fill the same folder.

A second table says how far the probabilities of concepts come true, all 13 together, calibrated on other folds; a third
what the diagnoses gain if one concept of each image is corrected, or all.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from measuring import finish, table
from small_data_belief import Calibration, calibration, corrected_figures
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import save_image

from conceptcam import ConceptConfig, ConceptModel
from conceptcam.data.batch import ConceptDataset
from conceptcam.data.regions import WithRegions
from conceptcam.data.splits import ConceptSubset, make_folds
from conceptcam.data.table import TableDataset
from conceptcam.losses.classification import class_balanced_loss
from conceptcam.metrics.intervals import label_intervals
from conceptcam.model.data_config import config_for_data
from conceptcam.model.linear_solver import LinearSolver
from conceptcam.runs.cross_validation import OutOfFold, cross_validate, headline
from conceptcam.runs.options import RunOptions

CONCEPTS = (
    *("asymmetry", "atypical_pigment_network", "typical_dots_globules", "atypical_dots_globules", "streaks"),
    *("regression_areas", "blue_whitish_veil", "white", "red", "light_brown", "dark_brown", "blue_gray", "black"),
)
BLACK_BOX = "logistic regression on pooled frozen features"
TRUTH = "logistic regression on true concepts"
BASELINES = {
    "majority": None,
    BLACK_BOX: "features",
    TRUTH: "concepts",
}
WAYS = ("recommended", "region in training", "fine-tuned")


class Row(NamedTuple):
    """What one division of the data gave."""

    figures: dict[str, float]
    energy: float
    least_called: float
    """The smallest share of images that a class was given, of the share that it has."""
    answers: OutOfFold
    seconds: float = float("nan")
    """Of the whole cross-validation, where it was trained in one go."""
    calibration: Calibration | None = None
    """Of trained models."""
    corrected: Mapping[str, Mapping[str, float]] | None = None
    """Figures of trained models after corrections; see `corrected_figures`."""


def rows(
    options: argparse.Namespace, data: TableDataset, config: ConceptConfig, count: int
) -> Iterator[tuple[str, list[Row]]]:
    """Each row of the table with its results, one per seed."""
    parts = {seed: subset(data, count, seed) for seed in options.seeds}
    for title, on in BASELINES.items():
        yield title, [baseline(part, config, options, seed, on) for seed, part in parts.items()]
    for bottleneck, way in itertools.product(options.bottlenecks, options.ways):
        model = ConceptConfig.from_dict(config.to_dict() | {"bottleneck": bottleneck})
        results = []
        for seed, part in parts.items():
            place = options.out / f"{count}-{bottleneck}-{way.split()[0]}-{seed}"
            masks = options.out / f"{count}-masks-{seed}"
            images = WithRegions(part, lesions(part, masks)) if way == "region in training" else part
            results.append(trained(model, images, place, options, seed, freeze=None if way != "fine-tuned" else False))
        yield f"{way}, {bottleneck}", results


def trained(
    config: ConceptConfig,
    images: ConceptDataset,
    place: Path,
    options: argparse.Namespace,
    seed: int,
    freeze: bool | None,
) -> Row:
    """Cross-validation of the preset by its own decisions; `freeze` overrides one."""
    how = RunOptions(
        seed=seed, weights=options.weights, resume=True, precision="fp32", freeze_backbone=freeze, device=options.device
    )
    clock, began, new = place / "seconds.json", time.perf_counter(), not place.exists()
    found = cross_validate(config, images, place, how, folds=options.folds, training_data="PH2", final=False)
    if new:
        clock.write_text(json.dumps(time.perf_counter() - began), encoding="utf-8")
    seconds = json.loads(clock.read_text(encoding="utf-8")) if clock.exists() else float("nan")
    row = judged(found.answers, config, energy(images, found.answers.fold, place), seconds)
    return row._replace(
        calibration=calibration(found.answers, config.concepts),
        corrected=corrected_figures(images, place, found.answers.fold, config.task_kind),
    )


def subset(data: TableDataset, count: int, seed: int) -> ConceptDataset:
    """Some of the images, alike in labels; all of them if there are no more."""
    if count >= len(data):
        return data
    fold = make_folds(torch.cat([data.concept_labels, data.task_labels], dim=1), round(len(data) / count), seed=seed)
    return ConceptSubset(data, (fold == 0).nonzero()[:, 0][:count])


def judged(
    answers: OutOfFold, config: ConceptConfig, on_lesion: float = float("nan"), seconds: float = float("nan")
) -> Row:
    """The figures of a row."""
    called = F.one_hot(answers.task_logits.argmax(dim=1), answers.targets.shape[1]).double().mean(dim=0)
    least = float((called / answers.targets.double().mean(dim=0)).min())
    return Row(headline(answers, config), on_lesion, least, answers, seconds)


def difference(results: list[Row], others: list[Row]) -> str:
    """Mean over seeds of the paired difference in concept AUROC, and of its limits."""
    found = [
        label_intervals(one.answers.concept_logits, one.answers.concepts, minus=other.answers.concept_logits)
        for one, other in zip(results, others, strict=True)
    ]
    value, low, high = torch.tensor([list(one.macro_auroc) for one in found]).mean(dim=0).tolist()
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"


def baseline(
    part: ConceptDataset, config: ConceptConfig, options: argparse.Namespace, seed: int, on: str | None
) -> Row:
    """The majority, or logistic regressions whose penalty is chosen by cross-validation, read out of fold."""
    concepts, targets = part.concept_labels, part.task_labels
    fold = make_folds(torch.cat([concepts, targets], dim=1), options.folds, seed=seed)
    inputs = pooled_features(part, config, options) if on == "features" else concepts
    said, decided = torch.zeros_like(concepts), torch.zeros_like(targets)
    for number in range(options.folds):
        known, held_out = fold != number, fold == number
        if on is None:
            continue
        loss = class_balanced_loss("ratio", targets[known], kind="multiclass")
        decided[held_out] = regress(inputs, targets, known, held_out, loss)
        said[held_out] = regress(inputs, concepts, known, held_out, class_balanced_loss("ratio", concepts[known]))
    if on is None:  # the commonest class for all
        decided[:, targets.sum(dim=0).argmax()] = 1
    return judged(OutOfFold(said, concepts, decided, targets, fold), config)


def regress(inputs: Tensor, labels: Tensor, known: Tensor, held_out: Tensor, loss: Any) -> Tensor:
    """Logits of the images held out, by a regression on the others."""
    weight, bias = LinearSolver(l2=None).solve(inputs[known][..., None], labels[known], loss)
    return inputs[held_out] @ weight[..., 0].T + bias


def pooled_features(part: ConceptDataset, config: ConceptConfig, options: argparse.Namespace) -> Tensor:
    """(N, C) mean of the frozen backbone's features over places."""
    model = ConceptModel.from_config(config, backbone_weights=options.weights).eval()
    part.preprocess = model.preprocess
    with torch.inference_mode():
        found = [model.backbone(batch.images).mean(dim=(2, 3)) for batch in part.dataloader(28)]
    return torch.cat(found).clone()


def energy(part: ConceptDataset, fold: Tensor, place: Path) -> float:
    """Share of the maps of present concepts that lies on the lesion, over the lesion's share of the image."""
    inside, area = [], []
    for number in fold.unique().tolist():
        model = ConceptModel.from_pretrained(place / f"fold-{number + 1}")
        for row in (fold == number).nonzero()[:, 0].tolist():
            item = part.load_item(row)
            with torch.inference_mode():
                maps = model.forward_concepts(model.preprocess(item.image)[None]).concept_maps
            maps = F.interpolate(maps, size=model.config.image_size, mode="bilinear")[0].sigmoid()[item.concepts > 0]
            mask = lesion(item.image, model.config.image_size)
            inside += (maps * mask).sum(dim=(1, 2)).div(maps.sum(dim=(1, 2))).tolist()
            area += [float(mask.double().mean())] * len(maps)
    return sum(inside) / sum(area)


def lesions(part: ConceptDataset, folder: Path) -> Path:
    """A folder with a mask of the lesion in each image."""
    for row, name in enumerate(part.names):
        place = (folder / name).with_suffix(".png")
        if not place.exists():
            item = part.load_item(row)
            place.parent.mkdir(parents=True, exist_ok=True)
            save_image(lesion(item.image, (item.image.shape[1], item.image.shape[2])).float(), place)
    return folder


def lesion(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) bool: darker than Otsu's threshold, inside the central disc."""
    grey = F.interpolate(image.float().mean(dim=0)[None, None] / 255, size=size, mode="area")
    grey = F.avg_pool2d(grey, 9, stride=1, padding=4, count_include_pad=False)[0, 0]
    across, down = (torch.linspace(-1, 1, side) for side in size[::-1])
    disc = (down[:, None] ** 2 + across**2) < 0.9**2
    share, edges = np.histogram(grey[disc].numpy(), 256, (0, 1), density=True)
    share, middle = share / share.sum(), (edges[1:] + edges[:-1]) / 2
    below, mean = np.cumsum(share), np.cumsum(share * middle)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mean[-1] * below - mean) ** 2 / (below * (1 - below))
    return (grey < float(middle[np.nanargmax(between)])) & disc


def calibration_row(title: str, results: list[Row]) -> dict[str, Any]:
    """How far the probabilities of concepts come true."""
    found = [row.calibration for row in results if row.calibration is not None]
    worse = [f"{name} by {by:.3f} (+-{half:.3f})" for one in found for name, (by, half) in one.worse.items()]
    return {
        "row": title,
        "pooled ECE": text([one.raw for one in found]),
        "calibrated": text([one.calibrated for one in found]),
        "Brier above that of the frequency": "; ".join(worse) or "none",
    }


def correction_rows(title: str, results: list[Row], truth: list[Row]) -> list[dict[str, Any]]:
    """The diagnoses after corrections, and of a head on the true concepts."""
    found = [row.corrected for row in results if row.corrected is not None]
    names = {"AUROC": "task_auroc", "balanced accuracy": "balanced_accuracy"}
    rows: list[dict[str, Any]] = [
        {"row": title, "corrected": what} | {name: text([one[what][name] for one in found]) for name in names}
        for what in ("none", "one, random", "one, ucp", "one, cctp", "all")
    ]
    of_truth = {name: text([row.figures[key] for row in truth]) for name, key in names.items()}
    return [*rows, {"row": title, "corrected": "head on true concepts"} | of_truth]


def text(values: list[float]) -> str:
    """Mean and standard deviation."""
    numbers = torch.tensor(values).double()
    if numbers.isnan().any():
        return "-"
    return f"{numbers.mean():.3f}" + (f" ({numbers.std():.3f})" if len(values) > 1 else "")


def parser() -> argparse.ArgumentParser:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--data", type=Path, required=True, help="folder with labels.csv")
    asked.add_argument("--weights", type=Path, required=True, help="safetensors of the backbone")
    asked.add_argument("--backbone", default="timm:tf_efficientnet_lite0")
    asked.add_argument("--images", type=int, nargs="+", default=[140, 60, 30])
    asked.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked.add_argument("--folds", type=int, default=5)
    asked.add_argument("--bottlenecks", nargs="+", default=["concepts", "prototypes"])
    asked.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS[:2]))
    asked.add_argument("--device", default="cpu")
    asked.add_argument("--out", type=Path, default=Path("runs/small-data"))
    asked.add_argument("--json", type=Path, help="file to write the table to")
    return asked


def main() -> None:
    """Run the benchmark."""
    options = parser().parse_args()
    data = TableDataset(options.data / "labels.csv", options.data, concepts=CONCEPTS, tasks=["diagnosis"])
    config = config_for_data(data, options.backbone)
    found, black_box, truth = [], [], []
    probabilities: list[dict[str, Any]] = []
    corrections: list[dict[str, Any]] = []
    for count in options.images:
        for title, results in rows(options, data, config, count):
            black_box = results if title == BLACK_BOX else black_box
            truth = results if title == TRUTH else truth
            if title not in BASELINES:
                probabilities.append(calibration_row(f"{count}, {title}", results))
                corrections += correction_rows(f"{count}, {title}", results, truth)
            figures = {name: [row.figures[name] for row in results] for name in results[0].figures}
            found.append({
                "images": count, "row": title,
                "concept AUROC": text(figures["concept_auroc"]),
                "balanced accuracy": text(figures["balanced_accuracy"]),
                "task AUROC": text(figures["task_auroc"]),
                "energy": text([row.energy for row in results]),
                "least called": text([row.least_called for row in results]),
                "concept AUROC over pooled features": difference(results, black_box) if title not in BASELINES else "-",
                "seconds": text([row.seconds for row in results]),
            })  # fmt: skip
            print(*found[-1].values(), sep="  ", flush=True)
    for rows_of in (probabilities, corrections):
        print(table(list(rows_of[0]), [list(row.values()) for row in rows_of]), "", sep="\n")
    finish(found, vars(options), options.json)


if __name__ == "__main__":
    main()
