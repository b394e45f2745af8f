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
    typical_probabilities,
)
from conceptcam.metrics.localization import LocalizationMetrics, LocalizationScores, best_iou_thresholds
from conceptcam.metrics.map_scores import box_iou, drawn_pairs, energy_in_box, find_peaks, pointing_game, random_peaks
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
    "TopAccuracy",
    "best_iou_thresholds",
    "best_thresholds",
    "box_iou",
    "drawn_pairs",
    "energy_in_box",
    "find_peaks",
    "label_scores",
    "macro",
    "pointing_game",
    "prototype_accuracy",
    "prototype_health",
    "prototype_usage",
    "random_peaks",
    "task_scores",
    "top_accuracy",
    "typical_probabilities",
]
