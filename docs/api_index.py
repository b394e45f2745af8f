"""Writes the front page of the API from the code: `python docs/api_index.py`.

A test compares `docs/api/index.md` with what this file makes, so the page cannot go stale.
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import conceptcam

API = Path(__file__).parent / "api"
PAGES = (
    *("config", "hub", "data", "phantom", "losses", "metrics"),
    *("backbones", "model", "analysis", "training", "runs"),
)
"""One page per room, in the order in which rooms import each other; `phantom` is a part of `data`."""

INTRODUCTION = """\
# API

<!-- Written by `python docs/api_index.py` from the code; do not edit. -->

A page for each room of the package, in the order in which rooms import each other: each uses only rooms above it.
`import conceptcam` alone loads nothing; a name is loaded when it is first used.

| room | what it is for |
|---|---|
{rooms}
| [`cli`](../cli.md) | The command line: `conceptcam COMMAND`. |

A name without a dot is imported from `conceptcam`, `losses.focal_loss` from `conceptcam.losses`.
"""


def index_page() -> str:
    """The text of `docs/api/index.md`."""
    rooms = "\n".join(f"| [`{room_name(page)}`]({page}.md) | {purpose(page)} |" for page in PAGES)
    return INTRODUCTION.format(rooms=rooms) + "".join(_section(page) for page in PAGES)


def room_name(page: str) -> str:
    """The room of a page as it is imported, without the package's name."""
    return "data.phantom" if page == "phantom" else page


def purpose(page: str) -> str:
    """First sentence of the room's docstring."""
    return _first_sentence(importlib.import_module(f"conceptcam.{room_name(page)}"))


def documented_modules(page: str) -> dict[str, list[str]]:
    """The modules that a page shows, in its order -> which of their names; empty for all."""
    text = (API / f"{page}.md").read_text(encoding="utf-8")
    sections = re.findall(r"^::: (\S+)\n((?: {4}.*\n)*)", text, flags=re.MULTILINE)
    members = re.compile(r"^ +members: \[(.*)\]$", flags=re.MULTILINE)
    return {module: re.findall(r"\w+", " ".join(members.findall(options))) for module, options in sections}


def public_names(page: str) -> dict[str, Any]:
    """What can be imported, by the shortest name -> the class or function itself; names of `conceptcam` first."""
    modules = documented_modules(page)
    items = [item for module, only in modules.items() for item in _members(module) if not only or item.__name__ in only]
    return dict(sorted([(shortest_name(item), item) for item in items], key=lambda pair: "." in pair[0]))


def shortest_name(item: Any) -> str:
    """`ConceptConfig`, `losses.focal_loss` or `data.images.load_image`: what follows `conceptcam.` in an import."""
    name, module = item.__name__, item.__module__.removeprefix("conceptcam.")
    if name in conceptcam.__all__:
        return name
    for length in range(1, module.count(".") + 1):
        room = ".".join(module.split(".")[:length])
        if name in getattr(importlib.import_module(f"conceptcam.{room}"), "__all__", ()):
            return f"{room}.{name}"
    return f"{module}.{name}"


def _members(module_name: str) -> Iterator[Any]:
    module = importlib.import_module(module_name)
    for name, item in vars(module).items():
        own = getattr(item, "__module__", None) == module_name and (inspect.isclass(item) or inspect.isfunction(item))
        if own and not name.startswith("_") and item.__doc__:
            yield item


def _section(page: str) -> str:
    rows = "\n".join(
        f"| [`{name}`][{item.__module__}.{item.__name__}] | {_first_sentence(item)} |"
        for name, item in public_names(page).items()
    )
    room = importlib.import_module(f"conceptcam.{room_name(page)}")
    constants = [name for name in getattr(room, "__all__", ()) if not callable(getattr(room, name))]
    more = f"\nConstants: {', '.join(f'`{room_name(page)}.{name}`' for name in constants)}.\n" if constants else ""
    return f"\n## {room_name(page)}\n\n| name | what it gives |\n|---|---|\n{rows}\n{more}"


def _first_sentence(item: Any) -> str:
    return (inspect.getdoc(item) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


if __name__ == "__main__":
    (API / "index.md").write_text(index_page(), encoding="utf-8")
