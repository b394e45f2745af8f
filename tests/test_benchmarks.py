"""The benchmarks' pieces on tiny inputs: that they run, and that what they compare is what they say."""

import argparse
import dataclasses
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from conceptcam import ConceptBatch, ConceptBoxes, ConceptItem, ConceptModel, PhantomDataset
from conceptcam.data.phantom import PhantomConfig
from conceptcam.data.phantom.dataset import PhantomData
from conceptcam.losses import box_localization_loss
from conceptcam.metrics import per_label_metrics
from conceptcam.training.optimizer import parameter_groups
from conceptcam.training.presets import get_preset

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


def script(name: str) -> ModuleType:
    """A benchmark as a module; like Python itself, with the scripts' folder on the path."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(SCRIPTS))


measuring, heads, losses, phantom_rows, phantom, bugs = map(
    script, ("measuring", "heads", "losses", "phantom_rows", "phantom", "bugs")
)
training, training_steps = map(script, ("training", "training_steps"))
experiment, shortcut, shortcut_rows, difficulty = map(script, ("experiment", "shortcut", "shortcut_rows", "difficulty"))
peers, peer_maps, peer_bottlenecks = map(script, ("peers", "peer_maps", "peer_bottlenecks"))

against = script("against")

TINY = {"images": 24, "size": 64, "batch_size": 8}


@pytest.fixture
def tiny_phantom(monkeypatch):
    """Few images, drawn once and kept in memory."""
    config = PhantomConfig(size=64)
    parts = [PhantomDataset(24, seed=seed, config=config, cache_dir=False) for seed in range(3)]
    data = PhantomData(train=parts[0], val=parts[1], test=parts[2], phantom_config=config)
    for module in (phantom_rows, bugs):
        monkeypatch.setattr(module, "phantom_data", lambda count, size, seed, completeness=0.0: data)
    return data


def test_functions_are_timed_in_turns_and_warm_ups_are_not_counted():
    calls = []
    timings = measuring.interleave(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, warmup=1
    )
    assert len(calls) == 8 and all(set(calls[i : i + 2]) == {"a", "b"} for i in range(0, 8, 2))
    assert [len(timings.seconds[name]) for name in "ab"] == [3, 3]


def test_ratio_is_that_of_the_medians():
    timings = measuring.Timings({"slow": [3.0, 9.0, 4.0], "fast": [2.0, 1.0, 50.0]})
    assert timings.ratio("slow", "fast") == 2.0


def test_figures_are_written_with_the_machine_they_come_from(tmp_path, capsys):
    measuring.finish([{"name": "x", "figure": float("nan")}], {"json": tmp_path}, tmp_path / "figures.json")
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "figures.json").read_text())
    assert torch.__version__ in printed and " -\n" in printed
    assert content["machine"]["torch"] == torch.__version__ and content["rows"][0]["name"] == "x"


def test_heads_are_measured_over_the_bare_backbone():
    rows = heads.heads_cost("small_cnn_s8", size=16, batch=1, repeats=1)
    assert [row["pass"] for row in rows][:3] == ["backbone", "forward_concepts", "forward"]
    assert rows[0]["ratio"] == 1 and all(row["ratio"] > 0 for row in rows)


def test_every_loop_says_the_same_as_the_loss_it_is_timed_against():
    torch.manual_seed(0)
    for name, case in (losses.box_cases(3, 8) | losses.contrastive_cases(2)).items():
        assert losses.check_same(name, case) < 1e-5


def test_two_different_losses_are_not_compared():
    given = torch.randn(2, 3)
    with pytest.raises(AssertionError, match="not the same loss"):
        losses.check_same("x", (lambda z: z.square().mean(), lambda z: z.abs().mean(), given))


def test_losses_are_measured_forward_and_backward():
    rows = losses.measure(losses.label_cases(2), repeats=1, check=False)
    assert [row["loss"] for row in rows] == ["multilabel", "focal", "asymmetric"]


@pytest.mark.filterwarnings("ignore")  # the script ignores timm's warnings too
def test_a_timm_model_qualifies_and_an_unknown_one_says_why():
    zoo = script("zoo")
    assert zoo.why_not("resnet10t") == ""
    assert "resnet10u" in zoo.why_not("resnet10u")


def test_rows_of_the_table_are_trained_once_and_read_back(tiny_phantom, tmp_path):
    scale = phantom_rows.Scale(epochs=(1, 1, 1), **TINY)
    path = tmp_path / "results.jsonl"
    measuring.append(path, phantom_rows.run_row("recommended-no-boxes", 0, scale))
    done = measuring.finished(path, scale)
    assert list(done) == [("recommended-no-boxes", 0)]
    assert not measuring.finished(path, phantom_rows.Scale(epochs=(2, 1, 1), **TINY))
    (seen,) = phantom.seen_table(list(done.values()), reach=0.9)
    assert seen["AUROC"] != "-" and seen["epochs to 0.90"] == ">1"
    told = phantom.diseases_table(list(done.values()))
    assert [row["bottleneck"] for row in told] == ["prototypes", "concepts"]
    assert all(row[name] != "-" for row in told for name in phantom.DISEASES)
    (health,) = phantom.prototypes_table(list(done.values()))
    assert "-" not in health.values()


def test_rows_of_the_same_stage_1_start_from_the_same_weights(tiny_phantom, tmp_path):
    scale, data = phantom_rows.Scale(epochs=(1, 1, 1), **TINY), tiny_phantom
    first, curve = phantom_rows.taught_to_see("recommended", data, 0, scale, tmp_path)
    (kept,) = tmp_path.iterdir()
    for name in ("recommended-stepped", "recommended-nearest"):
        again, read = phantom_rows.taught_to_see(name, data, 0, scale, tmp_path)
        assert read == curve and list(tmp_path.iterdir()) == [kept]
        for key, value in first.state_dict().items():
            assert torch.equal(value, again.state_dict()[key])


def test_the_tables_replace_what_a_page_said_and_name_the_command(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- figures:presets -->\nold\n<!-- /figures:presets -->\nafter\n")
    arguments = ["--seeds", "2", "--page", str(page), "--table", "--rows", "original", "paper"]
    text = phantom.document(
        {"T": [{"row": "original", "AUROC": ".9"}]},
        phantom_rows.Scale(),
        measuring.arguments_told(arguments, phantom.WHERE),
    )
    measuring.replace_block(page, "presets", text)
    said = page.read_text()
    assert said.startswith("before\n") and said.endswith("-->\nafter\n") and "old" not in said
    assert "`python benchmarks/phantom.py --seeds 2 --rows original paper`" in said and "| original | .9 |" in said
    with pytest.raises(ValueError, match="no block of figures named 'speed'"):
        measuring.replace_block(page, "speed", text)


def test_borrowed_rates_change_how_fast_a_preset_learns_alone():
    scale = phantom_rows.Scale(epochs=(3, 2, 1), **TINY)
    model = phantom_rows.build(phantom_rows.ROWS["original"], scale, 0, "prototypes")
    own, borrowed, lender = (
        phantom_rows.ROWS[name].stages(model, epochs=scale.epochs_by_stage)
        for name in ("original", "original-rates", "recommended")
    )
    lender = [stage for stage in lender if stage.on_start is None]
    for before, after, given in zip(own, borrowed, lender, strict=True):
        assert (after.lr, after.schedule) == (given.lr, given.schedule) != (before.lr, before.schedule)
        assert (after.name, after.epochs, after.forward) == (before.name, before.epochs, before.forward)


def test_an_auroc_never_reached_is_said_to_be_beyond_the_last_epoch():
    assert phantom.epochs_to(0.9, [[0.5, 0.91, 0.8], [0.5, 0.6, 0.7]]) == "2 >3"


def one_item(*boxes: tuple[float, float, float, float]) -> ConceptItem:
    count = len(boxes)
    drawn = ConceptBoxes(torch.tensor(boxes), torch.zeros(count).long(), torch.zeros(count).long())
    return ConceptItem(torch.zeros(3, 8, 8), torch.ones(1), torch.zeros(0), drawn, "x")


def test_boxes_are_mirrored_and_transposed():
    item = one_item((0.1, 0.2, 0.3, 0.6))
    torch.testing.assert_close(bugs.mirrored(item).boxes.xyxy, torch.tensor([[0.7, 0.2, 0.9, 0.6]]))
    torch.testing.assert_close(bugs.transposed(item).boxes.xyxy, torch.tensor([[0.2, 0.1, 0.6, 0.3]]))


def test_every_other_batch_is_flipped_without_its_boxes():
    boxes = one_item((0.1, 0.2, 0.3, 0.6)).boxes
    batches = [ConceptBatch(torch.rand(1, 3, 4, 4), torch.ones(1, 1), torch.zeros(1, 0), boxes) for _ in range(2)]
    first, second = bugs.HalfFlipped(batches)
    assert torch.equal(first.images, batches[0].images) and torch.equal(second.images, batches[1].images.flip(-1))
    assert first.boxes is second.boxes is boxes


def test_integer_masks_are_right_on_the_grid_and_lose_small_boxes():
    maps = torch.randn(1, 1, 4, 4)
    on_grid = one_item((0.25, 0.0, 0.75, 0.5), (0.0, 0.5, 0.25, 1.0)).boxes
    expected = box_localization_loss(maps, on_grid)
    torch.testing.assert_close(bugs.integer_masks(maps, on_grid, torch.ones(1, 1)), expected)
    vanished = bugs.integer_masks(maps, one_item((0.3, 0.3, 0.45, 0.45)).boxes, torch.ones(1, 1))
    torch.testing.assert_close(vanished, F.softplus(maps).mean())


def test_outside_per_box_differs_for_several_boxes_alone():
    maps, label = torch.randn(1, 1, 4, 4), torch.ones(1, 1)
    single = one_item((0.1, 0.2, 0.7, 0.6)).boxes
    torch.testing.assert_close(bugs.outside_per_box(maps, single, label), box_localization_loss(maps, single))
    several = one_item((0.0, 0.0, 0.25, 0.25), (0.5, 0.5, 1.0, 1.0)).boxes
    assert not torch.isclose(bugs.outside_per_box(maps, several, label), box_localization_loss(maps, several))


@pytest.mark.parametrize("name", ["correct", "outside per box"])
def test_a_planted_bug_is_measured_by_every_telltale(name, tiny_phantom, tmp_path):
    scale = phantom_rows.Scale(epochs=(1,), **TINY)
    result = bugs.run_bug(name, 0, scale)
    measuring.append(tmp_path / "results.jsonl", result)
    assert {telltale for bug in bugs.BUGS.values() for telltale in bug.telltales} <= result["figures"].keys()
    assert list(measuring.finished(tmp_path / "results.jsonl", scale)) == [(name, 0)]


def test_a_figure_catches_a_bug_only_beyond_the_noise_of_seeds():
    def trained(small: float) -> dict[str, dict[str, float]]:
        return {"figures": {"small": small, "Other lesion": 0.8}}

    correct = {("correct", seed): trained(small) for seed, small in enumerate((0.50, 0.48, 0.52))}
    caught, still = bugs.verdicts({**correct, ("integer masks", 0): trained(0.2)})
    missed, _ = bugs.verdicts({**correct, ("integer masks", 0): trained(0.45)})
    assert (caught["caught"], missed["caught"], still["caught"]) == (True, False, False)


MARKS = shortcut_rows.Scale(images=60, test_images=80, size=64, epochs=1, backbone="tiny_cnn_s8")


@pytest.fixture(scope="module")
def letter_cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("letters"))


@pytest.fixture
def marked(monkeypatch, letter_cache):
    """Few images with the letter, in a cache of their own."""
    monkeypatch.setenv("CONCEPTCAM_CACHE", letter_cache)
    return shortcut_rows.draw(0, MARKS)


@pytest.mark.parametrize("name", ["transplants, in box", "prototypes, doctor"])
def test_a_way_against_the_shortcut_has_every_figure(name, marked, tmp_path):
    measuring.append(tmp_path / "results.jsonl", shortcut_rows.run_row(name, 0, MARKS))
    done = measuring.finished(tmp_path / "results.jsonl", MARKS)
    (row,) = shortcut.rows_of(list(done.values()))
    assert set(shortcut.COLUMNS) <= row.keys() and row["aligned"] != "-" and row["cured"] in ("0 of 1", "1 of 1")


@pytest.mark.parametrize("name", ["all five", "one reader, tests too"])
def test_a_setting_of_the_phantom_has_every_figure(name, monkeypatch, letter_cache):
    monkeypatch.setenv("CONCEPTCAM_CACHE", letter_cache)
    scale = difficulty.Scale(images=60, test_images=80, size=64, epochs=1, backbone="tiny_cnn_s8")
    (row,) = difficulty.rows_of([difficulty.run_row(name, 0, scale)])
    assert "-" not in {row[column] for column in difficulty.COLUMNS}
    assert (row["ceiling"] == "1.000") == (name == "all five")


def test_images_of_the_three_tests_differ_in_the_letter_alone(marked):
    letter = shortcut_rows.marker_of(marked.train)
    clean = marked.tests["clean"]
    for kind in ("aligned", "reversed"):
        has = shortcut_rows.has_letter(marked.tests[kind])
        assert 0 < has.sum() < len(has)
        for index in range(20):
            same = marked.tests[kind].load_item(index).image == clean.load_item(index).image
            assert same[:, ~letter].all() and bool(same.all()) != bool(has[index])


@pytest.mark.parametrize(("every", "share"), [(1, 1), (10, 0.1)])
def test_a_doctor_draws_around_the_letter_where_it_is(every, share, marked):
    draw, has = shortcut_rows.negative_boxes(marked.train, every), shortcut_rows.has_letter(marked.train)
    items = [draw(marked.train.load_item(index)) for index in range(len(has))]
    regions = [item.region for item in items]
    assert [region is not None for region in regions] == [bool(has[i]) and i % every == 0 for i in range(len(has))]
    letter = shortcut_rows.marker_of(marked.train)
    assert all((region[letter] == 0).all() and region.float().mean() > 0.9 for region in regions if region is not None)


def test_evidence_of_kept_prototypes_takes_the_place_of_the_map():
    evidence = torch.tensor([[0.9, 0.2, 0.4]])
    similarity = torch.rand(1, 3, 2, 2)
    maps = torch.rand(1, 22, 2, 2)
    seen = shortcut_rows.Seen(torch.zeros(1, 22), maps, evidence, similarity)
    kept = seen.through(torch.tensor([False, True, True]))
    assert kept.logits[0, shortcut_rows.TIED] == 0.4
    assert torch.equal(kept.maps[0, shortcut_rows.TIED], similarity[0, 2])
    assert seen.through(torch.zeros(3, dtype=torch.bool)) is seen  # a doctor who keeps none has no model


def test_both_bars_must_be_met():
    assert shortcut.cured({"on marker": 0.1, "reversed": 0.8})
    assert not shortcut.cured({"on marker": 0.3, "reversed": 0.8})
    assert not shortcut.cured({"on marker": 0.1, "reversed": float("nan")})


SMALL = training_steps.Size(backbone="small_cnn_s8", side=64, batch=4)


def test_stage_1_has_as_many_weights_as_the_plain_model():
    model = ConceptModel.from_config(SMALL.config)
    groups = parameter_groups(model, get_preset("recommended").stages(SMALL.config)[0])
    learning = sum(parameter.numel() for group in groups for parameter in group["params"])
    assert learning == sum(parameter.numel() for parameter in training_steps.PlainModel(SMALL).parameters())


@pytest.mark.parametrize(("options", "evaluations"), [({}, 1), ({"gradient_accumulation_steps": 4}, 4)])
def test_a_step_moves_weights_once_however_many_batches_it_reads(options, evaluations, monkeypatch):
    calls = []
    for owner, name in ((torch.optim.AdamW, "step"), (ConceptModel, "forward_concepts")):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, _name=name, _to=original: calls.append(_name) or _to(*given))
    training_steps.library_step(SMALL, **options)()
    assert calls == ["forward_concepts"] * evaluations + ["step"]


def test_every_box_of_a_random_batch_marks_a_concept_that_is_present():
    batch = training_steps.random_batch(training_steps.Size(side=8, batch=3, boxes=5))
    assert batch.boxes.image.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert batch.concepts[batch.boxes.image, batch.boxes.concept].eq(1).all()


@pytest.mark.parametrize("name", ["step", "precision", "accumulation"])
def test_ways_of_training_are_compared_with_the_first_of_them(name):
    rows = getattr(training, name)(SMALL, 1)
    assert len(rows) >= 2 and rows[0]["over first"] == 1 and all(row["median"] > 0 for row in rows)


def test_a_ratio_above_its_target_is_not_met():
    measured = measuring.Timings({"bare": [0.1], "good": [0.104], "bad": [0.106]})
    _, good, bad = training.compare("x", SMALL, measured, target={"good": 1.05, "bad": 1.05})
    assert (good["met"], bad["met"]) == (True, False) and (good["median"], bad["median"]) == (104.0, 106.0)


def test_every_count_has_a_step_of_its_own(monkeypatch):
    monkeypatch.setattr(training, "GROWTH", {"concepts": (2, 3), "prototypes": (1, 2), "boxes": (0, 1)})
    rows = training.growth(SMALL, 1)
    assert [row["what"] for row in rows if row["section"] == "growth of prototypes"] == [
        "stage 2 step, 1 prototypes",
        "stage 2 step, 2 prototypes",
        "the same without the backbone, 1 prototypes",
        "the same without the backbone, 2 prototypes",
    ]
    assert len(rows) == 12


def test_a_compiler_that_fails_is_quoted(monkeypatch):
    def fails(size: training_steps.Size, backend: str | None = None):
        def step() -> None:
            if backend is not None:
                raise RuntimeError("no C++ compiler\nand a long story")

        return step

    monkeypatch.setattr(training, "library_step", fails)
    (row,) = training.compiled(SMALL, 1)
    assert row["what"] == "does not run: no C++ compiler"


def test_files_hold_the_images_and_boxes_they_were_written_from(tmp_path):
    source = PhantomDataset(6, seed=0, config=PhantomConfig(size=64), cache_dir=False)
    files = training.coco_of(source, tmp_path, 64)
    assert len(files) == 6 and files.concepts == tuple(source.concepts)
    for index in range(6):
        read, drawn = files[index], source[index]
        assert torch.equal(read.image, drawn.image)
        torch.testing.assert_close(read.boxes.xyxy, drawn.boxes.xyxy, atol=1e-4, rtol=0)
        assert torch.equal(read.boxes.concept, drawn.boxes.concept)


@pytest.mark.filterwarnings("ignore:.*use of fork")
def test_data_sets_are_read_with_no_one_and_two_workers():
    rows = training.loading(SMALL, 1, images=4, file_side=64)
    assert len(rows) == 7 and {row["unit"] for row in rows} == {"images/s"}
    assert [row["what"] for row in rows[4:]] == [f"COCO, PNG of 64, {count} workers" for count in range(3)]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel's table of this process is needed")
def test_peak_memory_is_the_highest_and_not_what_is_kept(monkeypatch):
    def build(size: training_steps.Size):
        return lambda: torch.ones(50_000_000)  # 200 MB, freed at once

    monkeypatch.setitem(training_steps.WAYS, "plain head", build)
    assert 195 < training_steps.peak_memory(SMALL, "plain head") < 230


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel's table of this process is needed")
def test_a_child_process_measures_memory():
    assert training.child("memory", SMALL, "--way", "stage 1", "--threads", "1") > 0


def test_two_processes_are_timed_in_turns_with_one():
    rows = training.processes(SMALL, 1)
    assert [row["what"] for row in rows] == ["1 process", "1 process, 2 threads", "2 processes"]


def test_stages_2_and_3_end_with_the_same_weights_in_each_way():
    stages = script("stages")
    rows = stages.stages_cost("small_cnn_s8", size=32, images=8, batch=4, epochs=2)
    assert [row["stages 2 and 3"] for row in rows] == [
        "plain pass", "kept in memory", "kept on disk", "anew in each epoch"
    ]  # fmt: skip
    assert rows[0]["of a plain pass"] == 1 and [row["same weights"] for row in rows] == [None, True, True, None]


def test_coverage_counts_the_intervals_that_hold_the_truth():
    intervals = script("intervals")
    auroc, average = intervals.truths(0.3, 1.0)
    labels = (torch.rand(40_000, 1) < 0.3).double()
    found = per_label_metrics(torch.randn(40_000, 1).double() + labels, labels)
    assert float(found.auroc) == pytest.approx(auroc, abs=0.01)
    assert float(found.average_precision) == pytest.approx(average, abs=0.02)
    whole = lambda logits, labels, seed: [(0.0, 1.0), (0.9, 1.0)]  # noqa: E731
    assert intervals.coverage((30, 0.3, 1.0), whole, 4) == [(1.0, 1.0), (0.0, pytest.approx(0.1))]
    assert [len(method(found_logits(), labels[:30], 0)) for method in (intervals.percentile, intervals.chosen)] == [
        2,
        2,
    ]


def found_logits() -> torch.Tensor:
    return torch.randn(30, 1).double()


@pytest.mark.filterwarnings("ignore")  # peers warn of their own insides
def test_maps_of_peers_are_those_that_ours_are_timed_against():
    pytest.importorskip("torchcam")
    rows = peer_maps.compare_maps("small_cnn_s8", size=32, repeats=1)
    assert rows[0]["maps of all 22 concepts"] == "ours" and rows[0]["times ours"] == "1.00"
    assert len(rows) == 3 + 2 * ("grad-cam" not in peer_maps.missing()) + ("captum" not in peer_maps.missing())


@pytest.fixture
def peer_scale(tiny_phantom, monkeypatch):
    monkeypatch.setattr(peer_bottlenecks, "draw", lambda seed, scale: tiny_phantom)
    return peer_bottlenecks.PeerScale(images=24, size=64, epochs=(1, 1, 1), batch_size=8)


def test_a_bottleneck_is_measured_with_concepts_corrected(peer_scale):
    result = peer_bottlenecks.run_peer("ours, concepts", 0, peer_scale)
    (row,) = peers.bottleneck_table([result])
    assert {"task AUROC", "all corrected", "soft over hard", "beside the concepts"} <= row.keys()
    assert row["seeds"] == "1" and result["figures"]["task AUROC"] >= 0


def test_one_way_to_measure_tells_a_leak_from_a_bottleneck(tiny_phantom, peer_scale):
    def says(leak: float):
        def say(batch: ConceptBatch) -> peer_bottlenecks.Said:
            images = batch.images.float().mean(dim=(1, 2, 3))[:, None]
            tasks = len(tiny_phantom.test.tasks)
            return peer_bottlenecks.Said(
                batch.concepts,
                batch.concepts,
                lambda told: told.nan_to_num(0).sum(1, keepdim=True).mul(1 - leak) + leak * images * torch.ones(tasks),
            )

        return say

    own = peer_bottlenecks.measure(says(0.0), tiny_phantom, 0, peer_scale)
    leaking = peer_bottlenecks.measure(says(1.0), tiny_phantom, 0, peer_scale)
    assert leaking["beside the concepts"] == leaking["task AUROC"] == leaking["all corrected"]
    assert own["concept AUROC"] == 1 and own["beside the concepts"] != own["all corrected"]


def test_a_peer_that_is_not_installed_is_left_out(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(peer_bottlenecks, "PEER", "no_such_package")
    monkeypatch.setattr(sys, "argv", ["peers.py", "--only", "bottlenecks", "--rows", "PyTorch Concepts, CEM",
                                      "--results", str(tmp_path / "none.jsonl")])  # fmt: skip
    peers.main()
    assert "left out, as not installed: PyTorch Concepts, CEM" in capsys.readouterr().out


def test_rows_that_share_a_first_stage_are_trained_in_one_process(tmp_path):
    scale = phantom_rows.Scale(**TINY)
    options = phantom.parser().parse_args(["--seeds", "2", "--rows", "original", "recommended", "recommended-stepped"])
    options.results = tmp_path / "results.jsonl"
    options.results.write_text(json.dumps({"row": "original", "seed": 1, "scale": dataclasses.asdict(scale)}) + "\n")
    wanted = experiment.missing(options, scale)
    groups = phantom.sharing_stage_1(wanted)
    assert sorted(sum(groups, [])) == sorted(wanted) and ("original", 1) not in wanted and len(wanted) == 5
    assert [("recommended", 0), ("recommended-stepped", 0)] in groups and [("original", 0)] in groups


@pytest.mark.parametrize(("seconds", "met"), [(1.03, True), (1.04, False)])
def test_two_versions_are_timed_each_with_its_own_package(seconds, met, tmp_path, monkeypatch):
    for name, value in (("this", seconds), ("other", 1.0)):
        (tmp_path / name / "conceptcam").mkdir(parents=True)
        (tmp_path / name / "conceptcam" / "__init__.py").write_text(f"SECONDS = {value}")
    monkeypatch.setattr(against, "HERE", tmp_path / "this")
    monkeypatch.setattr(against, "PROGRAMS", {"it": "import conceptcam; print(conceptcam.SECONDS)"})
    (row,) = against.measure(tmp_path / "other", repeats=1)
    assert (row["this ms"], row["other ms"], row["ratio"], row["met"]) == (1000 * seconds, 1000, seconds, met)


def test_evaluate_is_timed_beside_a_bare_pass():
    options = {"images": 4, "side": 64, "backbone": "small_cnn_s8", "batch_size": 2, "repeats": 1, "clock": "cpu"}
    rows = script("evaluating").cost(argparse.Namespace(**options))
    assert [row["what"] for row in rows][:2] == ["bare forward pass, 4 images", "evaluate, 4 images"]
    assert rows[0]["over forward"] == 1 and rows[1]["over forward"] > 0
    assert rows[1]["met"] == (rows[1]["over forward"] <= 1.25) and rows[0]["met"] is None


def test_probabilities_are_calibrated_on_other_folds():
    belief = script("small_data_belief")
    random = torch.Generator().manual_seed(0)
    labels = (torch.rand(200, 2, generator=random) < 0.4).float()
    known = 3 * (2 * labels - 1) + torch.randn(200, 2, generator=random)
    logits = torch.stack([known[:, 0], torch.randn(200, generator=random)], dim=1)  # the second is not known
    nothing = torch.zeros(200, 0)
    found = belief.calibration(
        belief.OutOfFold(4 * logits, labels, nothing, nothing, torch.arange(200) % 5), ("seen", "unseen")
    )
    assert found.calibrated < 0.08 < found.raw and "seen" not in found.worse
    by, half = found.worse.get("unseen", (0.0, 0.0))
    assert by <= half + 0.01
