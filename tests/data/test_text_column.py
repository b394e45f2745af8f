"""Texts in tensors are the texts that went in."""

import pickle

import pytest
from hypothesis import given, strategies as st

from conceptcam.data.text_column import TextColumn


@given(st.lists(st.text(max_size=8), max_size=8))
def test_a_column_is_the_list_that_it_was_made_of(texts: list[str]):
    column = TextColumn(texts)
    assert list(column) == texts and len(column) == len(texts) and column == texts and texts == column
    assert [column[row] for row in range(-len(texts), len(texts))] == texts * 2
    assert column[1:] == texts[1:] and column[::-1] == texts[::-1]
    assert pickle.loads(pickle.dumps(column)) == texts


def test_a_row_that_is_not_there_is_an_error():
    for row in (2, -3):
        with pytest.raises(IndexError):
            TextColumn(["a", "b"])[row]


def test_a_file_name_that_is_no_utf8_survives():
    name = b"\xff.png".decode("utf-8", "surrogateescape")
    assert TextColumn(["a", name])[1] == name and TextColumn(["a"]) != ["b"]


def test_a_long_column_prints_a_few_of_its_texts():
    printed = repr(TextColumn([f"{number}.png" for number in range(1000)]))
    assert printed == "TextColumn of 1000 texts: '0.png', '1.png', '2.png' and 997 more"
