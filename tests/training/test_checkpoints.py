import contextlib
import dataclasses
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from conceptcam.data.batch import collate
from conceptcam.training.checkpoints import (
    Checkpoints,
    check_fingerprint,
    fingerprint,
)
from conceptcam.training.seeding import random_states, set_random_states
from conceptcam.training.trainer import Trainer
from tests.scenarios import augmented, squares, stages_of
from tests.worlds import batches, tiny_config, tiny_model, weights

ROOT = Path(__file__).parents[2]
EPOCHS = 2

# Runs in a process of its own, because it forks and kills.
DRIVER = '''
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from torch.utils.data import DataLoader
from conceptcam.data.batch import collate
from conceptcam.training.trainer import Trainer
from tests.scenarios import augmented, squares, stages_of
from tests.worlds import tiny_model, weights

what, workers, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])


def train(folder, every=1, **options):
    """All three stages, with augmentation, shuffling and dropout; gives the final weights and losses."""
    model = tiny_model()
    model.concept_head = torch.nn.Sequential(torch.nn.Dropout(0.2), model.concept_head)
    loader = DataLoader(augmented(9), 4, shuffle=True, collate_fn=collate, num_workers=workers)
    trainer = Trainer(seed=0, checkpoint_dir=folder, checkpoint_every=every, **options)
    records = trainer.fit(model, stages_of(model, 2), loader, squares(8, 1).dataloader(4), resume=True)
    return weights(model), [record[:-2] for record in records]


def in_child(do):
    child = os.fork()
    if child:
        return child
    try:
        do()
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)


def same(first, second):
    return str(first[1]) == str(second[1]) and all(torch.equal(first[0][key], second[0][key]) for key in first[0])


def kill():
    """Runs killed at random moments and resumed, until one of them comes to its end; again and again."""
    random.seed(1)
    start = time.perf_counter()
    whole = train(folder / "whole")
    seconds = time.perf_counter() - start
    assert same(train(folder / "whole"), whole), "a finished run comes back"
    kills = runs = 0
    seen = set()
    while kills < 20:
        runs += 1
        place = folder / f"run-{runs}"
        while True:
            child = in_child(lambda: train(place))
            time.sleep(random.uniform(0, 0.5 * seconds))
            os.kill(child, signal.SIGKILL)
            done = os.waitpid(child, 0)[1] == 0
            if done:
                break
            kills += 1
            seen |= {path.name for path in place.glob(".*")}
            for path in place.glob("checkpoint-*.pt"):
                torch.load(path, weights_only=True)
            if kills >= 20:
                break
        assert same(train(place), whole)
        assert not list(place.glob(".*")), "nothing half written is left"
        assert len(list(place.iterdir())) == 2
    print(kills, runs, len(seen))


def step():
    """Runs killed at each moment there is, one after the other, within writing a checkpoint and around it."""
    whole = train(folder / "whole")
    for moment in range(1, 7):
        place = folder / f"moment-{moment}"

        def die():
            count = [0]
            real_save = torch.save

            def wrap(function):
                def wrapped(*given, **more):
                    count[0] += 1
                    if count[0] == 6 * 6 + moment:
                        if function is real_save:
                            function({"half": torch.zeros(999)}, *given[1:])
                            given[1].truncate(700)
                        os.kill(os.getpid(), signal.SIGKILL)
                    return function(*given, **more)
                return wrapped

            torch.save, os.fsync, os.replace = wrap(torch.save), wrap(os.fsync), wrap(os.replace)
            Path.unlink = wrap(Path.unlink)
            train(place)

        child = in_child(die)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        left = len(list(place.glob(".*")))
        assert same(train(place), whole)
        assert not list(place.glob(".*"))
        print(left, end=" ")


def disk():
    """A run that runs out of disk in the middle."""
    import resource
    whole = train(folder / "whole")
    place, said = folder / "full", folder / "said"

    def fill():
        real, count = torch.save, [0]
        def save(*given):
            count[0] += 1
            if count[0] == 6:
                resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
            real(*given)
        torch.save = save
        try:
            train(place)
        except OSError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            said.write_text(str(error))
            os._exit(3)

    assert os.WEXITSTATUS(os.waitpid(in_child(fill), 0)[1]) == 3
    names = sorted(path.name for path in place.iterdir())
    assert same(train(place), whole)
    print(said.read_text())
    print(*names)


{"kill": kill, "step": step, "disk": disk}[what]()
'''


