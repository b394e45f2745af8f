"""The options of training: each is defined once, with the text that tells a user what it is for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

import torch

from conceptcam._checks import check_choice
from conceptcam.model.concept_model import ConceptModel
from conceptcam.training.feature_cache import LIMIT, FeatureCache
from conceptcam.training.history import EpochResult
from conceptcam.training.precision import Precision
from conceptcam.training.tensor_store import Storage

# Options that decide what is learned.
_FIXED = ("seed", "precision", "max_grad_norm", "gradient_accumulation_steps", "compile", "feature_cache_dtype")


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    at_least: int | None = None,
    metavar: str = "",
    flag: bool = True,
    yes_no: bool = False,
) -> Any:
    """A field of a dataclass of options.

    Args:
        default: Its value if none is given.
        help: What it is for, in a phrase that the command line and the docs show.
        choices: The only values it takes, besides the default; empty for any.
        at_least: The smallest number it takes.
        metavar: What stands for its value in the help, such as `"FILE"`.
        flag: Whether the command line has a flag for it.
        yes_no: Whether that flag has a twin with `no-` in front, because without either something else decides.
    """
    metadata = {
        "help": help, "choices": tuple(choices), "at_least": at_least, "metavar": metavar, "flag": flag,
        "yes_no": yes_no,
    }  # fmt: skip
    return field(default=default, metadata=metadata)


def check_options(options: Any) -> None:
    """Check the values of a dataclass of options against what its fields allow.

    Raises:
        ValueError: If a value is not among the choices, or too small.
    """
    for one in fields(options):
        value, least = getattr(options, one.name), one.metadata.get("at_least")
        if (choices := one.metadata.get("choices")) and value != one.default:
            check_choice(one.name, value, choices)
        if least is not None and value is not None and value < least:
            raise ValueError(f"`{one.name}` must be at least {least}, got {value}")


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """How to train. `Trainer` adds what to do with it; its docstring tells more of each option."""

    device: torch.device | str = option("cpu", "where to compute: cpu, cuda, ...", metavar="NAME")
    precision: Precision = option("fp32", "number format of the forward pass", choices=get_args(Precision))
    max_grad_norm: float = option(1.0, "gradients are scaled down to this norm", flag=False)
    seed: int | None = option(None, "seed of everything random", metavar="N")
    progress_bar: bool = option(False, "show a bar with loss and score", flag=False)
    callbacks: Sequence[Callable[[ConceptModel, EpochResult], None]] = option(
        (), "called at each epoch's end", flag=False
    )
    gradient_accumulation_steps: int = option(1, "batches per step, which saves memory", at_least=1, metavar="N")
    checkpoint_dir: str | Path | None = option(None, "where to keep what a killed run resumes from", flag=False)
    checkpoint_every: int | None = option(None, "steps between checkpoints within an epoch", at_least=1, flag=False)
    keep_checkpoints: int = option(2, "how many of the newest checkpoints are kept", at_least=1, flag=False)
    compile: bool | str = option(False, "run training steps through torch.compile")
    gradient_checkpointing: bool = option(False, "save memory: compute activations again in the backward pass")
    feature_cache: Storage = option(
        "auto", "where later stages keep the outputs of frozen parts", choices=get_args(Storage)
    )
    feature_cache_limit: float = option(LIMIT / 1e9, "GB that the feature cache may take", flag=False)
    feature_cache_dtype: torch.dtype | None = option(None, "type of numbers in the feature cache", flag=False)

    def __post_init__(self) -> None:
        check_options(self)
        if self.precision == "fp16" and torch.device(self.device).type == "cpu":
            raise ValueError("the precision 'fp16' needs a GPU; use 'bf16' on a CPU")
        if self.checkpoint_every is not None and self.checkpoint_dir is None:
            raise ValueError("`checkpoint_every` needs a `checkpoint_dir` to write to")
        self.frozen_outputs().close()  # refuses unknown options

    def frozen_outputs(self) -> FeatureCache:
        """What keeps the outputs of frozen parts, for one fit."""
        return FeatureCache(
            self.feature_cache, dtype=self.feature_cache_dtype, limit=round(self.feature_cache_limit * 1e9)
        )

    @property
    def fixed(self) -> dict[str, Any]:
        """The options that decide what is learned: those of a resumed run must be the same."""
        return {name: getattr(self, name) for name in _FIXED}

    @property
    def backend(self) -> str | None:
        """Of `torch.compile`; None does not compile."""
        return "inductor" if self.compile is True else self.compile or None
