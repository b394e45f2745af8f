import dataclasses
import logging
import os
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

from conceptcam.data.batch import ConceptBatch, collate
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.model.outputs import PrototypePart
from conceptcam.training.batches import BatchLoader
from conceptcam.training.feature_cache import CachedInputs, FeatureCache
from conceptcam.training.history import EpochResult
from conceptcam.training.inputs import Images
from conceptcam.training.presets import get_preset
from conceptcam.training.trainer import Trainer
from tests.training.test_distributed import torchrun
from tests.worlds import Squares, batches, tiny_model, weights


def stages_of(model, epochs=3, **changes):
    """Stages 2 and 3."""
    names = {"concepts": 1, "prototypes": epochs, "task": epochs}
    return [dataclasses.replace(one, **changes) for one in get_preset().stages(model.config, epochs=names)[1:]]


def loaders():
    """Last batches are short, and an image shows one concept or several or none."""
    return Squares(21, 0).dataloader(8, shuffle=True), Squares(13, 1).dataloader(5)


def fit(cache, data=None, *, with_stages=None, trainer=None, **config):
    """Records and weights of stages 2 and 3."""
    model = tiny_model(**config)
    train, val = data or loaders()
    stages = stages_of(model) if with_stages is None else with_stages(model)
    records = Trainer(seed=0, feature_cache=cache, **trainer or {}).fit(model, stages, train, val)
    return records, weights(model)


def told(records):
    """All that a record says of what was learned; NaN as text, so that it equals itself."""
    return [str(record._replace(seconds=0.0, cached=False)) for record in records]


def same(first, second):
    assert told(first[0]) == told(second[0])
    return all(torch.equal(first[1][name], second[1][name]) for name in first[1])


def of_stage(records, name):
    return [record for record in records if record.stage == name]


@pytest.fixture
def source():
    """Makes sources of inputs for untaught models."""
    held = []

    def make(model, stage, loader, storage="memory", *, later=(), **options):
        held.append(FeatureCache(storage, **options))
        return held[-1].source(model, stage, loader, later=later)

    yield make
    for one in held:
        one.close()


MODELS = {
    "small cnn": {},
    "vit": {"backbone": "timm:test_vit", "image_size": (64, 64)},
    "ibn": {"projector": "ibn"},
    "attention pooling": {"pooling": "attention"},
    "concepts bottleneck": {"bottleneck": "concepts", "pooling": "attention"},
    "project, then pool": {"pooling_order": "project_then_pool"},
}


class Resized(Squares):
    """Squares in images as a ViT takes them."""

    def __init__(self, count, seed=0):
        super().__init__(count, seed)
        self.preprocess = tiny_model(**MODELS["vit"]).preprocess


@pytest.mark.parametrize("storage", ["memory", "disk"])
@pytest.mark.parametrize("kind", MODELS)
def test_the_cache_changes_no_bit_of_losses_scores_and_weights(kind, storage):
    data = Resized if kind == "vit" else Squares

    def run(cache):
        # All batches to learn from have one size: a row may have other last bits in a batch of another size.
        return fit(cache, (data(24, 0).dataloader(8, shuffle=True), data(13, 1).dataloader(5)), **MODELS[kind])

    cached, anew = run(storage), run("off")
    assert same(cached, anew)
    goes_on = {record.stage for record in cached[0] if record.cached}
    assert goes_on == (
        {"task"} if kind in ("concepts bottleneck", "project, then pool") else {"embedding", "prototypes", "task"}
    )
    assert not any(record.cached for record in anew[0])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_cache_changes_nothing_for_lists_of_uneven_batches(precision):
    data = [batch for size in (3, 8, 1) for batch in batches(Squares(8, size), size)], batches(Squares(9, 1), 4)
    options = {"precision": precision, "gradient_accumulation_steps": 2}
    assert same(fit("auto", data, trainer=options), fit("off", data, trainer=options))


def test_features_kept_for_stage_3_say_the_same_as_the_images(caplog):
    caplog.set_level(logging.INFO)
    kept = fit("memory")
    assert "MB of features" in caplog.text and "0 MB of features" not in caplog.text
    assert same(kept, fit("memory", trainer={"feature_cache_limit": 0.0002}))  # room for rows alone
    assert "features are not kept" in caplog.text


def shown(model):
    """Counts the images that the backbone is shown."""
    counts = []
    model.backbone.register_forward_pre_hook(lambda module, given: counts.append(len(given[0])))
    return counts


def test_stages_2_and_3_show_each_image_to_the_backbone_once():
    model = tiny_model()
    counts = shown(model)
    Trainer(seed=0).fit(model, stages_of(model), *loaders())
    assert counts == [8] * 3 + [5] * 3  # 21 and 13 samples, the last batches filled up


