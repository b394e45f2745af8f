"""The models in the package are what their cards say."""

import pytest
import torch

from conceptcam.analysis.evaluation import evaluate
from conceptcam.data.phantom.dataset import PhantomDataset
from conceptcam.hub.card import is_generated
from conceptcam.hub.zoo import bundled_models
from conceptcam.model.concept_model import ConceptModel

MODELS = bundled_models()


def test_there_is_one_of_each_bottleneck_and_together_they_are_small():
    bottlenecks = {ConceptModel.from_pretrained(name).config.bottleneck for name in MODELS}
    assert bottlenecks == {"prototypes", "concepts"}
    assert sum(file.stat().st_size for folder in MODELS.values() for file in folder.iterdir()) < 6e6


@pytest.mark.parametrize("name", MODELS)
def test_a_bundled_model_is_whole_and_taught_and_has_a_card(name):
    model = ConceptModel.from_pretrained(name, verify=True)
    taught = {"concepts", "task"} | ({"prototypes"} if model.config.bottleneck == "prototypes" else set())
    assert set(model.record.stages) == taught and model.record.metrics and not model.training
    card = (MODELS[name] / "README.md").read_text(encoding="utf-8")
    assert is_generated(card) and model.record.weights_sha256 in card and "not a medical device" in card.lower()


@pytest.fixture(scope="module")
def fresh():
    """Images that no model has seen: another seed draws all of them afresh."""
    return PhantomDataset(240, seed=987_654, cache_dir=False)


@pytest.mark.parametrize("name", MODELS)
def test_figures_of_the_card_hold_on_images_never_seen(name, fresh):
    model = ConceptModel.from_pretrained(name)
    fresh.preprocess = model.preprocess
    with torch.random.fork_rng(devices=[]):
        found = evaluate(model, fresh.dataloader(40)).summary()
    recorded = model.record.metrics
    assert found["concept_auroc"] > recorded["concept AUROC"] - 0.03
    assert found["pointing"] > recorded["pointing"] - 0.06
    assert found["task_auroc"] > recorded[f"disease AUROC, {model.config.bottleneck} bottleneck"] - 0.06


def test_a_misspelt_name_says_what_there_is():
    with pytest.raises(FileNotFoundError, match=r"no model folder phantom-crs .* did you mean \['phantom-csr'"):
        ConceptModel.from_pretrained("phantom-crs")


def test_a_model_of_the_package_has_no_revisions():
    with pytest.raises(ValueError, match="phantom-csr comes with the package and has no revision 'v2'"):
        ConceptModel.from_pretrained("phantom-csr", revision="v2")
