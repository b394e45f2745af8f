import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.labels import SOFT_LABEL, resolve_uncertain
from conceptcam.losses import (
    box_localization_loss,
    compute_class_weight,
    compute_pos_weight,
    multiclass_loss,
    multilabel_loss,
)
from conceptcam.metrics.classification import per_label_metrics, top_accuracy

nan = torch.nan
MEANING = {"ignore": nan, "zeros": 0.0, "ones": 1.0, "soft": SOFT_LABEL}
each_policy = pytest.mark.parametrize("policy, meaning", MEANING.items())
as_read = st.lists(st.sampled_from([0.0, 1.0, 0.25, -1.0, nan]), min_size=1, max_size=20)


def same(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.isnan(), second.isnan()) and torch.equal(first.nan_to_num(9), second.nan_to_num(9))


def as_stored(seed: int = 0, rows: int = 40) -> Tensor:
    """Labels as a file has them: 0, 1, -1 for uncertain, NaN for not mentioned."""
    random = torch.Generator().manual_seed(seed)
    return torch.tensor([0.0, 1.0, -1.0, nan])[torch.randint(0, 4, (rows, 3), generator=random)]


@each_policy
def test_the_policy_changes_uncertain_labels_and_nothing_else(policy, meaning):
    labels = torch.tensor([[0.0, -1.0], [1.0, nan], [-1.0, 0.3]])
    assert same(resolve_uncertain(labels, policy), torch.tensor([[0.0, meaning], [1.0, nan], [meaning, 0.3]]))
    assert same(labels, torch.tensor([[0.0, -1.0], [1.0, nan], [-1.0, 0.3]])), "those given stay as they are"


@pytest.mark.parametrize("policy", MEANING)
def test_what_nobody_mentioned_is_unknown_under_every_policy(policy):
    assert resolve_uncertain(torch.tensor([nan, nan]), policy).isnan().all()


def test_uncertain_is_unknown_unless_told_otherwise():
    assert resolve_uncertain(torch.tensor([-1.0])).isnan().all()


@given(as_read, st.sampled_from(list(MEANING)), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_each_label_is_resolved_on_its_own_and_only_once(labels, policy, random):
    order = list(range(len(labels)))
    random.shuffle(order)
    stored = torch.tensor(labels)
    resolved = resolve_uncertain(stored, policy)
    assert same(resolve_uncertain(stored[order], policy), resolved[order])
    assert same(resolve_uncertain(resolved, policy), resolved)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float16, torch.float32, torch.float64])
def test_labels_of_any_type_give_floats_of_at_least_32_bits(dtype):
    resolved = resolve_uncertain(torch.tensor([1, 0, -1], dtype=dtype), "soft")
    assert resolved.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert resolved.tolist() == pytest.approx([1.0, 0.0, 0.7])


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.float64, np.uint8])
def test_arrays_give_the_same_labels_as_tensors_and_share_no_memory(dtype):
    array = np.array([[1, 0], [2, 1]], dtype=dtype)
    resolved = resolve_uncertain(array, "zeros", uncertain=2)
    assert torch.equal(resolved, resolve_uncertain(torch.from_numpy(array), "zeros", uncertain=2))
    resolved.fill_(0.5)
    assert array.tolist() == [[1, 0], [2, 1]]


