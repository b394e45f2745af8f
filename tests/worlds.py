"""A tiny world for tests: squares on grey, a concept per kind of square, a task that follows from the concepts."""

import torch
from torch import Tensor

from conceptcam.config import ConceptConfig
from conceptcam.data.batch import ConceptDataset, ConceptItem, collate
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.model.concept_model import ConceptModel

CONCEPTS = ("bright", "dark", "striped")
TASKS = ("any", "bright and dark")
SIZE = (48, 64)


class Squares(ConceptDataset):
    """Images of 48 x 64 pixels with up to three squares of 16 pixels, each a concept with its box."""

    concepts = CONCEPTS
    tasks = TASKS

    def __init__(self, count: int, seed: int = 0, *, preprocess: bool = True) -> None:
        random = torch.Generator().manual_seed(seed)
        self.concept_labels = (torch.rand(count, 3, generator=random) < 0.5).float()
        bright, dark, _ = self.concept_labels.unbind(1)
        self.task_labels = torch.stack([self.concept_labels.amax(dim=1), bright * dark], dim=1)
        # Three rows of the grid, one for each concept, so squares never overlap; the column is random.
        self.left = torch.randint(0, SIZE[1] - 16, (count, 3), generator=random)
        self.noise_seed = seed
        if preprocess:
            self.preprocess = tiny_model().preprocess

    def load_item(self, index: int) -> ConceptItem:
        random = torch.Generator().manual_seed(self.noise_seed * 100_003 + index)
        image = 120 + 10 * torch.randn(SIZE, generator=random)
        boxes = []
        present = self.concept_labels[index].nonzero()[:, 0].tolist()
        for concept in present:
            left, top = int(self.left[index, concept]), 16 * concept
            square = image[top : top + 16, left : left + 16]
            square += {0: 100, 1: -100}.get(concept, 0)
            if concept == 2:
                square[::4] += 90
            boxes.append([left / SIZE[1], top / SIZE[0], (left + 16) / SIZE[1], (top + 16) / SIZE[0]])
        drawn = ConceptBoxes(
            torch.tensor(boxes).reshape(-1, 4), torch.tensor(present, dtype=torch.long), torch.zeros(len(boxes)).long()
        )
        pixels = image.clamp(0, 255).to(torch.uint8).expand(3, -1, -1)
        return ConceptItem(pixels, self.concept_labels[index], self.task_labels[index], drawn, f"square-{index}")


def tiny_config(**changes: object) -> ConceptConfig:
    fields: dict[str, object] = {
        "concepts": CONCEPTS,
        "tasks": TASKS,
        "backbone": "small_cnn_s8",
        "image_size": SIZE,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "embed_dim": 8,
        "prototypes_per_concept": 2,
    }
    return ConceptConfig(**{**fields, **changes})  # type: ignore[arg-type]


def tiny_model(seed: int = 0, **changes: object) -> ConceptModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ConceptModel.from_config(tiny_config(**changes))


def batches(dataset: ConceptDataset, size: int = 8) -> list:
    return [
        collate([dataset[i] for i in range(start, min(start + size, len(dataset)))])
        for start in range(0, len(dataset), size)
    ]


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}
