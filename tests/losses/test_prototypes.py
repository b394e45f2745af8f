import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conceptcam.losses.prototypes import (
    PrototypeContrastiveLoss,
    prototype_contrastive_loss,
    prototype_presence_loss,
)

nan = torch.nan
FORMS = ("nearest", "infonce", "supcon", "softtriple")
each_form = pytest.mark.parametrize("form", FORMS)
SIGNS = {"softtriple": -1, "paper": 1, "numerator": 0}


def example(seed: int = 0, *, images: int = 4, concepts: int = 3, prototypes: int = 2) -> tuple[Tensor, Tensor]:
    """Cosines of vectors with prototypes, and labels of which some are soft and some unknown."""
    random = torch.Generator().manual_seed(seed)
    cosines = 2 * torch.rand(images, concepts, concepts, prototypes, generator=random, dtype=torch.float64) - 1
    labels = torch.randint(0, 3, (images, concepts), generator=random).double() / 2
    labels[0, 0], labels[1, -1] = nan, 1.0
    return cosines, labels


def cosines_to(own: list[float], others: list[list[float]]) -> Tensor:
    """(1, K, K, M) for the vector of concept 0; other concepts' vectors are not asked for."""
    rows = torch.tensor([own, *others], dtype=torch.float64)
    return rows.expand(1, len(rows), *rows.shape).clone()


def present(concepts: int) -> Tensor:
    return torch.tensor([[1.0] + [0.0] * (concepts - 1)])


def slow_term(
    row: list[list[float]], own: int, form: str, temperature: float, gamma: float, margin: float, sign: str
) -> float:
    """The loss of one vector, by its definition; row[j][m] is its cosine with prototype m of concept j."""
    if form == "softtriple":
        concepts = []
        for cosines in row:
            mass = [math.exp(gamma * cosine) for cosine in cosines]
            concepts.append(sum(w * cosine for w, cosine in zip(mass, cosines, strict=True)) / sum(mass))
        shifts = [SIGNS[sign] * margin if j == own else 0.0 for j in range(len(row))]
        below = sum(math.exp((value + shift) / temperature) for value, shift in zip(concepts, shifts, strict=True))
        above = concepts[own] + (margin if sign == "numerator" else shifts[own])
        return -math.log(math.exp(above / temperature) / below)
    mass = [[math.exp(cosine / temperature) for cosine in cosines] for cosines in row]
    everything = sum(map(sum, mass))
    if form == "nearest":
        return -math.log(sum(mass[own]) / everything)
    rest = everything if form == "supcon" else everything - sum(mass[own])
    terms = [-math.log(one / (rest if form == "supcon" else one + rest)) for one in mass[own]]
    return sum(terms) / len(terms)


@each_form
@pytest.mark.parametrize("prototypes", [1, 3])
@pytest.mark.parametrize("sign", SIGNS)
def test_every_variant_equals_a_slow_loop_for_any_labels(form, prototypes, sign):
    for seed in range(3):
        cosines, labels = example(seed, prototypes=prototypes)
        options = {"temperature": 0.3, "gamma": 4.0, "margin": 0.2}
        total = weight = 0.0
        for image in range(len(labels)):
            for concept in range(labels.shape[1]):
                label = labels[image, concept].item()
                if not math.isnan(label):
                    row = cosines[image, concept].tolist()
                    total += label * slow_term(row, concept, form, sign=sign, **options)
                    weight += label
        loss = prototype_contrastive_loss(cosines, labels, variant=form, margin_sign=sign, **options)
        assert loss.item() == pytest.approx(total / weight)


def test_infonce_gives_the_golden_number():
    loss = prototype_contrastive_loss(cosines_to([1.0], [[0.0]]), present(2), variant="infonce", temperature=0.1)
    assert loss.item() == pytest.approx(4.53989e-5, rel=1e-5)


def test_softtriple_gives_the_golden_number():
    loss = prototype_contrastive_loss(
        cosines_to([1.0], [[0.0]]), present(2), variant="softtriple", temperature=1 / 20, margin=0.1
    )
    assert loss.item() == pytest.approx(1.5230e-8, rel=1e-4)


@pytest.mark.parametrize("prototypes", [1, 2, 5])
def test_supcon_never_falls_below_log_m_and_the_others_do(prototypes):
    perfect = cosines_to([1.0] * prototypes, [[-1.0] * prototypes])
    losses = {
        form: prototype_contrastive_loss(perfect, present(2), variant=form, temperature=0.01).item() for form in FORMS
    }
    assert losses.pop("supcon") == pytest.approx(math.log(prototypes), abs=1e-6)
    assert max(losses.values()) < 1e-6


