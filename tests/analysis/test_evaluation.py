import csv
import dataclasses
import html
import json
import math
import sys

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from conceptcam.analysis.doubts import average_doubts
from conceptcam.analysis.evaluation import evaluate
from conceptcam.analysis.fitting import fit_thresholds
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.metrics.classification import task_scores
from conceptcam.training.presets import get_preset
from conceptcam.training.trainer import Trainer
from tests.worlds import Squares, batches, tiny_model

TEST = batches(Squares(40, 2))


@pytest.fixture(scope="module")
def model():
    model = tiny_model()
    names = {"concepts": 5, "prototypes": 2, "task": 8}
    train, val = batches(Squares(160, 0), 16), batches(Squares(40, 1), 16)
    Trainer(seed=0).fit(model, get_preset().stages(model.config, epochs=names), train, val)
    return model


def outputs(model):
    with torch.no_grad():
        return [model(batch.images) for batch in TEST]


def test_figures_equal_scikit_learns(model):
    result = evaluate(model, TEST)
    logits = torch.cat([output.concept_logits for output in outputs(model)])
    labels = torch.cat([batch.concepts for batch in TEST])
    for k in range(3):
        assert result.concept_scores.auroc[k] == pytest.approx(roc_auc_score(labels[:, k], logits[:, k]), abs=1e-6)
        expected = average_precision_score(labels[:, k], logits[:, k])
        assert result.concept_scores.average_precision[k] == pytest.approx(expected, abs=1e-6)
    tasks = torch.cat([output.task_logits for output in outputs(model)])
    targets = torch.cat([batch.targets for batch in TEST])
    assert result.task_scores.auroc[0] == pytest.approx(roc_auc_score(targets[:, 0], tasks[:, 0]), abs=1e-6)


def test_trained_maps_point_into_boxes_and_the_controls_do_not(model):
    summary = evaluate(model, TEST).summary()
    assert summary["pointing"] > 0.8
    assert summary["pointing_random_map"] < 0.2
    assert summary["pointing_center_prior"] < 0.3


def test_sided_concepts_come_first_and_have_figures_of_their_own(model):
    result = evaluate(model, TEST, sided_concepts=["striped"])
    assert result.concepts == ("striped", "bright", "dark")
    plain = evaluate(model, TEST)
    assert result.localization.pointing[0] == plain.localization.pointing[2]
    assert result.summary()["sided_pointing"] == pytest.approx(float(plain.localization.pointing[2]))
    assert "striped *" in result.table()


def test_mirrored_boxes_show_in_the_mirror_gap(model):
    def mirrored(batch):
        flipped = batch.boxes.xyxy[:, [2, 1, 0, 3]]
        flipped = torch.stack([1 - flipped[:, 0], flipped[:, 1], 1 - flipped[:, 2], flipped[:, 3]], dim=1)
        return batch._replace(boxes=ConceptBoxes(flipped, batch.boxes.concept, batch.boxes.image))

    right = evaluate(model, TEST).summary()["mirror_gap"]
    wrong = evaluate(model, [mirrored(batch) for batch in TEST]).summary()["mirror_gap"]
    assert right > 0.3
    assert wrong == pytest.approx(-right)


def test_unknown_labels_are_left_out_of_support_and_mean_probability(model):
    hidden = [batch._replace(concepts=batch.concepts.clone()) for batch in TEST]
    for batch in hidden:
        batch.concepts[:, 1] = torch.nan
    result = evaluate(model, hidden)
    assert math.isnan(result.concept_scores.auroc[1])
    assert math.isnan(result.mean_probability[1])
    assert result.concept_scores.positives[1] == 0
    assert result.as_dict()["without_auroc"] == ["dark"]


def test_undefined_is_null_in_json_and_a_dash_in_the_table(model):
    absent = [batch._replace(concepts=torch.zeros_like(batch.concepts), boxes=None) for batch in TEST]
    result = evaluate(model, absent)
    content = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert content["concepts"]["bright"]["AUROC"] is None
    assert content["summary"]["pointing"] is None
    row = next(line for line in result.table().splitlines() if line.startswith("bright"))
    assert "-" in row.split()


def test_the_table_says_where_averages_rest_on_few_images(model):
    data = Squares(40, 2)
    data.concept_labels[:, 0] = (torch.arange(40) < 2).float()
    some = evaluate(model, batches(data), draws=0)
    (line,) = [one for one in some.table().splitlines() if "measured images on" in one]
    assert (line,) == tuple(average_doubts("concept", some.concepts, some.concept_scores))
    assert line.endswith("leave out the concepts with fewer than 5 measured images on a side: 'bright' (2).")
    few = evaluate(model, batches(Squares(6, 2)), draws=0).table()
    assert "No concept has 5 measured images on each side" in few
    assert "measured images on" not in evaluate(model, TEST, draws=0).table()


