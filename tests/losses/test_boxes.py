import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conceptcam.data.boxes import ConceptBoxes
from conceptcam.losses.boxes import BBoxGuidedConceptLoss, box_localization_loss
from conceptcam.losses.class_weights import compute_pos_weight
from conceptcam.losses.classification import AsymmetricLoss, FocalLoss, class_balanced_loss, multilabel_loss

nan = torch.nan
PENALTIES, REDUCTIONS, MASKS = ("bce", "hinge", "mse"), ("area", "grid"), ("coverage", "center")
VARIANTS = list(itertools.product(PENALTIES, REDUCTIONS, MASKS))
SEED_BOX = (0.3, 0.4, 0.7, 0.8)


def one_box(*xyxy: float) -> ConceptBoxes:
    return ConceptBoxes.from_dicts([[{"concept_idx": 0, "bbox": xyxy}]])


def example(
    seed: int = 0, *, images: int = 3, concepts: int = 4, height: int = 7, width: int = 5, boxes: int = 9
) -> tuple[Tensor, Tensor, ConceptBoxes]:
    """Maps, labels of which some are soft and some unknown, and boxes of which several share a pair."""
    random = torch.Generator().manual_seed(seed)
    maps = 3 * torch.randn(images, concepts, height, width, generator=random, dtype=torch.float64)
    labels = torch.randint(0, 3, (images, concepts), generator=random).double() / 2
    labels[torch.rand(images, concepts, generator=random) < 0.2] = nan
    low, high = torch.rand(2, boxes, 2, generator=random, dtype=torch.float64).sort(dim=0).values
    drawn = ConceptBoxes(
        torch.cat([low, high], dim=1),
        torch.randint(concepts, (boxes,), generator=random),
        torch.randint(images, (boxes,), generator=random),
    )
    return maps, labels, drawn


def slow_mask(box: list[float], height: int, width: int, mask: str) -> list[list[float]]:
    left, top, right, bottom = box
    rows = [[0.0] * width for _ in range(height)]
    for row, column in itertools.product(range(height), range(width)):
        if mask == "coverage":
            across = min(right, (column + 1) / width) - max(left, column / width)
            down = min(bottom, (row + 1) / height) - max(top, row / height)
            rows[row][column] = max(across, 0) * max(down, 0) * width * height
        else:
            x, y = (column + 0.5) / width, (row + 0.5) / height
            in_x = left <= x <= right or column == int((left + right) / 2 * width)
            in_y = top <= y <= bottom or row == int((top + bottom) / 2 * height)
            rows[row][column] = float(in_x and in_y)
    return rows


def slow_costs(logit: float, penalty: str, margin: float) -> tuple[float, float]:
    if penalty == "hinge":
        return max(margin - logit, 0), max(margin + logit, 0)
    probability = 1 / (1 + math.exp(-logit))
    if penalty == "mse":
        return (1 - probability) ** 2, probability**2
    return -math.log(probability), -math.log(1 - probability)


def slow_masks(maps: Tensor, boxes: ConceptBoxes, mask: str) -> dict[tuple[int, int], list[list[float]]]:
    """(image, concept) -> how much of each cell its boxes cover."""
    height, width = maps.shape[-2:]
    masks: dict[tuple[int, int], list[list[float]]] = {}
    for box, concept, image in zip(boxes.xyxy.tolist(), boxes.concept.tolist(), boxes.image.tolist(), strict=True):
        new = slow_mask(box, height, width, mask)
        old = masks.get((image, concept), new)
        masks[image, concept] = [
            [max(a, b) for a, b in zip(first, second, strict=True)] for first, second in zip(old, new, strict=True)
        ]
    return masks


def slow_loss(
    maps: Tensor, boxes: ConceptBoxes, labels: Tensor | None, penalty: str, normalize: str, mask: str, margin: float
) -> float:
    """The loss by its definition: one place, one box, one pair at a time."""
    height, width = maps.shape[-2:]
    total = weight = 0.0
    for (image, concept), inside in slow_masks(maps, boxes, mask).items():
        label = 1.0 if labels is None else labels[image, concept].item()
        if math.isnan(label):
            continue
        high = low = area_in = area_out = 0.0
        for row, column in itertools.product(range(height), range(width)):
            share = inside[row][column]
            cost_in, cost_out = slow_costs(maps[image, concept, row, column].item(), penalty, margin)
            high, low = high + share * cost_in, low + (1 - share) * cost_out
            area_in, area_out = area_in + share, area_out + 1 - share
        places = height * width
        term = (high + low) / places if normalize == "grid" else high / area_in + (low / area_out if area_out else 0)
        total, weight = total + label * term, weight + label
    return total / weight if weight else 0.0


