"""The hub server of the tests speaks what the real client understands; otherwise no other test means anything."""

import hashlib
import os
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub_api import OWNER, READER
from tests.hub_server import HubServer

BODY = bytes(range(256)) * 400  # 102,400 bytes
FILES = {"config.json": b'{"a": 1}', "sub/model.safetensors": BODY}


def weights(tmp_path: Path, name: str = "org/name", **options) -> bytes:
    return Path(
        hf_hub_download(name, "sub/model.safetensors", cache_dir=tmp_path / "feature_cache", **options)
    ).read_bytes()


def test_the_client_talks_to_this_server_and_to_no_other(hub: HubServer):
    assert HfApi().endpoint == hub.url == os.environ["HF_ENDPOINT"]
    assert "HF_TOKEN" not in os.environ and "HF_HUB_OFFLINE" not in os.environ


def test_files_come_whole_by_branch_tag_commit_and_ref(hub, tmp_path):
    repo = hub.repo("org/name", FILES)
    first = repo.find("main")
    HfApi(token=OWNER).create_tag("org/name", tag="v1")
    HfApi(token=OWNER).create_branch("org/name", branch="feature/x")
    second = repo.push({"sub/model.safetensors": b"second"})
    for revision, body in [(None, b"second"), ("v1", BODY), ("feature/x", BODY), (first, BODY), (second, b"second")]:
        assert weights(tmp_path / "one", revision=revision) == body
        folder = Path(snapshot_download("org/name", revision=revision, cache_dir=tmp_path / "all"))
        assert (folder / "sub/model.safetensors").read_bytes() == body
        assert (folder / "config.json").read_bytes() == FILES["config.json"]


def test_a_repository_without_a_namespace_works(hub, tmp_path):
    hub.repo("name", FILES)
    assert weights(tmp_path, "name") == BODY


def test_large_files_come_from_another_host_which_is_sent_no_token(hub, tmp_path):
    hub.repo("org/name", FILES, gated=True)
    assert weights(tmp_path, token=OWNER) == BODY
    head, get = hub.requests
    assert (head.method, head.token) == ("HEAD", OWNER)
    assert (get.method, get.token) == ("GET", "")
    assert get.path == f"/cdn/{hashlib.sha256(BODY).hexdigest()}/sub/model.safetensors"
    assert hub.bodies() == [get.path]


def test_what_is_not_there_is_told_apart(hub, tmp_path):
    hub.repo("org/name", FILES)
    for error, name, path, revision in [
        (RepositoryNotFoundError, "org/other", "config.json", None),
        (RevisionNotFoundError, "org/name", "config.json", "v9"),
        (EntryNotFoundError, "org/name", "other.json", None),
    ]:
        with pytest.raises(error):
            hf_hub_download(name, path, revision=revision, cache_dir=tmp_path)
    assert not HfApi().file_exists("org/name", "other.json")
    assert HfApi().file_exists("org/name", "config.json")


def test_gated_files_are_for_tokens_with_access(hub, tmp_path):
    hub.repo("org/name", FILES, gated=True)
    for token, status in [(False, 401), (READER, 403)]:
        with pytest.raises(GatedRepoError) as caught:
            weights(tmp_path, token=token)
        assert caught.value.response.status_code == status
    assert weights(tmp_path, token=OWNER) == BODY


def test_a_private_repository_is_not_there_for_others(hub, tmp_path):
    hub.repo("org/name", FILES, private=True)
    for token in (False, READER):
        with pytest.raises(RepositoryNotFoundError) as caught:
            weights(tmp_path, token=token)
        assert not isinstance(caught.value, GatedRepoError)
    assert weights(tmp_path, token=OWNER) == BODY


def test_an_unknown_token_is_refused_everywhere(hub, tmp_path):
    hub.repo("org/name", FILES)
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as caught:
        weights(tmp_path, token="hf_stale")
    assert not isinstance(caught.value, RepositoryNotFoundError)


def test_trees_paths_and_refs_are_listed(hub):
    repo = hub.repo("org/name", FILES)
    api = HfApi()
    assert {it.path for it in api.list_repo_tree("org/name")} == {".gitattributes", "config.json", "sub"}
    assert {it.path for it in api.list_repo_tree("org/name", "sub")} == {"sub/model.safetensors"}
    assert set(api.list_repo_files("org/name")) == {".gitattributes", *FILES}
    (info,) = api.get_paths_info("org/name", ["sub/model.safetensors", "none"])
    assert info.size == len(BODY) and info.lfs.sha256 == hashlib.sha256(BODY).hexdigest()
    refs = api.list_repo_refs("org/name")
    assert [(it.name, it.target_commit) for it in refs.branches] == [("main", repo.find("main"))]


def test_a_pushed_folder_comes_back_and_old_commits_stay(hub, tmp_path):
    api = HfApi(token=OWNER)
    assert api.whoami()["name"] == "owner"
    api.create_repo("org/name", private=True)
    api.create_repo("org/name", exist_ok=True)
    assert hub.hub.repos["org/name"].private
    (tmp_path / "new").mkdir()
    (tmp_path / "new/model.safetensors").write_bytes(BODY)
    (tmp_path / "new/README.md").write_text("---\nlicense: mit\n---\n# Card\n")
    first = api.upload_folder(repo_id="org/name", folder_path=tmp_path / "new", commit_message="one")
    assert hub.hub.repos["org/name"].files()["model.safetensors"] == BODY
    (tmp_path / "new/model.safetensors").write_bytes(b"two")
    api.upload_folder(repo_id="org/name", folder_path=tmp_path / "new", delete_patterns="*.md")
    assert hub.hub.repos["org/name"].files()["model.safetensors"] == b"two"
    assert hub.hub.repos["org/name"].files(first.oid)["model.safetensors"] == BODY
    assert hub.hub.repos["org/name"].messages[1] == "one"


