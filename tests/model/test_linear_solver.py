import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from conceptcam.losses.classification import multiclass_loss, multilabel_loss
from conceptcam.model.linear_solver import L2_GRID, LinearSolver
from conceptcam.training.presets import get_preset, list_presets
from conceptcam.training.stages import prototype_stage, task_stage
from conceptcam.training.trainer import Trainer
from tests.worlds import Squares, batches, tiny_config, tiny_model, weights

K, M, T, N = 3, 2, 2, 200


def world(tasks=T, seed=0):
    random = torch.Generator().manual_seed(seed)
    evidence = torch.rand(N, K, M, generator=random, dtype=torch.float64) * torch.arange(1, 7).view(K, M)
    signal = (evidence - evidence.mean(dim=0)).flatten(1) @ torch.randn(K * M, tasks, generator=random).double()
    return evidence, (signal + torch.randn(N, tasks, generator=random) > 0).double()


def standardized(evidence):
    return ((evidence - evidence.mean(dim=0)) / evidence.std(dim=0)).flatten(1).numpy()


def logits_of(solution, evidence):
    weight, bias = solution
    return torch.einsum("nkm,tkm->nt", evidence, weight) + bias


@pytest.mark.parametrize("penalty", ["l2", "l1"])
def test_solution_is_that_of_scikit_learn(penalty):
    evidence, targets = world()
    found = logits_of(LinearSolver(**{"l2": 0.0, penalty: 0.05}).solve(evidence, targets, multilabel_loss), evidence)
    # Ours: mean loss over N and T + .05 / T * penalty; theirs, task by task: C * sum of losses + penalty (l2: half)
    chosen = {"C": 1 / (0.05 * 2 * N)} if penalty == "l2" else {"C": 1 / (0.05 * N), "l1_ratio": 1.0}
    theirs = LogisticRegression(**chosen, solver="saga", tol=1e-10, max_iter=20_000, random_state=0)
    for task in range(T):
        expected = theirs.fit(standardized(evidence), targets[:, task].numpy()).decision_function(
            standardized(evidence)
        )
        np.testing.assert_allclose(found[:, task], expected, atol=1e-5)


def test_more_evidence_than_samples_has_the_solution_of_scikit_learn():
    evidence, targets = world()
    wide = torch.cat([evidence, torch.randn(N, 300, M, dtype=torch.float64)], dim=1)[:40]
    found = logits_of(LinearSolver(l2=0.05).solve(wide, targets[:40], multilabel_loss), wide)
    theirs = LogisticRegression(C=1 / (0.05 * 2 * 40), solver="lbfgs", tol=1e-10, max_iter=20_000)
    for task in range(T):
        expected = theirs.fit(standardized(wide), targets[:40, task].numpy()).decision_function(standardized(wide))
        np.testing.assert_allclose(found[:, task], expected, atol=1e-4)


def test_non_negative_solution_is_that_of_scipy_with_bounds():
    evidence, targets = world()
    solution = LinearSolver(l2=0.01, non_negative=True).solve(evidence, targets, multilabel_loss)
    x = torch.from_numpy(standardized(evidence))

    def loss(flat):
        point = torch.tensor(flat, requires_grad=True)
        weight, bias = point[: T * K * M].view(T, -1), point[T * K * M :]
        value = multilabel_loss(x @ weight.T + bias, targets) + 0.01 * weight.square().sum() / T
        value.backward()
        return value.item(), point.grad.numpy()

    bounds = [(0, None)] * (T * K * M) + [(None, None)] * T
    best = minimize(loss, np.zeros(len(bounds)), jac=True, bounds=bounds, options={"ftol": 1e-15, "gtol": 1e-10})
    weight = torch.from_numpy(best.x[: T * K * M]).view(T, -1)
    assert (weight == 0).any()
    torch.testing.assert_close(
        logits_of(solution, evidence), x @ weight.T + torch.from_numpy(best.x[-T:]), atol=1e-5, rtol=0
    )
    assert (solution[0] >= 0).all()


def test_sparse_solution_has_weights_of_exactly_zero():
    evidence, targets = world()
    weight, _ = LinearSolver(l2=0.0, l1=0.3).solve(evidence, targets, multilabel_loss)
    assert 0 < (weight == 0).sum() < weight.numel()


@pytest.mark.parametrize("options", [{}, {"l1": 0.01}])
def test_what_is_unknown_changes_nothing(options):
    evidence, targets = world()
    targets[:50, 1] = float("nan")
    targets[:, 0] = float("nan")
    weight, bias = LinearSolver(l2=0.02, **options).solve(evidence, targets, multilabel_loss)
    assert not weight[0].any()
    assert bias[0] == 0
    assert weight[1].isfinite().all() and weight[1].any()


def test_no_step_from_a_multi_class_solution_lowers_the_loss():
    evidence, scores = world(tasks=3)
    targets = torch.nn.functional.one_hot((scores @ torch.tensor([1.0, 2.0, 0.0]).double()).long().clamp(max=2), 3)
    weight, bias = LinearSolver(l2=0.03).solve(evidence, targets, multiclass_loss)
    scale = evidence.std(dim=0)
    weight.requires_grad_(), bias.requires_grad_()
    value = multiclass_loss(logits_of((weight, bias), evidence), targets.double())
    value = value + 0.03 * (weight * scale).square().sum() / 3
    for slope in torch.autograd.grad(value, (weight, bias)):
        torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-6, rtol=0)


