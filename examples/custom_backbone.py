"""A backbone of your own, registered under a name: everything else works on it as on the built-in ones.

A backbone is a module from images (B, 3, H, W) to features (B, out_channels, h, w); the grid may have any size
and any shape. Registering is needed only to build it by name, which loading a saved model does: the module that
registers it must be imported before `ConceptModel.from_pretrained`.

    python examples/custom_backbone.py
"""

import tempfile

import torch
from torch import Tensor, nn

from conceptcam import (
    Backbone,
    ConceptConfig,
    ConceptModel,
    PhantomDataset,
    Trainer,
    evaluate,
    get_preset,
    register_backbone,
)
from conceptcam.backbones import BackboneOptions


class PatchMixer(Backbone):
    """Patches of 8 pixels, then large depthwise kernels that mix places: features (B, 64, H / 8, W / 8)."""

    out_channels = 64

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.patches = nn.Sequential(nn.Conv2d(3, 64, 8, 8), nn.GELU(), nn.BatchNorm2d(64))
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(64, 64, 7, padding=3, groups=64), nn.GELU(), nn.BatchNorm2d(64),
                    nn.Conv2d(64, 64, 1), nn.GELU(), nn.BatchNorm2d(64),
                )
                for _ in range(blocks)
            )
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Images -> features."""
        return self.blocks(self.patches(images))


@register_backbone("patch_mixer")
def patch_mixer(request: BackboneOptions) -> Backbone:
    """A factory refuses what its backbone cannot do, rather than ignore it."""
    if request.pretrained or request.weights or request.feature_level != -1:
        raise ValueError("patch_mixer has no weights to start from and one feature level")
    if any(side % 8 for side in request.image_size):
        raise ValueError(f"patch_mixer needs sides that are multiples of 8, got {request.image_size}")
    return PatchMixer()


def main(images: int = 400, epochs: int = 6) -> None:
    torch.manual_seed(0)
    train, val = (PhantomDataset(n, seed=s, cache_dir=False) for s, n in enumerate((images, max(images // 3, 32))))
    config = ConceptConfig(concepts=train.concepts, backbone="patch_mixer", image_size=(112, 112))  # no tasks
    model = ConceptModel.from_config(config)
    train.preprocess = val.preprocess = model.preprocess
    train_batches = train.dataloader(32, shuffle=True)
    val_batches = val.dataloader(64)

    stages = get_preset().stages(config, epochs={"concepts": epochs})
    Trainer(seed=0).fit(model, stages[:1], train_batches, val_batches)  # the first stage alone
    figures = evaluate(model, val_batches).summary()
    for name in ("concept_auroc", "pointing", "pointing_random_map"):
        print(f"{name:<20} {figures[name]:.3f}")

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = ConceptModel.from_pretrained(folder)  # finds the backbone by its name
    image = val[0].image[None]
    same = torch.equal(model.forward_concepts(image).concept_maps, again.forward_concepts(image).concept_maps)
    print(f"saved and loaded as {again.config.backbone!r}; same maps: {same}")


if __name__ == "__main__":
    main()