def drive(what: str, folder: Path, workers: int = 0) -> str:
    command = [sys.executable, "-W", "ignore", "-c", DRIVER, what, str(workers), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    said, told = folder / "stdout", folder / "stderr"
    # Into files: loader workers of a killed run outlive it for a while, and would hold a pipe open.
    with said.open("w") as output, told.open("w") as errors:
        child = subprocess.Popen(
            command, stdout=output, stderr=errors, env=environment, cwd=ROOT, start_new_session=True
        )
        try:
            code = child.wait(timeout=500)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    assert code == 0, told.read_text()
    return said.read_text()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_killed_at_random_ends_with_the_same_weights(tmp_path, workers):
    kills, runs, _ = map(int, drive("kill", tmp_path, workers).split())
    assert kills >= 20
    assert runs >= 1


def test_a_run_killed_at_any_step_of_writing_a_checkpoint_resumes(tmp_path):
    left = drive("step", tmp_path).split()
    assert len(left) == 6
    assert "1" in left, "one of the moments left something half written"


def test_a_run_out_of_disk_says_so_and_leaves_the_checkpoints_before(tmp_path):
    said, names = drive("disk", tmp_path).splitlines()
    assert said.startswith(f"could not write the checkpoint {tmp_path / 'full' / 'checkpoint-000000005.pt'}: ")
    assert "File too large" in said and "Those before are as they were; make room, and resume" in said
    assert names == "checkpoint-000000003.pt checkpoint-000000004.pt"


def trained(folder, *, resume=False, model=None, train=None, stages=None, **options):
    model = model or tiny_model()
    trainer = Trainer(**{"seed": 0, "checkpoint_dir": folder, **options})
    train = batches(squares(9), 4) if train is None else train
    stages = stages or stages_of(model, EPOCHS)
    records = trainer.fit(model, stages, train, batches(squares(8, 1), 4), resume=resume)
    return model, [record[:-2] for record in records]


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for keep in (1, 3):
        trained(tmp_path / str(keep), checkpoint_every=1, keep_checkpoints=keep)
        steps = 3 * EPOCHS * 3  # batches, epochs, stages
        names = [f"checkpoint-{step:09d}.pt" for step in range(steps - keep + 1, steps + 1)]
        assert sorted(path.name for path in (tmp_path / str(keep)).iterdir()) == names


def test_a_finished_run_gives_results_and_weights_untrained(tmp_path):
    first, records = trained(tmp_path)
    called = []
    model = tiny_model(seed=5)
    second, again = trained(tmp_path, resume=True, model=model, callbacks=[lambda *given: called.append(given)])
    assert str(again) == str(records)
    assert not called
    assert all(torch.equal(value, weights(first)[key]) for key, value in weights(second).items())
    assert second.record == first.record
    assert not second.training


def test_resume_without_a_checkpoint_begins(tmp_path):
    first, _ = trained(None)
    second, records = trained(tmp_path / "new", resume=True)
    assert len(records) == 3 * EPOCHS
    assert all(torch.equal(value, weights(first)[key]) for key, value in weights(second).items())


def test_checkpoints_change_nothing(tmp_path):
    loader = DataLoader(augmented(9), 4, shuffle=True, collate_fn=collate)
    first, _ = trained(None, train=loader)
    second, _ = trained(tmp_path, checkpoint_every=1, train=loader)
    assert all(torch.equal(value, weights(first)[key]) for key, value in weights(second).items())


class Stop(Exception):
    pass


def stop_at(count):
    """A hook that stops training after some epochs, and the list of epochs it has seen."""
    seen = []

    def hook(model, record):
        seen.append((record.stage, record.epoch))
        if len(seen) == count:
            raise Stop

    return hook, seen


def stopped(folder, count=2, **options):
    with pytest.raises(Stop):
        trained(folder, callbacks=[stop_at(count)[0]], **options)


def test_an_epoch_that_a_hook_stopped_is_told_again(tmp_path):
    whole, records = trained(None)
    stopped(tmp_path, 3)
    hook, seen = stop_at(99)
    resumed, again = trained(tmp_path, resume=True, callbacks=[hook])
    assert seen == [(record[0], record[1]) for record in records[2:]]
    assert str(again) == str(records)
    assert all(torch.equal(value, weights(whole)[key]) for key, value in weights(resumed).items())


def stream():
    """Batches that only an iterable knows, with random numbers drawn as they are read."""

    class Stream:
        def __iter__(self):
            for batch in batches(squares(9), 3):
                yield batch._replace(images=batch.images + 0.1 * torch.randn(batch.images.shape))

    return Stream()


def fickle(count=9):
    """A loader with a generator of its own, whose state no seed of the trainer sets."""
    return DataLoader(augmented(count), 3, shuffle=True, collate_fn=collate, generator=torch.Generator().manual_seed(7))


def dropping():
    """A model that draws random numbers in each training step."""
    model = tiny_model()
    model.concept_head = torch.nn.Sequential(torch.nn.Dropout(0.2), model.concept_head)
    return model


class Cut(Exception):
    pass


@pytest.mark.parametrize("train", [stream, fickle, lambda: fickle().dataset.dataloader(3, shuffle=True)])
@pytest.mark.parametrize("step", [1, 3, 5, 10])
def test_any_kind_of_batches_resumes_within_an_epoch(tmp_path, monkeypatch, train, step):
    stages = [dataclasses.replace(stage, schedule="constant") for stage in stages_of(tiny_model())]
    options = {"stages": stages, "checkpoint_every": 1}
    whole, records = trained(tmp_path / "whole", model=dropping(), train=train(), **options)
    save = Checkpoints.save

    def save_and_die(self, number, content):
        save(self, number, content)
        if number == step:
            raise Cut

    monkeypatch.setattr(Checkpoints, "save", save_and_die)
    with pytest.raises(Cut):
        trained(tmp_path / "cut", model=dropping(), train=train(), **options)
    monkeypatch.undo()
    torch.rand(3)
    resumed, again = trained(tmp_path / "cut", model=dropping(), train=train(), resume=True, **options)
    assert str(again) == str(records)
    assert all(torch.equal(value, weights(whole)[key]) for key, value in weights(resumed).items())


def test_early_stopping_counts_on_after_a_resume(tmp_path):
    stages = [dataclasses.replace(stage, patience=1) for stage in stages_of(tiny_model(), 6)]
    whole, records = trained(None, stages=stages)
    stopped(tmp_path, 3, stages=stages)
    _, again = trained(tmp_path, resume=True, stages=stages)
    assert str(again) == str(records)
    assert len(records) < 18


def test_a_seedless_run_goes_on_with_the_random_states_it_had(tmp_path):
    loader = DataLoader(augmented(9), 4, shuffle=True, collate_fn=collate)
    torch.manual_seed(4)
    whole, _ = trained(None, seed=None, train=loader)
    torch.manual_seed(4)
    stopped(tmp_path, 3, seed=None, train=loader)
    torch.manual_seed(5)
    resumed, _ = trained(tmp_path, resume=True, seed=None, train=loader)
    assert all(torch.equal(value, weights(whole)[key]) for key, value in weights(resumed).items())


def test_what_was_begun_otherwise_is_not_resumed(tmp_path):
    stopped(tmp_path)
    refused = "cannot resume what was begun otherwise: "
    with pytest.raises(ValueError, match=refused + "config.embed_dim was 8 and is 4. Set it as it was"):
        trained(tmp_path, resume=True, model=tiny_model(embed_dim=4))
    with pytest.raises(ValueError, match=refused + "stage 'concepts': epochs was 2 and is 5; stage 'embedding': ep"):
        trained(tmp_path, resume=True, stages=stages_of(tiny_model(), 5))
    with pytest.raises(
        ValueError, match=refused + r"stages was \['concepts', 'embedding', 'prototypes', 'task'\] and is \['con"
    ):
        trained(tmp_path, resume=True, stages=stages_of(tiny_model(), EPOCHS)[:1])
    with pytest.raises(ValueError, match=refused + "seed was 0 and is 1"):
        trained(tmp_path, resume=True, seed=1)
    with pytest.raises(ValueError, match=refused + "batches was 3 and is 2"):
        trained(tmp_path, resume=True, train=batches(squares(8), 4))


def test_other_boxes_or_images_are_other_data(tmp_path):
    stopped(tmp_path)
    given = batches(squares(9), 4)
    moved = [one._replace(boxes=dataclasses.replace(one.boxes, xyxy=one.boxes.xyxy / 2)) for one in given]
    brighter = [one._replace(images=one.images + 0.1) for one in given]
    for other, what in ((moved, "boxes"), (brighter, "images")):
        with pytest.raises(ValueError, match=f"cannot resume what was begun otherwise: train {what} was .* and is "):
            trained(tmp_path, resume=True, train=other)


def test_a_new_run_does_not_write_among_the_checkpoints_of_another(tmp_path):
    stopped(tmp_path)
    with pytest.raises(FileExistsError, match="holds checkpoints of an earlier run, such as checkpoint-000000003.pt"):
        trained(tmp_path)


def test_resume_needs_a_folder():
    with pytest.raises(ValueError, match=r"`fit\(resume=True\)` needs a `checkpoint_dir`"):
        trained(None, resume=True)
    with pytest.raises(ValueError, match="`checkpoint_every` needs a `checkpoint_dir`"):
        Trainer(checkpoint_every=3)
    with pytest.raises(ValueError, match="`keep_checkpoints` must be at least 1, got 0"):
        Trainer(keep_checkpoints=0)


def spoiled(content: bytes, how: object) -> bytes:
    if isinstance(how, int):
        place = how % len(content)
        return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
    if isinstance(how, slice):
        return content[how]
    file = io.BytesIO()
    torch.save(how, file) if not isinstance(how, bytes) else file.write(how)
    return file.getvalue()


SPOILED = [
    *(b"", b"no checkpoint", b"PK\x03\x04", slice(0, 500), slice(0, 5000), slice(0, -1), 20_000, 60_001),
    *([1, 2], {"format_version": 2}, {"format_version": 2, "state": 5, "model": 5}, torch.zeros(3), print),
]


@pytest.mark.parametrize("how", SPOILED, ids=lambda how: str(how)[:30])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, how):
    stopped(tmp_path, 3)
    before, newest = Checkpoints(tmp_path, 2).paths()
    newest.write_bytes(spoiled(newest.read_bytes(), how))
    model, _ = trained(tmp_path, resume=True)
    assert f"the checkpoint {newest} is damaged; going on from the one before" in caplog.text
    assert newest.with_suffix(".damaged").exists()
    whole = weights(trained(None)[0])
    assert all(torch.equal(value, whole[key]) for key, value in weights(model).items())


