"""What can be turned on the phantom."""

import math
from dataclasses import dataclass
from typing import Literal

from conceptcam._checks import check_choice
from conceptcam.data.phantom.concepts import PHANTOM_CONCEPTS, PHANTOM_DISEASES

Shortcut = Literal["none", "aligned", "clean", "reversed"]
ShortcutKind = Literal["marker", "tube", "pacemaker", "hospital"]
Prevalence = Literal["balanced"]


@dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """Everything that shapes the phantom's images and labels, except seed and index.

    All fields are JSON types, so `dataclasses.asdict` and `PhantomConfig(**fields)` carry them anywhere.

    Attributes:
        size: Side of the square images in pixels, 64 to 448.
        completeness: How much of the diseases is in the pixels only, in [0, 1]. At 0 the diseases depend on
            the 22 findings alone; at 1 also on where and how large some are (`conceptcam.data.phantom.diseases`).
        shortcut: Whether something that is no finding is drawn. `"aligned"`: mostly where `shortcut_concept`
            is present; `"reversed"`: mostly where it is absent; `"clean"` and `"none"`: never. `"clean"`
            is the name of the test set that goes with the other two.
        shortcut_concept: The finding, or the disease, that the shortcut goes with.
        shortcut_strength: Share of images, in [.5, 1], in which the shortcut obeys that rule.
        shortcut_kind: What the shortcut is. `"marker"`: an "L" burnt in beside the body; `"tube"`: a drain from the
            flank to the apex of the image-left lung; `"pacemaker"`: a can below the image-left clavicle with a lead to
            the heart; `"hospital"`: another scanner, with a dark border and more noise all over the image.
        prevalence: How common findings are. `"balanced"`: 29 % of images show none, the others 2.3 on
            average, each finding in 4 to 19 % of images (`expected_prevalence` gives exact shares).
        co_occurrence: How readily a finding brings others along, in [0, 1.6], as a multiple of the default: at 0
            findings are drawn independently of each other.
        contrast: Findings that add or remove density do so this many times as strongly.
        severity: Findings that change the outline of an organ do so this many times as far, above 0 and up to 2.
        confusers: Average number of things per image, in [0, 8], that look like findings and are none: nipples,
            vessels seen on end, folds of skin, and soft shadows where tissues overlap. They have no label and no box.
        anatomy: How much healthy chests differ, in [0, 2], as a multiple of the default; at 0 all are alike but for
            their textures.
        noise: Quantum noise, as a multiple of the default.

    Raises:
        ValueError: If a number is out of range or a name unknown.
    """

    size: int = 112
    completeness: float = 0.0
    shortcut: Shortcut = "none"
    shortcut_concept: str = "Infiltration"
    shortcut_strength: float = 0.95
    shortcut_kind: ShortcutKind = "marker"
    prevalence: Prevalence = "balanced"
    co_occurrence: float = 1.0
    contrast: float = 1.0
    severity: float = 1.0
    confusers: float = 0.0
    anatomy: float = 1.0
    noise: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or not 64 <= self.size <= 448:
            raise ValueError(f"`size` must be a whole number of pixels from 64 to 448, got {self.size!r}")
        for name, low, high in (
            ("completeness", 0.0, 1.0),
            ("shortcut_strength", 0.5, 1.0),
            ("co_occurrence", 0.0, 1.6),
            ("contrast", 0.0, 4.0),
            ("severity", 0.0, 2.0),
            ("confusers", 0.0, 8.0),
            ("anatomy", 0.0, 2.0),
            ("noise", 0.0, 10.0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"`{name}` must be a number, got {value!r}")
            if not low <= value <= high or (name in ("contrast", "severity") and value == 0):
                raise ValueError(f"`{name}` must be from {low} to {high}, got {value!r}")
            object.__setattr__(self, name, float(value))
        check_choice("shortcut", self.shortcut, Shortcut)
        check_choice("shortcut_kind", self.shortcut_kind, ShortcutKind)
        check_choice("prevalence", self.prevalence, Prevalence)
        check_choice("shortcut_concept", self.shortcut_concept, (*PHANTOM_CONCEPTS, *PHANTOM_DISEASES))