def test_a_cache_over_its_limit_is_not_used_and_the_log_says_so(caplog):
    limited = fit("memory", trainer={"feature_cache_limit": 1e-7})
    assert same(limited, fit("off"))
    assert not any(record.cached for record in limited[0])
    assert "reads its images in each epoch" in caplog.text and "1e-07 GB allowed" in caplog.text


def test_augmented_images_are_not_cached_and_the_log_says_so(caplog):
    caplog.set_level(logging.INFO)
    train, val = loaders()
    train.dataset.augmentation = lambda item: item._replace(
        image=(item.image.float() / 255 * torch.rand(())).clamp(0, 1)
    )
    records, _ = fit("memory", (train, val))
    assert not any(record.cached for record in records)
    assert "reads its images in each epoch: they are augmented" in caplog.text


class Plain(Dataset):
    """A data set that says nothing about itself."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


@pytest.mark.parametrize("cache, cached", [("auto", False), ("memory", True)])
def test_unknown_kinds_of_data_are_cached_if_the_user_says_so(cache, cached):
    train = DataLoader(Plain(Squares(12)), 4, collate_fn=collate)
    records, _ = fit(cache, (train, batches(Squares(12, 1))))
    assert {record.cached for record in records} == {cached}


def test_data_that_change_are_found_out_whatever_was_said_of_them(caplog):
    data = Squares(12)
    before = data.preprocess
    data.preprocess = lambda image: before(image) + random.random()
    records, _ = fit("memory", (data.dataloader(4), batches(Squares(12, 1))))
    assert not any(record.cached for record in records)
    assert "they differ each time they are read" in caplog.text


def test_iterable_whose_order_nobody_knows_is_read_anew():
    class Stream:
        def __iter__(self):
            return iter(batches(Squares(12)))

        def __len__(self):
            return 2

    records, _ = fit("memory", (Stream(), batches(Squares(12, 1))))
    assert not any(record.cached for record in records)


def test_what_was_kept_is_not_used_after_its_parts_have_learned():
    """Stage 3, backbone and all, stage 2 and 3 again: each sees the model as it is."""

    def twice(model):
        row, *_, task = stages_of(model)
        concepts = get_preset().stages(model.config, epochs={"concepts": 2})[0]
        return [row, task, concepts, row, task, dataclasses.replace(row, lr={"prototypes": 0.1}), task]

    cached, anew = fit("memory", with_stages=twice), fit("off", with_stages=twice)
    assert same(cached, anew)
    assert len(of_stage(cached[0], "embedding")) == 3


def test_stage_whose_backbone_learns_reads_images(source):
    model = tiny_model()
    row, *_, task = stages_of(model)
    task = dataclasses.replace(task, corrections=False)  # which need a frozen front
    loader = BatchLoader(batches(Squares(4)))
    for stage in (row, task):
        for part in ("backbone", "concept_head"):
            learning = dataclasses.replace(stage, lr={**stage.lr, part: 1e-3})
            assert isinstance(source(model, learning, loader), Images)
        assert isinstance(source(model, stage, loader), CachedInputs)
    assert isinstance(source(model, dataclasses.replace(task, lr={"projector": 1e-3}), loader), Images)


@pytest.mark.parametrize("storage", ["off", "memory"])
@pytest.mark.parametrize("row", [0, -1])
def test_work_leads_to_what_the_model_says_of_the_images(source, storage, row):
    model = tiny_model().eval()
    stage = stages_of(model)[row]
    loader = BatchLoader(batches(Squares(11), 4))
    cached = source(model, stage, loader, storage)
    works = list(cached.load(loader.draw()))
    assert len(works) == 3
    for work, batch in zip(works, batches(Squares(11), 4), strict=True):
        said = cached.forward(model, *work.inputs)
        expected = stage.forward(model, batch.images, stage.concept_mask(batch))
        torch.testing.assert_close(tuple(said), tuple(expected), rtol=1e-4, atol=1e-5)
        assert work.own is None
        assert work.inputs[0].requires_grad is False


def test_batches_keep_all_but_the_images(source):
    model = tiny_model()
    loader = BatchLoader(Squares(11).dataloader(4, shuffle=True))
    order = loader.draw()
    works = list(source(model, stages_of(model)[0], loader).load(order))
    for work, share in zip(works, loader.load(order), strict=True):
        got, batch = work.batch, share.batch
        assert got.images.shape == (len(batch.images), 0)
        assert torch.equal(got.concepts, batch.concepts) and torch.equal(got.targets, batch.targets)
        assert got.names == batch.names
        for name in ("xyxy", "concept", "image"):
            assert torch.equal(getattr(got.boxes, name), getattr(batch.boxes, name))


def test_batches_without_names_and_boxes_have_none_later(source):
    model = tiny_model()
    loader = BatchLoader([batch._replace(boxes=None, names=()) for batch in batches(Squares(11), 4)])
    for work in source(model, stages_of(model)[0], loader).load(loader.draw()):
        assert work.batch.boxes is None and work.batch.names == ()


def test_unknown_and_absent_concepts_are_masked_out(source):
    model = tiny_model()
    concepts = torch.tensor([[1.0, torch.nan, 0.0], [0.0, 0.0, torch.nan], [0.5, 1.0, 0.0]])
    images = torch.randn(3, 3, 48, 64)
    loader = BatchLoader([ConceptBatch(images, concepts, torch.zeros(3, 2), ConceptBoxes.empty())])
    stage = dataclasses.replace(stages_of(model)[0], compared="present")
    (work,) = source(model, stage, loader).load(loader.draw())
    vectors, asked = work.inputs
    assert asked.tolist() == [[True, False, False], [False, False, False], [True, True, False]]
    assert vectors.shape == (3, 3, model.backbone.out_channels)


def test_stage_that_compares_the_known_sees_absent_concepts(source):
    model = tiny_model()
    concepts = torch.tensor([[1.0, torch.nan, 0.0], [0.0, 0.0, torch.nan]])
    loader = BatchLoader([ConceptBatch(torch.randn(2, 3, 48, 64), concepts, torch.zeros(2, 2))])
    stage = dataclasses.replace(stages_of(model)[0], compared="known")
    (work,) = source(model, stage, loader).load(loader.draw())
    assert work.inputs[1].tolist() == [[True, False, True], [True, True, False]]


@pytest.mark.parametrize("cache", ["off", "auto"])
def test_each_epoch_has_the_samples_in_the_loaders_order(cache):
    seen = []

    def recording(model):
        row = dataclasses.replace(stages_of(model)[0], epochs=3)

        def loss_fn(output, batch):
            if model.training:
                seen.append(batch.names)
            return row.loss_fn(output, batch)

        return [dataclasses.replace(row, loss_fn=loss_fn)]

    train = DataLoader(Squares(21), 8, shuffle=True, collate_fn=collate, generator=torch.Generator().manual_seed(5))
    fit(cache, (train, batches(Squares(12, 1))), with_stages=recording)
    train.generator.manual_seed(5)
    expected = [tuple(f"square-{i}" for i in batch) for _ in range(3) for batch in train.batch_sampler]
    assert seen == expected


def test_a_pass_leaves_random_states_and_the_model_as_they_were(source):
    model = tiny_model().train()
    model.projector.eval()
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    modes, values = [module.training for module in model.modules()], weights(model)
    loader = BatchLoader(Squares(11).dataloader(4))
    order = loader.draw(seed=0)
    list(source(model, stages_of(model)[0], loader).load(order))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


def test_sampler_that_leaves_out_and_repeats_samples_shows_each_once(source):
    model = tiny_model()
    counts = shown(model)
    data = Squares(30)
    sampler = WeightedRandomSampler([1.0] * 6 + [0.0] * 24, 12)
    loader = BatchLoader(DataLoader(data, 4, sampler=sampler, collate_fn=collate))
    rows = source(model, stages_of(model)[0], loader)
    for _ in range(20):
        assert sum(len(work.batch.concepts) for work in rows.load(loader.draw())) == 12
    assert sum(counts) <= 6 * 4  # at most six samples, each perhaps in a batch of its own


def test_epoch_can_begin_in_its_middle(source):
    model = tiny_model()
    loader = BatchLoader(Squares(11).dataloader(4, shuffle=True))
    order = loader.draw()
    for storage in ("off", "memory"):
        rows = source(model, stages_of(model)[0], loader, storage)
        late = [work.inputs[0] for work in rows.load(order, 1)]
        assert len(late) == 2
        for one, other in zip(late, [work.inputs[0] for work in rows.load(order)][1:], strict=True):
            assert torch.equal(one, other)


def test_sampler_that_names_samples_by_tensors_is_read_anew(source, caplog):
    model = tiny_model()
    sampler = [[torch.tensor(0), torch.tensor(1)]]
    loader = BatchLoader(DataLoader(Plain(list(Squares(4))), batch_sampler=sampler, collate_fn=collate))
    (work,) = source(model, stages_of(model)[0], loader).load(loader.draw())
    assert len(work.batch.concepts) == 2
    assert "names samples by a Tensor" in caplog.text


def test_rounded_storage_is_rounded_and_said(caplog, source):
    caplog.set_level(logging.INFO)
    model = tiny_model()
    loader = BatchLoader(batches(Squares(11), 4))
    exact = list(source(model, stages_of(model)[0], loader).load(loader.draw()))
    rounded = list(source(model, stages_of(model)[0], loader, dtype=torch.bfloat16).load(loader.draw()))
    for one, other in zip(exact, rounded, strict=True):
        assert other.inputs[0].dtype == torch.float32
        assert torch.equal(one.inputs[0].bfloat16().float(), other.inputs[0])
    assert "MB of torch.bfloat16" in caplog.text


def test_parts_that_draw_random_numbers_while_training_are_still():
    """A frozen part without parameters is in training mode, for all that its stage knows."""

    def run(cache):
        model = tiny_model()
        model.pool = torch.nn.Sequential(torch.nn.Dropout(0.9), model.pool)
        records = Trainer(seed=0, feature_cache=cache).fit(model, stages_of(model), *loaders())
        return records, weights(model)

    assert same(run("off"), run("memory"))


def test_custom_objective_sees_the_same_with_and_without_the_cache():
    def with_boxes(model):
        (row,) = stages_of(model)[:1]

        def loss_fn(output: PrototypePart, batch: ConceptBatch):
            return output.vector_similarity.square().mean() * (1 + len(batch.boxes)) + 0 * batch.images.sum()

        return [dataclasses.replace(row, loss_fn=loss_fn)]

    assert same(fit("off", with_stages=with_boxes), fit("memory", with_stages=with_boxes))


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"feature_cache": "ram"}, "unknown `feature_cache` 'ram'"),
        ({"feature_cache_dtype": torch.int8}, "stored as a floating-point type, not torch.int8"),
    ],
)
def test_unknown_options_are_refused_when_the_trainer_is_made(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Trainer(**options)


def test_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        FeatureCache("disk", folder=tmp_path / "none")


def test_everything_is_freed_also_after_an_error():
    kept = FeatureCache("disk")
    model = tiny_model()
    loader = BatchLoader(batches(Squares(11), 4))
    with pytest.raises(KeyboardInterrupt), kept:
        list(kept.source(model, stages_of(model)[0], loader, later=stages_of(model)[1:]).load(loader.draw()))
        assert kept.budget.used > 0
        raise KeyboardInterrupt
    assert kept.budget.used == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_nothing_is_left_on_disk_by_a_training_that_is_killed(tmp_path):
    code = """
        import os, signal, torch
        from pathlib import Path
        from conceptcam.training.trainer import Trainer
        from tests.training.test_feature_cache import loaders, stages_of, tiny_model
        torch.set_num_threads(1)
        model = tiny_model()
        def die(model, record):
            files = [os.readlink(one) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
            print(sum(os.environ["TMPDIR"] in file for file in files), record.cached, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        Trainer(seed=0, feature_cache="disk", callbacks=[die]).fit(model, stages_of(model), *loaders())
    """
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "4 True\n", done.stderr  # rows and features, of training and validation
    # torch 2.8 itself makes a folder there, with a module.
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".py"] == []


TWO = """
import logging, os, sys, torch
torch.set_num_threads(1)
from tests.training.test_feature_cache import fit
results = {cache: fit(cache) for cache in ("off", "memory", "disk")}
results["no features"] = fit("memory", trainer={"feature_cache_limit": 0.0001})
results["no room"] = fit("memory", trainer={"feature_cache_limit": 1e-7})
torch.save({name: ([tuple(record) for record in records], values) for name, (records, values) in results.items()},
           f"{sys.argv[1]}/{os.environ['RANK']}.pt")
"""


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """What each of two processes came to, with and without the cache."""
    folder = tmp_path_factory.mktemp("two")
    torchrun(TWO, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def of_process(results, name):
    records, values = results[name]
    return [EpochResult(*record) for record in records], values


@pytest.mark.parametrize("name", ["memory", "disk", "no features", "no room"])
def test_the_cache_changes_no_bit_of_two_processes(of_two, name):
    for results in of_two:
        assert same(of_process(results, name), of_process(results, "off"))
        assert {record.cached for record in of_process(results, name)[0]} == {name != "no room"}


def test_two_processes_go_on_from_frozen_outputs_as_one_does(of_two):
    records, values = of_process(of_two[1], "memory")
    expected, alone = fit("memory")
    for name, value in alone.items():
        torch.testing.assert_close(values[name], value, rtol=0, atol=1e-5)
    for one, other in zip(records, expected, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=1e-5)
        assert one.score == pytest.approx(other.score, abs=1e-5, nan_ok=True)
