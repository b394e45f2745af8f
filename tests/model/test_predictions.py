import builtins
import csv

import numpy as np
import pytest
import torch
from PIL import Image

from tests.worlds import CONCEPTS, TASKS, Squares, tiny_model

IMAGES = [Squares(5, preprocess=False).load_item(i).image for i in range(5)]


def taught(*stages, **changes):
    model = tiny_model(**changes)
    parts = {"concepts": ["backbone"], "prototypes": ["prototypes"], "task": ["task_head"]}
    for stage in stages:
        model.record = model.record.after(stage, parts[stage])
    with torch.no_grad():
        model.task_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture(scope="module")
def model():
    return taught("concepts", "prototypes", "task")


@pytest.mark.parametrize("task_kind", ["multilabel", "multiclass"])
@pytest.mark.parametrize("bottleneck", ["prototypes", "concepts"])
def test_probabilities_are_those_of_the_forward_pass(bottleneck, task_kind):
    model = taught("concepts", "prototypes", "task", bottleneck=bottleneck, task_kind=task_kind).eval()
    predictions = model.predict(IMAGES, batch_size=2)
    with torch.inference_mode():
        output = model(torch.stack([model.preprocess(image) for image in IMAGES]))
    logits = output.task_logits
    tasks = logits.softmax(dim=1) if task_kind == "multiclass" else logits.sigmoid()
    torch.testing.assert_close(predictions.concept_probabilities, output.concept_logits.sigmoid())
    torch.testing.assert_close(predictions.task_probabilities, tasks)
    assert (predictions.concepts, predictions.tasks) == (CONCEPTS, TASKS)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 32])
def test_batches_predict_what_single_images_do(model, batch_size):
    together = model.predict(IMAGES, batch_size=batch_size)
    for row, image in enumerate(IMAGES):
        alone = model.predict(image)
        assert len(alone) == 1
        torch.testing.assert_close(together.concept_probabilities[row], alone.concept_probabilities[0])
        torch.testing.assert_close(together.task_probabilities[row], alone.task_probabilities[0])


def test_images_of_all_kinds_go_together_and_paths_name_them(model, tmp_path):
    rows_last = IMAGES[0].permute(1, 2, 0).numpy()
    Image.fromarray(rows_last).save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    predictions = model.predict([path, str(path), Image.fromarray(rows_last), rows_last, IMAGES[0]])
    assert predictions.names == (str(path), str(path), "2", "3", "4")
    assert np.ptp(predictions.concept_probabilities.numpy(), axis=0).max() < 1e-5


def test_one_image_or_a_stack_or_a_generator_will_do(model, tmp_path):
    expected = model.predict(IMAGES).concept_probabilities
    for images in (torch.stack(IMAGES), np.stack(IMAGES), tuple(IMAGES), (image for image in IMAGES)):
        torch.testing.assert_close(model.predict(images).concept_probabilities, expected)
    Image.fromarray(IMAGES[0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    assert model.predict(str(tmp_path / "a.png")).names == (str(tmp_path / "a.png"),)
    assert len(model.predict([])) == 0


def test_tasks_that_were_not_taught_are_left_out():
    predictions = taught("concepts", "task").predict(IMAGES)
    assert predictions.tasks == ()
    assert predictions.task_probabilities.shape == (5, 0)
    assert predictions.concept_probabilities.shape == (5, 3)


def test_untaught_model_does_not_predict():
    with pytest.raises(ValueError, match="never taught concepts .* so its predictions mean nothing"):
        tiny_model().predict(IMAGES)


def test_impossible_requests_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"`batch_size` \(--batch-size\) must be at least 1, got 0"):
        model.predict(IMAGES, batch_size=0)
    with pytest.raises(ValueError, match="cannot use the device 'nowhere'"):
        model.predict(IMAGES, device="nowhere")
    with pytest.raises(ValueError, match="this looks normalized already"):
        model.predict([torch.randn(3, 48, 64) * 2])
    with pytest.raises(FileNotFoundError):
        model.predict(tmp_path / "nowhere.png")
    with pytest.raises(TypeError, match="expected a path, Pillow image, numpy array or tensor, got int"):
        model.predict([3])


def test_predicting_leaves_the_model_as_it_is():
    model = taught("concepts", "prototypes", "task").train()
    before = torch.get_rng_state()
    model.predict(IMAGES, device="cpu")
    assert model.training and model.backbone.training
    assert model.device == torch.device("cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_device_is_where_the_parameters_are():
    assert tiny_model().to("meta").device == torch.device("meta")


def test_csv_file_reads_back_as_the_table(model, tmp_path):
    predictions = model.predict(IMAGES)
    predictions.to_csv(tmp_path / "new folder" / "predictions.csv")
    with (tmp_path / "new folder" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", *CONCEPTS, *TASKS]
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4"]
    expected = torch.cat([predictions.concept_probabilities, predictions.task_probabilities], dim=1)
    torch.testing.assert_close(
        torch.tensor([[float(cell) for cell in row[1:]] for row in rows]), expected, rtol=1e-5, atol=0
    )
    assert [path.name for path in tmp_path.joinpath("new folder").iterdir()] == ["predictions.csv"]


def test_task_named_like_a_concept_keeps_its_own_column(tmp_path):
    predictions = taught("concepts", "prototypes", "task", tasks=("bright", "any")).predict(IMAGES)
    predictions.to_csv(tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == "image,bright,dark,striped,bright (task),any"


def test_data_frame_has_the_columns_of_the_csv_file(model):
    pytest.importorskip("pandas")
    predictions = model.predict(IMAGES)
    frame = predictions.to_dataframe()
    assert list(frame.columns) == ["image", *CONCEPTS, *TASKS]
    assert list(frame["image"]) == list(predictions.names)
    np.testing.assert_allclose(frame[list(TASKS)], predictions.task_probabilities)


def test_without_pandas_a_sentence_says_what_to_do(model, monkeypatch):
    real = builtins.__import__

    def without_pandas(name, *args, **kwargs):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(ImportError, match="a data frame needs pandas: pip install pandas; `to_csv` works without"):
        model.predict(IMAGES).to_dataframe()


def test_table_says_in_a_line_what_it_holds(model):
    assert repr(model.predict(IMAGES)) == "Predictions of 3 concepts and 2 tasks in 5 images"
