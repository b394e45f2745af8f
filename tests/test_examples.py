"""The examples run, without a warning, and show what they claim."""

import difflib
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType

import pytest
import torch

from conceptcam import ConceptModel

FOLDER = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    """An example as a module, made afresh."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _same_randomness():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_quickstart_trains_measures_and_explains(tmp_path, capsys):
    load("quickstart").main(tmp_path, images=60, epochs={"concepts": 1, "prototypes": 1, "task": 1})
    assert ConceptModel.from_pretrained(tmp_path).record.stages == ("concepts", "prototypes", "task")
    assert (tmp_path / "explanation.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "macro mean" in said and "(bias)" in said


def test_box_loss_needs_at_most_three_changed_lines():
    example = load("plug_in_loss")
    before, after = (inspect.getsource(loop).splitlines()[1:] for loop in (example.train_before, example.train_after))
    changed = [line for line in difflib.ndiff(before, after) if line.startswith("+ ")]
    marked = [line for line in inspect.getsource(example).splitlines() if "# <-- changed line" in line]
    imported = [line for line in marked if "import" in line]
    assert [line[2:] for line in changed] == [line for line in marked if line not in imported]
    assert len(changed) + len(imported) <= 3
    assert imported == ["from conceptcam import BBoxGuidedConceptLoss  # <-- changed line 1"]


@pytest.mark.parametrize("page", ["README.md", "docs/loss.md"])
def test_changed_lines_on_a_page_are_those_of_the_example(page):
    text = (FOLDER.parent / page).read_text(encoding="utf-8")
    lines = text.split("```diff\n")[1].split("```")[0].splitlines()
    marked = [line for line in inspect.getsource(load("plug_in_loss")).splitlines() if "# <-- changed line" in line]
    assert [line[1:].strip() for line in lines if line.startswith("+")] == [
        line.split("#")[0].strip() for line in marked
    ]


def test_plugged_in_loss_trains_both_loops(capsys):
    load("plug_in_loss").main(images=64, epochs=1)
    before, after = capsys.readouterr().out.splitlines()
    assert before.startswith("before") and after.startswith("after") and "pointing" in after


def test_plain_loop_teaches_all_three_stages(capsys):
    load("plain_loop").main(images=64, epochs=(1, 1, 1))
    said = capsys.readouterr().out
    assert all(f"{parts} " in said for parts in ("backbone + concept_head", "projector + prototypes", "task_head"))
    assert "task_auroc" in said


def test_plain_loop_keeps_frozen_parts_still(monkeypatch):
    example = load("plain_loop")
    model = _small_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batch = _batch()
    example.teach(model, ["task_head"], lambda _: model(batch).task_logits.square().mean(), [batch], lr=0.1, epochs=2)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all(key.startswith("task_head.") for key in changed)


def test_custom_backbone_is_found_again_by_its_name(capsys):
    load("custom_backbone").main(images=64, epochs=1)
    assert "same maps: True" in capsys.readouterr().out


def test_every_example_is_run_here():
    text = Path(__file__).read_text(encoding="utf-8")
    for path in FOLDER.glob("*.py"):
        assert f'load("{path.stem}").main(' in text


def _small_model() -> ConceptModel:
    from conceptcam import ConceptConfig

    config = ConceptConfig(concepts=("a", "b"), tasks=("t",), backbone="small_cnn_s8", image_size=(32, 32))
    model = ConceptModel.from_config(config)
    torch.nn.init.ones_(model.task_head.bias)
    return model


def _batch() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32)
