"""A metric that cannot be computed is refused as it is made, in a sentence, not after an epoch."""

import inspect

import pytest

from conceptcam import metrics
from conceptcam.metrics.base import PlottedMetric

COUNTED = {"num_concepts", "num_tasks", "per_concept", "min_images", "top", "bins", "most_rows", "min_support"}
CHOSEN = {"kind", "energy"}
USUAL = {"num_concepts": 3, "num_tasks": 2, "per_concept": 2}


def options() -> list[tuple[type, str]]:
    """Each metric of the room with each of its options that is a count or a choice."""
    kinds = [kind for kind in (getattr(metrics, name) for name in dir(metrics)) if inspect.isclass(kind)]
    kinds = [kind for kind in kinds if issubclass(kind, PlottedMetric)]
    return [(kind, name) for kind in kinds for name in inspect.signature(kind).parameters if name in COUNTED | CHOSEN]


def make(metric: type, /, **chosen: object) -> object:
    own = inspect.signature(metric).parameters
    return metric(**{name: value for name, value in USUAL.items() if name in own} | chosen)


@pytest.mark.parametrize(("metric", "name"), options())
def test_an_impossible_option_of_a_metric_is_refused(metric, name):
    make(metric)
    for wrong in ("nonsense", float("nan"), -1, None):
        message = f"`{name}` must be an int" if name in COUNTED else f"unknown `{name}`"
        with pytest.raises(ValueError, match=message):
            make(metric, **{name: wrong})
