"""Train the models that come with the package, measure them, and write them where `from_pretrained` finds them.

    python benchmarks/bundled.py

Both are the demonstration's model (`conceptcam demo`), one for each bottleneck, the classic one with a narrower
backbone. Their cards hold the figures on test
images that neither has seen. On 2 cores it takes about ten minutes.
"""

import argparse
import tempfile
from pathlib import Path

from conceptcam.card import model_card
from conceptcam.config import Bottleneck
from conceptcam.demo import phantom_data, run_demo
from conceptcam.model import ConceptModel
from conceptcam.runs import RunOptions
from conceptcam.zoo import MODELS

MODELS_TO_TRAIN: dict[str, tuple[Bottleneck, str]] = {
    "phantom-csr": ("prototypes", "small_cnn_s8"),
    "phantom-cbm": ("concepts", "small_cnn_s8_w64"),
}
EPOCHS = {"concepts": 8, "prototypes": 10, "task": 10}
DESCRIPTION = (
    "Trained on drawn chest radiographs (the phantom of conceptcam), to try the library on at once. It has "
    "seen no patient and says nothing about one."
)


def train(name: str, folder: Path, options: argparse.Namespace) -> None:
    """Train, measure and write one model."""
    data = phantom_data(options.images, size=112, seed=0, progress=True)
    run = RunOptions(epochs=EPOCHS, batch_size=64, precision="bf16", progress=True)
    with tempfile.TemporaryDirectory() as scratch:
        bottleneck, backbone = MODELS_TO_TRAIN[name]
        run_demo(Path(scratch), data, run, bottleneck=bottleneck, backbone=backbone, say=print)
        model = ConceptModel.from_pretrained(scratch)
    card = model_card(
        model.config, model.record, title=name, license="Apache-2.0", description=DESCRIPTION, weights_address=name
    )
    model.save_pretrained(folder, card=card)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8000, help="training images (default: 8000)")
    parser.add_argument("--names", nargs="+", choices=tuple(MODELS_TO_TRAIN), default=list(MODELS_TO_TRAIN))
    parser.add_argument("--out", type=Path, default=MODELS, help="folder that gets a folder per model")
    options = parser.parse_args()
    for name in options.names:
        train(name, options.out / name, options)
        size = sum(file.stat().st_size for file in (options.out / name).iterdir())
        print(f"{name}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
