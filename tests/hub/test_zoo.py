"""The zoo's records are true as far as this machine can tell, and say what must be said before a download."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from conceptcam.config import ConceptConfig, TrainingRecord, to_json
from conceptcam.data.phantom.concepts import PHANTOM_CONCEPTS, PHANTOM_DISEASES
from conceptcam.data.vindr import VINDR_CONCEPTS, VINDR_TASKS
from conceptcam.hub import zoo
from conceptcam.hub.architectures import ARCHITECTURES, architecture_config
from conceptcam.hub.published_backbones import BACKBONES, BackboneInfo, backbone_info
from conceptcam.hub.zoo import (
    bundled_models,
    license_notice,
    list_architectures,
    list_models,
    list_zoo,
    model_info,
    models_table,
)
from conceptcam.training.presets import get_preset

RECORDS = list(BACKBONES.values())
OF_TIMM = [record for record in RECORDS if (record.repository or "").startswith("timm/")]
NAMES = {"concepts": ["Nodule", "Edema"], "tasks": ["Cancer"]}


def named(record: BackboneInfo) -> str:
    return record.name


@pytest.fixture
def with_models(tmp_path, monkeypatch):
    """A package with one model in it, and a folder that is none."""
    (tmp_path / "models" / "a-model").mkdir(parents=True)
    (tmp_path / "models" / "not-a-model").mkdir()
    config = ConceptConfig(concepts=("Nodule",), backbone="small_cnn_s8", image_size=(112, 96))
    record = TrainingRecord(stages=("concepts",))
    (tmp_path / "models" / "a-model" / "config.json").write_text(to_json(config, record), encoding="utf-8")
    monkeypatch.setattr(zoo, "MODELS", tmp_path / "models")
    return config, record


@pytest.fixture(scope="module")
def benchmark_of_models():
    """The script that trains the models of the package and writes their cards."""
    spec = importlib.util.spec_from_file_location("bundled", Path(__file__).parents[2] / "benchmarks" / "bundled.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.parametrize("record", OF_TIMM, ids=named)
def test_record_of_a_timm_model_says_what_timm_says(record):
    published = timm.get_pretrained_cfg(record.repository.removeprefix("timm/"))
    assert f"timm/{record.architecture}.{published.tag}" == record.repository == published.hf_hub_id
    assert published.license.upper() == record.license.upper()
    assert (published.mean, published.std) == (record.mean, record.std)
    assert published.input_size == (3, *record.image_size)


@pytest.mark.parametrize("record", RECORDS, ids=named)
def test_architecture_gives_the_recorded_grid(record):
    with torch.device("meta"):
        options = {} if "dinov2" not in record.architecture else {"img_size": record.image_size}
        model = timm.create_model(record.architecture, **options).eval()
        (grid,) = model.forward_intermediates(
            torch.empty(1, 3, *record.image_size), indices=1, output_fmt="NCHW", intermediates_only=True
        )
    assert grid.shape[-2:] == record.grid


@pytest.mark.parametrize("record", RECORDS, ids=named)
def test_noncommercial_license_says_so_in_its_name(record):
    assert record.commercial_use == ("-NC-" not in record.license)
    assert record.license in {"Apache-2.0", "MIT", "CC-BY-NC-4.0"}


@pytest.mark.parametrize("record", RECORDS, ids=named)
def test_weights_that_cannot_be_fetched_come_with_what_to_do(record):
    assert (record.repository is None) == (record.file is None) == (not record.downloadable)
    assert record.downloadable or "weights=" in record.note


@pytest.mark.parametrize("record", RECORDS, ids=named)
def test_every_backbone_is_found_by_name_and_says_whom_to_cite(record):
    assert "arXiv:" in record.citation
    assert backbone_info(record.name) is record is model_info(record.name)


def test_timm_weights_are_found_by_the_name_timm_has_for_them():
    assert backbone_info("timm:vit_base_patch16_224.mae") is BACKBONES["mae_vit_b16"]
    assert backbone_info("timm:resnet50") is None, "which weights these are depends on timm's version"
    assert backbone_info("small_cnn_s8") is None


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_takes_its_backbones_preprocessing(name):
    config, record = architecture_config(name, **NAMES), BACKBONES[ARCHITECTURES[name].backbone]
    assert (config.backbone, config.image_size, config.mean, config.std) == (
        record.name,
        record.image_size,
        record.mean,
        record.std,
    )
    assert (config.concepts, config.tasks) == (("Nodule", "Edema"), ("Cancer",))


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name.startswith("csr_")])
def test_csr_is_the_model_of_the_paper_preset(name):
    config = architecture_config(name, **NAMES)
    assert get_preset("paper").apply_to(config) == config
    assert config.bottleneck == "prototypes"


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name.startswith("cbm_")])
def test_cbm_reads_tasks_off_concept_probabilities(name):
    assert architecture_config(name, **NAMES).bottleneck == "concepts"


def test_another_backbone_brings_its_own_preprocessing():
    config = architecture_config("csr_resnet50", **NAMES, backbone="rad_dino_vit_b14")
    record = BACKBONES["rad_dino_vit_b14"]
    assert (config.image_size, config.mean, config.std) == (record.image_size, record.mean, record.std)


def test_a_given_field_wins_over_the_architecture():
    config = architecture_config("csr_resnet50", **NAMES, image_size=(320, 256), pooling="max", mean=(0.5, 0.5, 0.5))
    assert (config.image_size, config.pooling, config.mean) == ((320, 256), "max", (0.5, 0.5, 0.5))
    assert config.std == BACKBONES["timm:resnet50.a1_in1k"].std


def test_backbone_outside_the_zoo_needs_its_preprocessing():
    with pytest.raises(ValueError, match="does not know backbone 'small_cnn_s8' .* give image_size, std too"):
        architecture_config("csr_resnet50", **NAMES, backbone="small_cnn_s8", mean=(0.5, 0.5, 0.5))
    given = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "image_size": (112, 112)}
    assert architecture_config("csr_resnet50", **NAMES, backbone="small_cnn_s8", **given).image_size == (112, 112)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("csr_resnet5", {}, r"unknown architecture 'csr_resnet5'; did you mean \['csr_resnet50'"),
        ("csr_resnet50", {"poling": "max"}, r"a config has no field 'poling'; did you mean \['pooling'"),
        ("csr_resnet50", {"backbone": "rad_dino_vit_b16"}, r"does not know .* did you mean \['rad_dino_vit_b14'"),
        ("csr_resnet50", {"backbone": 50}, "does not know backbone 50 "),
        ("csr_resnet50", {"tasks": "Cancer"}, "`tasks` must be a list of names, got the text 'Cancer'"),
        ("csr_resnet50", {"concepts": ["Edema", "Edema"]}, r"repeated: \['Edema'\]"),
    ],
)
def test_an_impossible_config_is_refused_in_a_sentence(name, changes, message):
    with pytest.raises(ValueError, match=message):
        architecture_config(name, **{**NAMES, **changes})


def test_bundled_models_are_those_whose_folder_is_there(with_models):
    config, record = with_models
    assert bundled_models() == {"a-model": zoo.MODELS / "a-model"}
    info = model_info("a-model")
    assert (info.config, info.record, info.folder) == (config, record, zoo.MODELS / "a-model")


@pytest.mark.parametrize("name", bundled_models())
def test_card_of_a_bundled_model_follows_from_its_config(name, benchmark_of_models):
    info = model_info(name)
    shown = (info.folder / "README.md").read_text(encoding="utf-8")
    assert shown == benchmark_of_models.card_of(name, info.config, info.record), "python benchmarks/bundled.py --cards"
    saved, again = (info.folder / "config.json").read_text(encoding="utf-8"), to_json(info.config, info.record)
    assert json.loads(saved) | {"conceptcam": None} == json.loads(again) | {"conceptcam": None}


@pytest.mark.parametrize("name", bundled_models())
def test_a_bundled_model_states_its_license_and_test_images(name):
    info = model_info(name)
    assert info.record.license == info.license == "Apache-2.0"
    assert info.record.measured_on == "1600 drawn chest radiographs of another seed (conceptcam phantom)"
    shown = (info.folder / "README.md").read_text(encoding="utf-8")
    assert "Of these weights: Apache-2.0." in shown and f"\nOn {info.record.measured_on}.\n" in shown


def test_zoo_lists_models_then_architectures_then_backbones(with_models):
    assert list_zoo() == ["a-model", *ARCHITECTURES, *BACKBONES]
    kinds = {kind: list_zoo(kind=kind) for kind in ("model", "architecture", "backbone")}
    assert kinds == {"model": ["a-model"], "architecture": list(ARCHITECTURES), "backbone": list(BACKBONES)}


def test_models_and_architectures_have_a_list_each(with_models):
    assert (list_models(), list_models("b*")) == (["a-model"], [])
    assert list_architectures() == list(ARCHITECTURES)
    assert list_architectures("*_resnet50") == ["csr_resnet50", "cbm_resnet50"]


@pytest.mark.parametrize("asked", [True, False])
def test_filters_by_license_and_source_agree_with_a_loop(asked, with_models):
    def weights(name: str) -> BackboneInfo | None:
        return BACKBONES.get(ARCHITECTURES[name].backbone if name in ARCHITECTURES else name)

    everything = list_zoo()
    free = [name for name in everything if (weights(name) is None or weights(name).commercial_use) is asked]
    ready = [name for name in everything if (weights(name) is None or weights(name).repository is not None) is asked]
    assert list_zoo(commercial_use=asked) == free
    assert list_zoo(downloadable=asked) == ready
    assert free and ready


def test_zoo_is_filtered_by_pattern():
    assert list_zoo("*medmae*", kind="backbone") == ["medmae_vit_b16"]
    assert list_zoo("no such thing") == []


def test_unknown_kind_or_name_is_refused_with_a_hint():
    with pytest.raises(
        ValueError, match=r"unknown `kind` 'backbones'; did you mean .*; known: \['model', 'architecture', 'backbone'\]"
    ):
        list_zoo(kind="backbones")
    with pytest.raises(ValueError, match=r"the zoo has no 'medmae_vitb16'; did you mean \['medmae_vit_b16'"):
        model_info("medmae_vitb16")


def test_notice_names_weights_and_license():
    sentence = "the weights of mae_vit_b16 are under CC-BY-NC-4.0, which forbids commercial use"
    assert license_notice("mae_vit_b16") == license_notice("timm:vit_base_patch16_224.mae") == sentence
    assert license_notice("csr_medmae_vit_b16") == license_notice("medmae_vit_b16") != ""


def test_notice_is_empty_where_commercial_use_is_allowed(with_models):
    silent = {name for name in list_zoo() if license_notice(name) == ""}
    assert silent == set(list_zoo(commercial_use=True))
    assert license_notice("small_cnn_s8") == ""


def test_table_has_a_row_of_facts_for_each_name(with_models):
    lines = models_table().splitlines()
    header, rule, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert header == ["name", "kind", "grid @ size", "license", "commercial use", "weights"]
    assert all(set(cell) == {"-"} for cell in rule)
    assert [row[0] for row in rows] == list_zoo()
    said = {row[0]: row[1:] for row in rows}
    assert said["medmae_vit_b16"] == ["backbone", "14x14 @ 224x224", "CC-BY-NC-4.0", "no", "yours"]
    assert said["csr_rad_dino_vit_b14"] == ["architecture", "37x37 @ 518x518", "MIT", "yes", "microsoft/rad-dino"]
    assert said["a-model"] == ["model", "- @ 112x96", "Apache-2.0", "yes", "in the package"]
    assert len({len(line) for line in lines}) == 1, "columns are aligned"


def test_vindr_and_phantom_share_22_findings_and_6_diagnoses():
    assert (len(set(VINDR_CONCEPTS)), len(set(VINDR_TASKS))) == (22, 6)
    assert PHANTOM_CONCEPTS is VINDR_CONCEPTS
    assert PHANTOM_DISEASES is VINDR_TASKS
    places = [VINDR_CONCEPTS.index(name) for name in ("Atelectasis", "Cardiomegaly", "Emphysema")]
    assert places == [1, 3, 7]


def test_records_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BACKBONES["medmae_vit_b16"].license = "MIT"


def test_zoo_loads_without_torch_timm_or_the_hub_client():
    heavy = {"torch", "timm", "huggingface_hub", "numpy"}
    code = f"import sys, conceptcam.hub.zoo as z; z.models_table(); print(sorted({heavy} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "[]\n"


@pytest.mark.parametrize("kind", ["backbone", "architecture"])
def test_docs_page_shows_the_table_as_it_is(kind):
    page = (Path(__file__).parents[2] / "docs" / "zoo.md").read_text(encoding="utf-8")
    shown = page.split(f"<!-- zoo:{kind}s -->\n")[1].split(f"<!-- /zoo:{kind}s -->")[0]
    assert shown == models_table(list_zoo(kind=kind))