def test_checkpoints_that_are_all_damaged_are_named(tmp_path):
    stopped(tmp_path)
    paths = Checkpoints(tmp_path, 2).paths()
    for path in paths:
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(
        ValueError, match=f"the checkpoint {paths[-1]} cannot be read, nor can one before: it is damaged"
    ):
        trained(tmp_path, resume=True)
    assert Checkpoints(tmp_path, 2).paths() == paths


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    torch.save({"progress": print}, tmp_path / "checkpoint-000000001.pt")
    with pytest.raises(ValueError, match="cannot be read"):
        trained(tmp_path, resume=True)


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path):
    good = batches(squares(9), 4)
    broken = good[2]._replace(images=good[2].images * torch.inf)
    with pytest.raises(FloatingPointError, match="its batch of 1 samples: square-8"):
        trained(tmp_path, train=[*good[:2], broken], checkpoint_every=1)
    assert [path.name for path in Checkpoints(tmp_path, 2).paths()] == [f"checkpoint-00000000{n}.pt" for n in (1, 2)]
    with pytest.raises(ValueError, match="cannot resume what was begun otherwise: train images was"):
        trained(tmp_path, train=good, resume=True)


def test_random_states_come_back(tmp_path):
    cpu = torch.device("cpu")
    np.random.normal()  # leaves half a pair of numbers in the state
    states = random_states(cpu)
    torch.save(states, tmp_path / "states.pt")
    draw = lambda: (torch.rand(3).tolist(), np.random.normal(size=3).tolist(), __import__("random").random())  # noqa: E731
    expected = draw()
    set_random_states(torch.load(tmp_path / "states.pt", weights_only=True), cpu)
    assert draw() == expected


