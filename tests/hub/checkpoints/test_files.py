import argparse
import json
import os
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from conceptcam.hub.checkpoints import read_checkpoint
from conceptcam.hub.checkpoints.files import tensors_within


class Payload:
    """Pickled, it is a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def payload_file(path: Path, ran: Path, kind: str) -> Path:
    if kind.startswith("pickle"):
        with path.open("wb") as file:
            pickle.dump({"model": Payload(ran)}, file, protocol=int(kind[-1]))
    else:
        torch.save({"model": Payload(ran)}, path, _use_new_zipfile_serialization=kind == "zip")
    return path


KINDS = ("zip", "legacy", "pickle 2", "pickle 4", "pickle 5")


@pytest.mark.parametrize("kind", KINDS)
def test_a_payload_in_a_pickle_does_not_run_and_is_named(tmp_path, kind):
    path = payload_file(tmp_path / "evil.pth", tmp_path / "ran", kind)
    with pytest.raises(ValueError, match=r"evil.pth is refused: beside tensors it asks for (posix|nt)\.system, which"):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_the_payloads_of_these_tests_would_run(tmp_path, kind):
    path = payload_file(tmp_path / "evil.pth", tmp_path / "ran", kind)
    if kind.startswith("pickle"):
        with path.open("rb") as file:
            pickle.load(file)
    else:
        torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()


def test_a_pickled_module_is_refused_by_the_name_of_its_class(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(tmp_path / "whole.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_of_tensors_plain_values_and_a_command_line_is_read(tmp_path, zipped):
    content = {"model": {"a": torch.randn(3)}, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(tmp_path / "file.pth")
    assert torch.equal(read["model"]["a"], content["model"]["a"])
    assert (read["epoch"], read["args"]) == (3, argparse.Namespace(lr=0.1))


def test_what_may_be_read_is_allowed_for_that_reading_alone(tmp_path):
    torch.save({"a": argparse.Namespace()}, tmp_path / "file.pth")
    read_checkpoint(tmp_path / "file.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "file.pth", weights_only=True)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_a_safetensors_file_is_known_by_its_content(tmp_path, name):
    save_file({"a": torch.arange(3.0)}, tmp_path / name)
    assert torch.equal(read_checkpoint(tmp_path / name)["a"], torch.arange(3.0))


def test_a_pickle_under_the_name_of_a_safetensors_file_is_refused(tmp_path):
    torch.save({"a": torch.arange(3.0)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"is a pickle under the name of a safetensors file; rename it to \.pth"):
        read_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("padding", range(0, 256, 8))
def test_a_safetensors_header_of_any_length_is_no_pickle(tmp_path, padding):
    save_file({"a": torch.arange(3.0)}, tmp_path / "file", metadata={"note": "x" * (padding + 1)})
    assert torch.equal(read_checkpoint(tmp_path / "file")["a"], torch.arange(3.0))


def lying(header: dict[str, Any], data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start: int, end: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


LIES = {
    "offsets out of the file": lying({"a": tensor(0, 4000, (1000,))}),
    "overlapping": lying({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)),
    "a hole": lying({"a": tensor(0, 8), "b": tensor(16, 24)}, bytes(24)),
    "backwards": lying({"a": tensor(8, 0)}),
    "a shape that is too large": lying({"a": tensor(0, 16, (2**40, 2**40))}),
    "an unknown type": lying({"a": tensor(0, 16, dtype="F77")}),
    "a huge header": lying({"a": tensor(0, 16, (4,))}, length=2**60),
    "a header beyond the file": lying({"a": tensor(0, 16, (4,))}, length=90_000),
    "no json": struct.pack("<Q", 4) + b"{{{{",
    "more data than told": lying({"a": tensor(0, 8)}, bytes(64)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_safetensors_header_is_one_sentence(tmp_path, lie):
    (tmp_path / "model.safetensors").write_bytes(LIES[lie])
    with pytest.raises(ValueError, match="model.safetensors is no readable safetensors file: ") as error:
        read_checkpoint(tmp_path / "model.safetensors")
    assert "\n" not in str(error.value)


def test_the_header_that_is_made_to_lie_is_readable_when_it_does_not(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(lying({"a": tensor(0, 16, (4,))}))
    assert torch.equal(read_checkpoint(tmp_path / "model.safetensors")["a"], torch.zeros(4))


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", "is empty; download it again"),
        (b"<!DOCTYPE html><html>Sign in</html>", "but a web page: the download may have wanted a login"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "but a Git LFS pointer to one"),
        (b"Not found", "nor a PyTorch checkpoint, but text"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(200)), "is neither a safetensors file nor a PyTorch checkpoint$"),
    ],
)
@pytest.mark.parametrize("name", ["weights.pth", "weights.bin"])
def test_a_file_that_is_no_checkpoint_is_called_what_it_is(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} .*{sentence}"):
        read_checkpoint(tmp_path / name)


def test_a_web_page_saved_as_safetensors_is_called_a_web_page(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"<html>Sign in</html>")
    with pytest.raises(ValueError, match="web page"):
        read_checkpoint(tmp_path / "model.safetensors")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint file .*nowhere.pth"):
        read_checkpoint(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "file.safetensors"])
def test_a_file_cut_anywhere_is_one_sentence(tmp_path, name):
    weights = {"a": torch.randn(40), "b": torch.randn(3, 3)}
    if name == "file.safetensors":
        save_file(weights, tmp_path / name)
    else:
        torch.save(weights, tmp_path / name, _use_new_zipfile_serialization=name == "zip.pth")
    whole = (tmp_path / name).read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 150)):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(ValueError, match=name) as error:
            read_checkpoint(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "file.safetensors"])
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path, name):
    weights = {"model": {"a": torch.randn(4)}, "args": argparse.Namespace(lr=0.1)}
    if name == "file.safetensors":
        save_file(weights["model"], tmp_path / name)
    else:
        torch.save(weights, tmp_path / name, _use_new_zipfile_serialization=name == "zip.pth")
    whole = (tmp_path / name).read_bytes()
    refused = 0
    for _ in range(300):
        places = torch.randint(0, len(whole), (4,)).tolist()
        damaged = bytearray(whole)
        for place in places:
            damaged[place] = int(torch.randint(0, 256, ()))
        (tmp_path / name).write_bytes(damaged)
        try:
            read_checkpoint(tmp_path / name)
        except ValueError as error:
            refused += 1
            assert name in str(error)
    assert refused > 30


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reading_emits_no_warning_and_leaves_the_random_state(tmp_path, protocol):
    torch.save({"a": torch.randn(3)}, tmp_path / "file.pth", pickle_protocol=protocol)
    before = torch.get_rng_state()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            read_checkpoint(tmp_path / "file.pth")
        except ValueError as error:
            assert "damaged or unknown kind" in str(error)
    assert not warned
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("content", [[torch.zeros(2)], torch.zeros(2), 3])
def test_a_pickle_of_something_else_is_told_by_its_type(tmp_path, content):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=f"must hold weights by name, it holds a {type(content).__name__}$"):
        read_checkpoint(tmp_path / "file.pth")


def test_weights_are_taken_out_of_the_containers_of_training_scripts():
    weights = {"a": torch.zeros(2)}
    for content in (
        {"model": weights, "optimizer": {"state": {0: torch.zeros(1)}}},
        {"state_dict": {"model": weights}},
    ):
        assert tensors_within(content, "file").keys() == {"a"}


def test_two_sets_of_weights_in_one_file_are_an_error():
    with pytest.raises(ValueError, match=r"several sets of weights, \['model', 'teacher'\]; save the one you mean"):
        tensors_within({"model": {"a": torch.zeros(1)}, "teacher": {"a": torch.zeros(1)}}, "file")


def test_a_file_without_tensors_says_what_it_has():
    with pytest.raises(ValueError, match=r"file holds no tensors, but \['epoch', 'lr'\]"):
        tensors_within({"epoch": 3, "lr": 0.1}, "file")


@pytest.mark.parametrize("name", ["model", "other"])
def test_a_dictionary_that_holds_itself_is_refused(tmp_path, name):
    content: dict[str, Any] = {"a": torch.zeros(1)}
    content[name] = content
    torch.save(content, tmp_path / "ring.pth")
    with pytest.raises(ValueError, match="ring.pth holds dictionaries within dictionaries, more than 8 deep"):
        tensors_within(read_checkpoint(tmp_path / "ring.pth"), "ring.pth")


@pytest.mark.parametrize("odd", [torch.eye(2).to_sparse(), torch.zeros(2, device="meta")])
def test_tensors_without_plain_values_are_refused(odd):
    with pytest.raises(ValueError, match=r"sparse or have no values: \['a'\]"):
        tensors_within({"a": odd}, "file")


def test_a_flipped_bit_in_the_numbers_of_an_archive_is_seen(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "w.pth")
    content = bytearray((tmp_path / "w.pth").read_bytes())
    content[content.index(bytes(2000)) + 1000] ^= 1
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ValueError, match="w.pth is a damaged PyTorch checkpoint, its checksums differ; download it"):
        read_checkpoint(tmp_path / "w.pth")


def repacked(path: Path, names: list[str], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in names:
            archive.writestr(name, b"0" * 100)
    return path


@pytest.mark.parametrize(
    ("names", "compression", "message"),
    [
        (["m/data.pkl", "m/constants.pkl", "m/code/a.py"], zipfile.ZIP_STORED, "is TorchScript, a program; open it"),
        (["a.npy", "b.npy"], zipfile.ZIP_STORED, "is a NumPy archive; make tensors of its arrays"),
        (["inner.zip"], zipfile.ZIP_STORED, r"is a zip archive of \['inner.zip'\], no PyTorch checkpoint; unpack it"),
        ([], zipfile.ZIP_STORED, "is (a zip archive of|neither a safetensors file)"),
        (["m/data.pkl"], zipfile.ZIP_DEFLATED, "is a compressed archive, which PyTorch does not read; unpack it"),
    ],
    ids=["torchscript", "numpy", "zip in zip", "empty", "compressed"],
)
def test_an_archive_of_another_kind_is_called_what_it_is(tmp_path, names, compression, message):
    with pytest.raises(ValueError, match=f"w.pth {message}"):
        read_checkpoint(repacked(tmp_path / "w.pth", names, compression))


def laughs(levels: int, keys: int, bottom: dict[str, Any]) -> dict[str, Any]:
    """A small file with `keys` ** `levels` entries, as one dictionary stands in many places."""
    content = bottom
    for _ in range(levels):
        content = dict.fromkeys(map(str, range(keys)), content)
    return content


@pytest.mark.parametrize("bottom", [{"a": torch.zeros(1)}, {"a": 1}])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_shared_dictionaries_is_refused_unopened(tmp_path, bottom, zipped):
    torch.save(laughs(7, 40, bottom), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert (tmp_path / "w.pth").stat().st_size < 20_000
    with pytest.raises(ValueError, match="w.pth holds more than 200,000 entries, which no set of weights has"):
        tensors_within(read_checkpoint(tmp_path / "w.pth"), "w.pth")  # to visit all 40 ** 7 entries takes a day


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_pickle_that_takes_too_long_to_build_is_refused_before(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("conceptcam.hub.checkpoints.files._MOST_INSTRUCTIONS", 1000)
    content = {"a": [0] * 2000}
    if kind == "pickle":
        (tmp_path / "w.pth").write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ValueError, match="w.pth is refused: it takes more than 1,000 instructions to build, which no"):
        read_checkpoint(tmp_path / "w.pth")


def test_a_tensor_with_more_numbers_than_its_file_is_refused():
    with pytest.raises(ValueError, match=r"claim more numbers than the file has: \['a'\]"):
        tensors_within({"a": torch.zeros(1).expand(10**12)}, "file")
