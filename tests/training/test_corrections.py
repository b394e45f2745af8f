import dataclasses
import math

import pytest
import torch

from conceptcam.analysis.fitting import fit_thresholds
from conceptcam.analysis.intervention import typical_evidence
from conceptcam.data.batch import ConceptBatch
from conceptcam.losses.classification import multilabel_loss
from conceptcam.model.corrections import (
    PROBABILITIES,
    TypicalEvidence,
    correct_evidence,
    corrected_copies,
    mix_corrections,
    typical_evidence_of,
)
from conceptcam.model.linear_solver import LinearSolver
from conceptcam.runs.options import RunOptions, make_plan
from conceptcam.training.batches import EpochPlan
from conceptcam.training.inputs import CorrectedInputs, StepInput
from conceptcam.training.passes import collect_typical
from conceptcam.training.presets import get_preset
from conceptcam.training.stages import concept_stage, task_stage
from conceptcam.training.trainer import Trainer
from tests.worlds import Squares, batches, tiny_config, tiny_model

TRAIN, VAL = batches(Squares(48, 0), 16), batches(Squares(24, 1), 16)


def world(images=60, seed=0):
    """Evidence of two concepts with two prototypes, of which the first is seen well and the second badly."""
    draw = torch.Generator().manual_seed(seed)
    labels = (torch.rand(images, 2, generator=draw) < 0.5).float()
    noise = torch.randn(images, 2, 2, generator=draw)
    return labels[..., None] + noise * torch.tensor([0.1, 1.5])[:, None], labels


def test_typical_evidence_is_the_median_of_each_side():
    evidence, labels = world()
    labels[:5, 0] = math.nan
    typical = typical_evidence_of(evidence, labels)
    for k in range(2):
        for m in range(2):
            for side, values in ((1, typical.present), (0, typical.absent)):
                own = evidence[labels[:, k] == side, k, m].double()
                assert values[k, m] == pytest.approx(own.median().item())


def test_corrected_evidence_equals_a_loop_over_rows():
    evidence, labels = world(6)
    labels[0, 0], labels[1, 1] = math.nan, 0.25
    typical = TypicalEvidence(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]]))
    found = correct_evidence(evidence, labels, typical)
    for row in range(6):
        for k in range(2):
            true = labels[row, k]
            expected = evidence[row, k] if true.isnan() else true * typical.present[k] + (1 - true) * typical.absent[k]
            torch.testing.assert_close(found[row, k], expected)


def test_presence_can_be_told_where_nobody_knows_absence():
    typical = TypicalEvidence(torch.full((1, 2), 0.9), torch.full((1, 2), torch.nan))
    evidence, labels = torch.full((3, 1, 2), 0.4), torch.tensor([[1.0], [torch.nan], [0.0]])
    told = correct_evidence(evidence, labels, typical)
    assert (told[0] == 0.9).all() and (told[1] == 0.4).all() and told[2].isnan().all()


def test_copies_have_none_about_half_and_all_corrected():
    evidence, labels = world(400)
    hard = correct_evidence(evidence, labels, typical_evidence_of(evidence, labels))
    plain, half, full = corrected_copies(evidence, labels).split(400)
    assert torch.equal(plain, evidence) and torch.equal(full, hard)
    corrected = (half == hard).all(dim=-1)
    assert torch.equal(half[~corrected], evidence[~corrected])
    assert corrected.float().mean() == pytest.approx(PROBABILITIES[1], abs=0.05)
    assert 0 < (corrected.sum(dim=1) == 1).float().mean() < 1  # drawn for each concept, not for each row


def test_a_concept_without_positives_stays_as_it_is():
    evidence, labels = world()
    labels[:, 1] = 0
    typical = typical_evidence_of(evidence, labels)
    labels[0, 1] = 1
    everything = torch.ones(len(labels), 1)
    mixed = mix_corrections(evidence, labels, typical, everything, torch.Generator().manual_seed(0))
    assert mixed.isfinite().all()
    assert torch.equal(mixed[0, 1], evidence[0, 1])


