import dataclasses
import json
import math

import pytest
import torch

from conceptcam.analysis.explanation import explain
from conceptcam.analysis.fitting import fit_thresholds
from conceptcam.analysis.intervention import (
    Intervention,
    apply_interventions,
    correction_doubts_of,
    parse_answer,
    weigh_logits,
)
from conceptcam.analysis.intervention_result import intervene, intervene_images
from conceptcam.config import ConceptConfig, TrainingRecord, from_json, to_json
from conceptcam.data.phantom.dataset import PhantomDataset
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.pooling import list_poolings
from tests.worlds import CONCEPTS, Squares, batches, tiny_model

DATA = Squares(12, preprocess=False)
IMAGES = [DATA.load_item(index).image for index in range(6)]
BOTH = pytest.mark.parametrize("bottleneck", ["prototypes", "concepts"])
BOX = [[0.2, 0.1, 0.6, 0.7]]


def taught(**changes):
    model = tiny_model(**changes)
    with torch.no_grad():
        model.concept_head.score.weight.normal_(generator=torch.Generator().manual_seed(2))
        model.task_head.weight.normal_(generator=torch.Generator().manual_seed(0))
        model.task_head.bias.normal_(generator=torch.Generator().manual_seed(1))
    for stage, part in (("concepts", "backbone"), ("prototypes", "prototypes"), ("task", "task_head")):
        model.record = model.record.after(stage, [part])
    fit_thresholds(model, batches(Squares(40, 1)), thresholds_source="40 squares")
    return model.eval()


def output_of(model, images=IMAGES):
    with torch.no_grad():
        return model(torch.stack([model.preprocess(image) for image in images]))


def same(before, after):
    return all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("pooling", list_poolings())
@BOTH
def test_map_of_ones_changes_nothing_to_the_bit(bottleneck, pooling):
    model = taught(bottleneck=bottleneck, pooling=pooling)
    output = output_of(model)
    ones = Intervention(weights={name: torch.ones(48, 64) for name in CONCEPTS})
    everywhere = Intervention(here={name: [[0, 0, 1, 1]] for name in CONCEPTS})
    assert same(output, apply_interventions(model, output, [ones] * 6))
    assert same(output, apply_interventions(model, output, [everywhere] * 6))


@BOTH
def test_own_score_changes_nothing_to_the_bit(bottleneck):
    model = taught(bottleneck=bottleneck)
    output = output_of(model)
    for image in IMAGES:
        answers = {one.concept: one.probability for one in explain(model, image).concepts}
        result = intervene(model, image, Intervention(answers=answers))
        assert [task.logit for task in result.before.tasks] == [task.logit for task in result.after.tasks]
        assert all(one.before == one.after == one.answer for one in result.concepts)
    own = output.concept_logits.sigmoid().tolist()
    told = [Intervention(answers=dict(zip(CONCEPTS, row, strict=True))) for row in own]
    assert same(output, apply_interventions(model, output, told))


@pytest.mark.parametrize("digits", [17, 6])
@pytest.mark.parametrize("name", ["phantom-csr", "phantom-cbm"])
def test_own_score_of_a_calibrated_model_changes_nothing(name, digits):
    model = ConceptModel.from_pretrained(name)
    images = [PhantomDataset(4, seed=7, cache_dir=False).load_item(index).image for index in range(4)]
    output = output_of(model, images)
    rows = model.predict(images).concept_probabilities.tolist()
    answers = [[float(f"{p:.{digits}g}") for p in row] for row in rows]  # as JSON and CSV files write them
    told = [Intervention(answers=dict(zip(model.config.concepts, row, strict=True))) for row in answers]
    assert model.record.calibration and same(output, apply_interventions(model, output, told))


