import csv
import json

import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from conceptcam.analysis.comparison import compare
from conceptcam.analysis.evaluation import evaluate
from conceptcam.analysis.evaluation_figures import evaluation_figures, precision_recall, reliability_bins
from conceptcam.metrics.intervals import label_intervals
from tests.worlds import CONCEPTS, TASKS, Squares, batches, tiny_model

TEST = batches(Squares(40, 2))


def taught(seed, **fields):
    model = tiny_model(**fields)
    with torch.no_grad():
        for parameter in (model.concept_head.score.weight, model.task_head.weight):
            parameter.normal_(generator=torch.Generator().manual_seed(seed))
    for stage in ("concepts", "prototypes", "task"):
        model.record = model.record.after(stage, ())
    return model.eval()


@pytest.fixture(scope="module")
def pair():
    return evaluate(taught(1), TEST, draws=0), evaluate(taught(2), TEST, draws=0)


def test_figures_and_differences_equal_scikit_learns(pair):
    result = compare(*pair, draws=20)
    for k in range(3):
        for side, one in ((result.concepts.first, pair[0]), (result.concepts.second, pair[1])):
            true, said = one.per_image.concepts[:, k], one.per_image.concept_probabilities[:, k]
            assert float(side[k, 0]) == pytest.approx(roc_auc_score(true, said))
            assert float(side[k, 1]) == pytest.approx(average_precision_score(true, said))
    difference = result.concepts.first[:, 0] - result.concepts.second[:, 0]
    torch.testing.assert_close(result.concepts.auroc.value, difference)
    assert float(result.concepts.macro_auroc.value) == pytest.approx(float(difference.mean()))
    assert set(result.tasks.names) == set(TASKS)


def test_a_model_differs_from_itself_by_nothing(pair):
    result = compare(pair[0], pair[0], draws=20)
    for part in (*result.concepts.auroc, *result.concepts.average_precision, *result.tasks.auroc):
        assert part.tolist() == [0] * len(part)


def test_intervals_are_those_of_paired_draws_by_patient(pair):
    patients = [f"p{i // 4}" for i in range(40)]
    result = compare(*pair, patients=patients, draws=50)
    rows, others = (one.per_image for one in pair)
    expected = label_intervals(
        rows.concept_probabilities, rows.concepts, minus=others.concept_probabilities, groups=patients, draws=50
    )
    assert torch.equal(result.concepts.auroc.low, expected.auroc.low)
    assert result.concepts.auroc.low.tolist() != compare(*pair, draws=50).concepts.auroc.low.tolist()


def test_other_images_and_other_labels_are_refused(pair):
    fewer = evaluate(taught(1), TEST[:1], draws=0)
    with pytest.raises(ValueError, match="evaluated on 40 and on"):
        compare(pair[0], fewer)
    other = evaluate(taught(1), batches(Squares(40, 3)), draws=0)
    with pytest.raises(ValueError, match="labels of the concepts differ"):
        compare(pair[0], other)


def test_a_comparison_as_text_and_as_json_names_every_label(pair):
    result = compare(*pair, draws=5)
    content = json.loads(json.dumps(result.as_dict()))
    assert set(content["concepts"]) == {*CONCEPTS, "macro mean"}
    assert all(name in result.table() for name in (*CONCEPTS, *TASKS))


def rare(model, positives):
    """An evaluation in which the first concept has so many positives, and the first task so many negatives."""
    data = Squares(40, 2)
    data.concept_labels[:, 0] = (torch.arange(40) < positives).float()
    data.task_labels[:, 0] = (torch.arange(40) >= positives).float()
    return evaluate(model, batches(data), draws=0)


def test_a_comparison_doubts_labels_with_few_on_a_side(pair):
    result = compare(rare(taught(1), 1), rare(taught(2), 1), draws=5)
    concepts, tasks = (
        f"The macro means leave out the {kind}s with fewer than 5 measured images on a side, whose own differences and "
        f"intervals are carried by single images: {name!r} (1)."
        for kind, name in (("concept", CONCEPTS[0]), ("task", TASKS[0]))
    )
    assert [line for line in result.table().splitlines() if "fewer than" in line] == [concepts, tasks]
    assert result.as_dict()["doubts"] == [concepts, tasks]
    assert compare(rare(taught(1), 5), rare(taught(2), 5), draws=5).as_dict()["doubts"] == []
    assert "carried by" not in compare(*pair, draws=5).table()


def test_predictions_have_a_row_per_image_with_truth(pair, tmp_path):
    rows = pair[0].per_image
    rows.to_csv(tmp_path / "predictions.csv", patients=["p"] * 40)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 40
    for i, row in enumerate(table):
        assert row["patient"] == "p"
        for k, name in enumerate(CONCEPTS):
            assert float(row[name]) == pytest.approx(float(rows.concept_probabilities[i, k]), rel=1e-4)
            assert float(row[f"true {name}"]) == float(rows.concepts[i, k])
        assert float(row[f"true {TASKS[0]} (task)"]) == float(rows.targets[i, 0])


def test_metrics_name_their_schema(pair):
    assert pair[0].as_dict()["schema_version"] == 1


def test_bins_and_curves_equal_plain_loops():
    draw = torch.Generator().manual_seed(0)
    said = (torch.rand(60, generator=draw) * 20).round().double() / 20  # with ties
    true = (torch.rand(60, generator=draw) < said).double()
    mean, fraction, count = reliability_bins(said, true)
    loop = [[i for i in range(60) if min(int(said[i] * 10), 9) == one] for one in range(10)]
    loop = [rows for rows in loop if rows]
    assert count.tolist() == [len(rows) for rows in loop]
    assert mean.tolist() == pytest.approx([float(said[rows].mean()) for rows in loop])
    assert fraction.tolist() == pytest.approx([float(true[rows].mean()) for rows in loop])
    recall, precision = precision_recall(said, true)
    expected_precision, expected_recall, _ = precision_recall_curve(true, said)
    pairs = set(zip(recall.numpy().round(9), precision.numpy().round(9), strict=True))
    theirs = set(zip(expected_recall[:-1].round(9), expected_precision[:-1].round(9), strict=True))
    assert pairs >= theirs


def test_figures_are_drawn_of_what_is_defined(pair):
    pytest.importorskip("matplotlib")
    assert set(evaluation_figures(pair[0])) == {"reliability", "precision-recall"}
