import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from conceptcam.model.pooling import AttentionPool, LsePool, TopkPool, create_pooling, list_poolings

ALL = ("attention", "lse", "max", "mean", "noisy_or", "topk")
each = pytest.mark.parametrize("name", ALL)
grids = pytest.mark.parametrize("height, width", [(7, 7), (3, 11), (1, 1)])


def example(height: int = 5, width: int = 8, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(2, 3, height, width, generator=random, dtype=torch.float64)


def slow_pool(name: str, places: list[float], sharpness: float) -> float:
    """One logit from the places of one map, by the pooling's definition."""
    if name == "max":
        return max(places)
    if name == "mean":
        return sum(places) / len(places)
    if name == "lse":
        return math.log(sum(math.exp(5 * place) for place in places) / len(places)) / 5
    if name == "topk":
        highest = sorted(places)[-4:]
        return sum(highest) / len(highest)
    if name == "noisy_or":
        absent = math.prod(1 - 1 / (1 + math.exp(-place)) for place in places)
        return math.log((1 - absent) / absent)
    weights = [math.exp(sharpness * place) for place in places]
    return sum(weight * place for weight, place in zip(weights, places, strict=True)) / sum(weights)


def test_the_list_of_poolings_is_what_the_documentation_names():
    assert list_poolings() == sorted(ALL)


@each
@grids
def test_each_pooling_equals_a_loop_over_places_of_any_grid(name, height, width):
    maps = example(height, width)
    pool = create_pooling(name, num_concepts=3).double()
    if isinstance(pool, AttentionPool):
        pool.sharpness.data = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    logits = pool(maps)
    assert logits.shape == (2, 3)
    for image in range(2):
        for concept in range(3):
            expected = slow_pool(name, maps[image, concept].flatten().tolist(), [0.5, 1.0, 4.0][concept])
            assert logits[image, concept].item() == pytest.approx(expected)


@each
def test_where_a_concept_lies_does_not_matter_to_its_logit(name):
    maps = example()
    shuffled = maps.flatten(-2)[..., torch.randperm(40, generator=torch.Generator().manual_seed(1))].view_as(maps)
    pool = create_pooling(name, num_concepts=3).double()
    torch.testing.assert_close(pool(maps), pool(shuffled))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20), st.floats(0.01, 20))
def test_log_mean_exp_lies_between_mean_and_max(values, r):
    maps = torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)
    low, middle, high = sum(values) / len(values), LsePool(r)(maps).item(), max(values)
    assert low - 1e-9 <= middle <= high + 1e-9


def test_attention_goes_from_mean_to_maximum_with_its_parameter():
    maps = example()
    pool = AttentionPool(3).double()
    pool.sharpness.data.zero_()
    torch.testing.assert_close(pool(maps), maps.mean(dim=(-2, -1)))
    pool.sharpness.data.fill_(1e4)
    torch.testing.assert_close(pool(maps), maps.amax(dim=(-2, -1)))


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_and_gradients_of_maps_at_100_are_finite(name, dtype):
    random = torch.Generator().manual_seed(0)
    mixed = 100 * torch.randn(1, 3, 14, 14, generator=random).sign()
    for maps in (mixed, torch.full_like(mixed, 100.0), torch.full_like(mixed, -100.0), torch.zeros_like(mixed)):
        maps = maps.to(dtype).requires_grad_()
        logits = create_pooling(name, num_concepts=3).to(dtype)(maps)
        (gradient,) = torch.autograd.grad(logits.sum(), maps)
        assert logits.isfinite().all() and gradient.isfinite().all()


@each
def test_the_gradient_is_that_of_finite_differences(name):
    pool = create_pooling(name, num_concepts=3).double()
    assert torch.autograd.gradcheck(pool, example(2, 3).requires_grad_())


def test_noisy_or_is_exact_where_one_minus_the_product_would_cancel():
    maps = torch.full((1, 1, 2, 2), -30.0, dtype=torch.float64)
    pool = create_pooling("noisy_or", num_concepts=1)
    assert pool(maps).item() == pytest.approx(-30 + math.log(4), rel=1e-9)
    assert pool(maps.float()).item() == pytest.approx(-30 + math.log(4), rel=1e-5)
    assert pool(-maps).item() == pytest.approx(120, rel=1e-9)


def test_places_that_tie_for_the_maximum_share_the_gradient():
    maps = torch.tensor([[[[1.0, 3.0], [3.0, 3.0]]]], requires_grad=True)
    create_pooling("max", num_concepts=1)(maps).backward()
    assert maps.grad is not None
    assert maps.grad.flatten().tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])


def test_an_all_equal_map_does_not_send_its_gradient_to_the_corner():
    maps = torch.zeros(1, 1, 7, 7, requires_grad=True)
    create_pooling("max", num_concepts=1)(maps).backward()
    assert maps.grad is not None
    torch.testing.assert_close(maps.grad, torch.full_like(maps, 1 / 49))


def test_topk_of_a_grid_with_fewer_places_is_the_mean():
    maps = example(1, 3)
    torch.testing.assert_close(TopkPool(10)(maps), maps.mean(dim=(-2, -1)))


@pytest.mark.parametrize("side, places", [(2, 1), (5, 2), (10, 10)])
def test_a_fraction_of_the_grid_is_the_mean_of_its_highest_places(side, places):
    maps = torch.randn(2, 3, side, side)
    highest = maps.flatten(-2).sort(dim=-1, descending=True).values[..., :places]
    torch.testing.assert_close(TopkPool(0.1)(maps), highest.mean(dim=-1))


def test_a_value_reaches_the_pooling_that_takes_one():
    maps = example()
    torch.testing.assert_close(create_pooling("topk", num_concepts=3, value=1.0)(maps), maps.amax(dim=(-2, -1)))
    torch.testing.assert_close(create_pooling("lse", num_concepts=3, value=9.0)(maps), LsePool(9.0)(maps))


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("avg", None, r"unknown pooling 'avg'; known: \['attention', 'lse', 'max', 'mean', 'noisy_or', 'topk'\]"),
        ("max", 3.0, r"pooling 'max' takes no value, got 3.0; only \['lse', 'topk'\] do"),
        ("topk", 0.0, "a fraction below 1 or a whole number of at least 1, got 0"),
        ("topk", 2.5, "a fraction below 1 or a whole number of at least 1, got 2.5"),
        ("lse", 0.0, r"`r` of lse pooling \(`pooling_param`, --pooling-param\) must be above 0, got 0"),
        ("lse", torch.nan, "must be above 0, got nan"),
    ],
)
def test_unknown_poolings_and_values_out_of_range_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        create_pooling(name, num_concepts=3, value=value)
