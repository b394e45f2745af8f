"""Prototype losses: is each concept's vector nearest to that concept's prototypes?"""

import functools
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from conceptcam._checks import check_choice
from conceptcam.losses.classification import multilabel_loss
from conceptcam.losses.masking import at_least_float32, masked_mean, split_known

Form = Literal["nearest", "infonce", "supcon", "softtriple"]
MarginSign = Literal["softtriple", "paper", "numerator"]


def prototype_contrastive_loss(
    vector_similarity: Tensor,
    labels: Tensor,
    *,
    variant: Form = "nearest",
    temperature: float = 0.1,
    gamma: float = 10.0,
    margin: float = 0.1,
    margin_sign: MarginSign = "softtriple",
) -> Tensor:
    """Pull each present concept's vector to its own prototypes, away from those of other concepts.

    Args:
        vector_similarity: (B, K, K, M) cosine of concept k's vector with prototype m of concept j.
        labels: (B, K) in [0, 1]. A vector counts as much as its label; unknown (NaN) and absent ones not.
        variant: With s cosines divided by the temperature,

            - `"nearest"`: -log of the softmax mass, over all K M prototypes, that its own M get together. One
              near own prototype is enough, so the M of a concept can differ.
            - `"infonce"`: for each own prototype, against it and all prototypes of *other* concepts, then the
              mean over the M. Pulls every own prototype alike, so they end up in one place.
            - `"supcon"`: for each own prototype, against all K M including its siblings; never below log M.
            - `"softtriple"`: a softmax over concepts of soft-assigned similarities with a margin
              (CSR, Eq. 6 to 9; Qian et al., 2019).
        temperature: Cosines are divided by it; lower is stricter. CSR's lambda is its inverse.
        gamma: Of `softtriple`: the factor inside the softmax that assigns a vector to a concept's
            prototypes (CSR uses 1000, in effect an argmax).
        margin: Of `softtriple`: delta.
        margin_sign: `"softtriple"` subtracts the margin from the true concept's similarity, which makes the
            task harder, as in the loss CSR builds on; `"paper"` adds it in numerator and denominator;
            `"numerator"` adds it in the numerator only, which shifts the loss and changes no gradient.

    Returns:
        Scalar, the mean over present concepts; exactly 0, with a gradient path, if none is.

    Raises:
        ValueError: If an option is unknown or labels do not fit.
    """
    _check_options(variant, margin_sign)
    shape = tuple(vector_similarity.shape)
    if len(shape) != 4 or shape[1] != shape[2] or shape[3] < 1:
        raise ValueError(f"similarities must be (B, K, K, M) with at least one prototype, got {shape}")
    vector_similarity = at_least_float32(vector_similarity)
    _, present = split_known(vector_similarity[:, :, 0, 0], labels)
    if variant == "softtriple":
        terms = _softtriple(vector_similarity, temperature, gamma, margin, margin_sign)
    else:
        terms = _FORMS[variant](vector_similarity / temperature)
    return masked_mean(terms, present)


def prototype_presence_loss(
    vector_similarity: Tensor, labels: Tensor, *, center: float = 0.5, temperature: float = 0.1
) -> Tensor:
    """Ask each concept's vector to be near a prototype of its own where the concept is present, and far elsewhere.

    Binary cross-entropy of (the highest cosine with a prototype of its own, less `center`) / `temperature`. The
    contrastive loss looks at present concepts alone, so nothing there keeps a vector of an *absent* concept from
    resembling the concept's prototypes, and evidence is high everywhere; with this term it says whether.

    Args:
        vector_similarity: (B, K, K, M) cosine of concept k's vector with prototype m of concept j; only a concept's
            similarities to its own prototypes are read. Entries of unknown concepts may be anything.
        labels: (B, K) in [0, 1], NaN where unknown. Absent concepts count too.
        center: Cosine that says neither.
        temperature: How far from it a cosine must be to be sure.

    Returns:
        Scalar, the mean over known labels; exactly 0, with a gradient path, if there is none.
    """
    own = at_least_float32(vector_similarity).diagonal(dim1=1, dim2=2).amax(dim=1)  # (B, M, K) -> (B, K)
    return multilabel_loss((own - center) / temperature, labels)


def _check_options(variant: str, margin_sign: str) -> None:
    check_choice("variant", variant, Form)
    check_choice("margin_sign", margin_sign, MarginSign)


def _own(logits: Tensor) -> Tensor:
    """(B, K, M) similarity of each concept's vector with the concept's own prototypes."""
    return rearrange(logits.diagonal(dim1=1, dim2=2), "b m k -> b k m")


def _every(logits: Tensor) -> Tensor:
    """(B, K) log-sum of a vector's similarities with all prototypes."""
    return torch.logsumexp(rearrange(logits, "b k j m -> b k (j m)"), dim=-1)


def _nearest(logits: Tensor) -> Tensor:
    return _every(logits) - torch.logsumexp(_own(logits), dim=-1)


def _supcon(logits: Tensor) -> Tensor:
    return _every(logits) - _own(logits).mean(dim=-1)


def _infonce(logits: Tensor) -> Tensor:
    siblings = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)[None, :, :, None]
    others = _every(logits.masked_fill(siblings, -torch.inf))
    own = _own(logits)
    return (torch.logaddexp(own, others[..., None]) - own).mean(dim=-1)


_FORMS = {"nearest": _nearest, "supcon": _supcon, "infonce": _infonce}


def _softtriple(similarity: Tensor, temperature: float, gamma: float, margin: float, margin_sign: MarginSign) -> Tensor:
    assigned = (gamma * similarity).softmax(dim=-1)  # (B, K, K, M), CSR Eq. 6
    concept = (assigned * similarity).sum(dim=-1)  # (B, K, K), CSR Eq. 7 and 8
    shift = {"softtriple": -margin, "paper": margin, "numerator": 0.0}[margin_sign]
    concept = concept + shift * torch.eye(concept.shape[1], dtype=concept.dtype, device=concept.device)
    own = concept.diagonal(dim1=1, dim2=2) / temperature
    loss = torch.logsumexp(concept / temperature, dim=-1) - own
    return loss - margin / temperature if margin_sign == "numerator" else loss


class PrototypeContrastiveLoss(nn.Module):
    """`prototype_contrastive_loss` with fixed options."""

    def __init__(
        self,
        variant: Form = "nearest",
        *,
        temperature: float = 0.1,
        gamma: float = 10.0,
        margin: float = 0.1,
        margin_sign: MarginSign = "softtriple",
    ) -> None:
        super().__init__()
        _check_options(variant, margin_sign)
        self.loss = functools.partial(
            prototype_contrastive_loss,
            variant=variant,
            temperature=temperature,
            gamma=gamma,
            margin=margin,
            margin_sign=margin_sign,
        )

    def forward(self, vector_similarity: Tensor, labels: Tensor) -> Tensor:
        """Similarities (B, K, K, M) and labels (B, K) -> scalar."""
        return self.loss(vector_similarity, labels)