def test_the_table_without_boxes_has_no_columns_of_boxes(model):
    whole, bare = (evaluate(model, data) for data in (TEST, [batch._replace(boxes=None) for batch in TEST]))
    header, other = (one.table().splitlines()[0].split() for one in (whole, bare))
    assert {"boxes", "point", "energy", "area"} <= set(header) and header[: len(other)] == other
    assert other[-2:] == ["ECE", "Brier"] and "box size" in whole.table() and "box size" not in bare.table()
    assert whole.as_dict()["concepts"]["dark"].keys() == bare.as_dict()["concepts"]["dark"].keys()


def test_tasks_are_not_reported_if_they_were_never_taught():
    model = tiny_model()
    model.record = model.record.after("concepts", ["backbone"])
    result = evaluate(model, TEST)
    assert result.tasks == ()
    assert math.isnan(result.summary()["task_auroc"])


def test_what_cannot_be_evaluated_is_refused(model):
    with pytest.raises(ValueError, match="never taught concepts"):
        evaluate(tiny_model(), TEST)
    with pytest.raises(ValueError, match=r"unknown concept 'stripes'; did you mean \['striped'\]"):
        evaluate(model, TEST, sided_concepts=["stripes"])
    with pytest.raises(ValueError, match="no batches to evaluate"):
        evaluate(model, [])


def test_batch_sizes_do_not_change_figures(model):
    whole = evaluate(model, batches(Squares(40, 2), 40)).summary()
    parts = evaluate(model, TEST).summary()
    assert whole == pytest.approx(parts, nan_ok=True, abs=1e-6)


