import pytest
import torch
from torch import nn

from conceptcam.model.device import eval_mode


@pytest.mark.parametrize("fails", [False, True])
def test_eval_mode_puts_back_the_mode_of_each_part(fails):
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    model[2][0].eval()
    before = [part.training for part in model.modules()]
    try:
        with eval_mode(model) as device:
            assert device == torch.device("cpu")
            assert not any(part.training for part in model.modules())
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert [part.training for part in model.modules()] == before