@pytest.mark.parametrize("penalty, normalize, mask", VARIANTS)
@pytest.mark.parametrize("labelled", [False, True])
def test_every_variant_equals_a_slow_loop_over_boxes(penalty, normalize, mask, labelled):
    margin = 0.7 if penalty == "hinge" else 0.0
    for seed in range(3):
        maps, labels, boxes = example(seed)
        assert len(boxes.pair_masks(maps.shape).image) < len(boxes), "some pair has several boxes"
        truth = labels if labelled else None
        loss = box_localization_loss(maps, boxes, truth, penalty=penalty, normalize=normalize, mask=mask, margin=margin)
        assert loss.item() == pytest.approx(slow_loss(maps, boxes, truth, penalty, normalize, mask, margin), rel=1e-9)


@pytest.mark.parametrize("penalty, mask", list(itertools.product(PENALTIES, MASKS)))
def test_the_costliest_place_outside_counts_alone(penalty, mask):
    maps, _, boxes = example()
    loss = box_localization_loss(maps, boxes, penalty=penalty, mask=mask, outside="max")
    terms = []
    for (image, concept), inside in slow_masks(maps, boxes, mask).items():
        places = list(itertools.product(range(maps.shape[2]), range(maps.shape[3])))
        costs = [slow_costs(maps[image, concept, row, column].item(), penalty, 0.0) for row, column in places]
        shares = [inside[row][column] for row, column in places]
        high = sum(share * cost for share, (cost, _) in zip(shares, costs, strict=True)) / sum(shares)
        terms.append(high + max((1 - share) * cost for share, (_, cost) in zip(shares, costs, strict=True)))
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-9)


@pytest.mark.parametrize("outside, price", [("mean", 1 / 195), ("max", 1.0)])
def test_one_place_outside_costs_a_195th_or_all_of_its_logit(outside, price):
    maps = torch.full((1, 1, 14, 14), -50.0)
    maps[0, 0, 13, 13] = 50.0  # a mark in the corner
    maps.requires_grad_()
    box_localization_loss(maps, one_box(0, 0, 1 / 14, 1 / 14), outside=outside).backward()
    assert maps.grad is not None and maps.grad[0, 0, 13, 13].item() == pytest.approx(price, rel=1e-4)


@pytest.mark.parametrize("value, golden", [(0.5, 0.408163), (-0.5, 0.0918367), (0.0, 0.0)])
def test_seed_hinge_gives_the_golden_numbers(value, golden):
    maps = torch.full((1, 1, 7, 7), value, dtype=torch.float64, requires_grad=True)
    loss = box_localization_loss(maps, one_box(*SEED_BOX), penalty="hinge", normalize="grid", mask="center")
    assert loss.item() == pytest.approx(golden, abs=5e-7)
    loss.backward()
    assert maps.grad is not None
    assert (maps.grad == 0).all() == (value == 0)


def test_the_hinge_is_the_documented_formula_for_single_boxes():
    random = torch.Generator().manual_seed(5)
    maps = torch.randn(2, 3, 7, 7, generator=random, dtype=torch.float64)
    rows = [
        [{"concept_idx": 0, "bbox": SEED_BOX}, {"concept_idx": 2, "bbox": (0.0, 0.1, 0.6, 0.5)}],
        [{"concept_idx": 1, "x_min": 0.2, "y_min": 0.5, "x_max": 0.9, "y_max": 0.6}],
    ]
    terms = []
    for image, image_boxes in enumerate(rows):
        for box in image_boxes:
            corners = box.get("bbox") or [box[key] for key in ("x_min", "y_min", "x_max", "y_max")]
            inside_mask = torch.tensor(slow_mask(list(corners), 7, 7, "center"), dtype=torch.float64)
            cam = maps[image, box["concept_idx"]]
            l_inside = torch.mean(torch.relu(-cam * inside_mask))
            l_outside = torch.mean(torch.relu(cam * (1 - inside_mask)))
            terms.append(l_inside + l_outside)
    loss = box_localization_loss(maps, rows, penalty="hinge", normalize="grid", mask="center")
    torch.testing.assert_close(loss, torch.stack(terms).mean())


