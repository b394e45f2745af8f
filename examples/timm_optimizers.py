"""Stage 1 with an optimizer and a schedule of timm.

python examples/timm_optimizers.py
"""

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from conceptcam import BBoxGuidedConceptLoss, ConceptConfig, ConceptModel, ModelView, PhantomDataset, evaluate
from conceptcam.data.phantom import PhantomConfig


def main(images: int = 96, epochs: int = 2, optimizers: tuple[str, ...] = ("adamw", "lamb", "muon")) -> None:
    train, test = (PhantomDataset(images, seed=seed, config=PhantomConfig(size=64), cache_dir=False) for seed in (0, 1))
    config = ConceptConfig(concepts=train.concepts, backbone="timm:test_vit", image_size=(64, 64))
    loss_fn = BBoxGuidedConceptLoss()
    for name in optimizers:
        torch.manual_seed(0)
        model = ConceptModel.from_config(config)
        train.preprocess = test.preprocess = model.preprocess
        batches = train.dataloader(16, shuffle=True)

        view = ModelView(model, "concepts")
        optimizer = create_optimizer_v2(view, name, lr=3e-3, weight_decay=0.05)
        schedule, _ = create_scheduler_v2(optimizer, "cosine", num_epochs=epochs, warmup_epochs=1, warmup_lr=1e-4)
        for epoch in range(epochs):
            view.train()
            for batch in batches:
                part = view(batch.images)
                loss = loss_fn(part.concept_maps, batch.concepts, batch.boxes, concept_logits=part.concept_logits)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step(epoch + 1)

        model.record = model.record.after("concepts", ["backbone", "concept_head"])
        auroc = evaluate(model, test.dataloader(32)).summary()["concept_auroc"]
        decayed = sum(group["weight_decay"] > 0 for group in optimizer.param_groups)
        print(f"{name:<6} {len(optimizer.param_groups)} groups, {decayed} with weight decay: ", end="")
        print(f"last loss {loss.item():.3f}, concept AUROC {auroc:.3f}")


if __name__ == "__main__":
    main()
