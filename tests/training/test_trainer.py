import contextlib
import dataclasses
import itertools
import logging
import os
import random
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from conceptcam.data.batch import as_batch, collate
from conceptcam.training.presets import get_preset
from conceptcam.training.trainer import Trainer
from tests.worlds import Squares, batches, tiny_config, tiny_model, weights


def stages_of(model, epochs=2, **changes):
    names = {"concepts": epochs, "prototypes": epochs, "task": epochs}
    return [dataclasses.replace(s, **changes) for s in get_preset().stages(model.config, epochs=names)]


TRAIN, VAL = batches(Squares(32, 0)), batches(Squares(16, 1))


def test_three_stages_learn_concepts_places_and_tasks():
    model = tiny_model()
    train, val = batches(Squares(160, 0), 16), batches(Squares(48, 1), 16)
    names = {"concepts": 6, "prototypes": 3, "task": 40}
    records = Trainer(seed=0).fit(model, get_preset().stages(model.config, epochs=names), train, val)
    best = {record.stage: record.score for record in records if record.best}
    assert best["concepts"] > 0.95
    assert best["prototypes"] > 0.9
    assert best["task"] > 0.9
    assert model.record.stages == ("concepts", "prototypes", "task")
    assert not model.training


@pytest.mark.parametrize("row", [0, 1, 2, 3])
def test_frozen_parts_are_still_to_the_bit(row):
    """PEERS F12: batch norm of a frozen backbone moved in stages 2 and 3."""
    model = tiny_model()
    stage = stages_of(model)[row]
    before = weights(model)
    Trainer(seed=0).fit(model, [stage], TRAIN, VAL)
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    placed = {"prototypes"} if stage.on_start is not None else set()  # where they stay while the stage learns
    assert moved <= set(stage.parts) | placed


def test_fully_frozen_backbone_is_still_in_stage_1_too():
    model = tiny_model()
    before = weights(model)
    stage = get_preset().stages(model.config, epochs={"concepts": 1}, freeze_backbone=True)[0]
    Trainer(seed=0).fit(model, [stage], TRAIN, VAL)
    changed = [n for n, v in model.state_dict().items() if not torch.equal(v, before[n])]
    assert all(name.startswith("concept_head") for name in changed)
    assert changed


def test_each_stage_ends_with_its_own_best_epoch():
    """PEERS F13: one best score for all stages kept the last one from ever being saved."""
    model = tiny_model()
    trainer = Trainer(seed=0)
    for stage in stages_of(model, epochs=3):
        records = trainer.fit(model, [stage], TRAIN, VAL)
        best = max(record.score for record in records)
        _, score = trainer.validate(model, stage, VAL)
        assert score == pytest.approx(best)
        assert [record.best for record in records][0]


