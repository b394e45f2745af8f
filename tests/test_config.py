import dataclasses
import json
import math
import time
from typing import Any

import numpy as np
import pytest
import torch

from conceptcam.config import ConceptConfig, TrainingRecord, from_json, to_json

nan = math.nan
FULL = ConceptConfig(
    concepts=("Nodule", "Émphysème", "rib fracture"),
    tasks=("pneumonia", "other"),
    task_kind="multiclass",
    backbone="timm:resnet18",
    feature_level=-2,
    image_size=(224, 448),
    in_chans=1,
    mean=(0.5,),
    std=(0.25,),
    pooling="lse",
    pooling_param=3.5,
    head_bias=False,
    attention_temperature=0.5,
    projector="ibn",
    pooling_order="project_then_pool",
    embed_dim=64,
    prototypes_per_concept=7,
    bottleneck="concepts",
)
RECORD = TrainingRecord(
    stages=("concepts", "task"),
    thresholds={"Nodule": 0.3, "rib fracture": nan},
    typical_present={"Nodule": 0.9},
    typical_absent={"Nodule": 0.1},
    thresholds_source="validation split",
    training_data="phantom",
    metrics={"auroc": 0.95, "ap": nan},
    measured_on="test split",
    license="MIT",
    weights_sha256="ab" * 32,
)


def config_with(**changes: Any) -> ConceptConfig:
    return ConceptConfig(**{"concepts": ("a", "b"), "backbone": "small_cnn_s8", **changes})


def test_the_full_config_above_differs_from_the_default_everywhere():
    default = ConceptConfig(concepts=("a",), backbone="small_cnn_s8")
    assert all(getattr(FULL, f.name) != getattr(default, f.name) for f in dataclasses.fields(ConceptConfig))


def test_config_and_record_come_back_from_json_as_they_went():
    config, record = from_json(to_json(FULL, RECORD))
    assert config == FULL
    assert math.isnan(record.thresholds["rib fracture"]) and math.isnan(record.metrics["ap"])
    plain = dataclasses.replace(RECORD, thresholds={"Nodule": 0.3}, metrics={"auroc": 0.95})
    assert dataclasses.replace(record, thresholds={"Nodule": 0.3}, metrics={"auroc": 0.95}) == plain
    assert to_json(config, record) == to_json(FULL, RECORD)


def test_an_undefined_number_is_null_in_json_that_any_program_reads():
    text = to_json(FULL, RECORD)
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert content["record"]["metrics"] == {"auroc": 0.95, "ap": None}
    assert "Émphysème" in text


def test_numbers_of_numpy_and_torch_in_a_record_can_be_saved():
    record = TrainingRecord(
        metrics={"ap": np.float32(0.5), "auroc": torch.tensor(0.75)}, thresholds={"a": np.float64(0.25)}
    )
    assert from_json(to_json(config_with(), record))[1].metrics == {"ap": 0.5, "auroc": 0.75}


def test_lists_become_tuples_so_that_a_config_stays_as_it_is():
    config = config_with(concepts=["a", "b"], image_size=[32, 64])
    assert config == config_with(image_size=(32, 64))
    assert config.concepts == ("a", "b")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.embed_dim = 3  # type: ignore[misc]


