"""What must come out because it is known before: of corrections on the phantom, whose diseases are drawn by a rule."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from conceptcam.analysis.answers import Answers
from conceptcam.analysis.intervention_curves import curve_of_answers
from conceptcam.data.phantom import PHANTOM_CONCEPTS, PHANTOM_DISEASES, Phantom, PhantomConfig, disease_probability
from conceptcam.losses.classification import multilabel_loss
from conceptcam.model.linear_solver import LinearSolver
from tests.worlds import tiny_model

IMAGES = 3000  # drawn twice: to learn from, and to measure on
HIDDEN = ("Tuberculosis", "Lung tumor")  # depend on what pixels alone show, at completeness 1


def cases(completeness, first):
    """Concepts, diseases and hidden traits of images that are never drawn."""
    phantom = Phantom(PhantomConfig(completeness=completeness), seed=8)
    found = [phantom.case(index) for index in range(first, first + IMAGES)]
    concepts, diseases, traits = (np.array([case[part] for case in found]) for part in range(3))
    return concepts, diseases[:, [PHANTOM_DISEASES.index(name) for name in HIDDEN]], traits


def gap_below_the_ceiling(completeness):
    """By how much the best AUROC of all who know the rule exceeds that of a head whose concepts are all corrected."""
    model = tiny_model(concepts=PHANTOM_CONCEPTS, tasks=HIDDEN, bottleneck="concepts")
    learned, taught, _ = cases(completeness, 0)
    rows, targets = torch.from_numpy(learned).float()[..., None], torch.from_numpy(taught).float()
    weight, bias = LinearSolver(l2=0.003).solve(rows, targets, multilabel_loss)
    with torch.no_grad():
        model.task_head.weight.copy_(weight)
        model.task_head.bias.copy_(bias)
    sides = {
        "typical_present": dict.fromkeys(PHANTOM_CONCEPTS, 1.0),
        "typical_absent": dict.fromkeys(PHANTOM_CONCEPTS, 0.0),
    }
    model.record = dataclasses.replace(model.record.after("concepts", []).after("task", []), **sides)
    concepts, diseases, traits = cases(completeness, IMAGES)
    blind = torch.rand(IMAGES, len(PHANTOM_CONCEPTS), 1, generator=torch.Generator().manual_seed(0))  # has seen nothing
    nothing = torch.zeros(IMAGES, 0)
    answers = Answers(
        blind[..., 0].logit(), torch.from_numpy(concepts).float(), nothing, torch.from_numpy(diseases).float(),
        nothing, blind, torch.full((IMAGES,), torch.nan), (),
    )  # fmt: skip
    curve = curve_of_answers(model, answers, policy="random", counts=[0, len(PHANTOM_CONCEPTS)])
    known = disease_probability(concepts, traits, PhantomConfig(completeness=completeness)).round(12)
    chance = [known[:, PHANTOM_DISEASES.index(name)] for name in HIDDEN]
    best = np.mean([roc_auc_score(diseases[:, t], one) for t, one in enumerate(chance)])
    assert float(curve.auroc[0]) == pytest.approx(0.5, abs=0.1)
    return best - float(curve.auroc[1])


def test_corrections_reach_the_ceiling_if_concepts_are_complete():
    assert -0.005 < gap_below_the_ceiling(0.0) < 0.02


def test_corrections_stay_below_it_if_pixels_know_more():
    assert gap_below_the_ceiling(1.0) > 0.02
