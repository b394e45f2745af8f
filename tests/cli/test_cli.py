"""The command line, as a user meets it: real commands on a small folder of real files."""

import csv
import importlib.util
import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from conceptcam.analysis.intervention import Intervention
from conceptcam.analysis.intervention_result import intervene
from conceptcam.backbones import create_backbone
from conceptcam.cli.inputs import make_options
from conceptcam.cli.main import build_parser, main
from conceptcam.model.concept_model import ConceptModel
from conceptcam.runs import run as runs
from conceptcam.runs.demo import FULL, QUICK
from conceptcam.runs.options import RunOptions
from tests.worlds import CONCEPTS, SIZE, TASKS, Squares, tiny_model


def write_coco(folder, name, count, seed, *, tasks=True):
    data = Squares(count, seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(count):
        item = data.load_item(index)
        file = f"{name}-{index}.png"
        Image.fromarray(item.image.permute(1, 2, 0).numpy()).save(folder / "images" / file)
        row = {"id": index, "file_name": file, "height": SIZE[0], "width": SIZE[1]}
        if tasks:
            row["tasks"] = dict(zip(TASKS, item.targets.tolist(), strict=True))
        images.append(row)
        for (x0, y0, x1, y1), k in zip(item.boxes.xyxy.tolist(), item.boxes.concept.tolist(), strict=True):
            box = [x0 * SIZE[1], y0 * SIZE[0], (x1 - x0) * SIZE[1], (y1 - y0) * SIZE[0]]
            annotations.append({"id": len(annotations), "image_id": index, "category_id": k, "bbox": box, "iscrowd": 0})
    categories = [{"id": k, "name": concept} for k, concept in enumerate(CONCEPTS)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{name}.json").write_text(json.dumps(content))


def width(path):
    with Image.open(path) as picture:
        return picture.width


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares")
    write_coco(folder, "train", 24, 0)
    write_coco(folder, "val", 12, 1)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    # As in a script that is started again and again: this is the first start.
    assert main(["train", str(data), *TINY, "--out", str(out), "--resume"]) == 0
    return out


TINY = ["--backbone", "small_cnn_s8", "--image-size", "48", "64", "--batch-size", "8", "--precision", "fp32",
        "--epochs", "concepts=2", "prototypes=1", "task=1", "--figures", "2"]  # fmt: skip


def test_train_writes_a_folder_that_loads_and_tells_all(run):
    model = ConceptModel.from_pretrained(run)
    assert model.config.concepts == CONCEPTS
    assert model.record.stages == ("concepts", "prototypes", "task")
    assert model.record.thresholds.keys() == set(CONCEPTS)
    assert model.record.training_data.startswith("24 images of ")
    with (run / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["stage"], row["epoch"]) for row in rows] == [
        ("concepts", "1"), ("concepts", "2"), ("embedding", "1"), ("prototypes", "1"), ("task", "1"),
    ]  # fmt: skip
    assert all(float(row["train_loss"]) > 0 and float(row["val_loss"]) > 0 for row in rows)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["summary"]["images"] == 12
    figures = {str(path.relative_to(run)) for path in run.rglob("*.png")}
    images = {"figures/images/val-0.png", "figures/images/val-1.png"}
    assert figures == {"figures/learning.png", "figures/curves.png", *images}
    assert all(width(run / figure) > 100 for figure in figures)
    assert model.record.metrics["images"] == 12
    assert {path.name for path in run.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "run.json", "history.csv", "metrics.json", "metrics.txt",
        "figures",
    }  # fmt: skip


def test_run_json_says_all_that_repeats_a_run(run, data):
    told = json.loads((run / "run.json").read_text())
    assert told["precision"] == "fp32" and told["finished"] is True and told["processes"] == 1
    assert told["imbalance"] == {"concepts": "ratio", "tasks": "ratio"}
    assert told["model"]["backbone"] == "small_cnn_s8" and told["model"]["image_size"] == [48, 64]
    here = told["data"]
    assert (here["folder"], here["images"]) == (str(data), str(data / "images"))
    assert (here["train"], here["val"], here["train_images"], here["val_images"]) == ("train.json", "val.json", 24, 12)
    assert (here["uncertain"], here["invalid_boxes"], here["no_augment"]) == ("ignore", "error", False)


def test_a_finished_run_is_left_alone_wherever_its_data_are(run, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(["train", "/nowhere", *TINY, "--out", str(run), "--resume"]) == 0
    assert f"The run in {run} is finished; there is nothing left to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (["--batch-size", "4"], "`batch_size` was 8 and is 4"),
        (["--backbone", "small_cnn_s8_w64"], "`backbone` was 'small_cnn_s8' and is 'small_cnn_s8_w64'"),
        (["--no-augment"], "`no_augment` was False and is True"),
        (["--uncertain", "ones"], "`uncertain` was 'ignore' and is 'ones'"),
        (["--imbalance", "focal"], "`imbalance` was {'concepts': 'ratio', 'tasks': 'ratio'} and is"),
        (["--prototypes-per-concept", "2"], "`prototypes_per_concept` was None and is 2"),
        (["--val", "other.json"], "`val` was 'val.json' and is 'other.json'"),
    ],
)
def test_resume_names_a_changed_option_without_checkpoints(changed, sentence, finished, run, data, tmp_path, capsys):
    told = json.loads((run / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**told, "finished": finished}))
    (data / "other.json").write_text((data / "val.json").read_text())
    assert main(["train", str(data), *TINY, *changed, "--out", str(tmp_path), "--resume"]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "choose another folder" in said
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_folder_with_an_unfinished_run_needs_resume(run, data, tmp_path, capsys):
    told = json.loads((run / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**told, "finished": False}))
    assert main(["train", str(data), *TINY, "--out", str(tmp_path)]) == 2
    assert (
        "holds an unfinished run; resume it with `resume=True` (--resume), or choose another folder"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("notes.txt", "holds ['notes.txt'] but no run.json; choose another"), ("run.json", "cannot be read")],
)
def test_resume_in_a_folder_of_something_else_is_refused(content, sentence, data, tmp_path, capsys):
    (tmp_path / content).write_text("something else")
    assert main(["train", str(data), *TINY, "--out", str(tmp_path), "--resume"]) == 2
    assert sentence in capsys.readouterr().err
    assert main(["train", str(data), *TINY, "--resume"]) == 2
    assert "--resume needs --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            ["--layer-decay", "0.75"],
            "does not say which layer 'position' is in; leave `layer_decay` (--layer-decay) at 1",
        ),
        (["--gradient-checkpointing"], "a SmallCnn cannot do it"),
        (["--solve-task"], "head at once: leave the epochs of 'task' out of `epochs` (--epochs)"),
        (["--image-size", "50", "50"], "multiples of 8"),
        (["--prototypes-per-concept", "2", "--bottleneck", "concepts"], "--prototypes-per-concept) would do nothing"),
        (["--feature-level", "-2"], "has one feature level"),
    ],
)
def test_a_first_command_that_fails_leaves_no_folder_in_the_way(wrong, sentence, data, tmp_path, capsys):
    assert main(["train", str(data), *TINY, *wrong, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert not (tmp_path / "out").exists()


def test_a_first_demo_that_fails_leaves_no_folder_in_the_way(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CONCEPTCAM_CACHE", str(tmp_path / "feature_cache"))
    small = ["--images", "16", "--size", "64", "--layer-decay", "0.75", "--precision", "fp32"]
    assert main(["demo", *small, "--out", str(tmp_path / "out")]) == 2
    assert "leave `layer_decay` (--layer-decay) at 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_train_solves_for_the_task_head_and_says_how_it_begins(data, tmp_path, capsys):
    quick = ["--epochs", "concepts=1", "prototypes=1", "--precision", "auto", "--solve-task", "--figures", "0"]
    assert main(["train", str(data), *TINY[: TINY.index("--epochs")], *quick, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    told = json.loads((tmp_path / "out" / "run.json").read_text())
    assert "The backbone small_cnn_s8 starts from random weights." in printed
    assert f"Training in {told['precision']}." in printed
    assert told["solve_task"] is True and told["stages"]["task"] == 1


def test_epochs_add_up_and_the_last_of_a_stage_counts():
    typed = ["demo", "--epochs", "concepts=1", "task=2", "--epochs", "prototypes=3", "task=4"]
    options = make_options(build_parser().parse_args(typed), QUICK.options)
    assert options.epochs == {"concepts": 1, "prototypes": 3, "task": 4}


def test_a_demo_that_solves_for_its_task_head_has_no_epochs_for_it():
    options = make_options(build_parser().parse_args(["demo", "--solve-task"]), FULL.options)
    assert options.epochs == {"concepts": 8, "prototypes": 10}


def test_each_flag_of_training_is_an_option_with_its_default():
    given = build_parser().parse_args(["train", "data"])
    names = {field.name for field in fields(RunOptions) if field.metadata.get("flag", True)}
    assert names <= vars(given).keys()
    assert make_options(given) == RunOptions()


def test_train_answers_imbalance_as_told(run, data, tmp_path):
    out = tmp_path / "out"
    assert main(["train", str(data), *TINY, "--imbalance", "focal", "--out", str(out)]) == 0
    told, plain = (json.loads((folder / "run.json").read_text())["imbalance"] for folder in (out, run))
    assert told == {"concepts": "focal", "tasks": "focal"} and plain == {"concepts": "ratio", "tasks": "ratio"}
    first, second = (ConceptModel.from_pretrained(folder).concept_head.state_dict() for folder in (out, run))
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_train_maps_uncertain_labels_in_training_data_alone(data, tmp_path, monkeypatch):
    for name in ("train", "val"):
        content = json.loads((data / f"{name}.json").read_text())
        for image in content["images"][:4]:
            image["concepts"] = {"striped": -1}
        (data / f"hedged-{name}.json").write_text(json.dumps(content))
    seen = {}

    def look(config, train, val, *rest, **named):
        seen.update(train=train, val=val)
        raise ValueError("enough was seen")

    monkeypatch.setattr(runs, "train_run", look)
    hedged = ["train", str(data), "--train", "hedged-train.json", "--val", "hedged-val.json", *TINY]
    assert main([*hedged, "--uncertain", "soft", "--out", str(tmp_path / "out")]) == 2
    assert seen["train"].concept_labels[:4, 2].tolist() == pytest.approx([0.7] * 4)
    assert seen["val"].concept_labels[:4, 2].isnan().all()


def test_uncertain_labels_of_a_multiclass_task_are_refused(data, tmp_path, capsys):
    content = json.loads((data / "train.json").read_text())
    content["images"][0]["tasks"] = dict.fromkeys(TASKS, -1)
    (data / "open.json").write_text(json.dumps(content))
    arguments = ["train", str(data), "--train", "open.json", *TINY, "--task-kind", "multiclass", "--uncertain", "ones"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert "write null there, or set `uncertain` to 'ignore'" in capsys.readouterr().err


def test_train_says_that_tasks_are_absent_and_goes_on(tmp_path, capsys):
    write_coco(tmp_path / "data", "train", 8, 0, tasks=False)
    write_coco(tmp_path / "data", "val", 8, 1, tasks=False)
    assert (
        main(
            [
                "train",
                str(tmp_path / "data"),
                *TINY[:-8],
                "--epochs",
                "concepts=1",
                "prototypes=1",
                "--out",
                str(tmp_path / "o"),
            ]
        )
        == 0
    )
    assert "No task labels in the data" in capsys.readouterr().out
    assert ConceptModel.from_pretrained(tmp_path / "o").record.stages == ("concepts", "prototypes")


def test_train_starts_from_a_weights_file(data, tmp_path):
    weights = tmp_path / "backbone.safetensors"
    donor = tiny_model(seed=5).backbone
    save_file({name: value.contiguous() for name, value in donor.state_dict().items()}, weights)
    out = tmp_path / "out"
    frozen = ["--weights", str(weights), "--freeze-backbone", "--out", str(out)]
    assert main(["train", str(data), *TINY[:-8], "--epochs", "concepts=1", "prototypes=1", "task=1", *frozen]) == 0
    trained = ConceptModel.from_pretrained(out).backbone.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in donor.state_dict().items())


def test_evaluate_prints_the_figures_that_train_wrote(run, data, tmp_path, capsys):
    assert (
        main(["evaluate", str(run), str(data), "--out", str(tmp_path / "e"), "--sided", "dark", "--figures", "1"]) == 0
    )
    assert "dark *" in capsys.readouterr().out
    ours = json.loads((tmp_path / "e" / "metrics.json").read_text())["concepts"]
    theirs = json.loads((run / "metrics.json").read_text())["concepts"]
    assert ours["bright"] == pytest.approx(theirs["bright"], nan_ok=True)


def test_explain_names_concepts_and_shares_and_draws(run, data, tmp_path, capsys):
    image = data / "images" / "val-0.png"
    assert main(["explain", str(run), str(image), "--task", "any", "--out", str(tmp_path / "x"), "--top", "2"]) == 0
    printed = capsys.readouterr().out
    assert "any: p = " in printed and "bright and dark: p" not in printed
    assert any(f"  {concept} " in printed for concept in CONCEPTS)
    content = json.loads((tmp_path / "x" / "val-0.json").read_text())
    assert set(content["concepts"]) == set(CONCEPTS)
    assert width(tmp_path / "x" / "val-0.png") > 100


def test_explain_says_what_changes_if_a_concept_is_set(run, data, tmp_path, capsys):
    image, told = data / "images" / "val-0.png", ["--set", "bright=absent", "--set", "dark=0.3"]
    assert main(["explain", str(run), str(image), "--out", str(tmp_path / "x"), *told]) == 0
    assert "answered absent" in capsys.readouterr().out
    content = json.loads((tmp_path / "x" / "val-0.json").read_text())
    assert content["intervention"]["concepts"]["dark"]["answer"] == 0.3
    assert content["before"]["tasks"]["any"]["logit"] != content["after"]["tasks"]["any"]["logit"]
    assert width(tmp_path / "x" / "val-0-answered.png") > 100


def test_explain_takes_places_and_rejected_prototypes(run, data, tmp_path, capsys):
    image = str(data / "images" / "val-0.png")
    told = ["--here", "bright=0,0,0.5,0.5", "--not-here", "dark=0.5,0,1,1", "--reject", "striped=1", "--reject", "dark"]
    assert main(["explain", str(run), image, "--out", str(tmp_path / "x"), *told]) == 0
    printed = capsys.readouterr().out
    assert "rejected: prototype 1 of striped" in printed and "rejected: dark" in printed
    content = json.loads((tmp_path / "x" / "val-0.json").read_text())
    assert set(content["intervention"]["concepts"]) == {"bright", "dark", "striped"}
    expected = intervene(
        ConceptModel.from_pretrained(run),
        image,
        Intervention(
            here={"bright": [[0, 0, 0.5, 0.5]]}, not_here={"dark": [[0.5, 0, 1, 1]]}, rejected=[("striped", 1), "dark"]
        ),
    )
    assert content["after"] == json.loads(json.dumps(expected.as_dict()["after"]))
    assert width(tmp_path / "x" / "val-0-answered.png") > 100


def test_atlas_lists_prototypes_and_leaves_the_model_alone(run, data, tmp_path, capsys):
    before = (run / "model.safetensors").read_bytes()
    assert main(["atlas", str(run), str(data), "--out", str(tmp_path / "x")]) == 0
    printed = capsys.readouterr().out
    assert "purity" in printed and "bright 0" in printed
    assert {path.name for path in (tmp_path / "x").iterdir()} == {"atlas.json", "atlas.txt", "atlas.png"}
    assert (run / "model.safetensors").read_bytes() == before


def test_atlas_drops_merges_and_names_into_a_new_model(run, data, tmp_path):
    edits = ["--drop", "bright=1", "--merge", "dark=0,1", "--rename", "striped=0=zebra"]
    assert main(["atlas", str(run), str(data), *edits, "--out", str(tmp_path / "x")]) == 0
    old, new = ConceptModel.from_pretrained(run), ConceptModel.from_pretrained(tmp_path / "x")
    vectors = new.prototypes.vectors
    assert (vectors[0, 1] == 0).all() and (vectors[1, 1] == 0).all() and (vectors[1, 0] != 0).any()
    assert torch.equal(vectors[2], old.prototypes.vectors[2])
    changed = {name for name, value in new.state_dict().items() if not torch.equal(value, old.state_dict()[name])}
    assert {name.split(".")[0] for name in changed} == {"prototypes", "task_head"}
    assert "task" in new.record.stages and new.record.evidence_source
    made = f"{run.name}, the model whose weights have the SHA-256 {old.record.weights_sha256}"
    assert new.record.derived_from == f"{made}; merged dark 0, 1; dropped bright 1"
    assert f"by changing it: {made}; merged dark 0, 1" in (tmp_path / "x" / "README.md").read_text()
    again = ["atlas", str(tmp_path / "x"), str(data), "--rename", "dark=0=hole=dark=0=1", "--out", str(tmp_path / "y")]
    assert main(again) == 0
    entries = json.loads((tmp_path / "y" / "atlas.json").read_text())["prototypes"]
    named = {(one["concept"], one["number"]): one["name"] for one in entries if one["name"]}
    assert named == {("striped", 0): "zebra", ("dark", 0): "hole=dark=0=1"}
    assert main(["evaluate", str(tmp_path / "y"), str(data), "--figures", "0", "--out", str(tmp_path / "z")]) == 0


def test_atlas_refuses_names_that_it_cannot_read(run, data, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "model")
    (tmp_path / "model" / "atlas.json").write_text("{}")
    assert main(["atlas", str(tmp_path / "model"), str(data), "--out", str(tmp_path / "x")]) == 2
    assert "was not written by `conceptcam atlas`, or is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (["--drop", "bright"], "--drop expects NAME=N, a concept and the number of its prototype"),
        (["--drop", "bright=9"], "'bright' has 5 prototypes, counted from 0; there is no 9"),
        (["--merge", "dark=1"], "--merge expects NAME=N,N"),
        (["--rename", "dark=1"], "--rename expects NAME=N"),
        (["--rename", "dark=hole=1"], "--rename expects NAME=N"),
        (["--drop", "brihgt=0"], "did you mean"),
    ],
)
def test_atlas_refuses_what_the_model_does_not_have(run, data, tmp_path, capsys, edit, message):
    assert main(["atlas", str(run), str(data), *edit, "--out", str(tmp_path / "x")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_compare_puts_two_models_side_by_side(run, data, tmp_path, capsys):
    arguments = ["compare", str(run), str(run), str(data), "--draws", "5", "--out", str(tmp_path / "x")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("A: a model trained on 24 images") and "B: a model" in printed
    content = json.loads((tmp_path / "x" / "comparison.json").read_text())
    assert content["concepts"]["bright"]["auroc"]["interval"] == [0, 0]
    assert "macro mean" in (tmp_path / "x" / "comparison.txt").read_text()


def test_evaluate_all_measures_more_and_says_how_long(run, data, tmp_path, capsys):
    place = tmp_path / "x"
    assert main(["evaluate", str(run), str(data), "--figures", "0", "--all", "--out", str(place)]) == 0
    printed = capsys.readouterr().out
    assert printed.index("Written to") < printed.index("Measuring the rest") < printed.index("leak to tasks (CTL)")
    assert "slow" in json.loads((place / "metrics.json").read_text())
    if importlib.util.find_spec("matplotlib") is not None:
        assert {"froc.png", "interventions.png"} <= {path.name for path in (place / "figures").glob("*.png")}


def test_a_stopped_evaluate_all_leaves_the_usual_results(run, data, tmp_path, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    place = tmp_path / "x"
    monkeypatch.setattr("conceptcam.analysis.slow_measures.measure_sample", stop)
    assert main(["evaluate", str(run), str(data), "--figures", "0", "--all", "--out", str(place)]) == 130
    assert "macro mean" in (place / "metrics.txt").read_text() and (place / "predictions.csv").is_file()
    assert json.loads((place / "metrics.json").read_text())["images"] == 12
    assert "macro mean" in capsys.readouterr().out


def test_evaluate_writes_predictions_and_figures(run, data, tmp_path):
    place = tmp_path / "x"
    assert main(["evaluate", str(run), str(data), "--figures", "0", "--out", str(place)]) == 0
    with (place / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [f"val-{index}.png" for index in range(12)]
    assert json.loads((place / "metrics.json").read_text())["schema_version"] == 1
    if importlib.util.find_spec("matplotlib") is not None:
        assert {path.name for path in (place / "figures").glob("*.png")} == {"reliability.png", "precision-recall.png"}


def test_an_unlike_image_is_said_to_be_so_unless_hidden(run, data, tmp_path, capsys):
    Image.effect_noise((64, 48), 90).save(tmp_path / "noise.png")
    noise = str(tmp_path / "noise.png")
    assert main(["explain", str(run), noise, "--out", str(tmp_path / "said")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("A model trained on ") and "not for diagnosis" in printed
    assert "this image is unlike those the model was trained on" in printed
    assert main(["explain", str(run), noise, "--out", str(tmp_path / "hidden"), "--hide-unlike"]) == 0
    assert "is unlike" not in capsys.readouterr().out
    assert json.loads((tmp_path / "hidden" / "noise.json").read_text())["unlikeness"] > 1
    assert main(["predict", str(run), noise, "--out", str(tmp_path / "table.csv")]) == 0
    assert "1 of 1 images are unlike" in capsys.readouterr().out
    assert main(["predict", str(run), noise, "--out", str(tmp_path / "quiet.csv"), "--hide-unlike"]) == 0
    assert "are unlike" not in capsys.readouterr().out


def test_demo_runs_through_in_small(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CONCEPTCAM_CACHE", str(tmp_path / "feature_cache"))
    small = [
        "--images",
        "64",
        "--size",
        "64",
        "--epochs",
        "concepts=1",
        "prototypes=1",
        "task=1",
        "--precision",
        "fp32",
    ]
    assert main(["demo", *small, "--out", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    for line in ("concept AUROC", "pointing, five small findings", "ceiling by enumeration", "linear head on the true"):
        assert line in printed
    first = printed.index("A first look, by the bundled model phantom-csr")
    assert first < printed.index("Drawing 64") < printed.index("Training ...") < printed.index(" epoch  1 of 1: loss ")
    figures = {path.name for path in (tmp_path / "demo" / "figures").iterdir()}
    assert {"first.png", "phantom.png"} <= figures and "learning.png" not in figures  # one epoch shows no learning
    assert json.loads((tmp_path / "demo" / "summary.json").read_text()).keys()
    assert ConceptModel.from_pretrained(tmp_path / "demo").record.stages[-1] == "task"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "{data}", "--backbone", "small_cnn_s9"], "did you mean ['small_cnn_s8'"),
        (["train", "{data}", "--backbone", "timm:resnet19"], "timm has no model 'resnet19'"),
        (["train", "{data}/nowhere"], "there is no folder {data}/nowhere with train.json in it"),
        (["train", "{data}", "--train", "trian.json"], "name the annotations with --train"),
        (["train", "{data}", "--val", "vla.json"], "name the annotations with --val"),
        (["evaluate", "{run}", "{data}", "--annotations", "tset.json"], "name the annotations with --annotations"),
        (["train", "{data}", "--train", "images"], "images is a folder; give a file"),
        (["train", "{data}", "--images", "{data}/pictures"], "name the folder of the images with --images"),
        (["train", "{data}", "--layer-decay", "7"], "`layer_decay` of stage 'concepts' must be in [0, 1]"),
        (["train", "{data}", "--precision", "fp16"], "the precision 'fp16' needs a GPU"),
        (["train", "{data}", "--val", "train.json"], "24 images are in both training and validation data"),
        (
            ["train", "{data}", *TINY, "--preset", "paper", "--imbalance", "sqrt"],
            "so imbalance 'sqrt' would do nothing",
        ),
        (
            ["train", "{data}", *TINY, "--task-kind", "multiclass", "--imbalance", "asymmetric"],
            "for multi-class ones choose 'focal'",
        ),
        (["train", "{data}", "--device", "cuda:x"], "cannot use the device 'cuda:x'"),
        (["train", "{data}", "--backbone", "timm:resnet18.nonsense"], "nonsense"),
        (["demo", "--size", "100"], "--size must be a multiple of 8"),
        (["train", "{data}", "--weights", "{data}/none.safetensors", "--backbone", "small_cnn_s8"], "no weights file"),
        (["evaluate", "{data}", "{data}"], "holds no config.json"),
        (["evaluate", "{run}", "{data}", "--sided", "drak"], "unknown concept 'drak'; did you mean ['dark']"),
        (["explain", "{run}", "{data}/images/none.png"], "none.png"),
        (["explain", "{run}", "{data}/train.json"], "train.json"),
        (["explain", "{run}", "{data}/images/val-0.png", "--task", "anny"], "did you mean ['any']"),
        (["explain", "{run}", "{data}/images/val-0.png", "--concept", "brihgt"], "did you mean ['bright']"),
        (["explain", "{run}", "{data}/images/val-0.png", "--set", "brihgt=absent"], "did you mean ['bright']"),
        (["explain", "{run}", "{data}/images/val-0.png", "--set", "bright"], "expected NAME=present, NAME=absent"),
        (["explain", "{run}", "{data}/images/val-0.png", "--here", "bright=0,0,2"], "--here expects NAME=LEFT,TOP"),
        (["explain", "{run}", "{data}/images/val-0.png", "--not-here", "bright=.5,0,.4,1"], "--not-here expects"),
        (["explain", "{run}", "{data}/images/val-0.png", "--reject", "bright=99"], "cannot reject 99"),
        (["explain", "{data}", "{data}/images/val-0.png"], "holds no config.json"),
    ],
)
def test_users_error_is_one_sentence_and_exit_code_2(arguments, sentence, run, data, tmp_path, capsys):
    filled = [argument.format(data=data, run=run) for argument in arguments]
    assert main([*filled, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert sentence.format(data=data) in said
    assert said.count("\n") == 1
    assert "Traceback" not in said and "Errno" not in said
    assert not (tmp_path / "out").exists()


def test_folder_that_holds_something_is_not_written_over(run, data, capsys):
    assert main(["train", str(data), *TINY, "--out", str(run)]) == 2
    assert "choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_file_of_annotations_that_cannot_be_used_is_named_once(content, data, tmp_path, capsys):
    (data / "broken.json").write_text(content)
    assert main(["train", str(data), "--train", "broken.json", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("broken.json") == 1


@pytest.mark.parametrize("command", ["demo", "train", "evaluate", "explain", "predict"])
def test_help_reads_like_a_manual_page(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "examples:" in printed
    assert "--out " in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["demo", "--epochs", "concept=3"], "expected concepts=N, prototypes=N or task=N, got 'concept=3'"),
        (["demo", "--images", "0"], "expected a whole number, above 0, got '0'"),
        (["train", "x", "--imbalance", "focl"], "unknown imbalance 'focl'; did you mean ['focal']"),
        (["demo", "--preset", "papers"], "unknown preset 'papers'; did you mean ['paper']"),
        (["dmeo"], "invalid choice: 'dmeo'"),
        (["demo", "--num-workers", "-1"], "expected a whole number, 0 or above, got '-1'"),
    ],
)
def test_wrong_options_are_explained(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


def test_models_lists_a_pattern_and_shows_one_name_in_full(capsys):
    assert main(["models", "phantom-*"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[1] for row in rows[2:]] == ["phantom-cbm", "phantom-csr"]
    assert main(["models", "medmae_vit_b16"]) == 0
    shown = capsys.readouterr().out
    assert "arXiv:2407.14784" in shown
    assert shown.endswith("Note: the weights of medmae_vit_b16 are under CC-BY-NC-4.0, which forbids commercial use.\n")
    assert main(["models", "medmae_vitb16"]) == 2
    assert "did you mean ['medmae_vit_b16'" in capsys.readouterr().err


def test_models_shows_a_bundled_model_in_readable_lines(capsys):
    assert main(["models", "phantom-csr"]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if not line.startswith(" ")}
    assert shown["backbone"] == "small_cnn_s4" and shown["image_size"] == "112, 112"
    assert shown["tasks"].startswith("Pneumonia, Tuberculosis, ")
    assert shown["stages"] == "concepts, prototypes, task"
    assert max(map(len, lines)) <= 110
    assert not any(sign in line for line in lines for sign in ("ConceptConfig(", "TrainingRecord(", "{", "None"))


@pytest.mark.parametrize("name", ["timm:resnet18", "small_cnn_s8"])
def test_models_says_of_a_backbone_what_it_is_and_how_to_use_it(name, capsys):
    assert main(["models", name]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{name} is a backbone, not a model") and said.count("\n") == 1
    assert f"`conceptcam train DATA --backbone {name}`" in said and f"`create_backbone('{name}')`" in said
    assert main(["models", "timm:resnet19"]) == 2
    assert "timm has no model 'resnet19'" in capsys.readouterr().err


def test_verify_counts_tensors_and_finds_a_flipped_bit(tmp_path, capsys):
    tiny_model(0).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    assert main(["verify", str(tmp_path)]) == 0
    count = len(tiny_model(0).state_dict())
    assert f"{tmp_path}: whole; all {count} tensors" in capsys.readouterr().out
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main(["verify", str(tmp_path)]) == 2
    assert f"conceptcam verify: {weights} is not the file that its config was saved with" in capsys.readouterr().err


def test_convert_counts_tensors_and_writes_only_if_all_fit(tmp_path, capsys):
    backbone = create_backbone("timm:test_resnet")
    weights = {name.removeprefix("model."): value for name, value in backbone.state_dict().items()}
    torch.save({"module." + name: value for name, value in weights.items()}, tmp_path / "good.pth")
    torch.save(dict(list(weights.items())[1:]), tmp_path / "bad.pth")
    out = tmp_path / "out.safetensors"
    command = ["--backbone", "timm:test_resnet"]
    assert main(["convert", str(tmp_path / "bad.pth"), str(out), *command]) == 2 and not out.exists()
    assert f"{len(weights) - 1} of {len(weights)} tensors match; 1 missing" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "good.pth"), str(out), *command, "--image-size", "96", "128"]) == 0
    assert f"{out}: {len(weights)} of {len(weights)} tensors" in capsys.readouterr().out
    loaded = create_backbone("timm:test_resnet", weights=out).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in backbone.state_dict().items())


def test_convert_writes_over_what_is_there_only_if_forced(tmp_path, capsys):
    weights = {name: value.contiguous() for name, value in tiny_model().backbone.state_dict().items()}
    save_file(weights, tmp_path / "in.safetensors")
    out = tmp_path / "out.safetensors"
    out.write_text("mine")
    command = ["convert", str(tmp_path / "in.safetensors"), str(out), "--backbone", "small_cnn_s8"]
    command += ["--image-size", "48", "64"]
    assert main(command) == 2 and out.read_text() == "mine"
    assert "is there already; add --force to write over it, or choose another OUT" in capsys.readouterr().err
    assert main([*command[:2], str(tmp_path), *command[3:], "--concepts", "a"]) == 2  # a folder with something in it
    assert "is there already; add --force" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0 and out.stat().st_size > 1000


def test_convert_takes_the_size_and_normalization_of_a_concept_model(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr("conceptcam.model.convert.convert_concept_model", lambda *files, **names: asked.update(names))
    command = ["convert", "in.pth", str(tmp_path), "--backbone", "small_cnn_s8", "--concepts", "a", "--tasks", "t"]
    assert main([*command, "--image-size", "64", "96", "--mean", ".1", ".2", ".3"]) == 0
    assert asked["image_size"] == (64, 96) and asked["mean"] == (0.1, 0.2, 0.3) and "std" not in asked


def test_images_of_one_name_in_two_folders_give_two_files(run, data, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_bytes((data / "images" / "val-0.png").read_bytes())
    images = [str(tmp_path / folder / "1.png") for folder in ("a", "b")]
    assert main(["explain", str(run), *images, "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*.json"))) == len(list((tmp_path / "out").glob("*.png"))) == 2


def test_explain_checks_every_image_before_it_writes_anything(run, data, tmp_path, capsys):
    images = [str(data / "images" / "val-0.png"), str(data / "images" / "none.png")]
    assert main(["explain", str(run), *images, "--out", str(tmp_path / "out")]) == 2
    assert "1 of 2 images are not there" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
_spec = importlib.util.spec_from_file_location("cli_tables", Path(__file__).parents[2] / "docs" / "cli_tables.py")
cli_tables = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cli_tables)


def test_the_tables_of_options_are_up_to_date():
    assert cli_tables.with_tables(PAGE) == PAGE, "run `python docs/cli_tables.py`"


def test_predict_writes_a_row_per_image(run, data, tmp_path, capsys):
    images = [str(data / "images" / f"val-{number}.png") for number in range(3)]
    out = tmp_path / "table.csv"
    assert main(["predict", str(run), *images, "--out", str(out), "--batch-size", "2"]) == 0
    assert "3 images" in capsys.readouterr().out
    with out.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header[1:] == [*CONCEPTS, *TASKS, "unlikeness"] and len(rows) == 3
    assert all(0 <= float(value) <= 1 for row in rows for value in row[1:-1])
    assert main(["predict", str(run), *images, "--out", str(out)]) == 2
    assert "is there already; choose another --out" in capsys.readouterr().err
