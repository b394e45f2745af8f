"""Opinions of several readers become one label by the rule that is stated, as a loop over images would make it."""

import math
from statistics import mean

import pytest
import torch
from hypothesis import given, settings, strategies as st

from conceptcam.data.merging import ReaderRule, merge_readers, merge_rows
from conceptcam.data.table_file import Table

OPINIONS = st.lists(st.sampled_from([0.0, 1.0, -1.0, math.nan]), min_size=1, max_size=5)
RULES: tuple[ReaderRule, ...] = ("any", "majority", "all", "soft", "unanimous")


def slow_merge(opinions: list[float], rule: ReaderRule) -> float:
    certain = [one for one in opinions if one in (0, 1)]
    if not certain:
        return -1 if -1 in opinions else math.nan
    present = mean(certain)
    if rule == "any":
        return float(1 in certain)
    if rule == "all":
        return float(0 not in certain)
    if rule == "soft":
        return present
    if rule == "majority":
        return -1 if present == 0.5 else float(present > 0.5)
    return present if present in (0, 1) else -1


@settings(max_examples=60, deadline=None)
@given(st.lists(OPINIONS, min_size=1, max_size=6), st.sampled_from(RULES))
def test_each_rule_does_what_a_loop_over_images_does(images: list[list[float]], rule: ReaderRule):
    labels = torch.tensor([[one] for opinions in images for one in opinions])
    index = torch.tensor([image for image, opinions in enumerate(images) for _ in opinions])
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))
    merged = merge_readers(labels[order], index[order], len(images), rule)[:, 0]
    expected = torch.tensor([float(slow_merge(opinions, rule)) for opinions in images])
    assert torch.allclose(merged, expected, equal_nan=True)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="unknown `readers` 'most'; known"):
        merge_readers(torch.zeros(1, 1), torch.zeros(1, dtype=torch.long), 1, "most")  # type: ignore[arg-type]


def test_rows_of_an_image_become_one_and_keep_what_they_agree_on():
    columns = {
        "image": ["b", "a", "b", "b"], "reader": ["R1", "R1", "R2", "R3"], "sex": ["F", "M", "F", ""],
        "veil": ["1", "0", "0", "1"],
    }  # fmt: skip
    table = merge_rows(Table("t.csv", columns, [2, 3, 4, 5]), "image", ["veil"], "majority")
    assert dict(table.columns) == {"image": ["b", "a"], "reader": ["", "R1"], "sex": ["F", "M"], "veil": ["1", "0"]}
    assert list(table.lines) == [2, 3]