def test_thresholds_reach_the_highest_f1_and_name_their_source(model):
    fit_thresholds(model, TEST, thresholds_source="40 squares")
    record = model.record
    assert record.thresholds_source == "40 squares"
    logits = torch.cat([output.concept_logits for output in outputs(model)]).double().sigmoid()
    labels = torch.cat([batch.concepts for batch in TEST]) > 0.5

    def f1(cut, k):
        called = logits[:, k] > cut
        return 2 * float((called & labels[:, k]).sum()) / float(called.sum() + labels[:, k].sum())

    for k, name in enumerate(model.config.concepts):
        best = max(f1(cut, k) for cut in [0.0, *logits[:, k].tolist()])
        assert f1(record.thresholds[name], k) == pytest.approx(best)
        present = logits[labels[:, k], k].sort().values
        assert record.typical_present[name] == pytest.approx(float(present[(len(present) - 1) // 2]))
        assert record.typical_absent[name] < record.typical_present[name]
    assert evaluate(model, TEST).chosen_f1[0] == pytest.approx(f1(record.thresholds["bright"], 0))


def test_counts_are_printed_whole_unless_labels_are_soft(model):
    soft = [batch._replace(concepts=batch.concepts.clone()) for batch in TEST]
    soft[0].concepts[0, 0] = 0.3

    def counts(data):
        row = next(line for line in evaluate(model, data).table().splitlines() if line.startswith("bright"))
        return row.split()[1:3]

    hard = torch.cat([batch.concepts for batch in TEST])[:, 0].sum().item()
    assert counts(TEST) == [f"{hard:.0f}", f"{40 - hard:.0f}"]
    part = torch.cat([batch.concepts for batch in soft])[:, 0].sum().item()
    assert counts(soft) == [f"{part:.1f}", f"{40 - part:.1f}"]


def test_evaluating_leaves_the_model_and_random_state_alone(model):
    model.train()
    state = torch.get_rng_state()
    evaluate(model, Squares(8, 2).dataloader(4))
    assert model.training
    with pytest.raises(ValueError, match="no batches"):
        evaluate(model, [])
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    model.eval()


def test_data_with_other_tasks_than_the_model_is_refused(model):
    asked = []

    def wrong():
        for batch in TEST:
            asked.append(len(batch.images))
            yield batch._replace(targets=batch.targets[:, :1])

    with pytest.raises(ValueError, match="the data has 1 task labels, the model 2 tasks"):
        evaluate(model, wrong())
    assert len(asked) == 1 < len(TEST)  # at the first batch, not after all


def test_data_with_other_concepts_than_the_model_is_refused(model):
    with pytest.raises(ValueError, match="the data has 2 concept labels, the model 3 concepts"):
        evaluate(model, [batch._replace(concepts=batch.concepts[:, :2]) for batch in TEST])


def test_area_is_the_energy_and_iou_of_a_constant_map(model):
    with torch.no_grad():
        model.concept_head.score.weight.zero_()
        model.concept_head.score.bias.fill_(1.0)
    place = evaluate(model, TEST).localization
    torch.testing.assert_close(place.energy, place.chance)
    torch.testing.assert_close(place.iou, place.chance)


def test_a_text_in_place_of_sided_concepts_is_refused(model):
    with pytest.raises(ValueError, match="`sided_concepts` must be a list of names, got the text 'square'"):
        evaluate(model, [], sided_concepts="square")


def test_headline_figures_have_intervals_by_image_or_patient(model):
    result = evaluate(model, TEST)
    for name, interval in result.intervals.items():
        assert float(interval.value) == pytest.approx(result.summary()[name])
        assert interval.low <= interval.value <= interval.high
    assert set(result.intervals) == {"concept_auroc", "concept_ap", "task_auroc", "task_ap"}
    assert "concept_auroc" in result.table().splitlines()[-4]
    low, high = result.as_dict()["intervals"]["task_ap"]
    assert low < high
    alone = evaluate(model, TEST, patients=[""] * 40)
    assert alone.intervals["task_ap"] == result.intervals["task_ap"]
    by_patient = evaluate(model, TEST, patients=[str(index // 10) for index in range(40)])
    assert by_patient.intervals["task_ap"] != result.intervals["task_ap"]
    assert evaluate(model, TEST, draws=0).intervals == {}


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_auroc_of_tasks_is_that_of_the_predictions_file(kind, tmp_path):
    tasks = ("a", "b", "c")
    model = tiny_model(task_kind=kind, bottleneck="concepts", tasks=tasks).eval()
    record = model.record.after("concepts", ["backbone"]).after("task", ["task_head"])
    pair = (0.3, 0.0) if kind == "multiclass" else (0.3, 1.0)
    model.record = dataclasses.replace(
        record, task_calibration=dict.fromkeys(tasks, pair), calibration_source="squares"
    )
    with torch.no_grad():
        model.task_head.weight.normal_(0, 5, generator=torch.Generator().manual_seed(0))
        model.concept_head.score.weight.normal_(0, 5, generator=torch.Generator().manual_seed(0))
    classes = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(1))
    data = [batch._replace(targets=torch.eye(3)[rows]) for batch, rows in zip(TEST, classes.split(8), strict=True)]
    result = evaluate(model, data)
    result.per_image.to_csv(tmp_path / "predictions.csv")
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    logits = torch.cat([output.task_logits for output in outputs(model)])
    own = task_scores(logits, torch.eye(3)[classes], kind)
    for t, name in enumerate(tasks):
        true, said = ([float(row[column]) for row in rows] for column in (f"true {name} (task)", name))
        assert float(result.task_scores.auroc[t]) == pytest.approx(roc_auc_score(true, said), abs=1e-6)
        expected = average_precision_score(true, said)
        assert float(result.task_scores.average_precision[t]) == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(own.auroc, result.task_scores.auroc) == (kind == "multilabel")  # a temperature reorders


def test_intervals_of_exclusive_tasks_hold_their_figures():
    model = tiny_model(task_kind="multiclass", bottleneck="concepts")
    model.record = model.record.after("concepts", ["backbone"]).after("task", ["task_head"])
    with torch.no_grad():
        model.task_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    one_of_two = [batch._replace(targets=torch.eye(2)[batch.concepts[:, 0].long()]) for batch in TEST]
    one_of_two[0].targets[0] = torch.nan
    result = evaluate(model, one_of_two)
    assert float(result.intervals["task_auroc"].value) == pytest.approx(result.summary()["task_auroc"])
    assert float(result.intervals["task_ap"].value) == pytest.approx(result.summary()["task_ap"])


def test_an_evaluation_prints_a_line_and_shows_its_table(model):
    result = evaluate(model, TEST)
    expected = (
        f"Evaluation of 3 concepts and 2 tasks on 40 images: concept_auroc {result.summary()['concept_auroc']:.3f}"
    )
    assert repr(result).startswith(expected) and "\n" not in repr(result)
    shown = result._repr_html_()
    assert "font-family: monospace" in shown and shown.endswith(f">{html.escape(result.table())}</pre>")


def test_a_plot_has_a_bar_as_long_as_each_auroc(model):
    result = evaluate(model, TEST)
    (axes,) = result.plot().axes
    expected = [*result.concept_scores.auroc.tolist(), *result.task_scores.auroc.tolist()]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(expected, nan_ok=True)
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        *result.concepts,
        *(f"{name} (task)" for name in result.tasks),
    ]


def test_a_plot_without_matplotlib_says_what_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'conceptcam\[viz\]'"):
        evaluate(model, TEST).plot()


def test_a_data_frame_has_the_figures_of_the_table(model):
    pytest.importorskip("pandas")
    evaluation = evaluate(model, batches(Squares(24, seed=2)))
    frame = evaluation.to_dataframe().set_index("name")
    assert list(frame.index) == [*evaluation.concepts, *evaluation.tasks]
    assert list(frame["kind"]) == ["concept"] * 3 + ["task"] * 2
    expected = [*evaluation.concept_scores.auroc.tolist(), *evaluation.task_scores.auroc.tolist()]
    assert frame["AUROC"].tolist() == pytest.approx(expected, nan_ok=True)
    assert frame["point"].isna().tolist()[-2:] == [True, True]  # tasks have no maps
