"""A disk that fills up, or turns read-only, while a run writes: a sentence with the path; later the run goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_cli import write_coco

ROOT = Path(__file__).parents[2]
TINY = ["--image-size", "48", "64", "--batch-size", "8", "--precision", "fp32", "--figures", "1"]
RUN = [*TINY, "--backbone", "tiny_cnn_s8", "--epochs", "concepts=1", "prototypes=1", "task=1"]

# A moment is one of the calls, by their numbers, of what is named; what the sentence names is a file, or the folder.
MOMENTS = {
    "a checkpoint": ("conceptcam.training.checkpoints", "Checkpoints.save", (2, 3), "checkpoints/"),
    "a model": ("conceptcam.model.concept_model", "ConceptModel.save_pretrained", (1, 3), ""),
    "a figure": ("conceptcam.runs.reports", "save_png", (1, 1), "figures/"),
}

# Runs in a process of its own, because it forks and sets limits.
DRIVER = """
import functools, importlib, json, os, resource, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from conceptcam.cli.main import main
from conceptcam.data.coco import CocoDataset
from conceptcam.runs import run

command, moments = json.loads(sys.argv[1])
folder = Path(sys.argv[2])

def child(do):
    number = os.fork()
    if number == 0:
        os._exit(do())
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])

def rights(out, mode):
    for path in [out, *(path for path in out.rglob("*") if path.is_dir())]:
        path.chmod(mode)

def spoiled(how, module, name, count, limit, out):
    os.dup2(os.open(f"{out}.stderr", os.O_WRONLY | os.O_CREAT), 2)
    *outer, name = name.split(".")
    place = functools.reduce(getattr, outer, importlib.import_module(module))
    whole, calls = getattr(place, name), [0]
    def spoil(*given, **more):
        calls[0] += 1
        if calls[0] == count:
            if how == "full":
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            else:
                rights(out, 0o555)
        return whole(*given, **more)
    setattr(place, name, spoil)
    return main([*command, "--out", str(out)])

assert child(lambda: main([*command, "--out", str(folder / "whole")])) == 0
for number, (how, module, name, count, limit) in enumerate(moments):
    out = folder / str(number)
    code = child(lambda: spoiled(how, module, name, count, limit, out))
    rights(out, 0o755)
    hidden = [path.name for path in out.rglob(".*")]
    again = child(lambda: main([*command, "--out", str(out), "--resume"]))
    print(json.dumps([code, hidden, again, Path(f"{out}.stderr").read_text()]), flush=True)
"""


def minds_rights() -> list[str]:
    """What to put before a command so that rights of files count for it, as they do not for root."""
    return ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.geteuid() == 0 else []


def works(command: list[str]) -> bool:
    try:
        return subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.attacks("a disk that is full or read-only")
@pytest.mark.skipif(sys.platform != "linux", reason="it forks and sets limits")
def test_a_disk_that_is_full_or_read_only_is_a_sentence(attempts, tmp_path):
    write_coco(tmp_path, "train", 16, 0)
    write_coco(tmp_path, "val", 9, 1)
    ways = ["full", "read-only"] if works(minds_rights()) else ["full"]
    moments, places = [], []
    for chance in attempts(10):
        module, name, (low, high), place = MOMENTS[chance.choice(list(MOMENTS))]
        moments.append((chance.choice(ways), module, name, chance.randint(low, high), chance.randint(600, 3000)))
        places.append(place)
    told = json.dumps([["train", str(tmp_path), *RUN], moments])
    command = [*minds_rights(), sys.executable, "-W", "ignore", "-c", DRIVER, told, str(tmp_path / "runs")]
    (tmp_path / "runs").mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == len(moments)
    whole = tmp_path / "runs" / "whole"
    for number, (code, hidden, again, said) in enumerate(lines):
        out = tmp_path / "runs" / str(number)
        assert (code, hidden, again) == (2, [], 0), (moments[number], said)
        assert said.startswith("conceptcam train: ") and said.count("\n") == 1, said
        assert f"{out}/{places[number]}".rstrip("/") in said, said
        assert any(text in said for text in ("ake room", "raise the limit", "change its rights")), said
        for name in ("model.safetensors", "config.json", "metrics.json"):
            assert (out / name).read_bytes() == (whole / name).read_bytes(), (moments[number], name)
    attempts.add(0, refused=len(lines))
