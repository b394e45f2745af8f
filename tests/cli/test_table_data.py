"""A table goes in where a COCO file goes, by the same option, and what was decided about it is said and kept."""

import csv
import json
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from conceptcam.analysis.baselines import fit_baselines
from conceptcam.cli.main import main
from conceptcam.data.splits import load_split
from conceptcam.model.concept_model import ConceptModel
from conceptcam.runs.folder import BASELINES_FILE
from tests.worlds import CONCEPTS, SIZE, Squares

TINY = [
    *("--backbone", "small_cnn_s8", "--image-size", "48", "64", "--epochs", "concepts=1", "prototypes=1", "task=1"),
    *("--batch-size", "8", "--figures", "1", "--precision", "fp32"),
]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of 12 patients, three concepts, a column of classes, a split column under another name, and boxes."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "films").mkdir()
    data, boxes = Squares(24, 0, preprocess=False), [["image", "concept", "x_min", "y_min", "x_max", "y_max"]]
    rows: list[list[Any]] = [["file_name", "patient_id", *CONCEPTS, "kind", "old_split"]]
    for index in range(len(data)):
        item, name = data.load_item(index), f"s{index:02d}.png"
        Image.fromarray(item.image.permute(1, 2, 0).numpy()).save(folder / "films" / name)
        labels = [int(value) for value in item.concepts]
        part = "test" if index % 6 == 5 else "valid" if index % 6 == 4 else "train"
        rows.append([name, f"p{index // 2}", *labels, ["calm", "busy"][int(sum(labels) > 1)], part])
        assert item.boxes is not None
        sides = torch.tensor([SIZE[1], SIZE[0]] * 2)
        for corners, concept in zip(item.boxes.xyxy * sides, item.boxes.concept.tolist(), strict=True):
            boxes.append([name, CONCEPTS[concept], *map(str, corners.tolist())])
        if not len(item.boxes):
            boxes.append([name, *[""] * 5])
    for name, content in (("labels.csv", rows), ("boxes.csv", boxes)):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows(content)
    return folder


@pytest.fixture(scope="module")
def run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    arguments = [str(table / "labels.csv"), "--images", str(table / "films"), "--concepts", *CONCEPTS]
    more = ["--task", "kind", "--boxes", str(table / "boxes.csv"), "--out", str(out)]
    assert main(["train", *arguments, *more, *TINY]) == 0
    return out


def names(table: Path, column: int = 0) -> list[str]:
    with (table / "labels.csv").open() as file:
        return [row[column] for row in csv.reader(file)][1:]


def test_one_command_trains_on_a_table(run: Path):
    model = ConceptModel.from_pretrained(run)
    assert model.config.concepts == CONCEPTS and model.config.tasks == ("busy", "calm")
    assert model.config.task_kind == "multiclass"
    assert "images of labels.csv" in model.record.training_data


