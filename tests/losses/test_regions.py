import math

import pytest
import torch

from conceptcam.losses import region_loss


def test_only_what_is_shown_outside_costs():
    maps = torch.randn(2, 3, 4, 5)
    regions = (torch.rand(2, 8, 10) < 0.5).float()
    total = 0.0
    for image in range(2):
        for concept in range(3):
            shown = area = 0.0
            for row in range(4):
                for column in range(5):
                    cell = regions[image, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                    outside = 1 - cell.mean().item()
                    shown += outside * math.log1p(math.exp(maps[image, concept, row, column].item()))
                    area += outside
            total += shown / max(1, area) / 6
    assert region_loss(maps, regions).item() == pytest.approx(total, rel=1e-5)


def test_maps_outside_go_down_and_maps_inside_stay():
    maps = torch.zeros(1, 1, 2, 2, requires_grad=True)
    region_loss(maps, torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])).backward()
    assert (maps.grad[0, 0, :, 0] == 0).all() and (maps.grad[0, 0, :, 1] > 0).all()


def test_an_image_that_is_inside_everywhere_costs_nothing():
    maps = torch.randn(2, 3, 4, 4, requires_grad=True)
    value = region_loss(maps, torch.ones(2, 64, 64))
    value.backward()
    assert value.item() == 0 and (maps.grad == 0).all()


def test_a_region_is_needed_for_each_image():
    with pytest.raises(ValueError, match=r"expected a region \(H, W\) for each of 2 images, got the shape \(1, 4, 4\)"):
        region_loss(torch.zeros(2, 1, 2, 2), torch.ones(1, 4, 4))