@pytest.mark.parametrize("penalty", ["bce", "mse"])
@pytest.mark.parametrize("normalize", REDUCTIONS)
def test_two_boxes_of_one_concept_do_not_fight(penalty, normalize):
    boxes = ConceptBoxes.from_dicts(
        [[{"concept_idx": 0, "bbox": (0, 0, 0.25, 0.25)}, {"concept_idx": 0, "bbox": (0.5, 0.5, 1, 1)}]]
    )
    best = torch.full((1, 1, 4, 4), -50.0)
    best[0, 0, 0, 0] = best[0, 0, 2:, 2:] = 50.0
    assert box_localization_loss(best, boxes, penalty=penalty, normalize=normalize).item() < 1e-12
    one_forgotten = best.clone()
    one_forgotten[0, 0, 0, 0] = -50.0
    assert box_localization_loss(one_forgotten, boxes, penalty=penalty, normalize=normalize) > 0.04


def test_a_box_drawn_twice_by_two_readers_counts_once():
    maps, _, _ = example(images=1, concepts=1)
    box = {"concept_idx": 0, "bbox": SEED_BOX}
    once, twice = (box_localization_loss(maps, [[box] * n]) for n in (1, 2))
    torch.testing.assert_close(once, twice)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("mask", MASKS)
def test_a_box_smaller_than_a_cell_still_pulls_its_cell_up(penalty, mask):
    maps = torch.zeros(1, 1, 7, 7, requires_grad=True)
    margin = 1.0 if penalty == "hinge" else 0.0
    box_localization_loss(maps, one_box(0.47, 0.61, 0.5, 0.63), penalty=penalty, mask=mask, margin=margin).backward()
    assert maps.grad is not None
    assert maps.grad[0, 0, 4, 3] < 0
    maps.grad[0, 0, 4, 3] = 1
    assert (maps.grad > 0).all(), "and everything else down"


def test_area_weighs_inside_and_outside_alike_however_small_the_box():
    maps = torch.zeros(1, 1, 14, 14, requires_grad=True)
    box_localization_loss(maps, one_box(0.5, 0.5, 0.5 + 1 / 14, 0.5 + 1 / 14)).backward()
    assert maps.grad is not None
    assert maps.grad.clamp(max=0).sum().item() == pytest.approx(-0.5)
    assert maps.grad.clamp(min=0).sum().item() == pytest.approx(0.5)


def test_a_box_of_the_whole_image_has_no_outside_and_stays_finite():
    maps = torch.zeros(1, 1, 3, 4, requires_grad=True)
    loss = box_localization_loss(maps, one_box(0, 0, 1, 1))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert maps.grad is not None and maps.grad.isfinite().all() and (maps.grad < 0).all()


@pytest.mark.parametrize(
    "boxes, labels",
    [
        (ConceptBoxes.empty(), torch.ones(2, 3)),
        ([[], None], torch.ones(2, 3)),
        ([[], []], None),
        ([[{"concept_idx": 1, "bbox": (0, 0, 0.5, 0.5)}], []], torch.zeros(2, 3)),
        ([[{"concept_idx": 1, "bbox": (0, 0, 0.5, 0.5)}], []], torch.full((2, 3), nan)),
    ],
    ids=["empty", "lists", "no labels", "labelled absent", "unknown"],
)
@pytest.mark.parametrize("penalty, normalize", list(itertools.product(PENALTIES, REDUCTIONS)))
def test_without_a_pair_the_loss_is_0_with_a_gradient_path(boxes, labels, penalty, normalize):
    maps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = box_localization_loss(maps, boxes, labels, penalty=penalty, normalize=normalize)
    assert loss.item() == 0
    loss.backward()
    assert maps.grad is not None and (maps.grad == 0).all()


