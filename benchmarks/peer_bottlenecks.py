"""Our bottlenecks and those of PyTorch Concepts on one phantom: trained alike, measured by the same code."""

import copy
import dataclasses
import importlib.util
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from measuring import machine
from torch import Tensor, nn

from conceptcam import ConceptBatch, ConceptModel, Trainer, create_backbone, fit_thresholds, get_preset
from conceptcam.analysis.intervention import typical_evidence
from conceptcam.config import Bottleneck
from conceptcam.data.phantom import PHANTOM_VERSION
from conceptcam.data.phantom.dataset import PhantomData, phantom_data
from conceptcam.losses import class_balanced_loss
from conceptcam.metrics.classification import macro_average, per_label_metrics
from conceptcam.metrics.leakage import LeakageMetrics
from conceptcam.metrics.thresholds import best_thresholds
from conceptcam.runs.demo import demo_config
from conceptcam.runs.options import RunOptions, loader

PEER = "torch_concepts"
COUNTS = (0, 1, 3)
"""How many concepts are corrected; and all."""


@dataclass(frozen=True, kw_only=True)
class PeerScale:
    """How large the comparison is; results of one scale are not compared with those of another.

    Attributes:
        epochs: Of our three stages. A peer learns everything at once, in as many epochs as these are together.
    """

    images: int = 1200
    size: int = 96
    epochs: tuple[int, ...] = (12, 4, 8)
    batch_size: int = 32
    backbone: str = "tiny_cnn_s8"
    completeness: float = 0.0
    phantom: int = PHANTOM_VERSION


class Said(NamedTuple):
    """What a model says of N images."""

    concepts: Tensor
    """(N, K) logits."""
    scores: Tensor
    """(N, K) or (N, K, M), as they reach the tasks; of a CEM its probabilities, not its embeddings."""
    tasks: Callable[[Tensor], Tensor]
    """(N, K) answers in [0, 1], NaN where the model's own concept is left alone -> (N, T) task logits."""


Model = Callable[[ConceptBatch], Said]


def run_peer(name: str, seed: int, scale: PeerScale) -> dict[str, Any]:
    """Train one row and measure it."""
    start, data = time.perf_counter(), draw(seed, scale)
    train = PEERS[name]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the peer's own insides
        model = train(data, seed, scale, device)
        figures = measure(model, data, seed, scale)
    return {
        "row": name,
        "seed": seed,
        "scale": dataclasses.asdict(scale),
        "figures": figures,
        "seconds": round(time.perf_counter() - start),
        "machine": machine(),
    }


def draw(seed: int, scale: PeerScale) -> PhantomData:
    """The images of a seed."""
    return phantom_data(scale.images, size=scale.size, seed=seed, completeness=scale.completeness)


# Ours.


def _ours(bottleneck: Bottleneck, *, boxes: bool) -> Callable[..., Model]:
    def train(data: PhantomData, seed: int, scale: PeerScale, device: str) -> Model:
        torch.manual_seed(seed)
        preset = get_preset("recommended")
        config = preset.apply_to(demo_config(scale.size, bottleneck, backbone=scale.backbone))
        model = ConceptModel.from_config(config).to(device)
        batches = _batches(data, model, scale, seed)
        data.train.augmentation = None if boxes else lambda item: item._replace(boxes=None)
        first, second, third = scale.epochs
        epochs = {"concepts": first, "prototypes": second, "task": third}
        if bottleneck == "concepts":
            epochs = {"concepts": first, "task": second + third}
        losses = {"concept_loss": _loss(data.train.concept_labels), "task_loss": _loss(data.train.task_labels)}
        stages = preset.stages(config, epochs=epochs, **losses)
        Trainer(seed=seed).fit(model, stages, *batches)
        data.train.augmentation = None
        fit_thresholds(model, batches[1], thresholds_source="validation images of the phantom")
        return _said_by_ours(model.cpu().eval())

    return train


