"""Concept losses: is the concept in the image, and is it where somebody drew it?"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conceptcam._checks import brief, check_choice, check_number
from conceptcam.data.boxes import ConceptBoxes, ImageBoxes, MaskRule
from conceptcam.losses.classification import AsymmetricLoss, FocalLoss, multilabel_loss
from conceptcam.losses.masking import as_labels, at_least_float32, masked_mean, split_known

Classification = Literal["bce", "focal", "asymmetric"]
Penalty = Literal["bce", "hinge", "mse"]
Normalize = Literal["area", "grid"]
Outside = Literal["mean", "max"]
Presence = Literal["anywhere", "in_box"]

_LARGEST = 1e6  # weight or margin; far larger ones overflow

BoxesLike = ConceptBoxes | Sequence[ImageBoxes]
"""A batch's boxes: ours, or those of each image as `ConceptBoxes.from_dicts` reads them."""


def box_localization_loss(
    concept_maps: Tensor,
    boxes: BoxesLike,
    labels: Tensor | None = None,
    *,
    penalty: Penalty = "bce",
    normalize: Normalize = "area",
    outside: Outside = "mean",
    mask: MaskRule = "coverage",
    margin: float = 0.0,
) -> Tensor:
    """Ask each concept map to be high inside the concept's boxes and low outside them.

    One term per pair of image and concept that has a box, on the union of its boxes: what is inside any of
    them is inside. Images and concepts without a box take no part.

    Args:
        concept_maps: (B, K, h, w) logits.
        boxes: The batch's boxes.
        labels: (B, K) in [0, 1], NaN where unknown. A pair counts as much as its label says: a box of a
            concept that is labelled absent or unknown teaches no place. None counts every pair once.
        penalty: Cost of a logit z: `"bce"` softplus(-z) inside and softplus(z) outside; `"hinge"`
            relu(margin - z) and relu(margin + z); `"mse"` (1 - sigmoid(z))^2 and sigmoid(z)^2.
        normalize: `"area"` averages the inside over the inside and the outside over the outside, so both
            weigh the same however small the box. `"grid"` averages both over the whole grid.
        outside: `"mean"` averages what the outside costs over its places, so one place of 180 costs a 180th. `"max"`
            takes the costliest place, so that one place outside, such as a mark on the film, costs as much as its
            logit earns where the highest place decides. It belongs to `"area"`.
        mask: `"coverage"` by the fraction of each cell that is covered, `"center"` by cell centres; see
            `ConceptBoxes.pair_masks`.
        margin: Of the hinge only. At 0 a map that is 0 everywhere costs nothing and learns nothing.

    Returns:
        Scalar; exactly 0, with a gradient path, if there are no boxes.

    Raises:
        ValueError: If an option is unknown, labels do not fit, or a box has an image or concept index that is
            not there.
    """
    if not torch.compiler.is_compiling():
        _check_options(penalty, normalize, outside, mask, margin)
    _check_maps(concept_maps)
    boxes = _batch_boxes(boxes, concept_maps)
    pairs = boxes.pair_masks(concept_maps.shape, mask)
    # One index over (image, concept) in place of two: its backward pass is several times faster.
    chosen = pairs.image * concept_maps.shape[1] + pairs.concept
    maps = at_least_float32(concept_maps.flatten(0, 1).index_select(0, chosen))  # (P, h, w)
    high, low = _penalties(maps, penalty, margin)
    inside = pairs.inside
    if normalize == "grid":
        terms = (high * inside + low * (1 - inside)).mean(dim=(-2, -1))
    elif outside == "max":
        terms = _mean_over(high, inside) + (low * (1 - inside)).amax(dim=(-2, -1))
    else:
        terms = _mean_over(high, inside) + _mean_over(low, 1 - inside)
    weights = pairs.drawn.to(terms)
    if labels is not None:
        _, present = split_known(concept_maps[:, :, 0, 0], labels)  # 0 where unknown
        weights = weights * present[pairs.image, pairs.concept]
    # Without boxes `terms` is empty, yet still hangs on `concept_maps`.
    return masked_mean(terms, weights)


def logits_in_boxes(concept_maps: Tensor, concept_logits: Tensor, labels: Tensor, boxes: BoxesLike) -> Tensor:
    """Concept logits; of present concepts that have boxes, the highest logit in the boxes.

    Args:
        concept_maps: (B, K, h, w) logits.
        concept_logits: (B, K) as the model pooled them.
        labels: (B, K) in [0, 1], NaN where unknown. A pair is present if its label is above 0.
        boxes: The batch's boxes.

    Returns:
        (B, K): the highest logit in a cell that the boxes of a present pair touch; `concept_logits` elsewhere.
    """
    inside = _batch_boxes(boxes, concept_maps).coverage(concept_maps.shape) > 0
    highest = concept_maps.masked_fill(~inside, -torch.inf).amax(dim=(-2, -1))
    _, present = split_known(concept_logits, labels)
    return torch.where(inside.any(dim=(-2, -1)) & (present > 0), highest.to(concept_logits.dtype), concept_logits)


