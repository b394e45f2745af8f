"""Metrics of labels, maps and prototypes: pure functions, and torchmetrics classes over them."""

from conceptcam.metrics.classification import (
    LabelMetrics,
    LabelScores,
    MacroAUROC,
    Top1Accuracy,
    best_thresholds,
    macro_average,
    per_label_metrics,
    task_scores,
    top_accuracy,
    typical_probabilities,
)
from conceptcam.metrics.localization import LocalizationMetrics, LocalizationScores, best_iou_thresholds
from conceptcam.metrics.map_scores import drawn_pairs, energy_in_box, find_peaks, map_iou, pointing_game, random_peaks
from conceptcam.metrics.prototypes import (
    PrototypeAccuracy,
    PrototypeHealth,
    prototype_accuracy,
    prototype_health,
    prototype_usage,
)

__all__ = [
    "LabelMetrics",
    "LabelScores",
    "LocalizationMetrics",
    "LocalizationScores",
    "MacroAUROC",
    "PrototypeAccuracy",
    "PrototypeHealth",
    "Top1Accuracy",
    "best_iou_thresholds",
    "best_thresholds",
    "map_iou",
    "drawn_pairs",
    "energy_in_box",
    "find_peaks",
    "per_label_metrics",
    "macro_average",
    "pointing_game",
    "prototype_accuracy",
    "prototype_health",
    "prototype_usage",
    "random_peaks",
    "task_scores",
    "top_accuracy",
    "typical_probabilities",
]