def test_softtriple_of_one_prototype_is_margin_cross_entropy():
    cosines, _ = example(concepts=4, prototypes=1)
    labels = torch.ones(4, 4)
    logits = 20 * (cosines.squeeze(-1) - 0.1 * torch.eye(4))
    truth = torch.arange(4).expand(4, 4)
    expected = F.cross_entropy(logits.flatten(0, 1), truth.flatten())
    loss = prototype_contrastive_loss(cosines, labels, variant="softtriple", temperature=1 / 20, margin=0.1)
    torch.testing.assert_close(loss, expected)


def test_softtriple_margin_is_harder_and_the_papers_sign_easier():
    cosines, labels = example()
    losses = {
        sign: prototype_contrastive_loss(cosines, labels, variant="softtriple", margin=margin, margin_sign=sign).item()
        for sign, margin in (("softtriple", 0.1), ("paper", 0.1), ("numerator", 0.0))
    }
    assert losses["paper"] < losses["numerator"] < losses["softtriple"]


def test_a_margin_in_the_numerator_alone_only_shifts_the_loss():
    cosines, labels = example()
    cosines.requires_grad_()
    losses, gradients = [], []
    for margin in (0.0, 0.1, 0.7):
        loss = prototype_contrastive_loss(
            cosines, labels, variant="softtriple", margin=margin, margin_sign="numerator", temperature=0.05
        )
        losses.append(loss.item())
        gradients.append(torch.autograd.grad(loss, cosines)[0])
    torch.testing.assert_close(gradients[1:], gradients[:1] * 2)
    assert losses[1] == pytest.approx(losses[0] - 2) and losses[2] == pytest.approx(losses[0] - 14)


def pulls(form: str, own: list[float]) -> list[float]:
    """How hard each own prototype is pulled to a vector that has these cosines with them."""
    cosines = cosines_to(own, [[-0.5] * len(own)]).requires_grad_()
    prototype_contrastive_loss(cosines, present(2), variant=form, temperature=0.1).backward()
    assert cosines.grad is not None
    return (-cosines.grad[0, 0, 0]).tolist()


def test_infonce_pulls_all_own_prototypes_and_nearest_does_not():
    near, far = pulls("infonce", [-0.2, -0.6])
    assert far > near > 0, "infonce pulls the far one too, even harder"
    near, far = pulls("nearest", [-0.2, -0.6])
    assert near > 10 * far > 0


def test_nearest_keeps_apart_two_kinds_that_others_merge():
    """Two kinds of one concept with another concept between them: the prototypes of a good loss end up one on each."""

    def cosine_after_training(form: str) -> float:
        random = torch.Generator().manual_seed(0)
        kinds = F.normalize(torch.tensor([[0.5, 1.0, 0.0], [0.5, -1.0, 0.0]]), dim=-1)
        other = torch.tensor([[1.0, 0.0, 0.0]])
        vectors = F.normalize(torch.stack([torch.cat([kind[None], other]) for kind in kinds.repeat(8, 1)]), dim=-1)
        prototypes = torch.randn(2, 2, 3, generator=random).requires_grad_()
        optimizer = torch.optim.Adam([prototypes], lr=0.05)
        for _ in range(200):
            cosines = torch.einsum("bkd,jmd->bkjm", vectors, F.normalize(prototypes, dim=-1))
            loss = prototype_contrastive_loss(cosines, torch.ones(16, 2), variant=form)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return F.cosine_similarity(*prototypes[0].detach(), dim=0).item()

    assert cosine_after_training("nearest") < 0.5
    assert cosine_after_training("supcon") > 0.95
    assert cosine_after_training("infonce") > 0.95


@each_form
def test_unknown_and_absent_concepts_change_nothing(form):
    cosines, labels = example()
    kept = labels.nan_to_num(0) > 0
    assert not kept.all()
    cosines.requires_grad_()
    loss = prototype_contrastive_loss(cosines, labels, variant=form)
    (gradient,) = torch.autograd.grad(loss, cosines)
    assert (gradient[~kept] == 0).all() and (gradient[kept] != 0).any()
    other = cosines.detach().clone()
    other[~kept] = 0.123
    assert torch.equal(loss, prototype_contrastive_loss(other, labels, variant=form))


@each_form
@pytest.mark.parametrize("value", [0.0, nan])
def test_without_a_present_concept_it_is_0_with_a_gradient_path(form, value):
    cosines, _ = example()
    cosines.requires_grad_()
    loss = prototype_contrastive_loss(cosines, torch.full((4, 3), value), variant=form)
    assert loss.item() == 0
    loss.backward()
    assert cosines.grad is not None and (cosines.grad == 0).all()