@BOTH
def test_words_mean_typical_scores_and_not_zero_or_one(bottleneck):
    model = taught(bottleneck=bottleneck)
    output, record = output_of(model), model.record
    for word, shown, rows in (
        ("present", record.typical_present, record.evidence_present),
        ("absent", record.typical_absent, record.evidence_absent),
    ):
        changed = apply_interventions(model, output, [Intervention(answers={"dark": word})] * 6)
        expected = rows["dark"] if bottleneck == "prototypes" else [shown["dark"]]
        assert torch.equal(changed.evidence[:, 1], torch.tensor(expected).expand(6, -1))
        torch.testing.assert_close(changed.concept_logits[:, 1].sigmoid(), torch.full((6,), shown["dark"]))
        assert torch.equal(changed.evidence[:, [0, 2]], output.evidence[:, [0, 2]])
        assert torch.equal(changed.task_logits, model.task_head(changed.evidence))


@BOTH
def test_an_answer_that_may_go_the_wrong_way_says_so(bottleneck):
    model = taught(bottleneck=bottleneck)
    rise = {
        "typical_present": {"bright": 0.9, "dark": 0.4, "striped": 0.9},
        "typical_absent": dict.fromkeys(CONCEPTS, 0.5),
    }
    rows = {"evidence_present": {name: (p, p) for name, p in rise["typical_present"].items()}}
    rows |= {"evidence_absent": dict.fromkeys(CONCEPTS, (0.5, 0.5))}
    model.record = dataclasses.replace(model.record, **rise, **(rows if bottleneck == "prototypes" else {}))
    wrong = intervene(model, IMAGES[0], Intervention(answers={"dark": "present", "bright": "absent"}))
    right = intervene(model, IMAGES[0], Intervention(answers={"bright": "present"}, rejected=["dark"]))
    assert "go the wrong way" in wrong.doubts[0] and "'dark' (-0.100)" in wrong.doubts[0]
    assert wrong.lines()[-1] == f"  {wrong.doubts[-1]}"
    assert wrong.as_dict()["intervention"]["doubts"] == list(wrong.doubts)
    assert not any("go the wrong way" in doubt for doubt in right.doubts)


@BOTH
@pytest.mark.parametrize("own", [0.95, 0.3])
def test_an_answer_that_moves_a_task_the_other_way_says_so(bottleneck, own):
    """Typical are .8 where "dark" is present and .2 where it is absent; from .95, "present" lowers the evidence."""
    model = taught(bottleneck=bottleneck)
    count = 2 if bottleneck == "prototypes" else 1
    typical = {"evidence_present": (0.8,) * count, "evidence_absent": (0.2,) * count}
    record = {key: dict.fromkeys(CONCEPTS, row) for key, row in typical.items()}
    model.record = dataclasses.replace(model.record, **record, evidence_source="a test")
    model.forward_task = lambda part, forward=model.forward_task: forward(part)._replace(
        evidence=torch.full((len(part.features), len(CONCEPTS), count), own)
    )
    (found,) = intervene(model, IMAGES[0], Intervention(answers={"dark": "present"})).doubts or [""]
    assert bool(found) == (own > 0.8)
    if found:
        changes = (model.task_head.weight[:, 1].sum(dim=1) * (0.8 - own)).tolist()
        named = [(task, one) for task, one in zip(model.config.tasks, changes, strict=True) if abs(one) > 0.05]
        moved = ", ".join(f"{task!r} ({one:+.2f})" for task, one in named)
        assert found.startswith(f"'present' moves {moved} the other way than usual: what the model saw of 'dark'")


def test_places_that_change_nothing_are_confirmed():
    result = intervene(taught(), IMAGES[0], Intervention(here={"dark": [[0, 0, 1, 1]], "bright": BOX}))
    texts = {one.concept: one.line() for one in result.concepts}
    assert texts["dark"].endswith(", here, which changes nothing") and ", here" in texts["bright"]
    assert result.as_dict()["intervention"]["concepts"]["dark"]["places"] == "here"


@pytest.mark.parametrize("name", ["phantom-csr", "phantom-cbm"])
def test_corrections_of_bundled_models_are_not_doubted(name):
    model = ConceptModel.from_pretrained(name)
    assert correction_doubts_of(model.config, model.record) == []