def test_a_pair_of_unknown_label_changes_no_value_or_gradient():
    maps, _, boxes = example()
    labels = torch.ones(3, 4)
    unknown = (int(boxes.image[0]), int(boxes.concept[0]))
    labels[unknown] = nan
    kept = (boxes.image != unknown[0]) | (boxes.concept != unknown[1])
    others = ConceptBoxes(boxes.xyxy[kept], boxes.concept[kept], boxes.image[kept])
    first, second = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    with_unknown, dropped = box_localization_loss(first, boxes, labels), box_localization_loss(second, others)
    torch.testing.assert_close(with_unknown, dropped)
    (gradient,), (expected,) = torch.autograd.grad(with_unknown, first), torch.autograd.grad(dropped, second)
    torch.testing.assert_close(gradient, expected)
    assert (gradient[unknown] == 0).all()


def test_a_pair_counts_as_much_as_its_soft_label_says():
    maps, _, _ = example(images=2, concepts=1)
    box = {"concept_idx": 0, "bbox": SEED_BOX}
    first, second = (box_localization_loss(maps[i : i + 1], [[box]]) for i in (0, 1))
    both = box_localization_loss(maps, [[box], [box]], torch.tensor([[0.25], [0.75]]))
    torch.testing.assert_close(both, 0.25 * first + 0.75 * second)


@pytest.mark.parametrize("penalty, normalize, mask", VARIANTS)
def test_the_gradient_is_that_of_finite_differences(penalty, normalize, mask):
    maps, labels, boxes = example(height=3, width=2)
    margin = 0.3 if penalty == "hinge" else 0.0

    def loss(values: Tensor) -> Tensor:
        return box_localization_loss(
            values, boxes, labels, penalty=penalty, normalize=normalize, mask=mask, margin=margin
        )

    assert torch.autograd.gradcheck(loss, maps.requires_grad_())


@pytest.mark.parametrize("penalty, normalize, mask", VARIANTS)
def test_gradients_at_logits_of_100_are_finite_and_repeat(penalty, normalize, mask):
    maps, labels, boxes = example()
    maps = (100 * maps.sign()).float().requires_grad_()
    losses = [box_localization_loss(maps, boxes, labels, penalty=penalty, normalize=normalize, mask=mask) for _ in "12"]
    first, second = (torch.autograd.grad(loss, maps)[0] for loss in losses)
    assert losses[0].isfinite() and first.isfinite().all()
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_lose_nothing_but_their_own_rounding(penalty, dtype):
    maps, labels, boxes = example()
    maps = maps.to(dtype)
    loss = box_localization_loss(maps, boxes, labels, penalty=penalty)
    exact = box_localization_loss(maps.double(), boxes, labels, penalty=penalty)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


def test_lists_of_dicts_give_the_same_loss_as_our_boxes():
    rows = [
        [{"concept_idx": 0, "bbox": SEED_BOX}],
        None,
        [{"concept_idx": 2, "x_min": 0.0, "y_min": 0.5, "x_max": 0.3, "y_max": 1.0}],
    ]
    maps, labels, _ = example()
    ours = ConceptBoxes(torch.tensor([SEED_BOX, (0.0, 0.5, 0.3, 1.0)]), torch.tensor([0, 2]), torch.tensor([0, 2]))
    assert torch.equal(box_localization_loss(maps, rows, labels), box_localization_loss(maps, ours, labels))
    loss = BBoxGuidedConceptLoss()
    assert torch.equal(loss(maps, labels, rows), loss(maps, labels, ours))


def test_flipping_boxes_alone_changes_the_loss():
    maps, labels, boxes = example()
    mirrored = ConceptBoxes(
        torch.stack([1 - boxes.xyxy[:, 2], boxes.xyxy[:, 1], 1 - boxes.xyxy[:, 0], boxes.xyxy[:, 3]], dim=1),
        boxes.concept,
        boxes.image,
    )
    plain = box_localization_loss(maps, boxes, labels)
    torch.testing.assert_close(box_localization_loss(maps.flip(-1), mirrored, labels), plain)
    assert (box_localization_loss(maps, mirrored, labels) - plain).abs() > 0.1


def test_transposing_boxes_alone_changes_the_loss():
    maps, labels, boxes = example(height=6, width=6)
    transposed = ConceptBoxes(boxes.xyxy[:, [1, 0, 3, 2]], boxes.concept, boxes.image)
    plain = box_localization_loss(maps, boxes, labels)
    torch.testing.assert_close(box_localization_loss(maps.mT, transposed, labels), plain)
    assert (box_localization_loss(maps, transposed, labels) - plain).abs() > 0.1


