"""Draws the picture of the phantom's settings for its page: `python docs/phantom_knobs.py`."""

from pathlib import Path
from typing import Any

import numpy as np

from conceptcam import PhantomDataset
from conceptcam.analysis.figures import Tile, blend, contact_sheet, save_png
from conceptcam.data import SimulatedReaders
from conceptcam.data.phantom import PHANTOM_CONCEPTS, Phantom, PhantomConfig

PICTURE = Path(__file__).parent / "images" / "phantom-knobs.png"
SIZE = 224
CHANGES: dict[str, dict[str, Any]] = {
    "as drawn": {},
    "contrast .4": {"contrast": 0.4},
    "severity .4": {"severity": 0.4},
    "noise 4": {"noise": 4.0},
    "confusers 5": {"confusers": 5.0},
    "anatomy 2": {"anatomy": 2.0},
    "marker": {"shortcut_kind": "marker"},
    "tube": {"shortcut_kind": "tube"},
    "pacemaker": {"shortcut_kind": "pacemaker"},
    "hospital": {"shortcut_kind": "hospital"},
}


def picture() -> None:
    """Write the picture: one chest under each setting, and the boxes of three readers."""
    finding = PHANTOM_CONCEPTS.index("Cardiomegaly")
    always = {"shortcut": "aligned", "shortcut_concept": "Cardiomegaly", "shortcut_strength": 1.0}
    cases = (Phantom(PhantomConfig(size=SIZE)).case(index).concepts for index in range(500))
    index = next(i for i, concepts in enumerate(cases) if concepts[finding] and 3 <= concepts.sum() <= 5)
    tiles = []
    for title, change in CHANGES.items():
        config = PhantomConfig(size=SIZE, **({**always, **change} if "shortcut_kind" in change else change))
        sample = Phantom(config).sample(index)
        boxes = sample.boxes if not change else np.zeros((0, 4))
        tiles.append(Tile(title, blend(sample.image, boxes=boxes, side=SIZE)))
    data = PhantomDataset(index + 1, seed=0, config=PhantomConfig(size=SIZE), cache_dir=False)
    for title, rule in (("three readers, any", "any"), ("three readers, all", "all")):
        item = SimulatedReaders(data, rule=rule, sensitivity=0.7, seed=2).load_item(index)
        assert item.boxes is not None
        tiles.append(Tile(title, blend(item.image, boxes=item.boxes.xyxy, side=SIZE)))
    save_png(contact_sheet(tiles, columns=6), PICTURE)


if __name__ == "__main__":
    picture()
