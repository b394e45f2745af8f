"""A cache of decoded images changes nothing but the time: whatever happens to its file, images are right."""

import logging
import multiprocessing
import os
import pickle
import signal
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conceptcam.data import image_cache
from conceptcam.data.image_cache import ImageCache
from conceptcam.data.images import load_image
from conceptcam.data.readers import SimulatedReaders
from conceptcam.data.regions import WithRegions
from conceptcam.data.splits import ConceptSubset
from conceptcam.data.table import TableDataset
from conceptcam.data.transforms import BoxAwareTransform, Preprocess, default_augmentation
from conceptcam.runs.options import RunOptions
from conceptcam.runs.teaching import cached_images
from tests.worlds import Squares, tiny_config

SIZE = (24, 32)
PREPROCESS = Preprocess(SIZE, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def picture(seed: int, *, grey: bool = False, deep: bool = False) -> Image.Image:
    shape = (60, 90) if grey or deep else (60, 90, 3)
    high, kind = (65535, np.uint16) if deep else (255, np.uint8)
    return Image.fromarray(np.random.default_rng(seed).integers(0, high, shape).astype(kind))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "images").mkdir()
    found = []
    for number in range(6):
        found.append(tmp_path / "images" / f"{number}.png")
        picture(number, grey=number % 2 == 1).save(found[-1])
    return found


@pytest.fixture
def dataset(files: list[Path]) -> TableDataset:
    folder = files[0].parents[1]
    rows = ["image,veil", *(f"{path.name},{number % 2}" for number, path in enumerate(files))]
    (folder / "labels.csv").write_text("\n".join(rows))
    (folder / "boxes.csv").write_text("image,concept,x,y,w,h\n1.png,veil,9,6,30,12\n3.png,veil,0,0,90,60\n")
    return TableDataset(folder / "labels.csv", folder / "images", concepts=["veil"], boxes=folder / "boxes.csv")


def test_what_is_kept_is_what_preprocessing_resizes_to(files: list[Path], tmp_path: Path):
    with ImageCache(tmp_path / "cache", SIZE) as cache:
        for _ in range(2):
            for path in files:
                image, size = cache.load(path)
                assert image.dtype == torch.uint8 and size == (60, 90)
                assert torch.equal(PREPROCESS(image), PREPROCESS(load_image(path)))


