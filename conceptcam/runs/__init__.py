"""Training runs: one in a folder (`train_run`), or one per fold of the data (`cross_validate`)."""

from typing import TYPE_CHECKING

from conceptcam._lazy import hand_on

if TYPE_CHECKING:
    from conceptcam.runs.cross_validation import CrossValidation as CrossValidation, cross_validate as cross_validate
    from conceptcam.runs.options import RunOptions as RunOptions
    from conceptcam.runs.run import RunResult as RunResult, train_run as train_run

__getattr__, __dir__ = hand_on(__name__)
