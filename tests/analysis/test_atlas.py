import contextlib
import hashlib
import json
import math

import pytest
import torch

from conceptcam.analysis.atlas import build_atlas, drop_prototypes, merge_prototypes, refit_task_head
from conceptcam.analysis.explanation import explain
from conceptcam.analysis.fitting import fit_thresholds
from conceptcam.model.concept_model import ConceptModel
from tests.worlds import CONCEPTS, Squares, batches, tiny_model

DATA = Squares(24, 2)
BATCHES = batches(DATA, 8)


@pytest.fixture
def model():
    model = tiny_model()
    with torch.no_grad():
        model.task_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    for stage, part in (("concepts", "backbone"), ("prototypes", "prototypes"), ("task", "task_head")):
        model.record = model.record.after(stage, [part])
    return model.eval()


def evidence_of(model):
    with torch.no_grad():
        return torch.cat([model(batch.images).evidence for batch in BATCHES])


def test_entries_equal_a_loop_over_images_and_places(model):
    atlas = build_atlas(model, BATCHES)
    with torch.no_grad():
        maps = torch.cat([model(batch.images).similarity_maps for batch in BATCHES])
    names = [name for batch in BATCHES for name in batch.names] or [str(i) for i in range(24)]
    for k, concept in enumerate(CONCEPTS):
        own = [i for i in range(24) if DATA.concept_labels[i, k] > 0.5]
        for m in range(maps.shape[2]):
            entry = atlas[concept, m]
            value, image = max((float(maps[i, k, m].max()), -i) for i in own)
            assert entry.similarity == pytest.approx(value, abs=1e-6)
            assert entry.image == names[-image]
            left, top, right, bottom = entry.place
            height, width = maps.shape[-2:]
            cell = maps[-image, k, m, round(top * height), round(left * width)]
            assert float(cell) == pytest.approx(value, abs=1e-6)
            assert (right - left, bottom - top) == pytest.approx((1 / width, 1 / height))
            wins = [i for i in own if int(maps[i, k].amax(dim=(-2, -1)).argmax()) == m and maps[i, k].max() > 0]
            assert entry.usage == pytest.approx(len(wins) / len(own))


def test_a_dropped_prototype_has_no_evidence_and_others_keep_theirs(model):
    before = evidence_of(model)
    drop_prototypes(model, [("dark", 1)])
    after = evidence_of(model)
    assert (after[:, 1, 1] == 0).all()
    after[:, 1, 1] = before[:, 1, 1]
    assert torch.equal(after, before)
    assert "task" not in model.record.stages
    assert build_atlas(model, BATCHES)["dark", 1].dropped
    assert math.isnan(build_atlas(model, BATCHES)["dark", 1].twin)


@pytest.mark.parametrize("wrong", [[], [("dark", 1), ("dark", 9)]])
def test_a_model_stays_as_it_is_where_no_prototype_can_be_dropped(model, wrong):
    record, before = model.record, model.prototypes.vectors.clone()
    with pytest.raises(ValueError, match="there is no 9") if wrong else contextlib.nullcontext():
        drop_prototypes(model, wrong)
    assert model.record == record and torch.equal(model.prototypes.vectors, before)


def test_a_dropped_prototype_is_drawn_as_dropped_without_an_image(model, monkeypatch):
    drop_prototypes(model, [("dark", 1)])
    sheets = []
    monkeypatch.setattr("conceptcam.analysis.figures.contact_sheet", lambda tiles, **_: sheets.append(tiles))
    atlas = build_atlas(model, BATCHES)
    atlas.figure(lambda name: DATA.load_item(0).image, concepts=["dark"])
    entry, ((living, dropped),) = atlas["dark", 1], sheets
    assert entry.image == "" and math.isnan(entry.similarity) and entry.used == 0
    assert (living.title, dropped.title, dropped.note) == ("dark 0", "dark 1", "dropped")
    assert living.note.startswith("similarity 0.") and living.image.size == dropped.image.size
    assert len(dropped.image.getcolors()) == 2  # paper and a cross
    (line,) = [line for line in atlas.table().splitlines() if line.startswith("dark 1")]
    assert line.split() == ["dark", "1", "dropped"]


def test_a_prototype_that_no_image_uses_is_drawn_as_dead(model):
    with torch.no_grad():
        model.prototypes.vectors[0, 1] = -model.prototypes.vectors[0, 0]
    entries = build_atlas(model, BATCHES).entries
    assert {entry.used > 0 for entry in entries} == {True, False}
    for entry in entries:
        assert entry.health.endswith("dead: used by no image" if not entry.used else f"usage {entry.usage:.0%}")