def test_an_upload_that_changes_nothing_makes_no_commit(hub, tmp_path):
    api = HfApi(token=OWNER)
    api.create_repo("org/name")
    (tmp_path / "a.json").write_text("{}")
    commits = [api.upload_folder(repo_id="org/name", folder_path=tmp_path).oid for _ in range(2)]
    assert commits[0] == commits[1]
    assert len(hub.hub.repos["org/name"].commits) == 2, "the first is made with the repository"


@pytest.mark.parametrize("token, status", [(False, 401), (READER, 403), ("hf_stale", 401)])
def test_only_the_owner_may_create_and_commit(hub, tmp_path, token, status):
    hub.repo("org/name", FILES)
    (tmp_path / "a.json").write_text("{}")
    api = HfApi(token=token)
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo("org/new")
    assert caught.value.response.status_code == status
    with pytest.raises(HfHubHTTPError) as caught:
        api.upload_folder(repo_id="org/name", folder_path=tmp_path)
    assert caught.value.response.status_code == status
    assert "a.json" not in hub.hub.repos["org/name"].files()


def test_a_commit_on_an_outdated_parent_is_refused(hub, tmp_path):
    repo = hub.repo("org/name", FILES)
    outdated = repo.find("main")
    repo.push({"a": b"a"})
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        HfApi(token=OWNER).upload_folder(repo_id="org/name", folder_path=tmp_path, parent_commit=outdated)


def test_offline_only_the_cache_is_asked(hub, tmp_path):
    hub.repo("org/name", FILES)
    with pytest.raises(LocalEntryNotFoundError):
        weights(tmp_path, local_files_only=True)
    assert hub.requests == []
    weights(tmp_path)
    hub.requests.clear()
    assert weights(tmp_path, local_files_only=True) == BODY
    assert hub.requests == []


def test_a_broken_body_is_resumed_where_it_broke_off(hub, tmp_path, waits, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.repo("org/name", FILES)
    hub.fail("GET /cdn/", "truncate", times=1, keep=50_000)
    assert weights(tmp_path) == BODY
    assert [it.range for it in hub.requests if it.method == "GET"] == ["", "bytes=50000-"]


def test_a_body_that_cannot_be_resumed_is_sent_again_whole(hub, tmp_path, waits, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.repo("org/name", FILES)
    hub.fail("GET /cdn/", "truncate", times=1, keep=50_000)
    hub.fail("GET /cdn/", "slow", ranges=False)
    assert weights(tmp_path) == BODY


@pytest.mark.parametrize(
    "pattern, kind, options, text",
    [
        ("GET /cdn/", "truncate", {"keep": 5000}, "without sending complete message body"),
        ("GET /cdn/", "short", {"keep": 5000}, "should be of size 102400 but has size 5000"),
        ("GET /cdn/", "reset", {"keep": 5000}, "reset by peer"),
        ("GET /cdn/", "status", {"status": 404}, "404"),
        ("HEAD .*resolve", "no_etag", {}, "does not have an ETag"),
        ("HEAD .*resolve", "html", {}, "does not seem to be served by a Hugging Face Hub"),
        ("HEAD .*resolve", "status", {"status": 500}, "trying to locate the file on the Hub"),
    ],
)
def test_each_fault_is_what_it_says(hub, tmp_path, waits, pattern, kind, options, text):
    hub.repo("org/name", FILES)
    hub.fail(pattern, kind, **options)
    with pytest.raises(Exception, match=text):  # which one depends on the client's version
        weights(tmp_path)
    hub.heal()
    assert weights(tmp_path) == BODY


def test_a_flipped_byte_is_not_seen_by_the_client(hub, tmp_path):
    hub.repo("org/name", FILES)
    hub.fail("GET /cdn/", "flip", times=1)
    changed = [i for i, (a, b) in enumerate(zip(weights(tmp_path), BODY, strict=True)) if a != b]
    assert changed == [len(BODY) * 3 // 4]


def test_a_stall_ends_at_the_timeout_and_slowness_does_not(hub, tmp_path, waits, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.repo("org/name", FILES)
    hub.fail("GET /cdn/", "stall", times=1, keep=100)
    hub.fail("GET /cdn/", "stall", times=1)
    hub.fail("GET /cdn/", "slow")  # for 0.4 seconds in all, 0.05 at a time
    assert weights(tmp_path) == BODY
    assert len(hub.bodies()) == 3


def test_a_server_that_is_down_refuses_and_comes_back_unchanged(hub, tmp_path, waits):
    hub.repo("org/name", FILES)
    with hub.down(), pytest.raises(LocalEntryNotFoundError):
        weights(tmp_path)
    assert hub.requests == []
    assert sum(waits) > 20, "it tried again for long"
    assert weights(tmp_path) == BODY


def test_a_push_can_land_between_two_requests_of_one_download(hub, tmp_path):
    repo = hub.repo("org/name", FILES)
    first = repo.find("main")
    hub.after("HEAD", lambda: repo.push({"config.json": b'{"a": 2}'}))
    path = Path(hf_hub_download("org/name", "config.json", cache_dir=tmp_path))
    # The client's own trap, when it is asked for a branch: the new body is filed under the old commit.
    assert path.read_bytes() == b'{"a": 2}' and path.parent.name == first
