"""Errors, as a user of the command line reads them."""

import argparse
import errno
import time

import pytest

from conceptcam.cli.errors import sentence, tell
from conceptcam.cli.inputs import output_folder


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