def _batch_boxes(boxes: BoxesLike, concept_maps: Tensor) -> ConceptBoxes:
    """The boxes of a batch in one form, beside the maps."""
    if not isinstance(boxes, ConceptBoxes):
        if isinstance(boxes, Tensor):
            raise ValueError(
                f"boxes are a tensor of shape {tuple(boxes.shape)}, which does not say whose they are; pass "
                "`ConceptBoxes(xyxy, concept, image)`, or a list with the boxes of each image, such as "
                "[{'boxes': boxes, 'labels': concepts}, None]"
            )
        if len(boxes) != len(concept_maps):
            raise ValueError(f"boxes need one list per image, got {len(boxes)} for {len(concept_maps)} images")
        boxes = ConceptBoxes.from_dicts(boxes)
    return boxes if boxes.xyxy.device == concept_maps.device else boxes.to(concept_maps.device)


def _check_options(penalty: str, normalize: str, outside: str, mask: str, margin: float) -> None:
    check_choice("penalty", penalty, Penalty)
    check_choice("normalize", normalize, Normalize)
    check_choice("outside", outside, Outside)
    if outside == "max" and normalize != "area":
        raise ValueError(f"`outside='max'` belongs to `normalize='area'`, got {normalize!r}")
    check_choice("mask", mask, MaskRule)
    check_number("`margin`", margin, 0, _LARGEST)
    if margin and penalty != "hinge":
        raise ValueError(f"`margin` belongs to the hinge penalty, got {margin} with {penalty!r}")


def _check_maps(concept_maps: object) -> None:
    if not isinstance(concept_maps, Tensor) or concept_maps.ndim != 4 or not concept_maps.is_floating_point():
        kind = type(concept_maps).__name__
        found = f"{concept_maps.dtype} {tuple(concept_maps.shape)}" if isinstance(concept_maps, Tensor) else f"a {kind}"
        raise ValueError(
            f"concept maps must be a tensor of floats (B, K, h, w), before any pooling; got {found}. Pooled logits go "
            "to `concept_logits`."
        )


def _penalties(maps: Tensor, penalty: Penalty, margin: float) -> tuple[Tensor, Tensor]:
    """What each place costs if it lies inside, and if it lies outside."""
    if penalty == "hinge":
        return (margin - maps).relu(), (margin + maps).relu()
    if penalty == "mse":
        probability = maps.sigmoid()
        return (1 - probability) ** 2, probability**2
    outside = F.softplus(maps)
    return outside - maps, outside  # softplus(-z) = softplus(z) - z


def _mean_over(values: Tensor, weights: Tensor) -> Tensor:
    """(P,) mean over places of (P, h, w) values by weights; 0 where all weigh 0, as outside a full-image box."""
    total = weights.sum(dim=(-2, -1))
    return (values * weights).sum(dim=(-2, -1)) / torch.where(total > 0, total, 1)


