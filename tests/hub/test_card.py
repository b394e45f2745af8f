"""The model card says what is known, all of it and nothing else, whatever names hold."""

import dataclasses
import html
import math
import re

import numpy as np
import pytest
import yaml
from PIL import Image

from conceptcam import evaluate
from conceptcam.config import ConceptConfig, TrainingRecord
from conceptcam.hub.architectures import architecture_config
from conceptcam.hub.card import GENERATED_MARK, is_generated, model_card
from conceptcam.hub.published_backbones import BACKBONES
from tests.worlds import CONCEPTS, Squares, batches, tiny_config, tiny_model

HOSTILE = (
    "a | b",
    "<script>alert(1)</script>",
    "line\nbreak",
    "`code` ```fence```",
    "*bold* _under_ __two__ in_side",
    "[link](http://x) ![image](y)",
    "&lt; &amp; &#124;",
    "---",
    "key: value # comment",
    "back\\slash",
    "$math$ ~~gone~~",
    "Pneumothorax à gauche 気胸",
    "\u2028separator",
    GENERATED_MARK,
)
TAUGHT = TrainingRecord(
    stages=("concepts", "prototypes", "task"),
    thresholds={"bright": 0.3125, "dark": math.nan},
    typical_present={"bright": 0.875},
    typical_absent={"bright": 0.00049},
    thresholds_source="highest F1 on 200 validation images",
    training_data="800 drawn squares",
    metrics={
        "images": 300,
        "pointing": 0.4375,
        "pointing_random_map": 0.0625,
        "pointing_center_prior": math.nan,
        "box_area": 0.03125,
        "iou": 0.21875,
    },
    weights_sha256="0123456789abcdef" * 4,
)


def front_matter(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))


