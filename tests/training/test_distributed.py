import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.scenarios import SCENARIOS, run

ROOT = Path(__file__).parents[2]

DRIVER = """
import logging, os, sys, torch
torch.set_num_threads(1)
from conceptcam.training import distributed
from tests.scenarios import SCENARIOS, run
results = {name: run(name) for name in SCENARIOS}
rank = int(os.environ["RANK"])
assert distributed.world_size() == 1, "each fit leaves the group that it joined"
torch.save(results, f"{sys.argv[1]}/{rank}.pt")

# One more: stopped in the middle of an epoch, and resumed; only the first process writes and calls the hook.
import dataclasses
from pathlib import Path
from conceptcam.training.checkpoints import Checkpoints
from tests.worlds import weights

folder, told = Path(sys.argv[1]), []
class Cut(Exception):
    pass
save = Checkpoints.save
def save_and_stop(self, step, content):
    save(self, step, content)
    if step == 4:
        raise Cut
def train(where, resume=False):
    trainer, model, stages, train, val = SCENARIOS["shuffled"]()
    model.concept_head = torch.nn.Sequential(torch.nn.Dropout(0.3), model.concept_head)
    trainer = dataclasses.replace(
        trainer, checkpoint_dir=where, checkpoint_every=1, callbacks=[lambda model, record: told.append(record[:2])]
    )
    trainer.fit(model, stages, train, val, resume=resume)
    return weights(model)
whole = train(folder / "whole")
tellings = len(told)
with distributed.process_group("cpu"):
    Checkpoints.save = save_and_stop
    stopped = None
    gather = distributed.gather
    calls = [0]
    def gather_and_stop(value):
        values = gather(value)
        if isinstance(value, dict):  # random states: a checkpoint is written
            calls[0] += 1
            if calls[0] == 5 and rank == 1:
                raise Cut
        return values
    distributed.gather = gather_and_stop
    try:
        train(folder / "cut")
    except Cut:
        stopped = True
    distributed.gather = gather
    Checkpoints.save = save
    assert stopped
    resumed = train(folder / "cut", resume=True)
torch.save({"whole": whole, "resumed": resumed, "told": tellings}, folder / f"resumed-{rank}.pt")

# A loss that is not a number stops every process, with the names of the whole batch.
trainer, model, stages, train, val = SCENARIOS["uneven"]()
train[0].images[3] = torch.nan
try:
    dataclasses.replace(trainer, gradient_accumulation_steps=1).fit(model, stages[:1], train, val)
except FloatingPointError as error:
    (folder / f"said-{rank}").write_text(str(error))

# A parameter that the loss does not reach.
trainer, model, stages, train, val = SCENARIOS["uneven"]()
model.backbone.unused = torch.nn.Linear(3, 3)
torch.nn.init.ones_(model.backbone.unused.weight)
before = weights(model)
logging.basicConfig(filename=folder / f"log-{rank}", level=logging.INFO)
trainer.fit(model, stages[:1], train, val)
assert torch.equal(weights(model)["backbone.unused.weight"], before["backbone.unused.weight"])
(folder / f"unreached-{rank}").touch()
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
    """The folder where each of two processes has written what it came to."""
    folder = tmp_path_factory.mktemp("two")
    torchrun(DRIVER, folder)
    return folder


def results(folder, name):
    return [torch.load(folder / f"{rank}.pt", weights_only=True)[name] for rank in (0, 1)]


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_two_processes_end_with_the_weights_and_scores_of_one(of_two, name):
    one = run(name)
    for two in results(of_two, name):
        worst = max((two["weights"][key] - value).abs().max() for key, value in one["weights"].items())
        assert worst < 1e-5
        assert [record[:2] for record in two["records"]] == [record[:2] for record in one["records"]]
        for first, second in zip(one["records"], two["records"], strict=True):
            assert second[2:-1] == pytest.approx(first[2:-1], abs=1e-5, nan_ok=True)
            assert second[-1] == first[-1]
        assert two["evaluated"] == pytest.approx(one["evaluated"], abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_all_processes_end_with_the_same_weights_to_the_bit(of_two, name):
    first, second = (two["weights"] for two in results(of_two, name))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_two_processes_resume_to_the_bit_within_an_epoch(of_two):
    for rank in (0, 1):
        saved = torch.load(of_two / f"resumed-{rank}.pt", weights_only=True)
        assert all(torch.equal(value, saved["resumed"][key]) for key, value in saved["whole"].items())
    assert len(list((of_two / "cut").iterdir())) == 2


def test_only_the_first_of_two_processes_tells_of_epochs(of_two):
    told = [torch.load(of_two / f"resumed-{rank}.pt", weights_only=True)["told"] for rank in (0, 1)]
    assert told == [6, 0]


def test_a_parameter_the_loss_does_not_reach_blocks_nobody(of_two):
    """The driver came to its end; it is the last thing it does."""
    assert len(list(of_two.glob("unreached-*"))) == 2


def test_parameters_the_loss_does_not_reach_are_logged_once(of_two):
    first, second = ((of_two / f"log-{rank}").read_text() for rank in (0, 1))
    assert first.count("does not depend on backbone.unused.weight, backbone.unused.bias, which therefore stay") == 1
    assert "concepts epoch 1" in first and "conceptcam" not in second


def test_a_loss_that_is_not_finite_stops_both_processes(of_two):
    for rank in (0, 1):
        said = (of_two / f"said-{rank}").read_text()
        assert "its batch of 5 samples: square-0, square-1, square-2, square-3, square-4." in said
