"""Files that are made to be wrong: each is read as it says, or refused in one sentence; never a traceback or half."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from conceptcam.config import TrainingRecord, from_json, to_json
from conceptcam.data.coco import CocoDataset
from conceptcam.data.faults import Fault
from conceptcam.data.inspection import inspect_dataset
from conceptcam.hub.checkpoints import read_checkpoint
from conceptcam.hub.checkpoints.files import tensors_within
from conceptcam.model.concept_model import ConceptModel
from conceptcam.runs.folder import RunFolder
from tests.config.test_concept_config import FULL
from tests.config.test_training_record import RECORD
from tests.fuzz.hostile import check_sentence, damaged, mutated, text
from tests.worlds import tiny_model

SHORT = dataclasses.replace(RECORD, thresholds={"Nodule": 0.3}, metrics={"auroc": 0.95})


@pytest.mark.attacks("the text of config.json")
def test_a_config_is_read_as_it_says_or_refused(attempts):
    content, refused = json.loads(to_json(FULL, SHORT)), 0
    for chance in attempts(300):
        try:
            config, record = from_json(text(chance, content))
        except ValueError as error:
            refused += 1
            attempts.refused(error)
            continue
        assert to_json(*from_json(to_json(config, record))) == to_json(config, record)
        assert all(math.isnan(one) or 0 <= one <= 1 for one in record.thresholds.values())
        assert record.thresholds.keys() <= {*config.concepts}
    assert refused > 150


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_model()
    model.record = TrainingRecord(stages=("concepts",), thresholds={"dark": 0.5})
    model.save_pretrained(tmp_path_factory.mktemp("models") / "model")
    return tmp_path_factory.getbasetemp() / "models0" / "model"


def load(folder: Path, attempts: Any) -> ConceptModel | None:
    """The model of a folder; None if it is refused."""
    try:
        return ConceptModel.from_pretrained(folder)
    except (ValueError, FileNotFoundError) as error:
        attempts.refused(error)
        return None


@pytest.mark.attacks("bytes of model folders")
def test_a_model_folder_with_other_bytes_is_never_loaded(attempts, saved, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    content = (saved / "model.safetensors").read_bytes()
    for chance in attempts(100):
        other = damaged(chance, content)
        (folder / "model.safetensors").write_bytes(other)
        assert load(folder, attempts) is None or other == content


@pytest.mark.attacks("config.json of model folders")
def test_a_model_folder_with_another_config_is_whole_or_refused(attempts, saved, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    config = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    for chance in attempts(100):
        (folder / "config.json").write_text(text(chance, config), encoding="utf-8")
        model = load(folder, attempts)
        if model is not None:
            assert not any(value.is_meta for value in model.state_dict().values())


@pytest.mark.attacks("foreign checkpoints")
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_foreign_checkpoint_is_its_numbers_or_refused(attempts, tmp_path, kind):
    weights, path = {"a": torch.randn(40), "b.c": torch.randn(3, 3)}, tmp_path / f"w.{kind}"
    if kind == "safetensors":
        save_file(weights, path)
    else:
        torch.save({"model": weights, "epoch": 3}, path, _use_new_zipfile_serialization=kind == "zip")
    content, refused = path.read_bytes(), 0
    for chance in attempts(100):
        path.write_bytes(damaged(chance, content))
        try:
            found = tensors_within(read_checkpoint(path), str(path))
        except ValueError as error:
            refused += 1
            attempts.refused(error)
            continue
        if kind == "zip":  # which alone has checksums
            assert all(torch.equal(value, weights[name]) for name, value in found.items())
    assert refused > 30


COCO: dict[str, Any] = {
    "images": [
        {"id": k, "file_name": f"{k}.png", "width": 40, "height": 20, "concepts": {"Edema": k / 4}, "tasks": {"t": 1}}
        for k in range(4)
    ],
    "annotations": [{"id": k, "image_id": k % 4, "category_id": 7, "bbox": [5, 5, 10.5, 8]} for k in range(5)],
    "categories": [{"id": 7, "name": "Nodule"}, {"id": 8, "name": "Edema"}],
}


@pytest.mark.attacks("COCO files")
def test_a_coco_file_is_read_as_it_says_or_refused(attempts, tmp_path):
    for entry in COCO["images"]:
        Image.fromarray(np.zeros((20, 40), np.uint8)).save(tmp_path / entry["file_name"])
    refused = 0
    for chance in attempts(200):
        (tmp_path / "boxes.json").write_text(text(chance, COCO), encoding="utf-8")
        try:
            data = CocoDataset(tmp_path / "boxes.json", tmp_path)
            items = list(data)
        except (ValueError, FileNotFoundError) as error:
            refused += 1
            attempts.refused(error, longest=3000)
            continue
        for labels in (data.concept_labels, data.task_labels):
            assert ((labels >= 0) & (labels <= 1) | labels.isnan()).all()
        for item in items:
            assert (tmp_path / item.name).resolve().is_relative_to(tmp_path.resolve())
            assert item.boxes is None or (item.boxes.xyxy[:, 2:] - item.boxes.xyxy[:, :2] > 1 / 40).all()
    assert refused > 60


@pytest.mark.attacks("COCO files whose faults are listed")
def test_faults_of_a_coco_file_are_listed_and_the_rest_is_sound(attempts, tmp_path):
    for entry in COCO["images"]:
        Image.fromarray(np.zeros((20, 40), np.uint8)).save(tmp_path / entry["file_name"])
    for chance in attempts(100):
        (tmp_path / "boxes.json").write_text(text(chance, COCO), encoding="utf-8")
        faults: list[Fault] = []
        try:
            data = CocoDataset(tmp_path / "boxes.json", tmp_path, on_fault=faults.append)
        except (ValueError, FileNotFoundError) as error:  # nothing of it can be used
            attempts.refused(error, longest=3000)
            continue
        for fault in faults:
            check_sentence(ValueError(fault.text), longest=3000)
        for labels in (data.concept_labels, data.task_labels):
            assert ((labels >= 0) & (labels <= 1) | labels.isnan()).all()
        assert (data.all_boxes.xyxy[:, 2:] > data.all_boxes.xyxy[:, :2]).all()
        assert inspect_dataset(data, read_images=False).images == len(data) > 0


@pytest.mark.attacks("run.json of a run to resume")
def test_a_run_json_is_of_a_run_or_refused(attempts, tmp_path):
    content = {
        "format_version": 2,
        "finished": False,
        "seed": 0,
        "epochs": {"concepts": 1},
        "data": {},
        "model": {"a": 1},
    }
    for chance in attempts(100):
        found = mutated(chance, content)
        (tmp_path / "run.json").write_text(json.dumps(found), encoding="utf-8")
        try:
            run = RunFolder(tmp_path)
            run.check_resume_options({"seed": 0, "data": {"train": "a"}, "model": {"a": 1}})
        except (ValueError, FileExistsError) as error:
            attempts.refused(error)
