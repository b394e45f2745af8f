"""Names of files that are written, and JSON that is read."""

import pytest

from conceptcam._files import file_names, parse_json


def test_files_are_called_as_they_are_where_that_is_unique():
    assert file_names(["a/x.png", "b/y.jpg"]) == ["x", "y"]
    assert file_names(["a/x.png", "/b/x.png"]) == ["a-x", "b-x"]


@pytest.mark.parametrize(
    "paths",
    [
        ["a/b.png", "a-b.png", "q.png", "q.jpg", "Q.png", "q/q.png"],
        ["a.png", "a.png", "a.png"],
        ["/".join(["1." + "9" * 62] * 4 + ["x.png"]), "/".join(["1." + "9" * 62] * 4 + ["y.png"]), "x.png", "y.png"],
        ["x" * 251 + ".png", "x" * 250 + ".png", "\u6c17" * 80 + ".png"],
    ],
)
def test_names_of_files_are_short_and_no_two_are_alike(paths):
    names = file_names(paths)
    assert len({name.casefold() for name in names}) == len(paths)
    assert all(0 < len(name.encode()) <= 110 and "/" not in name for name in names)
    assert file_names(paths) == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "it is no JSON: Expecting"),
        (b"\xff\xff", "it is no JSON: 'utf-8' codec"),
        ("9" * 5000, "it is no JSON: Exceeds the limit"),
        ("[" * 10**6, "it is nested too deeply"),
        ('{"a": {"b": 1, "b": 2}}', r"it holds a name twice in one object \['b'\]; keep one of them"),
    ],
)
def test_text_that_is_no_json_is_refused_in_a_sentence(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text, "it")
    assert parse_json('{"a": [1, null]}', "it") == {"a": [1, None]}
