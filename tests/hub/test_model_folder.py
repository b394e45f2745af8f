import dataclasses
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from conceptcam.config import ConceptConfig, TrainingRecord
from conceptcam.hub.weights import sha256
from conceptcam.model.concept_model import ConceptModel

CONFIG = ConceptConfig(concepts=("a", "b"), tasks=("t",), backbone="small_cnn_s8", image_size=(16, 24), embed_dim=4)


def model_with(seed: int, **changes: Any) -> ConceptModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ConceptModel.from_config(dataclasses.replace(CONFIG, **changes))
        nn.init.normal_(model.task_head.weight)
        model.train()(torch.randn(2, 3, 16, 24))
    model.record = TrainingRecord(stages=("concepts",), metrics={"auroc": 0.5 + seed, "ap": torch.nan})
    return model.eval()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model_with(0).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("changes", [{}, {"bottleneck": "concepts"}, {"projector": "ibn", "pooling": "attention"}])
def test_a_saved_model_comes_back_with_config_and_record(tmp_path, changes):
    model = model_with(1, **changes)
    model.save_pretrained(tmp_path / "a" / "b")
    loaded = ConceptModel.from_pretrained(str(tmp_path / "a" / "b"))
    assert same_weights(model, loaded)
    assert loaded.config == model.config and not loaded.training
    assert loaded.record.stages == ("concepts",) and loaded.record.metrics["auroc"] == 1.5
    image = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    for first, second in zip(model(image), loaded(image), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_a_timm_backbone_of_another_size_comes_back(tmp_path):
    config = dataclasses.replace(CONFIG, backbone="timm:test_vit", image_size=(32, 48))
    model = ConceptModel.from_config(config)
    model.save_pretrained(tmp_path)
    assert same_weights(model, ConceptModel.from_pretrained(tmp_path))


def test_saving_twice_writes_the_same_bytes_also_after_loading(saved):
    first = contents(saved)
    assert set(first) == {"README.md", "config.json", "model.safetensors"}
    model_with(0).save_pretrained(saved)
    assert contents(saved) == first
    ConceptModel.from_pretrained(saved).save_pretrained(saved)
    assert contents(saved) == first


def test_the_record_holds_the_sha_of_the_weights(saved):
    record = ConceptModel.from_pretrained(saved).record
    assert record.weights_sha256 == sha256(saved / "model.safetensors")
    assert len(record.weights_sha256) == 64


def test_saving_changes_nothing_in_the_model(saved):
    model = model_with(0)
    before = model.record
    model.save_pretrained(saved)
    assert model.record is before


def test_loading_leaves_the_global_random_state_as_it_was(saved):
    before = torch.get_rng_state()
    ConceptModel.from_pretrained(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_path_may_begin_at_the_home_folder(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    assert same_weights(ConceptModel.from_pretrained("~/model"), model_with(0))


def edit_config(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**content, **changes}), encoding="utf-8")


def edit_weights(folder: Path, change: Any) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def without(weights: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if name != key}


BIAS = "task_head.bias"


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda w: without(w, BIAS),
            r"safetensors does not fit: (\d+) of (\d+) tensors match; 1 missing \['task_head.bias'\], 0 left over",
        ),
        (lambda w: {**w, "head.bias": w[BIAS].clone()}, r"0 missing \[\], 1 left over \['head.bias'\]"),
        (
            lambda w: {**without(w, BIAS), "head.bias": w[BIAS]},
            r"1 missing \['task_head.bias'\], 1 left over \['head.bias'\], 0 of another shape or kind",
        ),
        (
            lambda w: {**w, BIAS: torch.zeros(7)},
            r"0 missing \[\], 0 left over \[\], 1 of another shape or kind \['task_head.bias \(7,\) for \(1,\)'\]",
        ),
        (lambda w: {"x." + key: value for key, value in w.items()}, r"fit: 0 of (\d+) tensors match"),
    ],
    ids=["missing", "extra", "renamed", "reshaped", "prefixed"],
)
def test_weights_that_are_not_the_models_are_refused_with_counts(saved, change, message):
    """The predecessor loaded none of 150 tensors, said it had, and trained on a random backbone."""
    edit_weights(saved, change)
    with pytest.raises(ValueError, match=message):
        ConceptModel.from_pretrained(saved)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"PK\x03\x04" + b])
def test_weights_that_are_cut_short_or_something_else_are_refused(saved, damage):
    weights = saved / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(ValueError, match=r"model.safetensors is no readable safetensors file: \w+"):
        ConceptModel.from_pretrained(saved)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"format_version": 3},
            "model: config.json has format_version 3, this conceptcam reads 1 to 2; install the release",
        ),
        ({"colour": "red"}, r"model: config.json has unknown fields \['colour'\]"),
        ({"config": {"concepts": ["a"], "backbone": "x", "depth": 3}}, r"unknown fields \['depth'\] of ConceptConfig"),
        ({"config": {}}, r"lacks the fields \['concepts', 'backbone'\]"),
        ({"config": {"concepts": ["a", "a"], "backbone": "x"}}, r"repeated: \['a'\]"),
    ],
)
def test_a_config_of_another_kind_is_refused_and_its_folder_named(saved, changes, message):
    edit_config(saved, **changes)
    with pytest.raises(ValueError, match=message):
        ConceptModel.from_pretrained(saved)