def test_guided_loss_is_the_weighted_sum_of_its_two_terms():
    maps, _, boxes = example()
    labels = torch.randint(0, 2, (3, 4), generator=torch.Generator().manual_seed(1)).double()
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    options = {"penalty": "hinge", "normalize": "grid", "mask": "center", "margin": 0.4}
    loss = BBoxGuidedConceptLoss(2.0, 0.3, pos_weight=weight, **options)
    classification = F.binary_cross_entropy_with_logits(maps.amax((-2, -1)), labels, pos_weight=weight.double())
    places = box_localization_loss(maps, boxes, labels, **options)
    torch.testing.assert_close(loss(maps, labels, boxes), 2.0 * classification + 0.3 * places)


def test_guided_loss_takes_the_logits_of_any_pooling():
    maps, _, boxes = example()
    labels = torch.ones(3, 4, dtype=torch.float64)
    pooled = maps.mean(dim=(-2, -1))
    loss = BBoxGuidedConceptLoss(beta=0.0)
    expected = F.binary_cross_entropy_with_logits(pooled, labels)
    torch.testing.assert_close(loss(maps, labels, boxes, concept_logits=pooled), expected)
    assert loss(maps, labels, boxes) != loss(maps, labels, boxes, concept_logits=pooled)


def test_presence_in_the_box_reads_the_highest_cell_it_touches():
    maps, _, boxes = example()
    labels = torch.randint(0, 2, (3, 4), generator=torch.Generator().manual_seed(2)).double()
    expected = maps.amax((-2, -1))
    for (image, concept), inside in slow_masks(maps, boxes, "coverage").items():
        if labels[image, concept] == 1:
            touched = [
                maps[image, concept, row, column]
                for row, column in itertools.product(range(maps.shape[2]), range(maps.shape[3]))
                if inside[row][column]
            ]
            expected[image, concept] = max(touched)
    assert not torch.equal(expected, maps.amax((-2, -1)))
    loss = BBoxGuidedConceptLoss(beta=0.0, presence="in_box")(maps, labels, boxes)
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(expected, labels))


def test_a_mark_outside_the_box_earns_nothing_for_presence_in_it():
    maps = torch.zeros(1, 1, 7, 7)
    maps[0, 0, 0, 6] = 5.0  # a mark in the corner, higher than the finding
    gradients = {}
    for presence in ("anywhere", "in_box"):
        own = maps.clone().requires_grad_()
        BBoxGuidedConceptLoss(presence=presence)(own, torch.ones(1, 1), one_box(*SEED_BOX)).backward()
        assert own.grad is not None
        gradients[presence] = own.grad[0, 0]
    assert gradients["in_box"][0, 6] > gradients["anywhere"][0, 6]  # pushed down by the box loss alone
    assert gradients["in_box"][4, 3] < gradients["anywhere"][4, 3]  # the finding is pulled up by both


@pytest.mark.parametrize("labels", [torch.zeros(3, 4), torch.full((3, 4), nan)])
def test_presence_in_the_box_leaves_absent_and_unknown_pairs(labels):
    maps, _, boxes = example()
    there, anywhere = (BBoxGuidedConceptLoss(presence=name)(maps, labels, boxes) for name in ("in_box", "anywhere"))
    assert torch.equal(there, anywhere)


def test_guided_loss_without_boxes_is_classification_alone():
    maps, labels, _ = example()
    loss = BBoxGuidedConceptLoss()
    alone = loss(maps, labels)
    assert torch.equal(alone, loss(maps, labels, None))
    assert torch.equal(alone, loss(maps, labels, [None, [], None]))


def test_guided_loss_of_unknown_labels_is_0_with_a_gradient_path():
    maps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = BBoxGuidedConceptLoss()(maps, torch.full((2, 3), nan), [[], None])
    assert loss.item() == 0
    loss.backward()
    assert maps.grad is not None and (maps.grad == 0).all()


def test_guided_loss_takes_another_loss_and_owns_no_parameters():
    maps, labels, boxes = example()
    loss = BBoxGuidedConceptLoss(beta=0.0, classification=FocalLoss())
    torch.testing.assert_close(loss(maps, labels, boxes), FocalLoss()(maps.amax((-2, -1)), labels))
    assert list(loss.parameters()) == []


