"""How to train, and what of it decides what is learned."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from conceptcam.model.concept_model import ConceptModel
from conceptcam.training.feature_cache import LIMIT, FeatureCache, Storage
from conceptcam.training.history import EpochResult
from conceptcam.training.precision import Precision

# Options that what is learned follows from.
_FIXED = ("seed", "precision", "max_grad_norm", "gradient_accumulation_steps", "compile", "feature_cache_dtype")


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """How to train; the docstring of `Trainer` explains each option."""

    device: torch.device | str = "cpu"
    precision: Precision = "fp32"
    max_grad_norm: float = 1.0
    seed: int | None = None
    progress_bar: bool = False
    callbacks: Sequence[Callable[[ConceptModel, EpochResult], None]] = ()
    gradient_accumulation_steps: int = 1
    checkpoint_dir: str | Path | None = None
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    compile: bool | str = False
    gradient_checkpointing: bool = False
    feature_cache: Storage = "auto"
    feature_cache_limit: float = LIMIT / 1e9
    feature_cache_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(f"unknown `precision` {self.precision!r}; known: {list(get_args(Precision))}")
        if self.precision == "fp16" and torch.device(self.device).type == "cpu":
            raise ValueError("`precision='fp16'` needs a GPU; use 'bf16' on a CPU")
        for name in ("gradient_accumulation_steps", "checkpoint_every", "keep_checkpoints"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
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
        """The options that what is learned follows from: those of a resumed run must be the same."""
        return {name: getattr(self, name) for name in _FIXED}

    @property
    def backend(self) -> str | None:
        """Of `torch.compile`; None does not compile."""
        return "inductor" if self.compile is True else self.compile or None
