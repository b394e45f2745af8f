"""A run that is asked to stop writes where it is, and stops as it would have."""

import os
import signal
import threading

import pytest
import torch

from conceptcam.training.checkpoints import Checkpoints, stop_held_back
from conceptcam.training.trainer import Trainer
from tests.scenarios import squares, stages_of
from tests.worlds import batches, tiny_model, weights

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(autouse=True)
def terminable():
    """SIGTERM raises here, as in the command line; otherwise it would end the tests."""

    def terminate(number, frame):
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, terminate)
    yield
    signal.signal(signal.SIGTERM, before)


@BOTH
def test_a_signal_comes_at_the_end_and_handlers_are_as_before(number):
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    reached = []
    with pytest.raises((KeyboardInterrupt, SystemExit)), stop_held_back() as asked:
        assert not asked()
        os.kill(os.getpid(), number)
        assert asked()
        reached.append("the end")
    assert reached == ["the end"]
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_signal_is_not_held_back():
    reached = []
    with pytest.raises(KeyboardInterrupt), stop_held_back():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("the end")
    assert not reached


def test_without_a_signal_or_off_the_main_thread_nothing_happens():
    with stop_held_back(wanted=False) as asked:
        assert not asked()
    with stop_held_back() as asked:
        assert not asked()
    handlers = []

    def elsewhere():
        with stop_held_back():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]


class Interrupted:
    """Batches; while one of them is read, a signal comes."""

    def __init__(self, number, at):
        self.batches, self.number, self.at, self.read = batches(squares(9), 2), number, at, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            self.read += 1
            if self.read == self.at:
                signal.raise_signal(self.number)  # at once, in this thread
            yield batch


def train(folder, given, **options):
    model = tiny_model()
    trainer = Trainer(seed=0, checkpoint_dir=folder)
    trainer.fit(model, stages_of(model, 2)[:1], given, batches(squares(8, 1), 4), **options)
    return weights(model)


@BOTH
@pytest.mark.parametrize("at", [1, 3, 5, 6, 8])
def test_a_stopped_training_goes_on_from_the_step_it_stopped_at(tmp_path, number, at):
    whole = train(tmp_path / "whole", Interrupted(number, -1))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(tmp_path / "run", Interrupted(number, at))
    newest = Checkpoints(tmp_path / "run", 2).paths()[-1]
    assert newest.name == f"checkpoint-{at:09d}.pt"
    again = train(tmp_path / "run", Interrupted(number, -1), resume=True)
    assert all(torch.equal(value, whole[name]) for name, value in again.items())


@BOTH
@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None])
def test_a_signal_that_stops_nobody_changes_no_weights(tmp_path, number, handler):
    """It is ignored, as SIGINT is in the background of a shell, or a handler of the user's only notes it."""
    whole = train(tmp_path / "whole", Interrupted(number, -1))
    before = signal.signal(number, handler)
    try:
        again = train(tmp_path / "run", Interrupted(number, 3))
    finally:
        signal.signal(number, before)
    assert all(torch.equal(value, whole[name]) for name, value in again.items())