BOXES = one_box(*SEED_BOX)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"penalty": "l1"}, r"unknown `penalty` 'l1'; known: \['bce', 'hinge', 'mse'\]"),
        ({"normalize": "mean"}, r"unknown `normalize` 'mean'; known: \['area', 'grid'\]"),
        ({"outside": "sum"}, r"unknown `outside` 'sum'; known: \['mean', 'max'\]"),
        ({"outside": "max", "normalize": "grid"}, "`outside='max'` belongs to `normalize='area'`, got 'grid'"),
        ({"mask": "floor"}, r"unknown `mask` 'floor'; known: \['coverage', 'center'\]"),
        ({"margin": 0.5}, "`margin` belongs to the hinge penalty, got 0.5 with 'bce'"),
    ],
)
def test_unknown_options_are_refused_at_once_by_function_and_module(options, message):
    with pytest.raises(ValueError, match=message):
        box_localization_loss(torch.zeros(1, 1, 4, 4), BOXES, **options)
    with pytest.raises(ValueError, match=message):
        BBoxGuidedConceptLoss(**options)


@pytest.mark.parametrize(
    "maps, boxes, labels, message",
    [
        (torch.zeros(1, 1, 4, 4), BOXES, torch.zeros(1), r"labels have shape \(1,\), but predictions \(1, 1\)"),
        (torch.zeros(1, 1, 4, 4), BOXES, torch.zeros(1, 2), r"labels have shape \(1, 2\), but predictions \(1, 1\)"),
        (torch.zeros(1, 1, 4, 4), BOXES, torch.full((1, 1), 2.0), r"labels must be in \[0, 1\], .* got 2"),
        (torch.zeros(1, 1, 4, 4), BOXES, torch.full((1, 1), -1.0), r"NaN where unknown; got -1"),
        (torch.zeros(1, 4, 4), BOXES, None, r"concept maps must be .*\(B, K, h, w\).* got .*\(1, 4, 4\)"),
        (torch.zeros(2, 1, 4, 4), [[]], None, "one list per image, got 1 for 2 images"),
        (torch.zeros(1, 1, 4, 4), [[], []], None, "one list per image, got 2 for 1 images"),
        (
            torch.zeros(1, 1, 4, 4),
            [[{"concept_idx": 1, "bbox": SEED_BOX}]],
            None,
            "concept index 1, but there are 1 concepts",
        ),
    ],
)
def test_maps_boxes_and_labels_that_do_not_fit_are_refused(maps, boxes, labels, message):
    with pytest.raises(ValueError, match=message):
        box_localization_loss(maps, boxes, labels)


def test_two_ways_to_weigh_positives_are_refused():
    with pytest.raises(ValueError, match="`pos_weight` belongs to the default classification loss"):
        BBoxGuidedConceptLoss(pos_weight=torch.ones(3), classification=FocalLoss())


@pytest.mark.parametrize(
    "boxes", [[{"concept_idx": 0, "bbox": [0.1, 0.1, 0.2, 0.2]}] * 2, [((0, 0.1, 0.1, 0.5, 0.5),), None]]
)
def test_boxes_of_another_form_are_refused_with_the_right_one(boxes):
    with pytest.raises(ValueError, match="boxes (are a list of dicts per image, )?.*such as .*concept_idx"):
        BBoxGuidedConceptLoss()(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1), boxes)


def test_pooled_logits_in_place_of_maps_are_refused():
    with pytest.raises(ValueError, match=r"concept maps must be .*\(B, K, h, w\), before any pooling; got .*\(2, 3\)"):
        BBoxGuidedConceptLoss()(torch.zeros(2, 3), torch.zeros(2, 3))


@pytest.mark.parametrize("name, loss", [("focal", FocalLoss()), ("asymmetric", AsymmetricLoss())])
def test_a_classification_loss_can_be_named(name, loss):
    maps, labels, boxes = example()
    named = BBoxGuidedConceptLoss(classification=name)
    assert torch.equal(named(maps, labels, boxes), BBoxGuidedConceptLoss(classification=loss)(maps, labels, boxes))
    assert named(maps, labels, boxes) != BBoxGuidedConceptLoss()(maps, labels, boxes)
    assert list(named.state_dict()) == []