def test_a_solved_head_equals_the_solver_on_corrected_copies():
    model, solver = tiny_model(), LinearSolver(l2=0.01)
    stage = task_stage(model.config, lr={"task_head": 1.0}, solver=solver, corrections=True)
    Trainer(seed=0).fit(model, [stage], TRAIN, VAL)
    with torch.no_grad():
        evidence = torch.cat([model(batch.images).evidence for batch in TRAIN])
    labels, targets = (torch.cat([getattr(batch, name) for batch in TRAIN]) for name in ("concepts", "targets"))
    weight, bias = solver.solve(corrected_copies(evidence, labels), targets.repeat(3, 1), multilabel_loss)
    torch.testing.assert_close(model.task_head.weight.detach(), weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model.task_head.bias.detach(), bias, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bottleneck", ["prototypes", "concepts"])
@pytest.mark.parametrize("solver", [LinearSolver(l2=0.01), None])
def test_words_mean_the_evidence_that_taught_the_head(solver, bottleneck, tmp_path):
    model = tiny_model(bottleneck=bottleneck)
    model.record = model.record.after("concepts", ["backbone"]).after("prototypes", ["prototypes"])
    stage = task_stage(model.config, lr={"task_head": 1.0}, solver=solver, corrections=True, epochs=1)
    Trainer(seed=0).fit(model, [stage], TRAIN, VAL)
    fit_thresholds(model, VAL, thresholds_source="others")  # leaves them alone
    with torch.no_grad():
        evidence = torch.cat([model(batch.images).evidence for batch in TRAIN])
    expected = typical_evidence_of(evidence, torch.cat([batch.concepts for batch in TRAIN]))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    for word, values in zip(("present", "absent"), expected, strict=True):
        torch.testing.assert_close(
            typical_evidence(loaded.config, loaded.record, word), values.float(), atol=1e-5, rtol=0
        )
    assert loaded.record.evidence_source == "the training images, as the task head was taught"
    assert loaded.record.without(["task_head"]).evidence_source == ""


def test_a_head_taught_without_corrections_takes_validation_scores():
    model = tiny_model()
    model.record = model.record.after("concepts", ["backbone"]).after("prototypes", ["prototypes"])
    stage = task_stage(model.config, lr={"task_head": 1.0}, solver=LinearSolver(l2=0.01))
    Trainer(seed=0).fit(model, [stage], TRAIN, VAL)
    assert model.record.evidence_source == "" and model.record.evidence_present == {}
    fit_thresholds(model, VAL, thresholds_source="others")
    with torch.no_grad():
        evidence = torch.cat([model(batch.images).evidence for batch in VAL])
    expected = typical_evidence_of(evidence, torch.cat([batch.concepts for batch in VAL])).present
    found = typical_evidence(model.config, model.record, "present")
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bottleneck", ["prototypes", "concepts"])
def test_a_head_taught_anew_without_corrections_forgets_them(bottleneck):
    model = tiny_model(bottleneck=bottleneck)
    model.record = model.record.after("concepts", ["backbone"]).after("prototypes", ["prototypes"])
    for corrections in (True, False):
        stage = task_stage(model.config, lr={"task_head": 1.0}, solver=LinearSolver(l2=0.01), corrections=corrections)
        Trainer(seed=0).fit(model, [stage], TRAIN, VAL)
    fit_thresholds(model, VAL, thresholds_source="others")
    with torch.no_grad():
        evidence = torch.cat([model(batch.images).evidence for batch in VAL])
    expected = typical_evidence_of(evidence, torch.cat([batch.concepts for batch in VAL]))
    for word, values in zip(("present", "absent"), expected, strict=True):
        found = typical_evidence(model.config, model.record, word)
        torch.testing.assert_close(found, values.float(), atol=1e-5, rtol=0)


def test_copies_of_an_image_are_held_out_together():
    evidence, labels = world(30, seed=3)
    targets = torch.randint(0, 2, (30, 1), generator=torch.Generator().manual_seed(5)).float()  # nothing to learn
    copies, rows = evidence.repeat(3, 1, 1), targets.repeat(3, 1)
    together = LinearSolver(l2=None).with_best_l2(copies, rows, multilabel_loss, groups=list(range(30)) * 3)
    assert together.l2 == 1.0
    seen = []

    def loss(logits, truth):
        if torch.is_grad_enabled():
            seen.append(truth.isnan()[:, 0])
        return multilabel_loss(logits, truth)

    LinearSolver(l2=None, steps=1).with_best_l2(copies, rows, loss, groups=list(range(30)) * 3)
    assert all(torch.equal(one[:30], one[30:60]) and torch.equal(one[:30], one[60:]) for one in seen)


def test_a_head_taught_corrections_gains_more_from_them():
    # The task is the concept that is seen badly, and one that is seen well goes along with it.
    (evidence, labels), draw = world(600), torch.Generator().manual_seed(9)
    labels[:, 0] = torch.where(torch.rand(600, generator=draw) < 0.8, labels[:, 1], 1 - labels[:, 1])
    evidence[:, 0] = labels[:, :1] + 0.1 * torch.randn(600, 2, generator=draw)
    targets, found = labels[:, 1:], {}
    corrected = correct_evidence(evidence, labels, typical_evidence_of(evidence, labels))
    for name, rows in (("plain", evidence), ("taught", corrected_copies(evidence, labels))):
        copies = targets.repeat(len(rows) // 600, 1)
        weight, bias = LinearSolver(l2=1e-3).solve(rows, copies, multilabel_loss)
        logits = corrected.flatten(1) @ weight.flatten(1).T + bias
        found[name] = multilabel_loss(logits, targets).item()
    assert found["taught"] < 0.8 * found["plain"]


def test_each_row_of_a_batch_is_as_it_was_or_corrected():
    evidence, labels = world(300)
    batch = ConceptBatch(evidence.new_empty(300, 0), labels, labels)

    class Whole:
        forward, cached, divided = None, True, False

        def load(self, plan, start=0):
            return iter([StepInput((evidence, labels > 0), batch, None)] * 2)

    inputs = CorrectedInputs(Whole(), collect_typical(Whole(), EpochPlan(None, 0)))
    first, second = (one.inputs[0] for one in inputs.load(EpochPlan(None, 7)))
    assert not torch.equal(first, second)
    assert torch.equal(first, next(inputs.load(EpochPlan(None, 7))).inputs[0])
    hard = correct_evidence(evidence, labels, typical_evidence_of(evidence, labels))
    count = (first == hard).all(dim=-1).sum(dim=1).double()
    assert torch.equal(torch.where(first == hard, hard, evidence), first)
    # A third none, a third all, a third half of two: none 1/3 + 1/12, all the same.
    assert [(count == number).double().mean() for number in (0, 1, 2)] == pytest.approx(
        [5 / 12, 1 / 6, 5 / 12], abs=0.08
    )


def test_resumed_and_repeated_training_corrects_the_same(tmp_path):
    def train(**options):
        model = tiny_model()
        stage = task_stage(model.config, lr={"task_head": 0.1}, epochs=2, corrections=True)
        Trainer(seed=0, **options).fit(model, [stage], TRAIN, VAL)
        return model.task_head.weight.detach()

    assert torch.equal(train(), train())
    assert torch.equal(train(), train(feature_cache="off"))


def test_recommended_alone_teaches_corrections_by_default():
    for name in ("recommended", "original", "paper"):
        rows = get_preset(name).stages(tiny_config())
        assert [stage.name for stage in rows if stage.corrections] == (["task"] if name == "recommended" else [])
    without = make_plan(RunOptions(corrections=False), tiny_config(), Squares(8, 0)).stages
    assert not any(stage.corrections for stage in without)


def test_corrections_are_refused_where_the_front_learns():
    lr = {"task_head": 0.1, "backbone": 0.1}
    with pytest.raises(ValueError, match="must teach the task head alone, with `TASK_FORWARD`; it teaches"):
        task_stage(tiny_config(), lr=lr, corrections=True)
    stage = concept_stage(torch.nn.Identity(), lr={"concept_head": 0.1})
    with pytest.raises(ValueError, match="stage 'concepts' has `corrections`"):
        dataclasses.replace(stage, corrections=True)
