"""The examples run, without a warning, and show what they claim."""

import difflib
import importlib.util
import inspect
import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from conceptcam import ConceptModel, PhantomDataset, explain, export_model

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


def test_an_exported_file_explains_without_torch(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = ConceptModel.from_pretrained("phantom-csr")
    export_model(model, tmp_path / "model.onnx")
    pixels = PhantomDataset(1, seed=99, cache_dir=False).load_item(0).image
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "chest.png")
    # `load("run_exported").main(` in a process in which torch and conceptcam cannot be imported.
    blocked = "import sys, runpy; sys.modules.update(torch=None, conceptcam=None); sys.argv = sys.argv[1:]"
    command = [f"{blocked}; runpy.run_path(sys.argv[0], run_name='__main__')", FOLDER / "run_exported.py"]
    files = [tmp_path / name for name in ("model.onnx", "chest.png", "maps.png")]
    done = subprocess.run([sys.executable, "-c", *command, *files], capture_output=True, text=True, check=True)
    explained = explain(model, tmp_path / "chest.png")
    said = [re.split(r" +p (\S+) ", line) for line in done.stdout.splitlines()[:5]]
    first = explained.concepts[:5]
    assert [(name, verdict) for name, _, verdict in said] == [(one.concept, one.verdict) for one in first]
    assert [float(p) for _, p, _ in said] == pytest.approx([one.probability for one in first], abs=2e-2)
    chances = [float(text) for text in re.findall(r"p (\S+), logit", done.stdout)]
    assert chances == pytest.approx([task.probability for task in explained.tasks], abs=2e-2)
    logits = [float(text) for text in re.findall(r"logit (\S+)", done.stdout)]  # Pillow resizes in whole bytes
    assert logits == pytest.approx([task.logit for task in explained.tasks], abs=0.1)
    height, width = model.config.image_size
    with Image.open(tmp_path / "maps.png") as sheet:
        assert sheet.size == (6 * max(width, 170), height + 40)  # a strip of names, probabilities and verdicts
        assert np.asarray(sheet.convert("L"))[:40, width:].min() < 128


@pytest.mark.filterwarnings("ignore")  # Lightning warns of its own insides, and that there are few workers
def test_lightning_loads_what_it_saved(capsys):
    pytest.importorskip("lightning")
    load("lightning_loop").main(images=16, epochs=1)
    assert "same weights after loading: True" in capsys.readouterr().out


def test_accelerate_runs_the_loop(capsys, monkeypatch):
    accelerate = pytest.importorskip("accelerate")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    try:
        load("accelerate_loop").main(images=16, epochs=1)
    finally:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    assert "concept AUROC" in capsys.readouterr().out


def test_ddp_runs_the_loop(capsys, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    load("ddp_loop").main(images=16, epochs=1)
    assert "processes: 1, with the same weights: True" in capsys.readouterr().out


def test_an_optimizer_of_timm_decays_what_ours_decays(capsys):
    load("timm_optimizers").main(images=16, epochs=1, optimizers=("adamw",))
    assert "adamw  2 groups, 1 with weight decay" in capsys.readouterr().out


def test_torchmetrics_agrees_on_labels_that_occur(capsys):
    load("torchmetrics_collection").main(images=16)
    said = capsys.readouterr().out
    assert float(said.split("largest difference")[1].split()[0]) < 1e-6


LOOPS = ("lightning_loop", "accelerate_loop", "ddp_loop", "timm_optimizers", "torchmetrics_collection")


@pytest.mark.parametrize("name", LOOPS)
def test_lines_of_the_page_are_those_of_the_example(name):
    page = (FOLDER.parent / "docs" / "ecosystem.md").read_text(encoding="utf-8")
    blocks = re.findall(rf"^`examples/{name}.py`.*?^```py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    code = _lines((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    assert blocks and all(_lines(block) in code for block in blocks)


def _lines(text: str) -> str:
    """The lines without what indents them, and without empty ones."""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip()) + "\n"


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


def test_a_notebook_is_kept_without_what_it_printed():
    for path in FOLDER.glob("*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        assert cells and not any(cell["outputs"] or cell["execution_count"] for cell in cells)
