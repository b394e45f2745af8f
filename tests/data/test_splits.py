"""Parts and folds keep patients whole, are alike in rare labels, and come back from their file as they were."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.data.splits import (
    ConceptSubset,
    divide_dataset,
    load_split,
    make_folds,
    save_split,
    shared_patients,
    split_by_patient,
)


def draw_labels(count: int, prevalences: list[float], seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return (torch.rand(count, len(prevalences), generator=random) < torch.tensor(prevalences)).float()


def draw_patients(count: int, patients: int, seed: int = 0) -> list[str]:
    return [f"p{number}" for number in np.random.default_rng(seed).integers(0, patients, count)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 5), st.integers(20, 60))
def test_no_patient_is_in_two_folds(seed: int, k: int, patients: int):
    ids = draw_patients(120, patients, seed)
    folds = make_folds(draw_labels(120, [0.3, 0.05], seed), k, groups=ids, seed=seed)
    assert shared_patients(ids, folds.tolist()) == []
    assert folds.shape == (120,) and folds.unique().tolist() == list(range(k))


@pytest.mark.parametrize("seed", range(5))
def test_each_fold_has_its_fifth_of_every_rare_label(seed: int):
    labels = draw_labels(500, [0.02, 0.05, 0.2, 0.5, 0.97], seed)
    folds = make_folds(labels, 5, seed=seed)
    for side in (labels, 1 - labels):
        for column in side.T:
            counts = torch.bincount(folds, weights=column, minlength=5)
            assert counts.max() - counts.min() <= 3, counts
    assert torch.bincount(folds).sub(100).abs().max() <= 3


@pytest.mark.parametrize("seed", range(5))
def test_folds_by_patient_balance_labels_better_than_chance(seed: int):
    labels, ids = draw_labels(400, [0.04, 0.1, 0.3], seed), draw_patients(400, 130, seed)

    def unevenness(folds: Tensor) -> float:
        counts = torch.stack([labels[folds == fold].sum(dim=0) for fold in range(5)])
        return float((counts.amax(dim=0) - counts.amin(dim=0)).sum())

    order = {patient: index for index, patient in enumerate(dict.fromkeys(ids))}
    random = torch.randint(0, 5, (len(order),), generator=torch.Generator().manual_seed(seed))
    by_chance = torch.stack([random[order[patient]] for patient in ids])
    assert unevenness(make_folds(labels, 5, groups=ids, seed=seed)) <= 6 < unevenness(by_chance)


def test_two_images_of_a_label_are_shared_by_two_parts():
    labels = torch.zeros(50, 1)
    labels[[3, 40]] = 1
    for seed in range(10):
        parts = split_by_patient(labels, seed=seed)
        assert {parts[3], parts[40]} == {"train", "val"}


def test_unknown_labels_count_on_neither_side():
    known = draw_labels(60, [0.2])
    extra = torch.full((60, 1), torch.nan)
    extra[:2] = torch.tensor([[1.0], [1.0]])
    folds = make_folds(torch.cat([known, extra], dim=1), 2)
    assert folds[0] != folds[1]


def test_a_split_has_the_fractions_asked_for():
    parts = split_by_patient(draw_labels(200, [0.1, 0.4]), fractions={"train": 0.7, "val": 0.1, "test": 0.2})
    assert [abs(parts.count(name) - size) <= 2 for name, size in (("train", 140), ("val", 20), ("test", 40))] == [
        True
    ] * 3


def test_the_seed_alone_decides():
    labels, ids = draw_labels(100, [0.1, 0.5]), draw_patients(100, 40)
    first = make_folds(labels, 4, ids, seed=3)
    np.random.seed(99)
    torch.manual_seed(99)
    assert first.equal(make_folds(labels, 4, ids, seed=3))
    assert not first.equal(make_folds(labels, 4, ids, seed=4))


def test_an_image_without_patient_is_a_patient_of_its_own():
    ids: list[object] = ["", None, float("nan"), "a", "a", ""]
    folds = make_folds(torch.zeros(6, 0), 5, groups=ids)
    assert folds[3] == folds[4] and len(set(folds.tolist())) == 5
    assert shared_patients(ids, [0, 1, 2, 3, 4, 5]) == ["a"]


def test_no_labels_still_give_folds_of_one_size():
    assert torch.bincount(make_folds(torch.zeros(11, 0), 3)).tolist() in ([4, 4, 3], [4, 3, 4], [3, 4, 4])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: make_folds(torch.zeros(4, 1), 1), "needs at least 2 folds, got k=1"),
        (lambda: make_folds(torch.zeros(4), 2), "must have the shape (N, L), got (4,)"),
        (lambda: make_folds(torch.zeros(4, 1), 3, groups="aabb"), "cannot divide 2 patients or groups into 3 parts"),
        (lambda: make_folds(torch.zeros(4, 1), 2, groups=["a"]), "got 1 for 4 images"),
        (lambda: split_by_patient(torch.zeros(4, 1), fractions={"train": 0.9, "val": 0.2}), "sum to 1"),
        (lambda: split_by_patient(torch.zeros(4, 1), fractions={"train": 1.0, "val": 0.0}), "above 0"),
    ],
)
def test_what_cannot_be_divided_is_said(call, said: str):
    with pytest.raises(ValueError) as caught:
        call()
    assert said in str(caught.value)


def test_a_hundred_thousand_images_are_divided_in_seconds():
    labels, ids = draw_labels(100_000, [0.01, 0.05, 0.1, 0.3]), draw_patients(100_000, 30_000)
    assert torch.bincount(make_folds(labels, 5, ids)).sub(20_000).abs().max() < 200


def test_a_saved_split_comes_back_in_any_order(tmp_path: Path):
    names, parts = ["a.png", "b, c.png", "d ä.png"], ["train", "val", "train"]
    save_split(tmp_path / "split.csv", names, parts)
    assert load_split(tmp_path / "split.csv", names) == parts
    assert load_split(tmp_path / "split.csv", names[::-1]) == parts[::-1]
    save_split(tmp_path / "folds.csv", names, torch.tensor([0, 2, 1]))
    assert load_split(tmp_path / "folds.csv", names) == ["0", "2", "1"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,split\na,train\n", "has no part for images of the data: 'b'"),
        ("image,split\na,train\nb,val\nc,val\n", "has images that the data do not have: 'c'"),
        ("image,split\na,train\nb,val\na,val\n", "names images more than once: 'a'"),
        ("file,part\na,train\n", "is no split: expected CSV with the columns ['image', 'split'], got ['file', 'part']"),
        ("", "is no split"),
    ],
)
def test_a_split_of_other_images_is_refused(tmp_path: Path, text: str, said: str):
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(ValueError) as caught:
        load_split(tmp_path / "split.csv", ["a", "b"])
    assert said in str(caught.value)


def test_repeated_names_cannot_be_saved(tmp_path: Path):
    with pytest.raises(ValueError, match="names images more than once: 'a'"):
        save_split(tmp_path / "split.csv", ["a", "a"], ["train", "val"])
    with pytest.raises(ValueError, match="got 1 parts for 2 images"):
        save_split(tmp_path / "split.csv", ["a", "b"], ["train"])


class Numbers(ConceptDataset):
    concepts = ("even",)
    tasks = ()

    def __init__(self) -> None:
        self.concept_labels = (torch.arange(6) % 2 == 0).float()[:, None]
        self.task_labels = torch.zeros(6, 0)

    def load_item(self, index: int) -> ConceptItem:
        image = torch.full((3, 2, 2), index, dtype=torch.uint8)
        return ConceptItem(image, self.concept_labels[index], self.task_labels[index], None, str(index))


def test_a_subset_gives_the_items_of_its_rows_as_its_own():
    part = ConceptSubset(Numbers(), [4, 1])
    assert len(part) == 2 and [part[0].name, part[1].name, part[-1].name] == ["4", "1", "1"]
    assert part.concept_labels.tolist() == [[1.0], [0.0]]


def test_a_divided_data_set_has_each_image_in_one_part():
    parts = divide_dataset(Numbers(), ["train", "val", "train", "test", "val", "train"])
    assert {name: list(part.names) for name, part in parts.items()} == {
        "train": ["0", "2", "5"], "val": ["1", "4"], "test": ["3"],
    }  # fmt: skip
    assert list(divide_dataset(Numbers(), torch.arange(6) % 2)) == [0, 1]
    with pytest.raises(ValueError, match="got 2 for 6 images"):
        divide_dataset(Numbers(), [0, 1])


def test_a_subset_refuses_a_mask():
    with pytest.raises(ValueError, match="got a mask"):
        ConceptSubset(Numbers(), torch.ones(6, dtype=torch.bool))
