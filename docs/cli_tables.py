"""Writes the tables of options into the command line's page from the code: `python docs/cli_tables.py`.

A test compares `docs/cli.md` with what this file makes, so the tables cannot go stale.
"""

import argparse
import re
from pathlib import Path

from conceptcam.cli.main import build_parser

PAGE = Path(__file__).parent / "cli.md"


def with_tables(page: str) -> str:
    """The page with a new table between each pair of markers."""
    commands = next(one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction)).choices

    def table(found: re.Match[str]) -> str:
        return f"<!-- options of {found[1]} -->\n\n{option_table(commands[found[1]])}\n\n<!-- end of options -->"

    return re.sub(r"<!-- options of (\w+) -->.*?<!-- end of options -->", table, page, flags=re.DOTALL)


def option_table(parser: argparse.ArgumentParser) -> str:
    """The flags of a command as a table."""
    rows = []
    for action in parser._actions:
        if action.option_strings and action.dest not in ("help", "verbose"):
            name = f"--{action.dest.replace('_', '-')}"
            value = action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar or ())
            known = ", ".join(f"`{one}`" for one in action.choices or ())
            text, _, default = (action.help or "").partition(" (default: ")
            text = text.replace("|", "\\|") + (f": {known}" if known else "")
            dots = " ..." if action.nargs == "+" else ""
            both = "`, `" + action.option_strings[1] if isinstance(action, argparse.BooleanOptionalAction) else ""
            rows.append(
                f"| `{name}{f' {value}' if value else ''}{dots}{both}` | {text} | {default.removesuffix(')')} |"
            )
    return "\n".join(["| option | meaning | default |", "|---|---|---|", *rows])


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
