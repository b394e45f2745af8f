import math
import subprocess
import sys

import matplotlib
import pytest

from conceptcam.analysis.learning_curves import plot_learning_curves
from tests.training.test_history import RUN, record


def test_a_missing_matplotlib_is_said_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"needs matplotlib.*pip install 'conceptcam\[viz\]'"):
        plot_learning_curves(RUN)


def lines(axes) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_curves_hold_the_records_of_a_stage_in_its_own_row():
    figure = plot_learning_curves(iter(RUN))
    assert len(figure.axes) == 6
    for number, stage in enumerate(("concepts", "prototypes")):
        own = [one for one in RUN if one.stage == stage]
        losses, scores, rates = (lines(axes) for axes in figure.axes[3 * number : 3 * number + 3])
        epochs = [one.epoch for one in own]
        assert losses["training"] == (epochs, [one.train_loss for one in own])
        assert losses["validation"] == (epochs, [one.val_loss for one in own])
        assert scores["score"] == (epochs, [one.score for one in own])
        assert rates["learning rate"] == (epochs, [one.lr for one in own])
        assert all(stage in axes.get_title() for axes in figure.axes[3 * number : 3 * number + 3])


def test_curves_mark_the_best_epoch_in_every_panel():
    records = [record(epoch=epoch, best=epoch in (1, 2, 4)) for epoch in range(1, 7)]
    for axes in plot_learning_curves(records).axes:
        assert lines(axes)["best epoch: 4"][0] == [4, 4]


def test_an_undefined_score_leaves_a_gap():
    records = [record(epoch=epoch, score=math.nan if epoch == 2 else 0.5) for epoch in (1, 2, 3)]
    epochs, scores = lines(plot_learning_curves(records).axes[1])["score"]
    assert epochs == [1, 2, 3]
    assert [math.isnan(score) for score in scores] == [False, True, False]


def test_a_stage_without_any_score_says_that_it_is_undefined(tmp_path):
    records = [record(epoch=epoch, score=math.nan, val_loss=math.nan) for epoch in (1, 2)]
    figure = plot_learning_curves(records)
    assert [text.get_text() for text in figure.axes[1].texts] == ["undefined"]
    figure.savefig(tmp_path / "curves.png")  # drawing what is undefined warns of nothing


def test_a_stage_of_one_epoch_is_left_out():
    solved = [record(stage="task", epoch=1, lr=0.0)]
    figure = plot_learning_curves([*RUN, *solved])
    assert len(figure.axes) == len(plot_learning_curves(RUN).axes)
    assert not any("task" in axes.get_title() for axes in figure.axes)
    with pytest.raises(ValueError, match=r"no curves to draw: each of the stages \['task'\] has one epoch"):
        plot_learning_curves(solved)


def test_curves_of_nothing_are_refused():
    with pytest.raises(ValueError, match="there are no records to draw"):
        plot_learning_curves([])


def test_curves_touch_no_global_state_of_matplotlib():
    script = f"""
import sys
from conceptcam.analysis.learning_curves import plot_learning_curves
from conceptcam.training.history import EpochResult
plot_learning_curves({RUN})
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    before = dict(matplotlib.rcParams)
    plot_learning_curves(RUN)
    assert dict(matplotlib.rcParams) == before
