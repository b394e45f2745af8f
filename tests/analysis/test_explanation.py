import base64
import dataclasses
import io
import json
import math

import pytest
import torch
from PIL import Image

from conceptcam.analysis.explanation import explain, explain_images
from conceptcam.metrics.map_scores import upsample
from conceptcam.runs.reports import MapHistory
from tests.worlds import SIZE, Squares, tiny_model


def taught(*stages, **changes):
    model = tiny_model(**changes)
    parts = {"concepts": ["backbone"], "prototypes": ["prototypes"], "task": ["task_head"]}
    for stage in stages:
        model.record = model.record.after(stage, parts[stage])
    with torch.no_grad():
        model.task_head.weight.normal_(generator=torch.Generator().manual_seed(0))
        model.task_head.bias.normal_(generator=torch.Generator().manual_seed(1))
    return model


ITEM = Squares(4, preprocess=False).load_item(1)


@pytest.mark.parametrize("bottleneck", ["prototypes", "concepts"])
def test_contributions_and_bias_add_up_to_the_logit_exactly(bottleneck):
    model = taught("concepts", "prototypes", "task", bottleneck=bottleneck).eval()
    logits = model(model.preprocess(ITEM.image)[None]).task_logits[0]
    for index, task in enumerate(explain(model, ITEM.image).tasks):
        assert math.fsum([task.bias, *(part.value for part in task.contributions)]) == task.logit
        assert task.logit == pytest.approx(logits[index].item(), abs=1e-5)
        assert {part.concept for part in task.contributions} == set(model.config.concepts)
        sizes = [abs(part.value) for part in task.contributions]
        assert sizes == sorted(sizes, reverse=True)


def test_contribution_is_what_the_logit_loses_without_the_concept():
    model = taught("concepts", "prototypes", "task").eval()
    output = model(model.preprocess(ITEM.image)[None])
    contributions = explain(model, ITEM.image).tasks[0].contributions
    for k, concept in enumerate(model.config.concepts):
        without = output.evidence.clone()
        without[:, k] = 0
        lost = (output.task_logits - model.task_head(without))[0, 0]
        value = next(part.value for part in contributions if part.concept == concept)
        assert value == pytest.approx(lost.item(), abs=1e-5)


def test_heatmap_is_that_of_the_prototype_that_adds_most():
    model = taught("concepts", "prototypes", "task").eval()
    output = model(model.preprocess(ITEM.image)[None])
    largest = explain(model, ITEM.image).tasks[1].contributions[0]
    k = model.config.concepts.index(largest.concept)
    strongest = int((output.evidence[0, k] * model.task_head.weight[1, k]).abs().argmax())
    expected = upsample(output.similarity_maps[0, k, strongest][None], SIZE)[0]
    torch.testing.assert_close(largest.heatmap, expected.detach())
    assert 0 <= largest.heatmap.min() <= largest.heatmap.max() <= 1


def test_concepts_are_listed_the_most_probable_first():
    model = taught("concepts").eval()
    part = model.forward_concepts(model.preprocess(ITEM.image)[None])
    predictions = explain(model, ITEM.image).concepts
    assert sorted((p.probability for p in predictions), reverse=True) == [p.probability for p in predictions]
    for prediction in predictions:
        k = model.config.concepts.index(prediction.concept)
        assert prediction.probability == pytest.approx(part.concept_logits[0, k].sigmoid().item())
        assert prediction.heatmap.shape == SIZE


def test_model_that_was_taught_no_task_gives_concepts_and_maps_alone():
    explanation = explain(taught("concepts"), ITEM.image)
    assert explanation.tasks == ()
    assert len(explanation.concepts) == 3
    with pytest.raises(ValueError, match="the model was taught no task, so it cannot explain 'any'"):
        explanation.task("any")


@pytest.mark.parametrize("bottleneck", ["prototypes", "concepts"])
def test_images_in_batches_are_explained_as_one_by_one(bottleneck):
    model = taught("concepts", "prototypes", "task", bottleneck=bottleneck)
    images = [Squares(5, preprocess=False).load_item(index).image for index in range(5)]
    for batched, image in zip(explain_images(model, images, batch_size=2), images, strict=True):
        alone = explain(model, image)
        assert torch.equal(batched.image, alone.image)
        for mine, other in zip(batched.tasks, alone.tasks, strict=True):
            assert mine.logit == pytest.approx(other.logit, abs=1e-5)
            for part, expected in zip(mine.contributions, other.contributions, strict=True):
                assert part.concept == expected.concept and part.value == pytest.approx(expected.value, abs=1e-5)
                torch.testing.assert_close(part.heatmap, expected.heatmap, atol=1e-5, rtol=0)


