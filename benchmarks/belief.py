"""How far may the bundled models be believed? The slow measures, each beside its control, on drawn images."""

import argparse
import json
from pathlib import Path

import torch

from conceptcam import ConceptModel, PhantomDataset
from conceptcam._display.text import text_table
from conceptcam.analysis import (
    hard_soft_figures,
    intervention_curve,
    measure_faithfulness,
    measure_leakage,
    randomization_check,
    removal_effects,
    spatial_curve,
)
from conceptcam.data.batch import ConceptBatch
from conceptcam.metrics import (
    DetectionMetrics,
    PrototypeParts,
    add_noise,
    macro_average,
    prototype_reliance,
    prototype_usage,
    relevance_agreement,
)

POLICIES = ("random", "ucp", "lcp", "cctp", "ectp", "eudtp")
Rows = list[tuple[str, float, str]]  # figure, value, and its control in words


def maps_find(model: ConceptModel, batches: list[ConceptBatch]) -> Rows:
    metric = DetectionMetrics(len(model.config.concepts))
    for batch in batches:
        with torch.no_grad():
            metric.update(model.forward_concepts(batch.images).concept_maps, batch.boxes, model.config.image_size)
    scores = metric.compute()
    mean = {name: float(macro_average(getattr(scores, name).double())) for name in scores._fields}
    return [
        ("MaxBoxAccV2", mean["max_box_accuracy"], f"{mean['box_chance']:.3f}"),
        ("PxAP", mean["pixel_precision"], f"{mean['pixel_chance']:.3f}"),
        ("sensitivity at 1 false alarm per image", float(macro_average(scores.sensitivity)), ""),
        ("sensitivity at 1/8", float(macro_average(scores.froc[:, 0])), ""),
    ]


def scores_rest(model: ConceptModel, batches: list[ConceptBatch], data: PhantomDataset, per_concept: int) -> Rows:
    rows: Rows = []
    for fill in ("blur", "mean"):
        areas = measure_faithfulness(model, batches, fill=fill, per_concept=per_concept)
        mean = {name: float(macro_average(getattr(areas, name).double())) for name in areas._fields}
        rows += [
            (f"deletion, {fill}", mean["deletion"], f"{mean['random_deletion']:.3f}"),
            (f"insertion, {fill}", mean["insertion"], f"{mean['random_insertion']:.3f}"),
        ]
    removed = removal_effects(model, data, images=min(len(data), 100))
    mean = {name: float(macro_average(getattr(removed, name).double())) for name in removed._fields}
    count = len(model.config.concepts)
    rows += [
        ("finding removed: logit falls by", mean["drop"], f"others move by {mean['others']:.3f}"),
        ("finding removed: it falls", mean["falls"], "0.500"),
        ("finding removed: no other moves more", mean["largest"], f"{1 / count:.3f}"),
        ("finding removed: change of the map inside", mean["inside"], f"{mean['area']:.3f}"),
    ]
    check = randomization_check(model, batches[:1])
    return rows + [
        (f"maps alike, shuffled to {part}", value, "0") for part, value in zip(check.parts, check.means, strict=True)
    ]


def scores_carry(model: ConceptModel, batches: list[ConceptBatch]) -> Rows:
    figures, leaks = hard_soft_figures(model, batches), measure_leakage(model, batches)
    mean = {name: float(macro_average(getattr(leaks, name).double())) for name in leaks._fields}
    return [
        ("task AUROC, scores", figures.soft, ""),
        ("task AUROC, yes and no", figures.hard, ""),
        ("task AUROC, true concepts", figures.true, ""),
        ("CTL", mean["ctl"], f"{mean['ctl_control']:.3f}"),
        ("ICL", mean["icl"], f"{mean['icl_control']:.3f}"),
        ("OIS", mean["ois"], f"{mean['ois_control']:.3f}"),
        ("NIS", mean["nis"], f"{mean['nis_truth']:.3f}"),
    ]


def corrections_help(model: ConceptModel, batches: list[ConceptBatch]) -> Rows:
    counts = [0, 1, 3, 5, len(model.config.concepts)]
    curves = {f"{policy}": intervention_curve(model, batches, policy=policy, counts=counts) for policy in POLICIES}
    curves["ucp, wrong"] = intervention_curve(model, batches, policy="ucp", answers="wrong", counts=counts)
    rows = [(f"corrected by {name}", curve.mean_auroc, _row(curve.auroc)) for name, curve in curves.items()]
    for places in ("oracle", "jittered", "mirrored"):
        curve = spatial_curve(model, batches, places=places)
        rows.append((f"{places} boxes, elsewhere 0.2", float(curve.auroc[2]), _row(curve.auroc)))
    return rows


def prototypes_mean(model: ConceptModel, batches: list[ConceptBatch]) -> Rows:
    if model.config.bottleneck == "concepts":
        return []
    concepts, per_concept = len(model.config.concepts), model.config.prototypes_per_concept
    parts, usage, evidence = PrototypeParts(concepts, per_concept), torch.zeros(concepts, per_concept), []
    for batch in batches:
        with torch.no_grad():
            output, noisy = model(batch.images), model(add_noise(batch.images))
        parts.update(output.similarity_maps, batch.concepts, batch.boxes, noisy.similarity_maps)
        usage = usage + prototype_usage(output.vector_similarity, batch.concepts)
        evidence.append(output.evidence)
    scores = parts.compute()
    own = scores.part == torch.arange(concepts)[:, None]
    agreement = relevance_agreement(usage, prototype_reliance(torch.cat(evidence), model.task_head.weight))
    return [
        ("prototypes consistent at 80 %", scores.consistency(), f"share of one part {scores.share.nanmean():.3f}"),
        ("prototypes whose part is their concept", float(own[scores.part >= 0].double().mean()), ""),
        ("stability under noise", float(scores.stability.nanmean()), "1"),
        ("relevance against reliance", agreement, "1 agrees, 0 does not"),
    ]


def _row(values: torch.Tensor) -> str:
    return " ".join(f"{value:.3f}" for value in values.tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["phantom-csr", "phantom-cbm"], help="of the phantom's concepts")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--seed", type=int, default=77, help="of the images")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    found = {}
    for name in arguments.models:
        model = ConceptModel.from_pretrained(name).eval()
        data = PhantomDataset(arguments.images, seed=arguments.seed, cache_dir=False)
        data.preprocess = model.preprocess
        batches = list(data.dataloader(50))
        rows = [
            *maps_find(model, batches),
            *scores_rest(model, batches, data, per_concept=20),
            *scores_carry(model, batches),
            *corrections_help(model, batches),
            *prototypes_mean(model, batches),
        ]
        table = [[name, "", "control"], *([figure, f"{value:.3f}", control] for figure, value, control in rows)]
        print("\n".join(text_table(table)), flush=True)
        found[name] = rows
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
