import csv
import dataclasses
import json

import pytest
import torch

from conceptcam.metrics.calibration import calibration_scores
from conceptcam.metrics.classification import per_label_metrics
from conceptcam.model.concept_model import ConceptModel
from conceptcam.runs.cross_validation import OutOfFold, _doubts, confusion_matrix, cross_validate, table
from conceptcam.runs.options import RunOptions
from tests.worlds import Squares, tiny_config

FROZEN = {"freeze_backbone": True, "batch_size": 8, "precision": "fp32"}


def validated(folder, data=None, **options):
    how = RunOptions(**{**FROZEN, **options})
    return cross_validate(tiny_config(), data or Squares(18, 0), folder, how, folds=3, training_data="squares")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cv") / "run"
    return folder, validated(folder)


def test_each_image_is_predicted_by_a_model_that_had_not_seen_it(whole):
    folder, result = whole
    data = Squares(18, 0)
    for number in range(3):
        held_out = (result.answers.fold == number).nonzero()[:, 0]
        model = ConceptModel.from_pretrained(folder / f"fold-{number + 1}")
        images = torch.stack([model.preprocess(data.load_item(row).image) for row in held_out.tolist()])
        with torch.inference_mode():
            logits = model(images).concept_logits
        torch.testing.assert_close(result.answers.concept_logits[held_out], logits, atol=1e-4, rtol=1e-4)
        content = json.loads((folder / f"fold-{number + 1}" / "run.json").read_text())
        assert content["data"]["train_images"] == 18 - len(held_out)
    rows = list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))
    assert [row["image"] for row in rows] == list(data.names)


def test_figures_are_pooled_and_spread_over_folds(whole):
    folder, result = whole
    answers = result.answers
    pooled = per_label_metrics(answers.concept_logits, answers.concepts).auroc.nanmean().item()
    assert result.figures["concept_auroc"]["pooled"] == pytest.approx(pooled)
    own = [
        per_label_metrics(answers.concept_logits[rows], answers.concepts[rows]).auroc.nanmean()
        for rows in (answers.fold == number for number in range(3))
    ]
    assert result.figures["concept_auroc"]["mean"] == pytest.approx(torch.stack(own).mean().item())
    assert result.figures["concept_auroc"]["sd"] == pytest.approx(torch.stack(own).std().item())
    assert (folder / "metrics.txt").read_text() == table(result)


def test_the_final_model_has_thresholds_from_out_of_fold(whole):
    folder, result = whole
    model = ConceptModel.from_pretrained(folder / "final")
    assert model.record.thresholds_source == "highest F1 out of fold, 18 images in 3 folds"
    assert model.record.metrics["concept_auroc"] == pytest.approx(result.figures["concept_auroc"]["pooled"])
    assert model.record.training_data == "squares"
    assert json.loads((folder / "final" / "run.json").read_text())["data"]["train_images"] == 18


def test_warnings_are_of_the_pooled_predictions(whole):
    folder, result = whole
    scores = per_label_metrics(result.answers.concept_logits, result.answers.concepts)
    few = [name for name, *sides in zip(result.model.config.concepts, *scores[-2:], strict=True) if min(sides) < 5]
    said = [warning for warning in result.warnings if "5 measured images" in warning and "concepts" in warning]
    assert bool(few) == bool(said) and all(repr(name) in said[0] for name in few)
    assert json.loads((folder / "final" / "run.json").read_text())["warnings"] == list(result.warnings)
    assert not any("were chosen by" in warning for warning in result.warnings)


