"""The phantom itself: from (seed, index) to an image with everything that is true of it.

Each part of an image has random numbers of its own, a stream derived from (seed, index, part): the body, the
labels, each finding, the noise. So a finding can be left out and nothing else moves, and an image does not
depend on which others were drawn before it, or where.
"""

import copy
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from numpy.random import Generator, default_rng

from conceptcam.data.phantom.anatomy import Chest, Frame, draw_frame, draw_shape
from conceptcam.data.phantom.arrays import Bools, Floats, Ints
from conceptcam.data.phantom.concepts import INDEX, PHANTOM_CONCEPTS, PHANTOM_DISEASES, draw_concepts
from conceptcam.data.phantom.config import PhantomConfig
from conceptcam.data.phantom.confusers import add_confusers
from conceptcam.data.phantom.diseases import TRAITS, draw_diseases, draw_traits
from conceptcam.data.phantom.findings import PAINTERS
from conceptcam.data.phantom.outlines import OUTLINES
from conceptcam.data.phantom.scene import Attributes, Box, Scene
from conceptcam.data.phantom.shortcuts import box_around, draw_shortcut, shortcut_mask
from conceptcam.data.phantom.textures import textures_of

# Streams 0 to 21 are the findings'.
_LABELS, _MARKER, _BODY, _NOISE, _CONFUSERS, _SHORTCUT = range(100, 106)

_GAMMAS = np.linspace(0.85, 1.15, 31)
_BRIGHTEST = 1.6  # the attenuation at which the table that maps it to a grey value ends
_TABLE = 2048
_GREY = 255 * 0.95


class PhantomCase(NamedTuple):
    """What is true of one image, before anything is drawn."""

    concepts: Ints
    """(22,) findings, 0 or 1, in the order of `PHANTOM_CONCEPTS`."""
    diseases: Ints
    """(6,) diseases, 0 or 1, in the order of `PHANTOM_DISEASES`."""
    traits: Bools
    """(4,) hidden traits, in the order of `TRAITS`; without meaning where their finding is absent."""
    marker: bool
    """Whether the shortcut is there."""


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
    """Where the shortcut is, or None if there is none."""


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
        drawn, traits = draw_concepts(labels, self.config.co_occurrence), draw_traits(labels)
        # The marker goes with what was drawn: taking a finding away must not take the marker with it.
        tied = self.config.shortcut_concept
        if tied in INDEX:
            present = bool(drawn[INDEX[tied]])
        else:
            diseases = draw_diseases(copy.deepcopy(labels), drawn, traits, self.config)
            present = bool(diseases[PHANTOM_DISEASES.index(tied)])
        marker = self._draw_marker(index, present)
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
            kind, stream = self.config.shortcut_kind, self._stream(index, _SHORTCUT)
            image = draw_shortcut(kind, image, scene.chest.frame, stream)
        boxes = np.array([box for _, box in scene.boxes], np.float32).reshape(-1, 4)
        named = np.array([INDEX[name] for name, _ in scene.boxes], np.int64)
        marker_box = box_around(self.marker_mask(index)) if case.marker else None
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

    def marker_mask(self, index: int) -> Bools:
        """(size, size) True on the pixels of the shortcut in image `index`, if it has it.

        A marker and a border are at the same place in every image. The noise of another hospital is everywhere and not
        in the mask.
        """
        frame, _ = self._body(index)
        return shortcut_mask(self.config.shortcut_kind, frame, self._stream(index, _SHORTCUT))

    def _body(self, index: int) -> tuple[Frame, Generator]:
        """How the body lies in an image, and the stream that the rest of it is drawn from."""
        stream = self._stream(index, _BODY)
        return draw_frame(stream, self.config.size, self.config.anatomy), stream

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
        frame, body = self._body(index)
        shape = draw_shape(body, self.config.anatomy)
        attributes: dict[str, Attributes] = {}
        outlines = [name for name in OUTLINES if case.concepts[INDEX[name]]]
        for name in outlines:
            shape, attributes[name] = OUTLINES[name].change(
                shape, self._stream(index, INDEX[name]), self.config.severity
            )
        scene = Scene(Chest(frame, shape, self._textures, body), self.config.contrast)
        for name in outlines:
            scene.mark(name, *OUTLINES[name].rectangle(shape))
        for name, paint in PAINTERS.items():
            if case.concepts[INDEX[name]]:
                traits = {
                    t.property: bool(has) for t, has in zip(TRAITS, case.traits, strict=True) if t.finding == name
                }
                attributes[name] = paint(scene, self._stream(index, INDEX[name]), traits)
        if self.config.confusers:
            add_confusers(scene.chest, scene.attenuation, self._stream(index, _CONFUSERS), self.config.confusers)
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
