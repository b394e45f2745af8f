"""A run that is stopped at random moments of wall time ends with the files of one that was not."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_cli import write_coco

ROOT = Path(__file__).parents[2]
TINY = ["--image-size", "48", "64", "--batch-size", "4", "--precision", "fp32", "--figures", "1"]


@pytest.mark.attacks("a run that is killed or stopped")
@pytest.mark.skipif(sys.platform != "linux", reason="it forks")
def test_a_command_stopped_at_any_moment_ends_with_the_same_files(pytestconfig, attempts, tmp_path):
    """`benchmarks/kills.py` on images of one's own takes longer, and torchrun too."""
    write_coco(tmp_path, "train", 16, 0)
    write_coco(tmp_path, "val", 9, 1)
    many = pytestconfig.getoption("--fuzz")
    counts = ["--kills", str(7 * many), "--signals", str(3 * many), "--torchrun", "0", "--torchrun-signals", "0"]
    attempts.add(10 * many)
    run = [
        "--run",
        str(tmp_path),
        *TINY,
        "--backbone",
        "tiny_cnn_s8",
        "--epochs",
        "concepts=2",
        "prototypes=3",
        "task=1",
    ]
    script = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "kills.py")]
    done = subprocess.run([*script, *counts, *run], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
