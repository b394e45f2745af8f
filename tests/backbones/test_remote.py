"""Backbones' weights from the Hub, over real HTTP: timm's own downloads, and `weights=`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save
from torch import Tensor, nn

from conceptcam.backbones import create_backbone, registry
from tests.hub_api import OWNER
from tests.hub_server import HubServer

# What timm asks for is part of its published table of weights, so these names are facts and not our choice.
PUBLISHED = {"test_resnet": "timm/test_resnet.r160_in1k", "test_vit": "timm/test_vit.r160_in1k"}
SIZE = (160, 160)


def timm_weights(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Random weights as timm publishes them, with a classifier and with statistics of batch norm that tell."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = timm.create_model(name).state_dict()
        return {key: torch.rand_like(it) if it.is_floating_point() else it for key, it in weights.items()}


def without(weights: dict[str, Tensor], *keys: str) -> dict[str, Tensor]:
    return {key: weights[key] for key in weights if key not in keys}


def holds(backbone: nn.Module, weights: dict[str, Tensor]) -> bool:
    """Whether every tensor of the backbone is the published one, to the bit."""
    state = {key.removeprefix("model."): value for key, value in backbone.state_dict().items()}
    return len(state) > 10 and all(torch.equal(value, weights[key]) for key, value in state.items())


@pytest.fixture(autouse=True)
def quick(waits: list[float]) -> Iterator[None]:
    """The client's pauses between tries are not waited for."""
    yield


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_timm_models_take_their_published_weights_from_the_hub(hub: HubServer, name):
    weights = timm_weights(name)
    hub.repo(PUBLISHED[name], {"model.safetensors": save(weights)})
    backbone = create_backbone(f"timm:{name}", pretrained=True, image_size=SIZE)
    assert holds(backbone, weights)
    assert {request.path.split("/resolve/")[0] for request in hub.requests if "/resolve/" in request.path} == {
        f"/{PUBLISHED[name]}"
    }
    hub.requests.clear()
    assert holds(create_backbone(f"timm:{name}.r160_in1k", pretrained=True, image_size=SIZE), weights)
    assert hub.bodies() == []


def test_without_pretrained_nothing_is_asked(hub: HubServer):
    create_backbone("timm:test_resnet", image_size=SIZE)
    create_backbone("small_cnn_s8", image_size=SIZE)
    assert hub.requests == []


@pytest.mark.parametrize("asked", [{"pretrained": True}, {"weights": "timm/vit_base_patch16_224.mae"}])
def test_a_noncommercial_license_is_told_before_any_request(hub: HubServer, monkeypatch, asked):
    told = []
    monkeypatch.setattr(registry.log, "warning", lambda form, *words: told.append((len(hub.requests), form % words)))
    with pytest.raises(FileNotFoundError, match=r"vit_base_patch16_224\.mae"):  # this hub does not have it
        create_backbone("mae_vit_b16", **asked)
    ((requests, sentence),) = told
    assert requests == 0 < len(hub.requests)
    assert sentence.endswith(" are under CC-BY-NC-4.0, which forbids commercial use")


def test_downloading_leaves_the_global_random_state_as_it_was(hub: HubServer):
    hub.repo(PUBLISHED["test_resnet"], {"model.safetensors": save(timm_weights("test_resnet"))})
    before = torch.get_rng_state()
    create_backbone("timm:test_resnet", pretrained=True, image_size=SIZE)
    create_backbone("timm:test_resnet", weights=PUBLISHED["test_resnet"], image_size=SIZE)
    assert torch.equal(torch.get_rng_state(), before)


