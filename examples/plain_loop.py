"""The three stages in a loop of your own: no Trainer, no Stage, no preset, only the model and the losses.

Three things that `Trainer` would have seen to are yours here: which parts are frozen, that `model.train()` is
called after freezing (it keeps frozen parts in eval mode, so that their batch-norm statistics stay still too),
and that the model's record says what it was taught. Without the record, `explain` and `evaluate` refuse.

    python examples/plain_loop.py
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from conceptcam import (
    BBoxGuidedConceptLoss,
    ConceptBatch,
    ConceptConfig,
    ConceptModel,
    PhantomDataset,
    PrototypeContrastiveLoss,
    compute_pos_weight,
    evaluate,
)
from conceptcam.losses import multilabel_loss


def teach(
    model: ConceptModel,
    parts: Sequence[str],
    loss_of: Callable[[ConceptBatch], Tensor],
    batches: DataLoader[ConceptBatch],
    *,
    lr: float,
    epochs: int,
) -> None:
    """Minimize a loss over some parts of the model; all others stay as they are, to the bit."""
    model.requires_grad_(False)
    for part in parts:
        getattr(model, part).requires_grad_(True)
    model.train()  # after freezing
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=lr)
    for epoch in range(1, epochs + 1):
        total = 0.0
        for batch in batches:
            loss = loss_of(batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            total += loss.item() / len(batches)
        print(f"{' + '.join(parts):<24} epoch {epoch}: loss {total:.3f}")


def main(images: int = 400, epochs: tuple[int, int, int] = (5, 2, 4)) -> None:
    torch.manual_seed(0)
    train, test = (PhantomDataset(n, seed=s, cache_dir=False) for s, n in enumerate((images, max(images // 3, 32))))
    model = ConceptModel.from_config(
        ConceptConfig(concepts=train.concepts, tasks=train.tasks, backbone="small_cnn_s8", image_size=(112, 112))
    )
    train.preprocess = test.preprocess = model.preprocess
    batches = train.dataloader(32, shuffle=True)

    # Stage 1: which concepts are there, and where. `see` alone, so nothing is spent on prototypes.
    concept_loss = BBoxGuidedConceptLoss(pos_weight=compute_pos_weight(train.concept_labels))

    def concepts(batch: ConceptBatch) -> Tensor:
        seen = model.forward_concepts(batch.images)
        return concept_loss(seen.concept_maps, batch.concepts, batch.boxes, concept_logits=seen.concept_logits)

    parts = ["backbone", "concept_head"]
    teach(model, parts, concepts, batches, lr=3e-3, epochs=epochs[0])
    model.record = model.record.after("concepts", parts)

    # Stage 2: what each concept looks like.
    prototype_loss = PrototypeContrastiveLoss()

    def prototypes(batch: ConceptBatch) -> Tensor:
        return prototype_loss(model(batch.images).vector_similarity, batch.concepts)

    parts = ["projector", "prototypes"]
    teach(model, parts, prototypes, batches, lr=1e-3, epochs=epochs[1])
    model.record = model.record.after("prototypes", parts)

    # Stage 3: which diseases follow from that.
    def task(batch: ConceptBatch) -> Tensor:
        return multilabel_loss(model(batch.images).task_logits, batch.targets)

    teach(model, ["task_head"], task, batches, lr=3e-2, epochs=epochs[2])
    model.record = model.record.after("task", ["task_head"])

    figures = evaluate(model, test.dataloader(64)).summary()
    for name in ("concept_auroc", "concept_ap", "pointing", "pointing_random_map", "task_auroc"):
        print(f"{name:<20} {figures[name]:.3f}")


if __name__ == "__main__":
    main()
