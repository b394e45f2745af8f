"""Stage 1 under accelerate: the same loop on one process, on two, and in bfloat16.

    accelerate launch examples/accelerate_loop.py train

Without `train` it starts itself three times, so.
"""

import subprocess
import sys

import torch

from conceptcam import BBoxGuidedConceptLoss, ConceptConfig, ConceptModel, ModelView, PhantomDataset, evaluate
from conceptcam.data.phantom import PhantomConfig

try:
    from accelerate import Accelerator
    from accelerate.utils import set_seed
except ImportError:
    print("skipped: this example needs accelerate, pip install accelerate")
    sys.exit()

WAYS = {
    "1 process": ["--num_processes", "1", "--mixed_precision", "no"],
    "2 processes": ["--num_processes", "2", "--mixed_precision", "no"],
    "1 process, bfloat16": ["--num_processes", "1", "--mixed_precision", "bf16"],
}


def main(images: int = 96, epochs: int = 2) -> None:
    set_seed(0)
    accelerator = Accelerator()
    train, test = (PhantomDataset(images, seed=seed, config=PhantomConfig(size=64), cache_dir=False) for seed in (0, 1))
    model = ConceptModel.from_config(
        ConceptConfig(concepts=train.concepts, backbone="tiny_cnn_s8", image_size=(64, 64))
    )
    train.preprocess = test.preprocess = model.preprocess
    batches = train.dataloader(16 // accelerator.num_processes, shuffle=True)
    loss_fn = BBoxGuidedConceptLoss()

    view = ModelView(model, "concepts")
    optimizer = torch.optim.AdamW(view.parameters(), lr=3e-3)
    view, optimizer, batches = accelerator.prepare(view, optimizer, batches)
    for _ in range(epochs):
        for batch in batches:
            part = view(batch.images)
            loss = loss_fn(part.concept_maps, batch.concepts, batch.boxes, concept_logits=part.concept_logits)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()

    accelerator.end_training()
    if accelerator.is_main_process:
        model.record = model.record.after("concepts", ["backbone", "concept_head"])
        print(f"concept AUROC {evaluate(model, test.dataloader(32)).summary()['concept_auroc']:.3f}")


def launch(way: str) -> str:
    """What the loop prints, started as `accelerate launch` starts it."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1", *WAYS[way]]
    done = subprocess.run([*command, __file__, "train"], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    if sys.argv[1:] == ["train"]:
        main()
    else:
        for way in WAYS:
            print(f"{way:<20} {launch(way)}")