def _said_by_ours(model: ConceptModel) -> Model:
    present, absent = (typical_evidence(model.config, model.record, word) for word in ("present", "absent"))

    def say(batch: ConceptBatch) -> Said:
        output = model(batch.images)

        def tasks(answers: Tensor) -> Tensor:
            value = answers[..., None].to(present)
            told = absent.lerp(present, value.nan_to_num())
            own = value.isnan() | told.isnan()  # the latter where validation images do not say what is typical
            return model.task_head(torch.where(own, output.evidence, told))

        return Said(output.concept_logits, output.evidence, tasks)

    return say


# PyTorch Concepts.


class PooledBackbone(nn.Module):
    """Our backbone and the mean over places: (B, 3, H, W) -> (B, C), what these models call a backbone."""

    def __init__(self, scale: PeerScale) -> None:
        super().__init__()
        self.backbone = create_backbone(scale.backbone, image_size=(scale.size, scale.size))
        self.out_features = self.backbone.out_channels

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images).mean(dim=(-2, -1))


def _theirs(kind: str) -> Callable[..., Model]:
    def train(data: PhantomData, seed: int, scale: PeerScale, device: str) -> Model:
        torch.manual_seed(seed)
        model = _build_theirs(kind, data, scale).to(device)
        concepts, tasks = list(data.train.concepts), list(data.train.tasks)
        losses = _loss(data.train.concept_labels), _loss(data.train.task_labels)

        def loss_of(batch: ConceptBatch) -> Tensor:
            logits = model(query=concepts + tasks, input=batch.images).logits.tensor
            said = logits[:, : len(concepts)], logits[:, len(concepts) :]
            return losses[0](said[0], batch.concepts) + losses[1](said[1], batch.targets)

        def score_of(batches: Any) -> float:
            model.eval()
            with torch.inference_mode():
                said = [model(query=tasks, input=batch.images.to(device)).logits.tensor.cpu() for batch in batches]
            return float(macro_average(per_label_metrics(torch.cat(said), data.val.task_labels).auroc))

        config = demo_config(scale.size)
        ours = ConceptModel.from_config(config)  # for its preprocessing alone
        train_batches, val_batches = _batches(data, ours, scale, seed)
        _learn(model, loss_of, score_of, train_batches, val_batches, sum(scale.epochs), device)
        return _said_by_theirs(model.cpu().eval(), concepts, tasks)

    return train


def _build_theirs(kind: str, data: PhantomData, scale: PeerScale) -> Any:
    package = importlib.import_module(PEER)
    names = [*data.train.concepts, *data.train.tasks]
    backbone = PooledBackbone(scale)
    return getattr(importlib.import_module(f"{PEER}.nn"), kind)(
        input_size=(3, scale.size, scale.size),
        annotations=package.Annotations(labels=names, types=["binary"] * len(names)),
        task_names=list(data.train.tasks),
        backbone=backbone,
        latent_size=backbone.out_features,
    )