def test_a_model_may_have_no_tasks():
    assert config_with().tasks == ()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"concepts": ()}, "`concepts` needs at least 1 name"),
        ({"concepts": ("a", "b", "a")}, r"`concepts` .*none repeated; got 3, .*repeated: \['a'\]"),
        ({"concepts": ("a", "")}, r"`concepts` .*none empty .*not text: \[''\]"),
        ({"concepts": ("a", "  ")}, r"`concepts` .*not text: \['  '\]"),
        ({"concepts": ("a", 3)}, r"`concepts` .*not text: \[3\]"),
        ({"concepts": "AB"}, r"`concepts` must be a list of names, got the text 'AB'; for one name write \['AB'\]"),
        ({"tasks": "AB"}, "`tasks` must be a list of names, got the text 'AB'"),
        ({"mean": "0.5"}, "`mean` must be a sequence, got '0.5'"),
        ({"concepts": None}, "`concepts` must be a sequence, got None"),
        ({"tasks": ("t", "t")}, r"`tasks` .*repeated: \['t'\]"),
        ({"tasks": ("",)}, "`tasks` .*none empty"),
        ({"task_kind": "regression"}, r"unknown `task_kind` 'regression'; known: \['multilabel', 'multiclass'\]"),
        ({"bottleneck": "none"}, r"unknown `bottleneck` 'none'; known: \['prototypes', 'concepts'\]"),
        ({"pooling_order": "both"}, "unknown `pooling_order` 'both'; known: .*'pool_then_project'"),
        ({"projector": "conv"}, r"unknown `projector` 'conv'; known: \['mlp', 'linear', 'ibn'\]"),
        ({"image_size": (224,)}, "`image_size` needs 2 numbers, got .224"),
        ({"image_size": 224}, "`image_size` must be a sequence, got 224"),
        ({"image_size": (224, 0)}, r"`image_size\[1\]` must be an int from 1 to 16384, got 0"),
        ({"image_size": (224.0, 224)}, r"`image_size\[0\]` must be an int from 1 to 16384, got 224.0"),
        (
            {"image_size": (np.int64(224), 224)},
            r"`image_size\[0\]` must be an int from 1 to 16384, got np.int64\(224\)",
        ),
        ({"mean": (0.5, 0.5)}, "`mean` needs 3 numbers"),
        ({"in_chans": 1, "std": (0.5, 0.5)}, "`std` needs 1 number, got"),
        ({"in_chans": 2}, "`in_chans` must be 1, for grey images, or 3, got 2"),
        ({"mean": (0.5, nan, 0.5)}, r"`mean\[1\]` must be a finite int or float from -1000 to 1000, got nan"),
        ({"mean": ("0.5", 0.5, 0.5)}, r"`mean\[0\]` must be a finite int or float from -1000 to 1000, got '0.5'"),
        ({"std": (0.5, 0.5, 0.0)}, r"`std\[2\]` must be a finite int or float from 1e-06 to 1000, got 0.0"),
        ({"std": (0.5, 0.5, math.inf)}, r"`std\[2\]` must be a finite"),
        (
            {"attention_temperature": 0.0},
            "`attention_temperature` must be a finite int or float from 1e-06 to 1e.06, got 0.0",
        ),
        (
            {"attention_temperature": nan},
            "`attention_temperature` must be a finite int or float from 1e-06 to 1e.06, got nan",
        ),
        (
            {"attention_temperature": "1"},
            "`attention_temperature` must be a finite int or float from 1e-06 to 1e.06, got '1'",
        ),
        ({"pooling_param": "4"}, "`pooling_param` must be a finite int or float from -1e.06 to 1e.06, got '4'"),
        ({"embed_dim": 0}, "`embed_dim` must be an int from 1 to 65536, got 0"),
        ({"embed_dim": 12.5}, "`embed_dim` must be an int from 1 to 65536, got 12.5"),
        ({"prototypes_per_concept": -1}, "`prototypes_per_concept` must be an int from 1 to 4096, got -1"),
        ({"feature_level": True}, "`feature_level` must be an int from -100 to 100, got True"),
        ({"head_bias": "false"}, "`head_bias` must be a bool, got 'false'"),
        ({"backbone": 18}, "`backbone` must be a str, got 18"),
    ],
)
def test_an_impossible_config_is_refused_with_the_field(changes, message):
    with pytest.raises(ValueError, match=message):
        config_with(**changes)


