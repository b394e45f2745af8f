"""Simulated readers: how often they err, what they draw, and the best that can be scored against them."""

import itertools

import pytest
import torch
from torch import Tensor

from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.labels import resolve_uncertain
from conceptcam.data.merging import merge_readers
from conceptcam.data.readers import SimulatedReaders
from conceptcam.metrics.classification import per_label_metrics

nan = torch.nan


class Truth(ConceptDataset):
    """Images of which everything is known; each present concept has one box, in a place of its own."""

    concepts, tasks = ("Nodule", "Edema"), ("Sick",)

    def __init__(self, labels: Tensor, *, drawn: bool = True) -> None:
        self.concept_labels, self.task_labels, self.drawn = labels, labels[:, :1], drawn
        self.image, self.concept = ((labels == 1).nonzero().T) if drawn else torch.zeros(2, 0).long()

    @property
    def all_boxes(self) -> ConceptBoxes | None:
        if not self.drawn:
            return None
        corner = 0.1 + 0.4 * self.concept[:, None] + torch.tensor([0.0, 0.0])
        return ConceptBoxes(torch.cat([corner, corner + 0.2], dim=1), self.concept, self.image)

    def load_item(self, index: int) -> ConceptItem:
        boxes = self.all_boxes
        if boxes is not None:
            own = boxes.image == index
            boxes = ConceptBoxes(boxes.xyxy[own], boxes.concept[own], torch.zeros(int(own.sum())).long())
        image = torch.zeros(3, 4, 4, dtype=torch.uint8)
        return ConceptItem(image, self.concept_labels[index], self.task_labels[index], boxes, str(index))


def truth(count: int, *, seed: int = 0, prevalence: float = 0.3) -> Tensor:
    return (torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) < prevalence).float()


def test_readers_who_never_err_give_the_truth():
    data = Truth(truth(50))
    read = SimulatedReaders(data, sensitivity=1.0, specificity=1.0, box_jitter=0.0, count=1)
    assert torch.equal(read.concept_labels, data.concept_labels) and read.ceiling.tolist() == [1, 1]
    for index in range(50):
        one, other = read.load_item(index), data.load_item(index)
        assert torch.equal(one.boxes.xyxy, other.boxes.xyxy) and torch.equal(one.boxes.concept, other.boxes.concept)
        assert torch.equal(one.targets, other.targets) and one.name == other.name


def test_each_reader_errs_and_hedges_as_often_as_asked():
    data = Truth(truth(6000), drawn=False)
    chances = {"Nodule": 0.7, "Edema": 0.9}
    read = SimulatedReaders(data, sensitivity=chances, specificity=0.95, uncertainty=0.1, count=2)
    for k, sensitivity in enumerate(chances.values()):
        for value, yes in ((1, sensitivity), (0, 0.05)):
            said = read.readings[:, :, k][data.concept_labels[:, k] == value]
            for answer, chance in ((1, 0.9 * yes), (0, 0.9 * (1 - yes)), (-1, 0.1)):
                error = (chance * (1 - chance) / said.numel()) ** 0.5
                assert abs((said == answer).double().mean().item() - chance) < 4.5 * error


def test_readers_err_independently_of_each_other():
    read = SimulatedReaders(Truth(torch.ones(20_000, 2), drawn=False), sensitivity=0.6, count=2)
    both = (read.readings == 1).all(dim=1).double().mean().item()
    assert abs(both - 0.36) < 0.015


def test_readings_of_an_image_do_not_depend_on_those_that_follow():
    labels = truth(40)
    few, many = (SimulatedReaders(Truth(labels[:count]), seed=3) for count in (10, 40))
    assert torch.equal(few.readings, many.readings[:10])
    assert not torch.equal(few.readings, SimulatedReaders(Truth(labels[:10]), seed=4).readings)


