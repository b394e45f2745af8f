"""Does a task head profit from corrected concepts, and what does teaching it so cost?

    python benchmarks/corrections.py                                   # the bundled models' fronts, on the phantom
    python benchmarks/corrections.py --ph2 DATA --runs runs/ph2        # fold-1 ... of `conceptcam train --folds`

The front of each model stays as it is. Its task head is solved for anew, from evidence as the model gives it, and with
corrected concepts beside it (`conceptcam.model.corrections`). Each is read on images that it has not seen: as the
model gives evidence, with one concept of each image corrected by a policy, and with all of them. Below is a head on
the true concepts themselves. Heads that are solved for here are not calibrated, so tasks are ranked by logits as a head
gives them, as the tables of `train --folds` are; what a model's record says of calibration is of another head.
"""

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

import torch
from measuring import finish
from torch import Tensor

from conceptcam import ConceptModel
from conceptcam.analysis.answers import collect_answers
from conceptcam.config import TaskKind
from conceptcam.data.batch import Batches
from conceptcam.data.phantom.dataset import phantom_data
from conceptcam.data.table import TableDataset
from conceptcam.losses.classification import class_balanced_loss
from conceptcam.metrics.classification import balanced_accuracy, confusion_matrix, macro_average, task_scores
from conceptcam.model.corrections import TypicalEvidence, correct_evidence, corrected_copies, typical_evidence_of
from conceptcam.model.linear_solver import LinearSolver

POLICIES = ("random", "ucp", "cctp")
DRAWS = 10  # of the random policy


class Part(NamedTuple):
    """What a front makes of some images, and what is true of them."""

    evidence: Tensor
    concept_logits: Tensor
    concepts: Tensor
    targets: Tensor

    def rows(self, chosen: Tensor) -> "Part":
        return Part(*(part[chosen] for part in self))


class Split(NamedTuple):
    """A front's training images, and others to read the head on."""

    train: Part
    test: Part
    typical: TypicalEvidence


def phantom_splits(name: str, options: argparse.Namespace) -> list[Split]:
    model = ConceptModel.from_pretrained(name)
    data = phantom_data(options.images, test_count=options.test_images, seed=0, progress=True)
    parts = []
    for one in (data.train, data.val, data.test):
        one.preprocess = model.preprocess
        parts.append(part_of(model, one.dataloader(64)))
    return [Split(parts[0], parts[2], typical_evidence_of(parts[1].evidence, parts[1].concepts))]


def fold_splits(options: argparse.Namespace) -> list[Split]:
    with (options.runs / "split.csv").open(encoding="utf-8", newline="") as file:
        fold = {row["image"]: int(row["split"]) for row in csv.DictReader(file)}
    models = [
        ConceptModel.from_pretrained(options.runs / f"fold-{number}") for number in range(1, max(fold.values()) + 1)
    ]
    config = models[0].config
    data = TableDataset(options.ph2 / "labels.csv", options.ph2, concepts=config.concepts, tasks=["diagnosis"])
    data.preprocess = models[0].preprocess
    batches, where = list(data.dataloader(28)), torch.tensor([fold[str(name)] for name in data.names])
    found = []
    for number, model in enumerate(models, start=1):
        part = part_of(model, batches)
        train = part.rows(where != number)
        found.append(Split(train, part.rows(where == number), typical_evidence_of(train.evidence, train.concepts)))
    return found


def part_of(model: ConceptModel, batches: Batches) -> Part:
    answers = collect_answers(model, batches, evidence=True)
    return Part(answers.evidence.float(), answers.concept_logits, answers.concepts, answers.targets)


