"""The command line: `conceptcam demo | train | evaluate | explain | models | verify | convert`."""

import argparse
import contextlib
import io
import logging
import sys
from collections.abc import Sequence

from conceptcam.cli.arguments import build_parser
from conceptcam.cli.commands import convert, evaluate, explain, models, verify
from conceptcam.cli.errors import USER_ERRORS, FlagFormatter, flag_names, processes, sentence, tell
from conceptcam.cli.training_commands import demo, train

COMMANDS = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "explain": explain,
    "models": models,
    "verify": verify,
    "convert": convert,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, or 2 after an error of the user's, which is told in one sentence."""
    options = _parsed(arguments)
    log = logging.StreamHandler()
    log.setFormatter(FlagFormatter(flag_names(options)))
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, handlers=[log])
    try:
        options.run(options, print)
    except (*USER_ERRORS, RuntimeError) as error:
        if options.verbose or not tell(sentence(error, options), head=f"conceptcam {options.command}: "):
            raise
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; what is wrong with them is told by one process."""
    parser = build_parser(COMMANDS)
    if processes() == 1:
        return parser.parse_args(arguments)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parser.parse_args(arguments)
    except SystemExit as end:
        if end.code:
            tell(said.getvalue().rstrip())
        raise


if __name__ == "__main__":
    sys.exit(main())
