"""Metrics of labels, maps and prototypes: pure functions, and torchmetrics classes over them."""

from conceptcam.metrics.classification import (
    LabelMetrics,
    LabelScores,
    MacroAUROC,
    TopAccuracy,
    best_thresholds,
    label_scores,
    macro,
    task_scores,
    top_accuracy,
)

__all__ = [
    "LabelMetrics",
    "LabelScores",
    "MacroAUROC",
    "TopAccuracy",
    "best_thresholds",
    "label_scores",
    "macro",
    "task_scores",
    "top_accuracy",
]
