"""What a supervisor would doubt in a training: figures in, a sentence for each doubt out.

Each function gives a list of sentences, which is empty where there is nothing to doubt.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from conceptcam._checks import shorten
from conceptcam.config import TaskKind
from conceptcam.data.label_counts import FEW_IMAGES
from conceptcam.metrics.border import BorderScores
from conceptcam.metrics.classification import LabelScores, macro_average

_NEARLY_ALL = 0.95  # of the images get one answer
_UNEXPLAINED = {"multiclass": 0.05, "multilabel": 0.25}  # by how much more than are so; a rare task is absent mostly
_HARDLY = 0.02  # a relative change of the loss
_GAP = 0.15  # of AUROC between training and other images
_FEW_TO_LEARN_TO_SEE = 1000  # images; below, the preset `recommended` keeps a trained backbone as it is
_HARDLY_RISES = 0.02  # evidence, between absence and presence
_HARDLY_DIFFERS = 0.01  # probability, over all images
_BELOW = 0.03  # AUROC, under that of a plain model on the same features
_FEW_TO_CHOOSE_BY = 10  # images on a side of a label
_FEW_PER_PROTOTYPE = 5  # positives
_FEW_TO_AVERAGE = FEW_IMAGES  # on a side of a label
_FEW_PEAKS = 10  # images that have a concept
_MANY_PEAKS = 0.5  # of these images
_BY_CHANCE = 0.001  # probability


def one_answer_doubts(
    tasks: Sequence[str], called: Tensor, true: Tensor, kind: TaskKind, part: str = "measured"
) -> list[str]:
    """One answer for nearly all images, at least 95 % of them, although they are not all so.

    Args:
        tasks: T names.
        called: (T,) fraction of the images that the model calls each task, or that it says have it.
        true: (T,) fraction of the same images that are.
        kind: `"multiclass"`: one task is the answer. `"multilabel"`: each task is called present or absent; this is
            doubted only if the other answer is right for a quarter of the images, because rare tasks are mostly absent.
        part: Which images these are.
    """
    answers = [(repr(name), *pair) for name, *pair in zip(tasks, called.tolist(), true.tolist(), strict=True)]
    if kind == "multilabel":
        answers += [(f"not {what}", 1 - given, 1 - right) for what, given, right in answers]
    return [
        f"Nearly all {part} images get one answer: {_percent(given)} of them are called {what}, and {_percent(right)} "
        "are; the model hardly tells them apart."
        for what, given, right in answers
        if given >= _NEARLY_ALL and given - right >= _UNEXPLAINED[kind]
    ]


def untrained_doubts(images: int, *, trained: bool) -> list[str]:
    """A backbone of random weights that is to learn from fewer than 1,000 images; to be said before it does.

    Args:
        images: Training images.
        trained: Whether the backbone starts from trained weights.
    """
    if trained or images >= _FEW_TO_LEARN_TO_SEE:
        return []
    return [
        f"The backbone starts from random weights, and {images} training images are too few to learn what images look "
        f"like; expect little of it. Start from trained weights: `pretrained=True` (--pretrained) or `weights` "
        "(--weights)."
    ]


def stalled_stage_doubts(losses: Mapping[str, Sequence[float]]) -> list[str]:
    """A stage whose training loss hardly left its start: the lowest one is within 2 % of the first epoch's.

    Args:
        losses: Name of a stage -> training loss of each of its epochs. One epoch alone says nothing.
    """
    return [
        f"Stage {stage!r} hardly learned: its training loss went from {epochs[0]:.4f} to {min(epochs):.4f} in "
        f"{len(epochs)} epochs; train longer, or at a higher rate."
        for stage, epochs in losses.items()
        if len(epochs) > 1 and min(epochs) > epochs[0] - _HARDLY * abs(epochs[0])
    ]


def constant_answer_doubts(what: str, loss: float, constant_loss: float) -> list[str]:
    """What was learned is hardly better than one answer for all images, judged by the training loss.

    Args:
        what: Such as `"concepts"`.
        loss: Of the model on training images.
        constant_loss: Of the best answer that is the same for all of them.
    """
    if math.isnan(loss) or loss < (1 - _HARDLY) * constant_loss:
        return []
    return [
        f"The {what} were hardly learned: the loss on training images is {loss:.4f}, and one answer for all images "
        f"has {constant_loss:.4f}."
    ]


def overfitting_doubts(what: str, training: LabelScores, measured: LabelScores) -> list[str]:
    """Training far above the measured images: AUROC higher by more than .15, over labels with 5 on each side of both.

    Args:
        what: Such as `"concepts"`.
        training: Scores of L labels on training images.
        measured: The same on images that were not learned from.
    """
    both = (_fewest(training) >= _FEW_TO_AVERAGE) & (_fewest(measured) >= _FEW_TO_AVERAGE)
    learned, held_out = (float(macro_average(scores.auroc, both)) for scores in (training, measured))
    if math.isnan(learned - held_out) or learned - held_out <= _GAP:
        return []
    return [
        f"Training is far above the measured images: the AUROC of the {what} is {learned:.3f} on training images and "
        f"{held_out:.3f} on the others; expect the lower one, and use more images or fewer weights that learn."
    ]


def one_sided_doubts(kind: str, names: Sequence[str], labels: Tensor, part: str) -> list[str]:
    """Labels without positives, or without negatives.

    Args:
        kind: What the labels are, such as `"concept"`.
        names: L names.
        labels: (N, L) in [0, 1], NaN where unknown.
        part: Which images these are, such as `"training"`.
    """
    positives, negatives = _sides(labels)
    found = []
    for name, present, absent in zip(names, positives.tolist(), negatives.tolist(), strict=True):
        if present == 0 or absent == 0:
            lack = "positives or negatives" if present == absent else "positives" if present == 0 else "negatives"
            found.append(f"{name!r} has no {lack}")
    if not found:
        return []
    judged = "cannot be judged, nor be given a threshold" if kind == "concept" else "cannot be judged"
    effect = "cannot be learned" if part == "training" else judged
    return [f"Among the {part} images, {shorten(found)}: {_these(kind, len(found))} {effect}."]


def prototype_doubts(concepts: Sequence[str], labels: Tensor, prototypes: int) -> list[str]:
    """Concepts with fewer than five training images per prototype; those without any are one-sided.

    Args:
        concepts: K names.
        labels: (N, K) training labels in [0, 1], NaN where unknown.
        prototypes: M of each concept.
    """
    counts = dict(zip(concepts, _sides(labels)[0].tolist(), strict=True))
    few = {name: count for name, count in counts.items() if 0 < count < _FEW_PER_PROTOTYPE * prototypes}
    if not few:
        return []
    each = f"each of the {prototypes} prototypes" if prototypes > 1 else "the one prototype"
    fewer = "learn fewer prototypes, by `prototypes_per_concept` (--prototypes-per-concept), or "
    return [
        f"{_count('concept', len(few))} fewer than {_FEW_PER_PROTOTYPE} training images for {each}: "
        f"{_listed(few)}; a prototype then shows an image rather than a concept: "
        f"{fewer if prototypes > 1 else ''}take more images."
    ]


def threshold_doubts(concepts: Sequence[str], labels: Tensor) -> list[str]:
    """Concepts whose threshold rests on fewer than ten validation images that have it, or lack it.

    Those that are one-sided have no threshold, and are not named.

    Args:
        concepts: K names.
        labels: (N, K) validation labels in [0, 1], NaN where unknown.
    """
    fewest = dict(zip(concepts, torch.minimum(*_sides(labels)).tolist(), strict=True))
    few = {name: count for name, count in fewest.items() if 0 < count < _FEW_TO_CHOOSE_BY}
    if not few:
        return []
    return [
        f"{_count('concept', len(few))} a threshold that rests on fewer than {_FEW_TO_CHOOSE_BY} validation images "
        f"that have it, or lack it: {_listed(few)}; choose thresholds on more images."
    ]


def choice_doubts(images: int) -> list[str]:
    """Epochs and thresholds that were chosen by fewer than ten validation images."""
    if images >= _FEW_TO_CHOOSE_BY:
        return []
    return [f"Epochs and thresholds were chosen by {images} validation images alone; these are hardly a choice."]


def average_doubts(kind: str, names: Sequence[str], scores: LabelScores) -> list[str]:
    """Averages that leave out labels with fewer than five positives or negatives, or that have no others.

    Labels without an AUROC are in no average, and are not named here.

    Args:
        kind: What the labels are, such as `"concept"`.
        names: L names.
        scores: Of the measured images.
    """
    few, alone = _too_few_to_average(names, scores)
    if not few:
        return []
    if alone:
        return [
            f"No {kind} has {_FEW_TO_AVERAGE} measured images on each side, so the averages of the {kind}s are carried "
            f"by single images: {_listed(few)}."
        ]
    return [
        f"The averages of AUROC, AP and F1 leave out the {kind}s with fewer than {_FEW_TO_AVERAGE} measured images on "
        f"a side: {_listed(few)}."
    ]


def difference_doubts(kind: str, names: Sequence[str], scores: LabelScores) -> list[str]:
    """Differences of two models, and their intervals, of labels with fewer than five positives or negatives.

    Labels without an AUROC have no difference, and are not named here.

    Args:
        kind: What the labels are, such as `"concept"`.
        names: L names.
        scores: Of the measured images, by either model: only their positives and negatives are read.
    """
    few, alone = _too_few_to_average(names, scores)
    if not few:
        return []
    if alone:
        return [
            f"No {kind} has {_FEW_TO_AVERAGE} measured images on each side, so all differences of the {kind}s, the "
            f"macro means included, and their intervals are carried by single images: {_listed(few)}."
        ]
    return [
        f"The macro means leave out the {kind}s with fewer than {_FEW_TO_AVERAGE} measured images on a side, whose own "
        f"differences and intervals are carried by single images: {_listed(few)}."
    ]


def correction_doubts(concepts: Sequence[str], rise: Tensor) -> list[str]:
    """Concepts whose typical evidence hardly rises from absence to presence, by less than .02, or falls.

    Args:
        concepts: K names.
        rise: (K,) as `TypicalEvidence.rise`; those that are NaN cannot be corrected, and are not named.
    """
    flat = {name: value for name, value in zip(concepts, rise.tolist(), strict=True) if value < _HARDLY_RISES}
    if not flat:
        return []
    listed = shorten([f"{name!r} ({value:+.3f})" for name, value in sorted(flat.items(), key=lambda pair: pair[1])])
    return [
        f"Corrections of {_these('concept', len(flat))} may change nothing or go the wrong way, because typical "
        f"evidence hardly rises from absence to presence, or falls: {listed}."
    ]


def flat_concept_doubts(concepts: Sequence[str], probabilities: Tensor) -> list[str]:
    """Concepts whose probability is nearly the same in all images: it differs by less than .01.

    Args:
        concepts: K names.
        probabilities: (N, K) of the measured images.
    """
    if len(probabilities) < 2:
        return []
    lowest, highest = probabilities.amin(dim=0).tolist(), probabilities.amax(dim=0).tolist()
    rows = zip(concepts, lowest, highest, strict=True)
    flat = [f"{name!r} ({low:.3f} to {high:.3f})" for name, low, high in rows if high - low < _HARDLY_DIFFERS]
    if not flat:
        return []
    return [
        f"The model gives {_these('concept', len(flat))} nearly the same probability in all measured images, so its "
        f"answer means nothing: {', '.join(flat)}."
    ]


def border_doubts(concepts: Sequence[str], border: BorderScores) -> list[str]:
    """Concepts whose map peaks at the border of the image, in the outermost ring of cells, where findings seldom are.

    Doubted are concepts with 10 images or more, if in half of them the peak is there, and if that has a probability
    below .001 where all cells peak equally often, by the bound of Chernoff, which also holds where the border differs
    from image to image (Hoeffding, 1963, theorem 1).

    Args:
        concepts: K names.
        border: Of the measured images. Cells in boxes are no border, and small grids count no image.
    """
    rows = zip(concepts, *(part.tolist() for part in border), strict=True)
    found = [
        f"{name!r} (in {peaks:.0f} of {images:.0f} images that have it; by chance in {images * chance:.0f})"
        for name, images, peaks, chance in rows
        if images >= _FEW_PEAKS and peaks >= _MANY_PEAKS * images and _tail(peaks, images, chance) < _BY_CHANCE
    ]
    if not found:
        return []
    return [
        f"The maps of {_these('concept', len(found))} peak in the outermost cells of the image: {', '.join(found)}. "
        "Unless findings are there, the model looks at dark corners, a frame or letters; look at maps with `explain`, "
        "crop or blacken what is no finding, or draw boxes."
    ]


def below_baseline_doubts(what: str, auroc: float, pooled: float) -> list[str]:
    """A model whose AUROC is lower by .03 or more than that of logistic regression on the features of its backbone.

    Args:
        what: Such as `"concepts"`.
        auroc: Of the model, averaged.
        pooled: Of logistic regression on pooled features; NaN if nobody fitted it.
    """
    if math.isnan(auroc - pooled) or pooled - auroc < _BELOW:
        return []
    return [
        f"The AUROC of the {what} is {auroc:.3f}, and logistic regression on the pooled features of the same backbone "
        f"reaches {pooled:.3f}: the features hold more than this model learned of them."
    ]


def _tail(successes: float, trials: float, chance: float) -> float:
    """An upper bound of the probability of so many successes or more, each with this chance; 1 if they are expected."""
    rate = successes / trials
    if rate <= chance:
        return 1.0
    failures = 0.0 if rate == 1 else (1 - rate) * math.log((1 - rate) / (1 - chance))
    return math.exp(-trials * (rate * math.log(rate / chance) + failures))


def _sides(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(L,) positives and (L,) negatives, soft labels counted in part."""
    return labels.nansum(dim=0), (1 - labels).nansum(dim=0)


def _fewest(scores: LabelScores) -> Tensor:
    return torch.minimum(scores.positives, scores.negatives)


def _too_few_to_average(names: Sequence[str], scores: LabelScores) -> tuple[dict[str, float], bool]:
    """Labels with fewer than five images on a side, but some on both, with how many; and whether no label has more."""
    fewest = dict(zip(names, _fewest(scores).tolist(), strict=True))
    few = {name: count for name, count in fewest.items() if 0 < count < _FEW_TO_AVERAGE}
    return few, max(fewest.values(), default=0) < _FEW_TO_AVERAGE


def _listed(counts: Mapping[str, float]) -> str:
    """Names with their counts, the rarest first; all of them, because something is to be done about each."""
    rarest = sorted(counts.items(), key=lambda pair: pair[1])
    return ", ".join(f"{name!r} ({count:.4g})" for name, count in rarest)


def _count(kind: str, number: int) -> str:
    return f"{number} {kind} has" if number == 1 else f"{number} {kind}s have"


def _these(kind: str, number: int) -> str:
    return f"this {kind}" if number == 1 else f"these {number} {kind}s"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"