def test_the_second_reading_decodes_nothing(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with ImageCache(tmp_path / "cache", SIZE) as cache:
        first = [cache.load(path).image for path in files]
        monkeypatch.setattr(image_cache, "load_image", None)
        assert all(torch.equal(cache.load(path).image, image) for path, image in zip(files, first, strict=True))


def test_deep_images_are_rounded_to_half_a_step(tmp_path: Path):
    picture(1, deep=True).save(tmp_path / "a.png")
    with ImageCache(tmp_path / "cache", SIZE) as cache:
        kept = PREPROCESS(cache.load(tmp_path / "a.png").image)
    difference = (kept - PREPROCESS(tmp_path / "a.png")) * torch.tensor(PREPROCESS.std)[:, None, None]
    assert 0 < difference.abs().max() <= 0.5 / 255 + 1e-6


def test_items_are_the_same_with_and_without_a_cache(dataset: TableDataset, tmp_path: Path):
    dataset.preprocess = PREPROCESS
    plain = [dataset[index] for index in range(len(dataset))]
    for augmentation in (None, default_augmentation(SIZE)):
        dataset.augmentation = augmentation
        dataset.cache_images(None)
        torch.manual_seed(3)
        plain = [dataset[index] for index in range(len(dataset))]
        with ImageCache(tmp_path / "cache", SIZE) as cache:
            dataset.cache_images(cache)
            for _ in range(2):
                torch.manual_seed(3)
                for index, one in enumerate(plain):
                    item = dataset[index]
                    assert item.name == one.name
                    # Older torchvision rounds the numbers of an augmentation by how they lie in memory.
                    steps = (item.image - one.image).abs().max() * 255 * min(PREPROCESS.std)
                    assert steps <= (0 if augmentation is None else 2.1)
                    assert (item.boxes is None) == (one.boxes is None)
                    assert item.boxes is None or torch.equal(item.boxes.xyxy, one.boxes.xyxy)


def test_boxes_stay_where_their_paint_is(tmp_path: Path):
    canvas = np.zeros((80, 120), np.uint8)
    canvas[20:50, 30:90] = 255
    Image.fromarray(canvas).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("image,box\na.png,1\n")
    (tmp_path / "boxes.csv").write_text("image,concept,x,y,w,h\na.png,box,30,20,60,30\n")
    data = TableDataset(tmp_path / "labels.csv", tmp_path, concepts=["box"], boxes=tmp_path / "boxes.csv")
    from torchvision.transforms import v2

    data.augmentation = BoxAwareTransform(v2.RandomHorizontalFlip(p=1))
    with ImageCache(tmp_path / "cache", (40, 40)) as cache:
        data.cache_images(cache)
        for _ in range(2):
            item = data[0]
            painted = (item.image[0] > 127).float()
            covered = (item.boxes.coverage((1, 1, 40, 40))[0, 0] > 0.5).float()
            assert torch.equal(painted, covered)


def test_a_mask_is_kept_beside_its_image(dataset: TableDataset, tmp_path: Path):
    (tmp_path / "masks").mkdir()
    mask = np.zeros((60, 90), np.uint8)
    mask[:, :45] = 255
    Image.fromarray(mask).save(tmp_path / "masks" / "2.png")
    data = WithRegions(dataset, tmp_path / "masks")
    with ImageCache(tmp_path / "cache", SIZE) as cache:
        data.cache_images(cache)
        for _ in range(2):
            region = data.load_item(2).region
            assert region.shape == SIZE and region[:, :16].all() and not region[:, 16:].any()
        Image.fromarray(mask[:30]).save(tmp_path / "masks" / "2.png")
        with pytest.raises(ValueError, match="their proportions differ"):
            data.load_item(2)


def test_a_file_that_changes_is_decoded_anew(files: list[Path], tmp_path: Path):
    with ImageCache(tmp_path / "cache", SIZE) as cache:
        before = cache.load(files[0]).image
        picture(99).save(files[0])
        after = cache.load(files[0]).image
        assert not torch.equal(before, after)
        assert torch.equal(PREPROCESS(after), PREPROCESS(files[0]))


def test_a_size_and_a_bit_depth_have_images_of_their_own(tmp_path: Path):
    Image.fromarray(np.full((60, 90), 2000, np.uint16)).save(tmp_path / "a.png")
    with ImageCache(tmp_path / "cache", SIZE) as cache, ImageCache(tmp_path / "cache", (8, 8)) as small:
        for _ in range(2):
            assert cache.load(tmp_path / "a.png").image.max() == round(2000 / 65535 * 255)
            assert cache.load(tmp_path / "a.png", bit_depth=12).image.max() == round(2000 / 4095 * 255)
            assert small.load(tmp_path / "a.png", bit_depth=12).image.shape == (3, 8, 8)


def test_the_limit_holds_and_is_said_once(files: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with ImageCache(tmp_path / "cache", (96, 96), limit=80_000) as cache:
        for _ in range(2):
            for path in files:
                assert torch.equal(cache.load(path).image, ImageCache.load(cache, path).image)
        assert caplog.text.count("keeps no more images, which are decoded each time: it is full") == 1
    assert 0 < sum(file.stat().st_size for file in cache.file.parent.iterdir()) <= 80_000


@pytest.mark.parametrize("damage", ["text", "cut", "zeros"])
def test_a_damaged_file_is_made_anew_with_a_sentence(
    files: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
):
    with ImageCache(tmp_path / "cache", SIZE) as cache:
        for path in files:
            cache.load(path)
    content = cache.file.read_bytes()
    cache.file.write_bytes({
        "text": b"not a cache at all" * 1000, "cut": content[: len(content) // 2], "zeros": bytes(len(content)),
    }[damage])  # fmt: skip
    with ImageCache(tmp_path / "cache", SIZE) as cache:
        for _ in range(2):
            for path in files:
                assert torch.equal(PREPROCESS(cache.load(path).image), PREPROCESS(path))
        assert "cannot be used and is made anew" in caplog.text
        assert cache._files().table.execute("SELECT count(*) FROM images").fetchone() == (len(files),)


@pytest.fixture
def pixels(files: list[Path], tmp_path: Path) -> Path:
    """The file of pixels of a cache that holds all images."""
    with ImageCache(tmp_path / "cache", SIZE) as cache:
        for path in files:
            cache.load(path)
    (found,) = (tmp_path / "cache").glob("images-*.pixels")
    return found


def test_altered_pixels_are_noticed_and_mended(
    files: list[Path], pixels: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    pixels.write_bytes(bytes(pixels.stat().st_size))
    with ImageCache(tmp_path / "cache", SIZE) as cache:  # as a later process has it
        for _ in range(2):
            for path in files:
                assert torch.equal(PREPROCESS(cache.load(path).image), PREPROCESS(path))
    assert caplog.text.count("is damaged; it is decoded anew") == len(files)


def test_pixels_cut_while_they_are_read_are_mended(
    files: list[Path], pixels: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with ImageCache(tmp_path / "cache", SIZE) as cache:
        right = [cache.load(path).image for path in files]
        os.truncate(pixels, 1000)  # a mapping of it would kill the process
        for _ in range(2):
            assert all(torch.equal(cache.load(path).image, image) for path, image in zip(files, right, strict=True))
    assert caplog.text.count("its file of pixels was cut short") == 1


def test_nothing_is_added_where_pixels_were_cut_off(files: list[Path], pixels: Path, tmp_path: Path):
    """A process that has compared its images must not find others in their place."""
    cache, other = (ImageCache(tmp_path / "cache", SIZE) for _ in range(2))
    with cache, other:
        right = [cache.load(path).image for path in files]
        os.truncate(pixels, 0)
        for number, path in enumerate(files):
            picture(90 + number).save(path.with_stem(f"new {number}"))
            other.load(path.with_stem(f"new {number}"))
        assert all(torch.equal(cache.load(path).image, image) for path, image in zip(files, right, strict=True))


def test_nothing_is_added_by_the_table_of_other_pixels(files: list[Path], pixels: Path, tmp_path: Path):
    """The table is emptied in place, and another process makes a new one of it, with pixels of its own."""
    cache, other = (ImageCache(tmp_path / "cache", SIZE) for _ in range(2))
    with cache, other:
        right = [cache.load(path).image for path in files]
        os.truncate(pixels, 0)
        os.truncate(cache.file, 0)
        other.load(files[0])
        for number, path in enumerate(files):
            picture(90 + number).save(path.with_stem(f"new {number}"))
            cache.load(path.with_stem(f"new {number}"))
        assert all(torch.equal(cache.load(path).image, image) for path, image in zip(files, right, strict=True))


def test_a_cache_removed_while_it_is_read_is_begun_again(files: list[Path], pixels: Path, tmp_path: Path):
    with ImageCache(tmp_path / "cache", SIZE) as cache:
        cache.load(files[0])
        for file in (tmp_path / "cache").iterdir():
            file.unlink()
        for number in range(3):  # the first finds the table gone
            picture(90 + number).save(files[number])
            cache.load(files[number])
        assert cache._files().table.execute("SELECT count(*) FROM images").fetchone() == (2,)


def test_lost_pixels_make_the_cache_anew(
    files: list[Path], pixels: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    pixels.unlink()
    with ImageCache(tmp_path / "cache", SIZE) as cache:
        for _ in range(2):
            for path in files:
                assert torch.equal(PREPROCESS(cache.load(path).image), PREPROCESS(path))
        assert cache._files().table.execute("SELECT count(*) FROM images").fetchone() == (len(files),)
    assert caplog.text.count("cannot be used and is made anew") == 1
    assert len(list(pixels.parent.glob("*.pixels"))) == 1


@pytest.mark.parametrize("column", ["start", "channels", "height", "checksum"])
@pytest.mark.parametrize("value", ["start + 1", "-1", "'text'", "CAST(x'ff' AS TEXT)", "NULL", "1e300", "3"])
def test_altered_rows_are_noticed_and_mended(files: list[Path], pixels: Path, tmp_path: Path, column: str, value: str):
    with ImageCache(tmp_path / "cache", SIZE) as cache:
        right = cache.load(files[0])
        cache._files().table.execute(f"UPDATE images SET {column} = {value}")
    with ImageCache(tmp_path / "cache", SIZE) as cache:
        for _ in range(2):
            found = cache.load(files[0])
            assert torch.equal(found.image, right.image) and found.size == right.size == (60, 90)


def test_what_a_process_knows_stays_right_whatever_others_do(files: list[Path], tmp_path: Path):
    cache, other = (ImageCache(tmp_path / "cache", SIZE) for _ in range(2))
    with cache, other:
        right = [cache.load(path) for path in files for _ in range(2)][::2]  # their checksums were compared
        before = files[0].stat()
        picture(99).save(files[0])
        other.load(files[0])  # which takes the row of what was there
        other._files().table.execute("UPDATE images SET checksum = checksum + 1, start = start + 1")
        picture(0).save(files[0])
        os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns))
        for path, expected in zip(files, right, strict=True):
            found = cache.load(path)
            assert torch.equal(found.image, expected.image) and found.size == expected.size


def test_closing_forgets_what_was_known(files: list[Path], tmp_path: Path):
    with ImageCache(tmp_path / "cache", SIZE) as cache:
        right = [cache.load(path).image for path in files for _ in range(2)][::2]
        cache.close()
        for file in (tmp_path / "cache").iterdir():
            file.unlink()
        with ImageCache(tmp_path / "cache", SIZE) as other:
            for path in reversed(files):  # in another order, so that each lies elsewhere
                other.load(path)
        assert all(torch.equal(cache.load(path).image, image) for path, image in zip(files, right, strict=True))


def test_only_so_many_places_are_remembered(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(image_cache, "_MOST_KNOWN", 2)
    with ImageCache(tmp_path / "cache", SIZE) as cache:
        for _ in range(3):
            for path in files:
                assert torch.equal(PREPROCESS(cache.load(path).image), PREPROCESS(path))
        assert len(cache._files().known) == 2


def test_a_cache_that_may_not_be_written_is_read(files: list[Path], pixels: Path, tmp_path: Path):
    for file in pixels.parent.iterdir():
        file.chmod(0o444)
    with ImageCache(tmp_path / "cache", SIZE) as cache:
        for path in files:
            assert torch.equal(PREPROCESS(cache.load(path).image), PREPROCESS(path))


def test_a_size_in_the_file_that_was_altered_is_noticed(files: list[Path], tmp_path: Path):
    with ImageCache(tmp_path / "cache", SIZE) as cache:
        right = cache.load(files[0]).size
        cache._files().table.execute("UPDATE images SET height = height + 1")
    with ImageCache(tmp_path / "cache", SIZE) as cache:
        assert cache.load(files[0]).size == right


def test_a_folder_that_cannot_be_written_leaves_decoding(
    files: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "cache").write_text("a file")
    with ImageCache(tmp_path / "cache", SIZE) as cache:
        for path in files:
            assert torch.equal(PREPROCESS(cache.load(path).image), PREPROCESS(path))
    assert caplog.text.count("unable to open database file") == 1


def fill(cache: ImageCache, files: list[Path], forever: bool) -> None:
    while True:
        for path in files:
            cache.load(path)
            if forever:  # as if the file had changed
                os.utime(path)
        if not forever:
            return


def test_processes_share_a_cache_and_one_may_be_killed(files: list[Path], tmp_path: Path):
    cache = ImageCache(tmp_path / "cache", SIZE)
    cache.load(files[0])
    context = multiprocessing.get_context("fork")
    ends = context.Process(target=fill, args=(cache, files[:3], False))
    killed = context.Process(target=fill, args=(cache, files[3:], True))
    ends.start()
    killed.start()
    time.sleep(0.3)
    os.kill(killed.pid, signal.SIGKILL)
    ends.join()
    killed.join()
    assert ends.exitcode == 0
    with sqlite3.connect(cache.file) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    file.close()
    for path in files:
        assert torch.equal(PREPROCESS(cache.load(path).image), PREPROCESS(path))
    cache.close()


def test_a_process_gets_the_place_and_not_the_images(files: list[Path], tmp_path: Path):
    with ImageCache(tmp_path / "cache", SIZE) as cache:
        image = cache.load(files[0]).image
        sent = pickle.dumps(cache)
        with pickle.loads(sent) as received:
            assert len(sent) < 1000 and torch.equal(received.load(files[0]).image, image)


def test_parts_of_a_data_set_read_through_its_cache(dataset: TableDataset, tmp_path: Path):
    part = ConceptSubset(dataset, [2, 4])
    with ImageCache(tmp_path / "cache", SIZE) as cache:
        part.cache_images(cache)
        assert part.load_item(0).image.shape == (3, *SIZE)
        part.cache_images(None)
        assert part.load_item(0).image.shape == (3, 60, 90)


def test_simulated_readers_read_through_the_cache_of_their_data(dataset: TableDataset, tmp_path: Path):
    read = SimulatedReaders(dataset)
    with ImageCache(tmp_path / "cache", SIZE) as cache:
        read.cache_images(cache)
        assert read.image_cache is cache and read.load_item(0).image.shape == (3, *SIZE)


def test_a_run_gives_data_their_own_cache_back(dataset: TableDataset, tmp_path: Path):
    parts = ConceptSubset(dataset, [0, 1]), ConceptSubset(dataset, [2, 3])
    config, options = tiny_config(), RunOptions(image_cache=tmp_path / "run")
    with ImageCache(tmp_path / "own", SIZE) as own:
        dataset.cache_images(own)
        with cached_images(options, config, parts):
            assert dataset.image_cache is not own
        assert dataset.image_cache is own


def test_images_that_are_no_files_cannot_be_cached():
    with pytest.raises(ValueError, match="the images of a Squares are not read by a reader that can keep them"):
        Squares(2).cache_images(None)


def test_a_broken_image_is_refused_and_not_kept(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with ImageCache(tmp_path / "cache", SIZE) as cache, pytest.raises(ValueError, match="cannot read the image"):
        cache.load(tmp_path / "a.png")


def test_a_size_of_nothing_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"`image_size` \(--image-size\) must be above 0"):
        ImageCache(tmp_path, (0, 5))


@pytest.mark.parametrize("limit", [0, -1.0, float("inf"), float("nan")])
def test_a_limit_that_sqlite_cannot_keep_is_refused(tmp_path: Path, limit: float):
    with pytest.raises(ValueError, match="`limit` must be a finite int or float from 16384"):
        ImageCache(tmp_path, SIZE, limit=limit)


def test_one_thread_closes_what_another_has_opened(files: list[Path], tmp_path: Path):
    cache = ImageCache(tmp_path / "cache", SIZE)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(cache.load, files[0]).result()
    cache.close()
    assert torch.equal(cache.load(files[0]).image, first.image)


def test_a_sliver_is_said_once_per_data_set(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.arange(4000, dtype=np.uint16).reshape(50, 80)).save(tmp_path / "images" / name)
    (tmp_path / "labels.csv").write_text("image,veil\na.png,1\nb.png,0\n")
    for _ in range(2):
        data = TableDataset(tmp_path / "labels.csv", tmp_path / "images", concepts=["veil"])
        with caplog.at_level(logging.WARNING):
            assert [data.load_item(index).image.max() < 0.1 for index in (0, 1)] == [True, True]
    preprocess = Preprocess(SIZE, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    for name in ("a.png", "b.png"):
        preprocess(tmp_path / "images" / name)
    assert caplog.text.count("if it holds numbers of 12 bits, say so with `bit_depth`") == 3
