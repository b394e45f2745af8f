import csv
import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.regions import WithRegions
from conceptcam.model.concept_model import ConceptModel
from conceptcam.runs.folder import RunFolder
from conceptcam.runs.options import RunOptions
from conceptcam.runs.reports import measure, save_explanations
from conceptcam.runs.run import EpochPrinter, train_run
from conceptcam.training.history import EpochResult, read_history
from tests.worlds import Squares, tiny_config, tiny_model

QUICK = {"concepts": 1, "prototypes": 1, "task": 1}


def run(folder, *, train=None, val=None, config=None, **options):
    """A small run; gives the model."""
    known = ("augmentation", "data", "echo", "example_image", "example_concepts")
    rest = {name: options.pop(name) for name in known if name in options}
    options = RunOptions(**{"epochs": QUICK, "batch_size": 8, "precision": "fp32", **options})
    train, val = train or Squares(16, 0), val or Squares(8, 1)
    config = config or tiny_config()
    return train_run(config, train, val, folder, options, training_data="squares", drawn=(), **rest).model


@pytest.fixture
def unfinished(monkeypatch):
    """Runs stop before they are marked as finished."""
    monkeypatch.setattr(RunFolder, "finish", lambda self, warnings=(): None)


class ConceptPart:
    """An augmentation that changes nothing and counts what it is given."""

    def __init__(self):
        self.items = 0

    def __call__(self, item: ConceptItem) -> ConceptItem:
        self.items += 1
        return item


def test_a_run_of_few_images_on_random_weights_warns_first(tmp_path):
    said = []
    run(tmp_path, echo=said.append)
    warned = next(number for number, line in enumerate(said) if line.startswith("WARNING: The backbone starts from"))
    assert "16 training images are too few" in said[warned]
    assert warned < next(number for number, line in enumerate(said) if "epoch  1" in line)


@pytest.mark.parametrize("epochs", [1, 2])
def test_maps_are_drawn_epoch_by_epoch_where_there_are_several(tmp_path, epochs):
    example = {"example_image": Squares(1, 2).load_item(0), "example_concepts": ["bright"]}
    run(tmp_path, epochs={**QUICK, "concepts": epochs}, **example)
    assert (tmp_path / "figures" / "learning.png").exists() == (epochs > 1)


@pytest.mark.parametrize("epochs", [1, 2])
def test_curves_are_drawn_where_a_stage_has_several_epochs(tmp_path, epochs):
    pytest.importorskip("matplotlib")
    run(tmp_path, epochs={**QUICK, "concepts": epochs})
    assert (tmp_path / "figures" / "curves.png").exists() == (epochs > 1)