def edited(**changes: Any) -> str:
    content = json.loads(to_json(FULL, RECORD))
    for path, value in changes.items():
        *outer, key = path.split("__")
        target = content
        for name in outer:
            target = target[name]
        if value is dataclasses.MISSING:
            del target[key]
        else:
            target[key] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "config.json is no JSON: "),
        ("[]", "config.json has format_version None, this conceptcam reads 1 to 2; install the release that wrote it"),
        (
            edited(format_version=3),
            "config.json has format_version 3, this conceptcam reads 1 to 2; install the release",
        ),
        (edited(format_version=dataclasses.MISSING), "config.json has format_version None"),
        (edited(licence="MIT"), r"config.json has unknown fields \['licence'\]"),
        (edited(config__colour="red"), r"unknown fields \['colour'\] of ConceptConfig; known: .*'backbone'"),
        (edited(record__epoch=3), r"unknown fields \['epoch'\] of TrainingRecord"),
        (edited(config__concepts=dataclasses.MISSING), r"config.json lacks the fields \['concepts'\] of ConceptConfig"),
        (
            edited(config=dataclasses.MISSING),
            r"config.json lacks the fields \['concepts', 'backbone'\] of ConceptConfig",
        ),
        (edited(config=["Nodule"]), r"config.json must hold the fields of ConceptConfig, got \['Nodule'\]"),
        (edited(config__embed_dim=None), "`embed_dim` must be an int from 1 to 65536, got None"),
        (edited(config__embed_dim=10**30), "`embed_dim` must be an int from 1 to 65536, got 1000"),
        (edited(config__prototypes_per_concept=10**18), "`prototypes_per_concept` must be an int from 1 to 4096"),
        (edited(config__image_size=[10**30, 224]), r"`image_size.0.` must be an int from 1 to 16384"),
        (edited(config__mean=[10**400, 0, 0]), r"`mean.0.` must be .*, got a number of more than 60 digits"),
        (edited(config__attention_temperature=10**400), "`attention_temperature` must be a finite int or float"),
        (edited(config__concepts=["a", "b\x1b[2J"]), r"characters that cannot be printed: 'b\\x1b\[2J'; take them out"),
        (edited(config__tasks=["\ud800"]), r"characters that cannot be printed: '\\ud800'"),
        (
            edited(record__thresholds={"Nodule": 10**400}),
            "`thresholds` of 'Nodule' must be a finite int or float from 0",
        ),
        (edited(record__thresholds={"Nodule": 7.0}), "`thresholds` of 'Nodule' must be .* from 0 to 1, got 7.0"),
        (edited(record__thresholds={"Nodule": "0.5"}), "`thresholds` of 'Nodule' must be .* from 0 to 1, got '0.5'"),
        (edited(record__thresholds={"Nodule": True}), "`thresholds` of 'Nodule' must be .* from 0 to 1, got True"),
        (edited(record__thresholds={"Nodule": [1]}), r"`thresholds` of 'Nodule' must be .* from 0 to 1, got \[1\]"),
        (edited(record__thresholds={"Edema": 0.5}), "config.json has thresholds of what are no concepts .*: 'Edema'"),
        (edited(record__metrics={"a": {"b": 1}}), r"`metrics` of 'a' must be a finite int or float, got {'b': 1}"),
        (edited(record__evidence_absent={"Nodule": [0.5]}), "`evidence_absent` needs 7 numbers .* others for 'Nodule'"),
        (edited(record__evidence_absent={"Nodule": ["a"]}), "`evidence_absent` of 'Nodule' must be .* 0 to 1, got 'a'"),
        (edited(record__license=None), "`license` must be text, got None"),
        (edited(record__training_data=["a"]), r"`training_data` must be text, got \['a'\]"),
        (edited(record__thresholds_source={}), "`thresholds_source` must be text, got {}"),
        (edited(record__measured_on=1), "`measured_on` must be text, got 1"),
        (edited(record__stages=[1]), r"`stages` needs .*not text: \[1\]"),
        (edited(record__weights_sha256=5), "`weights_sha256` must be text, got 5"),
        (edited(record__weights_sha256="AB"), "`weights_sha256` must be 64 hexadecimal digits, got 'AB'"),
        (edited(format_version=[[2]]), r"config.json has format_version \[\[2\]\]"),
        ('{"record": ' + "[" * 100_000, "config.json is nested too deeply"),
        (
            '{"format_version": 2, "format_version": 1}',
            r"holds a name twice in one object \['format_version'\]; keep one",
        ),
        ("9" * 5000, "config.json is no JSON: Exceeds the limit"),
        (edited(config__std=[1, 1, None]), r"`std\[2\]` must be a finite int or float from 1e-06 to 1000, got None"),
    ],
)
def test_a_config_file_that_cannot_be_read_is_refused_with_reason(text, message):
    with pytest.raises(ValueError, match=message):
        from_json(text)


def test_fields_that_have_a_default_may_be_missing_from_the_file():
    config, record = from_json('{"format_version": 1, "config": {"concepts": ["a"], "backbone": "small_cnn_s8"}}')
    assert (config, record) == (ConceptConfig(concepts=("a",), backbone="small_cnn_s8"), TrainingRecord())


def test_a_config_of_few_names_is_shown_as_it_is_written():
    assert repr(FULL).startswith("ConceptConfig(concepts=('Nodule', 'Émphysème', 'rib fracture'), backbone='timm:res")
    assert eval(repr(FULL)) == FULL
    plain = dataclasses.replace(RECORD, thresholds={"Nodule": 0.3}, metrics={"auroc": 0.95})
    assert eval(repr(plain)) == plain


