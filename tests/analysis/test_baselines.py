import math

import pytest
import torch

from conceptcam.analysis.baselines import (
    MAJORITY,
    POOLED_FEATURES,
    TRUE_CONCEPTS,
    Baselines,
    comparison_lines,
    fit_baselines,
    spread_rows,
)

NAN = math.nan


def world(rows: int, seed: int = 0):
    """Features that show one of two concepts, and classes that follow from the concepts alone."""
    random = torch.Generator().manual_seed(seed)
    concepts = (torch.rand(rows, 2, generator=random) < 0.5).float()
    shown = torch.stack([4 * concepts[:, 0], torch.zeros(rows)], dim=1)
    features = torch.randn(rows, 6, generator=random)
    features[:, :2] += shown
    kind = concepts[:, 0] + 2 * concepts[:, 1]
    return features, concepts, torch.eye(4)[kind.long()]


@pytest.fixture(scope="module")
def baselines():
    return fit_baselines(*world(120), kind="multiclass")


def test_majority_scores_chance(baselines):
    assert baselines.score(*world(80, 1))[MAJORITY] == pytest.approx((0.5, 0.5, 0.25))


def test_true_concepts_tell_all_that_follows_from_them(baselines):
    scores = baselines.score(*world(80, 1))[TRUE_CONCEPTS]
    assert math.isnan(scores.concept_auroc)  # it is told the concepts
    assert scores[1:] == pytest.approx((1, 1))


def test_pooled_features_tell_what_they_show(baselines):
    scores = baselines.score(*world(200, 1))[POOLED_FEATURES]
    assert scores.concept_auroc == pytest.approx(0.75, abs=0.06)  # one concept is sure, the other one guessed
    assert 0.4 < scores.balanced_accuracy < 0.6


def test_unknown_labels_are_left_out(baselines):
    features, concepts, targets = world(120)
    concepts, targets = concepts.clone(), targets.clone()
    concepts[::3, 0], targets[1::3] = NAN, NAN
    fitted = fit_baselines(features, concepts, targets, kind="multiclass")
    scores = fitted.score(*world(80, 1))
    assert scores[TRUE_CONCEPTS].task_auroc > 0.9
    known = baselines.score(features[::3], concepts[::3], targets[::3])
    assert not math.isnan(known[POOLED_FEATURES].task_auroc)


def test_data_without_tasks_have_figures_of_concepts_alone():
    features, concepts, _ = world(60)
    fitted = fit_baselines(features, concepts, torch.zeros(60, 0), kind="multilabel")
    scores = fitted.score(features, concepts, torch.zeros(60, 0))
    assert scores[POOLED_FEATURES].concept_auroc > 0.6
    assert all(math.isnan(one.task_auroc) and math.isnan(one.balanced_accuracy) for one in scores.values())


def test_saved_baselines_come_back_the_same(baselines, tmp_path):
    baselines.save(tmp_path / "baselines.safetensors")
    for _ in range(8):  # equal baselines are equal files
        baselines.save(tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "baselines.safetensors").read_bytes()
    again = Baselines.load(tmp_path / "baselines.safetensors")
    assert (again.images, again.task_kind) == (120, "multiclass")
    test = world(80, 1)
    assert str(again.score(*test)) == str(baselines.score(*test))


def test_another_file_is_not_taken_for_baselines(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Baselines.load(tmp_path / "none")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ValueError, match="holds no baselines of a run"):
        Baselines.load(tmp_path / "text")


def test_the_table_says_what_is_undefined(baselines):
    lines = comparison_lines(baselines.score(*world(80, 1)), "models")
    assert lines[0].startswith("models ")
    assert [line.split("  ")[0] for line in lines[1:]] == [MAJORITY, TRUE_CONCEPTS, POOLED_FEATURES]
    assert lines[2].split()[-3] == "-"


def test_chosen_rows_are_spread_over_all():
    assert spread_rows(5, 10) == [0, 1, 2, 3, 4]
    assert spread_rows(10, 5) == [0, 2, 4, 6, 8]
    assert max(spread_rows(5600, 2000)) > 5590
