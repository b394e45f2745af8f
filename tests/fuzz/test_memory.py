"""Explaining many images takes as much memory as explaining a few, with and without pictures."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from conceptcam.analysis.explanation import explain_images
from conceptcam.analysis.figures import save_png
from tests.analysis.test_explanation import taught
from tests.worlds import SIZE


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's count of pages is needed")
@pytest.mark.parametrize(("pictures", "count"), [(False, 500), (True, 20)])
def test_memory_stays_flat_over_many_explained_images(pytestconfig, tmp_path, pictures, count):
    """Kept, 450 explanations of this size would take 16 MB; `--fuzz 10` explains 5,000, and 200 with pictures."""
    model, count = taught("concepts", "prototypes", "task"), count * pytestconfig.getoption("--fuzz")
    images = list(np.random.default_rng(0).integers(0, 256, (16, *SIZE, 3), dtype=np.uint8))
    before = 0
    for number, explanation in enumerate(explain_images(model, images * (count // 16 + 1), batch_size=8)):
        if pictures:
            save_png(explanation.figure(), tmp_path / "picture.png")
        if number == count // 10:
            before = resident()
        if number == count:
            break
    assert resident() - before < 6e6
