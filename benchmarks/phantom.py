"""What do presets, bottlenecks and boxes buy? The phantom's table, over several seeds.

A seed changes the weights at the start, the order of batches and the images. Every finished training is a line in
a file, and a line that is there is not computed again: stop and start as you like, and print the table of whatever
is finished with `--table`.

Stage 1 knows nothing of the bottleneck, so it is trained once and both bottlenecks go on from it.
"""

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from measuring import machine, machine_line, table

from conceptcam import ConceptItem, ConceptModel, Recipe, Stage, Trainer, evaluate, preset
from conceptcam.config import Bottleneck
from conceptcam.data.phantom import CANARIES, PHANTOM_VERSION
from conceptcam.demo import DemoData, demo_config, headline, phantom_data
from conceptcam.losses import PrototypeContrastiveLoss, classification_loss
from conceptcam.metrics.classification import label_scores, macro
from conceptcam.metrics.prototypes import PrototypeAccuracy, prototype_health, prototype_usage
from conceptcam.runs import RunOptions, loader
from conceptcam.stages import prototype_stage
from conceptcam.steps import Precision

SEEING = ("backbone", "concept_head", "pool")
BOTTLENECKS: tuple[Bottleneck, ...] = ("prototypes", "concepts")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to train.

    Attributes:
        preset: Name of the preset.
        borrowed_rates: Whether learning rates and schedule are the recommended preset's. Those of the other two are
            made for pretrained backbones; with these, what differs is the losses.
        boxes: Whether anybody drew boxes in the training images.
        pooling: In place of the preset's.
        second: What stage 2 is, in place of the preset's: `"nearest"` is one row with the contrastive loss alone,
            `"random"` leaves prototypes where they started, `"present"` has no loss for absent concepts. Stage 1 is
            the preset's, and is shared with it where stage 1 is kept.
        black_box: Whether the model learns diseases straight from images: a classifier with the same backbone whose
            classes are the diseases, and no concepts.
    """

    preset: str
    borrowed_rates: bool = False
    boxes: bool = True
    pooling: str | None = None
    second: Literal["preset", "nearest", "random", "present"] = "preset"
    black_box: bool = False

    def stages(self, model: ConceptModel, recipe: Recipe) -> tuple[Stage, ...]:
        own = preset(self.preset).stages(model.config, recipe)
        if self.second != "preset" and model.config.bottleneck == "prototypes":
            own = tuple(_changed(own, self.second))
        if not self.borrowed_rates:
            return own
        lenders = {stage.name: stage for stage in preset("recommended").stages(model.config, recipe)}
        if "embedding" in lenders:  # the row of stage 2 in which prototypes learn too
            lenders["prototypes"] = lenders["embedding"]
        return tuple(
            dataclasses.replace(stage, lr=lenders[stage.name].lr, schedule=lenders[stage.name].schedule)
            for stage in own
        )


def _changed(stages: Sequence[Stage], second: str) -> Iterator[Stage]:
    """The stages with another stage 2."""
    contrastive = PrototypeContrastiveLoss("nearest", temperature=0.1)
    for stage in stages:
        if stage.needs != "compare":
            yield stage
        elif second == "random":
            yield dataclasses.replace(stage, begin=None, lr={"projector": stage.lr["projector"], "prototypes": 3e-4})
        elif second == "present" or stage.begin is None:
            old = prototype_stage(contrastive, lr=stage.lr)
            whole = sum(one.epochs for one in stages if one.needs == "compare")
            epochs = whole if second == "nearest" else stage.epochs
            called = "prototypes" if second == "nearest" else stage.name
            yield dataclasses.replace(stage, name=called, objective=old.objective, asks="present", epochs=epochs)


ROWS: dict[str, Row] = {
    "recommended": Row(preset="recommended"),
    "black-box": Row(preset="recommended", boxes=False, pooling="mean", black_box=True),
    "recommended-no-boxes": Row(preset="recommended", boxes=False),
    "recommended-mean-pooling": Row(preset="recommended", pooling="mean"),
    "recommended-nearest": Row(preset="recommended", second="nearest"),
    "recommended-random": Row(preset="recommended", second="random"),
    "recommended-present": Row(preset="recommended", second="present"),
    "seed": Row(preset="seed"),
    "seed-rates": Row(preset="seed", borrowed_rates=True),
    "paper": Row(preset="paper"),
    "paper-rates": Row(preset="paper", borrowed_rates=True),
}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large an experiment is; results of one scale are not compared with those of another."""

    images: int = 8000
    size: int = 112
    epochs: tuple[int, ...] = (8, 10, 10)
    batch_size: int = 32
    precision: Precision = "fp32"
    completeness: float = 0.0
    phantom: int = PHANTOM_VERSION

    @property
    def epochs_by_stage(self) -> dict[str, int]:
        return dict(zip(("concepts", "prototypes", "task"), self.epochs, strict=False))


