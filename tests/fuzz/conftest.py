"""How many attempts each fuzz test makes, by what random numbers, and the table of how they ended."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuzz.hostile import check_sentence

SEED = 20_260_101


class Tally:
    """How the attempts on one class of things ended.

    Attributes:
        made: Attempts.
        refused: Those that ended in an error of one sentence.
        failed: Tests of the class that failed: a traceback, a wrong answer, a sentence that is none.
    """

    def __init__(self) -> None:
        self.made, self.refused, self.failed = 0, 0, 0


_TALLIES = pytest.StashKey[dict[str, Tally]]()


class Attempts:
    """The attempts of one test; counts them.

    Args:
        tally: Where they are counted.
        name: Of the test.
        many: What the option `--fuzz` multiplies.
    """

    def __init__(self, tally: Tally, name: str, many: int) -> None:
        self.tally, self.name, self.many = tally, name, many

    def __call__(self, count: int) -> Iterator[random.Random]:
        """A source of random numbers for each attempt: so many, times the option `--fuzz`."""
        for number in range(count * self.many):
            self.tally.made += 1
            yield random.Random(f"{SEED} {self.name} {number}")

    def refused(self, error: Exception, longest: int = 1500) -> None:
        """An attempt ended in an error, which must be a sentence."""
        check_sentence(error, longest)
        self.tally.refused += 1

    def add(self, made: int, refused: int = 0) -> None:
        """Count attempts that a program of its own has made."""
        self.tally.made += made
        self.tally.refused += refused


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "attacks(what): the class of things that a fuzz test attacks")


@pytest.fixture
def attempts(request: pytest.FixtureRequest) -> Callable[[int], Iterator[random.Random]]:
    """The attempts of a test, which says by the mark `attacks` on what."""
    mark = request.node.get_closest_marker("attacks")
    tallies = request.config.stash.setdefault(_TALLIES, {})
    return Attempts(tallies.setdefault(mark.args[0], Tally()), request.node.name, request.config.getoption("--fuzz"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    mark = item.get_closest_marker("attacks")
    if mark is not None and report.failed:
        item.config.stash.setdefault(_TALLIES, {}).setdefault(mark.args[0], Tally()).failed += 1
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write the table that SECURITY.md has, if the option `--fuzz-table` names a file."""
    place = config.getoption("--fuzz-table")
    if place is not None and config.getoption("numprocesses", None):
        terminalreporter.write_line("No table: processes of xdist count for themselves; leave out -n")
    elif place is not None:
        rows = [["what was attacked", "attempts", "refused in a sentence", "right all the same", "tests that failed"]]
        rows += [
            [what, f"{one.made:,}", f"{one.refused:,}", f"{one.made - one.refused:,}", str(one.failed)]
            for what, one in config.stash.get(_TALLIES, {}).items()
        ]
        total = [sum(int(row[column].replace(",", "")) for row in rows[1:]) for column in range(1, 5)]
        rows.append(["all", *(f"{number:,}" for number in total)])
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        Path(place).write_text("\n".join([lines[0], "|---|---|---|---|---|", *lines[1:]]) + "\n", encoding="utf-8")
        terminalreporter.write_line(f"Written to {place}")
