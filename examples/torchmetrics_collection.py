"""Our metrics and torchmetrics' in one collection.

Both say the same of every label that occurs. They differ in the mean: torchmetrics counts a label without positives
as 0, ours leaves it out.

    python examples/torchmetrics_collection.py
"""

import warnings

import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import MultilabelAUROC

from conceptcam import ConceptModel, PhantomDataset
from conceptcam.metrics import LabelMetrics, MacroAUROC

# torchmetrics warns of the labels that do not occur.
warnings.filterwarnings("ignore", category=UserWarning, module="torchmetrics")


@torch.inference_mode()
def main(images: int = 48) -> None:
    model = ConceptModel.from_pretrained("phantom-csr")
    data = PhantomDataset(images, seed=99, cache_dir=False)
    data.preprocess = model.preprocess

    count = len(data.concepts)
    metrics = MetricCollection(
        {
            "ours": MacroAUROC(),
            "theirs": MultilabelAUROC(count),
            "ours, by label": LabelMetrics(),
            "theirs, by label": MultilabelAUROC(count, average=None),
        }
    )
    for batch in data.dataloader(16):
        logits = model.forward_concepts(batch.images).concept_logits
        metrics.update(logits, batch.concepts.int())
    found = metrics.compute()

    ours, theirs = found["ours, by label"].auroc, found["theirs, by label"].double()
    known = ~ours.isnan()
    print(
        f"labels that occur: {int(known.sum())} of {count}; largest difference {(ours - theirs)[known].abs().max():.1e}"
    )
    print(f"mean AUROC: ours {found['ours']:.3f}, of torchmetrics {found['theirs']:.3f}")


if __name__ == "__main__":
    main()
