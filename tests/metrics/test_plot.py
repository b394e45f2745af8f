"""Metrics draw what they computed."""

import pytest
import torch

from conceptcam.metrics import CalibrationMetrics, LabelMetrics, MacroAUROC, PrototypePurity

pytest.importorskip("matplotlib")
NAMES = ("bright", "dark", "striped")


def scores(metric: LabelMetrics | CalibrationMetrics) -> None:
    random = torch.Generator().manual_seed(0)
    metric.update(torch.rand(20, 3, generator=random), (torch.rand(20, 3, generator=random) < 0.5).float())


@pytest.mark.parametrize("metric", [LabelMetrics(), CalibrationMetrics()])
def test_each_label_has_a_bar_of_each_score(metric):
    scores(metric)
    figure, axes = metric.plot(labels=NAMES)
    assert [text.get_text() for text in axes.get_yticklabels()] == list(NAMES) and axes.figure is figure
    drawn = [bar.get_width() for bars in axes.containers for bar in bars]
    values = metric.compute()
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert drawn == pytest.approx([float(one) for name in metric.plotted for one in getattr(values, name)], nan_ok=True)


def test_a_single_number_is_drawn_over_the_values_given():
    figure, axes = MacroAUROC().plot([torch.tensor(0.5), torch.tensor(0.75)])
    assert axes.lines[0].get_ydata().tolist() == [0.5, 0.75] and axes.get_ylabel() == "MacroAUROC"
    again, same = MacroAUROC().plot(torch.tensor(0.25), axes)
    assert same is axes and again is figure and len(axes.lines) == 2


def test_purity_has_a_bar_of_each_prototype():
    _, axes = PrototypePurity().plot(torch.tensor([[0.5, 1.0], [0.25, 0.0]]))
    assert [[bar.get_width() for bar in bars] for bars in axes.containers] == [[0.5, 0.25], [1.0, 0.0]]


def test_what_cannot_be_drawn_is_refused_in_a_sentence():
    metric = LabelMetrics()
    scores(metric)
    with pytest.raises(ValueError, match="several results make no plot; draw one of them, or `macro_average` of each"):
        metric.plot([metric.compute(), metric.compute()])
    with pytest.raises(ValueError, match="results of 3 labels and 2 names"):
        metric.plot(labels=NAMES[:2])


def test_without_matplotlib_the_plot_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install 'conceptcam\\[viz\\]'"):
        MacroAUROC().plot(torch.tensor(0.5))