@each_form
def test_a_single_concept_has_no_rivals_and_stays_finite(form):
    cosines = example(concepts=1)[0].requires_grad_()
    loss = prototype_contrastive_loss(cosines, torch.ones(4, 1), variant=form)
    (gradient,) = torch.autograd.grad(loss, cosines)
    assert loss.isfinite() and gradient.isfinite().all()


@each_form
def test_the_gradient_is_that_of_finite_differences(form):
    cosines, labels = example()
    assert torch.autograd.gradcheck(
        lambda values: prototype_contrastive_loss(values, labels, variant=form), cosines.requires_grad_()
    )


@each_form
def test_gradients_at_the_papers_gamma_are_finite_and_repeat(form):
    cosines, labels = example()
    cosines = cosines.float().requires_grad_()
    options = {"variant": form, "temperature": 0.01, "gamma": 1000.0}
    losses = [prototype_contrastive_loss(cosines, labels, **options) for _ in range(2)]
    first, second = (torch.autograd.grad(loss, cosines)[0] for loss in losses)
    assert losses[0].isfinite() and first.isfinite().all()
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(first, second)


@each_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_cosines_lose_nothing_but_their_own_rounding(form, dtype):
    cosines, labels = example()
    cosines = cosines.to(dtype)
    half, exact = (prototype_contrastive_loss(c, labels, variant=form).item() for c in (cosines, cosines.double()))
    assert half == pytest.approx(exact, rel=1e-4)


@each_form
def test_the_module_is_the_function_with_fixed_options(form):
    cosines, labels = example()
    options = {"variant": form, "temperature": 0.2, "gamma": 3.0, "margin": 0.3, "margin_sign": "paper"}
    expected = prototype_contrastive_loss(cosines, labels, **options)
    assert torch.equal(PrototypeContrastiveLoss(**options)(cosines, labels), expected)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"variant": "triplet"},
            "unknown `variant` 'triplet'; did you mean .*; known: .*'nearest', 'infonce', 'supcon', 'softtriple'",
        ),
        ({"margin_sign": "minus"}, "unknown `margin_sign` 'minus'; known: .*'softtriple', 'paper', 'numerator'"),
    ],
)
def test_unknown_options_are_refused_at_once_by_function_and_module(options, message):
    with pytest.raises(ValueError, match=message):
        prototype_contrastive_loss(*example(), **options)
    with pytest.raises(ValueError, match=message):
        PrototypeContrastiveLoss(**options)


@pytest.mark.parametrize(
    "cosines, labels, message",
    [
        (torch.zeros(2, 3, 3, 1), torch.zeros(2), r"labels have shape \(2,\), but predictions \(2, 3\)"),
        (torch.zeros(2, 3, 3, 1), torch.full((2, 3), 1.5), r"labels must be in \[0, 1\], .* got 1.5"),
        (torch.zeros(2, 3, 3, 0), torch.zeros(2, 3), "at least one prototype, got .*3, 3, 0"),
        (torch.zeros(2, 3, 3), torch.zeros(2, 3), r"must be \(B, K, K, M\)"),
        (torch.zeros(2, 3, 4, 1), torch.zeros(2, 3), r"must be \(B, K, K, M\)"),
    ],
)
def test_similarities_and_labels_that_do_not_fit_are_refused(cosines, labels, message):
    with pytest.raises(ValueError, match=message):
        prototype_contrastive_loss(cosines, labels)


def test_presence_loss_is_cross_entropy_of_the_nearest_own_prototype():
    similarity = torch.rand(4, 3, 3, 2) * 2 - 1
    labels = torch.tensor([[1, 0, 1], [0, torch.nan, 1], [0, 0, 0], [1, 0.5, torch.nan]])
    total, known = 0.0, 0
    for b in range(4):
        for k in range(3):
            y = labels[b, k].item()
            if y == y:
                p = 1 / (1 + torch.exp(-(max(similarity[b, k, k]) - 0.5) / 0.1)).item()
                total -= y * torch.tensor(p).log().item() + (1 - y) * torch.tensor(1 - p).log().item()
                known += 1
    assert prototype_presence_loss(similarity, labels).item() == pytest.approx(total / known, rel=1e-4)


def test_presence_loss_pushes_absent_vectors_away_not_unknown_ones():
    similarity = torch.full((1, 3, 3, 2), 0.5, requires_grad=True)
    prototype_presence_loss(similarity, torch.tensor([[1.0, 0.0, torch.nan]])).backward()
    own = similarity.grad[0].diagonal(dim1=0, dim2=1).sum(dim=0)
    assert own[0] < 0 < own[1] and own[2] == 0