def test_fingerprint_tells_stages_apart_by_all_but_their_functions():
    stage = stages_of(tiny_model())[0]
    same = dataclasses.replace(stage, loss_fn=lambda output, batch: output, metric=object)
    now = fingerprint(tiny_config(), [stage])
    check_fingerprint(now, fingerprint(tiny_config(), [same]))
    for change in ({"weight_decay": 0.5}, {"lr": {"backbone": 1.0}}, {"patience": 3}, {"compared": "known"}):
        with pytest.raises(ValueError, match=f"stage 'concepts': {next(iter(change))} was"):
            check_fingerprint(now, fingerprint(tiny_config(), [dataclasses.replace(stage, **change)]))


def test_a_checkpoint_keeps_best_weights_of_what_its_stage_changes(tmp_path):
    model = tiny_model()
    stopped(tmp_path, stages=stages_of(model, 4)[1:])  # in the second epoch of two with projector and prototypes
    kept = torch.load(Checkpoints(tmp_path, 2).paths()[-1], weights_only=True)["state"]["best_weights"]
    learning = {name for name, _ in model.named_parameters() if name.startswith(("projector.", "prototypes."))}
    buffers = {name for name, _ in model.named_buffers()}
    assert learning
    assert set(kept) == learning | (buffers & set(model.state_dict()))


