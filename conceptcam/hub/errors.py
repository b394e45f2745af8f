"""Errors of the Hub's client in one sentence."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

_Answer = TypeVar("_Answer")

MISSHAPEN = (TypeError, KeyError, AttributeError, AssertionError)
"""What the client raises over an answer that is JSON of another shape than the Hub's."""


def within(seconds: float, ask: Callable[[], _Answer]) -> _Answer:
    """What `ask` gives, if it gives it in time; otherwise it is left to itself.

    Raises:
        TimeoutError: If it takes longer.
    """
    answer: Future[_Answer] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # for whoever waits
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError as error:
        if answer.done():  # its own
            raise
        raise TimeoutError(f"no whole answer within {seconds:g} seconds") from error


@contextlib.contextmanager
def plain_errors(source: str) -> Iterator[None]:
    """Give what goes wrong with the Hub as one sentence about a source, in Python's own error types.

    Those of the client have several lines, and which they are depends on its version.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise ValueError(f"{source!r} is nothing here and no name on the Hub, organization/name") from error
    except (errors.HTTPError, errors.EntryNotFoundError, json.JSONDecodeError, OSError, *MISSHAPEN) as error:
        raise _plain(source, error) from error


def _plain(source: str, error: Exception) -> OSError:
    from huggingface_hub import errors

    status = _status(error)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return PermissionError(
            f"access to {source} is refused: accept its terms on its page, then pass `token=` of an account that may, "
            "or log in with it (`hf auth login`)"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(f"the Hub has no such revision: {source}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return FileNotFoundError(
            f"nothing called {source} is here, and the Hub has no such repository; a private one needs `token=`, "
            "or a login (`hf auth login`)"
        )
    if status == 401:
        return PermissionError(
            f"the Hub wants a valid `token=`, or a login (`hf auth login`), for {source}; make one in your account's "
            "settings"
        )
    if isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError) and not _tried(error):
        return FileNotFoundError(f"{source} is not wholly in the cache, and the Hub may not be asked")
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return FileNotFoundError(f"{source} lacks a file: {_line(error)}")
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, f"could not store {source} in the cache: {error.strerror}", error.filename)
    return ConnectionError(f"the Hub gave no good answer about {source}, try again later: {_line(error)}")


def _status(error: BaseException | None) -> int | None:
    """Status of the answer that lies behind an error, if there was one."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return int(response.status_code)
        error = error.__cause__
    return None


def _tried(error: BaseException) -> bool:
    """Whether the Hub was asked, and it failed."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    return error.__cause__ is not None and not isinstance(error.__cause__, OfflineModeIsEnabled)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
