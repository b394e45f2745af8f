"""What the suite demands of itself: names that can be read, and no warning of ours unseen."""

import ast
import re
import warnings
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LONGEST = 60


def names_of(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name[:5] == "test_"]


@pytest.mark.parametrize("path", sorted(TESTS.rglob("test_*.py")), ids=lambda path: path.relative_to(TESTS).as_posix())
def test_names_are_short_and_name_no_code_of_a_document(path):
    assert not [
        name for name in names_of(path) if len(name.removeprefix("test_")) >= LONGEST or re.search(r"_f\d+$", name)
    ]


@pytest.mark.parametrize("module", ["conceptcam.losses.boxes", "tests.losses.test_boxes", "torch.unheard_of"])
def test_a_warning_is_an_error(module):
    with pytest.raises(UserWarning, match="careful"):
        warnings.warn_explicit("careful", UserWarning, "boxes.py", 1, module=module)


def test_a_deprecation_counts_in_our_lines_alone():
    with pytest.raises(DeprecationWarning, match="old"):
        warnings.warn_explicit("old", DeprecationWarning, "boxes.py", 1, module="conceptcam.losses.boxes")
    warnings.warn_explicit("old", DeprecationWarning, "_mathtext.py", 1, module="matplotlib._mathtext")
