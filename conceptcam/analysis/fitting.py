"""What a model's record learns from validation images after training, beside thresholds: calibration."""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from conceptcam.data.batch import Batches, as_batch
from conceptcam.metrics.calibration import Scaling, ScalingMethod, fit_scaling
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.device import eval_mode
from conceptcam.model.taught import check_taught, tasks_taught


@torch.inference_mode()
def fit_calibration(
    model: ConceptModel, batches: Batches, *, calibration_source: str, method: ScalingMethod = "platt"
) -> None:
    """Fit on validation data what makes probabilities of concepts and tasks come true, into the model's record.

    Class weights of training make probabilities too high, so that rare concepts are learned at all. `predict`,
    `explain` and the calibration figures of `evaluate` then report corrected probabilities. Logits and contributions
    stay.

    Args:
        model: A model that was taught concepts.
        batches: Validation data, never the data that figures are reported on.
        calibration_source: What to call that data in the record.
        method: As in `conceptcam.metrics.fit_scaling`. Tasks that exclude each other have one temperature.

    Raises:
        ValueError: If the model was never taught concepts, or there are no batches.
    """
    check_taught(model.config, model.record)
    config, with_tasks = model.config, tasks_taught(model.config, model.record)
    rows: list[tuple[Tensor, ...]] = []
    with eval_mode(model) as where, torch.random.fork_rng(devices=[]):  # a `DataLoader` draws a number
        for given in batches:
            batch = as_batch(given).to(where)
            part = model.forward_concepts(batch.images)
            logits = model.forward_task(part).task_logits if with_tasks else batch.targets
            rows.append(tuple(one.cpu() for one in (part.concept_logits, batch.concepts, logits, batch.targets)))
    if not rows:
        raise ValueError("there are no batches to fit a calibration on")
    concept_logits, concepts, task_logits, targets = map(torch.cat, zip(*rows, strict=True))
    task_scaling = {}
    if with_tasks and targets.shape[1]:
        task_scaling = _pairs(config.tasks, fit_scaling(task_logits, targets, method=method, kind=config.task_kind))
    model.record = dataclasses.replace(
        model.record,
        calibration=_pairs(config.concepts, fit_scaling(concept_logits, concepts, method=method)),
        task_calibration=task_scaling,
        calibration_source=calibration_source,
    )


def _pairs(names: Sequence[str], scaling: Scaling) -> dict[str, tuple[float, ...]]:
    """Name -> slope and intercept, of those that could be fitted."""
    rows = torch.stack(tuple(scaling), dim=1).tolist()
    return {name: tuple(row) for name, row in zip(names, rows, strict=True) if not math.isnan(row[0])}
