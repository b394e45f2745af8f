"""Figures of slow measures by name, each beside what it would be by chance, and as text."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from conceptcam._display.text import text_table
from conceptcam._files import nan_to_null
from conceptcam.analysis.slow_measures import WRONG, SlowFigures
from conceptcam.metrics.classification import macro_average

LEAK_MARGIN = 0.05
"""By how much CTL exceeds its control before a sentence says that scores leak.

Of 120 simulated sets of 24 to 300 images whose scores carry their concept and noise alone, none exceeded it by more
than .043; CTL of the bundled models exceeds it by .08 and .15."""


class SlowRow(NamedTuple):
    """One figure."""

    name: str
    value: float
    control: float | None
    """What it is by chance, or for a model that does not use what is measured; None if there is no such number."""
    note: str = ""
    """What the control is, or how to read the figure."""


def slow_rows(figures: SlowFigures) -> list[SlowRow]:
    """Means over concepts of what is defined, with controls."""
    rows = [*_detection_rows(figures), *_faithfulness_rows(figures), *_leakage_rows(figures)]
    for name, curve in figures.interventions.items():
        by_count = curve.auroc.tolist()  # of 0, 1, ..., K corrected concepts
        none, one, everything = by_count[0], by_count[1], by_count[-1]
        what = "answered wrong" if name == WRONG else f"corrected by {name}"
        rows.append(SlowRow(f"task AUROC, one concept {what}", one, none, "none corrected"))
        if name in ("ucp", WRONG):  # right answers to all concepts are the same by whatever policy
            answers = "all corrected" if name == "ucp" else "all answered wrong"
            rows.append(SlowRow(f"task AUROC, {answers}", everything, none, "none corrected"))
    for name, pointed in figures.spatial.items():
        whole, *_, inside = pointed.auroc.tolist()
        rows.append(SlowRow(f"task AUROC, inside {name} boxes alone", inside, whole, "whole image"))
    if figures.parts is not None:
        rows += [
            SlowRow("prototypes that show one part in 80 % of images", figures.parts.consistency(), None),
            SlowRow("prototypes that stay there under noise", float(figures.parts.stability.nanmean()), None),
            SlowRow("use of prototypes against what tasks rest on", figures.agreement, 0.0, "no relation"),
        ]
    return rows


def slow_lines(figures: SlowFigures) -> list[str]:
    """The figures as a table, and sentences about what they mean where that is bad."""
    cells = [["slow measure", "figure", "control", ""]]
    for name, value, control, note in slow_rows(figures):
        cells.append([name, _cell(value), "" if control is None else _cell(control), note])
    lines = text_table(cells)
    if figures.leakage is not None:
        ctl, control = _mean(figures.leakage.ctl), _mean(figures.leakage.ctl_control)
        if ctl > control + LEAK_MARGIN:
            lines += ["", f"Scores leak: they tell the tasks more than their concepts do (CTL {ctl:.3f}; {control:.3f} "
                      "of scores exchanged among images with the same label)."]  # fmt: skip
    if figures.uncorrected:
        lines += ["", f"No curve corrects {', '.join(figures.uncorrected)}: the record does not say what is typical."]
    return lines


def slow_dict(figures: SlowFigures) -> dict[str, Any]:
    """The table, and all curves, ready for JSON."""
    rows = {row.name: {"value": row.value, "control": row.control} for row in slow_rows(figures)}
    curves = {"interventions": _curves(figures.interventions), "spatial": _curves(figures.spatial)}
    froc = figures.detection.froc.nanmean(dim=0).tolist()
    return nan_to_null(
        {
            "figures": rows,
            **curves,
            "froc": froc,
            "faithfulness_images": figures.faithfulness_images,
            "uncorrected": list(figures.uncorrected),
        }
    )


def _detection_rows(figures: SlowFigures) -> list[SlowRow]:
    found = figures.detection
    return [
        SlowRow("boxes found (MaxBoxAccV2)", _mean(found.max_box_accuracy), _mean(found.box_chance), "whole image"),
        SlowRow("pixels found (PxAP)", _mean(found.pixel_precision), _mean(found.pixel_chance), "constant map"),
        SlowRow("boxes with a peak at 1 false alarm per image", _mean(found.sensitivity), None),
    ]


def _faithfulness_rows(figures: SlowFigures) -> list[SlowRow]:
    rows, lot = [], f"random order; {figures.faithfulness_images} images"
    for fill, one in figures.faithfulness.items():
        rows += [
            SlowRow(f"deletion, {fill} (lower is better)", _mean(one.deletion), _mean(one.random_deletion), lot),
            SlowRow(f"insertion, {fill} (higher is better)", _mean(one.insertion), _mean(one.random_insertion), lot),
        ]
    shuffled = figures.randomization
    rows += [
        SlowRow(f"maps alike, weights shuffled down to {part}", mean, 0.0, "0 is right")
        for part, mean in zip(shuffled.parts, shuffled.means, strict=True)
    ]
    return rows


def _leakage_rows(figures: SlowFigures) -> list[SlowRow]:
    leak, tasks = figures.leakage, figures.hard_soft
    rows = []
    if tasks is not None:
        rows += [
            SlowRow("task AUROC, concepts as yes and no", tasks.hard, tasks.soft, "scores as they are"),
            SlowRow("task AUROC, true concepts", tasks.true, tasks.soft, "scores as they are"),
        ]
    if leak is None:
        return rows
    return [
        *rows,
        SlowRow("leak to tasks (CTL)", _mean(leak.ctl), _mean(leak.ctl_control), "exchanged scores"),
        SlowRow("leak to other concepts (ICL)", _mean(leak.icl), _mean(leak.icl_control), "exchanged scores"),
        SlowRow("impurity (OIS)", _mean(leak.ois), _mean(leak.ois_control), "exchanged scores"),
        SlowRow("impurity of niches (NIS)", _mean(leak.nis), _mean(leak.nis_truth), "true concepts"),
    ]


def _curves(curves: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    return {name: {field: values.tolist() for field, values in one._asdict().items()} for name, one in curves.items()}


def _mean(values: Tensor) -> float:
    return float(macro_average(values.double()))


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
