"""The phantom as a data set: its cache and its items."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conceptcam.data.batch import collate
from conceptcam.data.phantom import PHANTOM_CONCEPTS, PHANTOM_DISEASES, Phantom, PhantomConfig, PhantomDataset, cache
from conceptcam.data.phantom.cache import PhantomArrays, Request, cached, render, render_part

KNOBS = PhantomConfig(size=64)


def request(count: int = 5, *, config: PhantomConfig = KNOBS, seed: int = 1, first: int = 0) -> Request:
    return Request(config=config, seed=seed, first=first, count=count)


def assert_same(first: PhantomArrays, second: PhantomArrays) -> None:
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_items_are_what_the_phantom_draws():
    dataset, phantom = PhantomDataset(4, seed=3, config=KNOBS, first=10, cache_dir=False), Phantom(KNOBS, seed=3)
    assert len(dataset) == 4
    assert (dataset.concepts, dataset.tasks) == (PHANTOM_CONCEPTS, PHANTOM_DISEASES)
    for index in range(4):
        item, sample = dataset[index], phantom.sample(10 + index)
        assert item.name == f"phantom-3-{10 + index}"
        assert item.image.dtype == torch.uint8
        assert item.image.shape == (3, 64, 64)
        assert all((channel.numpy() == sample.image).all() for channel in item.image)
        assert item.concepts.tolist() == dataset.concept_labels[index].tolist() == sample.concepts.tolist()
        assert item.targets.tolist() == dataset.task_labels[index].tolist() == sample.diseases.tolist()
        np.testing.assert_array_equal(item.boxes.xyxy.numpy(), sample.boxes)
        np.testing.assert_array_equal(item.boxes.concept.numpy(), sample.box_concepts)


def test_an_image_without_findings_has_empty_boxes_never_none():
    dataset = PhantomDataset(30, seed=0, config=KNOBS, cache_dir=False)
    healthy = [index for index in range(30) if not dataset.concept_labels[index].any()]
    assert healthy
    assert all(len(dataset.load_item(index).boxes) == 0 for index in healthy)


def test_batches_keep_each_box_with_its_image():
    dataset = PhantomDataset(8, seed=0, config=KNOBS, cache_dir=False)
    batch = collate([dataset[index] for index in range(8)])
    marked = torch.zeros(8, len(PHANTOM_CONCEPTS))
    marked[batch.boxes.image, batch.boxes.concept] = 1
    assert torch.equal(marked, batch.concepts)


def test_an_item_can_be_changed_without_changing_the_data_set(tmp_path):
    dataset = PhantomDataset(2, seed=0, config=KNOBS, cache_dir=tmp_path)
    before = dataset[0].image.clone()
    dataset[0].image.zero_()
    assert torch.equal(dataset[0].image, before)


def test_several_processes_draw_what_one_draws(monkeypatch):
    monkeypatch.setattr(cache, "_PART", 3)
    wanted = request(8, first=5)
    assert_same(render(wanted, processes=2), render_part(wanted))
    assert_same(render(wanted, processes=1), render_part(wanted))


def test_two_halves_are_the_whole():
    whole, parts = render_part(request(6)), [render_part(request(3)), render_part(request(3, first=3))]
    np.testing.assert_array_equal(whole.images, np.concatenate([part.images for part in parts]))
    np.testing.assert_array_equal(whole.boxes, np.concatenate([part.boxes for part in parts]))


def test_a_cache_is_used_again_and_holds_the_same(tmp_path, monkeypatch):
    first = cached(request(), tmp_path, processes=1)
    assert isinstance(first.images, np.memmap)
    assert not first.images.flags.writeable
    assert_same(first, render_part(request()))
    monkeypatch.setattr(cache, "render", None)
    assert_same(cached(request(), tmp_path, processes=1), first)


@pytest.mark.parametrize(
    "other",
    [
        request(seed=2),
        request(first=1),
        request(6),
        request(config=PhantomConfig(size=64, noise=0.5)),
        request(config=PhantomConfig(size=65)),
    ],
)
def test_anything_that_changes_the_images_has_a_cache_of_its_own(tmp_path, other):
    cached(request(), tmp_path, processes=1)
    assert_same(cached(other, tmp_path, processes=1), render_part(other))
    assert len(files(tmp_path)) == 4


def test_another_version_has_a_cache_of_its_own(tmp_path, monkeypatch):
    cached(request(), tmp_path, processes=1)
    monkeypatch.setattr(cache, "PHANTOM_VERSION", -1)
    cached(request(), tmp_path, processes=1)
    assert len(files(tmp_path)) == 4


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("ending", [".u8", ".npz"])
@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, Path.unlink, Path.touch])
def test_a_damaged_cache_is_made_again(tmp_path, ending, damage):
    cached(request(), tmp_path, processes=1)
    (damaged,) = tmp_path.glob(f"*{ending}")
    good = damaged.read_bytes()
    damage(damaged)
    assert_same(cached(request(), tmp_path, processes=1), render_part(request()))
    if ending == ".u8":
        assert damaged.read_bytes() == good
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("failing", ["tofile", "replace"])
def test_a_failure_while_writing_leaves_no_cache(tmp_path, monkeypatch, failing):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if failing == "replace":
        moved = []
        monkeypatch.setattr(os, "replace", lambda *names: fail() if moved else moved.append(replace(*names)))
    else:
        monkeypatch.setattr(cache, "_write", fail)
    with pytest.raises(OSError, match="No space left"):
        cached(request(), tmp_path, processes=1)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.u8"))
    assert_same(cached(request(), tmp_path, processes=1), render_part(request()))


replace = os.replace


def test_a_killed_writer_leaves_nothing_that_is_taken_for_a_cache(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from conceptcam.data.phantom import PhantomConfig, cache\n"
        "write = cache._write\n"
        "def slow(*given):\n    write(*given); print('written', flush=True); time.sleep(60)\n"
        "cache._write = slow\n"
        "request = cache.Request(config=PhantomConfig(size=64), seed=1, first=0, count=5)\n"
        "cache.cached(request, Path(sys.argv[1]), processes=1)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None and writer.stdout.readline() == "written\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert not [name for name in files(tmp_path) if not name.startswith(".")]
    assert_same(cached(request(), tmp_path, processes=1), render_part(request()))


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_pickled_data_set_is_the_same_and_carries_no_mapped_images(tmp_path, in_memory):
    dataset = PhantomDataset(40, seed=0, config=KNOBS, cache_dir=False if in_memory else tmp_path)
    pickled = pickle.dumps(dataset)
    assert (len(pickled) > 40 * 64 * 64) == in_memory
    copy = pickle.loads(pickled)
    assert copy[39].name == dataset[39].name
    assert torch.equal(copy[39].image, dataset[39].image)
    assert torch.equal(dataset[39].image, PhantomDataset(1, seed=0, config=KNOBS, first=39, cache_dir=False)[0].image)


def test_the_default_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("CONCEPTCAM_CACHE", str(tmp_path / "chosen"))
    PhantomDataset(2, seed=0, config=KNOBS)
    assert len(files(tmp_path / "chosen")) == 2
    monkeypatch.delenv("CONCEPTCAM_CACHE")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    PhantomDataset(2, seed=0, config=KNOBS)
    assert len(files(tmp_path / "home" / ".cache" / "conceptcam")) == 2


def test_a_data_set_in_memory_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("CONCEPTCAM_CACHE", str(tmp_path))
    PhantomDataset(2, seed=0, config=KNOBS, cache_dir=False)
    assert not files(tmp_path)


def test_no_images_are_an_empty_data_set(tmp_path):
    for folder in (False, tmp_path, tmp_path):
        assert len(PhantomDataset(0, seed=0, config=KNOBS, cache_dir=folder)) == 0


def test_negative_numbers_are_refused():
    with pytest.raises(ValueError, match="`seed`, `first` and `count` must not be negative, got 0, -1, 3"):
        PhantomDataset(3, seed=0, first=-1, cache_dir=False)


def test_drawing_does_not_import_torch():
    code = "import sys; from conceptcam.data.phantom import Phantom; Phantom().sample(0); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_failing_worker_is_reported_with_its_reason(monkeypatch):
    monkeypatch.setattr(cache, "_PART", 2)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="a process that draws phantom images ended with 1"):
        render(request(6), processes=2)


def test_no_flipped_bit_of_a_cache_is_an_error(tmp_path):
    cached(request(), tmp_path, processes=1)
    (labels,) = tmp_path.glob("*.npz")
    good = labels.read_bytes()
    for place in range(0, len(good), max(1, len(good) // 150)):
        labels.write_bytes(good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :])
        assert_same(cached(request(), tmp_path, processes=1), render_part(request()))


def test_a_full_disk_of_the_cache_is_told_with_what_to_do(tmp_path, monkeypatch):
    def full(*given):
        raise OSError("163840 requested and 20480 written")

    monkeypatch.setattr(cache, "_write", full)
    message = f"cannot be kept in the cache {tmp_path}: 163840 .*; make room on its disk, or choose .*CONCEPTCAM_CACHE"
    with pytest.raises(OSError, match=message):
        cached(request(), tmp_path, processes=1)
