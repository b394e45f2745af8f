"""Models from the Hub, over real HTTP with the real client, when all goes well and when it does not."""

import dataclasses
import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conceptcam.config import TrainingRecord
from conceptcam.hub.address import Address, parse_source
from conceptcam.model.concept_model import ConceptModel
from tests.hub_api import OWNER, READER, Repo
from tests.hub_server import HubServer
from tests.worlds import tiny_model

NAME = "org/name"
BODY = "GET /cdn/.*safetensors"


def model_with(seed: int) -> ConceptModel:
    model = tiny_model(seed)
    model.record = TrainingRecord(stages=("concepts",), metrics={"auroc": float(seed)})
    return model.eval()


def saved_files(folder: Path, seed: int) -> dict[str, bytes]:
    model_with(seed).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return saved_files(tmp_path_factory.mktemp("first"), 1)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return saved_files(tmp_path_factory.mktemp("second"), 2)


@pytest.fixture
def repo(hub: HubServer, first: dict[str, bytes]) -> Repo:
    return hub.repo(NAME, first)


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """`from_pretrained` with a cache of the test's own."""

    def load(source: Any = NAME, **options: Any) -> ConceptModel:
        return ConceptModel.from_pretrained(source, cache_dir=tmp_path / "cache", **options)

    return load


def same_weights(model: nn.Module, other: nn.Module) -> bool:
    weights, others = model.state_dict(), other.state_dict()
    return weights.keys() == others.keys() and all(torch.equal(weights[key], others[key]) for key in weights)


def one_sentence(error: BaseException, *words: str) -> None:
    """An error's text is one line that names the source, and holds these words."""
    text = str(error)
    assert "\n" not in text and 20 < len(text) < 600
    for word in words:
        assert word in text


# What is there


@pytest.mark.parametrize("source, revision, seed", [
    (NAME, None, 2), (NAME, "main", 2), (NAME, "v1", 1), (NAME, "feature/x", 1), (f"{NAME}@v1", None, 1),
    (f"hf-hub:{NAME}", None, 2), (f"hf-hub:{NAME}@v1", None, 1), (f"{NAME}@feature/x", None, 1),
    (f"https://huggingface.co/{NAME}", None, 2), (f"https://huggingface.co/{NAME}/", "v1", 1),
    (f"huggingface.co/{NAME}/tree/v1", None, 1), (f"https://hf.co/{NAME}/tree/feature%2Fx?x=1#y", None, 1),
])  # fmt: skip
def test_a_model_comes_by_branch_or_tag_in_each_way_to_write_it(repo, second, load, source, revision, seed):
    repo.tags["v1"] = repo.branches["feature/x"] = repo.find("main")
    repo.push(second)
    model = load(source, revision=revision, verify=True)
    assert same_weights(model, model_with(seed)) and not model.training
    assert model.config == model_with(seed).config
    assert model.record.metrics == {"auroc": seed}


def test_a_model_comes_by_commit(repo, second, load):
    commits = {1: repo.find("main"), 2: repo.push(second)}
    for seed, commit in commits.items():
        assert same_weights(load(revision=commit), model_with(seed))
        assert same_weights(load(f"{NAME}@{commit}"), model_with(seed))


def test_nothing_but_config_and_weights_is_downloaded(hub, first, load, tmp_path):
    hub.repo(NAME, {**first, "README.md": b"x", "pytorch_model.bin": b"x", "big.safetensors": b"x"})
    load()
    assert sorted(path.split("/")[-1] for path in hub.bodies()) == ["config.json", "model.safetensors"]


def test_a_second_load_asks_for_no_file_an_offline_one_for_nothing(hub, repo, load):
    load()
    assert len(hub.bodies()) == 2
    hub.requests.clear()
    assert same_weights(load(), model_with(1))
    assert hub.bodies() == []
    hub.requests.clear()
    assert same_weights(load(local_files_only=True), model_with(1))
    assert hub.requests == []


def test_what_is_in_the_cache_is_loaded_without_a_client(hub, repo, load, monkeypatch):
    load()
    monkeypatch.setattr("huggingface_hub.get_session", lambda: pytest.fail("a client was made"))
    assert same_weights(load(local_files_only=True), model_with(1))


def test_a_commit_in_the_cache_is_loaded_without_asking_anybody(hub, repo, load):
    load()
    hub.requests.clear()
    assert same_weights(load(revision=repo.find("main")), model_with(1))
    assert hub.requests == []


