"""Where something is in the image is where the map says it is: row by row, column by column."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conceptcam.backbones import Backbone, create_backbone
from conceptcam.config import ConceptConfig
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.heads import ConceptHead, TaskHead
from conceptcam.model.pooling import MaxPool

SIDE = 8  # pixels of a cell of `CellMeans`
SIZES = [(32, 32), (24, 40), (48, 16)]


class CellMeans(Backbone):
    """The mean colour of each cell of 8 x 8 pixels; a mirrored image gives mirrored features."""

    out_channels = 3

    def forward(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, SIDE)


def brightness_model(size: tuple[int, int]) -> ConceptModel:
    """A model of one concept, brightness."""
    config = ConceptConfig(concepts=("bright",), backbone="cells", image_size=size, bottleneck="concepts")
    head = ConceptHead(3, 1)
    nn.init.ones_(head.score.weight)
    model = ConceptModel(config, backbone=CellMeans(), concept_head=head, pool=MaxPool(), task_head=TaskHead(1, 1, 0))
    return model.eval()


def peak(maps: Tensor) -> list[tuple[int, int]]:
    """(row, column) of the highest place of each (h, w) map."""
    width = maps.shape[-1]
    return [(int(index) // width, int(index) % width) for index in maps.flatten(1).argmax(dim=1)]


def places(rows: int, columns: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(rows) for column in range(columns)]


@pytest.mark.parametrize("size", SIZES)
def test_a_bright_dot_moves_the_peak_to_its_row_and_column(size):
    cells = places(size[0] // SIDE, size[1] // SIDE)
    images = torch.zeros(len(cells), 3, *size)
    for number, (row, column) in enumerate(cells):
        images[number, :, SIDE * row + 5, SIDE * column + 2] = 1
    seen = brightness_model(size).forward_concepts(images)
    assert peak(seen.concept_maps[:, 0]) == cells


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("axis", [-1, -2])
def test_a_mirrored_image_gives_the_mirrored_map_and_no_other(size, axis):
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    model = brightness_model(size)
    plain, mirrored = (model(one).concept_maps for one in (images, images.flip(axis)))
    torch.testing.assert_close(mirrored, plain.flip(axis))
    assert not torch.allclose(mirrored, plain)


def test_a_transposed_image_gives_the_transposed_map():
    images = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    plain, transposed = brightness_model((24, 40))(images), brightness_model((40, 24))(images.mT)
    torch.testing.assert_close(transposed.concept_maps, plain.concept_maps.mT)


@pytest.mark.parametrize("size", SIZES)
def test_a_box_around_the_dot_covers_the_cell_of_the_peak(size):
    height, width = size
    rows, columns = height // SIDE, width // SIDE
    model = brightness_model(size)
    for row, column in places(rows, columns):
        y, x = SIDE * row + 5, SIDE * column + 2
        image = torch.zeros(1, 3, height, width)
        image[..., y, x] = 1
        box = [x / width, y / height, (x + 1) / width, (y + 1) / height]
        coverage = ConceptBoxes.from_dicts([[{"concept_idx": 0, "bbox": box}]]).coverage((1, 1, rows, columns))
        assert peak(coverage[:, 0]) == peak(model(image).concept_maps[:, 0])


@pytest.mark.parametrize(
    "name, size, cell",
    [
        ("timm:test_vit", (160, 160), 16),
        ("timm:test_vit", (64, 128), 16),
        ("timm:test_vit3", (128, 64), 16),
        ("timm:convnext_atto", (160, 160), 32),
        ("timm:convnext_atto", (96, 192), 32),
        ("timm:test_resnet", (96, 192), 32),
    ],
)
def test_features_change_most_in_the_cell_whose_pixels_changed(name, size, cell):
    backbone = create_backbone(name, image_size=size).eval()
    cells = places(size[0] // cell, size[1] // cell)
    random = torch.Generator().manual_seed(0)
    # A quiet background: a normalization layer makes noise of nothing but noise.
    background = torch.randn(1, 3, *size, generator=random)
    images = background.repeat(len(cells), 1, 1, 1)
    patch = 3 * torch.randn(3, cell // 2, cell // 2, generator=random)
    for number, (row, column) in enumerate(cells):
        top, left = cell * row + cell // 4, cell * column + cell // 4
        images[number, :, top : top + cell // 2, left : left + cell // 2] = patch
    with torch.no_grad():
        change = (backbone(images) - backbone(background)).square().sum(dim=1)
    assert change.shape[-2:] == (size[0] // cell, size[1] // cell)
    assert peak(change) == cells


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_the_order_of_places_is_timms_own(name):
    """Flattened rows first: the token of (row, column) is token row * columns + column."""
    backbone = create_backbone(f"timm:{name}", image_size=(160, 160)).eval()
    model = timm.create_model(name).eval()
    model.load_state_dict(backbone.model.state_dict(), strict=False)
    image = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    whole = model.forward_features(image)
    tokens = whole[:, model.num_prefix_tokens :] if name == "test_vit" else whole.flatten(2).mT
    features = backbone(image)
    columns = features.shape[-1]
    for row, column in ((0, 1), (1, 0), (3, 4)):
        torch.testing.assert_close(features[0, :, row, column], tokens[0, row * columns + column])
