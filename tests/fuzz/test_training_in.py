"""Losses and training that are called wrongly, and checkpoints and answers of the Hub that are damaged."""

import math
from typing import Any

import pytest
import torch

from conceptcam.data.boxes import ConceptBoxes
from conceptcam.losses import BBoxGuidedConceptLoss
from conceptcam.model.concept_model import ConceptModel
from conceptcam.training.checkpoints import Checkpoints
from conceptcam.training.trainer import Trainer
from tests.fuzz.hostile import damaged, mutated, value
from tests.hub_server import HubServer
from tests.scenarios import squares, stages_of
from tests.worlds import batches, tiny_model, weights


@pytest.mark.attacks("arguments of the loss")
def test_options_of_the_loss_are_numbers_or_refused(attempts):
    maps = torch.randn(2, 3, 4, 4)
    labels, boxes = torch.tensor([[1.0, 0, math.nan], [0, 1, 1]]), [None, [{"concept_idx": 1, "bbox": [0, 0, 0.5, 1]}]]
    for chance in attempts(200):
        name = chance.choice(("alpha", "beta", "margin", "penalty", "normalize", "mask", "classification"))
        try:
            loss = BBoxGuidedConceptLoss(**{"penalty": "hinge", name: value(chance)})(maps, labels, boxes)
        except (ValueError, TypeError) as error:
            attempts.refused(error, longest=6000)
            continue
        assert loss.ndim == 0 and not loss.isnan()


@pytest.mark.attacks("boxes of the loss")
def test_boxes_of_the_loss_are_boxes_or_refused(attempts):
    target = {"boxes": [[0.1, 0.2, 0.5, 0.6]], "labels": [1]}
    forms: list[Any] = [
        [None, [{"concept_idx": 1, "bbox": [0.1, 0.2, 0.5, 0.6]}]],
        [[{"concept_idx": 0, "x_min": 0, "y_min": 0, "x_max": 1, "y_max": 1}], None],
    ]
    for chance in attempts(200):
        boxes = mutated(chance, chance.choice(forms)) if chance.random() < 0.7 else [mutated(chance, target), None]
        try:
            loss = BBoxGuidedConceptLoss()(torch.zeros(2, 3, 4, 4), torch.ones(2, 3), boxes)
        except (ValueError, TypeError) as error:
            attempts.refused(error, longest=20_000)
            continue
        assert loss.isfinite()


@pytest.mark.attacks("checkpoints of a training")
def test_a_training_resumes_from_damage_with_the_same_weights(attempts, tmp_path):
    def train(folder: Any, resume: bool) -> dict[str, torch.Tensor]:
        model = tiny_model()
        trainer = Trainer(seed=0, checkpoint_dir=folder, checkpoint_every=1, keep_checkpoints=3)
        trainer.fit(model, stages_of(model, 1)[:1], batches(squares(9), 3), batches(squares(4, 1), 4), resume=resume)
        return weights(model)

    whole = train(tmp_path, resume=False)
    paths = Checkpoints(tmp_path, 3).paths()
    good = [path.read_bytes() for path in paths]
    for chance in attempts(10):
        for path in tmp_path.iterdir():
            path.unlink()
        for path, content in zip(paths, good, strict=True):
            path.write_bytes(content)
        paths[-1].write_bytes(damaged(chance, good[-1]))
        again = train(tmp_path, resume=True)
        assert all(torch.equal(found, whole[name]) for name, found in again.items())


@pytest.fixture
def quick(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.3)


@pytest.mark.attacks("the Hub")
def test_any_answer_about_a_repository_is_used_or_an_error(attempts, hub: HubServer, quick, tmp_path):
    import json

    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    hub.repo("org/name", {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()})
    about = {"id": "org/name", "sha": "0" * 40, "siblings": [{"rfilename": "config.json"}], "tags": ["a"]}
    for number, chance in enumerate(attempts(10)):
        hub.fail("GET /api/models/", "json", headers={"body": json.dumps(mutated(chance, about))})
        try:
            found = ConceptModel.from_pretrained("org/name", cache_dir=tmp_path / str(number))
        except (ValueError, OSError) as error:
            attempts.refused(error)
        else:
            assert all(torch.equal(one, model.state_dict()[name]) for name, one in found.state_dict().items())
        hub.heal()


FAULTS = ("dribble", "json", "truncate", "short", "flip", "reset", "stall", "status", "html", "no_etag")


@pytest.mark.attacks("the Hub")
def test_any_fault_of_the_hub_is_got_over_or_an_error(attempts, hub: HubServer, quick, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    hub.repo("org/name", files)
    for number, chance in enumerate(attempts(10)):
        kind = chance.choice(FAULTS)
        hub.fail(
            chance.choice(("GET /api/models/", "HEAD ", "GET .*config", "GET /cdn/", "")), kind,
            times=chance.choice((1, 2, 99)), keep=chance.randrange(6000), status=chance.choice((401, 404, 429, 500)),
            ranges=chance.random() < 0.5, headers={"body": "{}"} if kind == "json" else {"Retry-After": "0"},
        )  # fmt: skip
        for healed in (False, True):
            if healed:
                hub.heal()
            try:
                found = ConceptModel.from_pretrained("org/name", cache_dir=tmp_path / str(number))
            except (ValueError, OSError) as error:
                if not healed:
                    attempts.refused(error)
                elif "remove " not in str(error):  # what was damaged on the way is named with what to remove
                    raise
            else:
                assert all(torch.equal(one, model.state_dict()[name]) for name, one in found.state_dict().items())


@pytest.mark.attacks("ConceptBoxes")
def test_concept_boxes_are_valid_or_refused(attempts):
    for chance in attempts(200):
        corners = [[value(chance) if chance.random() < 0.3 else chance.random() for _ in range(4)]]
        try:
            boxes = ConceptBoxes(torch.tensor(corners, dtype=torch.float32), torch.tensor([0]), torch.tensor([0]))
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:  # torch's own come before ours
            attempts.refused(error, longest=6000)
            continue
        left, top, right, bottom = boxes.xyxy[0].tolist()
        assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
