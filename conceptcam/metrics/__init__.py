"""Metrics of labels, maps and prototypes: pure functions, and torchmetrics classes over them."""

from typing import TYPE_CHECKING

from conceptcam._lazy import hand_on

if TYPE_CHECKING:
    from conceptcam.metrics.border import (
        BorderMetrics as BorderMetrics,
        BorderScores as BorderScores,
        peaks_at_border as peaks_at_border,
    )
    from conceptcam.metrics.calibration import (
        CalibrationMetrics as CalibrationMetrics,
        CalibrationScores as CalibrationScores,
        ReliabilityCurve as ReliabilityCurve,
        Scaling as Scaling,
        calibration_scores as calibration_scores,
        fit_scaling as fit_scaling,
        prior_correction as prior_correction,
        reliability_curve as reliability_curve,
        scale_logits as scale_logits,
    )
    from conceptcam.metrics.classification import (
        LabelMetrics as LabelMetrics,
        LabelScores as LabelScores,
        MacroAUROC as MacroAUROC,
        Top1Accuracy as Top1Accuracy,
        balanced_accuracy as balanced_accuracy,
        confusion_matrix as confusion_matrix,
        macro_average as macro_average,
        per_label_metrics as per_label_metrics,
        task_scores as task_scores,
        top_accuracy as top_accuracy,
        well_supported as well_supported,
    )
    from conceptcam.metrics.components import best_overlaps as best_overlaps
    from conceptcam.metrics.detection import (
        DetectionMetrics as DetectionMetrics,
        DetectionScores as DetectionScores,
        find_alarms as find_alarms,
        normalize_maps as normalize_maps,
        pixel_average_precision as pixel_average_precision,
        pixel_counts as pixel_counts,
    )
    from conceptcam.metrics.faithfulness import (
        FaithfulnessMetrics as FaithfulnessMetrics,
        FaithfulnessScores as FaithfulnessScores,
        PerturbationCurves as PerturbationCurves,
        blurred as blurred,
        curve_areas as curve_areas,
        perturbation_curves as perturbation_curves,
        rank_correlation as rank_correlation,
    )
    from conceptcam.metrics.information import (
        concept_task_leakage as concept_task_leakage,
        entropy as entropy,
        exchange_within_labels as exchange_within_labels,
        interconcept_leakage as interconcept_leakage,
        mutual_information as mutual_information,
    )
    from conceptcam.metrics.intervals import (
        Interval as Interval,
        LabelIntervals as LabelIntervals,
        bootstrap_interval as bootstrap_interval,
        label_intervals as label_intervals,
        resample_counts as resample_counts,
    )
    from conceptcam.metrics.leakage import (
        LeakageMetrics as LeakageMetrics,
        LeakageScores as LeakageScores,
        completeness as completeness,
        niche_impurity as niche_impurity,
        oracle_impurity as oracle_impurity,
    )
    from conceptcam.metrics.localization import (
        LocalizationMetrics as LocalizationMetrics,
        LocalizationScores as LocalizationScores,
        best_iou_thresholds as best_iou_thresholds,
    )
    from conceptcam.metrics.map_scores import (
        drawn_pairs as drawn_pairs,
        energy_in_box as energy_in_box,
        find_peaks as find_peaks,
        map_iou as map_iou,
        pointing_game as pointing_game,
        random_peaks as random_peaks,
        relevance_rank as relevance_rank,
        side_accuracy as side_accuracy,
    )
    from conceptcam.metrics.novelty import (
        FeatureStatistics as FeatureStatistics,
        feature_distance as feature_distance,
        fit_feature_statistics as fit_feature_statistics,
    )
    from conceptcam.metrics.prototype_parts import (
        PrototypeParts as PrototypeParts,
        PrototypePartScores as PrototypePartScores,
        add_noise as add_noise,
        prototype_reliance as prototype_reliance,
        relevance_agreement as relevance_agreement,
        shown_parts as shown_parts,
    )
    from conceptcam.metrics.prototypes import (
        PrototypeAccuracy as PrototypeAccuracy,
        PrototypeHealth as PrototypeHealth,
        PrototypePurity as PrototypePurity,
        prototype_accuracy as prototype_accuracy,
        prototype_health as prototype_health,
        prototype_purity as prototype_purity,
        prototype_usage as prototype_usage,
    )
    from conceptcam.metrics.regions import (
        RegionMetrics as RegionMetrics,
        RegionScores as RegionScores,
        box_regions as box_regions,
        map_logits as map_logits,
        region_scores as region_scores,
    )
    from conceptcam.metrics.thresholds import (
        best_thresholds as best_thresholds,
        thresholds_at as thresholds_at,
        typical_probabilities as typical_probabilities,
        typical_values as typical_values,
    )

__getattr__, __dir__ = hand_on(__name__)
