import dataclasses
import json
import math
from typing import Any

import pytest

from conceptcam.config import ConceptConfig, TrainingRecord, from_json, to_json
from tests.config.test_concept_config import FULL
from tests.config.test_training_record import RECORD


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
        (
            edited(config__bottleneck="prototypes", record__evidence_absent={"Nodule": [0.5]}),
            "`evidence_absent` needs 7 numbers .* others for 'Nodule'",
        ),
        (
            edited(config__bottleneck="concepts", record__evidence_absent={"Nodule": [0.5, 0.4]}),
            "`evidence_absent` needs one number .* others for 'Nodule'",
        ),
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
