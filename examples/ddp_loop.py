"""Stage 1 under DistributedDataParallel: one process per GPU, or two processes on the CPU that talk over gloo.

    torchrun --nproc-per-node 2 examples/ddp_loop.py train

Without `train` it starts itself so. (`Trainer` under `torchrun` needs none of these lines.)
"""

import subprocess
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from conceptcam import BBoxGuidedConceptLoss, ConceptConfig, ConceptModel, ModelView, PhantomDataset, collate, evaluate
from conceptcam.data.phantom import PhantomConfig


def main(images: int = 96, epochs: int = 2) -> None:
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    train, test = (PhantomDataset(images, seed=seed, config=PhantomConfig(size=64), cache_dir=False) for seed in (0, 1))
    model = ConceptModel.from_config(
        ConceptConfig(concepts=train.concepts, backbone="tiny_cnn_s8", image_size=(64, 64))
    )
    train.preprocess = test.preprocess = model.preprocess
    loss_fn = BBoxGuidedConceptLoss()

    sampler = DistributedSampler(train)
    batches = DataLoader(train, 16 // dist.get_world_size(), sampler=sampler, collate_fn=collate)
    view = DistributedDataParallel(ModelView(model, "concepts"))
    optimizer = torch.optim.AdamW(view.parameters(), lr=3e-3)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for batch in batches:
            part = view(batch.images)
            loss = loss_fn(part.concept_maps, batch.concepts, batch.boxes, concept_logits=part.concept_logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    total = sum(parameter.detach().abs().sum() for parameter in model.parameters())
    totals = [torch.zeros(()) for _ in range(dist.get_world_size())]
    dist.all_gather(totals, total)
    first = dist.get_rank() == 0
    dist.destroy_process_group()
    if first:
        model.record = model.record.after("concepts", ["backbone", "concept_head"])
        figures = evaluate(model, test.dataloader(32)).summary()
        print(f"processes: {len(totals)}, with the same weights: {len(set(map(float, totals))) == 1}, ", end="")
        print(f"concept AUROC {figures['concept_auroc']:.3f}")


if __name__ == "__main__":
    if sys.argv[1:] == ["train"]:
        main()
    else:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        subprocess.run([*start, __file__, "train"], check=True)
