"""Believe a model or not: figures with their controls, explanations of single images, and pictures of both."""

from typing import TYPE_CHECKING

from conceptcam._lazy import hand_on

if TYPE_CHECKING:
    from conceptcam.analysis.evaluation import Evaluation, evaluate, fit_thresholds
    from conceptcam.analysis.explanation import Explanation, explain
    from conceptcam.analysis.figures import overlay, save_png

__all__ = ["Evaluation", "Explanation", "evaluate", "explain", "fit_thresholds", "overlay", "save_png"]

__getattr__, __dir__ = hand_on(
    __name__,
    {
        "evaluation": ["Evaluation", "evaluate", "fit_thresholds"],
        "explanation": ["Explanation", "explain"],
        "figures": ["overlay", "save_png"],
    },
)