def test_explaining_in_batches_runs_the_model_once_a_batch(monkeypatch):
    model, sizes = taught("concepts"), []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda images: sizes.append(len(images)) or forward(images))
    assert len(list(explain_images(model, [ITEM.image] * 5, batch_size=2))) == 5
    assert sizes == [2, 2, 1]


def test_untaught_task_is_refused():
    with pytest.raises(ValueError, match=r"never taught the task 'any' \(stages done: \['concepts'\]\)"):
        explain(taught("concepts"), ITEM.image, task="any")


def test_task_over_untaught_prototypes_is_not_reported():
    model = taught("concepts", "task")
    assert explain(model, ITEM.image).tasks == ()
    with pytest.raises(ValueError, match="never taught the task 'any'"):
        explain(model, ITEM.image, task="any")
    assert len(explain(taught("concepts", "task", bottleneck="concepts"), ITEM.image).tasks) == 2


def test_unknown_task_lists_the_near_ones():
    with pytest.raises(ValueError, match=r"unknown task 'anny'; did you mean \['any'\]"):
        explain(taught("concepts", "prototypes", "task"), ITEM.image, task="anny")


def test_untaught_model_is_refused():
    with pytest.raises(ValueError, match="never taught concepts .* set `model.record"):
        explain(tiny_model(), ITEM.image)


def test_image_that_is_normalized_already_is_refused():
    with pytest.raises(ValueError, match="normalized already"):
        explain(taught("concepts"), torch.randn(3, 48, 64) * 2)


def test_model_is_left_as_it_was():
    model = taught("concepts", "task").train()
    before = torch.get_rng_state()
    explain(model, ITEM.image)
    assert model.training
    assert model.backbone.training
    assert torch.equal(torch.get_rng_state(), before)


def test_explanation_is_ready_for_json_and_draws_a_figure():
    explanation = explain(taught("concepts", "prototypes", "task"), ITEM.image)
    text = json.loads(json.dumps(explanation.as_dict()))
    assert text["concepts"]["bright"]["threshold"] is None
    assert set(text["tasks"]) == {"any", "bright and dark"}
    plain = explanation.figure(concepts=["dark"])
    marked = explanation.figure(concepts=["dark"], boxes=Squares(4).load_item(_with("dark")).boxes)
    assert plain.size == marked.size
    assert plain.tobytes() != marked.tobytes()


def test_a_picture_names_verdicts_and_the_most_probable_tasks(monkeypatch):
    tasks = ("a", "b", "c", "d")
    model = taught("concepts", "prototypes", "task", tasks=tasks)
    model.record = dataclasses.replace(model.record, thresholds={"bright": 0.01, "dark": 0.99})
    drawn = []
    monkeypatch.setattr("conceptcam.analysis.figures.concept_panel", lambda *_, **given: drawn.append(given))
    explanation = explain(model, ITEM.image)
    explanation.figure(concepts=["bright", "dark", "striped"])
    explanation.figure(heading="mine")
    said = [f"p = {explanation.concept(name).probability:.2f}, " for name in ("bright", "dark", "striped")]
    verdicts = ["present (threshold 0.01)", "absent (threshold 0.99)", "no threshold"]
    assert drawn[0]["captions"] == [p + verdict for p, verdict in zip(said, verdicts, strict=True)]
    first = sorted(explanation.tasks, key=lambda task: -task.probability)[:3]
    named = ", ".join(f"{task.task}: p = {task.probability:.2f}" for task in first)
    assert drawn[0]["heading"] == f"{named} (the most probable of 4 tasks)" and drawn[1]["heading"] == "mine"
    assert explain(taught("concepts"), ITEM.image).heading() == ""


def test_a_task_that_is_asked_for_is_explained_alone():
    model = taught("concepts", "prototypes", "task")
    alone, all_tasks = explain(model, ITEM.image, task="any"), explain(model, ITEM.image)
    assert [task.task for task in alone.tasks] == ["any"]
    assert alone.task("any").logit == all_tasks.task("any").logit


def test_a_text_in_place_of_names_is_not_taken_for_its_letters():
    explanation = explain(taught("concepts"), ITEM.image)
    for ask in (lambda: explanation.figure(concepts="dark"), lambda: MapHistory(ITEM.image, "dark")):
        with pytest.raises(
            ValueError, match=r"must be a list of names, got the text 'dark'; for one name write \['dark"
        ):
            ask()


def _with(concept):
    data = Squares(4)
    return int(data.concept_labels[:, data.concepts.index(concept)].argmax())


