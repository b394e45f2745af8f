"""Explain an image with an exported model: numpy, Pillow and onnxruntime, without torch and without conceptcam.

    conceptcam export phantom-csr model.onnx
    python examples/run_exported.py model.onnx image.png [maps.png]

Prints concepts and tasks with their probabilities, and draws the maps of the most probable concepts, each below its
name, probability and verdict. Without arguments it lets conceptcam, in other processes, export the bundled model and
draw a chest.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageFont

STRIP = 40  # pixels above a picture, for its name and a line below it


def read_image(path, preprocessing):
    """The picture, and what the model takes: (1, 3, H, W) float32."""
    height, width = preprocessing["image_size"]
    picture = Image.open(path).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    mean, std = (np.array(preprocessing[name], np.float32) for name in ("mean", "std"))
    pixels = (np.asarray(picture, np.float32) / 255 - mean) / std
    return picture, pixels.transpose(2, 0, 1)[None]


def probability(logit, slope=1.0, intercept=0.0):
    return 1 / (1 + np.exp(-(slope * logit + intercept)))


def concept_answers(logits, config, record):
    """Of each concept its calibrated probability, and whether that is above the threshold that was chosen for it."""
    answers = []
    for name, logit in zip(config["concepts"], logits, strict=True):
        threshold = record["thresholds"].get(name)  # of the probability that is not calibrated; None if undefined
        verdict = "no threshold" if threshold is None else "present" if probability(logit) > threshold else "absent"
        answers.append((probability(logit, *record["calibration"].get(name, (1.0, 0.0))), verdict))
    return answers


def task_probabilities(logits, config, record):
    """Calibrated probabilities of the tasks; they add up to 1 if the tasks exclude each other."""
    pairs = [record["task_calibration"].get(name, (1.0, 0.0)) for name in config["tasks"]]
    scaled = np.array([slope * logit + shift for logit, (slope, shift) in zip(logits, pairs, strict=True)])
    if config["task_kind"] == "multilabel":
        return probability(scaled)
    grown = np.exp(scaled - scaled.max())
    return grown / grown.sum()


def overlay(picture, concept_map):
    """The picture in grey, with red where the concept is probable."""
    heat = Image.fromarray((probability(concept_map) * 255).astype(np.uint8)).resize(picture.size, 2)
    return Image.composite(Image.new("RGB", picture.size, (220, 30, 30)), picture, heat.point(lambda value: value // 2))


def contact_sheet(tiles):
    """Pictures of one size side by side, each below its title and a note."""
    wide, high = max(tiles[0][2].width, 170), tiles[0][2].height + STRIP
    sheet = Image.new("RGB", (wide * len(tiles), high), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, (title, note, tile) in enumerate(tiles):
        sheet.paste(tile, (column * wide, STRIP))
        pen.text((column * wide + 3, 3), title, fill="black", font=font)
        pen.text((column * wide + 3, 21), note, fill="dimgrey", font=font)
    return sheet


def main(model, image, out="maps.png", *, top=5):
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    known = json.loads(session.get_modelmeta().custom_metadata_map["conceptcam"])
    config, record = known["config"], known["record"]
    picture, pixels = read_image(image, known["preprocessing"])
    names = [output.name for output in session.get_outputs()]
    said = {name: value[0] for name, value in zip(names, session.run(names, {"images": pixels}), strict=True)}

    answers = concept_answers(said["concept_logits"], config, record)
    shown = sorted(range(len(answers)), key=lambda number: -answers[number][0])[:top]
    tiles = [("Image", "", picture)]
    for number in shown:
        (p, verdict), name = answers[number], config["concepts"][number]
        print(f"{name:<28} p {p:.3f} {verdict}")
        tiles.append((name, f"p = {p:.2f}, {verdict}", overlay(picture, said["concept_maps"][number])))
    if "task_logits" in said:
        chances = task_probabilities(said["task_logits"], config, record)
        for number, task in enumerate(config["tasks"]):
            parts, logit = said["contributions"][number], said["task_logits"][number]
            largest = ", ".join(f"{config['concepts'][one]} {parts[one]:+.2f}" for one in np.argsort(-abs(parts))[:3])
            bias = known["task_bias"][number]
            print(f"{task:<28} p {chances[number]:.3f}, logit {logit:+.2f} = {bias:+.2f}, {largest}, ...")
        first = int(np.argmax(chances))
        tiles[0] = ("Image", f"{config['tasks'][first]}: p = {chances[first]:.2f}", picture)
    contact_sheet(tiles).save(out)


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
