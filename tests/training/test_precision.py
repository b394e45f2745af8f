import math
import time

import pytest
import torch

from conceptcam.model.device import cpu_has_bf16
from conceptcam.training import precision
from conceptcam.training.precision import faster_precision
from tests.scenarios import stages_of
from tests.worlds import Squares, batches, tiny_model, weights

(BATCH,) = batches(Squares(8), 8)


def choose(monkeypatch, *, has_bf16, seconds=3.0, wait=0.0):
    """The choice, the lines before and after the trial, and how many images went through the backbone each time."""
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has_bf16)
    monkeypatch.setattr(precision, "TRIAL_SECONDS", seconds)
    model, counts, lines = tiny_model(), [], []

    def slow(module, given):
        counts.append((len(given[0]), len(lines)))
        time.sleep(wait)

    model.backbone.register_forward_pre_hook(slow)
    before = weights(model)
    chosen = faster_precision(model, stages_of(model)[0], BATCH, "cpu", echo=lines.append)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    return chosen, lines, counts


def test_cpu_without_bf16_takes_fp32_without_a_trial(monkeypatch):
    assert choose(monkeypatch, has_bf16=False) == ("fp32", [], [])


def test_trial_is_announced_before_its_first_step(monkeypatch):
    chosen, lines, counts = choose(monkeypatch, has_bf16=True)
    assert chosen in ("fp32", "bf16")
    assert len(counts) == 6 and all(images <= 4 and said == 1 for images, said in counts)
    assert "timing a few steps" in lines[0] and "a step on 4 images takes" in lines[1]


def test_trial_stops_when_its_seconds_are_over(monkeypatch):
    chosen, _, counts = choose(monkeypatch, has_bf16=True, seconds=0.05, wait=0.1)
    assert chosen == "fp32" and len(counts) <= 1  # bf16 was not tried in time


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx2 avx512f", False), ("fpu avx512f avx512_bf16", True), ("amx_tile amx_bf16", True), ("", False)],
)
def test_bf16_is_known_from_the_flags_of_the_cpu(tmp_path, flags, expected):
    (tmp_path / "cpuinfo").write_text(f"model name\t: a CPU\nflags\t\t: {flags}\n")
    assert cpu_has_bf16(tmp_path / "cpuinfo") is expected


def test_without_a_list_of_flags_torch_is_asked(tmp_path):
    assert isinstance(cpu_has_bf16(tmp_path / "none"), bool)
    assert math.isfinite(precision.TRIAL_SECONDS)