def test_a_changed_model_says_from_which_saved_one_it_was_made(model, tmp_path):
    model.save_pretrained(tmp_path / "first")
    first = ConceptModel.from_pretrained(tmp_path / "first")
    assert first.record.derived_from == ""
    drop_prototypes(first, [("dark", 1)])
    merge_prototypes(first, "bright", [0, 1])
    parent = f"the model whose weights have the SHA-256 {model_sha256(tmp_path / 'first')}"
    assert first.record.derived_from == f"{parent}; dropped dark 1; merged bright 0, 1"
    refit_task_head(first, BATCHES)
    first.save_pretrained(tmp_path / "second")
    second = ConceptModel.from_pretrained(tmp_path / "second")
    assert second.record.derived_from == first.record.derived_from
    assert f"by changing it: {parent}; dropped dark 1; merged" in (tmp_path / "second" / "README.md").read_text()
    drop_prototypes(second, [("dark", 0)])
    assert second.record.derived_from.startswith("the model whose")
    assert model_sha256(tmp_path / "second") in second.record.derived_from


def model_sha256(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_merging_duplicates_keeps_what_they_show(model):
    with torch.no_grad():
        model.prototypes.vectors[0, 1] = 3 * model.prototypes.vectors[0, 0]
    assert build_atlas(model, BATCHES)["bright", 0].twin == pytest.approx(1, abs=1e-5)
    before = evidence_of(model)
    merge_prototypes(model, "bright", [0, 1])
    torch.testing.assert_close(evidence_of(model)[:, 0, 0], before[:, 0, 0])
    assert (evidence_of(model)[:, 0, 1] == 0).all()


def test_refitting_changes_the_task_head_alone(model):
    drop_prototypes(model, [("dark", 0)])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    refit_task_head(model, BATCHES)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"task_head.weight", "task_head.bias"}
    assert model.task_head.weight[:, 1, 0].abs().max() < 1e-6 * model.task_head.weight.abs().max() + 1e-12
    assert model.record.stages == ("concepts", "prototypes", "task")
    assert explain(model, DATA.load_item(0).image).tasks


def test_a_head_refitted_without_corrections_knows_nothing_typical(model):
    drop_prototypes(model, [("dark", 0)])
    refit_task_head(model, BATCHES, corrections=False)
    assert not model.record.evidence_present and not model.record.evidence_source
    fit_thresholds(model, BATCHES, thresholds_source="24 squares")
    seen = evidence_of(model)[DATA.concept_labels[:, 0] == 1, 0].median(dim=0).values
    torch.testing.assert_close(torch.tensor(model.record.evidence_present["bright"]), seen, atol=0.05, rtol=0.05)


def test_a_new_head_forgets_the_evidence_that_taught_the_old(model):
    refit_task_head(model, BATCHES)
    assert model.record.evidence_source and model.record.evidence_present
    refit_task_head(model, BATCHES, corrections=False)
    assert not model.record.evidence_source and not model.record.evidence_present


def test_an_atlas_is_listed_renamed_drawn_and_written(model):
    atlas = build_atlas(model, BATCHES).renamed({("dark", 0): "a shadow"})
    assert "a shadow" in atlas.table() and len(atlas.table().splitlines()) > len(atlas.entries)
    assert json.loads(json.dumps(atlas.as_dict()))["prototypes"][0]["concept"] == "bright"
    names = [name for batch in BATCHES for name in batch.names] or [str(i) for i in range(24)]
    picture = atlas.figure(lambda name: DATA.load_item(names.index(name)).image, concepts=["dark"])
    assert picture.width > 100


def test_a_concept_that_no_image_has_is_listed_but_not_drawn(model):
    lacking = [batch._replace(concepts=batch.concepts.clone()) for batch in BATCHES]
    for batch in lacking:
        batch.concepts[:, CONCEPTS.index("dark")] = 0
    atlas = build_atlas(model, lacking)
    assert {one.concept for one in atlas.entries} - {one.concept for one in atlas.drawable} == {"dark"}
    assert "dark 0" in atlas.table() and atlas.figure(lambda name: DATA.load_item(0).image).width > 100
    with pytest.raises(ValueError, match="no prototype can be drawn"):
        atlas.figure(lambda name: DATA.load_item(0).image, concepts=["dark"])


def test_refitting_needs_labels_of_the_tasks(model):
    with pytest.raises(ValueError, match="the data have 0 task labels, and the model 2 tasks"):
        refit_task_head(model, [batch._replace(targets=batch.targets[:, :0]) for batch in BATCHES])


def test_impossible_prototypes_are_refused(model):
    with pytest.raises(ValueError, match="did you mean"):
        drop_prototypes(model, [("drak", 0)])
    with pytest.raises(ValueError, match="there is no 99"):
        drop_prototypes(model, [("dark", 99)])
    with pytest.raises(ValueError, match="at least two"):
        merge_prototypes(model, "dark", [1, 1])
    with pytest.raises(ValueError, match="no prototypes"):
        build_atlas(tiny_model(bottleneck="concepts"), BATCHES)
