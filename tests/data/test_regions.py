import pytest
import torch
from PIL import Image

from conceptcam.data.batch import ConceptBatch, as_batch, collate, shrink_regions
from conceptcam.data.regions import WithRegions
from conceptcam.data.transforms import BoxAwareTransform
from tests.worlds import Squares


@pytest.fixture
def masks(tmp_path):
    """Masks of the images 0 and 2: the left half is inside."""
    half = Image.new("L", (64, 48))
    half.paste(255, (0, 0, 32, 48))
    for name in ("0.png", "2.bmp"):
        half.save(tmp_path / name)
    return tmp_path


def test_an_image_has_the_region_of_its_mask(masks):
    data = WithRegions(Squares(4, 0), masks)
    item = data.load_item(0)
    height, width = item.image.shape[1:]
    assert item.region.shape == (height, width)
    assert item.region[:, : width // 2].all() and not item.region[:, width // 2 :].any()
    assert data.load_item(1).region is None
    assert data.notes[-1].startswith("2 of 4 images have a region in ")


def test_an_image_without_a_mask_is_inside_everywhere(masks):
    data = WithRegions(Squares(4, 0), masks)
    batch = collate([data[0], data[1]])
    assert batch.regions.shape == (2, 64, 64)
    assert batch.regions[0].mean() == 0.5 and (batch.regions[1] == 1).all()
    assert collate([data[1]]).regions is None


def test_batches_cut_and_join_their_regions(masks):
    data = WithRegions(Squares(4, 0), masks)
    whole = collate([data[row] for row in range(4)])
    parts = whole.split()
    assert torch.equal(ConceptBatch.cat(parts).regions, whole.regions)
    assert torch.equal(whole.select([2, 1]).regions, whole.regions[[2, 1]])
    mixed = ConceptBatch.cat([collate([data[1]]), collate([data[0]])])
    assert torch.equal(mixed.regions, whole.regions[[1, 0]])
    assert torch.equal(whole.to("cpu").without_images().regions, whole.regions)


def test_a_region_moves_with_the_pixels(masks):
    from torchvision.transforms import v2

    item = WithRegions(Squares(4, 0), masks).load_item(0)
    mirrored = BoxAwareTransform(v2.RandomHorizontalFlip(1.0))(item)
    assert torch.equal(mirrored.region, item.region.flip(-1))
    assert torch.equal(mirrored.image, item.image.flip(-1))


def test_a_dict_may_have_regions():
    images, labels = torch.zeros(2, 3, 8, 8), torch.zeros(2, 1)
    regions = torch.rand(2, 128, 128)
    batch = as_batch({"image": images, "concepts": labels, "regions": regions})
    assert torch.equal(batch.regions, shrink_regions(regions))
    with pytest.raises(ValueError, match="'regions' needs one mask per image: got 1 for 2 images"):
        as_batch({"image": images, "concepts": labels, "regions": regions[:1]})


def test_masks_that_cannot_be_are_refused(masks, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(NotADirectoryError, match="is not a folder of masks"):
        WithRegions(Squares(4, 0), empty / "none")
    with pytest.raises(ValueError, match="has no mask for any of the 4 images, whose names are 0, 1, 2"):
        WithRegions(Squares(4, 0), empty)
    Image.new("L", (64, 20)).save(masks / "1.png")
    with pytest.raises(
        ValueError, match="1.png is 64 x 20 pixels and the image 'square-1' .*: their proportions differ"
    ):
        WithRegions(Squares(4, 0), masks).load_item(1)
    Image.new("L", (64, 48)).save(masks / "2.png")
    with pytest.raises(ValueError, match="has two masks for one image: 2.bmp and 2.png"):
        WithRegions(Squares(4, 0), masks)
