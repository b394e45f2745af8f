"""Imports point only downward: the table of the design, kept true by reading the sources."""

import ast
from pathlib import Path

import pytest

import conceptcam

PACKAGE = Path(conceptcam.__file__).parent
LAYERS = [
    {"config", "outputs", "boxes", "labels", "pooling", "weights", "formats", "zoo", "card", "folders", "hub"}
    | {"published", "distributed", "storage", "pages", "sources", "devices"},
    {"backbones", "heads", "clusters", "solving", "losses", "metrics", "data", "draw"},
    {"model", "feed"},
    {"stages", "intervene", "explanation"},
    {"optimization", "history", "presets", "ranks", "resume", "frozen_parts", "run_folder"},
    {"notices", "frozen"},
    {"steps"},
    {"settings", "gathered"},
    {"fitting"},
    {"trainer", "evaluation", "conversion", "report", "export", "precision", "run_options"},
    {"runs"},
    {"demo"},
    {"training_arguments", "command_inputs", "complaints"},
    {"arguments", "commands", "training_commands"},
    {"cli"},
    {"__main__"},
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
MODEL_FREE = ("losses", "metrics", "boxes")


def unit(module: str) -> str:
    """The file or folder directly in the package that a module belongs to: `losses` for `conceptcam.losses.boxes`."""
    return module.split(".")[1]


def sources() -> list[tuple[str, Path]]:
    files = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    return [(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts), path) for path in files]


def imported_modules(path: Path) -> list[str]:
    """Every module a file imports, at its top, inside functions and for type checkers alike."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            # `from conceptcam import hub` imports a module; `from conceptcam import __version__` does not.
            found += (
                [f"conceptcam.{alias.name}" for alias in node.names if not alias.name.startswith("__")]
                if node.module == "conceptcam"
                else [node.module or ""]
            )
    return [name for name in found if name.split(".")[0] == "conceptcam"]


MODULES = sources()


@pytest.mark.parametrize("module, path", MODULES, ids=[name for name, _ in MODULES])
def test_a_file_imports_only_from_lower_layers_and_its_own_folder(module, path):
    own = unit(module)
    assert own in LAYER, f"{own} is in no row of the table: which layer is it?"
    for other in map(unit, imported_modules(path)):
        # Files of the lowest layer may use one another.
        allowed = other == own or LAYER[other] < LAYER[own] or LAYER[other] == LAYER[own] == 0
        assert allowed, f"{module} imports {other}, which is not below it"


@pytest.mark.parametrize("module, path", MODULES, ids=[name for name, _ in MODULES])
def test_names_are_imported_from_the_module_that_defines_them(module, path):
    for imported in imported_modules(path):
        assert imported != "conceptcam", f"{module} imports from the package itself"


def reachable(start: str) -> set[str]:
    """All of our modules that importing some module can lead to."""
    known = dict(MODULES) | {name.removesuffix(".__init__"): path for name, path in MODULES}
    found: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in known and name not in found:
            found.add(name)
            waiting += imported_modules(known[name])
    return found


@pytest.mark.parametrize("name", MODEL_FREE)
def test_losses_metrics_and_boxes_never_see_a_model(name):
    starts = [module for module, _ in MODULES if unit(module) == name]
    assert starts
    for start in starts:
        assert not reachable(start) & {
            "conceptcam.model",
            "conceptcam.stages",
            "conceptcam.trainer",
            "conceptcam.heads",
        }


def test_files_of_the_lowest_layer_do_not_import_in_a_circle():
    lowest = {module: imported_modules(path) for module, path in MODULES if unit(module) in LAYERS[0]}
    for module in lowest:
        assert module not in {name for first in lowest[module] for name in reachable(first)}


def test_the_reader_of_imports_sees_them_wherever_they_are(tmp_path):
    source = "import conceptcam.cli\ndef f():\n    from conceptcam.model import ConceptModel\n    import torch\n"
    (tmp_path / "a.py").write_text(source + "from conceptcam import hub, __version__\n")
    assert sorted(imported_modules(tmp_path / "a.py")) == ["conceptcam.cli", "conceptcam.hub", "conceptcam.model"]
