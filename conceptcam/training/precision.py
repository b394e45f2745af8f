"""Which precision a stage computes in, and which one is faster on this machine."""

import copy
import logging
import math
import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from conceptcam.data.batch import ConceptBatch
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.device import cpu_has_bf16
from conceptcam.training.stages import Stage

log = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "fp16"]

AUTOCAST: dict[Precision, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Type that each precision runs forward passes in; None: the type of the weights."""

TRIAL_SECONDS = 3.0
TRIAL_IMAGES = 4


def faster_precision(
    model: ConceptModel,
    stage: Stage,
    batch: ConceptBatch,
    device: torch.device | str,
    *,
    echo: Callable[[str], None] = log.info,
) -> Precision:
    """The precision in which a step is faster, fp32 or bf16; not every machine is fast in bf16.

    A few steps on a few images are timed, until `TRIAL_SECONDS` are over; bf16 is chosen only if it was timed by
    then. On a CPU without instructions for bf16 nothing is timed: fp32 is faster there.

    Args:
        model: Stays as it is; a copy of it takes the steps.
        stage: Whose parts learn.
        batch: Its first images are used.
        device: Where.
        echo: Called with a line before the trial starts and one after it.
    """
    device = torch.device(device)
    if device.type == "cpu" and not cpu_has_bf16():
        log.info("this CPU has no instructions for bf16, so the precision is fp32")
        return "fp32"
    echo(f"timing a few steps in fp32 and bf16, for at most about {TRIAL_SECONDS:.0f} seconds")
    began, images = time.perf_counter(), batch.images[:TRIAL_IMAGES].to(device)
    seconds: dict[Precision, float] = {"fp32": math.inf, "bf16": math.inf}
    trial = copy.deepcopy(model).to(device)
    stage.freeze(trial)
    for precision in ("fp32", "bf16") * 3:
        if time.perf_counter() - began > TRIAL_SECONDS:
            break
        seconds[precision] = min(seconds[precision], _step_seconds(trial, images, device, precision))
    if math.isinf(seconds["bf16"]):
        echo(f"a step on {len(images)} images takes {seconds['fp32']:.3f} s in fp32; there was no time to try bf16")
    else:
        echo(
            f"a step on {len(images)} images takes {seconds['fp32']:.3f} s in fp32 and {seconds['bf16']:.3f} s in bf16"
        )
    return min(seconds, key=lambda precision: seconds[precision])


def step_seconds(
    model: ConceptModel, stage: Stage, images: Tensor, device: torch.device | str, precision: Precision
) -> float:
    """How long a step on some images (B, 3, H, W) takes, of two; a copy of the model takes them."""
    device = torch.device(device)
    trial = copy.deepcopy(model).to(device)
    stage.freeze(trial)
    return min(_step_seconds(trial, images.to(device), device, precision) for _ in range(2))


def _step_seconds(model: ConceptModel, images: Tensor, device: torch.device, precision: Precision) -> float:
    start = time.perf_counter()
    with torch.autocast(device.type, AUTOCAST[precision], enabled=precision != "fp32"):
        output = model.forward_concepts(images)
    output.concept_logits.float().mean().backward()
    output.concept_logits.detach().sum().item()  # waits for a GPU
    return time.perf_counter() - start
