"""The command line: `conceptcam COMMAND`."""

import argparse
import contextlib
import importlib
import logging
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import NoReturn

from conceptcam._version import __version__
from conceptcam.cli.errors import USER_ERRORS, processes, sentence, tell

COMMANDS = (
    "demo",
    "inspect",
    "train",
    "evaluate",
    "compare",
    "explain",
    "atlas",
    "predict",
    "models",
    "verify",
    "convert",
    "export",
)
"""Each has a file here of its name. Its docstring is its manual; it has `add_arguments(parser)` and `run(options)`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, or 2 after an error that the user can mend, printed as one sentence.

    `inspect` has the exit code 1 where it finds faults.
    """
    typed = sys.argv[1:] if arguments is None else arguments
    options = build_parser([name for name in typed if name in COMMANDS][:1]).parse_args(typed)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(message)s")
    head = f"conceptcam {options.command}: "
    try:
        with _terminable():
            try:
                code: int | None = options.run(options)
            except (*USER_ERRORS, RuntimeError) as error:
                if options.verbose or not tell(sentence(error), head=head):
                    raise
                return 2
    except KeyboardInterrupt as stop:
        tell(f"stopped{_how_to_go_on(options, typed)}", head=head)
        return 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)
    return code or 0


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as it comes from a cluster or a service that stops; it ends a command as Ctrl-C does."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Within it, SIGTERM raises `_Terminated`."""
    # A process that waits for another in torch's own code raises when that has gone, or torchrun kills it after 30 s.
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _how_to_go_on(options: argparse.Namespace, typed: Sequence[str]) -> str:
    """What to type to go on with a run that was stopped; empty if there is none."""
    folder = getattr(options, "out", None)
    if options.command not in ("demo", "train") or folder is None or not (folder / "run.json").is_file():
        return ""
    given = any(text == "--out" or text.startswith("--out=") for text in typed)
    again = [*typed, *([] if given else ["--out", str(folder)]), *([] if options.resume else ["--resume"])]
    if processes() > 1:
        return f"; go on with as many processes and: torchrun ... -m {shlex.join(['conceptcam', *again])}"
    return f"; go on with: {shlex.join(['conceptcam', *again])}"


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint about options is written by one process alone."""

    def error(self, message: str) -> NoReturn:
        tell(f"{self.format_usage()}{self.prog}: error: {message}")
        sys.exit(2)


def build_parser(names: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of all commands; those among `names` have their flags, which some take a second to import."""
    parser = _Parser(
        prog="conceptcam",
        description="Concept-bottleneck models for (medical) images: which findings, where, and what each contributes.",
        epilog="`conceptcam COMMAND --help` explains a command. Exit codes: 0 done, 1 faults found by inspect, "
        "2 something to be mended by you.",
    )
    parser.add_argument("--version", action="version", version=f"conceptcam {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        command = importlib.import_module(f"conceptcam.cli.{name}")
        summary, manual = (command.__doc__ or "").split("\n\n", maxsplit=1)
        description, examples = manual.split("\n\nExamples:\n")
        own = commands.add_parser(
            name, help=summary.rstrip("."), description=description, epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        own.set_defaults(run=command.run)
        if name in names:
            command.add_arguments(own)
        own.add_argument("-v", "--verbose", action="store_true", help="log what happens, and show tracebacks")
    return parser