def read(splits: list[Split], kind: TaskKind, *, corrections: bool) -> dict[str, dict[str, float]]:
    """Figures of solved heads by what they read, all splits together."""
    logits: dict[str, list[Tensor]] = {}
    for train, test, typical in splits:
        loss = class_balanced_loss("ratio", train.targets, kind=kind)
        rows = corrected_copies(train.evidence, train.concepts) if corrections else train.evidence
        copies = len(rows) // len(train.targets)
        images = list(range(len(train.targets))) * copies
        head = LinearSolver(l2=None).solve(rows, train.targets.repeat(copies, 1), loss, groups=images)
        corrected = correct_evidence(test.evidence, test.concepts, typical)
        for policy in POLICIES:
            for draw in range(DRAWS if policy == "random" else 1):
                first = order(policy, test, head[0], draw).argmin(dim=1)
                chosen = torch.nn.functional.one_hot(first, test.concepts.shape[1]).bool()[..., None]
                logits.setdefault(f"{policy} {draw}", []).append(
                    of(head, torch.where(chosen, corrected, test.evidence))
                )
        logits.setdefault("none", []).append(of(head, test.evidence))
        logits.setdefault("all", []).append(of(head, corrected))
    targets = torch.cat([split.test.targets for split in splits])
    found = {name: figures(torch.cat(parts), targets, kind) for name, parts in logits.items()}
    random = [found.pop(f"random {draw}") for draw in range(DRAWS)]
    found["random 0"] = {name: sum(one[name] for one in random) / DRAWS for name in random[0]}
    return found


def on_true_concepts(splits: list[Split], kind: TaskKind) -> dict[str, float]:
    logits = []
    for train, test, _ in splits:
        loss = class_balanced_loss("ratio", train.targets, kind=kind)
        head = LinearSolver(l2=None).solve(train.concepts[..., None], train.targets, loss)
        logits.append(of(head, test.concepts[..., None]))
    return figures(torch.cat(logits), torch.cat([split.test.targets for split in splits]), kind)


def order(policy: str, part: Part, weight: Tensor, seed: int) -> Tensor:
    """(N, K), the smallest is corrected first; as `conceptcam.analysis.intervention_curve` orders them."""
    if policy == "random":
        return torch.rand(part.concepts.shape, generator=torch.Generator().manual_seed(seed))
    if policy == "ucp":
        return (part.concept_logits.sigmoid() - 0.5).abs()
    return -(part.evidence[:, None] * weight).sum(dim=-1).abs().sum(dim=1)


def of(head: tuple[Tensor, Tensor], evidence: Tensor) -> Tensor:
    return evidence.flatten(1) @ head[0].flatten(1).T + head[1]


def figures(logits: Tensor, targets: Tensor, kind: TaskKind) -> dict[str, float]:
    scores = task_scores(logits, targets, kind)
    found = {"AUROC": float(macro_average(scores.auroc)), "AP": float(macro_average(scores.average_precision))}
    if kind == "multiclass":
        found["balanced accuracy"] = float(balanced_accuracy(confusion_matrix(logits, targets)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8000, help="phantoms to learn from (default: 8000)")
    parser.add_argument("--test-images", type=int, default=4000, help="phantoms to read on (default: 4000)")
    parser.add_argument("--ph2", type=Path, help="folder with labels.csv, in place of the phantom")
    parser.add_argument("--runs", type=Path, help="folder of a cross-validation on it")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for name in [str(options.runs)] if options.ph2 else ["phantom-csr", "phantom-cbm"]:
        splits = fold_splits(options) if options.ph2 else phantom_splits(name, options)
        kind: TaskKind = "multiclass" if options.ph2 else "multilabel"
        rows.append({"front": name, "head": "on true concepts", "corrected": "-", **on_true_concepts(splits, kind)})
        for title in ("as given", "taught corrections"):
            found = read(splits, kind, corrections=title != "as given")
            for what in ("none", *(f"{policy} 0" for policy in POLICIES), "all"):
                shown = what if what in ("none", "all") else f"one, {what.split()[0]}"
                rows.append({"front": name, "head": title, "corrected": shown, **found[what]})
    finish(rows, vars(options), options.json)


if __name__ == "__main__":
    main()
