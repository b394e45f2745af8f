"""What an "uncertain" label counts as, decided once, before a loss, a class weight or a metric sees it.

A report can confirm a finding (1), deny it (0), call it uncertain (a code such as CheXpert's -1) or not mention it
(NaN). The last two differ: in the first case somebody looked and could not decide, in the second nobody said
anything. Losses, class weights and metrics know labels from 0 to 1, and NaN. The reader of a data set turns the code
into one of these, so all three see the same label.
"""

import math
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from conceptcam._checks import check_known

Uncertain = Literal["ignore", "zeros", "ones", "soft"]

SOFT_LABEL = 0.7
"""Middle of U(0.55, 0.85), from which Pham et al. (2021) draw the label of an uncertain finding."""


def resolve_uncertain(
    labels: Tensor | np.ndarray,
    policy: Uncertain = "ignore",
    *,
    uncertain: float = -1.0,
    soft: float | tuple[float, float] = SOFT_LABEL,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Labels in [0, 1], NaN where unknown, from labels in which a code stands for "uncertain".

    A reader calls it once, on all of its labels. What was not mentioned (NaN) stays unknown under every policy.

    Args:
        labels: Of any shape and numeric type: 0, 1, a probability between, NaN, or the code.
        policy: What an uncertain label becomes (the first three are those of Irvin et al., 2019, "CheXpert"):

            - `"ignore"`: unknown, so it counts nowhere.
            - `"zeros"`: absent.
            - `"ones"`: present.
            - `"soft"`: a label between, `soft`.
        uncertain: The code, a number outside [0, 1].
        soft: Of `"soft"`: the label itself, or a range (low, high) from which each uncertain label is drawn
            uniformly. Pham et al. (2021) draw from (0.55, 0.85) in place of ones, and (0, 0.3) in place of
            zeros. The default is the middle of the former, so that two readers of one file agree.
        generator: Where the draws come from; a range needs it. As labels are drawn when they are read, each keeps
            its value for the whole training.

    Returns:
        A tensor of the labels' shape, float64 if they are, else float32; the labels given are not changed.

    Raises:
        ValueError: If a label is none of the above (it names the value and its place), or an option is impossible.
    """
    check_known("policy for uncertain labels", policy, get_args(Uncertain))
    if not math.isfinite(uncertain) or 0 <= uncertain <= 1:
        raise ValueError(f"the code of uncertain labels must be a number outside [0, 1], got `uncertain={uncertain:g}`")
    values = _numbers(labels)
    unsure = values == uncertain
    _refuse_strange(values, unsure, uncertain)
    return torch.where(unsure, _replacement(values, unsure, policy, soft, generator), values)


def _numbers(labels: Tensor | np.ndarray) -> Tensor:
    if isinstance(labels, np.ndarray):
        if labels.dtype.kind not in "biuf":
            raise ValueError(f"labels must be numbers, got an array of {labels.dtype}; write NaN where nobody said")
        labels = torch.from_numpy(labels.astype(np.promote_types(labels.dtype, np.float32), copy=False))
    return labels.to(torch.float64 if labels.dtype == torch.float64 else torch.float32)


def _refuse_strange(values: Tensor, unsure: Tensor, uncertain: float) -> None:
    strange = ~(unsure | values.isnan() | ((values >= 0) & (values <= 1)))
    if strange.any():
        place = strange.nonzero()[0].tolist()
        raise ValueError(
            f"the label at {place} is {values[tuple(place)].item():g}, one of {int(strange.sum())} such; expected 0 to "
            f"1, {uncertain:g} for uncertain, or NaN where nobody said"
        )


def _replacement(
    values: Tensor,
    unsure: Tensor,
    policy: Uncertain,
    soft: float | tuple[float, float],
    generator: torch.Generator | None,
) -> Tensor:
    """What uncertain labels become: one number for all, or a tensor with a number drawn for each of them."""
    if policy != "soft":
        return values.new_tensor({"ignore": torch.nan, "zeros": 0.0, "ones": 1.0}[policy])
    ends = (soft, soft) if isinstance(soft, int | float) else tuple(soft)
    if len(ends) != 2 or not 0 <= ends[0] <= ends[1] <= 1:
        raise ValueError(f"`soft` must be a label in [0, 1] or a range (low, high) of them, got {soft}")
    low, high = ends
    if isinstance(soft, int | float):
        return values.new_tensor(soft)
    if generator is None:
        raise ValueError(f"a label drawn from {soft} needs a `generator`, such as torch.Generator().manual_seed(0)")
    draws = torch.rand(int(unsure.sum()), generator=generator, dtype=values.dtype, device=generator.device)
    return values.masked_scatter(unsure, (low + (high - low) * draws).to(values.device))