def test_a_surely_seen_concept_can_still_be_called_present():
    model = taught()
    with torch.no_grad():
        model.concept_head.score.bias.fill_(100)  # every probability rounds to 1
    changed = apply_interventions(model, output_of(model), [Intervention(answers={"dark": "present"})] * 6)
    assert torch.equal(changed.evidence[:, 1], torch.tensor(model.record.evidence_present["dark"]).expand(6, -1))


@BOTH
def test_probability_moves_evidence_from_absent_over_own_to_present(bottleneck):
    model = taught(bottleneck=bottleneck)
    output = output_of(model)
    evidence = torch.stack([
        apply_interventions(model, output, [Intervention(answers={"bright": p})] * 6).evidence[:, 0]
        for p in torch.linspace(0, 1, 21).tolist()
    ])  # fmt: skip
    if bottleneck == "concepts":
        torch.testing.assert_close(evidence[..., 0], torch.linspace(0, 1, 21)[:, None].expand(-1, 6))
        return
    assert torch.equal(evidence[0], torch.tensor(model.record.evidence_absent["bright"]).expand(6, -1))
    assert torch.equal(evidence[-1], torch.tensor(model.record.evidence_present["bright"]).expand(6, -1))
    low, high = torch.minimum(evidence[0], evidence[-1]), torch.maximum(evidence[0], evidence[-1])
    own = output.evidence[:, 0]
    assert (evidence >= torch.minimum(low, own) - 1e-6).all() and (evidence <= torch.maximum(high, own) + 1e-6).all()


def test_places_weigh_similarities_as_csr_does():
    model = taught()
    output = output_of(model)
    told = Intervention(here={"dark": BOX}, not_here={"dark": [[0.7, 0.2, 1, 1]]}, elsewhere=0.3)
    changed = apply_interventions(model, output, [told] * 6)
    rows, columns = output.similarity_maps.shape[-2:]
    expected = output.similarity_maps.clone()
    for row in range(rows):
        for column in range(columns):  # Eq. 12, each part of a cell on its own, by 20 x 20 points
            weight = 0.0
            for y in range(20):
                for x in range(20):
                    down, across = (row + (y + 0.5) / 20) / rows, (column + (x + 0.5) / 20) / columns
                    inside = 0.2 <= across <= 0.6 and 0.1 <= down <= 0.7
                    outside = across >= 0.7 and down >= 0.2
                    weight += (1.0 if inside else 0.0 if outside else 0.3) / 400
            expected[:, 1, :, row, column] *= weight
    torch.testing.assert_close(changed.similarity_maps, expected, atol=2e-2, rtol=0)
    assert torch.equal(changed.evidence, changed.similarity_maps.amax(dim=(-2, -1)))  # Eq. 10 and 1 again
    assert torch.equal(changed.task_logits, model.task_head(changed.evidence))
    assert torch.equal(changed.similarity_maps[:, [0, 2]], output.similarity_maps[:, [0, 2]])


@pytest.mark.parametrize("pooling", list_poolings())
def test_smaller_weights_never_make_a_place_more_probable(pooling):
    model = taught(bottleneck="concepts", pooling=pooling)
    output, random = output_of(model), torch.Generator().manual_seed(3)
    larger = torch.rand(6, 8, generator=random)
    smaller = larger * torch.rand(6, 8, generator=random)
    low, high = (
        apply_interventions(model, output, [Intervention(weights={"bright": weights})] * 6)
        for weights in (smaller, larger)
    )
    assert (low.concept_maps <= high.concept_maps).all() and (high.concept_maps <= output.concept_maps).all()
    assert low.evidence.isfinite().all()


def test_weighted_logit_is_that_of_the_weighted_probability():
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).double() * 3
    weights = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(1)).double()
    expected = torch.maximum((maps.sigmoid() * weights).logit(), maps.amin(dim=(-2, -1), keepdim=True))
    torch.testing.assert_close(weigh_logits(maps, weights), expected)
    assert weigh_logits(maps.float() * 100, weights.float()).isfinite().all()
    assert torch.equal(
        weigh_logits(maps, torch.zeros_like(maps)), maps.amin(dim=(-2, -1), keepdim=True).expand_as(maps)
    )


