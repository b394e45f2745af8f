"""Stage 1 in Lightning, saved and loaded again by Lightning.

python examples/lightning_loop.py
"""

import sys
import tempfile
from pathlib import Path

import torch

from conceptcam import (
    BBoxGuidedConceptLoss,
    ConceptConfig,
    ConceptModel,
    PhantomDataset,
    evaluate,
)
from conceptcam.data.phantom import PhantomConfig

try:
    import lightning
except ImportError:
    print("skipped: this example needs Lightning, pip install lightning")
    sys.exit()


class Concepts(lightning.LightningModule):
    def __init__(self, config: ConceptConfig) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = ConceptModel.from_config(config).requires_grad_(False)
        self.learning = [*self.model.backbone.parameters(), *self.model.concept_head.parameters()]
        for parameter in self.learning:
            parameter.requires_grad_(True)
        self.loss = BBoxGuidedConceptLoss()

    def training_step(self, batch, number):
        part = self.model.forward_concepts(batch.images)
        return self.loss(part.concept_maps, batch.concepts, batch.boxes, concept_logits=part.concept_logits)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.learning, lr=3e-3)


def main(images: int = 96, epochs: int = 2) -> None:
    torch.manual_seed(0)
    train, test = (PhantomDataset(images, seed=seed, config=PhantomConfig(size=64), cache_dir=False) for seed in (0, 1))
    module = Concepts(ConceptConfig(concepts=train.concepts, backbone="tiny_cnn_s8", image_size=(64, 64)))
    train.preprocess = test.preprocess = module.model.preprocess
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, train.dataloader(16, shuffle=True))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "last.ckpt")
        trainer.save_checkpoint(file)
        again = Concepts.load_from_checkpoint(file, weights_only=True).eval()
    model = again.model
    model.record = model.record.after("concepts", ["backbone", "concept_head"])
    same = all(map(torch.equal, module.state_dict().values(), again.state_dict().values()))
    figures = evaluate(model, test.dataloader(32)).summary()
    print(f"same weights after loading: {same}, concept AUROC {figures['concept_auroc']:.3f}")


if __name__ == "__main__":
    main()
