"""Imports point only downward: the order of rooms of DESIGN.md, kept true by reading the sources."""

import ast
import importlib
import io
import tokenize
from collections import Counter
from pathlib import Path

import pytest

import conceptcam

PACKAGE = Path(conceptcam.__file__).parent
LAYERS = (
    {"_version", "_checks", "_files", "_display", "_lazy"},
    {"config"},
    {"hub"},
    {"data"},
    {"losses", "metrics", "backbones"},
    {"model"},
    {"analysis"},
    {"training"},
    {"runs"},
    {"cli"},
    {"__main__"},
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
MODEL_FREE = ("losses", "metrics", "data")


def room(module: str) -> str:
    """The file or folder directly in the package that a module belongs to: `losses` for `conceptcam.losses.boxes`."""
    return module.split(".")[1]


def sources() -> dict[str, Path]:
    """Every module of the package by its name, but for the package's own `__init__`."""
    files = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in files]
    return dict(zip([name.removesuffix(".__init__") for name in names], files, strict=True))


def imported_modules(path: Path) -> list[str]:
    """Every module a file imports, at its top, inside functions and for type checkers alike."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            # `from conceptcam.training import distributed` imports a module, not a name of the room.
            found += [_module(node.module or "", alias.name) for alias in node.names]
    return [name for name in found if name.split(".")[0] == "conceptcam"]


def _module(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent == "conceptcam" or f"{parent}.{name}" in MODULES else parent


MODULES: dict[str, Path] = {}
MODULES |= sources()


def test_the_table_of_layers_names_what_is_there_alone():
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert there - {"__init__"} == set(LAYER)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_file_imports_from_its_room_and_lower_layers_alone(module):
    for other in map(room, imported_modules(MODULES[module])):
        allowed = (
            other == room(module) or LAYER[other] < LAYER[room(module)] or LAYER[other] == 0 == LAYER[room(module)]
        )
        assert allowed, f"{module} imports {other}, which is not below it"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_names_are_imported_from_the_module_that_defines_them(module):
    for imported in imported_modules(MODULES[module]):
        assert imported != "conceptcam", f"{module} imports from the package itself"


def reachable(start: str) -> set[str]:
    """All of our modules that importing some module can lead to."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in MODULES and name not in found:
            found.add(name)
            waiting += imported_modules(MODULES[name])
    return found


@pytest.mark.parametrize("module", sorted(name for name in MODULES if room(name) in MODEL_FREE))
def test_losses_metrics_and_data_never_see_a_model(module):
    assert not {room(name) for name in reachable(module)} & {"model", "backbones", "analysis", "training"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_files_do_not_import_in_a_circle(module):
    # A room's `__init__` imports its files, and some files register themselves in one: not a circle of ideas.
    others = {name for name in imported_modules(MODULES[module]) if name in MODULES and not is_room(name)}
    assert is_room(module) or module not in {name for first in others for name in reachable(first)}


def is_room(module: str) -> bool:
    return MODULES[module].name == "__init__.py"


def test_the_reader_of_imports_sees_them_wherever_they_are(tmp_path):
    source = "import conceptcam.cli\ndef f():\n    from conceptcam.model.heads import TaskHead\n    import torch\n"
    (tmp_path / "a.py").write_text(source + "from conceptcam.training import distributed\n")
    expected = ["conceptcam.cli", "conceptcam.model.heads", "conceptcam.training.distributed"]
    assert sorted(imported_modules(tmp_path / "a.py")) == expected


def test_the_top_of_the_package_has_at_most_16_entries():
    hidden = {"__init__.py", "__main__.py", "py.typed", "__pycache__"}
    assert len({path.name for path in PACKAGE.iterdir()} - hidden) <= 16


@pytest.mark.parametrize("name", sorted(name for name in MODULES if is_room(name)))
def test_no_name_of_a_room_is_that_of_a_file_in_it(name):
    # Importing the file would put the module in the name's place.
    files = {path.stem for path in MODULES[name].parent.iterdir()}
    assert not files & set(getattr(importlib.import_module(name), "__all__", ()))


def code_lines(source: str) -> int:
    """Lines of code, without docstrings, comments and blank lines."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.string.strip() and token.type not in (tokenize.COMMENT, tokenize.ENDMARKER):
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def test_code_lines_are_counted_without_words_about_them():
    assert code_lines('"""A\nfile."""\n\nx = (\n    1,  # one\n)\n# end\ndef f():\n    """Nothing."""\n') == 4


def test_no_small_file_serves_one_other_file_alone():
    def outside(name: str) -> bool:  # a drawing has many small parts, and each command is a file
        return not name.startswith(("conceptcam.data.phantom.", "conceptcam.cli."))

    files = [name for name in MODULES if not is_room(name)]
    importers = Counter(other for name in MODULES for other in set(imported_modules(MODULES[name])) if other != name)
    # A file whose names a room hands on serves users too.
    importers.update(other for name in MODULES if is_room(name) for other in set(imported_modules(MODULES[name])))
    small = [name for name in files if outside(name) and code_lines(MODULES[name].read_text(encoding="utf-8")) < 60]
    assert [name for name in small if importers[name] == 1] == []


def function_lines(source: str) -> dict[str, int]:
    """Lines of each function, without its docstring, by its name and where it begins."""
    lines = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            words = node.body[0] if ast.get_docstring(node) is not None else None
            said = words.end_lineno - words.lineno + 1 if words is not None and words.end_lineno else 0
            lines[f"{node.name}:{node.lineno}"] = (node.end_lineno or node.lineno) - node.lineno + 1 - said
    return lines


def test_function_lines_are_counted_without_the_docstring():
    assert function_lines('def f(\n    a,\n):\n    """A\n    b."""\n    return a\n') == {"f:1": 4}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_files_and_functions_are_short_enough_to_read_at_once(module):
    source = MODULES[module].read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 400
    assert {name: lines for name, lines in function_lines(source).items() if lines > 40} == {}