def changed(weights: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    key = "layer1.0.conv1.weight"
    if how == "missing":
        return without(weights, key)
    if how == "renamed":
        return {**without(weights, key), "layer1.0.conv9.weight": weights[key]}
    return {**weights, key: weights[key][:, :1].contiguous()}


@pytest.mark.parametrize("how", ["missing", "renamed", "reshaped"])
@pytest.mark.parametrize("by", ["pretrained", "weights"])
def test_published_weights_that_do_not_fit_are_never_half_loaded(hub: HubServer, how, by):
    hub.repo(PUBLISHED["test_resnet"], {"model.safetensors": save(changed(timm_weights("test_resnet"), how))})
    source = {"pretrained": True} if by == "pretrained" else {"weights": PUBLISHED["test_resnet"]}
    with pytest.raises(ValueError, match="layer1.0.conv1.weight") as caught:
        create_backbone("timm:test_resnet", image_size=SIZE, **source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("by", ["pretrained", "weights"])
def test_a_published_file_that_is_no_safetensors_file_is_an_error(hub: HubServer, by):
    hub.repo(PUBLISHED["test_resnet"], {"model.safetensors": b"<html>" * 100})
    source = {"pretrained": True} if by == "pretrained" else {"weights": PUBLISHED["test_resnet"]}
    with pytest.raises(ValueError, match="test_resnet") as caught:
        create_backbone("timm:test_resnet", image_size=SIZE, **source)
    assert "\n" not in str(caught.value)


def test_a_timm_model_without_published_weights_is_no_pretrained_one(hub: HubServer):
    with pytest.raises(ValueError, match="nf_resnet26.*published weights"):
        create_backbone("timm:nf_resnet26", pretrained=True)
    assert hub.requests == []


@pytest.mark.parametrize(
    "pattern, kind, options, error",
    [
        ("", "status", {"status": 404}, OSError),
        ("", "status", {"status": 401}, PermissionError),
        ("", "status", {"status": 503}, ConnectionError),
        ("", "html", {}, ConnectionError),
        ("GET /cdn/", "truncate", {"keep": 5000}, ConnectionError),
        ("GET /cdn/", "reset", {"keep": 5000}, ConnectionError),
        ("GET /cdn/", "dribble", {}, ConnectionError),
    ],
)
@pytest.mark.parametrize("by", ["pretrained", "weights"])
def test_a_fault_is_one_sentence_and_the_next_try_works(hub: HubServer, monkeypatch, pattern, kind, options, error, by):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    weights = timm_weights("test_resnet")
    hub.repo(PUBLISHED["test_resnet"], {"model.safetensors": save(weights)})
    source = {"pretrained": True} if by == "pretrained" else {"weights": PUBLISHED["test_resnet"]}
    hub.fail(pattern, kind, **options)
    with pytest.raises(error) as caught:
        create_backbone("timm:test_resnet", image_size=SIZE, **source)
    assert "\n" not in str(caught.value) and "test_resnet" in str(caught.value)
    hub.heal()
    assert holds(create_backbone("timm:test_resnet", image_size=SIZE, **source), weights)


def test_published_weights_that_are_not_there_are_named(hub: HubServer):
    with pytest.raises(FileNotFoundError, match="timm:test_resnet") as caught:
        create_backbone("timm:test_resnet", pretrained=True, image_size=SIZE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["{}", "hf-hub:{}", "{}@main", "{}@v1", "{}/model.safetensors", "{}/sub/w.pth@v1"])
def test_weights_come_from_the_hub_in_each_way_to_write_it(hub: HubServer, tmp_path: Path, form):
    weights = timm_weights("test_resnet")
    torch.save({"state_dict": weights}, tmp_path / "w.pth")
    repo = hub.repo(
        "org/name", {"model.safetensors": save(weights), "sub/w.pth": (tmp_path / "w.pth").read_bytes(), "x": b"x"}
    )
    repo.tags["v1"] = repo.find("main")
    if "v1" in form:
        repo.push({"model.safetensors": save(timm_weights("test_resnet", seed=1))}, delete=("sub/w.pth",))
    backbone = create_backbone("timm:test_resnet", weights=form.format("org/name"), image_size=SIZE)
    assert holds(backbone, weights)
    assert len(hub.bodies()) == 1


def test_a_repository_with_a_pickle_only_is_read_without_running_it(hub: HubServer, tmp_path: Path):
    weights = timm_weights("test_resnet")
    torch.save(weights, tmp_path / "w.bin")
    hub.repo("org/old", {"pytorch_model.bin": (tmp_path / "w.bin").read_bytes()})
    assert holds(create_backbone("timm:test_resnet", weights="org/old", image_size=SIZE), weights)


def test_safetensors_are_preferred_to_a_pickle(hub: HubServer):
    weights = timm_weights("test_resnet")
    hub.repo("org/both", {"model.safetensors": save(weights), "pytorch_model.bin": b"no pickle"})
    assert holds(create_backbone("timm:test_resnet", weights="org/both", image_size=SIZE), weights)


def test_a_backbone_of_ours_takes_weights_from_the_hub(hub: HubServer):
    weights = create_backbone("small_cnn_s8").state_dict()
    weights = {key: it + 1 if it.is_floating_point() else it for key, it in weights.items()}
    hub.repo("org/small", {"model.safetensors": save(weights)})
    state = create_backbone("small_cnn_s8", weights="org/small").state_dict()
    assert state.keys() == weights.keys() and all(torch.equal(state[key], weights[key]) for key in state)


@pytest.mark.parametrize(
    "source, words",
    [
        ("org/other", ("org/other",)),
        ("org/name@v9", ("org/name", "v9")),
        ("org/name/other.pth", ("org/name", "other.pth")),
        ("org/empty", ("org/empty", "model.safetensors")),
        ("org/private", ("org/private", "token")),
        ("./org/name", ("org/name",)),
        ("name", ("name",)),
    ],
)
def test_weights_that_are_not_there_are_named_in_one_sentence(hub: HubServer, source, words):
    hub.repo("org/name", {"model.safetensors": save(timm_weights("test_resnet"))})
    hub.repo("org/empty")
    hub.repo("org/private", {"model.safetensors": b""}, private=True)
    with pytest.raises(FileNotFoundError) as caught:
        create_backbone("timm:test_resnet", weights=source, image_size=SIZE)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_the_token_of_the_environment_opens_a_gated_repository(hub: HubServer, monkeypatch):
    weights = timm_weights("test_resnet")
    hub.repo("org/gated", {"model.safetensors": save(weights)}, gated=True)
    with pytest.raises(PermissionError, match="org/gated"):
        create_backbone("timm:test_resnet", weights="org/gated", image_size=SIZE)
    monkeypatch.setenv("HF_TOKEN", OWNER)
    assert holds(create_backbone("timm:test_resnet", weights="org/gated", image_size=SIZE), weights)


def test_weights_changed_on_the_way_are_named_with_what_to_do(hub: HubServer):
    weights = timm_weights("test_resnet")
    hub.repo("org/weights", {"model.safetensors": save(weights)})
    hub.fail("GET /cdn/.*safetensors", "flip")
    for _ in range(2):  # from the network, then from the cache
        with pytest.raises(
            ValueError, match="is not the file that the Hub has: the SHA-256 differs; remove "
        ) as caught:
            create_backbone("timm:test_resnet", weights="org/weights", image_size=SIZE)
    hub.heal()
    Path(str(caught.value).partition("remove ")[2].partition(" and load again")[0]).unlink()
    assert holds(create_backbone("timm:test_resnet", weights="org/weights", image_size=SIZE), weights)
