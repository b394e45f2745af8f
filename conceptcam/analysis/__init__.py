"""Believe a model or not: figures with their controls, explanations of single images, and pictures of both."""

from typing import TYPE_CHECKING

from conceptcam._lazy import hand_on

if TYPE_CHECKING:
    from conceptcam.analysis.answers import EvaluatedImages as EvaluatedImages
    from conceptcam.analysis.atlas import (
        Atlas as Atlas,
        AtlasEntry as AtlasEntry,
        build_atlas as build_atlas,
        drop_prototypes as drop_prototypes,
        merge_prototypes as merge_prototypes,
        refit_task_head as refit_task_head,
    )
    from conceptcam.analysis.baselines import (
        Baselines as Baselines,
        BaselineScores as BaselineScores,
        fit_baselines as fit_baselines,
    )
    from conceptcam.analysis.comparison import Comparison as Comparison, compare as compare
    from conceptcam.analysis.evaluation import evaluate as evaluate
    from conceptcam.analysis.evaluation_result import Evaluation as Evaluation
    from conceptcam.analysis.explanation import (
        Explanation as Explanation,
        explain as explain,
        explain_images as explain_images,
    )
    from conceptcam.analysis.export import ExportReport as ExportReport, export_model as export_model
    from conceptcam.analysis.faithfulness import measure_faithfulness as measure_faithfulness
    from conceptcam.analysis.figures import overlay as overlay, save_png as save_png
    from conceptcam.analysis.fitting import (
        fit_calibration as fit_calibration,
        fit_novelty as fit_novelty,
        fit_thresholds as fit_thresholds,
    )
    from conceptcam.analysis.inspection_report import inspection_page as inspection_page
    from conceptcam.analysis.intervention import (
        Intervention as Intervention,
        apply_interventions as apply_interventions,
    )
    from conceptcam.analysis.intervention_curves import (
        InterventionCurve as InterventionCurve,
        intervention_curve as intervention_curve,
    )
    from conceptcam.analysis.intervention_result import (
        InterventionResult as InterventionResult,
        intervene as intervene,
        intervene_images as intervene_images,
    )
    from conceptcam.analysis.leakage import (
        HardSoftFigures as HardSoftFigures,
        hard_soft_figures as hard_soft_figures,
        measure_leakage as measure_leakage,
        task_completeness as task_completeness,
    )
    from conceptcam.analysis.learning_curves import plot_learning_curves as plot_learning_curves
    from conceptcam.analysis.randomization import (
        RandomizationScores as RandomizationScores,
        randomization_check as randomization_check,
    )
    from conceptcam.analysis.removal import RemovalScores as RemovalScores, removal_effects as removal_effects
    from conceptcam.analysis.spatial_curves import SpatialCurve as SpatialCurve, spatial_curve as spatial_curve

__getattr__, __dir__ = hand_on(__name__)