def test_a_load_after_a_push_fetches_changed_files_alone(hub, repo, first, second, load):
    load()
    repo.push(second)
    assert same_weights(load(), model_with(2))
    hub.requests.clear()
    repo.push({"README.md": b"new"})
    assert same_weights(load(), model_with(2))
    assert hub.bodies() == []


def test_a_push_meanwhile_gives_config_and_weights_of_one_commit(hub, first, second, tmp_path):
    hub.repo(NAME, first)
    ConceptModel.from_pretrained(NAME, cache_dir=tmp_path / "dry")
    requests = [request.text for request in hub.requests]
    assert len(requests) >= 4
    for number, text in enumerate(requests):
        repo = hub.repo(NAME, first)
        hub.after(f"^{re.escape(text)}$", lambda repo=repo: repo.push(second))
        model = ConceptModel.from_pretrained(NAME, cache_dir=tmp_path / str(number), verify=True)
        assert repo.files()["config.json"] == second["config.json"], "the push did land"
        assert same_weights(model, model_with(int(model.record.metrics["auroc"])))


def test_loading_leaves_the_global_random_state_as_it_was(repo, load):
    before = torch.get_rng_state()
    load()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_hub_is_told_which_library_asks(hub, repo, load):
    load()
    assert all("conceptcam/" in request.agent for request in hub.requests)


@pytest.mark.parametrize("kind", ["private", "gated"])
def test_a_closed_repository_opens_with_a_token(hub, first, load, kind):
    hub.repo(NAME, first, **{kind: True})
    assert same_weights(load(token=OWNER), model_with(1))


def test_the_token_of_the_environment_is_used(hub, first, load, monkeypatch):
    hub.repo(NAME, first, private=True)
    monkeypatch.setenv("HF_TOKEN", OWNER)
    assert same_weights(load(), model_with(1))