def test_a_config_of_another_model_does_not_take_these_weights(saved):
    model_with(0, concepts=("a", "b", "c")).save_pretrained(saved.parent / "other")
    (saved / "config.json").write_bytes((saved.parent / "other" / "config.json").read_bytes())
    with pytest.raises(
        ValueError, match=r"does not fit: .* of another shape or kind \['concept_head.score.bias \(2,\) for \(3,\)'"
    ):
        ConceptModel.from_pretrained(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"model holds no {name}; was it written by `save_pretrained`"):
        ConceptModel.from_pretrained(saved)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model folder .*nowhere"):
        ConceptModel.from_pretrained(tmp_path / "nowhere")


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        model_with(0).save_pretrained(tmp_path / "file")


def test_a_file_in_place_of_its_folder_says_which_folder(saved):
    with pytest.raises(
        FileNotFoundError, match=r"model.safetensors is a file; a model is the folder .*: pass '.*/model'$"
    ):
        ConceptModel.from_pretrained(saved / "model.safetensors")


def test_a_file_without_a_config_beside_it_says_where_weights_go(saved):
    (saved / "config.json").unlink()
    message = (
        r"is a file; .* and no config.json lies beside .* `create_backbone\(name, weights=...\)`, and `conceptcam co"
    )
    with pytest.raises(FileNotFoundError, match=message):
        ConceptModel.from_pretrained(str(saved / "model.safetensors"))


def test_an_empty_source_is_not_the_folder_one_is_in(saved, monkeypatch):
    monkeypatch.chdir(saved)
    assert same_weights(ConceptModel.from_pretrained("."), model_with(0))
    with pytest.raises(ValueError, match=r"an empty text names nothing; for the folder you are in write '\.'"):
        ConceptModel.from_pretrained("")


def test_a_hand_written_card_is_left_alone_whatever_its_encoding(saved):
    words = "# Röntgen".encode("latin-1")
    (saved / "README.md").write_bytes(words)
    model_with(1).save_pretrained(saved)
    assert (saved / "README.md").read_bytes() == words
    assert same_weights(ConceptModel.from_pretrained(saved), model_with(1))


def test_an_empty_card_is_taken_as_given(saved):
    model_with(0).save_pretrained(saved, card="")
    assert (saved / "README.md").read_bytes() == b""


def test_a_link_out_of_the_clients_cache_is_told_with_what_to_remove(saved):
    snapshot = saved.parent / "models--org--name" / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "blobs").mkdir()
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(saved / name)
    with pytest.raises(ValueError, match=r"is a link out of its folder, .*; remove .*models--org--name and load again"):
        ConceptModel.from_pretrained(snapshot)


@pytest.mark.parametrize("text", ["{", '{"format_version": 2}', "\x00"])
def test_a_damaged_config_of_the_cache_is_told_with_what_to_remove(saved, text):
    snapshot = saved.parent / "models--org--name" / "snapshots" / "main"
    snapshot.parent.mkdir(parents=True)
    (snapshot.parent.parent / "blobs").mkdir()
    shutil.copytree(saved, snapshot)
    (snapshot / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"; if the download was damaged, remove .*config.json and load again"):
        ConceptModel.from_pretrained(snapshot)


def test_weights_of_another_model_of_the_same_shape_are_refused(saved):
    model_with(1).save_pretrained(saved.parent / "other")
    shutil.copy(saved.parent / "other" / "model.safetensors", saved / "model.safetensors")
    with pytest.raises(ValueError, match="is not the file that its config was saved with: the SHA-256 differs; save "):
        ConceptModel.from_pretrained(saved)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(saved, number):
    model = model_with(0)
    model.state_dict()["concept_head.score.weight"][0, 0] = number
    model.save_pretrained(saved)
    with pytest.raises(ValueError, match=r"holds numbers .* not finite, in 1 tensors: \['concept_head.score.weight'\]"):
        ConceptModel.from_pretrained(saved)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn, torch.bfloat16])
def test_weights_of_several_types_are_refused(saved, dtype):
    edit_config(saved, record={})
    edit_weights(saved, lambda w: {**w, BIAS: w[BIAS].to(dtype)})
    with pytest.raises(ValueError, match=r"holds .*float32 \(.*; a model has one type: float32, float16"):
        ConceptModel.from_pretrained(saved)