def test_map_history_keeps_the_maps_of_concept_epochs_only(tmp_path):
    model = taught("concepts").eval()

    class Epoch:
        stage, epoch = "concepts", 1

    class Later:
        stage, epoch = "task", 1

    history = MapHistory(ITEM.image, ["striped", "bright"], file=tmp_path / "maps")
    history(model, Epoch())
    history(model, Later())
    explanation = explain(model, ITEM.image)
    for kept in (history, MapHistory(ITEM.image, ["striped", "bright"], file=tmp_path / "maps")):  # of a killed run
        assert list(kept.maps) == [1]
        striped, bright = upsample(kept.maps[1], model.config.image_size).sigmoid()
        torch.testing.assert_close(striped, explanation.concept("striped").heatmap)
        torch.testing.assert_close(bright, explanation.concept("bright").heatmap)


def test_lines_name_probable_concepts_and_split_each_logit():
    explanation = explain(taught("concepts", "prototypes", "task"), ITEM.image)
    lines = explanation.lines(top=2)
    assert [line.split()[0] for line in lines[:2]] == [one.concept for one in explanation.concepts[:2]]
    assert [line.strip().split(":")[0] for line in lines[2:]] == [one.task for one in explanation.tasks]
    for line, task in zip(lines[2:], explanation.tasks, strict=True):
        parts = ", ".join(f"{part.concept} {part.value:+.2f}" for part in task.contributions[:2])
        assert line.endswith(f"logit {task.logit:+.2f} = bias {task.bias:+.2f}, {parts}, ...")


def test_lines_of_a_model_without_tasks_say_so():
    assert explain(taught("concepts"), ITEM.image).lines()[-1] == "  (this model was taught no task)"


def test_a_concept_without_a_probability_has_no_verdict():
    explanation = explain(taught("concepts"), ITEM.image)
    one = explanation.concepts[0]
    for probability, threshold, verdict in (
        (0.7, 0.5, "present"),
        (0.3, 0.5, "absent"),
        (0.3, math.nan, "no threshold"),
    ):
        assert one._replace(probability=probability, threshold=threshold).verdict == verdict
    undefined = one._replace(probability=math.nan, threshold=0.5)
    assert undefined.verdict == "undefined"
    lines = explanation._replace(concepts=(undefined,)).lines()
    assert "nan" in lines[0] and "absent" not in lines[0] and "present" not in lines[0]


@pytest.mark.parametrize("part", ["concept_head.score.weight", "task_head.weight", "backbone"])
def test_what_is_not_finite_is_not_explained(part):
    model = taught("concepts", "prototypes", "task")
    for name, value in model.state_dict().items():
        if name.startswith(part) and value.is_floating_point():
            value.fill_(math.nan)
    for ask in (lambda: explain(model, ITEM.image), lambda: model.predict([ITEM.image])):
        with pytest.raises(FloatingPointError, match="gives numbers that are not finite, so it says nothing about"):
            ask()


def test_a_concepts_verdict_is_never_blank():
    model = taught("concepts")
    bright, dark, _ = model.config.concepts
    probability = {one.concept: one.probability for one in explain(model, ITEM.image).concepts}
    thresholds = {bright: probability[bright] / 2, dark: (1 + probability[dark]) / 2}
    model.record = dataclasses.replace(model.record, thresholds=thresholds)
    explanation = explain(model, ITEM.image)
    verdicts = {one.concept: one.verdict for one in explanation.concepts}
    assert verdicts == {"bright": "present", "dark": "absent", "striped": "no threshold"}
    written = {name: one["verdict"] for name, one in explanation.as_dict()["concepts"].items()}
    assert written == verdicts
    for line in explanation.lines()[:3]:
        assert verdicts[line.split()[0]] in line


def test_a_printed_explanation_has_a_few_lines_without_maps():
    explanation = explain(taught("concepts", "prototypes", "task"), Squares(1, preprocess=False).load_item(0).image)
    assert repr(explanation).startswith("Explanation of 3 concepts and 2 tasks\n")
    assert len(repr(explanation)) < 1000 and len(repr(explanation.tasks)) < 1000
    assert "tensor" not in repr(explanation) + repr(explanation.concepts) + repr(explanation.tasks)


def test_a_notebook_shows_the_figure_and_the_sums():
    explanation = explain(taught("concepts", "prototypes", "task"), Squares(1, preprocess=False).load_item(0).image)
    with Image.open(io.BytesIO(explanation._repr_png_())) as shown:
        assert shown.format == "PNG" and shown.size == explanation.figure().size
    page = explanation._repr_html_()
    assert base64.b64encode(explanation._repr_png_()).decode() in page and "bright and dark: p = " in page


def test_names_in_a_notebook_are_text_and_no_markup():
    explanation = explain(taught("concepts", concepts=("<b>", "dark", "c")), torch.rand(3, *SIZE))
    assert "&lt;b&gt;" in explanation._repr_html_() and "<b>" not in explanation._repr_html_()