def test_a_path_never_asks_the_hub(hub, repo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in ("./org/name", Path(NAME), "~/org/name", str(tmp_path / "name"), "name"):
        with pytest.raises(FileNotFoundError):
            ConceptModel.from_pretrained(source)
    assert hub.requests == []


# What is not there, or not allowed


def test_an_unknown_repository_revision_and_file_are_told_apart(hub, first, load):
    hub.repo(NAME, first)
    hub.repo("org/half", {"config.json": first["config.json"]})
    hub.repo("org/empty")
    for source, words in [
        ("org/other", ("org/other", "repository")),
        (f"{NAME}@v9", (NAME, "v9", "revision")),
        ("org/half", ("org/half", "model.safetensors")),
        ("org/empty", ("org/empty", "config.json")),
    ]:
        with pytest.raises(FileNotFoundError) as caught:
            load(source)
        one_sentence(caught.value, *words)
    assert same_weights(load(), model_with(1))


@pytest.mark.parametrize("token", [None, READER])
def test_a_gated_repository_is_refused_until_access_is_given(hub, first, load, token):
    repo = hub.repo(NAME, first, gated=True)
    with pytest.raises(PermissionError) as caught:
        load(token=token)
    one_sentence(caught.value, NAME, "token")
    repo.gated = False
    assert same_weights(load(token=token), model_with(1))


def test_a_stale_token_is_refused(hub, repo, load):
    with pytest.raises(PermissionError) as caught:
        load(token="hf_stale")
    one_sentence(caught.value, NAME, "token")


def test_a_private_repository_without_a_token_gives_the_reason(hub, first, load):
    hub.repo(NAME, first, private=True)
    with pytest.raises(FileNotFoundError) as caught:
        load()
    one_sentence(caught.value, NAME, "token")


def test_what_is_not_in_the_cache_is_named_when_nobody_may_be_asked(hub, repo, load):
    with pytest.raises(FileNotFoundError) as caught:
        load(local_files_only=True)
    one_sentence(caught.value, NAME, "cache")
    assert hub.requests == []


@pytest.mark.parametrize("source", ["org/name/model.safetensors", "org/na me", "org/name@", "a/b/c/d"])
def test_what_can_be_no_repository_is_an_error_before_any_request(hub, repo, load, source):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load(source)
    one_sentence(caught.value, source.split("@")[0])
    assert hub.requests == []


@pytest.mark.parametrize("source, message", [
    ("https://example.org/org/name", "is a page of another site than the Hugging Face Hub; download what is there"),
    ("https://huggingface.co/datasets/org/name", "is no page of a model on the Hub; write its name there, 'organiz"),
    ("https://huggingface.co/name", "is no page of a model on the Hub"),
    ("https://huggingface.co/org/name/discussions/3", "is no page of a model on the Hub"),
    ("https://huggingface.co/org/name/blob/main/model.safetensors", "a model is a whole folder, .* 'org/name'"),
])  # fmt: skip
def test_a_page_that_is_no_model_is_explained_before_any_request(hub, repo, load, source, message):
    with pytest.raises(ValueError, match=f"'{re.escape(source)}' .*{message}") as caught:
        load(source)
    one_sentence(caught.value)
    assert hub.requests == []


@pytest.mark.parametrize("word", ["blob", "resolve", "raw"])
def test_the_page_of_a_file_is_an_address_of_backbone_weights(word):
    found = parse_source(f"https://huggingface.co/{NAME}/{word}/v1/onnx/a%20b.safetensors?download=true")
    assert found == Address(NAME, "v1", "onnx/a b.safetensors")


def test_a_page_has_one_revision(hub, repo, load):
    with pytest.raises(ValueError, match="names a revision, and so does revision='v1'; give one of them"):
        load(f"https://huggingface.co/{NAME}/tree/main", revision="v1")


@pytest.mark.parametrize("source, instead", [
    ("mine/model.safetensors", "'mine'"), ("model.safetensors", "'.'"), ("./runs/mine/config.json", "'runs/mine'"),
])  # fmt: skip
def test_a_missing_file_is_no_repository_and_says_what_to_pass(hub, load, source, instead):
    told = f"no file {source} is here; a model is the folder .* pass {instead}(, or |$)"
    with pytest.raises(FileNotFoundError, match=told):
        load(source)
    assert hub.requests == []


@pytest.mark.parametrize("source", ["hf-hub:org/yolo.pt", "https://huggingface.co/org/yolo.pt", "org/yolo.pt@v1"])
def test_a_repository_may_have_a_name_that_ends_like_a_file(hub, load, source):
    with pytest.raises((FileNotFoundError, PermissionError), match="org/yolo.pt"):
        load(source)
    assert hub.requests


@pytest.mark.parametrize("device", ["gpu", "cuda:77", "hpu", "", "cpu:-1", 3.5])
def test_a_device_that_cannot_be_used_is_refused_before_any_request(hub, repo, load, device):
    with pytest.raises(
        ValueError, match=f"^cannot use the device '{device}' here; this machine has \\['cpu'"
    ) as caught:
        load(device=device)
    one_sentence(caught.value)
    assert hub.requests == []


@pytest.mark.parametrize("dtype", [torch.int64, "bfloat16"])
def test_an_impossible_dtype_is_refused_before_any_request(hub, repo, load, dtype):
    with pytest.raises(ValueError, match="`dtype` must be a floating-point type such as torch.bfloat16, got "):
        load(dtype=dtype)
    assert hub.requests == []


# Faults

EVERYTHING, ABOUT, HEAD = "", "GET /api/models/.*(revision|name$)", "HEAD .*safetensors"
FAULTS: list[tuple[str, str, Mapping[str, Any], type[OSError]]] = [
    (BODY, "truncate", {"keep": 5000}, ConnectionError),
    (BODY, "truncate", {"keep": 5000, "ranges": False}, ConnectionError),
    (BODY, "truncate", {}, ConnectionError),
    (BODY, "short", {"keep": 5000}, ConnectionError),
    (BODY, "reset", {"keep": 5000}, ConnectionError),
    (BODY, "stall", {"keep": 5000}, ConnectionError),
    (BODY, "stall", {}, ConnectionError),
    (BODY, "html", {}, ConnectionError),
    (BODY, "status", {"status": 500}, ConnectionError),
    (BODY, "status", {"status": 503}, ConnectionError),
    (BODY, "status", {"status": 429}, ConnectionError),
    (BODY, "status", {"status": 403}, PermissionError),
    (BODY, "dribble", {}, ConnectionError),
    ("GET .*config.json", "truncate", {"keep": 50}, ConnectionError),
    ("GET .*config.json", "dribble", {}, ConnectionError),
    (HEAD, "no_etag", {}, ConnectionError),
    (HEAD, "html", {}, ConnectionError),
    (HEAD, "reset", {}, ConnectionError),
    (HEAD, "stall", {}, ConnectionError),
    (HEAD, "status", {"status": 500}, ConnectionError),
    (HEAD, "status", {"status": 503}, ConnectionError),
    (HEAD, "status", {"status": 401}, PermissionError),
    (HEAD, "status", {"status": 403}, PermissionError),
    (ABOUT, "truncate", {"keep": 20}, ConnectionError),
    (ABOUT, "stall", {}, ConnectionError),
    (ABOUT, "dribble", {}, ConnectionError),
    (EVERYTHING, "dribble", {}, ConnectionError),
    *(
        (ABOUT, "json", {"headers": {"body": body}}, ConnectionError)
        for body in ("null", "[]", "{}", '{"sha": 5}', '"x"')
    ),
    (EVERYTHING, "stall", {}, ConnectionError),
    (EVERYTHING, "html", {}, ConnectionError),
    (EVERYTHING, "reset", {}, ConnectionError),
    (EVERYTHING, "status", {"status": 401}, PermissionError),
    (EVERYTHING, "status", {"status": 403}, PermissionError),
    (EVERYTHING, "status", {"status": 404}, OSError),
    (EVERYTHING, "status", {"status": 429, "headers": {"Retry-After": "3"}}, ConnectionError),
    (EVERYTHING, "status", {"status": 500}, ConnectionError),
    (EVERYTHING, "status", {"status": 503}, ConnectionError),
]


@pytest.fixture
def impatient(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that tries as often as ever, and does not wait as long."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.15)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.15)
    # Older clients have no such second, longer wait.
    monkeypatch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", 0.15, raising=False)


def fault_name(value: object) -> str:
    if isinstance(value, dict):
        return "-".join(f"{key}={value[key]}" for key in value if key != "headers") or "at-once"
    return {EVERYTHING: "everything", ABOUT: "about", HEAD: "head", BODY: "body"}.get(str(value), "")


@pytest.mark.parametrize(
    "pattern, kind, options, error",
    FAULTS,
    ids=[f"{fault_name(pattern) or 'config'}-{kind}-{fault_name(options)}" for pattern, kind, options, _ in FAULTS],
)
def test_a_lasting_fault_is_a_sentence_and_spares_the_cache(
    hub, repo, load, impatient, tmp_path, pattern, kind, options, error
):
    hub.fail(pattern, kind, **options)
    with pytest.raises(error) as caught:
        load()
    one_sentence(caught.value, NAME)
    assert hub.outlasted == [], "it waited for ever"
    hub.heal()
    with pytest.raises(FileNotFoundError):
        load(local_files_only=True)
    assert not list(tmp_path.rglob("*.incomplete"))
    assert same_weights(load(verify=True), model_with(1))


@pytest.mark.parametrize("pattern, kind, options", [
    (BODY, "truncate", {"keep": 5000}), (BODY, "truncate", {"keep": 5000, "ranges": False}),
    (BODY, "stall", {"keep": 5000}), (BODY, "slow", {}), (BODY, "status", {"status": 429}),
    (HEAD, "status", {"status": 503}), (HEAD, "stall", {}),
])  # fmt: skip
def test_a_passing_fault_is_got_over(hub, repo, load, impatient, pattern, kind, options):
    hub.fail(pattern, kind, times=1, **options)
    assert same_weights(load(verify=True), model_with(1))


def test_a_body_that_breaks_off_again_and_again_is_put_together(hub, repo, first, load, waits, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # as 10 MB are for a large file
    part = len(first["model.safetensors"]) // 8
    hub.fail(BODY, "truncate", keep=part)
    assert same_weights(load(verify=True), model_with(1))
    assert len(hub.bodies()) > 8, "each but the first asks for the rest"


def test_while_the_hub_is_down_a_warm_cache_loads(hub, repo, load, waits, tmp_path):
    with hub.down(), pytest.raises(ConnectionError) as caught:
        load()
    one_sentence(caught.value, NAME)
    assert same_weights(load(), model_with(1))
    with hub.down():
        assert same_weights(load(verify=True), model_with(1))


@pytest.mark.parametrize("status", [500, 503, 401, 403])
def test_a_refusing_hub_does_not_spoil_a_warm_cache(hub, repo, load, waits, status):
    load()
    hub.fail(EVERYTHING, "status", status=status)
    assert same_weights(load(verify=True), model_with(1))


def test_a_fault_during_an_update_keeps_the_commit_before(hub, repo, second, load, waits):
    before = repo.find("main")
    load()
    repo.push(second)
    hub.fail(BODY, "reset", keep=5000)
    with pytest.raises(ConnectionError):
        load()
    assert same_weights(load(revision=before, local_files_only=True, verify=True), model_with(1))
    with pytest.raises(FileNotFoundError):
        load(local_files_only=True)
    hub.heal()
    assert same_weights(load(verify=True), model_with(2))


def test_a_flipped_byte_passes_the_client_and_is_never_loaded(hub, repo, load):
    hub.fail(BODY, "flip")
    for how in ({}, {}, {"local_files_only": True}):
        with pytest.raises(ValueError, match="the SHA-256 differs; .* if it was downloaded, remove ") as caught:
            load(**how)
        one_sentence(caught.value)
    hub.heal()
    Path(str(caught.value).partition("remove ")[2].partition(" and load again")[0]).unlink()
    assert same_weights(load(), model_with(1))


# What can only be seen in a process of its own

CHILD = """
import json, resource, sys
from conceptcam.config import ConceptConfig
from conceptcam.model.concept_model import ConceptModel

for source, limit in json.loads(sys.argv[2]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        ConceptModel.from_pretrained(source, cache_dir=sys.argv[1])
        print(json.dumps(["loaded", None, ""]))
    except OSError as error:
        print(json.dumps([type(error).__name__, error.errno, str(error)]))
"""


def in_child(cache: Path, *attempts: tuple[str, int], **environment: str) -> list[list[Any]]:
    """For each source and limit on the size of a file: the error's type, its errno and its text."""
    command = [sys.executable, "-W", "error", "-c", CHILD, str(cache), json.dumps(attempts)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_full_disk_is_a_sentence_and_spares_the_cache(hub, repo, first, load, tmp_path):
    size = len(first["model.safetensors"])
    *failed, last = in_child(tmp_path / "cache", (NAME, 0), (NAME, 100), (NAME, size // 2), (NAME, size))
    for kind, number, text in failed:
        assert (kind, number) == ("OSError", errno.EFBIG)
        one_sentence(OSError(text), NAME)
    assert last[0] == "loaded"
    assert same_weights(load(local_files_only=True, verify=True), model_with(1))


def test_offline_the_cache_serves_and_what_is_missing_is_named(hub, repo, load, tmp_path):
    hub.repo("org/other", repo.files())
    load()
    hub.requests.clear()
    unlimited = 10**9
    there, absent = in_child(tmp_path / "cache", (NAME, unlimited), ("org/other", unlimited), HF_HUB_OFFLINE="1")
    assert there[0] == "loaded"
    assert absent[0] == "FileNotFoundError"
    one_sentence(OSError(absent[2]), "org/other", "cache")
    assert hub.requests == []


# Pushing


def pushed(hub: HubServer) -> dict[str, bytes]:
    return hub.hub.repos[NAME].files()


def test_a_pushed_model_comes_back_to_the_bit_with_its_record(hub, load):
    model = model_with(3)
    address = model.push_to_hub(NAME, token=OWNER, commit_message="teach it")
    loaded = load(verify=True)
    assert same_weights(loaded, model)
    assert loaded.config == model.config
    assert dataclasses.replace(loaded.record, weights_sha256="") == model.record
    repo = hub.hub.repos[NAME]
    assert set(pushed(hub)) == {".gitattributes", "config.json", "model.safetensors", "README.md"}
    assert address == f"{hub.url}/{NAME}/commit/{repo.find('main')}"
    assert repo.messages[1:] == ["teach it"], "all files in one commit"


@pytest.mark.parametrize("private", [True, False, None])
def test_pushing_creates_the_repository_private_if_asked(hub, load, private):
    model_with(1).push_to_hub(NAME, token=OWNER, private=private)
    assert hub.hub.repos[NAME].private is bool(private)
    assert same_weights(load(token=OWNER), model_with(1))


def test_pushing_to_a_branch_creates_it_and_leaves_main_alone(hub, load):
    model_with(1).push_to_hub(NAME, token=OWNER)
    model_with(2).push_to_hub(NAME, token=OWNER, revision="trial/two")
    assert same_weights(load(), model_with(1))
    assert same_weights(load(revision="trial/two"), model_with(2))
    model_with(3).push_to_hub(NAME, token=OWNER, revision="trial/two")
    assert same_weights(load(revision="trial/two"), model_with(3))


def test_pushing_what_is_there_already_makes_no_commit(hub):
    addresses = [model_with(1).push_to_hub(NAME, token=OWNER) for _ in range(2)]
    assert addresses[0] == addresses[1]
    assert len(hub.hub.repos[NAME].commits) == 2, "the first is made with the repository"


def test_a_card_that_dribbles_during_a_push_is_a_sentence(hub, impatient):
    repo_before = model_with(1).push_to_hub(NAME, token=OWNER)
    hub.fail("GET .*README", "dribble")
    with pytest.raises(ConnectionError, match="came too slowly") as caught:
        model_with(2).push_to_hub(NAME, token=OWNER)
    one_sentence(caught.value, NAME)
    hub.heal()
    assert model_with(1).push_to_hub(NAME, token=OWNER) == repo_before, "nothing was changed"


def test_pushing_leaves_the_model_and_the_random_state_as_they_were(hub):
    model = model_with(1)
    record, before = model.record, torch.get_rng_state()
    model.push_to_hub(NAME, token=OWNER)
    assert model.record is record and torch.equal(torch.get_rng_state(), before)


def test_a_push_refreshes_its_own_card_and_none_written_by_hand(hub):
    model = model_with(1)
    model.push_to_hub(NAME, token=OWNER)
    generated = pushed(hub)["README.md"].decode()
    assert "auroc" in generated and NAME in generated
    model.record = dataclasses.replace(model.record, metrics={"other figure": 0.5})
    model.push_to_hub(NAME, token=OWNER)
    refreshed = pushed(hub)["README.md"].decode()
    assert "other figure" in refreshed and "auroc" not in refreshed
    hub.hub.repos[NAME].push({"README.md": b"# My own words\n"})
    model_with(2).push_to_hub(NAME, token=OWNER)
    assert pushed(hub)["README.md"] == b"# My own words\n"
    assert pushed(hub)["model.safetensors"] != b""


def test_a_card_that_is_given_replaces_any(hub):
    hub.repo(NAME, {"README.md": b"# My own words\n"})
    model_with(1).push_to_hub(NAME, token=OWNER, card="# Other words\n")
    assert pushed(hub)["README.md"] == b"# Other words\n"


@pytest.mark.parametrize("kind, options", [("status", {"status": 500}), ("no_etag", {}), ("html", {}), ("reset", {})])
def test_a_card_that_cannot_be_read_is_never_overwritten(hub, waits, kind, options):
    hub.repo(NAME, {"README.md": b"# My own words\n"})
    hub.fail("README.md", kind, **options)
    with pytest.raises(ConnectionError) as caught:
        model_with(1).push_to_hub(NAME, token=OWNER)
    one_sentence(caught.value, NAME)
    assert pushed(hub)["README.md"] == b"# My own words\n"
    assert "model.safetensors" not in pushed(hub)


@pytest.mark.parametrize("token", [None, READER, "hf_stale"])
@pytest.mark.parametrize("exists", [False, True])
def test_pushing_without_the_right_to_write_is_refused(hub, first, token, exists):
    if exists:
        hub.repo(NAME, first)
    with pytest.raises(PermissionError) as caught:
        model_with(2).push_to_hub(NAME, token=token)
    one_sentence(caught.value, NAME, "token")
    assert pushed(hub) == {**pushed(hub), **first} if exists else NAME not in hub.hub.repos


@pytest.mark.parametrize("kind, options", [("status", {"status": 500}), ("reset", {}), ("html", {}), ("truncate", {})])
@pytest.mark.parametrize("step", ["/api/repos/create", "/preupload/", "/commit/"])
def test_a_push_that_gets_no_good_answer_says_so_and_can_be_repeated(hub, first, load, waits, step, kind, options):
    hub.repo(NAME, first)
    hub.fail(step, kind, **options)
    with pytest.raises(ConnectionError) as caught:
        model_with(2).push_to_hub(NAME, token=OWNER)
    one_sentence(caught.value, NAME)
    hub.heal()
    model_with(2).push_to_hub(NAME, token=OWNER)
    assert same_weights(load(verify=True), model_with(2))


def test_pushing_to_a_hub_that_is_down_says_so(hub, waits):
    with hub.down(), pytest.raises(ConnectionError) as caught:
        model_with(1).push_to_hub(NAME, token=OWNER)
    one_sentence(caught.value, NAME)
