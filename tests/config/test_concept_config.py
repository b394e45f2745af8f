import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from conceptcam.config import ConceptConfig

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


def config_with(**changes: Any) -> ConceptConfig:
    return ConceptConfig(**{"concepts": ("a", "b"), "backbone": "small_cnn_s8", **changes})


def test_the_full_config_above_differs_from_the_default_everywhere():
    default = ConceptConfig(concepts=("a",), backbone="small_cnn_s8")
    assert all(getattr(FULL, f.name) != getattr(default, f.name) for f in dataclasses.fields(ConceptConfig))


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


def test_a_config_of_few_names_is_shown_as_it_is_written():
    assert repr(FULL).startswith("ConceptConfig(concepts=('Nodule', 'Émphysème', 'rib fracture'), backbone='timm:res")
    assert eval(repr(FULL)) == FULL


def test_hundreds_of_names_do_not_bury_the_rest_of_a_config():
    names = [f"concept number {number}" for number in range(300)]
    config = repr(config_with(concepts=names, tasks=names))
    first = "'concept number 0', 'concept number 1', 'concept number 2' and 297 more"
    assert config.startswith(f"ConceptConfig(concepts=({first}), backbone='small_cnn_s8', tasks=({first}), task_kind=")
    assert len(config) < 800


def test_a_config_comes_back_from_a_dict_of_json_types():
    fields = FULL.to_dict()
    assert json.loads(json.dumps(fields)) == fields
    assert ConceptConfig.from_dict(fields) == FULL


def test_an_unknown_or_missing_field_of_a_dict_is_refused():
    with pytest.raises(ValueError, match=r"unknown fields \['colour'\] of ConceptConfig"):
        ConceptConfig.from_dict(FULL.to_dict() | {"colour": "red"})
    with pytest.raises(ValueError, match=r"lacks the fields \['backbone'\]"):
        ConceptConfig.from_dict({"concepts": ["a"]})


class CountedName(str):
    """A name that counts how often it is compared or looked up."""

    touched = 0

    def __eq__(self, other: object) -> bool:
        CountedName.touched += 1
        return str.__eq__(self, other)

    def __lt__(self, other: str) -> bool:
        CountedName.touched += 1
        return str.__lt__(self, other)

    def __hash__(self) -> int:
        CountedName.touched += 1
        return str.__hash__(self)


@pytest.mark.parametrize("count", [50, 5000])
def test_many_names_are_checked_a_few_times_each(monkeypatch, count):
    names = [CountedName(f"concept {number}") for number in [*range(count), 7]]
    monkeypatch.setattr(CountedName, "touched", 0)
    with pytest.raises(ValueError, match=rf"got {count + 1}, .*repeated: \['concept 7'\]"):
        config_with(concepts=names)
    assert 0 < CountedName.touched <= 4 * count  # each with each would be count / 2 times each
