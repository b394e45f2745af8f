"""An existing PyTorch loop gains the box loss in three changed lines, marked <-- below.

The model and the loop are anybody's: a CNN that ends in one map per label, and batches of images, labels, and boxes
as lists of dicts. Nothing of conceptcam is needed but the loss, and the loss needs nothing but torch. (The data and
the measuring below are the example's own; they import what they need themselves.)

    python examples/plug_in_loss.py
"""

from typing import Any

import torch
from torch import Tensor, nn

from conceptcam import BBoxGuidedConceptLoss  # <-- changed line 1
from conceptcam.metrics.classification import macro_average

Batch = dict[str, Any]


class YourCnn(nn.Module):
    """A network of your own: images (B, 3, H, W) -> one map of logits per label, (B, K, h, w)."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inside, outside, stride in ((3, 24, 2), (24, 48, 2), (48, 64, 2), (64, 64, 1), (64, 64, 1)):
            layers += [nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.classify = nn.Conv2d(64, labels, 1)
        nn.init.constant_(self.classify.bias, -3.0)  # most labels are absent

    def forward(self, images: Tensor) -> Tensor:
        """Images -> maps."""
        return self.classify(self.features(images))


def train_before(model: nn.Module, batches: list[Batch], epochs: int) -> None:
    criterion = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(epochs):
        for batch in batches:
            maps = model(batch["image"])
            loss = criterion(maps.amax(dim=(-2, -1)), batch["concepts"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def train_after(model: nn.Module, batches: list[Batch], epochs: int) -> None:
    criterion = BBoxGuidedConceptLoss()  # <-- changed line 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(epochs):
        for batch in batches:
            maps = model(batch["image"])
            loss = criterion(maps, batch["concepts"], batch["bboxes"])  # <-- changed line 3
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def read_batches(count: int, seed: int, batch_size: int = 32) -> list[Batch]:
    """Stands for your data loader."""
    from conceptcam import PhantomDataset

    data = PhantomDataset(count, seed=seed, cache_dir=False)
    items = [data.load_item(index) for index in range(count)]
    return [
        {
            "image": torch.stack([item.image for item in part]).float() / 127.5 - 1,
            "concepts": torch.stack([item.concepts for item in part]),
            "bboxes": [
                [
                    {"concept_idx": concept, "bbox": corners}
                    for concept, corners in zip(item.boxes.concept.tolist(), item.boxes.xyxy.tolist(), strict=True)
                ]
                for item in part
            ],
        }
        for part in (items[start : start + batch_size] for start in range(0, count, batch_size))
    ]


@torch.inference_mode()
def measure(model: nn.Module, batches: list[Batch], labels: int) -> dict[str, float]:
    """Are the labels right, and is a present label's map highest in its boxes?"""
    from conceptcam import ConceptBoxes
    from conceptcam.metrics import LocalizationMetrics, MacroAUROC

    auroc, places = MacroAUROC(), LocalizationMetrics(labels)
    model.eval()
    for batch in batches:
        maps = model(batch["image"])
        auroc.update(maps.amax(dim=(-2, -1)), batch["concepts"])
        places.update(maps, ConceptBoxes.from_dicts(batch["bboxes"]), batch["image"].shape[-2:])
    found = places.compute()
    return {
        "AUROC": float(auroc.compute()),
        "pointing": float(macro_average(found.pointing)),
        "pointing of random maps": float(macro_average(found.random_pointing)),
    }


def main(images: int = 400, epochs: int = 6) -> None:
    train, test = read_batches(images, seed=0), read_batches(max(images // 3, 32), seed=1)
    labels = train[0]["concepts"].shape[1]
    for name, loop in (("before", train_before), ("after, with boxes", train_after)):
        torch.manual_seed(0)
        model = YourCnn(labels)
        loop(model, train, epochs)
        figures = measure(model, test, labels)
        print(f"{name:<18}" + ", ".join(f"{what} {value:.3f}" for what, value in figures.items()))


if __name__ == "__main__":
    main()
