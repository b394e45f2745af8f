"""Train the models that come with the package, measure them, and write them where `from_pretrained` finds them.

    python benchmarks/bundled.py
    python benchmarks/bundled.py --cards   # write configs and cards of present models anew, train nothing
    python benchmarks/bundled.py --records # the same, and first choose anew what is chosen on validation images
    python benchmarks/bundled.py --heads   # the same, and first solve for the task heads anew, and measure

Both are the demonstration's model (`conceptcam demo`), one for each bottleneck, the classic one with a narrower
backbone. Their cards hold the figures on test images that neither has seen. On 2 cores it takes about ten minutes.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

from conceptcam.analysis.evaluation import evaluate
from conceptcam.analysis.fitting import fit_calibration, fit_novelty, fit_thresholds
from conceptcam.config import Bottleneck, ConceptConfig, TrainingRecord, to_json
from conceptcam.data.phantom import SIDED_CONCEPTS
from conceptcam.data.phantom.dataset import phantom_data
from conceptcam.hub.card import model_card
from conceptcam.hub.model_folder import CARD_FILE, CONFIG_FILE, read_folder
from conceptcam.hub.zoo import MODELS
from conceptcam.model.concept_model import ConceptModel
from conceptcam.runs.demo import demo_config, headline, run_demo
from conceptcam.runs.options import RunOptions, make_plan
from conceptcam.training.trainer import Trainer

MODELS_TO_TRAIN: dict[str, tuple[Bottleneck, str]] = {
    "phantom-csr": ("prototypes", "small_cnn_s4"),
    "phantom-cbm": ("concepts", "small_cnn_s4_w64"),
}
EPOCHS = {"concepts": 8, "prototypes": 10}  # the task head is solved for
LICENSE = "Apache-2.0"
DESCRIPTION = (
    "Trained on drawn chest radiographs (the phantom of conceptcam), to try the library on at once. It has "
    "seen no patient and says nothing about one."
)


def train(name: str, folder: Path, options: argparse.Namespace) -> None:
    """Train, measure and write one model."""
    data = phantom_data(options.images, size=112, seed=0, progress=True)
    run = RunOptions(epochs=EPOCHS, batch_size=64, precision=options.precision, device=options.device)
    with tempfile.TemporaryDirectory() as scratch:
        bottleneck, backbone = MODELS_TO_TRAIN[name]
        run_demo(Path(scratch), demo_config(112, bottleneck, backbone=backbone), data, run, echo=print)
        model = ConceptModel.from_pretrained(scratch)
    model.record = dataclasses.replace(model.record, license=LICENSE)
    model.save_pretrained(folder, card=card_of(name, model.config, model.record))


def card_of(name: str, config: ConceptConfig, record: TrainingRecord) -> str:
    """The text of a model's card, which follows from its `config.json`."""
    return model_card(config, record, title=name, description=DESCRIPTION, weights_address=name)


def fit_record(name: str, folder: Path, options: argparse.Namespace) -> None:
    """Choose anew, on the images that validated training, what the record of a present model holds of them."""
    model = ConceptModel.from_pretrained(folder)
    data = phantom_data(options.images, size=112, seed=0, progress=True)
    data.val.preprocess = model.preprocess
    fit_thresholds(model, data.val.dataloader(64), thresholds_source=model.record.thresholds_source)
    source = f"platt on {len(data.val)} validation images"
    fit_calibration(model, data.val.dataloader(64), calibration_source=source)
    data.train.preprocess, data.train.augmentation = model.preprocess, None
    fit_novelty(model, data.train.dataloader(64), data.val.dataloader(64))
    (folder / CONFIG_FILE).write_text(to_json(model.config, model.record), encoding="utf-8")


def fit_head(name: str, folder: Path, options: argparse.Namespace) -> None:
    """Solve for the task head of a present model anew, and measure the model; what it sees stays as it is."""
    model = ConceptModel.from_pretrained(folder)
    before = model.record
    data = phantom_data(options.images, size=112, seed=0, progress=True)
    for part in (data.train, data.val, data.test):
        part.preprocess = model.preprocess
    task = make_plan(RunOptions(epochs=EPOCHS), model.config, data.train).stages[-1]
    Trainer(seed=0).fit(model, [task], data.train.dataloader(64), data.val.dataloader(64))
    found = evaluate(model, data.test.dataloader(64), sided_concepts=SIDED_CONCEPTS)
    model.record = dataclasses.replace(
        model.record, metrics=headline(model, found, data), license=before.license, measured_on=before.measured_on,
        training_data=before.training_data, thresholds_source=before.thresholds_source,
    )  # fmt: skip
    model.save_pretrained(folder)


def write_card(name: str, folder: Path) -> None:
    """Write the config and the card of a model that is there anew, in today's formats; its weights stay."""
    config, record, _ = read_folder(folder)
    (folder / CONFIG_FILE).write_text(to_json(config, record), encoding="utf-8")
    (folder / CARD_FILE).write_text(card_of(name, config, record), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8000, help="training images (default: 8000)")
    parser.add_argument("--names", nargs="+", choices=tuple(MODELS_TO_TRAIN), default=list(MODELS_TO_TRAIN))
    parser.add_argument("--out", type=Path, default=MODELS, help="folder that gets a folder per model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument(
        "--cards", action="store_true", help="write configs and cards of models that are there anew, and train nothing"
    )
    parser.add_argument("--heads", action="store_true", help="as --records, after solving for the task heads anew")
    parser.add_argument("--records", action="store_true", help="as --cards, after fitting records on validation images")
    options = parser.parse_args()
    for name in options.names:
        if options.heads:
            fit_head(name, options.out / name, options)
        if options.records or options.heads:
            fit_record(name, options.out / name, options)
        if options.cards or options.records or options.heads:
            write_card(name, options.out / name)
            continue
        train(name, options.out / name, options)
        size = sum(file.stat().st_size for file in (options.out / name).iterdir())
        print(f"{name}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