def test_only_ruling_places_out_leaves_all_others_alone():
    model = taught()
    output = output_of(model)
    left = torch.zeros(48, 64, dtype=torch.bool)
    left[:, :32] = True
    changed = apply_interventions(model, output, [Intervention(not_here={"dark": left})] * 6)
    assert (changed.similarity_maps[:, 1, :, :, :4] == 0).all()
    assert torch.equal(changed.similarity_maps[:, 1, :, :, 4:], output.similarity_maps[:, 1, :, :, 4:])


def test_rejected_prototypes_contribute_nothing():
    model = taught()
    changed = apply_interventions(model, output_of(model), [Intervention(rejected=[("dark", 1), "striped"])] * 6)
    assert (changed.evidence[:, 1, 1] == 0).all() and (changed.evidence[:, 2] == 0).all()
    assert torch.equal(changed.evidence[:, 1, 0], output_of(model).evidence[:, 1, 0])
    result = intervene(model, IMAGES[0], Intervention(rejected=["striped"]))
    for task in result.after.tasks:
        assert next(part.value for part in task.contributions if part.concept == "striped") == 0


@BOTH
def test_parts_of_an_intervention_act_together_as_one_after_another(bottleneck):
    model = taught(bottleneck=bottleneck)
    output = output_of(model)
    parts = [{"here": {"bright": BOX}}, {"answers": {"dark": "absent"}}, {"rejected": ["striped"]}]
    step = output
    for part in parts:
        step = apply_interventions(model, step, [Intervention(**part)] * 6)
    together = apply_interventions(model, output, [Intervention(**parts[0], **parts[1], **parts[2])] * 6)
    assert same(step, together)


def test_each_image_of_a_batch_gets_its_own_answer():
    model = taught()
    told = [Intervention(answers={CONCEPTS[index % 3]: "present"}) for index in range(5)]
    together = list(intervene_images(model, IMAGES[:5], told, batch_size=2))
    for result, image, one in zip(together, IMAGES, told, strict=False):
        alone = intervene(model, image, one)
        assert [part.concept for part in result.concepts] == list(one.answers)
        for mine, other in zip(result.after.tasks, alone.after.tasks, strict=True):
            assert mine.logit == pytest.approx(other.logit, abs=1e-5)
    with pytest.raises(ValueError, match="got 5 for 6 images"):
        next(intervene_images(model, IMAGES, told))


def test_what_is_answered_is_recorded_beside_what_was():
    model = taught(bottleneck="concepts")
    result = intervene(model, IMAGES[0], Intervention(answers={"dark": 0.25}, here={"bright": BOX}))
    before = explain(model, IMAGES[0])
    assert [(one.concept, one.answer) for one in result.concepts] == [("bright", None), ("dark", 0.25)]
    assert result.concepts[1].before == before.concept("dark").probability
    assert result.concepts[1].after == pytest.approx(0.25)
    content = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert content["before"] == before.as_dict()
    assert content["intervention"]["concepts"]["dark"]["answer"] == 0.25
    alone = intervene(model, IMAGES[0], Intervention(answers={"dark": 0.25}), task="any")
    assert [task.task for task in (*alone.before.tasks, *alone.after.tasks)] == ["any"] * 2
    assert "answered 0.25" in "\n".join(result.lines()) and "any: p = " in result.lines()[2]
    assert result.figure().size[1] > before.figure(concepts=["dark", "bright"]).size[1]


def test_the_picture_names_the_diagnosis_before_and_after(monkeypatch):
    model = taught(bottleneck="concepts")
    result = intervene(model, IMAGES[0], Intervention(answers={"dark": 0.25}))
    sheets = []
    monkeypatch.setattr("conceptcam.analysis.figures.contact_sheet", lambda tiles, **_: sheets.append(tiles))
    monkeypatch.setattr(type(result.before), "figure", lambda self, **_: self)
    result.figure()
    ((before, after),) = sheets
    for tile, said in ((before, result.before), (after, result.after)):
        assert tile.note == ", ".join(f"{one.task}: p = {one.probability:.3f}" for one in said.tasks)
    assert (before.title, after.title) == ("Before", "After") and before.note != after.note


