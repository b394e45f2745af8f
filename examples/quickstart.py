"""Train a concept model of a drawn chest in three stages, measure it, and explain one image.

Few images and few epochs, so that it ends in half a minute on two cores: the figures are far below what the same
code reaches with more of both. `make demo` does it properly.

    python examples/quickstart.py [FOLDER]      FOLDER gets the model and the figure; default: a temporary one
"""

import sys
import tempfile
from pathlib import Path

from conceptcam import (
    ConceptConfig,
    ConceptModel,
    PhantomDataset,
    Trainer,
    evaluate,
    explain,
    fit_thresholds,
    get_preset,
)
from conceptcam.losses import class_balanced_loss

EPOCHS = {"concepts": 5, "prototypes": 2, "task": 4}


def main(folder: Path, images: int = 450, epochs: dict[str, int] = EPOCHS) -> None:
    # Data: three draws that share no image. A reader of your own gives the same items.
    train, val, test = (
        PhantomDataset(count, seed=seed, cache_dir=False)
        for seed, count in enumerate((images, images // 3, images // 3))
    )

    # Model: what a preset says, on our concepts and tasks, from random weights.
    chosen = get_preset("recommended")
    config = chosen.apply_to(
        ConceptConfig(concepts=train.concepts, tasks=train.tasks, backbone="small_cnn_s8", image_size=(112, 112))
    )
    model = ConceptModel.from_config(config)
    for data in (train, val, test):
        data.preprocess = model.preprocess
    train_batches = train.dataloader(32, shuffle=True)
    val_batches, test_batches = (data.dataloader(64) for data in (val, test))

    # Three stages: concepts and where they are, then prototypes, then the task head.
    stages = chosen.stages(
        config,
        concept_loss=class_balanced_loss("ratio", train.concept_labels),
        task_loss=class_balanced_loss("ratio", train.task_labels),
        epochs=epochs,
    )
    for record in Trainer(seed=0).fit(model, stages, train_batches, val_batches):
        print(f"{record.stage:<10} epoch {record.epoch}: loss {record.train_loss:.3f}, score {record.score:.3f}")

    # What it is worth, on images it has never seen, beside what chance would give.
    fit_thresholds(model, val_batches, thresholds_source=f"highest F1 on {len(val)} validation images")
    print()
    print(evaluate(model, test_batches, sided_concepts=["Enlarged PA", "Other lesion"]).table())

    # Why it says what it says of one image.
    item = test.load_item(int(test.concept_labels.sum(dim=1).argmax()))
    explanation = explain(model, item.image)
    there = [name for name, label in zip(test.concepts, item.concepts.tolist(), strict=True) if label]
    print(f"{item.name} shows {', '.join(there)}. The model says:")
    for prediction in explanation.concepts[:4]:
        print(f"  {prediction.concept:<22} p = {prediction.probability:.2f}")
    task = max(explanation.tasks, key=lambda task: task.probability)
    parts = " ".join(f"{part.value:+.2f} ({part.concept})" for part in task.contributions[:3])
    print(f"  {task.task}: logit {task.logit:.2f} = {task.bias:+.2f} (bias) {parts} and smaller contributions")

    folder.mkdir(parents=True, exist_ok=True)
    explanation.figure(boxes=item.boxes, concepts=there).save(folder / "explanation.png")
    model.save_pretrained(folder)
    print(f"\nModel and figure are in {folder}; ConceptModel.from_pretrained({str(folder)!r}) loads the model.")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="conceptcam-")))
