"""Small trainings that must come out the same in one process and in several."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from conceptcam.data.batch import ConceptBatch, ConceptItem, collate
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.linear_solver import LinearSolver
from conceptcam.training.presets import get_preset
from conceptcam.training.stages import Stage
from conceptcam.training.trainer import Trainer
from tests.worlds import Squares, batches, tiny_model, weights


def brighter(item: ConceptItem) -> ConceptItem:
    """Augmentation that draws a random number."""
    return item._replace(image=(item.image.float() / 255 * (0.5 + torch.rand(()))).clamp(0, 1))


def squares(count: int, seed: int = 0) -> Squares:
    """Squares of which some labels are unknown, and every second sample shows nothing."""
    data = Squares(count, seed)
    data.concept_labels[1::2] = 0
    data.concept_labels[::5, 1] = torch.nan
    data.task_labels[3::4] = torch.nan
    return data


def stages_of(model: ConceptModel, epochs: int = 2, **changes: Any) -> list[Stage]:
    names = {"concepts": epochs, "prototypes": epochs, "task": epochs}
    stages = get_preset().stages(model.config, epochs=names, backbone_pretrained=True)
    return [dataclasses.replace(stage, **changes) for stage in stages]


def doubled(items: Sequence[ConceptItem]) -> ConceptBatch:
    """A batch in float64."""
    batch = collate(items)
    return batch._replace(images=batch.images.double())


def loader(data: Squares, size: int, **options: Any) -> DataLoader:
    return DataLoader(data, size, **{"collate_fn": collate, **options})  # type: ignore[arg-type]


def augmented(count: int) -> Squares:
    data = squares(count)
    data.augmentation = brighter
    return data


VIT = {"backbone": "timm:test_vit"}


def shuffled() -> tuple[Any, ...]:
    """Loaders, a last batch with fewer samples than processes, and float64, in which nothing is left to rounding."""
    model = tiny_model(**VIT).double()
    train = loader(augmented(9), 4, shuffle=True, collate_fn=doubled)
    return Trainer(seed=0), model, stages_of(model), train, loader(squares(11, 1), 4, collate_fn=doubled)


def uneven() -> tuple[Any, ...]:
    """Lists of batches with an odd number of samples, several to a step; every second sample shows nothing."""
    model = tiny_model(**VIT)
    return (
        Trainer(seed=0, gradient_accumulation_steps=2),
        model,
        stages_of(model),
        batches(squares(13), 5),
        batches(squares(11, 1), 3),
    )


def everything() -> tuple[Any, ...]:
    """A stage that reads all there is but features, without boxes and names; early stopping."""
    model = tiny_model(**VIT).double()

    def loss_fn(output: Any, batch: Any) -> torch.Tensor:
        known = batch.concepts.nan_to_num()
        maps = output.concept_maps.mean() + output.similarity_maps.mean() + output.vector_similarity.square().mean()
        return maps + (output.concept_logits * known).mean() + output.task_logits.square().mean()

    parts = ("backbone", "concept_head", "projector", "prototypes", "task_head")
    rates = dict.fromkeys(parts, 1e-4)
    stage = stages_of(model, 4)[0]
    stage = dataclasses.replace(stage, lr=rates, forward=ConceptModel.forward, loss_fn=loss_fn, patience=1)
    train = [b._replace(images=b.images.double(), boxes=None, names=()) for b in batches(squares(8), 4)]
    return Trainer(seed=0), model, [stage], train, train


def bottleneck() -> tuple[Any, ...]:
    """No prototypes; a worker loads."""
    model = tiny_model(**VIT, bottleneck="concepts", pooling="attention")
    return (
        Trainer(seed=0),
        model,
        stages_of(model),
        loader(augmented(7), 3, num_workers=1),
        squares(11, 1).dataloader(4),
    )


def projected() -> tuple[Any, ...]:
    """Places are projected before they are pooled, so stage 2 looks at images, and places prototypes from them."""
    model = tiny_model(**VIT, pooling_order="project_then_pool").double()
    train = loader(squares(11), 4, shuffle=True, collate_fn=doubled)
    return Trainer(seed=0), model, stages_of(model), train, loader(squares(6, 1), 4, collate_fn=doubled)


def solved() -> tuple[Any, ...]:
    """A task head that is solved for, from evidence that processes compute in turns; tasks are unknown for some."""
    model = tiny_model(**VIT).double()
    stages = get_preset().stages(model.config, epochs={"concepts": 1, "prototypes": 2}, task_solver=LinearSolver())
    train = loader(squares(13), 4, shuffle=True, collate_fn=doubled)
    return Trainer(seed=0), model, stages, train, loader(squares(11, 1), 4, collate_fn=doubled)


SCENARIOS = {one.__name__: one for one in (shuffled, uneven, everything, bottleneck, projected, solved)}


def run(name: str) -> dict[str, Any]:
    """Train, and give the final weights, the records and the score of the last stage once more."""
    trainer, model, stages, train, val = SCENARIOS[name]()
    records = trainer.fit(model, stages, train, val)
    return {
        "weights": weights(model),
        "records": [tuple(record[:-2]) for record in records],
        "evaluated": trainer.validate(model, stages[-1], val),
    }
