"""Runs of the command line that are killed and resumed, or divided among processes."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from conceptcam.cli.main import main
from conceptcam.data.coco import CocoDataset
from tests.cli.test_cli import write_coco

ROOT = Path(__file__).parents[2]
TINY = ["--image-size", "48", "64", "--batch-size", "8", "--precision", "fp32", "--figures", "1"]
CNN = [*TINY, "--backbone", "small_cnn_s8", "--epochs", "concepts=1", "prototypes=2", "task=1"]
VIT = [*TINY, "--backbone", "timm:test_vit", "--epochs", "concepts=1", "prototypes=2", "task=1"]

# Runs in a process of its own, because it forks and kills. A moment is a call, by its number, of what is named.
MOMENTS = {
    "nothing is saved yet": ("conceptcam.training.checkpoints", "Checkpoints.save", 1),
    "the first stage is over": ("conceptcam.runs.teaching", "fit_thresholds", 1),
    "prototypes are taught": ("conceptcam.training.checkpoints", "Checkpoints.save", 3),
    "all is taught": ("conceptcam.runs.teaching", "review", 1),
    "all is written": ("conceptcam.runs.folder", "RunFolder.finish", 1),
}
DRIVER = """
import functools, importlib, json, os, signal, sys
import torch
torch.set_num_threads(1)
from conceptcam.cli.main import main
from conceptcam.data.coco import CocoDataset

command, moments = json.loads(sys.argv[1])

def child(do):
    number = os.fork()
    if number == 0:
        os._exit(do())
    return os.waitpid(number, 0)[1]

def dying(module, name, count, out):
    *outer, name = name.split(".")
    place = functools.reduce(getattr, outer, importlib.import_module(module))
    whole, calls = getattr(place, name), [0]
    def die(*given, **more):
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*given, **more)
    setattr(place, name, die)
    return main([*command, "--out", out])

main([*command, "--out", f"{sys.argv[2]}/whole"])  # and what is slow to import is there for all children
for number, moment in enumerate(moments):
    out = f"{sys.argv[2]}/{number}"
    assert os.WTERMSIG(child(lambda: dying(*moment, out))) == signal.SIGKILL, moment
    assert child(lambda: main([*command, "--out", out, "--resume"])) == 0, moment
"""


def start(command, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert done.returncode == 0, done.stderr


def history(folder):
    with (folder / "history.csv").open() as file:
        return [row[:-2] for row in csv.reader(file)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares")
    write_coco(folder, "train", 16, 0)
    write_coco(folder, "val", 9, 1)
    return folder


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """A folder with that of a run that nobody killed, and those of runs that were, each at a moment, and resumed."""
    folder = tmp_path_factory.mktemp("runs")
    told = json.dumps([["train", str(data), *CNN], list(MOMENTS.values())])
    start([sys.executable, "-W", "ignore", "-c", DRIVER, told, str(folder)])
    return folder


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_ends_with_the_files_of_one_that_was_not(runs, moment):
    whole, resumed = runs / "whole", runs / str(list(MOMENTS).index(moment))
    for name in ("model.safetensors", "config.json", "metrics.json", "run.json"):
        mine, other = ((folder / name).read_text(encoding="latin-1") for folder in (resumed, whole))
        assert mine == other, name
    assert history(resumed) == history(whole)
    assert {path.name for path in resumed.iterdir()} == {path.name for path in whole.iterdir()}


def test_two_processes_write_one_folder_with_the_weights_of_one(data, tmp_path):
    command = ["train", str(data), *VIT]
    assert main([*command, "--out", str(tmp_path / "one")]) == 0
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    run += ["--rdzv-endpoint=localhost:0", "-m", "conceptcam", *command, "--out", str(tmp_path / "two")]
    start(run)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        assert (two[name] - value).abs().max() < 1e-4, name
    assert len(history(tmp_path / "two")) == len(history(tmp_path / "one"))
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


ONE_BREAKS = """
import os, sys
import torch
torch.set_num_threads(1)
from conceptcam.cli.main import main
from conceptcam.data.coco import CocoDataset
read = CocoDataset.__getitem__
def broken(self, index):
    if os.environ["RANK"] == sys.argv[1]:
        raise ValueError(f"image {index} is broken")
    return read(self, index)