def _learn(
    model: nn.Module,
    loss_of: Callable[[ConceptBatch], Tensor],
    score_of: Callable[[Any], float],
    train: Any,
    val: Any,
    epochs: int,
    device: str,
) -> None:
    """A plain loop with the rate, schedule and choice of the best epoch that ours has from scratch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=get_preset("recommended").rates.scratch, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(train))
    best: tuple[float, dict[str, Tensor]] = (-1.0, {})
    for _ in range(epochs):
        model.train()
        for batch in train:
            loss = loss_of(batch.to(device))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        if (score := score_of(val)) > best[0]:
            best = score, copy.deepcopy(model.state_dict())
    model.load_state_dict(best[1])


def _said_by_theirs(model: Any, concepts: list[str], tasks: list[str]) -> Model:
    def say(batch: ConceptBatch) -> Said:
        logits = model(query=concepts, input=batch.images).logits.tensor

        def told(answers: Tensor) -> Tensor:
            evidence = {"concepts": torch.where(answers.isnan(), logits.sigmoid(), answers.to(logits))}
            return model(query=tasks, input=batch.images, evidence=evidence).logits.tensor

        return Said(logits, logits.sigmoid(), told)

    return say


def _loss(labels: Tensor) -> Any:
    return class_balanced_loss("ratio", labels)


def _batches(data: PhantomData, model: ConceptModel, scale: PeerScale, seed: int) -> tuple[Any, Any]:
    data.train.preprocess = data.val.preprocess = data.test.preprocess = model.preprocess
    options = RunOptions(batch_size=scale.batch_size, seed=seed)
    return loader(data.train, options, shuffle=True), loader(data.val, options)


# One way to measure all of them.


@torch.inference_mode()
def measure(model: Model, data: PhantomData, seed: int, scale: PeerScale) -> dict[str, float]:
    """Figures on test images; thresholds of hard concepts are chosen on validation images."""
    val, *_ = _collect(model, data.val, scale, {})
    thresholds = best_thresholds(val, data.val.concept_labels).nan_to_num(0.5)
    labels, count = data.test.concept_labels, len(data.test)
    wrong = labels[torch.randperm(count, generator=torch.Generator().manual_seed(seed))]
    said, scores, _ = _collect(model, data.test, scale, {})
    rank = (said.sigmoid() - 0.5).abs().argsort(dim=1).argsort(dim=1)  # the least certain is asked for first
    told = {f"{number} corrected": labels.masked_fill(rank >= number, torch.nan) for number in COUNTS}
    told |= {
        "all corrected": labels,
        "hard": (said.sigmoid() > thresholds).float(),
        "of another image": wrong,
    }
    tasks = _collect(model, data.test, scale, told)[2]
    auroc = {name: _auroc(logits, data.test.task_labels) for name, logits in tasks.items()}
    each = scores.shape[2] if scores.ndim == 3 else 1
    leakage = LeakageMetrics(labels.shape[1], data.test.task_labels.shape[1], per_concept=each)
    leakage.update(scores, labels, data.test.task_labels)
    leaked = leakage.compute()
    return {
        "concept AUROC": _auroc(said, labels),
        "task AUROC": auroc["0 corrected"],
        **{name: auroc[name] for name in told if "corrected" in name and name != "0 corrected"},
        "hard concepts": auroc["hard"],
        "soft over hard": auroc["0 corrected"] - auroc["hard"],
        "CTL": float(leaked.ctl.nanmean()),
        "its control": float(leaked.ctl_control.nanmean()),
        "beside the concepts": auroc["of another image"],
    }


def _collect(
    model: Model, data: Any, scale: PeerScale, told: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(N, K) concept logits, their scores as they reach the tasks, and (N, T) task logits after each way to answer."""
    concepts, scores, tasks, start = [], [], {name: [] for name in told}, 0
    for batch in loader(data, RunOptions(batch_size=scale.batch_size)):
        said, rows = model(batch), slice(start, start + len(batch.images))
        concepts.append(said.concepts)
        scores.append(said.scores)
        for name, answers in told.items():
            tasks[name].append(said.tasks(answers[rows]))
        start = rows.stop
    return torch.cat(concepts), torch.cat(scores), {name: torch.cat(parts) for name, parts in tasks.items()}


def _auroc(logits: Tensor, labels: Tensor) -> float:
    return float(macro_average(per_label_metrics(logits, labels).auroc))


PEERS: dict[str, Callable[..., Model]] = {
    "PyTorch Concepts, CBM": _theirs("ConceptBottleneckModel"),
    "PyTorch Concepts, CEM": _theirs("ConceptEmbeddingModel"),
    "ours, concepts, no boxes": _ours("concepts", boxes=False),
    "ours, prototypes, no boxes": _ours("prototypes", boxes=False),
    "ours, concepts": _ours("concepts", boxes=True),
    "ours, prototypes": _ours("prototypes", boxes=True),
}


def installed(name: str) -> bool:
    """Whether a row can be trained here."""
    return name.startswith("ours") or importlib.util.find_spec(PEER) is not None