def section(card: str, heading: str) -> str:
    (found,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", card, flags=re.MULTILINE | re.DOTALL)
    return found


def table(text: str) -> list[list[str]]:
    """Cells as a reader sees them: pipes part cells, then references stand for what they mean."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[html.unescape(cell.strip()) for cell in line[1:-1].split("|")] for line in lines]


def code(card: str) -> str:
    (block,) = re.findall(r"^```python\n(.*?)^```", card, flags=re.MULTILINE | re.DOTALL)
    return block


def test_front_matter_has_what_people_filter_by():
    card = model_card(tiny_config(), TrainingRecord(), title="Squares", license="CC-BY-NC-4.0")
    assert front_matter(card) == {
        "library_name": "conceptcam",
        "pipeline_tag": "image-classification",
        "tags": ["concept-bottleneck", "medical-imaging"],
        "license": "cc-by-nc-4.0",
    }


def test_a_model_made_from_another_says_so_under_training():
    record = TrainingRecord(derived_from="lungs, changed | by hand")
    said = section(model_card(tiny_config(), record, title=""), "Training")
    assert "Made from another model by changing it: lungs, changed | by hand." in html.unescape(said)
    assert "Made from another" not in model_card(tiny_config(), TrainingRecord(), title="")


def test_license_is_stated_only_if_it_was_given():
    card = model_card(tiny_config(), TrainingRecord(), title="Squares")
    assert "license" not in front_matter(card)
    assert "Of these weights: not stated." in section(card, "License")
    assert "Of these weights: MIT." in section(
        model_card(tiny_config(), TrainingRecord(), title="", license="MIT"), "License"
    )


def test_a_given_license_wins_over_the_records():
    record = dataclasses.replace(TAUGHT, license="MIT")
    card = model_card(tiny_config(), record, title="")
    assert front_matter(card)["license"] == "mit" and "Of these weights: MIT." in section(card, "License")
    assert front_matter(model_card(tiny_config(), record, title="", license="CC0-1.0"))["license"] == "cc0-1.0"


@pytest.mark.parametrize("license", ["yes", "1.0", "a: b\n---\nx", '"', "\x85\x7f#", "null"])
def test_a_license_stays_one_text_whatever_it_holds(license):
    found = front_matter(model_card(tiny_config(), TrainingRecord(), title="Squares", license=license))
    assert set(found) == {"library_name", "pipeline_tag", "tags", "license"}
    assert found["license"] == "".join(char for char in license.lower() if char.isprintable())


def test_every_concept_and_task_is_in_its_table_as_it_is_named():
    config = ConceptConfig(concepts=HOSTILE, tasks=HOSTILE[::-1], backbone="small_cnn_s8")
    card = model_card(config, TrainingRecord(), title="Hostile")
    assert [row[0] for row in table(section(card, "Concepts"))[2:]] == list(HOSTILE)
    assert [row[0] for row in table(section(card, "Tasks"))[2:]] == list(HOSTILE[::-1])


def test_no_text_from_outside_acts_as_markdown_or_html():
    everything = " ".join(HOSTILE)
    config = ConceptConfig(concepts=HOSTILE, tasks=HOSTILE, backbone=everything, pooling=everything)
    record = TrainingRecord(
        stages=HOSTILE,
        thresholds=dict.fromkeys(HOSTILE, 0.5),
        thresholds_source=everything,
        training_data=everything,
        metrics=dict.fromkeys(HOSTILE, 0.25),
    )
    card = model_card(config, record, title=everything, license=everything, description="\n\n".join(HOSTILE))
    plain = model_card(tiny_config(), TAUGHT, title="Squares", license="MIT", description="words")
    _, body = card.split(f"\n{GENERATED_MARK}\n")
    assert not re.search(r"[<>]", body.replace(code(card), ""))
    ours = {
        mark: plain.split(GENERATED_MARK)[1].count(mark) for mark in ("```", "\n## ", "\n---", "**", "\\", "$", "](")
    }
    assert {mark: body.count(mark) for mark in ours} == ours
    assert "_" not in section(card, "Concepts").replace("in_side", ""), "an underscore could begin emphasis"
    for line in body.splitlines():
        assert not line.startswith("|") or line.count("|") in {2, 3, 4, 5}


@pytest.mark.parametrize("start", ["- item", "1. item", "12) item", "+ item", "=====", "# heading", "> quote", "---"])
def test_description_is_paragraphs_of_plain_text(start):
    card = model_card(tiny_config(), TrainingRecord(), title="Squares", description=f"{start}\nmore\n\n{start}")
    lines = card.splitlines()
    first = lines.index("# Squares") + 2
    assert html.unescape(lines[first]) == f"{start} more"
    assert html.unescape(lines[first + 2]) == start
    assert not re.match(r"[-+=#>]|\d+[.)]", lines[first])


def test_unprintable_characters_are_shown_as_such():
    card = model_card(tiny_config(), TrainingRecord(training_data="a\x00b\x1b[0m"), title="")
    assert "a\ufffdb\ufffd\\[0m" in card or "a\ufffdb\ufffd[0m" in html.unescape(card)


def test_thresholds_stand_by_their_concept_undefined_as_a_dash():
    rows = table(section(model_card(tiny_config(), TAUGHT, title=""), "Concepts"))[2:]
    assert rows == [["bright", "0.312", "0.875", "4.9e-04"], ["dark", "-", "-", "-"], ["striped", "-", "-", "-"]]
    assert "Thresholds were chosen by: highest F1 on 200 validation images." in model_card(
        tiny_config(), TAUGHT, title=""
    )


def test_figures_stand_beside_their_controls_and_none_is_left_out():
    rows = table(section(model_card(tiny_config(), TAUGHT, title=""), "Measured"))[2:]
    assert rows == [
        ["images", "300", ""],
        ["pointing game", "0.438", "random maps: 0.062"],
        ["IoU of maps and boxes", "0.219", "area of the boxes: 0.031"],
    ]


def test_undefined_figures_are_named_below_the_table():
    record = dataclasses.replace(TAUGHT, metrics={"iou": 0.5, "task_auroc": math.nan, "my_own": math.inf})
    said = section(model_card(tiny_config(), record, title=""), "Measured")
    assert [row[0] for row in table(said)[2:]] == ["IoU of maps and boxes"]
    assert "Undefined, and so in no table: task AUROC, my_own." in said
    alone = dataclasses.replace(TAUGHT, metrics={"task_auroc": math.nan})
    assert table(section(model_card(tiny_config(), alone, title=""), "Measured")) == []


def test_card_says_on_which_images_its_figures_were_measured():
    record = dataclasses.replace(TAUGHT, measured_on="300 test images of <another> draw")
    said = html.unescape(section(model_card(tiny_config(), record, title=""), "Measured"))
    assert said.splitlines()[1] == "On 300 test images of <another> draw."
    unnamed = section(model_card(tiny_config(), TAUGHT, title=""), "Measured")
    assert unnamed.splitlines()[1] == "On images that the record does not name."


def test_control_without_its_figure_has_a_row_of_its_own():
    record = dataclasses.replace(TAUGHT, metrics={"box_area": 0.5})
    rows = table(section(model_card(tiny_config(), record, title=""), "Measured"))[2:]
    assert rows == [["area of the boxes", "0.500", ""]]


def test_every_figure_of_an_evaluation_is_in_the_card_in_words():
    model = tiny_model()
    model.record = model.record.after("concepts", ["backbone", "concept_head"])
    summary = evaluate(model, batches(Squares(8))).summary()
    record = dataclasses.replace(model.record, metrics=dict.fromkeys(summary, 0.5))
    said = section(model_card(model.config, record, title=""), "Measured")
    assert (
        "_" not in said and len(set(re.findall(r"(?:\| |; )([^|;:]+)(?=: 0.500| \| 0.500)", said))) == len(summary) - 1
    )
    (pointing,) = (row for row in table(said) if row[0] == "pointing game")
    assert [part.split(":")[0] for part in pointing[2].split("; ")] == [
        "random maps",
        "the centre of the image",
        "area of the boxes",
    ]


def test_front_matter_holds_the_figures_for_the_hubs_page():
    record = dataclasses.replace(TAUGHT, measured_on="300 test images")
    (model,) = front_matter(model_card(tiny_config(), record, title="Squares"))["model-index"]
    (results,) = model["results"]
    assert model["name"] == "Squares" and results["dataset"]["name"] == "300 test images"
    values = {metric["type"]: metric["value"] for metric in results["metrics"]}
    assert values == {"images": 300, "pointing game": 0.4375, "IoU of maps and boxes": 0.21875}


def test_hostile_names_of_figures_stay_texts_in_the_front_matter():
    record = TrainingRecord(metrics=dict.fromkeys(HOSTILE, 0.25))
    card = model_card(tiny_config(), record, title="\n".join(HOSTILE))
    (model,) = front_matter(card)["model-index"]
    assert len(model["results"][0]["metrics"]) == len(HOSTILE) and is_generated(card)


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", html.unescape(text)))


@pytest.mark.parametrize("backbone", ["medmae_vit_b16", "small_cnn_s8"])
@pytest.mark.parametrize("record", [TrainingRecord(), TAUGHT], ids=["untaught", "taught"])
def test_every_number_comes_from_config_or_record(backbone, record):
    config = tiny_config(backbone=backbone)
    card = model_card(config, record, title="Squares")
    floats = [
        value
        for column in (record.thresholds, record.typical_present, record.typical_absent, record.metrics)
        for value in column.values()
    ]
    known = numbers(str(dataclasses.asdict(config)) + str(BACKBONES.get(backbone)))
    known |= numbers(record.thresholds_source + record.training_data + record.weights_sha256)
    known |= {"256"}  # of the name SHA-256
    unknown = numbers(card) - known
    near = {text for text in unknown for value in floats if math.isclose(float(text), value, rel_tol=0.02)}
    assert unknown == near


def test_untaught_model_says_that_nothing_is_known_of_it():
    card = model_card(tiny_config(), TrainingRecord(), title="Squares")
    for sentence in (
        "it: not stated.",
        "Stages taught: none.",
        "No figures were recorded.",
        "No thresholds were recorded.",
    ):
        assert sentence in card
    assert "explain" not in code(card)


def test_license_of_a_known_backbone_is_in_the_card():
    config = architecture_config("csr_medmae_vit_b16", concepts=["a"])
    said = section(model_card(config, TrainingRecord(), title="", license="MIT"), "License")
    record = BACKBONES["medmae_vit_b16"]
    assert "CC-BY-NC-4.0, which **forbids** commercial use" in said
    assert record.citation in said and record.note[1:] in said


def test_license_of_an_unknown_backbone_is_unknown():
    said = section(model_card(tiny_config(), TrainingRecord(), title=""), "License")
    assert "knows no published weights of the backbone small_cnn_s8. If this model started from some, their" in said


def test_card_says_what_it_is_not():
    said = section(model_card(tiny_config(), TAUGHT, title=""), "Intended use and limits")
    assert "not a medical device" in said and "not an outline" in said


def test_code_of_a_card_loads_the_model_it_lies_beside(tmp_path, monkeypatch, capsys):
    model = tiny_model()
    model.record = model.record.after("concepts", ["backbone", "concept_head"])
    model.save_pretrained(tmp_path)
    Image.fromarray(np.zeros((48, 64), dtype=np.uint8)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    record = dataclasses.replace(model.record, weights_sha256="0" * 64)
    exec(code(model_card(model.config, record, title="")), {})
    assert sorted(line.split()[0] for line in capsys.readouterr().out.splitlines()) == sorted(CONCEPTS)


@pytest.mark.parametrize("address", ["org/name", "org/name@v1", 'a"b', "a'b\n```\n", "気胸", "\U0001f600"])
def test_code_of_a_card_names_the_address_it_was_given(address):
    (call,) = re.findall(
        r"from_pretrained\((.*)\)", code(model_card(tiny_config(), TrainingRecord(), title="", weights_address=address))
    )
    assert eval(call) == address


def test_a_generated_card_is_known_by_its_first_line():
    card = model_card(tiny_config(), TAUGHT, title="Squares")
    assert card.split("\n---\n")[1].splitlines()[0] == GENERATED_MARK
    assert is_generated(card)
    assert is_generated(card.replace("\n", "\r\n"))


@pytest.mark.parametrize(
    "text", ["", "# My model\n", f"I removed `{GENERATED_MARK}` from this card.\n"], ids=["empty", "own", "quoting"]
)
def test_a_users_own_card_is_not_taken_for_a_generated_one(text):
    assert not is_generated(text)


def test_same_model_gives_the_same_card():
    assert model_card(tiny_config(), TAUGHT, title="a") == model_card(tiny_config(), TAUGHT, title="a")