def run_row(name: str, seed: int, scale: Scale, seen: Path | None = None) -> dict[str, Any]:
    """Train one row and measure it, with both bottlenecks; a folder keeps what stage 1 taught."""
    row, start = ROWS[name], time.perf_counter()
    data = phantom_data(scale.images, size=scale.size, seed=seed, completeness=scale.completeness)
    if row.black_box:
        return result_of(name, seed, scale, start, *run_black_box(row, data, seed, scale))
    seer = build(row, scale, seed, BOTTLENECKS[0])
    batches = prepare(data, seer, scale, seed)
    trainer = Trainer(seed=seed, precision=scale.precision)
    recipe = recipe_for(data, scale)
    first = name if row.second == "preset" else row.preset
    kept = seen / f"{first}-{seed}-{scale.images}-{scale.size}-{scale.completeness}" if seen is not None else None
    if kept is not None and (kept / "curve.json").exists():
        seer = ConceptModel.from_pretrained(kept)
        curve = json.loads((kept / "curve.json").read_text(encoding="utf-8"))
    else:
        data.train.augment = None if row.boxes else forget_boxes
        curve = [record.score for record in trainer.fit(seer, row.stages(seer, recipe)[:1], *batches)]
        data.train.augment = None  # later stages do not look at boxes, and go on from what is computed once
        if kept is not None:
            seer.save_pretrained(kept)
            (kept / "curve.json").write_text(json.dumps(curve), encoding="utf-8")
    figures: dict[str, Any] = {}
    for bottleneck in BOTTLENECKS:
        model = build(row, scale, seed, bottleneck)
        for part in SEEING:
            setattr(model, part, getattr(seer, part))  # frozen from here on, so both can share it
        model.record = seer.record
        trainer.fit(model, row.stages(model, recipe)[1:], *batches)
        figures[bottleneck] = measure(model, data, scale)
    return result_of(name, seed, scale, start, curve, figures)


def result_of(
    name: str, seed: int, scale: Scale, start: float, curve: Sequence[float], figures: Mapping[str, Any]
) -> dict[str, Any]:
    """One line of the file of results."""
    return {
        "row": name,
        "seed": seed,
        "scale": dataclasses.asdict(scale),
        "stage 1 AUROC by epoch": list(curve),
        "figures": dict(figures),
        "seconds": round(time.perf_counter() - start),
        "machine": machine(),
    }


def run_black_box(row: Row, data: DemoData, seed: int, scale: Scale) -> tuple[list[float], dict[str, Any]]:
    """Teach the same backbone the diseases themselves, through one linear layer on its pooled features."""
    torch.manual_seed(seed)
    config = dataclasses.replace(
        demo_config(scale.size, "concepts"), concepts=data.train.tasks, tasks=(), pooling=row.pooling
    )
    model = ConceptModel.from_config(config)
    batches = prepare(data, model, scale, seed)
    for part in (data.train, data.val, data.test):
        part.augment = ask_for_diseases
    recipe = Recipe(concept_loss=classification_loss("ratio", data.train.task_labels), epochs=scale.epochs_by_stage)
    records = Trainer(seed=seed, precision=scale.precision).fit(model, row.stages(model, recipe), *batches)
    with torch.inference_mode():
        said = torch.cat([model.see(batch.images).concept_logits for batch in loader(data.test, RunOptions())])
    disease = float(macro(label_scores(said, data.test.task_labels).auroc))
    return [record.score for record in records], {"none": {"disease": disease}}


