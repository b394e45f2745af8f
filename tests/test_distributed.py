import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.scenarios import SCENARIOS, run

ROOT = Path(__file__).parents[1]

DRIVER = """
import os, sys, torch
torch.set_num_threads(1)
from conceptcam import distributed
from tests.scenarios import SCENARIOS, run
results = {name: run(name) for name in SCENARIOS}
rank = int(os.environ["RANK"])
assert distributed.world() == 1, "each fit leaves the group that it joined"
torch.save(results, f"{sys.argv[1]}/{rank}.pt")
"""


def torchrun(script: str, folder: Path, *arguments: str) -> str:
    """Run a script in two processes; gives what went to standard error."""
    (folder / "driver.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", str(folder / "driver.py"), str(folder), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """What each of two processes came to, in each scenario."""
    folder = tmp_path_factory.mktemp("two")
    torchrun(DRIVER, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_two_processes_end_with_the_weights_and_scores_of_one(of_two, name):
    one = run(name)
    for both in of_two:
        two = both[name]
        worst = max((two["weights"][key] - value).abs().max() for key, value in one["weights"].items())
        assert worst < 1e-5
        assert [record[:2] for record in two["records"]] == [record[:2] for record in one["records"]]
        for first, second in zip(one["records"], two["records"], strict=True):
            assert second[2:-1] == pytest.approx(first[2:-1], abs=1e-5, nan_ok=True)
            assert second[-1] == first[-1]
        assert two["evaluated"] == pytest.approx(one["evaluated"], abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_all_processes_end_with_the_same_weights_to_the_bit(of_two, name):
    first, second = (both[name]["weights"] for both in of_two)
    assert all(torch.equal(first[key], second[key]) for key in first)
