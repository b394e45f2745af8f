import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOMS = ("data", "data.phantom", "losses", "metrics", "model", "analysis", "training")
SLOW = ("torch", "timm", "torchvision", "torchmetrics", "matplotlib", "PIL", "pandas", "sklearn", "scipy")


def loaded_after(code: str) -> set[str]:
    """Which of the slow packages a fresh Python has imported after running code, which must print nothing."""
    report = f"import sys; print(*(name for name in {SLOW} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{code}\n{report}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    (line,) = done.stdout.splitlines()
    return set(line.split())


def test_importing_the_package_imports_nothing_slow():
    assert loaded_after("import conceptcam; conceptcam.__version__; dir(conceptcam)") == set()


@pytest.mark.parametrize("room", [*ROOMS, "cli", "hub", "hub.checkpoints", "runs"])
def test_importing_a_room_imports_nothing_slow(room):
    assert loaded_after(f"import conceptcam.{room}; dir(conceptcam.{room})") == set()


def test_the_config_needs_no_torch():
    assert (
        loaded_after("from conceptcam import ConceptConfig; ConceptConfig(concepts=('a',), backbone='small_cnn_s8')")
        == set()
    )


USE_THE_LOSS = """
import torch
from conceptcam.losses import BBoxGuidedConceptLoss, PrototypeContrastiveLoss
from conceptcam.data.boxes import ConceptBoxes
maps = torch.zeros(1, 2, 4, 4, requires_grad=True)
box = [[{"concept_idx": 1, "bbox": [0.1, 0.1, 0.4, 0.4]}]]
BBoxGuidedConceptLoss()(maps, torch.ones(1, 2), box).backward()
PrototypeContrastiveLoss()(torch.zeros(1, 2, 2, 3), torch.ones(1, 2))
"""


def test_using_the_losses_imports_torch_alone():
    assert loaded_after(USE_THE_LOSS) == {"torch"}


def test_a_model_with_our_own_backbone_does_not_wait_for_timm():
    code = """
from conceptcam.config import ConceptConfig
from conceptcam.model.concept_model import ConceptModel
config = ConceptConfig(concepts=('a',), backbone='small_cnn_s8', image_size=(16, 16))
ConceptModel.from_config(config)
"""
    assert not loaded_after(code) & {"timm", "torchvision", "torchmetrics", "matplotlib"}


def test_every_public_name_comes_from_the_module_that_defines_it():
    import conceptcam

    names = [name for name in conceptcam.__all__ if not name.startswith("__")]
    assert names and set(dir(conceptcam)) == set(conceptcam.__all__)
    for name in names:
        thing = getattr(conceptcam, name)
        assert thing.__module__.startswith("conceptcam.") and thing is getattr(sys.modules[thing.__module__], name)


@pytest.mark.parametrize("room", ("", *(f".{name}" for name in ROOMS)))
def test_type_checkers_see_the_names_that_are_handed_on(room):
    module = importlib.import_module(f"conceptcam{room}")
    (checked,) = (node for node in ast.parse(Path(module.__file__).read_text("utf-8")).body if isinstance(node, ast.If))
    imports = [alias for statement in checked.body for alias in statement.names]
    assert all(alias.name == alias.asname for alias in imports)  # so written, a strict checker lets users import it
    assert sorted(alias.name for alias in imports) == module.__all__


def test_a_name_that_is_not_there_is_an_ordinary_attribute_error():
    import conceptcam

    with pytest.raises(AttributeError, match="module 'conceptcam' has no attribute 'ConceptModle'"):
        conceptcam.ConceptModle  # noqa: B018
    assert not hasattr(conceptcam, "anything")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_hands_on_names_of_its_own_files(room):
    module = importlib.import_module(f"conceptcam.{room}")
    files = {path.stem for path in Path(module.__file__).parent.iterdir()}
    assert not set(module.__all__) & files
    for name in module.__all__:
        assert getattr(module, name) is not None and name in dir(module)
    with pytest.raises(AttributeError, match=f"module 'conceptcam.{room}' has no attribute 'anything'"):
        module.anything  # noqa: B018


@pytest.mark.parametrize("room", ROOMS)
def test_a_star_import_gives_every_name_of_a_room(room):
    names: dict[str, object] = {}
    exec(f"from conceptcam.{room} import *", names)
    assert names.keys() - {"__builtins__"} == set(importlib.import_module(f"conceptcam.{room}").__all__)


def test_rooms_load_nothing_slow_before_a_name_is_used():
    assert loaded_after("import conceptcam.data, conceptcam.model, conceptcam.analysis; dir(conceptcam.data)") == set()
