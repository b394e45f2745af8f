import math
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from conceptcam.training.history import CSVLogger, EpochResult, TensorBoardLogger, read_history
from conceptcam.training.presets import get_preset
from conceptcam.training.trainer import Trainer
from tests.worlds import Squares, batches, tiny_model


def record(stage: str = "concepts", epoch: int = 1, **changes) -> EpochResult:
    values = {
        "train_loss": 1 / 3 + epoch,
        "val_loss": 0.1 + 0.2,
        "score": 2 / 7,
        "lr": 1e-300 / 3,
        "best": epoch < 3,
        "seconds": 1234.5678901234567,
        "cached": stage != "concepts",
    }
    return EpochResult(stage, epoch, **{**values, **changes})


RUN = [record("concepts", 1), record("concepts", 2), record("prototypes", 1), record("prototypes", 2)]


def write(path, records, **options) -> None:
    table = CSVLogger(path, **options)
    for one in records:
        table(None, one)


def same(records, others) -> bool:
    """Whether records are equal in type and to the last digit, NaN being equal to NaN."""
    return [list(map(repr, one)) for one in records] == [list(map(repr, one)) for one in others]


def test_records_read_back_are_those_that_were_written(tmp_path):
    odd = record('a, "b" \n c\'', 7, score=math.nan, val_loss=math.inf, train_loss=-0.0)
    write(tmp_path / "history.csv", [*RUN, odd])
    assert same(read_history(tmp_path / "history.csv"), [*RUN, odd])


def test_the_columns_are_the_fields_of_a_record(tmp_path):
    write(tmp_path / "history.csv", [record(score=math.nan)])
    header, row = (tmp_path / "history.csv").read_text().splitlines()
    assert header == "stage,epoch,train_loss,val_loss,score,lr,best,seconds,cached"
    assert row.split(",")[4] == "nan" and row.split(",")[6] == "True"


def test_a_row_is_in_the_file_as_soon_as_its_epoch_ends(tmp_path):
    table = CSVLogger(tmp_path / "new" / "history.csv")
    for count, one in enumerate(RUN, start=1):
        table(None, one)
        assert same(read_history(tmp_path / "new" / "history.csv"), RUN[:count])


def test_nothing_is_written_before_an_epoch_ends(tmp_path):
    write(tmp_path / "history.csv", RUN)
    # Every process of a run makes one of these; only the first may write.
    CSVLogger(tmp_path / "history.csv")
    CSVLogger(tmp_path / "other" / "history.csv")
    assert same(read_history(tmp_path / "history.csv"), RUN)
    assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]


def test_a_new_run_starts_a_new_table(tmp_path):
    write(tmp_path / "history.csv", RUN)
    write(tmp_path / "history.csv", RUN[:1])
    assert same(read_history(tmp_path / "history.csv"), RUN[:1])


# A run can only resume behind epochs that it ended.
@pytest.mark.parametrize("written, start", [(end, start) for end in range(5) for start in range(min(end, 3) + 1)])
def test_a_resumed_run_neither_doubles_nor_loses_an_epoch(tmp_path, written, start):
    path = tmp_path / "history.csv"
    write(path, RUN[:written])
    again = [one._replace(seconds=5.0) for one in RUN[start:]]
    write(path, again, resume=True)
    assert same(read_history(path), [*RUN[:start], *again])


def test_two_trainings_into_one_table_keep_all_their_rows(tmp_path):
    write(tmp_path / "history.csv", [*RUN, *RUN])
    assert same(read_history(tmp_path / "history.csv"), [*RUN, *RUN])
    write(tmp_path / "history.csv", RUN[3:], resume=True)
    assert same(read_history(tmp_path / "history.csv"), [*RUN, *RUN])


def test_a_row_cut_short_anywhere_is_left_out_and_written_again(tmp_path, caplog):
    path = tmp_path / "history.csv"
    write(path, RUN[:2])
    before = path.read_bytes()
    write(path, RUN[:3])
    whole = path.read_bytes()
    for end in range(len(before) + 1, len(whole)):
        path.write_bytes(whole[:end])
        caplog.clear()
        assert same(read_history(path), RUN[:2])
        assert "ends within a row" in caplog.text
        write(path, RUN[2:], resume=True)
        assert same(read_history(path), RUN)