def test_seed_decides_the_weights_at_the_start_and_repeats_a_run(tmp_path):
    first, again, other = (
        run(tmp_path / name, seed=seed).state_dict() for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    frozen = "backbone.position"
    assert not torch.equal(first[frozen], other[frozen])
    starts = [
        run(tmp_path / f"start-{seed}", seed=seed, freeze_backbone=True).backbone.state_dict()["stem.0.0.weight"]
        for seed in (1, 2)
    ]
    assert not torch.equal(*starts)


@pytest.mark.parametrize("options", [{}, {"freeze_backbone": True, "epochs": {}}], ids=["learned", "solved"])
def test_a_run_keeps_what_tells_unlike_images(tmp_path, options):
    assert run(tmp_path, **options).record.unlike_from > 0


def test_global_random_state_does_not_decide_a_run(tmp_path):
    torch.manual_seed(1)
    first = run(tmp_path / "a").state_dict()
    torch.manual_seed(2)
    again = run(tmp_path / "b").state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_stage_1_alone_augments_and_validation_never_does(tmp_path):
    train, val, counter = Squares(16, 0), Squares(8, 1), ConceptPart()
    own = train.augmentation = ConceptPart()
    val.augmentation = None
    run(tmp_path, train=train, val=val, augmentation=counter, epochs={"concepts": 2, "prototypes": 1, "task": 1})
    assert counter.items == 8 + 2 * len(train)  # 8 are read to see how fast that is
    assert train.augmentation is own
    assert own.items == 0


def test_a_data_sets_own_augmentation_outlives_an_error(tmp_path):
    train = Squares(16, 0)
    own = train.augmentation = ConceptPart()
    run(tmp_path / "a", train=train, freeze_backbone=True)
    assert own.items == 8 + len(train)
    broken = Broken(16, 0)
    broken.augmentation = own
    with pytest.raises(FloatingPointError):
        run(tmp_path / "b", train=broken, augmentation=ConceptPart())
    assert broken.augmentation is own


class Broken(Squares):
    """Images that no model can learn from."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return item._replace(image=item.image * torch.nan)


def test_each_finished_stage_is_on_disk_before_the_next_begins(tmp_path):
    class Stops(Squares):
        calls = 0

        def __getitem__(self, index):
            type(self).calls += 1
            if type(self).calls > 8 + 3 * len(self):  # a trial, twice for stage 1, once for how images look: stage 2
                raise OSError("disk gone")
            return super().__getitem__(index)

    with pytest.raises(OSError, match="disk gone"):
        run(tmp_path, train=Stops(16, 0), config=tiny_config(tasks=()), epochs={"concepts": 2, "prototypes": 1})
    model = ConceptModel.from_pretrained(tmp_path, verify=True)
    assert model.record.stages == ("concepts",)
    assert model.record.thresholds


def test_auto_precision_is_one_of_two_and_written_down(tmp_path):
    run(tmp_path, precision="auto")
    assert json.loads((tmp_path / "run.json").read_text())["precision"] in ("fp32", "bf16")


def test_run_json_says_how_the_model_was_taught(tmp_path):
    run(tmp_path, seed=7, preset="original", data={"folder": "here", "uncertain": "ones"})
    content = json.loads((tmp_path / "run.json").read_text())
    assert (content["seed"], content["preset"], content["epochs"]) == (7, "original", QUICK)
    assert content["stages"] == {"concepts": 1, "prototypes": 1, "task": 1}
    assert (content["data"]["folder"], content["data"]["uncertain"]) == ("here", "ones")
    assert (content["data"]["train_images"], content["data"]["training_data"]) == (16, "squares")
    assert content["model"]["backbone"] == "small_cnn_s8"


@pytest.mark.parametrize(
    ("asked", "resolved"),
    [
        ({}, {"concepts": "ratio", "tasks": "ratio"}),
        ({"preset": "paper"}, {"concepts": "none", "tasks": "none"}),
        ({"task_kind": "multiclass"}, {"concepts": "ratio", "tasks": "ratio"}),
    ],
)
def test_run_json_says_what_was_done_about_rare_labels(asked, resolved, tmp_path):
    multiclass = asked.pop("task_kind", "multilabel") == "multiclass"
    data = {"train": OneOfTwo(16, 0), "val": OneOfTwo(8, 1), "config": tiny_config(task_kind="multiclass")}
    run(tmp_path, **asked, **(data if multiclass else {}))
    assert json.loads((tmp_path / "run.json").read_text())["imbalance"] == resolved


def test_a_run_is_not_resumed_with_options_that_change_it(tmp_path, unfinished):
    run(tmp_path, seed=7)
    for changed in ({"imbalance": "focal"}, {"batch_size": 4}, {"precision": "bf16"}, {"epochs": {**QUICK, "task": 2}}):
        (name,) = changed
        with pytest.raises(ValueError, match=f"with other options than it began with: `{name}` was .* and is "):
            run(tmp_path, **{"seed": 7, "resume": True, **changed})


def test_a_resumed_run_keeps_its_precision_and_may_load_otherwise(tmp_path, unfinished):
    began = run(tmp_path, precision="bf16").state_dict()
    again = run(tmp_path, precision="auto", feature_cache="off", progress_bar=True, resume=True).state_dict()
    assert all(torch.equal(began[name], again[name]) for name in began)


def test_a_run_of_a_newer_format_is_refused(tmp_path):
    (tmp_path / "run.json").write_text('{"format_version": 3, "finished": true}')
    with pytest.raises(ValueError, match="has format version 3, of a newer conceptcam; update conceptcam"):
        run(tmp_path, resume=True)


def test_an_unfinished_run_of_0_1_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "run.json").write_text('{"seed": 0, "conceptcam": "0.1.0", "finished": false}')
    with pytest.raises(
        ValueError, match="was begun by conceptcam 0.1.0, which alone can go on with it; finish it there"
    ):
        run(tmp_path, resume=True)


def test_a_finished_run_of_0_1_gives_its_model(tmp_path):
    tiny_model(seed=3).save_pretrained(tmp_path)
    (tmp_path / "run.json").write_text('{"clip_norm": 1.0, "conceptcam": "0.1.0", "finished": true}')
    model, expected = run(tmp_path, resume=True), tiny_model(seed=3).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_a_finished_run_has_no_checkpoints_and_resumes_as_it_is(tmp_path):
    taught = run(tmp_path).state_dict()
    assert not list(tmp_path.glob("*checkpoints*"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = run(tmp_path, resume=True).state_dict()
    assert all(torch.equal(taught[name], again[name]) for name in taught)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_an_ended_run_does_not_come_back_for_other_options(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match="`batch_size` was 8 and is 4"):
        run(tmp_path, batch_size=4, resume=True)


def test_resume_begins_where_there_is_no_run(tmp_path):
    begun = run(tmp_path / "a").state_dict()
    (tmp_path / "b" / "checkpoints").mkdir(parents=True)  # a run that was killed before it had said anything
    for folder in ("b", "c"):
        resumed = run(tmp_path / folder, resume=True).state_dict()
        assert all(torch.equal(begun[name], resumed[name]) for name in begun)


def test_a_run_without_checkpoints_resumes_only_with_its_own_data(tmp_path, unfinished):
    run(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="`attention_temperature` was 1.0 and is 2.0"):
        run(tmp_path, config=tiny_config(attention_temperature=2.0), resume=True)
    with pytest.raises(ValueError, match="`train_labels` was '.*' and is '"):
        run(tmp_path, train=Squares(16, 2), resume=True)
    with pytest.raises(ValueError, match="`uncertain` was None and is 'ones'"):
        run(tmp_path, data={"folder": "elsewhere", "uncertain": "ones"}, resume=True)


def test_a_folder_with_a_run_is_not_written_over(tmp_path):
    run(tmp_path)
    with pytest.raises(FileExistsError, match="holds a finished run; choose another folder"):
        run(tmp_path)
    content = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**content, "finished": False}))
    with pytest.raises(
        FileExistsError, match=r"holds an unfinished run; resume it with `resume=True` \(--resume\), or choose"
    ):
        run(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"layer_decay": 0.75}, "does not say which layer"),
        ({"gradient_checkpointing": True}, "SmallCnn cannot do it"),
        ({"precision": "fp16"}, "needs a GPU"),
        ({"epochs": {"task": 0}}, "needs an epoch"),
        ({"train": "broken"}, "the loss of stage 'concepts' is nan"),
    ],
)
def test_a_run_that_fails_before_learning_leaves_the_folder_as_is(wrong, sentence, tmp_path):
    if "train" in wrong:
        wrong = {"train": Broken(16, 0)}
    for folder in (tmp_path / "new", tmp_path):
        (tmp_path / "mine.txt").write_text("a file that was there before")
        with pytest.raises((ValueError, FloatingPointError), match=re.escape(sentence)):
            run(folder, **wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("wrong", [{"layer_decay": 0.75}, {"gradient_checkpointing": True}, {"precision": "fp16"}])
def test_what_can_be_checked_is_checked_before_anything_is_written(wrong, tmp_path, monkeypatch):
    monkeypatch.setattr(RunFolder, "begin", lambda *given: pytest.fail("the run has begun"))
    with pytest.raises(ValueError):
        run(tmp_path / "a", **wrong)


def test_a_run_that_fails_after_an_epoch_can_be_resumed(tmp_path):
    class Stops(Squares):
        reads = 0

        def __getitem__(self, index):
            type(self).reads += 1
            if type(self).reads == 20:  # in the second epoch
                raise OSError("disk gone")
            return super().__getitem__(index)

    whole = run(tmp_path / "whole", epochs={**QUICK, "concepts": 2}).state_dict()
    with pytest.raises(OSError, match="disk gone"):
        run(tmp_path / "cut", train=Stops(16, 0), epochs={**QUICK, "concepts": 2})
    resumed = run(tmp_path / "cut", epochs={**QUICK, "concepts": 2}, resume=True).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_names_a_random_backbone_and_its_precision(tmp_path, unfinished):
    told = []
    run(tmp_path / "a", precision="auto", echo=told.append)
    assert told[0] == "The backbone small_cnn_s8 starts from random weights."
    assert f"Training in {json.loads((tmp_path / 'a' / 'run.json').read_text())['precision']}." in told[1:5]
    save_file({name: value.contiguous() for name, value in tiny_model().backbone.state_dict().items()}, tmp_path / "w")
    told.clear()
    run(tmp_path / "b", weights=tmp_path / "w", echo=told.append)
    assert told[0] == "The backbone small_cnn_s8 starts from given weights."
    told.clear()
    run(tmp_path / "b", weights=tmp_path / "w", echo=told.append, resume=True)
    assert told[0] == f"Going on with the run in {tmp_path / 'b'}."


def test_a_run_prints_a_line_per_epoch_and_how_long_it_takes(tmp_path):
    told = []
    run(tmp_path, epochs={**QUICK, "concepts": 2}, echo=told.append)
    epochs = [line.split(":")[0].split() for line in told if " epoch " in line]
    assert [words[0] for words in epochs] == ["concepts", "concepts", "embedding", "prototypes", "task"]
    assert re.fullmatch(r"concepts +epoch +1 of 2: loss \S+, validation loss \S+, score \S+, \S+ s", told[3])
    assert [told.index(line) for line in told if line.startswith("The rest takes about ")] == [4]


def test_the_estimate_counts_the_epochs_that_remain():
    told, stages = [], [SimpleNamespace(name="concepts", epochs=6), SimpleNamespace(name="task", epochs=15)]
    printer = EpochPrinter(stages, told.append)
    printer(None, EpochResult("concepts", 2, 0.5, 0.5, 0.9, 0.1, True, 60.0, False))
    assert told[-1] == "The rest takes about 4 minutes."  # 4 epochs, and half of one


def test_a_run_solves_for_its_task_head_if_told_to(tmp_path):
    run(tmp_path / "a", solve_task=True, epochs={"concepts": 1, "prototypes": 1})
    content = json.loads((tmp_path / "a" / "run.json").read_text())
    assert content["solve_task"] is True and content["stages"]["task"] == 1
    stages = [(record.stage, record.lr) for record in read_history(tmp_path / "a" / "history.csv")]
    assert stages[-1] == ("task", 0.0)


def test_a_run_learns_as_many_prototypes_as_asked_and_says_so(tmp_path, unfinished):
    assert run(tmp_path / "usual").config.prototypes_per_concept == 5
    model = run(tmp_path / "fewer", prototypes_per_concept=2)
    assert model.config.prototypes_per_concept == 2 and model.prototypes.vectors.shape[:2] == (3, 2)
    assert json.loads((tmp_path / "fewer" / "run.json").read_text())["prototypes_per_concept"] == 2
    with pytest.raises(ValueError, match="`prototypes_per_concept` was 2 and is 3"):
        run(tmp_path / "fewer", prototypes_per_concept=3, resume=True)
    with pytest.raises(ValueError, match="`prototypes_per_concept` was 2 and is None"):
        run(tmp_path / "fewer", resume=True)


@pytest.mark.parametrize("number", [0, -1])
def test_a_number_of_prototypes_below_one_is_refused(number):
    with pytest.raises(ValueError, match=f"`prototypes_per_concept` must be at least 1, got {number}"):
        RunOptions(prototypes_per_concept=number)


def test_prototypes_are_refused_where_there_are_none(tmp_path):
    sentence = r"a 'concepts' bottleneck has no prototypes, so `prototypes_per_concept` .* would do nothing: leave it"
    with pytest.raises(ValueError, match=sentence):
        run(tmp_path / "a", config=tiny_config(bottleneck="concepts"), prototypes_per_concept=2)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"imbalance": "focal"}, r"`solve_task` \(--solve-task\) needs a convex loss, and imbalance 'focal' is none"),
        ({"epochs": {"task": 3}}, "leave the epochs of 'task' out of `epochs`"),
        ({"train": "no tasks"}, "the data have no task labels, so there is no task head to solve for"),
    ],
)
def test_a_task_head_is_not_solved_for_where_that_makes_no_sense(wrong, sentence, tmp_path):
    if "train" in wrong:
        train = Squares(16, 0)
        train.tasks, train.task_labels = (), train.task_labels[:, :0]
        wrong = {"train": train, "config": tiny_config(tasks=())}
    with pytest.raises(ValueError, match=sentence):
        run(tmp_path / "a", **{"epochs": {}, **wrong}, solve_task=True)
    assert not (tmp_path / "a").exists()


def test_backbone_starts_from_a_weights_file_and_then_moves_slowly(tmp_path):
    donor = tiny_model(seed=9).backbone
    save_file({name: value.contiguous() for name, value in donor.state_dict().items()}, tmp_path / "w.safetensors")
    model = run(tmp_path / "out", weights=tmp_path / "w.safetensors")
    for name, value in donor.named_parameters():
        assert (model.backbone.get_parameter(name) - value).abs().max() < 1e-2


def test_explanations_of_images_of_one_name_stay_two_files(tmp_path):
    model = run(tmp_path / "out")
    item = Squares(1).load_item(0)
    files = save_explanations(model, [item._replace(name="a/1.png"), item._replace(name="b/1.png")], tmp_path)
    assert len({*files}) == 2
    assert all(file.is_file() for file in files)


class OneConcept(ConceptDataset):
    """Squares of which only the bright ones have a name."""

    concepts = ("bright",)
    tasks = ("any",)

    def __init__(self, count, seed):
        self.squares = Squares(count, seed, preprocess=False)
        self.concept_labels = self.squares.concept_labels[:, :1]
        self.task_labels = self.squares.task_labels[:, :1]

    def load_item(self, index):
        item = self.squares.load_item(index)
        own = item.boxes.concept == 0
        boxes = ConceptBoxes(item.boxes.xyxy[own], item.boxes.concept[own], item.boxes.image[own])
        return item._replace(concepts=item.concepts[:1], targets=item.targets[:1], boxes=boxes)


@pytest.mark.parametrize("bottleneck", ["prototypes", "concepts"])
def test_a_model_of_one_concept_and_one_task_works_end_to_end(tmp_path, bottleneck):
    config = tiny_config(concepts=("bright",), tasks=("any",), bottleneck=bottleneck)
    val = OneConcept(16, 1)
    run(tmp_path, train=OneConcept(24, 0), val=val, config=config)
    model = ConceptModel.from_pretrained(tmp_path)
    result = measure(model, val, RunFolder(tmp_path), RunOptions(batch_size=8))
    assert result.concepts == ("bright",)
    assert result.task_scores.auroc.shape == (1,)
    (figure,) = save_explanations(model, [val.load_item(0)], tmp_path)
    assert figure.is_file()


def test_history_has_a_row_for_each_epoch(tmp_path):
    run(tmp_path, epochs={"concepts": 3, "prototypes": 1, "task": 2})
    with (tmp_path / "history.csv").open() as file:
        stages = [row["stage"] for row in csv.DictReader(file)]
    assert stages == ["concepts"] * 3 + ["embedding", "prototypes"] + ["task"] * 2


class OneOfTwo(Squares):
    """Squares whose tasks exclude each other, one of them rare."""

    def __init__(self, count, seed):
        super().__init__(count, seed)
        both = self.task_labels[:, 1]
        self.task_labels = torch.stack([both, 1 - both], dim=1)


def differing(first, second):
    """The parts of two models that differ."""
    other = second.state_dict()
    return {name.split(".")[0] for name, value in first.state_dict().items() if not torch.equal(value, other[name])}


def test_a_frozen_backbone_reads_its_images_once_and_is_resumed(tmp_path, unfinished):
    counting = ConceptPart()
    train = Squares(16, 0)
    reads = []
    train.load_item = lambda index, load=train.load_item: reads.append(index) or load(index)
    first = run(tmp_path / "a", train=train, freeze_backbone=True, epochs={}, augmentation=counting)
    content = json.loads((tmp_path / "a" / "run.json").read_text())
    assert content["stages"] == {"concepts": 1, "prototypes": 1, "task": 1}
    assert counting.items == 0 and len(set(reads)) == 16 and len(reads) <= 4 * 16
    assert first.config.projector == "linear" and first.config.pooling == "topk"
    again = run(tmp_path / "a", freeze_backbone=True, epochs={}, resume=True)
    assert not differing(first, again)


def test_rare_labels_are_weighted_by_ratio_by_default(tmp_path):
    default, ratio, none = (
        run(tmp_path / str(choice), imbalance=choice, freeze_backbone=True) for choice in (None, "ratio", "none")
    )
    assert not differing(default, ratio)
    assert {"concept_head", "task_head"} <= differing(default, none)


def test_classes_are_weighted_unless_told_otherwise(tmp_path):
    def taught(choice):
        config = tiny_config(task_kind="multiclass")
        train, val = OneOfTwo(16, 0), OneOfTwo(8, 1)
        return run(tmp_path / str(choice), config=config, train=train, val=val, imbalance=choice)

    default, ratio, none = taught(None), taught("ratio"), taught("none")
    assert not differing(default, ratio)
    assert "task_head" in differing(default, none)
    assert "task_head" in differing(default, tiny_model(task_kind="multiclass"))


@pytest.mark.parametrize("choice", ["sqrt", "effective", "focal", "asymmetric"])
def test_each_strategy_for_imbalance_differs_and_is_written_down(choice, tmp_path):
    told = run(tmp_path / choice, imbalance=choice)
    assert {"concept_head", "task_head"} <= differing(told, run(tmp_path / "default"))
    written = json.loads((tmp_path / choice / "run.json").read_text())["imbalance"]
    assert written == {"concepts": choice, "tasks": choice}


def test_a_useless_strategy_for_imbalance_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="preset 'paper' leaves rare labels as they are, so imbalance 'focal'"):
        run(tmp_path / "a", preset="paper", imbalance="focal")
    with pytest.raises(ValueError, match="asymmetric loss is for multi-label tasks; for multi-class ones"):
        config = tiny_config(task_kind="multiclass")
        run(tmp_path / "a", config=config, train=OneOfTwo(16, 0), val=OneOfTwo(8, 1), imbalance="asymmetric")
    with pytest.raises(ValueError, match="unknown `imbalance` 'focus'; did you mean .*; known:"):
        run(tmp_path / "a", imbalance="focus")
    assert not (tmp_path / "a").exists()


def test_what_a_user_keeps_in_the_folder_stays_when_a_run_ends(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
    run(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["notes.txt"]


def test_checkpoints_without_a_run_that_they_belong_to_are_refused(tmp_path, unfinished):
    run(tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(FileExistsError, match="holds checkpoints, but there is no run.json that tells of which run"):
        run(tmp_path, imbalance="focal", resume=True)


def test_a_run_that_fails_early_leaves_others_files_in_its_folder(tmp_path):
    class Fails(Squares):
        def __getitem__(self, index):
            (tmp_path / "out" / "notes.txt").write_text("mine")
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        run(tmp_path / "out", train=Fails(16, 0))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_entries_of_data_named_like_options_do_not_hide_them(tmp_path, unfinished):
    data = {"seed": 5, "imbalance": "mine"}
    run(tmp_path, data=data, seed=1)
    with pytest.raises(ValueError, match="`seed` was 1 and is 2"):
        run(tmp_path, data=data, seed=2, resume=True)


def test_a_finished_run_comes_back_ready_to_measure(tmp_path):
    run(tmp_path)
    train, val = Squares(16, 0), Squares(8, 1)
    train.preprocess = val.preprocess = None
    model = run(tmp_path, train=train, val=val, resume=True)
    assert train.preprocess is val.preprocess is model.preprocess


def test_maps_learn_to_stay_in_the_region_of_their_image(tmp_path):
    def outside(model):
        with torch.inference_mode():
            maps = model.forward_concepts(torch.stack([train[row].image for row in range(16)])).concept_maps
        return maps.sigmoid()[..., maps.shape[-1] // 2 :].mean().item()

    half = Image.new("L", (64, 48))
    half.paste(255, (0, 0, 32, 48))
    (tmp_path / "masks").mkdir()
    for row in range(16):
        half.save(tmp_path / "masks" / f"{row}.png")
    train = Squares(16, 0)
    free = run(tmp_path / "free", train=train, freeze_backbone=True, epochs={})
    train = WithRegions(Squares(16, 0), tmp_path / "masks")
    kept = run(tmp_path / "kept", train=train, freeze_backbone=True, epochs={})
    assert outside(kept) < 0.9 * outside(free)


def test_images_that_are_no_files_are_not_cached(tmp_path):
    with pytest.raises(ValueError, match="the images of a Squares are not read by a reader that can keep them"):
        run(tmp_path / "run", image_cache=tmp_path / "cache")
    assert not list(tmp_path.iterdir())


def test_the_history_comes_back_from_the_checkpoints(tmp_path, unfinished):
    run(tmp_path)
    whole = read_history(tmp_path / "history.csv")
    (tmp_path / "history.csv").unlink()
    run(tmp_path, resume=True)
    assert read_history(tmp_path / "history.csv") == whole and len(whole) >= 3


def test_checkpoints_left_after_the_end_go_at_the_next_start(tmp_path):
    run(tmp_path)
    for phase in ("concepts", "rest"):
        (tmp_path / "checkpoints" / phase).mkdir(parents=True)
        (tmp_path / "checkpoints" / phase / "checkpoint-000000001.pt").write_bytes(b"")
    run(tmp_path, resume=True)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("text", ['{"model": 5}', '{"data": []}', "[1]", '{"a": 1, "a": 2}', "[" * 100_000, "9" * 5000])
def test_a_run_json_that_no_run_wrote_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run.json (cannot be read: it |was not written by a run).*; choose another"):
        run(tmp_path, resume=True)


@pytest.mark.parametrize("imbalance", [None, "sqrt", "none", "focal"])
def test_the_record_keeps_the_class_weights_of_training(tmp_path, imbalance):
    train = Squares(16, 0)
    record = run(tmp_path / "run", train=train, imbalance=imbalance).record
    counts = [(float((column == 1).sum()), float((column == 0).sum())) for column in train.concept_labels.T]
    expected = {
        None: [negatives / positives for positives, negatives in counts],
        "sqrt": [(negatives / positives) ** 0.5 for positives, negatives in counts],
        "none": [1, 1, 1],
        "focal": [],
    }[imbalance]
    assert list(record.concept_weights.values()) == pytest.approx(expected)
    assert len(record.task_weights) == (0 if imbalance == "focal" else 2)
    again = ConceptModel.from_pretrained(tmp_path / "run").record
    assert (again.concept_weights, again.task_weights) == (record.concept_weights, record.task_weights)