@pytest.mark.parametrize("strategy", ["none", "ratio", "sqrt", "effective"])
def test_a_loss_with_weights_is_the_default_with_these_weights(strategy):
    maps, labels, boxes = example()
    train = torch.randint(0, 2, (50, 4)).double()
    own = BBoxGuidedConceptLoss(classification=class_balanced_loss(strategy, train))
    default = BBoxGuidedConceptLoss(pos_weight=compute_pos_weight(train, strategy=strategy))
    assert torch.equal(own(maps, labels, boxes), default(maps, labels, boxes))


@pytest.mark.parametrize("name", ["focal", "asymmetric"])
def test_positive_weights_with_a_focused_loss_are_refused(name):
    with pytest.raises(
        ValueError, match="`pos_weight` belongs to .* 'bce'; focal and asymmetric losses weigh positives"
    ):
        BBoxGuidedConceptLoss(pos_weight=torch.ones(3), classification=name)


def test_an_unknown_classification_is_refused():
    with pytest.raises(ValueError, match=r"unknown `classification` 'mse'; known: \['bce', 'focal', 'asymmetric'\]"):
        BBoxGuidedConceptLoss(classification="mse")


def test_boxes_as_a_bare_tensor_are_refused():
    with pytest.raises(ValueError, match=r"boxes are a tensor of shape \(1, 4\).* pass `ConceptBoxes\("):
        box_localization_loss(torch.zeros(2, 3, 4, 4), torch.rand(1, 4))


def some_boxes(count: int) -> ConceptBoxes:
    """Boxes of three concepts in four images."""
    random = torch.Generator().manual_seed(count)
    corner = torch.rand(count, 2, generator=random) / 2
    own = [torch.randint(0, high, (count,), generator=random) for high in (3, 4)]
    return ConceptBoxes(torch.cat([corner, corner + 0.3], dim=1), *own)


@pytest.mark.parametrize(
    "options", [{}, {"mask": "center", "penalty": "hinge", "margin": 1.0, "classification": "focal"}]
)
def test_a_compiled_loss_is_one_graph_and_gives_the_same(options):
    torch._dynamo.reset()
    loss = BBoxGuidedConceptLoss(**options)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    labels = torch.tensor([[1.0, 0, nan], [0, 1, 1], [0.5, 1, 0], [0, 0, 1]])
    for count in (4, 0, 1, 7, 30):
        maps = [torch.randn(4, 3, 7, 7, generator=torch.Generator().manual_seed(count)).requires_grad_() for _ in "ab"]
        values = [call(one, labels, some_boxes(count)) for call, one in zip((loss, compiled), maps, strict=True)]
        torch.stack(values).sum().backward()
        torch.testing.assert_close(*values)
        torch.testing.assert_close(maps[0].grad, maps[1].grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "`alpha` must be a finite int or float from 0 to 1e.06, got -1.0"),
        ({"alpha": nan}, "`alpha` must be a finite int or float from 0 to 1e.06, got nan"),
        ({"beta": math.inf}, "`beta` must be a finite int or float from 0 to 1e.06, got inf"),
        ({"beta": "1"}, "`beta` must be a finite int or float from 0 to 1e.06, got '1'"),
        ({"penalty": "hinge", "margin": nan}, "`margin` must be a finite int or float from 0 to 1e.06, got nan"),
        ({"penalty": "hinge", "margin": -1.0}, "`margin` must be a finite int or float from 0 to 1e.06, got -1.0"),
        ({"pos_weight": torch.tensor([1.0, nan])}, r"`pos_weight` must be \(K,\) finite numbers from 0 on, one per"),
        ({"pos_weight": torch.tensor([1.0, -1.0])}, r"`pos_weight` must be \(K,\) finite numbers from 0 on, one per"),
        ({"pos_weight": torch.ones(4, 1)}, r"`pos_weight` must be \(K,\) finite numbers from 0 on, one per concept"),
    ],
)
def test_weights_and_margins_that_cannot_be_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        BBoxGuidedConceptLoss(**options)


@pytest.mark.parametrize("weight", [torch.ones(2), torch.ones(1), torch.ones(4, 1), torch.ones(4, 3)])
def test_weights_of_another_shape_than_the_labels_are_refused(weight):
    with pytest.raises(ValueError, match=r"`pos_weight` must have the shape \(3,\), one weight per label; got \("):
        multilabel_loss(torch.zeros(4, 3), torch.zeros(4, 3), weight)