def ask_for_diseases(item: ConceptItem) -> ConceptItem:
    """The item with its diseases for concepts."""
    return item._replace(concepts=item.targets, targets=item.targets[:0], boxes=None)


def forget_boxes(item: ConceptItem) -> ConceptItem:
    """The item as if nobody had drawn."""
    return item._replace(boxes=None)


def build(row: Row, scale: Scale, seed: int, bottleneck: Bottleneck) -> ConceptModel:
    torch.manual_seed(seed)
    config = preset(row.preset).configure(demo_config(scale.size, bottleneck))
    if row.pooling is not None:
        config = dataclasses.replace(config, pooling=row.pooling)
    return ConceptModel.from_config(config)


def recipe_for(data: DemoData, scale: Scale) -> Recipe:
    return Recipe(
        concept_loss=classification_loss("ratio", data.train.concept_labels),
        task_loss=classification_loss("ratio", data.train.task_labels),
        epochs=scale.epochs_by_stage,
    )


def prepare(data: DemoData, model: ConceptModel, scale: Scale, seed: int) -> tuple[Any, Any]:
    """Batches to train on and to validate on."""
    data.train.preprocess = data.val.preprocess = data.test.preprocess = model.preprocess
    options = RunOptions(batch_size=scale.batch_size, seed=seed)
    return loader(data.train, options, shuffle=True), loader(data.val, options)


def measure(model: ConceptModel, data: DemoData, scale: Scale) -> dict[str, float]:
    """The figures of a trained model on test images."""
    result = evaluate(model, loader(data.test, RunOptions(batch_size=scale.batch_size)), canaries=CANARIES)
    first = headline(model, result, data)
    return {
        "AUROC": first["concept AUROC"],
        "AP": first["concept AP"],
        "pointing": first["pointing"],
        "small": first["pointing, five small findings"],
        "mirror gap": first["mirror gap of the one-sided findings"],
        "energy": result.summary()["energy_in_box"],
        "disease": first[f"disease AUROC, {model.config.bottleneck} bottleneck"],
        "linear": first["disease AUROC, linear head on the true concepts"],
        "ceiling": first["disease AUROC, ceiling by enumeration"],
        "random map": first["pointing of a random map"],
        **(health(model, data, scale) if model.config.bottleneck == "prototypes" else {}),
    }


@torch.inference_mode()
def health(model: ConceptModel, data: DemoData, scale: Scale) -> dict[str, float]:
    """What became of the prototypes, on test images."""
    accuracy, usage, evidence = PrototypeAccuracy(), torch.zeros(()), []
    for batch in loader(data.test, RunOptions(batch_size=scale.batch_size)):
        output = model(batch.images)
        accuracy.update(output.vector_similarity, batch.concepts)
        usage = usage + prototype_usage(output.vector_similarity, batch.concepts)
        evidence.append(output.evidence)
    found = prototype_health(model.prototypes.vectors, usage)
    # Of the ten images in which a prototype's evidence is highest, the share that shows its concept.
    foremost = torch.cat(evidence).topk(10, dim=0).indices  # (10, K, M)
    shown = data.test.concept_labels[foremost, torch.arange(foremost.shape[1])[None, :, None]]
    return {
        "assigned right": float(accuracy.compute()),
        "alive": float(found.alive.nanmean()),
        "top share": float(found.top_share.nanmean()),
        "closest": float(found.closest_cosine.max()),
        "top-10 purity": float(shown.mean()),
    }


