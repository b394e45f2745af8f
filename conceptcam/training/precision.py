"""Which precision is faster on this machine?"""

import copy
import logging
import math
import time

import torch

from conceptcam.data.batch import ConceptBatch
from conceptcam.model.concept_model import ConceptModel
from conceptcam.training.stages import Stage
from conceptcam.training.step import Precision

log = logging.getLogger(__name__)


def faster_precision(model: ConceptModel, stage: Stage, batch: ConceptBatch, device: torch.device | str) -> Precision:
    """The precision in which a step is faster, fp32 or bf16; not every machine is fast in bf16.

    Args:
        model: Stays as it is; a copy of it takes the steps.
        stage: Whose parts learn.
        batch: What a step is taken on.
        device: Where.
    """
    device, batch = torch.device(device), batch.to(device)
    seconds: dict[Precision, float] = {"fp32": math.inf, "bf16": math.inf}
    trial = copy.deepcopy(model).to(device)
    stage.freeze(trial)
    for _ in range(3):
        for precision in seconds:
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                output = trial.forward_concepts(batch.images)
            output.concept_logits.float().mean().backward()
            output.concept_logits.detach().sum().item()  # waits for a GPU
            seconds[precision] = min(seconds[precision], time.perf_counter() - start)
    log.info("a step takes %.3f s in fp32 and %.3f s in bf16", seconds["fp32"], seconds["bf16"])
    return min(seconds, key=lambda precision: seconds[precision])