def test_a_range_gives_each_uncertain_label_a_repeatable_value():
    labels = torch.tensor([-1.0, 1.0, nan, 0.0]).repeat(500)
    first, second, other = (
        resolve_uncertain(labels, "soft", soft=(0.55, 0.85), generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    drawn = first[::4]
    assert same(first, second) and not same(first, other)
    assert 0.55 <= drawn.min() < 0.56 and 0.84 < drawn.max() <= 0.85 and len(drawn.unique()) > 490
    assert drawn.mean().item() == pytest.approx(SOFT_LABEL, abs=0.015)
    assert same(first[1::4], labels[1::4]) and same(first[2::4], labels[2::4]) and same(first[3::4], labels[3::4])


def test_drawing_labels_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    resolve_uncertain(torch.tensor([-1.0]), "soft", soft=(0.0, 0.3), generator=torch.Generator())
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "labels, options, message",
    [
        (
            torch.tensor([[0.0, 1.0], [0.0, 2.0]]),
            {},
            r"the label at \[1, 1\] is 2, one of 1 such; expected 0 to 1, -1 ",
        ),
        (torch.tensor([-2.0, 0.0, -1.5]), {}, r"the label at \[0\] is -2, one of 2 such.* or NaN where nobody said"),
        (torch.tensor([-1]), {"uncertain": 255}, r"the label at \[0\] is -1, .*, 255 for uncertain"),
        (torch.tensor([torch.inf]), {}, r"the label at \[0\] is inf"),
        (np.array(["yes", "no"]), {}, "labels must be numbers, got an array of <U3; write NaN where nobody said"),
        (torch.zeros(1), {"policy": "half"}, r"unknown policy for uncertain labels 'half'"),
        (torch.zeros(1), {"uncertain": 0.5}, r"must be a number outside \[0, 1\], got `uncertain=0.5`"),
        (torch.zeros(1), {"uncertain": nan}, r"must be a number outside \[0, 1\], got `uncertain=nan`"),
        (torch.zeros(1), {"policy": "soft", "soft": 1.5}, r"`soft` must be a label in \[0, 1\] or a range .*, got 1.5"),
        (torch.zeros(1), {"policy": "soft", "soft": (0.8, 0.2)}, r"a range \(low, high\) of them, got \(0.8, 0.2\)"),
        (
            torch.zeros(1),
            {"policy": "soft", "soft": (0.2, 0.4)},
            r"a label drawn from \(0.2, 0.4\) needs a `generator`",
        ),
    ],
)
def test_impossible_labels_and_options_are_refused_in_a_sentence(labels, options, message):
    with pytest.raises(ValueError, match=message):
        resolve_uncertain(labels, **options)


# One policy, applied where labels are read, and the loss, the weights and the metrics see the same.


def by_hand(stored: Tensor, meaning: float) -> list[list[float]]:
    return [[meaning if label == -1 else label for label in row] for row in stored.tolist()]


@each_policy
def test_the_loss_sees_what_the_policy_says(policy, meaning):
    stored = as_stored()
    logits = torch.randn(stored.shape, dtype=torch.float64)
    total, known = 0.0, 0
    for row, labels in zip(logits.tolist(), by_hand(stored, meaning), strict=True):
        for logit, label in zip(row, labels, strict=True):
            if not math.isnan(label):
                p = 1 / (1 + math.exp(-logit))
                total, known = total - label * math.log(p) - (1 - label) * math.log(1 - p), known + 1
    assert multilabel_loss(logits, resolve_uncertain(stored, policy)).item() == pytest.approx(total / known)


@each_policy
def test_the_weights_see_what_the_policy_says(policy, meaning):
    stored = as_stored()
    expected = []
    for column in zip(*by_hand(stored, meaning), strict=True):
        known = [label for label in column if not math.isnan(label)]
        expected.append((len(known) - sum(known)) / sum(known))
    assert compute_pos_weight(resolve_uncertain(stored, policy)).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("policy, meaning", [item for item in MEANING.items() if item[0] != "soft"])
def test_the_ranking_metrics_see_what_the_policy_says(policy, meaning):
    stored = as_stored()
    logits = torch.randn(stored.shape, dtype=torch.float64)
    scores = per_label_metrics(logits, resolve_uncertain(stored, policy))
    for column in range(3):
        rows = list(zip(logits[:, column].tolist(), [row[column] for row in by_hand(stored, meaning)], strict=True))
        present = [logit for logit, label in rows if label == 1]
        absent = [logit for logit, label in rows if label == 0]
        wins = [high > low for high, low in itertools.product(present, absent)]
        assert scores.auroc[column].item() == pytest.approx(sum(wins) / len(wins), abs=1e-6)
        assert (scores.positives[column], scores.negatives[column]) == (len(present), len(absent))


@each_policy
def test_the_box_loss_counts_a_box_by_what_the_policy_says(policy, meaning):
    """Two readers drew; the report affirms the first finding and leaves the second open."""
    maps = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    boxes = ConceptBoxes(
        torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.2, 0.5, 1.0, 1.0]]), torch.tensor([0, 1]), torch.tensor([0, 0])
    )
    first, second = (box_localization_loss(maps, boxes, torch.tensor([row])) for row in ([1.0, 0.0], [0.0, 1.0]))
    share = 0.0 if math.isnan(meaning) else meaning
    loss = box_localization_loss(maps, boxes, resolve_uncertain(torch.tensor([[1.0, -1.0]]), policy))
    torch.testing.assert_close(loss, (first + share * second) / (1 + share))


def test_an_ignored_class_is_left_out_of_loss_weights_and_accuracy():
    stored = torch.tensor([[1.0, 0.0, 0.0], [-1.0, -1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    resolved, kept = resolve_uncertain(stored), stored[[0, 2, 3, 4]]
    logits = torch.randn(5, 3)
    torch.testing.assert_close(multiclass_loss(logits, resolved), multiclass_loss(logits[[0, 2, 3, 4]], kept))
    assert torch.equal(compute_class_weight(resolved), compute_class_weight(kept))
    assert torch.equal(top_accuracy(logits, resolved), top_accuracy(logits[[0, 2, 3, 4]], kept))


@given(as_read, st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_ignored_labels_count_in_neither_loss_nor_weights(labels, more):
    stored = torch.tensor(labels, dtype=torch.float64)[:, None]
    longer = torch.cat([stored, torch.full((more, 1), -1.0, dtype=torch.float64)])
    few, many = resolve_uncertain(stored), resolve_uncertain(longer)
    logits = torch.linspace(-3, 3, len(longer), dtype=torch.float64)[:, None]
    torch.testing.assert_close(multilabel_loss(logits, many), multilabel_loss(logits[: len(few)], few))
    assert torch.equal(compute_pos_weight(many), compute_pos_weight(few))