# The file of results.


def finished(path: Path, scale: Scale) -> dict[tuple[str, int], dict[str, Any]]:
    """(row, seed) -> result, of those at this scale."""
    if not path.exists():
        return {}
    wanted = json.loads(json.dumps(dataclasses.asdict(scale)))  # as JSON spells it
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(line["row"], line["seed"]): line for line in lines if line["scale"] == wanted}


def append(path: Path, result: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")


def compare(results: Sequence[Mapping[str, Any]], reach: float) -> list[dict[str, Any]]:
    """One row per way to train and bottleneck: mean and standard deviation over seeds."""
    rows = []
    for name in dict.fromkeys(result["row"] for result in results):
        of_row = [result for result in results if result["row"] == name]
        columns = dict.fromkeys(column for one in results for figures in one["figures"].values() for column in figures)
        for bottleneck in of_row[0]["figures"]:
            figures = [result["figures"][bottleneck] for result in of_row]
            rows.append(
                {
                    "row": name,
                    "bottleneck": bottleneck,
                    "seeds": len(of_row),
                    **{column: spread([one.get(column, math.nan) for one in figures]) for column in columns},
                    f"epochs to {reach:.2f}": epochs_to(reach, [one["stage 1 AUROC by epoch"] for one in of_row]),
                }
            )
    return rows


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation: '.912 (.004)'; `-` of what is undefined."""
    if any(map(math.isnan, values)):
        return "-"
    sd = f"{statistics.stdev(values):.3f}".removeprefix("0") if len(values) > 1 else "-"
    return f"{statistics.fmean(values):.3f} ({sd})".removeprefix("0")


def epochs_to(reach: float, curves: Sequence[Sequence[float]]) -> str:
    """First epoch of each seed whose validation AUROC is high enough; `>8` if none of 8 is."""
    firsts = [
        next((str(e) for e, score in enumerate(curve, 1) if score >= reach), f">{len(curve)}") for curve in curves
    ]
    return " ".join(firsts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--images", type=int, default=Scale.images, help="to train on")
    parser.add_argument("--size", type=int, default=Scale.size, help="side of the images in pixels")
    parser.add_argument("--epochs", type=int, nargs=3, default=Scale.epochs, help="of the three stages")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default=Scale.precision)
    parser.add_argument(
        "--completeness", type=float, default=Scale.completeness, help="how much of the diseases only pixels tell"
    )
    parser.add_argument("--reach", type=float, default=0.9, help="AUROC to count the epochs to")
    parser.add_argument("--results", type=Path, default=Path("phantom-results.jsonl"), help="a line per training")
    parser.add_argument(
        "--seen", type=Path, help="folder that keeps models after stage 1, to try later stages on again"
    )
    parser.add_argument("--table", action="store_true", help="train nothing; print what is finished")
    parser.add_argument("--threads", type=int, help="threads of torch; all cores if not given")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    scale = Scale(
        images=options.images,
        size=options.size,
        epochs=tuple(options.epochs),
        precision=options.precision,
        completeness=options.completeness,
    )
    for seed in range(options.seeds):  # seed by seed, so that a table is there early
        for name in options.rows:
            if not options.table and (name, seed) not in finished(options.results, scale):
                result = run_row(name, seed, scale, options.seen)
                append(options.results, result)
                print(f"{name}, seed {seed}: {result['seconds']} s", flush=True)
    done = finished(options.results, scale)
    results = [done[name, seed] for name in options.rows for seed in range(options.seeds) if (name, seed) in done]
    rows = compare(results, options.reach)
    if rows:
        print(table(list(rows[0]), [list(row.values()) for row in rows]))
    else:
        print(f"nothing of this scale is finished in {options.results}")
    print(f"{scale}; {machine_line()}")
    if options.json is not None:
        content = {"machine": machine(), "scale": dataclasses.asdict(scale), "rows": rows}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