def test_the_same_seed_gives_the_same_weights():
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    runs = []
    for _ in range(2):
        torch.rand(3)
        model = tiny_model()
        before = torch.get_rng_state()
        Trainer(seed=3).fit(model, stages_of(model, epochs=1)[:1], Squares(16).dataloader(4, shuffle=True), VAL)
        assert torch.equal(torch.get_rng_state(), before)
        runs.append(weights(model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


def test_users_own_requires_grad_flags_come_back():
    model = tiny_model()
    model.backbone.requires_grad_(False)
    Trainer(seed=0).fit(model, stages_of(model, epochs=1), TRAIN[:1], VAL[:1])
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert all(p.requires_grad for p in model.task_head.parameters())


def test_what_the_user_froze_stays_still():
    model = tiny_model()
    model.backbone.stem.requires_grad_(False)
    before = weights(model)
    Trainer(seed=0).fit(model, stages_of(model, epochs=1)[:1], TRAIN, VAL)
    moved = {name for name, _ in model.named_parameters() if not torch.equal(model.state_dict()[name], before[name])}
    assert not any(name.startswith("backbone.stem") for name in moved)
    assert any(name.startswith("backbone.blocks") for name in moved)


def test_stage_whose_parts_are_all_frozen_beforehand_is_refused():
    model = tiny_model()
    model.task_head.requires_grad_(False)
    with pytest.raises(ValueError, match=r"stage 'task' has nothing to learn: all of \['task_head'\] was frozen"):
        Trainer(seed=0).fit(model, stages_of(model, epochs=1)[2:], TRAIN, VAL)


def test_an_interrupted_fit_claims_nothing_of_moved_weights():
    model = tiny_model()
    stages = stages_of(model, epochs=2)
    Trainer(seed=0).fit(model, stages, TRAIN[:1], VAL[:1])
    model.record = dataclasses.replace(model.record, thresholds={"bright": 0.3}, metrics={"auroc": 0.9})

    def stop(model, record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(seed=0, callbacks=[stop]).fit(model, stages[:1], TRAIN[:1], VAL[:1])
    assert model.record.stages == ()
    assert model.record.thresholds == model.record.metrics == {}


def test_the_projector_learns_statistics_of_concept_vectors_alone():
    model = tiny_model(projector="ibn")
    Trainer(seed=0).fit(model, stages_of(model, epochs=1)[1:2], TRAIN, VAL)
    assert model.projector.blocks[0].batch_norm.num_batches_tracked == len(TRAIN)


def test_dict_batches_train_exactly_as_ours():
    dicts = [
        {
            "image": batch.images,
            "concepts": batch.concepts,
            "targets": batch.targets,
            "bboxes": [
                [
                    {"concept_idx": int(k), "x_min": x0, "y_min": y0, "x_max": x1, "y_max": y1}
                    for (x0, y0, x1, y1), k, i in zip(
                        batch.boxes.xyxy.tolist(), batch.boxes.concept, batch.boxes.image, strict=True
                    )
                    if int(i) == image
                ]
                for image in range(len(batch.images))
            ],
        }
        for batch in TRAIN[:2]
    ]
    results = []
    for given in (TRAIN[:2], dicts):
        model = tiny_model()
        Trainer(seed=0).fit(model, stages_of(model, epochs=1), given, VAL[:1])
        results.append(weights(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_dict_batch_without_boxes_or_targets_is_enough_for_concepts():
    batch = as_batch({"image": TRAIN[0].images, "concepts": TRAIN[0].concepts})
    assert batch.boxes is None
    assert batch.targets.shape == (8, 0)


def test_loss_that_is_not_finite_names_the_samples():
    broken = TRAIN[0]._replace(images=TRAIN[0].images * torch.inf)
    model = tiny_model()
    with pytest.raises(FloatingPointError, match=r"loss of stage 'concepts' is nan; its batch of 8 samples: square-0"):
        Trainer(seed=0).fit(model, stages_of(model)[:1], [broken], VAL)


@pytest.mark.parametrize("empty", ["train", "val"])
def test_no_batches_is_told_in_a_sentence(empty):
    model = tiny_model()
    given = ([], VAL) if empty == "train" else (TRAIN[:1], [])
    with pytest.raises(ValueError, match="there are no batches"):
        Trainer(seed=0).fit(model, stages_of(model)[:1], *given)


def test_with_an_undefined_score_the_lowest_loss_is_kept(caplog):
    """PEERS F13: a best epoch that was never taken kept the first, hardly trained weights."""
    model = tiny_model()
    data = Squares(64, 5)
    full = collate([data[int(i)] for i in data.concept_labels.all(dim=1).nonzero()[:, 0]])  # no concept is ever absent
    stage = stages_of(model, epochs=4)[0]
    trainer = Trainer(seed=0)
    with caplog.at_level(logging.WARNING):
        records = trainer.fit(model, [stage], TRAIN, [full])
    assert all(np.isnan(record.score) for record in records)
    lowest = min(record.val_loss for record in records)
    assert trainer.validate(model, stage, [full])[0] == pytest.approx(lowest)
    assert records[0].val_loss > lowest
    assert "its score is undefined on the validation data" in caplog.text


def test_without_known_validation_labels_the_last_epoch_is_kept(caplog):
    model = tiny_model()
    unknown = [batch._replace(concepts=torch.full_like(batch.concepts, torch.nan), boxes=None) for batch in VAL]
    kept = []
    trainer = Trainer(seed=0, callbacks=[lambda model, record: kept.append(weights(model))])
    with caplog.at_level(logging.WARNING):
        records = trainer.fit(model, stages_of(model, epochs=3)[:1], TRAIN, unknown)
    assert all(np.isnan([record.val_loss, record.score]).all() for record in records)
    assert records[-1].best
    now = weights(model)
    assert all(torch.equal(value, now[key]) for key, value in kept[-1].items())
    assert not all(torch.equal(value, now[key]) for key, value in kept[0].items())
    assert "no label it learns from is known on the validation data, so its last epoch was kept" in caplog.text


def test_a_validation_loss_that_is_not_finite_names_its_samples():
    model = tiny_model()
    broken = VAL[0]._replace(images=torch.full_like(VAL[0].images, torch.nan), names=("odd", *VAL[0].names[1:]))
    with pytest.raises(FloatingPointError, match="stage 'concepts' is nan; its batch of .* samples: odd, "):
        Trainer(seed=0).fit(model, stages_of(model)[:1], TRAIN, [broken])


class Tied(torch.nn.Module):
    """A metric that calls every epoch perfect."""

    higher_is_better = True

    def update(self, *values):
        pass

    def compute(self):
        return 1.0


def test_tied_scores_leave_the_choice_to_the_validation_loss():
    model = tiny_model()
    stage = stages_of(model, epochs=4, metric=Tied)[0]
    trainer = Trainer(seed=0)
    records = trainer.fit(model, [stage], TRAIN, VAL)
    lowest = min(record.val_loss for record in records)
    assert records[0].val_loss > lowest
    assert trainer.validate(model, stage, VAL)[0] == pytest.approx(lowest)


class Scripted(Tied):
    """Gives scores that were written down, one for each epoch."""

    def __init__(self, scores):
        super().__init__()
        self.scores = iter(scores)

    def compute(self):
        return next(self.scores)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_an_epoch_is_chosen_by_the_mean_of_its_last_scores(count):
    model, scores = tiny_model(), [0.5, 0.9, 0.4, 0.7, 0.72, 0.71, 0.6]
    scripted = Scripted(scores)
    stage = stages_of(model, epochs=len(scores), metric=lambda: scripted, score_epochs=count)[0]
    records = Trainer(seed=0).fit(model, [stage], TRAIN, VAL)
    means = []
    for epoch in range(len(scores)):
        window = scores[max(0, epoch - count + 1) : epoch + 1]
        means.append(sum(window) / len(window))
    assert max(record.epoch for record in records if record.best) == means.index(max(means)) + 1


def test_unknown_labels_train_as_if_left_out():
    unknown = [b._replace(concepts=b.concepts.clone().index_fill_(1, torch.tensor([2]), torch.nan)) for b in TRAIN]
    model = tiny_model()
    before = weights(model)
    boxless = [batch._replace(boxes=None) for batch in unknown]
    stage = dataclasses.replace(stages_of(model, epochs=1)[0], weight_decay=0.0)
    Trainer(seed=0).fit(model, [stage], boxless, VAL)
    weight, old = model.concept_head.score.weight, before["concept_head.score.weight"]
    assert torch.equal(weight[2], old[2])
    assert not torch.equal(weight[0], old[0])


def test_early_stopping_waits_for_patience():
    model = tiny_model()
    stage = stages_of(model, epochs=30, patience=2)[0]
    records = Trainer(seed=0).fit(model, [stage], TRAIN[:1], VAL[:1])
    best = max(record.epoch for record in records if record.best)
    assert len(records) == min(30, best + 2)


def test_cosine_schedule_warms_up_and_ends_near_zero():
    model = tiny_model()
    stage = stages_of(model, epochs=10, schedule="cosine")[-1]
    records = Trainer(seed=0).fit(model, [stage], TRAIN, VAL)
    rates = [record.lr for record in records]
    assert rates[0] < max(rates) == pytest.approx(stage.lr["task_head"], rel=0.1)
    assert rates[-1] < 0.1 * max(rates)
    assert rates[1:] == sorted(rates[1:], reverse=True)


def test_gap_between_losses_is_warned_of_once(caplog):
    model = tiny_model()
    wrong = [batch._replace(concepts=1 - batch.concepts, boxes=None) for batch in VAL]
    with caplog.at_level(logging.WARNING):
        records = Trainer(seed=0).fit(model, stages_of(model, epochs=5)[:1], TRAIN, wrong)
    assert records[-1].val_loss - records[-1].train_loss > 0.1
    assert caplog.text.count("may be overfitting") == 1


def test_the_gap_that_a_first_epoch_leaves_is_not_warned_of(caplog):
    model = tiny_model()
    wrong = [batch._replace(concepts=1 - batch.concepts, boxes=None) for batch in VAL]
    with caplog.at_level(logging.WARNING):
        (record,) = Trainer(seed=0).fit(model, stages_of(model, epochs=1)[:1], TRAIN * 4, wrong)
    assert record.val_loss - record.train_loss > 0.1
    assert "overfitting" not in caplog.text


def test_bf16_on_a_cpu_trains_close_to_fp32():
    losses = []
    for precision in ("fp32", "bf16"):
        model = tiny_model()
        losses.append(Trainer(seed=0, precision=precision).fit(model, stages_of(model, epochs=2)[:1], TRAIN, VAL))
        assert all(p.dtype == torch.float32 for p in model.parameters())
    assert losses[0][-1].train_loss == pytest.approx(losses[1][-1].train_loss, rel=0.05)


def test_fp16_on_a_cpu_and_unknown_precision_are_refused():
    with pytest.raises(ValueError, match="needs a GPU; use 'bf16'"):
        Trainer(precision="fp16")
    with pytest.raises(ValueError, match="unknown `precision` 'half'"):
        Trainer(precision="half")


def test_gradients_are_clipped_to_the_norm():
    model = tiny_model()
    stage = stages_of(model, epochs=1)[0]
    norms = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.linalg.vector_norm(torch.stack([g.norm() for g in grads])).item())
        return step(self, *args, **kwargs)

    torch.optim.AdamW.step = spy
    try:
        Trainer(seed=0, max_grad_norm=0.01).fit(model, [stage], TRAIN, VAL)
    finally:
        torch.optim.AdamW.step = step
    assert norms
    assert max(norms) <= 0.0101


def test_hook_sees_every_epoch_and_may_stop_training():
    seen = []

    def hook(model, record):
        seen.append((record.stage, record.epoch))
        if len(seen) == 3:
            raise KeyboardInterrupt

    model = tiny_model()
    with pytest.raises(KeyboardInterrupt):
        Trainer(seed=0, callbacks=[hook]).fit(model, stages_of(model), TRAIN[:1], VAL[:1])
    assert seen == [("concepts", 1), ("concepts", 2), ("embedding", 1)]
    assert all(p.requires_grad for p in model.parameters())


def test_teaching_a_part_again_forgets_what_rested_on_it():
    model = tiny_model()
    first, *second, third = stages_of(model, epochs=1)
    trainer = Trainer(seed=0)
    trainer.fit(model, [first, *second, third], TRAIN[:1], VAL[:1])
    model.record = dataclasses.replace(model.record, thresholds={"bright": 0.3}, metrics={"auroc": 0.9})
    trainer.fit(model, second, TRAIN[:1], VAL[:1])
    assert model.record.stages == ("concepts", "prototypes")
    assert model.record.thresholds == {"bright": 0.3}
    assert model.record.metrics == {}
    trainer.fit(model, [first], TRAIN[:1], VAL[:1])
    assert model.record.stages == ("concepts",)
    assert model.record.thresholds == {}


def test_concepts_bottleneck_trains_two_stages():
    model = tiny_model(bottleneck="concepts")
    stages = get_preset().stages(tiny_config(bottleneck="concepts"), epochs={"concepts": 2, "task": 2})
    records = Trainer(seed=0).fit(model, stages, TRAIN, VAL)
    assert {record.stage for record in records} == {"concepts", "task"}


def mean_over_images(output, batch):
    """An objective that is a mean over images, whatever is known of each."""
    return torch.nn.functional.binary_cross_entropy_with_logits(output.concept_logits, batch.concepts)


def vit_model():
    return tiny_model(backbone="timm:test_vit").double()


def doubled(given):
    return [batch._replace(images=batch.images.double(), concepts=batch.concepts.double()) for batch in given]


@pytest.mark.parametrize("sizes", [(8, 16), (5, 15)], ids=["even", "uneven at the end"])
def test_accumulating_batches_learns_as_one_batch_of_all_of_them(sizes):
    small, large = (doubled(batches(Squares(32, 0), size)) for size in sizes)
    results = []
    for given, accumulate in ((small, sizes[1] // sizes[0]), (large, 1)):
        model = vit_model()
        stage = stages_of(model, epochs=2, loss_fn=mean_over_images, schedule="cosine")[0]
        records = Trainer(seed=0, gradient_accumulation_steps=accumulate).fit(model, [stage], given, doubled(VAL))
        results.append((weights(model), [record[2:6] for record in records]))
    (first, told), (second, expected) = results
    assert max((first[name] - second[name]).abs().max() for name in first) < 1e-6
    assert np.allclose(told, expected, atol=1e-9)


class Sudden(Squares):
    """A data set that takes the process it is read in down with it."""

    def load_item(self, index):
        if index == 5:
            os._exit(3)
        return super().load_item(index)


def test_a_worker_that_dies_is_told_in_a_sentence():
    model = tiny_model()
    with pytest.raises(
        RuntimeError,
        match=r"a worker of the data loader died, .* with `num_workers=0` \(--num-workers 0\). The loader says: Dat",
    ):
        Trainer(seed=0).fit(model, stages_of(model)[:1], Sudden(8).dataloader(4, num_workers=1), VAL)


def test_an_empty_loader_is_told_before_anything_is_trained():
    model = tiny_model()
    empty = DataLoader(Squares(3), 4, drop_last=True, collate_fn=collate)
    for given, name in (((empty, VAL), "train_batches"), ((TRAIN, empty), "val_batches")):
        with pytest.raises(ValueError, match=f"there are no batches in `{name}`; is the data set smaller than one"):
            Trainer(seed=0).fit(model, stages_of(model)[:1], *given)


def test_an_iterator_that_is_used_up_is_told_in_a_sentence():
    model = tiny_model()
    stage = stages_of(model, schedule="constant")[0]
    with pytest.raises(ValueError, match="there are no batches in `train_batches`; .* or an iterator used up"):
        Trainer(seed=0).fit(model, [stage], iter(TRAIN), VAL)


def test_no_validation_data_is_told_in_a_sentence():
    model = tiny_model()
    with pytest.raises(ValueError, match="`val_batches` is None; a stage needs validation data to tell which of its"):
        Trainer(seed=0).fit(model, stages_of(model)[:1], TRAIN, None)


@pytest.mark.parametrize("given", ["list", "loader"])
def test_labels_that_no_training_sample_has_are_named(caplog, given):
    data = Squares(16)
    data.concept_labels[:, 2] = 0
    data.concept_labels[3, 2] = torch.nan
    data.task_labels[:, 1] = 0
    model = tiny_model()
    with caplog.at_level(logging.WARNING):
        train = batches(data) if given == "list" else data.dataloader(8)
        seeing, *_, deciding = stages_of(model, epochs=1)
        Trainer(seed=0).fit(model, [seeing, deciding], train, VAL)
    assert "no training sample shows the concepts ['striped']: nothing can be learned of them" in caplog.text
    assert "no training sample shows the tasks ['bright and dark']" in caplog.text


@pytest.mark.parametrize("where", ["train", "val"])
def test_batches_without_needed_targets_are_refused_at_once(where):
    model = tiny_model()
    before, bare = weights(model), [batch._replace(targets=batch.targets[:, :0]) for batch in TRAIN]
    given = (bare, VAL) if where == "train" else (TRAIN, bare)
    with pytest.raises(ValueError, match=f"stage 'task' learns .*, and `{where}_batches` have no `targets`; add them"):
        Trainer(seed=0).fit(model, stages_of(model), *given)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


@pytest.mark.filterwarnings("ignore")  # torch's own
def test_compiled_training_comes_to_the_same_losses():
    losses = []
    for backend in (False, "aot_eager"):
        model = tiny_model()
        records = Trainer(seed=0, compile=backend).fit(model, stages_of(model, epochs=1), TRAIN[:2], VAL[:1])
        losses.append([(record.train_loss, record.val_loss) for record in records])
        assert type(model) is type(tiny_model())
        assert set(weights(model)) == set(weights(tiny_model()))
    assert np.allclose(*losses, atol=1e-4)


def gradients_of(trainer, model):
    """Gradients of the first step of stage 1, before they are clipped."""
    found = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        found.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
        return step(self, *args, **kwargs)

    torch.optim.AdamW.step = spy
    try:
        trainer.fit(model, stages_of(model, epochs=1)[:1], doubled(TRAIN[:1]), doubled(VAL[:1]))
    finally:
        torch.optim.AdamW.step = step
    return found[0]


def test_gradient_checkpointing_gives_the_same_gradients(monkeypatch):
    import timm.models.vision_transformer as vit

    calls = []
    checkpoint = vit.checkpoint
    monkeypatch.setattr(vit, "checkpoint", lambda *given, **more: calls.append(1) or checkpoint(*given, **more))
    model = vit_model()
    plain = gradients_of(Trainer(seed=0), vit_model())
    assert not calls
    saving = gradients_of(Trainer(seed=0, gradient_checkpointing=True), model)
    assert calls
    assert all(torch.allclose(a, b, atol=1e-12, rtol=0) for a, b in zip(plain, saving, strict=True))
    assert model.backbone.model.grad_checkpointing is False


def test_gradient_checkpointing_leaves_what_the_user_switched_on():
    model = vit_model()
    model.backbone.model.set_grad_checkpointing(True)
    gradients_of(Trainer(seed=0, gradient_checkpointing=True), model)
    assert model.backbone.model.grad_checkpointing is True


def test_gradient_checkpointing_of_a_backbone_that_cannot_is_refused():
    model = tiny_model()
    with pytest.raises(
        ValueError, match=r"`gradient_checkpointing` \(--gradient-checkpointing\) is on, but a SmallCnn cannot"
    ):
        Trainer(seed=0, gradient_checkpointing=True).fit(model, stages_of(model), TRAIN, VAL)


def test_accumulating_nothing_is_refused():
    with pytest.raises(ValueError, match="`gradient_accumulation_steps` must be at least 1, got 0"):
        Trainer(gradient_accumulation_steps=0)


def test_loaders_do_not_differ_by_workers_or_other_randomness():
    """Augmentation is drawn from the order alone, so two ways of loading train the same model."""
    results = []
    for workers in (0, 2):
        data = Squares(16)
        data.augmentation = lambda item: item._replace(image=(item.image.float() / 255 * torch.rand(())).clamp(0, 1))
        model = tiny_model()
        loader = data.dataloader(4, shuffle=True, num_workers=workers)
        Trainer(seed=0).fit(model, stages_of(model, epochs=2)[:1], loader, VAL[:1])
        results.append(weights(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_a_device_that_is_not_there_is_one_sentence():
    model = tiny_model()
    with pytest.raises(ValueError, match="cannot use the device 'warp' here; this machine has "):
        Trainer(device="warp").fit(model, stages_of(model), TRAIN, VAL)


def test_batches_whose_labels_differ_in_number_are_refused():
    given = batches(Squares(8))
    given.append(given[0]._replace(concepts=torch.zeros(8, 2)))
    message = "batches differ in the shape of their `concepts`: .*; each label needs its column in all of them"
    with pytest.raises(ValueError, match=message):
        Trainer().fit(tiny_model(), (), given, given)


@pytest.mark.parametrize(("factor", "noticed"), [(1, False), (64, True), (1e30, True)])
def test_images_that_are_not_normalized_are_noticed(caplog, factor, noticed):
    loud = [batch._replace(images=batch.images * factor) for batch in batches(Squares(8))]
    model = tiny_model()
    stage = dataclasses.replace(get_preset().stages(model.config, epochs={"concepts": 1})[0])
    with contextlib.suppress(FloatingPointError):
        Trainer().fit(model, [stage], loud, batches(Squares(8)))
    assert ("does `model.preprocess` make them?" in caplog.text) == noticed


def test_a_clock_that_jumps_back_gives_no_negative_seconds(monkeypatch):
    clock = itertools.count(2e9, -3600)  # an hour back at each look, as when a clock is set
    monkeypatch.setattr(time, "time", lambda: next(clock))
    model = tiny_model()
    results = Trainer(seed=0).fit(model, stages_of(model)[:1], TRAIN, VAL)
    assert all(0 < result.seconds < 600 for result in results)
