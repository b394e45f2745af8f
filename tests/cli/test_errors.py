"""Errors and log lines, as a user of the command line reads them."""

import argparse
import errno
import logging

import pytest

from conceptcam.cli.errors import FlagFormatter, in_flags, sentence, tell

NAMES = {"layer_decay", "resume", "weights", "seed", "invalid_boxes", "pretrained", "uncertain", "no_augment"}


@pytest.mark.parametrize(
    ("python", "flags"),
    [
        ("set `seed=3` or `layer_decay=0.75`", "set --seed 3 or --layer-decay 0.75"),
        ("Correct them, or pass invalid_boxes='skip' to leave them.", "Correct them, or add --invalid-boxes skip to"),
        ("write null, or pass uncertain='ignore'", "write null, or leave --uncertain out"),
        ("give either `pretrained=True` or `weights`", "give either --pretrained or --weights"),
        ("get it there and pass `weights=` with its path", "get it there and add --weights with its path"),
        ("`no_augment` was False and is True", "--no-augment was False and is True"),
        ("continue with `fit(..., resume=True)`, or", "continue with --resume, or"),
        ("choose another `checkpoint_dir` or another folder", "choose another --out or another --out"),
        ("pass `token=` of an account", "set HF_TOKEN in the environment to that of an account"),
    ],
)  # fmt: skip
def test_words_of_python_become_flags(python, flags):
    assert flags in in_flags(python, NAMES)


@pytest.mark.parametrize("text", ["no file runs/seed=3/a.png", "3 of 4 `images` lack an id", "the weights do not fit"])
def test_what_only_looks_like_an_option_stays_as_it_is(text):
    assert in_flags(text, NAMES) == text


def test_log_lines_speak_of_flags_too():
    record = logging.LogRecord("x", logging.WARNING, "", 0, "stop earlier (`patience`), or set `seed=%d`", (3,), None)
    assert FlagFormatter(NAMES).format(record) == "WARNING stop earlier (fewer --epochs), or set --seed 3"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file", "a.json"), "there is no a.json; is the path right"),
        (PermissionError(errno.EACCES, "Permission denied", "a.json"), "a.json may not be read or written by you"),
        (OSError(errno.ENOSPC, "No space left on device", "a.pt"), "no room left on the disk to write a.pt; make room"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "a"), "Too many levels of symbolic links: a"),
        (OSError("the checkpoint is whole"), "the checkpoint is whole"),
        (RuntimeError("a worker of the data loader died, with workers=2"), "died, with --num-workers 2"),
    ],
)
def test_a_users_error_is_a_sentence_without_system_numbers(error, said):
    told = sentence(error, argparse.Namespace(command="train", workers=2))
    assert said in told and "Errno" not in told


def test_a_defect_is_no_sentence_and_told_by_its_traceback_alone():
    assert sentence(RuntimeError("shapes differ"), argparse.Namespace()) == ""
    assert not tell("")
