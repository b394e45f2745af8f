import dataclasses
import math

import numpy as np
import pytest
import torch

from conceptcam.config import TrainingRecord, from_json, to_json
from tests.config.test_concept_config import config_with

nan = math.nan
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


def test_numbers_of_numpy_and_torch_in_a_record_can_be_saved():
    record = TrainingRecord(
        metrics={"ap": np.float32(0.5), "auroc": torch.tensor(0.75)}, thresholds={"a": np.float64(0.25)}
    )
    assert from_json(to_json(config_with(), record))[1].metrics == {"ap": 0.5, "auroc": 0.75}


def test_a_record_drops_what_described_replaced_weights():
    after = RECORD.after("task", ["task_head"])
    assert (after.metrics, after.measured_on, after.license, after.weights_sha256) == ({}, "", "", "")
    assert after.training_data == "phantom"


def test_no_number_of_an_impossible_kind_gets_into_a_record():
    for value in (True, "0.5", None, [0.5], 1 + 0.5j):
        with pytest.raises(ValueError, match="`metrics` of 'ap' must be a finite int or float, got "):
            TrainingRecord(metrics={"ap": value})


def test_a_record_of_few_names_is_shown_as_it_is_written():
    plain = dataclasses.replace(RECORD, thresholds={"Nodule": 0.3}, metrics={"auroc": 0.95})
    assert eval(repr(plain)) == plain


def test_hundreds_of_names_do_not_bury_the_rest_of_a_record():
    names = [f"concept number {number}" for number in range(300)]
    record = repr(TrainingRecord(stages=("concepts",), thresholds=dict.fromkeys(names, 0.5)))
    assert "thresholds={'concept number 0': 0.5, 'concept number 1': 0.5, 'concept number 2': 0.5 and 297" in record
    assert len(record) < 800