@pytest.mark.parametrize("spoil", [lambda file: file.write_bytes(b""), lambda file: file.write_bytes(bytes(10**6))])
def test_what_becomes_of_the_file_does_not_reach_a_loaded_model(saved, spoil):
    model = ConceptModel.from_pretrained(saved)
    spoil(saved / "model.safetensors")  # in place, as `cp` and `rsync --inplace` write
    assert same_weights(model, model_with(0))


def test_weights_without_a_recorded_sha_are_said_to_be_unverified(saved):
    edit_config(saved, record={})
    with pytest.raises(ValueError, match="model: its config records no SHA-256 of the weights"):
        ConceptModel.from_pretrained(saved, verify=True)


DRIVER = """
import os, random, resource, shutil, signal, sys, time
from pathlib import Path

import torch
from safetensors.torch import load_file

from conceptcam.hub import model_folder as folders
from conceptcam.config import ConceptConfig, TrainingRecord

torch.set_num_threads(1)
folder = Path(sys.argv[2])

def save(size):
    # Config, record and weights all say the size, so that a mixture of two saves shows.
    weights = {"weight": torch.full((size, 1000), float(size))}
    config = ConceptConfig(concepts=("a",), backbone="small_cnn_s8", embed_dim=size)
    folders.save_folder(folder, config, TrainingRecord(metrics={"s": size}), weights)

def saved_size():
    config, record, file = folders.read_folder(folder)
    weight = load_file(file)["weight"]
    assert record.weights_sha256 == folders.sha256(file)
    assert weight.shape == (config.embed_dim, 1000) and (weight == config.embed_dim).all()
    assert record.metrics == {"s": config.embed_dim}
    return config.embed_dim

def in_child(work):
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return child

def step_by_step():
    "A save that dies before and after each thing it does to the disk."
    step, status = 0, None
    while status != 0:
        shutil.rmtree(folder, ignore_errors=True)
        save(5)
        def die():
            left = step
            def mortal(real):
                def call(*args, **kwargs):
                    nonlocal left
                    for moment in ("before", "after"):
                        if left == 0:
                            os.kill(os.getpid(), signal.SIGKILL)
                        left -= 1
                        if moment == "before":
                            result = real(*args, **kwargs)
                    return result
                return call
            for owner, name in ((folders, "save_tensors"), (folders, "sha256"), (Path, "write_text"), (os, "mkdir"),
                                (os, "rename"), (os, "replace"), (os, "rmdir"), (os, "unlink")):
                setattr(owner, name, mortal(getattr(owner, name)))
            save(9)
        _, status = os.waitpid(in_child(die), 0)
        print(saved_size(), end=" ")
        save(7)
        assert saved_size() == 7 and len(list(folder.iterdir())) == 3, list(folder.iterdir())
        step += 1

def any_moment():
    "A loop of saves that dies at a random time, again and again."
    def loop():
        random.seed(os.getpid())
        while True:
            save(random.randint(10, 99))
    save(5)
    for _ in range(40):
        child = in_child(loop)
        time.sleep(random.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print(saved_size(), end=" ")

def disk_full():
    "Saves into a disk that takes ever more bytes of a file, until one succeeds."
    for limit in (0, 100, 20_000, 36_000, 37_000):
        shutil.rmtree(folder, ignore_errors=True)
        save(5)
        def squeezed():
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                save(9)
            except OSError as error:
                print(error, end="; ", flush=True)
        os.waitpid(in_child(squeezed), 0)
        assert len(list(folder.iterdir())) == 3, list(folder.iterdir())
        print(saved_size(), flush=True)

globals()[sys.argv[1]]()
"""


def drive(what: str, folder: Path) -> str:
    """What the driver prints, which runs in a process of its own because it forks and kills."""
    command = [sys.executable, "-c", DRIVER, what, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_save_killed_at_any_step_leaves_a_whole_model(tmp_path):
    sizes = drive("step_by_step", tmp_path / "model").split()
    assert len(sizes) > 15
    assert sizes == sorted(sizes), "first the model before, then this one"
    assert set(sizes) == {"5", "9"}


def test_saves_killed_at_random_moments_always_leave_a_whole_model(tmp_path):
    assert len(drive("any_moment", tmp_path / "model").split()) == 40


def test_a_save_on_a_full_disk_leaves_the_model_before(tmp_path):
    lines = drive("disk_full", tmp_path / "model").splitlines()
    assert lines[-1] == "9", "where there is room it succeeds"
    for line in lines[:-1]:
        assert line.startswith(f"could not save the model to {tmp_path / 'model'}, which is left as it was: ")
        assert "File too large" in line
        assert line.endswith("; 5")


def test_tied_tensors_are_saved_and_come_back(tmp_path):
    model = model_with(0)
    model.backbone.tied = model.backbone.position
    saved = model.state_dict()
    assert saved["backbone.tied"].data_ptr() == saved["backbone.position"].data_ptr()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert torch.equal(weights["backbone.tied"], saved["backbone.position"])
