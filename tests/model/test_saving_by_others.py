"""Configs, records and outputs survive what other people save them with."""

import copy
import io
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils import _pytree

from conceptcam import ConceptConfig, ConceptModel, ConceptOutput, ConceptPart, TrainingRecord
from tests.worlds import SIZE, Squares, batches, tiny_config, tiny_model


def through_torch(thing: object) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def full_record() -> TrainingRecord:
    return TrainingRecord(stages=("concepts",), thresholds={"bright": 0.25}, evidence_present={"dark": (0.5, 0.1)})


@pytest.mark.parametrize("thing", [tiny_config(), full_record()], ids=["config", "record"])
def test_torch_saves_and_safely_loads_configs_and_records(thing):
    assert through_torch({"hyper_parameters": thing})["hyper_parameters"] == thing


@pytest.mark.parametrize("bottleneck", ["prototypes", "concepts"])
def test_torch_saves_and_safely_loads_outputs(bottleneck):
    model = tiny_model(bottleneck=bottleneck)
    output = model(torch.randn(2, 3, *SIZE))
    part = ConceptPart(*output[:3])
    for said, loaded in ((output, through_torch(output)), (part, through_torch(part))):
        assert type(loaded) is type(said) and all(map(torch.equal, loaded, said))


def test_torch_saves_and_safely_loads_a_batch_with_its_boxes():
    (batch,) = batches(Squares(4))
    loaded = through_torch(batch)
    assert type(loaded) is type(batch) and torch.equal(loaded.boxes.xyxy, batch.boxes.xyxy)
    assert torch.equal(loaded.boxes.coverage((4, 3, 6, 8)), batch.boxes.coverage((4, 3, 6, 8)))


def test_a_tree_of_outputs_keeps_their_type():
    output = tiny_model()(torch.randn(2, 3, *SIZE))
    halved = _pytree.tree_map(lambda tensor: tensor / 2, output)
    assert isinstance(halved, ConceptOutput) and torch.equal(halved.task_logits, output.task_logits / 2)
    _, tree = _pytree.tree_flatten(output)
    assert _pytree.treespec_loads(_pytree.treespec_dumps(tree)) == tree


def test_an_exported_program_is_saved_and_loaded_elsewhere(tmp_path):
    model, images = tiny_model().eval(), torch.randn(2, 3, *SIZE)
    torch.export.save(torch.export.export(model, (images,)), tmp_path / "model.pt2")
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import torch, conceptcam.model.outputs as outputs\n"
        "model = torch.export.load('model.pt2').module()\n"
        "said = model(torch.load('images.pt'))\n"
        "assert isinstance(said, outputs.ConceptOutput)\n"
        "torch.save(said, 'said.pt')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    said = torch.load(tmp_path / "said.pt", weights_only=True)
    assert all(torch.allclose(got, wanted, atol=1e-6) for got, wanted in zip(said, model(images), strict=True))


@pytest.mark.parametrize("kind", [ConceptConfig, TrainingRecord])
def test_a_pickle_of_a_version_with_fewer_fields_is_read(kind):
    thing = tiny_config() if kind is ConceptConfig else full_record()
    older = copy.copy(thing)
    for name in ("pooling_order", "license", "calibration"):
        older.__dict__.pop(name, None)
    assert pickle.loads(pickle.dumps(older)) == thing


def test_a_pickle_of_a_version_with_more_fields_is_refused():
    newer = tiny_config()
    newer.__dict__["unheard_of"] = 1
    with pytest.raises(ValueError, match=r"the pickle has unknown fields \['unheard_of'\] of ConceptConfig"):
        pickle.loads(pickle.dumps(newer))


@pytest.mark.filterwarnings("ignore")  # Lightning warns of few workers and the like
def test_lightning_loads_a_checkpoint_with_its_config(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Concepts(lightning.LightningModule):
        def __init__(self, config: ConceptConfig, lr: float = 0.1) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = ConceptModel.from_config(config)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return self.model.forward_concepts(batch.images).concept_logits.square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.model.parameters(), lr=self.hparams.lr)

    module = Concepts(tiny_config())
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, Squares(8).dataloader(4))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = Concepts.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert again.hparams.config == tiny_config()
    assert all(map(torch.equal, again.state_dict().values(), module.state_dict().values()))