def test_one_class_for_all_and_peaks_at_the_border_are_doubted():
    truth = torch.eye(2).repeat(30, 1)
    config = dataclasses.replace(tiny_config(), concepts=("a", "b"), tasks=("x", "y"), task_kind="multiclass")
    scattered = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    peaks = {name: {"images": 15, "at_border": count, "chance": 0.25} for name, count in (("a", 14), ("b", 2))}

    def said(task_logits, measured=({"border_peaks": peaks},) * 2):
        answers = OutOfFold(scattered, truth, task_logits, truth, torch.arange(60) % 2)
        return " ".join(_doubts(answers, config, {}, {}, measured))

    assert "100 % of them are called 'x', and 50 % are" in said(torch.tensor([[1.0, 0.0]]).expand(60, 2))
    assert "'a' (in 28 of 30 images" in said(scattered) and "'b' (in" not in said(scattered)
    assert "are called" not in said(scattered)
    assert "peak" not in said(scattered, measured=[{}, {}])  # of an older version


def test_a_cross_validation_is_resumed_to_the_same_figures(whole):
    folder, result = whole
    again = validated(folder, resume=True)
    torch.testing.assert_close(again.answers.concept_logits, result.answers.concept_logits, atol=1e-5, rtol=1e-5)
    with pytest.raises(FileExistsError, match=r"holds a cross-validation; resume it with `resume=True` \(--resume\)"):
        validated(folder)
    with pytest.raises(ValueError, match="divides the images into 3 folds, not 2"):
        how = RunOptions(**FROZEN, resume=True)
        cross_validate(tiny_config(), Squares(18, 0), folder, how, folds=2, training_data="squares")


def test_epochs_and_thresholds_are_chosen_on_images_set_aside(tmp_path):
    validated(tmp_path, freeze_backbone=False, epochs={"concepts": 1, "prototypes": 1, "task": 1})
    for number in (1, 2, 3):
        data = json.loads((tmp_path / f"fold-{number}" / "run.json").read_text())["data"]
        assert data["train_images"] + data["val_images"] == 12
        record = ConceptModel.from_pretrained(tmp_path / f"fold-{number}").record
        assert record.thresholds_source == f"highest F1 on {data['val_images']} validation images"


def test_nothing_of_a_fold_is_fitted_to_its_held_out_images(whole):
    folder, result = whole
    for number in (1, 2, 3):
        record = ConceptModel.from_pretrained(folder / f"fold-{number}").record
        assert not record.thresholds and not record.calibration and not record.task_calibration
        assert not record.feature_statistics
        figures = json.loads((folder / f"fold-{number}" / "metrics.json").read_text())
        rows = result.answers.fold == number - 1
        logits, labels = result.answers.concept_logits[rows], result.answers.concepts[rows]
        assert figures["summary"]["concept_f1_chosen"] is None
        own = calibration_scores(logits.double().sigmoid(), labels).brier
        found = [figures["concepts"][name]["Brier"] for name in tiny_config().concepts]
        assert found == pytest.approx(own.tolist(), abs=1e-4)
        warnings = json.loads((folder / f"fold-{number}" / "run.json").read_text())["warnings"]
        assert not any("threshold" in one and "rests" in one or "chosen by" in one for one in warnings)


def test_a_confusion_matrix_counts_what_is_called_what():
    logits = torch.eye(3)[[0, 1, 2, 0, 0]]
    targets = torch.eye(3)[[0, 1, 1, 2, 0]]
    targets[4] = torch.nan
    assert confusion_matrix(logits, targets).tolist() == [[1, 0, 0], [0, 1, 1], [1, 0, 0]]


def test_simpler_models_are_averaged_over_folds(tmp_path):
    result = validated(tmp_path, Squares(48, 0))
    own = [json.loads((tmp_path / f"fold-{number}" / "metrics.json").read_text())["baselines"] for number in (1, 2, 3)]
    assert result.baselines.keys() == own[0].keys()
    for name, scores in result.baselines.items():
        figures = [one[name]["task_auroc"] for one in own]
        assert scores.task_auroc == pytest.approx(sum(figures) / 3)
    (line,) = (line for line in table(result).splitlines() if line.startswith("this model"))
    assert f"{result.figures['task_auroc']['mean']:.3f}" in line
