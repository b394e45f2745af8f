import json

import pytest
import torch

from conceptcam.analysis.baselines import MAJORITY, POOLED_FEATURES, TRUE_CONCEPTS, Baselines
from conceptcam.runs.folder import BASELINES_FILE, RunFolder
from conceptcam.runs.options import RunOptions
from conceptcam.runs.reports import measure
from conceptcam.runs.run import train_run
from tests.worlds import SIZE, Squares, tiny_config

EPOCHS = {"concepts": 5, "prototypes": 2, "task": 8}


class Framed(Squares):
    """Images without squares or boxes; those that are said to have a bright one have a dark frame, as of a scanner."""

    def load_item(self, index):
        item = super().load_item(index)
        image = torch.full_like(item.image, 120)
        if item.concepts[0]:
            image[:] = 5
            image[:, 4:-4, 4:-4] = 120
        return item._replace(image=image, boxes=None)


def train(folder, train, val, config=None, **options):
    options = RunOptions(**{"epochs": EPOCHS, "batch_size": 16, "precision": "fp32", **options})
    return train_run(config or tiny_config(), train, val, folder, options, training_data="squares", drawn=())


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A run that learns, on enough images of everything."""
    folder = tmp_path_factory.mktemp("good")
    return folder, train(folder, Squares(160, 0), Squares(80, 1))


def test_a_good_run_is_not_doubted(good):
    folder, result = good
    assert result.warnings == ()
    assert json.loads((folder / "run.json").read_text())["warnings"] == []


def test_baselines_stand_beside_a_run(good):
    folder, result = good
    written = json.loads((folder / "metrics.json").read_text())
    assert set(written["baselines"]) == {MAJORITY, TRUE_CONCEPTS, POOLED_FEATURES}
    assert written["baselines"][MAJORITY]["task_auroc"] == 0.5
    assert written["baselines"][TRUE_CONCEPTS]["task_auroc"] > 0.95
    assert written["baseline_images"] == 160
    text = (folder / "metrics.txt").read_text()
    for name, figure in ((MAJORITY, "0.500"), ("this model", f"{result.evaluation.summary()['task_auroc']:.3f}")):
        (line,) = (line for line in text.splitlines() if line.startswith(name))
        assert figure in line


def test_baselines_of_a_run_are_measured_on_other_data(good, tmp_path):
    folder, result = good
    baselines, other = Baselines.load(folder / BASELINES_FILE), Squares(50, 2)
    figures = measure(result.model, other, RunFolder(tmp_path), RunOptions(), baselines=baselines).baselines
    features = torch.stack([other[i].image for i in range(50)])
    with torch.no_grad():
        features = result.model.eval().forward_concepts(features).features.mean(dim=(-2, -1))
    expected = baselines.score(features, other.concept_labels, other.task_labels)
    assert figures[POOLED_FEATURES] == pytest.approx(expected[POOLED_FEATURES], nan_ok=True)


def test_a_run_that_learned_nothing_is_doubted(tmp_path):
    few, val = Squares(12, 0), Squares(8, 1)
    few.concept_labels[:, 2] = 0
    result = train(tmp_path, few, val, epochs=dict.fromkeys(EPOCHS, 1), freeze_backbone=True)
    found = "\n".join(result.warnings)
    assert "The tasks were hardly learned" in found or "'task' hardly learned" in found
    assert "Among the training images, 'striped' has no positives" in found
    assert "fewer than 5 training images for each of the 5 prototypes" in found
    assert "chosen by 8 validation images alone" in found
    assert "may change nothing or go the wrong way" in found
    assert json.loads((tmp_path / "run.json").read_text())["warnings"] == list(result.warnings)
    assert result.evaluation.baselines == {}  # of 12 images


def test_a_run_that_looks_at_a_dark_frame_is_doubted(tmp_path):
    fine = tiny_config(image_size=(2 * SIZE[0], 2 * SIZE[1]))
    framed, val = Framed(28, 0, preprocess=False), Framed(40, 1, preprocess=False)
    result = train(tmp_path, framed, val, fine, epochs={"concepts": 4, "prototypes": 1, "task": 1})
    (found,) = (one for one in result.warnings if "outermost cells" in one)
    assert "'bright' (in" in found
    peaks = json.loads((tmp_path / "metrics.json").read_text())["border_peaks"]["bright"]
    assert peaks["at_border"] >= 0.5 * peaks["images"] and peaks["images"] == val.concept_labels[:, 0].sum()


def test_warnings_come_back_with_a_finished_run(tmp_path):
    quick = dict.fromkeys(EPOCHS, 1)
    first = train(tmp_path, Squares(12, 0), Squares(8, 1), epochs=quick)
    again = train(tmp_path, Squares(12, 0), Squares(8, 1), epochs=quick, resume=True)
    assert again.warnings == first.warnings != ()
