"""Errors, as a user of the command line reads them."""

import argparse
import ast
import errno
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import conceptcam
from conceptcam.cli.errors import sentence, tell
from conceptcam.cli.inputs import output_folder
from conceptcam.cli.main import build_parser


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file", "a.json"), "there is no a.json; is the path right"),
        (PermissionError(errno.EACCES, "Permission denied", "a.json"), "a.json may not be read or written by you"),
        (OSError(errno.ENOSPC, "No space left on device", "a.pt"), "no room left on the disk to write a.pt; make room"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "a"), "Too many levels of symbolic links: a"),
        (OSError("the checkpoint is whole"), "the checkpoint is whole"),
        (RuntimeError("a worker of the data loader died, with 2 workers"), "a worker of the data loader died"),
    ],
)
def test_a_users_error_is_a_sentence_without_system_numbers(error, said):
    told = sentence(error)
    assert said in told and "Errno" not in told


def test_a_defect_is_no_sentence_and_told_by_its_traceback_alone():
    assert sentence(RuntimeError("shapes differ")) == ""
    assert not tell("")


def test_two_starts_in_one_second_take_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20260101-000000")
    given = [argparse.Namespace(command="train", out=None) for _ in range(3)]
    names = [str(output_folder(options)) for options in given]  # neither of which has written anything yet
    assert names == [f"runs/train-20260101-000000{end}" for end in ("", "-2", "-3")]


def flags() -> set[str]:
    """Names of options, as Python has them, that are spelled otherwise on the command line."""
    (commands,) = (one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction))
    named = {one.dest for parser in commands.choices.values() for one in parser._actions if one.option_strings}
    return {name for name in named if "_" in name} | {"resume"}


def messages(path: Path) -> Iterator[str]:
    """Texts of a source file that are no docstrings; what is filled in is left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    parts |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


def test_a_message_that_names_an_option_names_its_flag_too():
    names, package = flags(), Path(conceptcam.__file__).parent
    lacking = [
        f"{path.name}: {text}"
        for path in sorted(package.rglob("*.py"))
        for text in messages(path)
        for name in re.findall(r"`(\w+)(?:`|=)", text)
        if name in names and not re.search(f"--(no-)?{name.replace('_', '-')}", text)
    ]
    assert lacking == []