@pytest.mark.parametrize("rule", ["any", "majority", "all", "soft", "unanimous"])
@pytest.mark.parametrize("uncertain", ["ignore", "soft"])
@pytest.mark.parametrize("uncertainty", [0.0, 0.25])
def test_the_ceiling_is_the_auroc_over_all_that_readers_may_say(rule, uncertain, uncertainty):
    labels = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 7)
    options = {"sensitivity": 0.7, "specificity": 0.9, "uncertainty": uncertainty, "rule": rule}
    read = SimulatedReaders(Truth(labels), count=3, uncertain=uncertain, **options)
    for k in range(2):
        positive, negative = [0.0, 0.0], [0.0, 0.0]
        for answers in itertools.product((0.0, 1.0, -1.0), repeat=3):
            merged = merge_readers(torch.tensor(answers)[:, None], torch.zeros(3).long(), 1, rule)
            label = resolve_uncertain(merged, uncertain).item()
            for value in (0, 1):
                yes = 0.7 if value else 0.1
                each = {1.0: (1 - uncertainty) * yes, 0.0: (1 - uncertainty) * (1 - yes), -1.0: uncertainty}
                chance = (labels[:, k] == value).double().mean().item()
                for answer in answers:
                    chance *= each[answer]
                if label == label:
                    positive[value] += chance * label
                    negative[value] += chance * (1 - label)
        right = positive[1] * negative[0] + (positive[0] * negative[0] + positive[1] * negative[1]) / 2
        assert read.ceiling[k].item() == pytest.approx(right / (sum(positive) * sum(negative)))


def test_the_truth_scores_the_ceiling_on_many_images():
    data = Truth(truth(40_000), drawn=False)
    read = SimulatedReaders(data, sensitivity=0.6, specificity=0.9)
    scored = per_label_metrics(data.concept_labels, read.concept_labels).auroc
    assert (read.ceiling < 0.9).all() and (scored - read.ceiling).abs().max() < 0.01


def test_a_finding_seen_in_error_gets_a_box_of_another_image():
    data = Truth(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    read = SimulatedReaders(data, sensitivity=1.0, specificity=0.0, box_jitter=0.0, count=1)
    assert read.concept_labels.eq(1).all()
    other = read.load_item(1)
    assert torch.equal(other.boxes.xyxy, data.all_boxes.xyxy) and other.boxes.concept.tolist() == [
        0
    ]  # nobody has edema


def test_edges_move_by_a_fraction_of_the_side_they_end():
    data = Truth(torch.ones(4000, 2))
    read = SimulatedReaders(data, sensitivity=1.0, box_jitter=0.1, count=1)
    moved = read.all_boxes.xyxy - data.all_boxes.xyxy
    assert (moved.std(dim=0) - 0.1 * 0.2).abs().max() < 0.001 and moved.mean(dim=0).abs().max() < 0.002


def test_boxes_are_drawn_by_those_who_call_of_what_is_merged():
    data = Truth(torch.ones(300, 2))
    read = SimulatedReaders(data, sensitivity=0.5, rule="all", box_jitter=0.1)
    for index in range(300):
        item, counts = read.load_item(index), (read.readings[index] == 1).sum(dim=0)
        expected = [int(count) if label == 1 else 0 for count, label in zip(counts, item.concepts, strict=True)]
        assert torch.bincount(item.boxes.concept, minlength=2).tolist() == expected


def test_what_is_unknown_or_undrawn_stays_so():
    read = SimulatedReaders(Truth(torch.tensor([[1.0, nan], [nan, 0.0]]), drawn=False), specificity=0.0)
    assert torch.equal(read.concept_labels.isnan(), torch.tensor([[False, True], [True, False]]))
    assert read.load_item(0).boxes is None and read.all_boxes is None


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (torch.tensor([[0.5, 1.0]]), {}, "simulated readers need true labels"),
        (torch.ones(1, 2), {"count": 0}, "`count` must be at least 1 reader, got 0"),
        (torch.ones(1, 2), {"sensitivity": 1.2}, "`sensitivity` must be"),
        (torch.ones(1, 2), {"sensitivity": {"Nodule": 0.5}}, r"`sensitivity` has no number for \['Edema'\]"),
        (torch.ones(1, 2), {"specificity": {"Nodul": 0.5}}, "unknown concept 'Nodul'"),
        (torch.ones(1, 2), {"rule": "some"}, "unknown `readers` 'some'"),
        (torch.ones(1, 2), {"box_jitter": -1}, "`box_jitter` must be"),
    ],
)
def test_impossible_readers_are_refused_with_the_reason(labels, options, message):
    with pytest.raises(ValueError, match=message):
        SimulatedReaders(Truth(labels), **options)