@pytest.mark.skipif(os.name != "posix", reason="folders are locked on POSIX alone")
def test_a_second_training_with_the_same_checkpoints_is_refused(tmp_path):
    first, second = Checkpoints(tmp_path, 2), Checkpoints(tmp_path, 2)
    first.open(resume=True)
    with pytest.raises(BlockingIOError, match="another process is training with the checkpoints in"):
        second.open(resume=True)
    first.close()
    assert second.open(resume=True) is None
    second.close()


@pytest.mark.skipif(os.name != "posix", reason="folders are locked on POSIX alone")
def test_a_fork_that_outlives_its_process_does_not_keep_the_folder(tmp_path):
    source = f"""
import os, sys, time
from pathlib import Path
from conceptcam.training.checkpoints import Checkpoints
checkpoints = Checkpoints(Path({str(tmp_path)!r}), 2)
checkpoints.open(resume=True)
if os.fork() == 0:
    time.sleep(30)
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", source], cwd=ROOT, check=False, stdout=subprocess.DEVNULL)
    checkpoints = Checkpoints(tmp_path, 2)
    assert checkpoints.open(resume=True) is None
    checkpoints.close()


def test_checkpoint_of_another_format_is_refused_with_what_to_do(tmp_path):
    torch.save({"progress": {}, "model": {}}, tmp_path / "checkpoint-000000001.pt")  # as conceptcam 0.1 wrote them
    with pytest.raises(ValueError, match=r"such as 0\.1; finish the run with that version, or start a new one in an"):
        trained(tmp_path, resume=True)