def test_concept_dropout_spreads_weight_over_equal_concepts():
    evidence, targets = world()
    evidence[:, 1] = evidence[:, 0] + 0.3 * torch.randn(N, M, generator=torch.Generator().manual_seed(1)).double()
    before = torch.get_rng_state()
    plain, dropped = (
        LinearSolver(l2=1e-3, concept_dropout=rate).solve(
            evidence, (evidence[:, 0].sum(dim=1) > 1.5)[:, None], multilabel_loss
        )[0]
        * evidence.std(dim=0)
        for rate in (0.0, 0.5)
    )
    share = [float(one[:, 1].abs().sum() / one[:, :2].abs().sum()) for one in (plain, dropped)]
    assert share[1] > share[0] + 0.1
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "options, message",
    [({"l2": -1.0}, "`l2` and `l1` must be"), ({"concept_dropout": 1.0}, "in .0, 1."), ({"steps": 0}, "at least 1")],
)
def test_a_solver_that_cannot_solve_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LinearSolver(**options)


TRAIN, VAL = batches(Squares(20), 8), batches(Squares(12, seed=1), 8)


def solved(**options):
    model = tiny_model()
    resume = options.pop("resume", False)
    stage = task_stage(model.config, lr={"task_head": 1.0}, solver=LinearSolver(l2=0.01, concept_dropout=0.1))
    return model, Trainer(seed=0, **options).fit(model, [stage], TRAIN, VAL, resume=resume)


def test_a_solved_stage_gives_one_result_and_moves_the_head_alone():
    model, (record,) = solved()
    before = weights(tiny_model())
    assert {name for name, value in weights(model).items() if not torch.equal(value, before[name])} == {
        "task_head.weight", "task_head.bias"
    }  # fmt: skip
    assert (record.epoch, record.lr, record.best, model.record.stages) == (1, 0.0, True, ("task",))
    with torch.no_grad():
        for loss, data in ((record.train_loss, TRAIN), (record.val_loss, VAL)):
            each = [(multilabel_loss(model(b.images).task_logits, b.targets), len(b.targets)) for b in data]
            mean = sum(float(value) * count for value, count in each) / sum(count for _, count in each)
            assert loss == pytest.approx(mean, abs=1e-5)


def test_a_solved_stage_has_the_weights_that_its_evidence_leads_to():
    model, _ = solved()
    with torch.no_grad():
        evidence = torch.cat([model(batch.images).evidence for batch in TRAIN])
    solver = LinearSolver(l2=0.01, concept_dropout=0.1)
    weight, bias = solver.solve(evidence, torch.cat([batch.targets for batch in TRAIN]), multilabel_loss)
    torch.testing.assert_close(model.task_head.weight.detach(), weight, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(model.task_head.bias.detach(), bias, atol=1e-3, rtol=1e-3)


def test_a_solved_stage_is_the_same_uncached_and_after_a_resume(tmp_path):
    model, records = solved(checkpoint_dir=tmp_path)
    again, told = solved(checkpoint_dir=tmp_path, resume=True)
    bare, _ = solved(feature_cache="off")
    assert told == records
    for other in (again, bare):
        assert all(torch.equal(value, weights(other)[name]) for name, value in weights(model).items())


def test_solver_ends_every_preset_with_one_solved_stage():
    for name in list_presets():
        config = get_preset(name).apply_to(tiny_config())
        solver = LinearSolver(l1=0.1)
        *_, third = get_preset(name).stages(config, epochs={"concepts": 3}, task_solver=solver)
        assert (third.name, third.solver, third.epochs) == ("task", solver, 1)


def test_solver_refuses_epochs_of_the_stage_it_solves():
    with pytest.raises(ValueError, match="with a `task_solver`, stage 'task' has no epochs to choose"):
        get_preset().stages(tiny_config(), epochs={"task": 4}, task_solver=LinearSolver())


def test_a_stage_that_cannot_be_solved_is_refused():
    with pytest.raises(ValueError, match="LinearSolver, so it must be one epoch of .'task_head'. alone.* 3 epochs"):
        task_stage(tiny_config(), lr={"task_head": 1.0}, solver=LinearSolver(), epochs=3)
    with pytest.raises(ValueError, match="it teaches .'projector'."):
        prototype_stage(lambda similarity, labels: similarity.sum(), lr={"projector": 1.0}, solver=LinearSolver())


def test_cross_validation_penalizes_noise_more_than_what_is_true():
    torch.manual_seed(0)
    truth = torch.randn(60, 1)
    targets = (truth > 0).float()
    useful = torch.cat([truth, truth + 0.1 * torch.randn(60, 1)], dim=1)[..., None]
    noise = torch.randn(60, 40, 1)

    def chosen(evidence):
        return LinearSolver(l2=None).with_best_l2(evidence, targets, multilabel_loss).l2

    assert chosen(useful) == min(L2_GRID) < chosen(noise)


def test_a_cross_validated_penalty_is_of_the_grid_and_repeats():
    evidence, targets = torch.randn(40, 3, 2), (torch.rand(40, 2) < 0.5).float()
    targets[3] = torch.nan
    weight, bias = LinearSolver(l2=None).solve(evidence, targets, multilabel_loss)
    solved = [LinearSolver(l2=l2).solve(evidence, targets, multilabel_loss)[0] for l2 in L2_GRID]
    assert any(torch.equal(weight, one) for one in solved)
    again = LinearSolver(l2=None).solve(evidence, targets, multilabel_loss)
    assert torch.equal(weight, again[0]) and torch.equal(bias, again[1])


@pytest.mark.parametrize("count, l2", [(5, 0.1), (6000, min(L2_GRID))])
def test_too_few_or_too_many_samples_need_no_folds(count, l2):
    evidence, targets = torch.randn(count, 2, 1), (torch.rand(count, 1) < 0.5).float()
    torch.testing.assert_close(
        LinearSolver(l2=None).solve(evidence, targets, multilabel_loss),
        LinearSolver(l2=l2).solve(evidence, targets, multilabel_loss),
    )
