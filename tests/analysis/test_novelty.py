import json
import math

import pytest
import torch

from conceptcam.analysis.evaluation import evaluate
from conceptcam.analysis.explanation import explain
from conceptcam.analysis.fitting import fit_novelty
from conceptcam.analysis.intervention_result import InterventionResult
from conceptcam.config import ConceptConfig, TrainingRecord, from_json, to_json
from conceptcam.data.phantom.dataset import PhantomDataset
from conceptcam.metrics.novelty import feature_distance, fit_feature_statistics
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.novelty import pack_statistics, unlike_threshold, unpack_statistics
from tests.worlds import SIZE, Squares, batches, tiny_model

TRAIN, VAL = batches(Squares(60)), batches(Squares(40, 1))
IMAGE = Squares(4, 3, preprocess=False).load_item(1).image
NOISE = torch.randint(0, 256, (3, *SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def model():
    model = tiny_model()
    model.record = model.record.after("concepts", ["backbone"])
    fit_novelty(model, TRAIN, VAL)
    return model


def test_number_is_a_distance_over_the_furthest_in_validation(model):
    with torch.no_grad():
        train, val = (
            torch.cat([model.eval().backbone(batch.images).mean(dim=(2, 3)) for batch in data]) for data in (TRAIN, VAL)
        )
        one = model.backbone(model.preprocess(IMAGE)[None]).mean(dim=(2, 3))
    statistics = fit_feature_statistics(train)
    expected = feature_distance(one, statistics) / feature_distance(val, statistics).max()
    assert explain(model, IMAGE).unlikeness == pytest.approx(float(expected), rel=1e-4)
    assert model.predict([IMAGE]).unlikeness.tolist() == pytest.approx([float(expected)], rel=1e-4)
    assert model.record.unlike_source == "the furthest of 40 validation images"


def test_an_unlike_image_is_said_to_be_so_first_and_in_every_output(model, tmp_path):
    explanation = explain(model, NOISE)
    assert explanation.unlikeness > 1
    assert "this image is unlike those the model was trained on" in explanation.lines()[0]
    assert explanation.lines(say_unlike=False) == explanation.lines()[1:]
    assert explanation.as_dict()["unlikeness"] == explanation.unlikeness
    assert explanation.heading().startswith("This image is unlike those the model was trained on")
    assert explanation.heading(say_unlike=False) == explanation._replace(unlike="").heading()
    assert explanation.figure().height > explanation.figure(heading="").height
    answered = InterventionResult(explanation, explanation, (), (), ())
    assert answered.figure().height > answered.figure(say_unlike=False).height
    table = model.predict([IMAGE, NOISE])
    table.to_csv(tmp_path / "table.csv")
    header, *rows = (tmp_path / "table.csv").read_text().splitlines()
    assert header.endswith(",unlikeness") and float(rows[1].split(",")[-1]) > 1
    noise = [batch._replace(images=torch.randn(batch.images.shape)) for batch in batches(Squares(8))]
    result = evaluate(model, noise)
    assert result.unlike == 1 and "100.0% of the images are unlike" in result.table().splitlines()[0]


def test_validation_images_are_not_said_to_be_unlike(model):
    data = Squares(40, 1, preprocess=False)
    for index in range(40):
        explanation = explain(model, data.load_item(index).image)
        assert explanation.unlikeness <= 1 + 1e-4 and not explanation.unlike
    assert evaluate(model, VAL).unlike < 0.05


def test_a_record_without_statistics_cannot_tell(model):
    model.record = model.record.after("concepts", ["backbone"])
    assert model.record.feature_statistics == ""
    explanation = explain(model, NOISE)
    assert math.isnan(explanation.unlikeness) and not explanation.unlike
    assert explanation.as_dict()["unlikeness"] is None
    assert model.predict([NOISE]).unlikeness is None
    assert math.isnan(evaluate(model, VAL).unlike)


def test_training_of_later_stages_keeps_the_statistics(model):
    later = model.record.after("prototypes", ["projector"]).after("task", ["task_head"])
    assert later.feature_statistics == model.record.feature_statistics


def test_statistics_travel_in_the_record_as_text(model):
    config = ConceptConfig(concepts=("a",), backbone="small_cnn_s8")
    assert from_json(to_json(config, model.record))[1] == model.record
    assert from_json(to_json(config, TrainingRecord()))[1] == TrainingRecord()
    old = json.loads(to_json(config, TrainingRecord()))
    for name in ("feature_statistics", "unlike_from", "unlike_source"):
        del old["record"][name]
    assert from_json(json.dumps(old))[1] == TrainingRecord()
    statistics = fit_feature_statistics(torch.randn(50, 6))
    again = unpack_statistics(pack_statistics(statistics), 6)
    for one, other in zip(statistics, again, strict=True):
        torch.testing.assert_close(one.float().double(), other)
    with pytest.raises(ValueError, match="are not those of features of 7 channels"):
        unpack_statistics(pack_statistics(statistics), 7)
    with pytest.raises(ValueError, match="cannot be read"):
        unpack_statistics("?", 7)


def test_of_a_thousand_validation_images_one_may_be_unlike():
    distances = torch.arange(2000).double()
    cut, words = unlike_threshold(distances)
    assert (distances > cut).sum() == 2 and words == "99.9 % of 2000 validation images"
    assert unlike_threshold(distances[:999]) == (998.0, "the furthest of 999 validation images")


@pytest.mark.parametrize("name", ["phantom-csr", "phantom-cbm"])
def test_bundled_models_know_chests_from_what_is_none(name):
    model = ConceptModel.from_pretrained(name)
    data = PhantomDataset(60, seed=4321, cache_dir=False)
    chests = [data.load_item(index).image for index in range(60)]
    flat = [torch.full((3, 112, 112), grey, dtype=torch.uint8) for grey in (0, 128, 255)]
    strangers = [NOISE, *flat, *(255 - chest for chest in chests[:10])]
    assert (model.predict(chests).unlikeness > 1).sum() <= 1
    assert (model.predict(strangers).unlikeness > 1).all()
