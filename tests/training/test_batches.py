import random

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, DistributedSampler, IterableDataset, Subset, get_worker_info

from conceptcam.data.batch import collate
from conceptcam.training.batches import BatchLoader, EpochPlan
from tests.worlds import Squares, batches


def noisy(item):
    """Augmentation that draws from all three of the generators that augmentations draw from."""
    noise = torch.rand(()) + random.random() + np.random.rand()
    return item._replace(image=(item.image.float() / 255 * noise).clamp(0, 1))


def augmented(count=10):
    data = Squares(count)
    data.augmentation = noisy
    return data


def read(feed, order=None, start=0):
    return list(feed.load(feed.draw() if order is None else order, start))


def same(first, second):
    assert len(first) == len(second) > 0
    return all(
        a.samples == b.samples and a.size == b.size and torch.equal(a.batch.images, b.batch.images)
        for a, b in zip(first, second, strict=True)
    )


def test_loader_gives_its_own_batches_in_the_order_drawn():
    data = Squares(10)
    feed = BatchLoader(data.dataloader(4, shuffle=True))
    order = feed.draw()
    assert sorted(i for batch in order.batches for i in batch) == list(range(10))
    for share, numbers in zip(read(feed, order), order.batches, strict=True):
        assert share.samples == tuple(numbers)
        assert share.batch.names == tuple(f"square-{i}" for i in numbers)
        assert share.size == share.own == len(share.batch.images)


def test_order_is_the_one_the_loader_would_have_drawn():
    loader = DataLoader(Squares(10), 4, shuffle=True, collate_fn=collate, generator=torch.Generator().manual_seed(5))
    expected = [list(batch) for batch in loader.batch_sampler]
    loader.generator.manual_seed(5)
    assert [list(batch) for batch in BatchLoader(loader).draw().batches] == expected