CocoDataset.__getitem__ = broken
sys.exit(main(sys.argv[2:]))
"""


def said_by_two(folder, breaks, command, driver=ONE_BREAKS):
    """What each of two processes writes to standard error, where images break in the process of a rank."""
    (folder / "driver.py").write_text(driver)
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    run += ["--rdzv-endpoint=localhost:0", "--redirects=3", f"--log-dir={folder}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*run, str(folder / "driver.py"), breaks, *command],
        capture_output=True, text=True, timeout=200, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode != 0
    return [file.read_text() for file in sorted(folder.glob("*/attempt_0/*/stderr.log"))]


@pytest.mark.parametrize(
    ("breaks", "wrong", "sentence"),
    [
        ("nobody", ["--layer-decay", "7"], "conceptcam train: `layer_decay` of stage 'concepts' must be in [0, 1]"),
        ("nobody", ["--seed", "x"], "conceptcam train: error: argument --seed: invalid int value: 'x'"),
        ("0", [], "conceptcam train: image "),
        ("1", [], "conceptcam train: in process 1 of 2: image "),
    ],
)
def test_an_error_of_several_processes_is_told_once(breaks, wrong, sentence, data, tmp_path):
    said = said_by_two(tmp_path, breaks, ["train", str(data), *VIT, *wrong, "--out", str(tmp_path / "out")])
    assert len(said) == 2
    # The first process says it, or the one that knows, where torch lets the first one wait until that has gone.
    (told,) = filter(None, said)
    assert sentence in told and "Traceback" not in told
    assert not (tmp_path / "out").exists()


TORCHRUN_IS_STOPPED = """
import os, signal, sys, time, warnings
import torch
warnings.simplefilter("ignore")  # torch's own
torch.set_num_threads(1)
from conceptcam.cli.main import main
from conceptcam.training.optimizer import StageOptimizer
step, steps = StageOptimizer.step, []
def stop(self, given):
    steps.append(given)
    if len(steps) == 4 and os.environ["RANK"] == sys.argv[1]:
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(0.5)
    return step(self, given)
StageOptimizer.step = stop
sys.exit(main(sys.argv[2:]))
"""


def test_torchrun_that_is_stopped_leaves_a_checkpoint_of_one_step(data, tmp_path):
    """Its processes are asked at different steps, agree on one, and say once how to go on."""
    many = ["train", str(data), *VIT, "--batch-size", "3", "--out", str(tmp_path / "out")]  # 6 steps per epoch
    said = said_by_two(tmp_path, "1", many, TORCHRUN_IS_STOPPED)
    assert said[0].startswith(
        "conceptcam train: stopped; go on with as many processes and: torchrun ... -m conceptcam "
    )
    assert said[0].endswith(" --resume\n") and said[0].count("\n") == 1 and said[1] == ""
    (newest,) = (tmp_path / "out" / "checkpoints" / "concepts").glob("*.pt")
    assert newest.name in ("checkpoint-000000004.pt", "checkpoint-000000005.pt")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_is_stopped_says_how_to_go_on(data, tmp_path, monkeypatch, capsys, number, status):
    read, reads = CocoDataset.__getitem__, []

    def stop(self, index):
        reads.append(index)
        if len(reads) == 40:  # in the second stage, or in the validation of the first
            os.kill(os.getpid(), number)
        return read(self, index)

    monkeypatch.setattr(CocoDataset, "__getitem__", stop)
    out = tmp_path / "my run"
    before = signal.getsignal(number)
    assert main(["train", str(data), *CNN, "--out", str(out)]) == status
    said = capsys.readouterr().err
    assert said.startswith("conceptcam train: stopped; go on with: conceptcam train ") and "Traceback" not in said
    again = shlex.split(said.strip().partition("go on with: conceptcam ")[2])
    assert again[-1] == "--resume" and signal.getsignal(number) == before
    assert main(again) == 0
    assert (out / "metrics.json").is_file()


def test_a_command_that_is_stopped_before_a_run_says_no_more(tmp_path, monkeypatch, capsys):
    write_coco(tmp_path, "train", 4, 0)
    monkeypatch.setattr("conceptcam.cli.train.read_train_and_val", lambda *given: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["train", str(tmp_path), *CNN, "--out", str(tmp_path / "out")]) == 143
    assert capsys.readouterr().err == "conceptcam train: stopped\n" and not (tmp_path / "out").exists()
