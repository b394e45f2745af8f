"""The phantom itself: from (seed, index) to an image with everything that is true of it.

Each part of an image has random numbers of its own, a stream derived from (seed, index, part): the body, the
labels, each finding, the noise. So a finding can be left out and nothing else moves, and an image does not
depend on which others were drawn before it, or where.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from numpy.random import Generator, default_rng

from conceptcam.data.phantom.anatomy import Chest, draw_frame, draw_shape
from conceptcam.data.phantom.arrays import Bools, Floats, Ints
from conceptcam.data.phantom.concepts import INDEX, PHANTOM_CONCEPTS, draw_concepts
from conceptcam.data.phantom.config import PhantomConfig
from conceptcam.data.phantom.diseases import TRAITS, draw_diseases, draw_traits
from conceptcam.data.phantom.findings import PAINTERS
from conceptcam.data.phantom.outlines import OUTLINES
from conceptcam.data.phantom.scene import Attributes, Box, Scene
from conceptcam.data.phantom.textures import textures_of

# Streams 0 to 21 are the findings'.
_LABELS, _MARKER, _BODY, _NOISE = range(100, 104)

_GAMMAS = np.linspace(0.85, 1.15, 31)
_BRIGHTEST = 1.6  # the attenuation at which the table that maps it to a grey value ends
_TABLE = 2048
_GREY = 255 * 0.95
_MARKER_BOX: Box = (0.90, 0.03, 0.95, 0.10)
_MARKER_GREY = 250


class PhantomCase(NamedTuple):
    """What is true of one image, before anything is drawn."""

    concepts: Ints
    """(22,) findings, 0 or 1, in the order of `PHANTOM_CONCEPTS`."""
    diseases: Ints
    """(6,) diseases, 0 or 1, in the order of `PHANTOM_DISEASES`."""
    traits: Bools
    """(4,) hidden traits, in the order of `TRAITS`; without meaning where their finding is absent."""
    marker: bool
    """Whether the shortcut is burnt in."""


class PhantomSample(NamedTuple):
    """One image with everything that is true of it."""

    image: Ints
    """(size, size) uint8; bone is bright, air is dark."""
    concepts: Ints
    """(22,) findings, 0 or 1, in the order of `PHANTOM_CONCEPTS`."""
    diseases: Ints
    """(6,) diseases, 0 or 1, in the order of `PHANTOM_DISEASES`."""
    boxes: Floats
    """(n, 4) left, top, right, bottom as fractions of the image; at least one for each finding present."""
    box_concepts: Ints
    """(n,) which finding each box marks."""
    attributes: dict[str, Attributes]
    """Finding present -> its side, zone, size and number, which the concepts do not tell."""
    marker_box: Box | None
    """Where the shortcut marker is, or None if there is none."""


class Phantom:
    """A source of chest radiographs that are drawn, so everything about them is known.

    Args:
        config: What the images and labels are like.
        seed: Which of endless data sets; not negative.
    """

    def __init__(self, config: PhantomConfig | None = None, seed: int = 0) -> None:
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(f"`seed` must be a whole number from 0, got {seed!r}")
        self.config = config if config is not None else PhantomConfig()
        self.seed = seed
        self._textures = textures_of(self.config.size)
        steps = np.linspace(0, _BRIGHTEST, _TABLE)
        self._grey = [(steps**gamma).astype(np.float32) for gamma in _GAMMAS]

    def case(self, index: int, *, without: Collection[str] = ()) -> PhantomCase:
        """What is true of image `index`, without drawing it; see `sample`."""
        if unknown := sorted(set(without) - set(PHANTOM_CONCEPTS)):
            raise ValueError(f"unknown findings {unknown} to leave out; known: {list(PHANTOM_CONCEPTS)}")
        labels = self._stream(index, _LABELS)
        drawn, traits = draw_concepts(labels), draw_traits(labels)
        # The marker goes with what was drawn: taking a finding away must not take the marker with it.
        marker = self._draw_marker(index, bool(drawn[INDEX[self.config.shortcut_concept]]))
        concepts = drawn.copy()
        concepts[[INDEX[name] for name in without]] = 0
        diseases = draw_diseases(labels, concepts, traits, self.config)
        return PhantomCase(concepts, diseases, traits, marker)

    def sample(self, index: int, *, without: Collection[str] = ()) -> PhantomSample:
        """Image `index` with its labels and boxes.

        Args:
            index: Any whole number from 0; the same one always gives the same sample.
            without: Findings to leave out. The image is otherwise the same: same body, same noise, same
                other findings; outside the pixels of `masks` it is equal to the bit. Diseases are drawn
                again from what is left, with the same luck.

        Raises:
            ValueError: If a finding to leave out does not exist.
        """
        case = self.case(index, without=without)
        scene, attributes = self._scene(index, case)
        image = self._expose(scene.attenuation, self._stream(index, _NOISE))
        if case.marker:
            image[self._marker()] = _MARKER_GREY
        boxes = np.array([box for _, box in scene.boxes], np.float32).reshape(-1, 4)
        named = np.array([INDEX[name] for name, _ in scene.boxes], np.int64)
        marker_box = self._marker_box() if case.marker else None
        return PhantomSample(image, case.concepts, case.diseases, boxes, named, attributes, marker_box)

    def masks(self, index: int) -> dict[str, Bools]:
        """Where each finding of image `index` changes it: the pixels that differ without it.

        Returns:
            Finding present -> (size, size), True where its removal changes the attenuation, by however
            little. Computed by drawing the image again without each finding.
        """
        case = self.case(index)
        whole = self._scene(index, case)[0].attenuation
        present = [name for name, there in zip(PHANTOM_CONCEPTS, case.concepts, strict=True) if there]
        return {name: self._scene(index, self.case(index, without=[name]))[0].attenuation != whole for name in present}

    def marker_mask(self) -> Bools:
        """(size, size) True on the pixels of the shortcut marker, where an image has it."""
        return self._marker().copy()

    def _stream(self, index: int, part: int) -> Generator:
        return default_rng((self.seed, index, part))

    def _draw_marker(self, index: int, present: bool) -> bool:
        strength = self.config.shortcut_strength
        if self.config.shortcut == "aligned":
            chance = strength if present else 1 - strength
        elif self.config.shortcut == "reversed":
            chance = 1 - strength if present else strength
        else:
            return False
        return bool(self._stream(index, _MARKER).random() < chance)

    def _scene(self, index: int, case: PhantomCase) -> tuple[Scene, dict[str, Attributes]]:
        """The chest with its findings, before it is exposed."""
        body = self._stream(index, _BODY)
        frame, shape = draw_frame(body, self.config.size), draw_shape(body)
        attributes: dict[str, Attributes] = {}
        outlines = [name for name in OUTLINES if case.concepts[INDEX[name]]]
        for name in outlines:
            shape, attributes[name] = OUTLINES[name].change(shape, self._stream(index, INDEX[name]))
        scene = Scene(Chest(frame, shape, self._textures, body), self.config.contrast)
        for name in outlines:
            scene.mark(name, *OUTLINES[name].rectangle(shape))
        for name, paint in PAINTERS.items():
            if case.concepts[INDEX[name]]:
                traits = {
                    t.property: bool(has) for t, has in zip(TRAITS, case.traits, strict=True) if t.finding == name
                }
                attributes[name] = paint(scene, self._stream(index, INDEX[name]), traits)
        return scene, attributes

    def _expose(self, attenuation: Floats, rng: Generator) -> Ints:
        """The (size, size) uint8 image a detector shows of an attenuation."""
        dose, gamma = 1 + 0.04 * float(rng.standard_normal()), int(rng.integers(len(_GAMMAS)))
        shading = self._textures.crop("shading", rng, attenuation.shape)
        density = attenuation * dose + 0.025 * shading
        density *= _TABLE / _BRIGHTEST
        grey = self._grey[gamma][density.clip(0, _TABLE - 1).astype(np.int16)]
        grain = self._textures.crop("grain", rng, attenuation.shape)
        # Few photons pass where much is absorbed, so noise grows with brightness.
        grey += (0.020 * self.config.noise) * grain * (0.6 + 0.6 * grey)
        grey *= _GREY
        return grey.clip(0, 255).astype(np.uint8)

    def _marker_box(self) -> Box:
        size = self.config.size
        left, top, right, bottom = (round(edge * size) / size for edge in _MARKER_BOX)
        return left, top, right, bottom

    def _marker(self) -> Bools:
        """The letter L, as technicians put it on the patient's left."""
        size = self.config.size
        left, top, right, bottom = (round(edge * size) for edge in _MARKER_BOX)
        stroke = max(2, round(0.018 * size))
        mask = np.zeros((size, size), bool)
        mask[top:bottom, left : left + stroke] = True
        mask[bottom - stroke : bottom, left:right] = True
        return mask