def test_each_pass_has_an_order_and_an_augmentation_of_its_own():
    feed = BatchLoader(augmented().dataloader(10))
    first, second = read(feed), read(feed)
    assert not torch.equal(first[0].batch.images, second[0].batch.images)
    shuffled = BatchLoader(Squares(10).dataloader(4, shuffle=True))
    assert shuffled.draw().batches != shuffled.draw().batches


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_augmentation_depends_on_the_order_alone(workers):
    order = BatchLoader(augmented().dataloader(4, shuffle=True)).draw()
    expected = read(BatchLoader(augmented().dataloader(4)), order)
    torch.rand(7), random.random(), np.random.rand()
    assert same(read(BatchLoader(augmented().dataloader(4, num_workers=workers)), order), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_pass_may_begin_in_its_middle(workers):
    feed = BatchLoader(augmented().dataloader(3, shuffle=True, num_workers=workers))
    order = feed.draw()
    assert same(read(feed, order, start=2), read(feed, order)[2:])


def test_workers_that_persist_read_the_new_order():
    loader = DataLoader(augmented(), 4, shuffle=True, collate_fn=collate, num_workers=1, persistent_workers=True)
    feed, plain = BatchLoader(loader), BatchLoader(augmented().dataloader(4))
    for _ in range(2):
        order = feed.draw()
        assert same(read(feed, order), read(plain, order))


def test_loading_leaves_the_global_random_states_alone():
    feed = BatchLoader(augmented().dataloader(4))
    order = feed.draw()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    read(feed, order)
    feed.draw(seed=3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()


@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("given", ["list", "loader"])
def test_processes_divide_each_batch_and_lose_no_sample(world, given):
    data = augmented(9)
    one = batches(Squares(9), 4) if given == "list" else data.dataloader(4)
    order = BatchLoader(one).draw()
    whole = read(BatchLoader(one), order)
    shares = [read(BatchLoader(one, rank=rank, world=world), order) for rank in range(world)]
    for number, all_of_it in enumerate(whole):
        parts = [shares[rank][number] for rank in range(world)]
        assert sorted(i for part in parts for i in part.samples) == sorted(all_of_it.samples)
        for rank, part in enumerate(parts):
            assert part.size == all_of_it.size
            assert len(part.batch.images) == max(1, part.own)
            mine = range(rank, all_of_it.size, world)
            assert part.samples == tuple(all_of_it.samples[row] for row in mine)
            assert torch.equal(part.batch.images[: part.own], all_of_it.batch.images[list(mine)])


def test_rows_are_taken_with_their_boxes():
    data = Squares(6)
    (whole,) = batches(data, 6)
    taken, expected = whole.select([4, 1]), collate([data[4], data[1]])
    assert taken.names == expected.names
    for part in ("xyxy", "concept", "image"):
        order = [torch.argsort(one.boxes.image, stable=True) for one in (taken, expected)]
        assert torch.equal(getattr(taken.boxes, part)[order[0]], getattr(expected.boxes, part)[order[1]])
    assert whole._replace(boxes=None).select([0]).boxes is None


def test_loader_of_a_data_set_without_a_length_has_none_either():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(batches(Squares(4), 2))

    feed = BatchLoader(DataLoader(Stream(), batch_size=None))
    assert feed.length is None
    assert [len(share.batch.concepts) for share in feed.load(feed.draw())] == [2, 2]


def test_any_iterable_is_read_as_it_comes():
    given = batches(Squares(10), 4)
    feed = BatchLoader(iter(given))
    assert (feed.length, feed.samples, feed.repeatable, feed.labels) == (None, None, None, None)
    order = feed.draw()
    assert order.batches is None
    assert [share.batch.names for share in read(feed, order, start=1)] == [batch.names for batch in given[1:]]


class Stream(IterableDataset):
    def __iter__(self):
        return (Squares(4)[i] for i in range(4))


@pytest.mark.parametrize(
    "given, name",
    [(iter([]), "list_iterator"), (DataLoader(Stream(), 2, collate_fn=collate), "DataLoader")],
    ids=["iterator", "stream"],
)
def test_what_has_no_numbers_cannot_be_divided_among_processes(given, name):
    with pytest.raises(ValueError, match=f"a {name} cannot be divided among 2 processes; give a list of batches"):
        BatchLoader(given, rank=0, world=2)


def test_a_sampler_that_divides_the_data_itself_is_refused():
    sampler = DistributedSampler(Squares(4), num_replicas=2, rank=0)
    with pytest.raises(ValueError, match="`DistributedSampler`; leave it out"):
        BatchLoader(DataLoader(Squares(4), sampler=sampler, collate_fn=collate), rank=0, world=2)


def test_a_loader_with_an_order_of_its_own_is_read_as_it_comes():
    class Backwards(DataLoader):
        def __iter__(self):
            return reversed(list(super().__iter__()))

    feed = BatchLoader(Backwards(Squares(4), 1, collate_fn=collate))
    assert [share.batch.names for share in read(feed)] == [(f"square-{i}",) for i in (3, 2, 1, 0)]


def test_what_is_the_same_each_time_is_known_where_it_can_be():
    plain, changed = Squares(4), augmented(4)
    loaders = {
        True: [plain, Subset(plain, [0, 1]), ConcatDataset([plain, plain])],
        False: [changed, Subset(changed, [0, 1]), ConcatDataset([plain, changed])],
        None: [[plain[0]], ConcatDataset([plain, [plain[0]]])],
    }
    for answer, datasets in loaders.items():
        for dataset in datasets:
            assert BatchLoader(DataLoader(dataset, 2, collate_fn=collate)).repeatable is answer
    assert BatchLoader(batches(plain)).repeatable is True


def test_labels_and_samples_are_known_without_loading():
    data = Squares(10)
    for feed in (BatchLoader(data.dataloader(4)), BatchLoader(batches(data, 4))):
        assert torch.equal(feed.labels[0], data.concept_labels)
        assert torch.equal(feed.labels[1], data.task_labels)
        assert feed.samples == range(10)
        assert feed.length == 3


def test_any_order_of_its_samples_can_be_read():
    feed = BatchLoader(Squares(10).dataloader(4, shuffle=True))
    shares = read(feed, EpochPlan([[3, 1], [7]], 0))
    assert [share.batch.names for share in shares] == [("square-3", "square-1"), ("square-7",)]


def test_generators_of_the_loader_can_be_put_back():
    loader = DataLoader(Squares(9), 4, shuffle=True, collate_fn=collate, generator=torch.Generator())
    feed = BatchLoader(loader)
    state = feed.random_state()
    first = feed.draw(0)
    feed.set_random_state(state)
    assert feed.draw(0) == first


class Opens(Squares):
    """A data set that each worker must open before it can be read."""

    opened = False

    def load_item(self, index):
        assert self.opened
        return super().load_item(index)


def open_in_worker(worker):
    get_worker_info().dataset.opened = True


def test_a_workers_start_function_finds_the_data_set_as_it_was_given():
    loader = DataLoader(Opens(4), 4, collate_fn=collate, num_workers=1, worker_init_fn=open_in_worker)
    assert len(read(BatchLoader(loader))) == 1


def test_sample_numbers_may_be_of_any_kind():
    data = Squares(3)
    items = {f"key-{i}": data[i] for i in range(3)}
    loader = DataLoader(items, batch_sampler=[["key-2", "key-0"]], collate_fn=collate)
    (share,) = read(BatchLoader(loader))
    assert share.samples == ("key-2", "key-0")
    assert share.batch.names == ("square-2", "square-0")


def test_a_whole_batch_of_a_list_is_given_without_a_copy():
    given = batches(Squares(7), 3)
    assert all(share.batch is batch for share, batch in zip(read(BatchLoader(given)), given, strict=True))


def test_rows_of_several_batches_of_a_list_are_joined():
    data = Squares(6)
    (share,) = read(BatchLoader(batches(data, 2)), EpochPlan([[5, 1, 0]], 0))
    assert share.batch.names == ("square-5", "square-1", "square-0")
    assert torch.equal(share.batch.images, torch.stack([data[i].image for i in (5, 1, 0)]))


def test_an_empty_list_has_no_batches_in_several_processes_too():
    assert BatchLoader([], rank=1, world=2).length == 0
