"""Explain an image with an exported model: numpy, Pillow and onnxruntime, without torch and without conceptcam.

    conceptcam export phantom-csr model.onnx
    python examples/run_exported.py model.onnx image.png [maps.png]

Without arguments it lets conceptcam, in other processes, export the bundled model and draw a chest.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def read_image(path, preprocessing):
    """The picture, and what the model takes: (1, 3, H, W) float32."""
    height, width = preprocessing["image_size"]
    picture = Image.open(path).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    mean, std = (np.array(preprocessing[name], np.float32) for name in ("mean", "std"))
    pixels = (np.asarray(picture, np.float32) / 255 - mean) / std
    return picture, pixels.transpose(2, 0, 1)[None]


def probability(logit, slope=1.0, intercept=0.0):
    return 1 / (1 + np.exp(-(slope * logit + intercept)))


def overlay(picture, concept_map):
    """The picture in grey, with red where the concept is probable."""
    heat = Image.fromarray((probability(concept_map) * 255).astype(np.uint8)).resize(picture.size, 2)
    return Image.composite(Image.new("RGB", picture.size, (220, 30, 30)), picture, heat.point(lambda value: value // 2))


def main(model, image, out="maps.png", *, top=5):
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    known = json.loads(session.get_modelmeta().custom_metadata_map["conceptcam"])
    config, record = known["config"], known["record"]
    picture, pixels = read_image(image, known["preprocessing"])
    names = [output.name for output in session.get_outputs()]
    said = {name: value[0] for name, value in zip(names, session.run(names, {"images": pixels}), strict=True)}

    scaling = [record["calibration"].get(name, (1.0, 0.0)) for name in config["concepts"]]
    probabilities = [probability(logit, *pair) for logit, pair in zip(said["concept_logits"], scaling, strict=True)]
    shown = np.argsort(probabilities)[::-1][:top]
    for number in shown:
        print(f"{config['concepts'][number]:<28} {probabilities[number]:.3f}")
    for number, task in enumerate(config["tasks"] if "task_logits" in said else []):
        parts = said["contributions"][number]
        largest = ", ".join(f"{config['concepts'][one]} {parts[one]:+.2f}" for one in np.argsort(-abs(parts))[:3])
        print(
            f"{task:<28} logit {said['task_logits'][number]:+.2f} = {known['task_bias'][number]:+.2f}, {largest}, ..."
        )

    sheet = Image.new("RGB", (picture.width * (len(shown) + 1), picture.height))
    for column, tile in enumerate([picture, *(overlay(picture, said["concept_maps"][number]) for number in shown)]):
        sheet.paste(tile, (column * picture.width, 0))
    sheet.save(out)


def prepare(folder):
    """An exported model and an image to try it on."""
    model, image = folder / "model.onnx", folder / "chest.png"
    draw = (
        "import sys; from PIL import Image; from conceptcam import PhantomDataset\n"
        "pixels = PhantomDataset(1, seed=99, cache_dir=False).load_item(0).image\n"
        "Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-m", "conceptcam", "export", "phantom-csr", str(model)], check=True)
    subprocess.run([sys.executable, "-c", draw, str(image)], check=True)
    return model, image


if __name__ == "__main__":
    if len(sys.argv) > 1:
        if len(sys.argv) not in (3, 4) or sys.argv[1].startswith("-"):
            sys.exit(__doc__)
        main(*sys.argv[1:])
    else:
        with tempfile.TemporaryDirectory() as name:
            main(*prepare(Path(name)), Path(name, "maps.png"))