def test_an_image_cache_changes_no_weight(run: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = [str(table / "labels.csv"), "--images", str(table / "films"), "--concepts", *CONCEPTS]
    more = ["--task", "kind", "--boxes", str(table / "boxes.csv"), "--out", str(tmp_path / "out")]
    assert main(["train", *arguments, *more, *TINY, "--image-cache", str(tmp_path / "cache")]) == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert re.search(r"About \d+ images a second are read and \d+ learned from, so \d+% of", capsys.readouterr().out)
    with sqlite3.connect(tmp_path / "cache" / "images.sqlite") as file:
        assert file.execute("SELECT count(*) FROM images").fetchone() == (24,)
    file.close()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["image_cache"] is True


def test_the_split_is_by_patient_and_kept(run: Path, table: Path):
    parts = load_split(run / "split.csv", names(table))
    assert sorted(set(parts)) == ["train", "val"] and 3 <= parts.count("val") <= 7
    for first, second in zip(parts[::2], parts[1::2], strict=True):  # two images of one patient
        assert first == second


def test_what_was_recognized_is_said(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = [str(table / "labels.csv"), "--images", str(table / "films"), "--concepts", *CONCEPTS]
    more = ["--task", "kind", "--boxes", str(table / "boxes.csv"), "--out", str(tmp_path / "out")]
    assert main(["train", *arguments, *more, *TINY]) == 0
    said = capsys.readouterr().out
    for sentence in (
        "Images are named in the column 'file_name'.",
        "Patients are in the column 'patient_id'.",
        "'kind' has 2 classes: busy (",
        "The boxes of boxes.csv are in pixels.",
        "Divided by patient: ",
        "written to split.csv.",
    ):
        assert sentence in said


def test_a_finished_run_on_a_table_is_left_alone(run: Path, table: Path, capsys: pytest.CaptureFixture[str]):
    arguments = [str(table / "labels.csv"), "--images", str(table / "films"), "--concepts", *CONCEPTS]
    more = ["--task", "kind", "--boxes", str(table / "boxes.csv"), "--out", str(run), "--resume"]
    assert main(["train", *arguments, *more, *TINY]) == 0
    assert "is finished" in capsys.readouterr().out
    assert main(["train", *arguments, *more, *TINY, "--val-fraction", "0.3"]) == 2
    assert "`val_fraction` was 0.2 and is 0.3" in capsys.readouterr().err


def test_evaluate_finds_the_classes_and_measures_on_a_part(
    run: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = ["evaluate", str(run), str(table / "labels.csv"), "--images", str(table / "films"), "--figures", "0"]
    boxes = ["--boxes", str(table / "boxes.csv")]
    part = ["--split", str(run / "split.csv"), "--part", "val"]
    assert main([*data, *boxes, *part, "--out", str(tmp_path / "val")]) == 0
    val = json.loads((tmp_path / "val" / "metrics.json").read_text())
    trained = json.loads((run / "metrics.json").read_text())
    assert val == trained
    capsys.readouterr()
    assert main([*data, "--out", str(tmp_path / "all")]) == 0
    said = capsys.readouterr().out
    assert "WARNING" in said and "--part val" in said and "'kind' has 2 classes" in said
    assert main([*data, *part[:2], "--part", "test", "--out", str(tmp_path / "test")]) == 2
    assert "there is no part 'test': the parts are ['train', 'val']" in capsys.readouterr().err


def test_evaluate_measures_the_simpler_models_of_a_run(
    run: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = shutil.copytree(run, tmp_path / "model")
    channels = ConceptModel.from_pretrained(folder).backbone.out_channels
    concepts, classes = (torch.rand(40, 3) < 0.5).float(), torch.eye(2)[torch.arange(40) % 2]
    fit_baselines(torch.randn(40, channels), concepts, classes, kind="multiclass").save(folder / BASELINES_FILE)
    data = ["evaluate", str(folder), str(table / "labels.csv"), "--images", str(table / "films"), "--figures", "0"]
    assert main([*data, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "fitted on 40 training images" in said and "\nmajority " in said and "\nthis model " in said
    assert "true, and called" in said and "balanced accuracy" in said


def test_a_split_column_divides_the_images(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = (table / "labels.csv").read_text().replace("old_split", "split")
    (tmp_path / "labels.csv").write_text(text)
    arguments = [str(tmp_path / "labels.csv"), "--images", str(table / "films"), "--concepts", "bright"]
    assert main(["train", *arguments, "--task", "kind", *TINY, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "images of 'test' are left out" in said
    assert "Training on 16 images, validating on 4" in said
    assert load_split(tmp_path / "out" / "split.csv", names(table))[4:6] == ["val", "test"]


def test_training_images_of_an_official_split_are_divided_again(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    text = (table / "labels.csv").read_text().replace("old_split", "split").replace("valid", "test")
    (tmp_path / "labels.csv").write_text(text)
    arguments = [str(tmp_path / "labels.csv"), "--images", str(table / "films"), "--concepts", "bright"]
    assert main(["train", *arguments, "--task", "kind", *TINY, "--out", str(tmp_path / "out")]) == 0
    assert "; the split column has 8 others" in capsys.readouterr().out
    given, parts = names(table, -1), load_split(tmp_path / "out" / "split.csv", names(table))
    assert {part for part, before in zip(parts, given, strict=True) if before == "train"} == {"train", "val"}
    assert {part for part, before in zip(parts, given, strict=True) if before != "train"} == {"test"}


def test_training_begins_with_what_is_wrong_with_the_labels(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    lines = (table / "labels.csv").read_text().splitlines()
    rows = [f"{line},{more}" for line, more in zip(lines, ["never", *["0"] * 24], strict=True)]
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    arguments = [str(tmp_path / "labels.csv"), "--images", str(table / "films"), "--concepts", "bright", "never"]
    assert main(["train", *arguments, "--task", "kind", *TINY, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "WARNING: one-sided label in the training data: 'never' is present in no image; nothing is learned." in said


def test_a_saved_split_divides_another_run(run: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = (run / "split.csv").read_text().splitlines()
    swapped = [line.replace(",train", ",VAL").replace(",val", ",train").replace("VAL", "val") for line in lines]
    (tmp_path / "swapped.csv").write_text("\n".join(swapped) + "\n")
    arguments = [str(table / "labels.csv"), "--images", str(table / "films"), "--concepts", "bright", "--task", "kind"]
    more = ["--split", str(tmp_path / "swapped.csv"), "--out", str(tmp_path / "out")]
    assert main(["train", *arguments, *more, *TINY]) == 0
    assert (tmp_path / "out" / "split.csv").read_text() == (tmp_path / "swapped.csv").read_text()
    (tmp_path / "swapped.csv").write_text("\n".join(swapped).replace("val", "test"))
    assert main(["train", *arguments, *more[:2], "--out", str(tmp_path / "b"), *TINY]) == 2
    assert "needs the parts 'train' and 'val', and has ['test', 'train']" in capsys.readouterr().err
    assert main(["train", *arguments, *more[:2], "--val", "v.csv", "--out", str(tmp_path / "b"), *TINY]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_two_tables_train_and_validate(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = (table / "labels.csv").read_text().splitlines(keepends=True)
    (tmp_path / "train.csv").write_text("".join(lines[:16]))
    (tmp_path / "val.csv").write_text(lines[0] + "".join(lines[16:]))
    arguments = [str(tmp_path / "train.csv"), "--val", "val.csv", "--images", str(table / "films")]
    more = ["--concepts", *CONCEPTS, "--task", "kind", "--out", str(tmp_path / "out")]
    assert main(["train", *arguments, *more, *TINY]) == 0
    said = capsys.readouterr().out
    assert "Training on 15 images, validating on 9" in said
    assert "WARNING: 1 patients are in both training and validation data: p7." in said
    assert not (tmp_path / "out" / "split.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["labels.csv", "--images", "films"], "name those of its columns that are concepts with --concepts: ["),
        (["labels.csv", "--concepts", "bright"], "24 of 24 images are missing from"),
        (["labels.csv", "--concepts", "bright"], "name the folder of the images with --images"),
        (["labels.csv", "--images", "films", "--concepts", "brihgt"], "did you mean ['bright'"),
        (["nothing.csv", "--concepts", "bright"], "there is no file"),
        (["labels.csv", "--images", "films", "--concepts", "bright", "--val", "v.csv"], "name the annotations with --"),
        (["labels.csv", "--images", "films", "--concepts", "bright", "--boxes", "labels.csv"], "csv has no boxes"),
    ],
)  # fmt: skip
def test_errors_about_tables_are_one_sentence(
    arguments: list[str], said: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    paths = [str(table / one) if one in ("labels.csv", "films", "nothing.csv") else one for one in arguments]
    assert main(["train", *paths, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1 and not (tmp_path / "out").exists()


def test_predict_reads_whole_folders_and_adds_ids_if_asked(run: Path, tmp_path: Path):
    pytest.importorskip("pydicom")
    from tests.data.test_dicom import RAMP, write

    folder = tmp_path / "study" / "series"
    folder.mkdir(parents=True)
    write(folder / "IM0001", RAMP)  # as archives name them
    Image.new("L", (64, 48), 90).save(folder / "b.png")
    (folder / "notes.txt").write_text("no image")
    assert main(["predict", str(run), str(tmp_path / "study"), "--ids", "--out", str(tmp_path / "p.csv")]) == 0
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(Path(row["image"]).name, row["patient"], row["study"]) for row in rows] == [
        ("IM0001", "p-17", "1.2.3.4"), ("b.png", "", ""),
    ]  # fmt: skip
    assert main(["predict", str(run), str(tmp_path / "study"), "--out", str(tmp_path / "q.csv")]) == 0
    assert "p-17" not in (tmp_path / "q.csv").read_text()


def test_a_folder_without_images_is_an_error(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["predict", str(run), str(tmp_path), "--out", str(tmp_path / "p.csv")]) == 2
    assert "there are no images in the folder" in capsys.readouterr().err


def test_inspect_reports_and_its_exit_code_tells_of_faults(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = ["inspect", str(table / "labels.csv"), "--images", str(table / "films"), "--concepts", *CONCEPTS]
    assert main([*data, "--image-size", "48", "64", "--json", str(tmp_path / "faults.json")]) == 0
    said = capsys.readouterr().out
    assert "24 images of 12 patients" in said and "No faults were found." in said and "bright   concept" in said
    assert json.loads((tmp_path / "faults.json").read_text())["faults"] == []
    boxes = ["--boxes", str(table / "boxes.csv"), "--html", str(tmp_path / "faults.html")]
    assert main([*data, "--image-size", "48", "64", "--grid", "6", "8", *boxes]) == 0
    assert "boxes at 48 x 64 pixels, 6 x 8 cells" in capsys.readouterr().out
    page = (tmp_path / "faults.html").read_text()
    assert page.count("<img src=") == 24 and "No faults were found." in page and "http" not in page
    assert "<h2>Labels that come together</h2>" in page and re.search(r'title="\d+ of \d+ with bright have dark"', page)
    assert "cells of its grid of 6 x 8" in page
    capsys.readouterr()
    assert main([*data]) == 1
    assert "small image: 24 images are smaller than the model's input" in capsys.readouterr().out
    assert main([*data, "--labels-only"]) == 0


def test_folds_are_trained_and_resumed_by_the_same_command(table: Path, tmp_path: Path, capsys):
    arguments = [str(table / "labels.csv"), "--images", str(table / "films"), "--concepts", *CONCEPTS]
    more = ["--task", "kind", "--folds", "2", "--out", str(tmp_path / "cv"), *TINY]
    assert main(["train", *arguments, *more]) == 0
    said = capsys.readouterr().out
    assert "Fold 2 of 2: 12 images are held out ..." in said and "balanced accuracy" in said
    patients = dict(zip(names(table), names(table, 1), strict=True))
    fold = dict(zip(names(table), load_split(tmp_path / "cv" / "split.csv", names(table)), strict=True))
    assert len({(patients[name], fold[name]) for name in fold}) == len(set(patients.values()))
    assert ConceptModel.from_pretrained(tmp_path / "cv" / "final").record.metrics
    assert main(["train", *arguments, *more, "--resume"]) == 0
    assert capsys.readouterr().out.splitlines()[-12:] == said.splitlines()[-12:]


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--folds", "1"], "--folds needs at least 2, got 1"),
        (["--folds", "3", "--val", "x.csv"], "--folds divides the data itself: leave out --val and --split"),
        (["--folds", "3", "--uncertain", "ones"], "where -1 is unknown: leave out --uncertain"),
    ],
)
def test_folds_that_cannot_be_are_refused(flags, sentence, table: Path, tmp_path: Path, capsys):
    arguments = [str(table / "labels.csv"), "--images", str(table / "films"), "--concepts", *CONCEPTS]
    assert main(["train", *arguments, *flags, "--out", str(tmp_path / "cv"), *TINY]) != 0
    assert sentence in capsys.readouterr().err
