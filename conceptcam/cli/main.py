"""The command line: `conceptcam COMMAND`."""

import argparse
import contextlib
import importlib
import inspect
import io
import logging
import sys
from collections.abc import Sequence

from conceptcam._version import __version__
from conceptcam.cli.errors import USER_ERRORS, processes, sentence, tell

COMMANDS = ("demo", "train", "evaluate", "explain", "predict", "models", "verify", "convert")
"""Each has a file here of its name: its manual, EXAMPLES, `add_arguments(parser)` and `run(options)`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, or 2 after an error that the user can mend, told in one sentence."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(message)s")
    try:
        options.run(options)
    except (*USER_ERRORS, RuntimeError) as error:
        if options.verbose or not tell(sentence(error), head=f"conceptcam {options.command}: "):
            raise
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def build_parser(names: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of all commands; those among `names` have their flags, which some take a second to import."""
    parser = argparse.ArgumentParser(
        prog="conceptcam",
        description="Concept-bottleneck models for (medical) images: which findings, where, and what each contributes.",
        epilog="`conceptcam COMMAND --help` explains a command. Exit codes: 0 done, 2 something to be mended by you.",
    )
    parser.add_argument("--version", action="version", version=f"conceptcam {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        command = importlib.import_module(f"conceptcam.cli.{name}")
        summary, manual = inspect.cleandoc(command.__doc__ or "").split("\n\n", maxsplit=1)
        own = commands.add_parser(
            name, help=summary.rstrip("."), description=manual, epilog=f"examples:\n{command.EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        own.set_defaults(run=command.run)
        if name in names:
            command.add_arguments(own)
        own.add_argument("-v", "--verbose", action="store_true", help="log what happens, and show tracebacks")
    return parser


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options; one process alone prints what is wrong with them."""
    parser = build_parser([name for name in arguments if name in COMMANDS][:1])
    if processes() == 1:
        return parser.parse_args(arguments)
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return parser.parse_args(arguments)
    except SystemExit as end:
        if end.code:
            tell(told.getvalue().rstrip())
        raise


if __name__ == "__main__":
    sys.exit(main())