def test_hundreds_of_names_do_not_bury_the_rest_of_a_config():
    names = [f"concept number {number}" for number in range(300)]
    config = repr(config_with(concepts=names, tasks=names))
    first = "'concept number 0', 'concept number 1', 'concept number 2' and 297 more"
    assert config.startswith(f"ConceptConfig(concepts=({first}), backbone='small_cnn_s8', tasks=({first}), task_kind=")
    record = repr(TrainingRecord(stages=("concepts",), thresholds=dict.fromkeys(names, 0.5)))
    assert "thresholds={'concept number 0': 0.5, 'concept number 1': 0.5, 'concept number 2': 0.5 and 297" in record
    assert max(len(config), len(record)) < 800


def test_a_record_drops_what_described_replaced_weights():
    after = RECORD.after("task", ["task_head"])
    assert (after.metrics, after.measured_on, after.license, after.weights_sha256) == ({}, "", "", "")
    assert after.training_data == "phantom"


def test_a_config_comes_back_from_a_dict_of_json_types():
    fields = FULL.to_dict()
    assert json.loads(json.dumps(fields)) == fields
    assert ConceptConfig.from_dict(fields) == FULL


def test_an_unknown_or_missing_field_of_a_dict_is_refused():
    with pytest.raises(ValueError, match=r"unknown fields \['colour'\] of ConceptConfig"):
        ConceptConfig.from_dict(FULL.to_dict() | {"colour": "red"})
    with pytest.raises(ValueError, match=r"lacks the fields \['backbone'\]"):
        ConceptConfig.from_dict({"concepts": ["a"]})


VERSION_1 = """{
  "format_version": 1,
  "conceptcam": "0.1.0",
  "config": {
    "concepts": ["Nodule", "Émphysème"], "backbone": "small_cnn_s8", "tasks": ["other"], "task_kind": "multilabel",
    "feature_level": 0, "image_size": [16, 32], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "pooling": "lse",
    "pooling_value": 2.5, "head_bias": false, "map_temperature": 2.0, "projector": "mlp",
    "pooling_order": "project_then_pool", "embed_dim": 8, "prototypes_per_concept": 3, "bottleneck": "prototypes"
  },
  "record": {
    "stages": ["concepts", "my own"], "thresholds": {"Nodule": 0.5, "Émphysème": null}, "typical_present": {},
    "typical_absent": {}, "provenance": "validation split", "training_data": "phantom", "metrics": {"ap": null},
    "measured_on": "test split", "license": "MIT", "weights_sha256": ""
  }
}"""


def test_a_config_of_version_1_is_read_with_all_its_fields():
    config, record = from_json(VERSION_1)
    assert (config.pooling_param, config.attention_temperature) == (2.5, 2.0)
    assert record.thresholds_source == "validation split" and math.isnan(record.thresholds["Émphysème"])
    old = json.loads(VERSION_1)
    again = json.loads(to_json(config, record))
    assert again["format_version"] == 2
    renamed = {"pooling_value", "map_temperature", "provenance"}
    for part in ("config", "record"):
        kept = {key: value for key, value in old[part].items() if key not in renamed}
        assert all(again[part][key] == value for key, value in kept.items())
        assert not renamed & again[part].keys()


@pytest.mark.parametrize("name", ["pooling_param", "attention_temperature"])
def test_a_new_name_is_unknown_to_version_1(name):
    old = json.loads(VERSION_1)
    old["config"][name] = 1.0
    with pytest.raises(ValueError, match=rf"unknown fields \['{name}'\] of format_version 1"):
        from_json(json.dumps(old))


def test_an_old_name_is_unknown_to_version_2():
    old = json.loads(VERSION_1) | {"format_version": 2}
    with pytest.raises(ValueError, match=r"unknown fields \['map_temperature', 'pooling_value'\] of ConceptConfig"):
        from_json(json.dumps(old))


def test_many_names_are_checked_in_linear_time():
    names = [f"concept {number}" for number in range(200_000)]
    started = time.perf_counter()
    with pytest.raises(ValueError, match=r"got 200001, .*repeated: \['concept 7'\]"):
        config_with(concepts=[*names, "concept 7"])
    assert time.perf_counter() - started < 5  # comparing each with each takes hours


def test_no_number_of_an_impossible_kind_gets_into_a_record():
    for value in (True, "0.5", None, [0.5], 1 + 0.5j):
        with pytest.raises(ValueError, match="`metrics` of 'ap' must be a finite int or float, got "):
            TrainingRecord(metrics={"ap": value})