def test_typical_evidence_equals_a_slow_median():
    model = taught()
    data = Squares(40, 1)
    evidence = torch.cat([output.evidence for output in [model(batch.images) for batch in batches(data)]])
    for k, name in enumerate(CONCEPTS):
        for m in range(2):
            for label, found in ((1, model.record.evidence_present), (0, model.record.evidence_absent)):
                values = sorted(evidence[data.concept_labels[:, k] == label, k, m].tolist())
                assert found[name][m] == pytest.approx(values[(len(values) - 1) // 2], abs=1e-6)


def test_record_without_typical_scores_refuses_an_answer_in_words():
    model = taught()
    model.record = dataclasses.replace(model.record, evidence_present={}, evidence_absent={})
    with pytest.raises(ValueError, match="does not say which scores are typical of 'dark'"):
        intervene(model, IMAGES[0], Intervention(answers={"dark": "present"}))
    assert intervene(model, IMAGES[0], Intervention(rejected=["dark"])).rejected == ("dark",)


def test_evidence_is_saved_and_forgotten_with_its_prototypes():
    record = TrainingRecord(evidence_present={"a": [0.5, math.nan]}, stages=["concepts", "prototypes"])
    config = ConceptConfig(concepts=("a",), backbone="small_cnn_s8", prototypes_per_concept=2)
    again = from_json(to_json(config, record))[1]
    assert again.evidence_present["a"][0] == 0.5 and math.isnan(again.evidence_present["a"][1])
    assert record.after("task", ["task_head"]).evidence_present
    assert record.after("prototypes", ["prototypes"]).evidence_present == {}
    old = json.loads(to_json(config, TrainingRecord()))
    del old["record"]["evidence_present"], old["record"]["evidence_absent"]
    assert from_json(json.dumps(old))[1] == TrainingRecord()
    with pytest.raises(ValueError, match="`evidence_absent` must map names to lists of numbers"):
        TrainingRecord(evidence_absent={"a": 0.5})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answers": {"dark": 1.5}}, "must be 'present', 'absent' or a probability"),
        ({"answers": {"dark": "maybe"}}, "the answer to 'dark' must be"),
        ({"answers": {"dork": "absent"}}, r"unknown concept 'dork'; did you mean \['dark'\]"),
        ({"here": {"dark": [[0.5, 0.1, 0.2, 0.7]]}}, "expected 0 <= left < right <= 1"),
        ({"here": {"dark": torch.ones(3, 3)}}, r"boxes \(N, 4\) or a mask"),
        ({"weights": {"dark": torch.full((3, 3), 2.0)}}, r"must be a map \(H, W\) in \[0, 1\]"),
        ({"rejected": [("dark", 2)]}, "has 2 prototypes, counted from 0; cannot reject 2"),
        ({"rejected": "dark"}, r"for one concept write \['dark'\]"),
        ({"elsewhere": 1.0}, r"`elsewhere` must be in \[0, 1\)"),
    ],
)
def test_impossible_interventions_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        intervene(taught(), IMAGES[0], Intervention(**fields))


def test_a_concepts_bottleneck_has_no_prototypes_to_reject():
    with pytest.raises(ValueError, match="has no prototypes to reject"):
        intervene(taught(bottleneck="concepts"), IMAGES[0], Intervention(rejected=[("dark", 0)]))


def test_answers_are_read_from_the_command_line():
    assert parse_answer("Streaks=absent") == ("Streaks", "absent")
    assert parse_answer("a=b=0.3") == ("a=b", 0.3)
    for text in ("Streaks", "Streaks=", "=present", "Streaks=2", "Streaks=nan", "Streaks=yes"):
        with pytest.raises(ValueError, match="expected NAME=present"):
            parse_answer(text)