class BBoxGuidedConceptLoss(nn.Module):
    """Concept classification plus, where boxes are drawn, concept localization.

    `alpha * classification(concept_logits, labels) + beta * box_localization_loss(concept_maps, boxes, labels)`.

    Works in any training loop: it needs concept maps (B, K, h, w) of any model, labels and boxes, and owns
    no parameters.

    Args:
        alpha: Weight of classification.
        beta: Weight of localization.
        pos_weight: (K,) weight of positives per concept; see `compute_pos_weight`.
        classification: `"bce"`, binary cross-entropy; `"focal"` or `"asymmetric"`, which are `FocalLoss()` and
            `AsymmetricLoss()`; or any loss of (logits, labels), such as `FocalLoss(gamma=1.0)` or what
            `class_balanced_loss` gives, a scalar. All but the first weigh positives themselves, without `pos_weight`:
            focusing already takes weight off the many easy negatives, and a weight that balances without it is
            too large with it (in Lin et al., 2017, Table 1b, the best share of positives falls from .75 to .25).
        penalty: As in `box_localization_loss`, like the rest.
        normalize: See there.
        outside: See there.
        mask: See there.
        margin: See there.
        presence: Which logit of a present concept that has a box is classified. `"anywhere"` is the pooled logit.
            `"in_box"` is the highest logit in the cells that its boxes touch, so that a high logit outside, such as on
            a mark on the film, earns nothing; meant for `"max"` pooling. Absent concepts, and those without a box, keep
            their pooled logit: they must be low everywhere.

    Raises:
        ValueError: If `pos_weight` comes with a loss other than `"bce"`, an option is unknown, or a weight or margin is
            no number from 0 on.
    """

    pos_weight: Tensor | None

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 0.5,
        *,
        pos_weight: Tensor | None = None,
        classification: Classification | Callable[[Tensor, Tensor], Tensor] = "bce",
        penalty: Penalty = "bce",
        normalize: Normalize = "area",
        outside: Outside = "mean",
        mask: MaskRule = "coverage",
        margin: float = 0.0,
        presence: Presence = "anywhere",
    ) -> None:
        super().__init__()
        _check_options(penalty, normalize, outside, mask, margin)
        check_choice("presence", presence, Presence)
        check_number("`alpha`", alpha, 0, _LARGEST)
        check_number("`beta`", beta, 0, _LARGEST)
        self.alpha = float(alpha)
        self.beta = float(beta)
        self.classification = _classification_loss(classification, pos_weight)
        self.localization = functools.partial(
            box_localization_loss,
            penalty=penalty,
            normalize=normalize,
            outside=outside,
            mask=mask,
            margin=float(margin),
        )
        self.presence = presence
        self.register_buffer("pos_weight", pos_weight)

    def forward(
        self,
        concept_maps: Tensor,
        labels: Tensor,
        boxes: BoxesLike | None = None,
        *,
        concept_logits: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of a batch.

        Args:
            concept_maps: (B, K, h, w) logits.
            labels: (B, K) in [0, 1], NaN where unknown; a tensor, numpy array or list.
            boxes: The batch's boxes, or None if nobody drew any.
            concept_logits: (B, K) as the model pooled them; None takes the maximum of each map.

        Returns:
            Scalar.
        """
        _check_maps(concept_maps)
        logits = concept_maps.amax(dim=(-2, -1)) if concept_logits is None else concept_logits
        labels = as_labels(labels, logits)
        if self.presence == "in_box" and boxes is not None:
            logits = logits_in_boxes(concept_maps, logits, labels, boxes)
        if self.classification is not None:
            loss = self.alpha * _checked(self.classification(logits, labels), labels)
        else:
            loss = self.alpha * multilabel_loss(logits, labels, self.pos_weight)
        if boxes is None or self.beta == 0:
            return loss
        return loss + self.beta * self.localization(concept_maps, boxes, labels)


def _classification_loss(
    classification: Classification | Callable[[Tensor, Tensor], Tensor], pos_weight: Tensor | None
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The loss of (logits, labels) that is asked for; None is binary cross-entropy, to which `pos_weight` belongs.

    Raises:
        ValueError: If it is unknown, or the weights do not belong to it or are none.
    """
    if isinstance(classification, str) or not callable(classification):
        check_choice("classification", classification, Classification)
    if pos_weight is not None and classification != "bce":
        raise ValueError(
            "`pos_weight` belongs to the default classification loss, 'bce'; focal and asymmetric losses weigh "
            "positives themselves, and to a loss of your own you can give weights as it is made"
        )
    if pos_weight is not None:
        _check_pos_weight(pos_weight)
    named = {"bce": None, "focal": FocalLoss(), "asymmetric": AsymmetricLoss()}
    return named[classification] if isinstance(classification, str) else classification


def _check_pos_weight(weights: object) -> None:
    if not isinstance(weights, Tensor):
        raise ValueError(f"`pos_weight` must be a tensor (K,), one weight per concept; got {brief(weights)}")
    if weights.ndim != 1 or not ((weights >= 0) & weights.isfinite()).all():
        raise ValueError(
            f"`pos_weight` must be (K,) finite numbers from 0 on, one per concept; got the shape "
            f"{tuple(weights.shape)}, {brief(weights.flatten().tolist())}"
        )


def _checked(loss: Tensor, labels: Tensor) -> Tensor:
    """The loss that a user's own classification gave, if it can be one."""
    if loss.ndim:
        raise ValueError(f"`classification` must give a scalar, got the shape {tuple(loss.shape)}; take its mean")
    if not torch.compiler.is_compiling() and loss.isnan() and labels.isnan().any():
        raise ValueError(
            "`classification` gives NaN for labels that are NaN, which means unknown; leave them out, as the default "
            "and `multilabel_loss` do"
        )
    return loss
