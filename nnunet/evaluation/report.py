"""The report for people: one HTML file that needs no other file, no script and no network."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from nnunet.evaluation.baselines import VolumeBaseline
from nnunet.evaluation.bootstrap import DEFAULT_LEVEL, Interval
from nnunet.evaluation.classification import AreaUnderCurve, ClassificationSummary
from nnunet.evaluation.figures import Curve, dice_distribution_png, training_curve_png
from nnunet.evaluation.overlap import CaseOverlap, EmptyRule
from nnunet.evaluation.summary import SegmentationSummary, ranked_cases
from utils.run_log import read_log
from utils.storage import atomic_file

REPORT_FILE = "report.html"
TEMPLATE_FOLDER = Path(__file__).parent / "templates"
TEMPLATE = "report.html.j2"
ABSENT = "–"
NUM_LOWEST = 5
EMPTY_RULES: Mapping[EmptyRule, str] = {
    "nan": "A structure that is empty in both the reference and the prediction has no Dice and is left out "
    "of its mean. A structure that is empty in only one of the two has Dice 0.",
    "one": "A structure that is empty in both the reference and the prediction has Dice 1. "
    "A structure that is empty in only one of the two has Dice 0.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One line of the table about the data."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """One case as a picture: what it stands for (best, median, worst), its name, its Dice and the PNG."""

    rank: str
    case_id: str
    dice: float
    png: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedCase:
    """A case chosen for an overlay, and why."""

    rank: str
    case: CaseOverlap


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportPage:
    """All that the report shows; what is absent is left out of the page.

    `volume_auroc` is the AUROC of the predicted volume alone, for a dataset of two classes; `volume` is
    what a logistic regression on the predicted volumes scores out of fold. `notes` are warnings for the
    reader, such as cases without a prediction.
    """

    title: str
    facts: tuple[Fact, ...] = ()
    notes: tuple[str, ...] = ()
    segmentation: SegmentationSummary | None = None
    classification: ClassificationSummary | None = None
    volume_auroc: AreaUnderCurve | None = None
    volume: VolumeBaseline | None = None
    overlays: tuple[Overlay, ...] = ()
    curves: tuple[Curve, ...] = ()


def write_report(path: Path, page: ReportPage) -> None:
    """Write the page as one HTML file."""
    html = render_report(page)
    with atomic_file(path) as stream:
        stream.write(html.encode())


def render_report(page: ReportPage) -> str:
    """The page as HTML; every text from the data is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number_text,
        "interval": interval_text,
        "percent": percent_of_axis,
        "image": data_uri,
    }
    return environment.get_template(TEMPLATE).render(page=page, **_derived(page))


def extreme_cases(cases: Sequence[CaseOverlap]) -> tuple[RankedCase, ...]:
    """The best, the median and the worst case by mean Dice, each case once; fewer when there are fewer."""
    ranked = ranked_cases(cases)
    if not ranked:
        return ()
    positions = {"Worst": len(ranked) - 1, "Median": (len(ranked) - 1) // 2, "Best": 0}
    ranks = {position: rank for rank, position in positions.items()}  # of one case, keep the better name
    return tuple(RankedCase(rank=ranks[position], case=ranked[position]) for position in sorted(ranks))


def read_curves(path: Path, metrics: Sequence[str]) -> tuple[Curve, ...]:
    """The chosen metrics of a training's logs.json (DLLogger lines) by epoch; those absent are left out.

    A metric logged twice for an epoch, as after a resume, keeps its last value.
    """
    points: dict[str, dict[int, float]] = {name: {} for name in metrics}
    for line in read_log(path):
        step = line.get("step")
        if line.get("type") != "LOG" or not isinstance(step, list) or len(step) != 1:
            continue
        for name in metrics:
            value = line["data"].get(name)
            if isinstance(value, int | float):
                points[name][int(step[0])] = float(value)
    return tuple(
        Curve(name=name, epochs=tuple(sorted(found)), values=tuple(found[epoch] for epoch in sorted(found)))
        for name, found in points.items()
        if found
    )


def number_text(value: float | None, digits: int = 3) -> str:
    """A number with fixed digits; a dash where there is none."""
    return ABSENT if value is None or math.isnan(value) else f"{value:.{digits}f}"


def interval_text(interval: Interval) -> str:
    """Both ends of an interval; a dash where it does not exist."""
    if math.isnan(interval.low):
        return ABSENT
    return f"{interval.low:.3f} to {interval.high:.3f}"


def percent_of_axis(value: float) -> str:
    """A share from 0 to 1 as a CSS percentage; 0 where it is undefined."""
    return f"{100 * min(max(0.0 if math.isnan(value) else value, 0.0), 1.0):.2f}%"


def data_uri(png: bytes) -> Markup:
    """PNG bytes as the address of an image inside the page."""
    return Markup("data:image/png;base64,") + base64.b64encode(png).decode()


def _derived(page: ReportPage) -> dict[str, Any]:
    """What the template shows and the records do not hold as such."""
    summary = page.segmentation
    return {
        "distribution": _distribution(summary) if summary else None,
        "curve": training_curve_png(page.curves) if page.curves else None,
        "lowest": ranked_cases(summary.cases)[::-1][:NUM_LOWEST] if summary else (),
        "empty_rule": EMPTY_RULES[summary.empty] if summary else "",
        "level": f"{100 * _level(page):g} %",
        "confusion": _confusion_cells(page.classification) if page.classification else (),
    }


def _level(page: ReportPage) -> float:
    """The confidence level of the page's intervals; both halves are drawn with the same one."""
    if page.segmentation:
        return page.segmentation.foreground_interval.level
    return page.classification.intervals.macro_f1.level if page.classification else DEFAULT_LEVEL


def _distribution(summary: SegmentationSummary) -> bytes:
    columns = [[case.structures[i].dice for case in summary.cases] for i in range(len(summary.structures))]
    names = [item.name for item in summary.structures]
    if len(summary.structures) > 1:  # with one label the whole organ is the same mask
        columns.append([case.whole_organ.dice for case in summary.cases])
        names.append(summary.whole_organ.name)
    return dice_distribution_png(names, [np.array(column) for column in columns])


def _confusion_cells(summary: ClassificationSummary) -> tuple[tuple[tuple[int, float], ...], ...]:
    """Per reference class, the count and the share of that class in each predicted class."""
    rows = []
    for row in summary.confusion:
        support = max(sum(row), 1)
        rows.append(tuple((count, count / support) for count in row))
    return tuple(rows)