@pytest.mark.parametrize(
    "maps", [torch.zeros(2, 3), torch.zeros(2, 3, 4, 4).int(), torch.ones(2, 3, 4, 4).bool(), [[0.0]]]
)
def test_what_are_no_concept_maps_is_refused(maps):
    for call in (
        lambda: BBoxGuidedConceptLoss()(maps, torch.zeros(2, 3)),
        lambda: box_localization_loss(maps, [None] * 2),
    ):
        with pytest.raises(
            ValueError, match=r"concept maps must be a tensor of floats \(B, K, h, w\), before any pooling"
        ):
            call()


def test_labels_may_be_lists_or_arrays_of_numbers():
    maps, rows = torch.randn(2, 3, 4, 4), [[1.0, 0, nan], [0, 1, 0.5]]
    expected = BBoxGuidedConceptLoss()(maps, torch.tensor(rows))
    assert BBoxGuidedConceptLoss()(maps, rows) == BBoxGuidedConceptLoss()(maps, np.array(rows)) == expected
    for labels in ("no", [["a"]], [[1.0], [1.0, 2.0]], None):
        with pytest.raises(
            ValueError, match="labels must be numbers in rows of one length, with NaN where unknown; got"
        ):
            BBoxGuidedConceptLoss()(maps, labels)


def test_a_classification_of_ones_own_must_give_a_number():
    maps, labels = torch.zeros(2, 3, 4, 4), torch.tensor([[1.0, 0, nan], [0, 1, 1]])
    own = BBoxGuidedConceptLoss(classification=nn.BCEWithLogitsLoss(reduction="none"))
    with pytest.raises(ValueError, match=r"`classification` must give a scalar, got the shape \(2, 3\); take its mean"):
        own(maps, labels)
    with pytest.raises(
        ValueError, match="`classification` gives NaN for labels that are NaN, which means unknown; leave"
    ):
        BBoxGuidedConceptLoss(classification=nn.BCEWithLogitsLoss())(maps, labels)


def test_boxes_come_in_each_form_that_training_code_has():
    from torchvision.tv_tensors import BoundingBoxes

    maps = torch.randn(3, 3, 8, 8)
    corners = torch.tensor([[0.25, 0.25, 0.5, 0.75], [0.0, 0.5, 0.5, 1.0]])
    concept = torch.tensor([2, 0])
    expected = box_localization_loss(maps, ConceptBoxes(corners, concept, torch.tensor([1, 1])))
    pixels = BoundingBoxes(corners * torch.tensor([40, 20, 40, 20]), format="XYXY", canvas_size=(20, 40))
    for form in (
        ConceptBoxes(corners, concept, torch.zeros(2).long()),
        {"boxes": corners, "labels": concept},
        {"boxes": pixels, "labels": concept, "image_id": 7},
        {"boxes": corners.numpy(), "labels": concept.tolist()},
        [{"concept_idx": 2, "bbox": corners[0]}, {"concept_idx": 0, "bbox": corners[1].tolist()}],
    ):
        torch.testing.assert_close(box_localization_loss(maps, [None, form, ConceptBoxes.empty()]), expected)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (
            [torch.zeros(2, 4), None],
            r"the boxes of image 0 are a tensor \(2, 4\), which does not say of which concept each",
        ),
        ([None, {"boxes": torch.zeros(1, 4)}], r"the boxes of image 1 are a dict of \['boxes'\], which does not say"),
        (
            torch.zeros(2, 4),
            r"boxes are a tensor of shape \(2, 4\), which does not say whose they are; pass .*'labels'",
        ),
    ],
)
def test_boxes_without_their_concepts_are_told_what_to_be(boxes, message):
    with pytest.raises(ValueError, match=message):
        box_localization_loss(torch.zeros(2, 3, 4, 4), boxes)


@pytest.mark.parametrize("weights", [3.0, [1.0, 2.0], torch.ones(2, 2), torch.tensor([math.nan, 1]), -torch.ones(2)])
def test_positive_weights_that_are_none_are_a_sentence(weights):
    with pytest.raises(ValueError, match=r"`pos_weight` must be .*\(K,\).* per concept; got") as caught:
        BBoxGuidedConceptLoss(pos_weight=weights)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="unknown `classification` 3"):
        BBoxGuidedConceptLoss(classification=3)
