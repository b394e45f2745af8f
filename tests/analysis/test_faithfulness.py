import pytest
import torch

from conceptcam.analysis.faithfulness import measure_faithfulness
from conceptcam.analysis.randomization import randomization_check
from conceptcam.analysis.removal import removal_effects
from conceptcam.data.phantom import PHANTOM_CONCEPTS, PHANTOM_DISEASES, PhantomConfig, PhantomDataset
from conceptcam.data.phantom.render import Phantom
from conceptcam.metrics.faithfulness import blurred, curve_areas, perturbation_curves
from tests.worlds import Squares, batches, tiny_model, weights

TEST = batches(Squares(16, 2))


def spread(model):
    with torch.no_grad():
        model.concept_head.score.weight.normal_(generator=torch.Generator().manual_seed(2))
    return model.eval()


@pytest.mark.parametrize("fill", ["blur", "mean"])
def test_faithfulness_is_that_of_single_maps(fill):
    model, labels = spread(tiny_model()), Squares(16, 2).concept_labels
    scores = measure_faithfulness(model, TEST, fill=fill, per_concept=3, steps=4)
    images = torch.cat([batch.images for batch in TEST])
    for k in range(3):
        rows = []
        for index in labels[:, k].nonzero()[:3, 0].tolist():
            image = images[index : index + 1]
            with torch.no_grad():
                maps = model.forward_concepts(image).concept_maps[:, k]
                curves = perturbation_curves(
                    lambda x, k=k: model.forward_concepts(x).concept_logits[:, k].sigmoid(),
                    image,
                    maps,
                    blurred(image) if fill == "blur" else torch.zeros(()),
                    steps=4,
                )
            rows.append(curve_areas(curves)[0])
        assert int(scores.support[k]) == len(rows) == 3
        found = torch.stack([part[k] for part in scores[:4]])
        torch.testing.assert_close(found, torch.stack(rows).mean(dim=0), atol=1e-5, rtol=0)


def phantom_model():
    fields = {"concepts": PHANTOM_CONCEPTS, "tasks": PHANTOM_DISEASES, "image_size": (64, 64)}
    return spread(tiny_model(**fields))


def test_removal_equals_images_drawn_one_by_one():
    model = phantom_model()
    data = PhantomDataset(4, seed=3, config=PhantomConfig(size=64), first=2, cache_dir=False)
    scores = removal_effects(model, data, images=3)
    phantom = Phantom(data.config, 3)
    rows = {}
    for index in range(2, 5):
        whole = phantom.sample(index)
        for k in whole.concepts.nonzero()[0].tolist():
            name = PHANTOM_CONCEPTS[k]
            without = phantom.sample(index, without=[name])
            with torch.no_grad():
                before, after = (model.forward_concepts(model.preprocess(one.image)[None]) for one in (whole, without))
            change = (after.concept_logits - before.concept_logits)[0]
            moved = (after.concept_maps - before.concept_maps)[0, k].abs()
            mask = torch.from_numpy(phantom.masks(index)[name]).float()
            inside = torch.nn.functional.avg_pool2d(mask[None], 64 // moved.shape[0])[0]
            others = [abs(float(change[j])) for j in range(22) if j != k]
            row = (-float(change[k]), change[k] < 0, abs(float(change[k])) >= max(others), sum(others) / 21)
            rows.setdefault(k, []).append([*map(float, row), float((moved * inside).sum() / moved.sum())])
    assert rows and scores.support.tolist() == [len(rows.get(k, ())) for k in range(22)]
    for k, found in rows.items():
        expected = torch.tensor(found, dtype=torch.float64).mean(dim=0)
        torch.testing.assert_close(torch.stack([part[k] for part in scores[:5]]), expected, atol=1e-4, rtol=1e-4)
    assert scores.drop[[k for k in range(22) if k not in rows]].isnan().all()


def test_removal_needs_the_phantoms_concepts():
    data = PhantomDataset(1, seed=3, config=PhantomConfig(size=64), cache_dir=False)
    with pytest.raises(ValueError, match="the phantom's concepts"):
        removal_effects(tiny_model(), data)


def test_shuffled_weights_change_maps_and_leave_the_model_alone():
    model = spread(tiny_model())
    before = weights(model)
    check = randomization_check(model, TEST, steps=3)
    assert check.parts[0] == "concept_head" and check.correlation.shape == (4, 3)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    assert abs(check.means[-1]) < 0.8
    head = randomization_check(model, TEST, cascade=False)
    torch.testing.assert_close(head.correlation, check.correlation[:1])


def test_maps_that_ignore_the_weights_are_found_out(monkeypatch):
    model = spread(tiny_model())
    real = type(model).forward_concepts

    def edges(self, images):  # maps of the image alone, whatever was learned
        brightness = torch.nn.functional.avg_pool2d(images.mean(dim=1, keepdim=True), 8)
        return real(self, images)._replace(concept_maps=brightness.expand(-1, 3, -1, -1))

    monkeypatch.setattr(type(model), "forward_concepts", edges)
    assert randomization_check(model, TEST, steps=2).means == pytest.approx([1, 1, 1])


def test_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="no batches"):
        randomization_check(tiny_model(), [])
    with pytest.raises(ValueError, match="unknown `fill` 'black'"):
        measure_faithfulness(tiny_model(), TEST, fill="black")