def test_a_run_that_is_killed_leaves_every_epoch_that_it_ended(tmp_path):
    script = f"""
import os, signal, sys
from conceptcam.training.history import EpochResult, CSVLogger
table = CSVLogger(sys.argv[1])
for one in {RUN[:3]}:
    table(None, one)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "history.csv")], capture_output=True)
    assert killed.returncode == -9, killed.stderr
    assert same(read_history(tmp_path / "history.csv"), RUN[:3])


def test_a_table_that_cannot_be_replaced_stays_whole(tmp_path):
    path = tmp_path / "history.csv"
    write(path, RUN)
    (tmp_path / ".history.csv.part").mkdir()  # nothing can be written under that name
    with pytest.raises(OSError, match="history.csv"):
        write(path, RUN[:1])
    assert same(read_history(path), RUN)


def test_no_other_file_is_left_behind(tmp_path):
    write(tmp_path / "history.csv", RUN)
    write(tmp_path / "history.csv", RUN[2:], resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", r"is not a table of epochs: its columns are \[\], expected \['stage', 'epoch'"),
        ("stage,epoch\r\n", r"is not a table of epochs: its columns are \['stage', 'epoch'\], expected"),
        (
            "HEADER\r\na,1,1,1,1,1,True,1,False\r\na,two,1,1,1,1,True,1,False\r\n",
            r"row 2 is not an epoch: \['a', 'two'",
        ),
        ("HEADER\r\na,1,1,1,1,1,yes,1,False\r\n", "row 1 is not an epoch"),
        ("HEADER\r\na,1,1,1\r\n", "row 1 is not an epoch"),
    ],
)
def test_a_file_that_is_no_table_of_epochs_is_refused(tmp_path, text, message):
    path = tmp_path / "history.csv"
    path.write_text(text.replace("HEADER", ",".join(EpochResult._fields)), newline="")
    with pytest.raises(ValueError, match=message):
        read_history(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        write(path, RUN, resume=True)
    assert path.read_bytes() == before


def test_a_trainer_writes_the_records_that_it_returns(tmp_path):
    data = batches(Squares(8))
    stages = get_preset().stages(tiny_model().config, epochs={"concepts": 2, "prototypes": 1, "task": 1})
    trainer = Trainer(seed=0, callbacks=[CSVLogger(tmp_path / "history.csv")])
    records = trainer.fit(tiny_model(), stages, data, data)
    assert len(records) == 5 and same(read_history(tmp_path / "history.csv"), records)


@pytest.fixture
def ordered_files(monkeypatch):
    """Lets TensorBoard tell the order of files of one second, which it takes from the digits of a counter."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(1000))


def events(folder) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run: (step, value) by tag."""
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags}


FIELDS = {
    "loss/training": "train_loss",
    "loss/validation": "val_loss",
    "score": "score",
    "learning rate": "lr",
    "seconds": "seconds",
}


def expected(records, stage) -> dict[str, list[tuple[int, float]]]:
    own = [one for one in records if one.stage == stage]
    return {
        tag: [(one.epoch, pytest.approx(getattr(one, field), rel=1e-6, nan_ok=True)) for one in own]
        for tag, field in FIELDS.items()
    }


def test_tensorboard_shows_every_epoch_of_every_stage(tmp_path):
    records = [*RUN, record("task", 1, score=math.nan)]
    board = TensorBoardLogger(tmp_path)
    for count, one in enumerate(records, start=1):
        board(None, one)
        assert events(tmp_path / one.stage) == expected(records[:count], one.stage)  # at once, not when it is closed
    board.close()
    for stage in ("concepts", "prototypes", "task"):
        assert events(tmp_path / stage) == expected(records, stage)


def test_tensorboard_shows_an_epoch_that_was_trained_again_once(tmp_path, ordered_files):
    first = TensorBoardLogger(tmp_path)
    for one in RUN:
        first(None, one)
    first.close()
    again = [RUN[1]._replace(train_loss=9.0), *RUN[2:]]
    second = TensorBoardLogger(tmp_path)
    for one in again:
        second(None, one)
    second.close()
    for stage in ("concepts", "prototypes"):
        assert events(tmp_path / stage) == expected([RUN[0], *again], stage)


def test_tensorboard_goes_on_after_it_was_closed(tmp_path, ordered_files):
    board = TensorBoardLogger(tmp_path)
    for one in RUN:
        board(None, one)
        board.close()
    assert events(tmp_path / "prototypes") == expected(RUN, "prototypes")


def test_making_a_tensorboard_log_writes_nothing(tmp_path):
    TensorBoardLogger(tmp_path / "board").close()
    assert not (tmp_path / "board").exists()


def test_a_missing_tensorboard_is_said_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"needs TensorBoard.*pip install 'conceptcam\[tensorboard\]'"):
        TensorBoardLogger(tmp_path)


def test_importing_the_history_loads_no_tensorboard_or_matplotlib():
    script = (
        "import sys, conceptcam.training.history; assert not {'tensorboard', 'matplotlib', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
